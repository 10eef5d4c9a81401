"""The chain of records: what became of deliveries. Whatever changes a backlog is a draft here first, and then one record.

Where a record brings rows, these are the messages behind it, and all of it is one atomic batch; otherwise it is a single message.
Each names the record before it, so two processes cannot both go on from the same state, and one that has been out of it for a
while finds out with its next record.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from toque.errors import StoreError
from toque.store.nats_boxes import GARBAGE, Boxes
from toque.store.nats_layout import Layout
from toque.store.nats_link import Conflict, Refused, Stored, Unanswered
from toque.store.nats_rows import (
    Dead,
    Entry,
    Place,
    Record,
    RowOf,
    Update,
    Waiting,
    in_messages,
    parse_record,
    render_record,
    render_rows,
    row_number,
)
from toque.store.nats_stream import EXPECTED_SUBJECT_SEQ, Draft

DRAFT_MESSAGES = 900  # in one atomic batch, which may have 1,000
RECORDS_A_CHECKPOINT = 1_000
_PATIENCE_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


class Change:
    """A record that is being thought out, with its rows."""

    def __init__(self, settled_at: int, open_from: int) -> None:
        self.settled_at = settled_at
        self.open_from = open_from
        self.entries: list[Entry] = []
        self.updates: list[Update] = []
        self.done: list[RowOf] = []
        self.revived: list[RowOf] = []
        self.late: list[tuple[int, int, Waiting]] = []
        self.waiting: dict[int, list[Waiting]] = {}
        self.dead: dict[int, list[Dead]] = {}
        self.replay: tuple[int, int, int, int | None] | None = None
        self.and_then: Callable[[], None] | None = None
        """What follows once it is durable, also if that is found out much later."""
        self.is_written = False
        self._rows: dict[int, list[int]] = {}

    def add(self, callback_id: int, row: Waiting) -> Callable[[], int]:
        """A row at the end of a backlog; what is returned gives its number once it is written."""
        rows = self.waiting.setdefault(callback_id, [])
        rows.append(row)
        index = len(rows) - 1
        return lambda: self._rows[callback_id][index]

    def kill(self, callback_id: int, row: Dead) -> None:
        """A dead delivery."""
        self.dead.setdefault(callback_id, []).append(row)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        parts: tuple[Any, ...] = (self.entries, self.updates, self.done, self.revived, self.late, self.waiting, self.dead)
        return not any(parts) and self.replay is None

    def render(self, nonce: str) -> tuple[Record, list[tuple[bool, int, bytes]]]:
        """The record and the messages behind it: whether they wait, whose, and their rows."""
        added: list[Place] = []
        died: list[Place] = []
        messages: list[tuple[bool, int, bytes]] = []
        kinds: tuple[tuple[bool, dict[int, Any], list[Place]], ...] = ((True, self.waiting, added), (False, self.dead, died))
        for is_waiting, rows_of, places in kinds:
            for callback_id, rows in rows_of.items():
                for part in in_messages(rows):
                    messages.append((is_waiting, callback_id, render_rows(part)))
                    places.append((callback_id, len(messages), len(part)))
        record = Record(
            nonce, self.settled_at, self.open_from, self.entries, added, died, self.late, self.updates, self.done, self.revived,
            self.replay,
        )  # fmt: skip
        return record, messages

    def written(self, place: int, record: Record) -> None:
        """The record lies at this place, so rows have numbers now."""
        for callback_id, offset, size in record.added:
            rows = self._rows.setdefault(callback_id, [])
            rows += [row_number(place + offset, size, index) for index in range(size)]
        self.is_written = True
        if self.and_then is not None:
            self.and_then()


class Work:
    """The chain, the boxes that follow from it, and one change at a time."""

    def __init__(self, layout: Layout, check: Callable[[], None]) -> None:
        """`check` raises when nothing may be written."""
        self._names = layout.names
        self._stream = layout.work
        self._check = check
        self.boxes = Boxes(layout)
        self.lock = asyncio.Lock()
        self._reading = asyncio.Lock()
        self.open_from = 0
        """As the last record has it."""
        self.replays: dict[int, tuple[int, int, int, int | None]] = {}
        """How far replays are by the records that were read; their entries may not say so yet."""
        self._is_open = False
        self._doubts: dict[str, tuple[Change, Record]] = {}
        self._since_checkpoint = 0

    @property
    def tail(self) -> int:
        """The place of the last record that is known."""
        return self.boxes.through

    async def catch_up(self) -> None:
        """Heed the records that others have written, or that were in doubt."""
        async with self._reading:
            await self._catch_up()

    async def _catch_up(self) -> None:
        if not self._is_open:
            await self.boxes.open()
            self._is_open = True
        last = await self._stream.last(self._names.done)
        if last is None or (last.seq <= self.tail and self.open_from):
            return
        found = [last] if last.seq == self.tail + 1 else await self._stream.all(self._names.done, self.tail + 1)
        if last.seq <= self.tail:
            self.open_from = parse_record(last.data).open_from
        for message in found:
            if message.seq > self.tail:
                self._heed(message)

    def _heed(self, message: Stored) -> None:
        record = parse_record(message.data)
        doubts, self._doubts = self._doubts, {}
        self._note(message.seq, record)
        if (doubt := doubts.get(record.nonce)) is not None:
            change, planned = doubt
            change.written(message.seq, planned)

    def _note(self, place: int, record: Record) -> None:
        self.open_from = record.open_from
        if record.replay is not None:
            self.replays[record.replay[0]] = record.replay
        self.boxes.apply(place, record)
        self._since_checkpoint += 1

    async def commit(self, think: Callable[[], Change]) -> Change:
        """Write what `think` makes of the state of things, again while others come first. Holding `lock`. Raises `StoreError`."""
        pauses = pauses_until(_PATIENCE_S)
        mine: list[Change] = []
        while True:
            try:
                self._check()
                if not self._is_open or self._doubts:
                    await self.catch_up()
                if (landed := next((change for change in mine if change.is_written), None)) is not None:
                    return landed
                change = think()
                mine.append(change)
                if change.is_empty or await self._write(change):
                    return change
            except Unanswered:
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)

    async def _write(self, change: Change) -> bool:
        """Write a change, unless another was quicker."""
        record, messages = change.render(secrets.token_hex(8))
        drafts = [Draft(self._names.done, render_record(record), {EXPECTED_SUBJECT_SEQ: str(self.tail)})]
        for is_waiting, callback_id, data in messages:
            drafts.append(Draft((self._names.waiting if is_waiting else self._names.dead)(callback_id), data))
        self._doubts[record.nonce] = (change, record)  # until somebody has read it, or it cannot be there
        try:
            place = await self._stream.put_together(drafts)
        except Conflict:
            await self.catch_up()
            return change.is_written
        except Unanswered:
            if change.is_written:  # a reader came across it
                return True
            raise
        except Refused:
            self._doubts.pop(record.nonce, None)
            raise
        self._doubts = {}
        if not change.is_written:
            self._note(place, record)
            change.written(place, record)
        return True

    async def tidy(self, *, is_forced: bool = False) -> None:
        """Throw away messages that are done with, and write the boxes down, if it is time for that. Holding `lock`."""
        try:
            if self._since_checkpoint >= RECORDS_A_CHECKPOINT or (is_forced and self.boxes.is_changed):
                await self.boxes.write_down()
                self._since_checkpoint = 0
            elif len(self.boxes.garbage) >= GARBAGE:
                await self.boxes.drop_garbage()
        except StoreError:
            return  # nothing is lost, and there will be another time

    async def records(self, after: int) -> Iterable[Record]:
        """All records behind a place."""
        return [parse_record(message.data) for message in await self._stream.all(self._names.done, after + 1)]


def pauses_until(patience_s: float) -> Iterator[float]:
    """Longer and longer, until patience ends."""
    loop = asyncio.get_running_loop()
    deadline_s, pause_s = loop.time() + patience_s, _FIRST_PAUSE_S
    while loop.time() < deadline_s:
        yield pause_s
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
