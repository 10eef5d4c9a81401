"""Recordings: what is read of a pcap file, and that a replay sends it at the recording's pace with the time of today."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.hep_capture import Datagram, write_pcap

from toque.calls.hep_packet import parse_hep, render_hep
from toque.sources.recording import RecordedPacket, RecordingError, read_recording, replay

BEGAN = datetime(2025, 5, 5, 5, 5, 5, 250_000, tzinfo=UTC)
SWITCH, US = ("192.0.2.2", 5060), ("192.0.2.9", 9060)


def udp(payload: bytes, *, flags: int = 0, protocol: int = 17, options: bytes = b"") -> bytes:
    """An IPv4 packet."""
    header = 20 + len(options)
    length = header + 8 + len(payload)
    ip = struct.pack(">BBHHHBBH4s4s", 0x40 | header // 4, 0, length, 1, flags, 64, protocol, 0, bytes(4), bytes(4)) + options
    return ip + struct.pack(">HHHH", 5060, 9060, 8 + len(payload), 0) + payload


def ethernet(packet: bytes, kind: bytes = b"\x08\x00") -> bytes:
    return bytes(12) + kind + packet


def pcap(*frames: bytes, order: str = "<", link: int = 1, magic: int = 0xA1B2C3D4, seconds: int = 100) -> bytes:
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65_535, link)
    for number, frame in enumerate(frames):
        out += struct.pack(order + "IIII", seconds + number, 250_000, len(frame), len(frame)) + frame
    return out


def written(path: Path, content: bytes) -> Path:
    file = path / "recording.pcap"
    file.write_bytes(content)
    return file


def payloads(path: Path, content: bytes) -> list[bytes]:
    return [packet.data for packet in read_recording(written(path, content))]


def test_datagrams_with_their_moments(tmp_path: Path) -> None:
    file = tmp_path / "recording.pcap"
    moments = [BEGAN.timestamp(), BEGAN.timestamp() + 1.5]
    write_pcap(file, [Datagram(at, SWITCH, US, b"HEP3" + bytes([number])) for number, at in enumerate(moments)])
    assert read_recording(file) == [
        RecordedPacket(BEGAN, b"HEP3\x00"),
        RecordedPacket(BEGAN + timedelta(seconds=1.5), b"HEP3\x01"),
    ]


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders(tmp_path: Path, order: str) -> None:
    (packet,) = read_recording(written(tmp_path, pcap(ethernet(udp(b"x")), order=order)))
    assert packet == RecordedPacket(datetime.fromtimestamp(100.25, UTC), b"x")


def test_raw_ip(tmp_path: Path) -> None:
    assert payloads(tmp_path, pcap(udp(b"x"), link=101)) == [b"x"]


def test_what_is_no_datagram_is_left_out(tmp_path: Path) -> None:
    frames = [
        ethernet(udp(b"one")),
        ethernet(udp(b"tcp", protocol=6)),
        ethernet(bytes(28), kind=b"\x08\x06"),  # ARP
        ethernet(b"\x60" + bytes(60), kind=b"\x86\xdd"),  # IPv6
        ethernet(b"\x40\x01\x08\x00" + udp(b"vlan"), kind=b"\x81\x00"),
        ethernet(udp(b"")),
        b"",
        b"\x45",
        ethernet(udp(b"two")),
    ]
    assert payloads(tmp_path, pcap(*frames)) == [b"one", b"two"]


def test_padding_and_options_are_not_payload(tmp_path: Path) -> None:
    assert payloads(tmp_path, pcap(ethernet(udp(b"x") + bytes(20)), ethernet(udp(b"y", options=bytes(4))))) == [b"x", b"y"]


def test_a_datagram_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    """By a short snapshot length, or by the end of a file whose writer was killed."""
    assert payloads(tmp_path, pcap(ethernet(udp(b"x" * 100))[:-1], ethernet(udp(b"y")))) == [b"y"]
    whole = pcap(ethernet(udp(b"x")), ethernet(udp(b"y" * 100)))
    for end in range(len(whole) - 158, len(whole)):
        assert payloads(tmp_path, whole[:end]) == [b"x"]


@pytest.mark.parametrize("flags", [0x2000, 0x0001, 0x2001])
def test_fragments_are_told_instead_of_lost(tmp_path: Path, flags: int) -> None:
    with pytest.raises(RecordingError, match="fragments"):
        read_recording(written(tmp_path, pcap(ethernet(udp(b"x", flags=flags)))))


def test_a_datagram_that_must_not_be_fragmented_is_whole(tmp_path: Path) -> None:
    assert payloads(tmp_path, pcap(ethernet(udp(b"x", flags=0x4000)))) == [b"x"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a pcap file$"),
        (b"HEP3", "is not a pcap file$"),
        (pcap()[:23], "is not a pcap file$"),
        (pcap(magic=0xA1B23C4D), "is not a pcap file$"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), "editcap -F pcap"),
        (pcap(link=113), "link type 113; Ethernet and raw IP are read"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(RecordingError, match=problem):
        read_recording(written(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No such file"):
        read_recording(tmp_path / "none.pcap")
    with pytest.raises(RecordingError, match="directory"):
        read_recording(tmp_path)


@given(content=st.binary(max_size=200), link=st.sampled_from([1, 101]))
def test_any_bytes_give_packets_or_the_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes, link: int) -> None:
    file = tmp_path_factory.getbasetemp() / "any.pcap"
    file.write_bytes(pcap(link=link) + content)
    try:
        packets = read_recording(file)
    except RecordingError:
        return
    assert all(packet.data for packet in packets)


def test_the_recording_that_ships_with_the_package() -> None:
    packets = read_recording(Path(str(files("toque").joinpath("recordings/demo.pcap"))))
    assert len(packets) > 100
    for packet in packets:
        moment = parse_hep(packet.data).at
        assert moment is not None
        assert abs(moment - packet.at) < timedelta(seconds=1)


# Replay


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        bound.settimeout(10)
        yield bound


def recorded(seconds: float, payload: bytes) -> RecordedPacket:
    at = BEGAN + timedelta(seconds=seconds)
    addresses = (IPv4Address("192.0.2.1"), 5060), (IPv4Address("192.0.2.2"), 5060)
    return RecordedPacket(at, render_hep(payload, at=at, source=addresses[0], destination=addresses[1]))


async def test_a_replay_keeps_the_pace_and_says_that_it_is_now(receiver: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 3, 2, 12, 0, 0, tzinfo=UTC)
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        waited.append(seconds)
        now += timedelta(seconds=seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    packets = [recorded(0, b"a"), recorded(2, b"b"), recorded(2, b"c"), recorded(5, b"d")]
    began = now
    await replay(packets, receiver.getsockname(), speed=2, clock=lambda: now)
    assert waited == [1, 1.5]
    arrived = [parse_hep(receiver.recv(65_536)) for _ in packets]
    assert [packet.payload for packet in arrived] == [b"a", b"b", b"c", b"d"]
    assert [packet.at for packet in arrived] == [began + timedelta(seconds=seconds) for seconds in (0, 1, 1, 2.5)]
    assert {packet.source for packet in arrived} == {"192.0.2.1:5060"}


async def test_a_replay_of_nothing(receiver: socket.socket) -> None:
    await replay([], receiver.getsockname(), speed=1, clock=lambda: BEGAN)
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        receiver.recv(1)
