"""The dispatcher's first promises: order within a lane, caps, turns, waits, and what follows from each outcome."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from email.utils import format_datetime

import pytest
from tests.support.clock import START
from tests.support.dispatching import (
    DELIVERED,
    OTHER_SECRET,
    SECRET,
    desk,
    make_call,
    make_callback,
    make_calls,
    make_delivery,
    registry_of,
)
from tests.support.store_double import StoreDouble, key_of

from toque.callbacks.delivery import DEADLINE, JITTER, RETRIES, DeliveryState
from toque.sending.transport import Answered, Forbidden, Outcome, Unreachable

# Order


async def test_events_of_one_call_go_one_after_the_other() -> None:
    async with desk() as at:
        at.offer(make_call(events=3))
        assert at.posting.events == ["call.1"]
        await at.end(at.posting.attempts[0])
        assert at.posting.events == ["call.1", "call.2"]
        await at.end_all()
        assert at.posting.events == ["call.1", "call.2", "call.3"]
        assert [told.state for told in at.store.history] == [DeliveryState.DELIVERED] * 3
        assert at.dispatcher.held() == 0


async def test_next_of_a_call_waits_until_the_outcome_is_durable() -> None:
    async with desk() as at:
        at.offer(make_call(events=2))
        at.store.gate.clear()
        await at.end(at.posting.attempts[0])
        assert at.store.tries == 1
        assert at.posting.events == ["call.1"]
        at.store.gate.set()
        await at.rest()
        assert at.posting.events == ["call.1", "call.2"]
        await at.end_all()


async def test_events_of_a_call_that_come_later_queue_behind_the_one_in_flight() -> None:
    async with desk() as at:
        for sequence in (1, 2, 3):
            at.offer([make_delivery(sequence=sequence)])
        assert at.posting.events == ["call.1"]
        await at.end_all()
        assert at.posting.events == ["call.1", "call.2", "call.3"]


async def test_sides_of_one_call_are_lanes_of_their_own() -> None:
    async with desk() as at:
        await at.warm_up()
        first = make_delivery()
        at.offer([first, make_delivery("call", 2, pin="other"), make_delivery("call", 3, direction="received")])
        assert at.posting.events == ["call.1", "call.2", "call.3"]
        await at.end_all()


async def test_a_failed_event_holds_up_its_own_lane_only() -> None:
    async with desk() as at:
        at.offer(make_call("a", 2) + make_call("b", 2))
        await at.end(at.posting.attempts[0], Unreachable("connection refused"))
        await at.end_all()
        assert at.posting.events == ["a.1", "b.1", "b.2"]
        await at.pass_time(1)
        await at.end_all()
        assert at.posting.events == ["a.1", "b.1", "b.2", "a.1", "a.2"]


# Room


async def test_lanes_of_one_callback_go_in_parallel_up_to_its_cap() -> None:
    async with desk(callback_concurrency=3) as at:
        await at.warm_up()
        at.offer(make_delivery(f"call{number}") for number in range(5))
        assert len(at.posting.open) == 3
        await at.end(at.posting.open[1])
        assert at.posting.events == ["call0.1", "call1.1", "call2.1", "call3.1"]
        await at.end_all()
        assert len(at.posting.attempts) == 5


async def test_all_callbacks_together_keep_within_the_total_cap() -> None:
    async with desk(*map(make_callback, range(1, 6)), concurrency=7, callback_concurrency=3) as at:
        at.offer(make_delivery(f"call{number}", callback=1 + number % 5) for number in range(50))
        while at.posting.open:
            assert len(at.posting.open) <= 7
            assert max(Counter(attempt.callback for attempt in at.posting.open).values()) <= 3
            await at.end(at.posting.open[0])
        assert len(at.posting.attempts) == 50


async def test_a_callback_with_very_much_to_send_starves_no_other() -> None:
    async with desk(make_callback(1), make_callback(2), concurrency=4, callback_concurrency=4) as at:
        await at.warm_up(1)
        await at.warm_up(2)
        at.offer(make_calls(5000, 1, "flood"))
        assert len(at.posting.open) == 4
        at.offer(make_calls(10, 2))
        for _ in range(20):
            await at.end(at.posting.open[0])
        started = [attempt.callback for attempt in at.posting.attempts[4:]]
        assert started[:20].count(2) >= 9  # every other turn was its
        at.dispatcher.apply(registry_of())
        await at.end_all()


async def test_callbacks_are_served_in_turn() -> None:
    async with desk(*map(make_callback, (1, 2, 3)), concurrency=1) as at:
        for callback in (1, 2, 3):
            await at.warm_up(callback)
        at.offer(delivery for callback in (1, 2, 3) for delivery in make_calls(3, callback))
        await at.end_all()
        assert [attempt.callback for attempt in at.posting.attempts] == [1, 2, 3] * 3


# What follows from an outcome


@pytest.mark.parametrize("status", [200, 201, 204, 206, 299])
async def test_every_2xx_is_a_success(status: int) -> None:
    async with desk() as at:
        at.offer(make_call(events=1))
        await at.end(at.posting.attempts[0], Answered(status))
        assert at.store.last.state is DeliveryState.DELIVERED
        assert at.store.last.due_at is None
        assert at.dispatcher.counters.delivered == 1


@pytest.mark.parametrize(
    "outcome",
    [
        *(Answered(status) for status in (300, 301, 302, 307, 308, 304, 401, 403, 404, 405, 408, 429, 500, 502, 503)),
        Unreachable("connection refused"),
        Unreachable("no answer within 15 s"),
        Unreachable("closing"),
        Forbidden("loopback address"),
    ],
)
async def test_everything_else_is_tried_again(outcome: Outcome) -> None:
    async with desk() as at:
        at.offer(make_call(events=2))
        await at.end(at.posting.attempts[0], outcome)
        assert at.store.last.state is DeliveryState.WAITING
        assert at.store.last.due_at == START + RETRIES[0]
        assert at.store.last.attempts == 1
        assert at.dispatcher.counters.delivered == 0
        await at.pass_time(1)
        assert at.posting.events == ["call.1", "call.1"]
        await at.end_all()


async def test_the_store_is_told_how_a_refusal_began() -> None:
    async with desk() as at:
        at.offer(make_call(events=1))
        await at.end(at.posting.attempts[0], Answered(500, None, "x" * 500))
        assert at.store.last.outcome == "500 " + "x" * 120
        await at.pass_time(1)
        await at.end(at.posting.attempts[1], Forbidden("loopback address"))
        assert at.store.last.outcome == "loopback address"
        await at.pass_time(2)
        await at.end_all()


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.999])
async def test_waits_between_tries_follow_the_table(chance: float) -> None:
    async with desk() as at:
        at.chance = chance
        at.offer(make_call(events=1))
        factor = 1 + JITTER * (2 * chance - 1)
        waits = [*RETRIES, RETRIES[-1], RETRIES[-1]]
        assert sum(waits, timedelta()) < DEADLINE
        for number, wait in enumerate(waits, 1):
            await at.end(at.posting.open[0], Answered(500))
            assert at.store.last.attempts == number
            seconds = wait.total_seconds() * factor
            await at.be_well()
            await at.pass_time(seconds * 0.999)
            assert not at.posting.open
            await at.pass_time(seconds * 0.001 + 0.001)
        await at.end_all()


async def test_jitter_is_drawn_anew_for_each_wait() -> None:
    async with desk() as at:
        await at.warm_up()
        at.offer(make_delivery(f"call{number}") for number in range(3))
        for number, attempt in enumerate(at.posting.open):
            at.chance = number / 3
            attempt.ends(Answered(500))
        await at.rest()
        assert len({told.due_at for told in at.store.history}) == 3
        await at.pass_time(2)
        await at.end_all()


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_an_unwelcome_event_is_dead_after_three_tries_and_its_call_goes_on(status: int) -> None:
    async with desk() as at:
        at.offer(make_call(events=2))
        for wait in (1, 2):
            await at.end(at.posting.open[0], Answered(status))
            assert at.store.last.state is DeliveryState.WAITING
            await at.pass_time(wait)
        await at.end(at.posting.open[0], Answered(status))
        dead = at.store.last
        assert (dead.state, dead.attempts, dead.due_at) == (DeliveryState.DEAD, 3, None)
        assert at.dispatcher.counters.dead == 1
        assert [attempt.event for attempt in at.posting.open] == ["call.2"]
        await at.end_all()


async def test_410_disables_the_callback_and_nothing_more_starts() -> None:
    async with desk(make_callback(1), make_callback(2), callback_concurrency=2) as at:
        waiting = [make_delivery(f"call{number}") for number in range(4)]
        at.offer([*waiting, make_delivery("other", callback=2)])
        at.store.gate.clear()
        await at.end(at.posting.of(1)[0], Answered(410))
        assert len(at.posting.of(1)) == 2  # not even while the store is slow
        at.dispatcher.apply(registry_of(make_callback(1, credentials="new:one"), make_callback(2)))
        assert len(at.posting.of(1)) == 2  # nor because its registration changed just now
        at.store.gate.set()
        await at.rest()
        assert at.store.disabled == [(1, "410 Gone")]
        assert at.store.of(waiting[0]).state is DeliveryState.DEAD
        await at.end_all()  # the other one in flight
        assert at.store.of(waiting[1]).state is DeliveryState.DELIVERED
        assert len(at.posting.of(1)) == 2
        assert at.dispatcher.held() == 0
        at.dispatcher.apply(registry_of(make_callback(1, disabled_at=START, disabled_reason="410 Gone"), make_callback(2)))
        await at.pass_time(86_400)
        assert len(at.posting.of(1)) == 2
        assert len(at.posting.of(2)) == 1


async def test_410_of_several_lanes_disables_once() -> None:
    async with desk() as at:
        at.offer(make_delivery(f"call{number}") for number in range(3))
        for attempt in at.posting.open:
            attempt.ends(Answered(410))
        await at.rest()
        assert at.store.disabled == [(1, "410 Gone")]


async def test_410_of_a_turn_that_was_waited_for_takes_the_turn_away() -> None:
    async with desk(make_callback(1), make_callback(2), concurrency=2) as at:
        at.offer([make_delivery("a"), make_delivery("b", callback=2), make_delivery("c")])
        await at.end(at.posting.of(1)[0], Answered(410))
        assert [attempt.event for attempt in at.posting.attempts] == ["a.1", "b.1"]
        await at.end_all()


async def test_a_callback_that_was_registered_again_after_its_410_is_posted_to() -> None:
    """Registering brings a disabled callback back under the same number, also before anybody saw that it was disabled."""
    async with desk() as at:
        at.offer(make_call(events=2))
        await at.end(at.posting.open[0], Answered(410))
        assert at.store.disabled
        at.offer([make_delivery("new")])
        at.dispatcher.apply(registry_of(make_callback()))
        assert [attempt.event for attempt in at.posting.open] == ["new.1"]
        await at.end_all()
        assert at.dispatcher.held() == 0


async def test_disabling_is_repeated_until_the_store_has_it() -> None:
    async with desk() as at:
        at.offer(make_call(events=1))
        at.store.failures = 3
        await at.end(at.posting.open[0], Answered(410))
        for _ in range(3):
            assert at.store.disabled == []
            await at.pass_time(0.5)
        assert at.store.disabled == [(1, "410 Gone")]


# Retry-After


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        ("120", 120),
        (format_datetime(START + timedelta(seconds=90), usegmt=True), 90),
        ("7200", 3600),
        ("99999999999999999999", 3600),
    ],
)
async def test_retry_after_lets_the_whole_callback_rest(status: int, retry_after: str, wait_s: float) -> None:
    async with desk(make_callback(1), make_callback(2)) as at:
        at.offer([make_delivery("a"), make_delivery("other", callback=2)])
        await at.end(at.posting.of(1)[0], Answered(status, retry_after))
        assert at.store.last.due_at == START + timedelta(seconds=wait_s)
        at.offer([make_delivery("b"), make_delivery("more", callback=2)])
        assert len(at.posting.of(1)) == 1
        assert len(at.posting.of(2)) == 2  # which are no concern of the other's
        await at.pass_time(wait_s - 0.01)
        assert len(at.posting.of(1)) == 1
        await at.pass_time(0.02)
        await at.end_all()
        assert {attempt.event for attempt in at.posting.of(1)[1:]} == {"a.1", "b.1"}


async def test_retry_after_applies_before_any_other_timer() -> None:
    async with desk() as at:
        await at.warm_up()
        at.offer([make_delivery("a"), make_delivery("b")])
        a, b = at.posting.open
        await at.end(a, Unreachable("connection refused"))  # again in 1 s
        await at.end(b, Answered(429, "60"))
        await at.pass_time(59)
        assert len(at.posting.attempts) == 2
        await at.pass_time(1)
        assert len(at.posting.open) == 2
        await at.end_all()


async def test_the_longest_of_several_pauses_counts() -> None:
    async with desk() as at:
        await at.warm_up()
        at.offer([make_delivery("a"), make_delivery("b"), make_delivery("c")])
        a, b, c = at.posting.open
        await at.end(a, Answered(429, "30"))
        await at.end(b, Answered(429, "60"))
        await at.end(c, Answered(429, "10"))
        await at.pass_time(59)
        assert not at.posting.open
        await at.pass_time(1)
        await at.end_all()
        assert len(at.posting.attempts) == 6


async def test_a_pause_takes_effect_for_a_turn_that_was_waited_for() -> None:
    """The callback stands in line for room when it is asked to pause."""
    async with desk(make_callback(1), make_callback(2), concurrency=2) as at:
        at.offer([make_delivery("a"), make_delivery("b", callback=2), make_delivery("c")])
        await at.end(at.posting.of(1)[0], Answered(429, "60"))
        await at.end(at.posting.of(2)[0])
        assert at.posting.events == ["a.1", "b.1"]
        await at.pass_time(60)
        await at.end_all()
        assert sorted(at.posting.events) == ["a.1", "a.1", "b.1", "c.1"]


async def test_a_pause_holds_also_when_the_registration_changes() -> None:
    async with desk() as at:
        at.offer(make_call(events=1))
        await at.end(at.posting.open[0], Answered(503, "60"))
        at.dispatcher.apply(registry_of(make_callback(secrets=(OTHER_SECRET, SECRET))))
        await at.pass_time(59)
        assert not at.posting.open
        await at.pass_time(1)
        assert len(at.posting.open) == 1
        await at.end_all()


async def test_429_without_a_time_is_an_ordinary_failure() -> None:
    async with desk() as at:
        at.offer([make_delivery("a")])
        await at.end(at.posting.open[0], Answered(429, "soon"))
        at.offer([make_delivery("b")])
        assert [attempt.event for attempt in at.posting.open] == ["b.1"]
        await at.pass_time(1)
        await at.end_all()


# Deadline


async def test_after_a_day_of_failures_a_delivery_is_dead() -> None:
    async with desk() as at:
        deliveries = make_call(events=2)
        at.offer(deliveries)
        while at.store.state[key_of(deliveries[0])] is not DeliveryState.DEAD:
            for attempt in at.posting.open:
                await at.end(attempt, DELIVERED if attempt.event == "call.2" else Answered(500))
            await at.be_well()
            if at.clock.timers:
                await at.pass_time(at.clock.timers[0])
        told = at.store.of(deliveries[0])
        assert (told.state, told.due_at) == (DeliveryState.DEAD, None)
        assert at.clock() == START + DEADLINE
        assert told.attempts == 35
        assert at.store.of(deliveries[1]).state is DeliveryState.DELIVERED


async def test_what_waited_through_a_long_outage_of_ours_has_its_whole_time_before_it() -> None:
    async with desk() as at:
        old = make_delivery("old", accepted_at=START - timedelta(days=3))
        at.offer([old])
        await at.end_all(Answered(500))
        assert at.store.of(old).state is DeliveryState.WAITING


# The wall clock is set


@pytest.mark.parametrize("by", [timedelta(hours=-5), timedelta(hours=5), timedelta(days=-4000), timedelta(hours=23)])
async def test_waits_do_not_notice_that_the_wall_clock_is_set(by: timedelta) -> None:
    async with desk() as at:
        at.offer([make_delivery("a"), make_delivery("b")])
        a, b = at.posting.open
        await at.end(a, Answered(500))
        await at.end(b, Answered(429, "60"))
        at.clock.set_wall(by)
        await at.pass_time(59)
        assert len(at.posting.attempts) == 2
        await at.pass_time(1)
        await at.end_all()
        assert len(at.posting.attempts) == 4


@pytest.mark.parametrize("by", [timedelta(hours=25), timedelta(days=20_000), timedelta(days=-15_000)])
async def test_deadlines_do_not_notice_that_the_wall_clock_is_set(by: timedelta) -> None:
    async with desk() as at:
        at.offer(make_call(events=1))
        at.clock.set_wall(by)
        await at.end_all(Answered(500))
        assert at.store.last.state is DeliveryState.WAITING


async def test_a_stored_due_time_of_a_clock_that_was_ahead_holds_nothing_up() -> None:
    store = StoreDouble()
    store.put([make_delivery(attempts=1, due_at=START + timedelta(days=1))])
    async with desk(store=store) as at:
        at.dispatcher.resume(store.recover())
        await at.rest()
        assert at.posting.open == []
        await at.pass_time(1.2)
        assert len(at.posting.open) == 1


async def test_after_a_restart_what_was_asked_to_wait_is_waited_for() -> None:
    """The receiver had said when to come back, which is more than the table's wait after one attempt."""
    store = StoreDouble()
    store.put([make_delivery(attempts=1, due_at=START + timedelta(minutes=50))])
    async with desk(store=store) as at:
        at.dispatcher.resume(store.recover())
        await at.rest()
        await at.pass_time(50 * 60 - 1)
        assert at.posting.open == []
        await at.pass_time(1)
        assert len(at.posting.open) == 1
