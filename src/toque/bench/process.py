"""A real `toque serve` in a process of its own, with clients whose callbacks lead where the measurement wants them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

from toque.bench.sink import free_port
from toque.bench.traffic import populate
from toque.callbacks.payload import PayloadWriter
from toque.store.sqlite import SqliteStore

_STARTS_WITHIN_S = 20.0


@dataclass(slots=True)
class ServerProcess:
    """Where the server listens, and its process."""

    http_port: int
    hep_port: int
    pid: int

    def cpu_s(self) -> float:
        """CPU time that the process has used, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def prepare(folder: Path, urls: list[str]) -> None:
    """A store in this folder with a client, a line and a callback for each URL."""
    store = SqliteStore(folder / "bench.db", PayloadWriter(ZoneInfo("America/Sao_Paulo")))
    try:
        await populate(store, urls)
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def serving(folder: Path, *more: str) -> AsyncIterator[ServerProcess]:
    """`toque serve` on the store in this folder."""
    http_port, hep_port = free_port(), free_port()
    arguments = (
        *("serve", "--store", f"sqlite://{folder}/bench.db", "--log-level", "warning"),
        *("--http", f"127.0.0.1:{http_port}", "--hep", f"127.0.0.1:{hep_port}", "--allow-network", "127.0.0.0/8"),
        *more,
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "toque", *arguments)
    try:
        await _until_well(http_port)
        yield ServerProcess(http_port, hep_port, process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def _until_well(port: int) -> None:
    async with asyncio.timeout(_STARTS_WITHIN_S):
        while True:
            with contextlib.suppress(OSError, ValueError):
                if await asyncio.to_thread(_is_well, port):
                    return
            await asyncio.sleep(0.05)


def _is_well(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
        return bool(json.load(answer)["status"] == "ok")
