"""Events, calls and deliveries in SQLite: what is done inside one transaction. The writer thread calls these functions.

What each side of a call has been told stands in the call's row, so that a batch looks up one random key for each call and every
event is written at the end of its table. Statements are few and large (see `sqlite_rows.write_many`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from toque.callbacks.delivery import Delivery, DeliveryState, Event, Settlement
from toque.callbacks.payload import PayloadWriter
from toque.calls.identity import callerid, event_id
from toque.calls.model import CallIdentity, Snapshot, Status, StatusChange
from toque.store.contract import Appended
from toque.store.sqlite_rows import from_us, from_us_or_none, read_json, to_us, to_us_or_none, write_many

_ORDER = {Status.INITIATED: 1, Status.RINGING: 2, Status.ANSWERED: 3}
_FINAL = 4

_FIND_CALLS = """SELECT json_group_array(json_array(
        c.id, c.source, c.key, c.generation, c.callerid, json(c.told), c.earlier_ended_at, c.ended_at))
    FROM (VALUES {values}) AS wanted CROSS JOIN calls AS c ON c.source = wanted.column1 AND c.key = wanted.column2"""
_KEEP_CALLS = """INSERT INTO calls (id, source, key, generation, callerid, told, earlier_ended_at, ended_at) VALUES {values}
    ON CONFLICT (id) DO UPDATE SET generation = excluded.generation, callerid = excluded.callerid, told = excluded.told,
        earlier_ended_at = excluded.earlier_ended_at, ended_at = excluded.ended_at"""
_KEEP_SNAPSHOTS = """INSERT INTO snapshots (call_id, state) VALUES {values}
    ON CONFLICT (call_id) DO UPDATE SET state = excluded.state"""
_DROP_SNAPSHOTS = "DELETE FROM snapshots WHERE call_id IN (VALUES {values})"
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
_SUBSCRIBERS = """SELECT c.client_id, b.id, b.pin FROM clients AS c LEFT JOIN callbacks AS b
    ON b.client_id = c.client_id AND b.removed_at IS NULL AND b.disabled_at IS NULL ORDER BY b.id"""

Subscriber = tuple[int, str | None]  # callback id, pin


class _Told(msgspec.Struct, array_like=True):
    """How far one side of a call has been told."""

    client_id: str
    direction: str
    pin: str
    sequence: int = 0
    order: int = 0


class _Call(msgspec.Struct, array_like=True):
    """A call as the store knows it while a batch is read; moments are microseconds."""

    id: int
    source: str
    key: str
    generation: int
    callerid: str
    told: list[_Told]
    earlier_ended_at: int | None = None  # when the generation before this one ended
    ended_at: int | None = None
    is_over: bool = False  # it ended before this batch
    is_changed: bool = False

    def tell(self, change: StatusChange) -> int:
        """Take note of a change; returns its sequence, or 0 when it is no news to its side."""
        if not self._owns(change):
            return 0
        owner, direction, order = change.side.owner, str(change.side.direction), _ORDER.get(change.status, _FINAL)
        for told in self.told:
            if told.client_id == owner.client_id and told.pin == owner.pin and told.direction == direction:
                break
        else:
            told = _Told(owner.client_id, direction, owner.pin)
            self.told.append(told)
        if order <= told.order:
            return 0
        told.sequence += 1
        told.order = order
        if order == _FINAL:
            self.end(max(to_us(change.at), to_us_or_none(change.facts.began_at) or 0))
        self.is_changed = True
        return told.sequence

    def end(self, at: int) -> None:
        """The call is over; another one of its name begins later than this."""
        self.ended_at = max(at, self.ended_at or 0)
        self.is_changed = True

    def _owns(self, change: StatusChange) -> bool:
        """Whether a change belongs to this call, and not to an earlier one of the same name.

        What begins after the end of its namesake begins the next generation. A side can join a call that is just ending; its
        final is then as early as the others', however late the side began.
        """
        if self.earlier_ended_at is None and self.ended_at is None:
            return True
        if change.facts.began_at is None:
            return True
        began_at = to_us(change.facts.began_at)
        if self.ended_at is not None and min(began_at, to_us(change.at)) > self.ended_at:
            self._begin_again()
        return self.earlier_ended_at is None or began_at > self.earlier_ended_at

    def _begin_again(self) -> None:
        self.generation += 1
        self.callerid = callerid(CallIdentity(self.source, self.key), self.generation)
        self.told = []
        self.earlier_ended_at, self.ended_at = self.ended_at, None
        self.is_over = False


_Calls = dict[tuple[str, str], _Call]  # by source and key
_CALLS_DECODER = msgspec.json.Decoder(list[_Call])
_TOLD_ENCODER = msgspec.json.Encoder()


class EventLedger:
    """Accepts changes on one connection; remembers nothing that the database does not."""

    def __init__(self, writer: PayloadWriter) -> None:
        self._payloads = writer
        self._subscribers: dict[str, list[Subscriber]] = {}
        self._version: str | None = None

    def append(
        self, connection: sqlite3.Connection, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot], now: datetime
    ) -> Appended:
        """See `Store.append`."""
        calls = _find_calls(connection, [change.identity for change in changes] + [snapshot.identity for snapshot in snapshots])
        appended = self._accept(connection, calls, changes, now)
        _keep_calls(connection, calls, snapshots, to_us(now))
        return appended

    def forget(self) -> None:
        """A transaction was rolled back: what was read in it never was."""
        self._version = None

    def _accept(self, connection: sqlite3.Connection, calls: _Calls, changes: Sequence[StatusChange], now: datetime) -> Appended:
        """Give each change that is news to its side a sequence and an id, and write it with its deliveries."""
        if not changes:
            return Appended()
        subscribers = self._current_subscribers(connection)
        (seq,) = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'").fetchone()
        accepted_at = to_us(now)
        rows: list[tuple[Any, ...]] = []
        deliveries: list[Delivery] = []
        for change in changes:
            owner, direction, status = change.side.owner, str(change.side.direction), change.status
            wanted_by = subscribers.get(owner.client_id)
            if wanted_by is None:  # the client was removed while the call was in progress
                continue
            call = calls[change.identity.source, change.identity.key]
            sequence = call.tell(change)
            if not sequence:
                continue
            seq += 1
            identifier = event_id(change.side, call.callerid, status)
            payload = self._payloads.render(change, event_id=identifier, callerid=call.callerid, sequence=sequence)
            rows.append((
                seq, identifier, owner.client_id, call.callerid, direction, owner.pin, str(status), sequence,
                to_us(change.at), accepted_at, payload,
            ))  # fmt: skip
            event = Event(seq, identifier, owner.client_id, call.callerid, direction, owner.pin, status, sequence, now, payload)
            deliveries += [Delivery(event, callback_id) for callback_id, pin in wanted_by if pin in (None, owner.pin)]
        write_many(connection, _ADD_EVENTS, rows)
        write_many(connection, _ADD_DELIVERIES, [(d.event.seq, d.callback_id, "waiting", 0) for d in deliveries])
        return Appended(len(rows), deliveries)

    def _current_subscribers(self, connection: sqlite3.Connection) -> dict[str, list[Subscriber]]:
        """Every client, and which of its callbacks want events, as this transaction sees it.

        Read again only when somebody changed the registry.
        """
        (version,) = connection.execute("SELECT value FROM meta WHERE name = 'registry_version'").fetchone()
        if version != self._version:
            self._subscribers = {}
            for client_id, callback_id, pin in connection.execute(_SUBSCRIBERS).fetchall():
                wanted_by = self._subscribers.setdefault(client_id, [])
                if callback_id is not None:
                    wanted_by.append((callback_id, pin))
            self._version = version
        return self._subscribers


def _find_calls(connection: sqlite3.Connection, identities: Sequence[CallIdentity]) -> _Calls:
    """The calls of these identities: those that the store knows, and new ones for the rest."""
    names = dict.fromkeys((identity.source, identity.key) for identity in identities)
    calls: _Calls = {}
    for found in read_json(connection, _FIND_CALLS, list(names)):
        for call in _CALLS_DECODER.decode(found):
            call.is_over = call.ended_at is not None
            calls[call.source, call.key] = call
    if len(calls) < len(names):
        (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM calls").fetchone()
        for number, (source, key) in enumerate((name for name in names if name not in calls), last + 1):
            calls[source, key] = _Call(number, source, key, 0, callerid(CallIdentity(source, key), 0), [])
    return calls


def _keep_calls(connection: sqlite3.Connection, calls: _Calls, snapshots: Iterable[Snapshot], now: int) -> None:
    states: dict[int, bytes | None] = {}
    for snapshot in snapshots:
        call = calls[snapshot.identity.source, snapshot.identity.key]
        if call.is_over:  # a repetition of what came before the end
            continue
        if snapshot.state is None:
            ended_at = to_us_or_none(snapshot.ended_at) or call.ended_at or now
            if call.earlier_ended_at is not None and ended_at <= call.earlier_ended_at:
                continue  # the end of its namesake
            call.end(ended_at)
        states[call.id] = snapshot.state
        call.is_changed = True
    rows = [
        (c.id, c.source, c.key, c.generation, c.callerid, _TOLD_ENCODER.encode(c.told).decode(), c.earlier_ended_at, c.ended_at)
        for c in calls.values()
        if c.is_changed
    ]
    write_many(connection, _KEEP_CALLS, rows)
    write_many(connection, _KEEP_SNAPSHOTS, [(number, state) for number, state in states.items() if state is not None])
    write_many(connection, _DROP_SNAPSHOTS, [(number,) for number, state in states.items() if state is None])


def open_calls(connection: sqlite3.Connection) -> list[tuple[CallIdentity, bytes]]:
    """See `Store.open_calls`."""
    rows = connection.execute(
        "SELECT c.source, c.key, s.state FROM snapshots AS s JOIN calls AS c ON c.id = s.call_id ORDER BY s.call_id"
    ).fetchall()
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
    latest: dict[tuple[int, int], Settlement] = {}
    for settlement in settlements:
        earlier = latest.get((settlement.event_seq, settlement.callback_id))
        if earlier is None or earlier.state is DeliveryState.WAITING:  # what is settled stays so
            latest[settlement.event_seq, settlement.callback_id] = settlement
    rows = [
        (number, callback_id, str(s.state), s.attempts, to_us_or_none(s.due_at), None, s.outcome)
        if s.state is DeliveryState.WAITING
        else (number, callback_id, str(s.state), s.attempts, None, settled_at, s.outcome)
        for (number, callback_id), s in latest.items()
    ]
    write_many(connection, _SETTLE, rows)


def drop_events(connection: sqlite3.Connection, client_id: str, limit: int) -> int:
    """Drop some of a client's events with their deliveries; returns how many there were."""
    return connection.execute(
        "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE client_id = ? LIMIT ?)", (client_id, limit)
    ).rowcount
