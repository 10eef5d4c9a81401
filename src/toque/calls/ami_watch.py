"""One Asterisk's calls: manager messages in, status changes out. Pure; `sources/ami.py` does the talking."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from toque.calls.ami_events import AmiEvents
from toque.calls.ami_names import SwitchRules
from toque.calls.ami_resync import reconcile
from toque.calls.ami_wire import AmiMessage
from toque.calls.lines import LineBook
from toque.calls.model import Signal
from toque.calls.tracked import Tracked
from toque.calls.tracker import CallTracker, Patience

_REMEMBERED = timedelta(minutes=1)  # an ended call: a manager does not repeat itself, and 500 calls may end in a second
MAX_HELD_EVENTS = 100_000  # while the list of channels comes; a busy Asterisk sends some thousands a second


# The events to ask for, and to give to an AmiReader: all that is understood here, and what the client itself needs.
WANTED_EVENTS = AmiEvents.HANDLED | {"CoreShowChannel", "CoreShowChannelsComplete", "FullyBooted"}


class AmiWatch(Tracked):
    """Reader and tracker of one source, which live and are forgotten together.

    After every login, and every few minutes, the client asks for the list of channels: `begin_resync`, then the action
    CoreShowChannels, whose answer is fed like everything else. What comes between the list's items is newer than the list, and is
    held until that is complete.
    """

    def __init__(self, source: str, lines: LineBook, patience: Patience | None = None, rules: SwitchRules | None = None) -> None:
        self.events = AmiEvents(source, rules)
        patience = replace(patience or Patience(), remembered=_REMEMBERED)
        super().__init__(source, CallTracker(lines, patience), self.events.book)
        self._listed: list[AmiMessage] | None = None  # None: no list is being waited for
        self._held: list[tuple[AmiMessage, datetime]] = []

    @property
    def is_resyncing(self) -> bool:
        """Whether the list of channels is being waited for."""
        return self._listed is not None

    def begin_resync(self, *, is_gap: bool = False) -> None:
        """The list of channels is asked for. With `is_gap`, events may have been missed since the last one that was fed."""
        self._listed = []
        if is_gap:
            self.events.book.blur()

    def abandon_resync(self, now: datetime) -> None:
        """The list will not come: it was refused, or the connection is lost. What was held is read without it."""
        self._listed = None
        self._release(now)

    def feed(self, message: AmiMessage, now: datetime) -> None:
        """Take one message that arrived at `now`."""
        if self._listed is not None and message.event == "CoreShowChannel":
            self._listed.append(message)
        elif self._listed is not None and message.event == "CoreShowChannelsComplete":
            self._reconcile(now)
        elif not self._listed:
            self._take_in(self.events.read(message, _moment_of(message, now), now), now)
        elif message.event:
            self._held.append((message, _moment_of(message, now)))
            if len(self._held) > MAX_HELD_EVENTS:
                self.abandon_resync(now)

    def _reconcile(self, now: datetime) -> None:
        listed, self._listed = self._listed or [], None
        self._take_in(reconcile(self.events, listed, [message for message, _ in self._held], now), now)
        self._release(now)

    def _release(self, now: datetime) -> None:
        held, self._held = self._held, []
        for message, at in held:
            self._take_in(self.events.read(message, at, now), now)

    def _take_in(self, signals: Iterable[Signal], now: datetime) -> None:
        for signal in signals:
            self.tracker.feed(signal, now)

    def tick(self, now: datetime) -> None:
        """Do what has become due."""
        self._take_in(self.events.news.tick(now), now)
        super().tick(now)

    def restore(self, state: bytes, now: datetime) -> None:
        """Go on with a call. Raises `ValueError` for bytes that are no snapshot of ours."""
        self.events.book.now = now
        super().restore(state, now)


def _moment_of(message: AmiMessage, now: datetime) -> datetime:
    """The switch's own time (`timestampevents = yes` in manager.conf), else that of the arrival."""
    stamp = message.get("timestamp")
    try:
        return datetime.fromtimestamp(float(stamp), UTC) if stamp else now
    except (ValueError, OverflowError, OSError):
        return now
