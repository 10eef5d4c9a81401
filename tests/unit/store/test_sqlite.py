"""What is SQLite's own about the embedded store: its file, its schema, its secrets, its commits, and what breaks."""

import asyncio
import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.stored_calls import (
    BEGINNING,
    URL,
    ZONE,
    a_client,
    change,
    identity,
    in_progress,
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
from toque.calls.model import Status
from toque.errors import IllegalStep, InputError, SettingsError, StoreError
from toque.store import sqlite, sqlite_events
from toque.store.migrations import MIGRATIONS
from toque.store.sqlite import SqliteStore
from toque.store.sqlite_rows import _filled_in

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

    def __call__(self, secret_key: str | None = None, path: Path | None = None) -> SqliteStore:
        store = SqliteStore(path or self.path, PayloadWriter(ZONE), secret_key=secret_key)
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


@pytest.mark.parametrize("which", ["_writer", "_reader"])
@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("secure_delete", 1)]
)
async def test_every_connection_is_durable_and_strict(store: SqliteStore, which: str, pragma: str, value: object) -> None:
    assert getattr(store, which).execute(f"PRAGMA {pragma}").fetchone() == (value,)


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
    monkeypatch.setattr(sqlite, "_configured", lambda _: "delete")
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
_CALL = "INSERT INTO calls VALUES ({id}, 'sbc1', '{key}', {generation}, 'uuid', '{told}', {earlier}, NULL)"
_EVENT = "INSERT INTO events VALUES (NULL, 'i', 'acme', 'c', '{direction}', 'p', '{status}', {sequence}, 1, 1, '{{}}')"
_DELIVERY = "INSERT INTO deliveries VALUES ({event}, 1, '{state}', {attempts}, {due}, {settled}, NULL)"
GOOD: dict[str, dict[str, object]] = {
    _CLIENT: {"id": "new", "name": "new", "version": 1},
    _LINE: {"client": "acme", "pin": "1", "kind": "exact", "number": "7"},
    _CALLBACK: {"code": CODE, "client": "acme", "url": URL, "pin": "'1'", "old": "NULL", "until": "NULL", "removed": "NULL",
                "disabled": "NULL", "reason": "NULL"},
    _CALL: {"id": 77, "key": "new", "generation": 0, "told": "[]", "earlier": "NULL"},
    _EVENT: {"direction": "made", "status": "busy", "sequence": 1},
    _DELIVERY: {"event": 2, "state": "waiting", "attempts": 0, "due": "NULL", "settled": "NULL"},
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
    (_CALL, {"id": 1}),
    (_CALL, {"key": "call-1"}),
    (_CALL, {"generation": -1}),
    (_CALL, {"generation": 1}),
    (_CALL, {"earlier": 5}),
    (_CALL, {"told": "not JSON"}),
    (_EVENT, {"direction": "sideways"}),
    (_EVENT, {"status": "unheard of"}),
    (_EVENT, {"sequence": 0}),
    (_EVENT, {"sequence": 5}),
    (_DELIVERY, {"event": 1}),  # is there already
    (_DELIVERY, {"event": 99}),
    (_DELIVERY, {"state": "lost"}),
    (_DELIVERY, {"attempts": -1}),
    (_DELIVERY, {"settled": 1}),
    (_DELIVERY, {"state": "delivered", "attempts": 1}),
    (_DELIVERY, {"state": "delivered", "settled": 1}),
    (_DELIVERY, {"state": "dead", "settled": 1, "due": 1}),
]


@pytest.fixture
async def filled(store: SqliteStore, path: Path) -> AsyncIterator[sqlite3.Connection]:
    """A connection to a store that holds one of everything; its second event has no delivery."""
    await store.add_lines(lines("acme", "1", "554130600300"))
    await store.append([change(Status.INITIATED)], [in_progress()])
    await store.close()
    with raw(path) as connection:
        connection.execute(_EVENT.format(**GOOD[_EVENT]))
        yield connection


@pytest.mark.parametrize("statement", GOOD)
async def test_a_possible_row_is_taken(filled: sqlite3.Connection, statement: str) -> None:
    filled.execute(statement.format(**GOOD[statement]))


@pytest.mark.parametrize(("statement", "wrong"), BAD)
async def test_an_impossible_row_is_refused(filled: sqlite3.Connection, statement: str, wrong: dict[str, object]) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        filled.execute(statement.format(**{**GOOD[statement], **wrong}))


