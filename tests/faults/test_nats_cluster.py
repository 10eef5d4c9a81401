"""Three real nats-servers, broken on purpose: what was acknowledged is there, once and in order; what was not may be tried again."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
from tests.support.nats_servers import NatsServers
from tests.support.stored_calls import ZONE, a_client, in_progress, left, over, whole_call

from toque.callbacks.callback import Registered
from toque.callbacks.delivery import Delivery
from toque.callbacks.payload import PayloadWriter
from toque.errors import StoreError
from toque.store.nats import NatsStore
from toque.store.nats_link import Access

pytestmark = pytest.mark.slow

TELLERS = 8
AGAIN_S = 0.2
T = TypeVar("T")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with NatsServers(tmp_path_factory.mktemp("nats"), 3, sync="always") as servers:
        yield servers


def opened(cluster: NatsServers, prefix: str) -> NatsStore:
    return NatsStore(Access(cluster.addresses, reconnect_wait_s=0.1), PayloadWriter(ZONE), prefix=prefix)


async def prepared(cluster: NatsServers, prefix: str) -> NatsStore:
    store = opened(cluster, prefix)
    await store.add_client(a_client())
    assert isinstance(await store.register_callback("acme", "https://example.com/status", None, None, limit=1), Registered)
    assert await store.recover() == []
    return store


class Tellers:
    """Several who tell whole calls, one status at a time, as long as they are let; what was refused is tried again."""

    def __init__(self, store: NatsStore) -> None:
        self.store = store
        self.told: dict[str, int] = {}
        self.deliveries: list[Delivery] = []
        self.refused = 0
        self._is_over = False
        self._tasks = [asyncio.create_task(self._tell(n)) for n in range(TELLERS)]

    async def _tell(self, number: int) -> None:
        count = 0
        while not self._is_over:
            name = f"call-{number}-{count}"
            count += 1
            for place, step in enumerate(whole_call(name), 1):
                await self._append(name, place, step)

    async def _append(self, name: str, place: int, step: object) -> None:
        snapshot = over(name) if place == 4 else in_progress(name)
        while True:
            try:
                self.deliveries += (await self.store.append([step], [snapshot])).deliveries  # type: ignore[list-item]
            except StoreError:
                self.refused += 1
                await asyncio.sleep(AGAIN_S)
            else:
                self.told[name] = place
                return

    async def until(self, count: int, timeout_s: float = 30) -> None:
        """Wait until so many more statuses are told."""
        enough = sum(self.told.values()) + count
        async with asyncio.timeout(timeout_s):
            while sum(self.told.values()) < enough:
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Everyone finishes the call that he is at."""
        self._is_over = True
        await asyncio.gather(*self._tasks)


Key = tuple[str, int]


def key(delivery: Delivery) -> Key:
    return delivery.event.callerid, delivery.event.sequence


