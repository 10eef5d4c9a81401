from datetime import timedelta

import msgspec
import pytest
from tests.support.esl_events import OUTSIDE, Script
from tests.support.esl_watching import LINES, EslWatcher

from toque.calls.esl_watch import EslWatch
from toque.calls.model import Party


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def watcher() -> EslWatcher:
    return EslWatcher()


def hear(watcher: EslWatcher, script: Script) -> None:
    watcher.feed_all(script.events)
    script.events.clear()


def miss(watcher: EslWatcher, script: Script) -> None:
    for event in script.events:
        watcher.miss(event)
    script.events.clear()


def zeta(watcher: EslWatcher) -> list[str]:
    (words,) = watcher.ledger.words("zeta")
    return words


def test_only_what_is_new_or_in_doubt_is_asked_for(watcher: EslWatcher, script: Script):
    script.incoming()
    hear(watcher, script)
    assert watcher.watch.to_ask(["A", "B"]) == ["B"]
    watcher.watch.doubt()
    assert watcher.watch.to_ask(["B"]) == ["B", "A"]
    script.ring("A")
    hear(watcher, script)
    assert watcher.watch.to_ask(["A"]) == []


def test_a_call_that_is_gone_has_ended_at_an_unknown_moment(watcher: EslWatcher, script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    script.ring("B")
    script.answer("B")
    hear(watcher, script)
    script.wait(30)
    script.end("B")
    script.end("A", disposition="recv_bye")
    miss(watcher, script)
    watcher.reconnect()
    assert zeta(watcher) == ["initiated", "ringing", "answered", "hung_up"]
    facts = watcher.ledger.facts()
    assert (facts.is_inferred, facts.hung_up_by, facts.cause) == (True, None, None)


def test_who_answered_and_left_meanwhile_is_known_by_the_callers_channel(watcher: EslWatcher, script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    hear(watcher, script)
    script.wait(2)
    script.answer("B")
    script.answer("A", "bridge")
    script.bridge("A", "B")
    script.end("B", disposition="recv_bye")
    answered_at = script.now
    miss(watcher, script)
    watcher.reconnect()
    script.wait(1)
    script.end("A", v_hangup_cause_q850="16")
    hear(watcher, script)
    assert zeta(watcher) == ["initiated", "answered", "hung_up"]
    facts = watcher.ledger.facts()
    assert (facts.answered_at, facts.is_inferred, facts.cause.q850) == (answered_at, False, 16)


def test_early_media_is_no_answer_when_nothing_was_missed(watcher: EslWatcher, script: Script):
    """The switch bridges for early media as well; a menu has answered the caller before."""
    script.incoming()
    script.answer("A", "answer")
    script.call("B", "5541999990001", "A", "external")
    script.ring("B")
    script.bridge("A", "B")
    hear(watcher, script)
    watcher.reconnect(is_gap=False)
    script.wait(3)
    script.refuse("B", "NO_USER_RESPONSE", 480, 18)
    script.end("A", v_hangup_cause_q850="16")
    hear(watcher, script)
    assert zeta(watcher) == ["initiated", "ringing", "no_answer"]


@pytest.mark.parametrize("is_answered", [False, True])
def test_early_media_is_no_answer_where_the_far_end_is_known_not_to_have_answered(
    watcher: EslWatcher, script: Script, is_answered: bool
):
    """A menu has picked up, the far end plays something, the connection is lost, and the caller hangs up."""
    script.incoming()
    script.answer("A", "answer")
    script.call("B", "5541999990001", "A", "external")
    script.ring("B")
    script.bridge("A", "B")
    hear(watcher, script)
    script.wait(1)
    if is_answered:
        script.answer("B")
    miss(watcher, script)
    watcher.watch.doubt()
    if not is_answered:
        watcher.watch.resync([watcher.switch.dump("B", watcher.now), watcher.switch.dump("A", watcher.now)], watcher.now)
    script.wait(3)
    script.end("A", disposition="recv_bye", v_hangup_cause_q850="16")
    script.end("B", "ORIGINATOR_CANCEL" if not is_answered else "NORMAL_CLEARING")
    hear(watcher, script)
    assert zeta(watcher) == ["initiated", "ringing", *(["answered", "hung_up"] if is_answered else ["cancelled"])]


def test_the_end_of_a_leg_that_was_missed_may_have_mattered(watcher: EslWatcher, script: Script):
    """One member of a group ended while nobody listened; it may have rung out, which outranks another that is busy."""
    script.incoming()
    for uuid, number in (("B", "1001"), ("C", "1002")):
        script.call(uuid, number, "A")
    hear(watcher, script)
    script.stop("B")
    miss(watcher, script)
    watcher.reconnect()
    script.refuse("C", "USER_BUSY", 486, 17)
    script.end("A", "USER_BUSY", "send_refuse", v_hangup_cause_q850="17")
    hear(watcher, script)
    assert zeta(watcher) == ["initiated", "failed"]
    assert watcher.ledger.facts().is_inferred


def test_a_call_that_ends_before_the_switch_has_answered_is_told_as_it_was(watcher: EslWatcher, script: Script):
    """Its answer was missed; its last event still knows of it."""
    script.incoming()
    script.call("B", "1001", "A")
    hear(watcher, script)
    script.ring("B")
    script.ring("A")
    script.wait(2)
    script.answer("B")
    script.answer("A", "bridge")
    script.bridge("A", "B")
    answered_at = script.now
    miss(watcher, script)
    watcher.watch.doubt()
    script.wait(5)
    script.end("A", disposition="recv_bye", v_hangup_cause_q850="16")
    script.end("B")
    hear(watcher, script)
    watcher.watch.resync([], watcher.now)
    watcher.ledger.append(watcher.watch)
    assert zeta(watcher) == ["initiated", "ringing", "answered", "hung_up"]
    facts = watcher.ledger.facts()
    assert (facts.answered_at, facts.is_inferred, facts.hung_up_by) == (answered_at, False, Party.CALLER)


def test_who_waits_silently_is_kept_alive_by_asking(watcher: EslWatcher, script: Script):
    script.incoming()
    script.answer("A", "callcenter")
    hear(watcher, script)
    for _ in range(20):
        watcher.pass_time(timedelta(minutes=3))
        watcher.reconnect(is_gap=False)
    script.wait(3600)
    script.end("A", disposition="recv_bye")
    hear(watcher, script)
    assert zeta(watcher) == ["initiated", "cancelled"]
    assert not watcher.ledger.facts().is_inferred


def test_a_call_first_seen_ringing_is_told_from_there(watcher: EslWatcher, script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    script.ring("B")
    rang_at = script.now
    script.wait(1)
    miss(watcher, script)
    watcher.reconnect()
    assert zeta(watcher) == ["ringing"]
    assert watcher.ledger.facts().ringing_at == rang_at


def test_what_ended_while_the_switch_was_asked_is_not_alive(watcher: EslWatcher, script: Script):
    script.incoming("N", dialled="999")
    miss(watcher, script)
    watcher.watch.doubt()
    dump = watcher.switch.dump("N", watcher.now)
    script.end("N", disposition="recv_cancel")
    hear(watcher, script)
    watcher.watch.resync([dump], watcher.now)
    assert len(watcher.watch.reader.calls) == 0


def test_a_queues_nameless_leg_that_is_gone_is_forgotten(watcher: EslWatcher, script: Script):
    script.appear("B", "sofia/internal/1001@192.0.2.7", OUTSIDE, "1001", called=True, v_fifo_outbound_uuid="x")
    hear(watcher, script)
    script.end("B")
    miss(watcher, script)
    watcher.reconnect()
    assert watcher.ledger.told == {}
    assert watcher.watch.to_ask([]) == []


def test_a_restart_of_the_switch_between_two_connections_ends_its_calls(watcher: EslWatcher, script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    script.answer("B")
    hear(watcher, script)
    script.wait(60)
    script.restarted()
    script.incoming("N")
    miss(watcher, script)
    watcher.restart()
    assert watcher.ledger.words("zeta") == [["initiated", "answered", "hung_up"], ["initiated"]]
    ended = next(changes[-1] for (identity, _, _), changes in watcher.ledger.told.items() if identity.key == "A")
    assert (ended.facts.is_inferred, ended.facts.hung_up_by) == (True, Party.NETWORK)


@pytest.mark.parametrize("state", [b"", b"x", b"\x80", msgspec.msgpack.encode({"a": 1})])
def test_bytes_that_are_no_snapshot_are_refused(state: bytes, script: Script):
    script.incoming()
    with pytest.raises(ValueError, match="cannot be read"):
        EslWatch("fs1", LINES).restore(state, script.now)


def test_a_snapshot_without_its_first_channel_is_refused(watcher: EslWatcher, script: Script):
    script.incoming()
    hear(watcher, script)
    (state,) = watcher.ledger.states.values()
    call = msgspec.msgpack.decode(state)
    memory = msgspec.msgpack.decode(call["reader"])
    call["reader"] = msgspec.msgpack.encode({**memory, "channels": {}})
    with pytest.raises(ValueError, match="cannot be read"):
        EslWatch("fs1", LINES).restore(msgspec.msgpack.encode(call), script.now)


def test_the_number_of_changes_that_wait(script: Script):
    watch = EslWatch("fs1", LINES)
    script.incoming(dialled="999")
    script.end("A", "NO_ROUTE_DESTINATION", "send_refuse")
    for event in script.events:
        watch.feed(event, script.now)
    assert watch.waiting() == 0
    assert [call.dialled for call in watch.take_unmatched()] == ["999"]
    assert watch.take_late() == {}
