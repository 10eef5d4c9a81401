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

import msgspec

from toque.calls.call import Call
from toque.calls.esl_event import EslEvent
from toque.calls.esl_parties import Parties
from toque.calls.esl_resync import EslReader
from toque.calls.lines import LineBook
from toque.calls.model import CallIdentity, Signal, SignalKind, Snapshot, StatusChange
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
    "HEARTBEAT",
    "SHUTDOWN",
)


class EslWatch:
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
        self.source = source
        self.tracker = CallTracker(lines, patience)
        self.reader = EslReader(source, Parties(tuple(trunks), self._is_line, tenant_variable))

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

    def _track(self, signals: Iterable[Signal], now: datetime) -> None:
        for signal in signals:
            self.tracker.feed(signal, now)
            if signal.identity not in self.tracker.calls and signal.kind is not SignalKind.SEEN:
                self.reader.forget(signal.identity)

    def tick(self, now: datetime) -> None:
        """Do what has become due."""
        for identity in self.tracker.tick(now):
            self.reader.forget(identity)

    def take(self) -> tuple[list[StatusChange], list[Snapshot]]:
        """The changes since the last call, and the state of the calls they touched."""
        for call in self.tracker.touched():
            call.reader = self.reader.export(call.identity)
        return self.tracker.take()

    def waiting(self) -> int:
        """How many changes `take` would give."""
        return self.tracker.waiting()

    def take_unmatched(self) -> list[Call]:
        """The calls that ended without matching a line."""
        return self.tracker.take_unmatched()

    def take_late(self) -> dict[CallIdentity, SignalKind]:
        """The calls that showed a sign of life after their end had been concluded, and the last sign: to be logged, not told."""
        return self.tracker.take_late()

    def restore(self, state: bytes, now: datetime) -> None:
        """Go on with a call. Raises `ValueError` for bytes that are no snapshot of ours."""
        try:
            call = self.tracker.restore(state, now)
            self.reader.restore(call.reader)
        except msgspec.DecodeError as error:
            msg = f"a stored call cannot be read: {error}"
            raise ValueError(msg) from None
