"""Connecting to whichever of a host's addresses answers first ("happy eyeballs", RFC 8305)."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Sequence

from toque.sending.guard import Address
from toque.sending.problems import most_telling

STAGGER_S = 0.25
"""How long an address has to itself before the next is dialled beside it (RFC 8305 §8)."""


async def connect_first(addresses: Sequence[Address], port: int) -> tuple[socket.socket, Address]:
    """Dial the addresses in this order, staggered; return a connected socket and its address, once there is one.

    A failure lets the next address be dialled at once. Raises the most telling OSError when all have failed. The addresses
    are dialled as they stand: no resolver reads them once more.
    """
    waiting = deque(addresses)
    dials: dict[asyncio.Task[socket.socket], Address] = {}
    winner = None
    try:
        while winner is None:
            if waiting:
                address = waiting.popleft()
                dials[asyncio.create_task(_connect(address, port))] = address
            await _wait_for_news(dials, STAGGER_S if waiting else None)
            winner = next((dial for dial in dials if dial.done() and dial.exception() is None), None)
            if winner is None and not waiting and all(dial.done() for dial in dials):
                raise most_telling([error for dial in dials if isinstance(error := dial.exception(), OSError)])
        return winner.result(), dials[winner]
    finally:
        for dial in dials:
            if dial is not winner:
                dial.add_done_callback(_close_unused)
                dial.cancel()


async def _wait_for_news(dials: dict[asyncio.Task[socket.socket], Address], timeout_s: float | None) -> None:
    """Until one of those under way has ended, or it is time for the next."""
    under_way = [dial for dial in dials if not dial.done()]
    if under_way:
        await asyncio.wait(under_way, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def _close_unused(dial: asyncio.Task[socket.socket]) -> None:
    if not dial.cancelled() and dial.exception() is None:
        dial.result().close()


async def _connect(address: Address, port: int) -> socket.socket:
    sock = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
    except OSError as error:
        sock.close()
        raise blamed(error, address, port) from None
    except BaseException:
        sock.close()
        raise
    return sock


def blamed(error: OSError, address: Address, port: int) -> OSError:
    """The error of dialling this address, told apart where the system says one thing for two.

    EADDRNOTAVAIL means that all ports are in use, which is our own problem, or that this machine has no address of that
    family, as one without IPv6, which is the address's.
    """
    if error.errno == errno.EADDRNOTAVAIL and not _has_source(address, port):
        return OSError(errno.ENETUNREACH, "no address of that family")
    return error


def _has_source(address: Address, port: int) -> bool:
    """Whether this machine has an address to reach that one from. Nothing is sent to find out (connect(2) of a UDP socket)."""
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), port))
    except OSError:
        return False
    return True


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
