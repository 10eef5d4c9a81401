"""The dispatcher: which delivery goes next.

A lane's next delivery starts when the store has the outcome of the one before. Callbacks with something to send take turns. This
room decides and remembers; the transport does the posting, the store the writing. All methods belong to the loop's thread.
Deadlines and signatures go by the wall clock; waits go by the loop's, which nobody sets.

    lanes       what is held in memory           settling   outcomes on their way into the store
    turns       whose post starts next           backlogs   what waits in the store, there and back
    retries     when a head is tried again       outages    callbacks that fail, and their probes

A delivery that arrives at the first attempt passes `offer`, `Turns.go`, `ended` and `_after`, and nothing else: these four are
written for speed, everything beside them for being read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from toque.callbacks.callback import Callback, Registry
from toque.callbacks.delivery import (
    UNWELCOME,
    Delivery,
    DeliveryState,
    GiveUp,
    TryAgain,
    judge,
)
from toque.callbacks.health import Allowance, Health, Sign, State
from toque.calls.model import Status
from toque.errors import InputError
from toque.sending.agenda import Agenda, Timers
from toque.sending.backlogs import Backlogs, Room, Shelf
from toque.sending.lanes import ENDED, LEFT, READY, WAITING, CallbackQueue, Lane
from toque.sending.outages import Outages
from toque.sending.outcomes import Answered, Forbidden, Outcome, Unreachable, Unsent
from toque.sending.requests import RequestWriter
from toque.sending.retries import Retries
from toque.sending.settling import Batch, HealthKeeping, Ledger, Settling
from toque.sending.turns import DispatchCounters, Posting, Turns
from toque.telemetry import Sparingly

__all__ = ["DispatchCounters", "DispatchStore", "Dispatcher"]

_UNSENT_RETRY_S = 1.0  # after an attempt that failed for a reason of ours
_EXCERPT_SHOWN = 120  # characters of a refusal's body that are kept with the delivery
_QUEUES_KEPT = 4096  # idle ones are forgotten beyond that: they cost a few KiB each, and little time to make again
_REMOVED = "the callback was removed or disabled"
_EXPIRED = "expired: a later status was delivered"
_LOGGER = "toque.sending"


class DispatchStore(Ledger, Shelf, Protocol):
    """What the dispatcher needs of a store."""


class Dispatcher:
    """Sends what it is offered, and what waits in the store, until the store knows how each delivery ended."""

    def __init__(
        self,
        posting: Posting,
        store: DispatchStore,
        *,
        clock: Callable[[], datetime],
        chance: Callable[[], float],
        timers: Timers | None = None,
        concurrency: int = 256,
        callback_concurrency: int = 10,
        ordering_window: timedelta = timedelta(seconds=30),
        expire_stale_ringing: bool = False,
        max_held: int = 20_000,
        settling_pace_s: float = 0.0,
    ) -> None:
        """`timers` are the running loop's unless others are given; `max_held` bounds the deliveries in memory.

        `concurrency` bounds the posts on the wire, `callback_concurrency` each callback's posts without a durable outcome.
        """
        self._clock = clock
        self._chance = chance
        self._callback_concurrency = callback_concurrency
        self._expires = expire_stale_ringing
        self._log = structlog.get_logger(_LOGGER)
        self._registry: Registry | None = None
        self._queues: dict[int, CallbackQueue] = {}
        self._most_queues = _QUEUES_KEPT
        self._is_stopping = False
        self._quiet = asyncio.Event()
        self._room = Room(max_held)
        timers = timers or asyncio.get_running_loop()
        self._time = timers.time
        self._agenda = Agenda(timers, self._proceed, _is_left)
        self._turns = Turns(posting, clock, self._time, concurrency)
        self._settling = Settling(store, self._agenda, self._after, self._disabled, pace_s=settling_pace_s)
        self._keeping = HealthKeeping(store, self._agenda)
        self._retries = Retries(
            clock=clock,
            agenda=self._agenda,
            turns=self._turns,
            window_s=ordering_window.total_seconds(),
            became_late=self._became_late,
        )
        self._outages = Outages(
            clock=clock,
            chance=chance,
            agenda=self._agenda,
            turns=self._turns,
            settling=self._settling,
            keeping=self._keeping,
            room=self._room,
        )
        self._backlogs = Backlogs(
            store,
            clock=clock,
            agenda=self._agenda,
            settling=self._settling,
            retries=self._retries,
            room=self._room,
            caught_up=self._outages.caught_up,
            probe=self._outages.probe,
        )
        self._outages.backlogs, self._outages.retries = self._backlogs, self._retries
        self._done = self._settling.done
        self._failures, self._deaths, self._unsent = (Sparingly(self._time) for _ in range(3))
        self.counters = self._turns.counters

    # What is known

    def held(self) -> int:
        """Deliveries in memory."""
        return self._room.held

    def health_of(self, callback_id: int) -> State:
        """How a callback stands."""
        queue = self._queues.get(callback_id)
        if queue is not None and not queue.is_dropped:
            return queue.health.state
        callback = self._registry.callbacks.get(callback_id) if self._registry is not None else None
        if callback is None or callback.disabled_at is not None:
            return State.DISABLED
        return Health.restored(callback.health, self._clock(), self._time()).state

    def parked(self) -> int:
        """How many callbacks fail, so that their deliveries wait in the store."""
        return sum(queue.health.state in (State.FAILING, State.PROBING) for queue in self._queues.values())

    # What goes in

    def apply(self, registry: Registry) -> None:
        """Go by this registry from now on: no attempt starts to a callback that is not in it, or that is disabled.

        Registries come one after the other, each read after the one before was applied. So deliveries that came before the
        previous one are older than this one, and what waits for a callback that is gone from it is dead. Later ones may be
        younger than this registry: they wait in the store, which knows of each whether it is dead, for the next.
        """
        self._registry = registry
        for queue in list(self._queues.values()):
            if registry.version < queue.disabled_in:  # it was read before the callback was disabled
                continue
            callback = registry.callbacks.get(queue.callback_id)
            is_removed = callback is None and queue.writer is not None  # it was known, and a removed one never comes back
            is_gone = callback is None or callback.disabled_at is not None
            if is_gone and (is_removed or not queue.has_news):
                self._drop(queue)
            else:
                if is_gone and queue.held and not queue.is_disabling:
                    self._backlogs.release(queue)
                queue.has_news = False
                self._equip(queue, callback)
        self._turns.go()

    def offer(self, deliveries: Iterable[Delivery]) -> None:
        """Take deliveries that were accepted just now, in the order of acceptance; each is offered once."""
        queues, turns, room = self._queues, self._turns, self._room
        window, free, taken, now_s = room.window, room.free, 0, self._time()
        for delivery in deliveries:
            queue = queues.get(delivery.callback_id) or self._open(delivery.callback_id)
            queue.has_news = True
            delivery.since_s = now_s
            if queue.is_behind or queue.held >= window or taken >= free:
                room.held += taken
                self._backlogs.take(queue, delivery)
                taken, free = 0, room.free
                continue
            taken += 1
            queue.held += 1
            event = delivery.event
            key = (event.callerid, event.direction, event.pin)
            lane = queue.lanes.get(key)
            if lane is not None:
                lane.add(delivery)
                continue
            queue.lanes[key] = lane = Lane(queue, key, delivery, READY)
            queue.ready.append(lane)
            if not queue.has_turn:
                turns.give(queue)
        room.held += taken
        turns.go()

    def resume(self, callback_ids: Iterable[int]) -> None:
        """These callbacks have something in their backlogs that was put there by others: an earlier process, or a replay."""
        for callback_id in callback_ids:
            is_new = callback_id not in self._queues
            queue = self._queues.get(callback_id) or self._open(callback_id)
            queue.has_news = True
            if queue.is_over:
                continue
            if is_new:
                queue.is_old = not queue.health.is_parked
            self._backlogs.fall_behind(queue)
            self._backlogs.want(queue)

    # Callbacks

    def _open(self, callback_id: int) -> CallbackQueue:
        if len(self._queues) >= self._most_queues:
            self._sweep()
        callback = self._registry.callbacks.get(callback_id) if self._registry is not None else None
        queue = CallbackQueue(callback_id, self, Allowance(self._callback_concurrency))
        self._queues[callback_id] = queue
        self._equip(queue, callback)
        if queue.writer is None:  # not known yet, or not any more: the store knows which, and what becomes of its deliveries
            self._backlogs.fall_behind(queue)
        return queue

    def _sweep(self) -> None:
        """Forget the callbacks that nothing waits for. Their number sets when to look next, so that looking costs little."""
        for queue in [queue for queue in self._queues.values() if queue.is_idle]:
            del self._queues[queue.callback_id]
        self._most_queues = max(_QUEUES_KEPT, 2 * len(self._queues))

    def _equip(self, queue: CallbackQueue, callback: Callback | None) -> None:
        """Post as the callback is registered now."""
        if callback is None or callback.disabled_at is not None:
            queue.writer = None
        elif queue.is_disabling:  # this registry cannot know yet
            return
        else:
            is_first = queue.writer is None
            queue.writer = self._writer(queue, callback)
            if is_first and queue.writer is not None:
                self._begin(queue, callback)
        queue.allow()
        self._turns.give(queue)
        self._backlogs.want(queue)

    def _writer(self, queue: CallbackQueue, callback: Callback) -> RequestWriter | None:
        if queue.writer is not None and queue.writer.callback == callback:
            return queue.writer
        try:
            return RequestWriter(callback)
        except (InputError, ValueError) as error:  # of use to nobody, and no reason to keep the others waiting
            self._log.error("callback.unusable", callback=callback.id, code=callback.code, problem=str(error))
            return None

    def _begin(self, queue: CallbackQueue, callback: Callback) -> None:
        """The callback became known, or is back."""
        if queue.is_new:
            queue.is_new = queue.is_dropped = False
            queue.health = Health.restored(callback.health, self._clock(), self._time())
            queue.is_well = queue.health.state is State.HEALTHY
            if queue.health.is_parked:
                self._backlogs.release(queue)
                self._outages.probe_soon(queue)
        elif queue.health.state is State.DISABLED:
            self._outages.note(queue, Sign.ENABLED)

    def _drop(self, queue: CallbackQueue) -> None:
        """Forget a callback that is gone. Attempts in flight still end."""
        queue.writer = None
        queue.paused_until = 0.0
        queue.is_dropped = queue.is_new = True
        queue.allow()
        self._outages.kill(queue, _REMOVED)
        self._backlogs.fall_behind(queue)  # what was accepted just before that is yet to be offered
        self._forget_if_over(queue)

    def _forget_if_over(self, queue: CallbackQueue) -> None:
        if queue.is_dropped and not queue.in_use and not queue.held:
            self._queues.pop(queue.callback_id, None)

    def _disabled(self, callback_id: int, version: int) -> None:
        """The store knows it: registries from this version on show it disabled, or enabled again by people."""
        queue = self._queues.get(callback_id)
        if queue is not None:
            queue.is_disabling = False
            queue.disabled_in = version
            queue.has_news = bool(queue.held)
            queue.writer = None
            queue.allow()

    # Outcomes

    def ended(self, lane: Lane, outcome: Outcome) -> None:
        """The attempt at a lane's head ended."""
        queue, turns = lane.queue, self._turns
        queue.in_flight -= 1
        turns.in_flight -= 1
        if queue.is_slow:
            turns.slow -= 1
        if outcome.__class__ is Answered and 200 <= outcome.status < 300:
            queue.heard_s = now_s = self._time()
            if now_s - lane.started_s > queue.expected_s:
                turns.learn(queue, now_s - lane.started_s)
            lane.state = ENDED
            lane.head.attempts += 1
            settling = self._settling
            self._done.append(lane)
            if settling.others:
                settling.others.pop(lane.head, None)
            if not settling.is_awake:
                settling.wake()
            if not queue.is_well:
                self._outages.note(queue, Sign.SUCCESS)
        else:
            self._end_otherwise(lane, outcome)
            turns.go()
            return
        if turns.in_flight <= turns.refill_at and (turns.quick_line or turns.slow_line):
            turns.go()

    def _end_otherwise(self, lane: Lane, outcome: Outcome) -> None:
        if isinstance(outcome, Unsent):
            self._end_unsent(lane, outcome.reason)
        else:
            self._end_failed(lane, outcome)

    def _end_failed(self, lane: Lane, outcome: Answered | Unreachable | Forbidden) -> None:
        queue, delivery = lane.queue, lane.head
        status, retry_after, answer, excerpt = _read(outcome)
        now, now_s = self._clock(), self._time()
        verdict = self._judged(lane, status, retry_after, now, now_s)
        if queue.health.state is State.PROBING and isinstance(verdict, TryAgain) and status not in UNWELCOME:
            self._log.debug("callback.probe_failed", callback=queue.callback_id, answer=answer)
            self._leave_again(lane)
        else:
            delivery.attempts += 1
            self._write_down(lane, verdict, f"{answer} {excerpt}" if excerpt else answer, now, now_s)
            self._report(delivery, verdict, answer)
        if not queue.is_over:
            self._conclude(queue, status, verdict, now_s)

    def _judged(self, lane: Lane, status: int | None, retry_after: str | None, now: datetime, now_s: float) -> TryAgain | GiveUp:
        queue, delivery = lane.queue, lane.head
        verdict = judge(
            status,
            retry_after,
            attempts=delivery.attempts + 1,
            age=timedelta(seconds=delivery.age_s + now_s - delivery.since_s),
            now=now,
            chance=self._chance(),
        )
        if isinstance(verdict, GiveUp):
            return verdict
        if queue.is_over:
            return GiveUp(_REMOVED)
        if lane.is_stale:
            return GiveUp(_EXPIRED)
        assert isinstance(verdict, TryAgain)  # noqa: S101 - for the type checker: a 2xx does not come here
        return verdict

    def _write_down(self, lane: Lane, verdict: TryAgain | GiveUp, answer: str, now: datetime, now_s: float) -> None:
        delivery = lane.head
        lane.state = ENDED
        if isinstance(verdict, TryAgain):
            delivery.due_at = now + verdict.wait
            lane.retry_s = now_s + verdict.wait.total_seconds()
            if not lane.failed_s and not verdict.pauses_callback:
                lane.failed_s = now_s
            self._settling.write(delivery, DeliveryState.WAITING, answer)
        else:
            delivery.due_at, lane.retry_s = None, 0.0
            is_ours = verdict.reason in (_REMOVED, _EXPIRED)
            self._settling.write(delivery, DeliveryState.DEAD, verdict.reason if is_ours else answer)
        self._settling.failed.append(lane)

    def _conclude(self, queue: CallbackQueue, status: int | None, verdict: TryAgain | GiveUp, now_s: float) -> None:
        """What the outcome says about the callback."""
        if isinstance(verdict, GiveUp) and verdict.disables_callback:
            self._outages.note(queue, Sign.GONE)
        elif isinstance(verdict, TryAgain) and verdict.pauses_callback:
            queue.allowance.failed()
            self._pause(queue, now_s + verdict.wait.total_seconds())
            self._outages.note(queue, Sign.UNDECIDED)
        elif status in UNWELCOME:
            self._outages.note(queue, Sign.UNDECIDED)
        else:
            queue.allowance.failed()
            self._turns.mark_slow(queue)
            queue.allow()
            self._outages.note(queue, Sign.FAILURE)

    def _pause(self, queue: CallbackQueue, until_s: float) -> None:
        if until_s > queue.paused_until and not queue.is_over:
            queue.paused_until = until_s
            queue.allow()
            self._agenda.at(until_s, self._end_pause, queue)

    def _end_pause(self, queue: CallbackQueue) -> None:
        if queue.paused_until and queue.paused_until <= self._time() + 0.001:  # or else it was asked to wait longer since
            queue.paused_until = 0.0
            queue.allow()
            self._turns.give(queue)
            self._backlogs.want(queue)

    def _end_unsent(self, lane: Lane, reason: str) -> None:
        """Nothing was sent, for a reason of ours: no attempt, and nothing is known of the receiver."""
        queue = lane.queue
        if self._is_stopping:  # the next start makes it
            self._note_quiet()
            return
        if self._unsent.admits():
            self._log.warning(
                "delivery.unsent", reason=reason, callback=queue.callback_id, held_back=self._unsent.take_held_back()
            )
        if queue.is_over:
            self._write_down(lane, GiveUp(_REMOVED), reason, self._clock(), self._time())
        elif queue.health.is_parked:  # what was under way when it was parked has its row by now, or will have
            self._leave_again(lane)
            self._outages.note(queue, Sign.UNDECIDED)
        else:
            queue.in_use -= 1
            lane.state = WAITING
            self._retries.after(lane, _UNSENT_RETRY_S)
            self._turns.give(queue)

    def _leave_again(self, lane: Lane) -> None:
        """Leave a delivery to the store again as it is there."""
        queue = lane.queue
        queue.in_use -= 1
        self._room.held -= 1
        if not lane.head.row:
            self._settling.leave(queue, lane.head)
        queue.let_go(lane)
        self._backlogs.want(queue)

    def _became_late(self, queue: CallbackQueue) -> None:
        if len(queue.late) >= self._room.window // 2:  # there is room for no further page of its backlog
            self._outages.note(queue, Sign.TOO_MANY_FAILURES)

    # What is durable

    def _after(self, batch: Batch) -> None:
        """The store has these outcomes: their lanes go on."""
        if logging.getLogger(_LOGGER).isEnabledFor(logging.DEBUG):
            self._report_delivered(batch.done)
        turns = self._turns
        self.counters.delivered += len(batch.done)
        self._room.held -= len(batch.done)
        for lane in batch.done:
            queue = lane.queue
            queue.in_use -= 1
            queue.held -= 1
            if queue.is_reading:
                queue.gone.add(lane.head.row)
            if queue.late and self._expires:
                self._expire(lane)
            self._go_on(queue, lane)
            if queue.in_use < queue.slots:
                if queue.ready and not queue.has_turn:
                    turns.give(queue)
            elif queue.is_dropped:
                self._forget_if_over(queue)
            if queue.is_behind:
                self._backlogs.want(queue)
        if batch.others:
            self._after_others(batch)
        self._backlogs.look_again()
        turns.go()
        self._note_quiet()

    def _go_on(self, queue: CallbackQueue, lane: Lane) -> None:
        """The head is done with."""
        rest = lane.rest
        if not rest:
            lane.state = LEFT
            if lane.is_late:
                del queue.late[lane]
            else:
                del queue.lanes[lane.key]
            return
        lane.head = head = rest.pop(0)
        lane.failed_s = 0.0
        if head.due_at is None:
            lane.state = READY
            queue.ready.append(lane)
        else:
            lane.state = WAITING
            self._retries.begin(lane)

    def _proceed(self) -> None:
        self._turns.go()
        self._note_quiet()

    def _after_others(self, batch: Batch) -> None:
        self.counters.dead += sum(settlement.state is DeliveryState.DEAD for settlement in batch.others)
        for queue in batch.left:
            queue.leaving -= 1
        for lane in batch.failed:
            self._after_failed(lane)
        for queue in batch.left:
            self._backlogs.want(queue)

    def _after_failed(self, lane: Lane) -> None:
        queue = lane.queue
        queue.in_use -= 1
        if lane.retry_s and not queue.is_dropped and not queue.health.is_parked:
            lane.state = WAITING
            self._retries.again(lane)
        else:
            self._room.held -= 1
            if queue.let_go(lane):
                self._retries.begin(lane)
        self._turns.give(queue)
        self._forget_if_over(queue)
        self._backlogs.want(queue)

    def _expire(self, delivered: Lane) -> None:
        """A late ringing tells the receiver nothing once it knows how the call went on."""
        queue, sequence = delivered.queue, delivered.head.event.sequence
        for lane in list(queue.late):
            event = lane.head.event
            if lane.key != delivered.key or event.sequence >= sequence or event.status is not Status.RINGING:
                continue
            lane.is_stale = True
            if lane.state in (WAITING, READY):
                if lane.state == READY:
                    queue.ready.remove(lane)
                self._settling.write(lane.head, DeliveryState.DEAD, _EXPIRED)
                self._report(lane.head, GiveUp(_EXPIRED), "")
                self._room.held -= 1
                queue.let_go(lane)

    # The log. Receivers' own words stay out of it: an error page may repeat our credentials.

    def _report(self, delivery: Delivery, verdict: TryAgain | GiveUp, answer: str) -> None:
        sparingly = self._failures if isinstance(verdict, TryAgain) else self._deaths
        if not sparingly.admits():
            return
        log = self._log.bind(
            event_id=delivery.event.id,
            callback=delivery.callback_id,
            attempts=delivery.attempts,
            answer=answer,
            held_back=sparingly.take_held_back(),
        )
        if isinstance(verdict, TryAgain):
            log.info("delivery.failed", retry_in_s=round(verdict.wait.total_seconds(), 1))
        else:
            log.warning("delivery.died", reason=verdict.reason)

    def _report_delivered(self, lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            delivery = lane.head
            self._log.debug(
                "delivery.settled", event_id=delivery.event.id, callback=delivery.callback_id, attempts=delivery.attempts
            )

    # Life

    async def run(self) -> None:
        """Write outcomes down and read backlogs; runs until cancelled. What is not the store's fault ends it."""
        try:
            async with asyncio.TaskGroup() as parts:
                parts.create_task(self._settling.run(), name="settling")
                parts.create_task(self._backlogs.run(self._proceed), name="backlogs")
                parts.create_task(self._keeping.run(self._note_quiet), name="health")
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def settled(self) -> None:
        """Wait until no attempt is under way, every outcome is durable and no backlog is being read."""
        while not self._is_quiet:
            self._quiet.clear()
            await self._quiet.wait()

    def stop(self) -> None:
        """Start nothing more; outcomes go on being settled. Safe to repeat."""
        self._is_stopping = self._turns.is_over = True
        self._agenda.stop()
        self._backlogs.stop()
        self._note_quiet()

    async def drain(self, grace: timedelta) -> bool:
        """Stop, and wait until what is in flight has ended and is durable; False when `grace` ran out."""
        self.stop()
        try:
            async with asyncio.timeout(grace.total_seconds()):
                await self.settled()
        except TimeoutError:
            return False
        return True

    @property
    def _is_quiet(self) -> bool:
        return not self._turns.in_flight and self._settling.is_quiet and self._keeping.is_quiet and self._backlogs.is_quiet

    def _note_quiet(self) -> None:
        if not self._turns.in_flight and self._is_quiet:
            self._quiet.set()


def _is_left(subject: object) -> bool:
    """Whether this is a lane that nobody has any more."""
    return isinstance(subject, Lane) and subject.state == LEFT


def _read(outcome: Answered | Unreachable | Forbidden) -> tuple[int | None, str | None, str, str]:
    """Status, Retry-After, the answer in short, and how its body began."""
    match outcome:
        case Answered(status, retry_after, excerpt):
            return status, retry_after, str(status), excerpt[:_EXCERPT_SHOWN]
        case Unreachable(reason) | Forbidden(reason):
            return None, None, reason, ""
