"""The installed `toque` command: a server in a process of its own that can be stopped and killed, and commands on its store.

    with ToqueProcess(tmp_path, token_lifetime="2s") as toque:
        account = toque.add_client("Escritório", vendas=["5541306003*"])
        account.api().add_callback("http://127.0.0.1:9999/status")
        toque.kill()
        toque.start()

Settings go by the environment. The server keeps its ports over restarts, so that a switch that reconnects finds it again.
"""

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from toque.client import Client

HOST = "127.0.0.1"
COMMAND = Path(sys.executable).with_name("toque")
PATIENCE_S = 30.0  # for anything that is sure to come; a busy machine needs it
POLL_S = 0.02
LOG_SHOWN = 8_000  # characters

# Below the range from which the system itself takes ports, so that nobody is given one between our look and its use.
PORTS = range(30_000, 32_700)
_next_ports = itertools.cycle(random.sample(PORTS, len(PORTS)))
_ports_lock = threading.Lock()


class ProcessError(Exception):
    """A process did not do its part; the text carries its log."""


@dataclass(frozen=True)
class Account:
    """A client of the server's, and its credentials."""

    server: str
    client_id: str
    client_secret: str = field(repr=False)

    def api(self) -> Client:
        """The SDK with these credentials."""
        return Client(self.server, self.client_id, self.client_secret)


class ToqueProcess:
    """One store, and at most one server on it at a time."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.store = folder / "toque.db"
        self.log_path = folder / "server.log"
        self.settings = {"allow_networks": "127.0.0.0/8", **settings}
        self.program: Sequence[str | Path] = (COMMAND, "serve")
        self.http_port, self.hep_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.log_path.touch()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        print(self.tail())  # pytest shows it beside a failure, and only there
        if kind is None:
            assert "Traceback" not in self.log, self.tail()

    # The server

    @property
    def http(self) -> str:
        """The API's address."""
        return f"http://{HOST}:{self.http_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What the server and the commands are started with: these settings, and nothing else that toque would read."""
        own = {
            "store": f"sqlite://{self.store}",
            "http": f"{HOST}:{self.http_port}",
            "hep": f"{HOST}:{self.hep_port}",
            **self.settings,
        }
        return clean_environment() | {f"TOQUE_{name.upper()}": value for name, value in own.items()}

    def start(self) -> None:
        """Start the server and do not wait for it; its log goes on at the end of the last one's."""
        assert not self.is_running
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.program,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self) -> None:
        """Wait until the server answers /health with ok."""
        self.wait_until(self._is_ready, "/health is not ok")

    def restart(self) -> None:
        """Stop in order, start again, be ready."""
        assert self.terminate() == 0, self.tail()
        self.start()
        self.wait_ready()

    def kill(self) -> None:
        """SIGKILL: what is in the process's memory is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal and do not wait."""
        assert self._process is not None
        self._process.send_signal(number)

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code, once the server has ended."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"the server still runs after {timeout_s:g} s\n{self.tail()}") from None

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait_until(self, is_so: Callable[[], bool], otherwise: str, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait for a milestone of the running server; `ProcessError` when it ends or the time is over first."""
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if not self.is_running or time.monotonic() > deadline:
                raise ProcessError(f"{otherwise}\n{self.tail()}")
            time.sleep(POLL_S)

    def _is_ready(self) -> bool:
        try:
            return self.health()["status"] == "ok"
        except (OSError, http.client.HTTPException):
            return False

    def _end(self) -> None:
        if self.is_running:
            self.kill()

    # Looking in

    def health(self) -> dict[str, Any]:
        """What /health tells."""
        told: dict[str, Any] = json.loads(self.get("/health")[1])
        return told

    def get(self, target: str) -> tuple[int, bytes]:
        """One GET: status and body."""
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", target)
            with connection.getresponse() as response:
                return response.status, response.read()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What the store holds, read beside the server without disturbing it."""
        with contextlib.closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=PATIENCE_S)) as database:
            return database.execute(query, values).fetchall()

    def waiting(self) -> int:
        """Deliveries that the server holds, and callbacks for which more may wait in the store: 0 when all is told."""
        told = self.health()
        return int(told["held_deliveries"]) + int(told["parked_callbacks"])

    def lost_datagrams(self) -> int:
        """HEP datagrams that the kernel dropped because the server, or the machine, did not keep up."""
        lines = Path("/proc/net/udp").read_text().splitlines()[1:]
        return sum(int(line.split()[-1]) for line in lines if line.split()[1].endswith(f":{self.hep_port:04X}"))

    @property
    def log(self) -> str:
        """All that every server on this store has logged."""
        return self.log_path.read_text(errors="replace")

    def tail(self) -> str:
        """The end of the log, for an error's text."""
        return f"--- {self.log_path}\n{self.log[-LOG_SHOWN:]}"

    # Commands

    def cli(self, *arguments: str) -> Any:
        """Run a command that must succeed; its result."""
        done = self.run(*arguments, "--json")
        if done.returncode != 0:
            raise ProcessError(f"toque {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command on this store, whatever comes of it."""
        return run_toque(*arguments, cwd=self.folder, environment=self.environment)

    def add_client(self, name: str, **pins: Sequence[str]) -> Account:
        """A client whose pins have these numbers."""
        told = self.cli("client", "add", name)
        account = Account(self.http, told["client_id"], told["client_secret"])
        for pin, numbers in pins.items():
            self.cli("line", "add", account.client_id, pin, *numbers)
        return account


def run_toque(
    *arguments: str, cwd: Path, environment: Mapping[str, str], timeout_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [COMMAND, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout_s,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    """Ours without toque's variables and proxies, and with nothing that colours or bends what programs print."""
    unwanted = ("TOQUE_", "CALLBACK_", "CLIENT_", "API_URL", "FORCE_COLOR", "PYTHONWARNINGS")
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith(unwanted) and not name.lower().endswith("_proxy")
    }
    return ours | {"COLUMNS": "200", "NO_COLOR": "1"}


def free_port() -> int:
    """A port that nobody uses now, for TCP or UDP, and that this process has not given out lately."""
    with _ports_lock:
        return next(port for port in _next_ports if _can_bind(port))


def _can_bind(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                return False
    return True
