"""`toque bench backlog`: many deliveries wait for dead callbacks. What that costs, how soon a restart delivers, how fast it ends.

1. A process of its own delivers to healthy callbacks, then accepts the backlog, waits until hardly a post is tried any more, and
   delivers to the healthy ones again. Its memory is that of store and dispatcher alone.
2. The healthy ones once more, in a fresh process on an empty store: the machine may have changed its speed meanwhile.
3. `toque serve` starts on the store with the backlog. Two receivers wait for their first delivery: one that was left waiting in
   the store, and a status that is fed over HEP as soon as the port answers.
4. The dead receivers come alive, and count what they get.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

from toque.bench.apart import apart
from toque.bench.engine import CONCURRENCY, Engine, engine, leave_waiting, prepare
from toque.bench.load import finish, saturate
from toque.bench.process import ServerProcess, memory_mib, memory_peak_mib, starting
from toque.bench.receivers import Group, Receivers, receiving
from toque.bench.sink import any_sink
from toque.bench.sip import messages, wrapped
from toque.bench.traffic import changes, number_of

DELIVERIES = 1_000_000
CALLBACKS = 100
_ROUNDS = 3
_BATCH = 1000
_CALM_WITHIN_S = 60.0
_FINISHED_WITHIN_S = 60.0
_STARTED_WITHIN_S = 180.0
_STALLED_AFTER_S = 340.0  # longer than a probe of a dead callback is ever away
_POLL_S = 0.02
_DEAD, _WAITING, _FED = range(3)  # the groups of receivers


async def bench_backlog(*, deliveries: int = DELIVERIES, callbacks: int = CALLBACKS, seconds: float = 5.0) -> dict[str, Any]:
    """All phases; `seconds` is each round's of the healthy rate. There are as many dead callbacks as healthy ones."""
    groups = (Group("counted", callbacks, is_listening=False), Group("counted"), Group("counted"))
    async with any_sink() as sink, receiving(*groups) as receivers:
        with tempfile.TemporaryDirectory(prefix="toque-bench-") as name:
            folder = Path(name)
            healthy = [f"{sink.url}{number}" for number in range(callbacks)]
            await prepare(folder, healthy + [url for group in receivers.urls for url in group])
            grown = await apart(grow, folder=name, callbacks=callbacks, deliveries=deliveries, seconds=seconds)
            again = await _baseline_again(healthy, seconds)
            await leave_waiting(folder, list(islice(changes([2 * callbacks], run="waiting"), 1)))
            served = await _restarted(folder, receivers, callbacks, deliveries)
    without = mean((grown["healthy_per_s_before"], again))
    return {
        "deliveries": deliveries,
        "healthy_per_s_without": round(without, 1),
        **grown,
        "healthy_per_s_after": again,
        "rate_ratio": round(grown["healthy_per_s_with"] / without, 3),
        **served,
        "drain_ratio": None if served["drained_per_s"] is None else round(served["drained_per_s"] / without, 3),
        "callbacks": 2 * callbacks,
        "concurrency": CONCURRENCY,
        "sink": sink.kind,
    }


# The backlog grows


async def grow(folder: str, callbacks: int, deliveries: int, seconds: float) -> dict[str, Any]:
    """In a process of its own: the healthy rate, the backlog, the healthy rate."""
    async with engine(Path(folder), watched=range(callbacks)) as parts:
        before_per_s = await _healthy_rate(parts, callbacks, seconds, "before")
        before_mib = _collected_mib()
        appended_per_s = await _append(parts, callbacks, deliveries)
        parked_after_s = await _until_calm(parts, most_per_s=callbacks)
        after_mib, peak_mib = _collected_mib(), memory_peak_mib()
        file_mib = _size_mib(Path(folder))
        with_per_s = await _healthy_rate(parts, callbacks, seconds, "with")
    return {
        "healthy_per_s_before": before_per_s,
        "healthy_per_s_with": with_per_s,
        "appended_per_s": round(appended_per_s),
        "parked_after_s": parked_after_s,
        "memory_before_mib": round(before_mib, 1),
        "memory_growth_mib": round(after_mib - before_mib, 1),
        "memory_peak_mib": round(peak_mib, 1),
        "store_mib": round(file_mib, 1),
    }


async def baseline(folder: str, callbacks: int, seconds: float) -> float:
    """In a process of its own: the healthy rate alone."""
    async with engine(Path(folder)) as parts:
        return await _healthy_rate(parts, callbacks, seconds, "after")


async def _baseline_again(urls: list[str], seconds: float) -> float:
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as folder:
        await prepare(Path(folder), urls)
        told: float = await apart(baseline, folder=folder, callbacks=len(urls), seconds=seconds)
        return told


