"""`toque bench deliver`: durable append, lanes, signed posts, settled, as fast as one process goes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from ipaddress import ip_network
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo

from toque.bench.sink import Sink, any_sink
from toque.bench.traffic import changes, populate
from toque.bench.wrk import wrk_rate
from toque.callbacks.delivery import Delivery, Settlement
from toque.callbacks.payload import PayloadWriter
from toque.sending.dispatcher import Dispatcher
from toque.sending.guard import Guard
from toque.sending.transport import Transport
from toque.store.sqlite import SqliteStore, utc_now

CALLBACKS = 100
CONCURRENCY = 64
ROUNDS = 5
_BATCH = 500
_AHEAD = 4000  # deliveries accepted and not yet settled: enough that nobody waits, few enough to be a queue
_TIMED_EVERY = 20
_LOOPBACK = (ip_network("127.0.0.0/8"),)
_WRK_BODY_BYTES = 680  # as large as a delivery of this traffic is on the average: 639 to 741 bytes


@dataclass(slots=True)
class Round:
    """One round's figures."""

    deliveries_per_s: float
    cpu_us_per_delivery: float
    latency_p50_ms: float
    latency_p99_ms: float
    wrk_requests_per_s: float | None = None
    ratio: float | None = None


class Stopwatch:
    """How long deliveries take from their acceptance until they are settled; every so many are timed."""

    def __init__(self) -> None:
        self._accepted_s: dict[int, float] = {}
        self.delays_ms: list[float] = []

    def accepted(self, deliveries: list[Delivery]) -> None:
        """These are durable now."""
        now = time.perf_counter()
        for delivery in deliveries[::_TIMED_EVERY]:
            self._accepted_s[delivery.event.seq] = now

    def settled(self, settlements: Sequence[Settlement]) -> None:
        """These are done with."""
        now = time.perf_counter()
        for settlement in settlements:
            began = self._accepted_s.pop(settlement.event_seq, None)
            if began is not None:
                self.delays_ms.append((now - began) * 1000)

    def quantile(self, share: float) -> float:
        """Milliseconds within which this share was settled."""
        delays = sorted(self.delays_ms)
        return delays[min(len(delays) - 1, int(len(delays) * share))] if delays else 0.0


@dataclass(slots=True)
class Engine:
    """Store, dispatcher and transport as the server has them, and a stopwatch."""

    store: SqliteStore
    dispatcher: Dispatcher
    stopwatch: Stopwatch


@contextlib.asynccontextmanager
async def engine(folder: Path, *, concurrency: int = CONCURRENCY, callback_concurrency: int = 10) -> AsyncIterator[Engine]:
    """The parts that deliver, on a store in this folder."""
    store = SqliteStore(folder / "bench.db", PayloadWriter(ZoneInfo("America/Sao_Paulo")))
    stopwatch = Stopwatch()

    async def settle(settlements: Sequence[Settlement]) -> None:
        await store.settle(settlements)
        stopwatch.settled(settlements)

    try:
        async with Transport(Guard(_LOOPBACK)) as transport:
            dispatcher = Dispatcher(
                transport,
                settle,
                store.disable_callback,
                clock=utc_now,
                chance=random.random,
                concurrency=concurrency,
                callback_concurrency=callback_concurrency,
            )
            settling = asyncio.create_task(dispatcher.run())
            try:
                yield Engine(store, dispatcher, stopwatch)
            finally:
                await dispatcher.drain(timedelta(seconds=10))
                settling.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await settling
    finally:
        await store.close()


async def bench_deliver(*, seconds: float = 5.0, rounds: int = ROUNDS, callbacks: int = CALLBACKS) -> dict[str, Any]:
    """Rounds of delivering and of wrk in turns; the medians of all figures, and every round."""
    async with any_sink() as sink:
        done = []
        for number in range(rounds):
            one = await _round(sink, seconds, callbacks, number)
            one.wrk_requests_per_s = await wrk_rate(sink.url, b"x" * _WRK_BODY_BYTES, seconds)
            if one.wrk_requests_per_s:
                one.ratio = one.deliveries_per_s / one.wrk_requests_per_s
            done.append(one)
        return {
            **{name: _median([getattr(one, name) for one in done]) for name in Round.__slots__},
            "sink": sink.kind,
            "callbacks": callbacks,
            "concurrency": CONCURRENCY,
            "rounds": [asdict(one) for one in done],
        }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 3) if known else None


async def _round(sink: Sink, seconds: float, callbacks: int, number: int) -> Round:
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as folder:
        async with engine(Path(folder)) as parts:
            await populate(parts.store, [f"{sink.url}{i}" for i in range(callbacks)])
            parts.dispatcher.apply(await parts.store.registry())
            return await _deliver(parts, seconds, callbacks, number)


async def _deliver(parts: Engine, seconds: float, callbacks: int, number: int) -> Round:
    source = changes(list(range(callbacks)), run=str(number))
    counters = parts.dispatcher.counters
    accepted = 0
    began_s, cpu_s = time.perf_counter(), time.process_time()
    until = began_s + seconds
    while time.perf_counter() < until:
        if accepted - counters.delivered > _AHEAD:
            await asyncio.sleep(0.001)
            continue
        appended = await parts.store.append(list(islice(source, _BATCH)), ())
        accepted += len(appended.deliveries)
        parts.stopwatch.accepted(appended.deliveries)
        parts.dispatcher.offer(appended.deliveries)
    delivered = counters.delivered
    took_s = time.perf_counter() - began_s
    cpu_s = time.process_time() - cpu_s
    latency = parts.stopwatch.quantile
    return Round(delivered / took_s, cpu_s / max(delivered, 1) * 1e6, latency(0.5), latency(0.99))
