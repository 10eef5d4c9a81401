"""The HEP listener: packets that a switch mirrors, over UDP and TCP on one address.

HEP has no acknowledgement. What cannot be taken in is counted and said in the log, never silently dropped; a sender over TCP is
made to wait instead.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import cast

import structlog

from toque.calls.hep_packet import HepError, HepPacket, packet_length, parse_hep
from toque.errors import InputError, SettingsError
from toque.settings import HepSource
from toque.telemetry import Sparingly

_HEAD_BYTES = 6
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024  # bursts of a busy switch wait in the kernel, not on the floor
_RESUME_AFTER_S = 0.05


@dataclass(slots=True)
class HepCounters:
    """What arrived since the start."""

    packets: int = 0
    refused: int = 0  # unreadable, wrong key, sender not allowed
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
        self._sparingly = Sparingly(time.monotonic)
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._streams: set[_HepStream] = set()

    @property
    def port(self) -> int:
        """The port that is listened on, once open."""
        assert self._udp is not None  # noqa: S101 - for the type checker
        port: int = self._udp.get_extra_info("sockname")[1]
        return port

    async def open(self) -> None:
        """Bind both sockets. Raises `SettingsError` when the address cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            udp = _bound_udp(self.settings.host, self.settings.port)
            self._udp, _ = await loop.create_datagram_endpoint(lambda: _HepDatagrams(self), sock=udp)
            self._tcp = await loop.create_server(lambda: _HepStream(self), self.settings.host, self.port)
        except OSError as error:
            await self.close()
            address = f"{self.settings.host}:{self.settings.port}"
            # asyncio wraps the address into the error's text; the number still says what it was.
            reason = os.strerror(error.errno) if error.errno else str(error)
            problem = f"cannot listen on {address}: {reason}"
            raise SettingsError("hep", address, problem) from None
        self._log.info("hep.listening", host=self.settings.host, port=self.port)

    async def close(self) -> None:
        """Stop listening. Safe to repeat."""
        if self._udp is not None:
            self._udp.close()
            self._udp = None
        if self._tcp is not None:
            self._tcp.close()
            for stream in list(self._streams):
                stream.abort()
            await self._tcp.wait_closed()
            self._tcp = None

    def is_allowed(self, host: str) -> bool:
        """Whether packets from this address are believed."""
        allowed = self.settings.allow_from
        if not allowed:
            return True
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in allowed)

    def take(self, data: bytes, sender: str) -> None:
        """One whole packet as it arrived."""
        self.counters.packets += 1
        try:
            packet = parse_hep(data)
            self._check_key(packet)
            self._on_packet(packet)
        except InputError as error:
            self.refuse(sender, str(error))

    def refuse(self, sender: str, problem: str) -> None:
        """Count and log what is not believed or not understood."""
        self.counters.refused += 1
        if self._sparingly.admits():
            self._log.warning("hep.refused", sender=sender, problem=problem, held_back=self._sparingly.take_held_back())

    def drop(self, sender: str) -> None:
        """Count and log what came while the store was behind."""
        self.counters.dropped += 1
        if self._sparingly.admits():
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
        self._buffer = bytearray()
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._sender = str((transport.get_extra_info("peername") or ("?",))[0])
        if not self._listener.is_allowed(self._sender):
            self._listener.refuse(self._sender, "sender not in allow_from")
            self._transport.abort()
            return
        self._listener.joined(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._read()

    def _read(self) -> None:
        buffer, start = self._buffer, 0
        try:
            while len(buffer) - start >= _HEAD_BYTES:
                if self._listener.is_full():
                    self._wait()
                    break
                length = packet_length(bytes(buffer[start : start + _HEAD_BYTES]))
                if len(buffer) - start < length:
                    break
                self._listener.take(bytes(buffer[start : start + length]), self._sender)
                start += length
        except HepError as error:  # the stream's frames are lost for good
            self._listener.refuse(self._sender, str(error))
            self.abort()
        del buffer[:start]

    def _wait(self) -> None:
        """Let the sender's bytes stand in the kernel until there is room."""
        if self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(_RESUME_AFTER_S, self._resume)

    def _resume(self) -> None:
        self._is_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._read()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._buffer and len(self._buffer) >= _HEAD_BYTES and not self._is_paused:
            self._listener.refuse(self._sender, f"connection ended within a packet, {len(self._buffer)} bytes lost")
        self._transport = None
        self._listener.left(self)


def _bound_udp(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)[0]
    udp = socket.socket(family, kind, protocol)
    try:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        udp.bind(address)
        udp.setblocking(False)
    except OSError:
        udp.close()
        raise
    return udp
