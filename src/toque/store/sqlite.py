"""The embedded store: SQLite in WAL mode with full synchronisation, one writer thread, group commit.

Every write is a job for the writer (`sqlite_writer`). Reads have a connection and a thread of their own. What is accepted and
settled is thought about on the event loop, a batch at a time, and written as few large rows (`sqlite_accepting`,
`sqlite_segments`, `sqlite_backlog`).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from toque.callbacks.callback import Client, IntakeCredential, KeptHealth, Registered, Registry, TooMany
from toque.callbacks.delivery import Delivery, Settlement, sorted_out
from toque.callbacks.payload import PayloadWriter
from toque.calls.lines import Line
from toque.calls.model import CallIdentity, Snapshot, StatusChange
from toque.errors import IllegalStep, InputError, SettingsError, StoreError
from toque.store import sqlite_backlog as backlog
from toque.store import sqlite_calls as calls
from toque.store import sqlite_file as file
from toque.store import sqlite_history as history
from toque.store import sqlite_registry as accounts
from toque.store import sqlite_replays as replays
from toque.store import sqlite_segments as segments
from toque.store.contract import Appended, DeadDelivery, PastEvent, Removal, Replay
from toque.store.migrations import MIGRATIONS
from toque.store.sealing import Sealer, WrongKey
from toque.store.sqlite_accepting import Append, Plan, Planner, RegistryChanged, Subscribers
from toque.store.sqlite_backlog import Backlog, Settling
from toque.store.sqlite_calls import Unwritten
from toque.store.sqlite_rows import to_us
from toque.store.sqlite_segments import Segment
from toque.store.sqlite_upkeep import Upkeep
from toque.store.sqlite_writer import Job, Stale, Writer, roll_back, translated

T = TypeVar("T")

_BUSY_TIMEOUT_S = 10.0  # how long a command waits for the server's transaction, or the server for a command's
_CHANGES_A_SEGMENT = 1_000  # unless one caller brings more at once: the loop does nothing else while a batch is planned
_CACHE_KIB = 65_536  # the writer's: it holds the pages of some hundred thousand calls
_LOG_KEPT_BYTES = 64 * 2**20  # what one long reader let the log grow to is given back, down to this
_WRITE_BACK_PAUSE = timedelta(minutes=10)
_LOG_PAGES = 4_000  # of 4 KiB: pages that change often are written back once in so many


def utc_now() -> datetime:
    """Our clock."""
    return datetime.now(UTC)


class SqliteStore:
    """See `toque.store.contract.Store`."""

    def __init__(
        self, path: Path, payloads: PayloadWriter, *, secret_key: str | None = None, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self.path = path
        self._clock = clock
        self._sealer = Sealer(secret_key)
        self._lock: int | None = None
        self._is_closed = False
        self._closing = threading.Lock()
        # Of events, on the loop
        self._planner = Planner(payloads)
        self._waiting: deque[Append] = deque()
        self._accepting: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._is_writing_back = False
        self._written_back_at: datetime | None = None
        self._last_seq: int | None = None  # that is durable; None: to be read
        self._open: dict[int, Segment] = {}  # the segments that have fresh deliveries, the oldest first
        self._unrecovered: int | None = 0  # from which event on an earlier process left some; None: nothing is left of it
        # On the writer's thread
        self._backlog = Backlog()
        file.create_private(path)
        connection = file.connect(path, _BUSY_TIMEOUT_S)
        try:
            self._prepare(connection)
            self._reader = file.connect(path, _BUSY_TIMEOUT_S)
        except BaseException:
            connection.close()
            raise
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_KEPT_BYTES}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        self._reader.execute("PRAGMA query_only = ON")
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="toque-reader")
        self._writer = Writer(connection, self._backlog.forget)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Bring schema and secrets up to date."""
        try:
            with file.opening(connection, self.path):
                is_migrated = file.migrate(connection, self.path, MIGRATIONS)
                is_resealed = accounts.reseal(connection, self._sealer)
                if is_migrated or is_resealed:  # a server that runs knows neither the other schema nor the other key
                    with file.alone(self.path, "secret_key" if is_resealed else "store"):
                        connection.execute("COMMIT")
                else:
                    connection.execute("COMMIT")
                if is_resealed:  # what was plain text must not stay behind in the log
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except WrongKey:
            problem = "the store's secrets were encrypted under another key, or TOQUE_SECRET_KEY is missing"
            raise SettingsError("secret_key", str(self.path), problem) from None

    def lock(self) -> None:
        """Claim the events for one server. Raises `SettingsError` when another has them."""
        handle = file.claimed(self.path)
        if handle is None:
            problem = f"another toque server uses {self.path}; give each server a store of its own"
            raise file.unusable(self.path, problem)
        self._lock = handle

    async def close(self) -> None:
        """Finish what was begun and let go of the file."""
        self._is_closed = True
        if self._accepting is not None:
            await asyncio.wait([self._accepting])
        self._writer.end()
        await asyncio.to_thread(self._let_go)

    def _let_go(self) -> None:
        with self._closing:
            self._writer.join()
            self._readers.shutdown()
            self._reader.close()
            self._writer.connection.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    async def ping(self) -> None:
        """See `Store.ping`."""
        moment = str(self._clock())
        await self._write(lambda c: c.execute("UPDATE meta SET value = ? WHERE name = 'ping'", (moment,)).rowcount)

    # Registry

    async def registry_version(self) -> int:
        """See `Store.registry_version`."""
        return await self._read(accounts.version)

    async def registry(self) -> Registry:
        """See `Store.registry`."""
        return await self._read(lambda c: accounts.registry(c, self._sealer, self._clock()))

    async def token_key(self) -> bytes:
        """See `Store.token_key`."""
        return await self._write(lambda c: accounts.token_key(c, self._sealer))

    async def add_client(self, client: Client) -> None:
        """See `Store.add_client`."""
        await self._write(lambda c: accounts.add_client(c, client))

    async def rotate_client(self, client_id: str, secret_hash: str) -> bool:
        """See `Store.rotate_client`."""
        return await self._write(lambda c: accounts.rotate_client(c, client_id, secret_hash))

    async def disable_client(self, client_id: str, at: datetime | None) -> bool:
        """See `Store.disable_client`."""
        return await self._write(lambda c: accounts.disable_client(c, client_id, at))

    async def remove_client(self, client_id: str) -> bool:
        """See `Store.remove_client`. Its events are erased by `housekeep`."""
        return await self._write(lambda c: accounts.remove_client(c, client_id))

    async def add_lines(self, lines: Sequence[Line]) -> int:
        """See `Store.add_lines`."""
        return await self._write(lambda c: accounts.add_lines(c, lines))

    async def remove_lines(self, client_id: str, pin: str, numbers: Sequence[Line] | None) -> int:
        """See `Store.remove_lines`."""
        return await self._write(lambda c: accounts.remove_lines(c, client_id, pin, numbers))

    async def register_callback(
        self, client_id: str, url: str, credentials: str | None, pin: str | None, *, limit: int
    ) -> Registered | TooMany:
        """See `Store.register_callback`."""
        registration = (client_id, url, credentials, pin)
        return await self._write(lambda c: accounts.register_callback(c, self._sealer, self._clock(), registration, limit))

    async def remove_callback(self, client_id: str, code: str) -> Removal:
        """See `Store.remove_callback`."""
        return await self._write(lambda c: accounts.remove_callback(c, client_id, code, self._clock()))

    async def disable_callback(self, callback_id: int, reason: str) -> int:
        """See `Store.disable_callback`."""

        def work(connection: sqlite3.Connection) -> int:
            accounts.disable_callback(connection, callback_id, reason, self._clock())
            return accounts.version(connection)

        return await self._write(work)

    async def enable_callback(self, code: str) -> bool:
        """See `Store.enable_callback`."""
        return await self._write(lambda c: accounts.enable_callback(c, code))

    async def keep_health(self, callback_id: int, health: KeptHealth) -> None:
        """See `Store.keep_health`."""
        await self._write(lambda c: accounts.keep_health(c, callback_id, health))

    async def rotate_callback(self, code: str, *, keep_old_for: timedelta) -> str | None:
        """See `Store.rotate_callback`."""
        return await self._write(lambda c: accounts.rotate_callback(c, self._sealer, code, self._clock(), keep_old_for))

    async def add_intake(self, credential: IntakeCredential) -> None:
        """See `Store.add_intake`."""
        await self._write(lambda c: accounts.add_intake(c, credential))

    async def rotate_intake(self, name: str, token_hash: str) -> bool:
        """See `Store.rotate_intake`."""
        return await self._write(lambda c: accounts.rotate_intake(c, name, token_hash))

    async def remove_intake(self, name: str) -> bool:
        """See `Store.remove_intake`."""
        return await self._write(lambda c: accounts.remove_intake(c, name))

    # Accepting

    async def append(self, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot]) -> Appended:
        """See `Store.append`. What comes while a batch is being written is the next batch."""
        if not changes and not snapshots:
            return Appended()
        self._check_open()
        return await self._queued(changes, snapshots)

    def _queued(self, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot]) -> asyncio.Future[Appended]:
        """Nobody's frame knows the future that it waits for: an error from it would know the frame, and so itself (`Writer`)."""
        loop = asyncio.get_running_loop()
        append = Append(changes, snapshots, loop)
        self._waiting.append(append)
        if self._accepting is None:
            self._accepting = loop.create_task(self._accept_all(), name="toque-accepting")
        return append.future

    async def _accept_all(self) -> None:
        """Write batches until nobody waits."""
        try:
            while self._waiting:
                async with self._turn:
                    await self._accept(self._next_batch())
                    self._write_back()
        finally:
            self._accepting = None

    def _next_batch(self) -> list[Append]:
        """Those that wait the longest, as many as make a segment."""
        batch, size = [], 0
        while self._waiting and size < _CHANGES_A_SEGMENT:
            append = self._waiting.popleft()
            size += len(append.changes) + len(append.snapshots)
            batch.append(append)
        return batch

    async def _accept(self, batch: list[Append]) -> None:
        """Write a batch and tell who waits for it. A mistake is its maker's alone."""
        try:
            plan = await self._written(batch)
        except IllegalStep as error:
            if len(batch) == 1:
                _refuse(batch, error)
            for append in batch if len(batch) > 1 else []:
                await self._accept([append])
        except Exception as error:  # noqa: BLE001 - the task goes on, and whoever waits is told
            _refuse(batch, error)
        else:
            self._last_seq = plan.first_seq + len(plan.events) - 1
            self._planner.note(plan)
            for append in batch:
                if not append.future.done():  # the caller may have been cancelled
                    append.future.set_result(append.appended)

    async def _written(self, batch: list[Append]) -> Plan:
        """Plan and write a batch, again where the plan was wrong. After any fault nothing is left of it in memory."""
        is_doubted = False
        while True:
            first_seq = await self._next_seq()
            try:
                if strangers := self._planner.strangers(batch, is_doubted=is_doubted):
                    self._planner.hold(await self._reading(partial(self._planner.find, identities=strangers)))
                plan = self._planner.plan(batch, first_seq, self._open_from(), self._clock())
                if plan.segment.fresh:
                    self._open[first_seq] = plan.segment
                await self._submit(plan.write)
            except Exception as error:  # noqa: BLE001 - whatever it was, it is not durable
                self._planner.held.clear()
                self._open.pop(first_seq, None)
                self._last_seq = None
                if not isinstance(error, Stale):
                    raise translated(error) from None
                if isinstance(error, RegistryChanged):
                    self._planner.subscribers = await self._reading(Subscribers.read)
                is_doubted = True
            else:
                return plan

    async def _next_seq(self) -> int:
        """The seq of the next event. Also finds out whether an earlier process left something unsettled."""
        if self._last_seq is None:
            last_seq, durable, unwritten = await self._reading(_found_in_log)
            if self._last_seq is None:  # and nobody else has found it out meanwhile
                self._last_seq = last_seq
                self._planner.unwritten = unwritten
            if self._unrecovered == 0:
                self._unrecovered = max(durable, 1) if durable <= last_seq and last_seq else None
        return self._last_seq + 1

    def _write_back(self, *, is_forced: bool = False) -> asyncio.Future[Any] | None:
        """Have some calls written that are in the log only; in the next commit, and nobody waits for it.

        Only between two batches, so that no row is overtaken by an older one.
        """
        unwritten = self._planner.unwritten
        part = None if self._is_writing_back or self._last_seq is None else unwritten.due(self._last_seq + 1, is_forced=is_forced)
        if part is None:
            return None

        def done(future: asyncio.Future[Any]) -> None:
            self._is_writing_back = False
            if not future.cancelled() and future.exception() is None:
                unwritten.written(part)

        self._is_writing_back = True
        job = Job(part.write, asyncio.get_running_loop())
        job.future.add_done_callback(done)
        return self._writer.put(job)

    def _open_from(self) -> int:
        """Before which event none is without an outcome, as far as that is durable."""
        oldest = next(iter(self._open), (self._last_seq or 0) + 1)
        return oldest if self._unrecovered is None else min(oldest, self._unrecovered)

    async def open_calls(self) -> list[tuple[CallIdentity, bytes]]:
        """See `Store.open_calls`."""
        return await self._read(calls.open_calls)

    # Deliveries

    async def settle(self, delivered: Sequence[Delivery], others: Sequence[Settlement] = ()) -> None:
        """See `Store.settle`. One delivery is settled by one call at a time."""
        if not delivered and not others:
            return
        self._check_open()
        await self._next_seq()
        if others:
            delivered, others = sorted_out(delivered, others)
        settling = Settling(delivered, others, self._open_from(), to_us(self._clock()))

        def noted(rows: dict[int, int]) -> None:
            self._note(delivered, others, rows)

        await self._submit(lambda c: self._backlog.settle(c, settling), noted)

    def _note(self, delivered: Sequence[Delivery], others: Sequence[Settlement], rows: dict[int, int]) -> None:
        """It is durable: these deliveries are no longer fresh, and some have got rows."""
        for place, row in rows.items():
            others[place].delivery.row = row
        for delivery in delivered:
            segment = delivery.receipt
            if segment is not None:
                delivery.receipt = None
                segment.fresh -= 1
                if not segment.fresh:
                    self._open.pop(segment.first_seq, None)
        if others:
            self._note([other.delivery for other in others], (), {})

    async def recover(self) -> list[int]:
        """See `Store.recover`."""
        if self._open:
            msg = "what this process has accepted is not to be recovered"
            raise IllegalStep(msg)
        found = await self._write(lambda c: self._backlog.recover(c, self._clock()))
        self._unrecovered = self._last_seq = None
        await self._next_seq()
        return found

    async def backlog(self, callback_id: int, *, after: int = 0, limit: int = 500) -> list[Delivery]:
        """See `Store.backlog`."""
        return await self._read(lambda c: backlog.page(c, callback_id, after, limit))

    async def backlog_sizes(self) -> dict[int, int]:
        """See `Store.backlog_sizes`."""
        return await self._read(backlog.sizes)

    # Again

    async def dead(self, callback_id: int, *, after: int = 0, limit: int = 500) -> list[DeadDelivery]:
        """See `Store.dead`."""
        return await self._read(lambda c: backlog.dead(c, callback_id, after, limit))

    async def add_replay(self, replay: Replay) -> Replay:
        """See `Store.add_replay`."""
        search: replays.Search | None = None
        if replay.event_id is not None or replay.callerid is not None:
            search = await self._found(replay)
        return await self._write(lambda c: replays.add(c, replay, search, self._clock()))

    async def _found(self, replay: Replay) -> replays.Search:
        """Where what a replay names lies. Others read between the stretches of the search."""
        search = await self._read(lambda c: replays.Search.begun(c, replay, self._planner.unwritten))
        while not await self._read(search.go_on):
            pass
        if not search.last and not (replay.is_for_dead and await self._read(search.among_dead)):
            what = f"event {replay.event_id}" if replay.event_id is not None else f"call {replay.callerid}"
            raise InputError(f"this callback's client has no {what}")
        return search

    async def replays(self) -> list[Replay]:
        """See `Store.replays`."""
        return await self._read(replays.all_of_them)

    async def cancel_replay(self, replay_id: int) -> bool:
        """See `Store.cancel_replay`."""
        return await self._write(lambda c: replays.cancel(c, replay_id, self._clock()))

    async def requeue(self, replay_id: int, limit: int) -> Replay | None:
        """See `Store.requeue`."""
        return await self._write(lambda c: replays.requeue(c, self._backlog, replay_id, limit, self._clock()))

    # For people

    async def events_of(self, callerid: str) -> list[PastEvent]:
        """See `Archive.events_of`."""
        return await self._past(history.History(callerid=callerid))

    async def events_with(self, numbers: Sequence[str], *, since: datetime, most_calls: int = 10) -> list[PastEvent]:
        """See `Archive.events_with`."""
        return await self._past(history.History(numbers=numbers, since_us=to_us(since), most_calls=most_calls))

    async def _past(self, search: history.History) -> list[PastEvent]:
        """Others read between the stretches of the search."""
        unwritten = await self._read(Unwritten.read) if search.callerid is not None else Unwritten()
        await self._read(lambda c: search.begin(c, unwritten))
        while not await self._read(search.go_on):
            pass
        return await self._read(search.events)

    async def callerid_of(self, identity: CallIdentity) -> str:
        """See `Archive.callerid_of`."""
        return await self._read(lambda c: history.callerid_of(c, identity))

    async def dead_sizes(self) -> dict[int, int]:
        """See `Archive.dead_sizes`."""
        return await self._read(history.dead_sizes)

    async def last_accepted_at(self) -> datetime | None:
        """See `Archive.last_accepted_at`."""
        return await self._read(history.last_accepted_at)

    # Upkeep

    async def housekeep(self, *, keep: timedelta) -> bool:
        """See `Store.housekeep`."""
        now = self._clock()
        await self._write_back_now_and_then(now)
        needed_from = min(self._open_from(), self._planner.unwritten.since)
        return await self._write(Upkeep(now, keep, needed_from).step)

    async def _write_back_now_and_then(self, now: datetime) -> None:
        """Have the calls written that are in the log only, lest it be needed for ever where there is little to do.

        It is several commits, and others' come between them.
        """
        await self._next_seq()
        if self._written_back_at is not None and abs(now - self._written_back_at) < _WRITE_BACK_PAUSE:
            return
        while True:
            async with self._turn:
                future = self._write_back(is_forced=True)
            if future is None:
                return
            await future
            if not self._planner.unwritten.is_under_way:
                self._written_back_at = now
                return

    # Threads

    def _check_open(self) -> None:
        if self._is_closed:
            raise _closed()

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        return await self._submit(work)

    async def _submit(self, work: Callable[[sqlite3.Connection], T], and_then: Callable[[T], None] | None = None) -> T:
        result: T = await self._writer.put(Job(work, asyncio.get_running_loop(), and_then))
        return result

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        return await self._reading(work)

    async def _reading(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._begun(work)

    def _begun(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        try:
            return asyncio.get_running_loop().run_in_executor(self._readers, self._in_snapshot, work)
        except RuntimeError:  # the readers' thread has ended: the store was closed since it was last looked
            raise _closed() from None

    def _in_snapshot(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """All that a job reads is of one moment."""
        try:
            self._reader.execute("BEGIN")
            return work(self._reader)
        except Exception as error:  # noqa: BLE001 - translated once, here
            raise translated(error) from None
        finally:
            roll_back(self._reader)


def _closed() -> StoreError:
    return StoreError("the store is closed")


def _found_in_log(connection: sqlite3.Connection) -> tuple[int, int, Unwritten]:
    """The last event, before which one none is unsettled, and what of calls is nowhere else."""
    return segments.last_seq(connection), segments.open_from(connection), Unwritten.read(connection)


def _refuse(batch: Sequence[Append], error: Exception) -> None:
    """Tell everyone, each with an error of his own."""
    for append in batch:
        told: Any = type(error)(*error.args)
        told.__cause__ = error.__cause__
        if not append.future.done():
            append.future.set_exception(told)
