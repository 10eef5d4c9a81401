"""Many links at once, each to a switch that plays a recording over a real socket: what their calls' owners are told.

One loop holds all links and one thread all switches, and nobody waits before dialling again: a recording that is cut in hundreds
of places is played hundreds of times within seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from structlog.testing import capture_logs
from tests.support.call_watching import Ledger
from tests.support.linking import HOST, LINES, PATIENT
from tests.support.switch_server import PASSWORD, PATIENCE_S, USERNAME, AmiSwitch, PlayedSwitch, SwitchServer

from toque.calls.ami_names import SwitchRules
from toque.calls.ami_watch import AmiWatch
from toque.calls.esl_watch import EslWatch
from toque.calls.model import StatusChange
from toque.settings import AmiSource, EslSource
from toque.sources.ami import ami_link
from toque.sources.esl import esl_link
from toque.sources.link import Link

LATER = timedelta(seconds=40)  # for what is waited over
AT_ONCE = 200  # links
Side = tuple[str, str, str]  # the call's key, its owner, the direction
Told = Mapping[Side, Sequence[StatusChange]]


@dataclass
class PlayedLink:
    """One switch, and the link to it."""

    name: str
    switch: PlayedSwitch
    ledger: Ledger = field(default_factory=Ledger)
    watch: Any = None
    link: Link | None = None

    def connect(self, port: int) -> None:
        if isinstance(self.switch, AmiSwitch):
            source = AmiSource(self.name, HOST, port, USERNAME, PASSWORD, ("PJSIP/trunk*",))
            self.watch = AmiWatch(self.name, LINES, rules=SwitchRules(source.trunks))
            self.link = ami_link(source, self.watch, **self._means)
        else:
            settings = EslSource(self.name, HOST, port, PASSWORD, ("sofia/external/*",))
            self.watch = EslWatch(self.name, LINES, trunks=settings.trunks)
            self.link = esl_link(settings, self.watch, **self._means)

    @property
    def _means(self) -> dict[str, Any]:
        return {
            "clock": lambda: datetime.now(UTC),
            "on_news": lambda: self.ledger.append(self.watch),
            "is_full": lambda: False,
            "pace": PATIENT,
            "sleep": lambda _: asyncio.sleep(0),
        }

    def finish(self) -> None:
        """Let pass what is waited over."""
        self.watch.tick(datetime.now(UTC) + LATER)
        self.ledger.append(self.watch)

    def told(self) -> Told:
        return {
            (identity.key, side.owner.client_id, str(side.direction)): changes
            for (identity, _, side), changes in self.ledger.told.items()
            if changes
        }


def play(switches: Mapping[str, PlayedSwitch]) -> tuple[dict[str, PlayedLink], Sequence[Mapping[str, Any]]]:
    """Play them all to their ends; gives the links by the names of their switches, and the log."""
    links = {name: PlayedLink(name, switch) for name, switch in switches.items()}
    with SwitchServer() as server, capture_logs() as logs:
        for link in links.values():
            link.connect(server.add(link.switch))
        asyncio.run(_run(list(links.values()), logs))
    return links, logs


async def _run(links: Sequence[PlayedLink], logs: Sequence[Mapping[str, Any]]) -> None:
    for start in range(0, len(links), AT_ONCE):
        batch = links[start : start + AT_ONCE]
        tasks = [asyncio.create_task(link.link.run()) for link in batch if link.link is not None]
        try:
            await _until_done(batch, logs)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for link in batch:
            link.finish()


async def _until_done(links: Sequence[PlayedLink], logs: Sequence[Mapping[str, Any]]) -> None:
    """Every switch has played to its end, and has told a link what is alive then."""
    until = time.monotonic() + PATIENCE_S
    last: dict[str, str] = {}
    seen, waiting = 0, list(links)
    while waiting:
        assert time.monotonic() < until, [(link.name, link.switch.position, link.switch.events) for link in waiting]
        await asyncio.sleep(0.005)
        new, seen = logs[seen:], len(logs)
        last.update({entry["source"]: entry["event"] for entry in new})
        waiting = [link for link in waiting if not (link.switch.is_done.is_set() and last.get(link.name) == "source.resynced")]
