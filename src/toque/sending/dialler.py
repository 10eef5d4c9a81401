"""Making connections: to addresses that the guard lets pass and to no others, directly or through a proxy."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from toque.callbacks.url import TargetUrl
from toque.sending.connection import Connection
from toque.sending.guard import Address, Guard, literal_address
from toque.sending.names import Names
from toque.sending.outcomes import Forbidden, Unreachable, Unsent
from toque.sending.problems import NotConnected, lookup_problem_of, problem_of
from toque.sending.race import blamed, connect_first
from toque.sending.tunnel import open_tunnel

MAX_ADDRESSES = 4
"""Addresses of one name that one attempt dials, so that a name with very many costs no more than others."""

MakeConnection = Callable[[], Connection]


class Dialler:
    """Makes connections, each within the time to connect."""

    def __init__(
        self, guard: Guard, names: Names, ssl_context: ssl.SSLContext, timeout_s: float, proxy: TargetUrl | None = None
    ) -> None:
        self._guard = guard
        self._names = names
        self._ssl_context = ssl_context
        self._timeout_s = timeout_s
        self._proxy = proxy

    async def connect(
        self, url: TargetUrl, deadline: float, make: MakeConnection
    ) -> Connection | Unreachable | Forbidden | Unsent:
        """Connect to one of the host's addresses, all within the time to connect and before the deadline."""
        until_s = min(asyncio.get_running_loop().time() + self._timeout_s, deadline)
        try:
            addresses = await self._allowed_addresses(url, until_s)
        except NotConnected as error:
            return error.outcome
        try:
            if self._proxy is None:
                return await self._dial(url, addresses, until_s, make)
            return await self._dial_through(self._proxy, url, addresses, until_s, make)
        except NotConnected as error:
            self._doubt(url, error)
            return error.outcome

    def forget(self, host: str) -> None:
        """Look this host up anew when it is dialled next: nobody answers where it was."""
        self._names.forget(host)

    def _doubt(self, url: TargetUrl, error: NotConnected) -> None:
        """Look up anew, the next time, who was not where the DNS said: it may have moved."""
        if isinstance(error.outcome, Unreachable):
            self.forget(url.host)
        elif self._proxy is not None:
            self.forget(self._proxy.host)

    # Addresses.

    async def _allowed_addresses(self, url: TargetUrl, until_s: float) -> list[Address]:
        found = await self._addresses(url, until_s)
        verdicts = {address: self._guard.forbids(address) for address in found}
        allowed = [address for address, verdict in verdicts.items() if verdict is None]
        if not allowed:
            raise NotConnected(Forbidden(verdicts[found[0]] or ""))
        return _by_turns(allowed)[:MAX_ADDRESSES]

    async def _addresses(self, url: TargetUrl, until_s: float) -> Sequence[Address]:
        """What the host stands for, at least one address. Raises `NotConnected`."""
        literal = literal_address(url.host)
        if literal is not None:
            return [literal]
        try:
            async with asyncio.timeout_at(until_s):
                found = await self._names(url.host, url.port)
        except TimeoutError:
            raise NotConnected(Unreachable("name lookup timed out")) from None
        except (OSError, UnicodeError) as error:
            raise NotConnected(lookup_problem_of(error)) from None
        if not found:
            raise NotConnected(Unreachable("name not found"))
        return found

    # Directly.

    async def _dial(self, url: TargetUrl, addresses: Sequence[Address], until_s: float, make: MakeConnection) -> Connection:
        """Connect to whichever address answers first, and to another one when that cannot do TLS."""
        left = list(addresses)
        while len(left) > 1:
            try:
                async with asyncio.timeout_at(until_s):
                    sock, address = await connect_first(left, url.port)
            except OSError as error:
                raise NotConnected(problem_of(error)) from None
            left.remove(address)
            try:
                return await self._take_over(url, sock, until_s, make)
            except NotConnected as error:
                if _is_final(error):
                    raise
        return await self._dial_one(url, left[0], until_s, make)

    async def _dial_one(self, url: TargetUrl, address: Address, until_s: float, make: MakeConnection) -> Connection:
        """Where there is no choice, the loop dials, which costs less: the address, as text that no resolver has to read."""
        try:
            return await self._open(url, until_s, make, host=str(address), port=url.port)
        except OSError as error:
            raise NotConnected(problem_of(blamed(error, address, url.port))) from None

    # Through the proxy.

    async def _dial_through(
        self, proxy: TargetUrl, url: TargetUrl, addresses: Sequence[Address], until_s: float, make: MakeConnection
    ) -> Connection:
        """Have the proxy dial one address after the other, each with its share of the time: it dials one at a time."""
        at = await self._proxy_addresses(proxy, until_s)
        loop = asyncio.get_running_loop()
        for number, address in enumerate(addresses, 1):
            share_until_s = loop.time() + max(0.0, until_s - loop.time()) / (len(addresses) - number + 1)
            try:
                sock = await open_tunnel(proxy, at, address, url.port, share_until_s)
                return await self._take_over(url, sock, share_until_s, make)
            except NotConnected as error:
                if number == len(addresses) or _is_final(error):
                    raise
        raise AssertionError("there is at least one address")

    async def _proxy_addresses(self, proxy: TargetUrl, until_s: float) -> Sequence[Address]:
        """Where the proxy is. The operator says so, so no guard is asked."""
        try:
            return _by_turns(await self._addresses(proxy, until_s))[:MAX_ADDRESSES]
        except NotConnected as error:
            raise NotConnected(Unsent(f"proxy: {error.outcome.reason}")) from None

    # Both.

    async def _take_over(self, url: TargetUrl, sock: socket.socket, until_s: float, make: MakeConnection) -> Connection:
        """Make a connection of a connected socket."""
        try:
            return await self._open(url, until_s, make, sock=sock)
        except OSError as error:
            raise NotConnected(problem_of(error)) from None

    async def _open(self, url: TargetUrl, until_s: float, make: MakeConnection, **where: Any) -> Connection:
        """Open a connection; its TLS is for the host of the URL, whatever address it leads to. Raises OSError."""
        is_tls = url.scheme == "https"
        async with asyncio.timeout_at(until_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                make,
                ssl=self._ssl_context if is_tls else None,
                server_hostname=url.host if is_tls else None,
                **where,
            )
        return connection


def _is_final(error: NotConnected) -> bool:
    """Whether the other addresses need not be tried: who is there but is somebody else will be that there too, and what
    is wrong on our side stays so.
    """
    return isinstance(error.outcome, Unsent) or error.outcome.reason.startswith("certificate")


def _by_turns(addresses: Sequence[Address]) -> list[Address]:
    """One of each family in turn, so that a family without a route costs little (RFC 8305 §4)."""
    same = [address for address in addresses if address.version == addresses[0].version]
    other = [address for address in addresses if address.version != addresses[0].version]
    return [address for pair in itertools.zip_longest(same, other) for address in pair if address is not None]
