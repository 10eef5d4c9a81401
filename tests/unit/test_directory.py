"""The directory: the registry in memory, in step with a store that others change."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from structlog.testing import capture_logs

from toque import directory as module
from toque.callbacks.callback import Client, Registry
from toque.callbacks.payload import PayloadWriter
from toque.directory import Directory
from toque.errors import StoreError
from toque.store.sqlite import SqliteStore, utc_now

PATIENCE_S = 5.0


def open_store(path: Path) -> SqliteStore:
    return SqliteStore(path, PayloadWriter(ZoneInfo("UTC")))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = open_store(tmp_path / "toque.db")
    yield made
    await made.close()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.005)


class Follower:
    """Keeps every registry that it is told of."""

    def __init__(self) -> None:
        self.told: list[Registry] = []
        self.news = asyncio.Event()

    def __call__(self, registry: Registry) -> None:
        self.told.append(registry)
        self.news.set()

    async def next(self) -> Registry:
        async with asyncio.timeout(PATIENCE_S):
            await self.news.wait()
        self.news.clear()
        return self.told[-1]


def client(name: str) -> Client:
    return Client(name, name, "hash", 1, utc_now())


async def test_a_refresh_reads_the_registry_and_tells_it_before_it_returns(store: SqliteStore):
    directory, follower = Directory(store), Follower()
    await directory.refresh()
    directory.follow(follower)
    assert follower.told == []
    await store.add_client(client("ana"))
    await directory.refresh()
    assert follower.told == [directory.registry]
    assert directory.current() is directory.registry
    assert set(directory.registry.clients) == {"ana"}


async def test_refreshes_at_once_end_with_the_newest(store: SqliteStore):
    directory, follower = Directory(store), Follower()
    directory.follow(follower)

    async def add(number: int) -> None:
        await store.add_client(client(f"c{number}"))
        await directory.refresh()
        assert f"c{number}" in directory.registry.clients

    await asyncio.gather(*(add(number) for number in range(10)))
    versions = [registry.version for registry in follower.told]
    assert versions == sorted(versions)
    assert len(directory.registry.clients) == 10


async def test_an_older_registry_never_follows_a_newer_one(store: SqliteStore, monkeypatch: pytest.MonkeyPatch):
    directory, follower = Directory(store), Follower()
    directory.follow(follower)
    older = await store.registry()
    await store.add_client(client("ana"))
    await directory.refresh()

    async def read_long_ago() -> Registry:
        return older

    monkeypatch.setattr(store, "registry", read_long_ago)
    await directory.refresh()
    assert set(directory.registry.clients) == {"ana"}
    assert len(follower.told) == 1


@pytest.mark.usefixtures("hurried")
async def test_what_another_process_changes_is_seen(store: SqliteStore, tmp_path: Path):
    directory, follower = Directory(store), Follower()
    await directory.refresh()
    directory.follow(follower)
    looking = asyncio.create_task(directory.run())
    other = open_store(tmp_path / "toque.db")  # as a command opens it
    await other.add_client(client("ana"))
    assert set((await follower.next()).clients) == {"ana"}
    await other.disable_client("ana", utc_now())
    assert (await follower.next()).clients["ana"].disabled_at is not None
    await other.close()
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    assert len(follower.told) == 2  # nothing is told that has not changed


@pytest.mark.usefixtures("hurried")
async def test_a_store_that_fails_is_looked_at_again(store: SqliteStore, monkeypatch: pytest.MonkeyPatch):
    directory, follower, failures = Directory(store), Follower(), 0
    await directory.refresh()
    before = directory.registry
    directory.follow(follower)
    look = store.registry_version

    async def fail_three_times() -> int:
        nonlocal failures
        failures += 1
        if failures <= 3:
            raise StoreError("disk I/O error")
        return await look()

    monkeypatch.setattr(store, "registry_version", fail_three_times)
    await store.add_client(client("ana"))
    with capture_logs() as logged:
        looking = asyncio.create_task(directory.run())
        assert set((await follower.next()).clients) == {"ana"}
    assert directory.registry is not before
    assert [(entry["event"], entry["error"]) for entry in logged] == [("directory.look_failed", "disk I/O error")] * 3
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_a_refresh_that_fails_leaves_the_registry_as_it_was(store: SqliteStore):
    directory, follower = Directory(store), Follower()
    await directory.refresh()
    before = directory.registry
    directory.follow(follower)
    await store.close()
    with pytest.raises(StoreError):
        await directory.refresh()
    assert directory.registry is before
    assert follower.told == []


async def test_a_change_is_seen_within_a_second():
    assert module._LOOK_EVERY_S <= 0.5  # the contract's second, with room for the reading
