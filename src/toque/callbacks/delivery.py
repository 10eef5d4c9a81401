"""Deliveries: one event on its way to one callback, and what follows from each attempt.

The rules are those of docs/guarantees.md ("Delivery"). Chance and time are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum

import msgspec

from toque.calls.model import Status

RETRIES = (
    timedelta(seconds=1),
    timedelta(seconds=2),
    timedelta(seconds=5),
    timedelta(seconds=10),
    timedelta(seconds=30),
    timedelta(minutes=1),
    timedelta(minutes=2),
    timedelta(minutes=5),
    timedelta(minutes=15),
    timedelta(minutes=30),
    timedelta(hours=1),  # and so on
)
JITTER = 0.1  # of each wait, either way
SHORTEST_RETRY_AFTER = RETRIES[0]  # who asks to be tried again at once, and fails at once, would be tried without end
DEADLINE = timedelta(hours=24)  # after acceptance
LONGEST_RETRY_AFTER = timedelta(hours=1)
UNWELCOME = frozenset({400, 413, 422})  # the receiver refuses this event, not its sender
UNWELCOME_TRIES = 3
_GONE = 410
_ASKS_TO_WAIT = frozenset({429, 503})


class DeliveryState(StrEnum):
    """Waiting for an attempt, or done with."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


class Event(msgspec.Struct, frozen=True):  # made by the ten thousand: a frozen dataclass takes twenty times as long
    """One status change as told to one client. `seq` is the store's own order; `sequence` counts within the side."""

    seq: int
    id: str
    client_id: str
    callerid: str
    direction: str
    pin: str
    status: Status
    sequence: int
    accepted_at: datetime
    payload: str  # the JSON that goes into the form field `data`


@dataclass(slots=True)
class Delivery:
    """One event for one callback."""

    event: Event
    callback_id: int
    attempts: int = 0
    due_at: datetime | None = None  # None: at once

    @property
    def lane(self) -> tuple[int, str, str, str]:
        """Deliveries with equal lanes go one after the other: one callback, one side of one call."""
        return (self.callback_id, self.event.callerid, self.event.direction, self.event.pin)


class Settlement(msgspec.Struct, frozen=True):
    """How a delivery stands after an attempt. `outcome` is a short text for people."""

    event_seq: int
    callback_id: int
    state: DeliveryState
    attempts: int
    due_at: datetime | None
    outcome: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """A 2xx."""


@dataclass(frozen=True, slots=True)
class TryAgain:
    """After `wait`; `pauses_callback` when the receiver asked to be left alone as a whole."""

    wait: timedelta
    pauses_callback: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The delivery is dead; `disables_callback` when the receiver said that it is gone for good."""

    reason: str
    disables_callback: bool = False


Verdict = Delivered | TryAgain | GiveUp


def judge(
    status: int | None, retry_after: str | None, *, attempts: int, accepted_at: datetime, now: datetime, chance: float
) -> Verdict:
    """What follows from an attempt that ended with this HTTP status (None: no answer).

    `attempts` counts this one; `chance` is uniform in [0, 1).
    """
    if status is not None and 200 <= status < 300:
        return Delivered()
    if status == _GONE:
        return GiveUp("410 Gone", disables_callback=True)
    if status in UNWELCOME and attempts >= UNWELCOME_TRIES:
        return GiveUp(f"refused {attempts} times with {status}")
    deadline = accepted_at + DEADLINE
    if now >= deadline:
        return GiveUp("not delivered within 24 hours")
    asked = parse_retry_after(retry_after, now) if status in _ASKS_TO_WAIT and retry_after else None
    if asked is not None:
        return TryAgain(min(asked, deadline - now), pauses_callback=True)
    wait = RETRIES[min(attempts, len(RETRIES)) - 1] * (1 + JITTER * (2 * chance - 1))
    return TryAgain(min(wait, deadline - now))


def parse_retry_after(text: str, now: datetime) -> timedelta | None:
    """A Retry-After header's wait: seconds or an HTTP date (RFC 9110, 10.2.3). None when unreadable.

    It is a second at least and an hour at most.
    """
    text = text.strip()
    if text.isascii() and text.isdecimal():
        digits = text.lstrip("0")
        asked = LONGEST_RETRY_AFTER if len(digits) > 4 else timedelta(seconds=int(digits or "0"))
    else:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, OverflowError):  # an offset may be out of all bounds
            return None
        asked = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - now
    return min(max(asked, SHORTEST_RETRY_AFTER), LONGEST_RETRY_AFTER)
