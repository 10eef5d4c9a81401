"""From FreeSWITCH's events to signals.

The switch tells of channels. A channel that calls the switch begins a call; so does one that the switch calls on nobody's account
(click-to-call, a dialler). Every other one is a leg of the call for whose channel it was made. What the switch says of the
caller's channel alone is never an answer: an IVR, a queue or a script may have picked up. What counts is a called leg's answer, a
bridge of two answered channels, or an application that is a destination by itself, such as voicemail.

Events of different channels may overtake each other by a few places; those of one channel do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from toque.calls.esl_calls import Channel, EslCall, EslCalls, Origin
from toque.calls.esl_event import DUMP, EslEvent
from toque.calls.esl_held import MAX_HELD, HeldLeg, Untold
from toque.calls.esl_parties import Parties, call_above, channel_of, ending_of, is_calling, is_destination, stranger
from toque.calls.esl_speech import EslSpeech
from toque.calls.model import CallIdentity, Signal, SignalKind


class EslEvents:
    """The channels and calls of one switch, by its events."""

    def __init__(self, source: str, parties: Parties | None = None) -> None:
        self.source = source
        self.calls = EslCalls()
        self._parties = parties or Parties()
        self._speech = EslSpeech(source)
        self._held: dict[str, HeldLeg] = {}
        self._untold = Untold()
        self._core = ""
        self._handlers: Mapping[str, Callable[[EslEvent], None]] = {
            "CHANNEL_CREATE": self._appeared,
            "CHANNEL_ORIGINATE": self._appeared,
            "CHANNEL_PROGRESS": self._rang,
            "CHANNEL_PROGRESS_MEDIA": self._rang,
            "CHANNEL_ANSWER": self._answered,
            "CHANNEL_BRIDGE": self._bridged,
            "CHANNEL_UUID": self._renamed,
            "CHANNEL_EXECUTE": self._told_of_application,
            "CHANNEL_PARK": self._told_of_application,
            "CALL_UPDATE": self._told_of_application,
            "RECORD_START": self._told_of_application,
            "PLAYBACK_START": self._told_of_application,
            "CHANNEL_HANGUP": self._hung_up,
            "CHANNEL_HANGUP_COMPLETE": self._ended,
            "CHANNEL_DESTROY": self._ended,
        }

    def read(self, event: EslEvent) -> Sequence[Signal]:
        """The signals that one event gives; most give none or one."""
        self._live(event)
        handler = self._handlers.get(event.name)
        if handler is not None and event.uuid:
            handler(event)
        return self._speech.take()

    def _live(self, event: EslEvent) -> None:
        """After the switch was started anew, no call of its life before goes on."""
        if not event.core or event.core == self._core:
            return
        self._core = event.core
        self._held.clear()
        for call in self.calls.going_on():
            if call.core and call.core != event.core:
                self._speech.lost(call, event.at)

    # A channel appears

    def _appeared(self, event: EslEvent) -> None:
        uuid = event.uuid
        if uuid not in self.calls or self._begins_again(event):
            self._place(event)
            return
        for call in self.calls.at_home(uuid):
            if call.is_stub and call.root == uuid:
                self._complete(call, event)

    def _begins_again(self, event: EslEvent) -> bool:
        """A script may give a channel the UUID of one that is gone."""
        call = self.calls.calls.get(event.uuid)
        end = call.caller.end if call is not None and call.is_over else None
        return event.name == "CHANNEL_CREATE" and end is not None and event.at > end.at

    def _place(self, event: EslEvent) -> None:
        """Find the call that a new channel belongs to, or begin one."""
        above = event.originator or (event.call_uuid if event.call_uuid in self.calls else "")
        is_told_of = above == event.text("Other-Leg-Unique-ID") != "" and not event.is_for_inner
        if is_told_of and above not in self.calls and above not in self._held:
            call = call_above(event, above)
            self.calls.begin(call, Channel(uuid=above, number=call.callers[0], is_called=call.origin is Origin.CLICK))
        homes = self.calls.at_home(above) if above else []
        for call in homes:
            self._add_leg(call, event, above)
        if homes:
            self._adopt(event.uuid)
            return
        is_for_somebody = above in self._held or event.is_held_for_later or (above and above not in self.calls)
        if is_for_somebody or (event.is_inner and not event.is_called):
            if len(self._held) < MAX_HELD:
                self._held[event.uuid] = HeldLeg(event, above)
        elif above not in self.calls:  # a leg that comes after the end of its call begins nothing
            self._begin(event)
            self._adopt(event.uuid)

    def _adopt(self, uuid: str) -> None:
        """A channel's legs may have been seen before it: through a loopback, or when we come in the middle."""
        for name in [name for name, held in self._held.items() if held.above == uuid]:
            held = self._held.pop(name)
            self._place(held.event)
            if held.rang_at is not None:
                self._ring(held.event, held.rang_at)
            if held.answered_at is not None:
                self._answer(held.event, held.answered_at)

    def _begin(self, event: EslEvent) -> None:
        begins_again = self._begins_again(event)
        self.calls.forget(event.uuid)
        origin = self._parties.origin(event)
        call = EslCall(key=event.uuid, root=event.uuid, origin=origin, core=event.core, began_at=event.created_at)
        self.calls.begin(call, channel_of(event))
        self._parties.describe(call, event)
        if event.name == DUMP:
            return
        if self._parties.may_be_pickup(call, event) and not begins_again:
            call.is_untold = True
            self._untold.add(call.key, event.received_at)
        else:
            self._speech.begun(call, again=begins_again)

    def tick(self, now: datetime) -> Sequence[Signal]:
        """What is said because time has passed: calls that are no pickups have begun."""
        for key in self._untold.due(now):
            call = self.calls.calls.get(key)
            if call is not None and call.is_untold:
                self._speech.begun(call)
        return self._speech.take()

    def next_due(self) -> datetime | None:
        """When `tick` has something to say at the earliest."""
        return self._untold.next_due()

    def _complete(self, call: EslCall, event: EslEvent) -> None:
        """The caller's channel shows itself after a leg of it."""
        call.is_stub = False
        call.origin = self._parties.origin(event)
        self._parties.describe(call, event)
        if event.name != DUMP:
            call.began_at = min(call.began_at, event.created_at)
            self._speech.say(call, SignalKind.BEGAN, call.began_at)

    def _add_leg(self, call: EslCall, event: EslEvent, above: str) -> None:
        channel = channel_of(event)
        channel.above = above
        parent = call.channels.get(above)
        channel.is_caller_side = parent is not None and not parent.is_caller_side
        if not self.calls.join(call, channel):
            return
        if channel.is_inner or not channel.is_called or call.is_callers_own(channel):
            self._speech.noted(call, event.at)
            return
        call.note_called_through(parent)
        self._learn_numbers(call, event)
        self._speech.say(call, SignalKind.LEG_BEGAN, event.at, leg=channel.uuid, number=channel.number)

    def _learn_numbers(self, call: EslCall, event: EslEvent) -> None:
        """A leg may be the first to say what was dialled, or by which number the caller is known outside."""
        if self._parties.is_dialler_of(call, event):
            self._speech.say(call, SignalKind.CALLER_KNOWN, event.at, callers=call.callers)
            return
        is_first_target = call.origin is Origin.CLICK and not call.dialled
        name = self._parties.outside_name(call, event)
        if call.is_answered or not (is_first_target or name):
            return
        if is_first_target:
            call.dialled = event.destination
        self._speech.say(call, SignalKind.CALLER_KNOWN, event.at, callers=(*call.callers, name) if name else ())

    # Ringing and answering

    def _rang(self, event: EslEvent) -> None:
        self._appeared(event)
        self._ring(event, event.at)

    def _ring(self, event: EslEvent, at: datetime) -> None:
        if event.uuid in self._held:
            self._held[event.uuid].rang_at = at
        for call in self.calls.of(event.uuid):
            channel = call.channels[event.uuid]
            is_callers = call.is_callers_own(channel)
            if channel.rang or channel.is_inner or channel.is_guest or (is_callers and call.origin is Origin.INCOMING):
                continue
            channel.rang = True
            if is_callers:
                self._speech.say(call, SignalKind.CALLER_RINGS if call.origin is Origin.CLICK else SignalKind.RINGING, at)
            elif not call.is_answered:
                self._speech.say(call, SignalKind.RINGING, at, leg=channel.uuid, number=channel.number)

    def _answered(self, event: EslEvent) -> None:
        self._appeared(event)
        self._answer(event, event.at)

    def _answer(self, event: EslEvent, at: datetime) -> None:
        if event.uuid in self._held:
            self._held[event.uuid].answered_at = at
        for call in self.calls.of(event.uuid):
            channel = call.channels[event.uuid]
            if channel.answered_at is not None:
                continue
            channel.answered_at = at
            if call.is_callers_own(channel):
                self._caller_is_up(call, event, at)
            elif not (call.is_answered or channel.is_inner or channel.is_guest or channel.must_confirm):
                self._speech.reached(call, at, channel.uuid, channel.number)
        self._note_destination(event, at)

    def _caller_is_up(self, call: EslCall, event: EslEvent, at: datetime) -> None:
        if call.origin is Origin.DIALLER:
            if not (event.is_inner or call.is_answered):
                self._speech.reached(call, at, None, call.dialled)
            return
        peer = call.channels.get(call.channels[event.uuid].peer)
        if peer is not None and peer.answered_at is not None and peer.end is None and not (peer.is_inner or call.is_answered):
            self._speech.reached(call, at, peer.uuid, peer.number)  # bridged before it was answered, by a pickup
        elif call.origin is Origin.INCOMING and not (call.is_answered or is_calling(event) or is_destination(event)):
            self._speech.picked_up(call, at)

    def _note_destination(self, event: EslEvent, at: datetime) -> None:
        """An application may be where the caller wanted to get; it runs on their channel, or behind an inner one."""
        if not is_destination(event):
            return
        for call in self.calls.of(event.uuid):
            channel = call.channels[event.uuid]
            is_callers = channel.uuid == call.root or (channel.is_inner and not channel.is_guest)
            if is_callers and not call.is_answered and channel.answered_at is not None:
                self._speech.reached(call, at, None, "")

    def _told_of_application(self, event: EslEvent) -> None:
        self._note_destination(event, event.at)

    # Who talks to whom

    def _bridged(self, event: EslEvent) -> None:
        one, two = event.bridged
        if not one or not two or one == two:
            return
        if one not in self.calls and two not in self.calls:
            self._appeared(event)
        homes = {call.key: call for uuid in (one, two) for call in self.calls.at_home(uuid)}
        pickups = [call for call in homes.values() if call.is_untold and len(homes) > 1]
        for call in homes.values():
            if call in pickups:
                continue
            first, second = (self._as_seen_by(call, uuid, event) for uuid in (one, two))
            if first.end is None and second.end is None:
                self._pair(call, first, second, event)
        for call in pickups:
            self.calls.forget(call.key)
        for uuid in (one, two):
            self._settle(uuid)

    def _as_seen_by(self, call: EslCall, uuid: str, event: EslEvent) -> Channel:
        if uuid in call.channels:
            return call.channels[uuid]
        elsewhere = self.calls.at_home(uuid)
        held = self._held.pop(uuid, None)
        channel = held.channel() if held is not None else elsewhere[0].channels[uuid] if elsewhere else stranger(uuid, event)
        return self.calls.visit(call, channel)

    def _pair(self, call: EslCall, first: Channel, second: Channel, event: EslEvent) -> None:
        subject = first if first.uuid == event.uuid else second
        if event.is_answered and subject.answered_at is None:
            subject.answered_at = event.moment("Caller-Channel-Answered-Time") or event.at
        call.seat(first, second)
        if first.is_inner or second.is_inner:
            return
        callee = first if second.is_caller_side else second
        if call.is_answered:
            number = "" if call.origin is Origin.DIALLER else callee.number  # it is the far end that answered there
            self._speech.say(call, SignalKind.CONNECTED, event.at, number=number)
        elif first.answered_at is not None and second.answered_at is not None:
            if call.origin is Origin.CLICK and not call.dialled and callee.number:
                call.dialled = callee.number
                self._speech.say(call, SignalKind.CALLER_KNOWN, event.at)
            self._speech.reached(call, event.at, callee.uuid, callee.number)

    def _renamed(self, event: EslEvent) -> None:
        old = event.text("Old-Unique-ID")
        if old in self.calls and event.uuid not in self.calls:
            self.calls.rename(old, event.uuid)

    # Ending

    def _hung_up(self, event: EslEvent) -> None:
        """Before a channel ends, it says what it did last; when it began to do that, nobody said."""
        for call in self.calls.of(event.uuid):
            channel = call.channels[event.uuid]
            if channel.uuid == call.root and channel.answered_at is not None:
                ends = [other.end.at for other in call.channels.values() if other.end is not None]
                self._note_destination(event, max([channel.answered_at, *ends]))
            if channel.uuid == call.root and call.has_gap:
                self._caller_heard_ringing(event)
                self._note_missed_answer(call, event)

    def _note_missed_answer(self, call: EslCall, event: EslEvent) -> None:
        """Who answered may have come and gone while nobody listened; the caller's channel still knows that somebody did."""
        since, peer = event.talked_since, call.channels.get(event.bond)
        if peer is not None and self._is_unanswered(peer):
            return  # the bridge was for early media
        if not call.is_answered and since is not None:
            is_callee = event.text("Other-Type") == "originatee"
            self._speech.reached(call, since, None, event.text("Other-Leg-Destination-Number") if is_callee else "")

    def _is_unanswered(self, channel: Channel) -> bool:
        """Whether a channel is known not to have answered."""
        return channel.answered_at is None and (channel.end is None or channel.end.is_seen)

    def _caller_heard_ringing(self, event: EslEvent) -> None:
        """The telephone that rang may have ended while nobody listened; the caller's channel still knows that one did."""
        for call in self.calls.of(event.uuid):
            caller, at = call.caller, event.rang_at
            is_news = call.origin is Origin.INCOMING and not call.is_answered and not call.rang()
            if caller.uuid == event.uuid and is_news and at is not None:
                caller.rang = True
                self._speech.say(call, SignalKind.RINGING, at)

    def _ended(self, event: EslEvent) -> None:
        self._hung_up(event)
        self._held.pop(event.uuid, None)
        for call in self.calls.of(event.uuid):
            channel = call.channels[event.uuid]
            if channel.end is None:
                channel.end = ending_of(event, call)
                if channel.uuid != call.root:
                    self._speech.leg_ended(call, channel, channel.end.at, event)
                else:
                    self._speech.noted(call, channel.end.at)
        self._settle(event.uuid)

    def _settle(self, uuid: str) -> None:
        """See which calls are over, now that something has changed for this channel."""
        for call in self.calls.of(uuid):
            if self.calls.is_over(call):
                self._speech.over(call)

    # Storing

    def forget(self, identity: CallIdentity) -> None:
        """Drop what is remembered of a call."""
        self.calls.forget(identity.key)

    def export(self, identity: CallIdentity) -> bytes:
        """What `restore` needs to go on with this call."""
        return self.calls.export(identity.key)

    def restore(self, state: bytes) -> None:
        """Go on with a call. Raises `msgspec.DecodeError` for bytes that `export` did not give."""
        self.calls.restore(state)
