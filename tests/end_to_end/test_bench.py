"""The measurements measure: short runs of each give all their figures, and nothing is missing. No figure is judged here."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toque.bench import sink, wrk
from toque.bench.deliver import bench_deliver
from toque.bench.goals import GOALS

LIMIT_S = 120
SHORT = {
    "deliver": ("--seconds", "0.5", "--rounds", "1", "--callbacks", "10", "--tls"),
    "latency": ("--seconds", "1", "--rate", "200", "--callbacks", "10"),
    "intake": ("--seconds", "0.5", "--rounds", "1"),
    "isolation": ("--seconds", "2", "--rounds", "1", "--callbacks", "10"),
    "backlog": ("--seconds", "0.2", "--deliveries", "250", "--callbacks", "5"),
}


def bench(name: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toque", "bench", name, *SHORT[name], *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done


def figures_of(name: str) -> dict[str, Any]:
    figures = json.loads(bench(name, "--json").stdout)
    assert set(GOALS[name]) <= set(figures)
    return figures


def check_delivering(figures: dict[str, Any]) -> None:
    named = ("deliveries_per_s", "cpu_us_per_delivery", "latency_p50_ms", "latency_p99_ms", "wrk_requests_per_s", "ratio")
    assert set(named) <= set(figures)
    assert figures["deliveries_per_s"] > 0
    assert figures["cpu_us_per_delivery"] > 0
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p99_ms"]
    assert (figures["ratio"] is None) == (figures["wrk_requests_per_s"] is None)


def test_deliver_has_the_figures_that_people_compare():
    figures = figures_of("deliver")
    check_delivering(figures)
    assert figures["tls_deliveries_per_s"] > 0
    assert figures["tls_cpu_us_per_delivery"] > 0
    (only,) = figures["rounds"]
    assert only["tls_ratio"] == pytest.approx(only["tls_deliveries_per_s"] / only["deliveries_per_s"])


async def test_deliver_needs_neither_nginx_nor_wrk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sink, "find_nginx", lambda: None)
    monkeypatch.setattr(wrk.shutil, "which", lambda _: None)
    figures = await bench_deliver(seconds=0.3, rounds=1, callbacks=5, tls=True)
    check_delivering(figures)
    assert figures["sink"] == "built-in"
    assert figures["tls_deliveries_per_s"] > 0
    assert figures["ratio"] is None


def test_latency_misses_no_event():
    figures = figures_of("latency")
    assert figures["events"] == 200
    assert figures["missing"] == 0
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p99_ms"]


def test_intake_understands_every_message():
    assert figures_of("intake")["messages_per_s"] > 0


def test_isolation_compares_the_same_callbacks_without_and_with_sick_ones():
    figures = figures_of("isolation")
    assert (figures["callbacks"], figures["never_answering"], figures["late"]) == (10, 1, 1)
    assert figures["missing"] == 0
    for arm in ("without", "with"):
        assert 0 < figures[f"healthy_p50_ms_{arm}"] <= figures[f"healthy_p99_ms_{arm}"]
        assert figures[f"memory_mib_{arm}"] > 0
    assert figures["healthy_per_s_without"] > 0
    (only,) = figures["rounds"]
    assert only["p99_ratio"] == figures["worst_p99_ratio"] == figures["p99_ratio"]


@pytest.mark.slow  # a probe finds the dead receivers alive some seconds after they are
def test_backlog_arrives_whole_and_in_order():
    figures = figures_of("backlog")
    assert figures["deliveries"] == 250
    assert figures["missing"] == 0
    assert figures["disordered"] == 0
    assert figures["drained_per_s"] > 0
    assert figures["healthy_per_s_without"] > 0
    assert figures["healthy_per_s_with"] > 0
    assert figures["store_mib"] > 0
    assert figures["restart_to_waiting_s"] > 0
    assert figures["restart_to_fed_s"] > 0


@pytest.mark.parametrize("name", ["deliver", "latency", "intake"])
def test_figures_are_shown_to_people_beside_their_goals(name: str):
    shown = bench(name).stdout
    assert "per_s" in shown
    for figure, goal in GOALS[name].items():
        assert any(line.startswith(figure) and line.rstrip().endswith(goal) for line in shown.splitlines())


UNDER_WAY = {"deliver": "wrk -t1", "latency": "toque serve", "isolation": "toque.bench.apart", "backlog": "toque.bench.apart"}


def running(folder: Path) -> dict[int, str]:
    """The command lines of all processes whose temporary files are in this folder, by their process id."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={folder}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ")
    return found


@contextlib.contextmanager
def under_way(name: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A measurement whose processes all run, as if begun in a terminal, with its temporary folders in this one."""
    seconds = "1" if name == "deliver" else "100"
    command = [sys.executable, "-m", "toque", "bench", name, "--seconds", seconds, "--json"]
    begun = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(folder)}, start_new_session=True, text=True, stderr=subprocess.PIPE
    )
    until = time.monotonic() + LIMIT_S
    try:
        while not any(UNDER_WAY[name] in line for line in running(folder).values()) and time.monotonic() < until:
            assert begun.poll() is None
            time.sleep(0.01)
        yield begun
    finally:
        for number in running(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        begun.communicate()


@pytest.mark.parametrize("name", ["deliver", "latency", "isolation", "backlog"])
def test_who_presses_ctrl_c_finds_neither_processes_nor_folders(name: str, tmp_path: Path):
    if name == "deliver" and shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    with under_way(name, tmp_path) as begun:
        os.killpg(begun.pid, signal.SIGINT)
        _, said = begun.communicate(timeout=LIMIT_S)
        assert begun.returncode == 130, said
        assert running(tmp_path) == {}
        assert list(tmp_path.iterdir()) == []
        assert "Traceback" not in said


def test_a_measurement_that_is_terminated_leaves_nothing_either(tmp_path: Path):
    with under_way("backlog", tmp_path) as begun:
        begun.terminate()
        _, said = begun.communicate(timeout=LIMIT_S)
        assert begun.returncode == 1, said
        assert running(tmp_path) == {}
        assert list(tmp_path.iterdir()) == []
