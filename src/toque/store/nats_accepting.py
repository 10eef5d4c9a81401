"""Accepting on the engine: batches are planned on the loop, as for SQLite, and each is one message at the end of the log's chain.

The message names the one before it. So if somebody else wrote meanwhile, or an answer got lost, nothing is written twice: what
is in the log is read, and what it did not bring is planned anew. Deliveries of a batch that turned out to be in the log after its
callers had been told that it failed are owed to whoever appends next, which is who tries again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import msgspec

from toque.callbacks.delivery import Delivery
from toque.callbacks.payload import PayloadWriter
from toque.calls.model import Snapshot, StatusChange
from toque.errors import IllegalStep, StoreError, ToqueError
from toque.store.contract import Appended
from toque.store.nats_batches import CHANGES_A_SEGMENT, cut, refuse, size_of, subscribers
from toque.store.nats_calls import Calls, Changes
from toque.store.nats_documents import Book
from toque.store.nats_fresh import Fresh
from toque.store.nats_link import Conflict
from toque.store.nats_log import Log, LoggedSegment
from toque.store.nats_work import pauses_until
from toque.store.sqlite_accepting import Append, Plan, Planner
from toque.store.sqlite_rows import to_us

_PATIENCE_S = 5.0  # then the caller is told; it keeps what it has and tries again
_encode = msgspec.json.Encoder().encode


class _Half(StoreError):  # noqa: N818 - a fact
    """The segment was written, the snapshots were not."""


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A batch that may or may not become durable as it was planned."""

    plan: Plan
    batch: list[Append]
    appended: list[Appended]


