"""Every engine that is held to the store's contract, and where a test gets its stores from."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.clock import ManualClock
from tests.support.stored_calls import BEGINNING, ZONE, a_client

from toque.callbacks.payload import PayloadWriter
from toque.store.contract import Store
from toque.store.sqlite import SqliteStore


async def open_sqlite(folder: Path, clock: ManualClock) -> Store:
    """The store in this folder; made when there is none."""
    return SqliteStore(folder / "toque.db", PayloadWriter(ZONE), clock=clock)


# An engine is a function that opens the store which a folder stands for, whoever has it open already.
ENGINES: dict[str, Callable[[Path, ManualClock], Awaitable[Store]]] = {"sqlite": open_sqlite}


@dataclass
class Place:
    """Where one store's data lies; any number of store objects may be open on it, as in as many processes."""

    open_engine: Callable[[Path, ManualClock], Awaitable[Store]]
    folder: Path
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
    place = Place(ENGINES[request.param], tmp_path)
    yield place
    await place.close()


@pytest.fixture
async def store(place: Place) -> Store:
    """An open store that knows the clients acme and outra."""
    store = await place.open()
    await store.add_client(a_client("acme"))
    await store.add_client(a_client("outra"))
    return store
