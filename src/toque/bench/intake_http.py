"""The HTTP intake of a real `toque serve` on one core: statuses durable a second, in batches and one by one.

Fan-out is apart: the calls match lines of clients that have no callback. Everything else is there: HTTP, reading, working out,
matching, ids and payloads, and the fsynced commit that an answer waits for.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

from toque.bench.apart import apart
from toque.bench.engine import store_path
from toque.bench.poster import CLIENTS, pin_to_first_core, post
from toque.bench.process import ServerProcess, serving
from toque.bench.traffic import PIN, client_id, number_of
from toque.callbacks.callback import Client, IntakeCredential
from toque.callbacks.payload import PayloadWriter
from toque.calls.lines import parse_line
from toque.store.sqlite import SqliteStore
from toque.web.ingest import TOKEN_PREFIX, hash_token

_CONNECTIONS = {"whole": 4, "live": 4, "single": 64}
BATCH = 1000


async def bench_http(*, seconds: float, rounds: int) -> dict[str, Any]:
    """Medians of some rounds; each kind of posting in turn."""
    with TemporaryDirectory(prefix="toque-bench-") as name:
        folder = Path(name)
        token = await _prepare(folder)
        async with serving(folder) as server:
            is_pinned = pin_to_first_core(server.process.pid)
            found = [{kind: await _round(server, token, kind, seconds) for kind in _CONNECTIONS} for _ in range(rounds)]
            memory_mib = server.memory_mib()
    return {
        "http_batch_statuses_per_s": _median(found, "whole", "statuses_per_s"),
        "http_batch_cpu_us_per_status": _median(found, "whole", "cpu_us"),
        "http_live_statuses_per_s": _median(found, "live", "statuses_per_s"),
        "http_live_cpu_us_per_status": _median(found, "live", "cpu_us"),
        "http_single_requests_per_s": _median(found, "single", "statuses_per_s"),
        "http_single_cpu_us_per_request": _median(found, "single", "cpu_us"),
        "http_single_program": found[0]["single"]["program"],
        "http_on_one_core": is_pinned,
        "http_memory_mib": round(memory_mib),
        "http_rounds": found,
    }


def _median(found: list[dict[str, Any]], kind: str, figure: str) -> float:
    return round(float(median(one[kind][figure] for one in found)), 2)


async def _prepare(folder: Path) -> str:
    """A store with clients and lines, and a token that may post."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    now = datetime.now(UTC)
    store = SqliteStore(store_path(folder), PayloadWriter(ZoneInfo("America/Sao_Paulo")))
    try:
        names = [client_id(number) for number in range(CLIENTS)]
        await asyncio.gather(*(store.add_client(Client(name, name, "no login", 1, now)) for name in names))
        await asyncio.gather(
            *(store.add_lines([parse_line(name, PIN, number_of(number))]) for number, name in enumerate(names)),
            store.add_intake(IntakeCredential("bench", hash_token(token), now)),
        )
    finally:
        await store.close()
    return token


async def _round(server: ServerProcess, token: str, kind: str, seconds: float) -> dict[str, Any]:
    """One kind of posting for a while. What counts is what the store has."""
    before, cpu_s = await _events(server), server.cpu_s()
    posted = await apart(post, port=server.http_port, token=token, kind=kind, seconds=seconds, connections=_CONNECTIONS[kind])
    statuses = await _events(server) - before
    cpu_s = server.cpu_s() - cpu_s
    said = posted["requests"] * (1 if kind == "single" else BATCH)
    if statuses < said:
        msg = f"{said} statuses were answered for, and {statuses} are stored"
        raise RuntimeError(msg)
    return {
        "statuses": statuses,
        "statuses_per_s": round(statuses / posted["took_s"]),
        "cpu_us": round(1e6 * cpu_s / statuses, 2),
        "program": posted["program"],
    }


async def _events(server: ServerProcess) -> int:
    server.check()

    def ask() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}/health", timeout=30) as answer:
            return int(json.load(answer)["events"])

    return await asyncio.to_thread(ask)
