"""The dispatcher: which delivery goes next.

A lane holds the deliveries of one side of one call to one callback, strictly one after the other: its next one starts when the
store has the outcome of the one before. Callbacks with something to send take turns, each within its cap of concurrent posts.

This room decides and remembers; the transport does the posting, the store the writing. All methods belong to the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

import structlog

from toque.callbacks.callback import Registry
from toque.callbacks.delivery import (
    Delivered,
    Delivery,
    DeliveryState,
    GiveUp,
    Settlement,
    TryAgain,
    Verdict,
    judge,
)
from toque.errors import StoreError
from toque.sending.requests import RequestWriter
from toque.sending.transport import Answered, Forbidden, Outcome, Post, Unreachable

_STORE_RETRY_S = 0.5  # between tries to write outcomes down while the store fails
_FOR_GOOD = datetime.max.replace(tzinfo=UTC)
_EXCERPT_SHOWN = 120  # characters of a refusal's body that are kept with the delivery

LaneKey = tuple[int, str, str, str]


class Posting(Protocol):
    """What the dispatcher needs of a transport."""

    def start(self, post: Post, on_outcome: Callable[[Post, Outcome], None]) -> None:
        """Begin an attempt whose outcome is told once, later."""


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
    paused_until: datetime | None = None
    has_turn: bool = False
    writer: RequestWriter | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """An attempt that ended, on its way into the store."""

    lane: Lane
    delivery: Delivery
    verdict: Verdict
    answer: str  # the status or what was in the way
    excerpt: str  # how a refusal's body began
    at: datetime


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
        concurrency: int = 256,
        callback_concurrency: int = 10,
    ) -> None:
        self._posting = posting
        self._settle = settle
        self._disable = disable
        self._clock = clock
        self._chance = chance
        self._concurrency = concurrency
        self._callback_concurrency = callback_concurrency
        self._log = structlog.get_logger("toque.sending")
        self.counters = DispatchCounters()
        self._queues: dict[int, CallbackQueue] = {}
        self._turns: deque[CallbackQueue] = deque()
        self._in_flight = 0
        self._registry: Registry | None = None
        self._outbox: list[_Outcome] = []
        self._wake = asyncio.Event()
        self._timers: list[tuple[datetime, int, Callable[[], None]]] = []
        self._ticket = count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: datetime | None = None
        self._is_stopping = False
        self._is_settling = False
        self._quiet = asyncio.Event()

    # What goes in

    def apply(self, registry: Registry) -> None:
        """Go by this registry from now on: no attempt starts to a callback that is not in it, or that is disabled."""
        self._registry = registry
        for queue in list(self._queues.values()):
            callback = registry.callbacks.get(queue.callback_id)
            if queue.writer is not None and queue.writer.callback != callback:
                queue.writer = None
                queue.paused_until = None
            if callback is None or callback.disabled_at is not None:
                self._drop(queue)
            else:
                self._give_turn(queue)
        self._pump()

    def offer(self, deliveries: Iterable[Delivery]) -> None:
        """Take deliveries that the store holds, in the order of acceptance; each is offered once."""
        for delivery in deliveries:
            queue = self._queues.get(delivery.callback_id)
            if queue is None:
                queue = self._queues[delivery.callback_id] = CallbackQueue(delivery.callback_id)
            key = delivery.lane
            lane = queue.lanes.get(key)
            if lane is None:
                lane = queue.lanes[key] = Lane(key)
            lane.waiting.append(delivery)
            if not lane.is_busy and not lane.is_ready and lane.waiting[0] is delivery:
                self._ready_when_due(queue, lane)
        self._pump()

    def backlog(self) -> int:
        """Deliveries held in memory."""
        return sum(len(lane.waiting) for queue in self._queues.values() for lane in queue.lanes.values())

    # Turns

    def _ready_when_due(self, queue: CallbackQueue, lane: Lane) -> None:
        due_at = lane.waiting[0].due_at
        if due_at is not None and due_at > self._clock():
            self._at(due_at, partial(self._make_ready, queue, lane))
        else:
            self._make_ready(queue, lane)

    def _make_ready(self, queue: CallbackQueue, lane: Lane) -> None:
        if lane.is_busy or lane.is_ready or not lane.waiting:
            return
        lane.is_ready = True
        queue.ready.append(lane)
        self._give_turn(queue)

    def _give_turn(self, queue: CallbackQueue) -> None:
        if queue.has_turn or not queue.ready or queue.in_flight >= self._callback_concurrency:
            return
        if queue.paused_until is not None:
            if queue.paused_until > self._clock():
                return
            queue.paused_until = None
        queue.has_turn = True
        self._turns.append(queue)

    def _pump(self) -> None:
        """Start attempts while there is room, one callback after the other."""
        while self._turns and self._in_flight < self._concurrency and not self._is_stopping:
            queue = self._turns.popleft()
            queue.has_turn = False
            writer = self._writer_of(queue)
            if writer is None or not queue.ready:
                continue
            lane = queue.ready.popleft()
            lane.is_ready = False
            if lane.waiting:
                self._start(queue, lane, writer)
            self._give_turn(queue)

    def _writer_of(self, queue: CallbackQueue) -> RequestWriter | None:
        """None while the registry does not have the callback: `apply` gives it its turn, or drops it."""
        if queue.writer is None and self._registry is not None:
            callback = self._registry.callbacks.get(queue.callback_id)
            if callback is not None and callback.disabled_at is None:
                queue.writer = RequestWriter(callback)
        return queue.writer

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
        now = self._clock()
        status, retry_after, answer, excerpt = _read(outcome)
        verdict = judge(
            status,
            retry_after,
            attempts=delivery.attempts,
            accepted_at=delivery.event.accepted_at,
            now=now,
            chance=self._chance(),
        )
        self._outbox.append(_Outcome(lane, delivery, verdict, answer, excerpt, now))
        self._wake.set()
        if isinstance(verdict, TryAgain) and verdict.pauses_callback:
            self._pause(queue, now + verdict.wait)
        elif isinstance(verdict, GiveUp) and verdict.disables_callback:
            queue.paused_until = _FOR_GOOD
        self._give_turn(queue)
        self._pump()

    def _pause(self, queue: CallbackQueue, until: datetime) -> None:
        if queue.paused_until is None or until > queue.paused_until:
            queue.paused_until = until
            self._at(until, partial(self._give_turn, queue))

    def _drop(self, queue: CallbackQueue) -> None:
        """Forget what waits for a callback that is gone; the store has done the same."""
        for lane in queue.lanes.values():
            lane.waiting.clear()
            lane.is_ready = False
        queue.ready.clear()
        queue.lanes.clear()
        if self._queues.get(queue.callback_id) is queue:
            del self._queues[queue.callback_id]

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
        settlements = [_settlement(outcome) for outcome in batch]
        while True:
            try:
                await self._settle(settlements)
                for outcome in batch:
                    if isinstance(outcome.verdict, GiveUp) and outcome.verdict.disables_callback:
                        await self._disable(outcome.delivery.callback_id, outcome.verdict.reason)
            except StoreError as error:
                self._log.error("delivery.settle_failed", error=str(error), deliveries=len(batch))
                await asyncio.sleep(_STORE_RETRY_S)
            else:
                break
        for outcome in batch:
            self._go_on(outcome)
        self._pump()

    def _go_on(self, outcome: _Outcome) -> None:
        """The store has it: the lane's next delivery may start."""
        lane, delivery, verdict = outcome.lane, outcome.delivery, outcome.verdict
        lane.is_busy = False
        self._report(outcome)
        queue = self._queues.get(delivery.callback_id)
        if queue is None or queue.lanes.get(lane.key) is not lane:
            return  # dropped meanwhile
        if isinstance(verdict, TryAgain):
            delivery.due_at = outcome.at + verdict.wait
        else:
            lane.waiting.popleft()
        if lane.waiting:
            self._ready_when_due(queue, lane)
        else:
            del queue.lanes[lane.key]
            if not queue.lanes and not queue.in_flight and queue.paused_until is None:
                self._queues.pop(queue.callback_id, None)

    def _report(self, outcome: _Outcome) -> None:
        """Receivers' own words stay out of the log: an error page may repeat our credentials."""
        delivery = outcome.delivery
        log = self._log.bind(event_id=delivery.event.id, callback=delivery.callback_id, attempts=delivery.attempts)
        match outcome.verdict:
            case Delivered():
                self.counters.delivered += 1
                log.debug("delivery.settled", answer=outcome.answer)
            case TryAgain(wait):
                log.info("delivery.failed", answer=outcome.answer, retry_in_s=round(wait.total_seconds(), 1))
            case GiveUp(reason):
                self.counters.dead += 1
                log.warning("delivery.died", answer=outcome.answer, reason=reason)

    # Time

    def _at(self, moment: datetime, action: Callable[[], None]) -> None:
        heappush(self._timers, (moment, next(self._ticket), action))
        self._arm()

    def _arm(self) -> None:
        if not self._timers or (self._timer is not None and self._timer_at is not None and self._timer_at <= self._timers[0][0]):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._timers[0][0]
        delay = max((self._timer_at - self._clock()).total_seconds(), 0.001)
        self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def _fire(self) -> None:
        self._timer = self._timer_at = None
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            _, _, action = heappop(self._timers)
            action()
        self._arm()
        self._pump()

    async def settled(self) -> None:
        """Wait until no attempt is under way and every outcome is durable."""
        while self._in_flight or self._outbox or self._is_settling:
            self._quiet.clear()
            await self._quiet.wait()

    # Stopping

    async def drain(self, grace: timedelta) -> bool:
        """Start nothing more and wait until what is in flight has ended and is durable; False when `grace` ran out."""
        self._is_stopping = True
        if self._timer is not None:
            self._timer.cancel()
        self._note_quiet()
        try:
            async with asyncio.timeout(grace.total_seconds()):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    def _note_quiet(self) -> None:
        if not (self._in_flight or self._outbox or self._is_settling):
            self._quiet.set()


def _read(outcome: Outcome) -> tuple[int | None, str | None, str, str]:
    """Status, Retry-After, the answer in short, and how its body began."""
    match outcome:
        case Answered(status, retry_after, excerpt):
            return status, retry_after, str(status), excerpt
        case Unreachable(reason) | Forbidden(reason):
            return None, None, reason, ""


def _settlement(outcome: _Outcome) -> Settlement:
    delivery = outcome.delivery
    match outcome.verdict:
        case Delivered():
            state, due_at = DeliveryState.DELIVERED, None
        case TryAgain(wait):
            state, due_at = DeliveryState.WAITING, outcome.at + wait
        case GiveUp():
            state, due_at = DeliveryState.DEAD, None
    text = f"{outcome.answer} {outcome.excerpt[:_EXCERPT_SHOWN]}".strip()
    return Settlement(delivery.event.seq, delivery.callback_id, state, delivery.attempts, due_at, text)
