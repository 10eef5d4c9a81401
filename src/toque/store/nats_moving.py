"""The distributed store as source and target of a copy (`copying`).

Chains are written at their ends, tables in the order of their keys, so what is there says how far a copy is.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from toque.callbacks.callback import Callback, Client, IntakeCredential
from toque.callbacks.delivery import Delivery
from toque.callbacks.payload import PayloadWriter
from toque.store.contract import DeadDelivery
from toque.store.movable import (
    Accounts,
    CopiedEvents,
    CopiedOutcomes,
    CopiedReplay,
    Entry,
    Logged,
    Mark,
    RemovedCallback,
    in_parts,
    number_of_parts,
    places_of,
)
from toque.store.nats import PREFIX, NatsStore, utc_now
from toque.store.nats_documents import (
    Account,
    Book,
    CallbackDocument,
    ClientDocument,
    Document,
    Gone,
    IntakeDocument,
    LineDocument,
    client_key,
    intake_key,
)
from toque.store.nats_link import Access
from toque.store.nats_log import LoggedSegment
from toque.store.nats_replays import Entry as ReplayEntry
from toque.store.nats_rows import DELIVERED, Dead, Record, parse_record, raw_event, render_record, waiting
from toque.store.nats_stream import TIME_TO_LIVE, Draft, Stored
from toque.store.nats_work import Change
from toque.store.sealing import Sealer
from toque.store.sqlite_calls import CallRow, SnapshotRow
from toque.store.sqlite_rows import to_us, to_us_or_none
from toque.store.sqlite_upkeep import CALL_KEPT

_CALLS_AT_ONCE = 1_000
_MARK = "copy"
_KEPT = {TIME_TO_LIVE: f"{int(CALL_KEPT.total_seconds())}s"}
_ROW = msgspec.json.Decoder(tuple[str, int, str])
_REPLAY = msgspec.json.Decoder(ReplayEntry)
_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


class MovableNats(NatsStore):
    """See `toque.store.movable.Movable`."""

    def __init__(
        self,
        access: Access,
        payloads: PayloadWriter,
        *,
        prefix: str = PREFIX,
        replicas: int | None = None,
        secret_key: str | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(access, payloads, prefix=prefix, replicas=replicas, secret_key=secret_key, clock=clock)
        self._sealer = Sealer(secret_key)
        self._first_outcome = 0

    @property
    def shown(self) -> str:
        """What people call it."""
        return self._link.shown

    # As a source

    async def state_of_things(self) -> str:
        """See `Movable.state_of_things`."""
        log, work = await self._layout.log.info(), await self._layout.work.info()
        return f"{await self.registry_version()} {log.state.last_seq} {work.state.last_seq}"

    async def removed_callbacks(self) -> list[RemovedCallback]:
        """See `Movable.removed_callbacks`."""
        await self.registry_version()
        return [
            RemovedCallback(gone.id, gone.code, document.client_id)
            for document, _ in self._accounts.book.accounts()
            for gone in document.gone
        ]

    async def replay_ends(self) -> dict[int, int]:
        """See `Movable.replay_ends`."""
        found = await self._layout.state.all(self._layout.names.state("replay.*"))
        entries = [_REPLAY.decode(message.data) for message in found if message.data]
        return {entry.id: entry.through for entry in entries}

    async def outcomes(self, skipped: int) -> AsyncIterator[CopiedOutcomes]:
        """See `Movable.outcomes`."""
        async for _, record in self._records():
            for part in in_parts(_entries(record)):
                if skipped:
                    skipped -= 1
                else:
                    yield CopiedOutcomes(record.settled_at, part)

    async def _records(self) -> AsyncIterator[tuple[int, Record]]:
        """All records with their places."""
        work, subject = self._layout.work, self._layout.names.done
        last = await work.last(subject)
        place = 1
        while last is not None and place <= last.seq:
            page, is_all = await work.page(subject, place, through=last.seq, most=200)
            for message in page:
                yield message.seq, parse_record(message.data)
            place = last.seq + 1 if is_all or not page else page[-1].seq + 1

    async def events(self) -> AsyncIterator[CopiedEvents]:
        """See `Movable.events`. The last seq is told also where its event is no longer kept."""
        logged = Logged([(place, number_of_parts(len(_entries(record)))) async for place, record in self._records()])
        await self.registry_version()
        erased = {
            document.client_id: max(one.through for one in document.earlier)
            for document in self._accounts.book.clients.values()
            if document.earlier
        }
        end, last = 0, await self._log.last()
        first = await self._log.first_place()
        async for segment in self._log.between(first, last.place):
            events = {seq: event for seq, event in segment.stored().events() if seq > erased.get(event.client_id, 0)}
            seqs = range(segment.first_seq, segment.last_seq + 1)
            if seqs:
                end = segment.last_seq
                yield CopiedEvents(seqs[0], segment.accepted_at, logged.until(segment.logged), [events.get(seq) for seq in seqs])
        if last.last_seq > end:
            yield CopiedEvents(last.last_seq, last.accepted_at, logged.until(last.logged), [None])

    async def calls(self, after: int) -> AsyncIterator[list[CallRow]]:
        """See `Movable.calls`."""
        await self._accepting.know_end()
        found: dict[int, CallRow] = {}
        for message in await self._layout.state.all(self._layout.names.state("call.*")):
            if message.data:
                number = _number(message)
                found[number] = (number, *_ROW.decode(message.data))
        found.update({row[0]: row for row in self._calls.unwritten.rows()})
        rows = sorted(row for row in found.values() if row[0] > after)
        for start in range(0, len(rows), _CALLS_AT_ONCE):
            yield rows[start : start + _CALLS_AT_ONCE]

    # As a target

    async def mark(self) -> Mark | None:
        """See `Movable.mark`."""
        return await mark_in(self)

    async def put_mark(self, mark: Mark) -> None:
        """See `Movable.put_mark`."""
        await self._put_state(_MARK, _encode(mark))

    async def _put_state(self, key: str, data: bytes) -> None:
        await self._layout.state.put(self._layout.names.state(key), data)

    async def is_empty(self) -> bool:
        """See `Movable.is_empty`."""
        layout = self._layout
        return not any([(await stream.info()).state.messages for stream in (layout.registry, layout.log, layout.work)])

    async def take_accounts(self, accounts: Accounts) -> None:
        """See `Movable.take_accounts`."""
        registry = accounts.registry
        await self._make_room(max(registry.version, len(registry.lines)))
        lines: dict[str, list[LineDocument]] = {}
        for place, line in enumerate(registry.lines, 1):
            lines.setdefault(line.client_id, []).append(LineDocument(line.pin, line.kind, line.number, place))
        for client in registry.clients.values():
            document = ClientDocument(
                client.client_id,
                _account(client),
                lines.get(client.client_id, []),
                [_callback(one, self._sealer) for one in registry.callbacks_of(client.client_id)],
                [Gone(one.id, one.code, is_to_be_tidied=False) for one in accounts.removed if one.client_id == client.client_id],
            )
            await self._accounts.change(_always(client_key(client.client_id), document))
        for credential in registry.intakes.values():
            await self._accounts.change(_always(intake_key(credential.name), _intake(credential)))
        for callback in registry.callbacks.values():
            if callback.health.failing_since is not None:
                await self.keep_health(callback.id, callback.health)
        await self._put_state("token_key", self._sealer.seal(accounts.token_key.hex()).encode())

    async def _make_room(self, version: int) -> None:
        """Begin behind a version: a callback's number is the version that brought it, and none may be given twice."""
        stream = self._layout.registry
        state = (await stream.info()).state
        if state.messages:
            return
        if state.last_seq < version:
            await self._link.answer(f"$JS.API.STREAM.PURGE.{stream.name}", _encode({"seq": version + 1}))
        self._accounts.book.version = max(state.last_seq, version)

    async def take_replays(self, replays: Sequence[CopiedReplay]) -> None:
        """See `Movable.take_replays`."""
        for copied in replays:
            await self._put_state(f"replay.{copied.replay.id}", _encode(_replay(copied)))
        if replays:
            await self._put_state("replays", str(max(copied.replay.id for copied in replays)).encode())

    async def take_outcomes(self, outcomes: Sequence[CopiedOutcomes]) -> None:
        """See `Movable.take_outcomes`. Nothing else is written there meanwhile, so they lie side by side."""
        records = [Record(secrets.token_hex(8), one.settled_at, 0, list(one.entries)) for one in outcomes]
        await self._layout.work.put_all([Draft(self._layout.names.done, render_record(record)) for record in records])

    async def last_event(self) -> int:
        """See `Movable.last_event`."""
        await self._accepting.know_end()
        await self._log.catch_up()
        return self._log.tail.last_seq

    async def take_events(self, events: CopiedEvents) -> None:
        """See `Movable.take_events`."""
        data = _encode(events.events)
        if len(data) > self._link.max_payload - 4096 and len(events.events) > 1:
            middle = events.first_seq + len(events.events) // 2
            await self.take_events(events._replace(events=events.events[: middle - events.first_seq]))
            await self.take_events(events.behind(middle - 1))
            return
        logged = await self._place_of_outcome(events.logged)
        await self._log.append(
            LoggedSegment(
                0, events.first_seq, events.last_seq, events.accepted_at, events.first_seq, logged, secrets.token_hex(8),
                b"[]", data,
            )
        )  # fmt: skip

    async def _place_of_outcome(self, number: int) -> int:
        if number and not self._first_outcome:
            first = await self._layout.work.next(self._layout.names.done, 1)
            self._first_outcome = 1 if first is None else first.seq
        return self._first_outcome + number - 1 if number else 0

    async def last_call(self) -> int:
        """See `Movable.last_call`."""
        found = await self._layout.state.last(self._layout.names.state("call.*"))
        return -1 if found is None else _number(found)

    async def take_calls(self, calls: Sequence[CallRow], in_progress: set[int]) -> None:
        """See `Movable.take_calls`. The engine forgets them by itself, unless they are in progress."""
        name = self._layout.names.state
        await self._layout.state.put_all(
            [Draft(name(f"call.{row[0]:016x}"), _encode(row[1:]), {} if row[0] in in_progress else _KEPT) for row in calls]
        )

    async def take_snapshots(self, snapshots: Sequence[SnapshotRow]) -> None:
        """See `Movable.take_snapshots`."""
        name = self._layout.names.state
        await self._layout.state.put_all([Draft(name(f"snapshot.{row[0]:016x}"), _pack(row[1:])) for row in snapshots])

    async def take_waiting(self, deliveries: Sequence[Delivery]) -> None:
        """See `Movable.take_waiting`."""

        def think() -> Change:
            change = self._change()
            for delivery in deliveries:
                change.add(delivery.callback_id, waiting(delivery))
            return change

        await self._commit(think)

    async def take_dead(self, deliveries: Sequence[DeadDelivery]) -> None:
        """See `Movable.take_dead`."""

        def think() -> Change:
            change = self._change()
            for one in deliveries:
                delivery = one.delivery
                row = Dead(delivery.attempts, delivery.age_s, to_us(one.died_at), one.outcome, raw_event(delivery.event))
                change.kill(delivery.callback_id, row)
            return change

        await self._commit(think)

    def _change(self) -> Change:
        """All outcomes are there by now, so nothing is without one."""
        return Change(to_us(self._clock()), self._log.tail.last_seq + 1)

    async def _commit(self, think: Callable[[], Change]) -> None:
        async with self._work.lock:
            await self._work.catch_up()
            await self._work.commit(think)
            await self._work.tidy()

    async def end_copy(self) -> None:
        """See `Movable.end_copy`."""

        def think() -> Change:
            change = self._change()
            change.entries.append((0, 0, 0, DELIVERED))  # so that there is a record
            return change

        await self._commit(think)
        async with self._work.lock:
            await self._work.tidy(is_forced=True)
        await self._put_state("mark.calls", _encode((self._log.tail.place, 0)))


