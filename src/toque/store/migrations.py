"""The SQLite schema's history. A migration, once released, is never edited; the next one is added below it.

Moments are whole microseconds since 1970 in UTC. CHECK constraints repeat what the state machines promise.

Every index on a random value (a callerid, an event's id) would cost each event a page of its own, more than all else together.
There is one, for a call's name at its switch; a call's events stand close together among those of their client. Deliveries go
with their events, and have no foreign key to callbacks, which would need an index of its own.
"""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('registry_version', '1'), ('ping', '0');

    CREATE TABLE clients (
        client_id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        secret_hash TEXT NOT NULL,
        secret_version INTEGER NOT NULL CHECK (secret_version >= 1),
        created_at INTEGER NOT NULL,
        disabled_at INTEGER
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE lines (
        id INTEGER PRIMARY KEY,
        client_id TEXT NOT NULL REFERENCES clients ON DELETE CASCADE,
        pin TEXT NOT NULL CHECK (pin <> ''),
        kind TEXT NOT NULL CHECK (kind IN ('exact', 'prefix', 'pattern')),
        number TEXT NOT NULL CHECK (number <> ''),
        UNIQUE (kind, number)
    ) STRICT;
    CREATE INDEX lines_of_client ON lines (client_id);

    CREATE TABLE callbacks (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        code TEXT NOT NULL UNIQUE CHECK (length(code) = 40 AND code NOT GLOB '*[^0-9a-f]*'),
        client_id TEXT NOT NULL REFERENCES clients ON DELETE CASCADE,
        url TEXT NOT NULL,
        credentials TEXT,
        pin TEXT,
        secret TEXT NOT NULL,
        old_secret TEXT,
        old_secret_until INTEGER,
        created_at INTEGER NOT NULL,
        removed_at INTEGER,
        disabled_at INTEGER,
        disabled_reason TEXT,
        CHECK ((old_secret IS NULL) = (old_secret_until IS NULL)),
        CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL))
    ) STRICT;
    CREATE UNIQUE INDEX callbacks_active ON callbacks (client_id, url, coalesce(pin, '')) WHERE removed_at IS NULL;

    CREATE TABLE calls (
        id INTEGER PRIMARY KEY,
        source TEXT NOT NULL,
        key TEXT NOT NULL,
        generation INTEGER NOT NULL CHECK (generation >= 0),
        callerid TEXT NOT NULL,
        told TEXT NOT NULL CHECK (json_valid(told)),
        earlier_ended_at INTEGER,
        ended_at INTEGER,
        UNIQUE (source, key),
        CHECK ((generation = 0) = (earlier_ended_at IS NULL))
    ) STRICT;

    CREATE TABLE snapshots (
        call_id INTEGER PRIMARY KEY REFERENCES calls ON DELETE CASCADE,
        state BLOB NOT NULL
    ) STRICT;

    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL,
        client_id TEXT NOT NULL,
        callerid TEXT NOT NULL,
        direction TEXT NOT NULL CHECK (direction IN ('made', 'received')),
        pin TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN (
            'initiated', 'ringing', 'answered', 'hung_up', 'busy', 'no_answer', 'cancelled', 'rejected', 'congestion',
            'invalid_number', 'unreachable', 'failed')),
        sequence INTEGER NOT NULL CHECK (sequence BETWEEN 1 AND 4),
        happened_at INTEGER NOT NULL,
        accepted_at INTEGER NOT NULL,
        payload TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_of_client ON events (client_id);

    CREATE TABLE deliveries (
        event_seq INTEGER NOT NULL REFERENCES events ON DELETE CASCADE,
        callback_id INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'dead')),
        attempts INTEGER NOT NULL CHECK (attempts >= 0),
        due_at INTEGER,
        settled_at INTEGER,
        outcome TEXT,
        PRIMARY KEY (event_seq, callback_id),
        CHECK ((state = 'waiting') = (settled_at IS NULL)),
        CHECK (state = 'waiting' OR due_at IS NULL),
        CHECK (state <> 'delivered' OR attempts >= 1)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX deliveries_waiting ON deliveries (event_seq, callback_id) WHERE state = 'waiting';
    """,
)
