"""Tracing: what the trackers hear and tell, for people who watch it live or ask for one call.

Nobody who watches can slow the server down: each has a queue of bounded length, what does not fit is dropped and counted, and
what is in it is worked out and sent a little at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from toque.calls.explaining import Mask, tell_call, tell_item
from toque.calls.identity import callerid
from toque.calls.lines import Line, normalise
from toque.calls.model import CallIdentity, StatusChange
from toque.calls.trace import CallTrace, Ended, Heard, Item, Onlooker, Record
from toque.telemetry import mask_number

MAX_WATCHERS = 8
MAX_QUEUED = 5_000  # items that wait for one watcher: half a second of a large carrier
MAX_FOUND = 20  # calls that one question may find
_DRAIN_EVERY_S = 0.1
_AT_ONCE = 200  # items, or calls that are looked at, before others have their turn
_FAREWELL_S = 1.0  # for those who watch when the server stops
_SILENCE_S = 5.0  # after which a watcher is told that the server is there
_GENERATIONS = 3  # that a callerid is tried with: a switch seldom uses a call's name again
_CALLS_KEPT = 5_000  # that a watcher knows to be wanted
_END = 2  # characters of a number that are compared before anything else
_UUID_CHARACTERS = 36
_SHORTEST_PART = 8  # of what a switch calls a call: shorter texts are in too many of them
_CLOCK_WINDOW = timedelta(minutes=10)
_encode = msgspec.json.Encoder().encode


class TooManyWatchersError(Exception):
    """As many watch as may."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a watcher wants to see; None: whatever it is."""

    number: str | None = None
    source: str | None = None
    callerid: str | None = None
    client: str | None = None
    shows_numbers: bool = False

    @property
    def mask(self) -> Mask:
        """What is done to telephone numbers."""
        return str if self.shows_numbers else mask_number


class Watcher:
    """One watcher's queue. A call that was wanted once stays so, whatever its later items name."""

    def __init__(self, wanted: Wanted, country: str) -> None:
        self.wanted = wanted
        self.dropped = 0
        self._country = country
        self._number = None if wanted.number is None else normalise(wanted.number, country)
        self._items: deque[Item] = deque()
        self._calls: dict[CallIdentity, Heard | None] = {}  # those that are wanted, and what was heard last of each

    def put(self, item: Item) -> None:
        """Take an item, if there is room. This runs for every signal while somebody watches."""
        if len(self._items) < MAX_QUEUED:
            self._items.append(item)
        else:
            self.dropped += 1

    @property
    def has_more(self) -> bool:
        """Whether something waits."""
        return bool(self._items)

    def take(self) -> list[bytes]:
        """Some lines, and what was dropped before them."""
        lines = []
        if self.dropped:
            lines.append(_line({"what": "dropped", "count": self.dropped}))
            self.dropped = 0
        items = [self._items.popleft() for _ in range(min(_AT_ONCE, len(self._items)))]
        for item in items:  # all of them first: whose a call is, is told after the signal that began it
            if item.identity not in self._calls and self._is_wanted(item):
                self._want(item.identity)
        return lines + [self._told(item) for item in items if item.identity in self._calls]

    def _told(self, item: Item) -> bytes:
        identity = item.identity
        if isinstance(item, Heard):
            self._calls[identity] = item
        return _line(_headed(identity) | tell_item(item, self.wanted.mask, self._calls[identity]))

    def _want(self, identity: CallIdentity) -> None:
        self._calls[identity] = None
        if len(self._calls) > _CALLS_KEPT:
            del self._calls[next(iter(self._calls))]

    def _is_wanted(self, item: Item) -> bool:
        wanted, identity = self.wanted, item.identity
        return (
            wanted.source in (None, identity.source)
            and (self._number is None or _has_number(item, self._number, self._country))
            and (wanted.callerid is None or wanted.callerid in _callerids(identity))
            and (wanted.client is None or wanted.client in _clients(item))
        )


