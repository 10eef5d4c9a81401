"""Backlogs: what waits in the store instead of in memory, on its way there and back.

A callback is *behind* while something waits for it in the store that is not held here. Everything new goes there too, so that
the order of rows is the order of each lane: what is held of a lane and has no row yet gets one before what comes after it.
Pages are read, one at a time, in turn, once there is room. A callback has caught up with a short page if nothing was left to
the store since that page was asked for. So that this moment comes under steady traffic too, what is new waits here for the
last page (*landing*), as far as there is room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Protocol

import structlog

from toque.callbacks.delivery import Delivery
from toque.callbacks.health import State
from toque.errors import StoreError
from toque.sending.agenda import Agenda
from toque.sending.lanes import BUSY, ENDED, LEFT, CallbackQueue, Lane
from toque.sending.retries import Retries
from toque.sending.settling import STORE_RETRY_S, Settling

WINDOW = 1000  # deliveries that one callback holds in memory at most
_LEAST_WINDOW = 10  # and however short memory is, unless there is none
_SHARE_OF_FREE = 8  # one part in so many of what is free is one callback's, so that many may be greedy at once
_PAGE = 500
_PROBE_PAGE = 20  # rows among which a probe is chosen
_LOOK_AGAIN_S = 1.0  # at callbacks that held too much for the room there was: it may be others who made room since
_LATE_ATTEMPTS = 5  # so many attempts of an earlier process, while its callback was well, took longer than the ordering window


class Shelf(Protocol):
    """What is needed of the store."""

    async def backlog(self, callback_id: int, *, after: int = 0, limit: int = 500) -> list[Delivery]:
        """A page of what waits for a callback. Raises `StoreError`."""


class Room:
    """How much memory there is, in deliveries."""

    __slots__ = ("held", "most", "promised")

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self.promised = 0
        """For the page that is being read."""

    @property
    def free(self) -> int:
        """Deliveries that may be taken in."""
        return self.most - self.held - self.promised

    @property
    def window(self) -> int:
        """How many one callback may hold now."""
        return max(_LEAST_WINDOW, min(WINDOW, self.free // _SHARE_OF_FREE))


class Backlogs:
    """Leaves deliveries to the store and reads them back."""

    def __init__(
        self,
        shelf: Shelf,
        *,
        clock: Callable[[], datetime],
        agenda: Agenda,
        settling: Settling,
        retries: Retries,
        room: Room,
        caught_up: Callable[[CallbackQueue], None],
        probe: Callable[[CallbackQueue, list[Delivery]], None],
    ) -> None:
        """`caught_up` is told of a callback that is behind no more, `probe` gets the first page of a failing one."""
        self._shelf = shelf
        self._clock = clock
        self._agenda = agenda
        self._settling = settling
        self._retries = retries
        self._room = room
        self._caught_up = caught_up
        self._probe = probe
        self._log = structlog.get_logger("toque.sending")
        self._wanted: dict[CallbackQueue, None] = {}
        self._cramped: dict[CallbackQueue, None] = {}
        """Those that a page is of use for, once they hold less or there is more room."""
        self._wake = asyncio.Event()
        self._is_reading = False
        self._is_over = False

    # There

    def take(self, queue: CallbackQueue, delivery: Delivery) -> None:
        """A new delivery for a callback that is behind, or that holds as much as it may."""
        if queue.landing is not None and not queue.health.is_parked:
            if len(queue.landing) < self._room.window // 4 and self._room.free > 0:
                self._land(queue, queue.landing, delivery)
                return
            self._abandon_landing(queue)
        self._leave(queue, delivery)

    def fall_behind(self, queue: CallbackQueue) -> None:
        """Something waits in the store from now on, or more of it than was known."""
        if queue.landing is not None:
            self._abandon_landing(queue)
        queue.is_behind = queue.has_left = True
        queue.is_dry = False
        queue.cursor = 0

    def release(self, queue: CallbackQueue) -> None:
        """Leave everything to the store that is not under way, and hold it no more."""
        before = queue.held
        for lane in [*queue.lanes.values(), *queue.late]:
            self._release_lane(queue, lane)
        self._room.held -= before - queue.held
        self._abandon_landing(queue)
        queue.ready.clear()
        queue.reading += 1
        queue.is_old = False
        self.fall_behind(queue)

    def _land(self, queue: CallbackQueue, landing: list[Delivery], delivery: Delivery) -> None:
        landing.append(delivery)
        queue.held += 1
        self._room.held += 1

    def _abandon_landing(self, queue: CallbackQueue) -> None:
        landing, queue.landing = queue.landing or (), None
        queue.held -= len(landing)
        self._room.held -= len(landing)
        for delivery in landing:
            self._leave(queue, delivery)

    def _leave(self, queue: CallbackQueue, delivery: Delivery) -> None:
        if not queue.is_behind:
            self.fall_behind(queue)
        queue.is_dry = False
        lane = queue.lanes.get(delivery.lane)
        if lane is not None:
            self._give_rows(queue, lane)
        self._settling.leave(queue, delivery)

    def _give_rows(self, queue: CallbackQueue, lane: Lane) -> None:
        """Have everything written that is held of a lane, except what is being written anyway."""
        for delivery in lane.deliveries():
            if not delivery.row and not (lane.state == ENDED and delivery is lane.head):
                self._settling.leave(queue, delivery)

    def _release_lane(self, queue: CallbackQueue, lane: Lane) -> None:
        if lane.is_late:
            queue.late_seqs.add(lane.head.event.seq)
        if lane.state in (BUSY, ENDED):
            if lane.rest:
                self._give_rows(queue, lane)
                queue.held -= len(lane.rest)
                lane.rest = None
            return
        self._give_rows(queue, lane)
        lane.state = LEFT
        queue.held -= 1 + len(lane.rest or ())
        if lane.is_late:
            del queue.late[lane]
        else:
            del queue.lanes[lane.key]

    # And back

    def want(self, queue: CallbackQueue) -> None:
        """Read a page for this callback when it is its turn, if that is of use now."""
        if queue in self._wanted or not self._is_wanted(queue):
            return
        if self._fits(queue):
            self._wanted[queue] = None
            self._wake.set()
        else:
            self._put_off(queue)

    def stop(self) -> None:
        """Read nothing more."""
        self._is_over = True
        self._wanted.clear()
        self._cramped.clear()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing will be read unless something else happens first."""
        return not self._is_reading and not (self._wanted and self._room.free > 0)

    def look_again(self) -> None:
        """There may be room again."""
        if self._wanted and self._room.free > 0:
            self._wake.set()

    async def run(self, after: Callable[[], None]) -> None:
        """Read until cancelled; `after` is called after each page."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._wanted and self._room.free > 0:
                queue = next(iter(self._wanted))
                del self._wanted[queue]
                if self._is_wanted(queue):
                    if self._fits(queue):
                        await self._read(queue)
                    else:
                        self._put_off(queue)
                after()

    def _is_wanted(self, queue: CallbackQueue) -> bool:
        if not queue.is_behind or queue.is_reading or queue.paused_until or queue.writer is None or self._is_over:
            return False
        if queue.health.is_parked:
            return queue.is_probe_due and not queue.is_dry and not queue.in_use and queue.health.state is State.FAILING
        return queue.landing is None or not queue.leaving

    def _fits(self, queue: CallbackQueue) -> bool:
        """Whether there is room for a page of it: half a window. A probe always fits."""
        return queue.health.is_parked or queue.held < self._room.window // 2

    def _put_off(self, queue: CallbackQueue) -> None:
        """What it holds may wait for long, and nothing of its own say when others have made room."""
        if not self._cramped:
            self._agenda.at(self._agenda.time() + _LOOK_AGAIN_S, Backlogs._look_at_cramped, self)
        self._cramped[queue] = None

    def _look_at_cramped(self) -> None:
        cramped, self._cramped = self._cramped, {}
        for queue in cramped:
            self.want(queue)

    async def _read(self, queue: CallbackQueue) -> None:
        is_probe = queue.health.is_parked
        limit = _PROBE_PAGE if is_probe else min(_PAGE, self._room.window - queue.held, self._room.free)
        reading = queue.reading
        self._room.promised = 1 if is_probe else limit
        queue.has_left = queue.leaving > 0
        self._is_reading = queue.is_reading = True
        try:
            page = await self._shelf.backlog(queue.callback_id, after=0 if is_probe else queue.cursor, limit=limit)
        except StoreError as error:
            self._room.promised = 0
            self._log.error("backlog.read_failed", error=str(error), callback=queue.callback_id)
            await self._agenda.sleep(STORE_RETRY_S)
        else:
            self._room.promised = 0
            if reading == queue.reading and not self._is_over:
                self._arrived(queue, page, is_probe=is_probe, is_last=len(page) < limit)
        finally:
            self._is_reading = queue.is_reading = False
            queue.gone.clear()
        self.want(queue)

    def _arrived(self, queue: CallbackQueue, page: list[Delivery], *, is_probe: bool, is_last: bool) -> None:
        now_s = self._agenda.time()
        for delivery in page:
            delivery.since_s = now_s
        if is_probe:
            queue.is_dry = not page and not queue.has_left
            if page:
                self._probe(queue, page)
            return
        if page:
            self._admit_all(queue, self._unheld(queue, page))
            queue.cursor = page[-1].row
        if not is_last:
            return
        if not queue.has_left:
            self._catch_up(queue)
        elif queue.landing is None:
            queue.landing = []

    def _unheld(self, queue: CallbackQueue, page: Sequence[Delivery]) -> Iterable[Delivery]:
        """What is in the store and neither held here nor done with meanwhile."""
        held = {delivery.event.seq: delivery for lane in (*queue.lanes.values(), *queue.late) for delivery in lane.deliveries()}
        for delivery in page:
            mine = held.get(delivery.event.seq)
            if mine is not None and not mine.row:
                mine.row = delivery.row  # it was written a moment ago, and this page knows it first
            elif (mine is None or mine.row != delivery.row) and delivery.row not in queue.gone:
                yield delivery

    def _admit_all(self, queue: CallbackQueue, deliveries: Iterable[Delivery]) -> None:
        was_well = queue.is_old and not queue.health.is_parked
        for delivery in deliveries:
            is_late = delivery.event.seq in queue.late_seqs or (was_well and delivery.attempts >= _LATE_ATTEMPTS)
            self._room.held += 1
            lane = queue.hold_late(delivery) if is_late else queue.hold(delivery)
            if lane is not None:
                self._retries.begin(lane)

    def _catch_up(self, queue: CallbackQueue) -> None:
        landing, queue.landing = queue.landing or (), None
        queue.held -= len(landing)
        self._room.held -= len(landing)
        self._admit_all(queue, landing)
        queue.is_behind = queue.is_old = False
        queue.late_seqs.clear()
        self._caught_up(queue)
