"""Settling: outcomes on their way into the store, as many at once as there are.

One batch is written at a time. While the store refuses, the same batch is tried again and the next one grows behind it; what
has no durable outcome keeps its slot, so in the end nothing new starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from toque.callbacks.callback import KeptHealth
from toque.callbacks.delivery import Delivery, DeliveryState, Settlement
from toque.errors import StoreError
from toque.sending.agenda import Agenda
from toque.sending.lanes import CallbackQueue, Lane

STORE_RETRY_S = 0.5  # between tries while the store fails
_FULL_BATCH = 250  # outcomes that wait for no others


class Ledger(Protocol):
    """What settling needs of the store; each of these raises `StoreError` when it has done nothing."""

    async def settle(self, delivered: Sequence[Delivery], others: Sequence[Settlement] = ()) -> None:
        """Write down how deliveries stand."""

    async def disable_callback(self, callback_id: int, reason: str) -> int:
        """Stop posting to a callback; what waits for it in the store is dead. The registry's version that shows it."""

    async def keep_health(self, callback_id: int, health: KeptHealth) -> None:
        """Remember a callback's health."""


@dataclass(slots=True, eq=False)
class Batch:
    """What goes into the store at once."""

    done: list[Lane]
    failed: list[Lane]
    others: list[Settlement]
    left: list[CallbackQueue]
    disabling: dict[int, str]


class Settling:
    """What waits to be written, and the loop that writes it."""

    def __init__(
        self,
        ledger: Ledger,
        agenda: Agenda,
        after: Callable[[Batch], None],
        disabled: Callable[[int, int], None],
        *,
        pace_s: float = 0.0,
    ) -> None:
        """`after` is told of each batch that is durable, `disabled` of each callback that is disabled in the store,
        and since which version of the registry.

        Batches begin `pace_s` apart, unless much is to be written.
        """
        self._ledger = ledger
        self._agenda = agenda
        self._after = after
        self._disabled = disabled
        self._log = structlog.get_logger("toque.sending")
        self._wake = asyncio.Event()
        self._pace_s = pace_s
        self._began_s = -pace_s
        self.is_awake = False
        self._is_writing = False
        self.done: list[Lane] = []
        """Lanes whose head was delivered."""
        self.failed: list[Lane] = []
        """Lanes whose head was not; what becomes of it is in `others`."""
        self.others: dict[Delivery, Settlement] = {}
        """In the order in which they are to be written, which is the order of the backlog."""
        self._left: dict[CallbackQueue, None] = {}
        self._disabling: dict[int, str] = {}

    def wake(self) -> None:
        """There is something to write."""
        if not self.is_awake:
            self.is_awake = True
            self._wake.set()

    def write(self, delivery: Delivery, state: DeliveryState, outcome: str = "") -> None:
        """Write this down with the next batch, in the place of what was to be written of the delivery so far, if anything."""
        now_s = self._agenda.time()
        delivery.age_s += now_s - delivery.since_s
        delivery.since_s = now_s
        self.others[delivery] = Settlement(delivery, state, outcome)
        self.wake()

    def leave(self, queue: CallbackQueue, delivery: Delivery) -> None:
        """Put a delivery that has no row into its callback's backlog."""
        if delivery not in self.others:
            self.write(delivery, DeliveryState.WAITING)
        if queue not in self._left:
            self._left[queue] = None
            queue.leaving += 1
        queue.has_left = True

    def disable(self, callback_id: int, reason: str) -> None:
        """Disable a callback once everything that was said so far is durable."""
        self._disabling[callback_id] = reason
        self.wake()

    def kill_all(self, callback_id: int, reason: str) -> None:
        """What is to be left to the store for this callback is dead instead."""
        for delivery, settlement in self.others.items():
            if delivery.callback_id == callback_id and settlement.state is DeliveryState.WAITING:
                self.others[delivery] = Settlement(delivery, DeliveryState.DEAD, reason)

    @property
    def is_quiet(self) -> bool:
        """Whether everything is durable."""
        return not (self._is_writing or self._has_work)

    @property
    def _has_work(self) -> bool:
        return bool(self.done or self.failed or self.others or self._disabling)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            while self._has_work:
                await self._pace()
                batch = self._take()
                self._is_writing = True
                try:
                    await self._write(batch)
                finally:
                    self._is_writing = False
                self._after(batch)
            self._wake.clear()
            self.is_awake = False

    async def _pace(self) -> None:
        """Let a batch grow a little when the one before has only just begun: each commit costs as much as many outcomes."""
        wait_s = self._began_s + self._pace_s - self._agenda.time()
        if wait_s > 0 and len(self.done) < _FULL_BATCH:
            await self._agenda.sleep(wait_s)
        self._began_s = self._agenda.time()

    def _take(self) -> Batch:
        batch = Batch(self.done[:], self.failed, list(self.others.values()), list(self._left), self._disabling)
        self.done.clear()  # the list itself stays: others add to it without asking for it each time
        self.failed, self.others, self._left, self._disabling = [], {}, {}, {}
        return batch

    async def _write(self, batch: Batch) -> None:
        delivered = [lane.head for lane in batch.done]
        if delivered or batch.others:
            while not await self._try_settle(delivered, batch.others):
                await self._agenda.sleep(STORE_RETRY_S)
        for callback_id, reason in batch.disabling.items():
            while (version := await self._try_disable(callback_id, reason)) is None:
                await self._agenda.sleep(STORE_RETRY_S)
            self._disabled(callback_id, version)

    async def _try_settle(self, delivered: list[Delivery], others: list[Settlement]) -> bool:
        try:
            await self._ledger.settle(delivered, others)
        except StoreError as error:
            self._log.error("delivery.settle_failed", error=str(error), deliveries=len(delivered) + len(others))
            return False
        return True

    async def _try_disable(self, callback_id: int, reason: str) -> int | None:
        try:
            return await self._ledger.disable_callback(callback_id, reason)
        except StoreError as error:
            self._log.error("callback.disable_failed", error=str(error), callback=callback_id)
            return None


class HealthKeeping:
    """Health on its way into the store. Nothing waits for it, and only the last word on each callback counts."""

    def __init__(self, ledger: Ledger, agenda: Agenda) -> None:
        self._ledger = ledger
        self._agenda = agenda
        self._log = structlog.get_logger("toque.sending")
        self._wake = asyncio.Event()
        self._kept: dict[int, KeptHealth] = {}
        self._is_writing = False

    @property
    def is_quiet(self) -> bool:
        """Whether everything is durable."""
        return not (self._kept or self._is_writing)

    def keep(self, callback_id: int, health: KeptHealth) -> None:
        """Have this written some time soon."""
        self._kept.pop(callback_id, None)
        self._kept[callback_id] = health
        self._wake.set()

    async def run(self, after: Callable[[], None]) -> None:
        """Write until cancelled; `after` is called whenever everything is written."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._is_writing = True
            try:
                while self._kept:
                    await self._write_next()
            finally:
                self._is_writing = False
            after()

    async def _write_next(self) -> None:
        callback_id = next(iter(self._kept))
        health = self._kept.pop(callback_id)
        try:
            await self._ledger.keep_health(callback_id, health)
        except StoreError as error:
            self._log.error("callback.health_not_kept", error=str(error), callback=callback_id)
            self._kept.setdefault(callback_id, health)
            await self._agenda.sleep(STORE_RETRY_S)
