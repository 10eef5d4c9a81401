"""Store, dispatcher and transport put together as the server does it, for measuring them without intake and API.

The one place of the measurements that knows how these parts are built and how they hand things to each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import ssl
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from zoneinfo import ZoneInfo

from toque.bench.stopwatch import Stopwatch
from toque.bench.traffic import client_id, populate
from toque.callbacks.delivery import Delivery, Settlement
from toque.callbacks.payload import PayloadWriter
from toque.calls.model import StatusChange
from toque.sending.dispatcher import Dispatcher
from toque.sending.guard import Guard
from toque.sending.transport import Transport
from toque.server import SETTLING_PACE_S, calm_collector
from toque.settings import OPTIONS, NatsServers
from toque.store.nats import NatsStore
from toque.store.nats_link import Access
from toque.store.opening import claim
from toque.store.sqlite import SqliteStore, utc_now

CONCURRENCY: int = OPTIONS["concurrency"].default
_CALLBACK_CONCURRENCY: int = OPTIONS["callback_concurrency"].default
_LOOPBACK = (ip_network("127.0.0.0/8"),)
_GRACE = timedelta(seconds=1)  # for posts under way at the end; those to receivers that never answer are cut off
_SETTLING_GRACE = timedelta(seconds=60)


def store_path(folder: Path) -> Path:
    """Where a measurement's store lies in its folder."""
    return folder / "bench.db"


class _Timing:
    """Tells a stopwatch of what is delivered to watched callbacks, once the store has it."""

    stopwatch: Stopwatch
    watched: Collection[int] = ()

    async def settle(self, delivered: Sequence[Delivery], others: Sequence[Settlement] = ()) -> None:
        """See `Store.settle`."""
        await super().settle(delivered, others)  # type: ignore[misc]
        watched = self.watched
        self.stopwatch.end([one.event.seq for one in delivered if one.callback_id in watched])


class _TimedStore(_Timing, SqliteStore):
    pass


class _TimedNats(_Timing, NatsStore):
    pass


def _open_store(folder: Path, servers: NatsServers | None = None) -> _TimedStore | _TimedNats:
    """The store that this folder stands for: in it, or under its name on an engine."""
    payloads = PayloadWriter(ZoneInfo("America/Sao_Paulo"))
    if servers is None:
        return _TimedStore(store_path(folder), payloads)
    access = Access(servers.servers, user=servers.user, password=servers.password)
    return _TimedNats(access, payloads, prefix=folder.name)


async def prepare(folder: Path, urls: Sequence[str], servers: NatsServers | None = None) -> None:
    """A store in this folder, or on an engine, with a client, a line and a callback for each URL."""
    store = _open_store(folder, servers)
    try:
        await populate(store, urls)
    finally:
        await store.close()


async def leave_waiting(folder: Path, changes: Sequence[StatusChange]) -> None:
    """Have these changes wait in the store for whoever opens it next."""
    store = _open_store(folder)
    try:
        await claim(store)
        await store.recover()
        await store.append(changes, ())
    finally:
        await store.close()


@dataclass(slots=True)
class Engine:
    """What delivers. The stopwatch sees the deliveries of the watched callbacks."""

    store: _TimedStore | _TimedNats
    dispatcher: Dispatcher
    stopwatch: Stopwatch

    async def accept(self, changes: Sequence[StatusChange], since_s: float | None = None) -> int:
        """Make them durable and hand them on, as the intake does; returns how many deliveries that gave.

        They are timed since then (monotonic), or from the moment when they are durable.
        """
        appended = await self.store.append(changes, ())
        watched = self.store.watched
        numbers = [delivery.event.seq for delivery in appended.deliveries if delivery.callback_id in watched]
        self.stopwatch.begin(numbers, time.monotonic() if since_s is None else since_s)
        self.dispatcher.offer(appended.deliveries)
        return len(appended.deliveries)

    def attempts(self) -> int:
        """Posts that were begun since the start."""
        return self.dispatcher.counters.attempts


@contextlib.asynccontextmanager
async def engine(
    folder: Path,
    *,
    watched: Collection[int] | None = None,
    concurrency: int = CONCURRENCY,
    callback_concurrency: int = _CALLBACK_CONCURRENCY,
    tls: ssl.SSLContext | None = None,
    timed_every: int = 1,
    servers: NatsServers | None = None,
) -> AsyncIterator[Engine]:
    """The parts that deliver, on a prepared store; `watched` are the numbers of made-up clients, None for all.

    What lies on an engine is thrown away at the end.
    """
    store = _open_store(folder, servers)
    store.stopwatch = Stopwatch(timed_every)
    try:
        await claim(store)
        registry, backlogs = await store.registry(), await store.recover()
        names = None if watched is None else {client_id(number) for number in watched}
        store.watched = frozenset(one.id for one in registry.callbacks.values() if names is None or one.client_id in names)
        async with Transport(Guard(_LOOPBACK), ssl_context=tls) as transport:
            dispatcher = Dispatcher(
                transport,
                store,
                clock=utc_now,
                chance=random.random,
                concurrency=concurrency,
                callback_concurrency=callback_concurrency,
                settling_pace_s=SETTLING_PACE_S,
            )
            dispatcher.apply(registry)
            dispatcher.resume(backlogs)
            async with _settling(dispatcher, transport):
                with _calm_collector():
                    yield Engine(store, dispatcher, store.stopwatch)
        if isinstance(store, _TimedNats):
            await store.drop()
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _settling(dispatcher: Dispatcher, transport: Transport) -> AsyncIterator[None]:
    task = asyncio.create_task(dispatcher.run())
    try:
        yield
    finally:
        if not await dispatcher.drain(_GRACE):
            await transport.close()
            await dispatcher.drain(_SETTLING_GRACE)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.contextmanager
def _calm_collector() -> Iterator[None]:
    """As `toque serve` has it."""
    thresholds = gc.get_threshold()
    calm_collector()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
