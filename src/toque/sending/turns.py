"""Turns: whose post starts next, and how many are on the wire.

Callbacks with something to send take turns, one post a turn. A callback that answers slowly keeps what it gets for long, so
all slow ones together get no more than three quarters of the places: however many they are, the quick ones go on. Slow is
whoever has not answered yet, failed last, usually takes longer than a quarter of a second, or is silent for that long while
posts wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from toque.sending.lanes import BUSY, CallbackQueue
from toque.sending.outcomes import Outcome, Post

_SLOW_S = 0.25
_BURST = 48
# Posts that start at once, where an answer alone starts them. Receivers are woken once for all of them, and waking costs more
# than posting; where there are fewer places, it is three quarters of them.


class Posting(Protocol):
    """What is needed of a transport."""

    def start(self, post: Post, on_outcome: Callable[[Post, Outcome], None]) -> None:
        """Begin an attempt whose outcome is told once, later."""


@dataclass(slots=True)
class DispatchCounters:
    """What was done since the start."""

    attempts: int = 0
    delivered: int = 0
    dead: int = 0


class Turns:
    """Starts posts while there is room."""

    def __init__(self, posting: Posting, clock: Callable[[], datetime], time: Callable[[], float], concurrency: int) -> None:
        """At most `concurrency` posts are on the wire at once."""
        self._start = posting.start
        self._clock = clock
        self._time = time
        self._concurrency = concurrency
        self.refill_at = concurrency - min(_BURST, max(1, concurrency * 3 // 4))
        """While more than this are on the wire, it is not worth the while to look for more: the next durable batch does."""
        self._most_slow = concurrency - concurrency // 4
        self.in_flight = 0
        self.slow = 0
        """Those in flight to slow callbacks."""
        self.counters = DispatchCounters()
        self.quick_line: deque[CallbackQueue] = deque()
        self.slow_line: deque[CallbackQueue] = deque()
        self._is_slow_next = False
        self.is_over = False

    def give(self, queue: CallbackQueue) -> None:
        """Let a queue stand in line, if it has something to send and may."""
        if not queue.has_turn and queue.ready and queue.in_use < queue.slots:
            queue.has_turn = True
            (self.slow_line if queue.is_slow else self.quick_line).append(queue)

    def go(self) -> None:
        """Start what may start. Outcomes are never told from in here."""
        if self.is_over or self.in_flight >= self._concurrency or not (self.quick_line or self.slow_line):
            return
        now, now_s, start, counters = self._clock(), self._time(), self._start, self.counters
        while self.in_flight < self._concurrency:
            queue = self._next(now_s)
            if queue is None:
                return
            ready, writer = queue.ready, queue.writer
            if not ready or writer is None or queue.in_use >= queue.slots:
                queue.has_turn = False
                continue
            lane = ready.popleft()
            lane.state = BUSY
            lane.started_s = now_s
            if not queue.in_flight:
                queue.heard_s = now_s
            queue.in_flight += 1
            queue.in_use += 1
            self.in_flight += 1
            counters.attempts += 1
            if queue.is_slow:
                self.slow += 1
            if ready and queue.in_use < queue.slots:
                (self.slow_line if queue.is_slow else self.quick_line).append(queue)
            else:
                queue.has_turn = False
            start(writer.write(lane.head.event, now), lane.ended)

    def _next(self, now_s: float) -> CallbackQueue | None:
        """Both lines take turns as well."""
        while self.quick_line and not (self._is_slow_next and self.slow_line and self.slow < self._most_slow):
            queue = self.quick_line.popleft()
            if queue.in_flight and now_s - queue.heard_s > _SLOW_S:
                self.mark_slow(queue)
            if not queue.is_slow:
                self._is_slow_next = True
                return queue
            self.slow_line.append(queue)
        if self.slow_line and self.slow < self._most_slow:
            self._is_slow_next = False
            return self.slow_line.popleft()
        return None

    def learn(self, queue: CallbackQueue, took_s: float) -> None:
        """A post was answered well, in a time that says something new."""
        allowance = queue.allowance
        allowance.answered(took_s)
        if allowance.lately_s > _SLOW_S:
            self.mark_slow(queue)
        elif queue.is_slow:
            queue.is_slow = False
            self.slow -= queue.in_flight
        if queue.slots:
            queue.allow()

    def mark_slow(self, queue: CallbackQueue) -> None:
        """From now on this queue has its places among the slow ones."""
        if not queue.is_slow:
            queue.is_slow = True
            queue.expected_s = -1.0
            self.slow += queue.in_flight
