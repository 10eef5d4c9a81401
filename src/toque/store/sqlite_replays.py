"""Replays: which events, or dead deliveries, go into a callback's backlog once more.

A replay walks along the log of events, or along the callback's dead rows, a bounded stretch at a time. Its place is the last
event's seq, or row, that it has dealt with; it ends at what was the last one when it began.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from toque.callbacks.delivery import Event
from toque.errors import InputError
from toque.store import sqlite_calls as calls
from toque.store import sqlite_segments as segments
from toque.store.contract import Replay, ReplayState
from toque.store.sqlite_backlog import Backlog, Row, Standing, last_row, parse_event, render_event, standings
from toque.store.sqlite_calls import Unwritten
from toque.store.sqlite_rows import from_us, from_us_or_none, read_many, to_us, to_us_or_none, write_many
from toque.store.sqlite_segments import BYTES_A_STEP, StoredEvent, StoredSegment

SEGMENTS_A_STEP = 500
ROWS_A_STEP = 2_000
_COLUMNS = "id, callback_id, since, until, callerid, event_id, is_for_dead, rate, state, place, requeued, created_at, ended_at"
_ADD = """INSERT INTO replays (callback_id, since, until, callerid, event_id, is_for_dead, rate, state, place, through,
    requeued, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, 'running', ?, ?, 0, ?) RETURNING id"""
_BACKWARDS = """SELECT first_seq, last_seq, accepted_at, events FROM segments
    WHERE first_seq < ? AND last_seq >= ? ORDER BY first_seq DESC"""
_SINCE = "SELECT first_seq FROM segments WHERE accepted_at >= ? ORDER BY accepted_at, first_seq LIMIT 1"
_DEAD = """SELECT row, state, event FROM (
        SELECT row, state, event FROM deliveries WHERE callback_id = :id AND state = 'dead' AND row > :after
        UNION ALL SELECT row, state, event FROM deliveries
        WHERE callback_id = :id AND state = 'waiting' AND row > :after AND row <= :dead_through)
    WHERE row <= :through ORDER BY row LIMIT :limit"""
_STANDING_ROWS = """SELECT d.event_seq, d.row, d.state FROM (VALUES {values}) AS wanted
    CROSS JOIN deliveries AS d ON d.callback_id = wanted.column1 AND d.event_seq = wanted.column2"""
_DROP = "DELETE FROM deliveries WHERE row IN (VALUES {values})"


@dataclass(slots=True)
class Search:
    """Looks for the event or the call that a replay names, backwards and a stretch at a time.

    Where a call's place is known, from its end on: that is one look. An event's id says nothing of where it is.
    """

    replay: Replay
    client_id: str
    before: int
    first: int = 0  # the call's first event, where that is known
    erased: int = 0  # events until here are not this client's
    last: int = 0  # the last event that was found, 0 when there is none yet
    whole_before: int = 0  # from where on to look if nothing is found; 0: that is done

    @classmethod
    def begun(cls, connection: sqlite3.Connection, replay: Replay, unwritten: Unwritten) -> Search:
        """A search. Raises `InputError` when there is no such callback."""
        client_id, _ = _owner(connection, replay.callback_id)
        erased = _erased_through(connection, client_id)
        end = segments.last_seq(connection) + 1
        place = calls.place_of(connection, replay.callerid, unwritten) if replay.callerid is not None else None
        if place is None:
            return cls(replay, client_id, end, 0, erased)
        return cls(
            replay, client_id, segments.last_seq_by(connection, place.seen_at) + 1, place.first_seq, erased, whole_before=end
        )

    def go_on(self, connection: sqlite3.Connection) -> bool:
        """Look at the next stretch; whether that was all."""
        needle = segments.needle(self.replay.event_id or self.replay.callerid or "")
        size = 0
        for number, row in enumerate(connection.execute(_BACKWARDS, (self.before, max(self.first, self.erased + 1))), 1):
            segment = StoredSegment(*row)
            self.before, size = segment.first_seq, size + len(segment.text)
            if needle in segment.text:
                seqs = [seq for seq, event in segment.events() if _is_named(self.replay, event, self.client_id)]
                if seqs and seqs[-1] > self.erased:
                    self.last = seqs[-1]
                    return True
            if number >= SEGMENTS_A_STEP or size >= BYTES_A_STEP:
                return False
        return not self._widen()

    def _widen(self) -> bool:
        """Go over everything after all: the clock was set back while the call lasted, or the place is another call's."""
        if not self.whole_before:
            return False
        self.before, self.first, self.whole_before = self.whole_before, 0, 0
        return True

    def among_dead(self, connection: sqlite3.Connection) -> bool:
        """Whether a dead delivery is meant whose event is no longer kept."""
        needle = segments.needle(self.replay.event_id or self.replay.callerid or "")
        statement = "SELECT 1 FROM deliveries WHERE callback_id = ? AND instr(event, ?) > 0 LIMIT 1"
        return connection.execute(statement, (self.replay.callback_id, needle)).fetchone() is not None

    def bounds(self) -> tuple[int, int]:
        """Before the first event that is meant, as far as that is known, and the last one."""
        if self.replay.event_id is not None:
            return self.last - 1, self.last
        return max(self.first - 1, 0), self.last


