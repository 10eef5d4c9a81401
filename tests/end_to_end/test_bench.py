"""The measurements measure: short runs of each give all their figures, and nothing is missing. No figure is judged here."""

import json
import subprocess
import sys
from typing import Any

import pytest


def bench(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "toque", "bench", *arguments, "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_deliver_has_the_figures_that_people_compare():
    figures = bench("deliver", "--seconds", "1", "--rounds", "1", "--callbacks", "10")
    named = ("deliveries_per_s", "cpu_us_per_delivery", "latency_p50_ms", "latency_p99_ms", "wrk_requests_per_s", "ratio")
    assert set(named) <= set(figures)
    assert figures["deliveries_per_s"] > 0
    assert figures["cpu_us_per_delivery"] > 0
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p99_ms"]
    assert (figures["ratio"] is None) == (figures["wrk_requests_per_s"] is None)


def test_latency_misses_no_event():
    figures = bench("latency", "--seconds", "2", "--rate", "200", "--callbacks", "10")
    assert figures["events"] == 400
    assert figures["missing"] == 0
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p99_ms"]


def test_intake_understands_every_message():
    figures = bench("intake", "--rounds", "1")
    assert figures["messages_per_s"] > 0


@pytest.mark.parametrize("command", ["deliver", "latency", "intake"])
def test_figures_are_shown_to_people(command: str):
    short = {"deliver": ("--seconds", "0.5", "--rounds", "1"), "latency": ("--seconds", "0.5"), "intake": ("--rounds", "1")}
    done = subprocess.run(
        [sys.executable, "-m", "toque", "bench", command, *short[command]],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "per_s" in done.stdout
