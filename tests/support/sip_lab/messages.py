"""Reads the lab's HEP datagrams back into SIP messages: a witness that shares no code with the package under test."""

import ipaddress
import struct
from dataclasses import dataclass

IPV4_SOURCE, IPV4_DESTINATION, SOURCE_PORT, DESTINATION_PORT = 3, 4, 7, 8
SECONDS, MICROSECONDS, AUTH_KEY, PAYLOAD = 9, 10, 14, 15


@dataclass(frozen=True)
class SipMessage:
    """One SIP message as the proxy mirrored it."""

    at: float
    source: tuple[str, int]
    destination: tuple[str, int]
    start_line: str
    headers: tuple[tuple[str, str], ...]
    body: str

    @property
    def status(self) -> int | None:
        """The status code of a reply; None for a request."""
        return int(self.start_line.split()[1]) if self.start_line.startswith("SIP/2.0 ") else None

    @property
    def method(self) -> str:
        """The method of a request, or of the request that a reply answers."""
        return self.header("CSeq").split()[1]

    @property
    def word(self) -> str:
        """How a ladder names it: `INVITE`, `180`, and `200/BYE` for replies to anything but an INVITE."""
        if self.status is None:
            return self.method
        return str(self.status) if self.method == "INVITE" else f"{self.status}/{self.method}"

    @property
    def branch(self) -> str:
        """The branch of the topmost Via, which a sender may put into one line with the others."""
        return self.header("Via").partition(",")[0].partition(";branch=")[2]

    @property
    def in_dialogue(self) -> bool:
        """Whether the To header has a tag."""
        return ";tag=" in self.header("To")

    @property
    def call_id(self) -> str:
        return self.header("Call-ID")

    def header(self, name: str) -> str:
        """The first header of that name; empty where there is none."""
        return next(iter(self.all_headers(name)), "")

    def all_headers(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


def decode_hep3(datagram: bytes) -> SipMessage:
    """The SIP message inside a HEP version 3 datagram."""
    chunks = hep3_chunks(datagram)
    return _sip_message(
        at=_number(chunks[SECONDS]) + _number(chunks[MICROSECONDS]) / 1_000_000,
        source=_address(chunks[IPV4_SOURCE], chunks[SOURCE_PORT]),
        destination=_address(chunks[IPV4_DESTINATION], chunks[DESTINATION_PORT]),
        text=chunks[PAYLOAD].decode(),
    )


def hep3_chunks(datagram: bytes) -> dict[int, bytes]:
    """The chunks of a HEP version 3 datagram by type."""
    magic, length = struct.unpack_from(">4sH", datagram)
    if magic != b"HEP3" or length != len(datagram):
        raise ValueError("not one whole HEP 3 datagram")
    chunks, offset = {}, 6
    while offset < length:
        _vendor, kind, size = struct.unpack_from(">HHH", datagram, offset)
        chunks[kind] = datagram[offset + 6 : offset + size]
        offset += size
    return chunks


def _sip_message(at: float, source: tuple[str, int], destination: tuple[str, int], text: str) -> SipMessage:
    head, _, body = text.partition("\r\n\r\n")
    start_line, *lines = head.split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = tuple((name.strip(), value.strip()) for name, _, value in pairs)
    return SipMessage(at, source, destination, start_line, headers, body)


def _number(body: bytes) -> int:
    return int.from_bytes(body, "big")


def _address(ip: bytes, port: bytes) -> tuple[str, int]:
    return str(ipaddress.IPv4Address(ip)), _number(port)