def _owner(connection: sqlite3.Connection, callback_id: int) -> tuple[str, str | None]:
    """A callback's client and pin. Raises `InputError` when there is none."""
    statement = "SELECT client_id, pin FROM callbacks WHERE id = ? AND removed_at IS NULL"
    found = connection.execute(statement, (callback_id,)).fetchone()
    if found is None:
        msg = f"there is no callback {callback_id}"
        raise InputError(msg)
    return found[0], found[1]


def _erased_through(connection: sqlite3.Connection, client_id: str) -> int:
    """The last event of an earlier client of this name, where its events are still being erased."""
    statement = "SELECT through FROM chores WHERE kind = 'removed client' AND name = ?"
    found = connection.execute(statement, (client_id,)).fetchone()
    return 0 if found is None else int(found[0])


def _is_named(replay: Replay, event: StoredEvent, client_id: str) -> bool:
    return event.client_id == client_id and replay.event_id in (None, event.id) and replay.callerid in (None, event.callerid)


def add(connection: sqlite3.Connection, replay: Replay, search: Search | None, now: datetime) -> Replay:
    """See `Store.add_replay`; `search` has found what the replay names."""
    client_id, _ = _owner(connection, replay.callback_id)
    if replay.is_for_dead:
        place, through = 0, last_row(connection)
    elif search is not None:
        place, through = search.bounds()
    else:
        place, through = 0, segments.last_seq(connection)
    if not replay.is_for_dead:
        place = max(place, _erased_through(connection, client_id))
    if replay.since is not None and not replay.is_for_dead:
        first = connection.execute(_SINCE, (to_us(replay.since),)).fetchone()
        place = max(place, through if first is None else first[0] - 1)
    (number,) = connection.execute(
        _ADD,
        (
            replay.callback_id, to_us_or_none(replay.since), to_us(replay.until), replay.callerid, replay.event_id,
            replay.is_for_dead, replay.rate, place, through, to_us(now),
        ),
    ).fetchone()  # fmt: skip
    return replace(
        replay, id=number, state=ReplayState.RUNNING, place=place, requeued=0, created_at=from_us(to_us(now)), ended_at=None
    )


def all_of_them(connection: sqlite3.Connection) -> list[Replay]:
    """See `Store.replays`."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM replays ORDER BY id").fetchall()  # noqa: S608
    return [_replay(row) for row in rows]


def _replay(row: Sequence[Any]) -> Replay:
    number, callback_id, since, until, callerid, event_id, is_for_dead, rate, state, place, requeued, created_at, ended_at = row
    return Replay(
        number, callback_id, from_us_or_none(since), from_us(until), callerid, event_id, bool(is_for_dead), rate,
        ReplayState(state), place, requeued, from_us(created_at), from_us_or_none(ended_at),
    )  # fmt: skip


def cancel(connection: sqlite3.Connection, replay_id: int, now: datetime) -> bool:
    """See `Store.cancel_replay`."""
    statement = "UPDATE replays SET state = 'cancelled', ended_at = ? WHERE id = ? AND state = 'running'"
    return connection.execute(statement, (to_us(now), replay_id)).rowcount == 1


@dataclass(slots=True)
class Stretch:
    """What was found on one stretch of a replay's way, and how far that was."""

    events: list[Event]
    place: int
    is_end: bool


