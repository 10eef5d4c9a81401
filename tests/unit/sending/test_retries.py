"""The ordering window: a lane goes on without a head that keeps failing, and only then."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.support.dispatching import DELIVERED, Desk, desk, make_call, make_callback, make_calls, make_delivery
from tests.support.store_double import StoreDouble

from toque.callbacks.callback import KeptHealth
from toque.callbacks.delivery import DeliveryState
from toque.callbacks.health import State
from toque.calls.model import Status
from toque.sending.transport import Answered

BAD = Answered(500)


async def fail_for(at: Desk, seconds: int, event: str = "call.1") -> None:
    """This event fails for so long, and whatever else is sent arrives."""
    for _ in range(seconds):
        for attempt in at.posting.open:
            await at.end(attempt, BAD if attempt.event == event else DELIVERED)
        await at.be_well()
        await at.pass_time(1)


async def test_a_lane_goes_on_once_the_window_is_over_though_no_attempt_ends_then() -> None:
    async with desk() as at:
        at.offer(make_call(events=3))
        await fail_for(at, 29)
        assert "call.2" not in at.posting.events
        await fail_for(at, 3)
        assert "call.2" in at.posting.events
        assert "call.3" in at.posting.events
        await at.pass_time(30)
        assert [attempt.event for attempt in at.posting.open] == ["call.1"]
        await at.end_all()
        assert at.dispatcher.held() == 0


async def test_the_window_is_a_setting() -> None:
    async with desk(ordering_window=timedelta(seconds=3)) as at:
        at.offer(make_call(events=2))
        await fail_for(at, 5)
        assert "call.2" in at.posting.events
        await at.pass_time(60)
        await at.end_all()


async def test_an_attempt_under_way_at_the_end_of_the_window_is_waited_for() -> None:
    async with desk(ordering_window=timedelta(seconds=3)) as at:
        at.offer(make_call(events=2))
        await at.end(at.posting.open[0], BAD)
        await at.pass_time(1)
        await at.pass_time(10)
        assert [attempt.event for attempt in at.posting.open] == ["call.1"]
        await at.end(at.posting.open[0], BAD)
        assert [attempt.event for attempt in at.posting.open] == ["call.2"]
        await at.end_all()
        await at.pass_time(2)
        await at.end_all()
        assert at.posting.events == ["call.1", "call.1", "call.2", "call.1"]


async def test_what_comes_after_a_late_one_left_an_empty_lane_goes_at_once() -> None:
    async with desk(ordering_window=timedelta(seconds=3)) as at:
        at.offer(make_call(events=1))
        await fail_for(at, 5)
        at.offer([make_delivery("call", 2)])
        await at.rest()
        assert "call.2" in [attempt.event for attempt in at.posting.open]
        await at.pass_time(60)
        await at.end_all()


async def test_an_outage_makes_nothing_late() -> None:
    async with desk() as at:
        at.offer(make_call(events=3))
        await at.fail(5)
        assert at.dispatcher.health_of(1) is State.FAILING
        await at.pass_time(5)
        await at.pass_time(600)
        await at.end_all()
        sent = [event for number, event in enumerate(at.posting.events) if number >= 5]
        assert sent == ["call.1", "call.2", "call.3"]


async def test_a_pause_makes_nothing_late() -> None:
    async with desk() as at:
        at.offer(make_call(events=2))
        await at.end(at.posting.open[0], Answered(503, "600"))
        await at.pass_time(599)
        assert len(at.posting.attempts) == 1
        await at.pass_time(1)
        await at.end_all()
        assert at.posting.events == ["call.1", "call.1", "call.2"]


async def test_a_pause_of_a_lane_that_failed_before_makes_nothing_late() -> None:
    async with desk() as at:
        await at.warm_up()
        at.offer([*make_call(events=2), make_delivery("other")])
        await at.end(at.posting.open[0], BAD)
        await at.end(at.posting.open[0], Answered(503, "600"))
        await at.pass_time(600)
        await at.end_all()
        assert [event for event in at.posting.events if event.startswith("call")] == ["call.1", "call.1", "call.2"]


async def test_a_pause_at_the_end_of_the_window_makes_nothing_late() -> None:
    async with desk() as at:
        at.offer(make_call(events=2))
        await fail_for(at, 20)  # tried again at 48 s; the window is over at 30
        at.offer(make_calls(1, prefix="other"))
        await at.end(at.posting.open[0], Answered(503, "28"))
        await at.pass_time(27)
        assert not at.posting.open
        await at.pass_time(2)
        await at.end_all()
        assert [event for event in at.posting.events if event.startswith("call")][-2:] == ["call.1", "call.2"]


async def test_what_was_late_is_late_after_an_outage_too() -> None:
    async with desk(ordering_window=timedelta(seconds=3)) as at:
        at.offer(make_call(events=1))
        await fail_for(at, 5)
        at.offer(make_calls(1, prefix="other"))
        await at.fail(5, BAD)
        assert at.dispatcher.health_of(1) is State.FAILING
        at.offer([make_delivery("call", 2)])
        await at.rest()
        await at.pass_time(5)
        for _ in range(3):
            for attempt in at.posting.open:
                await at.end(attempt)
            await at.pass_time(120)
        assert at.store.backlog_of() == []


async def test_after_a_restart_whoever_failed_often_is_late() -> None:
    store = StoreDouble()
    async with desk(store=store) as at:
        stuck = make_delivery("call", 1, attempts=5, due_at=at.clock() + timedelta(minutes=1))
        store.put([stuck, make_delivery("call", 2), make_delivery("new", 1, attempts=4), make_delivery("new", 2)])
        at.dispatcher.resume(store.recover())
        await at.rest()
        assert [attempt.event for attempt in at.posting.open] == ["call.2", "new.1"]
        await at.end_all()
        await at.pass_time(60)
        await at.end_all()
        assert at.posting.events[-1] == "call.1"


async def test_after_a_restart_in_an_outage_the_order_is_kept() -> None:
    """Five failures of one event are what parks a callback with a single call."""
    store = StoreDouble()
    store.put([make_delivery("call", 1, attempts=5), make_delivery("call", 2)])
    async with desk(make_callback(health=KeptHealth(make_callback().created_at)), store=store) as at:
        at.dispatcher.resume(store.recover())
        await at.end_all()
        assert at.posting.events == ["call.1", "call.2"]


@pytest.mark.parametrize("bad", [9, 12])  # 9: as many as leave no room for a page of the backlog, to the last one
async def test_too_many_late_ones_are_an_outage(bad: int) -> None:
    async with desk(max_held=160, ordering_window=timedelta(seconds=2)) as at:
        await at.warm_up()
        at.offer(make_calls(bad, prefix="bad"))
        for _ in range(60):
            for attempt in at.posting.open:
                await at.end(attempt, BAD if attempt.event.startswith("bad") else DELIVERED)
                await at.be_well()
            if at.dispatcher.health_of(1) is State.FAILING:
                break
            await at.pass_time(0.5)
        assert at.dispatcher.health_of(1) is State.FAILING
        assert at.dispatcher.held() == 0


# Ringing that nobody needs any more


def ringing_and_answered() -> list:
    return [make_delivery("call", 1, status=Status.RINGING), make_delivery("call", 2, status=Status.ANSWERED)]


async def test_late_ringing_is_given_up_once_a_later_status_arrived() -> None:
    async with desk(expire_stale_ringing=True, ordering_window=timedelta(seconds=3)) as at:
        ringing, answered = ringing_and_answered()
        at.offer([ringing, answered])
        await fail_for(at, 6)
        await at.rest()
        assert at.store.of(answered).state is DeliveryState.DELIVERED
        assert at.store.of(ringing).state is DeliveryState.DEAD
        assert at.store.of(ringing).outcome == "expired: a later status was delivered"
        assert at.dispatcher.held() == 0


async def test_late_ringing_that_is_under_way_then_is_given_up_when_it_fails() -> None:
    async with desk(expire_stale_ringing=True, ordering_window=timedelta(seconds=3)) as at:
        await at.warm_up()
        ringing, answered = ringing_and_answered()
        at.offer([ringing, answered])
        await at.end(at.posting.open[0], BAD)
        await at.be_well()
        await at.pass_time(3)
        await at.end(at.posting.open[0], BAD)
        await at.pass_time(2)
        late = next(attempt for attempt in at.posting.open if attempt.event == "call.1")
        await at.end(next(attempt for attempt in at.posting.open if attempt.event == "call.2"))
        assert at.store.of(ringing).state is DeliveryState.WAITING
        await at.end(late, BAD)
        assert at.store.of(ringing).state is DeliveryState.DEAD


async def test_without_the_setting_late_ringing_goes_on() -> None:
    async with desk(ordering_window=timedelta(seconds=3)) as at:
        ringing, answered = ringing_and_answered()
        at.offer([ringing, answered])
        await fail_for(at, 6)
        assert at.store.of(ringing).state is DeliveryState.WAITING
        await at.pass_time(60)
        await at.end_all()
        assert at.store.of(ringing).state is DeliveryState.DELIVERED


async def test_other_late_statuses_are_never_given_up_for_a_later_one() -> None:
    async with desk(expire_stale_ringing=True, ordering_window=timedelta(seconds=3)) as at:
        initiated, answered = make_delivery("call", 1), make_delivery("call", 2, status=Status.ANSWERED)
        at.offer([initiated, answered])
        await fail_for(at, 6)
        assert at.store.of(answered).state is DeliveryState.DELIVERED
        assert at.store.of(initiated).state is DeliveryState.WAITING
        await at.pass_time(60)
        await at.end_all()
