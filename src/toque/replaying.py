"""Replays: what a callback was told before is put into its backlog again, at a capped rate, and the dispatcher does the rest.

The store remembers how far each replay has come, in the same transaction in which deliveries are put back, so a crash neither
skips nor repeats any. A replay stands still while its callback is parked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import structlog

from toque.errors import StoreError
from toque.store.contract import Replay, ReplayState, Store

_TURN_S = 0.25  # between two turns; a command's replay begins within this time
_PAGE = 500  # deliveries put back in one transaction at most
_BURST_S = 1.0  # of a replay's rate that may be made up for at once, after a pause or a slow turn


class Replayer:
    """Goes on with the replays that the store knows."""

    def __init__(
        self,
        store: Store,
        resume: Callable[[Iterable[int]], None],
        is_parked: Callable[[int], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`resume` tells the dispatcher of callbacks that have something in their backlog."""
        self._store = store
        self._resume = resume
        self._is_parked = is_parked
        self._clock = clock
        self._allowed: dict[int, float] = {}  # deliveries that each replay may put back by now
        self._turned_s = clock()
        self._log = structlog.get_logger("toque.replay")

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            await asyncio.sleep(_TURN_S)
            await self.turn()

    async def turn(self) -> None:
        """Bring every running replay as far as its rate allows."""
        now_s = self._clock()
        elapsed_s, self._turned_s = now_s - self._turned_s, now_s
        try:
            running = [replay for replay in await self._store.replays() if replay.state is ReplayState.RUNNING]
            self._allowed = {replay.id: self._allowance(replay, elapsed_s) for replay in running}
            for replay in running:
                if not self._is_parked(replay.callback_id):
                    await self._advance(replay)
        except StoreError as error:
            self._log.warning("replay.failed", error=str(error))

    def _allowance(self, replay: Replay, elapsed_s: float) -> float:
        """At least one at some time, however slow it is; a new one begins at once."""
        most = max(1.0, replay.rate * _BURST_S)
        return min(most, self._allowed.get(replay.id, most) + replay.rate * elapsed_s)

    async def _advance(self, replay: Replay) -> None:
        while (limit := min(_PAGE, int(self._allowed[replay.id]))) >= 1:
            further = await self._store.requeue(replay.id, limit)
            if further is None or further == replay:  # it was cancelled, or its callback is gone, or disabled
                return
            put_back = further.requeued - replay.requeued
            self._allowed[replay.id] -= put_back
            if put_back:
                self._resume([replay.callback_id])
            if further.state is not ReplayState.RUNNING:
                self._log.info("replay.ended", replay=replay.id, callback=replay.callback_id, requeued=further.requeued)
                return
            replay = further
