"""Recordings of a real Asterisk, each beside the truth of its calls (what the telephones did, not what the switch said).

Another folder of them, with the same layout, is named by TOQUE_RECORDINGS.
"""

import random
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
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
    watched,
)

from toque.callbacks.payload import ring_time, talk_time
from toque.calls.ami_wire import parse_block
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import Direction, Party, StatusChange

ALL = recordings()
TOLERANCE = timedelta(seconds=1)  # the truth has whole seconds
EVERY = pytest.mark.parametrize("recording", ALL, ids=lambda recording: recording.name)
PARTIES = {"caller": Party.CALLER, "callee": Party.CALLEE, "pbx": Party.NETWORK}


def check(told: list[StatusChange], truth: dict[str, Any]) -> None:
    last = told[-1]
    words = [str(change.status) for change in told]
    finals = {truth["final"], *truth.get("also_right", ())}
    assert last.status in finals
    assert words[0] == "initiated"
    assert ("answered" in words) == (truth["final"] == "hung_up")
    facts = last.facts
    assert facts.dialled == truth.get("dialled", truth["callee"])
    assert facts.caller == truth["caller"]
    assert not facts.is_inferred
    if "ring_s" in truth:
        assert ("ringing" in words) == bool(truth["ring_s"])
        assert abs(ring_time(facts, last.status) - timedelta(seconds=truth["ring_s"])) <= TOLERANCE
    if "talk_s" in truth:
        assert abs(talk_time(facts, last.status) - timedelta(seconds=truth["talk_s"])) <= TOLERANCE
    if "hung_up_by" in truth:
        assert facts.hung_up_by is PARTIES[truth["hung_up_by"]]
    if truth.get("sip_final") and truth["final"] not in ("cancelled", "no_answer"):
        assert facts.cause.sip == truth["sip_final"]
    if truth["final"] == "hung_up":
        assert facts.answered_by == truth.get("transferred_to", truth.get("reached", truth["callee"]))
        if "transferred_to" in truth:
            answered = next(change for change in told if change.status == "answered")
            assert answered.facts.answered_by == truth["reached"]
    else:
        assert facts.answered_by is None


def check_all(watcher: AmiWatcher, truths: Sequence[dict[str, Any]]) -> None:
    told = {id(changes) for changes in watcher.ledger.told.values() if changes}
    for truth in truths:
        of_call = list(told_of(watcher.ledger, truth))
        assert len(of_call) == truth.get("count", 1)
        for changes in of_call:
            check(changes, truth)
            told.discard(id(changes))
    assert told == set()  # nobody was told of a call that was none
    assert watcher.ledger.refused == []
    assert watcher.watch.events.book.calls == {}
    assert watcher.watch.events.book.board.channels == {}


def seen_truths(recording: Recording) -> Sequence[dict[str, Any]]:
    return () if recording.name in CANNOT_BE_SEEN else recording.truth


def test_there_are_recordings():
    assert ALL


@EVERY
def test_the_owners_are_told_the_truth(recording: Recording):
    watcher = watched(recording, lines_for(recording.truth))
    check_all(watcher, seen_truths(recording))
    picked_up = {changes[-1].facts.pbx_answered_at is not None for changes in watcher.ledger.told.values() if changes}
    assert picked_up <= {recording.name.startswith("queue")}


@EVERY
def test_byte_by_byte(recording: Recording):
    watcher = watched(recording, lines_for(recording.truth), cuts=range(1, len(recording.data)))
    check_all(watcher, seen_truths(recording))


@EVERY
def test_cut_anywhere(recording: Recording):
    chance = random.Random(recording.name)
    for _ in range(3):
        cuts = sorted(chance.sample(range(1, len(recording.data)), 40))
        check_all(watched(recording, lines_for(recording.truth), cuts=cuts), seen_truths(recording))


def replayed(recording: Recording, *, cut: int, has_restart: bool) -> AmiWatcher:
    """The connection is lost after so many messages; the client connects again at once and asks for the channels."""
    watcher, channels = AmiWatcher(lines_for(recording.truth)), ChannelList()
    for number, (at, message) in enumerate(messages(recording), start=1):
        watcher.feed(message, at)
        channels.follow(message, at)
        if number == cut:
            if has_restart:
                watcher.restart()
            watcher.resync(channels.answer(at), at)
    watcher.pass_time(timedelta(minutes=1))
    return watcher


@pytest.mark.parametrize("has_restart", [False, True])
@EVERY
def test_connected_again_after_any_event(recording: Recording, has_restart: bool):
    for cut in range(1, len(messages(recording)) + 1):
        check_all(replayed(recording, cut=cut, has_restart=has_restart), seen_truths(recording))


