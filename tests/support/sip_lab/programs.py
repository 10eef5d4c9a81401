"""Programs that the lab starts: each in a process group of its own, bounded in time, and gone when the lab is."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Below the range from which the system itself takes ports, so that nobody is given one between our look and its use.
PORTS = range(20000, 30000)
POLL_S = 0.02
STOP_S = 5.0

# Each process begins somewhere else and goes round, so that a port is not given out twice in a short time.
_next_ports = itertools.cycle(random.sample(PORTS, len(PORTS)))
_ports_lock = threading.Lock()


class ProgramError(Exception):
    """A program of the lab did not do its part; the text carries its own output."""


class Program:
    """A child process whose output goes to a file."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, *, limit_s: float) -> None:
        self.name = name
        self._output = folder / f"{name}.log"
        with self._output.open("wb") as output:
            # `timeout` ends it even where this process is killed before it can.
            self._process = subprocess.Popen(
                ["timeout", "--kill-after=2", str(limit_s), *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def group(self) -> int:
        """The process group in which it and its children live."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None as long as it runs."""
        return self._process.poll()

    def wait_until(self, condition: Callable[[], bool], what: str, *, timeout_s: float = 10.0) -> None:
        """Wait until `condition` holds; `ProgramError` when the program ends or the time is over first."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.exit_status is not None or time.monotonic() > deadline:
                raise ProgramError(f"{self.name}: {what} did not come\n{self.output}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it and all its children. Safe to repeat."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, number)


def free_udp_port(host: str = "127.0.0.1") -> int:
    """A UDP port that nobody uses now and that this process has not given out lately."""
    with _ports_lock:
        return next(port for port in _next_ports if _can_bind(host, port))


def is_udp_port_bound(port: int) -> bool:
    """Whether some process listens on the port, asked without touching it."""
    lines = Path("/proc/net/udp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") for line in lines)


def _can_bind(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
