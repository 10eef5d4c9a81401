"""Upkeep: what has been kept for long enough goes, in small steps between which everybody else has the store."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from toque.errors import StoreError
from toque.store.contract import Store

_PAUSE_S = 10.0  # after a look that found nothing more to do
_BREATH_S = 0.05  # between two steps: the upkeep never takes more than a part of the writer's time


class Upkeep:
    """Runs the store's upkeep, step by step."""

    def __init__(self, store: Store, *, keep: timedelta) -> None:
        self._store = store
        self._keep = keep
        self._log = structlog.get_logger("toque.upkeep")

    async def run(self) -> None:
        """Keep house until cancelled."""
        while True:
            has_more = await self.step()
            await asyncio.sleep(_BREATH_S if has_more else _PAUSE_S)

    async def step(self) -> bool:
        """Do one step; whether there is more to do at once."""
        try:
            return await self._store.housekeep(keep=self._keep)
        except StoreError as error:
            self._log.warning("upkeep.failed", error=str(error))
            return False