@EVERY
def test_asked_for_the_channels_after_every_event(recording: Recording):
    watcher, channels = AmiWatcher(lines_for(recording.truth)), ChannelList()
    for at, message in messages(recording):
        watcher.feed(message, at)
        channels.follow(message, at)
        watcher.resync(channels.answer(at), at, is_gap=False)
    watcher.pass_time(timedelta(minutes=1))
    check_all(watcher, seen_truths(recording))


@EVERY
def test_events_that_come_while_the_channels_are_listed(recording: Recording):
    """The list is made at once, and sent piece by piece with events between them."""
    arrived = messages(recording)
    for cut in range(0, len(arrived), 3):
        watcher, channels, listed = AmiWatcher(lines_for(recording.truth)), ChannelList(), []
        for number, (at, message) in enumerate(arrived):
            if number == cut:
                watcher.watch.begin_resync(is_gap=True)
                listed = channels.answer(at)
            if number >= cut and listed:
                watcher.feed(listed.pop(), at)
            elif number >= cut and watcher.watch.is_resyncing:
                watcher.feed(event("CoreShowChannelsComplete"), at)
            watcher.feed(message, at)
            channels.follow(message, at)
        for message in (*listed, event("CoreShowChannelsComplete")):
            watcher.feed(message, arrived[-1][0])
        watcher.pass_time(timedelta(minutes=1))
        check_all(watcher, seen_truths(recording))


@EVERY
def test_a_list_that_overtakes_events(recording: Recording):
    """What had happened before the list was made, and was not sent yet, comes after it."""
    arrived = messages(recording)
    for overtaken in range(len(arrived) - 3):
        watcher, channels = AmiWatcher(lines_for(recording.truth)), ChannelList()
        for number, (at, message) in enumerate(arrived):
            if number == overtaken:
                for late_at, late in arrived[number : number + 3]:
                    channels.follow(late, late_at)
                watcher.resync(channels.answer(arrived[number + 3][0]), at)
            watcher.feed(message, at)
            if not overtaken <= number < overtaken + 3:
                channels.follow(message, at)
        watcher.pass_time(timedelta(minutes=1))
        for truth in seen_truths(recording):
            (told,) = told_of(watcher.ledger, truth)
            assert str(told[-1].status) in {truth["final"], *truth.get("also_right", ())}
            assert not told[-1].facts.is_inferred
        assert len([changes for changes in watcher.ledger.told.values() if changes]) == len(seen_truths(recording))


@EVERY
def test_whatever_was_missed_every_side_has_one_end(recording: Recording):
    """A few events are lost with the connection, anywhere."""
    arrived = messages(recording)
    for cut in range(len(arrived)):
        watcher, channels = AmiWatcher(lines_for(recording.truth)), ChannelList()
        for number, (at, message) in enumerate(arrived):
            channels.follow(message, at)
            if not cut <= number < cut + 6:
                watcher.feed(message, at)
            elif number == cut + 5 or number == len(arrived) - 1:
                watcher.resync(channels.answer(at), at)
        watcher.resync([], arrived[-1][0])
        watcher.pass_time(timedelta(hours=5))
        for changes in watcher.ledger.told.values():
            if changes:
                assert [change.status.is_final for change in changes] == [False] * (len(changes) - 1) + [True]
        assert watcher.ledger.refused == []
        assert watcher.watch.events.book.calls == {}


BY_CONTEXT = LineBook.of(
    [parse_line("acme", "pbx", f"context:{name}") for name in ("internal", "from-trunk", "click2call*", "s*")]
)


@EVERY
def test_direction_by_what_the_switch_knows(recording: Recording):
    """No number is a line: the context says whose call it is, the trunk in which direction."""
    for truth in seen_truths(recording):
        if truth.get("consultation") or recording.name == "originate_a_invalid":
            continue
        direction = Direction.RECEIVED if truth["direction"] == "received" else Direction.MADE
        told = [
            changes
            for (_, _, side), changes in watched(recording, BY_CONTEXT).ledger.told.items()
            if changes and side.direction is direction
        ]
        assert len(told) == sum(1 for other in recording.truth if other["direction"] == truth["direction"])
        assert told[0][-1].status in {truth["final"], *truth.get("also_right", ())}


BOTH = LineBook.of([parse_line("acme", "ramais", "1*"), parse_line("zeta", "did", "5541306003*")])


@EVERY
def test_a_member_that_did_not_answer_missed_nothing(recording: Recording):
    """Extensions and numbers are lines of two clients: what both are told of one call has one end."""
    watcher = watched(recording, BOTH)
    ends: dict[str, set[str]] = {}
    for (identity, _, _), changes in watcher.ledger.told.items():
        if changes:
            ends.setdefault(identity.key, set()).add(str(changes[-1].status))
    assert all(len(words) == 1 for words in ends.values())
    assert len(ends) == len(seen_truths(recording))


