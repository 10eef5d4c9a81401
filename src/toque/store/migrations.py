"""The SQLite schema's history. A migration, once released, is never edited; the next one is added below it.

Moments are whole microseconds since 1970 in UTC. CHECK constraints repeat what the state machines promise.

Two tables are logs, with one row for a whole batch: `segments` has the events as they were accepted, with what they changed in
`calls`; `outcomes` has how deliveries stand. Only what was not delivered at once has a row of its own, in `deliveries`. The JSON
in them is written for speed; the views `events` and `settled_deliveries` show it to people.

An index on a random value (a callerid, an event's id) would cost each event a page of its own, more than all else together.
There is one, the key of `calls`: the first 63 bits of the name-based UUID of a call. Nothing refers to `callbacks` by a foreign
key, since whoever removes one must not wait until all that it left behind is gone: `chores` remembers that.
"""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('registry_version', '1'), ('ping', '0'), ('sweep', '-1 0'), ('calls_from', '1');

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
        failing_since INTEGER,
        dead_through INTEGER NOT NULL DEFAULT 0,      -- rows of `deliveries` that waited when it was last disabled,
        dead_through_seq INTEGER NOT NULL DEFAULT 0,  -- and events that were accepted until then
        dead_at INTEGER,
        dead_reason TEXT,
        CHECK ((old_secret IS NULL) = (old_secret_until IS NULL)),
        CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL)),
        CHECK ((dead_at IS NULL) = (dead_reason IS NULL)),
        CHECK (dead_at IS NOT NULL OR (dead_through = 0 AND dead_through_seq = 0))
    ) STRICT;
    CREATE UNIQUE INDEX callbacks_active ON callbacks (client_id, url, coalesce(pin, '')) WHERE removed_at IS NULL;

    CREATE TABLE calls (
        id INTEGER PRIMARY KEY,  -- the first 63 bits of `callerid0`
        callerid0 TEXT NOT NULL,  -- what the callerid is as long as its switch has used its name once
        seen_at INTEGER NOT NULL,
        state TEXT NOT NULL
    ) STRICT;

    CREATE TABLE snapshots (
        call_id INTEGER PRIMARY KEY,
        source TEXT NOT NULL,
        key TEXT NOT NULL,
        state BLOB NOT NULL
    ) STRICT;

    CREATE TABLE segments (
        first_seq INTEGER PRIMARY KEY CHECK (first_seq >= 1),
        last_seq INTEGER NOT NULL CHECK (last_seq >= first_seq),
        accepted_at INTEGER NOT NULL,
        logged INTEGER NOT NULL,  -- the last row of `outcomes` before it
        open_from INTEGER NOT NULL CHECK (open_from <= last_seq),
        calls TEXT NOT NULL,  -- rows of `calls` that changed with it; they get there later, many at once
        events TEXT NOT NULL
    ) STRICT;
    CREATE INDEX segments_by_time ON segments (accepted_at);

    CREATE VIEW events AS SELECT
        s.first_seq + e.key AS seq,
        json_extract(e.value, '$[0]') AS id,
        json_extract(e.value, '$[1]') AS client_id,
        json_extract(e.value, '$[2]') AS callerid,
        json_extract(e.value, '$[3]') AS direction,
        json_extract(e.value, '$[4]') AS pin,
        json_extract(e.value, '$[5]') AS status,
        json_extract(e.value, '$[6]') AS sequence,
        CAST(strftime('%s', json_extract(e.value, '$[7]')) AS INTEGER) * 1000000 + iif(
            substr(json_extract(e.value, '$[7]'), 20, 1) = '.', CAST(substr(json_extract(e.value, '$[7]'), 21, 6) AS INTEGER), 0
        ) AS happened_at,
        s.accepted_at AS accepted_at,
        json_extract(e.value, '$[8]') AS payload
    FROM segments AS s, json_each(s.events) AS e WHERE e.type = 'array';

    CREATE TABLE outcomes (
        id INTEGER PRIMARY KEY,
        settled_at INTEGER NOT NULL,
        open_from INTEGER NOT NULL,  -- nothing before this event is without an outcome
        entries TEXT NOT NULL
    ) STRICT;

    CREATE VIEW settled_deliveries AS SELECT
        json_extract(e.value, '$[0]') AS event_seq,
        json_extract(e.value, '$[1]') AS callback_id,
        json_extract(e.value, '$[2]') AS attempts,
        json_extract(e.value, '$[3]') AS state,
        o.settled_at AS settled_at
    FROM outcomes AS o, json_each(o.entries) AS e;

    CREATE TABLE deliveries (
        row INTEGER PRIMARY KEY AUTOINCREMENT,  -- a number is never used again: `dead_through` would kill it
        callback_id INTEGER NOT NULL,
        event_seq INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('waiting', 'dead')),
        attempts INTEGER NOT NULL CHECK (attempts >= 0),
        due_at INTEGER,
        age_s REAL NOT NULL,  -- healthy time that it has had
        settled_at INTEGER,
        outcome TEXT,
        event TEXT NOT NULL,
        UNIQUE (callback_id, event_seq),
        CHECK ((state = 'dead') = (settled_at IS NOT NULL)),
        CHECK (state = 'waiting' OR due_at IS NULL)
    ) STRICT;
    CREATE INDEX deliveries_of_callback ON deliveries (callback_id, state, row);
    CREATE INDEX deliveries_dead ON deliveries (settled_at) WHERE settled_at IS NOT NULL;

    CREATE TABLE replays (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        callback_id INTEGER NOT NULL,
        since INTEGER,
        until INTEGER NOT NULL,
        callerid TEXT,
        event_id TEXT,
        is_for_dead INTEGER NOT NULL CHECK (is_for_dead IN (0, 1)),
        rate REAL NOT NULL CHECK (rate > 0),
        state TEXT NOT NULL CHECK (state IN ('running', 'done', 'cancelled')),
        place INTEGER NOT NULL CHECK (place >= 0),
        through INTEGER NOT NULL,  -- where it ends: what comes later was told when it came
        requeued INTEGER NOT NULL CHECK (requeued >= 0),
        created_at INTEGER NOT NULL,
        ended_at INTEGER,
        CHECK ((state = 'running') = (ended_at IS NULL))
    ) STRICT;

    CREATE TABLE chores (
        kind TEXT NOT NULL CHECK (kind IN ('removed callback', 'disabled callback', 'removed client')),
        name TEXT NOT NULL,
        place INTEGER NOT NULL,
        through INTEGER NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE intakes (  -- who may post calls over HTTP
        name TEXT PRIMARY KEY,
        token_hash TEXT NOT NULL UNIQUE CHECK (length(token_hash) = 64 AND token_hash NOT GLOB '*[^0-9a-f]*'),
        created_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE call_places (  -- of calls that have no row any more: where their events begin, as long as these are kept
        id INTEGER PRIMARY KEY,  -- as in `calls`
        first_seq INTEGER NOT NULL CHECK (first_seq >= 1),
        seen_at INTEGER NOT NULL  -- when the last of them was accepted, or later
    ) STRICT;
    """,
)
