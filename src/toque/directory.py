"""The directory: who is registered, in memory, kept in step with the store.

Commands and other servers change the store behind our back; the directory looks for that several times a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from toque.callbacks.callback import Registry
from toque.errors import StoreError
from toque.store.contract import Store

_LOOK_EVERY_S = 0.25  # a change by a command is seen within a second (docs/operation.md)


class Directory:
    """The registry as of now, and whoever wants to know of changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._log = structlog.get_logger("toque.directory")
        self._registry: Registry | None = None
        self._followers: list[Callable[[Registry], None]] = []
        self._lock = asyncio.Lock()

    @property
    def registry(self) -> Registry:
        """What is registered; `refresh` must have been called once."""
        assert self._registry is not None  # noqa: S101 - for the type checker
        return self._registry

    def current(self) -> Registry:
        """The same, for those who want to be handed a function."""
        return self.registry

    def follow(self, follower: Callable[[Registry], None]) -> None:
        """Tell this follower of every registry from the next one on."""
        self._followers.append(follower)

    async def refresh(self) -> None:
        """Read the registry again and tell the followers, before this returns. Raises `StoreError`.

        They never see an older one after a newer one: what it would take back was decided for good.
        """
        async with self._lock:
            registry = await self._store.registry()
            if self._registry is not None and registry.version < self._registry.version:
                return
            self._registry = registry
            for follower in self._followers:
                follower(self._registry)

    async def look(self) -> None:
        """Read the registry again if somebody changed it."""
        try:
            if await self._store.registry_version() != self.registry.version:
                await self.refresh()
        except StoreError as error:
            self._log.warning("directory.look_failed", error=str(error))

    async def run(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self.look()
