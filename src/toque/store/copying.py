"""Copying an installation's data from one store into another, whatever engine each has (docs/operation.md, "Moving").

What is copied has one order in its source, and each engine can say how far a copy of it is. So a copy that was broken off goes on
where it was, and nothing is there twice. A mark in the target says whose copy it is and whether it is whole: no server may use
one that is not, and a source that was used meanwhile is another source.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from toque.callbacks.callback import Registry
from toque.calls.identity import callerid
from toque.errors import InputError
from toque.store.contract import Replay, Store
from toque.store.movable import ENTRIES_AT_ONCE, Accounts, CopiedOutcomes, CopiedReplay, Mark, Movable
from toque.store.sqlite_calls import SnapshotRow, key_of

T = TypeVar("T")
_DELIVERIES_AT_ONCE = 1_000
KINDS = (
    "clients",
    "lines",
    "callbacks",
    "intake credentials",
    "replays",
    "outcomes",
    "events",
    "calls",
    "calls in progress",
    "waiting deliveries",
    "dead deliveries",
)

Counts = dict[str, int]


async def copy(source: Movable, target: Movable, tell: Callable[[str], None]) -> tuple[Counts, Counts]:
    """Copy everything, or go on with a copy that was broken off; how much of each kind is on either side then.

    `tell` gets each kind as it is done. Nothing is removed from the source; what a server left in memory when it crashed is put
    into its backlogs first, as the next one would. Raises `InputError` where a copy cannot be, `SettingsError` and `StoreError`.
    """
    await source.claim()
    await target.claim()
    if (mark := await source.mark()) is not None and not mark.is_whole:
        raise InputError(f"{source.shown} is a copy that was broken off; it is no source")
    await source.recover()
    name = await _name_of(source)
    mark = await target.mark()
    if mark is None:
        if not await target.is_empty():
            raise InputError(f"{target.shown} is in use: a copy needs an empty store, or one that it was begun in")
        await target.put_mark(Mark(name))
    elif mark.source != name:
        raise InputError(f"{target.shown} has a copy of other data, or {source.shown} was used since: begin with an empty store")
    if mark is None or not mark.is_whole:
        await _Copy(source, target, tell).run()
        await target.end_copy()
    found = await counted(source), await counted(target)
    if not missing(*found):
        await target.put_mark(Mark(name, is_whole=True))
    return found


def missing(there: Counts, here: Counts) -> list[str]:
    """The kinds of which a source and its copy do not have as much. An engine may forget calls that are over meanwhile."""
    return [kind for kind in KINDS if here[kind] != there[kind] and (kind != "calls" or here[kind] < there[kind])]


async def _name_of(source: Movable) -> str:
    key = hashlib.sha256(await source.token_key()).hexdigest()
    return hashlib.sha256(f"{key} {await source.state_of_things()}".encode()).hexdigest()


class _Copy:
    """The steps of one copy, each of which goes on where an earlier try was broken off."""

    def __init__(self, source: Movable, target: Movable, tell: Callable[[str], None]) -> None:
        self._source = source
        self._target = target
        self._tell = tell

    async def run(self) -> None:
        """All of them. The order matters: what refers to something comes after it."""
        registry = await self._source.registry()
        accounts = Accounts(registry, await self._source.removed_callbacks(), await self._source.token_key())
        await self._target.take_accounts(accounts)
        self._tell("clients, lines, callbacks, intake credentials")
        await self._copy_replays()
        self._tell("replays")
        await self._copy_outcomes()
        self._tell("outcomes")
        await self._copy_events()
        self._tell("events")
        await self._copy_calls()
        self._tell("calls")
        await self._copy_waiting(registry)
        self._tell("waiting deliveries")
        await self._copy_dead(registry)
        self._tell("dead deliveries")

    async def _copy_replays(self) -> None:
        """Events keep their places; dead deliveries do not, so a replay of those begins again with the first that is left."""
        ends = await self._source.replay_ends()
        found = [CopiedReplay(replay, ends.get(replay.id, 0)) for replay in await known_replays(self._source)]
        await self._target.take_replays(found)

    async def _copy_outcomes(self) -> None:
        part: list[CopiedOutcomes] = []
        size = 0
        async for outcomes in self._source.outcomes(len([1 async for _ in self._target.outcomes(0)])):
            part.append(outcomes)
            size += len(outcomes.entries) + 1
            if size >= ENTRIES_AT_ONCE:
                await self._target.take_outcomes(part)
                part, size = [], 0
        if part:
            await self._target.take_outcomes(part)

    async def _copy_events(self) -> None:
        last = await self._target.last_event()
        async for events in self._source.events():
            if events.last_seq > last:
                await self._target.take_events(events.behind(last))

    async def _copy_calls(self) -> None:
        rows: list[SnapshotRow] = [
            (key_of(callerid(identity, 0)), identity.source, identity.key, state)
            for identity, state in await self._source.open_calls()
        ]
        in_progress = {row[0] for row in rows}
        async for calls in self._source.calls(await self._target.last_call()):
            await self._target.take_calls(calls, in_progress)
        await self._target.take_snapshots(rows)

    async def _copy_waiting(self, registry: Registry) -> None:
        there, sizes = await self._target.backlog_sizes(), await self._source.backlog_sizes()
        for number in registry.callbacks:
            if sizes.get(number, 0) <= there.get(number, 0):
                continue
            async for page in _pages(self._source.backlog, number, there.get(number, 0), lambda one: one.row):
                await self._target.take_waiting(page)

    async def _copy_dead(self, registry: Registry) -> None:
        there, sizes = await self._target.dead_sizes(), await self._source.dead_sizes()
        for number in registry.callbacks:
            if sizes.get(number, 0) <= there.get(number, 0):
                continue
            async for page in _pages(self._source.dead, number, there.get(number, 0), lambda one: one.delivery.row):
                await self._target.take_dead(page)


async def _pages(
    read: Callable[..., Awaitable[list[T]]], callback_id: int, skipped: int, row_of: Callable[[T], int]
) -> AsyncIterator[list[T]]:
    """A callback's rows behind the first so many."""
    after, is_all = 0, False
    while not is_all:
        page = await read(callback_id, after=after, limit=_DELIVERIES_AT_ONCE)
        is_all = len(page) < _DELIVERIES_AT_ONCE
        if page:
            after = row_of(page[-1])
        rest = page[skipped:]
        skipped = max(skipped - len(page), 0)
        if rest:
            yield rest


async def known_replays(store: Store) -> list[Replay]:
    """The replays whose callbacks are not removed."""
    known = (await store.registry()).callbacks
    return [replay for replay in await store.replays() if replay.callback_id in known]


async def counted(store: Movable) -> Counts:
    """How much there is of each kind."""
    registry = await store.registry()
    numbers = (
        len(registry.clients),
        len(registry.lines),
        len(registry.callbacks),
        len(registry.intakes),
        len(await known_replays(store)),
        sum([len(one.entries) async for one in store.outcomes(0)]),
        sum([sum(event is not None for event in one.events) async for one in store.events()]),
        sum([len(rows) async for rows in store.calls(-1)]),
        len(await store.open_calls()),
        sum((await store.backlog_sizes()).values()),
        sum((await store.dead_sizes()).values()),
    )
    return dict(zip(KINDS, numbers, strict=True))
