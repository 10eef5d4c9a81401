"""An egress proxy on loopback: CONNECT over real sockets, and nothing else.

    async with ConnectProxy(credentials="user:password") as proxy:
        ...  # use proxy.url()
        assert proxy.targets == ["127.0.0.1:8080"]

It dials what it is asked for, or where `leads_to` says; `answers` are given instead of that, one by one, while there are any.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
SILENCE = b""
"""As an answer: none, and the connection stays."""


class ConnectProxy:
    """Listens on a loopback port of its own while it is entered."""

    def __init__(
        self,
        *,
        credentials: str | None = None,
        answers: Iterable[bytes] = (),
        established: bytes = ESTABLISHED,
        leads_to: Mapping[str, str] | None = None,
    ) -> None:
        self.targets: list[str] = []
        """What was asked for, as it stood in the request line."""
        self.heads: list[bytes] = []
        self.answers = list(answers)
        self.established = established
        self.ends: set[_End] = set()
        self.dials: set[asyncio.Task[None]] = set()
        self._credentials = credentials
        self._leads_to = leads_to or {}
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(lambda: _End(self), "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.close()
        await asyncio.gather(*self.dials)
        while self.ends:
            for end in self.ends:
                end.transport.abort()
            await asyncio.sleep(0)
        await self._server.wait_closed()

    def url(self, user: str = "") -> str:
        """The proxy's URL; `user` is put before the host as it is."""
        return f"http://{user}{'@' if user else ''}127.0.0.1:{self.port}"

    def asked(self, near: _End, head: bytes) -> None:
        """Do what the head says, on the connection that it came on."""
        method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
        assert method == "CONNECT"
        self.heads.append(head)
        self.targets.append(target)
        if self.answers:
            near.refuse(self.answers.pop(0))
        elif self._credentials is not None and _basic(self._credentials) not in head:
            near.refuse(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        else:
            dial = asyncio.ensure_future(self._lead(near, self._leads_to.get(target, target)))
            self.dials.add(dial)
            dial.add_done_callback(self.dials.discard)

    async def _lead(self, near: _End, target: str) -> None:
        host, _, port = target.rpartition(":")
        try:
            _, far = await asyncio.get_running_loop().create_connection(lambda: _End(self, near), host.strip("[]"), int(port))
        except OSError:
            near.refuse(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nno\r\n")
            return
        if near not in self.ends:  # it has gone meanwhile
            far.transport.abort()
            return
        near.other = far
        near.transport.write(self.established)


class _End(asyncio.Protocol):
    """One side of a tunnel; without another side yet it waits for a CONNECT."""

    def __init__(self, proxy: ConnectProxy, other: _End | None = None) -> None:
        self.proxy = proxy
        self.other = other
        self.transport: asyncio.Transport
        self._buffer = b""

    def refuse(self, answer: bytes) -> None:
        self.transport.write(answer)
        if answer != SILENCE:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.proxy.ends.add(self)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)
            return
        self._buffer += data
        if self._buffer.endswith(b"\r\n\r\n"):
            self.proxy.asked(self, self._buffer)

    def connection_lost(self, error: Exception | None) -> None:
        self.proxy.ends.discard(self)
        if self.other is not None:
            self.other.transport.close()


def _basic(credentials: str) -> bytes:
    return b"\r\nProxy-Authorization: Basic " + base64.b64encode(credentials.encode()) + b"\r\n"
