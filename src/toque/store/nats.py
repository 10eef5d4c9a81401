"""The distributed store: NATS JetStream, for when one machine is not enough (docs/design-nats.md).

What is accepted is a chain of segments, what becomes of it a chain of records, the registry a chain of documents. Each is written
by naming the last message before it, so a repetition adds nothing and two who write at once cannot both be right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from toque.callbacks.callback import Client, IntakeCredential, KeptHealth, Registered, Registry, TooMany
from toque.callbacks.delivery import Delivery, Settlement
from toque.callbacks.payload import PayloadWriter
from toque.calls.lines import Line
from toque.calls.model import CallIdentity, Snapshot, StatusChange
from toque.errors import StoreError
from toque.store.contract import Appended, DeadDelivery, PastEvent, Removal, Replay
from toque.store.nats_accepting import Accepting
from toque.store.nats_accounts import Accounts
from toque.store.nats_backlog import Shelf
from toque.store.nats_calls import Calls
from toque.store.nats_documents import Book
from toque.store.nats_fresh import Fresh
from toque.store.nats_history import History
from toque.store.nats_layout import Layout
from toque.store.nats_lease import Lease
from toque.store.nats_link import Access, Link
from toque.store.nats_log import Log
from toque.store.nats_replays import Replays
from toque.store.nats_rows import through_place
from toque.store.nats_settling import Settler
from toque.store.nats_upkeep import Housekeeper
from toque.store.nats_work import Work
from toque.store.sealing import Sealer

_WRITE_BACK_PAUSE = timedelta(minutes=10)
PREFIX = "toque"


def utc_now() -> datetime:
    """Our clock."""
    return datetime.now(UTC)


class NatsStore:
    """See `toque.store.contract.Store`. It connects with its first use."""

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
        self._clock = clock
        self._link = Link(access)
        self._layout = layout = Layout(self._link, prefix, replicas)
        self._accounts = Accounts(layout, Sealer(secret_key), clock)
        self._lease = Lease(layout, time.monotonic)
        self._log = Log(layout)
        self._fresh = Fresh()
        self._calls = Calls(layout, self._log)
        self._work = Work(layout, self._lease.check)
        self._shelf = Shelf(layout, self._work, self._book)
        self._settler = Settler(self._work, self._shelf, self._log, self._fresh, book=self._book, clock=clock)
        self._accepting = Accepting(
            self._log, self._calls, self._fresh, payloads,
            clock=clock, book=self._book, outcome=lambda: self._work.tail, most_bytes=lambda: self._link.max_payload - 4096,
            check=self._lease.check,
        )  # fmt: skip
        self._replays = Replays(layout, self._log, self._work, self._shelf, self._settler, book=self._book, clock=clock)
        self._upkeep = Housekeeper(
            layout, accounts=self._accounts, log=self._log, work=self._work, shelf=self._shelf, settler=self._settler,
            replays=self._replays, fresh=self._fresh, clock=clock, calls_from=lambda: self._calls.logged_from,
            extend=self._accepting.extend,
        )  # fmt: skip
        self._history = History(layout, self._log, self._work, self._shelf, self._calls, self._book)
        self._opening = asyncio.Lock()
        self._is_open = False
        self._is_closed = False
        self._written_back_at: datetime | None = None

    def _book(self) -> Book:
        return self._accounts.book

    async def _ready(self) -> None:
        """Connect, the first time. Raises `StoreError` or `SettingsError`."""
        if self._is_closed:
            raise StoreError("the store is closed")
        if self._is_open:
            return
        async with self._opening:
            if not self._is_open:
                try:
                    await self._link.open()
                    await self._layout.make()
                    await self._accounts.reseal()
                except BaseException:
                    await self._link.close()
                    self._link.is_closed = False
                    raise
                self._is_open = True

    async def claim(self) -> None:
        """Claim the events for one server. Raises `SettingsError` when another has them."""
        await self._ready()
        await self._lease.claim()

    async def close(self) -> None:
        """See `Store.close`."""
        self._is_closed = True
        await self._accepting.close()
        async with self._opening, self._work.lock:
            await self._lease.give_back()
            await self._link.close()

    async def drop(self) -> None:
        """Throw all of it away, for good: what was only tried out leaves nothing behind. The store is closed."""
        await self._ready()
        await self._accepting.close()
        await self._lease.give_back()
        await self._layout.drop()
        await self.close()

    async def ping(self) -> None:
        """See `Store.ping`."""
        await self._ready()
        self._lease.check()
        layout = self._layout
        await asyncio.gather(
            layout.state.put(layout.names.state("ping"), str(self._clock()).encode()),
            layout.log.last(layout.names.log),  # that leaders answer
            layout.work.last(layout.names.done),
        )

    # Registry

    async def registry_version(self) -> int:
        """See `Store.registry_version`."""
        await self._ready()
        return await self._accounts.version()

    async def registry(self) -> Registry:
        """See `Store.registry`."""
        await self._ready()
        return await self._accounts.registry()

    async def token_key(self) -> bytes:
        """See `Store.token_key`."""
        await self._ready()
        return await self._accounts.token_key()

    async def add_client(self, client: Client) -> None:
        """See `Store.add_client`."""
        await self._ready()
        await self._accounts.add_client(client)

    async def rotate_client(self, client_id: str, secret_hash: str) -> bool:
        """See `Store.rotate_client`."""
        await self._ready()
        return await self._accounts.rotate_client(client_id, secret_hash)

    async def disable_client(self, client_id: str, at: datetime | None) -> bool:
        """See `Store.disable_client`."""
        await self._ready()
        return await self._accounts.disable_client(client_id, at)

    async def remove_client(self, client_id: str) -> bool:
        """See `Store.remove_client`. His events are erased by `housekeep`."""
        await self._ready()
        return await self._accounts.remove_client(client_id, (await self._log.last()).last_seq)

    async def add_lines(self, lines: Sequence[Line]) -> int:
        """See `Store.add_lines`."""
        await self._ready()
        return await self._accounts.add_lines(lines)

    async def remove_lines(self, client_id: str, pin: str, numbers: Sequence[Line] | None) -> int:
        """See `Store.remove_lines`."""
        await self._ready()
        return await self._accounts.remove_lines(client_id, pin, numbers)

    async def register_callback(
        self, client_id: str, url: str, credentials: str | None, pin: str | None, *, limit: int
    ) -> Registered | TooMany:
        """See `Store.register_callback`."""
        await self._ready()
        return await self._accounts.register_callback(client_id, url, credentials, pin, limit)

    async def remove_callback(self, client_id: str, code: str) -> Removal:
        """See `Store.remove_callback`."""
        await self._ready()
        return await self._accounts.remove_callback(client_id, code)

    async def disable_callback(self, callback_id: int, reason: str) -> int:
        """See `Store.disable_callback`."""
        await self._ready()
        row = through_place((await self._layout.work.info()).state.last_seq)
        await self._accounts.disable_callback(callback_id, reason, row, (await self._log.last()).last_seq)
        return await self.registry_version()

    async def enable_callback(self, code: str) -> bool:
        """See `Store.enable_callback`."""
        await self._ready()
        return await self._accounts.enable_callback(code)

    async def keep_health(self, callback_id: int, health: KeptHealth) -> None:
        """See `Store.keep_health`."""
        await self._ready()
        await self._accounts.keep_health(callback_id, health)

    async def rotate_callback(self, code: str, *, keep_old_for: timedelta) -> str | None:
        """See `Store.rotate_callback`."""
        await self._ready()
        return await self._accounts.rotate_callback(code, keep_old_for)

    async def add_intake(self, credential: IntakeCredential) -> None:
        """See `Store.add_intake`."""
        await self._ready()
        await self._accounts.add_intake(credential)

    async def rotate_intake(self, name: str, token_hash: str) -> bool:
        """See `Store.rotate_intake`."""
        await self._ready()
        return await self._accounts.change_intake(name, token_hash)

    async def remove_intake(self, name: str) -> bool:
        """See `Store.remove_intake`."""
        await self._ready()
        return await self._accounts.change_intake(name, None)

    # Events

    async def append(self, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot]) -> Appended:
        """See `Store.append`."""
        await self._ready()
        return await self._accepting.append(changes, snapshots)

    async def open_calls(self) -> list[tuple[CallIdentity, bytes]]:
        """See `Store.open_calls`."""
        await self._ready()
        return await self._calls.open_calls()

    async def settle(self, delivered: Sequence[Delivery], others: Sequence[Settlement] = ()) -> None:
        """See `Store.settle`. One delivery is settled by one call at a time."""
        if not delivered and not others:
            return
        await self._ready()
        await self._accepting.know_end()
        await self._settler.settle(delivered, others)

    async def recover(self) -> list[int]:
        """See `Store.recover`."""
        await self._ready()
        await self._accounts.version()
        await self._accepting.know_end()
        return await self._settler.recover()

    async def backlog(self, callback_id: int, *, after: int = 0, limit: int = 500) -> list[Delivery]:
        """See `Store.backlog`."""
        await self._ready()
        return await self._shelf.page(callback_id, after, limit)

    async def backlog_sizes(self) -> dict[int, int]:
        """See `Store.backlog_sizes`."""
        await self._ready()
        return await self._shelf.sizes()

    # Again

    async def dead(self, callback_id: int, *, after: int = 0, limit: int = 500) -> list[DeadDelivery]:
        """See `Store.dead`."""
        await self._ready()
        return await self._shelf.dead(callback_id, after, limit)

    async def add_replay(self, replay: Replay) -> Replay:
        """See `Store.add_replay`."""
        await self._ready()
        return await self._replays.add(replay)

    async def replays(self) -> list[Replay]:
        """See `Store.replays`."""
        await self._ready()
        await self._work.catch_up()
        return await self._replays.all()

    async def cancel_replay(self, replay_id: int) -> bool:
        """See `Store.cancel_replay`."""
        await self._ready()
        await self._work.catch_up()
        return await self._replays.cancel(replay_id)

    async def requeue(self, replay_id: int, limit: int) -> Replay | None:
        """See `Store.requeue`."""
        await self._ready()
        await self._accepting.know_end()
        return await self._replays.requeue(replay_id, limit)

    # For people

    async def events_of(self, callerid: str) -> list[PastEvent]:
        """See `Archive.events_of`."""
        await self._ready()
        await self._accepting.know_end()
        return await self._history.events_of(callerid)

    async def events_with(self, numbers: Sequence[str], *, since: datetime, most_calls: int = 10) -> list[PastEvent]:
        """See `Archive.events_with`."""
        await self._ready()
        return await self._history.events_with(numbers, since, most_calls)

    async def callerid_of(self, identity: CallIdentity) -> str:
        """See `Archive.callerid_of`."""
        await self._ready()
        await self._accepting.know_end()
        return await self._history.callerid_of(identity)

    async def dead_sizes(self) -> dict[int, int]:
        """See `Archive.dead_sizes`."""
        await self._ready()
        return await self._history.dead_sizes()

    async def last_accepted_at(self) -> datetime | None:
        """See `Archive.last_accepted_at`."""
        await self._ready()
        return await self._history.last_accepted_at()

    # Upkeep

    async def housekeep(self, *, keep: timedelta) -> bool:
        """See `Store.housekeep`."""
        await self._ready()
        await self._accepting.know_end()
        now = self._clock()
        if self._written_back_at is None or abs(now - self._written_back_at) >= _WRITE_BACK_PAUSE:
            await self._accepting.write_back()
            async with self._work.lock:
                await self._work.catch_up()
                await self._work.tidy(is_forced=True)
            self._written_back_at = now
        return await self._upkeep.step(keep)
