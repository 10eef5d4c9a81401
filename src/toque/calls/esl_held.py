"""What waits: legs of which it is not known yet whose they are, and calls of which it is not known yet whether they are any."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from toque.calls.esl_calls import Channel
from toque.calls.esl_event import EslEvent
from toque.calls.esl_parties import channel_of

PICKUP_WAIT = timedelta(seconds=2)  # from dialling a pickup's code to being connected; a longer one is told as a call
MAX_HELD = 10_000  # of one switch: more than its queues call at once


@dataclass(slots=True)
class HeldLeg:
    """A channel that some application called for somebody whom it did not name, or whose caller has not been seen yet."""

    event: EslEvent  # the first
    above: str
    rang_at: datetime | None = None
    answered_at: datetime | None = None

    def channel(self) -> Channel:
        """The channel, now that it is bridged."""
        channel = channel_of(self.event)
        channel.rang, channel.answered_at = self.rang_at is not None, self.answered_at
        return channel


class Untold:
    """The calls that may be pickups, and until when that is waited for; some of them have been told since."""

    def __init__(self) -> None:
        self._until: dict[str, datetime] = {}

    def add(self, key: str, now: datetime) -> None:
        """Wait for this call."""
        self._until[key] = now + PICKUP_WAIT

    def due(self, now: datetime) -> list[str]:
        """The calls that have been waited for."""
        due = [key for key, at in self._until.items() if at <= now]
        for key in due:
            del self._until[key]
        return due

    def next_due(self) -> datetime | None:
        """When there is one at the earliest."""
        return min(self._until.values(), default=None)
