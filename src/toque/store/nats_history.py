"""What the engine knows of a call, for people: its events, and how each delivery of them stands. None of it needs to be fast."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from toque.calls.model import CallIdentity
from toque.store.contract import PastDelivery, PastEvent
from toque.store.nats_backlog import Shelf
from toque.store.nats_calls import Calls
from toque.store.nats_documents import Book, CallbackDocument
from toque.store.nats_layout import Layout
from toque.store.nats_log import Log, LoggedSegment
from toque.store.nats_rows import WAITING, through_place
from toque.store.nats_work import Work
from toque.store.sqlite_rows import from_us, from_us_or_none, to_us
from toque.store.sqlite_segments import StoredEvent, needle

_SEGMENTS_AT_ONCE = 64
_NUMBERS = ("origem", "destino", "atendido_por")  # the members of a payload that have them


@dataclass(frozen=True, slots=True)
class _Found:
    """An event that was found."""

    seq: int
    segment: LoggedSegment
    stored: StoredEvent


_Mentions = dict[tuple[int, int], tuple[str, int, int]]  # by event and callback: state, attempts, moment; the last one counts


class History:
    """See `toque.store.contract.Archive`."""

    def __init__(self, layout: Layout, log: Log, work: Work, shelf: Shelf, calls: Calls, book: Callable[[], Book]) -> None:  # noqa: PLR0917
        self._names = layout.names
        self._stream = layout.work
        self._log = log
        self._work = work
        self._shelf = shelf
        self._calls = calls
        self._book = book

    async def events_of(self, callerid: str) -> list[PastEvent]:
        """See `Archive.events_of`."""
        first = await self._calls.first_seq_of(callerid)
        found: list[_Found] = []
        async for segment in self._backwards([needle(callerid)]):
            found += [one for one in _events(segment) if one.stored.callerid == callerid]
            if segment.first_seq <= first:
                break
        return await self._past(found)

    async def events_with(self, numbers: Sequence[str], since: datetime, most_calls: int) -> list[PastEvent]:
        """See `Archive.events_with`."""
        needles = [needle(number) for number in numbers]
        found: list[_Found] = []
        calls: set[str] = set()
        async for segment in self._backwards(needles, to_us(since)):
            for one in reversed(_events(segment)):
                if _has_number(one.stored, needles) and (one.stored.callerid in calls or len(calls) < most_calls):
                    calls.add(one.stored.callerid)
                    found.append(one)
        return await self._past(found)

    async def _backwards(self, needles: Sequence[str], since: int = 0) -> AsyncIterator[LoggedSegment]:
        """The segments that have one of these texts, the latest first."""
        texts = [text.encode() for text in needles]
        last, first = (await self._log.last()).place, await self._log.first_place()
        while last >= first and last:
            start = max(first, last - _SEGMENTS_AT_ONCE + 1)
            for segment in reversed([one async for one in self._log.between(start, last)]):
                if segment.accepted_at < since:
                    return
                if any(text in segment.events for text in texts):
                    yield segment
            last = start - 1

    async def _past(self, found: Sequence[_Found]) -> list[PastEvent]:
        """Events in the order of acceptance, with their deliveries."""
        if not found:
            return []
        await self._work.catch_up()
        found = sorted(found, key=lambda one: one.seq)
        mentions = await self._mentions(found)
        return [await self._event(one, mentions) for one in found]

    async def _mentions(self, found: Sequence[_Found]) -> _Mentions:
        wanted = {(one.seq, number) for one in found for number in one.stored.callback_ids}
        told: _Mentions = {}
        for record in await self._work.records(min(one.segment.logged for one in found)):
            for seq, callback_id, attempts, state in record.entries:
                if (seq, callback_id) in wanted:
                    told[seq, callback_id] = (state, attempts, record.settled_at)
        return told

    async def _event(self, one: _Found, mentions: _Mentions) -> PastEvent:
        stored = one.stored
        deliveries = [await self._delivery(one, number, mentions.get((one.seq, number))) for number in stored.callback_ids]
        return PastEvent(
            stored.id, stored.client_id, stored.callerid, stored.direction, stored.pin, stored.status, stored.sequence,
            stored.happened_at, from_us(one.segment.accepted_at), bytes(stored.payload).decode(), tuple(deliveries),
        )  # fmt: skip

    async def _delivery(self, one: _Found, number: int, mention: tuple[str, int, int] | None) -> PastDelivery:
        """How a delivery stands: by its row, or else by the last mention."""
        callback = self._book().callback(number)
        if callback is None:
            return PastDelivery("", "removed with its callback", 0, None, None, "")
        if mention is None:
            return await self._in_backlog(one, callback) or PastDelivery(callback.code, "on its way", 0, None, None, "")
        state, attempts, at = mention
        if found := await self._in_backlog(one, callback):
            return found
        if state == WAITING:  # its row is gone, and nothing says how
            return PastDelivery(callback.code, "delivered", attempts, None, None, "")
        return PastDelivery(callback.code, state, attempts, from_us(at), None, "")

    async def _in_backlog(self, one: _Found, callback: CallbackDocument) -> PastDelivery | None:
        """How the row of a delivery stands, where it has one."""
        after = through_place(one.segment.logged)
        async for _, waits in self._shelf.waiting(callback.id, max(after, callback.dead_through)):
            if waits.parsed().seq == one.seq:
                return PastDelivery(callback.code, WAITING, waits.attempts, None, from_us_or_none(waits.due_at), "")
        for rows in (self._shelf.marked(callback, after), self._shelf.marked_dead(callback.id, after)):
            async for _, dead in rows:
                if dead.parsed().seq == one.seq:
                    return PastDelivery(callback.code, "dead", dead.attempts, from_us(dead.died_at), None, dead.outcome)
        return None

    async def callerid_of(self, identity: CallIdentity) -> str:
        """See `Archive.callerid_of`."""
        return (await self._calls.find([identity]))[0].callerid

    async def dead_sizes(self) -> dict[int, int]:
        """See `Archive.dead_sizes`."""
        await self._work.catch_up()
        info = await self._stream.info(self._names.dead("*"))
        having = {int(subject.rpartition(".")[2]) for subject in info.state.subjects or ()}
        sizes = {}
        for number, (_, callback) in self._book().callbacks.items():
            count = 0
            if number in having:
                count += len([row async for row, _ in self._shelf.marked_dead(number, 0)])
            count += len([row async for row, _ in self._shelf.marked(callback, 0)])
            if count:
                sizes[number] = count
        return sizes

    async def last_accepted_at(self) -> datetime | None:
        """See `Archive.last_accepted_at`."""
        last = await self._log.last()
        return from_us(last.accepted_at) if last.last_seq else None


def _events(segment: LoggedSegment) -> list[_Found]:
    return [_Found(seq, segment, stored) for seq, stored in segment.stored().events()]


def _has_number(stored: StoredEvent, needles: Sequence[str]) -> bool:
    payload = bytes(stored.payload).decode()
    return any(f'"{member}":{text}' in payload for member in _NUMBERS for text in needles)
