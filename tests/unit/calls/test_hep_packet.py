import gzip
import struct
import zlib
from datetime import UTC, datetime
from ipaddress import IPv4Address

import pytest

from toque.calls.hep_packet import (
    SIP,
    HepError,
    HepPacket,
    packet_length,
    parse_hep,
    render_hep,
    restamp_hep,
)

AT = datetime(2026, 3, 2, 12, 0, 0, 123456, tzinfo=UTC)
SECONDS = int(AT.timestamp())
PAYLOAD = b"OPTIONS sip:a@b SIP/2.0\r\n\r\n"


def hep3(*chunks: tuple[int, bytes], vendor: int = 0) -> bytes:
    body = b"".join(struct.pack("!HHH", vendor, kind, len(data) + 6) + data for kind, data in chunks)
    return b"HEP3" + (len(body) + 6).to_bytes(2, "big") + body


def hep12(version: int, *, counts_time: bool = False, family: int = 2, payload: bytes = PAYLOAD, addresses: bytes = b"") -> bytes:
    addresses = addresses or bytes([192, 0, 2, 1, 192, 0, 2, 2])
    time = struct.pack("<IIHH", SECONDS, 123456, 2001, 0) if version == 2 else b""
    length = 8 + len(addresses) + (len(time) if counts_time else 0)
    return struct.pack("!BBBBHH", version, length, family, 17, 5060, 5080) + addresses + time + payload


def a_packet(**parts: object) -> bytes:
    defaults = {"at": AT, "source": (IPv4Address("192.0.2.1"), 5060), "destination": (IPv4Address("192.0.2.2"), 5080)}
    return render_hep(PAYLOAD, **(defaults | parts))


def test_version_3_is_read_back_as_it_was_rendered():
    assert parse_hep(a_packet(auth_key=b"secret", capture_id=2001)) == HepPacket(
        payload=PAYLOAD,
        protocol=SIP,
        at=AT,
        source="192.0.2.1:5060",
        destination="192.0.2.2:5080",
        auth_key=b"secret",
        capture_id=2001,
    )


def test_ipv6_addresses_are_bracketed():
    packet = parse_hep(hep3((0x05, bytes(15) + b"\x01"), (0x07, b"\x13\xc4"), (0x0F, PAYLOAD)))
    assert packet.source == "[::1]:5060"


@pytest.mark.parametrize(
    ("data", "at", "capture_id"),
    [
        pytest.param(hep12(1), None, 0, id="1"),
        pytest.param(hep12(2), AT, 2001, id="2"),
        pytest.param(hep12(2, counts_time=True), AT, 2001, id="2-length-counts-the-time"),
    ],
)
def test_old_versions(data: bytes, at: datetime | None, capture_id: int):
    packet = parse_hep(data)
    assert (packet.payload, packet.at, packet.capture_id) == (PAYLOAD, at, capture_id)
    assert (packet.source, packet.destination) == ("192.0.2.1:5060", "192.0.2.2:5080")


def test_old_version_over_ipv6():
    packet = parse_hep(hep12(1, family=10, addresses=bytes(15) + b"\x01" + bytes(15) + b"\x02"))
    assert (packet.source, packet.destination) == ("[::1]:5060", "[::2]:5080")


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress])
def test_compressed_payload(compress):
    assert parse_hep(hep3((0x10, compress(PAYLOAD)))).payload == PAYLOAD


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"INVITE sip:a@b SIP/2.0\r\n\r\n", id="plain-sip"),
        pytest.param(b"HEP3", id="no-length"),
        pytest.param(b"HEP3\x00\x05", id="length-below-header"),
        pytest.param(a_packet()[:-1], id="cut-short"),
        pytest.param(hep3((0x09, b"\x00" * 4)), id="no-payload"),
        pytest.param(b"HEP3\x00\x0c" + struct.pack("!HHH", 0, 0x0F, 5), id="chunk-shorter-than-its-header"),
        pytest.param(b"HEP3\x00\x0c" + struct.pack("!HHH", 0, 0x0F, 7), id="chunk-beyond-the-packet"),
        pytest.param(hep3((0x10, b"not compressed")), id="bad-compression"),
        pytest.param(hep3((0x10, zlib.compress(PAYLOAD)[:-6])), id="compression-cut-short"),
        pytest.param(hep3((0x10, zlib.compress(bytes(262_145)))), id="compression-bomb"),
        pytest.param(b"\x02\x10", id="old-header-cut-short"),
        pytest.param(hep12(2, payload=b""), id="old-without-payload"),
        pytest.param(hep12(1)[:1] + b"\x63" + hep12(1)[2:], id="old-with-wrong-length"),
    ],
)
def test_refused(data: bytes):
    with pytest.raises(HepError):
        parse_hep(data)


def test_largest_compressed_payload_is_read():
    assert len(parse_hep(hep3((0x10, zlib.compress(bytes(262_144))))).payload) == 262_144


def test_foreign_chunks_are_passed_over():
    foreign = hep3((0x0F, b"not the payload"), vendor=2)[6:]
    packet = hep3((0x0F, PAYLOAD))
    data = b"HEP3" + (len(packet) + len(foreign)).to_bytes(2, "big") + packet[6:] + foreign
    assert parse_hep(data).payload == PAYLOAD


def test_bytes_behind_the_packet_are_passed_over():
    assert parse_hep(a_packet() + b"padding") == parse_hep(a_packet())


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([], id="missing"),
        pytest.param([(0x03, b"\x01\x02\x03"), (0x07, b"\x13\xc4")], id="odd-address"),
        pytest.param([(0x03, b"\x01\x02\x03\x04"), (0x07, b"\x01" * 2000)], id="odd-port"),
    ],
)
def test_an_address_that_cannot_be_read_is_empty(chunks: list[tuple[int, bytes]]):
    assert parse_hep(hep3(*chunks, (0x0F, PAYLOAD))).source == ""


@pytest.mark.parametrize("seconds", [b"", b"\x00\x00\x00\x00", b"\xff" * 2000])
def test_a_time_that_cannot_be_read_is_none(seconds: bytes):
    assert parse_hep(hep3((0x09, seconds), (0x0F, PAYLOAD))).at is None


def test_impossible_microseconds_are_cut():
    packet = parse_hep(hep3((0x09, SECONDS.to_bytes(4, "big")), (0x0A, b"\xff" * 4), (0x0F, PAYLOAD)))
    assert packet.at == AT.replace(microsecond=999_999)


def test_packet_length_of_a_stream():
    assert packet_length(a_packet()[:6]) == len(a_packet())


@pytest.mark.parametrize("head", [b"", b"HEP", b"HEP3\x00", b"HEP2\x00\x10", b"\x02\x10\x02\x11\x00\x00", b"HEP3\x00\x00"])
def test_packet_length_refuses(head: bytes):
    with pytest.raises(HepError):
        packet_length(head)


def test_restamped_packets_differ_in_time_only():
    later = AT.replace(year=2027, microsecond=7)
    assert restamp_hep(a_packet(capture_id=5), later) == a_packet(at=later, capture_id=5)


def test_restamping_stops_at_a_broken_chunk():
    broken = b"HEP3\x00\x0c" + struct.pack("!HHH", 0, 0x09, 0)
    assert restamp_hep(broken, AT) == broken
