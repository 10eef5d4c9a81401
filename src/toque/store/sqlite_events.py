"""Events, calls and deliveries in SQLite: what is done inside one transaction. The writer thread calls these functions."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from toque.callbacks.delivery import Delivery, DeliveryState, Event, Settlement
from toque.callbacks.payload import PayloadWriter
from toque.calls.identity import callerid, event_id
from toque.calls.model import CallIdentity, Snapshot, Status, StatusChange
from toque.store.contract import Appended
from toque.store.sqlite_rows import from_us, from_us_or_none, read_in, to_us, to_us_or_none, write_many

_ORDER = {Status.INITIATED: 1, Status.RINGING: 2, Status.ANSWERED: 3}
_FINAL = 4

_CALLS = """SELECT c.source, c.key, c.generation, c.ended_at FROM (VALUES {values}) AS wanted
    JOIN calls AS c ON c.source = wanted.column1 AND c.key = wanted.column2"""
_SIDES = """SELECT e.callerid, e.client_id, e.direction, e.pin, max(e.sequence), e.status FROM (VALUES {values}) AS wanted
    JOIN events AS e ON e.callerid = wanted.column1 GROUP BY 1, 2, 3, 4"""
_KEEP_CALLS = """INSERT INTO calls (source, key, generation, state, ended_at) VALUES {values}
    ON CONFLICT DO UPDATE SET generation = excluded.generation, state = excluded.state, ended_at = excluded.ended_at"""
_ADD_EVENTS = """INSERT INTO events
    (seq, id, client_id, callerid, direction, pin, status, sequence, happened_at, accepted_at, payload) VALUES {values}"""
_ADD_DELIVERIES = "INSERT INTO deliveries (event_seq, callback_id, state, attempts) VALUES {values}"
_SETTLE = """WITH told (event_seq, callback_id, state, attempts, due_at, settled_at, outcome) AS (VALUES {values})
    UPDATE deliveries SET state = told.state, attempts = told.attempts, due_at = told.due_at, settled_at = told.settled_at,
        outcome = told.outcome FROM told
    WHERE deliveries.event_seq = told.event_seq AND deliveries.callback_id = told.callback_id AND deliveries.state = 'waiting'"""
_PENDING = """SELECT e.seq, e.id, e.client_id, e.callerid, e.direction, e.pin, e.status, e.sequence, e.accepted_at, e.payload,
        d.callback_id, d.attempts, d.due_at
    FROM deliveries AS d JOIN events AS e ON e.seq = d.event_seq
    WHERE d.state = 'waiting' AND (d.event_seq, d.callback_id) > (?, ?)
    ORDER BY d.event_seq, d.callback_id LIMIT ?"""

Subscriber = tuple[int, str, str | None]  # callback id, client_id, pin


@dataclass(slots=True)
class _CallRow:
    """A call as the store knows it while a batch is read."""

    generation: int = 0
    ended_at: datetime | None = None
    had_ended: bool = False  # before this batch
    callerid: str = ""


class EventLedger:
    """Accepts changes on one connection; remembers nothing that the database does not."""

    def __init__(self, writer: PayloadWriter) -> None:
        self._payloads = writer
        self._subscribers: list[Subscriber] = []
        self._version: str | None = None

    def append(
        self, connection: sqlite3.Connection, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot], now: datetime
    ) -> Appended:
        """See `Store.append`."""
        calls = _known_calls(connection, changes, snapshots)
        accepted = [(change, call) for change in changes if (call := _callerid_of(calls[change.identity], change))]
        events = self._number(connection, accepted, now)
        deliveries = self._fan_out(connection, events)
        _keep_calls(connection, snapshots, calls)
        return Appended(len(events), deliveries)

    def forget(self) -> None:
        """A transaction was rolled back: what was read in it never was."""
        self._version = None

    def _number(self, connection: sqlite3.Connection, changes: Sequence[tuple[StatusChange, str]], now: datetime) -> list[Event]:
        """Give each change that is news to its side an id and a sequence, and write it."""
        rows: list[tuple[Any, ...]] = []
        events: list[Event] = []
        if not changes:
            return events
        sides = {
            tuple(row[:4]): (row[4], _order(Status(row[5])))
            for row in read_in(connection, _SIDES, {(call,) for _, call in changes})
        }
        (seq,) = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'").fetchone()
        accepted_at = to_us(now)
        for change, call in changes:
            owner, direction = change.side.owner, str(change.side.direction)
            key = (call, owner.client_id, direction, owner.pin)
            sequence, order = sides.get(key, (0, 0))
            if _order(change.status) <= order:
                continue
            sequence += 1
            sides[key] = (sequence, _order(change.status))
            seq += 1
            identifier = event_id(change.side, call, change.status)
            payload = self._payloads.render(change, event_id=identifier, callerid=call, sequence=sequence)
            events.append(
                Event(seq, identifier, owner.client_id, call, direction, owner.pin, change.status, sequence, now, payload)
            )
            rows.append((
                seq, identifier, owner.client_id, call, direction, owner.pin, str(change.status), sequence,
                to_us(change.at), accepted_at, payload,
            ))  # fmt: skip
        write_many(connection, _ADD_EVENTS, rows)
        return events

    def _fan_out(self, connection: sqlite3.Connection, events: Sequence[Event]) -> list[Delivery]:
        subscribers = self._current_subscribers(connection)
        deliveries = [
            Delivery(event, callback_id)
            for event in events
            for callback_id, client_id, pin in subscribers
            if client_id == event.client_id and pin in (None, event.pin)
        ]
        write_many(connection, _ADD_DELIVERIES, [(d.event.seq, d.callback_id, "waiting", 0) for d in deliveries])
        return deliveries

    def _current_subscribers(self, connection: sqlite3.Connection) -> list[Subscriber]:
        """Who wants events, as this transaction sees it; read again only when somebody changed the registry."""
        (version,) = connection.execute("SELECT value FROM meta WHERE name = 'registry_version'").fetchone()
        if version != self._version:
            self._subscribers = connection.execute(
                "SELECT id, client_id, pin FROM callbacks WHERE removed_at IS NULL AND disabled_at IS NULL ORDER BY id"
            ).fetchall()
            self._version = version
        return self._subscribers


def _order(status: Status) -> int:
    return _ORDER.get(status, _FINAL)


def _known_calls(
    connection: sqlite3.Connection, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot]
) -> dict[CallIdentity, _CallRow]:
    identities = {change.identity for change in changes} | {snapshot.identity for snapshot in snapshots}
    calls = {identity: _CallRow() for identity in identities}
    for source, key, generation, ended_at in read_in(connection, _CALLS, [(i.source, i.key) for i in identities]):
        row = calls[CallIdentity(source, key)]
        row.generation, row.ended_at, row.had_ended = generation, from_us_or_none(ended_at), ended_at is not None
    return calls


def _callerid_of(row: _CallRow, change: StatusChange) -> str | None:
    """The call that a change belongs to; None when it comes after that call's end.

    A call that begins after the end of its namesake is the next generation.
    """
    began_at = change.facts.began_at
    if row.ended_at is not None and began_at is not None and began_at > row.ended_at:
        row.generation += 1
        row.ended_at, row.had_ended, row.callerid = None, False, ""
    if row.had_ended:
        return None
    row.callerid = row.callerid or callerid(change.identity, row.generation)
    if change.status.is_final:
        row.ended_at = change.at
    return row.callerid


def _keep_calls(connection: sqlite3.Connection, snapshots: Sequence[Snapshot], calls: dict[CallIdentity, _CallRow]) -> None:
    rows = [
        (
            snapshot.identity.source,
            snapshot.identity.key,
            calls[snapshot.identity].generation,
            snapshot.state,
            None if snapshot.state is not None else to_us_or_none(snapshot.ended_at) or 0,
        )
        for snapshot in snapshots
        if not calls[snapshot.identity].had_ended
    ]
    write_many(connection, _KEEP_CALLS, rows)


def open_calls(connection: sqlite3.Connection) -> list[tuple[CallIdentity, bytes]]:
    """See `Store.open_calls`."""
    rows = connection.execute("SELECT source, key, state FROM calls WHERE state IS NOT NULL").fetchall()
    return [(CallIdentity(source, key), state) for source, key, state in rows]


def pending(connection: sqlite3.Connection, after: tuple[int, int], limit: int) -> list[Delivery]:
    """See `Store.pending`."""
    return [
        Delivery(
            Event(seq, identifier, client_id, call, direction, pin, Status(status), sequence, from_us(accepted_at), payload),
            callback_id,
            attempts,
            from_us_or_none(due_at),
        )
        for (
            seq, identifier, client_id, call, direction, pin, status, sequence, accepted_at, payload,
            callback_id, attempts, due_at,
        ) in connection.execute(_PENDING, (*after, limit))
    ]  # fmt: skip


def settle(connection: sqlite3.Connection, settlements: Sequence[Settlement], now: datetime) -> None:
    """See `Store.settle`."""
    settled_at = to_us(now)
    rows = [
        (
            s.event_seq,
            s.callback_id,
            str(s.state),
            s.attempts,
            to_us_or_none(s.due_at),
            None if s.state is DeliveryState.WAITING else settled_at,
            s.outcome,
        )
        for s in settlements
    ]
    write_many(connection, _SETTLE, rows)
