"""Accepting status changes: what is thought about on the event loop, and what is then written in one job.

Everything about a batch is decided in memory, in one pass, and written with few large statements: under CPython, what costs is
objects and hand-overs of the interpreter lock. What the plan went by (the registry, that a call is new) is looked at again in
the transaction that writes it; where it is no longer so, nothing is written and the batch is planned anew.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from datetime import datetime

from msgspec import Raw

from toque.callbacks.delivery import Delivery, Event
from toque.callbacks.payload import PayloadWriter
from toque.calls.identity import callerid, event_id_of
from toque.calls.model import CallIdentity, Snapshot, Status, StatusChange
from toque.store import sqlite_calls as calls
from toque.store import sqlite_segments as segments
from toque.store.contract import Appended
from toque.store.sqlite_calls import Call, CallRow, HeldCalls, SnapshotRow
from toque.store.sqlite_rows import to_us
from toque.store.sqlite_segments import Segment
from toque.store.sqlite_writer import Stale

_FINAL = 4
_STEPS = {status: (_FINAL, str(status)) for status in Status} | {
    Status.INITIATED: (1, "initiated"),
    Status.RINGING: (2, "ringing"),
    Status.ANSWERED: (3, "answered"),
}
_SEEN_AGAIN_US = 3600 * 10**6  # a call whose row is older than this is written again, lest it be thought forgotten
_SUBSCRIBERS = """SELECT c.client_id, b.id, b.pin FROM clients AS c LEFT JOIN callbacks AS b
    ON b.client_id = c.client_id AND b.removed_at IS NULL AND b.disabled_at IS NULL ORDER BY b.id"""
_VERSION = "SELECT value FROM meta WHERE name = 'registry_version'"


class RegistryChanged(Stale):
    """The plan goes by another registry."""


class Wanted:
    """Which callbacks want a client's events: those for all pins, and for each pin that has its own, these and its own."""

    __slots__ = ("all_pins", "by_pin")

    def __init__(self, callbacks: Sequence[tuple[int, str | None]]) -> None:
        self.all_pins = [number for number, pin in callbacks if pin is None]
        pins = {pin for _, pin in callbacks if pin is not None}
        self.by_pin = {pin: [number for number, its in callbacks if its is None or its == pin] for pin in pins}


class Subscribers:
    """Every client and who wants its events, as of one version of the registry."""

    def __init__(self, version: str | None = None, clients: dict[str, Wanted] | None = None) -> None:
        self.version = version
        self.clients = clients or {}

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> Subscribers:
        """As they are now."""
        (version,) = connection.execute(_VERSION).fetchone()
        callbacks: dict[str, list[tuple[int, str | None]]] = {}
        for client_id, number, pin in connection.execute(_SUBSCRIBERS).fetchall():
            mine = callbacks.setdefault(client_id, [])
            if number is not None:
                mine.append((number, pin))
        return cls(version, {client_id: Wanted(mine) for client_id, mine in callbacks.items()})


class Append:
    """What one caller appends, and what is told to it."""

    __slots__ = ("appended", "changes", "future", "snapshots")

    def __init__(self, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot], loop: asyncio.AbstractEventLoop) -> None:
        self.changes = changes
        self.snapshots = snapshots
        self.future: asyncio.Future[Appended] = loop.create_future()
        self.appended = Appended()


class Plan:
    """What a batch comes to, and how it is written."""

    __slots__ = (
        "accepted_at",
        "calls",
        "events",
        "first_seq",
        "new_calls",
        "open_from",
        "segment",
        "snapshots",
        "version",
    )

    def __init__(self, version: str | None, first_seq: int, open_from: int, accepted_at: int) -> None:
        self.version = version
        self.first_seq = first_seq
        self.open_from = open_from
        self.accepted_at = accepted_at
        self.events: list[tuple[object, ...]] = []
        self.segment = Segment(first_seq, 0)
        self.calls: list[CallRow] = []
        self.new_calls: list[tuple[int]] = []  # keys of those that should have no row yet
        self.snapshots: dict[int, SnapshotRow] = {}

    def write(self, connection: sqlite3.Connection) -> None:
        """The job. Raises `Stale` when the plan goes by what is no longer so."""
        if connection.execute(_VERSION).fetchone()[0] != self.version:
            raise RegistryChanged
        calls.check_new(connection, self.new_calls)
        calls.keep_snapshots(connection, self.snapshots.values())
        if self.events:
            segments.add(connection, self.first_seq, self.accepted_at, self.open_from, (self.calls, self.events))
        else:
            calls.keep(connection, self.calls)


