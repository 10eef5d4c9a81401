"""The HEP listener: packets that a switch mirrors, over UDP and TCP on one address.

HEP has no acknowledgement. What cannot be taken in is counted and said in the log, never silently dropped; a sender over TCP is
made to wait instead.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any, cast

import structlog

from toque.calls.hep_packet import HepError, HepPacket, packet_length, parse_hep
from toque.errors import InputError, SettingsError
from toque.settings import HepSource
from toque.telemetry import Sparingly

_HEAD_BYTES = 6
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024  # bursts of a busy switch wait in the kernel, not on the floor
_RESUME_AFTER_S = 0.05
_FREE_PORT_TRIES = 10  # for port 0: a port that is free for UDP need not be free for TCP
_SENDERS_KEPT = 1024
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # an address of the host's name that this machine does not have


@dataclass(slots=True)
class HepCounters:
    """What arrived since the start."""

    packets: int = 0
    refused: int = 0  # unreadable, cut off, wrong key, sender not allowed
    dropped: int = 0  # the store could not keep up


class HepListener:
    """Listens until closed; gives every packet that may be believed to `on_packet`."""

    def __init__(
        self, settings: HepSource, on_packet: Callable[[HepPacket], None], *, is_full: Callable[[], bool] = lambda: False
    ) -> None:
        self.settings = settings
        self.counters = HepCounters()
        self.is_full = is_full
        self._on_packet = on_packet
        self._log = structlog.get_logger("toque.hep").bind(source=settings.name)
        self._refusals = Sparingly(time.monotonic)
        self._drops = Sparingly(time.monotonic)  # apart, so that nobody's garbage keeps a loss of ours out of the log
        self._udp: list[asyncio.DatagramTransport] = []
        self._tcp: list[asyncio.Server] = []
        self._streams: set[_HepStream] = set()
        self.is_allowed = lru_cache(_SENDERS_KEPT)(self._is_allowed)
        """Whether packets from this address are believed; asked for every datagram."""

    @property
    def port(self) -> int:
        """The port that is listened on, once open."""
        port: int = self._udp[0].get_extra_info("sockname")[1]
        return port

    async def open(self) -> None:
        """Bind the sockets, UDP and TCP. Raises `SettingsError` when the address cannot be had."""
        tries = 1 if self.settings.port else _FREE_PORT_TRIES
        while True:
            tries -= 1
            try:
                await self._bind()
                break
            except (OSError, UnicodeError) as error:  # the latter from names that cannot be looked up
                await self.close()
                if tries and isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                    continue
                address = f"{self.settings.host}:{self.settings.port}"
                problem = f"cannot listen on {address}: {getattr(error, 'strerror', None) or error}"
                raise SettingsError("hep", address, problem) from None
        self._log.info("hep.listening", host=self.settings.host, port=self.port)

    async def _bind(self) -> None:
        """Every address that the host stands for: `localhost` is often two, and a switch may know either."""
        loop, port = asyncio.get_running_loop(), self.settings.port
        found = socket.getaddrinfo(self.settings.host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
        missing: OSError | None = None
        for family, _, _, _, place in dict.fromkeys(found):
            try:
                udp = _bound(family, socket.SOCK_DGRAM, (place[0], port, *place[2:]))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                missing = error
                continue
            transport, _ = await loop.create_datagram_endpoint(lambda: _HepDatagrams(self), sock=udp)
            self._udp.append(transport)
            port = self.port
            tcp = _bound(family, socket.SOCK_STREAM, (place[0], port, *place[2:]))
            self._tcp.append(await loop.create_server(lambda: _HepStream(self), sock=tcp))
        if missing is not None and not self._udp:
            raise missing

    async def close(self) -> None:
        """Stop listening; what was received is taken in. Safe to repeat."""
        udp, self._udp = self._udp, []
        tcp, self._tcp = self._tcp, []
        for transport in udp:
            transport.close()
        for server in tcp:
            server.close()
        for stream in list(self._streams):
            stream.close()
        for server in tcp:
            await server.wait_closed()

    def _is_allowed(self, host: str) -> bool:
        allowed = self.settings.allow_from
        if not allowed:
            return True
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return False
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return any(address in network or (mapped is not None and mapped in network) for network in allowed)

    def take(self, data: bytes, sender: str) -> None:
        """One whole packet as it arrived."""
        self.counters.packets += 1
        try:
            packet = parse_hep(data)
            self._check_key(packet)
            self._on_packet(packet)
        except InputError as error:
            self.refuse(sender, str(error))
        except Exception:  # noqa: BLE001 - a bug of ours costs the packet that brought it to light, and no other
            self.counters.refused += 1
            if self._refusals.admits():
                self._log.exception("hep.failed", sender=sender, held_back=self._refusals.take_held_back())

    def refuse(self, sender: str, problem: str) -> None:
        """Count and log what is not believed or not understood."""
        self.counters.refused += 1
        if self._refusals.admits():
            self._log.warning("hep.refused", sender=sender, problem=problem, held_back=self._refusals.take_held_back())

    def drop(self, sender: str) -> None:
        """Count and log what came while the store was behind."""
        self.counters.dropped += 1
        if self._drops.admits():
            self._drops.take_held_back()
            self._log.error("hep.dropped", sender=sender, dropped=self.counters.dropped)

    def _check_key(self, packet: HepPacket) -> None:
        if self.settings.key and not hmac.compare_digest(packet.auth_key, self.settings.key):
            msg = "wrong or missing key"
            raise HepError(msg)

    def joined(self, stream: _HepStream) -> None:
        """A TCP sender connected."""
        self._streams.add(stream)

    def left(self, stream: _HepStream) -> None:
        """A TCP sender is gone."""
        self._streams.discard(stream)


class _HepDatagrams(asyncio.DatagramProtocol):
    def __init__(self, listener: HepListener) -> None:
        self._listener = listener

    def datagram_received(self, data: bytes, addr: Sequence[object]) -> None:
        sender = str(addr[0])
        if not self._listener.is_allowed(sender):
            self._listener.refuse(sender, "sender not in allow_from")
        elif self._listener.is_full():
            self._listener.drop(sender)
        else:
            self._listener.take(data, sender)


class _HepStream(asyncio.Protocol):
    """Packets one after the other; each says its length in its first six bytes."""

    def __init__(self, listener: HepListener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._sender = ""
        self._buffer = b""
        self._pause: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._sender = str((transport.get_extra_info("peername") or ("?",))[0])
        if not self._listener.is_allowed(self._sender):
            self._listener.refuse(self._sender, "sender not in allow_from")
            self._abort()
            return
        # A switch that lost power does not say goodbye.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._listener.joined(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._read()

    def _read(self, *, is_last: bool = False) -> None:
        """Take the whole packets; the last ones also when there is no room, as nobody else has them any more."""
        data, start = self._buffer, 0
        try:
            while len(data) - start >= _HEAD_BYTES:
                if not is_last and self._listener.is_full():
                    self._wait()
                    break
                end = start + packet_length(data[start : start + _HEAD_BYTES])
                if len(data) < end:
                    break
                self._listener.take(data[start:end], self._sender)
                start = end
        except HepError as error:  # where the next packet begins can no longer be known
            self._listener.refuse(self._sender, str(error))
            start = len(data)
            self._abort()
        self._buffer = data[start:]

    def _wait(self) -> None:
        """Let the sender's bytes stand in the kernel until there is room."""
        if self._transport is not None and self._pause is None:
            self._transport.pause_reading()
            self._pause = asyncio.get_running_loop().call_later(_RESUME_AFTER_S, self._resume)

    def _resume(self) -> None:
        self._pause = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._read()

    def close(self) -> None:
        """Take in what has been received, and close at once."""
        self._read(is_last=True)
        self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        if self._pause is not None:
            self._pause.cancel()
        self._read(is_last=True)
        if self._buffer:
            self._listener.refuse(self._sender, f"connection ended within a packet, {len(self._buffer)} bytes lost")
        self._listener.left(self)


def _bound(family: int, kind: int, place: tuple[Any, ...]) -> socket.socket:
    """A socket for this address, listening if it is for TCP."""
    bound = socket.socket(family, kind)
    try:
        bound.setblocking(False)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` is for IPv4 as well
        if kind == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        bound.bind(place)
        if kind == socket.SOCK_STREAM:
            bound.listen()
    except OSError:
        bound.close()
        raise
    return bound
