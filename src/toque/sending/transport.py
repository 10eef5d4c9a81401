"""Posts over HTTP/1.1: connections that are kept, the few rules by which an attempt ends, and nothing else.

Everything toque delivers goes through here, so the path of a post over a kept connection is short on purpose: one look-up
of an idle connection, one write, one read, one callback. It makes no task, no future and no timer; a single ticker looks
after all deadlines. Only dialling, which is rare and slow, has a task of its own.

A connection is in one of these states:

========  =====================  ==================================================================================
state     told by                what ends it
========  =====================  ==================================================================================
idle      not busy               `send` makes it waiting; any byte from the peer, or the idle time-out, closes it
waiting   busy, `status` None    a complete head makes it reading; anything else ends the attempt
reading   busy, `status` set     a 2xx is told at once; others when the excerpt or the body ends; then it is draining
draining  busy, nobody to tell   the end of the body makes it idle, a limit or the attempt's deadline closes it
========  =====================  ==================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast

import httptools

from toque.callbacks.url import Origin, TargetUrl
from toque.sending.guard import Address, Guard, Resolver, literal_address

MAX_HEAD_BYTES = 32 * 1024
"""The answer's head, interim answers included: twice what common servers and proxies let a head have."""

MAX_BODY_BYTES = 16 * 1024
"""Read from a body to keep the connection; a new connection costs less than reading more than this."""

MAX_EXCERPT = 500
"""Characters of an unsuccessful answer's body that are kept."""

MAX_ADDRESSES = 4
"""Addresses of one name that one attempt dials, so that each has a useful share of the time to connect."""

MAX_RETRY_AFTER = 64
"""Characters kept of a `Retry-After`: an HTTP date has 29."""

_EXCERPT_BYTES = 4 * MAX_EXCERPT  # UTF-8 has at most four to a character
_TICK_S = 0.1
_OK, _MULTIPLE_CHOICES = 200, 300
_SWITCHING_PROTOCOLS = 101


@dataclass(slots=True, eq=False)
class Post:
    """One attempt: what is sent, and where to."""

    url: TargetUrl
    head: bytes = field(repr=False)
    """The whole request head, ending in an empty line; it holds secrets."""
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answered:
    """The receiver gave a final status; whether that is a success is for others to say."""

    status: int
    retry_after: str | None = None
    """The `Retry-After` field as it came."""
    excerpt: str = ""
    """How the body began, in printable characters; empty for 2xx."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No complete head of an answer came; `reason` is a short stable phrase."""

    reason: str


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Nothing was dialled, as all addresses of the host are forbidden; `reason` is the guard's."""

    reason: str


Outcome = Answered | Unreachable | Forbidden
OnOutcome = Callable[[Post, Outcome], None]
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

# Successes have nothing but a status to tell them apart, and there are very many of them.
_SUCCESSES = {status: Answered(status) for status in range(_OK, _MULTIPLE_CHOICES)}
_CLOSING = Unreachable("closing")


