"""Settling on the engine, and putting into the backlogs what an earlier process left unsettled.

A delivery that is settled as waiting gets a row at the end of its callback's backlog, or before what comes after it in its lane,
if that has got one: it was under way, or in memory, when the later one was left to the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from toque.callbacks.delivery import Delivery, DeliveryState, Event, LaneKey, Settlement, sorted_out
from toque.errors import IllegalStep
from toque.store.nats_backlog import Shelf
from toque.store.nats_documents import Book, CallbackDocument
from toque.store.nats_fresh import Fresh
from toque.store.nats_log import Log
from toque.store.nats_rows import DEAD, DELIVERED, WAITING, Dead, Waiting, raw_event, through_place, waiting
from toque.store.nats_work import DRAFT_MESSAGES, Change, Work
from toque.store.sqlite_rows import to_us, to_us_or_none

_SETTLED_AT_ONCE = DRAFT_MESSAGES // 2  # each may be a message of its own, and a dead one too
_DELIVERED_AT_ONCE = 5_000
_PRUNED_FROM = 1_000


Given = tuple[Delivery, Callable[[], int]]  # a delivery that gets a row, and what will tell its number


class Lanes:
    """Rows that were given lately, by lane: what comes before them in their lane and has no row yet goes before them there."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, LaneKey], list[tuple[int, int, int]]] = {}  # seq, sequence, row
        self._count = 0

    def note(self, callback_id: int, lane: LaneKey, seq: int, sequence: int, row: int) -> None:
        """A delivery has got a row."""
        self._rows.setdefault((callback_id, lane), []).append((seq, sequence, row))
        self._count += 1

    def place_before(self, callback_id: int, event: Event, lane: LaneKey, is_taken: Callable[[int], bool]) -> int:
        """The number before that of the next one of its lane, 0 where none has a row that waits."""
        later = sorted(one for one in self._rows.get((callback_id, lane), ()) if one[0] > event.seq and is_taken(one[2]))
        if not later:
            return 0
        _, sequence, row = later[0]
        place = row - (sequence - event.sequence)
        return 0 if is_taken(place) else place

    def prune(self, open_from: int) -> None:
        """What was accepted before this event has an outcome, all of it, so nothing will have to go before its like."""
        if self._count < _PRUNED_FROM:
            return
        self._rows = {key: kept for key, rows in self._rows.items() if (kept := [one for one in rows if one[0] >= open_from])}
        self._count = sum(map(len, self._rows.values()))


