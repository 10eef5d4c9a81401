"""A receiver of posts on loopback that does what a script says, request by request, and remembers what it was sent.

    async with ScriptedReceiver(answer(204), reset(), answer(500, body=b"no")) as receiver:
        ...  # post to receiver.url("/callback")
        await receiver.has_received(3)
        assert receiver.requests[0].body == b"data=1"

Steps are used up in the order in which requests come, over all connections; when they are, `otherwise` is done. A step is
an async function of the exchange that says whether the connection goes on, so a test can write its own.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

MAX_UNSENT = 256 * 1024
"""Bytes that a stream lets wait in memory for its peer to take them."""


@dataclass(frozen=True, slots=True)
class Request:
    """What one request said."""

    connection: int
    """Which connection it came on, counted from 0."""
    method: str
    target: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a step works with; `request` is None for a greeting, which comes before any request."""

    connection: Connection
    request: Request | None

    def send(self, data: bytes) -> None:
        self.connection.transport.write(data)


Step = Callable[[Exchange], Awaitable[bool]]


def answer(
    status: int = 204,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    after: asyncio.Event | None = None,
    closes: bool = False,
) -> Step:
    """A proper answer, given once the event is set; `closes` says so in its head and does it."""

    async def step(exchange: Exchange) -> bool:
        if after is not None:
            await after.wait()
        fields = {"Connection": "close"} if closes else {}
        fields |= {} if status in {204, 304} else {"Content-Length": str(len(body))}
        fields |= headers or {}
        lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in fields.items())]
        exchange.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return not closes

    return step


def raw(data: bytes, *, then: Step | None = None) -> Step:
    """These bytes, whatever they are; afterwards the connection waits for the next request, or `then` is done."""

    async def step(exchange: Exchange) -> bool:
        exchange.send(data)
        return True if then is None else await then(exchange)

    return step


def dribble(pieces: Iterable[bytes], *, then: Step | None = None) -> Step:
    """One piece after the other, each a packet of its own; endless when the pieces are."""

    async def step(exchange: Exchange) -> bool:
        for piece in pieces:
            exchange.send(piece)
            await asyncio.sleep(0.001)  # lets the peer read it apart; nothing depends on its length
        return True if then is None else await then(exchange)

    return step


def stream(head: bytes, piece: bytes, pieces: int, sent: list[int] | None = None) -> Step:
    """The head and then so many pieces, as fast as they are taken; the length of each that went out is noted in `sent`."""

    async def step(exchange: Exchange) -> bool:
        transport = exchange.connection.transport
        exchange.send(head)
        for _ in range(pieces):
            while transport.get_write_buffer_size() > MAX_UNSENT:
                await asyncio.sleep(0)
            if transport.is_closing():
                return False
            exchange.send(piece)
            if sent is not None:
                sent.append(len(piece))
            await asyncio.sleep(0)
        return True

    return step


def close() -> Step:
    """The end of the connection without a word."""

    async def step(_: Exchange) -> bool:
        return False

    return step


def reset() -> Step:
    """The end of the connection by RST."""

    async def step(exchange: Exchange) -> bool:
        exchange.connection.reset()
        return False

    return step


def silence(*, until: asyncio.Event | None = None, then: Step | None = None) -> Step:
    """Nothing until the event, or for ever; then the other step, or the end."""

    async def step(exchange: Exchange) -> bool:
        await (until or asyncio.Event()).wait()
        return False if then is None else await then(exchange)

    return step


class ScriptedReceiver:
    """Listens on a loopback port of its own while it is entered."""

    def __init__(
        self,
        *script: Step,
        otherwise: Step | None = None,
        greeting: Step | None = None,
        ssl_context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self._script = list(script)
        self._otherwise = otherwise or answer(204)
        self._greeting = greeting
        self._ssl_context = ssl_context
        self._host = host
        self._wanted_port = port
        self._changed = asyncio.Condition()
        self._announcements: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self), self._host, self._wanted_port, ssl=self._ssl_context
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.close()
        for connection in self.connections:
            connection.transport.abort()
        await self.has_closed(len(self.connections))
        await asyncio.gather(*(connection.conversation for connection in self.connections), return_exceptions=True)
        await asyncio.gather(*self._announcements)
        await self._server.wait_closed()

    def url(self, target: str = "/", *, host: str | None = None, user: str = "") -> str:
        """A URL that leads here; `user` is put before the host as it is."""
        name = host or (f"[{self._host}]" if ":" in self._host else self._host)
        return f"{'https' if self._ssl_context else 'http'}://{user}{'@' if user else ''}{name}:{self.port}{target}"

    def add(self, *steps: Step) -> None:
        """Go on with these when the script so far is used up."""
        self._script.extend(steps)

    async def has_received(self, count: int) -> None:
        """Wait until this many requests have come in whole."""
        await self._wait_for(lambda: len(self.requests) >= count)

    async def has_accepted(self, count: int) -> None:
        """Wait until this many connections have been made."""
        await self._wait_for(lambda: len(self.connections) >= count)

    async def has_closed(self, count: int) -> None:
        """Wait until this many connections are over, by whichever side."""
        await self._wait_for(lambda: sum(connection.closed.is_set() for connection in self.connections) >= count)

    async def stop_listening(self) -> None:
        """Refuse new connections from now on; those that are there stay."""
        self._server.close()
        await asyncio.sleep(0)

    def hang_up(self) -> None:
        """Close every connection now."""
        for connection in self.connections:
            connection.transport.close()

    async def _wait_for(self, is_so: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(is_so)

    # What connections ask for.

    def accepted(self, connection: Connection) -> int:
        self.connections.append(connection)
        self.announce()
        return len(self.connections) - 1

    def received(self, request: Request) -> None:
        self.requests.append(request)
        self.announce()

    def announce(self) -> None:
        """Tell those who wait for a milestone that something has happened."""

        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.ensure_future(notify())
        self._announcements.add(task)
        task.add_done_callback(self._announcements.discard)

    async def converse(self, connection: Connection) -> None:
        """Do the script's steps for one connection until one of them ends it."""
        goes_on = self._greeting is None or await self._greeting(Exchange(connection, None))
        while goes_on:
            request = await connection.waiting.get()
            step = self._script.pop(0) if self._script else self._otherwise
            goes_on = await step(Exchange(connection, request))
        connection.transport.close()


class Connection(asyncio.Protocol):
    """One accepted connection. Its conversation ends with it, also in the middle of a step."""

    def __init__(self, receiver: ScriptedReceiver) -> None:
        self.number = -1
        self.requests: list[Request] = []
        self.waiting: asyncio.Queue[Request] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.transport: asyncio.Transport
        self.conversation: asyncio.Task[None]
        self._receiver = receiver
        self._buffer = b""

    def reset(self) -> None:
        """End it with RST instead of FIN."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.number = self._receiver.accepted(self)
        self.conversation = asyncio.ensure_future(self._receiver.converse(self))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (read := _parse_request(self._buffer, self.number)) is not None:
            request, self._buffer = read
            self.requests.append(request)
            self.waiting.put_nowait(request)
            self._receiver.received(request)

    def connection_lost(self, error: Exception | None) -> None:
        self.conversation.cancel()
        self.closed.set()
        self._receiver.announce()


def _parse_request(data: bytes, connection: int) -> tuple[Request, bytes] | None:
    """The first request and what follows it; None until it is there in whole."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    if len(rest) < length:
        return None
    return Request(connection, method, target, headers, rest[:length]), rest[length:]
