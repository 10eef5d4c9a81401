"""Deliveries in the hands of the dispatcher: which segments have some, and before which event none is without an outcome."""

from __future__ import annotations

from toque.store.nats_log import LoggedSegment
from toque.store.sqlite_segments import Segment


class Fresh:
    """The segments that have fresh deliveries, the oldest first."""

    def __init__(self) -> None:
        self._open: dict[int, Segment] = {}
        self._unrecovered: int | None = 0  # from which event on an earlier process left some; 0: not known; None: none

    def __len__(self) -> int:
        """How many segments there are."""
        return len(self._open)

    def add(self, segment: Segment) -> None:
        """These have been handed out, or will be."""
        self._open[segment.first_seq] = segment

    def forget(self, first_seq: int) -> None:
        """They will not be."""
        self._open.pop(first_seq, None)

    def found(self, tail: LoggedSegment) -> None:
        """The log's end is known; what it calls open is an earlier process's, as far as this one can tell."""
        if self._unrecovered == 0:
            self._unrecovered = max(tail.open_from, 1) if tail.last_seq else None

    def recovered(self) -> None:
        """Nothing is left of what earlier processes had in hand."""
        self._unrecovered = None

    def settled(self, segment: Segment) -> None:
        """One of them has an outcome."""
        segment.fresh -= 1
        if not segment.fresh:
            self._open.pop(segment.first_seq, None)

    def open_from(self, last_seq: int) -> int:
        """Before which event none is without an outcome."""
        oldest = next(iter(self._open), last_seq + 1)
        return oldest if self._unrecovered is None else min(oldest, self._unrecovered)
