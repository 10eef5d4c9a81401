"""Who delivers: a lease on the engine, renewed by its holder and gone by itself when nobody does.

Its holder goes by his own clock: once it has not been confirmed for as long as it lasts, nothing is written until it is again.
And whatever slips through names the last record before it, which is another one as soon as somebody else has begun.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import msgspec
import structlog

from toque.errors import SettingsError, StoreError
from toque.store.nats_layout import Layout
from toque.store.nats_link import Conflict

LASTS_S = 10
_RENEW_EVERY_S = 2.0
_LOOK_EVERY_S = 0.25


class Holder(msgspec.Struct):
    """Who has the lease."""

    nonce: str
    machine: str
    process: int
    started: str


_HOLDER = msgspec.json.Decoder(Holder)


def _machine() -> str:
    """The boot of this machine, and of the container on it; empty where that cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip() + os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process began, as the kernel counts it; empty when there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


class Lease:
    """The lease of one store object."""

    def __init__(self, layout: Layout, clock_s: Callable[[], float]) -> None:
        self._stream = layout.state
        self._subject = layout.names.state("lease")
        self._shown = layout.link.shown
        self._clock_s = clock_s
        self._log = structlog.get_logger("toque.store")
        process = os.getpid()
        self._me = Holder(uuid4().hex, _machine(), process, _started(process))
        self._place = 0
        self._confirmed_s: float | None = None
        self._is_lost = False
        self._task: asyncio.Task[None] | None = None

    async def claim(self) -> None:
        """Take the lease; waits for one whose holder may be dead. Raises `SettingsError` when another server has it."""
        waited_for: int | None = None
        deadline_s = self._clock_s() + LASTS_S + 2
        while True:
            found = await self._stream.last(self._subject)
            if found is None or not found.data or self._is_dead(_HOLDER.decode(found.data)):
                if await self._take(0 if found is None else found.seq):
                    break
                continue
            if (waited_for is not None and found.seq != waited_for) or self._clock_s() > deadline_s:
                problem = f"another toque server uses {self._shown}; give each server a nats_prefix of its own"
                raise SettingsError("store", self._shown, problem)
            waited_for = found.seq
            await asyncio.sleep(_LOOK_EVERY_S)
        self._task = asyncio.create_task(self._renew(), name="toque-lease")

    def _is_dead(self, holder: Holder) -> bool:
        """Whether a holder was a process of this very machine that is there no more."""
        return bool(holder.machine) and holder.machine == self._me.machine and _started(holder.process) != holder.started

    async def _take(self, after: int) -> bool:
        asked_s = self._clock_s()
        if not await self._put(msgspec.json.encode(self._me), after, f"{LASTS_S}s"):
            return False
        self._confirmed_s = asked_s
        return True

    async def _put(self, data: bytes, after: int, ttl: str) -> bool:
        try:
            self._place = await self._stream.put(self._subject, data, after=after, ttl=ttl)
        except Conflict:
            return False
        return True

    async def _renew(self) -> None:
        while not self._is_lost:
            await asyncio.sleep(_RENEW_EVERY_S)
            try:
                if not await self._take(self._place):
                    await self._look()
            except StoreError as error:
                self._log.warning("lease.unconfirmed", error=str(error))

    async def _look(self) -> None:
        """Somebody wrote there, or it is gone: is it still ours, or free?"""
        found = await self._stream.last(self._subject)
        if found is None or not found.data:
            await self._take(0 if found is None else found.seq)
        elif _HOLDER.decode(found.data).nonce == self._me.nonce:
            self._place = found.seq
        else:
            self._is_lost = True
            self._log.error("lease.lost")

    def check(self) -> None:
        """Raise `StoreError` unless the lease is held, or was never asked for."""
        if self._is_lost:
            raise StoreError("another toque server has taken over")
        if self._confirmed_s is not None and self._clock_s() - self._confirmed_s > LASTS_S:
            raise StoreError("the engine has not confirmed this server's lease")

    async def give_back(self) -> None:
        """Let go of it, so that the next server need not wait."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        with suppress(StoreError):  # it ends by itself
            while not self._is_lost and not await self._put(b"", self._place, "1s"):
                await self._look()  # a renewal was under way
