"""Clients, lines and callbacks in SQLite: what is done inside one transaction."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, assert_never

from toque.callbacks.callback import Callback, Client, IntakeCredential, KeptHealth, Registered, Registry, TooMany
from toque.callbacks.signature import SECRET_BYTES, render_secret
from toque.callbacks.token import KEY_BYTES
from toque.calls.lines import Line, LineKind, conflict
from toque.errors import InputError
from toque.store import sqlite_segments as segments
from toque.store.contract import Removal
from toque.store.sealing import Sealer
from toque.store.sqlite_backlog import last_row
from toque.store.sqlite_rows import from_us, from_us_or_none, to_us, to_us_or_none

_CALLBACK_COLUMNS = """id, code, client_id, url, credentials, pin, secret, old_secret, old_secret_until, created_at,
    disabled_at, disabled_reason, failing_since"""
_SEALED_COLUMNS = ("value", "credentials", "secret", "old_secret")
CODE_BYTES = 20  # 40 hex digits
_LAST_CHARACTER = chr(0x10FFFF)


def version(connection: sqlite3.Connection) -> int:
    """See `Store.registry_version`."""
    (value,) = connection.execute("SELECT value FROM meta WHERE name = 'registry_version'").fetchone()
    return int(value)


def _changed(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE name = 'registry_version'")


def registry(connection: sqlite3.Connection, sealer: Sealer, now: datetime) -> Registry:
    """See `Store.registry`. The connection is inside a transaction, so that all of it is of one moment."""
    clients = {
        row[0]: Client(row[0], row[1], row[2], row[3], from_us(row[4]), from_us_or_none(row[5]))
        for row in connection.execute(
            "SELECT client_id, name, secret_hash, secret_version, created_at, disabled_at FROM clients ORDER BY created_at"
        )
    }
    lines = tuple(_lines(connection))
    callbacks = {
        row[0]: _callback(row, sealer, now)
        for row in connection.execute(f"SELECT {_CALLBACK_COLUMNS} FROM callbacks WHERE removed_at IS NULL ORDER BY id")  # noqa: S608
    }
    intakes = {
        name: IntakeCredential(name, token_hash, from_us(created_at))
        for name, token_hash, created_at in connection.execute("SELECT name, token_hash, created_at FROM intakes ORDER BY name")
    }
    return Registry(version(connection), clients, lines, callbacks, intakes)


def _lines(connection: sqlite3.Connection, which: str = "TRUE", values: Sequence[str] = ()) -> list[Line]:
    rows = connection.execute(f"SELECT client_id, pin, kind, number FROM lines WHERE {which} ORDER BY id", values)  # noqa: S608
    return [Line(client_id, pin, LineKind(kind), number) for client_id, pin, kind, number in rows.fetchall()]


def _callback(row: Sequence[Any], sealer: Sealer, now: datetime) -> Callback:
    (
        identifier, code, client_id, url, credentials, pin, secret, old_secret, old_until, created_at, disabled_at, reason,
        failing_since,
    ) = row  # fmt: skip
    until = from_us_or_none(old_until)
    secrets = [secret, *([old_secret] if until is not None and until > now else [])]
    return Callback(
        id=identifier,
        code=code,
        client_id=client_id,
        url=url,
        pin=pin,
        created_at=from_us(created_at),
        credentials=None if credentials is None else sealer.open(credentials),
        secrets=tuple(sealer.open(text) for text in secrets),
        old_secret_until=until,
        disabled_at=from_us_or_none(disabled_at),
        disabled_reason=reason,
        health=KeptHealth(from_us_or_none(failing_since)),
    )


def token_key(connection: sqlite3.Connection, sealer: Sealer) -> bytes:
    """See `Store.token_key`."""
    sealed = sealer.seal(os.urandom(KEY_BYTES).hex())
    connection.execute("INSERT INTO meta VALUES ('token_key', ?) ON CONFLICT DO NOTHING", (sealed,))
    (stored,) = connection.execute("SELECT value FROM meta WHERE name = 'token_key'").fetchone()
    return bytes.fromhex(sealer.open(stored))


def reseal(connection: sqlite3.Connection, sealer: Sealer) -> bool:
    """Write every secret as this sealer would; returns whether one was not. Raises `WrongKey` when one cannot be opened."""
    keys = _resealed(connection.execute("SELECT * FROM meta WHERE name = 'token_key'"), sealer)
    callbacks = _resealed(connection.execute("SELECT * FROM callbacks"), sealer)
    if keys:
        connection.executemany("UPDATE meta SET value = :value WHERE name = :name", keys)
    if callbacks:
        # All anew, since SQLite leaves copies in the unused parts of pages when it moves rows between them.
        connection.execute("DELETE FROM callbacks")
        marks = ", ".join(f":{column}" for column in callbacks[0])
        connection.executemany(f"INSERT INTO callbacks ({', '.join(callbacks[0])}) VALUES ({marks})", callbacks)  # noqa: S608
    return bool(keys or callbacks)


def _resealed(found: sqlite3.Cursor, sealer: Sealer) -> list[dict[str, Any]]:
    """Rows with their secrets sealed anew; none where all were sealed as this sealer does it."""
    columns = [column for column, *_ in found.description]
    rows = [dict(zip(columns, values, strict=True)) for values in found]
    secrets = [(row, column) for row in rows for column in columns if column in _SEALED_COLUMNS and row[column] is not None]
    texts = [sealer.open(row[column]) for row, column in secrets]
    if all(sealer.is_current(row[column]) for row, column in secrets):
        return []
    for (row, column), text in zip(secrets, texts, strict=True):
        row[column] = sealer.seal(text)
    return rows


# Clients


def add_client(connection: sqlite3.Connection, client: Client) -> None:
    """See `Store.add_client`."""
    try:
        connection.execute(
            "INSERT INTO clients VALUES (?, ?, ?, ?, ?, ?)",
            (
                client.client_id,
                client.name,
                client.secret_hash,
                client.secret_version,
                to_us(client.created_at),
                to_us_or_none(client.disabled_at),
            ),
        )
    except sqlite3.IntegrityError:
        msg = f"there is a client {client.client_id!r}, or one named {client.name!r}, already"
        raise InputError(msg) from None
    _changed(connection)


def _one_changed(connection: sqlite3.Connection, statement: str, values: Sequence[Any]) -> bool:
    changed = connection.execute(statement, values).rowcount == 1
    if changed:
        _changed(connection)
    return changed


def rotate_client(connection: sqlite3.Connection, client_id: str, secret_hash: str) -> bool:
    """See `Store.rotate_client`."""
    statement = "UPDATE clients SET secret_hash = ?, secret_version = secret_version + 1 WHERE client_id = ?"
    return _one_changed(connection, statement, (secret_hash, client_id))


def disable_client(connection: sqlite3.Connection, client_id: str, at: datetime | None) -> bool:
    """See `Store.disable_client`."""
    return _one_changed(connection, "UPDATE clients SET disabled_at = ? WHERE client_id = ?", (to_us_or_none(at), client_id))


def remove_client(connection: sqlite3.Connection, client_id: str) -> bool:
    """See `Store.remove_client`. Lines and callbacks go by foreign key; events and deliveries are left to the upkeep."""
    callbacks = connection.execute("SELECT id FROM callbacks WHERE client_id = ?", (client_id,)).fetchall()
    is_known = _one_changed(connection, "DELETE FROM clients WHERE client_id = ?", (client_id,))
    if is_known:
        for (callback_id,) in callbacks:
            _leave_behind(connection, callback_id)
        _put_off(connection, "removed client", client_id, segments.last_seq(connection))
    return is_known


def _leave_behind(connection: sqlite3.Connection, callback_id: int) -> None:
    """A callback goes; nobody sees its deliveries any more, and the upkeep drops them."""
    connection.execute("DELETE FROM replays WHERE callback_id = ?", (callback_id,))
    _put_off(connection, "removed callback", str(callback_id), 0)


def _put_off(connection: sqlite3.Connection, kind: str, name: str, through: int) -> None:
    """Leave something to the upkeep, from the beginning on."""
    connection.execute("INSERT OR REPLACE INTO chores VALUES (?, ?, 0, ?)", (kind, name, through))


def _check_client(connection: sqlite3.Connection, client_id: str) -> None:
    if connection.execute("SELECT 1 FROM clients WHERE client_id = ?", (client_id,)).fetchone() is None:
        msg = f"there is no client {client_id!r}"
        raise InputError(msg)


# Lines


def add_lines(connection: sqlite3.Connection, lines: Sequence[Line]) -> int:
    """See `Store.add_lines`."""
    for client_id in {line.client_id for line in lines}:
        _check_client(connection, client_id)
    added = 0
    for line in lines:
        (twin,) = _lines(connection, "kind = ? AND number = ?", (str(line.kind), line.number)) or (None,)
        if line == twin:
            continue
        if twin is not None and twin.client_id == line.client_id:
            msg = f"{line.text} is already a line of this client's pin {twin.pin}"
            raise InputError(msg)
        other = conflict(line, _rivals(connection, line))
        if other is not None:
            msg = f"{line.text} belongs to another client: {other.client_id}, pin {other.pin}, line {other.text}"
            raise InputError(msg)
        connection.execute(
            "INSERT INTO lines (client_id, pin, kind, number) VALUES (?, ?, ?, ?)",
            (line.client_id, line.pin, str(line.kind), line.number),
        )
        added += 1
    if added:
        _changed(connection)
    return added


def _rivals(connection: sqlite3.Connection, line: Line) -> list[Line]:
    """The lines of other clients that `conflict` may object to: found by index, since there may be very many lines."""
    beginnings = [line.number[:length] for length in range(1, len(line.number) + 1)]
    same = "kind = ? AND number = ?"
    match line.kind:
        case LineKind.EXACT:
            which = f"{same} OR kind = 'prefix' AND number IN ({_marks(beginnings)}) OR kind = 'pattern'"
            values = [str(line.kind), line.number, *beginnings]
        case LineKind.PREFIX:
            continued = "number BETWEEN ? AND ?"
            which = f"kind IN ('exact', 'prefix') AND {continued} OR kind = 'prefix' AND number IN ({_marks(beginnings)})"
            values = [line.number, line.number + _LAST_CHARACTER, *beginnings]
        case LineKind.PATTERN:
            which = f"{same} OR kind = 'exact'"
            values = [str(line.kind), line.number]
        case _:
            assert_never(line.kind)
    return _lines(connection, f"({which}) AND client_id <> ?", [*values, line.client_id])


def _marks(values: Sequence[str]) -> str:
    return ",".join("?" * len(values))


def remove_lines(connection: sqlite3.Connection, client_id: str, pin: str, lines: Sequence[Line] | None) -> int:
    """See `Store.remove_lines`."""
    if lines is None:
        removed = connection.execute("DELETE FROM lines WHERE client_id = ? AND pin = ?", (client_id, pin)).rowcount
    else:
        removed = sum(
            connection.execute(
                "DELETE FROM lines WHERE client_id = ? AND pin = ? AND kind = ? AND number = ?",
                (client_id, pin, str(line.kind), line.number),
            ).rowcount
            for line in lines
        )
    if removed:
        _changed(connection)
    return removed


# Callbacks


def register_callback(
    connection: sqlite3.Connection,
    sealer: Sealer,
    now: datetime,
    registration: tuple[str, str, str | None, str | None],
    limit: int,
) -> Registered | TooMany:
    """See `Store.register_callback`; `registration` is client_id, url, credentials, pin."""
    client_id, url, credentials, pin = registration
    _check_client(connection, client_id)
    sealed = None if credentials is None else sealer.seal(credentials)
    where = "client_id = ? AND url = ? AND coalesce(pin, '') = ? AND removed_at IS NULL"
    row = connection.execute(f"SELECT id FROM callbacks WHERE {where}", (client_id, url, pin or "")).fetchone()  # noqa: S608
    is_new = row is None
    if is_new:
        (active,) = connection.execute(
            "SELECT count(*) FROM callbacks WHERE client_id = ? AND removed_at IS NULL", (client_id,)
        ).fetchone()
        if active >= limit:
            return TooMany(limit)
        secret = sealer.seal(render_secret(os.urandom(SECRET_BYTES)))
        row = connection.execute(
            """INSERT INTO callbacks (code, client_id, url, credentials, pin, secret, created_at)
               VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id""",
            (os.urandom(CODE_BYTES).hex(), client_id, url, sealed, pin or None, secret, to_us(now)),
        ).fetchone()
    else:  # registering again is also how a customer brings a disabled URL back
        connection.execute("UPDATE callbacks SET credentials = ? WHERE id = ?", (sealed, row[0]))
        _enable(connection, row[0])
    _changed(connection)
    found = connection.execute(f"SELECT {_CALLBACK_COLUMNS} FROM callbacks WHERE id = ?", (row[0],)).fetchone()  # noqa: S608
    return Registered(_callback(found, sealer, now), is_new)


def remove_callback(connection: sqlite3.Connection, client_id: str, code: str, now: datetime) -> Removal:
    """See `Store.remove_callback`."""
    row = connection.execute(
        "SELECT id, removed_at FROM callbacks WHERE code = ? AND client_id = ?", (code, client_id)
    ).fetchone()
    if row is None:
        return Removal.UNKNOWN
    if row[1] is not None:
        return Removal.ALREADY_REMOVED
    connection.execute("UPDATE callbacks SET removed_at = ?, credentials = NULL WHERE id = ?", (to_us(now), row[0]))
    _leave_behind(connection, row[0])
    _changed(connection)
    return Removal.REMOVED


def disable_callback(connection: sqlite3.Connection, callback_id: int, reason: str, now: datetime) -> None:
    """See `Store.disable_callback`. What waits is not touched: a mark says how much of it is dead."""
    at, row, seq = to_us(now), last_row(connection), segments.last_seq(connection)
    statement = """UPDATE callbacks SET disabled_at = ?, disabled_reason = ?,
            dead_at = ?, dead_reason = ?, dead_through = ?, dead_through_seq = ?
        WHERE id = ? AND disabled_at IS NULL AND removed_at IS NULL"""
    if _one_changed(connection, statement, (at, reason, at, reason, row, seq, callback_id)):
        _put_off(connection, "disabled callback", str(callback_id), row)


def enable_callback(connection: sqlite3.Connection, code: str) -> bool:
    """See `Store.enable_callback`."""
    row = connection.execute("SELECT id FROM callbacks WHERE code = ? AND removed_at IS NULL", (code,)).fetchone()
    if row is not None:
        _enable(connection, row[0])
        _changed(connection)
    return row is not None


def _enable(connection: sqlite3.Connection, callback_id: int) -> None:
    """It is well, as far as we know. What its last disabling took with it stays dead."""
    connection.execute(
        "UPDATE callbacks SET disabled_at = NULL, disabled_reason = NULL, failing_since = NULL WHERE id = ?", (callback_id,)
    )


def keep_health(connection: sqlite3.Connection, callback_id: int, health: KeptHealth) -> None:
    """See `Store.keep_health`."""
    connection.execute("UPDATE callbacks SET failing_since = ? WHERE id = ?", (to_us_or_none(health.failing_since), callback_id))


def rotate_callback(
    connection: sqlite3.Connection, sealer: Sealer, code: str, now: datetime, keep_old_for: timedelta
) -> str | None:
    """See `Store.rotate_callback`."""
    secret = render_secret(os.urandom(SECRET_BYTES))
    statement = """UPDATE callbacks SET old_secret = secret, old_secret_until = ?, secret = ?
        WHERE code = ? AND removed_at IS NULL"""
    found = _one_changed(connection, statement, (to_us(now + keep_old_for), sealer.seal(secret), code))
    return secret if found else None


# Credentials of the HTTP intake


def add_intake(connection: sqlite3.Connection, credential: IntakeCredential) -> None:
    """See `Store.add_intake`."""
    values = (credential.name, credential.token_hash, to_us(credential.created_at))
    try:
        connection.execute("INSERT INTO intakes VALUES (?, ?, ?)", values)
    except sqlite3.IntegrityError:
        msg = f"there is an intake credential named {credential.name!r} already"
        raise InputError(msg) from None
    _changed(connection)


def rotate_intake(connection: sqlite3.Connection, name: str, token_hash: str) -> bool:
    """See `Store.rotate_intake`."""
    return _one_changed(connection, "UPDATE intakes SET token_hash = ? WHERE name = ?", (token_hash, name))


def remove_intake(connection: sqlite3.Connection, name: str) -> bool:
    """See `Store.remove_intake`."""
    return _one_changed(connection, "DELETE FROM intakes WHERE name = ?", (name,))
