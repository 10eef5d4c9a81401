"""Each call of a FreeSWITCH is told the same however its channels' events overtake each other and however many calls there are; and
whatever the switch says, each side has one end, and nothing is left.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.esl_events import DID, OUTSIDE, START, stamp
from tests.support.esl_watching import EslWatcher, Event, events_of, recorded_bytes

from toque.calls.esl_wire import EslError, EslParser, Frame, parse_channel_list, parse_dump, parse_object
from toque.calls.model import StatusChange

RECORDINGS = Path(__file__).parents[1] / "recordings" / "freeswitch"
ENDLESS = {"pbx_shutdown_mid_call"}
NAMES = sorted(path.parent.name for path in RECORDINGS.glob("*/truth.json") if path.parent.name not in ENDLESS)
LONG = timedelta(hours=5)
AHEAD = 5  # by so many places of the switch's own count do events of different channels overtake each other
Told = dict[tuple[str, str, str], list[StatusChange]]


# Recorded calls, many at once


@cache
def recorded(name: str) -> list[Event]:
    return [
        event for event in events_of(recorded_bytes(RECORDINGS / name)) if event["Event-Name"].startswith(("CHANNEL", "CALL"))
    ]


@dataclass(frozen=True)
class Played:
    """One recording, played under other names at another time."""

    number: int
    name: str
    begins_ms: int

    def uuid(self, old: str) -> str:
        return str(uuid5(UUID(old), str(self.number)))

    def event(self, event: Event, shift_us: int) -> Event:
        text = json.dumps({**event, "Core-UUID": "core"})
        for uuid in self.uuids():
            text = text.replace(uuid, self.uuid(uuid))
        moved = json.loads(text)
        for header, value in moved.items():
            if (
                (header.endswith("-Time") or header == "Event-Date-Timestamp")
                and isinstance(value, str)
                and value not in ("", "0")
            ):
                moved[header] = str(int(value) + shift_us)
        return moved

    def uuids(self) -> set[str]:
        return _uuids(self.name)

    def events(self) -> list[Event]:
        return _moved(self)


@cache
def _uuids(name: str) -> set[str]:
    return {event["Unique-ID"] for event in recorded(name)}


@cache
def _moved(played: Played) -> list[Event]:
    begin = int(recorded(played.name)[0]["Event-Date-Timestamp"])
    shift_us = int(stamp(START)) + played.begins_ms * 1000 - begin
    return [played.event(event, shift_us) for event in recorded(played.name)]


@cache
def expected(played: Played) -> Told:
    watcher = EslWatcher()
    watcher.feed_all(played.events())
    watcher.pass_time(timedelta(seconds=40))
    return by_side(watcher)


def by_side(watcher: EslWatcher) -> Told:
    return {
        (identity.key, side.owner.client_id, str(side.direction)): changes
        for (identity, _, side), changes in watcher.ledger.told.items()
    }


@st.composite
def shuffled(draw: st.DrawFn, played: Played) -> list[tuple[int, Event]]:
    """The recording's events as they might come as well: of different channels, some overtake each other. With arrival times."""
    places: list[tuple[int, int, Event]] = []
    last: dict[str, int] = {}
    for number, event in enumerate(played.events()):
        uuid = event["Unique-ID"]
        place = max(int(event["Event-Sequence"]) + draw(st.integers(0, AHEAD)), last.get(uuid, 0))
        last[uuid] = place
        places.append((place, number, event))
    arrival, arrived = 0, []
    for _, _, event in sorted(places, key=lambda place: place[:2]):
        arrival = max(arrival, int(event["Event-Date-Timestamp"]))
        arrived.append((arrival, event))
    return arrived


@st.composite
def traffic(draw: st.DrawFn) -> tuple[list[Played], list[Event]]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))
    calls = [Played(number, name, draw(st.sampled_from([0, 0, 500, 3000]))) for number, name in enumerate(names)]
    arrived = [(at, number, event) for number, played in enumerate(calls) for at, event in draw(shuffled(played))]
    return calls, [event for _, _, event in sorted(arrived, key=lambda arrival: arrival[:2])]


@settings(deadline=None, max_examples=60)
@given(traffic(), st.sets(st.integers(0, 300), max_size=3), st.booleans())
def test_calls_do_not_mind_each_other_nor_events_that_overtake(
    calls: tuple[list[Played], list[Event]], cuts: set[int], restarts: bool
):
    played, events = calls
    watcher = EslWatcher()
    for number, event in enumerate(events):
        watcher.feed(event)
        if number in cuts:
            watcher.restart() if restarts else watcher.reconnect()
    watcher.pass_time(timedelta(seconds=40))
    assert by_side(watcher) == {key: changes for one in played for key, changes in expected(one).items()}
    watcher.pass_time(timedelta(days=2))
    assert (watcher.watch.tracker.calls, len(watcher.watch.reader.calls), watcher.ledger.states) == ({}, 0, {})


# Events that no switch would send

