"""Watching: what is wanted, what is dropped, and that watching costs the server nothing when nobody reads."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from toque.calls.identity import callerid
from toque.calls.lines import Line, LineBook, parse_line
from toque.calls.model import CallIdentity, Signal, SignalKind
from toque.calls.tracker import CallTracker
from toque.tracing import MAX_QUEUED, MAX_WATCHERS, TooManyWatchersError, Tracing, Wanted, Watcher

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LINES: list[Line] = [parse_line("acme", "vendas", "554130600300"), parse_line("zeta", "um", "554130600399")]
CALLER, OTHER, DIALLED = "554130600300", "554130600399", "5511977770002"


@pytest.fixture
async def tracing() -> Tracing:
    return Tracing("55", lambda: LINES)


def tracker_of(tracing: Tracing, source: str = "pbx") -> CallTracker:
    tracker = CallTracker(LineBook.of(LINES))
    tracker.observer = tracing.onlooker(source)
    return tracker


def begin(tracker: CallTracker, key: str, caller: str = CALLER, source: str = "pbx") -> None:
    tracker.feed(Signal(CallIdentity(source, key), SignalKind.BEGAN, NOW, callers=(caller,), dialled=DIALLED), NOW)


def parsed(lines: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def watched(tracing: Tracing, wanted: Wanted) -> list[dict[str, Any]]:
    """What a watcher sees of three calls."""
    watcher = Watcher(wanted, "55")
    tracing.record.followers = (watcher.put,)
    begin(tracker_of(tracing), "a")
    begin(tracker_of(tracing), "b", OTHER)
    begin(tracker_of(tracing, "sbc"), "c", source="sbc")
    return parsed(watcher.take())


@pytest.mark.parametrize(
    ("wanted", "calls"),
    [
        (Wanted(), {"a", "b", "c"}),
        (Wanted(number="41 3060-0300"), {"a", "c"}),
        (Wanted(source="sbc"), {"c"}),
        (Wanted(client="zeta"), {"b"}),
        (Wanted(callerid=callerid(CallIdentity("pbx", "a"), 0)), {"a"}),
        (Wanted(number=CALLER, source="pbx", client="acme"), {"a"}),
        (Wanted(number=OTHER, client="acme"), set()),
    ],
)
def test_filters(tracing: Tracing, wanted: Wanted, calls: set[str]) -> None:
    lines = watched(tracing, wanted)
    assert {line["call"] for line in lines} == calls
    for call in calls:
        assert [line["what"] for line in lines if line["call"] == call] == ["signal", "status"]


def test_numbers_are_masked_unless_wanted(tracing: Tracing) -> None:
    assert CALLER not in json.dumps(watched(tracing, Wanted()))
    assert CALLER in json.dumps(watched(tracing, Wanted(shows_numbers=True)))


def test_what_does_not_fit_is_dropped_and_counted(tracing: Tracing) -> None:
    watcher, tracker = Watcher(Wanted(), "55"), tracker_of(tracing)
    tracing.record.followers = (watcher.put,)
    for number in range(MAX_QUEUED):
        begin(tracker, str(number))
    seen = []
    while watcher.has_more:
        seen += parsed(watcher.take())
    assert seen[0] == {"what": "dropped", "count": MAX_QUEUED}
    assert len(seen) == MAX_QUEUED + 1


async def test_a_stream_lives_until_its_watcher_goes_or_the_server_does(tracing: Tracing) -> None:
    async with aclosing(tracing.watch(Wanted())) as lines:
        assert json.loads(await anext(lines)) == {"what": "watching"}
        assert len(tracing.record.followers) == 1
        begin(tracker_of(tracing), "a")
        assert b'"began"' in await anext(lines)
    assert tracing.record.followers == ()
    lines = tracing.watch(Wanted())
    await anext(lines)
    closing = asyncio.create_task(tracing.close())
    async with asyncio.timeout(5):
        assert [line async for line in lines] == []
        assert await closing
    assert tracing.record.followers == ()


async def test_who_does_not_read_is_not_waited_for(tracing: Tracing) -> None:
    stuck = tracing.watch(Wanted())
    await anext(stuck)
    async with asyncio.timeout(5):
        assert not await tracing.close()
    await stuck.aclose()
    assert await tracing.close()


async def test_so_many_may_watch_and_no_more(tracing: Tracing) -> None:
    streams = [tracing.watch(Wanted()) for _ in range(MAX_WATCHERS)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(TooManyWatchersError):
        tracing.watch(Wanted())
    for stream in streams:
        await stream.aclose()
    await anext(again := tracing.watch(Wanted()))
    await again.aclose()


async def test_calls_are_found_by_what_people_know_of_them(tracing: Tracing) -> None:
    tracker = tracker_of(tracing)
    for number in range(700):
        begin(tracker, f"name-{number}", OTHER)
    begin(tracker, "the-one")
    identity = CallIdentity("pbx", "the-one")
    for wanted in (CALLER, "(41) 3060-0300", "the-one", callerid(identity, 0), callerid(identity, 1)):
        assert [call["call"] for call in await tracing.find(wanted)] == ["the-one"]
    assert [call["call"] for call in await tracing.find(OTHER)] == [f"name-{number}" for number in range(699, 679, -1)]
    assert await tracing.find("e-on") == []
    assert await tracing.find(CALLER, source="sbc") == []
    assert CALLER in json.dumps(await tracing.find(CALLER, shows_numbers=True))
