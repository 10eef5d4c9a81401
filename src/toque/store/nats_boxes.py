"""What memory holds of the backlogs: not what waits, but which rows of the messages that are there do so no more.

A box is a callback's. It grows with what is under way and with what gets done out of turn, not with what waits. Boxes follow from
the records alone, so every store object that reads them comes to the same; now and then they are written down, with the place of
the last record that is in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec

from toque.store.nats_layout import Layout
from toque.store.nats_rows import Record, Waiting, is_late, row_index, row_place, row_size
from toque.store.nats_stream import TIME_TO_LIVE, Draft

_REMEMBERED = 20_000  # messages that are done with, lest a delivery that is settled twice be counted twice
_DROPPED_AT_ONCE = 64
GARBAGE = 256  # messages that are done with before they are thrown away

Fixed = tuple[int, int | None, float]  # attempts, due_at, age_s


class Box(msgspec.Struct):
    """One callback's."""

    count: int = 0  # rows behind `mark` that wait
    mark: int = 0  # rows until here died with their callback's last disabling
    tail: int = 0  # the place of the last message of what waits
    masks: dict[int, int] = {}  # by a message's place: which of its rows are done with
    updates: dict[int, Fixed] = {}
    late: dict[int, Waiting] = {}
    through: int = 0  # the place of the last record that it had heeded when it was written down

    def is_done(self, row: int) -> bool:
        """Whether a row of a message that is there is done with."""
        return bool(self.masks.get(row_place(row), 0) >> row_index(row) & 1)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remember."""
        return not (self.count or self.mark or self.masks or self.updates or self.late)


class _Written(msgspec.Struct, array_like=True):
    """A box as it is written down: masks have more bits than a number there may have."""

    count: int
    mark: int
    tail: int
    masks: dict[int, str]  # in hexadecimal
    updates: dict[int, Fixed]
    late: dict[int, Waiting]
    through: int


_BOX = msgspec.json.Decoder(_Written)
_MARK = msgspec.json.Decoder(int)
_encode = msgspec.json.Encoder().encode


class Boxes:
    """Everybody's."""

    def __init__(self, layout: Layout) -> None:
        self._names = layout.names
        self._state = layout.state
        self._work = layout.work
        self._boxes: dict[int, Box] = {}
        self._changed: set[int] = set()
        self._finished: dict[int, None] = {}  # places of messages that are done with
        self.garbage: list[int] = []
        self.through = 0
        """The place of the last record that is in them."""

    async def open(self) -> None:
        """As they were written down."""
        mark = await self._state.last(self._names.state("mark.work"))
        self.through = 0 if mark is None else _MARK.decode(mark.data)
        for message in await self._state.all(self._names.state("box.*")):
            if message.data:
                self._boxes[int(message.subject.rpartition(".")[2])] = _read(_BOX.decode(message.data))

    def get(self, callback_id: int) -> Box:
        """A callback's."""
        box = self._boxes.get(callback_id)
        if box is None:
            box = self._boxes[callback_id] = Box(masks={}, updates={}, late={})
        return box

    def changed(self, callback_id: int) -> Box:
        """The same, to be written down anew."""
        self._changed.add(callback_id)
        return self.get(callback_id)

    def items(self) -> Iterator[tuple[int, Box]]:
        """All that there are."""
        yield from sorted(self._boxes.items())

    def apply(self, place: int, record: Record) -> None:
        """Go by a record at this place."""
        for callback_id, offset, size in record.added:
            if box := self._heeding(callback_id, place):
                box.count += size
                box.tail = place + offset
        for callback_id, row, one in record.late:
            if box := self._heeding(callback_id, place):
                self._squeeze_in(box, row, one)
        for callback_id, row, *fixed in record.updates:
            if box := self._heeding(callback_id, place):
                self._update(box, row, fixed)
        for rows, is_waiting in ((record.done, True), (record.revived, False)):
            for callback_id, row in rows:
                if box := self._heeding(callback_id, place):
                    self._finish(box, row, is_waiting=is_waiting)
        self.through = place

    def _squeeze_in(self, box: Box, row: int, one: Waiting) -> None:
        if row not in box.late:
            box.late[row] = one
            box.count += row > box.mark

    def _heeding(self, callback_id: int, place: int) -> Box | None:
        """The box that a record is for, unless it was written down after it had heeded that record."""
        box = self.changed(callback_id)
        return box if place > box.through else None

    def _update(self, box: Box, row: int, fixed: list[Any]) -> None:
        if row in box.late:
            attempts, due_at, age_s = fixed
            box.late[row] = Waiting(attempts, due_at, age_s, box.late[row].event)
        elif not is_late(row) and not self.is_done(box, row):
            box.updates[row] = (fixed[0], fixed[1], fixed[2])

    def is_done(self, box: Box, row: int) -> bool:
        """Whether a row does not wait, or is not dead, any more."""
        if is_late(row):
            return row not in box.late
        return row_place(row) in self._finished or box.is_done(row)

    def _finish(self, box: Box, row: int, *, is_waiting: bool) -> None:
        if self.is_done(box, row):
            return
        if is_waiting and row > box.mark:
            box.count -= 1
        box.updates.pop(row, None)
        if is_late(row):
            del box.late[row]
            return
        place = row_place(row)
        mask = box.masks.get(place, 0) | 1 << row_index(row)
        if mask.bit_count() < row_size(row):
            box.masks[place] = mask
            return
        box.masks.pop(place, None)
        self._finished[place] = None
        if len(self._finished) > _REMEMBERED:
            del self._finished[next(iter(self._finished))]
        self.garbage.append(place)

    def forget(self, callback_id: int) -> None:
        """A callback is gone, and with it all that it had."""
        if self._boxes.pop(callback_id, None) is not None:
            self._changed.add(callback_id)

    async def drop_garbage(self) -> None:
        """Throw away the messages that are done with. Raises `StoreError`; then they are thrown away another time."""
        while self.garbage:
            part = self.garbage[-_DROPPED_AT_ONCE:]
            await asyncio.gather(*(self._work.drop(place) for place in part))
            del self.garbage[-len(part) :]

    async def write_down(self) -> None:
        """Write down what has changed, so that nobody needs the records until here any more.

        Boxes that are empty go only after the mark: until then they say which records they had heeded.
        """
        await self.drop_garbage()
        through, changed = self.through, sorted(self._changed)
        await self._state.put_all([self._draft(number, self._boxes[number]) for number in changed if number in self._boxes])
        await self._state.put(self._names.state("mark.work"), str(through).encode())
        gone = [number for number in changed if number not in self._boxes or self._boxes[number].is_empty]
        await self._state.put_all([Draft(self._subject(number), b"", {TIME_TO_LIVE: "1s"}) for number in gone])
        for number in gone:
            if number in self._boxes and self._boxes[number].is_empty:
                del self._boxes[number]
        self._changed.difference_update(changed)

    @property
    def is_changed(self) -> bool:
        """Whether there is something to write down."""
        return bool(self._changed or self.garbage)

    def _subject(self, callback_id: int) -> str:
        return self._names.state(f"box.{callback_id}")

    def _draft(self, callback_id: int, box: Box) -> Draft:
        box.through = self.through
        masks = {place: f"{mask:x}" for place, mask in box.masks.items()}
        written = _Written(box.count, box.mark, box.tail, masks, box.updates, box.late, box.through)
        return Draft(self._subject(callback_id), _encode(written))


def _read(written: _Written) -> Box:
    masks = {place: int(mask, 16) for place, mask in written.masks.items()}
    return Box(written.count, written.mark, written.tail, masks, written.updates, written.late, written.through)
