"""A trial post: a made-up status between two numbers that nobody has, correctly signed, to see whether a URL takes it."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from uuid import uuid4
from zoneinfo import ZoneInfo

from toque.callbacks.callback import Callback
from toque.callbacks.payload import PayloadWriter
from toque.calls.model import CallFacts, CallIdentity, Direction, Owner, Party, Side, Status, StatusChange
from toque.sending.requests import RequestWriter
from toque.sending.transport import Answered, Forbidden, Transport, Unreachable, Unsent

_ORIGIN, _DESTINATION = "551155550000", "551155550001"  # numbers that nobody has


async def try_callback(transport: Transport, callback: Callback, zone: ZoneInfo, now: datetime) -> tuple[bool, str, float]:
    """Whether the URL answered 2xx, what it answered, and after how many milliseconds. Its id is new: it is no event."""
    facts = CallFacts(
        caller=_ORIGIN,
        dialled=_DESTINATION,
        answered_by=_DESTINATION,
        began_at=now - timedelta(seconds=9),
        ringing_at=now - timedelta(seconds=8),
        answered_at=now - timedelta(seconds=5),
        ended_at=now,
        hung_up_by=Party.CALLER,
    )
    side = Side(Owner(callback.client_id, callback.pin or "teste"), Direction.MADE)
    change = StatusChange(CallIdentity("test", "test"), side, Status.HUNG_UP, now, facts)
    identifier = str(uuid4())
    payload = PayloadWriter(zone).render(change, event_id=identifier, callerid=str(uuid4()), sequence=1)
    began = time.perf_counter()
    outcome = await transport.post(RequestWriter(callback).write_payload(identifier, payload, now))
    took_ms = (time.perf_counter() - began) * 1000
    match outcome:
        case Answered(status, _, excerpt):
            return 200 <= status < 300, f"{status} {excerpt}".strip(), took_ms
        case Unreachable(reason) | Forbidden(reason) | Unsent(reason):
            return False, reason, took_ms
