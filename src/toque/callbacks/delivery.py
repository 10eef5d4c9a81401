"""Deliveries: one event on its way to one callback, and what follows from each attempt.

The rules are those of docs/guarantees.md ("Delivery"). Chance and time are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

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
DEADLINE = timedelta(hours=24)  # of healthy time after acceptance: it stands still while the callback is parked
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


# These are made by the ten thousand each second: slots without a collector's header, and no dataclass's cost of freezing.


class Event(msgspec.Struct, frozen=True, gc=False, eq=False):
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
    body: bytes = b""  # the form itself, where it was made along with the payload; empty: to be made

    def __eq__(self, other: object) -> bool:
        """Whether they say the same; `body` says nothing that `payload` does not."""
        if not isinstance(other, Event):
            return NotImplemented
        return msgspec.structs.astuple(self)[:-1] == msgspec.structs.astuple(other)[:-1]

    def __hash__(self) -> int:
        return hash(self.id)


LaneKey = tuple[str, str, str]


class Delivery(msgspec.Struct, gc=False, eq=False):
    """One event for one callback.

    `row` is its place in the callback's backlog in the store, 0 while it has none. `receipt` is the store's own business: what
    it wants to see again when the delivery is settled. Healthy time is counted while it is in memory, by a clock that nobody
    sets: it stands still while its callback is parked, and a wall clock that jumps makes nothing old.
    """

    event: Event
    callback_id: int
    attempts: int = 0
    due_at: datetime | None = None  # None: at once
    age_s: float = 0.0  # its healthy time until `since_s`
    row: int = 0
    receipt: Any = None
    since_s: float = 0.0  # when it came into the dispatcher's hands, or was written down last, on the loop's clock

    @property
    def lane(self) -> LaneKey:
        """Deliveries to one callback with equal lanes go one after the other: they are of one side of one call."""
        event = self.event
        return (event.callerid, event.direction, event.pin)


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """How a delivery stands, attempts and due time included; `outcome` is a short text for people.

    WAITING puts it into its callback's backlog, or brings its row there up to date.
    """

    delivery: Delivery
    state: DeliveryState
    outcome: str = ""


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


def judge(status: int | None, retry_after: str | None, *, attempts: int, age: timedelta, now: datetime, chance: float) -> Verdict:
    """What follows from an attempt that ended with this HTTP status (None: no answer).

    `attempts` counts this one; `age` is the healthy time since acceptance; `chance` is uniform in [0, 1).
    """
    if status is not None and 200 <= status < 300:
        return Delivered()
    if status == _GONE:
        return GiveUp("410 Gone", disables_callback=True)
    if status in UNWELCOME and attempts >= UNWELCOME_TRIES:
        return GiveUp(f"refused {attempts} times with {status}")
    left = DEADLINE - age
    if left <= timedelta():
        return GiveUp("not delivered within 24 hours")
    asked = parse_retry_after(retry_after, now) if status in _ASKS_TO_WAIT and retry_after else None
    if asked is not None:
        return TryAgain(min(asked, left), pauses_callback=True)
    wait = RETRIES[min(attempts, len(RETRIES)) - 1] * (1 + JITTER * (2 * chance - 1))
    return TryAgain(min(wait, left))


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


def sorted_out(delivered: Sequence[Delivery], others: Sequence[Settlement]) -> tuple[Sequence[Delivery], Sequence[Settlement]]:
    """Each delivery once, with its last state, or with the first that ends it."""
    ended: dict[int, DeliveryState] = {id(delivery): DeliveryState.DELIVERED for delivery in delivered}
    found: dict[int, Settlement] = {}
    for other in others:
        key = id(other.delivery)
        if key not in ended:
            found[key] = other
            if other.state is not DeliveryState.WAITING:
                ended[key] = other.state
    also = [other.delivery for other in found.values() if other.state is DeliveryState.DELIVERED]
    rest = [other for other in found.values() if other.state is not DeliveryState.DELIVERED]
    return [*delivered, *also], rest
