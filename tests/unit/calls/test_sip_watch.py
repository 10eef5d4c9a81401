"""What the owners of two lines are told of whole calls through a proxy; `tests/support/call_scenarios.py` has the calls."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.support.call_scenarios import SCENARIOS, Scenario
from tests.support.call_watching import LINES, SOURCE, Watcher, told
from tests.support.sip_messages import CALLER, DIALLED, START, ProxiedCall, moved, repeated, sip_bytes

from toque.calls.hep_packet import HepPacket
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import Direction, Party, Status
from toque.calls.sip import SipError
from toque.calls.sip_watch import SipWatch

LONG = timedelta(hours=5)  # every patience is over by then

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())


@each_scenario
def test_what_is_told(scenario: Scenario):
    ledger = told(scenario.play(ProxiedCall()).packets, wait=LONG)
    assert ledger.words() == [list(scenario.words)] * 2
    assert ledger.refused == []
    facts = ledger.facts()
    assert facts.hung_up_by is scenario.by
    assert (facts.cause.sip if facts.cause else None) == scenario.sip
    assert (facts.cause.q850 if facts.cause else None) == scenario.q850
    assert facts.is_inferred is scenario.is_inferred
    assert facts.is_whole
    assert (facts.caller, facts.dialled) == (CALLER, DIALLED)


@each_scenario
@pytest.mark.parametrize("times", [2, 3])
def test_mirrored_messages_change_nothing(scenario: Scenario, times: int):
    packets = scenario.play(ProxiedCall()).packets
    assert told(repeated(packets, times), wait=LONG).words() == [list(scenario.words)] * 2


@each_scenario
def test_a_restart_at_any_point_changes_nothing(scenario: Scenario):
    packets = scenario.play(ProxiedCall()).packets
    for point in range(1, len(packets) + 1):
        ledger = told(packets, restart_after=point, wait=LONG)
        assert ledger.words() == [list(scenario.words)] * 2, f"restarted after {point} of {len(packets)} messages"
        assert ledger.facts().hung_up_by is scenario.by, f"restarted after {point} of {len(packets)} messages"


@each_scenario
def test_retransmissions_within_the_time_of_sip_change_nothing(scenario: Scenario):
    """The whole call again half a minute after its end: not one of its messages begins or ends anything."""
    packets = scenario.play(ProxiedCall()).packets
    again = moved(packets, packets[-1].at - packets[0].at + timedelta(seconds=30))
    watcher = Watcher()
    watcher.feed_all(packets)
    watcher.pass_time(timedelta(seconds=29))
    expected = watcher.ledger.words()
    if not scenario.is_inferred:
        watcher.feed_all(again)
        watcher.pass_time(timedelta(minutes=1))
        assert watcher.ledger.words() == expected == [list(scenario.words)] * 2


@each_scenario
def test_nothing_is_left_behind(scenario: Scenario):
    watcher = Watcher()
    watcher.feed_all(scenario.play(ProxiedCall()).packets)
    watcher.pass_time(timedelta(days=2))
    assert (len(watcher.watch.dialogs), watcher.watch.tracker.calls, watcher.ledger.states) == (0, {}, {})
    assert watcher.watch.tracker.next_due() is None


@each_scenario
def test_any_one_lost_message_still_gives_each_side_one_end(scenario: Scenario):
    packets = scenario.play(ProxiedCall()).packets
    for lost in range(len(packets)):
        ledger = told(packets[:lost] + packets[lost + 1 :], wait=LONG)
        for words in ledger.words():
            assert [Status(word).is_final for word in words] == [False] * (len(words) - 1) + [True]
        assert len(ledger.words()) == 2, f"without message {lost}"


EITHER_HOP_TELLS = [
    "answered", "busy", "busy_after_ringing", "no_answer", "unreachable", "declined", "not_found", "busy_inside_480",
    "reinvited", "redirected_not_followed", "end_never_seen",
]  # fmt: skip
CALLERS_HOP_TELLS = [
    *EITHER_HOP_TELLS, "cancelled", "challenged_401", "challenged_407", "redirected_and_followed", "challenge_not_answered",
    "forked_one_answers", "serial_busy_then_answered", "answered_twice", "cancel_crosses_answer",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "is_callers"), [(name, True) for name in CALLERS_HOP_TELLS] + [(name, False) for name in EITHER_HOP_TELLS]
)
def test_a_switch_that_mirrors_one_hop_only_tells_the_same(name: str, is_callers: bool):
    call = SCENARIOS[name].play(ProxiedCall())
    packets = [p for p in call.packets if (call.caller_address in (p.source, p.destination)) is is_callers]
    assert told(packets, wait=LONG).words() == [list(SCENARIOS[name].words)] * 2


# A call first seen in its middle

MIDDLES = {
    "at its 180": ("answered", lambda p: b" 180 " in p.payload, ["ringing", "answered", "hung_up"]),
    "at its 200": ("answered", lambda p: b" 200 OK" in p.payload, ["answered", "hung_up"]),
    "at a re-INVITE": ("reinvited", lambda p: p.payload.startswith(b"INVITE") and b"\r\nTo" in p.payload and b"-b0" in p.payload, ["answered", "hung_up"]),
    "at the callee's BYE": ("answered_callee_hangs_up", lambda p: p.payload.startswith(b"BYE"), ["answered", "hung_up"]),
    "at the caller's BYE": ("answered", lambda p: p.payload.startswith(b"BYE"), ["answered", "hung_up"]),
    "at its 486": ("busy", lambda p: b" 486 " in p.payload, ["busy"]),
    "at its CANCEL": ("cancelled", lambda p: p.payload.startswith(b"CANCEL"), ["cancelled"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "first", "words"), MIDDLES.values(), ids=MIDDLES.keys())
def test_a_call_first_seen_in_its_middle(name: str, first, words: list[str]):
    packets = SCENARIOS[name].play(ProxiedCall()).packets
    start = next(number for number, packet in enumerate(packets) if first(packet))
    ledger = told(packets[start:], wait=LONG)
    assert ledger.words() == [words] * 2
    assert (ledger.facts().caller, ledger.facts().dialled) == (CALLER, DIALLED)
    assert ledger.facts().hung_up_by is SCENARIOS[name].by
    assert [side.direction for _, _, side in ledger.told] == [Direction.MADE, Direction.RECEIVED]
    assert not ledger.facts().is_whole


# Identities


def test_a_name_used_again_later_is_another_call():
    first = SCENARIOS["busy"].play(ProxiedCall())
    second = ProxiedCall(begins=first.at + timedelta(minutes=1), attempt=2)
    second.caller_tag = first.caller_tag
    SCENARIOS["answered"].play(second)
    ledger = told([*first.packets, *second.packets])
    assert ledger.words("acme") == [["initiated", "busy"], ["initiated", "ringing", "answered", "hung_up"]]


def test_a_name_used_again_after_everything_was_forgotten_is_another_call():
    packets = SCENARIOS["answered"].play(ProxiedCall()).packets
    ledger = told([*packets, *moved(packets, timedelta(hours=1))])
    assert ledger.words("acme") == [list(SCENARIOS["answered"].words)] * 2


def test_many_calls_at_once_do_not_meet():
    calls = [
        s.play(ProxiedCall(name, begins=START + timedelta(milliseconds=7 * n))) for n, (name, s) in enumerate(SCENARIOS.items())
    ]
    packets = sorted((packet for call in calls for packet in _with_true_order(call)), key=lambda item: item[0])
    watcher = Watcher()
    for moment, _, packet in packets:
        watcher.feed(packet, moment)
    watcher.pass_time(LONG)
    words = {}
    for (identity, _, side), changes in watcher.ledger.told.items():
        if side.direction is Direction.MADE:
            words[identity.key.partition("@")[0]] = tuple(str(change.status) for change in changes)
    assert words == {name: scenario.words for name, scenario in SCENARIOS.items()}


def _with_true_order(call: ProxiedCall) -> list[tuple]:
    """Each message with the moment at which it is seen; some scenarios have messages seen out of order."""
    moment, seen = call.begins, []
    for number, packet in enumerate(call.packets):
        moment = max(moment, packet.at)
        seen.append((moment, (call.name, number), packet))
    return seen


# Whose call it is


def test_forwarded_to_a_line_of_another_client():
    lines = LineBook.of([parse_line("acme", "did", DIALLED), parse_line("zeta", "celular", "5511966660003")])
    call = ProxiedCall(numbers={1: "5511966660003"})
    call.invite()
    call.end_leg(486)
    call.fork(1, after=1)
    call.ring(1)
    call.answer(1)
    call.hang_up(leg=1)
    ledger = told(call.packets, lines=lines)
    assert ledger.words("acme") == ledger.words("zeta") == [["initiated", "ringing", "answered", "hung_up"]]
    assert ledger.facts().answered_by == "5511966660003"
    began = {side.owner.client_id: changes[0].facts.began_at for (_, _, side), changes in ledger.told.items()}
    assert began["zeta"] - began["acme"] > timedelta(seconds=1)


def test_a_group_of_extensions_behind_one_number_is_one_side():
    lines = LineBook.of(parse_line("acme", pin, text) for pin, text in (("did", DIALLED), ("1001", "1001"), ("1002", "1002")))
    call = ProxiedCall(numbers={0: "1001", 1: "1002"})
    SCENARIOS["forked_one_answers"].play(call)
    ledger = told(call.packets, lines=lines)
    assert ledger.words() == [["initiated", "ringing", "answered", "hung_up"]]
    assert ledger.facts().answered_by == "1002"


def test_an_identity_that_the_network_asserts():
    call = SCENARIOS["busy"].play(ProxiedCall(caller="anonymous", asserted=CALLER))
    ledger = told(call.packets)
    assert ledger.words("acme") == [["initiated", "busy"]]
    assert ledger.facts().caller == "anonymous"


def test_a_number_in_national_form():
    ledger = told(SCENARIOS["busy"].play(ProxiedCall(dialled="01511977770002")).packets)
    assert ledger.words("zeta") == [["initiated", "busy"]]
    assert ledger.facts().dialled == "01511977770002"


def test_an_answer_names_who_answered():
    ledger = told(SCENARIOS["answered"].play(ProxiedCall(numbers={0: "1001"})).packets)
    assert ledger.facts().answered_by == "1001"


def test_nobodys_calls_are_counted():
    call = SCENARIOS["busy"].play(ProxiedCall(caller="1", dialled="2"))
    watcher = Watcher()
    watcher.feed_all(call.packets)
    assert [(c.caller, c.dialled) for c in watcher.watch.take_unmatched()] == [("1", "2")]
    assert watcher.watch.tracker.counters.unmatched == 1


# Conclusions


def test_a_bye_after_the_conclusion_is_not_told():
    watcher = Watcher()
    call = SCENARIOS["end_never_seen"].play(ProxiedCall())
    watcher.feed_all(call.packets)
    watcher.pass_time(timedelta(hours=6))
    concluded = watcher.ledger.words()
    before = len(call.packets)
    call.hang_up(after=7 * 3600)
    watcher.feed_all(call.packets[before:])
    watcher.pass_time(timedelta(minutes=1))
    assert watcher.ledger.words() == concluded == [["initiated", "ringing", "answered", "hung_up"]] * 2
    assert len(watcher.watch.take_late()) == 1


def test_a_bye_after_the_conclusion_and_a_restart_is_not_told_either():
    watcher = Watcher()
    call = SCENARIOS["end_never_seen"].play(ProxiedCall())
    watcher.feed_all(call.packets)
    watcher.pass_time(timedelta(hours=6))
    watcher.restart()
    before = len(call.packets)
    call.hang_up(after=7 * 3600)
    watcher.feed_all(call.packets[before:])
    watcher.pass_time(timedelta(minutes=1))
    assert watcher.ledger.words() == [["initiated", "ringing", "answered", "hung_up"]] * 2


def test_a_long_call_that_shows_signs_of_life_outlives_a_restart():
    watcher = Watcher()
    call = ProxiedCall()
    call.invite()
    call.answer()
    for _ in range(20):
        call.in_dialog("UPDATE", after=1500)
        call.dialog_answer(200, "UPDATE")
    watcher.feed_all(call.packets)
    watcher.restart()
    before = len(call.packets)
    call.hang_up(after=1500)
    watcher.feed_all(call.packets[before:])
    watcher.pass_time(timedelta(minutes=1))
    assert watcher.ledger.words("acme") == [["initiated", "answered", "hung_up"]]
    assert not watcher.ledger.facts().is_inferred
    assert watcher.ledger.facts().hung_up_by is Party.CALLER


# Packets


def test_what_is_not_sip_is_passed_over():
    watch = SipWatch(SOURCE, LINES)
    packet = ProxiedCall().up("INVITE")
    watch.feed(replace(packet, protocol=5, payload=b"rtcp"), START)
    watch.feed(replace(packet, payload=b"\r\n\r\n"), START)
    watch.feed(replace(packet, payload=b""), START)
    assert watch.take() == ([], [])


def test_what_should_be_sip_and_is_not_is_refused():
    with pytest.raises(SipError):
        SipWatch(SOURCE, LINES).feed(HepPacket(b"hello", 1, START, "", ""), START)


def test_a_packet_without_a_time_has_that_of_its_arrival():
    watch = SipWatch(SOURCE, LINES)
    watch.feed(replace(ProxiedCall().up("INVITE"), at=None), START)
    assert watch.waiting() == 2
    changes, snapshots = watch.take()
    assert [change.at for change in changes] == [START, START]
    assert len(snapshots) == 1


def test_other_methods_are_no_calls():
    watch = SipWatch(SOURCE, LINES)
    headers = [("Via", "SIP/2.0/UDP a;branch=z9hG4bK1"), ("From", "<sip:1@a>;tag=a"), ("To", "<sip:1@a>"), ("Call-ID", "r")]
    for method in ("REGISTER", "OPTIONS", "SUBSCRIBE", "NOTIFY", "MESSAGE", "PUBLISH"):
        payload = sip_bytes(f"{method} sip:a SIP/2.0", [*headers, ("CSeq", f"1 {method}")])
        watch.feed(HepPacket(payload, 1, START, "", ""), START)
        watch.feed(HepPacket(payload.replace(f"{method} sip:a SIP/2.0".encode(), b"SIP/2.0 200 OK"), 1, START, "", ""), START)
    assert (watch.take(), watch.tracker.calls, len(watch.dialogs)) == (([], []), {}, 0)


@pytest.mark.parametrize("state", [b"", b"\x80", b"\xc1"])
def test_a_stored_state_that_cannot_be_read_is_refused(state: bytes):
    with pytest.raises(ValueError, match="cannot be read"):
        SipWatch(SOURCE, LINES).restore(state, START)
