"""The dispatcher: which delivery goes next.

A lane holds the deliveries of one side of one call to one callback, strictly one after the other: its next one starts when the
store has the outcome of the one before. Callbacks with something to send take turns, each within its cap of concurrent posts.

This room decides and remembers; the transport does the posting, the store the writing. All methods belong to the loop's thread.
Deadlines and signatures go by the wall clock; waits go by the loop's, which nobody sets.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

import structlog

from toque.callbacks.callback import Callback, Registry
from toque.callbacks.delivery import (
    JITTER,
    RETRIES,
    Delivered,
    Delivery,
    DeliveryState,
    GiveUp,
    Settlement,
    TryAgain,
    Verdict,
    judge,
)
from toque.errors import InputError, StoreError
from toque.sending.requests import RequestWriter
from toque.sending.transport import Answered, Forbidden, Outcome, Post, Unreachable

_STORE_RETRY_S = 0.5  # between tries to write outcomes down while the store fails
_LONGEST_WAIT_S = RETRIES[-1].total_seconds() * (1 + JITTER)  # a stored due time further away comes from a clock that was wrong
_TIMER_STEP_S = 0.001  # loops may be early by this much
_FOR_GOOD = math.inf
_EXCERPT_SHOWN = 120  # characters of a refusal's body that are kept with the delivery
_LOGGER = "toque.sending"

LaneKey = tuple[int, str, str, str]


class Posting(Protocol):
    """What the dispatcher needs of a transport."""

    def start(self, post: Post, on_outcome: Callable[[Post, Outcome], None]) -> None:
        """Begin an attempt whose outcome is told once, later."""


class Timer(Protocol):
    """Something that will happen."""

    def cancel(self) -> None:
        """Let it not happen."""


class Timers(Protocol):
    """What the dispatcher needs of a clock that never jumps; an event loop is one."""

    def time(self) -> float:
        """Seconds since whenever."""

    def call_at(self, when: float, callback: Callable[[], None], /) -> Timer:
        """Call this once that time has come."""


@dataclass(slots=True, eq=False)
class Lane:
    """Deliveries that must keep their order. `is_busy` from the start of an attempt until its outcome is durable."""

    key: LaneKey
    waiting: deque[Delivery] = field(default_factory=deque)
    is_busy: bool = False
    is_ready: bool = False  # it stands in its queue's line


@dataclass(slots=True, eq=False)
class CallbackQueue:
    """One callback's lanes and how many of them may post at once."""

    callback_id: int
    lanes: dict[LaneKey, Lane] = field(default_factory=dict)
    ready: deque[Lane] = field(default_factory=deque)
    in_flight: int = 0
    has_turn: bool = False
    paused_until: float = 0.0  # in the past: not paused; a timer ends it
    writer: RequestWriter | None = None  # None: not known yet, disabled or unusable, so nothing starts
    has_news: bool = False  # deliveries have come that may be younger than the registry


@dataclass(slots=True, eq=False)
class _Outcome:
    """An attempt that ended, on its way into the store."""

    queue: CallbackQueue
    lane: Lane
    delivery: Delivery
    verdict: Verdict
    settlement: Settlement
    answer: str  # the status or what was in the way
    ended_s: float  # on the loop's clock


@dataclass(slots=True)
class DispatchCounters:
    """What was done since the start."""

    attempts: int = 0
    delivered: int = 0
    dead: int = 0


