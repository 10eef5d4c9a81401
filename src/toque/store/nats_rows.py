"""Rows of backlogs on the engine: their numbers, and how they and the record of a change lie in messages.

A row is a delivery that waits, or is dead. Rows that come at once for one callback are one message. A row's number is its
message's place in the stream, how many rows that has, its own place among them, and a slot: so a number says where to read, when
a message has nothing more in it, and the order of numbers is the order of backlogs. The lower slots are for deliveries that get
their rows after one that comes later in their lane; there are as many as a side can have events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from toque.callbacks.delivery import Delivery, Event
from toque.store.sqlite_backlog import StoredEvent, render_event
from toque.store.sqlite_rows import from_us_or_none, to_us_or_none

ROWS_A_MESSAGE = 256
BYTES_A_MESSAGE = 400_000
_SLOTS, _SLOT_BITS, _PLACE_BITS = 4, 2, 8
_ROW_BITS = _SLOT_BITS + 2 * _PLACE_BITS
LATEST = (1 << _ROW_BITS) - 1

DELIVERED, WAITING, DEAD = "delivered", "waiting", "dead"


def row_number(place: int, size: int, index: int) -> int:
    """The number of a row in a message of this many rows."""
    return (place << _ROW_BITS) | (size - 1) << (_PLACE_BITS + _SLOT_BITS) | index << _SLOT_BITS | (_SLOTS - 1)


def row_place(row: int) -> int:
    """The place of a row's message."""
    return row >> _ROW_BITS


def row_index(row: int) -> int:
    """A row's place in its message."""
    return (row >> _SLOT_BITS) & (ROWS_A_MESSAGE - 1)


def row_size(row: int) -> int:
    """How many rows its message has."""
    return ((row >> (_PLACE_BITS + _SLOT_BITS)) & (ROWS_A_MESSAGE - 1)) + 1


def is_late(row: int) -> bool:
    """Whether a row lies in no message: it came after what it is before."""
    return row & (_SLOTS - 1) != _SLOTS - 1


def through_place(place: int) -> int:
    """The highest number that a row at this place or before it can have."""
    return (place << _ROW_BITS) | LATEST


class Waiting(msgspec.Struct, array_like=True, gc=False):
    """A delivery that waits."""

    attempts: int
    due_at: int | None
    age_s: float
    event: msgspec.Raw

    def parsed(self) -> StoredEvent:
        """Its event."""
        return _EVENT.decode(self.event)

    def delivery(self, callback_id: int, row: int) -> Delivery:
        """As the world knows it."""
        return Delivery(self.parsed().known(), callback_id, self.attempts, from_us_or_none(self.due_at), self.age_s, row)


class Dead(msgspec.Struct, array_like=True, gc=False):
    """A delivery that was given up."""

    attempts: int
    age_s: float
    died_at: int
    outcome: str
    event: msgspec.Raw

    def parsed(self) -> StoredEvent:
        """Its event."""
        return _EVENT.decode(self.event)

    def delivery(self, callback_id: int, row: int) -> Delivery:
        """As the world knows it."""
        return Delivery(self.parsed().known(), callback_id, self.attempts, None, self.age_s, row)


Entry = tuple[int, int, int, str]  # event's seq, callback's id, attempts, state
Place = tuple[int, int, int]  # callback's id, how far behind the record its message lies, how many rows that has
RowOf = tuple[int, int]  # callback's id, row
Update = tuple[int, int, int, int | None, float]  # callback's id, row, attempts, due_at, age_s


class Record(msgspec.Struct, array_like=True):
    """What became of deliveries, all at once. It is one message of a chain; rows that it brings are the messages behind it."""

    nonce: str
    settled_at: int
    open_from: int  # nothing before this event is without an outcome
    entries: list[Entry] = []
    added: list[Place] = []
    died: list[Place] = []
    late: list[tuple[int, int, Waiting]] = []
    updates: list[Update] = []
    done: list[RowOf] = []  # they wait no more
    revived: list[RowOf] = []  # they are dead no more
    replay: tuple[int, int, int, int | None] | None = None  # its id, how far it is with this, how much that is, when it ended


_RECORD = msgspec.json.Decoder(Record)
_EVENT = msgspec.json.Decoder(StoredEvent)
_WAITINGS = msgspec.json.Decoder(list[Waiting])
_DEADS = msgspec.json.Decoder(list[Dead])
_encode = msgspec.json.Encoder().encode


def waiting(delivery: Delivery) -> Waiting:
    """A delivery as a row."""
    return Waiting(delivery.attempts, to_us_or_none(delivery.due_at), delivery.age_s, raw_event(delivery.event))


def raw_event(event: Event) -> msgspec.Raw:
    """An event as it lies in a row."""
    return msgspec.Raw(render_event(event).encode())


def render_rows(rows: Sequence[Waiting | Dead]) -> bytes:
    """Rows as a message."""
    return _encode(rows)


def parse_waiting(data: bytes) -> list[Waiting]:
    """The rows of a message."""
    return _WAITINGS.decode(data)


def parse_dead(data: bytes) -> list[Dead]:
    """The rows of a message."""
    return _DEADS.decode(data)


def render_record(record: Record) -> bytes:
    """A record as a message."""
    return _encode(record)


def parse_record(data: bytes) -> Record:
    """A record again."""
    return _RECORD.decode(data)


def in_messages(rows: Sequence[Any]) -> list[Sequence[Any]]:
    """Rows as they fit into messages."""
    parts: list[list[Any]] = []
    size = 0
    for row in rows:
        length = len(row.event) + 100
        if not parts or len(parts[-1]) >= ROWS_A_MESSAGE or size + length > BYTES_A_MESSAGE:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += length
    return list(parts)