class Accepting:
    """The line of those who append, and the task that writes batches."""

    def __init__(
        self,
        log: Log,
        calls: Calls,
        fresh: Fresh,
        payloads: PayloadWriter,
        *,
        clock: Callable[[], datetime],
        book: Callable[[], Book],
        outcome: Callable[[], int],
        most_bytes: Callable[[], int],
        check: Callable[[], None],
    ) -> None:
        """`book` gives the registry, `outcome` the place of the last outcome, `most_bytes` how large a message may be; `check`
        raises when nothing may be written.
        """
        self._most_bytes = most_bytes
        self._log = log
        self._calls = calls
        self._fresh = fresh
        self._clock = clock
        self._book = book
        self._outcome = outcome
        self._check = check
        self._planner = Planner(payloads)
        self._planner.unwritten = calls.unwritten
        self._waiting: deque[Append] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writing_back: asyncio.Task[None] | None = None
        self._is_closing = False
        self._turn = asyncio.Lock()
        self._is_known = False  # whether the log's end is known
        self._doubts: dict[str, _Doubt] = {}  # what may come behind the log's end, under its writer's mark
        self._settled: list[Append] | None = None  # the batch that turned out to be in the log
        self._owed_events = 0
        self._owed: list[Delivery] = []

    async def close(self) -> None:
        """Finish what was begun."""
        self._is_closing = True
        for task in (self._task, self._writing_back):
            if task is not None:
                await asyncio.wait([task])

    # Taking in

    async def append(self, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot]) -> Appended:
        """See `Store.append`."""
        done = Appended()
        try:
            for part, states in cut(changes, snapshots):
                appended = await self._queued(part, states)
                done = Appended(done.events + appended.events, [*done.deliveries, *appended.deliveries])
        except StoreError:
            self._owe(done)
            raise
        owed, events = self._owed, self._owed_events
        self._owed, self._owed_events = [], 0
        return Appended(done.events + events, [*owed, *done.deliveries]) if events else done

    def _queued(self, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot]) -> asyncio.Future[Appended]:
        loop = asyncio.get_running_loop()
        append = Append(changes, snapshots, loop)
        self._waiting.append(append)
        if self._task is None:
            self._task = loop.create_task(self._accept_all(), name="toque-accepting")
        return append.future

    async def _accept_all(self) -> None:
        """Write batches until nobody waits."""
        try:
            while self._waiting:
                async with self._turn:
                    await self._accept(self._next_batch())
                    if self._calls.is_due:
                        self._begin_writing_back()
        finally:
            self._task = None

    def _next_batch(self) -> list[Append]:
        """Those that wait the longest, as many as make a segment."""
        batch = [self._waiting.popleft()]
        size = size_of(batch[0])
        while self._waiting and size + size_of(self._waiting[0]) <= CHANGES_A_SEGMENT:
            size += size_of(self._waiting[0])
            batch.append(self._waiting.popleft())
        return batch

    async def _accept(self, batch: list[Append]) -> None:
        """Write a batch and tell who waits for it. A mistake is its maker's alone."""
        try:
            await self._written(batch)
        except IllegalStep as error:
            if len(batch) == 1:
                refuse(batch, error)
            for append in batch if len(batch) > 1 else []:
                await self._accept([append])
        except Exception as error:  # noqa: BLE001 - the task goes on, and whoever waits is told
            refuse(batch, error)
        else:
            for append in batch:
                if not append.future.done():  # the caller may have been cancelled
                    append.future.set_result(append.appended)

    # Writing

    async def _written(self, batch: list[Append]) -> None:
        """Plan and write a batch, again while others come first or nobody answers."""
        pauses = pauses_until(_PATIENCE_S)
        while True:
            self._check()
            try:
                await self._know_end()
                if self._settled is batch or await self._try(batch):
                    return
            except StoreError:
                pause_s = next(pauses, None)
                if pause_s is None or self._is_closing:
                    raise
                await asyncio.sleep(pause_s)

    async def know_end(self) -> None:
        """See to it that the log's end is known. Raises `StoreError`."""
        if not self._is_known:
            async with self._turn:
                await self._know_end()

    async def _know_end(self) -> None:
        """The same, and find out whether what was in doubt is there."""
        if not self._is_known:
            await self._calls.open()
            self._planner.held.clear()
            self._is_known = True
            self._fresh.found(self._log.tail)
        elif self._doubts:
            await self._read_on()

    async def _read_on(self) -> None:
        """Go by what was written behind the end that was known. What was in doubt and is not there can come no more."""
        found = await self._log.catch_up()
        doubts = self._doubts
        if found:
            self._doubts = {}
        for segment in found:
            doubt = doubts.get(segment.nonce)
            if doubt is None:
                self._planner.held.clear()
                self._calls.note(segment.call_rows(), ())
            else:
                self._settle_doubt(doubt)

    def _settle_doubt(self, doubt: _Doubt) -> None:
        """What was in doubt is durable."""
        self._settled = doubt.batch
        self._done(doubt.plan)
        if doubt.plan.segment.fresh:
            self._fresh.add(doubt.plan.segment)
        for append, appended in zip(doubt.batch, doubt.appended, strict=True):
            append.appended = appended
            if append.future.done() and not append.future.cancelled():
                self._owe(appended)

    def _owe(self, appended: Appended) -> None:
        self._owed_events += appended.events
        self._owed += appended.deliveries

    async def _try(self, batch: list[Append]) -> bool:
        """Write a batch, unless another was quicker; whether it is durable. Raises `StoreError` when that is in doubt."""
        plan = await self._planned(batch)
        segment = self._segment(plan)
        if segment is None:
            return True
        if plan.segment.fresh:
            self._fresh.add(plan.segment)
        try:
            await self._put(segment, plan)
        except Conflict:
            self._undo(plan)
            await self._read_on()
            return self._settled is batch
        except _Half:  # the events are durable, so they are owed; the snapshots are to be written yet, by whoever tries again
            self._doubts = {}
            self._calls.note(plan.calls, ())
            for append in batch:
                self._owe(append.appended)
            raise
        except StoreError:
            self._undo(plan)
            if plan.events or plan.calls:
                self._doubts[segment.nonce] = _Doubt(plan, batch, [append.appended for append in batch])
            raise
        except BaseException:
            self._undo(plan)
            raise
        self._doubts = {}
        self._done(plan)
        return True

    def _undo(self, plan: Plan) -> None:
        self._planner.held.clear()
        self._fresh.forget(plan.first_seq)

    async def _put(self, segment: LoggedSegment, plan: Plan) -> None:
        """Segment and snapshots, at once where there are both."""
        snapshots = list(plan.snapshots.values())
        if not plan.events and not plan.calls:
            await self._calls.put_snapshots("", snapshots)
        elif not snapshots:
            await self._log.append(segment)
        else:
            both: list[Awaitable[None]] = [self._log.append(segment), self._calls.put_snapshots(segment.nonce, snapshots)]
            first, second = await asyncio.gather(*both, return_exceptions=True)
            if first is not None:
                raise first
            if second is not None:
                raise _Half from second

    def _done(self, plan: Plan) -> None:
        self._calls.note(plan.calls, plan.snapshots.values())

    async def _planned(self, batch: list[Append]) -> Plan:
        planner = self._planner
        book = self._book()
        if planner.subscribers.version != str(book.version):
            planner.subscribers = subscribers(book)
        try:
            if strangers := planner.strangers(batch, is_doubted=True):
                planner.hold(await self._calls.find(strangers))
            return planner.plan(batch, self._log.tail.last_seq + 1, self._fresh.open_from(self._log.tail.last_seq), self._clock())
        except ToqueError:
            raise
        except Exception as error:
            planner.held.clear()
            raise IllegalStep(f"{type(error).__name__}: {error}") from error

    def _segment(self, plan: Plan) -> LoggedSegment | None:
        """What a plan comes to; None when there is nothing to write."""
        if not plan.events and not plan.calls and not plan.snapshots:
            return None
        try:
            calls, events = _encode(plan.calls), _encode(plan.events)
        except Exception as error:
            self._planner.held.clear()
            raise IllegalStep(f"{type(error).__name__}: {error}") from error
        if len(calls) + len(events) > self._most_bytes():
            self._planner.held.clear()
            raise IllegalStep("one caller's changes are larger than the engine's max_payload")
        last_seq = plan.first_seq + len(plan.events) - 1
        open_from = min(plan.open_from, plan.first_seq)
        return LoggedSegment(
            0, plan.first_seq, last_seq, plan.accepted_at, open_from, self._outcome(), secrets.token_hex(8), calls, events
        )

    # Upkeep

    async def extend(self) -> None:
        """Write a segment with nothing in it, so that the one before it may go: the chain's last message must stay."""
        async with self._turn:
            await self._know_end()
            tail, now = self._log.tail, to_us(self._clock())
            open_from = self._fresh.open_from(tail.last_seq)
            with suppress(Conflict):  # then somebody else has
                await self._log.append(
                    LoggedSegment(
                        0, tail.last_seq + 1, tail.last_seq, now, open_from, self._outcome(), secrets.token_hex(8), b"[]", b"[]"
                    )
                )

    async def write_back(self) -> None:
        """Have everything written into the table of calls that is not there."""
        async with self._turn:
            await self._know_end()
            self._begin_writing_back()
        if self._writing_back is not None:
            await asyncio.wait([self._writing_back])

    def _begin_writing_back(self) -> None:
        """Between two batches: what is in the log by now goes into the table, while others are accepted."""
        if self._writing_back is None and self._calls.has_changed:
            self._writing_back = asyncio.create_task(self._write_back(self._calls.changes()), name="toque-write-back")

    async def _write_back(self, changes: Changes) -> None:
        try:
            await self._calls.write_back(changes)
        except StoreError:
            return  # it is in the log, and the next batch brings it here again
        finally:
            self._writing_back = None
