"""What waits in the store: left there in order when memory is short, read back page by page, and the moment of catching up."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from structlog.testing import capture_logs
from tests.support.dispatching import (
    DELIVERED,
    REFUSED,
    Desk,
    desk,
    dispatcher_is_consistent,
    make_call,
    make_callback,
    make_calls,
    make_delivery,
    registry_of,
)
from tests.support.store_double import StoreDouble

from toque.callbacks.health import State
from toque.sending.backlogs import WINDOW
from toque.sending.transport import Answered

SECOND = timedelta(seconds=1)


def per_call(at: Desk) -> dict[str, list[int]]:
    """The sequence numbers of each call in the order of their posts."""
    seen: dict[str, list[int]] = {}
    for attempt in at.posting.attempts:
        call, _, sequence = attempt.event.partition(".")
        seen.setdefault(call, []).append(int(sequence))
    return seen


async def test_one_callback_holds_a_window_and_the_rest_waits_in_the_store() -> None:
    async with desk() as at:
        at.offer(make_calls(3000))
        await at.rest()
        assert at.dispatcher.held() == WINDOW
        assert len(at.store.backlog_of()) == 2000
        while at.posting.open:
            await at.end_all()
        assert at.dispatcher.counters.delivered == 3000
        assert len(set(at.posting.events)) == 3000
        assert max(limit for _, _, limit in at.store.reads) <= 500
        assert at.store.fresh == {}
        assert at.store.backlog_of() == []


async def test_the_order_of_each_call_is_kept_through_memory_and_store() -> None:
    async with desk(max_held=40) as at:
        numbers = [n for n in range(1, 8) for _ in range(10)]
        at.offer(make_delivery(f"call{n % 10}", numbers[n]) for n in range(70))
        await at.rest()
        assert at.dispatcher.held() <= 40
        await at.end_all()
        assert all(sequences == list(range(1, 8)) for sequences in per_call(at).values())
        assert len(at.posting.attempts) == 70


async def test_what_is_held_of_a_call_gets_its_row_before_what_comes_after_it() -> None:
    """Or a crash would turn them round."""
    store = StoreDouble()
    async with desk(store=store, max_held=10) as at:
        at.offer([*make_calls(9), *make_call("last", 3)])
        await at.rest()
        assert store.backlog_of() == ["last.1", "last.2", "last.3"]
    async with desk(store=store) as at:
        at.dispatcher.resume(store.recover())
        await at.end_all()
        assert per_call(at)["last"] == [1, 2, 3]


async def test_all_together_hold_no_more_than_there_is_room_for() -> None:
    async with desk(*map(make_callback, range(1, 51)), max_held=200, concurrency=10) as at:
        for _ in range(4):
            at.offer(delivery for callback in range(1, 51) for delivery in make_calls(20, callback, f"c{len(at.store.state)}-"))
            await at.rest()
            assert at.dispatcher.held() <= 200
        await at.end_all()
        assert at.dispatcher.counters.delivered == 4000
        assert at.dispatcher.held() == 0


async def test_a_callback_that_held_much_goes_on_when_others_have_made_room() -> None:
    """Nothing of its own happens then: what it holds waits for its next try."""
    others = range(2, 60)
    async with desk(*map(make_callback, [1, *others]), max_held=1000) as at:
        await at.warm_up()
        at.offer(make_calls(30, prefix="refused"))
        await at.end_all(Answered(400))
        await at.pass_time(1)
        await at.end_all(Answered(400))
        for other in others:
            at.offer(make_calls(200, other, f"of{other}-"))
        await at.rest()
        assert at.dispatcher.held() == 1000
        at.offer(make_calls(3, prefix="new"))
        await at.rest()
        while open_to_others := [attempt for attempt in at.posting.open if attempt.callback != 1]:
            for attempt in open_to_others:
                attempt.ends()
            await at.rest()
        assert at.dispatcher.held() == 30
        await at.pass_time(1)
        assert at.posting.events[-3:] == ["new0.1", "new1.1", "new2.1"]


async def test_steady_traffic_does_not_keep_a_callback_behind() -> None:
    """Something new comes during every read; it lands in memory, and the callback catches up all the same."""
    async with desk() as at:
        at.store.put(make_calls(20, prefix="old"))
        at.dispatcher.resume([1])
        at.store.read_gate.clear()
        for number in range(6):
            await at.rest()
            at.offer(make_call(f"new{number}", 2))
            at.store.read_gate.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            at.store.read_gate.clear()
        at.store.read_gate.set()
        await at.rest()
        reads = len(at.store.reads)
        at.offer(make_call("fresh", 2))
        await at.end_all()
        assert len(at.store.reads) == reads
        assert at.dispatcher.counters.delivered == 34
        assert all(sequences == sorted(sequences) for sequences in per_call(at).values())


async def test_what_lands_while_its_callback_is_parked_is_left_and_counted_once() -> None:
    async with desk() as at:
        at.store.put(make_calls(8, prefix="old"))
        at.store.read_gate.clear()
        at.dispatcher.resume([1])
        await at.rest()
        at.offer([make_delivery("left")])  # while the page is read
        await at.rest()
        at.store.read_gate.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        at.store.read_gate.clear()  # and another one is asked for
        await at.rest()
        at.offer([make_delivery("landing")])
        [queue] = at.dispatcher._queues.values()
        assert [delivery.event.id for delivery in queue.landing or ()] == ["landing.1"]
        while at.dispatcher.health_of(1) is State.HEALTHY:
            await at.end(at.posting.open[0], REFUSED)
        assert queue.landing is None
        dispatcher_is_consistent(at.dispatcher)
        at.store.read_gate.set()
        await at.pass_time(10)
        for _ in range(12):
            await at.end_all()
            await at.pass_time(10)
        assert at.dispatcher.counters.delivered == 10
        assert at.dispatcher.held() == 0


async def test_what_is_left_during_the_last_page_is_read_by_another() -> None:
    async with desk() as at:
        at.store.put(make_calls(3, prefix="old"))
        at.store.read_gate.clear()
        at.dispatcher.resume([1])
        await at.rest()
        at.offer([make_delivery("new")])
        await at.rest()
        at.store.read_gate.set()
        await at.end_all()
        assert sorted(at.posting.events) == ["new.1", "old0.1", "old1.1", "old2.1"]


async def test_a_delivery_that_ends_while_a_page_is_read_is_not_sent_again() -> None:
    async with desk(max_held=20) as at:
        at.offer([*make_call("a", 2), *make_calls(30)])
        await at.rest()
        first = at.posting.open[0]
        await at.end(first, REFUSED)  # it has a row now
        at.store.read_gate.clear()
        for _ in range(30):
            for attempt in at.posting.open:
                await at.end(attempt)
            await at.pass_time(0.2)
        at.store.read_gate.set()
        await at.end_all()
        assert at.posting.events.count("a.1") == 2
        assert len(at.posting.attempts) == 33


async def test_a_restart_reads_first_pages_only() -> None:
    async with desk(*map(make_callback, range(1, 11)), max_held=2000) as at:
        for callback in range(1, 11):
            at.store.put(make_calls(2000, callback))
        at.dispatcher.resume(range(1, 11))
        await at.rest()
        assert at.dispatcher.held() <= 2000
        assert {attempt.callback for attempt in at.posting.open} == set(range(1, 11))
        at.dispatcher.apply(registry_of())
        await at.end_all()


async def test_resuming_before_the_registry_is_known_waits_for_it() -> None:
    async with desk(make_callback(1)) as at:
        at.store.put(make_calls(3, 2))
        at.dispatcher.resume([2])
        await at.rest()
        assert at.store.reads == []
        at.dispatcher.apply(registry_of(make_callback(1), make_callback(2)))
        await at.end_all()
        assert len(at.posting.of(2)) == 3


async def test_a_replay_is_read_though_the_callback_had_caught_up() -> None:
    async with desk() as at:
        at.offer(make_call("now", 1))
        at.store.put(make_calls(5, prefix="again"))
        at.dispatcher.resume([1])
        at.store.put(make_calls(5, prefix="more"))
        at.dispatcher.resume([1])
        await at.end_all()
        assert len(set(at.posting.events)) == len(at.posting.events) == 11


async def test_reading_is_tried_again_until_it_works() -> None:
    async with desk() as at:
        at.store.put(make_calls(3))
        at.store.read_failures = 3
        with capture_logs() as logs:
            at.dispatcher.resume([1])
            for _ in range(4):
                await at.rest()
                await at.pass_time(0.5)
        assert [log["event"] for log in logs] == ["backlog.read_failed"] * 3
        await at.end_all()
        assert len(at.posting.attempts) == 3


async def test_a_page_that_comes_after_the_callback_was_removed_is_of_no_use() -> None:
    async with desk() as at:
        at.store.put(make_calls(3))
        at.store.read_gate.clear()
        at.dispatcher.resume([1])
        await at.rest()
        at.dispatcher.apply(registry_of())
        at.store.read_gate.set()
        await at.rest()
        assert at.posting.attempts == []
        assert at.dispatcher.held() == 0


async def test_deliveries_of_an_earlier_run_go_when_they_are_due() -> None:
    async with desk() as at:
        first = make_delivery(sequence=1, attempts=4, due_at=at.clock() + 20 * SECOND)
        at.store.put([first, make_delivery(sequence=2)])
        at.dispatcher.resume([1])
        await at.pass_time(19)
        assert at.posting.events == []
        await at.pass_time(1)
        await at.end(at.posting.open[0], Answered(500))
        assert at.store.last.attempts == 5
        await at.pass_time(30)
        await at.end_all()
        assert at.posting.events == ["call.1", "call.1", "call.2"]


async def test_idle_queues_are_forgotten_when_there_are_many(monkeypatch: object) -> None:
    monkeypatch.setattr("toque.sending.dispatcher._QUEUES_KEPT", 10)
    async with desk(*map(make_callback, range(1, 101))) as at:
        at.dispatcher._most_queues = 10
        for callback in range(1, 101):
            at.offer([make_delivery(f"call{callback}", callback=callback)])
            await at.end_all(DELIVERED)
            assert len(at.dispatcher._queues) <= 10
