"""Posts over HTTP/1.1: connections that are kept, the few rules by which an attempt ends, and nothing else.

Everything toque delivers goes through here, so the path of a post over a kept connection is short on purpose: one look-up
of an idle connection, one write, one read, one look-up of the answer, one callback. It makes no task, no future and no
timer; a single ticker looks after all deadlines. Only dialling, which is rare and slow, has a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from types import TracebackType
from typing import Self

from toque.callbacks.url import Origin, TargetUrl
from toque.sending.answers import KnownAnswers
from toque.sending.connection import MAX_BODY_BYTES, Connection, Pool
from toque.sending.dialler import Dialler
from toque.sending.guard import Guard
from toque.sending.names import KEPT_S, Names, Resolve, SystemResolver
from toque.sending.outcomes import Answered, Forbidden, OnOutcome, Outcome, Post, Unreachable, Unsent
from toque.sending.problems import NO_DESCRIPTOR

__all__ = ["MAX_BODY_BYTES", "Answered", "Forbidden", "OnOutcome", "Outcome", "Post", "Transport", "Unreachable", "Unsent"]

SHED_AT_ONCE = 32
"""Idle connections that are closed when descriptors run out: room for some dials, and most of what is kept stays."""

_TICK_S = 0.1
_TIMER_STEP_S = 0.001  # loops may be early by this much
_CLOSING = Unsent("closing")


class Transport:
    """Sends posts, each over a connection that no other post uses at that time; an async context manager.

    Connections are kept per origin and used again, the last used first. All methods belong to the loop's thread.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        ssl_context: ssl.SSLContext | None = None,
        proxy: TargetUrl | None = None,
        connect_timeout_s: float = 5.0,
        attempt_timeout_s: float = 15.0,
        idle_timeout_s: float = 60.0,
        max_idle_per_origin: int = 64,
        max_idle: int = 4096,
        resolve: Resolve | None = None,
        names_kept_s: float = KEPT_S,
    ) -> None:
        """Set the limits. The time to connect covers name, address and TLS; the attempt's covers all up to the head.

        With a `proxy`, which may be at any address, everything goes through it by CONNECT. `resolve` gives the addresses of
        a name instead of the system's resolver; the guard judges them all the same. They are kept for `names_kept_s`.
        """
        self._attempt_timeout_s = attempt_timeout_s
        self._names = Names(resolve or SystemResolver(), kept_s=names_kept_s)
        dialler = Dialler(guard, self._names, ssl_context or _default_ssl_context(), connect_timeout_s, proxy)
        self._keeper = _Keeper(dialler, _Limits(attempt_timeout_s, idle_timeout_s, max_idle_per_origin, max_idle))
        self._pools = self._keeper.pools
        self._now: Callable[[], float]

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._keeper.open(loop)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def start(self, post: Post, on_outcome: OnOutcome) -> None:
        """Begin an attempt. `on_outcome` is called once, on the loop, never from in here; it should not raise."""
        deadline = self._now() + self._attempt_timeout_s
        pool = self._pools.get(post.url.origin)
        if pool is not None and pool.idle:
            pool.idle.pop().send(post, on_outcome, deadline)
        else:
            self._keeper.dial(post, on_outcome, deadline)

    async def post(self, post: Post) -> Outcome:
        """Make an attempt and wait for its outcome; when the wait is cancelled, the attempt goes on unseen."""
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.start(post, lambda _, outcome: None if ended.done() else ended.set_result(outcome))
        return await ended

    async def close(self) -> None:
        """End attempts in flight as unsent and close every connection; safe to repeat."""
        await self._keeper.close()
        await self._names.close()


@dataclass(frozen=True, slots=True)
class _Limits:
    attempt_timeout_s: float
    idle_timeout_s: float
    max_idle_per_origin: int
    max_idle: int


@dataclass(slots=True, eq=False)
class _Dial:
    """An attempt that has no connection yet."""

    post: Post
    on_outcome: OnOutcome
    deadline: float
    pool: Pool
    task: asyncio.Task[None] = field(init=False, repr=False)


