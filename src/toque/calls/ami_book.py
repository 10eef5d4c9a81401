"""The calls of one Asterisk: which channel belongs to which, and what a channel is to its call.

A call is named by the Linkedid of its first channel. Its *principal* is the channel whose end is the call's end: the caller's,
until a transfer by the caller leaves the call to the far end. Where the switch calls the caller first (click-to-call), that
telephone is the principal; over a Local channel, the call's *hub*, from when it was taken up.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta

import msgspec

from toque.calls.ami_calls import AmiCall, Leg, Origin
from toque.calls.ami_channels import Channel, State, Switchboard
from toque.calls.ami_names import (
    SwitchRules,
    endpoint,
    explicit_number,
    is_feature,
    is_helper,
    is_number,
    is_of,
    is_short,
    is_telephone,
    local_number,
    peer_name,
)
from toque.calls.ami_wire import AmiMessage
from toque.calls.model import CallIdentity, Direction

MAX_LEGS = 1_000  # of one call at once; a queue that rings more telephones is not told apart by its members
_MAX_NUMBERS = 8  # of one caller
FEATURE_HOLD = timedelta(seconds=2)  # how long a call to a feature may turn out to be a pickup
_SHORT_HOLD = timedelta(
    seconds=1
)  # any extension may pick up: after an Answer, Asterisk waits half a second for media before it does
_RECENT = 256  # calls that the switch began and that ended: a late OriginateResponse begins no new one


class _Memory(msgspec.Struct):
    """What is stored of one call."""

    call: AmiCall
    channels: list[Channel]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Memory)


class CallBook:
    """Everything that is known of the calls of one Asterisk."""

    def __init__(self, rules: SwitchRules) -> None:
        self.rules = rules
        self.now = datetime.min.replace(tzinfo=UTC)  # our own clock, when the last event came
        self.board = Switchboard()
        self.calls: dict[str, AmiCall] = {}
        self.carried: dict[str, str] = {}  # the call that a channel is the principal of
        self.ended: set[str] = set()  # calls that ended a short while ago
        self.held: dict[str, datetime] = {}  # until when a call waits to become clear
        self.hears_requests = False  # this switch tells who asked for a hangup
        self.missing: dict[str, datetime] = {}  # since when a channel is in no list; its end may be on its way
        self.recent: deque[str] = deque(maxlen=_RECENT)
        self.whole_from = datetime.min.replace(tzinfo=UTC)  # before this moment, what was not seen may have happened

    def __len__(self) -> int:
        """How many calls and channels are remembered."""
        return len(self.calls) + len(self.board.channels)

    def blur(self) -> None:
        """Events may have been missed: of a call that nobody has answered, not all is known any more."""
        self.whole_from = datetime.max.replace(tzinfo=UTC)
        for call in self.calls.values():
            call.is_blurred = call.is_blurred or not call.is_answered

    def carried_by(self, uid: str) -> AmiCall | None:
        """The call that this channel is the principal of."""
        return self.calls.get(self.carried.get(uid, ""))

    def call_of(self, channel: Channel | None) -> AmiCall | None:
        return None if channel is None else self.calls.get(channel.call)

    def learn_variables(self, channel: Channel, variables: tuple[str, ...]) -> None:
        for variable in variables:
            name, _, value = variable.partition("=")
            self.learn_variable(channel, name.strip(), value.strip())

    def learn_variable(self, channel: Channel, name: str, value: str) -> None:
        call = self.carried_by(channel.uid)
        if call is None or not value:
            return
        if name == "DIALSTATUS":
            call.dial_status = value
        elif name == self.rules.tenant_variable:
            call.tenant = call.tenant or value

    def join(self, channel: Channel, message: AmiMessage) -> None:
        """A new channel belongs to the call of its Linkedid, or begins one."""
        if channel.linkedid != channel.uid:
            if channel.linkedid in self.calls:
                channel.call = channel.linkedid
            return
        if is_helper(channel.name) or channel.uid in self.ended or channel.uid in self.calls:
            return
        channel.call = channel.uid
        call = AmiCall(key=channel.uid, principal=channel.uid, began_at=channel.made_at, first_name=channel.name)
        self.calls[call.key] = call
        self.carried[channel.uid] = call.key
        call.tenant = message.get("tenantid")
        if channel.is_local:
            call.hub = channel.uid
        elif channel.state in (State.RING, State.UP):
            self.called_in(call, channel)

    def called_in(self, call: AmiCall, channel: Channel) -> None:
        """The call's channel is the caller's, who called the switch."""
        call.origin = Origin.CALLER
        call.dialled = channel.extension
        numbers = [channel.own_number, channel.number]
        if not self.rules.is_outside(channel.name, channel.context):
            numbers.append(endpoint(channel.name))
        self.learn_callers(call, *numbers)
        wait = FEATURE_HOLD if is_feature(call.dialled) else _SHORT_HOLD
        if is_short(call.dialled) and not self.rules.is_outside(channel.name, channel.context):
            self.hold(call, wait)

    def hold(self, call: AmiCall, wait: timedelta) -> None:
        """Tell nothing of a call for a while, unless it becomes clear what it is."""
        call.is_held, self.held[call.key] = True, self.now + wait

    def is_newcomer(self, channel: Channel) -> bool:
        """Whether this channel has played no part in any call that somebody was told of."""
        call = self.call_of(channel)
        return call is None or (call.principal == channel.uid and not call.is_begun)

    def absorb(self, channel: Channel, into: AmiCall) -> None:
        """A channel took over another's place in a call; if it began a call for that, nobody was told of it yet."""
        own = self.carried_by(channel.uid)
        if own is not None and own is not into and not own.is_begun:
            self.drop(own)
        if self.carried.get(channel.uid) is None:
            channel.call = into.key

    @staticmethod
    def learn_callers(call: AmiCall, *numbers: str) -> None:
        known = tuple(dict.fromkeys((*call.callers, *(number for number in numbers if number))))[:_MAX_NUMBERS]
        if known != call.callers:
            call.callers, call.has_news = known, True

    def note_state(self, channel: Channel, at: datetime) -> None:
        """What a channel's state means for its call."""
        call = self.call_of(channel)
        if call is None:
            return
        leg = call.legs.get(channel.uid)
        if leg is not None:
            self.note_leg(leg, channel, at)
        if channel.uid == call.hub and channel.is_up:
            for uid, own in list(call.legs.items()):
                if own.is_up and uid in self.board.channels:
                    self.taken_up(call, self.board.channels[uid])
        if channel.uid != call.principal or channel.is_local:
            return
        if call.origin is Origin.UNKNOWN and channel.state in (State.RING, State.UP):
            self.called_in(call, channel)
        if call.origin is Origin.UNKNOWN and channel.state == State.RINGING and is_telephone(channel.name):
            self.originate(call, channel, "")

    @staticmethod
    def note_leg(leg: Leg, channel: Channel, at: datetime) -> None:
        if channel.state == State.RINGING:
            leg.rang_at = leg.rang_at or at
        elif channel.is_up:
            leg.is_up = True

    def originate(self, call: AmiCall, channel: Channel, dial_string: str) -> None:
        """The switch itself called this channel first, on somebody's behalf."""
        if channel.is_local:
            return  # the telephone behind it says whose
        leg = call.legs.setdefault(channel.uid, Leg(number=channel.reaches or endpoint(channel.name)))
        self.note_leg(leg, channel, call.began_at)
        number = explicit_number(dial_string, channel.name)
        if number or self.rules.is_outside(channel.name, channel.context):
            call.origin, call.dialled = Origin.DIALER, number or channel.reaches
            self.learn_callers(call, *(n for n in (channel.number, channel.connected) if n != call.dialled))
            return
        call.origin, leg.is_own = Origin.CLICK, True
        numbers = (endpoint(channel.name), channel.own_number)
        self.learn_callers(call, *(numbers if is_telephone(channel.name) else reversed(numbers)))

    def dialled(self, dialler: Channel, called: Channel, dial_string: str, at: datetime) -> None:
        call = self.call_of(dialler) or self.call_of(called)
        if call is None:
            return
        if called.uid != call.principal and self.carried.get(called.uid) is None:
            called.call = call.key
        if dialler.uid in (call.principal, call.hub):
            self.caller_dials(call, dialler)
        if call.is_answered or len(call.legs) >= MAX_LEGS:
            return
        call.is_doubtful = False
        leg = call.legs.setdefault(called.uid, Leg(number=called.reaches, is_local=called.is_local))
        if leg.number != called.reaches:
            leg.number, leg.told = called.reaches, 0
        half = self.board.half(dialler)
        parent = call.legs.get(half.uid) if half is not None else None
        if parent is not None:
            parent.has_legs = True
            leg.is_own = parent.is_own
        if half is not None and (half.uid == call.hub or leg.is_own):
            self.dialled_for_hub(call, called, leg, dial_string)
        self.note_leg(leg, called, at)

    def called_for(self, called: Channel, at: datetime) -> None:
        """Somebody is called into a call by a program, which will bridge them."""
        call = self.call_of(called)
        if call is None or call.is_answered or called.uid == call.hub or len(call.legs) >= MAX_LEGS:
            return
        call.is_held = call.is_doubtful = False
        self.note_leg(call.legs.setdefault(called.uid, Leg(number=called.reaches, is_local=called.is_local)), called, at)

    def caller_dials(self, call: AmiCall, dialler: Channel) -> None:
        call.is_held, call.asked_by, call.is_soft = False, None, False
        if call.origin is Origin.UNKNOWN and not dialler.is_local:
            self.called_in(call, dialler)
            call.is_held = False
        self.learn_dialled(call, dialler.extension)

    def learn_dialled(self, call: AmiCall, extension: str) -> None:
        if is_number(extension) and extension not in call.callers and not is_number(call.dialled):
            call.dialled, call.has_news = extension, True

    def dialled_for_hub(self, call: AmiCall, called: Channel, leg: Leg, dial_string: str) -> None:
        """Behind the Local channel of an Originate: the caller's own telephone, unless a number outside is called first."""
        if call.is_caller_ready:
            return
        if called.is_local:
            leg.is_own = True  # for what is behind it
        else:
            self.learn_first(call, called, leg, explicit_number(dial_string, called.name))

    def learn_first(self, call: AmiCall, called: Channel, leg: Leg, number: str = "") -> None:
        """Somebody is called first for an Originate over a Local channel: its caller, or a number outside."""
        hub = self.board.channels.get(call.hub)
        if hub is None:
            return
        if call.origin is Origin.UNKNOWN and (number or self.rules.is_outside(called.name, called.context)):
            call.origin, call.dialled = Origin.DIALER, number or called.reaches
            self.learn_callers(call, *(n for n in (hub.number, hub.connected) if n != call.dialled))
        elif call.origin is Origin.UNKNOWN:
            call.origin = Origin.CLICK
        leg.is_own = call.origin is Origin.CLICK
        if leg.is_own:
            self.learn_callers(call, called.reaches, local_number(hub.name))

    def taken_up(self, call: AmiCall, channel: Channel) -> None:
        """The first telephone of an Originate over a Local channel was taken up: from here on it stands for the call."""
        leg = call.legs.get(channel.uid)
        if call.principal != call.hub or leg is None or leg.is_local:
            return
        if leg.is_own or call.origin is Origin.DIALER:
            self.carry(call, channel)

    def carry(self, call: AmiCall, channel: Channel) -> None:
        """Make a channel the one whose end is the call's."""
        if self.carried.get(call.principal) == call.key:
            del self.carried[call.principal]
        call.principal = channel.uid
        self.carried.setdefault(channel.uid, call.key)

    def may_carry(self, channel: Channel) -> bool:
        """Whether a call may go on with this channel: its end must be no other call's."""
        return channel.uid not in self.carried

    def called_first(self, channel: str) -> AmiCall | None:
        """The call that an Originate with this `Channel` began and that came to nothing; its answer names no uid."""
        for call in self.calls.values():
            is_open = call.origin is not Origin.CALLER and not (call.has_response or call.is_caller_ready or call.is_answered)
            if is_open and is_of(call.first_name, channel):
                return call
        return None

    def is_recent(self, channel: str) -> bool:
        name = next((name for name in self.recent if is_of(name, channel)), None)
        if name is not None:
            self.recent.remove(name)
        return name is not None

    def has_ended(self, key: str) -> bool:
        """Whether this call ended a short while ago."""
        return key in self.ended

    def heir(self, call: AmiCall) -> Channel | None:
        """Who carries the call on, if its caller left it to others by a transfer that nobody saw."""
        partner = self.board.channels.get(call.talks_to)
        if partner is None or not (partner.is_up and self.may_carry(partner)) or partner.uid in self.missing:
            return None
        others = (other for other in self.board.connected(partner) if other.uid != call.principal)
        return partner if any(other.is_person and other.is_up for other in others) else None

    def is_talking(self, channel: Channel) -> bool:
        """Whether somebody is connected with this channel."""
        return any(other.is_person and other.is_up for other in self.board.connected(channel))

    def drop(self, call: AmiCall | None) -> None:
        if call is None:
            return
        if call.origin in (Origin.CLICK, Origin.DIALER) and not call.has_response:
            self.recent.append(call.first_name)
        self.calls.pop(call.key, None)
        self.held.pop(call.key, None)
        if self.carried.get(call.principal) == call.key:
            del self.carried[call.principal]
        if call.is_begun:
            self.ended.add(call.key)

    def forget(self, identity: CallIdentity) -> None:
        """Drop what is remembered of a call that has ended."""
        self.drop(self.calls.get(identity.key))
        self.ended.discard(identity.key)

    def export(self, identity: CallIdentity) -> bytes:
        """What `restore` needs to go on with this call."""
        call = self.calls.get(identity.key)
        if call is None:
            return b""
        principal = self.board.channels.get(call.principal)
        near = {channel.uid: channel for channel in self.board.connected(principal)} if principal is not None else {}
        near |= {uid: channel for uid in (call.principal, call.hub, *call.legs) if (channel := self.board.channels.get(uid))}
        halves = [half for channel in near.values() if (half := self.board.half(channel)) is not None]
        near |= {half.uid: half for half in halves}
        return _ENCODER.encode(_Memory(call, list(near.values())))

    def restore(self, state: bytes) -> None:
        """Go on with a call. Raises `msgspec.DecodeError` for bytes that `export` did not give."""
        if not state:
            return
        memory = _DECODER.decode(state)
        self.calls[memory.call.key] = memory.call
        self.carried[memory.call.principal] = memory.call.key
        if memory.call.end is not None:
            self.held[memory.call.key] = self.now + FEATURE_HOLD
        for channel in memory.channels:
            if channel.uid not in self.board.channels:
                self.board.add(channel)

    def describe(self, call: AmiCall) -> None:
        """What the switch knows of a call beside its numbers."""
        channel = self.board.channels.get(call.principal)
        if channel is None:
            return
        is_outside = self.rules.is_outside(channel.name, channel.context)
        call.direction = Direction.RECEIVED if is_outside and call.origin is Origin.CALLER else Direction.MADE
        peer = peer_name(channel.name)
        known = (("account", channel.account), ("tenant", call.tenant), ("endpoint", peer), ("context", channel.context))
        call.hints = tuple(f"{kind}:{value}" for kind, value in known if value)
