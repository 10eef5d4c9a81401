"""Through an egress proxy: CONNECT (RFC 9110 §9.3.6) to an address that was checked, never to a name."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence

from toque.callbacks.url import TargetUrl
from toque.sending.guard import Address
from toque.sending.outcomes import Unreachable, Unsent
from toque.sending.problems import NotConnected, problem_of
from toque.sending.race import connect_first

MAX_PROXY_HEAD_BYTES = 8 * 1024
"""The proxy's answer, up to the end of its head; what proxies say fits many times over."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r\n")
_END = b"\r\n\r\n"
_OK, _MULTIPLE_CHOICES = 200, 300
# What the proxy says of us, and would say of any target; everything else that it refuses is about this one.
_OUR_FAULTS = {
    401: "asks for credentials",
    405: "does not know CONNECT",
    407: "asks for credentials",
    429: "has too much to do",
    501: "does not know CONNECT",
    511: "asks for credentials",
}


async def open_tunnel(proxy: TargetUrl, at: Sequence[Address], address: Address, port: int, until_s: float) -> socket.socket:
    """Return a socket that leads through the proxy, which is at one of the addresses `at`, to the target.

    `until_s` is on the loop's clock. Raises `NotConnected`: with `Unsent` when the proxy is to blame or blames us, with
    `Unreachable` when it says, or keeps silent long enough, that the target cannot be reached.
    """
    sock = await _reach(proxy, at, until_s)
    try:
        async with asyncio.timeout_at(until_s):
            await _ask(sock, proxy, address, port)
    except TimeoutError:
        sock.close()
        raise NotConnected(Unreachable("proxy: connect timed out")) from None  # it is still dialling
    except OSError as error:
        sock.close()
        raise NotConnected(_of_proxy(error)) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _reach(proxy: TargetUrl, at: Sequence[Address], until_s: float) -> socket.socket:
    try:
        async with asyncio.timeout_at(until_s):
            sock, _ = await connect_first(at, proxy.port)
    except OSError as error:
        raise NotConnected(_of_proxy(error)) from None
    return sock


def _of_proxy(error: OSError) -> Unsent:
    problem = problem_of(error)
    return problem if isinstance(problem, Unsent) else Unsent(f"proxy: {problem.reason}")


async def _ask(sock: socket.socket, proxy: TargetUrl, address: Address, port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, _request(proxy, address, port))
    received = b""
    while True:
        data = await loop.sock_recv(sock, MAX_PROXY_HEAD_BYTES)
        if not data:
            raise NotConnected(Unsent("proxy: connection closed without an answer"))
        received += data
        while _END in received:
            status, received = _status_and_rest(received)
            if status >= _OK:
                _check(status, received)
                return
        if len(received) > MAX_PROXY_HEAD_BYTES:
            raise NotConnected(Unsent("proxy: head of the answer too long"))


def _request(proxy: TargetUrl, address: Address, port: int) -> bytes:
    place = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    credentials = proxy.authorization
    authorization = f"Proxy-Authorization: {credentials}\r\n" if credentials else ""
    return f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{authorization}\r\n".encode("ascii")


def _status_and_rest(received: bytes) -> tuple[int, bytes]:
    """The status of the first head, interim ones included, and what follows it."""
    found = _STATUS.match(received)
    if found is None:
        raise NotConnected(Unsent("proxy: answer is not HTTP"))
    return int(found[1]), received.partition(_END)[2]


def _check(status: int, rest: bytes) -> None:
    if _OK <= status < _MULTIPLE_CHOICES:
        if rest:  # the target speaks before it was asked: no answer of ours
            raise NotConnected(Unreachable("proxy: more than an answer"))
        return
    if status in _OUR_FAULTS:
        raise NotConnected(Unsent(f"proxy: {status}, it {_OUR_FAULTS[status]}"))
    raise NotConnected(Unreachable(f"proxy: {status}"))
