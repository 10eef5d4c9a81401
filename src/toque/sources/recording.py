"""Recordings: pcap files of HEP packets, and sending them again as the switch did."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from toque.calls.hep_packet import restamp_hep
from toque.errors import InputError

_LITTLE, _BIG = b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4"  # classic pcap with microseconds, by the writer's byte order
_PCAPNG = b"\x0a\x0d\x0d\x0a"
_HEADER_BYTES = 24
_ETHERNET, _RAW_IP = 1, 101
_ETHERNET_BYTES, _UDP_BYTES = 14, 8
_ETHERNET_IPV4 = b"\x08\x00"
_UDP = 17
_FRAGMENT = 0x3FFF  # of the flags and the offset: more follow, or it is not the first


class RecordingError(InputError):
    """The file is not a pcap of UDP datagrams over IPv4."""


@dataclass(frozen=True, slots=True)
class RecordedPacket:
    """One datagram and when it was captured."""

    at: datetime
    data: bytes


def read_recording(path: Path) -> list[RecordedPacket]:
    """All UDP datagrams of a pcap file. Raises `RecordingError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}") from None
    if content[:4] not in (_LITTLE, _BIG) or len(content) < _HEADER_BYTES:
        hint = " (it is pcapng: `editcap -F pcap` converts it)" if content[:4] == _PCAPNG else ""
        raise RecordingError(f"{path} is not a pcap file{hint}")
    order = "<" if content[:4] == _LITTLE else ">"
    (link,) = struct.unpack_from(order + "I", content, 20)
    if link not in (_ETHERNET, _RAW_IP):
        raise RecordingError(f"{path} has link type {link}; Ethernet and raw IP are read")
    packets, offset = [], _HEADER_BYTES
    while offset + 16 <= len(content):
        seconds, microseconds, length, _ = struct.unpack_from(order + "IIII", content, offset)
        frame = content[offset + 16 : offset + 16 + length]
        offset += 16 + length
        data = _udp_payload(_ip_packet(frame) if link == _ETHERNET else frame)
        if data is None:
            raise RecordingError(f"{path} has datagrams in fragments; record where they are whole, as on the loopback interface")
        if data:
            at = datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)
            packets.append(RecordedPacket(at, data))
    return packets


def _ip_packet(frame: bytes) -> bytes:
    return frame[_ETHERNET_BYTES:] if frame[_ETHERNET_BYTES - 2 : _ETHERNET_BYTES] == _ETHERNET_IPV4 else b""


def _udp_payload(ip: bytes) -> bytes | None:
    """The payload of an IPv4 UDP datagram; empty for anything else and for one that was cut off, None for a fragment."""
    if len(ip) < 20 or ip[0] >> 4 != 4 or ip[9] != _UDP:
        return b""
    if int.from_bytes(ip[6:8], "big") & _FRAGMENT:
        return None
    start = (ip[0] & 15) * 4
    length = int.from_bytes(ip[2:4], "big")
    return ip[start + _UDP_BYTES : length] if length <= len(ip) else b""


async def replay(
    packets: Sequence[RecordedPacket], address: tuple[str, int], *, speed: float, clock: Callable[[], datetime]
) -> None:
    """Send the packets over UDP at `speed` times their own pace, stamped as if it all happened now."""
    if not packets:
        return
    first, began = packets[0].at, clock()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(address)
        for packet in packets:
            at = began + (packet.at - first) / speed
            wait = (at - clock()).total_seconds()
            if wait > 0:
                await asyncio.sleep(wait)
            await loop.sock_sendall(sender, restamp_hep(packet.data, at))
