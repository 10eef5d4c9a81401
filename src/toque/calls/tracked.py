"""What every watch has in common: a switch's memory of its calls and their tracker, which live and are forgotten together."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec

from toque.calls.call import Call
from toque.calls.model import CallIdentity, SignalKind, Snapshot, StatusChange
from toque.calls.tracker import CallTracker


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

    def tick(self, now: datetime) -> None:
        """Do what has become due."""
        for identity in self.tracker.tick(now):
            self._memory.forget(identity)

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
