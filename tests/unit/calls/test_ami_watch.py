from datetime import timedelta

import pytest
from tests.support.ami_recordings import AmiWatcher, event
from tests.support.ami_switch import START, Chan, Pbx

from toque.calls.ami_watch import MAX_HELD_EVENTS, WANTED_EVENTS, AmiWatch
from toque.calls.ami_wire import AmiReader
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import Status

DID = "554130600300"
LINES = LineBook.of([parse_line("acme", "did", DID), parse_line("acme", "ramal", "1001")])


def watching(pbx: Pbx) -> AmiWatcher:
    watcher = AmiWatcher(LINES)
    for at, message in pbx.said:
        watcher.feed(message, at)
    return watcher


def words(watcher: AmiWatcher) -> list[list[str]]:
    return watcher.ledger.words()


def listed(*chans: Chan, **more: str) -> list:
    return [event("CoreShowChannel", **chan.fields(), BridgeId=chan.bridge, Duration="00:00:30", **more) for chan in chans]


def talking() -> tuple[Pbx, Chan, Chan]:
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    pbx.wait(2).talk(a, b)
    return pbx, a, b


def test_a_call_whose_end_was_missed_is_concluded():
    pbx, _, _ = talking()
    watcher = watching(pbx)
    watcher.resync([], pbx.now + timedelta(seconds=5))
    assert words(watcher) == [["initiated", "ringing", "answered"]]  # what explains it may be on its way
    watcher.pass_time(timedelta(seconds=2))
    last = watcher.ledger.last()
    assert (last.status, last.facts.is_inferred, last.facts.hung_up_by) == (Status.HUNG_UP, True, None)
    assert len(watcher.watch.events.book) == 0


def test_events_that_are_older_than_the_list_and_come_after_it():
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    watcher = watching(pbx)
    pbx.said.clear()
    pbx.refuse(a, b, 17, 486, "BUSY")
    pbx.hang(a, 17)
    watcher.resync([], pbx.now)
    for at, message in pbx.said:
        watcher.feed(message, at)
    watcher.pass_time(timedelta(minutes=1))
    assert words(watcher) == [["initiated", "busy"]]
    assert not watcher.ledger.facts().is_inferred


def test_who_hung_up_was_seen_before_the_link_was_lost():
    pbx, a, _ = talking()
    pbx.ask(a)
    watcher = watching(pbx)
    watcher.resync([], pbx.now)
    watcher.pass_time(timedelta(seconds=2))
    assert watcher.ledger.last().facts.hung_up_by == "caller"


def test_an_unanswered_call_whose_end_was_missed():
    pbx = Pbx()
    a = pbx.inbound()
    pbx.ring(a, pbx.dial(a, "PJSIP/1001"))
    watcher = watching(pbx)
    watcher.resync([], pbx.now)
    watcher.pass_time(timedelta(seconds=2))
    assert words(watcher) == [["initiated", "ringing", "failed"]]
    assert watcher.ledger.facts().is_inferred


def test_a_call_that_is_met_while_they_talk():
    pbx, a, b = talking()
    watcher = AmiWatcher(LINES)
    watcher.resync(listed(a, b), pbx.now)
    watcher.ledger.append(watcher.watch)
    assert words(watcher) == [["answered"]]
    pbx.said.clear()
    pbx.wait(5).end(b, a)
    for at, message in pbx.said:
        watcher.feed(message, at)
    assert words(watcher) == [["answered", "hung_up"]]
    facts = watcher.ledger.facts()
    assert (facts.answered_by, facts.hung_up_by, facts.is_whole) == ("1001", "callee", False)


def test_a_call_that_is_met_while_it_rings():
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    watcher = AmiWatcher(LINES)
    watcher.resync(listed(a, b), pbx.now)
    assert words(watcher) == [["initiated", "ringing"]]
    assert watcher.ledger.facts().began_at == pbx.now - timedelta(seconds=30)


def test_an_answer_that_was_missed():
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    watcher = watching(pbx)
    pbx.wait(1).talk(a, b)
    watcher.resync(listed(a, b), pbx.now)
    assert words(watcher) == [["initiated", "ringing", "answered"]]


def test_a_transfer_by_the_caller_that_was_missed():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", "5541999990001")
    b = pbx.dial(a, "PJSIP/trunk", "5541999990001@trunk")
    pbx.talk(a, b)
    watcher = watching(pbx)
    c = pbx.dial(b, "PJSIP/1002")
    pbx.leave(b)
    pbx.talk(b, c)
    watcher.resync(listed(b, c), pbx.now)
    watcher.pass_time(timedelta(seconds=2))
    assert words(watcher) == [["initiated", "answered"]]
    pbx.said.clear()
    pbx.wait(3).end(b, c)
    for at, message in pbx.said:
        watcher.feed(message, at)
    assert words(watcher) == [["initiated", "answered", "hung_up"]]


def test_what_is_left_of_a_call_is_no_call():
    pbx, _, b = talking()
    watcher = AmiWatcher(LINES)
    watcher.resync(listed(b), pbx.now)
    assert words(watcher) == []


def test_a_list_that_never_comes():
    pbx, a, b = talking()
    watcher = AmiWatcher(LINES)
    watcher.watch.begin_resync()
    for at, message in pbx.said:
        watcher.feed(message, at)
    watcher.watch.abandon_resync(pbx.now)
    assert not watcher.watch.is_resyncing
    pbx.said.clear()
    pbx.end(a, b)
    for at, message in pbx.said:
        watcher.feed(message, at)
    assert words(watcher) == [["initiated", "ringing", "answered", "hung_up"]]


