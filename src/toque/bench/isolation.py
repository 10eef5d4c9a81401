"""`toque bench isolation`: what callbacks that never answer, or answer late, cost the others.

The same traffic to as many callbacks, with and without sick ones among them, in turns. Each turn is a fresh process with a fresh
store, first at a steady rate below what it can do, where delays mean something, then as fast as it goes. Only the callbacks that
are well in both are looked at. The sick ones are met in every turn anew, so what finding them out costs is in the figures.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from toque.bench.apart import apart
from toque.bench.engine import CONCURRENCY, engine, prepare
from toque.bench.load import finish, saturate, steady
from toque.bench.process import memory_mib
from toque.bench.receivers import Group, receiving
from toque.bench.sink import any_sink
from toque.bench.stopwatch import quantile
from toque.bench.traffic import changes

CALLBACKS = 1000
ROUNDS = 3
_SICK_SHARE = 0.1  # of each kind
_OFFERED_SHARE = 0.5  # of what was delivered as fast as it goes
_SATURATED_SHARE = 0.25  # of the time at a steady rate, spent as fast as it goes
_FINISHED_WITHIN_S = 60.0
_FIGURES = ("healthy_p50_ms", "healthy_p99_ms", "healthy_per_s", "memory_mib")


async def bench_isolation(*, seconds: float = 20.0, rounds: int = ROUNDS, callbacks: int = CALLBACKS) -> dict[str, Any]:
    """Delays, rates and memory with and without sick callbacks: medians of the rounds, and every round."""
    sick = max(1, round(callbacks * _SICK_SHARE))
    async with any_sink() as sink, receiving(Group("never", sick), Group("late", sick)) as receivers:
        urls = [f"{sink.url}{number}" for number in range(callbacks)]
        healthy = callbacks - 2 * sick
        sick_urls = [url for group in receivers.urls for url in group]
        mixed = urls[:healthy] + sick_urls
        first = await _turn(urls, healthy, rate=0.0, seconds=seconds)
        rate = first["all_per_s"] * _OFFERED_SHARE
        done = []
        for _ in range(rounds):
            without = await _turn(urls, healthy, rate=rate, seconds=seconds)
            done.append(_compared(without, await _turn(mixed, healthy, rate=rate, seconds=seconds)))
    return {
        **{name: _median([one[name] for one in done]) for name in done[0] if name != "missing"},
        "worst_p99_ratio": max((one["p99_ratio"] for one in done if one["p99_ratio"] is not None), default=None),
        "missing": sum(one["missing"] for one in done),
        "offered_per_s": round(rate),
        "callbacks": callbacks,
        "never_answering": sick,
        "late": sick,
        "concurrency": CONCURRENCY,
        "sink": sink.kind,
        "rounds": done,
    }


def _compared(without: dict[str, Any], sick: dict[str, Any]) -> dict[str, Any]:
    """One round: each figure without sick callbacks and with them, and the ratios."""
    told = {}
    for name in _FIGURES:
        told[f"{name}_without"], told[f"{name}_with"] = without[name], sick[name]
    return {
        **told,
        "p99_ratio": _ratio(sick["healthy_p99_ms"], without["healthy_p99_ms"]),
        "rate_ratio": _ratio(sick["healthy_per_s"], without["healthy_per_s"]),
        "missing": without["missing"] + sick["missing"],
    }


def _ratio(value: float | None, base: float | None) -> float | None:
    return round(value / base, 3) if value is not None and base else None


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 3) if known else None


async def _turn(urls: list[str], healthy: int, *, rate: float, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as folder:
        await prepare(Path(folder), urls)
        told: dict[str, Any] = await apart(
            measure, folder=folder, callbacks=len(urls), healthy=healthy, rate=rate, seconds=seconds
        )
        return told


async def measure(folder: str, callbacks: int, healthy: int, rate: float, seconds: float) -> dict[str, Any]:
    """A turn in its own process: so many seconds at this rate, then a while as fast as it goes."""
    source = changes(range(callbacks), run="isolation")
    async with engine(Path(folder), watched=range(healthy)) as parts:
        if rate:
            await steady(parts, source, rate, seconds)
        missing = await finish(parts, _FINISHED_WITHIN_S)
        delays = parts.stopwatch.take_delays_ms()
        gc.collect()
        memory = memory_mib()
        work = await saturate(parts, source, seconds * _SATURATED_SHARE)
        missing += await finish(parts, _FINISHED_WITHIN_S)
    return {
        "healthy_p50_ms": quantile(delays, 0.5),
        "healthy_p99_ms": quantile(delays, 0.99),
        "healthy_per_s": round(work.per_s, 1),
        "all_per_s": work.per_s * callbacks / healthy,
        "memory_mib": round(memory, 1),
        "missing": missing,
    }
