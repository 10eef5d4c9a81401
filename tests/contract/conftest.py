"""Every engine that is held to the store's contract, and where a test gets its stores from."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from tests.support.clock import ManualClock
from tests.support.nats_servers import NatsServers, drop_streams
from tests.support.stored_calls import BEGINNING, ZONE, a_client

from toque.callbacks.delivery import Delivery
from toque.callbacks.payload import PayloadWriter
from toque.store.contract import Store
from toque.store.nats import NatsStore
from toque.store.nats_link import Access
from toque.store.sqlite import SqliteStore


async def open_sqlite(folder: Path, clock: ManualClock) -> Store:
    """The store in this folder; made when there is none."""
    return SqliteStore(folder / "toque.db", PayloadWriter(ZONE), clock=clock)


def prefix_of(folder: Path) -> str:
    """Under which prefix a folder's data lies on the engine, which all tests share."""
    return "t" + hashlib.sha256(str(folder).encode()).hexdigest()[:16]


async def open_nats(servers: NatsServers, folder: Path, clock: ManualClock) -> Store:
    """The store which this folder stands for."""
    return NatsStore(Access(servers.addresses), PayloadWriter(ZONE), prefix=prefix_of(folder), clock=clock)


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    """One server for all tests of the contract."""
    with NatsServers(tmp_path_factory.mktemp("nats")) as servers:
        yield servers


# An engine is a function that opens the store which a folder stands for, whoever has it open already.
ENGINES = ("sqlite", "nats")


@dataclass
class Place:
    """Where one store's data lies; any number of store objects may be open on it, as in as many processes."""

    open_engine: Callable[[Path, ManualClock], Awaitable[Store]]
    folder: Path  # of its own
    clock: ManualClock = field(default_factory=lambda: ManualClock(BEGINNING))
    stores: list[Store] = field(default_factory=list)

    async def open(self) -> Store:
        """Another store object on the same data."""
        store = await self.open_engine(self.folder, self.clock)
        self.stores.append(store)
        return store

    async def reopen(self) -> Store:
        """The store after a restart: whatever was open is closed."""
        await self.close()
        return await self.open()

    async def restarted(self) -> tuple[Store, list[int]]:
        """The store of a server that begins: its events are claimed and recovered; also which callbacks have a backlog."""
        store = await self.reopen()
        return store, await store.recover()

    async def agree(self) -> None:
        """Wait until every open store knows of the others' changes to the registry, which takes a second at most."""
        async with asyncio.timeout(1):
            while len({await store.registry_version() for store in self.stores}) > 1:
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Close every store."""
        while self.stores:
            await self.stores.pop().close()


@pytest.fixture(params=ENGINES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "sqlite":
        place = Place(open_sqlite, tmp_path)
        yield place
        await place.close()
        return
    servers: NatsServers = request.getfixturevalue("nats_server")
    place = Place(partial(open_nats, servers), tmp_path)
    yield place
    await place.close()
    await drop_streams(servers, prefix_of(tmp_path))


async def tidy(store: Store, keep: timedelta = timedelta(days=30)) -> int:
    """Do all the upkeep that there is to do; in how many steps."""
    steps = 1
    while await store.housekeep(keep=keep):
        steps += 1
        assert steps < 10_000, "the upkeep comes to no end"
    return steps


async def waiting(store: Store) -> dict[int, list[Delivery]]:
    """All that waits, by callback, read in small pages."""
    found: dict[int, list[Delivery]] = {}
    for callback_id in (await store.registry()).callbacks:
        after = 0
        while page := await store.backlog(callback_id, after=after, limit=7):
            found.setdefault(callback_id, []).extend(page)
            after = page[-1].row
    assert {number: len(deliveries) for number, deliveries in found.items()} == await store.backlog_sizes()
    return found


@pytest.fixture
async def store(place: Place) -> Store:
    """An open store that knows the clients acme and outra."""
    store = await place.open()
    await store.add_client(a_client("acme"))
    await store.add_client(a_client("outra"))
    return store
