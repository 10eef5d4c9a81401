"""What is SQLite's own about the embedded store: its file, its schema, its secrets, its commits, and what breaks."""

import asyncio
import gc
import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.clock import ManualClock
from tests.support.stored_calls import (
    BEGINNING,
    URL,
    ZONE,
    a_client,
    change,
    identity,
    in_progress,
    left,
    lines,
    over,
    settled,
    told,
    whole_call,
)

from toque.callbacks.callback import Callback, Registered
from toque.callbacks.delivery import DeliveryState
from toque.callbacks.payload import PayloadWriter
from toque.calls.identity import callerid
from toque.calls.model import Status, StatusChange
from toque.errors import IllegalStep, InputError, SettingsError, StoreError
from toque.store import (
    sqlite,
    sqlite_backlog,
    sqlite_calls,
    sqlite_file,
    sqlite_replays,
    sqlite_segments,
    sqlite_upkeep,
    sqlite_writer,
)
from toque.store.contract import Appended, Replay, ReplayState
from toque.store.migrations import MIGRATIONS
from toque.store.sqlite import SqliteStore, utc_now
from toque.store.sqlite_accepting import Append, Plan
from toque.store.sqlite_rows import to_us
from toque.store.sqlite_writer import Job

KEY, OTHER_KEY = "a long and random key of ours", "a long and random key of theirs"
NEVER_S = 10.0  # a wait of a failing test


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toque.db"


class Opener:
    """Opens stores, and closes them when the test is over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stores: list[SqliteStore] = []

    def __call__(
        self, secret_key: str | None = None, path: Path | None = None, clock: Callable[[], datetime] = utc_now
    ) -> SqliteStore:
        store = SqliteStore(path or self.path, PayloadWriter(ZONE), secret_key=secret_key, clock=clock)
        self.stores.append(store)
        return store


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[Opener]:
    before = set(threading.enumerate())
    opener = Opener(path)
    yield opener
    for store in opener.stores:
        await store.close()
    left = set(threading.enumerate()) - before
    assert [thread.name for thread in left if thread.name.startswith("toque-")] == []


@pytest.fixture
async def store(opened: Opener) -> SqliteStore:
    """A store with one client, that has one callback."""
    store = opened()
    await store.add_client(a_client())
    await register(store)
    return store


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_S", 0.05)


async def register(store: SqliteStore, url: str = URL, credentials: str | None = None) -> Callback:
    registered = await store.register_callback("acme", url, credentials, None, limit=10_000)
    assert isinstance(registered, Registered)
    return registered.callback


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0.05)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        yield connection


def files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(path.name + "*"))


# The file


async def test_the_files_are_ours_alone(tmp_path: Path, opened: Opener) -> None:
    path = tmp_path / "folder" / "of ours" / "toque.db"
    mask = os.umask(0)
    try:
        store = opened(path=path)
        store.lock()
        await store.ping()
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files(path)}
    finally:
        os.umask(mask)
    assert modes == {"toque.db": 0o600, "toque.db-wal": 0o600, "toque.db-shm": 0o600, "toque.db.lock": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_file_that_others_could_read_is_closed_to_them(path: Path, opened: Opener) -> None:
    await opened().close()
    path.chmod(0o644)
    opened()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("which", ["writer", "reader"])
@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("secure_delete", 1)]
)
async def test_every_connection_is_durable_and_strict(store: SqliteStore, which: str, pragma: str, value: object) -> None:
    connection = {"writer": store._writer.connection, "reader": store._reader}[which]
    assert connection.execute(f"PRAGMA {pragma}").fetchone() == (value,)


async def test_what_is_merely_old_is_thrown_away_quickly_and_the_rest_securely(opened: Opener) -> None:
    clock = ManualClock(BEGINNING)
    store = opened(clock=clock)
    await store.add_client(a_client())
    await store.append(whole_call(), [])
    clock.advance(100)
    await store.append(whole_call("call-2"), [])
    statements: list[str] = []
    store._writer.connection.set_trace_callback(statements.append)
    while await store.housekeep(keep=timedelta(seconds=1)):
        pass
    store._writer.connection.set_trace_callback(None)
    assert [s.split()[0] for s in statements if "secure_delete" in s or "DELETE FROM segments" in s][:3] == [
        "PRAGMA",
        "DELETE",
        "PRAGMA",
    ]
    assert store._writer.connection.execute("PRAGMA secure_delete").fetchone() == (1,)


async def test_a_reader_cannot_write(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="readonly"):
        await store._read(lambda c: c.execute("DELETE FROM clients"))
    assert (await store.registry()).clients


async def test_a_file_that_is_no_database_is_refused(path: Path, opened: Opener) -> None:
    path.write_bytes(b"Dear diary, " * 1000)
    with pytest.raises(SettingsError, match="not a toque store") as caught:
        opened()
    assert (caught.value.option, caught.value.source) == ("store", str(path))
    assert path.read_bytes().startswith(b"Dear diary")


async def test_another_programs_database_is_refused_and_left_alone(path: Path, opened: Opener) -> None:
    with raw(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(SettingsError, match="another program"):
        opened()
    with raw(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


@pytest.mark.parametrize("where", ["a file/toque.db", "a folder", "a folder/that is/a file/toque.db"])
async def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, opened: Opener, where: str) -> None:
    (tmp_path / "a folder" / "that is").mkdir(parents=True)
    for file in ("a file", "a folder/that is/a file"):
        (tmp_path / file).write_text("not a folder")
    with pytest.raises(SettingsError, match=r"cannot be opened for writing|is no file") as caught:
        opened(path=tmp_path / where)
    assert caught.value.option == "store"
    assert stat.S_IMODE((tmp_path / "a folder").stat().st_mode) & 0o111, "a folder is not closed by mistake"


async def test_an_unwritable_folder_is_refused(opened: Opener) -> None:
    with pytest.raises(SettingsError, match="cannot be opened for writing"):
        opened(path=Path("/proc/toque.db"))  # not even root may


@pytest.mark.parametrize("option", ["secret_key", "store"])
async def test_a_store_in_use_keeps_its_key_and_its_schema(
    path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """A command must not change under a running server what that server could no longer read."""
    server = opened()
    server.lock()
    await server.add_client(a_client())
    await register(server)
    if option == "store":
        monkeypatch.setattr(sqlite, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE more (id INTEGER)"))
    key = KEY if option == "secret_key" else None
    with pytest.raises(SettingsError, match="stop it first") as caught:
        opened(secret_key=key)
    assert caught.value.option == option
    assert len((await server.registry()).callbacks) > 0, "the server goes on"
    await server.close()
    await opened(secret_key=key).ping()


async def test_one_server_a_store(path: Path, opened: Opener) -> None:
    first = opened()
    first.lock()
    link = path.with_name("another name.db")
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(SettingsError, match="another toque server") as caught:
            opened(path=name).lock()
        assert caught.value.option == "store"
    await opened().ping()  # a command may use the store all the same
    await first.close()
    opened().lock()


async def test_the_lock_file_may_be_impossible(path: Path, opened: Opener) -> None:
    path.with_name("toque.db.lock").mkdir()
    with pytest.raises(SettingsError, match=r"toque\.db\.lock"):
        opened().lock()


async def test_opening_a_second_time_leaves_the_locks_of_the_first(store: SqliteStore, path: Path, opened: Opener) -> None:
    """Closing any descriptor of a file drops this process's locks on it; another process would then take our log away."""
    await opened().close()
    program = f"import sqlite3; c = sqlite3.connect({str(path)!r}); print(*c.execute('SELECT client_id FROM clients')); c.close()"

    def another_process() -> str:
        return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()

    assert await asyncio.to_thread(another_process) == "('acme',)"
    assert path.with_name("toque.db-wal").exists()
    await store.add_client(a_client("outra"))
    assert await asyncio.to_thread(another_process) == "('acme',) ('outra',)"