class Dispatcher:
    """Sends what it is offered until the store knows how each delivery ended."""

    def __init__(
        self,
        posting: Posting,
        settle: Callable[[Sequence[Settlement]], Awaitable[None]],
        disable: Callable[[int, str], Awaitable[None]],
        *,
        clock: Callable[[], datetime],
        chance: Callable[[], float],
        timers: Timers | None = None,
        concurrency: int = 256,
        callback_concurrency: int = 10,
    ) -> None:
        """`timers` are the running loop's unless others are given."""
        self._posting = posting
        self._settle = settle
        self._disable = disable
        self._clock = clock
        self._chance = chance
        self._timers: Timers = timers or asyncio.get_running_loop()
        self._concurrency = concurrency
        self._callback_concurrency = callback_concurrency
        self._log = structlog.get_logger(_LOGGER)
        self.counters = DispatchCounters()
        self._queues: dict[int, CallbackQueue] = {}
        self._turns: deque[CallbackQueue] = deque()
        self._held = 0
        self._in_flight = 0
        self._registry: Registry | None = None
        self._outbox: list[_Outcome] = []
        self._wake = asyncio.Event()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = count()
        self._alarm: Timer | None = None
        self._alarm_at = math.inf
        self._is_stopping = False
        self._is_settling = False
        self._quiet = asyncio.Event()

    # What goes in

    def apply(self, registry: Registry) -> None:
        """Go by this registry from now on: no attempt starts to a callback that is not in it, or that is disabled.

        Registries come one after the other, each read after the one before was applied. So deliveries that came before the
        previous one are older than this one, and what waits for a callback that is gone from it has ended in the store too.
        Later ones may be younger than this registry, and wait for the next.
        """
        self._registry = registry
        for queue in list(self._queues.values()):
            callback = registry.callbacks.get(queue.callback_id)
            is_removed = callback is None and queue.writer is not None  # it was known, and a removed one never comes back
            is_gone = callback is None or callback.disabled_at is not None
            if is_gone and (is_removed or not queue.has_news):
                self._drop(queue)
            else:
                queue.has_news = False
                self._equip(queue, callback)
                self._give_turn(queue)
        self._pump()

    def offer(self, deliveries: Iterable[Delivery]) -> None:
        """Take deliveries that the store holds, in the order of acceptance; each is offered once."""
        for delivery in deliveries:
            queue = self._queues.get(delivery.callback_id) or self._open_queue(delivery.callback_id)
            queue.has_news = True
            self._held += 1
            key = delivery.lane
            lane = queue.lanes.get(key)
            if lane is not None:
                lane.waiting.append(delivery)
                continue
            lane = queue.lanes[key] = Lane(key)
            lane.waiting.append(delivery)
            self._ready_when_due(queue, lane)
        self._pump()

    def backlog(self) -> int:
        """Deliveries held in memory."""
        return self._held

    # Callbacks

    def _open_queue(self, callback_id: int) -> CallbackQueue:
        queue = self._queues[callback_id] = CallbackQueue(callback_id)
        if self._registry is not None:
            self._equip(queue, self._registry.callbacks.get(callback_id))
        return queue

    def _equip(self, queue: CallbackQueue, callback: Callback | None) -> None:
        """Post as the callback is registered now."""
        if callback is None or callback.disabled_at is not None:
            queue.writer = None
        elif queue.writer is None or queue.writer.callback != callback:
            try:
                queue.writer = RequestWriter(callback)
            except (InputError, ValueError) as error:  # of use to nobody, and no reason to keep the others waiting
                queue.writer = None
                self._log.error("callback.unusable", callback=callback.id, code=callback.code, problem=str(error))

    def _drop(self, queue: CallbackQueue) -> None:
        """Forget what waits for a callback that is gone; the store has done the same. Attempts in flight still end."""
        for lane in queue.lanes.values():
            self._held -= len(lane.waiting)
            lane.waiting.clear()
            lane.is_ready = False
        queue.lanes = {key: lane for key, lane in queue.lanes.items() if lane.is_busy}
        queue.ready.clear()
        queue.writer = None
        queue.paused_until = 0.0
        self._forget_if_gone(queue)

    def _forget_if_gone(self, queue: CallbackQueue) -> None:
        if queue.writer is None and not queue.lanes:
            self._queues.pop(queue.callback_id, None)

    # Turns

    def _ready_when_due(self, queue: CallbackQueue, lane: Lane) -> None:
        due_at = lane.waiting[0].due_at
        wait_s = 0.0 if due_at is None else min((due_at - self._clock()).total_seconds(), _LONGEST_WAIT_S)
        if wait_s > 0:
            self._at(self._timers.time() + wait_s, partial(self._make_ready, queue, lane))
        else:
            self._make_ready(queue, lane)

    def _make_ready(self, queue: CallbackQueue, lane: Lane) -> None:
        if lane.is_busy or lane.is_ready or not lane.waiting:
            return
        lane.is_ready = True
        queue.ready.append(lane)
        self._give_turn(queue)

    def _give_turn(self, queue: CallbackQueue) -> None:
        if not queue.has_turn and queue.ready and queue.in_flight < self._callback_concurrency and _may_post(queue):
            queue.has_turn = True
            self._turns.append(queue)

    def _pump(self) -> None:
        """Start attempts while there is room, one callback after the other."""
        while self._turns and self._in_flight < self._concurrency and not self._is_stopping:
            queue = self._turns.popleft()
            queue.has_turn = False
            if queue.ready and queue.writer is not None and _may_post(queue):
                lane = queue.ready.popleft()
                lane.is_ready = False
                self._start(queue, lane, queue.writer)
                self._give_turn(queue)

    def _start(self, queue: CallbackQueue, lane: Lane, writer: RequestWriter) -> None:
        lane.is_busy = True
        queue.in_flight += 1
        self._in_flight += 1
        delivery = lane.waiting[0]
        delivery.attempts += 1
        self.counters.attempts += 1
        post = writer.write(delivery.event, self._clock())
        self._posting.start(post, partial(self._ended, queue, lane, delivery))

    def _ended(self, queue: CallbackQueue, lane: Lane, delivery: Delivery, _: Post, outcome: Outcome) -> None:
        queue.in_flight -= 1
        self._in_flight -= 1
        if self._is_stopping and isinstance(outcome, Unreachable) and outcome.reason == "closing":
            self._note_quiet()
            return  # cut off by our own stop: no attempt in the store's eyes, the next start makes it
        now, now_s = self._clock(), self._timers.time()
        status, retry_after, answer, excerpt = _read(outcome)
        verdict = judge(
            status,
            retry_after,
            attempts=delivery.attempts,
            accepted_at=delivery.event.accepted_at,
            now=now,
            chance=self._chance(),
        )
        settlement = _settlement(delivery, verdict, now, f"{answer} {excerpt[:_EXCERPT_SHOWN]}" if excerpt else answer)
        self._outbox.append(_Outcome(queue, lane, delivery, verdict, settlement, answer, now_s))
        self._wake.set()
        if isinstance(verdict, TryAgain) and verdict.pauses_callback:
            self._pause(queue, now_s + verdict.wait.total_seconds())
        elif isinstance(verdict, GiveUp) and verdict.disables_callback:
            queue.paused_until = _FOR_GOOD
        self._give_turn(queue)
        self._pump()

    def _pause(self, queue: CallbackQueue, until_s: float) -> None:
        if until_s > queue.paused_until:
            queue.paused_until = until_s
            self._at(until_s, partial(self._end_pause, queue, until_s))

    def _end_pause(self, queue: CallbackQueue, until_s: float) -> None:
        if queue.paused_until == until_s:  # or else it was asked to wait longer since
            queue.paused_until = 0.0
            self._give_turn(queue)

    # Settling

    async def run(self) -> None:
        """Write outcomes down as they come, as many at once as there are; runs until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._outbox = self._outbox, []
            if batch:
                self._is_settling = True
                try:
                    await self._settle_all(batch)
                finally:
                    self._is_settling = False
            self._note_quiet()

    async def _settle_all(self, batch: list[_Outcome]) -> None:
        settlements = [outcome.settlement for outcome in batch]
        gone = {
            outcome.delivery.callback_id: outcome.verdict.reason
            for outcome in batch
            if isinstance(outcome.verdict, GiveUp) and outcome.verdict.disables_callback
        }
        while True:
            try:
                await self._settle(settlements)
                for callback_id, reason in gone.items():
                    await self._disable(callback_id, reason)
            except StoreError as error:
                self._log.error("delivery.settle_failed", error=str(error), deliveries=len(batch))
                await self._sleep(_STORE_RETRY_S)
            else:
                break
        is_debugging = logging.getLogger(_LOGGER).isEnabledFor(logging.DEBUG)  # asked once: most attempts have nothing to say
        for outcome in batch:
            if is_debugging or not isinstance(outcome.verdict, Delivered):
                self._report(outcome)
            self._go_on(outcome)
        self._pump()

    def _go_on(self, outcome: _Outcome) -> None:
        """The store has it: the lane's next delivery may start."""
        queue, lane, verdict = outcome.queue, outcome.lane, outcome.verdict
        if isinstance(verdict, Delivered):
            self.counters.delivered += 1
        elif isinstance(verdict, GiveUp):
            self.counters.dead += 1
            if verdict.disables_callback:
                self._drop(queue)
        lane.is_busy = False
        if lane.waiting and lane.waiting[0] is outcome.delivery:  # or else it was dropped meanwhile
            if isinstance(verdict, TryAgain):
                outcome.delivery.due_at = outcome.settlement.due_at
                self._at(outcome.ended_s + verdict.wait.total_seconds(), partial(self._make_ready, queue, lane))
                return
            lane.waiting.popleft()
            self._held -= 1
        if lane.waiting:
            self._ready_when_due(queue, lane)
        else:
            del queue.lanes[lane.key]
            self._forget_if_gone(queue)

    def _report(self, outcome: _Outcome) -> None:
        """Receivers' own words stay out of the log: an error page may repeat our credentials."""
        delivery = outcome.delivery
        log = self._log.bind(event_id=delivery.event.id, callback=delivery.callback_id, attempts=delivery.attempts)
        match outcome.verdict:
            case Delivered():
                log.debug("delivery.settled", answer=outcome.answer)
            case TryAgain(wait):
                log.info("delivery.failed", answer=outcome.answer, retry_in_s=round(wait.total_seconds(), 1))
            case GiveUp(reason):
                log.warning("delivery.died", answer=outcome.answer, reason=reason)

    # Time

    def _at(self, when_s: float, action: Callable[[], None]) -> None:
        heappush(self._agenda, (when_s, next(self._ticket), action))
        self._set_alarm()

    def _set_alarm(self) -> None:
        """One timer for the whole agenda, set to what comes first."""
        if self._is_stopping or not self._agenda or self._agenda[0][0] >= self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = self._agenda[0][0]
        self._alarm = self._timers.call_at(self._alarm_at, self._ring)

    def _ring(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        now_s = self._timers.time() + _TIMER_STEP_S
        while self._agenda and self._agenda[0][0] <= now_s:
            _, _, action = heappop(self._agenda)
            action()
        self._set_alarm()
        self._pump()

    async def _sleep(self, seconds: float) -> None:
        over = asyncio.Event()
        timer = self._timers.call_at(self._timers.time() + seconds, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    # Stopping

    async def settled(self) -> None:
        """Wait until no attempt is under way and every outcome is durable."""
        while self._in_flight or self._outbox or self._is_settling:
            self._quiet.clear()
            await self._quiet.wait()

    def stop(self) -> None:
        """Start nothing more; outcomes go on being settled. Safe to repeat."""
        self._is_stopping = True
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def drain(self, grace: timedelta) -> bool:
        """Stop, and wait until what is in flight has ended and is durable; False when `grace` ran out."""
        self.stop()
        try:
            async with asyncio.timeout(grace.total_seconds()):
                await self.settled()
        except TimeoutError:
            return False
        return True

    def _note_quiet(self) -> None:
        if not (self._in_flight or self._outbox or self._is_settling):
            self._quiet.set()


def _may_post(queue: CallbackQueue) -> bool:
    return queue.writer is not None and not queue.paused_until


def _read(outcome: Outcome) -> tuple[int | None, str | None, str, str]:
    """Status, Retry-After, the answer in short, and how its body began."""
    match outcome:
        case Answered(status, retry_after, excerpt):
            return status, retry_after, str(status), excerpt
        case Unreachable(reason) | Forbidden(reason):
            return None, None, reason, ""


def _settlement(delivery: Delivery, verdict: Verdict, now: datetime, text: str) -> Settlement:
    match verdict:
        case Delivered():
            state, due_at = DeliveryState.DELIVERED, None
        case TryAgain(wait):
            state, due_at = DeliveryState.WAITING, now + wait
        case GiveUp():
            state, due_at = DeliveryState.DEAD, None
    return Settlement(delivery.event.seq, delivery.callback_id, state, delivery.attempts, due_at, text)
