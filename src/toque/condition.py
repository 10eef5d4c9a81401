"""How a running server stands, for `toque doctor`; and its side of `toque trace`."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from toque import __version__
from toque.calls.explaining import Mask, render_cause
from toque.calls.http_watch import SOURCE_PREFIX
from toque.calls.trace import Ended, Onlooker
from toque.directory import Directory
from toque.errors import StoreError
from toque.intake import MAX_WAITING_CHANGES, Intake
from toque.sending.dispatcher import Dispatcher
from toque.settings import Settings
from toque.sources.hep import HepListener
from toque.sources.link import CONNECTED, Link
from toque.store.contract import Store
from toque.telemetry import mask_number
from toque.tracing import TooManyWatchersError, Tracing, Wanted, moment
from toque.web.operator import TooBusyError


@dataclass
class Condition:
    """The parts that are asked, and what they say. Implements `toque.web.operator.Operating`."""

    settings: Settings
    store: Store
    intake: Intake
    dispatcher: Dispatcher
    directory: Directory
    tracing: Tracing
    listeners: Sequence[HepListener]
    links: Sequence[Link]
    posters: Mapping[str, object]
    clock: Callable[[], datetime]

    def __post_init__(self) -> None:
        self._began_at = self.clock()

    async def state(self) -> dict[str, Any]:
        """How everything stands. Secrets are not in it, and telephone numbers are masked as in the log."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started_at": moment(self._began_at),
            "now": moment(self.clock()),
            "store": await self._store(),
            "descriptors": _descriptors(),
            "intake": {"waiting": self.intake.waiting(), "most": MAX_WAITING_CHANGES, "is_full": self.intake.is_full()},
            "deliveries": {"held": self.dispatcher.held(), "parked": self.dispatcher.parked()},
            "callbacks": {c.code: str(self.dispatcher.health_of(c.id)) for c in self.directory.registry.callbacks.values()},
            "sources": [*map(self._listener, self.listeners), *map(self._link, self.links), *map(self._poster, self._may_post())],
            "calls": {"remembered": self.intake.calls, "events": self.intake.events},
            "unmatched": self._unmatched(),
        }

    async def calls(self, wanted: Mapping[str, str]) -> list[dict[str, Any]]:
        """The recent calls that `q` names, with all that is known of them."""
        shows = wanted.get("numbers") == "whole"
        return await self.tracing.find(wanted["q"], source=wanted.get("source"), shows_numbers=shows)

    def trace(self, wanted: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """What happens from now on. Raises `TooBusyError`."""
        chosen = {name: wanted.get(name) for name in ("number", "source", "callerid", "client")}
        try:
            return self.tracing.watch(Wanted(**chosen, shows_numbers=wanted.get("numbers") == "whole"))
        except TooManyWatchersError:
            raise TooBusyError from None

    async def _store(self) -> dict[str, Any]:
        began_s = time.perf_counter()
        try:
            await self.store.ping()
        except StoreError as error:
            return {"problem": str(error), "write_ms": None}
        return {"problem": None, "write_ms": round((time.perf_counter() - began_s) * 1000, 1)}

    def _listener(self, listener: HepListener) -> dict[str, Any]:
        settings, counters = listener.settings, listener.counters
        return self._source(settings.name) | {
            "kind": "hep",
            "address": f"{settings.host}:{listener.port}",
            "is_connected": True,
            "state": "listening",
            "packets": counters.packets,
            "refused": counters.refused,
            "dropped": counters.dropped,
        }

    def _link(self, link: Link) -> dict[str, Any]:
        kind = next((type(source).__name__[:3].lower() for source in self.settings.sources if source.name == link.name), "")
        silent_s = None if link.heard_s is None else time.monotonic() - link.heard_s
        return self._source(link.name) | {
            "kind": kind,
            "is_connected": link.state == CONNECTED,
            "state": link.state,
            "connected_for_s": _rounded(link.connected_for_s),
            "losses": link.losses,
            "silent_s": _rounded(silent_s),
        }

    def _may_post(self) -> list[str]:
        """Those whose credential was not removed."""
        return [name for name in self.posters if name.removeprefix(SOURCE_PREFIX) in self.directory.registry.intakes]

    def _poster(self, name: str) -> dict[str, Any]:
        http = str(self.settings.http)
        return self._source(name) | {"kind": "http", "is_connected": True, "state": "listening", "address": http}

    def _source(self, name: str) -> dict[str, Any]:
        """What every kind of source has."""
        counters = self.intake.counters(name)
        return {
            "name": name,
            "last_signal_at": moment(self.tracing.onlooker(name).heard_at),
            "clock_behind_s": self.tracing.clock_behind_s(name, self.clock()),
            "calls": counters.calls,
            "unmatched": counters.unmatched,
            "inferred": counters.inferred,
            "late": counters.late,
        }

    def _unmatched(self) -> dict[str, Any]:
        mask: Mask = str if self.settings.log_numbers else mask_number
        recent = [(onlooker, end) for onlooker in self.tracing.onlookers.values() for end in onlooker.unmatched]
        recent.sort(key=lambda found: found[1].now)
        return {"count": self.intake.unmatched, "recent": [_tell_unmatched(*found, mask) for found in recent[-10:]]}


def _tell_unmatched(onlooker: Onlooker, end: Ended, mask: Mask) -> dict[str, Any]:
    return {
        "source": onlooker.source,
        "at": moment(end.at),
        "caller": mask(end.call.caller),
        "dialled": mask(end.call.dialled),
        "status": str(end.status),
        "cause": render_cause(end.call.cause) or None,
    }


def _descriptors() -> dict[str, int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"used": len(list(Path("/proc/self/fd").iterdir())), "limit": limit}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
