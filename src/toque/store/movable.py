"""What a store must do beside its contract to be copied from and to, and what is handed over (`copying`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import msgspec

from toque.callbacks.callback import Registry
from toque.callbacks.delivery import Delivery
from toque.store.contract import Archive, DeadDelivery, Replay, ReplayState, Store
from toque.store.sqlite_calls import CallRow, SnapshotRow
from toque.store.sqlite_segments import StoredEvent

ENTRIES_AT_ONCE = 5_000  # outcomes that are one record: it must fit into a message of any engine
EVERY_ROW = 1 << 62


class RemovedCallback(NamedTuple):
    """What is remembered of a callback that was removed."""

    id: int
    code: str
    client_id: str


class Accounts(NamedTuple):
    """The registry with its secrets opened, and what else is of the same kind."""

    registry: Registry
    removed: Sequence[RemovedCallback]
    token_key: bytes


Entry = tuple[int, int, int, str]  # event's seq, callback's id, attempts, state


class CopiedOutcomes(NamedTuple):
    """What became of some deliveries, at once."""

    settled_at: int
    entries: Sequence[Entry]


class CopiedEvents(NamedTuple):
    """Events that were accepted at once, the first of them with this seq; `logged` counts the outcomes before them."""

    first_seq: int
    accepted_at: int
    logged: int
    events: Sequence[StoredEvent | None]

    @property
    def last_seq(self) -> int:
        """The last one's seq."""
        return self.first_seq + len(self.events) - 1

    def behind(self, seq: int) -> CopiedEvents:
        """Those behind a seq."""
        skipped = max(seq + 1 - self.first_seq, 0)
        return self._replace(first_seq=self.first_seq + skipped, events=self.events[skipped:])


class CopiedReplay(NamedTuple):
    """A replay, and the last event that it goes to; of dead deliveries, the callback's last one."""

    replay: Replay
    through: int


class Mark(msgspec.Struct):
    """What a target says of itself: whose copy it is, and whether it is whole."""

    source: str
    is_whole: bool = False


class Movable(Store, Archive, Protocol):
    """A store that can be copied from and to."""

    @property
    def shown(self) -> str:
        """What people call it."""

    async def claim(self) -> None:
        """See that no server uses it until it is closed. Raises `SettingsError`."""

    # As a source

    async def state_of_things(self) -> str:
        """A text that is another one as soon as a server has done something here."""

    async def removed_callbacks(self) -> list[RemovedCallback]:
        """Those whose codes are still known."""

    async def replay_ends(self) -> dict[int, int]:
        """Where each replay ends."""

    def outcomes(self, skipped: int) -> AsyncIterator[CopiedOutcomes]:
        """What became of deliveries, in order, without the first so many; never more than `ENTRIES_AT_ONCE` together."""

    def events(self) -> AsyncIterator[CopiedEvents]:
        """All that are kept, in order. What is being erased is None."""

    def calls(self, after: int) -> AsyncIterator[list[CallRow]]:
        """How far calls have been told, in the order of keys, from behind a key."""

    # As a target

    async def mark(self) -> Mark | None:
        """Whose copy it is."""

    async def put_mark(self, mark: Mark) -> None:
        """Say that."""

    async def is_empty(self) -> bool:
        """Whether there is nothing in it that a copy could be mixed up with."""

    async def take_accounts(self, accounts: Accounts) -> None:
        """Write the registry; what is there already is written again."""

    async def take_replays(self, replays: Sequence[CopiedReplay]) -> None:
        """Write replays; again as well."""

    async def take_outcomes(self, outcomes: Sequence[CopiedOutcomes]) -> None:
        """Add outcomes to those."""

    async def last_event(self) -> int:
        """The last event's seq."""

    async def take_events(self, events: CopiedEvents) -> None:
        """Add events behind that."""

    async def last_call(self) -> int:
        """The last key that was copied, -1 when there is none."""

    async def take_calls(self, calls: Sequence[CallRow], in_progress: set[int]) -> None:
        """Add calls behind that."""

    async def take_snapshots(self, snapshots: Sequence[SnapshotRow]) -> None:
        """Write what is in progress; again as well."""

    async def take_waiting(self, deliveries: Sequence[Delivery]) -> None:
        """Add to the end of a callback's backlog."""

    async def take_dead(self, deliveries: Sequence[DeadDelivery]) -> None:
        """Add to a callback's dead deliveries."""

    async def end_copy(self) -> None:
        """Write what says that all is there, and that nothing is without an outcome."""


def in_parts(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Outcomes, so many together as may be."""
    for start in range(0, len(entries), ENTRIES_AT_ONCE):
        yield entries[start : start + ENTRIES_AT_ONCE]


def number_of_parts(entries: int) -> int:
    """How many parts that comes to."""
    return -(-entries // ENTRIES_AT_ONCE)


def places_of(copied: CopiedReplay) -> tuple[int, int]:
    """Where a replay goes on in the target, and where it ends: the rows of dead deliveries have other numbers there."""
    is_by_row = copied.replay.is_for_dead and copied.replay.state is ReplayState.RUNNING
    return (0, EVERY_ROW) if is_by_row else (copied.replay.place, copied.through)


class Logged:
    """How many parts of outcomes there are up to a place of the source's."""

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        """`sizes`: places in their order, and how many parts lie there."""
        self._places = [place for place, _ in sizes]
        self._sums = list(accumulate((parts for _, parts in sizes), initial=0))

    def until(self, place: int) -> int:
        """The number."""
        return self._sums[bisect_right(self._places, place)]