def after_a_gap(recording: Recording, chance: random.Random, *, lost: int) -> AmiWatcher:
    """Anywhere, so many events are lost with the connection; then some come before the list is made, and some that it knows already
    come after it. At times the server is begun anew meanwhile.
    """
    arrived = messages(recording)
    watcher, channels = AmiWatcher(lines_for(recording.truth)), ChannelList()
    cut = chance.randrange(len(arrived))
    heard_again = cut + lost
    asked = heard_again + chance.choice((0, 0, 1, 2, 3, 5, 8, 15))
    made = asked + chance.choice((0, 0, 1, 3))
    has_restart = bool(lost) and chance.random() < 0.3
    for number, (at, message) in enumerate(arrived[:made]):
        if number == heard_again:
            watcher.watch.begin_resync(is_gap=True)
        if number < cut or heard_again <= number < asked:
            watcher.feed(message, at)
        if number == cut and has_restart and watcher.now is not None:
            watcher.restart()
        channels.follow(message, at)
    if len(arrived[:made]) <= heard_again:
        watcher.watch.begin_resync(is_gap=True)
    at = arrived[max(min(made, len(arrived)) - 1, 0)][0]
    for message in (*channels.answer(at), event("CoreShowChannelsComplete")):
        watcher.feed(message, at)
    for later, message in arrived[asked:]:
        watcher.feed(message, later)
    watcher.resync([], arrived[-1][0])
    watcher.pass_time(timedelta(hours=5))
    return watcher


@EVERY
def test_after_a_gap_words_are_true_or_marked_as_concluded(recording: Recording):
    chance = random.Random(recording.name)
    for lost in (0, 1, 2, 3, 4, 6, 10, 20) * 4:
        watcher = after_a_gap(recording, chance, lost=lost)
        for truth in seen_truths(recording):
            right = {truth["final"], *truth.get("also_right", ())}
            for told in told_of(watcher.ledger, truth):
                assert str(told[-1].status) in right or (lost and told[-1].facts.is_inferred)
        for changes in watcher.ledger.told.values():
            if changes:
                assert [change.status.is_final for change in changes] == [False] * (len(changes) - 1) + [True]
        assert watcher.watch.events.book.calls == {}


# The same calls as other Asterisks would have told of them


def without(*names: bytes) -> Callable[[bytes], bytes]:
    """Operators filter events out, and releases differ in which they have."""
    return lambda block: b"" if re.match(rb"Event: (?:%s)\r\n" % b"|".join(names), block) else block


def replacing(pattern: bytes, by: bytes) -> Callable[[bytes], bytes]:
    return lambda block: re.sub(pattern, by, block)


OTHERWISE: dict[str, Callable[[bytes], bytes]] = {
    "chan_sip": replacing(rb"\bPJSIP/", b"SIP/"),
    "iax": lambda block: replacing(rb"-0000(?=[0-9a-f]{4}\b)", b"-")(replacing(rb"\bPJSIP/", b"IAX2/")(block)),
    "named system": replacing(rb"\b(1795\d{6}\.\d+)", rb"br-sp1-\1"),
    "latin-1": replacing(rb"(CallerIDName|ConnectedLineName): .*", b"\\1: Jos\xe9 Concei\xe7\xe3o"),
    "13": lambda block: without(b"DialState")(replacing(rb"\r\n(?:TechCause|Tenantid|LoginTime): [^\r]*", b"")(block)),
    "few events": without(
        b"NewConnectedLine", b"BridgeCreate", b"BridgeDestroy", b"LocalBridge", b"Hold", b"Unhold", b"AgentCalled"
    ),
    "no soft hangups": without(b"SoftHangupRequest"),
    "no states of dials": without(b"DialState", b"NewCallerid", b"AgentConnect", b"QueueCallerAbandon"),
    "lower case": replacing(rb"(?m)^(Channel|Uniqueid|Linkedid|Cause|DialStatus): ", rb"\1:"),
    "variables": lambda block: (
        block + b"\r\nChanVariable: DIALSTATUS=\r\nChanVariable: x=1" if b"\r\nUniqueid" in block else block
    ),
}


@pytest.mark.parametrize("otherwise", OTHERWISE)
@EVERY
def test_told_as_other_asterisks_would(recording: Recording, otherwise: str):
    watcher = AmiWatcher(lines_for(recording.truth))
    for at, block in recording.blocks():
        message = parse_block(OTHERWISE[otherwise](block).replace(b"\r\n", b"\n"))
        if message is not None:
            watcher.feed(message, at)
    watcher.pass_time(timedelta(minutes=1))
    for truth in seen_truths(recording):
        of_call = list(told_of(watcher.ledger, truth))
        assert len(of_call) == truth.get("count", 1)
        for told in of_call:
            assert told[-1].status in {truth["final"], *truth.get("also_right", ())}
            if truth["final"] == "hung_up":
                assert told[-1].facts.answered_by == truth.get("transferred_to", truth.get("reached", truth["callee"]))
    assert watcher.watch.events.book.calls == {}
