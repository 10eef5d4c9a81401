"""The store's file: who may read it, how a connection to it is set up, and how its schema is brought up to date."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from toque.errors import SettingsError, StoreError
from toque.store.sqlite_writer import roll_back

_FILE_MODE = 0o600
_APPLICATION_ID = 0x746F7175  # "toqu": what kind of SQLite file this is
_STATEMENTS_KEPT = 256
_PAGE_BYTES = 16_384  # a batch of events is one large value: fewer, larger pages are less to do for each
# Codes that mean: this file is not, or can never be, the store. Others may pass.
_UNUSABLE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY})


def create_private(path: Path) -> None:
    """Make the file, or its mode, ours alone; SQLite gives its log the same mode. Raises `SettingsError`.

    A file that exists is not opened: closing it would drop the locks of every other connection of this process (fcntl(2)).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE))
        if not path.is_file():
            raise unusable(path, f"{path} is there already and is no file")
        path.chmod(_FILE_MODE)
    except OSError as error:
        raise unusable(path, f"{path} cannot be opened for writing: {error.strerror}") from None


def connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A connection that is durable and strict. Raises `SettingsError` or `StoreError`."""
    try:
        connection = sqlite3.connect(
            path, timeout=timeout_s, isolation_level=None, check_same_thread=False, cached_statements=_STATEMENTS_KEPT
        )
    except sqlite3.Error as error:
        raise unopened(path, error) from error
    try:
        mode = _configured(connection)
    except sqlite3.Error as error:
        connection.close()
        raise unopened(path, error) from error
    if mode != "wal":
        connection.close()
        raise unusable(path, f"{path} lies on a file system that cannot share memory between processes; use a local one")
    return connection


def _configured(connection: sqlite3.Connection) -> str:
    """Make a connection durable and strict; returns its journal mode."""
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # of a file that is yet to be written; others stay as they are
    mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # secrets and erased numbers leave the file, too
    connection.execute("PRAGMA temp_store = MEMORY")  # a file of its own would need a descriptor when there may be none
    return mode


def claimed(path: Path) -> int | None:
    """The descriptor that holds the server's place at this store; None when a server has it. Raises `SettingsError`."""
    real = path.resolve()
    try:
        handle = os.open(real.with_name(real.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
    except OSError as error:
        raise unusable(path, f"{real}.lock cannot be opened for writing: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


@contextmanager
def alone(path: Path, option: str) -> Iterator[None]:
    """Keep servers away while the store is changed in a way that a running one would not understand."""
    handle = claimed(path)
    if handle is None:
        reason = "has no such key" if option == "secret_key" else "is of another version"
        raise SettingsError(option, str(path), f"a running toque server uses {path} and {reason}; stop it first")
    try:
        yield
    finally:
        os.close(handle)


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> bool:
    """Bring the schema up to date; whether a store that was in use was changed."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != _APPLICATION_ID:
        raise unusable(path, f"{path} is not a toque store: it is another program's database")
    if version > len(migrations):
        raise unusable(path, f"{path} was written by a newer toque (schema {version}, this one knows {len(migrations)})")
    if not tables:
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    for number, script in enumerate(migrations[version:], version + 1):
        for statement in filter(str.strip, script.split(";\n")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
    return bool(tables) and version < len(migrations)


@contextmanager
def opening(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """A transaction in which the store is made ready. Raises `SettingsError` or `StoreError`."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    except sqlite3.Error as error:
        raise unopened(path, error) from error
    finally:
        roll_back(connection)


def unusable(path: Path, problem: str) -> SettingsError:
    """The setting names something that cannot be the store."""
    return SettingsError("store", str(path), problem)


def unopened(path: Path, error: sqlite3.Error) -> SettingsError | StoreError:
    """Why a store cannot be opened: the setting is wrong, or it may work later."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNUSABLE:
        return unusable(path, f"{path} is not a toque store, or may not be written: {error}")
    return StoreError(f"{path} cannot be opened: {error}")
