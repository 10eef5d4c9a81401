"""Calls as the store knows them: how far each side of them has been told. Their rows, and those that memory holds.

A call's key is as good as random, and a row at a random place costs a page of the file. So a call that changed is written into
the log, with the segment that changed it, and stays `Unwritten` in memory; thousands of them go into their table together,
ordered by key. After a restart the log says which were not there yet.

A call whose beginning is told is taken for a new one without asking the table first; the transaction that writes it makes sure,
and where there was a row it is planned anew (`CallsAreKnown`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from toque.calls.identity import callerid, event_name
from toque.calls.model import CallIdentity, Side, StatusChange
from toque.store.sqlite_rows import read_many, write_many
from toque.store.sqlite_writer import Stale

CALLS_HELD = 20_000  # in memory; each is some 700 bytes
UNWRITTEN_CALLS = 10_000  # in memory at most, about, before they go into their table; each is some 400 bytes
WRITTEN_AT_ONCE = 500

_FIND = "SELECT id, callerid0, seen_at, state FROM calls WHERE id IN (VALUES {values})"
_ANY = "SELECT 1 FROM calls WHERE id IN (VALUES {values}) LIMIT 1"
_KEEP = """INSERT INTO calls (id, callerid0, seen_at, state) VALUES {values}
    ON CONFLICT (id) DO UPDATE SET callerid0 = excluded.callerid0, seen_at = excluded.seen_at, state = excluded.state"""
_KEEP_SNAPSHOTS = """INSERT INTO snapshots (call_id, source, key, state) VALUES {values}
    ON CONFLICT (call_id) DO UPDATE SET source = excluded.source, key = excluded.key, state = excluded.state"""
_LOGGED = "SELECT calls FROM segments WHERE first_seq >= ? ORDER BY first_seq"
_CALLS_FROM = "SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'calls_from'"
_PLACE = "SELECT first_seq, seen_at FROM call_places WHERE id = ?"
_DROP_SNAPSHOTS = "DELETE FROM snapshots WHERE call_id IN (VALUES {values})"

CallRow = tuple[int, str, int, str]  # id, callerid0, seen_at, state
SnapshotRow = tuple[int, str, str, bytes | None]  # id, source, key, state; None: the call is over


class Told(msgspec.Struct, array_like=True, gc=False):
    """How far one side of a call has been told."""

    client_id: str
    direction: str
    pin: str
    sequence: int = 0
    order: int = 0


class CallState(msgspec.Struct, array_like=True, gc=False):
    """What is written of a call. The generation before this one ended at `earlier_ended_at`."""

    generation: int = 0
    told: list[Told] = []
    ended_at: datetime | None = None
    earlier_ended_at: datetime | None = None
    first_seq: int = 0  # of its events, those of earlier generations included


_DECODER = msgspec.json.Decoder(CallState)
_ROWS = msgspec.json.Decoder(list[CallRow])
_encode = msgspec.json.Encoder().encode


class Telling(NamedTuple):
    """A side, how far it has been told, and what the ids of its events have in common."""

    side: Side | None
    told: Told
    name: bytes


NOBODY = Telling(None, Told("", "", ""), b"")


class Call:
    """A call in memory."""

    __slots__ = ("callerid", "callerid0", "ended_in", "id", "identity", "is_changed", "is_new", "latest", "seen_at", "state")

    def __init__(self, identity: CallIdentity, callerid0: str, state: CallState | None = None, seen_at: int = 0) -> None:
        self.identity = identity
        self.callerid0 = callerid0
        self.id = key_of(callerid0)
        self.is_new = False  # taken for new, without having asked the table
        self.state = state = CallState(told=[]) if state is None else state
        self.callerid = callerid(identity, state.generation) if state.generation else callerid0
        self.seen_at = seen_at
        self.ended_in = 0  # the number of the append that ended it, 0 when that was an earlier process's
        self.is_changed = False
        self.latest: Telling = NOBODY

    def telling(self, side: Side) -> Telling:
        """What its side needs to be told something. Most calls have one side, so the latest one is kept."""
        client_id, pin, direction = side.owner.client_id, side.owner.pin, side.direction
        for told in self.state.told:
            if told.pin == pin and told.client_id == client_id and told.direction == direction:
                break
        else:
            told = Told(client_id, str(direction), pin)
            self.state.told.append(told)
        self.latest = latest = Telling(side, told, event_name(side, self.callerid))
        return latest

    def owns(self, change: StatusChange) -> bool:
        """Whether a change belongs to this call, and not to an earlier one of the same name.

        What begins after the end of its namesake begins the next generation. A side can join a call that is just ending; its
        final is then as early as the others', however late the side began.
        """
        began_at, state = change.facts.began_at, self.state
        if began_at is None:
            return True
        if state.ended_at is not None and min(began_at, change.at) > state.ended_at:
            self._begin_again()
        return state.earlier_ended_at is None or began_at > state.earlier_ended_at

    def _begin_again(self) -> None:
        state = self.state
        state.generation += 1
        state.told = []
        state.earlier_ended_at, state.ended_at = state.ended_at, None
        self.callerid = callerid(self.identity, state.generation)
        self.latest = NOBODY

    def end(self, at: datetime, number: int) -> None:
        """The call is over since the append of this number; another one of its name begins later than `at`."""
        state = self.state
        if state.ended_at is None:
            self.ended_in = number
        if state.ended_at is None or at > state.ended_at:
            state.ended_at = at

    def was_over(self, number: int) -> bool:
        """Whether it ended before the append of this number."""
        return self.state.ended_at is not None and self.ended_in != number

    def row(self, seen_at: int) -> CallRow:
        """How it is written."""
        self.seen_at = seen_at
        return (self.id, self.callerid0, seen_at, _encode(self.state).decode())


def key_of(callerid0: str) -> int:
    """A call's key: the first 63 bits of the UUID."""
    return int(callerid0[:8] + callerid0[9:13] + callerid0[14:18], 16) >> 1


