"""A switch's reader goes on when calls that match no line are forgotten under way, at whatever moment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.ami_recordings import AmiWatcher, Recording, messages, recordings
from tests.support.call_scenarios import SCENARIOS, Scenario
from tests.support.call_watching import Watcher
from tests.support.esl_watching import EslWatcher, events_of, recorded_bytes
from tests.support.sip_messages import ProxiedCall
from tests.unit.calls.test_esl_recordings import FOLDERS

from toque.calls import tracked
from toque.calls.lines import LineBook

HOURS = timedelta(hours=5)


@pytest.fixture(autouse=True)
def _crowded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked, "MAX_UNMATCHED", 0)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_sip(scenario: Scenario) -> None:
    watcher = Watcher(LineBook())
    for packet in scenario.play(ProxiedCall()).packets:
        watcher.feed(packet)
        watcher.watch.tick(packet.at)
        assert (watcher.watch.tracker.calls, len(watcher.watch.dialogs), len(watcher.watch.legs)) == ({}, 0, 0)


@pytest.mark.parametrize("recording", recordings(), ids=lambda recording: recording.name)
def test_asterisk(recording: Recording) -> None:
    watcher = AmiWatcher(LineBook())
    for at, message in messages(recording):
        watcher.feed(message, at)
        watcher.watch.tick(at)
        assert watcher.watch.tracker.calls == {}
    watcher.pass_time(HOURS)
    book = watcher.watch.events.book
    assert (watcher.ledger.told, watcher.watch.tracker.calls, book.calls, book.board.channels) == ({}, {}, {}, {})
    assert (book.ended, book.held, book.carried) == (set(), {}, {})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_freeswitch(folder: Path) -> None:
    watcher = EslWatcher(LineBook())
    for event in events_of(recorded_bytes(folder)):
        watcher.feed(event)
        watcher.watch.tick(watcher.now)
        assert watcher.watch.tracker.calls == {}
    watcher.pass_time(HOURS)
    calls = watcher.watch.reader.calls
    assert (watcher.ledger.told, watcher.watch.tracker.calls, calls.calls, calls._homes) == ({}, {}, {}, {})