def test_a_list_that_never_ends_holds_no_more_than_its_share():
    watcher = AmiWatcher(LINES)
    watcher.watch.begin_resync()
    watcher.watch.feed(event("CoreShowChannel", Uniqueid="1.1", Channel="PJSIP/1001-01"), START)
    beat = event("FullyBooted")
    for _ in range(MAX_HELD_EVENTS + 1):
        watcher.watch.feed(beat, START)
    assert not watcher.watch.is_resyncing


def test_a_list_is_a_sign_of_life():
    pbx, a, b = talking()
    watcher = watching(pbx)
    for hours in range(1, 20):
        at = pbx.now + timedelta(hours=hours)
        watcher.pass_until(at)
        watcher.resync(listed(a, b), at)
    assert words(watcher) == [["initiated", "ringing", "answered"]]


@pytest.mark.parametrize("state", [b"", b"\xff", b"\x80"])
def test_a_snapshot_that_is_none(state: bytes):
    with pytest.raises(ValueError, match="cannot be read"):
        AmiWatch("pbx", LINES).restore(state, START)


def test_calls_that_match_no_line():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1005", "5541999990001")
    pbx.hang(a, 17)
    (call,) = watching(pbx).watch.take_unmatched()
    assert (call.caller, call.dialled) == ("1005", "5541999990001")


def test_only_wanted_events_are_read():
    reader = AmiReader(WANTED_EVENTS)
    data = b"Asterisk Call Manager/1\r\n" + b"".join(
        b"Event: " + name + b"\r\nUniqueid: 1.1\r\n\r\n" for name in (b"RTCPSent", b"Hangup", b"CoreShowChannelsComplete", b"Cdr")
    )
    assert [message.event for message in reader.feed(data + b"Response: Success\r\n\r\n")] == [
        "Hangup",
        "CoreShowChannelsComplete",
        "",
    ]


TWO_CLIENTS = LineBook.of([parse_line("acme", "ramais", "~100[1-9]"), parse_line("zeta", "did", DID)])


def told_to(watcher: AmiWatcher) -> dict[str, list[str]]:
    return {
        f"{side.owner.client_id} {side.direction}": [str(change.status) for change in changes]
        for (_, _, side), changes in watcher.ledger.told.items()
    }


def going_on(watcher: AmiWatcher, pbx: Pbx, came_before: int) -> None:
    for at, message in pbx.said[came_before:]:
        watcher.feed(message, at)
    watcher.pass_time(timedelta(minutes=1))


@pytest.mark.parametrize("talks", [False, True])
def test_a_call_that_is_met_is_its_telephones_whatever_number_it_shows_outside(talks: bool):
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", "5511977770002")
    b = pbx.dial(a, "PJSIP/trunk", "5511977770002@trunk", number="5511977770002")
    pbx.talk(a, b) if talks else pbx.ring(a, b)
    a.number = DID  # another client's
    watcher, came_before = AmiWatcher(TWO_CLIENTS), len(pbx.said)
    watcher.resync(listed(a, application="Dial") + listed(b, application="AppDial"), pbx.now)
    if not talks:
        pbx.wait(2).talk(a, b)
    pbx.wait(2).end(a, b)
    going_on(watcher, pbx, came_before)
    assert told_to(watcher) == {"acme made": [*([] if talks else ["initiated", "ringing"]), "answered", "hung_up"]}
    assert watcher.ledger.facts().caller == "1001"


def test_a_talk_that_is_met_and_ends_at_once_was_seen_to_end():
    """Whatever was dialled: it is no pickup that has yet to become clear."""
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", "1002")
    b = pbx.dial(a, "PJSIP/1002")
    pbx.talk(a, b)
    watcher, came_before = AmiWatcher(TWO_CLIENTS), len(pbx.said)
    watcher.resync(listed(a, application="Dial") + listed(b, application="AppDial"), pbx.now)
    pbx.end(a, b)
    going_on(watcher, pbx, came_before)
    assert told_to(watcher) == {"acme made": ["answered", "hung_up"], "acme received": ["answered", "hung_up"]}
    assert not watcher.ledger.facts().is_inferred


def test_a_pickup_that_was_missed_is_no_call_of_its_own():
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    c = pbx.wait(3).caller("PJSIP/1002", "*81001")
    pbx.set(c, 6)
    watcher = AmiWatcher(TWO_CLIENTS)
    for at, message in pbx.said:
        watcher.feed(message, at)
    pbx.say("Pickup", c.fields(), b.fields("Target"))
    pbx.set(a, 6)
    pbx.hang(b, 26)
    pbx.bridge(c, a)
    c.linkedid, came_before = a.linkedid, len(pbx.said)
    watcher.resync(listed(a, application="Dial") + listed(c, application="AppDial"), pbx.now)
    pbx.wait(3).end(a, c)
    going_on(watcher, pbx, came_before)
    whole = ["initiated", "ringing", "answered", "hung_up"]
    assert told_to(watcher) == {"zeta received": whole, "acme received": whole}
    assert watcher.ledger.facts().answered_by == "1002"
    assert len(watcher.watch.events.book) == 0
