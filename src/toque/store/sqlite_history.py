"""What the store knows of a call, for people: its events, and how each delivery of them stands. Nothing here needs to be fast.

The log is walked backwards, a stretch at a time, so that whoever writes meanwhile is not kept waiting.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from toque.calls.model import CallIdentity
from toque.store import sqlite_calls as calls
from toque.store import sqlite_segments as segments
from toque.store.contract import PastDelivery, PastEvent
from toque.store.sqlite_calls import Unwritten
from toque.store.sqlite_rows import from_us, from_us_or_none
from toque.store.sqlite_segments import BYTES_A_STEP, StoredEvent, StoredSegment

_BACKWARDS = """SELECT first_seq, last_seq, accepted_at, events, logged FROM segments
    WHERE first_seq < ? ORDER BY first_seq DESC"""
_ROW = "SELECT state, attempts, due_at, settled_at, outcome, row FROM deliveries WHERE callback_id = ? AND event_seq = ?"
_OUTCOMES = "SELECT id, settled_at, entries FROM outcomes WHERE id > ? ORDER BY id"
_CALLBACKS = """SELECT id, code, dead_through, dead_through_seq, dead_at, dead_reason, failing_since, disabled_reason
    FROM callbacks WHERE id IN (SELECT value FROM json_each(?))"""
_DEAD_SIZES = """SELECT c.id, (SELECT count(*) FROM deliveries AS d WHERE d.callback_id = c.id
        AND (d.state = 'dead' OR d.row <= c.dead_through)) AS size FROM callbacks AS c
    WHERE c.removed_at IS NULL AND size > 0"""
_LAST_ACCEPTED = "SELECT accepted_at FROM segments ORDER BY first_seq DESC LIMIT 1"
_SEGMENTS_A_STEP = 500
_OUTCOMES_LOOKED_AT = 5_000  # rows behind an event, each a batch's; what was delivered later than that is not looked for
_ENTRIES = msgspec.json.Decoder(list[tuple[int, int, int, str]])
_FIRST_STATES = {"delivered", "dead"}
_NUMBERS = ("origem", "destino", "atendido_por")  # the members of a payload that have them


@dataclass(slots=True)
class _Found:
    """An event that was found, and from which row on the log of outcomes can know of it."""

    seq: int
    accepted_at: int
    logged: int
    stored: StoredEvent


@dataclass
class History:
    """A search for the events of calls, backwards: those with this callerid, or those whose numbers have this text."""

    callerid: str | None = None
    numbers: Sequence[str] = ()
    since_us: int = 0
    most_calls: int = 10
    before: int | None = None
    found: list[_Found] = field(default_factory=list)
    first: int = 0  # the call's first event, where that is known
    _calls: set[str] = field(default_factory=set)

    def begin(self, connection: sqlite3.Connection, unwritten: Unwritten) -> None:
        """Begin at the end of the log."""
        self.before = segments.last_seq(connection) + 1
        if self.callerid is not None:
            self.first = calls.first_seq_of(connection, self.callerid, unwritten)

    def go_on(self, connection: sqlite3.Connection) -> bool:
        """Look at the next stretch; whether that was all."""
        needles = [segments.needle(text) for text in ([self.callerid] if self.callerid is not None else self.numbers)]
        size = 0
        for place, (*rest, logged) in enumerate(connection.execute(_BACKWARDS, (self.before,)), 1):
            segment = StoredSegment(*rest)
            self.before, size = segment.first_seq, size + len(segment.text)
            if segment.accepted_at < self.since_us or segment.last_seq < self.first:
                return True
            if any(needle in segment.text for needle in needles) and self._take(segment, logged, needles):
                return True
            if place >= _SEGMENTS_A_STEP or size >= BYTES_A_STEP:
                return False
        return True

    def _take(self, segment: StoredSegment, logged: int, needles: Sequence[str]) -> bool:
        """Take what is wanted of a segment; whether that is enough."""
        for seq, stored in reversed(list(segment.events())):
            if self._is_wanted(stored, needles):
                if stored.callerid not in self._calls and len(self._calls) >= self.most_calls:
                    return True
                self._calls.add(stored.callerid)
                self.found.append(_Found(seq, segment.accepted_at, logged, stored))
        return False

    def _is_wanted(self, stored: StoredEvent, needles: Sequence[str]) -> bool:
        if self.callerid is not None:
            return stored.callerid == self.callerid
        payload = bytes(stored.payload).decode()
        return any(f'"{member}":{needle}' in payload for member in _NUMBERS for needle in needles)

    def events(self, connection: sqlite3.Connection) -> list[PastEvent]:
        """What was found, in the order of acceptance, with its deliveries."""
        found = sorted(self.found, key=lambda one: one.seq)
        wanted = {(one.seq, number): one.logged for one in found for number in one.stored.callback_ids}
        rows = {key: _row(connection, *key) for key in wanted}
        outcomes = _outcomes(connection, {key: logged for key, logged in wanted.items() if rows[key] is None})
        known = _callbacks(connection, {number for _, number in wanted})
        return [
            _past_event(one, [_past_delivery(n, rows[one.seq, n], outcomes.get((one.seq, n)), known) for n in numbers])
            for one in found
            for numbers in [one.stored.callback_ids]
        ]


_Row = tuple[str, int, int | None, int | None, str | None, int]
_Callback = tuple[str, int, int, int | None, str | None, int | None, str | None]


def _row(connection: sqlite3.Connection, seq: int, callback_id: int) -> _Row | None:
    found: _Row | None = connection.execute(_ROW, (callback_id, seq)).fetchone()
    return found


def _outcomes(connection: sqlite3.Connection, wanted: dict[tuple[int, int], int]) -> dict[tuple[int, int], tuple[str, int, int]]:
    """State, attempts and moment of those that the log mentions; the last mention counts."""
    found: dict[tuple[int, int], tuple[str, int, int]] = {}
    if not wanted:
        return found
    open_ones = set(wanted)
    for place, (_, settled_at, text) in enumerate(connection.execute(_OUTCOMES, (min(wanted.values()),)), 1):
        for seq, callback_id, attempts, state in _ENTRIES.decode(text):
            if (seq, callback_id) in wanted:
                found[seq, callback_id] = (state, attempts, settled_at)
                if state in _FIRST_STATES:
                    open_ones.discard((seq, callback_id))
        if not open_ones or place >= _OUTCOMES_LOOKED_AT:
            break
    return found


def _callbacks(connection: sqlite3.Connection, ids: Iterable[int]) -> dict[int, _Callback]:
    text = msgspec.json.encode(list(ids)).decode()
    return {number: tuple(rest) for number, *rest in connection.execute(_CALLBACKS, (text,))}


def _past_event(found: _Found, deliveries: list[PastDelivery]) -> PastEvent:
    stored = found.stored
    return PastEvent(
        stored.id,
        stored.client_id,
        stored.callerid,
        stored.direction,
        stored.pin,
        stored.status,
        stored.sequence,
        stored.happened_at,
        from_us(found.accepted_at),
        bytes(stored.payload).decode(),
        tuple(deliveries),
    )


def _past_delivery(
    number: int, row: _Row | None, outcome: tuple[str, int, int] | None, known: dict[int, _Callback]
) -> PastDelivery:
    """How a delivery stands. Without a row and without a mention it is on its way, or the mention is too far or gone."""
    callback = known.get(number)
    code = callback[0] if callback else ""
    if row is not None:
        state, attempts, due_at, settled_at, why, place = row
        if callback is not None and state == "waiting" and place <= callback[1]:
            state, settled_at, why = "dead", callback[3], callback[4]
        return PastDelivery(code, state, attempts, from_us_or_none(settled_at), from_us_or_none(due_at), why or "")
    if outcome is not None:
        state, attempts, settled_at = outcome
        if state == "waiting":  # its row is gone, so it was delivered from the backlog, at a moment that is too far to look for
            return PastDelivery(code, "delivered", attempts, None, None, "")
        return PastDelivery(code, state, attempts, from_us(settled_at), None, "")
    return PastDelivery(code, "on its way" if callback else "removed with its callback", 0, None, None, "")


def dead_sizes(connection: sqlite3.Connection) -> dict[int, int]:
    """See `Archive.dead_sizes`."""
    return dict(connection.execute(_DEAD_SIZES).fetchall())


def last_accepted_at(connection: sqlite3.Connection) -> datetime | None:
    """See `Archive.last_accepted_at`."""
    found = connection.execute(_LAST_ACCEPTED).fetchone()
    return None if found is None else from_us(found[0])


def callerid_of(connection: sqlite3.Connection, identity: CallIdentity) -> str:
    """See `Archive.callerid_of`."""
    return calls.find(connection, [identity], Unwritten.read(connection))[0].callerid
