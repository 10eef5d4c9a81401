"""The log of events: one row for each batch that was accepted, its events in it as JSON.

An event lies in its segment as an array: id, client_id, callerid, direction, pin, status, sequence, happened_at, payload, and
the ids of the callbacks that it is for. Its seq is the segment's first one plus its place; what was erased is null.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from toque.callbacks.delivery import Event
from toque.calls.model import Status
from toque.store.sqlite_rows import from_us

_ADD = """INSERT INTO segments (first_seq, last_seq, accepted_at, logged, open_from, calls, events)
    VALUES (?, ?, ?, (SELECT coalesce(max(id), 0) FROM outcomes), ?, ?, ?)"""
_WALK = """SELECT first_seq, last_seq, accepted_at, events FROM segments
    WHERE first_seq >= coalesce((SELECT max(first_seq) FROM segments WHERE first_seq <= :first), 0) AND first_seq <= :last
    ORDER BY first_seq"""
_BY = "SELECT last_seq FROM segments WHERE accepted_at <= ? ORDER BY accepted_at DESC, first_seq DESC LIMIT 1"
BYTES_A_STEP = 4 * 2**20  # of events that are read in one go: some milliseconds' work


class StoredEvent(msgspec.Struct, array_like=True, gc=False):
    """An event as it lies in a segment."""

    id: str
    client_id: str
    callerid: str
    direction: str
    pin: str
    status: Status
    sequence: int
    happened_at: datetime
    payload: msgspec.Raw
    callback_ids: list[int]


class Segment(msgspec.Struct):
    """What memory holds of a segment: how many of its deliveries are fresh. It is the receipt of each of them."""

    first_seq: int
    fresh: int


class StoredSegment(NamedTuple):
    """A segment that was read."""

    first_seq: int
    last_seq: int
    accepted_at: int
    text: str

    def events(self) -> Iterator[tuple[int, StoredEvent]]:
        """Its events with their seqs."""
        for seq, event in enumerate(_SEGMENT.decode(self.text), self.first_seq):
            if event is not None:
                yield seq, event

    def event(self, seq: int, stored: StoredEvent) -> Event:
        """An event as the world knows it."""
        return Event(
            seq,
            stored.id,
            stored.client_id,
            stored.callerid,
            stored.direction,
            stored.pin,
            stored.status,
            stored.sequence,
            from_us(self.accepted_at),
            bytes(stored.payload).decode(),
        )


_SEGMENT = msgspec.json.Decoder(list[StoredEvent | None])
_encode = msgspec.json.Encoder().encode


def add(
    connection: sqlite3.Connection, first_seq: int, accepted_at: int, open_from: int, rows: tuple[list[Any], list[Any]]
) -> None:
    """Write a segment. `open_from`: nothing before this event is without an outcome; `rows`: those of calls, and of events."""
    calls, events = rows
    last_seq = first_seq + len(events) - 1
    texts = (_encode(calls).decode(), _encode(events).decode())
    connection.execute(_ADD, (first_seq, last_seq, accepted_at, min(open_from, first_seq), *texts))


def last_seq(connection: sqlite3.Connection) -> int:
    """The last event's seq. The last segment is never removed, so that none is given twice."""
    found = connection.execute("SELECT last_seq FROM segments ORDER BY first_seq DESC LIMIT 1").fetchone()
    return 0 if found is None else int(found[0])


def walk(connection: sqlite3.Connection, first: int, last: int) -> Generator[StoredSegment, None, None]:
    """The segments that have events between these two seqs, both included."""
    for row in connection.execute(_WALK, {"first": first, "last": last}):
        if row[1] >= first:
            yield StoredSegment(*row)


def last_seq_by(connection: sqlite3.Connection, accepted_at: int) -> int:
    """The last event that was accepted by this moment, 0 when there is none; an earlier one where the clock was set back."""
    found = connection.execute(_BY, (accepted_at,)).fetchone()
    return 0 if found is None else int(found[0])


def replace(connection: sqlite3.Connection, segment: StoredSegment, keeps: Callable[[StoredEvent], bool]) -> None:
    """Write a segment again without those of its events that are not kept."""
    events = [event if event is not None and keeps(event) else None for event in _SEGMENT.decode(segment.text)]
    connection.execute("UPDATE segments SET events = ? WHERE first_seq = ?", (_encode(events).decode(), segment.first_seq))


def needle(text: str) -> str:
    """How a text looks in the JSON of a segment that has it."""
    return _encode(text).decode()


def open_from(connection: sqlite3.Connection) -> int:
    """The event before which none is without an outcome."""
    (found,) = connection.execute(
        """SELECT max(coalesce((SELECT open_from FROM outcomes ORDER BY id DESC LIMIT 1), 0),
                      coalesce((SELECT open_from FROM segments ORDER BY first_seq DESC LIMIT 1), 0))"""
    ).fetchone()
    return int(found)
