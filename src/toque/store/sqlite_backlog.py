"""How deliveries stand: the log of outcomes, and the rows of those that were not delivered at once.

A row's number is its place in its callback's backlog. Numbers are given in steps of `ROOM`, because a delivery may get its row
after one that comes later in its lane has got one: it was under way, or in memory, when the later one was left to the store. It
then takes the place before it that its sequence says, so that the order of rows always is the order of the lane.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from toque.callbacks.delivery import Delivery, DeliveryState, Event, LaneKey, Settlement
from toque.calls.model import Status
from toque.store import sqlite_segments as segments
from toque.store.contract import DeadDelivery
from toque.store.sqlite_rows import count_many, from_us, from_us_or_none, read_many, to_us, to_us_or_none, write_many

ROOM = 4  # as many events as a side can have
_WAITING, _DELIVERED, _DEAD = (str(state) for state in DeliveryState)

_LOG = "INSERT INTO outcomes (settled_at, open_from, entries) VALUES (?, ?, ?)"
_ADD = """INSERT INTO deliveries (row, callback_id, event_seq, state, attempts, due_at, age_s, settled_at, outcome, event)
    VALUES {values} ON CONFLICT DO NOTHING"""
_UPDATE = """WITH told (row, state, attempts, due_at, age_s, settled_at, outcome) AS (VALUES {values})
    UPDATE deliveries SET state = told.state, attempts = told.attempts, due_at = told.due_at, age_s = told.age_s,
        settled_at = told.settled_at, outcome = told.outcome
    FROM told WHERE deliveries.row = told.row AND deliveries.state = 'waiting'"""
_DROP_DELIVERED = """DELETE FROM deliveries WHERE row IN (VALUES {values}) AND state = 'waiting'
    AND row > coalesce((SELECT c.dead_through FROM callbacks AS c WHERE c.id = deliveries.callback_id), 0)"""
_FIND_ROWS = """SELECT d.callback_id, d.event_seq, d.row FROM (VALUES {values}) AS wanted
    CROSS JOIN deliveries AS d ON d.callback_id = wanted.column1 AND d.event_seq = wanted.column2"""
_WITH_LATER_ROWS = """SELECT wanted.column1 FROM (VALUES {values}) AS wanted WHERE EXISTS (
    SELECT 1 FROM deliveries AS d
    WHERE d.callback_id = wanted.column1 AND d.event_seq > wanted.column2 AND d.state = 'waiting')"""
_LATER_OF_CALLS = """SELECT row, event FROM deliveries
    WHERE callback_id = ? AND event_seq > ? AND state = 'waiting' AND row > ?
        AND json_extract(event, '$[3]') IN (SELECT value FROM json_each(?)) ORDER BY event_seq"""
_RECOVERED_AT_ONCE = 5_000  # deliveries: each time costs a look through the backlogs that they belong before
_STANDINGS = """SELECT id, disabled_reason, dead_through, dead_through_seq, dead_reason
    FROM callbacks WHERE removed_at IS NULL AND id IN (VALUES {values})"""
_OUTCOMES = "SELECT entries FROM outcomes WHERE id > ?"
_PAGE = """SELECT group_concat(
        '[' || row || ',' || attempts || ',' || coalesce(due_at, 'null') || ',' || age_s || ',' || event || ']')
    FROM (SELECT row, attempts, due_at, age_s, event FROM deliveries
        WHERE callback_id = :id AND state = 'waiting' AND row > max(:after,
            (SELECT dead_through FROM callbacks WHERE id = :id AND removed_at IS NULL))
        ORDER BY row LIMIT :limit)"""
_DEAD_PAGE = """SELECT * FROM (
        SELECT row, attempts, age_s, settled_at, outcome, event FROM deliveries
        WHERE callback_id = :id AND state = 'dead' AND row > :after ORDER BY row LIMIT :limit)
    UNION ALL SELECT * FROM (
        SELECT d.row, d.attempts, d.age_s, c.dead_at, c.dead_reason, d.event FROM deliveries AS d
        JOIN callbacks AS c ON c.id = d.callback_id
        WHERE d.callback_id = :id AND d.state = 'waiting' AND d.row > :after AND d.row <= c.dead_through
        ORDER BY d.row LIMIT :limit)
    ORDER BY 1 LIMIT :limit"""
_WAITS = "d.callback_id = c.id AND d.state = 'waiting' AND d.row > c.dead_through"
_WITH_BACKLOG = f"""SELECT c.id FROM callbacks AS c
    WHERE c.removed_at IS NULL AND EXISTS (SELECT 1 FROM deliveries AS d WHERE {_WAITS}) ORDER BY c.id"""  # noqa: S608
_SIZES = f"""SELECT c.id, (SELECT count(*) FROM deliveries AS d WHERE {_WAITS}) AS size FROM callbacks AS c
    WHERE c.removed_at IS NULL AND size > 0"""  # noqa: S608

Row = tuple[int, int, int, str, int, int | None, float, int | None, str, str]  # the columns of `_ADD`
Entry = tuple[int, int, int, str]  # event's seq, callback's id, attempts, state


class StoredEvent(msgspec.Struct, array_like=True, gc=False):
    """An event as it lies in a delivery's row."""

    seq: int
    id: str
    client_id: str
    callerid: str
    direction: str
    pin: str
    status: Status
    sequence: int
    accepted_at: datetime
    payload: msgspec.Raw

    @property
    def lane(self) -> LaneKey:
        """As a delivery's."""
        return (self.callerid, self.direction, self.pin)

    def known(self) -> Event:
        """The event as the world knows it."""
        return Event(
            self.seq, self.id, self.client_id, self.callerid, self.direction, self.pin, self.status, self.sequence,
            self.accepted_at, bytes(self.payload).decode(),
        )  # fmt: skip