class CallsAreKnown(Stale):
    """Calls that were taken for new ones are not."""


class HeldCalls:
    """The calls that were seen lately. Two generations: what was not asked for while the younger one filled up is let go."""

    def __init__(self, held: int = CALLS_HELD) -> None:
        self._half = held // 2
        self.young: dict[CallIdentity, Call] = {}
        self._old: dict[CallIdentity, Call] = {}

    def get(self, identity: CallIdentity) -> Call | None:
        """A call that is held."""
        call = self.young.get(identity)
        if call is None:
            call = self._old.pop(identity, None)
            if call is not None:
                self.young[identity] = call
        return call

    def add(self, call: Call) -> None:
        """Hold a call."""
        self.young[call.identity] = call

    def shrink(self) -> None:
        """Let go of what is too much. Not while a batch is planned, which must find again what it has changed."""
        if len(self.young) > self._half:
            self._old, self.young = self.young, {}

    def clear(self) -> None:
        """Forget all: what was changed in memory has not become durable."""
        self.young, self._old = {}, {}

    def __len__(self) -> int:
        """How many are held."""
        return len(self.young) + len(self._old)


class Unwritten:
    """Calls that have changed, and whose rows are in the log alone: in the segments from `since` on.

    They are written in rounds, each a walk along the keys that there were when it began. What changes meanwhile is written
    again in the next.
    """

    def __init__(self, since: int = 1, rows: Iterable[CallRow] = ()) -> None:
        self.since = since
        self._rows = {row[0]: row for row in rows}
        self._round: list[int] = []  # keys that it has still to come to, the last one first
        self._round_since = 0

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> Unwritten:
        """As an earlier process left them."""
        (since,) = connection.execute(_CALLS_FROM).fetchone()
        return cls(since, (row for (text,) in connection.execute(_LOGGED, (since,)) for row in _ROWS.decode(text)))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._rows)

    @property
    def is_under_way(self) -> bool:
        """Whether a round has begun and has not come to its end."""
        return bool(self._round)

    def get(self, key: int) -> CallRow | None:
        """A call that has changed."""
        return self._rows.get(key)

    def note(self, rows: Iterable[CallRow]) -> None:
        """These are in the log now."""
        for row in rows:
            self._rows[row[0]] = row

    def drop(self, rows: Iterable[CallRow]) -> None:
        """These are in the table now."""
        for row in rows:
            if self._rows.get(row[0]) is row:
                del self._rows[row[0]]

    def drop_keys(self, keys: Iterable[int]) -> None:
        """Newer rows of these are in the table now."""
        for key in keys:
            self._rows.pop(key, None)

    def due(self, next_seq: int, *, is_forced: bool = False) -> WriteBack | None:
        """The next part of a round, if it is time for one; `next_seq` is behind all that is in the log."""
        if not self._round:
            if len(self._rows) < UNWRITTEN_CALLS and not (is_forced and self.since < next_seq):
                return None
            self._round = sorted(self._rows, reverse=True)
            self._round_since = next_seq
        keys = self._round[-WRITTEN_AT_ONCE:]
        rows = [row for key in reversed(keys) if (row := self._rows.get(key))]
        return WriteBack(rows, len(keys), self._round_since if len(keys) == len(self._round) else 0)

    def written(self, part: WriteBack) -> None:
        """A part is durable."""
        self.drop(part.rows)
        del self._round[-part.keys :]
        if part.is_last_since:
            self.since = part.is_last_since


