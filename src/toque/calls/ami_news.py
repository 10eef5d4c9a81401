"""What has become true of an Asterisk's calls, as signals, each said once; and what their ends are.

Whom the caller talks to is never read from the words of a transfer but from where the channels are: it is the first person that
is connected with the principal, through bridges and Local channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from toque.calls.ami_book import CallBook
from toque.calls.ami_calls import (
    AmiCall,
    End,
    Leg,
    Origin,
    end_of,
    evidence,
    gave_up,
    is_unsure,
    missed_answer,
    word_without_legs,
)
from toque.calls.ami_channels import Channel
from toque.calls.ami_names import local_number
from toque.calls.model import CallIdentity, Party, Signal, SignalKind

_GRACE = timedelta(seconds=2)  # for the events of a channel that is in no list; they come at once, if they come
_RESPONSE_WAIT = timedelta(seconds=2)  # for OriginateResponse after the end; it comes within milliseconds, if it comes

Signals = Iterator[Signal]


class CallNews:
    """Says what became true of the calls in a book."""

    def __init__(self, source: str, book: CallBook) -> None:
        self.source = source
        self.book = book
        self.is_telling = False  # whether the event that is read changes more than a number

    def signal(self, call: AmiCall, kind: SignalKind, at: datetime) -> Signal:
        """A signal with all that every signal of a call carries."""
        return Signal(
            identity=CallIdentity(self.source, call.key),
            kind=kind,
            at=at,
            callers=call.callers,
            dialled=call.dialled,
            hints=call.hints,
            direction=call.direction,
        )

    def say(self, channel: Channel | None, at: datetime) -> Signals:
        """What an event of this channel means for all calls that it plays a part in."""
        if channel is None:
            return
        keys = {channel.call: None, self.book.carried.get(channel.uid, ""): None}
        if self.is_telling and (channel.bridge or channel.is_local):
            keys |= {self.book.carried.get(near.uid, ""): None for near in self.book.board.connected(channel)}
        for key in keys:
            call = self.book.calls.get(key)
            if call is not None:
                yield from self.advance(call, at)

    def advance(self, call: AmiCall, at: datetime) -> Signals:
        """Say what has become true of a call; if nothing has, that it is alive, and whether more is known of it."""
        if call.origin is Origin.UNKNOWN or call.is_held:
            return
        said = False
        for signal in self._news(call, at):
            said = True
            yield signal
        if call.end is not None and (call.has_response or call.key not in self.book.held):
            yield from self._end(call, call.end)
        elif not said:
            yield self.signal(call, SignalKind.NOTED if self.is_telling else SignalKind.SEEN, at)

    def _news(self, call: AmiCall, at: datetime) -> Signals:
        if not call.is_begun:
            call.is_begun, call.has_news = True, False
            self.book.describe(call)
            yield self.signal(call, SignalKind.BEGAN, call.began_at)
        if call.has_news:
            call.has_news = False
            yield self.signal(call, SignalKind.CALLER_KNOWN, at)
        if not call.is_answered:
            for uid, leg in list(call.legs.items()):
                yield from self._news_of_leg(call, uid, leg, at)
        yield from self._news_of_talk(call, at)

    def _news_of_leg(self, call: AmiCall, uid: str, leg: Leg, at: datetime) -> Signals:
        if leg.is_local and (leg.has_legs or not leg.is_over):
            return  # who is behind it counts
        if leg.told < 1:
            leg.told = 1
            if not leg.is_own:
                yield self._leg_signal(call, SignalKind.LEG_BEGAN, at, uid, leg)
        if leg.told < 2 and leg.rang_at is not None and not leg.is_local:
            leg.told = 2
            call.is_callers_ringing = call.is_callers_ringing or leg.is_own
            kind = SignalKind.CALLER_RINGS if leg.is_own else SignalKind.RINGING
            yield self._leg_signal(call, kind, leg.rang_at, uid, leg)
        if leg.told < 3 and (leg.is_over or leg.is_lost):
            yield self._leg_ended(call, uid, leg, at)

    def _leg_signal(self, call: AmiCall, kind: SignalKind, at: datetime, uid: str, leg: Leg) -> Signal:
        signal = self.signal(call, kind, at)
        signal.leg, signal.number = uid, leg.number
        return signal

    def _leg_ended(self, call: AmiCall, uid: str, leg: Leg, at: datetime) -> Signal:
        leg.told = 3
        end = None if leg.is_own and leg.is_up else end_of(leg)
        if end is None:
            return self._leg_signal(call, SignalKind.LEG_GONE, at, uid, leg)
        signal = self._leg_signal(call, SignalKind.LEG_ENDED, at, uid, leg)
        signal.cause, signal.word, signal.by = end.cause, end.word, end.by
        return signal

    def _news_of_talk(self, call: AmiCall, at: datetime) -> Signals:
        principal = self.book.board.channels.get(call.principal)
        if principal is None or not (principal.is_up and principal.is_person):
            return
        if call.origin is Origin.CLICK:
            call.is_caller_ready = True
        if call.is_answered:
            yield from self._news_of_partner(call, principal, at)
            return
        number = self._answered_number(call, principal)
        if number is not None:
            yield from self._answered(call, number, at)
        elif call.origin is Origin.CALLER and not call.is_picked_up:
            call.is_picked_up, call.is_doubtful = True, call.is_blurred
            yield self.signal(call, SignalKind.PICKED_UP, at)

    def _answered(self, call: AmiCall, number: str, at: datetime) -> Signals:
        call.is_answered, call.answered_by = True, number
        signal = self.signal(call, SignalKind.ANSWERED, at)
        signal.number = number
        yield signal

    def _news_of_partner(self, call: AmiCall, principal: Channel, at: datetime) -> Signals:
        if call.is_swapped:
            return
        partner = self._partner(call, principal)
        if partner is None or partner.uid == call.talks_to:
            return
        call.talks_to = partner.uid
        if partner.shown_number != call.answered_by:
            yield self.connected(call, partner.shown_number, at)

    def connected(self, call: AmiCall, number: str, at: datetime) -> Signal:
        """The signal that the caller's side talks to somebody else now."""
        call.answered_by = number
        signal = self.signal(call, SignalKind.CONNECTED, at)
        signal.number = number
        return signal

    def _partner(self, call: AmiCall, principal: Channel) -> Channel | None:
        """The person whom the principal is connected with; the same as before while that one is there."""
        persons = [channel for channel in self.book.board.connected(principal) if channel.is_person and channel.is_up]
        return next((person for person in persons if person.uid == call.talks_to), persons[0] if persons else None)

    def _answered_number(self, call: AmiCall, principal: Channel) -> str | None:
        """Who has answered: None while nobody has, "" for somebody without a number."""
        if call.origin is Origin.DIALER:
            call.is_swapped, call.talks_to = True, principal.uid
            return principal.reaches or call.dialled
        partner = self._partner(call, principal)
        if partner is None and not call.is_picked_up and call.origin is Origin.CALLER:
            # The switch answers the caller because somebody has: their bridge is about to be made.
            partner = self._answerer(call)
        partner = partner or self.book.board.channels.get(call.agent)
        if partner is not None:
            call.talks_to = partner.uid
            return partner.shown_number
        return call.voicemail

    def _answerer(self, call: AmiCall) -> Channel | None:
        """Whose leg was answered; of several, somebody who talks already, for one may be asked yet whether it takes the call."""
        uids = (uid for uid, leg in call.legs.items() if leg.status == "ANSWER" and leg.is_up and not leg.is_local)
        found = [channel for uid in uids if (channel := self.book.board.channels.get(uid)) is not None]
        return next((channel for channel in found if channel.bridge), found[0] if found else None)

    def over(self, call: AmiCall, end: End) -> Signals:
        """The call's principal has ended, and with it the call."""
        if call.origin is Origin.UNKNOWN:
            self._begin_at_last(call)
        call.is_held = False
        yield from self._news(call, end.at)
        if call.origin is Origin.CLICK and not (call.is_caller_ready or call.has_response):
            call.end, self.book.held[call.key] = end, self.book.now + _RESPONSE_WAIT
            yield self.signal(call, SignalKind.NOTED, end.at)
        else:
            yield from self._end(call, end)

    def _end(self, call: AmiCall, end: End) -> Signals:
        self.book.drop(call)
        if not call.is_answered:
            tell_end = self._end_unsure if self._is_unsure(call, end) else self._end_unanswered
            yield from tell_end(call, end)
            return
        signal = self.signal(call, SignalKind.HUNG_UP, end.at)
        signal.by = call.asked_by or (Party.NETWORK if call.is_soft and not call.has_left else None)
        signal.cause = evidence(end.q850, end.sip, end.text)
        yield signal

    def _is_unsure(self, call: AmiCall, end: End) -> bool:
        principal = self.book.board.channels.get(call.principal)
        is_found_up = principal is not None and principal.is_found_up
        return is_unsure(call, end, is_found_up=is_found_up, hears_requests=self.book.hears_requests)

    def _end_unsure(self, call: AmiCall, end: End) -> Signals:
        """Events were missed, and what was seen does not say why the call ended: no word can be trusted."""
        principal = self.book.board.channels.get(call.principal)
        leg = missed_answer(call)
        if leg is not None and principal is not None and principal.is_up:
            yield from self._answered(call, leg.number, end.at)
        elif gave_up(call, end, hears_requests=self.book.hears_requests):
            yield self.signal(call, SignalKind.GAVE_UP, end.at)
        signal = self.signal(call, SignalKind.VANISHED, end.at)
        signal.by = call.asked_by
        yield signal

    def _end_unanswered(self, call: AmiCall, end: End) -> Signals:
        for uid, leg in call.legs.items():
            if leg.told in (1, 2) and not (leg.is_own and leg.is_up) and end_of(leg) is not None:
                yield self._leg_ended(call, uid, leg, end.at)
        if gave_up(call, end, hears_requests=self.book.hears_requests):
            signal = self.signal(call, SignalKind.GAVE_UP, end.at)
            signal.by = Party.CALLER
            yield signal
        signal = self.signal(call, SignalKind.REFUSED, end.at)
        signal.cause, signal.word = evidence(end.q850, end.sip, end.text), word_without_legs(call, end)
        yield signal

    def _begin_at_last(self, call: AmiCall) -> None:
        """Who called whom never became clear; say what is known."""
        channel = self.book.board.channels.get(call.principal)
        if channel is None:
            call.origin = Origin.CALLER
        elif channel.is_local:
            call.origin = Origin.CLICK
            self.book.learn_callers(call, local_number(channel.name))
        else:
            self.book.called_in(call, channel)

    def vanished(self, channel: Channel, at: datetime) -> Signals:
        """A channel is gone, and nobody saw it go."""
        call = self.book.call_of(channel)
        leg = call.legs.get(channel.uid) if call is not None else None
        if leg is not None:
            leg.is_over = True
        carried = self.book.carried_by(channel.uid)
        heir = self.book.heir(carried) if carried is not None else None
        if carried is not None and heir is not None:
            self.book.carry(carried, heir)
            carried.is_swapped = not carried.is_swapped
        elif carried is not None:
            yield from self._vanished_call(carried, at)
        elif call is not None and leg is not None:
            yield from self._vanished_leg(call, leg, at)
        self.book.board.remove(channel.uid)

    def _vanished_leg(self, call: AmiCall, leg: Leg, at: datetime) -> Signals:
        """Where the switch said that it answered, its talk with the caller is what was missed."""
        principal = self.book.board.channels.get(call.principal)
        if leg.status == "ANSWER" and not (call.is_answered or leg.is_own) and principal is not None and principal.is_up:
            yield from self._answered(call, leg.number, at)
        yield from self.advance(call, at)

    def _vanished_call(self, call: AmiCall, at: datetime) -> Signals:
        self.book.drop(call)
        if not call.is_begun:
            return
        if call.is_giving_up and not call.is_answered:
            yield self.signal(call, SignalKind.GAVE_UP, at)
        signal = self.signal(call, SignalKind.VANISHED, at)
        signal.by = call.asked_by
        yield signal

    def tick(self, now: datetime) -> Iterable[Signal]:
        """What has become certain by the passing of time."""
        for uid in [uid for uid, at in self.book.missing.items() if now - at >= _GRACE]:
            channel = self.book.board.channels.get(uid)
            if channel is not None:
                yield from self.vanished(channel, now)
            self.book.missing.pop(uid, None)
        due = [key for key, until in self.book.held.items() if until <= now]
        for key in due:
            del self.book.held[key]
            call = self.book.calls.get(key)
            if call is not None:
                call.is_held = False
                yield from self.advance(call, now)

    def next_due(self) -> datetime | None:
        """When `tick` has something to say at the earliest."""
        missing = (at + _GRACE for at in self.book.missing.values())
        return min((*self.book.held.values(), *missing), default=None)
