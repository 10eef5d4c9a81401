"""Each call on an Asterisk is told the same whatever other calls there are, and whichever of its channels' events comes first; and
whatever a switch says, each side has one end.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.ami_recordings import (
    CANNOT_BE_SEEN,
    AmiWatcher,
    ChannelList,
    Recording,
    event,
    lines_for,
    messages,
    recordings,
    told_of,
)
from tests.support.ami_switch import START

from toque.calls.ami_wire import AmiError, AmiMessage, AmiReader
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import Status

RECORDINGS = [recording for recording in recordings() if recording.truth and recording.name not in CANNOT_BE_SEEN]
CLOSE = timedelta(milliseconds=20)  # within which two threads of a switch overtake each other
Arrival = tuple[datetime, AmiMessage]


# Many calls at once


def renamed(text: str, copy: int) -> str:
    """The same with names, numbers and ids of its own."""
    text = re.sub(r"\b(17954\d{5}\.\d+)\b", rf"{copy}\1", text)
    text = re.sub(r"-([0-9a-f]{6})([0-9a-f]{2})(?=;|$)", rf"-{copy:06x}\2", text)
    text = re.sub(r"\b([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22})", rf"{copy}-\1", text)
    text = re.sub(r"(?<!\d)(\*8)?1(00[1-5]|999)(?!\d)", lambda found: f"{found[1] or ''}{copy + 1}{found[2]}", text)
    text = text.replace("5511988887777", f"551198888777{copy}").replace("5541306003", f"554130{copy}003")
    return re.sub(r"55419999(9\d{4})", rf"5541999{copy}\1", text)


def copied(recording: Recording, copy: int, begins: datetime) -> list[Arrival]:
    arrived = messages(recording)
    return [
        (
            begins + (at - arrived[0][0]),
            AmiMessage(message.event, {key: renamed(value, copy) for key, value in message.fields.items()}, message.variables),
        )
        for at, message in arrived
    ]


def truth_of(recording: Recording, copy: int) -> list[dict[str, Any]]:
    return [
        {key: renamed(value, copy) if isinstance(value, str) else value for key, value in truth.items()}
        for truth in recording.truth
    ]


def concerned(message: AmiMessage) -> set[str]:
    """The channels and bridges that an event speaks of; only one of several such events can be the first."""
    named = {value for key, value in message.fields.items() if key.endswith(("uniqueid", "linkedid"))}
    return named or set(message.fields.values())


@st.composite
def shuffled(draw: st.DrawFn, arrived: list[Arrival]) -> list[Arrival]:
    """Events of different channels overtake each other."""
    order = list(arrived)
    for index in draw(st.lists(st.integers(0, max(len(order) - 2, 0)), max_size=60)):
        (first_at, first), (second_at, second) = order[index], order[index + 1]
        is_answer = "OriginateResponse" in (first.event, second.event)  # it names its channel by a prefix
        if second_at - first_at <= CLOSE and not is_answer and not concerned(first) & concerned(second):
            order[index], order[index + 1] = (first_at, second), (second_at, first)
    return order


@dataclass(frozen=True)
class Traffic:
    """Several calls at once, and what the owners of each must be told."""

    names: list[str]
    truths: list[dict[str, Any]]
    arrived: list[Arrival]

    def __repr__(self) -> str:
        """Short enough for the report of a failure."""
        shown = (f"{at.timestamp() - START.timestamp():.3f} {message.event}" for at, message in self.arrived)
        return f"Traffic({self.names}: {', '.join(shown)})"[:20_000]


@st.composite
def traffic(draw: st.DrawFn) -> Traffic:
    chosen = draw(st.lists(st.sampled_from(RECORDINGS), min_size=1, max_size=4))
    truths: list[dict[str, Any]] = []
    arrived: list[Arrival] = []
    for copy, recording in enumerate(chosen, start=1):
        begins = START + timedelta(milliseconds=draw(st.integers(0, 9000)))
        truths += truth_of(recording, copy)
        arrived += draw(shuffled(copied(recording, copy, begins)))
    return Traffic([recording.name for recording in chosen], truths, sorted(arrived, key=lambda arrival: arrival[0]))


def check(watcher: AmiWatcher, truths: list[dict[str, Any]]) -> None:
    for truth in truths:
        (told,) = told_of(watcher.ledger, truth)
        last = told[-1]
        assert str(last.status) in {truth["final"], *truth.get("also_right", ())}
        if truth["final"] == "hung_up":
            assert last.facts.answered_by == truth.get("transferred_to", truth.get("reached", truth["callee"]))
    assert len([changes for changes in watcher.ledger.told.values() if changes]) == len(truths)
    assert watcher.ledger.refused == []
    assert len(watcher.watch.events.book) == 0


@settings(deadline=None)
@given(traffic())
def test_calls_do_not_disturb_each_other(calls: Traffic):
    watcher = AmiWatcher(lines_for(calls.truths))
    for at, message in calls.arrived:
        watcher.feed(message, at)
    watcher.pass_time(timedelta(minutes=1))
    check(watcher, calls.truths)


@settings(deadline=None)
@given(traffic(), st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=4))
def test_lost_connections_and_restarts_change_nothing(calls: Traffic, lost: list[tuple[int, bool]]):
    watcher, channels, restarts = AmiWatcher(lines_for(calls.truths)), ChannelList(), dict(lost)
    for number, (at, message) in enumerate(calls.arrived):
        watcher.feed(message, at)
        channels.follow(message, at)
        if number in restarts:
            if restarts[number]:
                watcher.restart()
            watcher.resync(channels.answer(at), at)
    watcher.pass_time(timedelta(minutes=1))
    check(watcher, calls.truths)


# Events that no switch would send

UIDS = ["1.1", "1.2", "1.3", "1.4", ""]
CHANNELS = ["PJSIP/1001-01", "PJSIP/trunk-02", "Local/1002@x-03;1", "Local/1002@x-03;2", "CBAnn/9", ""]
NUMBERS = ["1001", "1002", "*8", "s", "", "<unknown>", "554130600300"]
EVENTS = [
    "Newchannel", "Newchannel", "Newstate", "NewCallerid", "Rename", "DialBegin", "DialState", "DialEnd", "OriginateResponse", "BridgeEnter",
    "BridgeLeave", "BridgeMerge", "BlindTransfer", "AttendedTransfer", "Pickup", "QueueCallerJoin", "QueueCallerLeave", "AgentConnect",
    "Newexten", "VarSet", "HangupRequest", "SoftHangupRequest", "Hangup", "Hangup", "CoreShowChannel", "CoreShowChannelsComplete",
]  # fmt: skip
FIELDS = {
    "channelstate": st.sampled_from(["0", "4", "5", "6", "9", "x", ""]),
    "calleridnum": st.sampled_from(NUMBERS),
    "exten": st.sampled_from(NUMBERS),
    "context": st.sampled_from(["from-trunk", "internal"]),
    "dialstatus": st.sampled_from(["RINGING", "ANSWER", "CANCEL", "NOANSWER", "BUSY", "GOTO:x", ""]),
    "dialstring": st.sampled_from(["1001", "5541999990001@trunk", "Local/1002@x", "/@", ""]),
    "forward": st.sampled_from(["", "", "", "1003"]),
    "bridgeuniqueid": st.sampled_from(["b1", "b2", ""]),
    "tobridgeuniqueid": st.sampled_from(["b1", "b2", ""]),
    "frombridgeuniqueid": st.sampled_from(["b1", "b2", ""]),
    "bridgeid": st.sampled_from(["b1", "b2", ""]),
    "swapuniqueid": st.sampled_from(UIDS),
    "cause": st.sampled_from(["0", "16", "17", "26", "127", "999", "-1", "x", "²", ""]),
    "techcause": st.sampled_from(["486", "487", "200", "x", ""]),
    "response": st.sampled_from(["Success", "Failure"]),
    "application": st.sampled_from(["VoiceMail", "AppDial", "Dial"]),
    "appdata": st.sampled_from(["1001@default", ""]),
    "duration": st.sampled_from(["00:00:05", "x", "1:2", "99999999:00:00"]),
    "newname": st.sampled_from(CHANNELS),
    "reason": st.sampled_from(["0", "3", "4", "x"]),
    "timestamp": st.sampled_from(["", "", "", "nan", "1e400", "x", "-1"]),
}
PREFIXES = ["", "dest", "target", "transferer", "transferee", "origtransferer", "secondtransferer"]


@st.composite
def odd_events(draw: st.DrawFn) -> AmiMessage:
    fields = {name: draw(values) for name, values in FIELDS.items() if draw(st.booleans())}
    for prefix in draw(st.lists(st.sampled_from(PREFIXES), unique=True)):
        fields[prefix + "uniqueid"] = draw(st.sampled_from(UIDS))
        fields[prefix + "channel"] = draw(st.sampled_from(CHANNELS))
        fields[prefix + "linkedid"] = draw(st.sampled_from(UIDS))
        fields[prefix + "channelstate"] = draw(FIELDS["channelstate"])
    return AmiMessage(draw(st.sampled_from(EVENTS)), fields)


@settings(deadline=None)
@given(
    st.lists(st.tuples(odd_events(), st.sampled_from([0, 1, 100, 3000])), max_size=60),
    st.sets(st.integers(0, 60), max_size=3),
    st.sets(st.integers(0, 60), max_size=3),
)
def test_whatever_is_said_each_side_has_one_end(said: list[tuple[AmiMessage, int]], restarts: set[int], resyncs: set[int]):
    watcher, now = AmiWatcher(LineBook.of([parse_line("acme", "all", "~.*")])), START
    watcher.now = START
    for number, (message, milliseconds) in enumerate(said):
        now += timedelta(milliseconds=milliseconds)
        watcher.feed(message, now)
        if number in resyncs:
            watcher.watch.begin_resync()
        if number in restarts:
            watcher.restart()
    watcher.watch.begin_resync()
    watcher.feed(event("CoreShowChannelsComplete"), now)
    watcher.pass_time(timedelta(hours=5))
    for changes in watcher.ledger.told.values():
        statuses = [change.status for change in changes]
        if statuses:
            assert [status.is_final for status in statuses] == [False] * (len(statuses) - 1) + [True]
            assert (statuses[-1] is Status.HUNG_UP) == (Status.ANSWERED in statuses)
    watcher.pass_time(timedelta(days=2))
    assert (watcher.watch.tracker.calls, watcher.watch.events.book.calls, watcher.ledger.states) == ({}, {}, {})


# Bytes

BYTES = st.lists(
    st.sampled_from(
        [b"Event: Newchannel", b"\r\n", b"\n", b"\r", b": ", b"Uniqueid: 1.1", b"\xff\xfe", "é".encode(), b"x" * 70_000, b"\0"]
    )
    | st.binary(max_size=20),
    max_size=40,
).map(b"".join)


@settings(deadline=None)
@given(BYTES, st.booleans(), st.lists(st.integers(1, 1000), max_size=20))
def test_any_bytes_give_messages_or_the_one_error(data: bytes, has_banner: bool, sizes: list[int]):
    if has_banner:
        data = b"Asterisk Call Manager/7.0.3\r\n" + data
    pieces, start = [], 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    pieces.append(data[start:])
    whole, cut = read_in([data]), read_in(pieces)
    if any(len(block) > 200_000 for block in data.split(b"\r\n\r\n")):
        return  # what is too long is left out, sooner where it comes in pieces
    assert whole == cut


def read_in(pieces: list[bytes]) -> list[AmiMessage] | None:
    reader, found = AmiReader(), []
    try:
        for piece in pieces:
            found += reader.feed(piece)
    except AmiError:
        return None
    return found
