"""What is said of one call: the signals that its state and its ends give."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from toque.calls.causes import word_for
from toque.calls.esl_calls import Channel, Ending, EslCall, Origin
from toque.calls.esl_causes import GONE, WRAPPERS, is_stopped, leg_cause, word_of
from toque.calls.esl_event import EslEvent
from toque.calls.model import CallIdentity, Cause, Direction, Party, Signal, SignalKind, Status

_NOTHING: tuple[Signal, ...] = ()
_NO_NEWS = (SignalKind.NOTED, SignalKind.SEEN)


class EslSpeech:
    """Collects the signals of one source."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._said: list[Signal] = []

    def take(self) -> Sequence[Signal]:
        """What was said since the last time."""
        if not self._said:
            return _NOTHING
        said, self._said = self._said, []
        return said

    def say(
        self,
        call: EslCall,
        kind: SignalKind,
        at: datetime,
        *,
        leg: str | None = None,
        number: str = "",
        cause: Cause | None = None,
        by: Party | None = None,
        word: Status | None = None,
        callers: tuple[str, ...] = (),
    ) -> None:
        """Say one thing of a call; `callers` where another than its usual numbers are meant."""
        if call.is_untold:
            if kind in _NO_NEWS:
                return
            self.begun(call)
        self._said.append(
            Signal(
                identity=CallIdentity(self.source, call.key),
                kind=kind,
                at=at,
                leg=leg,
                callers=callers or call.callers,
                dialled=call.dialled,
                number=number,
                cause=cause,
                by=by,
                word=word,
                hints=call.hints,
                direction=Direction.RECEIVED if call.is_from_trunk and call.origin is Origin.INCOMING else Direction.MADE,
            )
        )

    def begun(self, call: EslCall, *, again: bool = False) -> None:
        """A call began: now, or a moment ago, when it could still have been the pickup of another."""
        call.is_untold = False
        self.say(call, SignalKind.BEGAN_AGAIN if again else SignalKind.BEGAN, call.began_at)
        if call.picked_up_at is not None:
            self.say(call, SignalKind.PICKED_UP, call.picked_up_at)

    def picked_up(self, call: EslCall, at: datetime) -> None:
        """The switch itself answered."""
        call.picked_up_at = at
        if not call.is_untold:
            self.say(call, SignalKind.PICKED_UP, at)

    def reached(self, call: EslCall, at: datetime, leg: str | None, number: str) -> None:
        """A person or the far end answered."""
        call.is_answered = True
        self.say(call, SignalKind.ANSWERED, at, leg=leg, number=number)

    def noted(self, call: EslCall, at: datetime) -> None:
        """Nothing to tell, but something that a restart must not lose."""
        self.say(call, SignalKind.NOTED, at)

    def leg_ended(self, call: EslCall, channel: Channel, at: datetime, event: EslEvent | None) -> None:
        """A called leg ended unanswered; without an event, nobody saw how, and what the caller's leg says must do."""
        if call.is_answered or channel.is_guest or not channel.is_called or channel.has_legs or call.is_callers_own(channel):
            self.noted(call, at)
            return
        if event is None or event.hangup_cause in GONE:
            self.say(call, SignalKind.LEG_GONE, at, leg=channel.uuid)
            return
        if is_stopped(event):
            self.say(call, SignalKind.LEG_CANCELLED, at, leg=channel.uuid)
        cause = leg_cause(event)
        word = Status.NO_ANSWER if channel.is_agent else word_of(event.hangup_cause, cause, rang=channel.rang)
        by = Party.NETWORK if call.was_up() else None  # it is the switch that will hang up on the caller
        self.say(call, SignalKind.LEG_ENDED, at, leg=channel.uuid, cause=cause, word=word, by=by)

    def over(self, call: EslCall) -> None:
        """The caller's last leg has ended."""
        call.is_over = True
        end, at = call.caller.end, call.ended_at()
        if end is None or not end.is_seen:
            self.say(call, SignalKind.VANISHED, at)
        elif call.is_answered:
            self.say(call, SignalKind.HUNG_UP, at, cause=call.cause(), by=call.hung_up_by())
        else:
            self._refused(call, end, at)

    def _refused(self, call: EslCall, end: Ending, at: datetime) -> None:
        gave_up, was_up, cause = call.gave_up() or end.has_moved, call.was_up(), end.cause or Cause()
        if gave_up:
            self.say(call, SignalKind.GAVE_UP, at, by=Party.CALLER)
        rang = was_up or call.rang()  # who was picked up by a queue or a menu waited for somebody
        word = word_of(end.name, cause, rang=rang) or word_for(cause, rang=rang)
        if not gave_up and _is_guess(call, end, word):
            self.say(call, SignalKind.VANISHED, at, by=Party.NETWORK)
            return
        by = Party.NETWORK if was_up and not gave_up else None
        self.say(call, SignalKind.REFUSED, at, cause=end.cause, word=word, by=by)

    def lost(self, call: EslCall, at: datetime) -> None:
        """The switch was started anew; the call did not outlive it."""
        call.is_over = True
        self.say(call, SignalKind.VANISHED, at, by=Party.NETWORK)


def _is_guess(call: EslCall, end: Ending, word: Status) -> bool:
    """Whether the word depends on what was missed: how a called leg ended, where the caller's channel does not know."""
    legs = [channel for channel in call.channels.values() if channel.is_called and not call.is_callers_own(channel)]
    if all(leg.end is None or leg.end.is_seen for leg in legs):
        return False
    # One that was missed may have rung out, which outranks another that is busy.
    return end.name in WRAPPERS or (len(legs) > 1 and word in (Status.BUSY, Status.REJECTED))
