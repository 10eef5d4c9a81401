"""The embedded store as source and target of a copy (`copying`). Each step of a target is one transaction."""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from toque.callbacks.callback import Callback
from toque.callbacks.delivery import Delivery
from toque.store import sqlite_segments as segments
from toque.store.contract import DeadDelivery
from toque.store.movable import (
    Accounts,
    CopiedEvents,
    CopiedOutcomes,
    CopiedReplay,
    Logged,
    Mark,
    RemovedCallback,
    in_parts,
    number_of_parts,
    places_of,
)
from toque.store.sealing import Sealer
from toque.store.sqlite import SqliteStore
from toque.store.sqlite_backlog import ROOM, last_row, render_event
from toque.store.sqlite_calls import CallRow, SnapshotRow, keep, keep_snapshots
from toque.store.sqlite_rows import to_us, to_us_or_none, write_many

_STATE = """SELECT json_array((SELECT value FROM meta WHERE name = 'registry_version'),
    (SELECT max(last_seq) FROM segments), (SELECT max(id) FROM outcomes), (SELECT count(*) FROM snapshots),
    (SELECT seq FROM sqlite_sequence WHERE name = 'deliveries'), (SELECT total(place + requeued) FROM replays))"""
_IS_USED = " UNION ALL ".join(f"SELECT 1 FROM {name}" for name in ("clients", "intakes", "segments", "outcomes", "deliveries"))  # noqa: S608
_ADD_ROW = """INSERT INTO deliveries (row, callback_id, event_seq, state, attempts, due_at, age_s, settled_at, outcome, event)
    VALUES {values} ON CONFLICT DO NOTHING"""
