"""One poster's calls: items in, status changes out. Pure; `web/ingest.py` does the listening.

The rules of this file:

1. Whoever posts has worked out what happened. An end is believed at once, and its word is the poster's, or follows from its cause
   by the table of `calls/causes.py`.
2. After an answer there is one end, `hung_up`, whatever word it comes with; `hung_up` without an answer stands for both.
3. What comes too late changes nothing: the order is that of a call's life, not of arrival.
4. A call's name is used once: what comes after its end, however late, is a repetition.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from toque.calls.call import Call
from toque.calls.causes import word_for
from toque.calls.http_items import (
    FINAL_RANK,
    Item,
    Refusal,
    Said,
    Vocabulary,
    check_items,
    hints_of,
    order_of,
    read_items,
)
from toque.calls.lines import LineBook
from toque.calls.model import CallIdentity, Cause, Party, Signal, SignalKind, Snapshot, Status, StatusChange
from toque.calls.phases import Phase
from toque.calls.tracked import Tracked
from toque.calls.tracker import CallTracker, Patience

SOURCE_PREFIX = "http:"  # so that no poster is taken for a switch of the same name
NEVER_AGAIN: Final = datetime(9000, 1, 1, tzinfo=UTC)  # nothing begins later than this end: the store begins no other call
# Ended calls are known to the store; here only until it has them for sure: longer than it waits for a locked file.
_REMEMBERED = timedelta(seconds=20)
_NO_CAUSE = Cause()
_ANSWERED_RANK = 3
_AFTER_ANSWER = (Phase.ANSWERED, Phase.LEAVING)
_ENDERS = {
    Status.BUSY: Party.CALLEE,
    Status.REJECTED: Party.CALLEE,
    Status.CANCELLED: Party.CALLER,
}  # who ends a call with this word, where nothing is said of it


class Result(StrEnum):
    """What came of an item."""

    ACCEPTED = "accepted"  # it changes the call, and whoever owns it is told
    REPEATED = "repeated"  # it adds nothing: said before, or overtaken by what came later
    UNMATCHED = "unmatched"  # nobody's line: nothing is told
    REFUSED = "refused"


class _NothingKept:
    """All that is known of a posted call is in the tracker."""

    def forget(self, identity: CallIdentity) -> None:
        """See `Memory`."""

    def export(self, identity: CallIdentity) -> bytes:  # noqa: ARG002
        """See `Memory`."""
        return b""

    def restore(self, state: bytes) -> None:
        """See `Memory`."""


class HttpWatch(Tracked):
    """The tracker of one poster."""

    def __init__(
        self,
        source: str,
        lines: LineBook,
        patience: Patience | None = None,
        *,
        vocabulary: Vocabulary | None = None,
        tracker: CallTracker | None = None,
    ) -> None:
        """With `tracker`, go on with the calls of a poster that had gone."""
        tracker = tracker or CallTracker(lines)
        tracker.patience = replace(patience or Patience(), remembered=_REMEMBERED)
        super().__init__(source, tracker, _NothingKept())
        self._words = vocabulary or Vocabulary()

    def take(self) -> tuple[list[StatusChange], list[Snapshot]]:
        """See `Tracked`. Nothing is ever later than the end of a call."""
        changes, snapshots = self.tracker.take()
        if snapshots:
            snapshots = [Snapshot(one.identity, None, NEVER_AGAIN) if one.state is None else one for one in snapshots]
        return changes, snapshots

    def read(self, body: bytes, now: datetime, *, is_lines: bool = False) -> list[Item | Refusal]:
        """The items of a body that arrived at `now`. Raises `InputError` for one that is no JSON, or has too many."""
        return check_items(read_items(body, is_lines=is_lines), self._words, now)

    def order_of(self, items: Sequence[Item | Refusal]) -> Iterable[int]:
        """In which order to take them."""
        return order_of(items, self._words) if len(items) > 1 else range(len(items))

    def take_in(self, item: Item, now: datetime) -> Result:
        """Take one item that `read` gave."""
        tracker, said = self.tracker, self._words.said[item.status]
        name: CallIdentity = (self.source, item.call)  # type: ignore[assignment]  # which is equal, and made in a third of the time
        call = tracker.calls.get(name)
        signal = self._signal(item, said, CallIdentity(*name) if call is None else call.identity, call)
        waiting = len(tracker.changes)
        if call is not None and not call.sides and call.phase is not Phase.ENDED:
            self._introduce(call, signal, now)
        tracker.feed(signal, now)
        if len(tracker.changes) > waiting:
            return Result.ACCEPTED
        call = call or tracker.calls.get(name)
        return _result(call, said, signal)

    def _signal(self, item: Item, said: Said, identity: CallIdentity, call: Call | None) -> Signal:
        """The item in the words that all switches' readers speak."""
        signal = Signal(identity, said.kind, item.at)  # type: ignore[arg-type]
        if item.from_:
            signal.callers = (item.from_,)  # type: ignore[assignment]
        if item.to:
            signal.dialled = item.to  # type: ignore[assignment]
        elif call is not None:
            signal.dialled = call.dialled
        if item.direction is not None:
            signal.direction = self._words.directions[item.direction]
        if call is None and (item.account or item.tenant or item.endpoint or item.context):
            signal.hints = hints_of(item)
        if item.answered_by is not None and said.rank == _ANSWERED_RANK:
            signal.number = item.answered_by  # type: ignore[assignment]
        if said.rank == FINAL_RANK:
            self._end(signal, item, said, call)
        elif said.kind is SignalKind.CONNECTED and (call is None or call.phase is not Phase.ANSWERED):
            signal.kind = SignalKind.ANSWERED  # nobody is connected without an answer
        return signal

    def _end(self, signal: Signal, item: Item, said: Said, call: Call | None) -> None:
        """Which end it is, by what is known of the call and the table of causes."""
        cause = signal.cause = item.cause
        by = signal.by = None if item.ended_by is None else self._words.parties[item.ended_by]
        if said.status is Status.HUNG_UP or (call is not None and call.phase in _AFTER_ANSWER):
            signal.kind = SignalKind.HUNG_UP
            return
        if said.status is not None:
            signal.word = said.status
            signal.by = by or (_ENDERS.get(said.status) if cause is None else None)
        elif by is Party.CALLER:
            signal.word = Status.CANCELLED
        else:
            signal.word = word_for(cause or _NO_CAUSE, rang=call is not None and call.ringing_at is not None)

    def _introduce(self, call: Call, signal: Signal, now: datetime) -> None:
        """Numbers that were missing when the call was first heard of may say whose it is."""
        if (signal.callers and not call.caller) or (signal.dialled and not call.dialled):
            known = Signal(signal.identity, SignalKind.CALLER_KNOWN, signal.at, callers=signal.callers, dialled=signal.dialled)
            known.direction = signal.direction
            self.tracker.feed(known, now)


def _result(call: Call | None, said: Said, signal: Signal) -> Result:
    """What came of an item that made no status by itself."""
    if call is None:
        return Result.REPEATED  # a sign of life of a call that is not known begins none
    if not call.sides:
        return Result.UNMATCHED
    if call.phase is Phase.LEAVING:  # `hung_up` without an answer, which may be on its way: both are told in half a second
        is_news = signal.kind is SignalKind.HUNG_UP and call.ended_at == signal.at
    else:
        is_news = said.status is None and said.rank != FINAL_RANK and call.phase is not Phase.ENDED
    return Result.ACCEPTED if is_news else Result.REPEATED