class _Waiting(msgspec.Struct, array_like=True, gc=False):
    """A row of a page."""

    row: int
    attempts: int
    due_at: int | None
    age_s: float
    event: StoredEvent


_PAGES = msgspec.json.Decoder(list[_Waiting])
_EVENTS = msgspec.json.Decoder(StoredEvent)
_ENTRIES = msgspec.json.Decoder(list[Entry])
_encode = msgspec.json.Encoder().encode


class Standing(NamedTuple):
    """What a callback's own state means for its deliveries."""

    disabled_reason: str | None
    dead_through: int
    dead_through_seq: int
    dead_reason: str | None

    def refuses(self, seq: int) -> str | None:
        """Why an event that has no row yet can only be dead: the callback is, or was since the event was accepted, disabled."""
        return self.disabled_reason or (self.dead_reason if seq <= self.dead_through_seq else None)


def standings(connection: sqlite3.Connection, callback_ids: Iterable[int]) -> dict[int, Standing]:
    """Of these callbacks, those that are not removed."""
    return {number: Standing(*rest) for number, *rest in read_many(connection, _STANDINGS, [(n,) for n in callback_ids])}


class Settling:
    """What one call of `settle` comes to; `entries` are those of the deliveries that were delivered."""

    __slots__ = ("entries", "open_from", "others", "rows_of_delivered", "settled_at")

    def __init__(self, delivered: Sequence[Delivery], others: Sequence[Settlement], open_from: int, settled_at: int) -> None:
        self.entries: list[Entry] = [(d.event.seq, d.callback_id, d.attempts, _DELIVERED) for d in delivered]
        self.rows_of_delivered = [(d.row,) for d in delivered if d.row]
        self.others = others
        self.open_from = open_from
        self.settled_at = settled_at

    def log(self, connection: sqlite3.Connection) -> None:
        """Write down what was delivered, and what left the fresh state."""
        if self.rows_of_delivered:
            write_many(connection, _DROP_DELIVERED, self.rows_of_delivered)
        if self.entries:
            connection.execute(_LOG, (self.settled_at, self.open_from, _encode(self.entries).decode()))