_ADD_CALLBACK = """INSERT OR REPLACE INTO callbacks (id, code, client_id, url, credentials, pin, secret, old_secret,
    old_secret_until, created_at, disabled_at, disabled_reason, failing_since) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_ADD_REMOVED = """INSERT OR REPLACE INTO callbacks (id, code, client_id, url, secret, created_at, removed_at)
    VALUES (?, ?, ?, '', ?, ?, ?)"""
_ADD_REPLAY = """INSERT OR REPLACE INTO replays (id, callback_id, since, until, callerid, event_id, is_for_dead, rate, state,
    place, through, requeued, created_at, ended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_PUT_META = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
_SEGMENTS = """SELECT first_seq, last_seq, accepted_at, events, logged FROM segments
    WHERE first_seq > ? ORDER BY first_seq LIMIT 64"""
_OUTCOMES = "SELECT id, settled_at, entries FROM outcomes WHERE id > ? ORDER BY id LIMIT 500"
_CALLS = "SELECT id, callerid0, seen_at, state FROM calls WHERE id > ? ORDER BY id LIMIT 1000"
_ENTRIES = msgspec.json.Decoder(list[tuple[int, int, int, str]])
_encode = msgspec.json.Encoder().encode
_MARK = "copy"
_LOGGED_CALLS = """SELECT calls FROM segments WHERE first_seq >=
    (SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'calls_from') ORDER BY first_seq"""
_ROWS = msgspec.json.Decoder(list[CallRow])
_SIZES = "SELECT id, json_array_length(entries) FROM outcomes ORDER BY id"
_ERASED = "SELECT name, through FROM chores WHERE kind = 'removed client'"


_Standing = tuple[str, int | None, int | None, str | None]  # state, due_at, settled_at, outcome


class MovableSqlite(SqliteStore):
    """See `toque.store.movable.Movable`."""

    @property
    def shown(self) -> str:
        """What people call it."""
        return str(self.path)

    async def claim(self) -> None:
        """See `Movable.claim`."""
        self.lock()

    # As a source

    async def state_of_things(self) -> str:
        """See `Movable.state_of_things`."""
        found: str = await self._read(lambda c: c.execute(_STATE).fetchone()[0])
        return found

    async def removed_callbacks(self) -> list[RemovedCallback]:
        """See `Movable.removed_callbacks`."""
        statement = "SELECT id, code, client_id FROM callbacks WHERE removed_at IS NOT NULL ORDER BY id"
        return await self._read(lambda c: [RemovedCallback(*row) for row in c.execute(statement)])

    async def replay_ends(self) -> dict[int, int]:
        """See `Movable.replay_ends`."""
        return await self._read(lambda c: dict(c.execute("SELECT id, through FROM replays").fetchall()))

    async def outcomes(self, skipped: int) -> AsyncIterator[CopiedOutcomes]:
        """See `Movable.outcomes`."""
        after = 0
        while page := await self._page(_OUTCOMES, after):
            for _, settled_at, text in page:
                for part in in_parts(_ENTRIES.decode(text)):
                    if skipped:
                        skipped -= 1
                    else:
                        yield CopiedOutcomes(settled_at, part)
            after = page[-1][0]

    async def events(self) -> AsyncIterator[CopiedEvents]:
        """See `Movable.events`."""
        erased = await self._read(lambda c: dict(c.execute(_ERASED).fetchall()))
        logged = Logged(
            [(number, number_of_parts(size)) for number, size in await self._read(lambda c: c.execute(_SIZES).fetchall())]
        )
        after = 0
        while page := await self._page(_SEGMENTS, after):
            for first_seq, last_seq, accepted_at, text, outcome in page:
                events: list[segments.StoredEvent | None] = [None] * (last_seq + 1 - first_seq)
                for seq, event in segments.StoredSegment(first_seq, last_seq, accepted_at, text).events():
                    if seq > erased.get(event.client_id, 0):
                        events[seq - first_seq] = event
                yield CopiedEvents(first_seq, accepted_at, logged.until(outcome), events)
            after = page[-1][0]

    async def calls(self, after: int) -> AsyncIterator[list[CallRow]]:
        """See `Movable.calls`."""
        logged = await self._read(_logged_calls)
        keys = sorted(key for key in logged if key > after)
        while page := await self._page(_CALLS, after):
            after = page[-1][0]
            newer = keys[: bisect_right(keys, after)]
            del keys[: len(newer)]
            yield sorted(({row[0]: row for row in page} | {key: logged[key] for key in newer}).values())
        yield [logged[key] for key in keys]

    async def _page(self, statement: str, after: int) -> list[Any]:
        return await self._read(lambda c: c.execute(statement, (after,)).fetchall())

    # As a target

    async def mark(self) -> Mark | None:
        """See `Movable.mark`."""
        return await mark_in(self)

    async def put_mark(self, mark: Mark) -> None:
        """See `Movable.put_mark`."""
        await self._write(lambda c: c.execute(_PUT_META, (_MARK, _encode(mark).decode())).rowcount)

    async def is_empty(self) -> bool:
        """See `Movable.is_empty`."""
        return await self._read(lambda c: c.execute(_IS_USED).fetchone() is None)

    async def take_accounts(self, accounts: Accounts) -> None:
        """See `Movable.take_accounts`."""
        await self._write(lambda c: _take_accounts(c, accounts, self._sealer, to_us(self._clock())))

    async def take_replays(self, replays: Sequence[CopiedReplay]) -> None:
        """See `Movable.take_replays`."""
        await self._write(lambda c: c.executemany(_ADD_REPLAY, map(_replay_row, replays)).rowcount)

    async def take_outcomes(self, outcomes: Sequence[CopiedOutcomes]) -> None:
        """See `Movable.take_outcomes`."""
        rows = [(one.settled_at, 0, _encode(one.entries).decode()) for one in outcomes]
        statement = "INSERT INTO outcomes (settled_at, open_from, entries) VALUES (?, ?, ?)"
        await self._write(lambda c: c.executemany(statement, rows).rowcount)

    async def last_event(self) -> int:
        """See `Movable.last_event`."""
        return await self._read(segments.last_seq)

    async def take_events(self, events: CopiedEvents) -> None:
        """See `Movable.take_events`."""
        text = _encode(events.events).decode()
        row = (events.first_seq, events.last_seq, events.accepted_at, events.logged, events.first_seq, "[]", text)
        await self._write(lambda c: c.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?)", row).rowcount)

    async def last_call(self) -> int:
        """See `Movable.last_call`."""
        found: int = await self._read(lambda c: c.execute("SELECT coalesce(max(id), -1) FROM calls").fetchone()[0])
        return found

    async def take_calls(self, calls: Sequence[CallRow], in_progress: set[int]) -> None:  # noqa: ARG002 - for the other engine
        """See `Movable.take_calls`. Which are in progress, their snapshots say."""
        await self._write(lambda c: keep(c, list(calls)))

    async def take_snapshots(self, snapshots: Sequence[SnapshotRow]) -> None:
        """See `Movable.take_snapshots`."""
        await self._write(lambda c: keep_snapshots(c, snapshots))

    async def take_waiting(self, deliveries: Sequence[Delivery]) -> None:
        """See `Movable.take_waiting`."""
        await self._add([(d, ("waiting", to_us_or_none(d.due_at), None, None)) for d in deliveries])

    async def take_dead(self, deliveries: Sequence[DeadDelivery]) -> None:
        """See `Movable.take_dead`."""
        await self._add([(d.delivery, ("dead", None, to_us(d.died_at), d.outcome)) for d in deliveries])

    async def _add(self, rows: Sequence[tuple[Delivery, _Standing]]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            last = last_row(connection)
            write_many(connection, _ADD_ROW, [_row(last + ROOM * n, *row) for n, row in enumerate(rows, 1)])

        await self._write(work)

    async def end_copy(self) -> None:
        """See `Movable.end_copy`."""
        now = to_us(self._clock())

        def work(connection: sqlite3.Connection) -> None:
            after = segments.last_seq(connection) + 1
            connection.execute("INSERT INTO outcomes (settled_at, open_from, entries) VALUES (?, ?, '[]')", (now, after))
            connection.execute(_PUT_META, ("calls_from", str(after)))

        await self._write(work)


async def mark_in(store: SqliteStore) -> Mark | None:
    """Whose copy a store is."""
    statement = "SELECT value FROM meta WHERE name = ?"
    found = await store._read(lambda c: c.execute(statement, (_MARK,)).fetchone())  # noqa: SLF001 - of the same engine
    return None if found is None else msgspec.json.decode(found[0], type=Mark)


def _logged_calls(connection: sqlite3.Connection) -> dict[int, CallRow]:
    """The calls that are in the log only."""
    return {row[0]: row for (text,) in connection.execute(_LOGGED_CALLS) for row in _ROWS.decode(text)}


def _take_accounts(connection: sqlite3.Connection, accounts: Accounts, sealer: Sealer, now: int) -> None:
    """All at once, so that what is there is all there."""
    registry = accounts.registry
    connection.execute(_PUT_META, ("token_key", sealer.seal(accounts.token_key.hex())))
    if connection.execute("SELECT EXISTS (SELECT 1 FROM clients), EXISTS (SELECT 1 FROM intakes)").fetchone() != (0, 0):
        return
    clients = [
        (c.client_id, c.name, c.secret_hash, c.secret_version, to_us(c.created_at), to_us_or_none(c.disabled_at))
        for c in registry.clients.values()
    ]
    connection.executemany("INSERT INTO clients VALUES (?, ?, ?, ?, ?, ?)", clients)
    lines = [(one.client_id, one.pin, str(one.kind), one.number) for one in registry.lines]
    connection.executemany("INSERT INTO lines (client_id, pin, kind, number) VALUES (?, ?, ?, ?)", lines)
    connection.executemany(_ADD_CALLBACK, [_callback_row(one, sealer) for one in registry.callbacks.values()])
    removed = [(one.id, one.code, one.client_id, sealer.seal(""), now, now) for one in accounts.removed]
    connection.executemany(_ADD_REMOVED, removed)
    connection.execute("DELETE FROM sqlite_sequence WHERE name = 'callbacks'")
    # No callback ever had a higher number than this, so none is given twice.
    connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('callbacks', ?)", (registry.version,))
    intakes = [(one.name, one.token_hash, to_us(one.created_at)) for one in registry.intakes.values()]
    connection.executemany("INSERT INTO intakes VALUES (?, ?, ?)", intakes)
    connection.execute(_PUT_META, ("registry_version", str(registry.version + 1)))


def _callback_row(one: Callback, sealer: Sealer) -> tuple[Any, ...]:
    old = one.secrets[1] if len(one.secrets) > 1 else None
    return (
        one.id, one.code, one.client_id, one.url, None if one.credentials is None else sealer.seal(one.credentials), one.pin,
        sealer.seal(one.secrets[0]), None if old is None else sealer.seal(old),
        None if old is None else to_us_or_none(one.old_secret_until), to_us(one.created_at),
        to_us_or_none(one.disabled_at), one.disabled_reason, to_us_or_none(one.health.failing_since),
    )  # fmt: skip


def _replay_row(copied: CopiedReplay) -> tuple[Any, ...]:
    one, (place, through) = copied.replay, places_of(copied)
    return (
        one.id, one.callback_id, to_us_or_none(one.since), to_us(one.until), one.callerid, one.event_id, one.is_for_dead,
        one.rate, str(one.state), place, through, one.requeued, to_us_or_none(one.created_at) or 0,
        to_us_or_none(one.ended_at),
    )  # fmt: skip


def _row(row: int, delivery: Delivery, standing: _Standing) -> tuple[Any, ...]:
    event, (state, due_at, died_at, outcome) = delivery.event, standing
    return (
        row, delivery.callback_id, event.seq, state, delivery.attempts, due_at, delivery.age_s, died_at, outcome,
        render_event(event),
    )  # fmt: skip