class Planner:
    """Plans batches, one at a time, with the calls and subscribers that it holds in memory."""

    def __init__(self, payloads: PayloadWriter) -> None:
        self._write = payloads.write
        self._render = payloads.render
        self.held = HeldCalls()
        self.unwritten = calls.Unwritten()
        self.subscribers = Subscribers()
        self._number = 0  # of appends

    def strangers(self, appends: Sequence[Append], *, is_doubted: bool = False) -> list[CallIdentity]:
        """Calls that are not held and of which a batch does not tell the beginning: the table should be asked for them.

        Where it has been wrong to take that for the beginning, all that are not held.
        """
        get, young = self.held.get, self.held.young
        begun: set[CallIdentity] = set()
        unknown: dict[CallIdentity, None] = {}
        for append in appends:
            before = None
            for change in append.changes:
                identity = change.identity
                if identity is before:
                    continue
                before = identity
                if identity not in young and identity not in begun and get(identity) is None:
                    if change.status is Status.INITIATED and not is_doubted:
                        begun.add(identity)
                    else:
                        unknown[identity] = None
            for snapshot in append.snapshots:
                if snapshot.identity not in begun and get(snapshot.identity) is None:
                    unknown[snapshot.identity] = None
        return list(unknown)

    def find(self, connection: sqlite3.Connection, identities: Sequence[CallIdentity]) -> list[Call]:
        """Look calls up."""
        return calls.find(connection, identities, self.unwritten)

    def hold(self, found: Sequence[Call]) -> None:
        """Hold calls that were looked up."""
        for call in found:
            self.held.add(call)

    def note(self, plan: Plan) -> None:
        """A plan is durable: its calls are in the log, or where it has no events in their table."""
        if plan.events:
            self.unwritten.note(plan.calls)
        else:
            self.unwritten.drop_keys(row[0] for row in plan.calls)

    def plan(self, appends: Sequence[Append], first_seq: int, open_from: int, now: datetime) -> Plan:
        """What these appends come to. If it fails, or is not written, the calls that are held must be forgotten."""
        plan = Plan(self.subscribers.version, first_seq, open_from, to_us(now))
        self.held.shrink()
        changed: list[Call] = []
        for append in appends:
            self._number += 1
            append.appended = self._accept(plan, append.changes, now, changed)
            if append.snapshots:
                self._keep(plan, append.snapshots, now, changed)
        for call in changed:
            call.is_changed = False
            plan.calls.append(call.row(plan.accepted_at))
            if call.is_new:
                call.is_new = False
                plan.new_calls.append((call.id,))
        return plan

    def _accept(self, plan: Plan, changes: Sequence[StatusChange], now: datetime, changed: list[Call]) -> Appended:  # noqa: C901 - see below
        """Give each change that is news to its side a sequence and an id, and a delivery for everyone who wants it.

        This runs for every event there is. It is one long loop because calling a function costs as much as what it would do.
        """
        held, clients, number = self.held.young, self.subscribers.clients, self._number
        render, write = self._render, self._write
        rows = plan.events
        before = seq = plan.first_seq + len(rows)
        segment = plan.segment
        deliveries: list[Delivery] = []
        left_out: list[StatusChange] = []
        for change in changes:
            side, identity, status = change.side, change.identity, change.status
            wanted = clients.get(side.owner.client_id)
            if wanted is None:  # the client was removed while the call was in progress
                continue
            call = held.get(identity) or self._call(identity)
            state = call.state
            if (state.ended_at is not None or state.earlier_ended_at is not None) and not call.owns(change):
                left_out.append(change)
                continue
            of, told, name = call.latest
            if of is not side:
                _, told, name = call.telling(side)
            order, word = _STEPS[status]
            if order <= told.order:
                left_out.append(change)
                if plan.accepted_at - call.seen_at > _SEEN_AGAIN_US and not call.is_changed:
                    call.is_changed = True
                    changed.append(call)
                continue
            if not call.is_changed:
                call.is_changed = True
                changed.append(call)
            told.order = order
            told.sequence = sequence = told.sequence + 1
            if not state.first_seq:
                state.first_seq = seq
            if order == _FINAL:
                began_at = change.facts.began_at
                call.end(change.at if began_at is None or began_at < change.at else began_at, number)
            uuid, pin = call.callerid, told.pin
            identifier = event_id_of(name, status)
            ids = wanted.by_pin.get(pin, wanted.all_pins) if wanted.by_pin else wanted.all_pins
            if ids:
                payload, body = write(change, identifier, uuid, sequence)
                event = Event(seq, identifier, told.client_id, uuid, told.direction, pin, status, sequence, now, payload, body)
                deliveries += [Delivery(event, callback_id, 0, None, 0.0, 0, segment) for callback_id in ids]
            else:
                payload = render(change, identifier, uuid, sequence)
            rows.append((identifier, told.client_id, uuid, told.direction, pin, word, sequence, change.at, Raw(payload), ids))
            seq += 1
        segment.fresh += len(deliveries)
        return Appended(seq - before, deliveries, left_out)

    def _call(self, identity: CallIdentity) -> Call:
        """A call that is held, or a new one."""
        call = self.held.get(identity)
        if call is None:
            first = callerid(identity, 0)
            call = Call(identity, first)
            row = self.unwritten.get(call.id)
            if row is None:
                call.is_new = True
            else:
                call = calls.parse_call(identity, first, row)
            self.held.add(call)
        return call

    def _keep(self, plan: Plan, snapshots: Sequence[Snapshot], now: datetime, changed: list[Call]) -> None:
        """Take note of which calls go on and which are over."""
        for snapshot in snapshots:
            call = self._call(snapshot.identity)
            if call.was_over(self._number):  # a repetition of what came before the end
                continue
            if snapshot.state is None:
                ended_at = snapshot.ended_at or call.state.ended_at or now
                earlier = call.state.earlier_ended_at
                if earlier is not None and ended_at <= earlier:
                    continue  # the end of its namesake
                call.end(ended_at, self._number)
                if not call.is_changed:
                    call.is_changed = True
                    changed.append(call)
            plan.snapshots[call.id] = (call.id, *snapshot.identity, snapshot.state)