class Transport:
    """Sends posts, each over a connection that no other post uses at that time; an async context manager.

    Connections are kept per origin and used again, the last used first. All methods belong to the loop's thread.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        ssl_context: ssl.SSLContext | None = None,
        connect_timeout_s: float = 5.0,
        attempt_timeout_s: float = 15.0,
        idle_timeout_s: float = 60.0,
        max_idle_per_origin: int = 64,
        max_idle: int = 4096,
        resolve: Resolve | None = None,
    ) -> None:
        """Set the limits. The time to connect covers name, address and TLS; the attempt's covers all up to the head.

        `resolve` gives the addresses of a name instead of the system's resolver; the guard judges them all the same.
        """
        self._attempt_timeout_s = attempt_timeout_s
        self._resolver = Resolver()
        dialler = _Dialler(guard, ssl_context or _default_ssl_context(), connect_timeout_s, resolve or self._resolver)
        limits = _Limits(attempt_timeout_s, idle_timeout_s, max_idle_per_origin, max_idle)
        self._keeper = _Keeper(dialler, limits)
        self._pools = self._keeper.pools
        self._loop: asyncio.AbstractEventLoop

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._keeper.open(self._loop)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def start(self, post: Post, on_outcome: OnOutcome) -> None:
        """Begin an attempt. `on_outcome` is called once, on the loop, never from in here; it should not raise."""
        deadline = self._loop.time() + self._attempt_timeout_s
        pool = self._pools.get(post.url.origin)
        if pool is not None and pool.idle:
            self._keeper.idle_count -= 1
            pool.idle.pop().send(post, on_outcome, deadline)
        else:
            self._keeper.dial(post, on_outcome, deadline)

    async def post(self, post: Post) -> Outcome:
        """Make an attempt and wait for its outcome; when the wait is cancelled, the attempt goes on unseen."""
        ended: asyncio.Future[Outcome] = self._loop.create_future()
        self.start(post, lambda _, outcome: None if ended.done() else ended.set_result(outcome))
        return await ended

    async def close(self) -> None:
        """End attempts in flight as unreachable and close every connection; safe to repeat."""
        await self._keeper.close()
        await self._resolver.close()


@dataclass(frozen=True, slots=True)
class _Limits:
    attempt_timeout_s: float
    idle_timeout_s: float
    max_idle_per_origin: int
    max_idle: int


class _Keeper:
    """Knows every connection and every dial, and the time that each has left."""

    def __init__(self, dialler: _Dialler, limits: _Limits) -> None:
        self.pools: dict[Origin, _Pool] = {}
        self.idle_count = 0
        self._dialler = dialler
        self._limits = limits
        self._no_answer = Unreachable(f"no answer within {limits.attempt_timeout_s:g} s")
        self._connections: set[_Connection] = set()
        self._dials: set[_Dial] = set()
        self._is_closing = False
        self._all_closed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._ticker: asyncio.TimerHandle

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ticker = loop.call_later(_TICK_S, self._tick)

    async def close(self) -> None:
        self._is_closing = True
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

    def _tick(self) -> None:
        now = self._loop.time()
        self._ticker = self._loop.call_later(_TICK_S, self._tick)
        for connection in [connection for connection in self._connections if connection.due <= now]:
            connection.end(self._no_answer)

    def tell(self, post: Post, on_outcome: OnOutcome, outcome: Outcome) -> None:
        """Hand an outcome over; what goes wrong there must not hurt the connection or the ticker."""
        try:
            on_outcome(post, outcome)
        except Exception as error:  # noqa: BLE001 - it is not ours, so it goes where asyncio reports such things
            self._loop.call_exception_handler({"message": "on_outcome raised", "exception": error})

    # Connections.

    def _adopt(self, connection: _Connection) -> None:
        """Take note of a new connection; only now, as the loop does not report the end of one whose dial was broken off."""
        if not connection.is_closed:
            self._connections.add(connection)
            connection.pool.users += 1

    def release(self, connection: _Connection) -> bool:
        """Keep a connection for the next post; False when enough are kept already."""
        limits = self._limits
        idle = connection.pool.idle
        if len(idle) >= limits.max_idle_per_origin or self.idle_count >= limits.max_idle or self._is_closing:
            return False
        self.idle_count += 1
        idle.append(connection)
        connection.due = self._loop.time() + limits.idle_timeout_s
        return True

    def withdraw(self, connection: _Connection) -> None:
        """Give this connection to no post any longer."""
        with contextlib.suppress(ValueError):
            connection.pool.idle.remove(connection)
            self.idle_count -= 1

    def closed(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return
        self.withdraw(connection)
        self._connections.discard(connection)
        self._leave(connection.pool)
        if not self._connections:
            self._all_closed.set()

    # Dials.

    def dial(self, post: Post, on_outcome: OnOutcome, deadline: float) -> None:
        """Make the attempt over a new connection."""
        if self._is_closing:
            self._loop.call_soon(self.tell, post, on_outcome, _CLOSING)
            return
        origin = post.url.origin
        pool = self.pools.get(origin)
        if pool is None:
            pool = self.pools[origin] = _Pool(origin)
        pool.users += 1
        dial = _Dial(post, on_outcome, deadline, pool)
        self._dials.add(dial)
        dial.task = self._loop.create_task(self._run(dial))

    async def _run(self, dial: _Dial) -> None:
        result = await self._connect(dial)
        if not isinstance(result, _Connection):
            is_late = self._loop.time() >= dial.deadline
            self._end_dial(dial, self._no_answer if is_late else result)
            return
        self._adopt(result)
        if self._forget(dial):
            result.send(dial.post, dial.on_outcome, dial.deadline)

    async def _connect(self, dial: _Dial) -> _Connection | Unreachable | Forbidden:
        try:
            return await self._dialler.connect(dial.post.url, dial.deadline, lambda: _Connection(self, dial.pool))
        except Exception as error:  # noqa: BLE001 - our own bug, and still no attempt may be left without an outcome
            self._loop.call_exception_handler({"message": "dialling raised", "exception": error})
            return Unreachable("connect failed")

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

    def _leave(self, pool: _Pool) -> None:
        pool.users -= 1
        if not pool.users:
            del self.pools[pool.origin]


class _Pool:
    """The connections to one origin."""

    __slots__ = ("idle", "origin", "users")

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.idle: list[_Connection] = []
        self.users = 0
        """Dials and connections that refer to it; with the last one it goes."""


@dataclass(slots=True, eq=False)
class _Dial:
    """An attempt that has no connection yet."""

    post: Post
    on_outcome: OnOutcome
    deadline: float
    pool: _Pool
    task: asyncio.Task[None] = field(init=False, repr=False)


class _Excess(Exception):  # noqa: N818 - it stops the parser and is never seen outside
    """More came than the answer."""


class _Connection(asyncio.Protocol):
    """One connection and the attempt that uses it. Its parser reads all its answers, one after the other."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_feed",
        "_has_ended",
        "_is_busy",
        "_keeper",
        "_keeps_alive",
        "_on_outcome",
        "_parser",
        "_post",
        "_received",
        "_retry_after",
        "_status",
        "_transport",
        "_uses",
        "_write",
        "due",
        "is_closed",
        "pool",
    )

    def __init__(self, keeper: _Keeper, pool: _Pool) -> None:
        self.pool = pool
        self.due = float("inf")
        """When the attempt's or the idle time is over, on the loop's clock."""
        self.is_closed = False
        self._keeper = keeper
        self._transport: asyncio.Transport
        self._post: Post
        self._on_outcome: OnOutcome | None = None
        self._uses = 0
        self._is_busy = False
        # The answer that is being read; `send` sets it back.
        self._status: int | None = None
        self._retry_after: str | None = None
        self._received = 0
        self._body_bytes = 0
        self._body = b""
        self._has_ended = False
        self._keeps_alive = False

    def send(self, post: Post, on_outcome: OnOutcome, deadline: float) -> None:
        """Make the attempt over this connection, which is idle."""
        if self.is_closed:  # before it could be used for the first time
            self._keeper.tell(post, on_outcome, Unreachable("connection closed without an answer"))
            return
        self._post = post
        self._on_outcome = on_outcome
        self.due = deadline
        self._uses += 1
        self._is_busy = True
        self._status = None
        self._retry_after = None
        self._received = 0
        self._body_bytes = 0
        self._body = b""
        self._has_ended = False
        self._write(post.head + post.body)

    def end(self, otherwise: Outcome) -> None:
        """Close it now; its attempt, if it has one, ends with the status that has come, or else as given."""
        self._drop()
        self._tell(otherwise)

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._write = self._transport.write
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data

    def data_received(self, data: bytes) -> None:
        if not self._is_busy:
            self._drop()  # nothing was asked, so it can be no answer
            return
        self._received += len(data)
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.end(Unreachable("answer is not HTTP"))
            return
        if self._has_ended:
            self._is_busy = False
            if not self._keeps_alive or not self._keeper.release(self):
                self._drop()
            self._tell(_CLOSING)
        elif self._status is not None:
            self._go_on_reading()
        elif self._received > MAX_HEAD_BYTES:
            self.end(Unreachable("head of the answer too long"))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        self._keeper.closed(self)
        if self._on_outcome is not None and self._uses > 1 and not self._received:
            # The peer closed it while the post was on its way: a race that every kept connection can lose.
            on_outcome, self._on_outcome = self._on_outcome, None
            self._keeper.dial(self._post, on_outcome, self.due)
        self._tell(Unreachable(_lost_reason(error, has_begun=self._received > 0)))
        del self._parser, self._feed, self._write  # they refer back to this connection

    # What the parser tells.

    def on_message_begin(self) -> None:
        if self._has_ended:
            raise _Excess

    def on_header(self, name: bytes, value: bytes) -> None:
        # Compared by length first: this is called for every field of every answer.
        if len(name) == 11 and self._status is None and name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1").strip()[:MAX_RETRY_AFTER]

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= _OK or status == _SWITCHING_PROTOCOLS:
            self._status = status
        else:
            self._retry_after = None  # an interim answer (RFC 9110 §15.2): the one that counts follows

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if len(self._body) < _EXCERPT_BYTES:
            self._body += data[:_EXCERPT_BYTES]

    def on_message_complete(self) -> None:
        if self._status is not None:
            self._has_ended = True
            self._keeps_alive = self._parser.should_keep_alive()

    # How an answer ends.

    def _go_on_reading(self) -> None:
        """The head is there and the body is not over."""
        if self._body_bytes > MAX_BODY_BYTES or self._received > MAX_HEAD_BYTES + MAX_BODY_BYTES:
            self.end(_CLOSING)
        elif self._status in _SUCCESSES or len(self._body) >= _EXCERPT_BYTES:
            self._tell(_CLOSING)

    def _tell(self, otherwise: Outcome) -> None:
        """End the attempt, unless that has been done: with the status, or as given while there is none."""
        on_outcome = self._on_outcome
        if on_outcome is None:
            return
        self._on_outcome = None
        self._keeper.tell(self._post, on_outcome, otherwise if self._status is None else self._answered(self._status))

    def _answered(self, status: int) -> Answered:
        success = _SUCCESSES.get(status)
        if success is None:
            return Answered(status, self._retry_after, _excerpt(self._body))
        return success if self._retry_after is None else Answered(status, self._retry_after)

    def _drop(self) -> None:
        """Close it at once. No farewell is due where it is done, and waiting for one would help nobody."""
        self._is_busy = False
        self.due = float("inf")
        self._keeper.withdraw(self)
        self._transport.abort()


