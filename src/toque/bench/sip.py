"""SIP messages of made-up calls, wrapped in HEP, as a proxy with one hop would mirror them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Address

from toque.calls.hep_packet import render_hep

_PHONE, _PROXY = (IPv4Address("192.0.2.10"), 5060), (IPv4Address("192.0.2.1"), 5060)
CALLEE = "5511977770002"
STATUSES = ("iniciou", "chamando", "atendeu", "desligou")
_STEPS = ("INVITE", "180 Ringing", "200 OK", "BYE")


def messages(caller: str, call: int, run: str) -> Iterator[bytes]:
    """The four SIP messages that make the four statuses of an answered call."""
    for step in _STEPS:
        is_request = step.isalpha()
        method = step if step == "BYE" else "INVITE"
        first = f"{method} sip:{CALLEE}@192.0.2.1 SIP/2.0" if is_request else f"SIP/2.0 {step}"
        tag = "" if step == "INVITE" else f";tag=b{call}"
        yield (
            f"{first}\r\n"
            f"Via: SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bK{run}{call}{method}\r\n"
            f"From: <sip:{caller}@192.0.2.1>;tag=a{call}\r\n"
            f"To: <sip:{CALLEE}@192.0.2.1>{tag}\r\n"
            f"Call-ID: {run}-{call}@192.0.2.10\r\n"
            f"CSeq: {2 if method == 'BYE' else 1} {method}\r\n"
            "Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
        ).encode("ascii")


def wrapped(message: bytes) -> bytes:
    """A message in HEP, mirrored now."""
    is_request = not message.startswith(b"SIP/2.0")
    source, destination = (_PHONE, _PROXY) if is_request else (_PROXY, _PHONE)
    return render_hep(message, at=datetime.now(UTC), source=source, destination=destination)