UUIDS = ["a", "b", "c", "d"]
NAMES_OF_EVENTS = [
    *("CHANNEL_CREATE", "CHANNEL_PROGRESS", "CHANNEL_ANSWER", "CHANNEL_BRIDGE", "CHANNEL_UUID", "CALL_UPDATE", "CHANNEL_HANGUP"),
    *("CHANNEL_HANGUP_COMPLETE", "CHANNEL_DESTROY", "CHANNEL_EXECUTE", "HEARTBEAT", "CHANNEL_STATE"),
]
VALUES: dict[str, list[Any]] = {
    "Core-UUID": ["one", "one", "one", "one", "one", "two"],
    "Unique-ID": UUIDS,
    "Old-Unique-ID": UUIDS,
    "Call-Direction": ["inbound", "outbound", "outbound"],
    "Channel-Name": ["sofia/external/x", "sofia/internal/x", "loopback/x-a", "loopback/x-b", ["list"], 5],
    "Other-Type": ["originator", "originatee"],
    "Other-Leg-Unique-ID": UUIDS,
    "Bridge-A-Unique-ID": UUIDS,
    "Bridge-B-Unique-ID": UUIDS,
    "Channel-Call-UUID": UUIDS,
    "variable_other_loopback_leg_uuid": UUIDS,
    "variable_cc_side": ["agent"],
    "variable_cc_member_session_uuid": UUIDS,
    "variable_signal_bond": UUIDS,
    "variable_bridge_uuid": UUIDS,
    "variable_current_application": ["bridge", "voicemail", "answer", ["x"], None],
    "variable_sip_hangup_disposition": ["recv_bye", "send_bye", "recv_cancel", "send_cancel", "recv_refuse", "send_refuse"],
    "variable_endpoint_disposition": ["ANSWER", "BLIND_TRANSFER", "ATTENDED_TRANSFER"],
    "variable_proto_specific_hangup_cause": ["sip:486", "sip:", "sip:99999", "x", 486],
    "variable_hangup_cause_q850": ["17", "0", "-1", "9" * 99, "x"],
    "Hangup-Cause": ["NORMAL_CLEARING", "USER_BUSY", "LOSE_RACE", "NO_ANSWER", "WHATEVER", "ORIGINATOR_CANCEL"],
    "Answer-State": ["answered", "ringing", "hangup"],
    "Caller-Caller-ID-Number": [OUTSIDE, "1001", "", "1" * 5000],
    "Caller-Destination-Number": [DID, "1001", "1002"],
    "Caller-Channel-Answered-Time": ["0", "1", "x", "9" * 99, stamp(START)],
    "Caller-Channel-Bridged-Time": ["0", stamp(START)],
    "Caller-Channel-Hangup-Time": ["0", "-5", stamp(START + timedelta(seconds=3)), "9" * 15],
}


@st.composite
def odd_events(draw: st.DrawFn) -> Event:
    event: Event = {"Event-Name": draw(st.sampled_from(NAMES_OF_EVENTS))}
    for header, values in VALUES.items():
        if draw(st.booleans()):
            event[header] = draw(st.sampled_from(values))
    return event


@settings(deadline=None)
@given(
    st.lists(st.tuples(odd_events(), st.sampled_from([0, 1, 600, 20_000])), max_size=40), st.sets(st.integers(0, 40), max_size=3)
)
def test_whatever_is_said_each_side_has_one_end_and_nothing_is_left(said: list[tuple[Event, int]], cuts: set[int]):
    watcher, now = EslWatcher(), START
    for number, (event, milliseconds) in enumerate(said):
        now += timedelta(milliseconds=milliseconds)
        watcher.feed({**event, "Event-Date-Timestamp": stamp(now)})
        if number in cuts:
            watcher.restart() if number % 2 else watcher.reconnect()
    watcher.pass_until(now + LONG)
    watcher.pass_until(now + 2 * LONG)
    assert watcher.ledger.refused == []
    for changes in watcher.ledger.told.values():
        ends = [change.status.is_final for change in changes]
        assert not ends or ends == [False] * (len(ends) - 1) + [True]
    watcher.pass_time(timedelta(days=3))
    assert (watcher.watch.tracker.calls, watcher.ledger.states) == ({}, {})
    assert len(watcher.watch.reader.calls) == 0


# Bytes

PIECES = [b"Content-Length: 5\n\n", b"Content-Type: text/event-json\n", b"\n", b"\n\n", b"{}", b"a: b", b"\xff", b"12345", b":"]


def read(pieces: list[bytes]) -> list[Frame] | None:
    """The frames; None where the stream was refused."""
    parser, found = EslParser(), []
    try:
        for piece in pieces:
            parser.receive(piece)
            while (frame := parser.next_frame()) is not None:
                found.append(frame)
    except EslError:
        return None
    return found


@given(st.lists(st.one_of(st.binary(max_size=50), st.sampled_from(PIECES))))
def test_any_bytes_are_frames_or_the_one_error_in_whatever_pieces_they_come(pieces: list[bytes]):
    data = b"".join(pieces)
    one_by_one = [bytes([byte]) for byte in data]
    assert read([data]) == read(pieces) == read(one_by_one)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.sampled_from([b"{", b'{"rows":[', b"-ERR", b"{}"]).flatmap(
            lambda start: st.binary(max_size=50).map(lambda rest: start + rest)
        ),
    )
)
def test_any_body_is_an_object_or_the_one_error(body: bytes):
    for parse in (parse_object, parse_channel_list, parse_dump):
        with suppress(EslError):
            parse(body)