class Tracing:
    """The record of recent calls, and whoever looks into it."""

    def __init__(self, country: str, lines: Callable[[], Iterable[Line]]) -> None:
        """`lines` gives those that count now."""
        self.record = Record()
        self.onlookers: dict[str, Onlooker] = {}
        self._country = country
        self._lines = lines
        self._watchers: list[Watcher] = []
        self._is_closed = False
        self._all_gone = asyncio.Event()

    def onlooker(self, source: str) -> Onlooker:
        """The observer of one source's tracker."""
        return self.onlookers.setdefault(source, Onlooker(source, self.record))

    async def close(self) -> bool:
        """Let everybody who watches go; False when somebody does not even read that."""
        self._is_closed = True
        if self._watchers:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._all_gone.wait()
        return not self._watchers

    def watch(self, wanted: Wanted) -> AsyncGenerator[bytes, None]:
        """What happens from now on, as lines of JSON. Raises `TooManyWatchersError`, and that at once."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise TooManyWatchersError
        return self._lines_of(Watcher(wanted, self._country))

    async def _lines_of(self, watcher: Watcher) -> AsyncGenerator[bytes, None]:
        """A line in each silence shows that the server is there, and finds out whether the watcher is."""
        silent_s = _SILENCE_S
        self._watchers.append(watcher)
        self._all_gone.clear()
        self._follow()
        try:
            while not self._is_closed:
                lines = watcher.take()
                if lines:
                    silent_s = 0.0
                    yield b"".join(lines)
                elif silent_s >= _SILENCE_S:
                    silent_s = 0.0
                    yield _line({"what": "watching"})
                if watcher.has_more:
                    await asyncio.sleep(0)
                else:
                    await asyncio.sleep(_DRAIN_EVERY_S)
                    silent_s += _DRAIN_EVERY_S
        finally:
            self._watchers.remove(watcher)
            self._follow()
            if not self._watchers:
                self._all_gone.set()

    def _follow(self) -> None:
        self.record.followers = tuple(watcher.put for watcher in self._watchers)

    async def find(self, wanted: str, *, source: str | None = None, shows_numbers: bool = False) -> list[dict[str, Any]]:
        """The calls that a text names, the latest first: a callerid, a number, or what the switch calls it."""
        mask: Mask = str if shows_numbers else mask_number
        found: dict[CallIdentity, None] = {}
        for block in reversed(self.record.blocks()):
            for identity in self._named(block, wanted):
                if source in (None, identity.source) and len(found) < MAX_FOUND:
                    found.setdefault(identity)
            await asyncio.sleep(0)
        traces = self.record.gather(found)
        return [tell_call(trace, self._lines(), self._country, mask) for trace in traces.values() if trace.items]

    def _named(self, block: Sequence[Item], wanted: str) -> list[CallIdentity]:
        """The calls of a block that a text names, the latest first."""
        number = normalise(wanted, self._country)
        named: dict[CallIdentity, None] = {}
        looked_at: set[CallIdentity] = set()
        for item in reversed(block):
            identity = item.identity
            if identity not in looked_at:
                looked_at.add(identity)
                if _is_name(identity, wanted):
                    named[identity] = None
            if number and _has_number(item, number, self._country):
                named.setdefault(identity)
        return list(named)

    def clock_behind_s(self, source: str, now: datetime) -> float | None:
        """How many seconds a switch's clock is behind ours, by what was heard in the last minutes."""
        behind = self.onlooker(source).clock_behind(now - _CLOCK_WINDOW)
        return None if behind is None else round(behind.total_seconds(), 3)


def is_named(trace: CallTrace, wanted: str, country: str) -> bool:
    """Whether a text names this call."""
    number = normalise(wanted, country)
    return _is_name(trace.identity, wanted) or any(_has_number(item, number, country) for item in trace.items)


def _is_name(identity: CallIdentity, wanted: str) -> bool:
    if wanted == identity.key or (len(wanted) >= _SHORTEST_PART and wanted in identity.key):
        return True
    return len(wanted) == _UUID_CHARACTERS and wanted in _callerids(identity)


def _clients(item: Item) -> set[str]:
    match item:
        case StatusChange(side=side):
            return {side.owner.client_id}
        case Ended(call=call):
            return {side.client_id for side in call.sides}
        case _:
            return set()


def _headed(identity: CallIdentity) -> dict[str, Any]:
    return {"source": identity.source, "call": identity.key, "callerid": callerid(identity, 0)}


def _line(told: dict[str, Any]) -> bytes:
    return bytes(_encode(told)) + b"\n"


def _callerids(identity: CallIdentity) -> list[str]:
    return [callerid(identity, generation) for generation in range(_GENERATIONS)]


def _has_number(item: Item, number: str, country: str) -> bool:
    """Whether it names this number, in whatever form. Most are told apart by their end, which every form has in common."""
    end = number[-_END:]
    return any(found.endswith(end) and normalise(found, country) == number for found in _numbers(item))


def _numbers(item: Item) -> tuple[str, ...]:
    match item:
        case Heard(signal=signal):
            return (*signal.callers, signal.dialled, signal.number)
        case StatusChange(facts=facts):
            return (facts.caller, facts.dialled, facts.answered_by or "")
        case Ended(call=call):
            return (call.caller, call.dialled, call.answered_by or "")


def moment(at: datetime | None) -> str | None:
    """A moment as JSON has it."""
    return None if at is None else at.isoformat(timespec="milliseconds")
