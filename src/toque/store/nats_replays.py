"""Replays on the engine: which events, or dead deliveries, go into a callback's backlog once more.

A replay walks along the log, or along the callback's dead rows, a bounded stretch at a time. How far it is stands in the record
that puts a stretch back, so that a crash repeats nothing, and then in an entry of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from toque.callbacks.delivery import Event
from toque.errors import InputError
from toque.store.contract import Replay, ReplayState
from toque.store.nats_backlog import Shelf
from toque.store.nats_documents import Book, CallbackDocument
from toque.store.nats_layout import Layout
from toque.store.nats_link import Conflict
from toque.store.nats_log import Log
from toque.store.nats_rows import WAITING, Waiting, raw_event
from toque.store.nats_settling import Settler
from toque.store.nats_work import Change, Work
from toque.store.sqlite_rows import from_us, from_us_or_none, to_us, to_us_or_none
from toque.store.sqlite_segments import BYTES_A_STEP, StoredEvent, needle

SEGMENTS_A_STEP = 500
_BACKWARDS_AT_ONCE = 64  # segments
_PUT_AT_ONCE = 1_000


class Entry(msgspec.Struct):
    """A replay as it is kept. `through` is where it ends: what comes later was told when it came."""

    id: int
    callback_id: int
    until: int
    is_for_dead: bool
    rate: float
    created_at: int
    through: int
    since: int | None = None
    callerid: str | None = None
    event_id: str | None = None
    state: ReplayState = ReplayState.RUNNING
    place: int = 0
    requeued: int = 0
    ended_at: int | None = None

    def known(self) -> Replay:
        """As the world knows it."""
        return Replay(
            self.id, self.callback_id, from_us_or_none(self.since), from_us(self.until), self.callerid, self.event_id,
            self.is_for_dead, self.rate, self.state, self.place, self.requeued, from_us(self.created_at),
            from_us_or_none(self.ended_at),
        )  # fmt: skip


_ENTRY = msgspec.json.Decoder(Entry)
_encode = msgspec.json.encode


@dataclass(slots=True)
class Stretch:
    """What was found on one stretch of a replay's way, and how far that was."""

    events: list[Event]
    place: int
    is_end: bool


@dataclass(slots=True)
class _Known:
    """Which rows a callback that has a replay running has, by event; held until the replay ends, and read on as rows come."""

    through: int = 0
    waiting: dict[int, int] = field(default_factory=dict)
    dead: dict[int, int] = field(default_factory=dict)


