"""The record of what was heard: bounded, gathered by call, and what it says of the switch's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from toque.calls.call import Call, Leg
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import (
    CallFacts,
    CallIdentity,
    Cause,
    Direction,
    Owner,
    Side,
    Signal,
    SignalKind,
    Status,
    StatusChange,
)
from toque.calls.trace import BLOCK_ITEMS, Heard, Onlooker, Record
from toque.calls.tracker import CallTracker

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def signal(call: str, kind: SignalKind = SignalKind.BEGAN, at: datetime = NOW, **more: str) -> Signal:
    return Signal(CallIdentity("pbx", call), kind, at, callers=("1001",), **more)


def looked_on(record: Record, *lines: str) -> CallTracker:
    tracker = CallTracker(LineBook.of([parse_line("acme", "vendas", line) for line in lines]))
    tracker.observer = Onlooker("pbx", record)
    return tracker


def test_the_oldest_blocks_go() -> None:
    record = Record(max_blocks=2)
    tracker = looked_on(record)
    for number in range(5 * BLOCK_ITEMS):
        tracker.feed(signal(f"call-{number}"), NOW)
    kept = [item.identity.key for block in record.blocks() for item in block]
    assert len(kept) <= 3 * BLOCK_ITEMS
    assert kept[-1] == f"call-{5 * BLOCK_ITEMS - 1}"
    assert "call-0" not in kept


def test_long_texts_count() -> None:
    record = Record(max_bytes=4 * BLOCK_ITEMS * 10_000)
    tracker = looked_on(record)
    for number in range(20 * BLOCK_ITEMS):
        tracker.feed(signal("x" * 10_000 + str(number)), NOW)
        assert record.bytes <= 4 * BLOCK_ITEMS * 10_000
    assert sum(map(len, record.blocks())) >= 2 * BLOCK_ITEMS


LONG = "x" * 10_000
WITH_LONG_TEXTS = {
    "another number of the caller": {"callers": ("1001", LONG)},
    "the dialled number": {"dialled": LONG},
    "whom a leg reaches": {"number": LONG},
    "a leg's name": {"leg": LONG},
    "a hint": {"hints": ("account:1", LONG)},
    "a cause": {"cause": Cause(text=LONG)},
    "letters of four bytes": {"dialled": "\N{TELEPHONE RECEIVER}" * 2_500},
}


@pytest.mark.parametrize("texts", WITH_LONG_TEXTS.values(), ids=WITH_LONG_TEXTS.keys())
def test_every_long_text_of_a_signal_counts(texts: dict[str, Any]) -> None:
    record = Record()
    onlooker = Onlooker("pbx", record)
    for _ in range(BLOCK_ITEMS):
        onlooker.heard(Signal(CallIdentity("pbx", "a"), SignalKind.LEG_BEGAN, NOW, **texts), None, NOW)
    assert record.bytes > BLOCK_ITEMS * 10_000


@pytest.mark.parametrize("texts", [{"caller": LONG}, {"dialled": LONG}, {"answered_by": LONG}, {"cause": Cause(text=LONG)}])
def test_every_long_text_that_is_told_counts(texts: dict[str, Any]) -> None:
    """The signal that brought it may be forgotten before."""
    record = Record()
    onlooker = Onlooker("pbx", record)
    facts = CallFacts(**{"caller": "1001", "dialled": "1002"} | texts)
    change = StatusChange(CallIdentity("pbx", "a"), Side(Owner("acme", "1001"), Direction.MADE), Status.INITIATED, NOW, facts)
    for _ in range(BLOCK_ITEMS):
        onlooker.told(change)
    record.close_block()
    assert record.bytes > BLOCK_ITEMS * 10_000


@pytest.mark.parametrize(
    "legs", [{LONG: Leg()}, {"a": Leg(LONG)}, {"a": Leg(cause=Cause(text=LONG))}, {str(n): Leg() for n in range(100)}]
)
def test_the_legs_of_an_ended_call_count(legs: dict[str, Leg]) -> None:
    record = Record()
    onlooker = Onlooker("pbx", record)
    for _ in range(BLOCK_ITEMS):
        onlooker.ended(Call("pbx", "a", "1001", "1002", NOW, legs=legs), Status.FAILED, NOW, NOW)
    record.close_block()
    assert record.bytes > BLOCK_ITEMS * 10_000


def test_signs_of_life_take_no_place() -> None:
    record = Record()
    tracker = looked_on(record)
    tracker.feed(signal("a", SignalKind.SEEN), NOW)
    tracker.feed(signal("a", SignalKind.NOTED), NOW)
    tracker.feed(signal("a"), NOW)
    tracker.feed(signal("a", SignalKind.NOTED), NOW)
    tracker.feed(signal("a", SignalKind.SEEN), NOW)
    assert [item.signal.kind for item in record.block if isinstance(item, Heard)] == [SignalKind.BEGAN]


def test_only_calls_without_a_side_are_unmatched() -> None:
    record = Record()
    tracker = looked_on(record, "1001")
    onlooker = tracker.observer
    assert isinstance(onlooker, Onlooker)
    tracker.feed(signal("a"), NOW)
    tracker.feed(signal("a", SignalKind.VANISHED), NOW)
    assert not onlooker.unmatched
    tracker.lines = LineBook()
    for number in range(30):
        tracker.feed(signal(f"b{number}"), NOW)
        tracker.feed(signal(f"b{number}", SignalKind.VANISHED), NOW)
    assert [end.identity.key for end in onlooker.unmatched] == [f"b{number}" for number in range(10, 30)]


def test_the_least_lag_is_the_clocks() -> None:
    record = Record()
    tracker = looked_on(record)
    onlooker = tracker.observer
    assert isinstance(onlooker, Onlooker)
    assert onlooker.clock_behind(NOW) is None
    tracker.feed(signal("a", at=NOW), NOW)  # the switch told no time: the moment is that of the arrival
    assert onlooker.clock_behind(NOW) is None
    for lag_s in (9.0, 4.0, 5.0):
        tracker.feed(signal(f"b{lag_s}", at=NOW - timedelta(seconds=lag_s)), NOW)
    assert onlooker.clock_behind(NOW) == timedelta(seconds=4)
    assert onlooker.clock_behind(NOW + timedelta(seconds=1)) is None
    assert onlooker.heard_at == NOW
