"""Which engine the settings name, opened."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from toque.callbacks.payload import PayloadWriter
from toque.settings import NatsServers, Settings
from toque.store.contract import Store
from toque.store.sqlite import SqliteStore, utc_now


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


def _open_nats(servers: NatsServers, settings: Settings, payloads: PayloadWriter, clock: Callable[[], datetime]) -> Store:
    from toque.store.nats import NatsStore  # noqa: PLC0415 - whoever does not use it need not have, or load, its client
    from toque.store.nats_link import Access  # noqa: PLC0415

    access = Access(
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
    return NatsStore(
        access, payloads,
        prefix=settings.nats_prefix, replicas=settings.nats_replicas, secret_key=settings.secret_key, clock=clock,
    )  # fmt: skip


async def claim(store: Store) -> None:
    """Claim a store's events for one server. Raises `SettingsError` when another has them, or the engine cannot be used."""
    if isinstance(store, SqliteStore):
        store.lock()
    elif isinstance(store, _Claimable):
        await store.claim()
