"""Retries: when the head of a lane is tried again, and when the lane goes on without it.

The head of a lane that keeps failing while its callback is healthy is late once the ordering window is over, counted from its
first failure: it leaves the lane and goes on by its own timer. A callback that asked for a pause is not failing, so nothing
becomes late in it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from toque.callbacks.delivery import JITTER, LONGEST_RETRY_AFTER, RETRIES
from toque.sending.agenda import Agenda
from toque.sending.lanes import READY, WAITING, CallbackQueue, Lane
from toque.sending.turns import Turns

# A stored due time further away than any wait comes from a clock that was wrong. A nearer one may be what the receiver asked for.
_LONGEST_WAIT_S = max(LONGEST_RETRY_AFTER, RETRIES[-1] * (1 + JITTER)).total_seconds()


class Retries:
    """Brings lanes back into their queues' lines."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        agenda: Agenda,
        turns: Turns,
        window_s: float,
        became_late: Callable[[CallbackQueue], None],
    ) -> None:
        """`became_late` is told of each callback that has one more late delivery."""
        self._clock = clock
        self._agenda = agenda
        self._turns = turns
        self._window_s = window_s
        self._became_late = became_late

    def begin(self, lane: Lane) -> None:
        """The lane has a head that was not tried since it was read: it goes when its time has come."""
        due_at = lane.head.due_at
        wait_s = 0.0 if due_at is None else (due_at - self._clock()).total_seconds()
        # A receiver that asked this process to wait pauses the whole callback, so the time that its delivery got needs no heed.
        if wait_s > _LONGEST_WAIT_S or not lane.queue.is_old:
            wait_s = min(wait_s, _usual_wait_s(lane.head.attempts))
        if wait_s > 0:
            self._agenda.at(self._agenda.time() + wait_s, self.make_ready, lane)
        else:
            self.make_ready(lane)

    def again(self, lane: Lane) -> None:
        """The lane's head failed, and that is durable."""
        over_s = lane.failed_s + self._window_s
        if lane.is_late or not lane.failed_s or over_s >= lane.retry_s:
            self._agenda.at(lane.retry_s, self.make_ready, lane)
        elif over_s <= self._agenda.time():
            self._make_late(lane)
        else:
            self._agenda.at(over_s, self._end_window, lane)

    def after(self, lane: Lane, wait_s: float) -> None:
        """Try the lane's head again, without more ado."""
        self._agenda.at(self._agenda.time() + wait_s, self.make_ready, lane)

    def make_ready(self, lane: Lane) -> None:
        """Put it into its queue's line, if it still waits."""
        if lane.state == WAITING:
            lane.state = READY
            lane.queue.ready.append(lane)
            self._turns.give(lane.queue)

    def _end_window(self, lane: Lane) -> None:
        if lane.state != WAITING:
            return
        if lane.queue.paused_until:
            self._agenda.at(lane.retry_s, self.make_ready, lane)
        else:
            self._make_late(lane)

    def _make_late(self, lane: Lane) -> None:
        queue = lane.queue
        late = queue.set_apart(lane)
        self._agenda.at(late.retry_s, self.make_ready, late)
        if lane.state == WAITING:
            self.begin(lane)
        self._became_late(queue)


def _usual_wait_s(attempts: int) -> float:
    """How long a wait after so many attempts is, if the receiver does not ask for more."""
    return RETRIES[min(max(attempts, 1), len(RETRIES)) - 1].total_seconds() * (1 + JITTER)