class _Keeper:
    """Knows every connection and every dial, and the time that each has left."""

    def __init__(self, dialler: Dialler, limits: _Limits) -> None:
        self.pools: dict[Origin, Pool] = {}
        self.known = KnownAnswers()
        self._dialler = dialler
        self._limits = limits
        self._idle_room = limits.max_idle_per_origin
        self._idle_until_s = 0.0  # for a connection that becomes idle now; the ticker keeps it up
        self._no_answer = Unreachable(f"no answer within {limits.attempt_timeout_s:g} s")
        self._connections: set[Connection] = set()
        self._unwritten: list[Connection] = []
        self._dials: set[_Dial] = set()
        self._is_closing = False
        self._all_closed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._ticker: asyncio.TimerHandle

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tick()

    async def close(self) -> None:
        self._is_closing = True
        self._idle_room = 0
        self._ticker.cancel()
        tasks = [dial.task for dial in self._dials]
        for dial in list(self._dials):
            self._end_dial(dial, _CLOSING)
            dial.task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self._connections):
            connection.end(_CLOSING)
        while self._connections:
            self._all_closed.clear()
            await self._all_closed.wait()

    @property
    def idle_count(self) -> int:
        """Connections that wait for a post."""
        return sum(len(pool.idle) for pool in self.pools.values())

    def _tick(self) -> None:
        now = self._loop.time()
        self._ticker = self._loop.call_later(_TICK_S, self._tick)
        self._idle_until_s = now + self._limits.idle_timeout_s
        for connection in [connection for connection in self._connections if connection.due <= now]:
            if connection.is_silent:
                self._distrust(connection.pool)
            connection.end(self._no_answer)
        self._close_idle(self.idle_count - self._limits.max_idle)

    def tell(self, post: Post, on_outcome: OnOutcome, outcome: Outcome) -> None:
        """Hand an outcome over; what goes wrong there must not hurt the connection or the ticker."""
        try:
            on_outcome(post, outcome)
        except Exception as error:  # noqa: BLE001 - it is not ours, so it goes where asyncio reports such things
            self._loop.call_exception_handler({"message": "on_outcome raised", "exception": error})

    # Connections.

    def write_soon(self, connection: Connection) -> None:
        """Write once the loop's turn is over, one post right behind the other: whoever reads them is woken once for all."""
        if not self._unwritten:
            self._loop.call_soon(self._write_all)
        self._unwritten.append(connection)

    def _write_all(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        for connection in unwritten:
            connection.write()

    def release(self, connection: Connection, idle_s: float | None) -> bool:
        """Keep a connection for the next post, for the time that its peer will; False when enough are kept already."""
        idle = connection.pool.idle
        if len(idle) >= self._idle_room or idle_s == 0:
            return False
        idle.append(connection)
        connection.is_kept = True
        connection.due = self._idle_until_s if idle_s is None else min(self._idle_until_s, self._loop.time() + idle_s)
        return True

    def withdraw(self, connection: Connection) -> None:
        """Give this connection to no post any longer."""
        with contextlib.suppress(ValueError):
            connection.pool.idle.remove(connection)

    def closed(self, connection: Connection) -> None:
        """Forget a connection that is over."""
        if connection not in self._connections:
            return
        self.withdraw(connection)
        self._connections.discard(connection)
        self._leave(connection.pool)
        if not self._connections:
            self._all_closed.set()

    def _adopt(self, connection: Connection) -> None:
        """Take note of a new connection; only now, as the loop does not report the end of one whose dial was broken off."""
        if not connection.is_closed:
            self._connections.add(connection)
            connection.pool.users += 1

    def _distrust(self, pool: Pool) -> None:
        """Use no kept connection of this origin: nobody answered on one of them, so the others may lead nowhere as well.

        It may also have moved.
        """
        self._dialler.forget(pool.origin.host)
        for connection in list(pool.idle):
            connection.drop()

    def _close_idle(self, count: int) -> None:
        """Close those that have been idle for longest, so many of them."""
        if count > 0:
            idle = itertools.chain.from_iterable(pool.idle for pool in self.pools.values())
            for connection in heapq.nsmallest(count, idle, key=attrgetter("due")):
                connection.drop()

    # Dials.

    def dial(self, post: Post, on_outcome: OnOutcome, deadline: float) -> None:
        """Make the attempt over a new connection."""
        if self._is_closing:
            self._loop.call_soon(self.tell, post, on_outcome, _CLOSING)
            return
        origin = post.url.origin
        pool = self.pools.get(origin)
        if pool is None:
            pool = self.pools[origin] = Pool(origin)
        pool.users += 1
        dial = _Dial(post, on_outcome, deadline, pool)
        self._dials.add(dial)
        dial.task = self._loop.create_task(self._run(dial))

    async def _run(self, dial: _Dial) -> None:
        result = await self._connect(dial)
        if not isinstance(result, Connection):
            self._end_dial(dial, self._judged(dial, result))
            return
        self._adopt(result)
        if not self._forget(dial):
            return
        if result.is_closed:  # before it could be used for the first time
            self.tell(dial.post, dial.on_outcome, Unreachable("connection closed without an answer"))
        else:
            result.send(dial.post, dial.on_outcome, dial.deadline)

    async def _connect(self, dial: _Dial) -> Connection | Unreachable | Forbidden | Unsent:
        try:
            return await self._dialler.connect(dial.post.url, dial.deadline, lambda: Connection(self, dial.pool))
        except Exception as error:  # noqa: BLE001 - our own bug, and still no attempt may be left without an outcome
            self._loop.call_exception_handler({"message": "dialling raised", "exception": error})
            return Unreachable("connect failed")

    def _judged(self, dial: _Dial, result: Unreachable | Forbidden | Unsent) -> Outcome:
        """The outcome of a dial that brought no connection; makes room when it was room that was missing."""
        if result == NO_DESCRIPTOR:
            self._close_idle(SHED_AT_ONCE)
        if isinstance(result, Unreachable) and self._loop.time() >= dial.deadline - _TIMER_STEP_S:
            return self._no_answer
        return result

    def _end_dial(self, dial: _Dial, outcome: Outcome) -> None:
        if self._forget(dial):
            self.tell(dial.post, dial.on_outcome, outcome)

    def _forget(self, dial: _Dial) -> bool:
        """Whether the dial still had its attempt: whoever takes it away answers for the outcome."""
        if dial not in self._dials:
            return False
        self._dials.discard(dial)
        self._leave(dial.pool)
        return True

    def _leave(self, pool: Pool) -> None:
        pool.users -= 1
        if not pool.users:
            del self.pools[pool.origin]


def _default_ssl_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
