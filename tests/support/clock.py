"""A clock that stands still until a test moves it.

    clock = ManualClock()
    dispatcher = Dispatcher(…, clock=clock, timers=clock)
    clock.advance(60)                  # a minute passes: what is due in it happens, in its order and at its own moment
    clock.set_wall(timedelta(hours=-2))  # somebody sets the wall clock; waits do not notice

It is the wall clock where a `Callable[[], datetime]` is asked for, and the loop's clock where `time` and `call_at` are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count

START = datetime(2026, 3, 2, 12, 0, 0, tzinfo=UTC)


@dataclass(order=True, slots=True)
class ManualTimer:
    """What `call_at` gave."""

    when: float
    ticket: int
    callback: Callable[[], object] = field(compare=False)
    is_cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.is_cancelled = True


class ManualClock:
    """A wall clock and a monotonic one, with timers."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._time = 1000.0  # not 0, as on no real machine
        self._began = self._time
        self._agenda: list[ManualTimer] = []
        self._ticket = count()

    def __call__(self) -> datetime:
        """What the wall clock shows."""
        return self._start + timedelta(seconds=self._time - self._began)

    def time(self) -> float:
        """Seconds that have passed, as a loop counts them."""
        return self._time

    def call_at(self, when: float, callback: Callable[[], object], /) -> ManualTimer:
        """As an event loop's; what is already due happens with the next `advance`."""
        timer = ManualTimer(when, next(self._ticket), callback)
        heappush(self._agenda, timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        until = self._time + seconds
        while self._agenda and self._agenda[0].when <= until:
            timer = heappop(self._agenda)
            if not timer.is_cancelled:
                self._time = max(self._time, timer.when)
                timer.callback()
        self._time = until

    def set_wall(self, by: timedelta) -> None:
        """Set the wall clock forward or back; no time passes."""
        self._start += by

    @property
    def timers(self) -> list[float]:
        """In how many seconds each timer is due, the next one first."""
        return sorted(timer.when - self._time for timer in self._agenda if not timer.is_cancelled)
