"""Outcomes on their way into the store: nothing is lost, whatever it does."""

from __future__ import annotations

import logging

import pytest
from structlog.testing import capture_logs
from tests.support.clock import ManualClock
from tests.support.dispatching import PostingDouble, desk, make_call, make_callback, make_calls, make_delivery, registry_of
from tests.support.store_double import StoreDouble

from toque.callbacks.delivery import DeliveryState
from toque.sending.dispatcher import Dispatcher
from toque.sending.transport import Answered


async def test_outcomes_wait_for_the_store_and_nothing_is_lost() -> None:
    async with desk() as at:
        deliveries = make_call("a", 3) + make_call("b", 3)
        at.offer(deliveries)
        at.store.failures = 5
        with capture_logs() as logs:
            for attempt in at.posting.open:
                attempt.ends()
            await at.rest()
            for _ in range(5):
                assert at.posting.events == ["a.1", "b.1"]
                assert at.store.history == []
                assert at.clock.timers == [0.5]
                await at.pass_time(0.5)
        assert [log["event"] for log in logs] == ["delivery.settle_failed"] * 5
        await at.end_all()
        assert at.posting.events == ["a.1", "b.1", "a.2", "b.2", "a.3", "b.3"]
        assert all(at.store.of(delivery).state is DeliveryState.DELIVERED for delivery in deliveries)


async def test_outcomes_that_come_during_a_write_are_the_next_one() -> None:
    async with desk() as at:
        await at.warm_up()
        tries = at.store.tries
        at.offer(make_calls(10))
        at.store.gate.clear()
        await at.end(at.posting.open[0])
        for attempt in at.posting.open:
            attempt.ends()
        await at.rest()
        assert at.store.tries == tries + 1
        at.store.gate.set()
        await at.rest()
        assert at.store.tries == tries + 2
        assert len(at.store.history) == 10


async def test_an_error_that_is_no_store_error_ends_the_settling() -> None:
    """Nobody may go on posting while outcomes go nowhere: `run` ends, and the server with it."""

    class BrokenStore(StoreDouble):
        async def settle(self, delivered: object, others: object = ()) -> None:
            raise ZeroDivisionError

    posting, clock = PostingDouble(), ManualClock()
    dispatcher = Dispatcher(posting, BrokenStore(), clock=clock, chance=lambda: 0.5, timers=clock)
    dispatcher.apply(registry_of(make_callback()))
    dispatcher.offer(make_call())
    posting.open[0].ends()
    with pytest.raises(ZeroDivisionError):
        await dispatcher.run()


async def test_successes_are_told_in_the_log_only_where_somebody_listens(caplog: pytest.LogCaptureFixture) -> None:
    async with desk() as at:
        with capture_logs() as logs:
            at.offer([make_delivery("a")])
            await at.end_all()
            assert logs == []
            with caplog.at_level(logging.DEBUG, "toque.sending"):
                at.offer([make_delivery("b")])
                await at.end_all()
        assert [(log["event"], log["event_id"]) for log in logs] == [("delivery.settled", "b.1")]


async def test_what_receivers_say_stays_out_of_the_log() -> None:
    async with desk() as at:
        with capture_logs() as logs:
            at.offer(make_call(events=1))
            for _ in range(3):
                await at.end(at.posting.open[0], Answered(400, None, "Authorization: Basic c2VjcmV0"))
                await at.pass_time(5)
        assert [log["event"] for log in logs] == ["delivery.failed", "delivery.failed", "delivery.died"]
        assert "c2VjcmV0" not in str(logs)
