"""A switch's HEP agent: wraps SIP messages as HEP version 3 and sends each at its moment, over TCP or UDP.

Over TCP it behaves as agents do: a lost connection is made again, as often as it takes. What it had handed to the kernel by then is
lost. What falls due until it is connected again is sent then, or given up, as the caller likes.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from ipaddress import IPv4Address
from itertools import count
from types import TracebackType
from typing import Self

from toque.calls.hep_packet import HepPacket, render_hep

HOST = "127.0.0.1"
PATIENCE_S = 30.0
RETRY_S = 0.02
IDLE_S = 0.005


def render(packet: HepPacket) -> bytes:
    """The packet as a switch writes it."""
    assert packet.at is not None
    return render_hep(packet.payload, at=packet.at, source=_address(packet.source), destination=_address(packet.destination))


def _address(text: str) -> tuple[IPv4Address, int]:
    host, _, port = text.rpartition(":")
    return IPv4Address(host), int(port)


def send_by_udp(port: int, packets: Iterable[HepPacket]) -> None:
    """Send all packets now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for packet in packets:
            sender.sendto(render(packet), (HOST, port))


def send_by_tcp(port: int, packets: Iterable[HepPacket]) -> None:
    """Send all packets now, and close the connection in order."""
    with socket.create_connection((HOST, port)) as sender:
        for packet in packets:
            sender.sendall(render(packet))


@dataclass(order=True)
class _Due:
    at_s: float  # seconds since 1970
    ticket: int
    call: str = field(compare=False)
    packet: HepPacket = field(compare=False)


@dataclass
class HepAgent:
    """Sends over TCP from a thread of its own while it is entered. `keeps` says what becomes of an outage's packets.

    `sent` has the number of each call's packets that were sent on each connection; connections are counted from 1.
    """

    port: int
    keeps: bool = True
    sent: dict[int, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._due: list[_Due] = []
        self._tickets = count()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hep-agent")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def connection(self) -> int:
        """The number of the latest connection."""
        return max(self.sent, default=0)

    @property
    def waiting(self) -> int:
        """Packets that are not sent yet."""
        with self._lock:
            return len(self._due)

    def add(self, call: str, packets: Iterable[HepPacket]) -> None:
        """Send these at their moments."""
        with self._lock:
            for packet in packets:
                assert packet.at is not None
                heappush(self._due, _Due(packet.at.timestamp(), next(self._tickets), call, packet))

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._connected() as connection:
                if connection is None:
                    self._give_up()
                    self._stop.wait(RETRY_S)
                    continue
                self.sent[self.connection + 1] = {}
                with contextlib.suppress(OSError):
                    self._send_on(connection)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket | None]:
        try:
            connection = socket.create_connection((HOST, self.port), timeout=PATIENCE_S)
        except OSError:
            yield None
            return
        with connection:
            yield connection

    def _send_on(self, connection: socket.socket) -> None:
        sent = self.sent[self.connection]
        while not self._stop.is_set():
            if (due := self._pop()) is None:
                if _is_closed(connection):
                    return
                self._stop.wait(IDLE_S)
                continue
            connection.sendall(render(due.packet))
            sent[due.call] = sent.get(due.call, 0) + 1

    def _pop(self) -> _Due | None:
        with self._lock:
            return heappop(self._due) if self._due and self._due[0].at_s <= time.time() else None

    def _give_up(self) -> None:
        while not self.keeps and self._pop() is not None:
            pass


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other side is gone; it never says anything."""
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and connection.recv(1) == b""
