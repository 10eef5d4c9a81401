"""What every watch has in common: a switch's memory of its calls and their tracker, which live and are forgotten together."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec

from toque.calls.call import Call
from toque.calls.model import CallIdentity, SignalKind, Snapshot, StatusChange
from toque.calls.phases import Phase
from toque.calls.tracker import CallTracker

# Calls that match no line, those included that ended lately: at 3 KB each, and a stranger can begin them without end. A carrier
# whose lines are somebody else's has as many under way at 500 new ones a second.
MAX_UNMATCHED = 100_000
_PARTS = 50  # so much of that is made free at a time: it need not be done for every call, and takes 30 ms


class Memory(Protocol):
    """What a reader of one kind of switch remembers of calls."""

    def forget(self, identity: CallIdentity) -> None:
        """Remember nothing of a call any more."""

    def export(self, identity: CallIdentity) -> bytes:
        """What is remembered of a call, for its snapshot."""

    def restore(self, state: bytes) -> None:
        """Remember again. Raises `msgspec.DecodeError`."""


class Tracked:
    """A source's tracker and what its reader remembers."""

    def __init__(self, source: str, tracker: CallTracker, memory: Memory) -> None:
        self.source = source
        self.tracker = tracker
        self._memory = memory
        self._crowded = 0
        self._look_at = 0  # calls that must have begun before there can be too many

    def tick(self, now: datetime) -> None:
        """Do what has become due."""
        for identity in self.tracker.tick(now):
            self._memory.forget(identity)
        if self.tracker.counters.calls >= self._look_at:
            self._make_room()

    def _make_room(self) -> None:
        """Forget calls that match no line where there are too many: first those that have ended, and of each kind the oldest."""
        unmatched = [call for call in self.tracker.calls.values() if not call.sides]
        room = MAX_UNMATCHED - len(unmatched)
        if room < 0:
            unmatched.sort(key=_is_under_way)
            leaving = unmatched[: MAX_UNMATCHED // _PARTS - room]
            for call in leaving:
                self.forget(call.identity)
            room += len(leaving)
            crowded = sum(map(_is_under_way, leaving))
            self._crowded += crowded
            self.tracker.counters.crowded += crowded
        self._look_at = self.tracker.counters.calls + room + 1

    def forget(self, identity: CallIdentity) -> None:
        """Remember nothing of a call: what is heard of it next begins it anew. What its sides were told waits to be taken."""
        self.tracker.forget(identity)
        self._memory.forget(identity)

    def take_crowded(self) -> int:
        """How many calls under way that matched no line were forgotten for want of room, since the last call."""
        crowded, self._crowded = self._crowded, 0
        return crowded

    def take(self) -> tuple[list[StatusChange], list[Snapshot]]:
        """The changes since the last call, and the state of the calls they touched."""
        for call in self.tracker.touched():
            call.reader = self._memory.export(call.identity)
        return self.tracker.take()

    def waiting(self) -> int:
        """How many changes `take` would give."""
        return self.tracker.waiting()

    def take_unmatched(self) -> list[Call]:
        """The calls that ended without matching a line."""
        return self.tracker.take_unmatched()

    def take_late(self) -> dict[CallIdentity, SignalKind]:
        """The calls that showed a sign of life after their end had been concluded, and the last sign: to be logged, not told."""
        return self.tracker.take_late()

    def restore(self, state: bytes, now: datetime) -> None:
        """Go on with a call. Raises `ValueError` for bytes that are no snapshot of ours."""
        try:
            call = self.tracker.restore(state, now)
            self._memory.restore(call.reader)
        except msgspec.DecodeError as error:
            msg = f"a stored call cannot be read: {error}"
            raise ValueError(msg) from None


def _is_under_way(call: Call) -> bool:
    return call.phase is not Phase.ENDED