class Settler:
    """Writes down how deliveries stand."""

    def __init__(
        self, work: Work, shelf: Shelf, log: Log, fresh: Fresh, *, book: Callable[[], Book], clock: Callable[[], datetime]
    ) -> None:
        self._work = work
        self._shelf = shelf
        self._log = log
        self._fresh = fresh
        self._book = book
        self._clock = clock
        self._lanes = Lanes()
        self.requeued: dict[tuple[int, int], int] = {}
        """Rows that replays have given to what may still be in memory as well, by callback and event."""

    def begin(self) -> Change:
        """A change as of now."""
        return Change(to_us(self._clock()), self._fresh.open_from(self._log.tail.last_seq))

    async def settle(self, delivered: Sequence[Delivery], others: Sequence[Settlement]) -> None:
        """See `Store.settle`."""
        if others:
            delivered, others = sorted_out(delivered, others)
        async with self._work.lock:
            while delivered or others:
                now, later = others[:_SETTLED_AT_ONCE], others[_SETTLED_AT_ONCE:]
                done, more = delivered[:_DELIVERED_AT_ONCE], delivered[_DELIVERED_AT_ONCE:]
                await self._settle(done, now)
                delivered, others = more, later
            await self._work.tidy()

    async def _settle(self, delivered: Sequence[Delivery], others: Sequence[Settlement]) -> None:
        def think() -> Change:
            change = self.begin()
            given: list[Given] = []
            for delivery in delivered:
                self._deliver(change, delivery)
            for other in others:
                self._other(change, other, given)
            change.and_then = lambda: self._note([*delivered, *(other.delivery for other in others)], given)
            return change

        change = await self._work.commit(think)
        if change.is_empty:
            self._note([*delivered, *(other.delivery for other in others)], [])

    def _note(self, settled: Sequence[Delivery], given: Sequence[Given]) -> None:
        """It is durable: these deliveries are no longer fresh, and some have got rows."""
        for delivery, row in given:
            delivery.row = row()
            event = delivery.event
            self._lanes.note(delivery.callback_id, delivery.lane, event.seq, event.sequence, delivery.row)
        for delivery in settled:
            if delivery.receipt is not None:
                self._fresh.settled(delivery.receipt)
                delivery.receipt = None
        open_from = self._fresh.open_from(self._log.tail.last_seq)
        self._lanes.prune(open_from)
        if len(self.requeued) > _PRUNED_FROM:
            self.requeued = {key: row for key, row in self.requeued.items() if key[1] >= open_from}

    def _deliver(self, change: Change, delivery: Delivery) -> None:
        change.entries.append((delivery.event.seq, delivery.callback_id, delivery.attempts, DELIVERED))
        callback = self._book().callback(delivery.callback_id)
        if delivery.row and callback is not None and self._waits(callback, delivery.row):
            change.done.append((delivery.callback_id, delivery.row))

    def _waits(self, callback: CallbackDocument, row: int) -> bool:
        boxes = self._work.boxes
        return row > callback.dead_through and not boxes.is_done(boxes.get(callback.id), row)

    def _other(self, change: Change, other: Settlement, given: list[Given]) -> None:
        """What a settlement that is no delivery comes to."""
        delivery, callback = other.delivery, self._book().callback(other.delivery.callback_id)
        if callback is None:
            return
        if delivery.row:
            self._old(change, other, callback, delivery.row)
        elif delivery.receipt is not None:
            self._new(change, other, callback, given)

    def _old(self, change: Change, other: Settlement, callback: CallbackDocument, row: int) -> None:
        """One that has a row."""
        delivery = other.delivery
        if not self._waits(callback, row):
            return
        if other.state is DeliveryState.DEAD:
            change.entries.append((delivery.event.seq, callback.id, delivery.attempts, DEAD))
            change.done.append((callback.id, row))
            change.kill(callback.id, _dead(delivery, change.settled_at, other.outcome))
        else:
            change.updates.append((callback.id, row, delivery.attempts, to_us_or_none(delivery.due_at), delivery.age_s))

    def _new(self, change: Change, other: Settlement, callback: CallbackDocument, given: list[Given]) -> None:
        """One that has none."""
        delivery, event = other.delivery, other.delivery.event
        refused = callback.refuses(event.seq) if other.state is DeliveryState.WAITING else None
        is_dead = refused is not None or other.state is DeliveryState.DEAD
        change.entries.append((event.seq, callback.id, delivery.attempts, DEAD if is_dead else WAITING))
        has_row = self.requeued.get((callback.id, event.seq), 0)
        if is_dead:
            change.kill(callback.id, _dead(delivery, change.settled_at, refused or other.outcome))
            if has_row and self._waits(callback, has_row):
                change.done.append((callback.id, has_row))
        elif has_row and self._waits(callback, has_row):
            self._old(change, other, callback, has_row)
            given.append((delivery, lambda: has_row))
        elif late := self._lanes.place_before(callback.id, event, delivery.lane, lambda row: self._waits(callback, row)):
            change.late.append((callback.id, late, waiting(delivery)))
            given.append((delivery, lambda: late))
        else:
            given.append((delivery, change.add(callback.id, waiting(delivery))))

    # After a crash

    async def recover(self) -> list[int]:
        """See `Store.recover`."""
        if len(self._fresh):
            raise IllegalStep("what this process has accepted is not to be recovered")
        async with self._work.lock:
            await self._work.catch_up()
            start = max(self._work.open_from, self._log.tail.open_from, 1)
            if self._log.tail.last_seq and start <= self._log.tail.last_seq:
                await self._recover(start)
            self._fresh.recovered()
            await self._work.tidy(is_forced=True)
        return [number for number, _ in sorted((await self._shelf.sizes()).items())]

    async def _recover(self, start: int) -> None:
        """Give rows to what has no outcome of the events from this one on."""
        place = await self._log.place_of(start)
        lost: list[tuple[int, Event]] = []
        mentioned: set[tuple[int, int]] | None = None
        async for segment in self._log.between(place, self._log.tail.place):
            if mentioned is None:
                mentioned = await self._mentioned(segment.logged, start)
            stored = segment.stored()
            for seq, event in stored.events():
                known = stored.event(seq, event) if seq >= start else None
                lost += [(n, known) for n in event.callback_ids if known is not None and (seq, n) not in mentioned]
        while lost:
            part, lost = lost[:_SETTLED_AT_ONCE], lost[_SETTLED_AT_ONCE:]
            await self._put_back(part, start if lost else self._log.tail.last_seq + 1)
        if self._work.open_from <= self._log.tail.last_seq:
            await self._put_back([], self._log.tail.last_seq + 1)

    async def _mentioned(self, logged: int, start: int) -> set[tuple[int, int]]:
        """The deliveries of events from this one on that have an outcome; also notes the rows that they got."""
        found: set[tuple[int, int]] = set()
        callbacks: set[int] = set()
        for record in await self._work.records(logged):
            for seq, callback_id, _, state in record.entries:
                if seq >= start:
                    found.add((seq, callback_id))
                    if state == WAITING:
                        callbacks.add(callback_id)
        for callback_id in callbacks:
            async for row, one in self._shelf.waiting(callback_id, through_place(logged)):
                event = one.parsed()
                if event.seq >= start:
                    self._lanes.note(callback_id, event.lane, event.seq, event.sequence, row)
        return found

    async def _put_back(self, lost: Sequence[tuple[int, Event]], open_from: int) -> None:
        def think() -> Change:
            change = self.begin()
            change.open_from = open_from
            for callback_id, event in lost:
                callback = self._book().callback(callback_id)
                if callback is not None:
                    self._recovered(change, callback, event)
            if change.is_empty:
                change.entries.append((0, 0, 0, DELIVERED))  # so that there is a record that says how far it is
            return change

        await self._work.commit(think)

    def _recovered(self, change: Change, callback: CallbackDocument, event: Event) -> None:
        """A delivery that was in memory when its process ended."""
        refused = callback.refuses(event.seq)
        change.entries.append((event.seq, callback.id, 0, WAITING if refused is None else DEAD))
        if refused is not None:
            change.kill(callback.id, Dead(0, 0.0, change.settled_at, refused, raw_event(event)))
            return
        row = Waiting(0, None, 0.0, raw_event(event))
        lane = Delivery(event, callback.id).lane
        late = self._lanes.place_before(callback.id, event, lane, lambda place: self._waits(callback, place))
        if late:
            change.late.append((callback.id, late, row))
        else:
            change.add(callback.id, row)


def _dead(delivery: Delivery, died_at: int, outcome: str) -> Dead:
    return Dead(delivery.attempts, delivery.age_s, died_at, outcome, raw_event(delivery.event))
