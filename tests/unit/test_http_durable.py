"""Whoever posts waits until the intake's store has what he said, hears when it has not, and what of it was no news."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, cast

import pytest
from tests.support.clock import START, ManualClock

from toque.calls.http_watch import HttpWatch
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import Snapshot, Status, StatusChange
from toque.errors import IllegalStep, StoreError
from toque.intake import Intake
from toque.store.contract import Appended, Store

LINES = LineBook.of([parse_line("acme", "vendas", "1001")])


class Disk:
    """Takes changes while its gate is open; raises what it is told to, once for each."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.errors: list[Exception] = []
        self.taken: list[StatusChange] = []
        self.tells = True

    async def append(self, changes: Sequence[StatusChange], _: Sequence[Snapshot]) -> Appended:
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        known = {(change.identity, change.status) for change in self.taken}
        left_out = [change for change in changes if (change.identity, change.status) in known]
        self.taken += [change for change in changes if change not in left_out]
        return Appended(len(changes) - len(left_out), [], left_out if self.tells else ())


class Desk:
    """An intake at work with one poster."""

    def __init__(self) -> None:
        self.disk, self.clock = Disk(), ManualClock()
        self.intake = Intake(cast("Store", self.disk), lambda _: None, clock=self.clock, sleep=lambda _: asyncio.sleep(0))
        self.watch = HttpWatch("http:dialer", LINES)
        self.intake.add(self.watch)

    def say(self, call: str, status: str) -> asyncio.Task[Any]:
        """Take one item in and wait for the store, as a request does."""
        (item,) = self.watch.read(b'{"call": "%s", "status": "%s", "from": 1001}' % (call.encode(), status.encode()), START)
        self.watch.take_in(item, START)
        return asyncio.create_task(self.intake.durable())


@asynccontextmanager
async def at_work() -> AsyncIterator[Desk]:
    desk = Desk()
    task = asyncio.create_task(desk.intake.run())
    try:
        yield desk
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_it_waits_for_the_store() -> None:
    async with at_work() as desk:
        desk.disk.gate.clear()
        one = desk.say("c1", "initiated")
        await asyncio.sleep(0)
        other = desk.say("c2", "initiated")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not one.done()
        assert not other.done()
        desk.disk.gate.set()
        assert await one == await other == frozenset()
        assert len(desk.disk.taken) == 2


async def test_where_nothing_waits_it_is_over_at_once() -> None:
    async with at_work() as desk:
        assert await desk.intake.durable() == frozenset()


async def test_a_store_that_fails_is_told_and_shuts_the_door_until_it_works_again() -> None:
    async with at_work() as desk:
        desk.disk.errors = [StoreError("the disk is full")]
        assert desk.intake.can_take()
        with pytest.raises(StoreError, match="full"):
            await desk.say("c1", "initiated")
        assert not desk.intake.can_take()
        await desk.intake.durable()
        assert desk.intake.can_take()
        assert [change.status for change in desk.disk.taken] == [Status.INITIATED]


async def test_what_can_never_be_stored_is_not_acknowledged() -> None:
    async with at_work() as desk:
        desk.disk.errors = [IllegalStep("a bug"), IllegalStep("a bug")]
        with pytest.raises(IllegalStep):
            await desk.say("c1", "initiated")
        assert await desk.say("c2", "initiated") == frozenset()


async def test_what_could_not_be_stored_can_be_said_again() -> None:
    async with at_work() as desk:
        desk.disk.errors = [IllegalStep("a bug"), IllegalStep("a bug")]
        with pytest.raises(IllegalStep):
            await desk.say("c1", "initiated")
        assert await desk.say("c1", "initiated") == frozenset()
        assert [(change.identity.key, change.status) for change in desk.disk.taken] == [("c1", Status.INITIATED)]


async def test_who_repeats_what_is_being_lost_is_not_told_that_it_is_known() -> None:
    async with at_work() as desk:
        desk.disk.errors = [IllegalStep("a bug"), IllegalStep("a bug")]
        desk.disk.gate.clear()
        first = desk.say("c1", "initiated")
        for _ in range(20):
            await asyncio.sleep(0)
        second, other = desk.say("c1", "initiated"), desk.say("c2", "initiated")
        await asyncio.sleep(0)
        desk.disk.gate.set()
        for request in (first, second, other):
            with pytest.raises(IllegalStep):
                await request
        assert await desk.say("c1", "initiated") == frozenset()
        assert await desk.say("c2", "initiated") == frozenset()
        assert [change.identity.key for change in desk.disk.taken] == ["c2", "c1"]


@pytest.mark.parametrize("tells", [True, False])
async def test_it_tells_what_was_no_news(tells: bool) -> None:
    async with at_work() as desk:
        desk.disk.tells = tells
        await desk.say("c1", "busy")
        desk.watch.tracker.calls.clear()  # the store remembers longer
        ((identity, status),) = await desk.say("c1", "busy")
        assert (identity.key, status) == ("c1", Status.BUSY)


async def test_a_request_that_is_gone_harms_nobody() -> None:
    async with at_work() as desk:
        desk.disk.gate.clear()
        one, other = desk.say("c1", "initiated"), desk.say("c2", "initiated")
        await asyncio.sleep(0)
        one.cancel()
        desk.disk.gate.set()
        assert await other == frozenset()


async def test_after_the_end_nobody_waits_in_vain() -> None:
    async with at_work() as desk:
        waiting = desk.say("c1", "initiated")
        await asyncio.sleep(0)
        assert await desk.intake.stop(timedelta(seconds=30))
        assert await waiting == frozenset()
        assert not desk.intake.can_take()
        with pytest.raises(StoreError, match="stopped"):
            await desk.intake.durable()
