"""What is done now and then on the engine, in small steps: throwing away what is old, and what removed and disabled ones left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec

from toque.store.nats_accounts import Accounts
from toque.store.nats_backlog import Shelf
from toque.store.nats_documents import Book, CallbackDocument, ClientDocument, Document, Gone, Tombstone, client_key
from toque.store.nats_fresh import Fresh
from toque.store.nats_layout import Layout
from toque.store.nats_log import Log
from toque.store.nats_registry import Unchanged
from toque.store.nats_replays import Replays
from toque.store.nats_rows import Dead, parse_dead, parse_record
from toque.store.nats_settling import Settler
from toque.store.nats_work import Change, Work
from toque.store.sqlite_rows import to_us
from toque.store.sqlite_segments import StoredEvent, needle

ROWS_A_STEP = 500
MESSAGES_A_STEP = 100
SEGMENTS_A_STEP = 50
_copy = msgspec.structs.replace


class Housekeeper:
    """The steps."""

    def __init__(
        self, layout: Layout, *, accounts: Accounts, log: Log, work: Work, shelf: Shelf, settler: Settler, replays: Replays,
        fresh: Fresh, clock: Callable[[], datetime], calls_from: Callable[[], int], extend: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        """`calls_from` is the place from which on the log has calls that are nowhere else; `extend` adds an empty segment."""
        self._layout = layout
        self._names = layout.names
        self._accounts = accounts
        self._log = log
        self._work = work
        self._shelf = shelf
        self._settler = settler
        self._replays = replays
        self._fresh = fresh
        self._clock = clock
        self._calls_from = calls_from
        self._extend = extend
        self._erased_through: dict[tuple[str, int], int] = {}  # how far the erasure of a client's events is, as a place

    @property
    def _book(self) -> Book:
        return self._accounts.book

    async def step(self, keep: timedelta) -> bool:
        """Do the first thing that there is to do; whether there may be more."""
        horizon = to_us(self._clock() - keep)
        things: tuple[Callable[[int], Awaitable[bool]], ...] = (
            self._removed_clients,
            self._removed_callbacks,
            self._disabled_callbacks,
            self._old_segments,
            self._old_records,
            self._old_dead,
            self._old_replays,
        )
        for thing in things:
            if await thing(horizon):
                return True
        return False

    # What was left behind

    async def _removed_clients(self, _: int) -> bool:
        for document in list(self._book.clients.values()):
            for tombstone in document.earlier:
                for callback_id in tombstone.callback_ids:
                    await self._drop_callback(callback_id)
                if await self._erase(document.client_id, tombstone.through):
                    await self._accounts.change(_buried(document.client_id, tombstone))
                return True
        return False

    async def _erase(self, client_id: str, through: int) -> bool:
        """Erase a client's events from the next segments; whether that was all."""
        key = (client_id, through)
        first = self._erased_through.get(key) or await self._log.first_place()
        last = await self._log.last()
        text = needle(client_id).encode()
        number = 0
        if text in last.events:
            await self._extend()
        async for segment in self._log.between(first, last.place):
            if segment.first_seq > through:
                break
            if text in segment.events:
                events = _events(segment.events)
                kept = [None if event is not None and event.client_id == client_id else event for event in events]
                await self._log.keep_rest(segment, kept)
            number += 1
            self._erased_through[key] = segment.place + 1
            if number >= SEGMENTS_A_STEP:
                return False
        self._erased_through.pop(key, None)
        return True

    async def _removed_callbacks(self, _: int) -> bool:
        for document in list(self._book.clients.values()):
            gone = [one for one in document.gone if one.is_to_be_tidied]
            for one in gone:
                await self._drop_callback(one.id)
            if gone:
                await self._accounts.change(_tidied(document.client_id, {one.id for one in gone}))
                return True
        return False

    async def _drop_callback(self, callback_id: int) -> None:
        """Throw away what a callback had."""
        async with self._work.lock:
            await self._work.catch_up()
            for subject in (self._names.waiting(callback_id), self._names.dead(callback_id)):
                await self._layout.work.purge(subject)
            self._work.boxes.forget(callback_id)
            await self._work.tidy(is_forced=True)
        await self._layout.state.put(self._names.state(f"health.{callback_id}"), b'{"failing_since":null,"enabled":0}', ttl="1s")

    async def _disabled_callbacks(self, _: int) -> bool:
        for callback_id, (_client, callback) in list(self._book.callbacks.items()):
            if callback.is_to_be_marked:
                if await self._mark_dead(callback):
                    await self._accounts.change_callback(callback_id, _marked(callback.dead_at))
                return True
        return False

    async def _mark_dead(self, callback: CallbackDocument) -> bool:
        """Put some of what a callback took with it among its dead deliveries; whether that was all."""
        async with self._work.lock:
            await self._work.catch_up()
            await self._shelf.heed_mark(callback.id, callback)
            rows: list[tuple[int, Dead]] = []
            async for found in self._shelf.marked(callback, 0):
                rows.append(found)
                if len(rows) >= ROWS_A_STEP:
                    break

            def think() -> Change:
                change = self._settler.begin()
                for row, dead in rows:
                    change.done.append((callback.id, row))
                    change.kill(callback.id, dead)
                return change

            await self._work.commit(think)
            await self._work.tidy()
        return len(rows) < ROWS_A_STEP

    # What is old

    async def _old_segments(self, horizon: int) -> bool:
        first = (await self._layout.log.info()).state.first_seq
        last = (await self._log.last()).place
        if not last:
            return False
        if first < last:
            open_from = self._fresh.open_from(self._log.tail.last_seq)
            place = min(await self._log.place_since(horizon), await self._log.place_of(open_from), self._calls_from(), last)
            if place > first:
                await self._log.drop_before(place)
                return True
        return await self._log.drop_old_erased(horizon, SEGMENTS_A_STEP)

    async def _old_records(self, horizon: int) -> bool:
        """Those that `recover` would go by stay, and so do those that the boxes were not written down with."""
        last = await self._layout.work.last(self._names.done)
        first = None if last is None else await self._layout.work.next(self._names.done, 1)
        if last is None or first is None or first.seq >= last.seq or parse_record(first.data).settled_at >= horizon:
            return False
        await self._write_boxes_down()
        limit = min(last.seq, self._work.tail, await self._needed_after() + 1)
        if first.seq >= limit:
            return False
        page, _ = await self._layout.work.page(self._names.done, first.seq, through=last.seq, most=MESSAGES_A_STEP)
        place = 0
        for message in page:
            if message.seq >= limit or parse_record(message.data).settled_at >= horizon:
                break
            place = message.seq + 1
        if not place:
            return False
        await self._layout.work.purge(self._names.done, before=place)
        return True

    async def _needed_after(self) -> int:
        """The last record that is not needed to find out what has no outcome."""
        open_from = min(self._fresh.open_from(self._log.tail.last_seq), self._work.open_from)
        if open_from > self._log.tail.last_seq:
            return self._work.tail
        place = await self._log.place_of(open_from)
        async for segment in self._log.between(place, self._log.tail.place):
            return segment.logged
        return self._log.tail.logged

    async def _write_boxes_down(self) -> None:
        async with self._work.lock:
            await self._work.catch_up()
            await self._work.boxes.write_down()

    async def _old_dead(self, horizon: int) -> bool:
        work, subject = self._layout.work, self._names.dead("*")
        last = await work.last(subject)
        if last is None:
            return False
        page, _ = await work.page(subject, 1, through=last.seq, most=MESSAGES_A_STEP)
        old = []
        for message in page:
            if any(dead.died_at >= horizon for dead in parse_dead(message.data)):
                break
            old.append(message)
        async with self._work.lock:
            for message in old:
                await work.drop(message.seq)
                self._work.boxes.changed(int(message.subject.rpartition(".")[2])).masks.pop(message.seq, None)
        return bool(old)

    async def _old_replays(self, horizon: int) -> bool:
        old = await self._replays.old(horizon)
        await self._replays.drop(old)
        return bool(old)