class Replays:
    """All replays."""

    def __init__(
        self, layout: Layout, log: Log, work: Work, shelf: Shelf, settler: Settler, *,
        book: Callable[[], Book], clock: Callable[[], datetime],
    ) -> None:  # fmt: skip
        self._names = layout.names
        self._state = layout.state
        self._log = log
        self._work = work
        self._shelf = shelf
        self._settler = settler
        self._book = book
        self._clock = clock
        self._rows: dict[int, _Known] = {}

    # Keeping

    async def _entries(self) -> dict[int, tuple[Entry, int]]:
        """All entries whose callback is there, with their places."""
        known = self._book().callbacks
        found = {}
        for message in await self._state.all(self._names.state("replay.*")):
            if message.data:
                entry = _ENTRY.decode(message.data)
                if entry.callback_id in known:
                    found[entry.id] = (self._furthest(entry), message.seq)
        return dict(sorted(found.items()))

    def _furthest(self, entry: Entry) -> Entry:
        """An entry, brought up to what the records say."""
        said = self._work.replays.get(entry.id)
        if said is None or entry.state is not ReplayState.RUNNING:
            return entry
        return _moved(entry, said) if said[1] > entry.place or said[3] is not None else entry

    async def all(self) -> list[Replay]:
        """See `Store.replays`."""
        return [entry.known() for entry, _ in (await self._entries()).values()]

    async def _keep(self, entry: Entry, after: int) -> None:
        await self._state.put(self._names.state(f"replay.{entry.id}"), _encode(entry), after=after)

    async def add(self, replay: Replay) -> Replay:
        """See `Store.add_replay`."""
        client_id, _ = self._owner(replay.callback_id)
        last = (await self._log.last()).last_seq
        place, through = self._since(client_id), last
        if replay.event_id is not None or replay.callerid is not None:
            found = await self._found(replay, client_id)
            if not found and not (replay.is_for_dead and await self._is_dead(replay)):
                what = f"event {replay.event_id}" if replay.event_id is not None else f"call {replay.callerid}"
                raise InputError(f"this callback's client has no {what}")
            place, through = (found - 1 if replay.event_id is not None else place), found
        if replay.is_for_dead:
            place, through = 0, (1 << 62)
        elif replay.since is not None:
            first = await self._log.place_since(to_us(replay.since))
            segments = [segment async for segment in self._log.between(first, first)]
            place = max(place, segments[0].first_seq - 1 if segments else await self._seq_behind(first))
        entry = Entry(
            0, replay.callback_id, to_us(replay.until), replay.is_for_dead, replay.rate, to_us(self._clock()), through,
            to_us_or_none(replay.since), replay.callerid, replay.event_id, place=place,
        )  # fmt: skip
        return await self._numbered(entry)

    async def _seq_behind(self, place: int) -> int:
        """The last event before a place where nothing lies."""
        last = await self._log.last()
        return last.last_seq if place > last.place else 0

    async def _numbered(self, entry: Entry) -> Replay:
        """Give an entry the next number that is free."""
        counter = self._names.state("replays")
        while True:
            last = await self._state.last(counter)
            entry.id = 1 if last is None else int(last.data) + 1
            try:
                await self._state.put(counter, str(entry.id).encode(), after=0 if last is None else last.seq)
            except Conflict:
                continue
            await self._keep(entry, 0)
            return entry.known()

    async def cancel(self, replay_id: int) -> bool:
        """See `Store.cancel_replay`."""
        while True:
            found = (await self._entries()).get(replay_id)
            if found is None or found[0].state is not ReplayState.RUNNING:
                return False
            entry, place = found
            try:
                await self._keep(_ended(entry, ReplayState.CANCELLED, self._clock()), place)
            except Conflict:
                continue
            return True

    async def drop(self, replay_ids: Sequence[int]) -> None:
        """Forget these."""
        for replay_id in replay_ids:
            await self._state.put(self._names.state(f"replay.{replay_id}"), b"", ttl="1s")

    async def old(self, before: int) -> list[int]:
        """Those that ended before a moment, and those of callbacks that are gone."""
        known = self._book().callbacks
        entries = [
            _ENTRY.decode(message.data) for message in await self._state.all(self._names.state("replay.*")) if message.data
        ]
        return [
            entry.id
            for entry in entries
            if entry.callback_id not in known or (entry.ended_at is not None and entry.ended_at < before)
        ]

    # Finding

    def _owner(self, callback_id: int) -> tuple[str, CallbackDocument]:
        found = self._book().callbacks.get(callback_id)
        if found is None:
            raise InputError(f"there is no callback {callback_id}")
        return found

    def _since(self, client_id: str) -> int:
        """The last event of an earlier client of this name."""
        account = self._book().clients[client_id].account
        return 0 if account is None else account.since

    async def _found(self, replay: Replay, client_id: str) -> int:
        """The last event that a replay names, found backwards; 0 when there is none."""
        text = needle(replay.event_id or replay.callerid or "").encode()
        after = self._since(client_id)
        last, first = (await self._log.last()).place, await self._log.first_place()
        while last >= first and last:
            start = max(first, last - _BACKWARDS_AT_ONCE + 1)
            for segment in reversed([one async for one in self._log.between(start, last)]):
                if text in segment.events:
                    seqs = [seq for seq, event in segment.stored().events() if _is_named(replay, event, client_id)]
                    if seqs and seqs[-1] > after:
                        return seqs[-1]
            last = start - 1
        return 0

    async def _is_dead(self, replay: Replay) -> bool:
        """Whether a dead delivery is meant whose event is no longer kept."""
        callback = self._owner(replay.callback_id)[1]
        for rows in (self._shelf.marked(callback, 0), self._shelf.marked_dead(callback.id, 0)):
            async for _, one in rows:
                event = one.parsed()
                if replay.event_id in (None, event.id) and replay.callerid in (None, event.callerid):
                    return True
        return False

    # Putting back

    async def requeue(self, replay_id: int, limit: int) -> Replay | None:
        """See `Store.requeue`."""
        found = (await self._entries()).get(replay_id)
        if found is None or found[0].state is not ReplayState.RUNNING:
            return None
        entry, kept_at = found
        _, callback = self._owner(entry.callback_id)
        if callback.disabled_reason is not None:  # it would only die there; the replay waits until the callback is enabled
            return entry.known()
        async with self._work.lock:
            await self._work.catch_up()
            entry = self._furthest(entry)
            stretch = await (self._dead_stretch if entry.is_for_dead else self._stretch)(entry, callback, limit)
            further = await self._put(entry, callback, stretch)
            try:
                await self._keep(further, kept_at)
            except Conflict:  # somebody cancelled it
                return None
            finally:
                await self._work.tidy()
        if stretch.is_end:
            self._rows.pop(callback.id, None)
        return further.known()

    async def _stretch(self, entry: Entry, callback: CallbackDocument, limit: int) -> Stretch:
        """Up to `limit` events of the callback's client from the log."""
        client_id, _ = self._owner(entry.callback_id)
        replay = entry.known()
        text = needle(entry.event_id or entry.callerid or client_id).encode()
        found: list[Event] = []
        place, size, number = entry.place, 0, 0
        last = await self._log.last()
        async for segment in self._log.between(await self._log.place_of(entry.place + 1), last.place):
            if segment.first_seq > entry.through:
                break
            number += 1
            if text in segment.events and _is_of_time(replay, from_us(segment.accepted_at)):
                stored = segment.stored()
                for seq, event in stored.events():
                    if not entry.place < seq <= entry.through or callback.pin not in (None, event.pin):
                        continue
                    if _is_named(replay, event, client_id):
                        found.append(stored.event(seq, event))
                    if len(found) >= limit:
                        return Stretch(found, seq, is_end=seq >= entry.through)
            place, size = max(place, segment.last_seq), size + len(segment.events)
            if number >= SEGMENTS_A_STEP or size >= BYTES_A_STEP:
                return Stretch(found, place, is_end=place >= entry.through)
        return Stretch(found, max(place, entry.through), is_end=True)

    async def _dead_stretch(self, entry: Entry, callback: CallbackDocument, limit: int) -> Stretch:
        """Up to `limit` of the callback's dead deliveries."""
        replay = entry.known()
        found: list[Event] = []
        page = await self._shelf.dead(callback.id, entry.place, _PUT_AT_ONCE)
        place = entry.place
        for dead in page:
            event, place = dead.delivery.event, dead.delivery.row
            is_meant = (
                _is_of_time(replay, event.accepted_at)
                and replay.event_id in (None, event.id)
                and replay.callerid in (None, event.callerid)
            )
            if is_meant and to_us(dead.died_at) <= entry.created_at:  # what died later was not meant
                found.append(event)
            if len(found) >= limit:
                return Stretch(found, place, is_end=False)
        return Stretch(found, place, is_end=len(page) < _PUT_AT_ONCE)

    async def _put(self, entry: Entry, callback: CallbackDocument, stretch: Stretch) -> Entry:
        """Have these deliveries wait, at the end and in the order of events, unless they do already; returns how far that is."""
        known = await self._known(callback) if stretch.events else _Known()
        box = self._work.boxes.get(callback.id)
        late = {one.parsed().seq for row, one in box.late.items() if row > callback.dead_through}

        def waits(seq: int) -> bool:
            row = known.waiting.get(seq, 0)
            return seq in late or (row > callback.dead_through and not self._work.boxes.is_done(box, row))

        wanted = {event.seq: event for event in sorted(stretch.events, key=lambda one: one.seq) if not waits(event.seq)}
        ended_at = to_us(self._clock()) if stretch.is_end else None
        moved = (entry.id, stretch.place, entry.requeued + len(wanted), ended_at)

        def think() -> Change:
            change = self._settler.begin()
            change.replay = moved
            given: list[tuple[int, Callable[[], int]]] = []
            for seq, event in wanted.items():
                if row := known.dead.get(seq, 0):
                    change.revived.append((callback.id, row))
                if 0 < (row := known.waiting.get(seq, 0)) <= callback.dead_through:
                    change.done.append((callback.id, row))
                if seq >= change.open_from:  # it may be in memory as well: after a crash it need not be recovered
                    change.entries.append((seq, callback.id, 0, WAITING))
                given.append((seq, change.add(callback.id, Waiting(0, None, 0.0, raw_event(event)))))
            change.and_then = lambda: self._settler.requeued.update({(callback.id, seq): row() for seq, row in given})
            return change

        await self._work.commit(think)
        return _moved(entry, moved)

    async def _known(self, callback: CallbackDocument) -> _Known:
        """The rows of a callback, read on from where they were read to the last time."""
        known = self._rows.setdefault(callback.id, _Known())
        through = known.through
        async for row, one in self._shelf.waiting(callback.id, through):
            known.waiting[one.parsed().seq] = row
            known.through = max(known.through, row)
        async for row, dead in self._shelf.marked_dead(callback.id, through):
            known.dead[dead.parsed().seq] = row
            known.through = max(known.through, row)
        return known


def _moved(entry: Entry, said: tuple[int, int, int, int | None]) -> Entry:
    """An entry that is further on."""
    _, place, requeued, ended_at = said
    state = entry.state if ended_at is None else ReplayState.DONE
    return msgspec.structs.replace(entry, place=place, requeued=requeued, ended_at=ended_at, state=state)


def _ended(entry: Entry, state: ReplayState, now: datetime) -> Entry:
    return msgspec.structs.replace(entry, state=state, ended_at=to_us(now))


def _is_named(replay: Replay, event: StoredEvent, client_id: str) -> bool:
    return event.client_id == client_id and replay.event_id in (None, event.id) and replay.callerid in (None, event.callerid)


def _is_of_time(replay: Replay, accepted_at: datetime) -> bool:
    return (replay.since is None or replay.since <= accepted_at) and accepted_at <= replay.until
