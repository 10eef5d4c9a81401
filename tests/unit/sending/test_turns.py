"""Nobody waits for a stranger: slots that grow and shrink, and the share of those who are slow."""

from __future__ import annotations

from tests.support.dispatching import DELIVERED, REFUSED, desk, make_call, make_callback, make_calls


async def test_a_new_callback_begins_with_two_posts_and_soon_has_all() -> None:
    async with desk(callback_concurrency=32) as at:
        at.offer(make_calls(200))
        assert len(at.posting.open) == 2
        answered = 0
        while len(at.posting.open) < 32:
            await at.end(at.posting.open[0])
            answered += 1
        assert answered <= 36
        await at.end_all()


async def test_failures_shrink_it() -> None:
    async with desk(callback_concurrency=8) as at:
        await at.warm_up()
        at.offer(make_calls(30))
        assert len(at.posting.open) == 8
        for _ in range(2):
            await at.end(at.posting.open[0], REFUSED)
        while len(at.posting.open) > 2:
            await at.end(at.posting.open[0])
            assert len(at.posting.open) < 8
        await at.pass_time(5)
        await at.end_all()


async def test_silent_callbacks_leave_a_quarter_of_the_places_to_the_others() -> None:
    async with desk(*map(make_callback, range(1, 42)), concurrency=40) as at:
        await at.warm_up(41)
        at.offer(delivery for callback in range(1, 41) for delivery in make_calls(10, callback))
        assert len(at.posting.open) == 30
        at.offer(make_calls(50, 41, "quick"))
        for _ in range(50):
            await at.end(next(attempt for attempt in at.posting.of(41) if attempt.is_open))
        assert len(at.posting.of(41)) == 50
        await at.end_all()


async def test_callbacks_that_fall_silent_count_as_slow() -> None:
    async with desk(make_callback(1), make_callback(2), concurrency=8) as at:
        await at.warm_up(1)
        await at.warm_up(2)
        at.offer(make_calls(5, 1, "a"))
        await at.pass_time(0.3)
        at.offer(make_calls(20, 1, "b"))
        assert len(at.posting.of(1)) == 6
        at.offer(make_calls(20, 2))
        assert len(at.posting.of(2)) == 2
        await at.end_all()


async def test_slow_answers_count_as_slow_and_quick_ones_redeem() -> None:
    async with desk(make_callback(), concurrency=8) as at:
        at.offer(make_calls(1, prefix="first"))
        await at.pass_time(1)
        await at.end_all()
        queue = at.dispatcher._queues[1]
        assert queue.is_slow
        for number in range(30):
            at.offer(make_calls(1, prefix=f"c{number}-"))
            await at.end_all()
        assert not queue.is_slow


async def test_slots_are_held_until_the_outcome_is_durable_and_places_until_the_answer() -> None:
    async with desk(make_callback(1), make_callback(2), callback_concurrency=4, concurrency=4) as at:
        await at.warm_up(1)
        await at.warm_up(2)
        at.offer(make_calls(10, 1))
        at.store.gate.clear()
        for attempt in at.posting.of(1)[:4]:
            await at.end(attempt)
        assert len(at.posting.of(1)) == 4  # a crash repeats no more than four
        at.offer(make_call("other", 1, 2))
        assert len(at.posting.of(2)) == 1
        at.store.gate.set()
        await at.end_all()


async def test_while_the_store_refuses_nothing_starts_in_the_end() -> None:
    async with desk(callback_concurrency=4) as at:
        await at.warm_up()
        at.store.failures = 10
        at.offer(make_calls(50))
        for _ in range(8):
            for attempt in at.posting.open:
                await at.end(attempt, DELIVERED)
            await at.pass_time(0.5)
        assert len(at.posting.attempts) == 4
        for _ in range(5):
            await at.pass_time(0.5)
        await at.end_all()
        assert len(at.posting.attempts) == 50
