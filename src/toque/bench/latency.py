"""`toque bench latency`: from the HEP packet's sending to the post's arrival, through a real server, at a steady rate."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from toque.bench.engine import prepare
from toque.bench.posts import Posts
from toque.bench.process import serving
from toque.bench.sip import STATUSES, messages, wrapped
from toque.bench.stopwatch import quantile
from toque.bench.traffic import number_of

EVENTS_PER_S = 1000
CALLBACKS = 100
_RUN = "latency"
_KEY = re.compile(rb"%22origem%22%3A%22(\d+)%22.*?%22status%22%3A%22(\w+)%22.*?%22inicio%22", re.DOTALL)
_DRAIN_S = 5.0


class _Arrivals(Posts):
    """Notes when each post came in, and answers 204."""

    def __init__(self, arrived: dict[tuple[bytes, bytes], list[float]]) -> None:
        super().__init__()
        self._arrived = arrived

    def came(self, body: bytes) -> None:
        """See `Posts`."""
        now = time.perf_counter()
        found = _KEY.search(body)
        if found:
            self._arrived.setdefault((found[1], found[2]), []).append(now)
        self.answer()


@contextlib.asynccontextmanager
async def _receiver(arrived: dict[tuple[bytes, bytes], list[float]]) -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(lambda: _Arrivals(arrived), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


async def bench_latency(*, seconds: float = 10.0, rate: int = EVENTS_PER_S, callbacks: int = CALLBACKS) -> dict[str, Any]:
    """Milliseconds from packet to post, and what the server's process cost."""
    arrived: dict[tuple[bytes, bytes], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as name:
        folder = Path(name)
        async with _receiver(arrived) as url:
            await prepare(folder, [f"{url}{i}" for i in range(callbacks)])
            async with serving(folder) as server:
                cpu_s = server.cpu_s()
                sent = await _send(server.hep_port, seconds, rate, callbacks)
                cpu_s = server.cpu_s() - cpu_s
                memory = server.memory_mib()
    delays = sorted(
        (at - sent_at) * 1000 for key, times in sent.items() for sent_at, at in zip(times, arrived.get(key, []), strict=False)
    )
    expected = sum(map(len, sent.values()))
    return {
        "events": expected,
        "missing": expected - len(delays),
        "events_per_s": rate,
        "callbacks": callbacks,
        "latency_p50_ms": quantile(delays, 0.5),
        "latency_p99_ms": quantile(delays, 0.99),
        "latency_max_ms": quantile(delays, 1.0),
        "cpu_us_per_event": round(cpu_s / max(expected, 1) * 1e6, 1),
        "memory_mib": round(memory, 1),
    }


async def _send(port: int, seconds: float, rate: int, callbacks: int) -> dict[tuple[bytes, bytes], list[float]]:
    """Messages of overlapping calls, evenly spaced; for each (caller, status) when they were sent."""
    sent: dict[tuple[bytes, bytes], list[float]] = {}
    loop = asyncio.get_running_loop()
    calls = int(seconds * rate / len(STATUSES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(("127.0.0.1", port))
        began, count = time.perf_counter(), 0
        for first in range(0, calls, callbacks):
            batch = [(number_of(i), list(messages(number_of(i), first + i, _RUN))) for i in range(min(callbacks, calls - first))]
            for step, status in enumerate(STATUSES):
                for caller, four in batch:
                    wait = began + count / rate - time.perf_counter()
                    if wait > 0:
                        await asyncio.sleep(wait)
                    sent.setdefault((caller.encode(), status.encode()), []).append(time.perf_counter())
                    await loop.sock_sendall(sender, wrapped(four[step]))
                    count += 1
    await asyncio.sleep(_DRAIN_S / 5)
    return sent
