"""`toque bench ami`: calls on a made-up Asterisk, through a real server to posts that are looked at one by one."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from toque.bench.ami_traffic import SECRET, USERNAME, MadeUpAsterisk, made_up_asterisk, wrongs
from toque.bench.engine import prepare
from toque.bench.posts import Posts
from toque.bench.process import ServerProcess, serving

CALLS_PER_S = 500
CALLBACKS = 100
_KEY = re.compile(rb"%22origem%22%3A%22(\d+)%22.*?%22status%22%3A%22(\w+)%22", re.DOTALL)
_QUIET_S = 1.0  # without a post: whatever is still missing does not come
_SAMPLE_S = 0.25

_SOURCE = """[[sources]]
kind = "ami"
name = "bench"
address = "127.0.0.1:{port}"
username = "{username}"
secret = "{secret}"
trunks = ["PJSIP/trunk*"]
"""


class _Statuses(Posts):
    """Notes each call's statuses in the order of their posts, and answers 204."""

    def __init__(self, told: dict[str, list[str]]) -> None:
        super().__init__()
        self._told = told

    def came(self, body: bytes) -> None:
        """See `Posts`."""
        found = _KEY.search(body)
        if found is not None:
            self._told.setdefault(found[1].decode(), []).append(found[2].decode())
        self.answer()


@contextlib.asynccontextmanager
async def _receiver(told: dict[str, list[str]]) -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(lambda: _Statuses(told), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


async def bench_ami(*, seconds: float = 10.0, rate: int = CALLS_PER_S, callbacks: int = CALLBACKS) -> dict[str, Any]:
    """What so many calls a second cost the server's process, and whether every one was told as it was."""
    told: dict[str, list[str]] = {}
    calls = max(int(seconds * rate), 1)
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as name:
        folder = Path(name)
        async with _receiver(told) as url, made_up_asterisk(callbacks) as switch:
            await prepare(folder, [f"{url}{i}" for i in range(callbacks)])
            config = folder / "toque.toml"
            config.write_text(_SOURCE.format(port=switch.port, username=USERNAME, secret=SECRET), encoding="utf-8")
            async with serving(folder, config=config) as server:
                figures = await _watched(server, switch, told, calls, rate)
    lost, wrong = wrongs(told, calls)
    return {"calls": calls, "calls_per_s": rate, "callbacks": callbacks, "lost": lost, "wrong": wrong, **figures}


async def _watched(
    server: ServerProcess, switch: MadeUpAsterisk, told: dict[str, list[str]], calls: int, rate: float
) -> dict[str, Any]:
    memory = [server.memory_mib()]
    sampling = asyncio.create_task(_sample(server, memory))
    cpu_s = server.cpu_s()
    took_s = await switch.play(calls, rate)
    cpu_s = server.cpu_s() - cpu_s
    await _until_quiet(told)
    sampling.cancel()
    statuses = sum(map(len, told.values()))
    return {
        "most_at_once": switch.most_at_once,
        "events": switch.events,
        "events_per_s": round(switch.events / took_s),
        "mb_per_s": round(switch.sent_bytes / took_s / 1e6, 2),
        "connections": switch.connections,
        "statuses": statuses,
        "cpu_share": round(cpu_s / took_s, 3),
        "cpu_us_per_call": round(cpu_s / calls * 1e6),
        "cpu_us_per_event": round(cpu_s / switch.events * 1e6, 1),
        "memory_before_mib": round(memory[0], 1),
        "memory_most_mib": round(max(memory), 1),
        "memory_after_mib": round(server.memory_mib(), 1),
    }


async def _sample(server: ServerProcess, memory: list[float]) -> None:
    while True:
        server.check()
        memory.append(server.memory_mib())
        await asyncio.sleep(_SAMPLE_S)


async def _until_quiet(told: dict[str, list[str]]) -> None:
    before = -1
    while (now := sum(map(len, told.values()))) != before:
        before = now
        await asyncio.sleep(_QUIET_S)
