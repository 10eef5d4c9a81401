"""What was heard and told of calls lately, kept for whoever asks why one of them ended as it did. Pure.

This runs for every signal there is, so it does nothing but keep what the tracker has made anyway, all calls mixed, and forgets
the oldest. What belongs to a call is gathered, and what it means is worked out, when somebody asks (`calls/explaining.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

import msgspec

from toque.calls.call import Call, Leg
from toque.calls.model import CallIdentity, Cause, Side, Signal, SignalKind, Status, StatusChange
from toque.calls.phases import Phase

MAX_BLOCKS = 120
BLOCK_ITEMS = 500  # what is kept and forgotten in one go, and looked through before others have their turn
MAX_BYTES = 48 * 2**20
_ITEM_BYTES = 600  # what one takes beside its texts, with what only it refers to
_LEG_BYTES = 250
_LETTER_BYTES = 4  # of a text with any letter beyond ASCII
MAX_UNMATCHED = 20
_SEEN, _NOTED = SignalKind.SEEN, SignalKind.NOTED


class Heard(msgspec.Struct, gc=False):
    """A signal, when it arrived by our clock, and where it found its call; None: it began one."""

    signal: Signal
    now: datetime
    phase: Phase | None

    @property
    def identity(self) -> CallIdentity:
        """Of which call."""
        return self.signal.identity

    @property
    def begins(self) -> bool:
        """Whether another call of this name began with it."""
        return self.phase is None or (self.phase is Phase.ENDED and self.signal.kind is SignalKind.BEGAN_AGAIN)


class Ended(msgspec.Struct, gc=False):
    """A decision on a call's end. The call changes no more; its legs are those that it had then, in the order of their ends.

    `phase` is where it was, unless a signal took it to ENDED, which then says where it found it.
    """

    call: Call
    status: Status
    at: datetime
    now: datetime
    phase: Phase
    legs: tuple[tuple[str, Leg], ...]

    @property
    def identity(self) -> CallIdentity:
        """Of which call."""
        return self.call.identity


Item = Heard | StatusChange | Ended  # a StatusChange is what a side was told
Follower = Callable[[Item], None]


class CallTrace:
    """All that is kept of one call, in the order in which it happened."""

    def __init__(self, identity: CallIdentity) -> None:
        self.identity = identity
        self.items: list[Item] = []

    @property
    def is_whole(self) -> bool:
        """Whether its beginning is kept, too."""
        return bool(self.items) and isinstance(self.items[0], Heard) and self.items[0].begins

    def add(self, item: Item) -> None:
        """Another one; where it begins a call of the same name, nothing is left of the one before."""
        if isinstance(item, Heard) and item.begins:
            self.items.clear()
        self.items.append(item)

    def heard(self) -> Iterator[Heard]:
        """The signals in the order of their arrival."""
        return (item for item in self.items if isinstance(item, Heard))

    def end(self) -> Ended | None:
        """How it ended."""
        return next((item for item in reversed(self.items) if isinstance(item, Ended)), None)

    def sides(self) -> list[Side]:
        """Who was told of it."""
        end = self.end()
        ended = [] if end is None else [side.side for side in end.call.sides]
        return list(dict.fromkeys([*(item.side for item in self.items if isinstance(item, StatusChange)), *ended]))


class Record:
    """The items of all sources, in blocks, the oldest first. Bounded in number, and in bytes."""

    def __init__(self, *, max_blocks: int = MAX_BLOCKS, max_bytes: int = MAX_BYTES) -> None:
        self.block: list[Item] = []
        self.bytes = 0  # of the closed blocks
        self.followers: tuple[Follower, ...] = ()
        self._max_blocks = max_blocks
        self._max_bytes = max_bytes
        self._closed: deque[tuple[int, list[Item]]] = deque()

    def close_block(self) -> None:
        """The block that is written into is full."""
        size = sum(map(_size_of, self.block))
        self._closed.append((size, self.block))
        self.bytes += size
        self.block = []
        while len(self._closed) > self._max_blocks or self.bytes > self._max_bytes:
            size, _ = self._closed.popleft()
            self.bytes -= size

    def blocks(self) -> list[list[Item]]:
        """All that is kept as of now, the oldest block first."""
        return [*(block for _, block in self._closed), self.block.copy()]

    def gather(self, identities: Iterable[CallIdentity]) -> dict[CallIdentity, CallTrace]:
        """What is kept of these calls."""
        traces = {identity: CallTrace(identity) for identity in identities}
        for block in self.blocks():
            for item in block:
                trace = traces.get(item.identity)
                if trace is not None:
                    trace.add(item)
        return traces


def _size_of(item: Item) -> int:
    """About how many bytes an item keeps in memory. What several have in common is counted with each: the others may go first."""
    if isinstance(item, Heard):
        said = item.signal
        text = f"{said.identity.key}{said.dialled}{said.number}{said.leg}{''.join(said.callers)}"
        if said.hints or said.cause is not None:
            text += "".join(said.hints) + _words_of(said.cause)
        return _ITEM_BYTES + _length_of(text)
    known = item.call if isinstance(item, Ended) else item.facts
    text = f"{item.identity.key}{known.caller}{known.dialled}{known.answered_by}{_words_of(known.cause)}"
    size = _ITEM_BYTES + _length_of(text)
    if isinstance(item, Ended):
        size += sum(_LEG_BYTES + _length_of(f"{name}{leg.number}{_words_of(leg.cause)}") for name, leg in item.legs)
    return size


def _words_of(cause: Cause | None) -> str:
    return "" if cause is None else cause.text or ""


def _length_of(text: str) -> int:
    """In bytes, at most. Several texts are asked as one: that takes a third of the time."""
    return len(text) if text.isascii() else _LETTER_BYTES * len(text)


class Onlooker:
    """One source's observer: puts what its tracker hears and tells into the record."""

    def __init__(self, source: str, record: Record) -> None:
        self.source = source
        self.heard_at: datetime | None = None
        self.unmatched: deque[Ended] = deque(maxlen=MAX_UNMATCHED)
        self._record = record

    def heard(self, signal: Signal, call: Call | None, now: datetime) -> None:
        """See `tracker.Observer`. Signs of life, and what readers note for themselves, are worth no place in the record."""
        self.heard_at, kind = now, signal.kind
        if kind is _SEEN or kind is _NOTED:
            return
        record = self._record
        block, item = record.block, Heard(signal, now, None if call is None else call.phase)
        block.append(item)
        if len(block) >= BLOCK_ITEMS:
            record.close_block()
        if record.followers:
            _follow(record, item)

    def told(self, change: StatusChange) -> None:
        """See `tracker.Observer`."""
        record = self._record
        record.block.append(change)
        if record.followers:
            _follow(record, change)

    def ended(self, call: Call, status: Status, at: datetime, now: datetime) -> None:
        """See `tracker.Observer`."""
        end = Ended(call, status, at, now, call.phase, tuple(call.legs.items()) if call.legs else ())
        self._record.block.append(end)
        if not call.sides and not call.is_counted:
            self.unmatched.append(end)
        if self._record.followers:
            _follow(self._record, end)

    def clock_behind(self, since: datetime) -> timedelta | None:
        """How far the switch's clock is behind ours, at most; negative: it is ahead. None where it told no time of its own.

        A signal's moment is the switch's, its arrival ours. What is between them is the time on the way and the difference of
        the clocks; the least of many is mostly the latter.
        """
        lags = (
            item.now - item.signal.at
            for block in self._record.blocks()
            for item in block
            if isinstance(item, Heard)
            and item.identity.source == self.source
            and item.now >= since
            and item.signal.at is not item.now
        )
        return min(lags, default=None)


def _follow(record: Record, item: Item) -> None:
    for follow in record.followers:
        follow(item)