class Worker:
    """Settles what the tellers are handed: some is delivered, the rest left to the store, and later read back and delivered."""

    def __init__(self, tellers: Tellers, callback_id: int) -> None:
        self.tellers = tellers
        self.store = tellers.store
        self.delivered: list[Key] = []
        self._callback_id = callback_id
        self._rng = random.Random(11)
        self._is_over = False
        self._tasks = [asyncio.create_task(doing) for doing in (self._settle(), self._drain())]

    async def _settle(self) -> None:
        taken = 0
        while not self._is_over or taken < len(self.tellers.deliveries):
            mine = self.tellers.deliveries[taken : taken + self._rng.randint(1, 40)]
            taken += len(mine)
            cut = self._rng.randint(0, len(mine))
            await self._until_done(mine[:cut], mine[cut:])
            await asyncio.sleep(0.005)

    async def _drain(self) -> None:
        while not self._is_over:
            try:
                page = await self.store.backlog(self._callback_id, limit=self._rng.randint(1, 60))
            except StoreError:
                page = []
            await self._until_done([delivery for delivery in page if self._rng.random() < 0.7], [])
            await asyncio.sleep(0.05)

    async def _until_done(self, delivered: list[Delivery], others: list[Delivery]) -> None:
        while True:
            try:
                await self.store.settle(delivered, left(*others))
            except StoreError:
                await asyncio.sleep(AGAIN_S)
            else:
                self.delivered += map(key, delivered)
                return

    async def end(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again while the engine elects: of each of its streams another server may have been the leader."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await ask()
            except StoreError:
                await asyncio.sleep(AGAIN_S)


async def waiting(store: NatsStore, callback_id: int) -> list[Key]:
    found: list[Key] = []
    after = 0
    while page := await store.backlog(callback_id, after=after):
        found += map(key, page)
        after = page[-1].row
    assert (await store.backlog_sizes()).get(callback_id, 0) == len(found)
    return found


async def check(tellers: Tellers, worker: Worker, cluster: NatsServers, prefix: str) -> None:
    """All that was acknowledged was handed out once, and each is delivered or waits, in order, also after a restart."""
    await tellers.end()
    await worker.end()
    handed = [key(delivery) for delivery in tellers.deliveries]
    assert len(handed) == len(set(handed)) == 4 * len(tellers.told)
    (callback_id,) = (await patiently(tellers.store.registry)).callbacks
    left_over = await patiently(lambda: waiting(tellers.store, callback_id))
    assert len(worker.delivered) == len(set(worker.delivered)), "what was settled came back"
    assert sorted(left_over + worker.delivered) == sorted(handed)
    lanes: dict[str, list[int]] = {}
    for callerid, sequence in left_over:
        lanes.setdefault(callerid, []).append(sequence)
    assert all(sequences == sorted(sequences) for sequences in lanes.values())
    await tellers.store.close()
    store = opened(cluster, prefix)
    try:
        await patiently(store.recover)
        assert await patiently(lambda: waiting(store, callback_id)) == left_over
        assert await patiently(store.open_calls) == []
    finally:
        await store.close()


async def begun(cluster: NatsServers, prefix: str) -> tuple[Tellers, Worker]:
    store = await prepared(cluster, prefix)
    (callback_id,) = (await store.registry()).callbacks
    tellers = Tellers(store)
    return tellers, Worker(tellers, callback_id)


async def test_a_leader_that_is_killed_while_statuses_come_loses_none(cluster: NatsServers) -> None:
    tellers, worker = await begun(cluster, "leader")
    await tellers.until(100)
    number = cluster.leader("leader_log")
    assert number >= 0
    cluster.kill(number)
    await tellers.until(200)
    cluster.start(number)
    cluster.kill(other := (number + 1) % 3)
    await tellers.until(100)
    cluster.start(other)
    await check(tellers, worker, cluster, "leader")


async def test_all_servers_killed_at_once_and_started_again_lose_nothing(cluster: NatsServers) -> None:
    tellers, worker = await begun(cluster, "whole")
    await tellers.until(100)
    for number in range(3):
        cluster.kill(number)
    for number in range(3):
        cluster.start(number)
    await tellers.until(100)
    await check(tellers, worker, cluster, "whole")


async def test_outcomes_are_written_once_whoever_leads(cluster: NatsServers) -> None:
    """Some are delivered and some are left to the store, while the server that leads is stopped in order, and comes back."""
    store = await prepared(cluster, "work")
    deliveries = [d for n in range(30) for d in (await store.append(whole_call(f"call-{n}"), [over(f"call-{n}")])).deliveries]
    number = cluster.leader("work_work")
    for place, start in enumerate(range(0, len(deliveries), 8)):
        if place == 5:
            cluster.stop(number)
        mine = deliveries[start : start + 8]
        while True:
            try:
                await store.settle(mine[:4], left(*mine[4:]))
            except StoreError:
                await asyncio.sleep(AGAIN_S)
            else:
                break
    cluster.start(number)
    (waiting,) = (await store.backlog_sizes()).values()
    await store.close()
    assert waiting == len(deliveries) // 2
    store = opened(cluster, "work")
    try:
        (callback_id,) = await store.recover()
        found = await store.backlog(callback_id, limit=1000)
        wanted = [d.event.seq for start in range(0, len(deliveries), 8) for d in deliveries[start + 4 : start + 8]]
        assert [d.event.seq for d in found] == wanted
        await store.settle(found)
        assert await store.backlog_sizes() == {}
    finally:
        await store.close()
