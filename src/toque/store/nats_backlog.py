"""Backlogs and dead deliveries on the engine: reading them in the order of rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import Any

from toque.callbacks.delivery import Delivery
from toque.store.contract import DeadDelivery
from toque.store.nats_boxes import Box, Boxes
from toque.store.nats_documents import Book, CallbackDocument
from toque.store.nats_layout import Layout
from toque.store.nats_rows import (
    Dead,
    Waiting,
    parse_dead,
    parse_waiting,
    row_number,
    row_place,
    through_place,
)
from toque.store.nats_work import Work
from toque.store.sqlite_rows import from_us

_MESSAGES_A_PAGE = 100  # each may have many rows


class Shelf:
    """The rows of callbacks, whoever has written them."""

    def __init__(self, layout: Layout, work: Work, book: Callable[[], Book]) -> None:
        self._names = layout.names
        self._stream = layout.work
        self._work = work
        self._boxes: Boxes = work.boxes
        self._book = book

    async def page(self, callback_id: int, after: int, limit: int) -> list[Delivery]:
        """See `Store.backlog`."""
        await self._work.catch_up()
        callback = self._book().callback(callback_id)
        if callback is None:
            return []
        found: list[Delivery] = []
        async for row, one in self.waiting(callback_id, max(after, callback.dead_through)):
            found.append(one.delivery(callback_id, row))
            if len(found) >= limit:
                break
        return found

    async def waiting(self, callback_id: int, after: int, through: int | None = None) -> AsyncIterator[tuple[int, Waiting]]:
        """The rows that wait behind a number, and until another, in their order."""
        box = self._boxes.get(callback_id)
        rows = self._rows(self._names.waiting(callback_id), after, through, parse_waiting, box)
        late = sorted(row for row in box.late if row > after and (through is None or row <= through))
        async for row, one in rows:
            while late and late[0] < row:
                yield late[0], box.late[late.pop(0)]
            fixed = box.updates.get(row)
            yield row, one if fixed is None else Waiting(*fixed, one.event)
        for row in late:
            if row in box.late:
                yield row, box.late[row]

    async def _rows(
        self, subject: str, after: int, through: int | None, parse: Callable[[bytes], list[Any]], box: Box
    ) -> AsyncIterator[tuple[int, Any]]:
        """What is not done with of the messages of a subject."""
        last = await self._stream.last(subject)
        place, is_all = row_place(after), last is None
        while last is not None and not is_all and place <= last.seq:
            if place == last.seq:
                messages, is_all = [last], True
            else:
                messages, is_all = await self._stream.page(subject, place, through=last.seq, most=_MESSAGES_A_PAGE)
            for message in messages:
                rows = parse(message.data)
                for index, one in enumerate(rows):
                    row = row_number(message.seq, len(rows), index)
                    if through is not None and row > through:
                        return
                    if row > after and not self._boxes.is_done(box, row):
                        yield row, one
                place = message.seq + 1

    async def dead(self, callback_id: int, after: int, limit: int) -> list[DeadDelivery]:
        """See `Store.dead`."""
        await self._work.catch_up()
        callback = self._book().callback(callback_id)
        if callback is None:
            return []
        found = [(row, one, False) async for row, one in _first(self.marked(callback, after), limit)]
        found += [(row, one, True) async for row, one in _first(self.marked_dead(callback_id, after), limit)]
        return [
            DeadDelivery(one.delivery(callback_id, row), from_us(one.died_at), one.outcome)
            for row, one, _ in islice(sorted(found, key=lambda pair: pair[0]), limit)
        ]

    async def marked_dead(self, callback_id: int, after: int, through: int | None = None) -> AsyncIterator[tuple[int, Dead]]:
        """Those that are dead by themselves."""
        box = self._boxes.get(callback_id)
        async for row, one in self._rows(self._names.dead(callback_id), after, through, parse_dead, box):
            yield row, one

    async def marked(self, callback: CallbackDocument, after: int, through: int | None = None) -> AsyncIterator[tuple[int, Dead]]:
        """Those that their callback took with it when it was disabled, as long as they lie among what waits."""
        if callback.dead_at is None or not callback.is_to_be_marked:
            return
        end = callback.dead_through if through is None else min(through, callback.dead_through)
        async for row, one in self.waiting(callback.id, after, end):
            yield row, Dead(one.attempts, one.age_s, callback.dead_at, callback.dead_reason or "", one.event)

    async def sizes(self) -> dict[int, int]:
        """See `Store.backlog_sizes`."""
        await self._work.catch_up()
        known = self._book().callbacks
        for callback_id, (_, callback) in known.items():
            await self.heed_mark(callback_id, callback)
        return {number: box.count for number, box in self._boxes.items() if number in known and box.count > 0}

    async def heed_mark(self, callback_id: int, callback: CallbackDocument) -> None:
        """Count no more what died with its callback's last disabling."""
        box = self._boxes.get(callback_id)
        mark = callback.dead_through
        if box.mark >= mark:
            return
        count = sum(row > mark for row in box.late)
        if box.tail > row_place(mark):
            count = 0
            async for _ in self.waiting(callback_id, mark, through_place(box.tail)):
                count += 1
        self._boxes.changed(callback_id)
        box.mark, box.count = mark, count


async def _first(rows: AsyncIterator[tuple[int, Dead]], limit: int) -> AsyncIterator[tuple[int, Dead]]:
    """So many at most."""
    number = 0
    async for found in rows:
        yield found
        number += 1
        if number >= limit:
            return
