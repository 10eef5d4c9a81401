"""Recordings of a real proxy, each beside the truth of its calls (what the telephones did, not what the proxy said).

Another folder of them, with the same layout, is named by TOQUE_RECORDINGS.
"""

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.call_watching import Ledger, Watcher

from toque.callbacks.payload import STATUS_WORDS, ring_time, talk_time
from toque.calls.hep_packet import parse_hep
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import Direction, Party, StatusChange
from toque.sources.recording import read_recording

ROOT = Path(__file__).parents[3]
RECORDINGS = Path(os.environ.get("TOQUE_RECORDINGS", ROOT / "tests" / "recordings")) / "kamailio"
DEMO = ROOT / "src" / "toque" / "recordings" / "demo.pcap"
ONE_SECOND = timedelta(seconds=1)


def watched(pcap: Path, lines: LineBook, *, restart_every: int = 0) -> Ledger:
    watcher = Watcher(lines)
    for number, recorded in enumerate(read_recording(pcap), start=1):
        watcher.feed(parse_hep(recorded.data), recorded.at)
        watcher.ledger.append(watcher.watch)
        if restart_every and number % restart_every == 0:
            watcher.restart()
    watcher.pass_time(timedelta(minutes=1))
    return watcher.ledger


def truths(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["calls"]


def expected_words(truth: dict[str, Any]) -> list[str]:
    ringing = ["ringing"] if truth["ring_s"] else []
    answered = ["answered"] if truth["final"] == "hung_up" else []
    return ["initiated", *ringing, *answered, truth["final"]]


def check(changes: list[StatusChange], truth: dict[str, Any]) -> None:
    last = changes[-1]
    assert [str(change.status) for change in changes] == expected_words(truth)
    if "statuses" in truth:
        assert [STATUS_WORDS[change.status] for change in changes] == truth["statuses"]
    assert abs(ring_time(last.facts, last.status) - timedelta(seconds=truth["ring_s"])) <= ONE_SECOND
    assert abs(talk_time(last.facts, last.status) - timedelta(seconds=truth["talk_s"])) <= ONE_SECOND
    assert not last.facts.is_inferred
    if "hung_up_by" in truth:
        assert last.facts.hung_up_by is Party(truth["hung_up_by"])
    if truth["final"] != "hung_up":
        assert last.facts.cause.sip == truth["sip_final"]


def made_calls(ledger: Ledger) -> Iterator[list[StatusChange]]:
    return (changes for (_, _, side), changes in ledger.told.items() if side.direction is Direction.MADE and changes)


@pytest.mark.parametrize("has_restarts", [False, True])
@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in RECORDINGS.glob("*/truth.json")), ids=lambda folder: folder.name
)
def test_the_callers_are_told_the_truth(folder: Path, has_restarts: bool):
    (truth,) = truths(folder / "truth.json")
    restart_every = has_restarts * (1 if truth.get("count", 1) == 1 else 20)
    lines = LineBook.of([parse_line("acme", "vendas", truth["caller"])])
    told = list(made_calls(watched(folder / "hep.pcap", lines, restart_every=restart_every)))
    assert len(told) == truth.get("count", 1)
    for changes in told:
        check(changes, truth)


def test_there_are_recordings():
    assert RECORDINGS.is_dir()


def test_the_owners_of_the_demos_numbers_are_told_the_truth():
    lines = LineBook.of([parse_line("acme", "all", "5541306003*"), parse_line("acme", "all", "auth1")])
    ledger = watched(DEMO, lines)
    told = {identity.key.partition(" ")[0]: (side, changes) for (identity, _, side), changes in ledger.told.items()}
    calls = truths(DEMO.with_suffix(".truth.json"))
    assert told.keys() == {truth["call_id"] for truth in calls}
    for truth in calls:
        side, changes = told[truth["call_id"]]
        assert side.direction is Direction(truth["direction"])
        check(changes, truth)
        assert changes[-1].facts.answered_by in (None, truth.get("reached", truth["callee"]))
