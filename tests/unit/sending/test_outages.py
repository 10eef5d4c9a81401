"""Callbacks that fail: parked, probed, recovered, disabled, and what becomes of their deliveries meanwhile."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from structlog.testing import capture_logs
from tests.support.clock import START
from tests.support.dispatching import (
    DELIVERED,
    REFUSED,
    Desk,
    desk,
    make_call,
    make_callback,
    make_calls,
    make_delivery,
    registry_of,
)
from tests.support.store_double import StoreDouble

from toque.callbacks.callback import KeptHealth
from toque.callbacks.delivery import DeliveryState
from toque.callbacks.health import DISABLED_AFTER, State
from toque.sending.agenda import _TIDIED_AT
from toque.sending.transport import Answered, Unsent


async def parked(at: Desk, callback: int = 1, others: int = 3) -> None:
    """Have one callback fail five times with one event, with others waiting."""
    at.offer(make_call(f"head{callback}", 1 + others, callback))
    for _ in range(5):
        while not [attempt for attempt in at.posting.of(callback) if attempt.is_open]:
            await at.pass_time(at.clock.timers[0])
        await at.end(next(attempt for attempt in at.posting.of(callback) if attempt.is_open), REFUSED)
    assert at.dispatcher.health_of(callback) is State.FAILING
    at.posting.attempts.clear()


async def test_five_failures_park_it_in_the_store_and_in_order() -> None:
    async with desk() as at:
        await parked(at)
        assert at.store.backlog_of() == ["head1.1", "head1.2", "head1.3", "head1.4"]
        assert at.dispatcher.held() == 0
        assert at.dispatcher.parked() == 1
        at.offer(make_call("later", 2))
        await at.rest()
        assert at.dispatcher.held() == 0
        assert at.store.backlog_of()[4:] == ["later.1", "later.2"]
        assert at.posting.events == []


async def test_what_is_in_flight_when_it_is_parked_keeps_its_place_in_its_lane() -> None:
    """It gets its row before what comes after it, though its own outcome is not known yet."""
    async with desk() as at:
        await at.warm_up()
        at.offer([*make_calls(5, prefix="bad"), *make_call("slow", 2)])
        *bad, slow = at.posting.open
        for attempt in bad:
            attempt.ends(REFUSED)
        await at.rest()
        assert at.dispatcher.health_of(1) is State.FAILING
        at.offer([make_delivery("slow", 3)])
        await at.rest()
        mine = [event for event in at.store.backlog_of() if event.startswith("slow")]
        assert mine == ["slow.1", "slow.2", "slow.3"]
        await at.end(slow, REFUSED)
        assert [event for event in at.store.backlog_of() if event.startswith("slow")] == mine
        assert at.dispatcher.held() == 0


async def test_one_probe_at_a_time_goes_out_ever_more_rarely_and_burns_no_attempt() -> None:
    async with desk() as at:
        await parked(at)
        told = len(at.store.history)
        for wait in (5, 10, 20, 40, 80, 160, 300, 300):
            await at.pass_time(wait - 0.1)
            assert not at.posting.open
            await at.pass_time(0.1)
            assert len(at.posting.open) == 1
            assert at.dispatcher.health_of(1) is State.PROBING
            assert at.dispatcher.held() == 1
            await at.end(at.posting.open[0], REFUSED)
            assert at.dispatcher.health_of(1) is State.FAILING
        assert len(at.store.history) == told
        assert at.dispatcher.held() == 0
        assert len(at.store.healths) == 1


async def test_probes_take_another_call_each_time() -> None:
    """For the first may be the one event that this receiver chokes on."""
    async with desk() as at:
        await parked(at, others=2)
        at.offer([*make_call("a", 2), *make_call("b", 1)])
        await at.rest()
        for wait in (5, 10, 20, 40):
            await at.pass_time(wait)
            await at.end(at.posting.open[0], REFUSED)
        assert at.posting.events == ["head1.1", "a.1", "b.1", "head1.1"]


async def test_a_success_drains_the_backlog_in_order_and_it_is_well_again() -> None:
    async with desk() as at:
        await parked(at)
        at.offer(make_call("later", 3))
        await at.rest()
        with capture_logs() as logs:
            await at.pass_time(5)
            await at.end(at.posting.open[0])
            await at.end_all()
        assert [event for event in at.posting.events if event.startswith("head")] == ["head1.1", "head1.2", "head1.3", "head1.4"]
        assert [event for event in at.posting.events if event.startswith("later")] == ["later.1", "later.2", "later.3"]
        assert at.dispatcher.health_of(1) is State.HEALTHY
        assert at.store.backlog_of() == []
        assert [log["event"] for log in logs if log["event"].startswith("callback")] == [
            "callback.recovering",
            "callback.recovered",
        ]


async def test_it_recovers_with_few_posts_at_once_at_first() -> None:
    async with desk(callback_concurrency=10) as at:
        await at.warm_up()
        await parked(at)
        at.offer(make_calls(50, prefix="waiting"))
        await at.pass_time(5)
        await at.end(at.posting.open[0])
        assert len(at.posting.open) == 2
        for _ in range(8):
            await at.end(at.posting.open[0])
        assert len(at.posting.open) == 10
        await at.end_all()


async def test_a_failure_soon_after_an_outage_parks_it_again() -> None:
    async with desk() as at:
        await parked(at, others=0)
        at.offer(make_calls(1200))
        await at.rest()
        await at.pass_time(5)
        await at.end(at.posting.open[0])
        assert at.dispatcher.health_of(1) is State.RECOVERING
        assert at.dispatcher.held() == 500
        await at.end(at.posting.open[0], REFUSED)
        assert at.dispatcher.health_of(1) is State.FAILING
        await at.end(at.posting.open[0], REFUSED)
        assert at.dispatcher.held() == 0
        assert len(at.store.backlog_of()) == 1200


async def test_an_answer_from_before_the_outage_ends_it() -> None:
    async with desk() as at:
        await at.warm_up()
        at.offer(make_calls(6))
        for attempt in at.posting.open[:5]:
            attempt.ends(REFUSED)
        await at.rest()
        await at.end(at.posting.open[0])
        assert at.dispatcher.health_of(1) is State.HEALTHY  # recovering, and at once caught up
        assert at.store.healths[-1][1].failing_since is None
        await at.pass_time(2)
        await at.end_all()
        assert at.store.backlog_of() == []


async def test_no_probe_goes_out_while_something_is_under_way() -> None:
    async with desk() as at:
        await at.warm_up()
        at.offer(make_calls(6))
        *bad, last = at.posting.open
        for attempt in bad:
            attempt.ends(REFUSED)
        await at.pass_time(14)
        assert at.posting.open == [last]
        await at.end(last, REFUSED)
        assert len(at.posting.open) == 1
        assert at.dispatcher.health_of(1) is State.PROBING
        await at.end(at.posting.open[0], REFUSED)


async def test_a_failing_callback_without_a_backlog_is_probed_with_its_next_event() -> None:
    async with desk(make_callback(health=KeptHealth(START - timedelta(hours=1)))) as at:
        assert at.dispatcher.health_of(1) is State.FAILING
        at.offer([make_delivery()])
        await at.rest()
        assert at.dispatcher.health_of(1) is State.PROBING
        await at.end(at.posting.open[0])
        assert at.dispatcher.health_of(1) is State.HEALTHY
        assert at.store.healths == [(1, KeptHealth())]


async def test_a_failing_callback_whose_backlog_was_emptied_waits_for_its_next_event() -> None:
    async with desk() as at:
        await parked(at, others=0)
        at.store.kill(1)
        await at.pass_time(5)
        reads = len(at.store.reads)
        await at.pass_time(1000)
        assert len(at.store.reads) == reads
        at.offer([make_delivery("next")])
        await at.rest()
        assert at.posting.events == ["next.1"]
        await at.end_all()
        assert at.dispatcher.health_of(1) is State.HEALTHY


async def test_refusals_of_single_events_say_nothing_of_the_callback() -> None:
    async with desk() as at:
        at.offer(make_calls(6))
        for _ in range(18):
            while not at.posting.open:
                await at.pass_time(1)
            await at.end(at.posting.open[0], Answered(422))
        assert at.dispatcher.health_of(1) is State.HEALTHY
        assert at.dispatcher.counters.dead == 6


async def test_a_probe_whose_event_is_unwelcome_counts_for_the_event_and_another_follows_soon() -> None:
    async with desk() as at:
        await parked(at, others=0)
        at.offer([make_delivery("good")])
        await at.rest()
        await at.pass_time(5)
        await at.end(at.posting.open[0], Answered(400))
        assert at.store.last.event.id == "head1.1"
        assert at.store.last.state is DeliveryState.DEAD  # five attempts before, and three are enough
        await at.pass_time(5)
        assert at.posting.events == ["head1.1", "good.1"]
        await at.end_all()


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_no_failure_but_shrinks_the_allowance(status: int) -> None:
    async with desk() as at:
        await at.warm_up()
        at.offer(make_calls(10))
        for attempt in at.posting.open:
            attempt.ends(Answered(status, "30"))
        await at.rest()
        assert at.dispatcher.health_of(1) is State.HEALTHY
        await at.pass_time(30)
        assert len(at.posting.open) == 1
        await at.end_all()


async def test_a_probe_that_is_asked_to_wait_waits() -> None:
    async with desk() as at:
        await parked(at)
        await at.pass_time(5)
        await at.end(at.posting.open[0], Answered(503, "120"))
        await at.pass_time(119)
        assert not at.posting.open
        await at.pass_time(1)
        assert len(at.posting.open) == 1
        await at.end_all()
        assert at.dispatcher.health_of(1) is State.HEALTHY


async def test_five_days_of_failing_disable_it_and_what_waits_is_dead() -> None:
    async with desk() as at:
        await parked(at)
        passed = 0.0
        while at.dispatcher.health_of(1) is not State.DISABLED:
            await at.pass_time(300)
            passed += 300
            for attempt in at.posting.open:
                await at.end(attempt, REFUSED)
        assert passed >= DISABLED_AFTER.total_seconds()
        assert at.store.disabled == [(1, "failed for five days")]
        assert at.store.backlog_of() == []
        assert at.dispatcher.held() == 0
        at.dispatcher.apply(registry_of(make_callback(disabled_at=START)))
        at.dispatcher.apply(registry_of(make_callback()))
        at.offer([make_delivery("new")])
        await at.end_all()
        assert at.posting.events[-1] == "new.1"


async def test_parked_time_stops_the_deadline() -> None:
    async with desk() as at:
        await parked(at, others=0)
        await at.pass_time(20 * 3600)
        await at.end_all()  # a probe that was under way
        at.offer([make_delivery("next", accepted_at=at.clock())])
        await at.end_all()
        assert at.dispatcher.health_of(1) is State.HEALTHY
        assert at.dispatcher.counters.dead == 0


async def test_an_event_that_waited_for_days_in_an_outage_still_has_its_time() -> None:
    async with desk() as at:
        await parked(at, others=1)
        for _ in range(700):  # 58 hours
            await at.pass_time(300)
            for attempt in at.posting.open:
                await at.end(attempt, REFUSED)
        await at.pass_time(300)
        await at.end(at.posting.open[0])
        await at.end(at.posting.open[0], Answered(500))
        assert at.store.last.state is DeliveryState.WAITING


async def test_health_is_kept_and_tried_again_until_it_is() -> None:
    async with desk() as at:
        at.offer(make_calls(1))
        for _ in range(4):
            while not at.posting.open:
                await at.pass_time(1)
            await at.end(at.posting.open[0], REFUSED)
        await at.pass_time(10)
        at.store.failures = 3
        with capture_logs() as logs:
            await at.end(at.posting.open[0], REFUSED)
            for _ in range(4):
                await at.pass_time(0.5)
        assert "callback.health_not_kept" in {log["event"] for log in logs}
        assert [number for number, _ in at.store.healths] == [1]
        assert at.store.healths[0][1].failing_since is not None


async def test_an_outage_goes_on_over_a_restart() -> None:
    store = StoreDouble()
    async with desk(store=store) as at:
        await parked(at)
    kept = dict(store.healths)[1]
    async with desk(make_callback(health=kept), store=store) as at:
        at.dispatcher.resume(store.recover())
        await at.rest()
        assert at.posting.events == ["head1.1"]  # a probe at once
        assert at.dispatcher.health_of(1) is State.PROBING
        assert at.dispatcher.held() == 1
        await at.end_all()
        assert at.posting.events == ["head1.1", "head1.2", "head1.3", "head1.4"]
        assert at.dispatcher.health_of(1) is State.HEALTHY


async def test_what_could_not_be_sent_is_no_attempt_and_no_failure() -> None:
    async with desk() as at:
        delivery = make_delivery()
        at.offer([delivery])
        with capture_logs() as logs:
            for _ in range(50):
                await at.end(at.posting.open[0], Unsent("too many open files"))
                assert not at.posting.open
                await at.pass_time(1)
        assert at.dispatcher.health_of(1) is State.HEALTHY
        assert at.store.history == []
        assert 0 < len(logs) <= 20
        await at.end_all()
        assert delivery.attempts == 1


async def test_a_probe_that_could_not_be_sent_is_sent_soon() -> None:
    async with desk() as at:
        await parked(at)
        await at.pass_time(5)
        await at.end(at.posting.open[0], Unsent("too many open files"))
        assert at.dispatcher.health_of(1) is State.FAILING
        assert at.dispatcher.held() == 0
        await at.pass_time(5)
        await at.end_all()
        assert at.store.backlog_of() == []


async def test_thousands_of_failures_do_not_flood_the_log() -> None:
    async with desk(*map(make_callback, range(1, 101)), concurrency=1000) as at:
        at.offer(delivery for callback in range(1, 101) for delivery in make_calls(5, callback))
        with capture_logs() as logs:
            for _ in range(3):
                await at.end_all(REFUSED)
                await at.pass_time(1)
        assert len([log for log in logs if log["event"] == "delivery.failed"]) == 20


async def test_410_for_a_probe_disables() -> None:
    async with desk() as at:
        await parked(at)
        await at.pass_time(5)
        await at.end(at.posting.open[0], Answered(410))
        assert at.store.disabled == [(1, "410 Gone")]
        assert at.dispatcher.health_of(1) is State.DISABLED
        assert at.store.backlog_of() == []
        assert DELIVERED not in at.posting.open


async def test_disabling_is_tried_again_until_the_store_has_it() -> None:
    async with desk() as at:
        at.offer(make_calls(1))
        at.store.gate.clear()
        await at.end(at.posting.open[0], Answered(410))
        at.store.gate.set()
        while not at.store.history:
            await asyncio.sleep(0)
        at.store.failures = 2
        with capture_logs() as logs:
            for _ in range(4):
                await at.rest()
                at.dispatcher.apply(registry_of(make_callback()))  # read before
                at.offer([make_delivery(f"meanwhile{len(at.store.state)}")])
                await at.pass_time(0.5)
        assert [log["event"] for log in logs].count("callback.disable_failed") == 2
        assert at.store.disabled == [(1, "410 Gone")]
        at.dispatcher.apply(registry_of(make_callback()))
        await at.end_all()
        assert len(at.posting.attempts) == 5  # registered again: what came for it meanwhile is posted


async def test_a_callback_that_fails_again_and_again_fills_no_memory() -> None:
    """Each time a page of what is due much later is read, and left to the store again."""
    async with desk() as at:
        due_at = at.clock() + timedelta(minutes=55)
        at.store.put(make_delivery(f"later{n}", attempts=10, due_at=due_at) for n in range(400))
        at.store.put(make_calls(200, prefix="now"))
        at.dispatcher.resume([1])
        await at.rest()
        for _ in range(30):
            while at.posting.open:
                is_probe = at.dispatcher.health_of(1) is State.PROBING
                await at.end(at.posting.open[0], DELIVERED if is_probe else REFUSED)
            await at.pass_time(5)
        assert at.dispatcher.held() <= 1
        assert len(at.dispatcher._agenda._entries) <= _TIDIED_AT
