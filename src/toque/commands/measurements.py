"""Measurements of the real paths on this machine."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from cyclopts import App, Parameter

from toque.commands.terminal import (
    Json,
    as_table,
    run,
    show,
)
from toque.settings import nats_servers
from toque.telemetry import set_up_logs

T = TypeVar("T")
app = App(name="bench", help="Measurements of the real paths on this machine.")


async def _stoppable(work: Coroutine[Any, Any, T]) -> T:
    """SIGTERM and a closed terminal end it as Ctrl-C does: the processes it has begun end, and its folders are removed."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - we are in it
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await work


@app.command(name="deliver")
def bench_deliver(
    *,
    seconds: Annotated[float, Parameter(help="how long each round lasts")] = 5.0,
    rounds: Annotated[int, Parameter(help="rounds of toque and of wrk in turns")] = 5,
    callbacks: Annotated[int, Parameter(help="URLs that the deliveries are spread over")] = 100,
    tls: Annotated[bool, Parameter(help="deliver over TLS as well, in turns, and compare", negative=())] = False,
    store: Annotated[str | None, Parameter(help="an engine, nats://host:port,…; otherwise a SQLite file")] = None,
    json: Json = False,
) -> None:
    """Durable, signed, ordered deliveries a second of one process, beside wrk (where it is installed) on the same sink."""
    from toque.bench.deliver import bench_deliver as measure  # noqa: PLC0415 - see opened

    set_up_logs(form="human", level="warning")
    servers = None if store is None else nats_servers(store)
    work = measure(seconds=seconds, rounds=rounds, callbacks=callbacks, tls=tls, servers=servers)
    show_figures("deliver", run(_stoppable(work)), as_json=json)


@app.command(name="latency")
def bench_latency(
    *,
    seconds: Annotated[float, Parameter(help="how long packets are sent")] = 10.0,
    rate: Annotated[int, Parameter(help="events a second")] = 1000,
    callbacks: Annotated[int, Parameter(help="URLs that the deliveries are spread over")] = 100,
    json: Json = False,
) -> None:
    """Milliseconds from a HEP packet's sending to its post's arrival, through a real server."""
    from toque.bench.latency import bench_latency as measure  # noqa: PLC0415 - see opened

    show_figures("latency", run(_stoppable(measure(seconds=seconds, rate=rate, callbacks=callbacks))), as_json=json)


@app.command(name="isolation")
def bench_isolation(
    *,
    seconds: Annotated[float, Parameter(help="how long each turn offers its steady rate")] = 20.0,
    rounds: Annotated[int, Parameter(help="rounds without and with sick callbacks in turns")] = 3,
    callbacks: Annotated[int, Parameter(help="URLs, of which a tenth never answers and a tenth answers late")] = 1000,
    json: Json = False,
) -> None:
    """What callbacks that never answer, or answer after 5 s, cost the others."""
    from toque.bench.isolation import bench_isolation as measure  # noqa: PLC0415 - see opened

    show_figures("isolation", run(_stoppable(measure(seconds=seconds, rounds=rounds, callbacks=callbacks))), as_json=json)


@app.command(name="backlog")
def bench_backlog(
    *,
    deliveries: Annotated[int, Parameter(help="how many wait for dead callbacks")] = 1_000_000,
    seconds: Annotated[float, Parameter(help="how long each round of delivering to healthy callbacks lasts")] = 5.0,
    callbacks: Annotated[int, Parameter(help="dead URLs, and as many healthy ones")] = 100,
    json: Json = False,
) -> None:
    """What a backlog for dead callbacks costs, how soon a restart delivers, and how fast the backlog drains."""
    from toque.bench.backlog import bench_backlog as measure  # noqa: PLC0415 - see opened

    show_figures("backlog", run(_stoppable(measure(deliveries=deliveries, seconds=seconds, callbacks=callbacks))), as_json=json)


@app.command(name="ami")
def bench_ami(
    *,
    seconds: Annotated[float, Parameter(help="how long calls are begun")] = 10.0,
    rate: Annotated[int, Parameter(help="calls a second, of two seconds each")] = 500,
    callbacks: Annotated[int, Parameter(help="URLs that the calls are spread over")] = 100,
    json: Json = False,
) -> None:
    """What the calls of one busy Asterisk cost, through a real server, and whether each is told as it was."""
    from toque.bench.ami import bench_ami as measure  # noqa: PLC0415 - see opened

    show_figures("ami", run(_stoppable(measure(seconds=seconds, rate=rate, callbacks=callbacks))), as_json=json)


@app.command(name="intake")
def bench_intake(
    *,
    seconds: Annotated[float, Parameter(help="how long each round posts over HTTP, for each way of posting")] = 5.0,
    rounds: Annotated[int, Parameter(help="rounds, of which the median counts")] = 5,
    json: Json = False,
) -> None:
    """HEP packets understood a second, and statuses posted over HTTP that are durable a second: each on one core."""
    from toque.bench.intake import bench_intake as measure  # noqa: PLC0415 - see opened
    from toque.bench.intake_http import bench_http  # noqa: PLC0415 - see opened

    figures = measure(rounds=rounds)
    figures |= run(_stoppable(bench_http(seconds=seconds, rounds=rounds)))
    show_figures("intake", figures, as_json=json)


def show_figures(bench: str, figures: dict[str, Any], *, as_json: bool) -> None:
    from toque.bench.goals import GOALS  # noqa: PLC0415 - see opened

    goals = GOALS[bench]
    rows = [
        (name, "none" if value is None else str(value), goals.get(name, ""))
        for name, value in figures.items()
        if not name.endswith("rounds")
    ]
    show(figures, as_json=as_json, human=as_table(("figure", "", "goal"), rows, ""))
