"""The two ways to load an engine: as fast as it delivers, and evenly at a given rate whatever it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from toque.bench.engine import Engine
from toque.calls.model import StatusChange

BATCH = 500
_AHEAD = 4000  # deliveries accepted and not yet settled: enough that nobody waits, few enough to be a queue
_TICK_S = 0.01
_POLL_S = 0.001


@dataclass(frozen=True, slots=True)
class Work:
    """What was delivered to watched callbacks in how long, at what cost."""

    delivered: int
    took_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Deliveries a second."""
        return self.delivered / self.took_s


async def saturate(parts: Engine, source: Iterator[StatusChange], seconds: float) -> Work:
    """Keep a queue of deliveries to watched callbacks, so that the engine is never idle."""
    stopwatch = parts.stopwatch
    before, began_s, cpu_s = stopwatch.delivered, time.monotonic(), time.process_time()
    until_s = began_s + seconds
    while time.monotonic() < until_s:
        if stopwatch.outstanding > _AHEAD:
            await asyncio.sleep(_POLL_S)
        else:
            await parts.accept(list(islice(source, BATCH)))
    return Work(stopwatch.delivered - before, time.monotonic() - began_s, time.process_time() - cpu_s)


async def steady(parts: Engine, source: Iterator[StatusChange], rate: float, seconds: float) -> None:
    """Offer so many changes a second. Each is timed since it was due, so a store or loop that is late is seen to be late."""
    began_s, offered = time.monotonic(), 0
    for tick in range(1, round(seconds / _TICK_S) + 1):
        due_s = began_s + tick * _TICK_S
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        count = round(rate * _TICK_S * tick) - offered
        offered += count
        await parts.accept(list(islice(source, count)), due_s)


async def finish(parts: Engine, limit_s: float) -> int:
    """Wait until everything was delivered to the watched callbacks; returns how much was not when the time was up."""
    until_s = time.monotonic() + limit_s
    while parts.stopwatch.outstanding and time.monotonic() < until_s:  # noqa: ASYNC110 - an event would cost every delivery
        await asyncio.sleep(_POLL_S * 10)
    return parts.stopwatch.outstanding
