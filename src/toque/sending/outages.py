"""Outages: what is done when a callback's health changes, and the probes that find out whether it answers again.

What the states are and what leads from one to the next is in `callbacks/health.py`; this acts on it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import structlog

from toque.callbacks.delivery import JITTER, Delivery, DeliveryState
from toque.callbacks.health import Allowance, Sign, State
from toque.sending.agenda import Agenda
from toque.sending.backlogs import Backlogs, Room
from toque.sending.lanes import BUSY, ENDED, LEFT, CallbackQueue, Lane
from toque.sending.retries import Retries
from toque.sending.settling import HealthKeeping, Settling
from toque.sending.turns import Turns

GONE = "410 Gone"
FAILED_TOO_LONG = "failed for five days"


class Outages:
    """Parks callbacks, probes them, lets them recover, disables them."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        chance: Callable[[], float],
        agenda: Agenda,
        turns: Turns,
        settling: Settling,
        keeping: HealthKeeping,
        room: Room,
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._agenda = agenda
        self._turns = turns
        self._settling = settling
        self._keeping = keeping
        self._room = room
        self._log = structlog.get_logger("toque.sending")
        self.backlogs: Backlogs
        self.retries: Retries

    # Signs

    def note(self, queue: CallbackQueue, sign: Sign) -> None:
        """Take a sign of a callback's health, and do what follows from it."""
        if queue.is_dropped:
            return
        health = queue.health
        came_from = health.state
        if health.note(sign, self._agenda.time()):
            self._entered(queue, came_from, sign)
        queue.is_well = queue.health.state is State.HEALTHY and not health.failures

    def _entered(self, queue: CallbackQueue, came_from: State, sign: Sign) -> None:
        match queue.health.state:
            case State.FAILING if came_from is State.PROBING:
                queue.allow()
                self._plan_probe(queue)
            case State.FAILING:
                self._park(queue)
            case State.PROBING:
                queue.allow()
            case State.RECOVERING:
                self._recover(queue)
            case State.HEALTHY:
                queue.allow()
                self._bound(queue).info("callback.recovered")
            case State.DISABLED:
                self._disable(queue, GONE if sign is Sign.GONE else FAILED_TOO_LONG)

    def _bound(self, queue: CallbackQueue) -> Any:
        """A log that says which callback it is about."""
        return self._log.bind(callback=queue.callback_id, code=queue.writer.callback.code if queue.writer is not None else None)

    # Failing

    def _park(self, queue: CallbackQueue) -> None:
        queue.allow()
        self.backlogs.release(queue)
        self._keep(queue)
        self._bound(queue).warning("callback.failing", failures=queue.health.failures)
        queue.probes = 0
        self._plan_probe(queue)

    def _keep(self, queue: CallbackQueue) -> None:
        self._keeping.keep(queue.callback_id, queue.health.kept(self._clock(), self._agenda.time()))

    def _plan_probe(self, queue: CallbackQueue) -> None:
        wait_s = queue.health.probe_wait.total_seconds() * (1 + JITTER * (2 * self._chance() - 1))
        queue.is_probe_due = False
        self._agenda.at(self._agenda.time() + wait_s, self.probe_soon, queue)

    def probe_soon(self, queue: CallbackQueue) -> None:
        """Send a probe as soon as nothing is under way to this callback."""
        if queue.health.state is State.FAILING:
            queue.is_probe_due = True
            self.backlogs.want(queue)

    def probe(self, queue: CallbackQueue, page: list[Delivery]) -> None:
        """Send one of these, the beginning of the backlog: the first, and next time that of another lane.

        For it may be the very delivery that this receiver chokes on.
        """
        heads: dict[object, Delivery] = {}
        for delivery in page:
            heads.setdefault(delivery.lane, delivery)
        delivery = list(heads.values())[queue.probes % len(heads)]
        queue.probes += 1
        queue.is_probe_due = False
        lane = queue.hold(delivery)
        self._room.held += 1
        self.note(queue, Sign.PROBE_DUE)
        if lane is not None:  # nothing else is held, so there is no such lane
            self.retries.make_ready(lane)
        self._turns.go()

    # Recovering

    def _recover(self, queue: CallbackQueue) -> None:
        queue.allowance = Allowance(queue.allowance.cap)
        queue.is_probe_due = False
        queue.allow()
        self._keep(queue)
        self._bound(queue).info("callback.recovering")
        if queue.is_behind:
            self.backlogs.want(queue)
        else:
            self.caught_up(queue)

    def caught_up(self, queue: CallbackQueue) -> None:
        """Nothing waits for it in the store any more."""
        if queue.health.state is State.RECOVERING:
            self.note(queue, Sign.DRAINED)

    # Gone

    def _disable(self, queue: CallbackQueue, reason: str) -> None:
        queue.allow()
        self.kill(queue, reason)
        queue.is_disabling = True
        self._settling.disable(queue.callback_id, reason)
        self._bound(queue).warning("callback.disabled", reason=reason)

    def kill(self, queue: CallbackQueue, reason: str) -> None:
        """What is held for it and not under way is dead. What waits in the store is somebody else's business."""
        before = queue.held
        for lane in [*queue.lanes.values(), *queue.late]:
            self._kill_lane(queue, lane, reason)
        for delivery in queue.landing or ():
            queue.held -= 1
            self._settling.write(delivery, DeliveryState.DEAD, reason)
        queue.landing = None
        queue.ready.clear()
        queue.is_behind = queue.is_old = False
        queue.reading += 1
        queue.late_seqs.clear()
        self._room.held -= before - queue.held
        self._settling.kill_all(queue.callback_id, reason)

    def _kill_lane(self, queue: CallbackQueue, lane: Lane, reason: str) -> None:
        for delivery in lane.rest or ():
            queue.held -= 1
            self._settling.write(delivery, DeliveryState.DEAD, reason)
        lane.rest = None
        if lane.state not in (BUSY, ENDED):
            self._settling.write(lane.head, DeliveryState.DEAD, reason)
            lane.state = LEFT
            queue.let_go(lane)