class Backlog:
    """Writes rows, on the writer's thread. Holds the last row's number."""

    def __init__(self) -> None:
        self._last_row: int | None = None

    def forget(self) -> None:
        """Something that was written is taken back."""
        self._last_row = None

    def settle(self, connection: sqlite3.Connection, settling: Settling) -> dict[int, int]:
        """The job; the rows of the deliveries among `others` that have got one, by their place there."""
        rows: dict[int, int] = {}
        if settling.others:
            known = standings(connection, {other.delivery.callback_id for other in settling.others})
            self._update(connection, settling, known)
            rows = self._add_fresh(connection, settling, known)
        settling.log(connection)
        return rows

    def _update(self, connection: sqlite3.Connection, settling: Settling, known: dict[int, Standing]) -> None:
        """Bring up to date the rows that there are. What is dead stays so."""
        at = settling.settled_at
        rows = []
        for other in settling.others:
            delivery, state, outcome = other.delivery, other.state, other.outcome
            callback = known.get(delivery.callback_id)
            if delivery.row and callback is not None and delivery.row > callback.dead_through:
                is_dead = state is DeliveryState.DEAD
                due_at = None if is_dead else to_us_or_none(delivery.due_at)
                rows.append(
                    (delivery.row, str(state), delivery.attempts, due_at, delivery.age_s, at if is_dead else None, outcome)
                )
        write_many(connection, _UPDATE, rows)

    def _add_fresh(self, connection: sqlite3.Connection, settling: Settling, known: dict[int, Standing]) -> dict[int, int]:
        """Give rows to those that had none."""
        fresh: dict[int, Row] = {}
        for place, other in enumerate(settling.others):
            delivery, state, outcome = other.delivery, other.state, other.outcome
            callback = known.get(delivery.callback_id)
            if delivery.row or delivery.receipt is None or callback is None:
                continue
            event = delivery.event
            refused = callback.refuses(event.seq) if state is DeliveryState.WAITING else None
            is_dead = refused is not None or state is DeliveryState.DEAD
            word = _DEAD if is_dead else _WAITING
            due_at, died_at = (None, settling.settled_at) if is_dead else (to_us_or_none(delivery.due_at), None)
            settling.entries.append((event.seq, delivery.callback_id, delivery.attempts, word))
            fresh[place] = (
                0, delivery.callback_id, event.seq, word, delivery.attempts, due_at, delivery.age_s, died_at,
                refused or outcome, render_event(event),
            )  # fmt: skip
        rows = self.add(connection, list(fresh.values()), known)
        return dict(zip(fresh, rows, strict=True))

    def add(self, connection: sqlite3.Connection, added: Sequence[Row], known: dict[int, Standing]) -> list[int]:
        """Add rows; those at 0 get their numbers here. What has a row already keeps it. Returns their numbers."""
        numbered = self._numbered(connection, added, known)
        if count_many(connection, _ADD, numbered) == len(numbered):
            return [row[0] for row in numbered]
        found = {(c, s): row for c, s, row in read_many(connection, _FIND_ROWS, [row[1:3] for row in numbered])}
        had_rows = [
            (found[row[1], row[2]], row[3], row[4], row[5], row[6], row[7], row[8])
            for row in numbered
            if found[row[1], row[2]] != row[0]
        ]
        write_many(connection, _UPDATE, had_rows)
        return [found[row[1], row[2]] for row in numbered]

    def append(self, connection: sqlite3.Connection, added: Sequence[Row]) -> None:
        """Add rows at the end, whatever else is there of their lanes. None of them has a row."""
        last = self._last(connection)
        write_many(connection, _ADD, [(last + ROOM * n, *row[1:]) for n, row in enumerate(added, 1)])
        self._last_row = last + ROOM * len(added)

    def _numbered(self, connection: sqlite3.Connection, rows: Sequence[Row], known: dict[int, Standing]) -> list[Row]:
        """Number rows: each comes last, or before what comes after it in its lane."""
        first: dict[int, int] = {}
        for row in rows:
            if row[3] == _WAITING:
                first[row[1]] = min(first.get(row[1], row[2]), row[2])
        late = {number for (number,) in read_many(connection, _WITH_LATER_ROWS, list(first.items()))}
        later = {number: LaterRows(connection, number, known[number], rows) for number in late}
        last = self._last(connection)
        numbered = []
        for row in rows:
            place = later[row[1]].place_before(row) if row[1] in late and row[3] == _WAITING else 0
            if not place:
                last += ROOM
            numbered.append((place or last, *row[1:]))
        self._last_row = last
        return numbered

    def _last(self, connection: sqlite3.Connection) -> int:
        if self._last_row is None:
            self._last_row = last_row(connection)
        return self._last_row

    def recover(self, connection: sqlite3.Connection, now: datetime) -> list[int]:
        """See `Store.recover`."""
        start, last = segments.open_from(connection), segments.last_seq(connection)
        mentioned = _mentioned_since(connection, start)
        known: dict[int, Standing] = {}
        rows: list[Row] = []
        for segment in list(segments.walk(connection, start, last)):
            lost = [
                (callback_id, segment.event(seq, event))
                for seq, event in segment.events()
                for callback_id in event.callback_ids
                if (seq, callback_id) not in mentioned
            ]
            known |= standings(connection, {callback_id for callback_id, _ in lost} - known.keys())
            rows += [_recovered(n, event, known[n], to_us(now)) for n, event in lost if n in known]
            if len(rows) >= _RECOVERED_AT_ONCE:
                self.add(connection, rows, known)
                rows = []
        self.add(connection, rows, known)
        if start <= last:
            connection.execute(_LOG, (to_us(now), last + 1, "[]"))
        return [number for (number,) in connection.execute(_WITH_BACKLOG).fetchall()]


