"""The calls of a source that is gone from the settings: nothing is heard of them, so they are concluded when stale. Pure."""

from __future__ import annotations

from datetime import datetime

import msgspec

from toque.calls.call import Call
from toque.calls.lines import LineBook
from toque.calls.model import CallIdentity, SignalKind, Snapshot, StatusChange
from toque.calls.tracker import CallTracker, Patience


class GoneWatch:
    """A tracker that is fed nothing. What the source's reader knew is kept as it is, should the source come back."""

    def __init__(self, source: str, patience: Patience | None = None) -> None:
        self.source = source
        self.tracker = CallTracker(LineBook(), patience)

    def tick(self, now: datetime) -> None:
        """Do what has become due."""
        self.tracker.tick(now)

    def take(self) -> tuple[list[StatusChange], list[Snapshot]]:
        """The changes since the last call, and the state of the calls they touched."""
        return self.tracker.take()

    def waiting(self) -> int:
        """How many changes `take` would give."""
        return self.tracker.waiting()

    def take_unmatched(self) -> list[Call]:
        """The calls that ended without matching a line."""
        return self.tracker.take_unmatched()

    def take_late(self) -> dict[CallIdentity, SignalKind]:
        """None: nothing is heard."""
        return {}

    def take_crowded(self) -> int:
        """None: no call begins."""
        return 0

    def forget(self, identity: CallIdentity) -> None:
        """Remember nothing of a call."""
        self.tracker.forget(identity)

    def restore(self, state: bytes, now: datetime) -> None:
        """Go on with a call. Raises `ValueError` for bytes that are no snapshot of ours."""
        try:
            self.tracker.restore(state, now)
        except msgspec.DecodeError as error:
            msg = f"a stored call cannot be read: {error}"
            raise ValueError(msg) from None
