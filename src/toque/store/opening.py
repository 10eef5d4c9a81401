"""Which engine the settings name, opened."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from toque.callbacks.payload import PayloadWriter
from toque.errors import SettingsError
from toque.settings import NatsServers, Settings
from toque.store.contract import Store
from toque.store.sqlite import SqliteStore, utc_now

if TYPE_CHECKING:
    from toque.store.movable import Mark, Movable
    from toque.store.nats import NatsStore
    from toque.store.nats_link import Access


@runtime_checkable
class _Claimable(Protocol):
    async def claim(self) -> None:
        """Claim the events for one server."""


def open_store(settings: Settings, clock: Callable[[], datetime] = utc_now) -> Store:
    """The store that the settings name. Raises `SettingsError`; a distributed one is reached for with its first use."""
    payloads = PayloadWriter(settings.time_zone)
    match settings.store:
        case Path() as path:
            return SqliteStore(path, payloads, secret_key=settings.secret_key, clock=clock)
        case NatsServers() as servers:
            return _open_nats(servers, settings, payloads, clock)


def open_movable(settings: Settings) -> Movable:
    """The same as a source or target of a copy. Raises `SettingsError`."""
    from toque.store.nats_moving import MovableNats  # noqa: PLC0415 - see `_open_nats`
    from toque.store.sqlite_moving import MovableSqlite  # noqa: PLC0415

    payloads = PayloadWriter(settings.time_zone)
    match settings.store:
        case Path() as path:
            return MovableSqlite(path, payloads, secret_key=settings.secret_key)
        case NatsServers() as servers:
            return MovableNats(
                _access(servers, settings), payloads,
                prefix=settings.nats_prefix, replicas=settings.nats_replicas, secret_key=settings.secret_key,
            )  # fmt: skip


def _open_nats(servers: NatsServers, settings: Settings, payloads: PayloadWriter, clock: Callable[[], datetime]) -> Store:
    from toque.store.nats import NatsStore  # noqa: PLC0415 - whoever does not use it need not have, or load, its client

    return NatsStore(
        _access(servers, settings), payloads,
        prefix=settings.nats_prefix, replicas=settings.nats_replicas, secret_key=settings.secret_key, clock=clock,
    )  # fmt: skip


def _access(servers: NatsServers, settings: Settings) -> Access:
    from toque.store.nats_link import Access  # noqa: PLC0415 - see `_open_nats`

    return Access(
        servers.servers,
        user=servers.user or settings.nats_user,
        password=servers.password or settings.nats_password,
        nkey_file=settings.nats_nkey_file,
        credentials_file=settings.nats_credentials_file,
        is_tls=settings.nats_tls or settings.nats_ca_file is not None or settings.nats_certificate is not None,
        ca_file=settings.nats_ca_file,
        certificate=settings.nats_certificate,
        key=settings.nats_key,
        reconnect_wait_s=settings.nats_reconnect_wait.total_seconds(),
    )


async def claim(store: Store) -> None:
    """Claim a store's events for one server.

    Raises `SettingsError` when another has them, the engine cannot be used, or the store is a copy that is not whole.
    """
    if isinstance(store, SqliteStore):
        from toque.store.sqlite_moving import mark_in as mark_in_file  # noqa: PLC0415 - it imports much of this room

        store.lock()
        _check_whole(await mark_in_file(store), str(store.path))
    elif isinstance(store, _Claimable):
        from toque.store.nats_moving import mark_in  # noqa: PLC0415 - see `_open_nats`

        await store.claim()
        _check_whole(await mark_in(cast("NatsStore", store)), "the engine")


def _check_whole(mark: Mark | None, shown: str) -> None:
    if mark is not None and not mark.is_whole:
        raise SettingsError("store", shown, f"{shown} has a copy that was broken off; repeat `toque store copy` to its end")
