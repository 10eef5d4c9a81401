"""The log of what was accepted: a chain of segments, one message for each batch.

A segment is three lines: its numbers and a mark of its writer, the rows of the calls that changed with it, and its events, as
`sqlite_segments` has them. An event's seq is the segment's first one plus its place; what was erased is null. Seqs grow along the
chain, and so do the moments of acceptance but for clocks that are set back, so both are found by halving.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from toque.store.nats_layout import Layout
from toque.store.nats_link import Stored
from toque.store.nats_stream import Stream
from toque.store.sqlite_calls import CallRow
from toque.store.sqlite_segments import StoredSegment

_ROWS = msgspec.json.Decoder(list[CallRow])
_encode = msgspec.json.Encoder().encode
_PAGE = 64  # segments that are read at once; each may be as large as a message
_ERASED = "erased"


@dataclass(frozen=True, slots=True)
class LoggedSegment:
    """A segment of the log; `place` is where in its stream it lies."""

    place: int
    first_seq: int
    last_seq: int
    accepted_at: int
    open_from: int  # nothing before this event is without an outcome
    logged: int  # the last outcome before it
    nonce: str
    calls: bytes
    events: bytes

    def call_rows(self) -> list[CallRow]:
        """The calls that changed with it."""
        return _ROWS.decode(self.calls)

    def stored(self) -> StoredSegment:
        """Its events, as they are everywhere."""
        return StoredSegment(self.first_seq, self.last_seq, self.accepted_at, self.events.decode())


def render_segment(segment: LoggedSegment) -> bytes:
    """A segment as a message."""
    numbers = (segment.first_seq, segment.last_seq, segment.accepted_at, segment.open_from, segment.logged)
    head = " ".join(map(str, numbers)) + " " + segment.nonce
    return b"\n".join((head.encode("ascii"), segment.calls, segment.events))


def parse_segment(message: Stored) -> LoggedSegment:
    """A segment again."""
    head, calls, events = message.data.split(b"\n", 2)
    first_seq, last_seq, accepted_at, open_from, logged, nonce = head.split(b" ")
    return LoggedSegment(
        message.seq, int(first_seq), int(last_seq), int(accepted_at), int(open_from), int(logged), nonce.decode(), calls, events
    )


NOTHING = LoggedSegment(0, 1, 0, 0, 0, 0, "", b"[]", b"[]")


class Log:
    """The chain, as far as it is known, and what is looked up in it."""

    def __init__(self, layout: Layout) -> None:
        self._subject = layout.names.log
        self._stream: Stream = layout.log
        self._state = layout.state
        self._erased_key = layout.names.state(f"{_ERASED}.")
        self._erasures = layout.names.state("erasures")
        self.tail = NOTHING

    async def last(self) -> LoggedSegment:
        """The last segment, as the leader has it; the known tail stays what it is."""
        message = await self._stream.last(self._subject)
        return NOTHING if message is None else parse_segment(message)

    async def catch_up(self) -> list[LoggedSegment]:
        """What was written behind the known tail, which then is the new one."""
        last = await self._stream.last(self._subject)
        if last is None or last.seq <= self.tail.place:
            return []
        if last.seq == self.tail.place + 1:
            found = [parse_segment(last)]
        else:
            found = [segment async for segment in self.between(self.tail.place + 1, last.seq)]
        self.tail = found[-1]
        return found

    async def append(self, segment: LoggedSegment) -> None:
        """Write a segment behind the known tail. Raises as `Stream.put` does."""
        place = await self._stream.put(self._subject, render_segment(segment), after=self.tail.place)
        self.tail = replace(segment, place=place)

    async def between(self, first: int, last: int) -> AsyncIterator[LoggedSegment]:
        """The segments that lie between two places, both included; of those that were erased in part, what is left."""
        place, is_all = first, False
        while not is_all and place <= last:
            page, is_all = await self._stream.page(self._subject, place, through=last, most=_PAGE)
            found = [message for message in page if message.seq <= last]
            is_all = is_all or len(found) < len(page)
            end = last if is_all else found[-1].seq
            for message in await self._with_erased(found, place, end):
                yield parse_segment(message)
            place = end + 1

    async def _with_erased(self, found: list[Stored], first: int, last: int) -> list[Stored]:
        """Messages and, in the places of those that are missing, what is left of them."""
        missing = sorted(set(range(first, last + 1)) - {message.seq for message in found})
        if not missing:
            return found
        mark = await self._state.last(self._erasures)
        if mark is None:
            return found
        subjects = [f"{self._erased_key}{place}" for place in missing]
        left = await self._state.lasts(subjects, mark=self._erasures, at_least=mark.seq)
        kept = [Stored(int(subject.rpartition(".")[2]), subject, message.data) for subject, message in left.items()]
        return sorted([*found, *kept], key=lambda message: message.seq)

    async def keep_rest(self, segment: LoggedSegment, events: list[Any]) -> None:
        """Write a segment again with these events only, elsewhere, and erase it where it was."""
        data = render_segment(replace(segment, events=_encode(events)))
        await self._state.put(f"{self._erased_key}{segment.place}", data)
        await self._state.put(self._erasures, str(segment.place).encode())
        await self._stream.drop(segment.place, is_erased=True)

    async def first_place(self) -> int:
        """Where the oldest segment lies, or lay before it was erased in part."""
        first = max((await self._stream.info()).state.first_seq, 1)
        return min([first, *await self._erased()])

    async def _erased(self) -> list[int]:
        """The places of the segments of which something was erased."""
        info = await self._state.info(self._erased_key + "*")
        return sorted(int(subject.rpartition(".")[2]) for subject in info.state.subjects or ())

    async def drop_old_erased(self, horizon: int, most: int) -> bool:
        """Throw away what is left of those that were accepted before a moment; whether there was any."""
        places = (await self._erased())[:most]
        subjects = {f"{self._erased_key}{place}": place for place in places}
        left = await self._state.lasts(list(subjects), mark=self._erasures, at_least=0) if places else {}
        old = [subject for subject, message in left.items() if message.data and parse_segment(message).accepted_at < horizon]
        for subject in old:
            await self._state.purge(subject)
        return bool(old)

    async def place_of(self, seq: int, *, through: int | None = None) -> int:
        """The place of the first segment that has an event from this one on, or a place before it where nothing lies."""
        return await self._halved(lambda segment: segment.last_seq >= seq, through)

    async def place_since(self, accepted_at: int, *, through: int | None = None) -> int:
        """The same for those that were accepted at a moment or later."""
        return await self._halved(lambda segment: segment.accepted_at >= accepted_at, through)

    async def _halved(self, is_beyond: Any, through: int | None) -> int:
        """The first place from which on segments are beyond something; one behind the last when none is."""
        info = (await self._stream.info()).state
        low, high = await self.first_place(), (info.last_seq if through is None else through) + 1
        while low < high:
            middle = (low + high) // 2
            message = await self._stream.next(self._subject, middle)
            if message is None or message.seq >= high or is_beyond(parse_segment(message)):
                high = middle
            else:
                low = message.seq + 1
        return low

    async def drop_before(self, place: int) -> None:
        """Throw away what lies before a place."""
        await self._stream.purge(self._subject, before=place)
