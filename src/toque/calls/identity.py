"""Identities are derived, never drawn: two servers on one switch give the same ones, and a repetition gives no new one."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha1 as _sha1
from json.encoder import encode_basestring_ascii as _quoted
from uuid import UUID

from toque.calls.model import CallIdentity, Side, Status

_CALLS = UUID("6f1f2d0e-93a5-5c6e-8a3c-6b1d3c0f7a11").bytes
_EVENTS = UUID("c2b8f1a4-5d0b-5f35-9f0e-2f4f6a9e4d27").bytes
_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))  # the two highest bits are 10 (RFC 9562, 4.1)
_ENDS = {status: f'{status}"]'.encode("ascii") for status in Status}


@lru_cache(8_192)  # a call's is asked for with each of its statuses
def callerid(identity: CallIdentity, generation: int) -> str:
    """A call's UUID, from the switch, its name there, and how often the switch used that name before."""
    return _derived(_CALLS + f"[{_quoted(identity.source)}, {_quoted(identity.key)}, {generation}]".encode("ascii"))


def event_id(side: Side, call: str, status: Status) -> str:
    """An event's id, from client, callerid, direction, pin and status."""
    return event_id_of(event_name(side, call), status)


def event_name(side: Side, call: str) -> bytes:
    """What the ids of a side's events have in common, for `event_id_of`."""
    owner = side.owner
    name = f'[{_quoted(owner.client_id)}, "{call}", "{side.direction}", {_quoted(owner.pin)}, "'
    return _EVENTS + name.encode("ascii")


def event_id_of(name: bytes, status: Status) -> str:
    """An event's id, by what it has in common with those of its side."""
    return _derived(name + _ENDS[status])


def _derived(name: bytes) -> str:
    """What `uuid.uuid5` gives (RFC 9562, 5.5), in a third of its time: ids are made for every event."""
    digest = _sha1(name, usedforsecurity=False).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{_VARIANT[digest[16]]}{digest[17:20]}-{digest[20:32]}"