class _Dialler:
    """Makes connections to addresses that the guard lets pass, and to no others."""

    def __init__(self, guard: Guard, ssl_context: ssl.SSLContext, timeout_s: float, resolve: Resolve) -> None:
        self._guard = guard
        self._ssl_context = ssl_context
        self._timeout_s = timeout_s
        self._resolve = resolve

    async def connect(
        self, url: TargetUrl, deadline: float, make: Callable[[], _Connection]
    ) -> _Connection | Unreachable | Forbidden:
        """Dial the host's addresses in turn until one answers, all within the time to connect."""
        until = min(asyncio.get_running_loop().time() + self._timeout_s, deadline)
        addresses = await self._addresses(url, until)
        if not isinstance(addresses, list):
            return addresses
        result: _Connection | Unreachable = Unreachable("name not found")
        for number, address in enumerate(addresses):
            result = await self._open(url, address, until, len(addresses) - number, make)
            if isinstance(result, _Connection) or result.reason.startswith("certificate"):
                break  # who is there but is somebody else will be that at the next address too
        return result

    async def _addresses(self, url: TargetUrl, until: float) -> list[Address] | Unreachable | Forbidden:
        literal = literal_address(url.host)
        try:
            async with asyncio.timeout_at(until):
                found = [literal] if literal is not None else await self._resolve(url.host, url.port)
        except TimeoutError:
            return Unreachable("name lookup timed out")
        except (OSError, UnicodeError):
            return Unreachable("name not found")
        verdicts = {address: self._guard.forbids(address) for address in found}
        allowed = [address for address, verdict in verdicts.items() if verdict is None]
        if allowed or not found:
            return _by_turns(allowed)[:MAX_ADDRESSES]
        return Forbidden(verdicts[found[0]] or "")

    async def _open(
        self, url: TargetUrl, address: Address, until: float, left: int, make: Callable[[], _Connection]
    ) -> _Connection | Unreachable:
        """Dial one address: the very one that was judged, as text that no resolver has to read."""
        loop = asyncio.get_running_loop()
        is_tls = url.scheme == "https"
        try:
            async with asyncio.timeout(max(0.0, until - loop.time()) / left):
                _, connection = await loop.create_connection(
                    make,
                    str(address),
                    url.port,
                    ssl=self._ssl_context if is_tls else None,
                    server_hostname=url.host if is_tls else None,
                )
        except OSError as error:
            return Unreachable(_connect_reason(error))
        return connection


