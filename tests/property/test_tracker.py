"""Each call is told the same however its messages overtake and repeat each other on their way; and whatever a source says, each
side is told each status at most once, in order, nothing after its end, and in time exactly one end.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.call_scenarios import SCENARIOS
from tests.support.call_watching import ARRIVAL, LINES, SOURCE, Ledger, Watcher
from tests.support.sip_messages import CALLER, DIALLED, START, ProxiedCall, sip_bytes, via

from toque.calls.hep_packet import HepPacket
from toque.calls.model import CallIdentity, Cause, Direction, Party, Signal, SignalKind, Status
from toque.calls.sip_watch import SipWatch
from toque.calls.tracker import CallTracker

LONG = timedelta(hours=5)

# Messages in any order

THE_ORDER_IS_THE_POINT = {"cancel_crosses_busy", "answer_seen_before_ringing"}
NAMES = sorted(SCENARIOS.keys() - THE_ORDER_IS_THE_POINT)
DELAYS_MS = [0, 0, 0, 1, 2, 5, 10, 20, 50, 100]
FIRST_DELAYS_MS = [0, 1, 3]  # before a called telephone has said anything that ends the attempt


@dataclass(frozen=True)
class Arrival:
    """A message as it reaches us."""

    at: datetime
    number: int
    packet: HepPacket

    def __str__(self) -> str:
        start = self.packet.payload.partition(b"\r\n")[0].decode()
        return f"{(self.at - START).total_seconds():.3f} {start[:11]} {self.packet.source[8:]}>{self.packet.destination[8:]}"


@dataclass(frozen=True)
class Traffic:
    """Several calls at once, and what the owners of each must be told, by Call-ID."""

    expected: dict[str, tuple[str, ...]]
    arrived: list[Arrival]

    def __repr__(self) -> str:
        """Short enough for the report of a failure."""
        return f"Traffic({list(self.expected)}: {', '.join(map(str, self.arrived))})"[:20_000]


@st.composite
def arrivals(draw: st.DrawFn, call: ProxiedCall) -> list[Arrival]:
    """The call's messages, each mirrored once to three times, late by as much as workers and networks make them."""
    arrived: list[Arrival] = []
    for number, packet in enumerate(call.packets):
        delays = FIRST_DELAYS_MS if number == 0 else DELAYS_MS
        for delay in draw(st.lists(st.sampled_from(delays), min_size=1, max_size=3 if number % 5 == 0 else 1)):
            arrived.append(Arrival(packet.at + ARRIVAL + timedelta(milliseconds=delay), number, packet))  # noqa: PERF401
    return arrived


@st.composite
def traffic(draw: st.DrawFn) -> Traffic:
    expected: dict[str, tuple[str, ...]] = {}
    everything: list[Arrival] = []
    for number, name in enumerate(draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5))):
        begins = START + timedelta(milliseconds=draw(st.integers(0, 5000)))
        call = SCENARIOS[name].play(ProxiedCall(f"{number}-{name}", begins=begins))
        expected[call.call_id] = SCENARIOS[name].words
        everything += draw(arrivals(call))
    return Traffic(expected, sorted(everything, key=lambda arrival: (arrival.at, arrival.number)))


def words_by_call(ledger: Ledger, direction: Direction) -> dict[str, tuple[str, ...]]:
    return {
        identity.key.partition(" ")[0]: tuple(str(change.status) for change in changes)
        for (identity, _, side), changes in ledger.told.items()
        if side.direction is direction
    }


@settings(deadline=None)
@given(traffic(), st.booleans())
def test_overtaking_and_repeated_messages_change_nothing(calls: Traffic, is_stamped_late: bool):
    watcher = Watcher()
    for arrival in calls.arrived:
        packet = replace(arrival.packet, at=arrival.at) if is_stamped_late else arrival.packet
        watcher.feed(packet, arrival.at)
    watcher.pass_time(LONG)
    assert words_by_call(watcher.ledger, Direction.MADE) == calls.expected
    assert words_by_call(watcher.ledger, Direction.RECEIVED) == calls.expected
    assert {generation for _, generation, _ in watcher.ledger.told} == {0}


@settings(deadline=None)
@given(traffic(), st.lists(st.integers(0, 200), max_size=5))
def test_restarts_change_nothing(calls: Traffic, restarts: list[int]):
    watcher = Watcher()
    for number, arrival in enumerate(calls.arrived):
        watcher.feed(arrival.packet, arrival.at)
        if number in restarts:
            watcher.restart()
    watcher.pass_time(LONG)
    assert words_by_call(watcher.ledger, Direction.MADE) == calls.expected


@settings(deadline=None)
@given(traffic(), st.sets(st.integers(0, 200), max_size=30))
def test_whatever_is_lost_each_side_has_one_end(calls: Traffic, lost: set[int]):
    watcher = Watcher()
    watcher.now = START
    for number, arrival in enumerate(calls.arrived):
        if number not in lost:
            watcher.feed(arrival.packet, arrival.at)
    watcher.pass_time(LONG)
    ends = [[change.status.is_final for change in changes] for changes in watcher.ledger.told.values() if changes]
    assert all(end == [False] * (len(end) - 1) + [True] for end in ends)
    watcher.pass_time(timedelta(days=2))
    assert (watcher.watch.tracker.calls, len(watcher.watch.dialogs)) == ({}, 0)


