"""The part of a store that the dispatcher needs, in memory, to the letter of the contract; it waits or fails when it is told to.

It survives the dispatcher: `recover` is what a server does with it after a crash. What is strict about it: a page shows what was
there when it was read, not when it arrives; rows are set on deliveries only once they are durable; what it hands out are copies.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toque.callbacks.callback import KeptHealth
from toque.callbacks.delivery import Delivery, DeliveryState, Event, Settlement
from toque.errors import StoreError

Key = tuple[int, int]


def key_of(delivery: Delivery) -> Key:
    return delivery.event.seq, delivery.callback_id


def copy_of(delivery: Delivery) -> Delivery:
    return Delivery(
        delivery.event,
        delivery.callback_id,
        delivery.attempts,
        delivery.due_at,
        delivery.age_s,
        delivery.row,
        delivery.receipt,
    )


@dataclass(frozen=True)
class Told:
    """One settlement, as it was at its time."""

    event: Event
    callback_id: int
    state: DeliveryState
    attempts: int
    due_at: object = None
    outcome: str = ""


class StoreDouble:
    """Remembers what was settled."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()  # shut: whatever is written waits
        self.gate.set()
        self.read_gate = asyncio.Event()
        self.read_gate.set()
        self.failures = 0
        self.read_failures = 0
        self.is_broken = False
        self.tries = 0
        self.reads: list[tuple[int, int, int]] = []  # callback, after, limit
        self.history: list[Told] = []
        self.disabled: list[tuple[int, str]] = []
        self.version = 1  # of the registry, once a callback was disabled
        self.healths: list[tuple[int, KeptHealth]] = []
        self.removed: set[int] = set()
        self.state: dict[Key, DeliveryState] = {}
        self.fresh: dict[Key, Delivery] = {}
        self.rows: dict[int, dict[int, Delivery]] = defaultdict(dict)
        self._last_row = 0

    # What the server does

    def append(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Accept deliveries, which are in the caller's hands from then on."""
        accepted = list(deliveries)
        for delivery in accepted:
            assert key_of(delivery) not in self.state
            self.state[key_of(delivery)] = DeliveryState.WAITING
            self.fresh[key_of(delivery)] = copy_of(delivery)
        return accepted

    def recover(self) -> list[int]:
        """What an earlier dispatcher left unsettled goes to the ends of the backlogs."""
        for _, delivery in sorted(self.fresh.items()):
            if delivery.callback_id not in self.removed:
                self._put(delivery)
        self.fresh.clear()
        return [callback_id for callback_id, rows in self.rows.items() if rows]

    def put(self, deliveries: Iterable[Delivery]) -> None:
        """Have this in the backlogs, as by an earlier process or a replay."""
        for delivery in deliveries:
            self.state[key_of(delivery)] = DeliveryState.WAITING
            self._put(copy_of(delivery))

    def remove(self, callback_id: int) -> None:
        """The callback is removed, and what waits for it dropped."""
        self.removed.add(callback_id)
        self.kill(callback_id)

    def kill(self, callback_id: int) -> None:
        """What waits for it in its backlog is dead."""
        for delivery in self.rows.pop(callback_id, {}).values():
            self.state[key_of(delivery)] = DeliveryState.DEAD

    # What the dispatcher uses

    async def settle(self, delivered: Sequence[Delivery], others: Sequence[Settlement] = ()) -> None:
        keys = [key_of(delivery) for delivery in delivered] + [key_of(other.delivery) for other in others]
        assert len(set(keys)) == len(keys), "the same delivery twice in a batch"
        self.tries += 1
        await self._write()
        for delivery in delivered:
            self._end(delivery, DeliveryState.DELIVERED, "")
        for settlement in others:
            self._settle_other(settlement)

    async def disable_callback(self, callback_id: int, reason: str) -> int:
        await self._write()
        self.disabled.append((callback_id, reason))
        self.kill(callback_id)
        return self.version

    async def keep_health(self, callback_id: int, health: KeptHealth) -> None:
        await self._write()
        self.healths.append((callback_id, health))

    async def backlog(self, callback_id: int, *, after: int = 0, limit: int = 500) -> list[Delivery]:
        assert limit > 0
        self.reads.append((callback_id, after, limit))
        await asyncio.sleep(0)
        rows = self.rows.get(callback_id, {})
        page = [copy_of(rows[row]) for row in sorted(rows) if row > after][:limit]
        await self.read_gate.wait()
        await asyncio.sleep(0)
        if self.read_failures or self.is_broken:
            self.read_failures -= bool(self.read_failures)
            raise StoreError("the disk is gone")
        return page

    # Its own

    async def _write(self) -> None:
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.failures or self.is_broken:
            self.failures -= bool(self.failures)
            raise StoreError("the disk is full")

    def _settle_other(self, settlement: Settlement) -> None:
        delivery = settlement.delivery
        if settlement.state is not DeliveryState.WAITING:
            self._end(delivery, settlement.state, settlement.outcome)
            return
        self._tell(delivery, DeliveryState.WAITING, settlement.outcome)
        self.fresh.pop(key_of(delivery), None)
        if self.state[key_of(delivery)] is DeliveryState.WAITING and delivery.callback_id not in self.removed:
            delivery.row = self._put(copy_of(delivery))

    def _put(self, delivery: Delivery) -> int:
        rows = self.rows[delivery.callback_id]
        mine = next((row for row, other in rows.items() if key_of(other) == key_of(delivery)), 0)
        if not mine:
            self._last_row += 1
        delivery.row = mine or self._last_row
        rows[delivery.row] = delivery
        return delivery.row

    def _end(self, delivery: Delivery, state: DeliveryState, outcome: str) -> None:
        self._tell(delivery, state, outcome)
        key = key_of(delivery)
        if self.state[key] is DeliveryState.WAITING:
            self.state[key] = state
        self.fresh.pop(key, None)
        self.rows[delivery.callback_id].pop(delivery.row, None)

    def _tell(self, delivery: Delivery, state: DeliveryState, outcome: str) -> None:
        self.history.append(Told(delivery.event, delivery.callback_id, state, delivery.attempts, delivery.due_at, outcome))

    # What tests ask

    @property
    def last(self) -> Told:
        return self.history[-1]

    def of(self, delivery: Delivery) -> Told:
        """The last word on this delivery."""
        return [told for told in self.history if (told.event.seq, told.callback_id) == key_of(delivery)][-1]

    def backlog_of(self, callback_id: int = 1) -> list[str]:
        """The ids of the events that wait in its backlog."""
        rows = self.rows.get(callback_id, {})
        return [rows[row].event.id for row in sorted(rows)]
