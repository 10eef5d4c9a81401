"""Identities are derived, never drawn: two servers on one switch give the same ones, and a repetition gives no new one."""

from __future__ import annotations

import json
from uuid import UUID, uuid5

from toque.calls.model import CallIdentity, Side, Status

_CALLS = UUID("6f1f2d0e-93a5-5c6e-8a3c-6b1d3c0f7a11")
_EVENTS = UUID("c2b8f1a4-5d0b-5f35-9f0e-2f4f6a9e4d27")


def callerid(identity: CallIdentity, generation: int) -> str:
    """A call's UUID, from the switch, its name there, and how often the switch used that name before."""
    return str(uuid5(_CALLS, json.dumps([identity.source, identity.key, generation])))


def event_id(side: Side, call: str, status: Status) -> str:
    """An event's id, from client, callerid, direction, pin and status."""
    return str(uuid5(_EVENTS, json.dumps([side.owner.client_id, call, side.direction, side.owner.pin, status])))
