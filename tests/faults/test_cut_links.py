"""Connections to switches that are cut between any two events and within them, while calls go on, and bytes that come one by one.

Each recording is played over real sockets, once as it was and once for each cut. The switch does not wait: what happens while it is
asked what is alive happens between its answers. What is told must be what is told without a cut, or be marked as concluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.support.ami_recordings import RECORDINGS as ASTERISK
from tests.support.ami_recordings import load
from tests.support.played_links import PlayedLink, Told, play
from tests.support.switch_server import AmiSwitch, Cut, EslSwitch, PlayedSwitch

FREESWITCH = ASTERISK.with_name("freeswitch")
ENDLESS = "shutdown"  # its calls have no end that could be seen
ESL = [path.parent for path in sorted(FREESWITCH.glob("*/truth.json")) if ENDLESS not in path.parent.name]
AMI = [path.parent for path in sorted(ASTERISK.glob("*/ami.txt"))]
SHORT = ("c2c_a_rejects", "in_answered_caller_hangup", "in_answered", "in_busy")  # byte by byte takes a second each
BYTE_BY_BYTE = [folder for folder in (*ESL, *AMI) if folder.name in SHORT]
APART = 8  # events between two cuts: a call goes on for a while before the next one


def switch_of(folder: Path, **more: Any) -> PlayedSwitch:
    if folder.parent.name == "freeswitch":
        return EslSwitch(folder, **more)
    return AmiSwitch(load(folder), **more)


def played(folders: Sequence[Path], *, lost: int | None = None) -> dict[str, PlayedLink]:
    """Each recording with cuts, in several runs: one between any two events, or, with `lost`, some within an event."""
    switches = {}
    for folder in folders:
        for first in range(0, APART, 1 if lost is None else 3):
            cuts = [Cut(after, lost or 0, is_half=lost is not None) for after in range(first, switch_of(folder).events, APART)]
            switches[f"{folder.name} {first}"] = switch_of(folder, cuts=cuts, seed=f"{folder.name} {first}")
    links, logs = play(switches)
    problems = {entry["event"] for entry in logs} & {"source.failed", "source.unreadable", "source.resync_failed"}
    assert problems == set()
    return links


@cache
def whole(kind: str) -> dict[str, Told]:
    folders = ESL if kind == "esl" else AMI
    links, _ = play({folder.name: switch_of(folder) for folder in folders})
    return {name: link.told() for name, link in links.items()}


def words(told: Told) -> dict[Any, list[str]]:
    return {side: [str(change.status) for change in changes] for side, changes in told.items()}


KINDS = pytest.mark.parametrize(("kind", "folders"), [("esl", ESL), ("ami", AMI)], ids=["esl", "ami"])


@KINDS
def test_a_cut_between_two_events_changes_nothing(kind: str, folders: Sequence[Path]) -> None:
    for name, link in played(folders).items():
        told, expected = link.told(), whole(kind)[name.split()[0]]
        assert words(told) == words(expected), name
        assert not any(changes[-1].facts.is_inferred for changes in told.values()), name


@KINDS
@pytest.mark.parametrize("lost", [0, 3])
def test_a_cut_within_an_event_is_told_truly_or_marked(kind: str, folders: Sequence[Path], lost: int) -> None:
    for name, link in played(folders, lost=lost).items():
        expected = words(whole(kind)[name.split()[0]])
        ends = {(key, told[-1]) for (key, _, _), told in expected.items()}
        calls = {key for key, _ in ends}
        for (key, *_), changes in link.told().items():
            told, is_inferred = [str(change.status) for change in changes], changes[-1].facts.is_inferred
            assert sum(change.status.is_final for change in changes) == 1, (name, key, told)
            # Where Asterisk was not heard to merge two calls, they are two.
            is_right = (key, told[-1]) in ends or (kind == "ami" and key not in calls)
            assert is_inferred or is_right, (name, key, told, expected)


@pytest.mark.parametrize("folder", BYTE_BY_BYTE, ids=lambda folder: f"{folder.parent.name} {folder.name}")
def test_bytes_may_come_one_by_one(folder: Path) -> None:
    links, _ = play({"in pieces": switch_of(folder, pieces=(1,)), "whole": switch_of(folder)})
    assert words(links["in pieces"].told()) == words(links["whole"].told()) != {}