# Signals in any order

IDENTITIES = [CallIdentity(SOURCE, "c1 a"), CallIdentity(SOURCE, "c2 a")]
CAUSES = [None, Cause(), *(Cause(sip=sip) for sip in (302, 404, 407, 408, 480, 486, 487, 500, 503, 603)), Cause(sip=480, q850=17)]


@st.composite
def signals(draw: st.DrawFn) -> list[tuple[Signal, datetime]]:
    now, drawn = START, []
    for _ in range(draw(st.integers(1, 40))):
        now += timedelta(milliseconds=draw(st.sampled_from([0, 1, 100, 600, 5000])))
        at = now - timedelta(milliseconds=draw(st.sampled_from([0, 0, 0, 50, 700])))
        leg = draw(st.sampled_from([None, "b0", "b1"]))
        signal = Signal(
            identity=draw(st.sampled_from(IDENTITIES)),
            kind=draw(st.sampled_from(SignalKind)),
            at=at,
            leg=leg,
            callers=(CALLER,),
            dialled=DIALLED,
            number=draw(st.sampled_from(["", "1001", DIALLED])),
            cause=draw(st.sampled_from(CAUSES)),
            by=draw(st.sampled_from([None, *Party])),
        )
        drawn.append((signal, now))
    return drawn


class TrackerOnly(SipWatch):
    """A watch whose tracker is fed by hand."""

    def __init__(self, tracker: CallTracker) -> None:
        super().__init__(SOURCE, LINES)
        self.tracker = tracker


@settings(deadline=None)
@given(signals(), st.booleans())
def test_each_status_once_in_order_and_one_end(told: list[tuple[Signal, datetime]], ticks: bool):
    ledger, watch = Ledger(), TrackerOnly(CallTracker(LINES))
    for signal, now in told:
        if ticks:
            watch.tick(now)
        watch.tracker.feed(signal, now)
        ledger.append(watch)
    last = told[-1][1]
    watch.tick(last + LONG)
    watch.tick(last + 2 * LONG)
    ledger.append(watch)
    assert ledger.refused == []  # the tracker itself says nothing twice, out of order or after an end
    for changes in ledger.told.values():
        statuses = [change.status for change in changes]
        assert sum(status.is_final for status in statuses) == 1
        assert statuses[-1].is_final
        assert (statuses[-1] is Status.HUNG_UP) == (Status.ANSWERED in statuses)
    watch.tick(last + timedelta(days=2))
    assert watch.tracker.calls == {}
    assert watch.tracker.next_due() is None


# Messages that no telephone would send

BRANCHES = ["z9hG4bKa", "z9hG4bKb", "z9hG4bKc", ""]
TAGS = ["", "a", "b", "c"]


@st.composite
def odd_messages(draw: st.DrawFn) -> HepPacket:
    method = draw(st.sampled_from(["INVITE", "INVITE", "ACK", "CANCEL", "BYE", "UPDATE"]))
    status = draw(st.sampled_from([0, 0, 100, 180, 183, 200, 302, 407, 408, 481, 486, 487, 503, 603]))
    branches = draw(st.lists(st.sampled_from(BRANCHES), max_size=3))
    headers = [("Via", via("192.0.2.1", branch) if branch else "SIP/2.0/UDP 192.0.2.1") for branch in branches]
    for name, number in (("From", CALLER), ("To", DIALLED)):
        tag = draw(st.sampled_from(TAGS))
        headers.append((name, f"<sip:{number}@h>" + (f";tag={tag}" if tag else "")))
    headers += [("Call-ID", draw(st.sampled_from(["c1", "c2"]))), ("CSeq", f"{draw(st.integers(0, 3))} {method}")]
    if draw(st.booleans()):
        headers.append(("Route", f"<sip:h;ftag={draw(st.sampled_from(TAGS))}>"))
    start = f"SIP/2.0 {status} Whatever" if status else f"{method} sip:{DIALLED}@h SIP/2.0"
    source, destination = draw(st.permutations(["192.0.2.1:5060", "192.0.2.2:5060"]))
    return HepPacket(sip_bytes(start, headers), 1, START, source, destination)


@settings(deadline=None)
@given(st.lists(st.tuples(odd_messages(), st.sampled_from([0, 1, 100, 600, 20_000])), max_size=40), st.integers(0, 40))
def test_whatever_is_sent_each_side_has_one_end_and_nothing_is_left(sent: list[tuple[HepPacket, int]], restart_after: int):
    watcher, now = Watcher(), START
    watcher.now = START
    for number, (packet, milliseconds) in enumerate(sent):
        now += timedelta(milliseconds=milliseconds)
        watcher.feed(replace(packet, at=now), now)
        watcher.ledger.append(watcher.watch)
        if number == restart_after:
            watcher.restart()
    watcher.pass_time(LONG)
    ends = [[change.status.is_final for change in changes] for changes in watcher.ledger.told.values() if changes]
    assert all(end == [False] * (len(end) - 1) + [True] for end in ends)
    watcher.pass_time(timedelta(days=2))
    assert (watcher.watch.tracker.calls, len(watcher.watch.dialogs), watcher.ledger.states) == ({}, 0, {})
