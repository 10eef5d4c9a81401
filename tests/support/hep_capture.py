"""A plain UDP collector for HEP: keeps each datagram as it came, and writes them to a pcap file."""

import ipaddress
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

# A burst of a few hundred calls must fit while the reader waits for its turn.
RECEIVE_BUFFER = 4 * 1024 * 1024
MAX_DATAGRAM = 65535


@dataclass(frozen=True)
class Datagram:
    """One UDP datagram as the collector received it."""

    at: float  # seconds since the epoch
    source: tuple[str, int]
    destination: tuple[str, int]
    payload: bytes


class HepCapture:
    """Collects what arrives on a UDP port from `start` (or `with`) until `stop`."""

    def __init__(self, port: int = 0, *, host: str = "127.0.0.1") -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._socket.bind((host, port))
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self._arrived = threading.Condition()
        self._datagrams: list[Datagram] = []
        self._end_mark = secrets.token_bytes(16)
        self._reader = threading.Thread(target=self._read, name="hep-capture", daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    @property
    def datagrams(self) -> list[Datagram]:
        """What has arrived until now."""
        with self._arrived:
            return list(self._datagrams)

    def wait_for(self, condition: Callable[[list[Datagram]], bool], *, timeout_s: float = 10.0) -> list[Datagram]:
        """Wait until `condition` holds for all that has arrived, and return it; `TimeoutError` when it never does."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: condition(self._datagrams), timeout=timeout_s):
                raise TimeoutError(f"not seen within {timeout_s} s, {len(self._datagrams)} datagrams arrived")
            return list(self._datagrams)

    def stop(self) -> None:
        """Take in all that was sent before this moment, then close. Safe to repeat."""
        if self._reader.is_alive():
            # What was sent to this socket earlier is read before this mark.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(self._end_mark, (self.host, self.port))
            self._reader.join(timeout=10)
        self._socket.close()

    def write_pcap(self, path: Path) -> None:
        """Write what has arrived as a pcap file."""
        write_pcap(path, self.datagrams)

    def _read(self) -> None:
        while True:
            payload, source = self._socket.recvfrom(MAX_DATAGRAM)
            if payload == self._end_mark:
                return
            datagram = Datagram(time.time(), source, (self.host, self.port), payload)
            with self._arrived:
                self._datagrams.append(datagram)
                self._arrived.notify_all()


def write_pcap(path: Path, datagrams: Iterable[Datagram]) -> None:
    """Write a classic pcap (little-endian, microseconds, Ethernet) with made-up Ethernet, IPv4 and UDP headers."""
    with path.open("wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, MAX_DATAGRAM, 1))
        for number, datagram in enumerate(datagrams):
            frame = _frame(datagram, number)
            seconds, microseconds = divmod(round(datagram.at * 1_000_000), 1_000_000)
            out.write(struct.pack("<IIII", seconds, microseconds, len(frame), len(frame)))
            out.write(frame)


def _frame(datagram: Datagram, number: int) -> bytes:
    ethernet = bytes(12) + b"\x08\x00"
    udp_length = 8 + len(datagram.payload)
    # An UDP checksum of 0 means that none was computed.
    udp = struct.pack(">HHHH", datagram.source[1], datagram.destination[1], udp_length, 0)
    return ethernet + _ipv4_header(datagram, number, 20 + udp_length) + udp + datagram.payload


def _ipv4_header(datagram: Datagram, number: int, length: int) -> bytes:
    addresses = ipaddress.IPv4Address(datagram.source[0]).packed + ipaddress.IPv4Address(datagram.destination[0]).packed
    before = struct.pack(">BBHHHBB", 0x45, 0, length, number & 0xFFFF, 0, 64, 17)
    checksum = _internet_checksum(before + b"\x00\x00" + addresses)
    return before + struct.pack(">H", checksum) + addresses


def _internet_checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
