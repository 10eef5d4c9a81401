"""The agenda: what is to happen later, with one timer of the loop's for all of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Protocol

_EARLY_S = 0.001  # loops may be early by this much
_TIDIED_AT = 4096  # entries: below that it is not worth the while


class Timer(Protocol):
    """Something that will happen."""

    def cancel(self) -> None:
        """Let it not happen."""


class Timers(Protocol):
    """What is needed of a clock that never jumps; an event loop is one."""

    def time(self) -> float:
        """Seconds since whenever."""

    def call_at(self, when: float, callback: Callable[[], None], /) -> Timer:
        """Call this once that time has come."""


class Agenda:
    """Actions in the order of their times. Nobody takes an entry back: an action looks whether it is still wanted.

    Those that are not are thrown away whenever their number may have doubled, since each keeps its subject in memory.
    """

    def __init__(self, timers: Timers, after: Callable[[], None], is_moot: Callable[[Any], bool] = lambda _: False) -> None:
        """`after` is called when what was due has been done; `is_moot` says of a subject that no action on it is wanted."""
        self.time = timers.time
        self._timers = timers
        self._after = after
        self._is_moot = is_moot
        self._tidied_at = _TIDIED_AT
        self._entries: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._ticket = count()
        self._alarm: Timer | None = None
        self._alarm_at = math.inf
        self._is_over = False

    def at(self, when_s: float, action: Callable[[Any], None], subject: object) -> None:
        """Call `action(subject)` once that time of the loop's has come."""
        if len(self._entries) >= self._tidied_at:
            self._tidy()
        heappush(self._entries, (when_s, next(self._ticket), action, subject))
        self._set_alarm()

    def stop(self) -> None:
        """Let nothing more happen. Safe to repeat."""
        self._is_over = True
        self._entries.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def sleep(self, seconds: float) -> None:
        """Wait; also after `stop`."""
        over = asyncio.Event()
        timer = self._timers.call_at(self.time() + seconds, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    def _tidy(self) -> None:
        self._entries = [entry for entry in self._entries if not self._is_moot(entry[3])]
        heapify(self._entries)
        self._tidied_at = max(_TIDIED_AT, 2 * len(self._entries))

    def _set_alarm(self) -> None:
        if self._is_over or not self._entries or self._entries[0][0] >= self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = self._entries[0][0]
        self._alarm = self._timers.call_at(self._alarm_at, self._ring)

    def _ring(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        now_s = self.time() + _EARLY_S
        while self._entries and self._entries[0][0] <= now_s:
            _, _, action, subject = heappop(self._entries)
            action(subject)
        self._set_alarm()
        self._after()