def _default_ssl_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _by_turns(addresses: Sequence[Address]) -> list[Address]:
    """One of each family in turn, so that a family without a route costs one share of the time (RFC 8305 §4)."""
    same = [address for address in addresses if address.version == addresses[0].version]
    other = [address for address in addresses if address.version != addresses[0].version]
    return [address for pair in itertools.zip_longest(same, other) for address in pair if address is not None]


def _excerpt(body: bytes) -> str:
    """What a person can read of it, on one line and without anything that a terminal or log would act on."""
    text = body.decode("utf-8", "replace")
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:MAX_EXCERPT]


# X509_V_ERR_* numbers (openssl-verification-options(1)).
_CERTIFICATE_PROBLEMS = {
    9: "not valid yet",
    10: "expired",
    18: "self-signed",
    19: "self-signed root",
    20: "unknown issuer",
    21: "unknown issuer",
    23: "revoked",
    62: "hostname mismatch",
    64: "address mismatch",
}

_CONNECT_PROBLEMS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
    errno.ETIMEDOUT: "connect timed out",
    errno.ENETUNREACH: "network unreachable",
    errno.EHOSTUNREACH: "host unreachable",
    errno.EADDRNOTAVAIL: "no local address or port free",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files",
}


def _connect_reason(error: OSError) -> str:
    """The phrase for an attempt to connect that failed; the error's own text may hold more than may be shown."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {_CERTIFICATE_PROBLEMS.get(error.verify_code, 'not valid')}"
    if isinstance(error, ssl.SSLError):
        return "tls: handshake failed"
    if isinstance(error, TimeoutError):
        return "connect timed out"
    if isinstance(error, ConnectionError) and error.errno is None:
        return "connection reset"
    return _CONNECT_PROBLEMS.get(error.errno or 0, "connect failed")


def _lost_reason(error: Exception | None, *, has_begun: bool) -> str:
    if isinstance(error, OSError):
        return "connection reset" if isinstance(error, ConnectionError) else "connection lost"
    return "answer cut short" if has_begun else "connection closed without an answer"