_EVENTS = msgspec.json.Decoder(list[StoredEvent | None])


def _events(data: bytes) -> list[StoredEvent | None]:
    return _EVENTS.decode(data)


def _buried(client_id: str, tombstone: Tombstone) -> Callable[[Book, int], tuple[str, Document, Any]]:
    def think(book: Book, _: int) -> tuple[str, Document, Any]:
        document = book.clients.get(client_id)
        if document is None or tombstone not in document.earlier:
            raise Unchanged(None)
        kept: ClientDocument = _copy(document, earlier=[one for one in document.earlier if one != tombstone])
        return client_key(client_id), kept, None

    return think


def _tidied(client_id: str, callback_ids: set[int]) -> Callable[[Book, int], tuple[str, Document, Any]]:
    def think(book: Book, _: int) -> tuple[str, Document, Any]:
        document = book.clients.get(client_id)
        if document is None:
            raise Unchanged(None)
        gone = [Gone(one.id, one.code, one.is_to_be_tidied and one.id not in callback_ids) for one in document.gone]
        return client_key(client_id), _copy(document, gone=gone), None

    return think


def _marked(dead_at: int | None) -> Callable[[CallbackDocument, int], CallbackDocument]:
    def marked(one: CallbackDocument, _: int) -> CallbackDocument:
        if one.dead_at != dead_at:
            raise Unchanged(told=False)
        return _copy(one, is_to_be_marked=False)

    return marked
