"""The embedded store: SQLite in WAL mode with full synchronisation, one writer thread, group commit.

Every write is a job for the writer thread. It takes all jobs that wait, runs them in one transaction, each behind a savepoint
of its own, commits once, and only then tells the callers. Reads have a connection of their own.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from toque.callbacks.callback import Client, Registered, Registry, TooMany
from toque.callbacks.delivery import Delivery, Settlement
from toque.callbacks.payload import PayloadWriter
from toque.calls.lines import Line
from toque.calls.model import CallIdentity, Snapshot, StatusChange
from toque.errors import IllegalStep, SettingsError, StoreError, ToqueError
from toque.store import sqlite_events as ledger
from toque.store import sqlite_registry as accounts
from toque.store.contract import Appended, Removal
from toque.store.migrations import MIGRATIONS
from toque.store.sealing import Sealer, WrongKey

T = TypeVar("T")

_BUSY_TIMEOUT_S = 10.0  # how long a command waits for the server's transaction, or the server for a command's
_JOBS_A_COMMIT = 256
_EVENTS_A_STEP = 1_000  # of a removed client: each step is a commit, and others' commits come between
_CACHE_KIB = 65_536  # the writer's: it holds the index of calls' names for some hundred thousand calls
_LOG_KEPT_BYTES = 64 * 2**20  # what one long reader let the log grow to is given back, down to this
_FILE_MODE = 0o600
_APPLICATION_ID = 0x746F7175  # "toqu": what kind of SQLite file this is
_OUR_FAULT = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError)
# Codes that mean: this file is not, or can never be, the store. Others may pass.
_UNUSABLE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY})


def utc_now() -> datetime:
    """Our clock."""
    return datetime.now(UTC)


class _Job:
    """Something to do on the writer's connection, and whom to tell."""

    __slots__ = ("error", "future", "loop", "result", "work")

    def __init__(self, work: Callable[[sqlite3.Connection], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.result: Any = None
        self.error: Exception | None = None

    def resolve(self) -> None:
        """Tell the caller; runs on its loop."""
        if self.future.done():  # the caller was cancelled
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class SqliteStore:
    """See `toque.store.contract.Store`."""

    def __init__(
        self, path: Path, payloads: PayloadWriter, *, secret_key: str | None = None, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self.path = path
        self._clock = clock
        self._sealer = Sealer(secret_key)
        self._ledger = ledger.EventLedger(payloads)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock: int | None = None
        self._is_closed = False
        self._closing = threading.Lock()
        _create_private(path)
        self._writer = _connect(path)
        try:
            self._prepare()
            self._reader = _connect(path)
        except BaseException:
            self._writer.close()
            raise
        self._writer.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._writer.execute(f"PRAGMA journal_size_limit = {_LOG_KEPT_BYTES}")
        self._reader.execute("PRAGMA query_only = ON")
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="toque-reader")
        self._thread = threading.Thread(target=self._run_writer, name="toque-writer", daemon=True)
        self._thread.start()

    def lock(self) -> None:
        """Claim the store for one server. Raises `SettingsError` when another has it."""
        handle = self._claimed()
        if handle is None:
            raise _unusable(self.path, f"another toque server uses {self.path}; give each server a store of its own")
        self._lock = handle

    def _claimed(self) -> int | None:
        """The descriptor that holds the server's place at this store; None when a server has it."""
        real = self.path.resolve()
        try:
            handle = os.open(real.with_name(real.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        except OSError as error:
            raise _unusable(self.path, f"{real}.lock cannot be opened for writing: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return None
        return handle

    @contextmanager
    def _alone(self, option: str) -> Iterator[None]:
        """Keep servers away while the store is changed in a way that a running one would not understand."""
        handle = self._claimed()
        if handle is None:
            reason = "has no such key" if option == "secret_key" else "is of another version"
            raise SettingsError(option, str(self.path), f"a running toque server uses {self.path} and {reason}; stop it first")
        try:
            yield
        finally:
            os.close(handle)

    async def close(self) -> None:
        """Finish the waiting jobs and let go of the file."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._let_go)

    def _let_go(self) -> None:
        with self._closing:
            self._thread.join()
            self._readers.shutdown()
            self._reader.close()
            self._writer.close()
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
        """See `Store.remove_client`."""
        is_known = await self._write(lambda c: accounts.remove_client(c, client_id))
        while await self._write(lambda c: ledger.drop_events(c, client_id, _EVENTS_A_STEP)):
            pass
        return is_known

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

    async def disable_callback(self, callback_id: int, reason: str) -> None:
        """See `Store.disable_callback`."""
        await self._write(lambda c: accounts.disable_callback(c, callback_id, reason, self._clock()))

    async def rotate_callback(self, code: str, *, keep_old_for: timedelta) -> str | None:
        """See `Store.rotate_callback`."""
        return await self._write(lambda c: accounts.rotate_callback(c, self._sealer, code, self._clock(), keep_old_for))

    # Events

    async def append(self, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot]) -> Appended:
        """See `Store.append`."""
        if not changes and not snapshots:
            return Appended()
        return await self._write(lambda c: self._ledger.append(c, changes, snapshots, self._clock()))

    async def open_calls(self) -> list[tuple[CallIdentity, bytes]]:
        """See `Store.open_calls`."""
        return await self._read(ledger.open_calls)

    async def pending(self, *, after: tuple[int, int] = (0, 0), limit: int = 10_000) -> list[Delivery]:
        """See `Store.pending`."""
        return await self._read(lambda c: ledger.pending(c, after, limit))

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """See `Store.settle`."""
        if settlements:
            await self._write(lambda c: ledger.settle(c, settlements, self._clock()))

    # Threads

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._is_closed:
            msg = "the store is closed"
            raise StoreError(msg)
        job = _Job(work, asyncio.get_running_loop())
        self._jobs.put(job)
        result: T = await job.future
        return result

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._is_closed:
            msg = "the store is closed"
            raise StoreError(msg)
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._in_snapshot, work)

    def _in_snapshot(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """All that a job reads is of one moment."""
        try:
            self._reader.execute("BEGIN")
            return work(self._reader)
        except Exception as error:  # noqa: BLE001 - translated once, here
            raise _translated(error) from None
        finally:
            _roll_back(self._reader)

    def _run_writer(self) -> None:
        while True:
            job = self._jobs.get()
            jobs: list[_Job] = []
            while job is not None:
                jobs.append(job)
                if len(jobs) >= _JOBS_A_COMMIT or self._jobs.empty():
                    break
                job = self._jobs.get()
            if jobs:
                self._commit(jobs)
                _tell(jobs)
            if job is None:
                return

    def _commit(self, jobs: Sequence[_Job]) -> None:
        """All jobs in one transaction; one that fails by itself takes no other with it."""
        connection = self._writer
        try:
            _roll_back(connection)  # what a failing disk did not let us roll back the last time
            connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                self._run_job(connection, job)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody may be told that it is durable
            self._ledger.forget()
            _roll_back(connection)
            for job in jobs:
                job.error = job.error or _translated(error)

    def _run_job(self, connection: sqlite3.Connection, job: _Job) -> None:
        connection.execute("SAVEPOINT job")
        try:
            job.result = job.work(connection)
        except sqlite3.OperationalError:
            raise  # the disk or the file: no job can be done
        except Exception as error:  # noqa: BLE001 - it is the caller's to handle
            self._ledger.forget()
            connection.execute("ROLLBACK TO job")
            job.error = _translated(error)
        connection.execute("RELEASE job")

    # Opening

    def _prepare(self) -> None:
        connection = self._writer
        try:
            connection.execute("BEGIN IMMEDIATE")
            is_migrated = _migrate(connection, self.path)
            is_resealed = accounts.reseal(connection, self._sealer)
            if is_migrated or is_resealed:  # a server that runs knows neither the other schema nor the other key
                with self._alone("secret_key" if is_resealed else "store"):
                    connection.execute("COMMIT")
            else:
                connection.execute("COMMIT")
            if is_resealed:  # what was plain text must not stay behind in the log
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except WrongKey:
            problem = "the store's secrets were encrypted under another key, or TOQUE_SECRET_KEY is missing"
            raise SettingsError("secret_key", str(self.path), problem) from None
        except sqlite3.Error as error:
            raise _unopened(self.path, error) from error
        finally:
            _roll_back(connection)


def _tell(jobs: Sequence[_Job]) -> None:
    """One wake-up for each loop that waits."""
    for loop in {job.loop for job in jobs}:
        mine = [job for job in jobs if job.loop is loop]

        def resolve(mine: list[_Job] = mine) -> None:
            for job in mine:
                job.resolve()

        try:
            loop.call_soon_threadsafe(resolve)
        except RuntimeError:  # the loop was closed; nobody waits any more
            continue


def _create_private(path: Path) -> None:
    """Make the file, or its mode, ours alone; SQLite gives its log the same mode.

    A file that exists is not opened: closing it would drop the locks of every other connection of this process (fcntl(2)).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE))
        if not path.is_file():
            raise _unusable(path, f"{path} is there already and is no file")
        path.chmod(_FILE_MODE)
    except OSError as error:
        raise _unusable(path, f"{path} cannot be opened for writing: {error.strerror}") from None


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
    except sqlite3.Error as error:
        raise _unopened(path, error) from error
    try:
        mode = _configured(connection)
    except sqlite3.Error as error:
        connection.close()
        raise _unopened(path, error) from error
    if mode != "wal":
        connection.close()
        raise _unusable(path, f"{path} lies on a file system that cannot share memory between processes; use a local one")
    return connection


def _configured(connection: sqlite3.Connection) -> str:
    """Make a connection durable and strict; returns its journal mode."""
    mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # secrets and erased numbers leave the file, too
    return mode


def _migrate(connection: sqlite3.Connection, path: Path) -> bool:
    """Bring the schema up to date; whether a store that was in use was changed."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != _APPLICATION_ID:
        raise _unusable(path, f"{path} is not a toque store: it is another program's database")
    if version > len(MIGRATIONS):
        raise _unusable(path, f"{path} was written by a newer toque (schema {version}, this one knows {len(MIGRATIONS)})")
    if not tables:
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        for statement in filter(str.strip, script.split(";\n")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
    return bool(tables) and version < len(MIGRATIONS)


def _roll_back(connection: sqlite3.Connection) -> None:
    """Leave no transaction open, whatever went wrong in it."""
    with suppress(sqlite3.Error):  # SQLite may have rolled back by itself, as it does when the disk is full
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _unusable(path: Path, problem: str) -> SettingsError:
    return SettingsError("store", str(path), problem)


def _unopened(path: Path, error: sqlite3.Error) -> SettingsError | StoreError:
    """Why a store cannot be opened: the setting is wrong, or it may work later."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNUSABLE:
        return _unusable(path, f"{path} is not a toque store, or may not be written: {error}")
    return StoreError(f"{path} cannot be opened: {error}")


def _translated(error: Exception) -> Exception:
    """A foreign error in our words; our own stay as they are."""
    if isinstance(error, ToqueError):
        return error
    told: ToqueError
    if isinstance(error, WrongKey):
        told = StoreError("a secret in the store cannot be decrypted")
    elif isinstance(error, MemoryError) or (isinstance(error, sqlite3.Error) and not isinstance(error, _OUR_FAULT)):
        told = StoreError(f"{type(error).__name__}: {error}")
    else:
        told = IllegalStep(f"{type(error).__name__}: {error}")
    told.__cause__ = error
    return told
