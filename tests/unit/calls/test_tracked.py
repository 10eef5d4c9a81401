"""What a source may hold of calls that match no line, and what is left of a call that is forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import pytest
from tests.support.call_watching import LINES, SOURCE, Watcher
from tests.support.sip_messages import START, ProxiedCall

from toque.calls import tracked
from toque.calls.gone_watch import GoneWatch
from toque.calls.model import CallIdentity
from toque.calls.phases import Phase
from toque.calls.sip_watch import SipWatch

MOST = 100
STRANGER, OTHER_STRANGER = "5521999990003", "5521999990004"


@pytest.fixture(autouse=True)
def _crowded_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked, "MAX_UNMATCHED", MOST)


def of_nobody(name: str) -> ProxiedCall:
    return ProxiedCall(name, STRANGER, OTHER_STRANGER)


def take(watch: SipWatch, *calls: ProxiedCall) -> None:
    for call in calls:
        for packet in call.packets:
            watch.feed(packet, START)
        call.packets.clear()


def names(watch: SipWatch) -> list[str]:
    return [identity.key.partition("@")[0] for identity in watch.tracker.calls]


def begun(names: Iterable[str]) -> list[ProxiedCall]:
    calls = [of_nobody(name) for name in names]
    for call in calls:
        call.invite()
        call.fork()
    return calls


def test_a_flood_of_calls_of_nobody_leaves_no_more_than_so_many() -> None:
    watch = SipWatch(SOURCE, LINES)
    forgotten = 0
    for number in range(10 * MOST):
        take(watch, *begun([f"n{number}"]))
        watch.tick(START)
        forgotten += watch.take_crowded()
        assert len(watch.tracker.calls) <= MOST
        assert len(watch.dialogs) == len(watch.legs) == len(watch.tracker.calls)
    assert forgotten == 10 * MOST - len(watch.tracker.calls)
    assert watch.tracker.counters.crowded == forgotten
    assert len(watch.tracker.calls) > MOST * 0.8
    assert names(watch)[-1] == f"n{10 * MOST - 1}"
    assert watch.take() == ([], [])
    assert watch.take_crowded() == 0


def test_one_that_came_all_at_once_too() -> None:
    watch = SipWatch(SOURCE, LINES)
    take(watch, *begun(f"n{number}" for number in range(5 * MOST)))
    watch.tick(START)
    assert names(watch) == [f"n{number}" for number in range(5 * MOST - len(names(watch)), 5 * MOST)]
    assert 0 < len(names(watch)) <= MOST
    watch.tick(START + timedelta(days=2))
    watch.tick(START + timedelta(days=4))
    assert (len(watch.tracker.calls), len(watch.dialogs), len(watch.legs)) == (0, 0, 0)
    assert watch.tracker.next_due() is None


def test_calls_that_match_a_line_are_never_dropped() -> None:
    watcher = Watcher()
    ours = [ProxiedCall(f"ours-{number}") for number in range(3 * MOST)]
    for call in ours:
        call.invite()
        take(watcher.watch, call)
    take(watcher.watch, *begun(f"n{number}" for number in range(5 * MOST)))
    watcher.pass_until(START + timedelta(seconds=1))
    watcher.watch.tick(START + timedelta(seconds=1))
    assert names(watcher.watch)[: 3 * MOST] == [f"ours-{number}" for number in range(3 * MOST)]
    assert len(names(watcher.watch)) <= 4 * MOST
    for call in ours:
        call.ring()
        call.answer()
        call.hang_up()
        watcher.feed_all(call.packets)
    watcher.pass_time(timedelta(minutes=1))
    assert watcher.ledger.words() == [["initiated", "ringing", "answered", "hung_up"]] * len(watcher.ledger.words())
    assert len(watcher.ledger.words()) == 2 * len(ours)


def test_those_that_have_ended_go_first_and_are_not_worth_a_word() -> None:
    watch = SipWatch(SOURCE, LINES)
    going_on = begun(f"n{number}" for number in range(MOST // 2))
    take(watch, *going_on)
    for number in range(3 * MOST):
        (over,) = begun([f"over-{number}"])
        over.fail(486)
        take(watch, over)
        watch.tick(START)
    assert len(names(watch)) <= MOST
    assert names(watch)[: MOST // 2] == [f"n{number}" for number in range(MOST // 2)]
    assert watch.take_crowded() == 0
    assert watch.tracker.counters.unmatched == len(watch.take_unmatched()) == 3 * MOST


def test_a_call_that_was_forgotten_may_go_on_as_a_new_one() -> None:
    watch = SipWatch(SOURCE, LINES)
    calls = begun(f"n{number}" for number in range(2 * MOST))
    take(watch, *calls)
    watch.tick(START)
    assert "n0" not in names(watch)
    calls[0].hang_up()
    take(watch, calls[0])
    watch.tick(START + timedelta(seconds=1))
    (again,) = [call for call in watch.tracker.calls.values() if call.key.startswith("n0@")]
    assert again.phase is Phase.ENDED


def test_nothing_is_left_of_a_call_that_is_forgotten() -> None:
    watch = SipWatch(SOURCE, LINES)
    call = ProxiedCall("ours")
    call.invite()
    take(watch, call)
    (identity,) = watch.tracker.calls
    watch.forget(identity)
    watch.forget(identity)
    watch.tick(START)
    assert (watch.tracker.calls, len(watch.dialogs), len(watch.legs)) == ({}, 0, 0)
    _, snapshots = watch.take()
    assert snapshots == []
    assert watch.tracker.next_due() is None


def test_a_source_that_is_gone_forgets_too() -> None:
    watch, gone = SipWatch(SOURCE, LINES), GoneWatch(SOURCE)
    call = ProxiedCall("ours")
    call.invite()
    take(watch, call)
    (snapshot,) = watch.take()[1]
    assert snapshot.state is not None
    gone.restore(snapshot.state, START)
    gone.forget(CallIdentity(SOURCE, "unknown"))
    gone.forget(snapshot.identity)
    gone.tick(START + timedelta(days=1))
    assert gone.take() == ([], [])
    assert gone.take_crowded() == 0
