"""A real `toque serve` in a process of its own, with clients whose callbacks lead where the measurement wants them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from toque.bench.children import child
from toque.bench.engine import store_path
from toque.bench.sink import free_port

_STARTS_WITHIN_S = 20.0


@dataclass(slots=True)
class ServerProcess:
    """Where the server listens, its process, and when that was begun (monotonic)."""

    http_port: int
    hep_port: int
    process: asyncio.subprocess.Process
    began_s: float

    def check(self) -> None:
        """Raises `RuntimeError` when it has ended; it has said why on stderr."""
        if self.process.returncode is not None:
            msg = f"the server ended with code {self.process.returncode}"
            raise RuntimeError(msg)

    def cpu_s(self) -> float:
        """CPU time that the process has used, user and system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        """Resident memory."""
        return memory_mib(self.process.pid)


def memory_mib(pid: int | str = "self") -> float:
    """A process' resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_peak_mib() -> float:
    """The most that this process has ever had resident."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()  # getrusage would tell that of who began it
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


@contextlib.asynccontextmanager
async def starting(folder: Path, *, log_level: str = "warning", config: Path | None = None) -> AsyncIterator[ServerProcess]:
    """`toque serve` on the store in this folder, from the moment of its exec on; with HEP, or with this file's sources."""
    http_port, hep_port = free_port(), free_port()
    sources = ("--hep", f"127.0.0.1:{hep_port}") if config is None else ("--config", str(config))
    arguments = (
        *("serve", "--store", f"sqlite://{store_path(folder)}", "--log-level", log_level),
        *("--http", f"127.0.0.1:{http_port}", *sources, "--allow-network", "127.0.0.0/8"),
    )
    began_s = time.monotonic()
    async with child(sys.executable, "-m", "toque", *arguments, ending=signal.SIGTERM) as process:
        yield ServerProcess(http_port, hep_port, process, began_s)


@contextlib.asynccontextmanager
async def serving(folder: Path, *, config: Path | None = None) -> AsyncIterator[ServerProcess]:
    """`toque serve` on the store in this folder, once it is well."""
    async with starting(folder, config=config) as server:
        await _until_well(server)
        yield server


async def _until_well(server: ServerProcess) -> None:
    async with asyncio.timeout(_STARTS_WITHIN_S):
        while True:
            server.check()
            with contextlib.suppress(OSError, ValueError):
                if await asyncio.to_thread(_is_well, server.http_port):
                    return
            await asyncio.sleep(0.05)


def _is_well(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
        return bool(json.load(answer)["status"] == "ok")