async def mark_in(store: NatsStore) -> Mark | None:
    """Whose copy a store is."""
    await store._ready()  # noqa: SLF001 - of the same engine
    layout = store._layout  # noqa: SLF001
    found = await layout.state.last(layout.names.state(_MARK))
    return None if found is None else msgspec.json.decode(found.data, type=Mark)


def _entries(record: Record) -> list[Entry]:
    """Its outcomes, without the one that stands there so that there is a record."""
    return [entry for entry in record.entries if entry[0]]


def _number(message: Stored) -> int:
    return int(message.subject.rpartition(".")[2], 16)


def _always(key: str, document: Document) -> Callable[[Book, int], tuple[str, Document, Any]]:
    return lambda _book, _version: (key, document, None)


def _account(one: Client) -> Account:
    return Account(one.name, one.secret_hash, one.secret_version, to_us(one.created_at), to_us_or_none(one.disabled_at))


def _intake(one: IntakeCredential) -> IntakeDocument:
    return IntakeDocument(one.name, one.token_hash, to_us(one.created_at))


def _callback(one: Callback, sealer: Sealer) -> CallbackDocument:
    old = one.secrets[1] if len(one.secrets) > 1 else None
    return CallbackDocument(
        one.id,
        one.code,
        one.url,
        one.pin,
        None if one.credentials is None else sealer.seal(one.credentials),
        sealer.seal(one.secrets[0]),
        to_us(one.created_at),
        0,
        None if old is None else sealer.seal(old),
        None if old is None else to_us_or_none(one.old_secret_until),
        to_us_or_none(one.disabled_at),
        one.disabled_reason,
    )


def _replay(copied: CopiedReplay) -> ReplayEntry:
    one, (place, through) = copied.replay, places_of(copied)
    return ReplayEntry(
        one.id, one.callback_id, to_us(one.until), one.is_for_dead, one.rate, to_us_or_none(one.created_at) or 0, through,
        to_us_or_none(one.since), one.callerid, one.event_id, one.state, place, one.requeued, to_us_or_none(one.ended_at),
    )  # fmt: skip
