"""One FreeSWITCH's calls: events in, status changes out. Pure; the event socket's client does the listening.

After every connection the client makes sure of what is remembered: `doubt`, then, once events are subscribed to, `api show
channels as json`, `to_ask` of that list, `api uuid_dump UUID json` for each, and `resync`. Events that come meanwhile are fed as
they come. The same every few minutes keeps alive what is silent, such as a caller who waits in a queue for longer than
`Patience.unanswered`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from toque.calls.esl_event import EslEvent
from toque.calls.esl_parties import Parties
from toque.calls.esl_resync import EslReader
from toque.calls.lines import LineBook
from toque.calls.model import Signal, SignalKind
from toque.calls.tracked import Tracked
from toque.calls.tracker import CallTracker, Patience

# What the client subscribes to (`event json …`). CHANNEL_EXECUTE may be added: it tells of a caller's coming to voicemail at once
# where otherwise an announcement, a recording or the hanging up does, at the cost of an event for every step of the dialplan.
EVENTS = (
    "CHANNEL_CREATE",
    "CHANNEL_ORIGINATE",
    "CHANNEL_PROGRESS",
    "CHANNEL_PROGRESS_MEDIA",
    "CHANNEL_ANSWER",
    "CHANNEL_BRIDGE",
    "CHANNEL_UUID",
    "CHANNEL_HANGUP",
    "CHANNEL_HANGUP_COMPLETE",
    "CHANNEL_DESTROY",
    "CALL_UPDATE",
    "RECORD_START",
    "PLAYBACK_START",
    "HEARTBEAT",
    "SHUTDOWN",
)


class EslWatch(Tracked):
    """Reader and tracker of one source, which live and are forgotten together."""

    def __init__(
        self,
        source: str,
        lines: LineBook,
        patience: Patience | None = None,
        *,
        trunks: Sequence[str] = (),
        tenant_variable: str = "domain_name",
    ) -> None:
        """`trunks` are patterns of the names of channels that lead outside (`sofia/external/*`)."""
        self.reader = EslReader(source, Parties(tuple(trunks), self._is_line, tenant_variable))
        super().__init__(source, CallTracker(lines, patience), self.reader)

    def _is_line(self, number: str) -> bool:
        return self.tracker.lines.owner(number) is not None

    def feed(self, fields: dict[str, Any], now: datetime) -> None:
        """Take one event that arrived at `now`, as `parse_object` gives it."""
        self._track(self.reader.read(EslEvent(fields, now)), now)

    def doubt(self, *, is_gap: bool = True) -> None:
        """Nothing that is remembered is sure until `resync`. Without a gap, where the connection held all the time."""
        self.reader.doubt(is_gap=is_gap)

    def to_ask(self, listed: Iterable[str]) -> list[str]:
        """The channels of which `resync` wants a dump, by the UUIDs that the switch lists."""
        return self.reader.to_ask(listed)

    def resync(self, dumps: Iterable[dict[str, Any]], now: datetime) -> None:
        """Take the dumps of those channels that are alive; what was in doubt and is not among them has ended."""
        self._track(self.reader.catch_up([EslEvent(fields, now) for fields in dumps], now), now)

    def tick(self, now: datetime) -> None:
        """Do what has become due."""
        self._track(self.reader.tick(now), now)
        super().tick(now)

    def next_due(self) -> datetime | None:
        """When `tick` has something to do at the earliest."""
        dues = [due for due in (self.reader.next_due(), self.tracker.next_due()) if due is not None]
        return min(dues, default=None)

    def _track(self, signals: Iterable[Signal], now: datetime) -> None:
        for signal in signals:
            self.tracker.feed(signal, now)
            if signal.identity not in self.tracker.calls and signal.kind is not SignalKind.SEEN:
                self.reader.forget(signal.identity)