async def _healthy_rate(parts: Engine, callbacks: int, seconds: float, run: str) -> float:
    source = changes(range(callbacks), run=run)
    rates = [(await saturate(parts, source, seconds)).per_s for _ in range(_ROUNDS)]
    missing = await finish(parts, _FINISHED_WITHIN_S)
    assert not missing  # noqa: S101 - a measurement of something that went wrong is none
    parts.stopwatch.take_delays_ms()
    return round(median(rates), 1)


def _size_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 2**20


def _collected_mib() -> float:
    gc.collect()
    return memory_mib()


async def _append(parts: Engine, callbacks: int, deliveries: int) -> float:
    """Accept so many for the dead callbacks, as fast as the store takes them; how many a second."""
    source, began_s, accepted = changes(range(callbacks, 2 * callbacks), run="backlog"), time.monotonic(), 0
    while accepted < deliveries:
        accepted += await parts.accept(list(islice(source, min(_BATCH, deliveries - accepted))))
    return accepted / (time.monotonic() - began_s)


async def _until_calm(parts: Engine, *, most_per_s: int) -> float | None:
    """Seconds until no more than this is tried in a second: probes, not a backlog. None when that does not come about."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < _CALM_WITHIN_S:
        before, since_s = parts.attempts(), time.monotonic()
        await asyncio.sleep(1)
        if parts.attempts() - before <= most_per_s:
            return round(since_s - began_s, 1)
    return None


# A server starts on it, and the dead come alive


async def _restarted(folder: Path, receivers: Receivers, callbacks: int, deliveries: int) -> dict[str, Any]:
    async with starting(folder, log_level="error") as server:
        feeding = asyncio.create_task(_feed(server.hep_port, number_of(2 * callbacks + 1)))
        try:
            waiting_s = await _first_arrival(server, receivers, _WAITING)
            fed_s = await _first_arrival(server, receivers, _FED)
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding
        restarted_mib = server.memory_mib()
        drained = await _drain(server, receivers, deliveries)
        return {
            "restart_to_waiting_s": waiting_s and round(waiting_s - server.began_s, 2),
            "restart_to_fed_s": fed_s and round(fed_s - server.began_s, 2),
            "restarted_memory_mib": round(restarted_mib, 1),
            **drained,
            "drained_memory_mib": round(server.memory_mib(), 1),
        }


async def _feed(port: int, caller: str) -> None:
    """A call begins, as soon as somebody listens for HEP; the connection stays until this is cancelled."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except OSError:
            await asyncio.sleep(_POLL_S)
    try:
        writer.write(wrapped(next(messages(caller, 0, "fed"))))
        await asyncio.Event().wait()
    finally:
        writer.close()


async def _first_arrival(server: ServerProcess, receivers: Receivers, group: int) -> float | None:
    """When the first post came to this group; None when none came in time. Raises `RuntimeError` when the server has ended."""
    until_s = time.monotonic() + _STARTED_WITHIN_S
    while time.monotonic() < until_s:
        server.check()
        first_s: float | None = (await receivers.report(group))["first_s"]
        if first_s is not None:
            return first_s
        await asyncio.sleep(_POLL_S)
    return None


async def _drain(server: ServerProcess, receivers: Receivers, deliveries: int) -> dict[str, Any]:
    """The dead receivers listen; how fast they get what waited for them, and what of it."""
    began_s = time.monotonic()
    await receivers.listen(_DEAD)
    told = await _until_all_came(server, receivers, deliveries)
    unique = told["arrived"] - told["duplicates"]
    first_s, woken_s, last_s = told["first_s"], told["woken_s"], told["last_s"]
    took_s = last_s - first_s if unique else 0.0
    return {
        "waited_for_first_s": None if first_s is None else round(first_s - began_s, 2),
        "waited_for_every_callback_s": None if woken_s is None else round(woken_s - began_s, 2),
        "drain_s": round(took_s, 2),
        "drained_per_s": round(unique / took_s, 1) if took_s else None,
        "missing": deliveries - unique,
        "disordered": told["disordered"],
        "duplicates": told["duplicates"],
    }


async def _until_all_came(server: ServerProcess, receivers: Receivers, deliveries: int) -> dict[str, Any]:
    """The receivers' count once everything is there, or nothing has come for so long that nothing will."""
    arrived, moved_s = 0, time.monotonic()
    while True:
        server.check()
        told = await receivers.report(_DEAD)
        if told["arrived"] - told["duplicates"] >= deliveries or time.monotonic() - moved_s > _STALLED_AFTER_S:
            return told
        if told["arrived"] > arrived:
            arrived, moved_s = told["arrived"], time.monotonic()
        await asyncio.sleep(_POLL_S * 10)
