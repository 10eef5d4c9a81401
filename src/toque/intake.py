"""The intake: what sources see becomes durable events, in order, and only then deliveries.

One loop takes what all watches have collected, appends it in one go, and offers the deliveries to the dispatcher. While an
append is under way, packets go on being understood; their changes are the next batch. What the store did not take is kept and
comes first in the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

import structlog

from toque.callbacks.delivery import Delivery
from toque.calls.call import Call
from toque.calls.gone_watch import GoneWatch
from toque.calls.hep_packet import HepPacket
from toque.calls.lines import LineBook
from toque.calls.model import CallIdentity, SignalKind, Snapshot, Status, StatusChange
from toque.calls.sip_watch import SipWatch
from toque.calls.tracker import CallTracker, Counters, Observer, Patience
from toque.errors import IllegalStep, StoreError
from toque.store.contract import Appended, Store
from toque.telemetry import Sparingly, mask_number

MAX_WAITING_CHANGES = 50_000  # beyond this the sources are told to hold back: a minute's worth of a large carrier
_CHANGES_AT_ONCE = 2_000  # what is planned and written in one go: after an outage much more waits than memory should hold twice
_TICK_S = 0.1  # how late a conclusion may be
_STORE_RETRY_S = 0.5
_GATHERING_S = 0.002
_MANY_WAITERS = 50  # a commit's worth

# Which statuses of which calls the store had accepted before.
Repeated = frozenset[tuple[CallIdentity, Status]]
_NOTHING_REPEATED: Repeated = frozenset()
Listener = Callable[[Repeated | StoreError | IllegalStep], None]


class Watch(Protocol):
    """One source's calls, whatever its switch speaks: what goes in is between the watch and its source's client."""

    source: str
    tracker: CallTracker

    def tick(self, now: datetime) -> None:
        """Do what has become due."""

    def take(self) -> tuple[list[StatusChange], list[Snapshot]]:
        """The changes since the last call, and the state of the calls they touched."""

    def waiting(self) -> int:
        """How many changes `take` would give."""

    def take_unmatched(self) -> list[Call]:
        """The calls that ended without matching a line, since the last call."""

    def take_late(self) -> dict[CallIdentity, SignalKind]:
        """The calls that showed a sign of life after their end had been concluded, since the last call, and the last sign."""

    def take_crowded(self) -> int:
        """How many calls under way that matched no line were forgotten for want of room, since the last call."""

    def forget(self, identity: CallIdentity) -> None:
        """Remember nothing of a call: what is heard of it next begins it anew. What its sides were told waits to be taken."""

    def restore(self, state: bytes, now: datetime) -> None:
        """Go on with a call. Raises `ValueError` for bytes that are no snapshot of ours."""


class Intake:
    """The watches of all sources, and the way of their changes into the store."""

    def __init__(
        self,
        store: Store,
        offer: Callable[[Iterable[Delivery]], None],
        *,
        clock: Callable[[], datetime],
        mask: Callable[[str], str] = mask_number,
        patience: Patience | None = None,
        observer: Callable[[str], Observer] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`patience` is for the calls of sources that are gone from the settings; the others' watches have their own.

        `observer` gives whoever looks on at the calls of the source of this name.
        """
        self._store = store
        self._offer = offer
        self._clock = clock
        self._mask = mask
        self._patience = patience
        self._observer = observer
        self._sleep = sleep
        self._watches: dict[str, Watch] = {}
        self._changes: list[StatusChange] = []
        self._snapshots: dict[CallIdentity, Snapshot] = {}
        self._wake = asyncio.Event()
        self._waiters: list[Listener] = []  # of what the watches hold
        self._covered: list[Listener] = []  # of what is collected
        self._released_s = 0.0  # monotonic: when several posters were told at once
        self._is_failing = False
        self._is_stopping = False
        self._idle = asyncio.Event()
        self._log = structlog.get_logger("toque.intake")
        self._sparingly = Sparingly(time.monotonic)
        self._crowding = Sparingly(time.monotonic)  # its own: what crowds is mostly told as unmatched before
        self.events = 0

    def add(self, watch: Watch) -> None:
        """Take in what this watch sees from now on."""
        self._watches[watch.source] = watch
        if self._observer is not None:
            watch.tracker.observer = self._observer(watch.source)

    def apply(self, lines: LineBook) -> None:
        """Go by these lines from now on; calls in progress keep their sides."""
        for watch in self._watches.values():
            watch.tracker.lines = lines

    async def restore(self) -> int:
        """Go on with the calls that the store holds in progress; returns how many.

        Those of a source that is gone from the settings hear nothing more, and are concluded when they are stale.
        """
        now, restored = self._clock(), 0
        for identity, state in await self._store.open_calls():
            watch = self._watches.get(identity.source)
            if watch is None:
                self._log.warning("source.gone", source=identity.source)
                watch = GoneWatch(identity.source, self._patience)
                self.add(watch)
            try:
                watch.restore(state, now)
            except ValueError as error:
                self._log.error("call.unreadable", source=identity.source, problem=str(error))
                continue
            restored += 1
        return restored

    def receive(self, watch: SipWatch, packet: HepPacket) -> None:
        """Understand one packet. Raises `InputError` for one that cannot be."""
        try:
            watch.feed(packet, self._clock())
        finally:
            self.notice()

    def notice(self) -> None:
        """A watch was fed directly, and may have something to say."""
        self._wake.set()

    def watch(self, source: str) -> Watch | None:
        """The watch of a source."""
        return self._watches.get(source)

    async def durable(self) -> Repeated:
        """Wait until the store has everything that the watches have understood so far; returns what of it was no news to it.

        Raises `StoreError` when the store did not take it now. It is kept, and goes with the next attempt.
        """
        waiter: asyncio.Future[Repeated] = asyncio.get_running_loop().create_future()
        self.tell(partial(_resolve, waiter))
        try:
            return await waiter
        finally:
            del waiter  # an error from it knows this frame, and would keep it, and whoever waits with all that he brought

    def tell(self, listener: Listener) -> None:
        """Call this once with what `durable` comes to. It costs no task and no future; the listener must not raise."""
        if self._idle.is_set():
            listener(StoreError("the server has stopped"))
            return
        self._waiters.append(listener)
        self._wake.set()

    def can_take(self) -> bool:
        """Whether who waits for what he says to be durable should say more: not while the store refuses, and not at the end."""
        return not (self._is_failing or self._is_stopping or self.is_full())

    def is_full(self) -> bool:
        """Whether so much waits for the store that sources must hold back."""
        return self.waiting() > MAX_WAITING_CHANGES

    def waiting(self) -> int:
        """Changes that wait for the store."""
        return len(self._changes) + sum(watch.waiting() for watch in self._watches.values())

    def counters(self, source: str) -> Counters:
        """What the tracker of a source has counted since the start."""
        watch = self._watches.get(source)
        return Counters() if watch is None else watch.tracker.counters

    @property
    def calls(self) -> int:
        """Calls in progress, and those that ended a short while ago."""
        return sum(len(watch.tracker.calls) for watch in self._watches.values())

    @property
    def unmatched(self) -> int:
        """Calls that matched no line, since the start."""
        return sum(watch.tracker.counters.unmatched for watch in self._watches.values())

    async def run(self) -> None:
        """Append what comes, until `stop` was called and nothing waits any more."""
        while True:
            if not self._is_stopping:
                await self._wait()
                await self._gather()
            self._collect()
            if self._changes or self._snapshots:
                await self._append()
            else:
                self._release(_NOTHING_REPEATED)
                if self._is_stopping:
                    self._idle.set()
                    return

    async def stop(self, grace: timedelta) -> bool:
        """Append what was understood so far and end `run`; False when the store did not let it within `grace`."""
        self._is_stopping = True
        self._wake.set()
        try:
            async with asyncio.timeout(grace.total_seconds()):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _wait(self) -> None:
        if not self._wake.is_set():  # a timer costs as much as a status
            try:
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                return
        self._wake.clear()

    async def _gather(self) -> None:
        """Let posters who were answered a moment ago come again, so that they share a commit: each costs as much as ten posts."""
        if not 0 < len(self._waiters) < _MANY_WAITERS:
            return
        rest_s = self._released_s + _GATHERING_S - time.monotonic()
        if rest_s > 0:
            await asyncio.sleep(rest_s)

    def _release(self, told: Repeated | StoreError | IllegalStep) -> None:
        """Tell those who wait for what is collected."""
        waiters, self._covered = self._covered, []
        if len(waiters) > 1:  # one who waits alone is not to wait for others
            self._released_s = time.monotonic()
        for tell in waiters:
            tell(told)

    def _cover(self) -> None:
        """Those who wait are told with what is collected."""
        self._covered += self._waiters
        self._waiters = []

    def _collect(self) -> None:
        self._cover()
        now = self._clock()
        for watch in self._watches.values():
            watch.tick(now)
            changes, snapshots = watch.take()
            self._changes += changes
            for snapshot in snapshots:
                self._snapshots[snapshot.identity] = snapshot
            for identity, sign in watch.take_late().items():
                if self._sparingly.admits():
                    self._log.warning("call.late", source=watch.source, call=identity.key, sign=str(sign))
            for call in watch.take_unmatched():
                self._report_unmatched(watch.source, call.caller, call.dialled)
            if watch.take_crowded() and self._crowding.admits():
                self._log.warning(
                    "call.crowded",
                    source=watch.source,
                    forgotten=watch.tracker.counters.crowded,
                    held_back=self._crowding.take_held_back(),
                )

    async def _append(self) -> None:
        """Try once to have the store take everything, a part at a time; what it does not take stays where it is."""
        told: Repeated | IllegalStep = _NOTHING_REPEATED
        try:
            while self._changes or self._snapshots:
                part, snapshots = self._next_part()
                try:
                    appended = await self._store.append(part, list(snapshots.values()))
                except IllegalStep as error:
                    await self._append_call_by_call(part, snapshots)
                    self._cover()  # who repeated meanwhile what is lost was taken to say nothing new
                    told = error
                else:
                    self._changes = self._changes[len(part) :]
                    self._snapshots = _without(self._snapshots, snapshots)
                    self._accept(appended)
                    if isinstance(told, frozenset) and appended.events != len(part):
                        told |= _repeated(part, appended)
            self._is_failing = False
            self._release(told)
        except StoreError as error:
            self._is_failing = True
            self._release(error)
            self._log.error("event.append_failed", error=str(error), events=len(self._changes))
            await self._sleep(_STORE_RETRY_S)

    def _next_part(self) -> tuple[list[StatusChange], dict[CallIdentity, Snapshot]]:
        """What waits the longest. A call's state goes with the last of its changes: it says that they were told."""
        if len(self._changes) <= _CHANGES_AT_ONCE:
            return self._changes, self._snapshots
        part = self._changes[:_CHANGES_AT_ONCE]
        later = {change.identity for change in self._changes[_CHANGES_AT_ONCE:]}
        whole = {change.identity for change in part} - later
        return part, {identity: snapshot for identity, snapshot in self._snapshots.items() if identity in whole}

    async def _append_call_by_call(self, part: list[StatusChange], snapshots: dict[CallIdentity, Snapshot]) -> None:
        """A bug of ours makes the store refuse the part for good: only the calls concerned are lost, and loudly.

        Their watch forgets them, so that whoever says it all again is not told that it is known.
        """
        calls: dict[CallIdentity, list[StatusChange]] = {}
        for change in part:
            calls.setdefault(change.identity, []).append(change)
        for identity in snapshots:
            calls.setdefault(identity, [])
        done: set[CallIdentity] = set()
        try:
            for identity, changes in calls.items():
                snapshot = snapshots.get(identity)
                try:
                    self._accept(await self._store.append(changes, [] if snapshot is None else [snapshot]))
                except IllegalStep as error:
                    self._log.critical(
                        "call.unacceptable", source=identity.source, call=identity.key, problem=str(error), events=len(changes)
                    )
                    self._watches[identity.source].forget(identity)
                done.add(identity)
        finally:
            left = [change for change in part if change.identity not in done]
            self._changes = left + self._changes[len(part) :]
            self._snapshots = _without(self._snapshots, done & snapshots.keys())

    def _accept(self, appended: Appended) -> None:
        self.events += appended.events
        if appended.deliveries:
            self._offer(appended.deliveries)

    def _report_unmatched(self, source: str, caller: str, dialled: str) -> None:
        if self._sparingly.admits():
            self._log.info(
                "call.unmatched",
                source=source,
                caller=self._mask(caller),
                dialled=self._mask(dialled),
                unmatched=self.unmatched,
                held_back=self._sparingly.take_held_back(),
            )


def _resolve(waiter: asyncio.Future[Repeated], told: Repeated | StoreError | IllegalStep) -> None:
    if waiter.done():  # its request is gone
        return
    if isinstance(told, frozenset):
        waiter.set_result(told)
    else:
        waiter.set_exception(type(told)(*told.args))


def _without(snapshots: dict[CallIdentity, Snapshot], taken: Collection[CallIdentity]) -> dict[CallIdentity, Snapshot]:
    if len(taken) == len(snapshots):
        return {}
    return {identity: snapshot for identity, snapshot in snapshots.items() if identity not in taken}


def _repeated(changes: Collection[StatusChange], appended: Appended) -> Repeated:
    """What was no news. A store that does not say which it was may have found no news at all."""
    left_out = appended.left_out or (() if appended.events else changes)
    return frozenset((change.identity, change.status) for change in left_out)