async def test_a_file_system_without_shared_memory_is_refused(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "_configured", lambda _: "delete")
    with pytest.raises(SettingsError, match="file system"):
        opened()


# The schema


def schema(path: Path) -> list[Any]:
    with raw(path) as connection:
        rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()
        pragmas = [connection.execute(f"PRAGMA {name}").fetchone() for name in ("user_version", "application_id")]
        return [*rows, *pragmas]


@pytest.fixture
async def fresh_schema(tmp_path: Path, opened: Opener) -> list[Any]:
    await opened(path=tmp_path / "fresh.db").close()
    return schema(tmp_path / "fresh.db")


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
async def test_every_earlier_version_becomes_what_a_fresh_one_is(
    path: Path, opened: Opener, fresh_schema: list[Any], monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", MIGRATIONS[:version])
        if version:
            await opened().close()
    await opened().close()
    assert schema(path) == fresh_schema


async def test_a_migration_keeps_what_is_there(path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    await store.add_client(a_client())
    await store.close()
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE more (a TEXT);\nINSERT INTO more VALUES ('; ');\n"))
    store = opened()
    assert list((await store.registry()).clients) == ["acme"]
    assert await store._read(lambda c: c.execute("SELECT a FROM more").fetchall()) == [("; ",)]


async def test_a_migration_that_fails_changes_nothing(path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    await opened().close()
    before = schema(path)
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE more (a TEXT);\nCREATE TABLE clients (a TEXT);\n"))
    with pytest.raises(StoreError, match="already exists"):
        opened()
    assert schema(path) == before


async def test_a_newer_schema_is_refused(path: Path, opened: Opener) -> None:
    await opened().close()
    with raw(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = schema(path)
    with pytest.raises(SettingsError, match="newer toque") as caught:
        opened()
    assert caught.value.option == "store"
    assert schema(path) == before


CODE = "a1" * 20
_CLIENT = "INSERT INTO clients VALUES ('{id}', '{name}', 'hash', {version}, 1, NULL)"
_LINE = "INSERT INTO lines (client_id, pin, kind, number) VALUES ('{client}', '{pin}', '{kind}', '{number}')"
_CALLBACK = """INSERT INTO callbacks
    (code, client_id, url, pin, secret, old_secret, old_secret_until, created_at, removed_at, disabled_at, disabled_reason)
    VALUES ('{code}', '{client}', '{url}', {pin}, 's', {old}, {until}, 1, {removed}, {disabled}, {reason})"""
_HEALTH = """UPDATE callbacks SET dead_through = {through}, dead_through_seq = {seq}, dead_at = {at}, dead_reason = {reason}"""
_CALL = "INSERT INTO calls VALUES ({id}, 'uuid', 1, '[]')"
_PLACE = "INSERT INTO call_places VALUES ({id}, {first}, 1)"
_SEGMENT = "INSERT INTO segments VALUES ({first}, {last}, 1, 0, {open}, '[]', '[]')"
_DELIVERY = "INSERT INTO deliveries VALUES ({row}, 1, {event}, '{state}', {attempts}, {due}, 0.0, {settled}, NULL, '[]')"
_REPLAY = "INSERT INTO replays VALUES (NULL, 1, NULL, 1, NULL, NULL, {dead}, {rate}, '{state}', {place}, 9, {done}, 1, {ended})"
_CHORE = "INSERT INTO chores VALUES ('{kind}', 'acme', 0, 1)"
GOOD: dict[str, dict[str, object]] = {
    _CLIENT: {"id": "new", "name": "new", "version": 1},
    _LINE: {"client": "acme", "pin": "1", "kind": "exact", "number": "7"},
    _CALLBACK: {"code": CODE, "client": "acme", "url": URL, "pin": "'1'", "old": "NULL", "until": "NULL", "removed": "NULL",
                "disabled": "NULL", "reason": "NULL"},
    _HEALTH: {"through": 7, "seq": 9, "at": 1, "reason": "'r'"},
    _CALL: {"id": 77},
    _PLACE: {"id": 77, "first": 1},
    _SEGMENT: {"first": 2, "last": 3, "open": 1},
    _DELIVERY: {"row": 400, "event": 2, "state": "waiting", "attempts": 0, "due": "NULL", "settled": "NULL"},
    _REPLAY: {"dead": 0, "rate": 1.0, "state": "running", "place": 0, "done": 0, "ended": "NULL"},
    _CHORE: {"kind": "removed client"},
}  # fmt: skip
BAD: list[tuple[str, dict[str, object]]] = [
    (_CLIENT, {"id": "acme"}),
    (_CLIENT, {"name": "acme ltda"}),
    (_CLIENT, {"version": 0}),
    (_LINE, {"client": "nobody"}),
    (_LINE, {"pin": ""}),
    (_LINE, {"kind": "sort of"}),
    (_LINE, {"number": ""}),
    (_LINE, {"number": "554130600300"}),  # owned already
    (_CALLBACK, {"client": "nobody"}),
    (_CALLBACK, {"code": CODE.upper()}),
    (_CALLBACK, {"code": CODE[:-1]}),
    (_CALLBACK, {"code": CODE[:-1] + "g"}),
    (_CALLBACK, {"pin": "NULL", "code": "b2" * 20}),  # registered already, under another code
    (_CALLBACK, {"old": "'s'"}),
    (_CALLBACK, {"until": 1}),
    (_CALLBACK, {"disabled": 1}),
    (_CALLBACK, {"reason": "'r'"}),
    (_HEALTH, {"at": "NULL"}),
    (_HEALTH, {"reason": "NULL"}),
    (_HEALTH, {"at": "NULL", "reason": "NULL", "through": 0}),
    (_HEALTH, {"at": "NULL", "reason": "NULL", "seq": 0}),
    (_CALL, {"id": "'text'"}),
    (_PLACE, {"id": "'text'"}),
    (_PLACE, {"first": 0}),
    (_SEGMENT, {"first": 0}),
    (_SEGMENT, {"first": 1}),  # is there already
    (_SEGMENT, {"last": 1}),
    (_SEGMENT, {"open": 4}),
    (_DELIVERY, {"event": 1}),  # is there already
    (_DELIVERY, {"state": "delivered"}),
    (_DELIVERY, {"attempts": -1}),
    (_DELIVERY, {"settled": 1}),
    (_DELIVERY, {"state": "dead"}),
    (_DELIVERY, {"state": "dead", "settled": 1, "due": 1}),
    (_REPLAY, {"dead": 2}),
    (_REPLAY, {"rate": 0}),
    (_REPLAY, {"state": "paused"}),
    (_REPLAY, {"state": "done"}),
    (_REPLAY, {"ended": 1}),
    (_REPLAY, {"place": -1}),
    (_REPLAY, {"done": -1}),
    (_CHORE, {"kind": "the dishes"}),
]


@pytest.fixture
async def filled(store: SqliteStore, path: Path) -> AsyncIterator[sqlite3.Connection]:
    """A connection to a store that holds one of everything."""
    await store.add_lines(lines("acme", "1", "554130600300"))
    await store.settle([], left(*(await store.append([change(Status.INITIATED)], [in_progress()])).deliveries))
    await store.close()
    with raw(path) as connection:
        yield connection


@pytest.mark.parametrize("statement", GOOD)
async def test_a_possible_row_is_taken(filled: sqlite3.Connection, statement: str) -> None:
    filled.execute(statement.format(**GOOD[statement]))


@pytest.mark.parametrize(("statement", "wrong"), BAD)
async def test_an_impossible_row_is_refused(filled: sqlite3.Connection, statement: str, wrong: dict[str, object]) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        filled.execute(statement.format(**{**GOOD[statement], **wrong}))


LARGE = ("c", "calls", "call_places", "d", "deliveries", "s", "segments", "outcomes", "snapshots")
STATEMENTS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": text
    for module in (sqlite_backlog, sqlite_calls, sqlite_replays, sqlite_segments, sqlite_upkeep)
    for name, text in vars(module).items()
    if isinstance(text, str) and text.lstrip().startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"))
}
COUNTS = {"sqlite_backlog._SIZES", "sqlite_backlog._WITH_BACKLOG"}  # of every callback there is, but not of its deliveries


@pytest.mark.parametrize("name", STATEMENTS)
async def test_no_statement_reads_a_whole_large_table(filled: sqlite3.Connection, name: str) -> None:
    statement = STATEMENTS[name].replace("{values}", _VALUES.get(name.rpartition(".")[2], "(?), (?), (?)"))
    plan = [step for *_, step in explained(filled, statement)]
    tables = {step.split()[1] for step in plan if step.startswith("SCAN") and "USING INDEX" not in step}
    ordered = "ORDER BY" in statement and "LIMIT" in statement  # along the key, and stopping soon
    allowed = {"segments", "outcomes"} if ordered else set()
    assert tables & set(LARGE) - allowed - ({"c"} if name in COUNTS else set()) == set(), plan


def explained(connection: sqlite3.Connection, statement: str) -> list[Any]:
    names = set(re.findall(r":([a-z_]+)", statement))
    values: Any = dict.fromkeys(names, 0) if names else [0] * statement.count("?")
    return connection.execute("EXPLAIN QUERY PLAN " + statement, values).fetchall()


_VALUES = {
    "_ADD": "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    "_UPDATE": "(?, ?, ?, ?, ?, ?, ?)",
    "_FIND_ROWS": "(?, ?)",
    "_STANDING_ROWS": "(?, ?)",
    "_WITH_LATER_ROWS": "(?, ?)",
    "_KEEP": "(?, ?, ?, ?)",
    "_KEEP_SNAPSHOTS": "(?, ?, ?, ?)",
}


# Secrets


def in_files(path: Path, secrets: list[str]) -> list[str]:
    """Which of these texts stand somewhere in the store's files."""
    content = b"".join(file.read_bytes() for file in files(path))
    return [secret for secret in secrets if secret.encode() in content]


async def fill_with_secrets(store: SqliteStore) -> list[str]:
    """Register, rotate, replace and remove; returns every secret text that there was."""
    secrets = [(await store.token_key()).hex()]
    for n in range(60):
        secrets.append(f"user{n}:senha-{n}-" + "x" * n)
        callback = await register(store, f"{URL}/{n}", secrets[-1])
        secrets += [secret.removeprefix("whsec_") for secret in callback.secrets]
        if n % 3 == 0:
            rotated = await store.rotate_callback(callback.code, keep_old_for=timedelta(hours=1))
            assert rotated is not None
            secrets.append(rotated.removeprefix("whsec_"))
        if n % 5 == 0:
            secrets.append(f"user{n}:again-{n}-" + "y" * (60 - n))
            await register(store, f"{URL}/{n}", secrets[-1])
        if n % 7 == 0:
            await store.remove_callback("acme", callback.code)
    return secrets


async def test_with_a_key_no_secret_can_be_read_in_the_files(path: Path, opened: Opener) -> None:
    store = opened(KEY)
    await store.add_client(a_client())
    secrets = await fill_with_secrets(store)
    assert in_files(path, secrets) == []
    await store.close()
    assert in_files(path, secrets) == []


async def test_without_a_key_they_can_and_setting_one_later_takes_them_away(path: Path, opened: Opener) -> None:
    store = opened()
    await store.add_client(a_client())
    secrets = await fill_with_secrets(store)
    registry, token_key = await store.registry(), await store.token_key()
    assert token_key.hex() in in_files(path, secrets)
    assert len(in_files(path, secrets)) > 60
    await store.close()

    store = opened(KEY)
    assert in_files(path, secrets) == []
    assert (await store.registry()).callbacks == registry.callbacks
    assert await store.token_key() == token_key
    await store.close()
    assert in_files(path, secrets) == []


@pytest.mark.usefixtures("impatient")
async def test_a_key_set_while_a_reader_holds_the_old_pages(path: Path, opened: Opener) -> None:
    store = opened()
    await store.add_client(a_client())
    secrets = await fill_with_secrets(store)
    await store.close()
    with raw(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM clients").fetchall()
        store = opened(KEY)
    await store.close()
    assert in_files(path, secrets) == []


@pytest.mark.parametrize("wrong", [None, "", OTHER_KEY])
@pytest.mark.parametrize("has", ["token key", "callback", "credentials"])
async def test_another_key_or_none_is_refused(path: Path, opened: Opener, wrong: str | None, has: str) -> None:
    store = opened(KEY)
    await store.add_client(a_client())
    if has == "token key":
        await store.token_key()
    else:
        await register(store, credentials="user:senha" if has == "credentials" else None)
    registry = await store.registry()
    await store.close()
    with pytest.raises(SettingsError, match="TOQUE_SECRET_KEY") as caught:
        opened(wrong)
    assert caught.value.option == "secret_key"
    assert await opened(KEY).registry() == registry


async def test_a_damaged_secret_is_not_taken_for_one(path: Path, opened: Opener) -> None:
    for damaged in ("gcm1:", "gcm1:AAAA", "gcm1:not base64!", "gcm9:AAAA", ""):
        store = opened(KEY)
        await store._write(lambda c, d=damaged: c.execute("INSERT OR REPLACE INTO meta VALUES ('token_key', ?)", (d,)).rowcount)  # type: ignore[misc]
        with pytest.raises(StoreError, match="decrypted"):
            await store.token_key()
        await store.close()
        with pytest.raises(SettingsError):
            opened(KEY)
        with raw(path) as connection:
            connection.execute("DELETE FROM meta WHERE name = 'token_key'")


async def test_a_secret_that_cannot_be_read_is_a_store_error(path: Path, opened: Opener) -> None:
    store = opened(KEY)
    await store.add_client(a_client())
    callback = await register(store)
    await store._write(lambda c: c.execute("UPDATE callbacks SET secret = 'gcm1:AAAA'").rowcount)
    with pytest.raises(StoreError, match="decrypted"):
        await store.registry()
    with pytest.raises(StoreError, match="decrypted"):
        await register(store)
    assert await store.rotate_callback(callback.code, keep_old_for=timedelta()) is not None


async def test_without_a_key_too_removed_credentials_leave_the_file(path: Path, opened: Opener) -> None:
    store = opened()
    await store.add_client(a_client())
    callback = await register(store, credentials="user:senha")
    await store.remove_callback("acme", callback.code)
    await store.close()
    assert in_files(path, ["user:senha"]) == []


async def test_a_removed_clients_events_leave_the_file(path: Path, store: SqliteStore) -> None:
    await store.add_client(a_client("outra"))
    await store.register_callback("outra", URL, None, None, limit=9)
    for n in range(5):
        both = whole_call(f"call-{n}", pin="their-pin") + whole_call(f"call-{n}", client="outra")
        deliveries = (await store.append(both, [])).deliveries
        await store.settle(deliveries[:2], left(*deliveries[2:]))
    assert in_files(path, ["their-pin"]) != []
    await store.remove_client("acme")
    while await store.housekeep(keep=timedelta(days=30)):
        pass
    await store.close()
    with raw(path) as connection:
        assert connection.execute("SELECT client_id, count(*) FROM events GROUP BY 1").fetchall() == [("outra", 20)]
        assert connection.execute("SELECT DISTINCT callback_id FROM deliveries").fetchall() == [(2,)]
        assert connection.execute("SELECT count(*) FROM chores").fetchone() == (0,)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = connection.execute("SELECT count(*) FROM calls WHERE instr(state, 'their-pin')").fetchone()
    assert found == (5,), "how far its sides were told is forgotten a day later"


# Commits


class Gate:
    """Keeps the writer busy, so that jobs wait for one commit."""

    def __init__(self, store: SqliteStore) -> None:
        self._opened = threading.Event()
        self._reached = threading.Event()
        self._job = asyncio.ensure_future(store._write(self._stand))
        self.waiting: list[asyncio.Future[Any]] = []

    def _stand(self, _: sqlite3.Connection) -> None:
        self._reached.set()
        assert self._opened.wait(NEVER_S)

    async def queue(self, *doings: Any) -> None:
        """Have these jobs wait, in this order."""
        assert await asyncio.to_thread(self._reached.wait, NEVER_S)
        for doing in doings:
            self.waiting.append(asyncio.ensure_future(doing))
            await asyncio.sleep(0)  # it puts its job in line

    async def open(self) -> list[Any]:
        """Let them go on; returns what came of each."""
        self._opened.set()
        await self._job
        return await asyncio.gather(*self.waiting, return_exceptions=True)


async def test_one_commit_serves_all_that_waited_for_it(store: SqliteStore) -> None:
    statements: list[str] = []
    gate = Gate(store)
    await gate.queue(*(store.append(whole_call(f"call-{n}"), [over(f"call-{n}")]) for n in range(50)))
    store._writer.connection.set_trace_callback(statements.append)
    answers = await gate.open()
    store._writer.connection.set_trace_callback(None)
    assert [answer.events for answer in answers] == [4] * 50
    assert statements.count("COMMIT") <= 4  # the gate's own, the first one's, perhaps once more, and one for all the others
    assert [d.event.seq for answer in answers for d in answer.deliveries] == list(range(1, 201))
    assert await store._read(lambda c: c.execute("SELECT count(*) FROM segments").fetchone()) == (2,)


async def test_a_commit_serves_no_more_than_so_many(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_writer, "_JOBS_A_COMMIT", 10)
    statements: list[str] = []
    gate = Gate(store)
    await gate.queue(*(store.ping() for _ in range(25)))
    store._writer.connection.set_trace_callback(statements.append)
    await gate.open()
    store._writer.connection.set_trace_callback(None)
    assert statements.count("COMMIT") == 1 + 3


async def test_a_job_that_fails_does_not_harm_its_neighbours(store: SqliteStore) -> None:
    def half_done(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO clients VALUES ('half', 'done', 'hash', 1, 1, NULL)")
        raise RuntimeError("after half of it")

    gate = Gate(store)
    await gate.queue(
        store.append([change(Status.INITIATED)], []),
        store.add_client(a_client()),
        store._write(half_done),
        store.append([change(Status.RINGING, pin="\ud800 is no text")], []),
        store._write(lambda c: c.execute("UPDATE clients SET secret_version = 0")),
        store.append([change(Status.RINGING)], []),
        store.register_callback("nobody", URL, None, None, limit=1),
        store.append([change(Status.BUSY)], []),
    )
    answers = await gate.open()
    assert [type(answer) for answer in answers if isinstance(answer, Exception)] == [
        InputError, IllegalStep, IllegalStep, IllegalStep, InputError,
    ]  # fmt: skip
    assert isinstance(answers[2].__cause__, RuntimeError)
    call = callerid(identity(), 0)
    accepted = [delivery for answer in answers if isinstance(answer, Appended) for delivery in answer.deliveries]
    assert told(accepted) == [("initiated", 1, call), ("ringing", 2, call), ("busy", 3, call)]
    assert list((await store.registry()).clients) == ["acme"]


# What breaks


class FaultyConnection:
    """The writer's connection, which fails once at a statement of the test's choice."""

    def __init__(self, connection: sqlite3.Connection, prefix: str, error: Exception) -> None:
        self._connection = connection
        self._prefix = prefix
        self._error: Exception | None = error

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if self._error is not None and statement.startswith(self._prefix):
            error, self._error = self._error, None
            raise error
        return self._connection.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


ANYWHERE: dict[str, Exception] = {
    "BEGIN IMMEDIATE": sqlite3.OperationalError("database is locked"),
    "COMMIT": sqlite3.OperationalError("disk I/O error"),
}
IN_APPEND: dict[str, Exception] = ANYWHERE | {
    "SELECT value FROM meta": sqlite3.OperationalError("disk I/O error"),
    "INSERT INTO segments": sqlite3.OperationalError("database or disk is full"),
    "SELECT 1 FROM calls": sqlite3.DatabaseError("database disk image is malformed"),
    "DELETE FROM snapshots": MemoryError(),
}
IN_SETTLE: dict[str, Exception] = ANYWHERE | {
    "INSERT INTO outcomes": sqlite3.OperationalError("database or disk is full"),
    "INSERT INTO deliveries": MemoryError(),
    "DELETE FROM deliveries": sqlite3.OperationalError("disk I/O error"),
    "WITH told": sqlite3.DatabaseError("database disk image is malformed"),
}


def break_once(store: SqliteStore, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception) -> None:
    monkeypatch.setattr(store._writer, "connection", FaultyConnection(store._writer.connection, where, error))


@pytest.mark.parametrize("where", IN_APPEND)
async def test_after_a_fault_nothing_was_accepted_and_doing_it_again_works(
    store: SqliteStore, opened: Opener, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    await store.append([change(Status.INITIATED)], [in_progress()])
    break_once(store, monkeypatch, where, IN_APPEND[where])
    rest = [*whole_call()[1:], change(Status.INITIATED, call="new")]
    with pytest.raises(StoreError):
        await store.append(rest, [over()])
    assert len(await store.open_calls()) == 1
    assert await logged(store) == [1]
    appended = await store.append(rest, [over()])
    assert [d.event.sequence for d in appended.deliveries] == [2, 3, 4, 1]
    assert await store.open_calls() == []
    assert await logged(store) == [1, 2, 3, 4, 5]
    await store.settle(appended.deliveries[:3])
    await store.close()
    store = opened()
    assert await store.recover() == [1]
    assert [d.event.seq for d in await store.backlog(1)] == [1, 5]


@pytest.mark.parametrize("where", IN_SETTLE)
async def test_after_a_fault_nothing_was_settled_and_doing_it_again_works(
    store: SqliteStore, opened: Opener, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    offered = (await store.append(whole_call() + whole_call("call-2"), [])).deliveries
    await store.settle([], left(*offered[:3]))
    rows = [delivery.row for delivery in offered]
    break_once(store, monkeypatch, where, IN_SETTLE[where])
    others = [settled(offered[1], DeliveryState.WAITING, attempts=2), *left(*offered[3:5])]
    with pytest.raises(StoreError):
        await store.settle([offered[0], offered[5]], others)
    assert [delivery.row for delivery in offered] == rows
    assert [(d.event.seq, d.attempts) for d in await store.backlog(1)] == [(1, 0), (2, 0), (3, 0)]
    await store.settle([offered[0], offered[5]], others)
    expected = [(2, 2), (3, 0), (4, 0), (5, 0)]
    assert [(d.event.seq, d.attempts) for d in await store.backlog(1)] == expected
    assert [delivery.row for delivery in offered[1:5]] == [d.row for d in await store.backlog(1)]
    await store.close()
    store = opened()
    assert await store.recover() == [1]
    assert [(d.event.seq, d.attempts) for d in await store.backlog(1)] == [*expected, (7, 0), (8, 0)]


@asynccontextmanager
async def writer_is_busy(store: SqliteStore) -> AsyncIterator[None]:
    """What is asked for meanwhile is written in one transaction, once all of it waits."""
    begun, gate = threading.Event(), threading.Event()

    def occupy(_: sqlite3.Connection) -> None:
        begun.set()
        gate.wait(60)

    occupied = store._writer.put(Job(occupy, asyncio.get_running_loop()))
    while not begun.is_set():
        await asyncio.sleep(0)
    try:
        yield
    finally:
        gate.set()
        await occupied


@pytest.mark.parametrize("where", ["SAVEPOINT job", "RELEASE job"])
async def test_a_fault_between_jobs_takes_all_of_them_back(
    store: SqliteStore, opened: Opener, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    offered = (await store.append(whole_call(), [])).deliveries
    break_once(store, monkeypatch, where, sqlite3.OperationalError("disk I/O error"))
    async with writer_is_busy(store):
        told = asyncio.gather(
            store.append(whole_call("call-2"), []), store.settle([], left(*offered[:2])), return_exceptions=True
        )
        while store._writer._jobs.qsize() < 2:
            await asyncio.sleep(0)
    assert [type(error) for error in await told] == [StoreError, StoreError]
    assert await store.backlog(1) == []
    assert [d.event.sequence for d in (await store.append(whole_call("call-2"), [])).deliveries] == [1, 2, 3, 4]
    await store.settle([], left(*offered[:2]))
    await store.close()
    store = opened()
    assert await store.recover() == [1]
    assert [d.event.seq for d in await store.backlog(1)] == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_a_roll_back_that_fails_too_is_done_before_the_next_commit(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    break_once(store, monkeypatch, "ROLLBACK", error)
    break_once(store, monkeypatch, "COMMIT", error)
    with pytest.raises(StoreError):
        await store.append([change(Status.INITIATED)], [])
    assert (await store.append([change(Status.INITIATED)], [])).events == 1


def waiting_in_memory() -> list[object]:
    return [thing for thing in gc.get_objects() if type(thing) in (Append, Plan, Job)]  # `isinstance` would wake lazy objects


async def test_what_failed_is_not_kept_in_memory(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even until the collector looks: while a disk fails, each try would leave a batch behind."""
    offered = (await store.append([change(Status.INITIATED)], [])).deliveries
    monkeypatch.setattr(store._writer, "connection", FailsAtCommit(store._writer.connection))
    gc.collect()
    others = {id(thing) for thing in waiting_in_memory()}  # of other tests
    gc.disable()
    try:
        for _ in range(3):
            for doing in (store.append([change(Status.ANSWERED)], []), store.settle(offered), store.ping()):
                with pytest.raises(StoreError):
                    await doing
        async with asyncio.timeout(NEVER_S):
            while {id(thing) for thing in waiting_in_memory()} - others:
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def logged(store: SqliteStore) -> list[int]:
    """The seqs of all events."""
    return [seq for (seq,) in await store._read(lambda c: c.execute("SELECT seq FROM events ORDER BY seq").fetchall())]


async def test_of_a_commit_that_fails_nobody_is_told_that_it_is_durable(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(store)
    await gate.queue(
        store.append([change(Status.INITIATED)], []),
        store.add_client(a_client()),
        store.register_callback("acme", URL + "/2", None, None, limit=9),
        store.append([change(Status.INITIATED, call="call-2")], []),
    )
    monkeypatch.setattr(store._writer, "connection", FailsAtCommit(store._writer.connection))
    answers = await gate.open()
    assert [type(answer) for answer in answers] == [StoreError, InputError, StoreError, StoreError]
    assert len({id(answer) for answer in answers}) == 4
    monkeypatch.undo()
    assert await logged(store) == []
    appended = await store.append([change(Status.INITIATED)], [])
    assert [(d.event.seq, d.callback_id) for d in appended.deliveries] == [(1, 1)], "the second URL was never registered"


class FailsAtCommit(FaultyConnection):
    """Fails at every commit."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection, "", MemoryError())
        self._error = None

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement == "COMMIT":
            raise sqlite3.OperationalError("full")
        return super().execute(statement, *values)


async def test_a_full_disk_is_a_store_error_and_passes(store: SqliteStore) -> None:
    async def allow(pages: int) -> None:
        await store._write(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone())

    (delivery,) = (await store.append([change(Status.INITIATED)], [in_progress()])).deliveries
    await allow(1)  # as many as there are
    many = [step for n in range(100) for step in whole_call(f"more-{n}")]
    gate = Gate(store)
    await gate.queue(store.append([*whole_call()[1:], *many], [over()]), store.append(many, []), store.ping())
    answers = await gate.open()
    assert [type(answer) for answer in answers] == [StoreError] * 3
    assert "full" in str(answers[0])
    assert await logged(store) == [1]
    assert len(await store.open_calls()) == 1

    await allow(1_000_000)
    appended = await store.append(whole_call()[1:], [over()])
    assert [d.event.sequence for d in appended.deliveries] == [2, 3, 4]
    assert (await store.append(many, [])).events == 400
    assert await logged(store) == list(range(1, 405))
    await store.settle([delivery, *appended.deliveries])


@pytest.mark.usefixtures("impatient")
async def test_a_file_that_another_process_holds_is_a_store_error_and_passes(path: Path, opened: Opener) -> None:
    store = opened()
    await store.add_client(a_client())
    with raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            await store.append([change(Status.INITIATED)], [])
        with pytest.raises(StoreError, match="locked"):
            opened()
        assert list((await store.registry()).clients) == ["acme"], "who only reads does not wait"
        other.execute("COMMIT")
    assert (await store.append([change(Status.INITIATED)], [])).events == 1


async def test_our_own_mistakes_are_no_store_errors(store: SqliteStore) -> None:
    """Trying again would not help: whoever appends has to know."""
    for wrong in (change(Status.RINGING, pin="\ud800"), "no change at all"):
        with pytest.raises(IllegalStep):
            await store.append([wrong], [])  # type: ignore[list-item]
    (delivery,) = (await store.append([change(Status.INITIATED)], [])).deliveries
    with pytest.raises(IllegalStep, match="CHECK"):
        await store.settle([], [settled(delivery, DeliveryState.WAITING, attempts=-1)])
    with pytest.raises(IllegalStep, match="recovered"):
        await store.recover()


# The end


async def test_closing_finishes_what_waits(store: SqliteStore, opened: Opener) -> None:
    gate = Gate(store)
    await gate.queue(*(store.append([change(Status.INITIATED, call=f"call-{n}")], []) for n in range(300)))
    closing_twice = [asyncio.ensure_future(store.close()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="closed"):
        await store.ping()
    answers = await gate.open()
    await asyncio.gather(*closing_twice)
    assert [answer.events for answer in answers] == [1] * 300
    assert len(await logged(opened())) == 300


async def test_closing_that_was_cancelled_can_be_done_again(store: SqliteStore, path: Path) -> None:
    gate = Gate(store)
    await gate.queue(store.ping())
    first = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await gate.open()
    await store.close()
    assert files(path) == [path], "the log is merged into the file"


@pytest.mark.parametrize(
    "begin",
    [
        SqliteStore.ping,
        SqliteStore.registry_version,
        lambda store: store.append([change(Status.ANSWERED)], []),
    ],
    ids=["writes", "reads", "appends"],
)
async def test_who_began_just_before_it_was_closed_is_told(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, begin: Callable[[SqliteStore], Awaitable[Any]]
) -> None:
    await store.append([change(Status.INITIATED)], [])
    monkeypatch.setattr(store, "_check_open", lambda: None)  # it was open then
    await store.close()
    async with asyncio.timeout(NEVER_S):
        with pytest.raises(StoreError, match="closed"):
            await begin(store)


async def test_a_caller_who_gave_up_waiting_is_not_missed(store: SqliteStore) -> None:
    gate = Gate(store)
    await gate.queue(store.append([change(Status.INITIATED)], []), store.ping())
    gate.waiting[0].cancel()
    assert isinstance((await gate.open())[0], asyncio.CancelledError)
    assert (await store.append([change(Status.INITIATED)], [])).events == 0
    assert len(await logged(store)) == 1


async def test_a_caller_whose_loop_is_gone_is_not_missed(store: SqliteStore) -> None:
    loop = asyncio.new_event_loop()
    doing = loop.create_task(store.add_client(a_client("outra")))
    gate = Gate(store)
    await gate.queue()
    loop.call_soon(loop.stop)
    await asyncio.to_thread(loop.run_forever)
    doing.get_coro().close()
    doing._log_destroy_pending = False  # it is meant to be left behind
    loop.close()
    await gate.open()
    await store.ping()
    assert set((await store.registry()).clients) == {"acme", "outra"}


async def test_what_is_stored_can_be_read_without_toque(store: SqliteStore, path: Path) -> None:
    """Whoever operates toque may look into the file."""
    deliveries = (await store.append(whole_call(), [over()])).deliveries
    for delivery in deliveries:
        delivery.attempts = 1
    await store.settle(deliveries[:3], [settled(deliveries[3], DeliveryState.DEAD, attempts=3)])
    await store.close()
    with raw(path) as connection:
        rows = connection.execute("SELECT json_extract(payload, '$.status'), status FROM events ORDER BY seq").fetchall()
        whole = connection.execute("SELECT * FROM events WHERE seq = 2").fetchone()
        payloads = connection.execute("SELECT payload FROM events ORDER BY seq").fetchall()
        count = connection.execute("SELECT count(*) FROM events").fetchone()
        settled_deliveries = connection.execute("SELECT event_seq, state, attempts FROM settled_deliveries").fetchall()
    assert rows == [("iniciou", "initiated"), ("chamando", "ringing"), ("atendeu", "answered"), ("desligou", "hung_up")]
    event = deliveries[1].event
    assert whole[:8] == (2, event.id, "acme", event.callerid, "made", "1001", "ringing", 2)
    assert whole[8] == to_us(BEGINNING + timedelta(seconds=1))
    assert whole[9] == to_us(event.accepted_at)
    assert payloads == [(delivery.event.payload,) for delivery in deliveries]
    assert count == (4,)
    assert settled_deliveries == [(1, "delivered", 1), (2, "delivered", 1), (3, "delivered", 1), (4, "dead", 3)]


@pytest.mark.parametrize("text", ["2026-03-01T12:05:07Z", "2026-03-01T12:05:07.000001Z", "2026-03-01T09:05:07.5-03:00"])
async def test_moments_are_shown_to_the_microsecond(store: SqliteStore, text: str) -> None:
    moment = datetime.fromisoformat(text)
    said = change(Status.INITIATED)
    await store.append([StatusChange(said.identity, said.side, said.status, moment, said.facts)], [])
    [(shown,)] = await store._read(lambda c: c.execute("SELECT happened_at FROM events").fetchall())
    assert shown == to_us(moment)


# Calls that are in the log only


async def test_calls_go_into_their_table_many_at_once(
    store: SqliteStore, path: Path, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_calls, "UNWRITTEN_CALLS", 50)
    monkeypatch.setattr(sqlite_calls, "WRITTEN_AT_ONCE", 20)
    for n in range(200):
        await store.append([change(Status.INITIATED, call=f"call-{n}")], [])
    await store.ping()
    assert len(store._planner.unwritten) < 100
    assert store._planner.unwritten.since > 1
    await store.close()
    store = opened()
    for n in range(200):
        known = [change(Status.INITIATED, call=f"call-{n}"), change(Status.RINGING, 1, call=f"call-{n}")]
        assert [d.event.sequence for d in (await store.append(known, [])).deliveries] == [2]


async def test_a_failed_round_is_gone_on_with(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(30):
        await store.append([change(Status.INITIATED, call=f"call-{n}")], [])
    break_once(store, monkeypatch, "INSERT INTO calls", sqlite3.OperationalError("disk I/O error"))
    with pytest.raises(StoreError):
        await store.housekeep(keep=timedelta(days=1))
    assert len(store._planner.unwritten) == 30
    await store.housekeep(keep=timedelta(days=1))
    assert len(store._planner.unwritten) == 0
    assert await store._read(lambda c: c.execute("SELECT count(*) FROM calls").fetchone()) == (30,)


async def test_calls_that_are_no_longer_held_are_looked_up(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store._planner, "held", sqlite_calls.HeldCalls(8))
    for step in range(4):
        for n in range(20):
            assert (await store.append(whole_call(f"call-{n}")[step : step + 1], [])).events == 1
            assert (await store.append(whole_call(f"call-{n}")[: step + 1], [])).events == 0
            assert len(store._planner.held) <= 10
        await store.housekeep(keep=timedelta(days=1))


async def test_a_beginning_that_is_repeated_much_later_is_no_new_call(store: SqliteStore, opened: Opener) -> None:
    """It was taken for one, and the table knew better; also when others came with it."""
    await store.append(whole_call(), [over()])
    await store.housekeep(keep=timedelta(days=1))
    store._planner.held.clear()
    appended = await store.append([*whole_call("new"), *whole_call()], [])
    assert appended.events == 4
    assert {d.event.callerid for d in appended.deliveries} == {callerid(identity("new"), 0)}


async def many_calls(store: SqliteStore, clock: ManualClock, calls: int = 40, apart_s: float = 3600) -> list[str]:
    """Calls in segments of their own, told and delivered; their callerids."""
    callerids = []
    for n in range(calls):
        appended = await store.append(whole_call(f"call-{n}"), [over(f"call-{n}")])
        await store.settle(appended.deliveries)
        callerids.append(appended.deliveries[0].event.callerid)
        clock.advance(apart_s)
    return callerids


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many stretches of one segment each have been searched: one entry each."""
    made: list[int] = []
    go_on = sqlite_replays.Search.go_on
    monkeypatch.setattr(sqlite_replays, "SEGMENTS_A_STEP", 1)
    monkeypatch.setattr(sqlite_replays.Search, "go_on", lambda search, connection: made.append(1) or go_on(search, connection))
    return made


@pytest.mark.parametrize("named_by", ["call", "call and event"])
@pytest.mark.parametrize("kept_for_s", [0, 30 * 3600])
async def test_the_events_of_a_call_of_long_ago_are_found_at_once(
    store: SqliteStore, looks: list[int], kept_for_s: float, named_by: str
) -> None:
    """Also when the call itself is forgotten: where it was is kept as long as its events."""
    store._clock = clock = ManualClock(BEGINNING)
    callerids = await many_calls(store, clock, apart_s=60)
    clock.advance(kept_for_s)
    while await store.housekeep(keep=timedelta(days=30)):
        pass
    assert await store._read(lambda c: c.execute("SELECT count(*) FROM calls").fetchone()) == (0 if kept_for_s else 40,)
    (event_id,) = await store._read(lambda c: c.execute("SELECT id FROM events WHERE seq = 14").fetchone())
    begun = await store.add_replay(
        Replay(0, 1, None, clock(), callerid=callerids[3], event_id=event_id if named_by != "call" else None)
    )
    done = await store.requeue(begun.id, 100)
    assert done is not None
    assert (done.state, done.requeued) == (ReplayState.DONE, 4 if named_by == "call" else 1)
    assert len(looks) == 1
    assert [d.event.seq for d in await store.backlog(1)] == ([13, 14, 15, 16] if named_by == "call" else [14])


async def test_a_call_is_found_although_the_clock_was_set_back(store: SqliteStore) -> None:
    """Its row then says that it was seen last before its events were accepted."""
    store._clock = clock = ManualClock(BEGINNING)
    callerids = await many_calls(store, clock, calls=3)
    rows = store._planner.unwritten._rows
    rows.update((key, (key, name, to_us(BEGINNING - timedelta(days=1)), state)) for key, name, _, state in list(rows.values()))
    begun = await store.add_replay(Replay(0, 1, None, clock(), callerid=callerids[1]))
    done = await store.requeue(begun.id, 100)
    assert done is not None
    assert done.requeued == 4


async def test_where_calls_were_is_forgotten_with_their_events(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_upkeep, "CALLS_A_STEP", 7)
    monkeypatch.setattr(sqlite_upkeep, "PLACES_A_STEP", 5)
    store._clock = clock = ManualClock(BEGINNING)
    await many_calls(store, clock, apart_s=1)
    places: list[int] = []
    for days in (2, 40):
        clock.advance(days * 86_400)
        while await store.housekeep(keep=timedelta(days=30)):
            pass
        places += await store._read(lambda c: c.execute("SELECT count(*) FROM call_places").fetchone())
    assert places == [40, 0]


async def test_of_two_calls_with_one_key_the_older_is_forgotten(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_calls, "key_of", lambda _: 7)
    await store.append(whole_call("one"), [over("one")])
    await store.housekeep(keep=timedelta(days=1))
    store._planner.held.clear()
    assert (await store.append(whole_call("two"), [in_progress("two")])).events == 4
    store._planner.held.clear()
    assert (await store.append(whole_call("two"), [])).events == 0
    assert (await store.append(whole_call("one"), [])).events == 4


async def test_a_batch_without_events_is_remembered_too(store: SqliteStore, opened: Opener) -> None:
    await store.append([], [over("ended unheard of", 50)])
    await store.close()
    store = opened()
    assert (await store.append([change(Status.INITIATED, 60, call="ended unheard of", began=60)], [])).events == 1
    (call,) = await store._read(lambda c: sqlite_calls.find(c, [identity("ended unheard of")], store._planner.unwritten))
    assert call.state.generation == 1


# Size


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_many_that_get_their_places_late_cost_one_look_through_the_backlog(
    store: SqliteStore, opened: Opener, is_restarted: bool
) -> None:
    """Each by itself would keep everybody from writing for minutes, where much waits."""
    early = [d for n in range(50) for d in (await store.append(whole_call(f"early-{n}")[:2], [])).deliveries]
    late = [d for n in range(50) for d in (await store.append(whole_call(f"early-{n}")[2:], [])).deliveries]
    await store.settle([], left(*late))
    if is_restarted:
        await store.close()
        store = opened()
    looks: list[str] = []
    store._writer.connection.set_trace_callback(lambda text: looks.append(text) if "json_extract(event" in text else None)
    await (store.recover() if is_restarted else store.settle([], left(*early)))
    assert len(looks) == 1
    found = await store.backlog(1)
    for n in range(50):
        call = callerid(identity(f"early-{n}"), 0)
        assert [d.event.sequence for d in found if d.event.callerid == call] == [1, 2, 3, 4]


async def test_what_is_recovered_in_several_goes_keeps_its_order(
    store: SqliteStore, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_backlog, "_RECOVERED_AT_ONCE", 3)
    offered = [(await store.append(whole_call(f"call-{n}"), [])).deliveries for n in range(4)]
    await store.settle([], left(offered[0][3], offered[2][1]))
    await store.close()
    store = opened()
    assert await store.recover() == [1]
    found = await store.backlog(1)
    assert len(found) == 16
    for lane in offered:
        assert [d.event.sequence for d in found if d.lane == lane[0].lane] == [1, 2, 3, 4]


async def test_under_constant_load_the_file_does_not_grow_without_bound(path: Path, opened: Opener) -> None:
    """What is thrown away makes room for what comes; pages that became free are used again."""
    clock = ManualClock(BEGINNING)
    store = opened(clock=clock)
    await store.add_client(a_client())
    await register(store)
    pages = []
    keep = timedelta(hours=2)
    for hour in range(80):
        clock.advance(3600)
        began = 3600.0 * hour
        for part in range(4):
            calls = [f"{hour}-{part}-{n}" for n in range(10)]
            changes = [step for call in calls for step in whole_call(call, began)]
            deliveries = (await store.append(changes, [over(call, began + 3) for call in calls])).deliveries
            await store.settle(
                deliveries[4:], [*left(*deliveries[:2]), settled(deliveries[2], DeliveryState.DEAD), *left(deliveries[3])]
            )
            await store.settle([*deliveries[:2], deliveries[3]])
        while await store.housekeep(keep=keep):
            pass
        pages.append((await store._read(lambda c: c.execute("PRAGMA page_count").fetchone()))[0])
    assert max(pages[40:]) <= 1.02 * max(pages[:40]) + 3, pages  # a page more or less is no growth
    [(calls_kept,)] = await store._read(lambda c: c.execute("SELECT count(*) FROM calls").fetchall())
    assert calls_kept <= 40 * 29
