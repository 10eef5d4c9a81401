"""HEP packets: SIP as a switch mirrors it, wrapped with who spoke to whom and when.

Version 3 (draft-dubovikov-eep-hep-00; HEP3 revision 37) is a list of chunks; versions 1 and 2 have a fixed header and are still
what Kamailio and OpenSIPS send when no version is set. Pure: bytes in, a value or `HepError` out.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from toque.errors import InputError

MAX_PACKET_BYTES = 65_535  # the length field of HEPv3 has 16 bits, and so has UDP's
SIP = 1  # chunk 0x000b: protocol type
_HEADER_BYTES = 6  # "HEP3" and the total length; a chunk's own header is as long
_CHUNK = struct.Struct("!HHH")
_GENERIC_VENDOR = 0
_AF_INET = 2
_IPV4_BYTES, _IPV6_BYTES = 4, 16
_MAX_INFLATED_BYTES = 262_144  # a compressed payload larger than four packets is an attack, not a message
_HEP1, _HEP2 = 1, 2
_HEP1_HEADER = struct.Struct("!BBBBHH")
_HEP2_TIME = struct.Struct("<IIHH")  # written in the sender's byte order, in practice little-endian
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class HepError(InputError):
    """The bytes are not a HEP packet."""


@dataclass(slots=True)
class HepPacket:
    """One mirrored message. `at` is None where the sender gave no time (HEPv1). Addresses are `host:port` texts.

    A value, not frozen only because freezing costs a microsecond for every message.
    """

    payload: bytes
    protocol: int
    at: datetime | None
    source: str
    destination: str
    auth_key: bytes = b""
    capture_id: int = 0


def parse_hep(data: bytes) -> HepPacket:
    """Read one whole packet of any version. Raises `HepError`."""
    if data[:4] == b"HEP3":
        return _parse_v3(data)
    if data[:1] in (b"\x01", b"\x02"):
        return _parse_v1_v2(data)
    msg = "neither HEP3 nor a HEP1/HEP2 header"
    raise HepError(msg)


def packet_length(head: bytes) -> int:
    """The total length in bytes that the first six bytes of a HEPv3 packet announce (HEP over TCP). Raises `HepError`."""
    if head[:4] != b"HEP3":
        msg = "HEP over a stream must be version 3"
        raise HepError(msg)
    length: int = int.from_bytes(head[4:6], "big")
    if length < _HEADER_BYTES:
        msg = f"HEP3 packet announces {length} bytes"
        raise HepError(msg)
    return length


def _chunks(data: bytes) -> dict[int, bytes]:
    total = packet_length(data)
    if total > len(data):
        msg = f"HEP3 packet announces {total} bytes but has {len(data)}"
        raise HepError(msg)
    chunks: dict[int, bytes] = {}
    offset = _HEADER_BYTES
    while offset + _HEADER_BYTES <= total:
        vendor, kind, length = _CHUNK.unpack_from(data, offset)
        if length < _HEADER_BYTES or offset + length > total:
            msg = f"HEP3 chunk {kind} at {offset} has an impossible length {length}"
            raise HepError(msg)
        if vendor == _GENERIC_VENDOR:
            chunks[kind] = data[offset + _HEADER_BYTES : offset + length]
        offset += length
    return chunks


def _parse_v3(data: bytes) -> HepPacket:
    chunks = _chunks(data)
    payload = chunks.get(0x0F)
    if payload is None and 0x10 in chunks:
        payload = _inflate(chunks[0x10])
    if payload is None:
        msg = "HEP3 packet without a payload"
        raise HepError(msg)
    number = int.from_bytes
    at = _moment(number(chunks.get(0x09, b""), "big"), number(chunks.get(0x0A, b""), "big"))
    return HepPacket(
        payload=payload,
        protocol=number(chunks.get(0x0B, b"\x01"), "big"),
        at=at,
        source=_address(chunks.get(0x03) or chunks.get(0x05, b""), chunks.get(0x07, b"")),
        destination=_address(chunks.get(0x04) or chunks.get(0x06, b""), chunks.get(0x08, b"")),
        auth_key=chunks.get(0x0E, b""),
        capture_id=number(chunks.get(0x0C, b""), "big"),
    )


def _parse_v1_v2(data: bytes) -> HepPacket:
    if len(data) < _HEP1_HEADER.size:
        msg = "HEP1/HEP2 packet shorter than its header"
        raise HepError(msg)
    version, length, family, _, source_port, destination_port = _HEP1_HEADER.unpack_from(data)
    size = _IPV4_BYTES if family == _AF_INET else _IPV6_BYTES
    addresses_end = _HEP1_HEADER.size + 2 * size
    expected = addresses_end + (_HEP2_TIME.size if version == _HEP2 else 0)
    # Senders of version 2 disagree whether the length byte counts the time that follows the addresses.
    if length not in (addresses_end, expected) or len(data) <= expected:
        msg = f"HEP{version} header announces {length} bytes where {addresses_end} are right"
        raise HepError(msg)
    source = data[_HEP1_HEADER.size : _HEP1_HEADER.size + size]
    destination = data[_HEP1_HEADER.size + size : addresses_end]
    at, capture_id = None, 0
    if version == _HEP2:
        seconds, microseconds, capture_id, _ = _HEP2_TIME.unpack_from(data, addresses_end)
        at = _moment(seconds, microseconds)
    return HepPacket(
        payload=data[expected:],
        protocol=SIP,
        at=at,
        source=_address(source, source_port.to_bytes(2, "big")),
        destination=_address(destination, destination_port.to_bytes(2, "big")),
        capture_id=capture_id,
    )


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # zlib or gzip, told by its first bytes
    try:
        payload = inflater.decompress(data, _MAX_INFLATED_BYTES)
    except zlib.error as error:
        msg = f"HEP3 payload cannot be decompressed: {error}"
        raise HepError(msg) from None
    if not inflater.eof:
        msg = f"HEP3 payload is cut short, or larger than {_MAX_INFLATED_BYTES} bytes when decompressed"
        raise HepError(msg)
    return payload


def _moment(seconds: int, microseconds: int) -> datetime | None:
    if seconds == 0:
        return None
    try:
        return _EPOCH + timedelta(seconds=seconds, microseconds=min(microseconds, 999_999))
    except OverflowError:
        return None


def _address(host: bytes, port: bytes) -> str:
    if len(port) != 2 or len(host) not in (_IPV4_BYTES, _IPV6_BYTES):
        return ""
    return _address_text(host, port)


@lru_cache(maxsize=4096)  # a switch speaks with the same few all day
def _address_text(host: bytes, port: bytes) -> str:
    text = ".".join(map(str, host)) if len(host) == _IPV4_BYTES else f"[{IPv6Address(host)}]"
    return f"{text}:{int.from_bytes(port, 'big')}"


def render_hep(  # the sender's half: the demo and the tests speak HEP as a switch does
    payload: bytes,
    *,
    at: datetime,
    source: tuple[IPv4Address, int],
    destination: tuple[IPv4Address, int],
    auth_key: bytes = b"",
    capture_id: int = 0,
) -> bytes:
    """A HEPv3 packet around one SIP message over UDP and IPv4."""
    microseconds = at.microsecond
    parts = [
        (0x01, bytes([_AF_INET])),
        (0x02, bytes([17])),
        (0x03, source[0].packed),
        (0x04, destination[0].packed),
        (0x07, source[1].to_bytes(2, "big")),
        (0x08, destination[1].to_bytes(2, "big")),
        (0x09, int(at.timestamp()).to_bytes(4, "big")),
        (0x0A, microseconds.to_bytes(4, "big")),
        (0x0B, bytes([SIP])),
        (0x0C, capture_id.to_bytes(4, "big")),
        *([(0x0E, auth_key)] if auth_key else []),
        (0x0F, payload),
    ]
    body = b"".join(_CHUNK.pack(_GENERIC_VENDOR, kind, len(data) + _HEADER_BYTES) + data for kind, data in parts)
    return b"HEP3" + (len(body) + _HEADER_BYTES).to_bytes(2, "big") + body


def restamp_hep(data: bytes, at: datetime) -> bytes:
    """The same HEPv3 packet as if mirrored at another moment, for replaying a recording today."""
    seconds, microseconds = int(at.timestamp()), at.microsecond
    out = bytearray(data)
    offset = _HEADER_BYTES
    while offset + _HEADER_BYTES <= len(data):
        vendor, kind, length = _CHUNK.unpack_from(data, offset)
        if length < _HEADER_BYTES:
            break
        if vendor == _GENERIC_VENDOR and kind in (0x09, 0x0A) and length == _HEADER_BYTES + 4:
            value = seconds if kind == 0x09 else microseconds
            out[offset + _HEADER_BYTES : offset + length] = value.to_bytes(4, "big")
        offset += length
    return bytes(out)