def requeue(connection: sqlite3.Connection, backlog: Backlog, replay_id: int, limit: int, now: datetime) -> Replay | None:
    """See `Store.requeue`."""
    row = connection.execute(f"SELECT {_COLUMNS}, through FROM replays WHERE id = ?", (replay_id,)).fetchone()  # noqa: S608
    if row is None or row[8] != ReplayState.RUNNING:
        return None
    replay, through = _replay(row[:-1]), row[-1]
    callback = standings(connection, [replay.callback_id]).get(replay.callback_id)
    if callback is None:
        return None
    if callback.disabled_reason is not None:  # it would only die there; the replay waits until the callback is enabled
        return replay
    stretch = (_dead_stretch if replay.is_for_dead else _stretch)(connection, replay, callback, through, limit)
    rows = [_row(replay.callback_id, event) for event in stretch.events]
    requeued = _put(connection, backlog, rows, callback.dead_through)
    return _moved(connection, replay, stretch, requeued, now)


def _moved(connection: sqlite3.Connection, replay: Replay, stretch: Stretch, requeued: int, now: datetime) -> Replay:
    """Write down how far a replay is."""
    state, ended_at = (ReplayState.DONE, now) if stretch.is_end else (ReplayState.RUNNING, None)
    total = replay.requeued + requeued
    connection.execute(
        "UPDATE replays SET place = ?, requeued = ?, state = ?, ended_at = ? WHERE id = ?",
        (stretch.place, total, str(state), to_us_or_none(ended_at), replay.id),
    )
    return replace(replay, place=stretch.place, requeued=total, state=state, ended_at=ended_at)


def _stretch(connection: sqlite3.Connection, replay: Replay, _: Standing, through: int, limit: int) -> Stretch:
    """Up to `limit` events of the callback's client from the log."""
    client_id, pin = _owner(connection, replay.callback_id)
    needle = segments.needle(replay.event_id or replay.callerid or client_id)
    found: list[Event] = []
    place, size = replay.place, 0
    walk = segments.walk(connection, replay.place + 1, through)
    for number, segment in enumerate(walk, 1):
        if needle in segment.text and _is_of_time(replay, from_us(segment.accepted_at)):
            for seq, event in segment.events():
                if not replay.place < seq <= through or pin not in (None, event.pin):
                    continue
                if _is_named(replay, event, client_id):
                    found.append(segment.event(seq, event))
                if len(found) >= limit:
                    walk.close()
                    return Stretch(found, seq, is_end=seq >= through)
        place, size = segment.last_seq, size + len(segment.text)
        if number >= SEGMENTS_A_STEP or size >= BYTES_A_STEP:
            walk.close()
            return Stretch(found, place, is_end=place >= through)
    return Stretch(found, max(place, through), is_end=True)


def _is_of_time(replay: Replay, accepted_at: datetime) -> bool:
    return (replay.since is None or replay.since <= accepted_at) and accepted_at <= replay.until


def _dead_stretch(connection: sqlite3.Connection, replay: Replay, callback: Standing, through: int, limit: int) -> Stretch:
    """Up to `limit` of the callback's dead deliveries."""
    values = {
        "id": replay.callback_id, "after": replay.place, "dead_through": callback.dead_through, "through": through,
        "limit": ROWS_A_STEP,
    }  # fmt: skip
    rows = connection.execute(_DEAD, values).fetchall()
    found: list[Event] = []
    for row, _, text in rows:
        event = parse_event(text)
        if (
            _is_of_time(replay, event.accepted_at)
            and replay.event_id in (None, event.id)
            and (replay.callerid in (None, event.callerid))
        ):
            found.append(event.known())
        if len(found) >= limit:
            return Stretch(found, row, is_end=row >= through)
    if len(rows) < ROWS_A_STEP:
        return Stretch(found, max(through, replay.place), is_end=True)
    return Stretch(found, rows[-1][0], is_end=False)


def _put(connection: sqlite3.Connection, backlog: Backlog, rows: Sequence[Row], dead_through: int) -> int:
    """Have these deliveries wait, at the end and in the order of events, unless they do already; returns how many that were."""
    wanted = {row[2]: row for row in sorted(rows, key=lambda row: row[2])}
    dropped = []
    for seq, number, state in read_many(connection, _STANDING_ROWS, [row[1:3] for row in wanted.values()]):
        if state == "waiting" and number > dead_through:
            del wanted[seq]
        else:
            dropped.append((number,))
    write_many(connection, _DROP, dropped)
    backlog.append(connection, list(wanted.values()))
    return len(wanted)


def _row(callback_id: int, event: Event) -> Row:
    """A delivery as if its event had been accepted now."""
    return (0, callback_id, event.seq, "waiting", 0, None, 0.0, None, "", render_event(event))
