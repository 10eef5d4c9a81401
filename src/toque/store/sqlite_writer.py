"""The one thread that writes: it takes all jobs that wait, runs them in one transaction, each behind a savepoint of its own,
commits once, and only then tells the callers. One job's fault takes no other along.

A fault must not keep its job in memory: an error knows the frames that it passed, those know the job, and the job knows the
error. Such rings wait for the collector, which looks seldom (`server.calm_collector`), and a job may be a batch of megabytes.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from toque.errors import IllegalStep, StoreError, ToqueError
from toque.store.sealing import WrongKey

_JOBS_A_COMMIT = 256
_OUR_FAULT = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError)


class Stale(ToqueError):  # noqa: N818 - a fact; nobody but the store sees it
    """What a job was planned with is no longer so; it has written nothing and must be planned anew."""


class Job:
    """Something to do on the writer's connection, and whom to tell."""

    __slots__ = ("and_then", "error", "future", "loop", "result", "work")

    def __init__(
        self,
        work: Callable[[sqlite3.Connection], Any],
        loop: asyncio.AbstractEventLoop,
        and_then: Callable[[Any], None] | None = None,
    ) -> None:
        self.work = work
        self.loop = loop
        self.and_then = and_then
        self.future: asyncio.Future[Any] = loop.create_future()
        self.result: Any = None
        self.error: Exception | None = None

    def resolve(self) -> None:
        """Tell the caller; runs on its loop. What follows from a commit happens also if the caller was cancelled."""
        if self.error is None and self.and_then is not None:
            self.and_then(self.result)
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Writer:
    """The thread and its connection. `on_undone` is called there when something that was written is taken back."""

    def __init__(self, connection: sqlite3.Connection, on_undone: Callable[[], None]) -> None:
        self.connection = connection
        self._on_undone = on_undone
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._is_ended = False
        self._ending = threading.Lock()  # nothing comes into the line behind its end
        self._thread = threading.Thread(target=self._run, name="toque-writer", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> asyncio.Future[Any]:
        """Have a job done; what it comes to, a `StoreError` after `end`. To be called on the job's loop."""
        with self._ending:
            is_late = self._is_ended
            if not is_late:
                self._jobs.put(job)
        if is_late:
            job.error = StoreError("the store is closed")
            job.resolve()
        return job.future

    def end(self) -> None:
        """No more jobs are done but those that were put. Safe to repeat."""
        with self._ending:
            if not self._is_ended:
                self._is_ended = True
                self._jobs.put(None)

    def join(self) -> None:
        """Wait until all jobs are done."""
        self._thread.join()

    def _run(self) -> None:
        while self._do_next():
            pass  # and hold nothing of what was done while waiting for more

    def _do_next(self) -> bool:
        """Do the jobs that wait; False when there will be no more."""
        job = self._jobs.get()
        jobs: list[Job] = []
        while job is not None:
            jobs.append(job)
            if len(jobs) >= _JOBS_A_COMMIT or self._jobs.empty():
                break
            job = self._jobs.get()
        goes_on = job is not None
        del job
        if jobs:
            self._commit(jobs)
            _unbind(jobs)
            _tell(jobs)
            jobs.clear()  # the frames of errors know this one
        return goes_on

    def _commit(self, jobs: Sequence[Job]) -> None:
        """All jobs in one transaction; one that fails by itself takes no other with it."""
        connection = self.connection
        try:
            roll_back(connection)  # what a failing disk did not let us roll back the last time
            connection.execute("BEGIN IMMEDIATE")
            if len(jobs) == 1:  # most often; without a savepoint, as what it wrote is undone with the whole
                jobs[0].result = jobs[0].work(connection)
            else:
                for job in jobs:
                    self._run_job(connection, job)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody may be told that it is durable
            roll_back(connection)
            self._on_undone()
            for job in jobs:
                job.error = job.error or translated(error)

    def _run_job(self, connection: sqlite3.Connection, job: Job) -> None:
        connection.execute("SAVEPOINT job")
        try:
            job.result = job.work(connection)
        except sqlite3.OperationalError:
            raise  # the disk or the file: no job can be done
        except Exception as error:  # noqa: BLE001 - it is the caller's to handle
            self._on_undone()
            connection.execute("ROLLBACK TO job")
            job.error = translated(error)
        connection.execute("RELEASE job")


def _unbind(jobs: Sequence[Job]) -> None:
    """Empty the frames that errors came through: what they say stays, what was being written goes."""
    for job in jobs:
        if job.error is not None:
            traceback.clear_frames(job.error.__traceback__)
            if job.error.__cause__ is not None:
                traceback.clear_frames(job.error.__cause__.__traceback__)


def _tell(jobs: Sequence[Job]) -> None:
    """One wake-up for each loop that waits."""
    for loop in {job.loop for job in jobs}:
        mine = [job for job in jobs if job.loop is loop]

        def resolve(mine: list[Job] = mine) -> None:
            for job in mine:
                job.resolve()

        try:
            loop.call_soon_threadsafe(resolve)
        except RuntimeError:  # the loop was closed; nobody waits any more
            continue


def roll_back(connection: sqlite3.Connection) -> None:
    """Leave no transaction open, whatever went wrong in it."""
    with suppress(sqlite3.Error):  # SQLite may have rolled back by itself, as it does when the disk is full
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def translated(error: Exception) -> Exception:
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