HOT = {
    "find calls": (sqlite_events._FIND_CALLS, 2),
    "keep calls": (sqlite_events._KEEP_CALLS, 8),
    "keep snapshots": (sqlite_events._KEEP_SNAPSHOTS, 2),
    "drop snapshots": (sqlite_events._DROP_SNAPSHOTS, 1),
    "add events": (sqlite_events._ADD_EVENTS, 11),
    "add deliveries": (sqlite_events._ADD_DELIVERIES, 4),
    "settle": (sqlite_events._SETTLE, 7),
    "pending": (sqlite_events._PENDING, 0),
}


@pytest.mark.parametrize("name", HOT)
async def test_no_hot_statement_reads_a_whole_table(filled: sqlite3.Connection, name: str) -> None:
    template, columns = HOT[name]
    statement = _filled_in(template, 3, columns)
    plan = filled.execute("EXPLAIN QUERY PLAN " + statement, [0] * statement.count("?")).fetchall()
    aliases = ("c", "d", "e", "s", "calls", "deliveries", "events", "snapshots", "clients", "callbacks")
    assert [step for *_, step in plan if step.split()[0] == "SCAN" and step.split()[1] in aliases] == []


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


async def test_a_removed_clients_events_leave_the_file(
    path: Path, store: SqliteStore, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_EVENTS_A_STEP", 3)
    await store.add_client(a_client("outra"))
    for n in range(5):
        await store.append(whole_call(f"call-{n}") + whole_call(f"call-{n}", client="outra"), [])
    await store.settle([settled(delivery) for delivery in await store.pending(limit=7)])
    await store.remove_client("acme")
    await store.close()
    with raw(path) as connection:
        assert connection.execute("SELECT client_id, count(*) FROM events GROUP BY 1").fetchall() == [("outra", 20)]
        assert connection.execute("SELECT count(*) FROM deliveries").fetchone() == (0,)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


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
    store._writer.set_trace_callback(statements.append)
    answers = await gate.open()
    store._writer.set_trace_callback(None)
    assert [answer.events for answer in answers] == [4] * 50
    assert statements.count("COMMIT") == 2  # the gate's own, and one for all the others
    assert statements.count("BEGIN IMMEDIATE") == 1  # the gate's was before
    assert [delivery.event.seq for delivery in await store.pending()] == list(range(1, 201))


async def test_a_commit_serves_no_more_than_so_many(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_JOBS_A_COMMIT", 10)
    statements: list[str] = []
    gate = Gate(store)
    await gate.queue(*(store.ping() for _ in range(25)))
    store._writer.set_trace_callback(statements.append)
    await gate.open()
    store._writer.set_trace_callback(None)
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
        store.append([change(Status.RINGING, call="\ud800 is no text")], []),
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
    assert told(await store.pending()) == [("initiated", 1, call), ("ringing", 2, call), ("busy", 3, call)]
    assert list((await store.registry()).clients) == ["acme"]


async def test_a_job_that_fails_leaves_nothing_in_memory(store: SqliteStore) -> None:
    """The ledger remembers who wants events; what it read in a job that was undone it must not remember."""

    def register_and_fail(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE meta SET value = '1000' WHERE name = 'registry_version'")
        connection.execute("DELETE FROM callbacks")
        assert store._ledger.append(connection, [change(Status.INITIATED)], [], BEGINNING).deliveries == []
        raise RuntimeError("undo it")

    with pytest.raises(IllegalStep):
        await store._write(register_and_fail)
    assert len((await store.append([change(Status.INITIATED)], [])).deliveries) == 1


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


FAULTS: dict[str, Exception] = {
    "BEGIN IMMEDIATE": sqlite3.OperationalError("database is locked"),
    "SAVEPOINT job": sqlite3.OperationalError("disk I/O error"),
    "SELECT json_group_array": sqlite3.OperationalError("disk I/O error"),
    "INSERT INTO events": sqlite3.OperationalError("database or disk is full"),
    "INSERT INTO deliveries": MemoryError(),
    "INSERT INTO calls": sqlite3.DatabaseError("database disk image is malformed"),
    "RELEASE job": sqlite3.OperationalError("disk I/O error"),
    "COMMIT": sqlite3.OperationalError("disk I/O error"),
}


@pytest.mark.parametrize("where", FAULTS)
async def test_after_a_fault_nothing_was_done_and_doing_it_again_works(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    await store.append([change(Status.INITIATED)], [in_progress()])
    before = await store.pending(), await store.open_calls()
    monkeypatch.setattr(store, "_writer", FaultyConnection(store._writer, where, FAULTS[where]))
    rest = whole_call()[1:]
    with pytest.raises(StoreError):
        await store.append(rest, [over()])
    assert (await store.pending(), await store.open_calls()) == before
    assert [d.event.sequence for d in (await store.append(rest, [over()])).deliveries] == [2, 3, 4]
    assert await store.open_calls() == []


async def test_a_roll_back_that_fails_too_is_done_before_the_next_commit(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    faulty = FaultyConnection(store._writer, "ROLLBACK", error)
    monkeypatch.setattr(store, "_writer", FaultyConnection(faulty, "COMMIT", error))  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        await store.append([change(Status.INITIATED)], [])
    assert (await store.append([change(Status.INITIATED)], [])).events == 1


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
    # The gate's commit is under way already, and succeeds.
    original = store._writer
    monkeypatch.setattr(
        store, "_commit", _with_writer(store, FaultyConnection(original, "COMMIT", sqlite3.OperationalError("full")))
    )
    answers = await gate.open()
    assert [type(answer) for answer in answers] == [StoreError, InputError, StoreError, StoreError]
    assert len({id(answer) for answer in answers}) == 4
    monkeypatch.undo()
    assert await store.pending() == []
    appended = await store.append([change(Status.INITIATED)], [])
    assert [(d.event.seq, d.callback_id) for d in appended.deliveries] == [(1, 1)], "the second URL was never registered"


def _with_writer(store: SqliteStore, writer: Any) -> Callable[[Any], None]:
    def commit(jobs: Any) -> None:
        healthy, store._writer = store._writer, writer
        try:
            SqliteStore._commit(store, jobs)
        finally:
            store._writer = healthy

    return commit


async def test_a_full_disk_is_a_store_error_and_passes(store: SqliteStore) -> None:
    async def allow(pages: int) -> None:
        await store._write(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone())

    await store.append([change(Status.INITIATED)], [in_progress()])
    await allow(1)  # as many as there are
    rest = whole_call()[1:]
    many = [step for n in range(100) for step in whole_call(f"more-{n}")]
    gate = Gate(store)
    await gate.queue(store.append(rest, [over()]), store.append(many, []), store.ping())
    answers = await gate.open()
    assert [type(answer) for answer in answers] == [StoreError] * 3
    assert "full" in str(answers[0])
    assert len(await store.pending()) == 1

    await allow(1_000_000)
    assert (await store.append(rest, [over()])).events == 3
    assert (await store.append(many, [])).events == 400
    assert [delivery.event.seq for delivery in await store.pending()] == list(range(1, 405))


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
    for wrong in (change(Status.RINGING, call="\ud800"), change(Status.RINGING, pin="\ud800"), "no change at all"):
        with pytest.raises(IllegalStep):
            await store.append([wrong], [])  # type: ignore[list-item]
    (delivery,) = (await store.append([change(Status.INITIATED)], [])).deliveries
    with pytest.raises(IllegalStep, match="CHECK"):
        await store.settle([settled(delivery, DeliveryState.DELIVERED, attempts=0)])


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
    assert len(await opened().pending()) == 300


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


async def test_a_caller_who_gave_up_waiting_is_not_missed(store: SqliteStore) -> None:
    gate = Gate(store)
    await gate.queue(store.append([change(Status.INITIATED)], []), store.ping())
    gate.waiting[0].cancel()
    assert isinstance((await gate.open())[0], asyncio.CancelledError)
    assert len(await store.pending()) == 1


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
    await store.append(whole_call(), [over()])
    await store.close()
    with raw(path) as connection:
        rows = connection.execute("SELECT json_extract(payload, '$.status'), status FROM events ORDER BY seq").fetchall()
        [(told_sides,)] = connection.execute("SELECT told FROM calls").fetchall()
    assert rows == [("iniciou", "initiated"), ("chamando", "ringing"), ("atendeu", "answered"), ("desligou", "hung_up")]
    assert json.loads(told_sides) == [["acme", "made", "1001", 4, 4]]
