"""`toque bench deliver`: durable append, lanes, signed posts, settled, as fast as one process goes."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any

from toque.bench.certificates import make_certificates
from toque.bench.engine import engine, prepare
from toque.bench.load import BATCH, saturate
from toque.bench.sink import Sink, any_sink
from toque.bench.stopwatch import quantile
from toque.bench.traffic import changes
from toque.bench.wrk import wrk_rate
from toque.calls.model import StatusChange
from toque.settings import NatsServers

CALLBACKS = 100
CONCURRENCY = 64
ROUNDS = 5
_TIMED_EVERY = 20
_WARM_UP = 0.1  # of a round's time
_SPARE = 1.5  # times as many changes are made ahead as the round before could take
_WRK_BODY_BYTES = 680  # as large as a delivery of this traffic is on the average: 639 to 741 bytes


@dataclass(slots=True)
class Round:
    """One round's figures."""

    deliveries_per_s: float
    cpu_us_per_delivery: float
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    wrk_requests_per_s: float | None = None
    ratio: float | None = None
    tls_deliveries_per_s: float | None = None
    tls_cpu_us_per_delivery: float | None = None
    tls_ratio: float | None = None


_OF_TLS = ("tls_deliveries_per_s", "tls_cpu_us_per_delivery", "tls_ratio")


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a round delivers to, and whom it trusts."""

    sink: Sink
    tls: ssl.SSLContext | None = None
    servers: NatsServers | None = None


async def bench_deliver(
    *,
    seconds: float = 5.0,
    rounds: int = ROUNDS,
    callbacks: int = CALLBACKS,
    tls: bool = False,
    servers: NatsServers | None = None,
) -> dict[str, Any]:
    """Rounds of delivering, with `tls` over TLS too, and of wrk, in turns; the medians of all figures, and every round."""
    async with any_sink() as sink, contextlib.AsyncExitStack() as exits:
        plain = _Target(sink, servers=servers)
        secure = await exits.enter_async_context(_tls_target(servers)) if tls else None
        warm = await _deliver(plain, seconds * _WARM_UP, callbacks, BATCH)
        ahead, done = _needed(warm, seconds), []
        for _ in range(rounds):
            one = await _deliver(plain, seconds, callbacks, ahead)
            if secure is not None:
                _note_tls(one, await _deliver(secure, seconds, callbacks, ahead))
            one.wrk_requests_per_s = await wrk_rate(sink.url, b"x" * _WRK_BODY_BYTES, seconds)
            if one.wrk_requests_per_s:
                one.ratio = one.deliveries_per_s / one.wrk_requests_per_s
            ahead = _needed(one, seconds)
            done.append(one)
    names = [name for name in Round.__slots__ if tls or name not in _OF_TLS]
    return {
        **{name: _median([getattr(one, name) for one in done]) for name in names},
        "sink": sink.kind,
        "callbacks": callbacks,
        "concurrency": CONCURRENCY,
        "rounds": [{name: value for name, value in asdict(one).items() if name in names} for one in done],
    }


def _needed(one: Round, seconds: float) -> int:
    return int(one.deliveries_per_s * seconds * _SPARE)


def _note_tls(plain: Round, secure: Round) -> None:
    plain.tls_deliveries_per_s = secure.deliveries_per_s
    plain.tls_cpu_us_per_delivery = secure.cpu_us_per_delivery
    plain.tls_ratio = secure.deliveries_per_s / max(plain.deliveries_per_s, 1)


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 3) if known else None


@contextlib.asynccontextmanager
async def _tls_target(servers: NatsServers | None) -> AsyncIterator[_Target]:
    with tempfile.TemporaryDirectory(prefix="toque-tls-") as folder:
        made = make_certificates(Path(folder))
        context = ssl.create_default_context(cafile=made.authority)
        context.set_alpn_protocols(["http/1.1"])
        async with any_sink(made.certificate, made.key) as sink:
            yield _Target(sink, context, servers)


async def _deliver(target: _Target, seconds: float, callbacks: int, ahead: int) -> Round:
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as name:
        folder = Path(name)
        await prepare(folder, [f"{target.sink.url}{i}" for i in range(callbacks)], target.servers)
        source = _made_ahead(callbacks, ahead)
        parts_on = partial(engine, folder, tls=target.tls, servers=target.servers)
        async with parts_on(concurrency=CONCURRENCY, timed_every=_TIMED_EVERY) as parts:
            work = await saturate(parts, source, seconds)
            delays = parts.stopwatch.take_delays_ms()
    return Round(work.per_s, work.cpu_s / max(work.delivered, 1) * 1e6, quantile(delays, 0.5), quantile(delays, 0.99))


def _made_ahead(callbacks: int, count: int) -> Iterator[StatusChange]:
    """Working out statuses is not delivering them, so it is done before; should they run out, more are made on the way."""
    source = changes(range(callbacks), run="deliver")
    return chain(list(islice(source, count)), source)
