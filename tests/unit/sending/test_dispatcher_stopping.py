"""Stopping: what is in flight ends, nothing more starts, and nothing is left behind."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tests.support.dispatching import (
    CUT_OFF,
    desk,
    make_call,
    make_delivery,
)

from toque.callbacks.delivery import DeliveryState
from toque.sending.transport import Answered


async def test_drain_lets_what_is_in_flight_end_and_starts_nothing() -> None:
    async with desk() as at:
        at.offer(make_call("a", 2) + make_call("b", 2))
        draining = asyncio.create_task(at.dispatcher.drain(timedelta(seconds=20)))
        await at.rest()
        for attempt in at.posting.open:
            assert not draining.done()
            await at.end(attempt)
        assert await draining
        assert len(at.store.history) == 2
        at.offer([make_delivery("c")])
        await at.pass_time(86_400)
        assert at.posting.events == ["a.1", "b.1"]


async def test_drain_waits_until_the_outcomes_are_durable() -> None:
    async with desk() as at:
        at.offer(make_call(events=1))
        at.store.gate.clear()
        draining = asyncio.create_task(at.dispatcher.drain(timedelta(seconds=20)))
        await at.rest()
        await at.end(at.posting.open[0])
        assert not draining.done()
        at.store.gate.set()
        assert await draining


async def test_drain_waits_also_after_a_time_when_nothing_was_to_do() -> None:
    async with desk() as at:
        at.offer([make_delivery("a")])
        await at.end_all()
        at.offer([make_delivery("b")])
        draining = asyncio.create_task(at.dispatcher.drain(timedelta(seconds=20)))
        await at.rest()
        assert not draining.done()
        await at.end_all()
        assert await draining


async def test_drain_of_an_idle_dispatcher_is_over_at_once() -> None:
    async with desk() as at:
        assert await at.dispatcher.drain(timedelta())
        assert await at.dispatcher.drain(timedelta())


async def test_attempts_that_our_own_stop_cuts_off_do_not_count() -> None:
    async with desk() as at:
        deliveries = make_call("a", 2) + make_call("b", 2)
        at.offer(deliveries)
        a, b = at.posting.open
        assert not await at.dispatcher.drain(timedelta())
        await at.end(a, CUT_OFF)  # as the transport does when it is closed
        assert not await at.dispatcher.drain(timedelta())
        await at.end(b, Answered(500))  # this one did answer
        assert await at.dispatcher.drain(timedelta())
        assert [told.event.seq for told in at.store.history] == [deliveries[2].event.seq]
        assert at.store.last.state is DeliveryState.WAITING


async def test_no_timer_is_left_after_a_stop() -> None:
    async with desk() as at:
        at.offer([make_delivery("a"), make_delivery("b")])
        a, b = at.posting.open
        await at.end(a, Answered(500))
        assert at.clock.timers
        at.dispatcher.stop()
        assert at.clock.timers == []
        await at.end(b, Answered(500))
        assert at.clock.timers == []


async def test_settled_waits_for_everything_that_can_be_sent_now() -> None:
    async with desk() as at:
        at.offer(make_call(events=2))
        waiting = asyncio.create_task(at.dispatcher.settled())
        await at.end(at.posting.open[0])
        assert not waiting.done()
        await at.end(at.posting.open[0], Answered(500))
        assert waiting.done()
        await waiting


async def test_run_can_be_cancelled_while_it_waits_for_the_store() -> None:
    async with desk() as at:
        at.offer(make_call(events=1))
        at.store.failures = 99
        await at.end(at.posting.open[0])
        assert at.clock.timers == [0.5]
        at.running.cancel()
        await at.rest()
        assert at.clock.timers == []