class WriteBack:
    """A part of a round, and how it is written. The last one says from where on the log has what the table has not."""

    __slots__ = ("is_last_since", "keys", "rows")

    def __init__(self, rows: list[CallRow], keys: int, is_last_since: int) -> None:
        self.rows = rows
        self.keys = keys
        self.is_last_since = is_last_since

    def write(self, connection: sqlite3.Connection) -> None:
        """The job."""
        keep(connection, self.rows)
        if self.is_last_since:
            connection.execute("UPDATE meta SET value = ? WHERE name = 'calls_from'", (str(self.is_last_since),))


def find(connection: sqlite3.Connection, identities: Iterable[CallIdentity], unwritten: Unwritten) -> list[Call]:
    """These calls: those that the store knows, and new ones for the rest."""
    names = {identity: callerid(identity, 0) for identity in identities}
    keys = [(key_of(first),) for first in names.values()]
    found = {row[0]: row for row in read_many(connection, _FIND, keys)}
    return [
        parse_call(identity, first, unwritten.get(key) or found.get(key))
        for (identity, first), (key,) in zip(names.items(), keys, strict=True)
    ]


def parse_call(identity: CallIdentity, callerid0: str, row: CallRow | None) -> Call:
    """A call from its row. Where another call has the same key, that one is forgotten; it never happens."""
    if row is None or row[1] != callerid0:
        return Call(identity, callerid0)
    return Call(identity, callerid0, _DECODER.decode(row[3]), row[2])


def check_new(connection: sqlite3.Connection, keys: list[tuple[int]]) -> None:
    """Raise `CallsAreKnown` when one of these has a row."""
    if read_many(connection, _ANY, keys):
        raise CallsAreKnown


def keep(connection: sqlite3.Connection, rows: list[CallRow]) -> None:
    """Write calls that have changed."""
    write_many(connection, _KEEP, rows)


def keep_snapshots(connection: sqlite3.Connection, rows: Iterable[SnapshotRow]) -> None:
    """Write what is in progress, and drop what no longer is."""
    kept: list[Any] = []
    dropped: list[Any] = []
    for row in rows:
        if row[3] is None:
            dropped.append(row[:1])
        else:
            kept.append(row)
    write_many(connection, _KEEP_SNAPSHOTS, kept)
    write_many(connection, _DROP_SNAPSHOTS, dropped)


def open_calls(connection: sqlite3.Connection) -> list[tuple[CallIdentity, bytes]]:
    """See `Store.open_calls`."""
    rows = connection.execute("SELECT source, key, state FROM snapshots").fetchall()
    return [(CallIdentity(source, key), state) for source, key, state in rows]


class Place(NamedTuple):
    """Where in the log a call's events are."""

    first_seq: int
    seen_at: int  # when the last of them was accepted, or later


def place_of(connection: sqlite3.Connection, call: str, unwritten: Unwritten) -> Place | None:
    """Where the events of the call with this callerid are; None when that is not known: it is not its name's first one."""
    try:
        key = key_of(call)
    except ValueError:
        return None
    row = unwritten.get(key) or next(iter(read_many(connection, _FIND, [(key,)])), None)
    if row is not None and row[1] == call:
        first_seq = _DECODER.decode(row[3]).first_seq
        return Place(first_seq, row[2]) if first_seq else None
    found = connection.execute(_PLACE, (key,)).fetchone()
    return None if found is None else Place(*found)


def first_seq_of(connection: sqlite3.Connection, call: str, unwritten: Unwritten) -> int:
    """The first event of the call with this callerid; 0 when that is not known."""
    place = place_of(connection, call, unwritten)
    return 0 if place is None else place.first_seq