def last_row(connection: sqlite3.Connection) -> int:
    """The highest number that a row ever had. The next ones begin behind the room of the one that has it."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'deliveries'").fetchone()
    return 0 if found is None else -(-int(found[0]) // ROOM) * ROOM


def _recovered(callback_id: int, event: Event, callback: Standing, now: int) -> Row:
    """The row of a delivery that was in memory when its process ended."""
    refused = callback.refuses(event.seq)
    state, died_at = (_WAITING, None) if refused is None else (_DEAD, now)
    text = render_event(event)
    return (0, callback_id, event.seq, state, 0, None, 0.0, died_at, refused or "", text)


def _mentioned_since(connection: sqlite3.Connection, start: int) -> set[tuple[int, int]]:
    """The deliveries of events from this one on that have an outcome: event's seq, callback's id."""
    found = connection.execute(
        "SELECT logged FROM segments WHERE last_seq >= ? AND first_seq >= "
        "coalesce((SELECT max(first_seq) FROM segments WHERE first_seq <= ?), 0) ORDER BY first_seq LIMIT 1",
        (start, start),
    ).fetchone()
    if found is None:
        return set()
    return {
        (seq, callback_id)
        for (entries,) in connection.execute(_OUTCOMES, found)
        for seq, callback_id, _, _ in _ENTRIES.decode(entries)
        if seq >= start
    }


class LaterRows:
    """What waits of a callback's calls behind some events of theirs that have no row yet; found in one look for all of them."""

    def __init__(self, connection: sqlite3.Connection, callback_id: int, callback: Standing, rows: Iterable[Row]) -> None:
        self._connection = connection
        self._mine = {row[2]: _EVENTS.decode(row[9]) for row in rows if row[1] == callback_id and row[3] == _WAITING}
        calls = _encode(list({event.callerid for event in self._mine.values()})).decode()
        values = (callback_id, min(self._mine), callback.dead_through, calls)
        self._found: dict[LaneKey, list[tuple[int, StoredEvent]]] = {}  # each lane's in the order of events
        for number, text in connection.execute(_LATER_OF_CALLS, values).fetchall():
            event = _EVENTS.decode(text)
            self._found.setdefault(event.lane, []).append((int(number), event))

    def place_before(self, row: Row) -> int:
        """The number before that of the next one of its lane, 0 where none has a row."""
        mine = self._mine[row[2]]
        for number, event in self._found.get(mine.lane, ()):
            if event.seq > mine.seq:
                place = number - (event.sequence - mine.sequence)
                is_free = self._connection.execute("SELECT 1 FROM deliveries WHERE row = ?", (place,)).fetchone() is None
                return place if is_free else 0
        return 0


def render_event(event: Event) -> str:
    """An event as it lies in a row."""
    return _encode((
        event.seq, event.id, event.client_id, event.callerid, event.direction, event.pin, event.status.value, event.sequence,
        event.accepted_at, msgspec.Raw(event.payload),
    )).decode()  # fmt: skip


def parse_event(text: str) -> StoredEvent:
    """An event in a row."""
    return _EVENTS.decode(text)


def page(connection: sqlite3.Connection, callback_id: int, after: int, limit: int) -> list[Delivery]:
    """See `Store.backlog`. All of it comes as one text: each row by itself would cost a hand-over of the interpreter lock."""
    (text,) = connection.execute(_PAGE, {"id": callback_id, "after": after, "limit": limit}).fetchone()
    if text is None:
        return []
    return [
        Delivery(w.event.known(), callback_id, w.attempts, from_us_or_none(w.due_at), w.age_s, w.row)
        for w in _PAGES.decode(f"[{text}]")
    ]


def dead(connection: sqlite3.Connection, callback_id: int, after: int, limit: int) -> list[DeadDelivery]:
    """See `Store.dead`: those that are marked so, and those that their callback took with it when it was disabled."""
    if callback_id not in standings(connection, [callback_id]):
        return []
    rows = connection.execute(_DEAD_PAGE, {"id": callback_id, "after": after, "limit": limit}).fetchall()
    return [
        DeadDelivery(
            Delivery(parse_event(event).known(), callback_id, attempts, None, age_s, row), from_us(died_at), outcome or ""
        )
        for row, attempts, age_s, died_at, outcome, event in rows
    ]


def sizes(connection: sqlite3.Connection) -> dict[int, int]:
    """See `Store.backlog_sizes`."""
    return dict(connection.execute(_SIZES).fetchall())
