"""Which SIP calls are legs of another one.

A back-to-back user agent (Asterisk, FreeSWITCH, many SBCs) ends the caller's SIP call and begins others on its behalf, each with
a Call-ID of its own. HEP does not say which belong together, so this is concluded, from evidence that must all be there:

1. The INVITE has one Via: its sender is no proxy that passes a request on.
2. It is sent by whom a call in progress was sent to: from the same address and port; or from the same host, by the same software
   (User-Agent) that said `100 Trying` to the caller, which no proxy passes on: a switch may call out from another port.
3. Both have the same caller, who is not the called telephone itself, or the same dialled number, or one was diverted from the
   other's dialled number (RFC 5806). While a call's leg is up and asks for no transfer, only one that agrees in both is another.
4. Whoever owns a line among the leg's numbers is told of the call, or will be for the leg's sake (`sip_kinship.py`).
5. That is so for one call only. A call that already reaches the number is passed over; one that agrees in both numbers is
   preferred, then one whose owners are the leg's, and of those one that reaches nobody yet. Where several are still as likely,
   none is taken, and the INVITE is a call of its own.

A leg that was joined only informs: its answer says who answered, its refusal why the call failed. What the caller is told
decides. An attended transfer (a REFER whose Refer-To has a Replaces) connects the caller with whom the consultation reached, once
the consultation has ended without its leg.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec

from toque.calls.model import CallIdentity, Signal, SignalKind
from toque.calls.sip import SipMessage
from toque.calls.sip_dialogs import SipDialogs
from toque.calls.sip_kinship import Kinship
from toque.calls.sip_received import MOST_LEGS, Reached, Received, compared

_K = SignalKind
_OVER = (_K.REFUSED, _K.HUNG_UP, _K.GAVE_UP)
_SAYS = {  # what a leg's own signal says of the whole call
    _K.BEGAN_AGAIN: (_K.LEG_GONE, _K.LEG_BEGAN),
    _K.RINGING: (_K.RINGING,),
    _K.GAVE_UP: (_K.LEG_CANCELLED,),
    _K.REFUSED: (_K.LEG_ENDED,),
    _K.HUNG_UP: (_K.NOTED,),
    _K.SEEN: (_K.SEEN,),
}
_MOST_CANDIDATES = 64  # calls with one number; where more have it, it says nothing
_MOST_ORPHANS = 10_000  # legs that outlive their call, after an attended transfer: nothing of them is told
_REPEATED = timedelta(seconds=64)  # after a leg's end; SIP repeats itself for 32 s (64 times T1)
_MAP_MARKS = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})  # how a dialog alone begins, as versions before this one stored it


class _Kept(msgspec.Struct, array_like=True):
    """A call as it is stored: its own dialog, and those of its legs."""

    dialog: bytes
    received: Received | None
    legs: dict[str, bytes]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Kept)


Likeness = tuple[bool, Kinship, bool]


class Judge(Protocol):
    """Whoever knows the owners of calls and numbers: how those of a leg's numbers stand to a call."""

    def __call__(self, identity: CallIdentity, callers: Iterable[str], number: str, *, is_called: bool) -> Kinship:
        """`is_called` is whether the call dialled that number too."""


class SipLegs:
    """The dialogs of one source, those that are legs joined to the calls that they are made for."""

    def __init__(self, source: str, dialogs: SipDialogs, kinship: Judge) -> None:
        self.source = source
        self.dialogs = dialogs
        self._kinship = kinship
        self._received: dict[str, Received] = {}
        self._whole_of: dict[str, str] = {}  # the call that a leg belongs to, by their dialogs' keys
        self._orphans: dict[str, None] = {}  # legs that go on after their call was forgotten, the oldest first
        self._ended_orphans: dict[str, datetime] = {}  # which of those have ended, and when
        self._by_number: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        """How many calls and legs are remembered."""
        return len(self._received) + len(self._whole_of) + len(self._orphans)

    # Memory

    def forget(self, identity: CallIdentity) -> None:
        """Drop what is remembered of a call and its legs, save of those that go on."""
        self.dialogs.forget(identity)
        received = self._received.pop(identity.key, None)
        if received is None:
            return
        for number in _numbers_of(received):
            self._unlist(number, identity.key)
        for key, leg in received.legs.items():
            self._whole_of.pop(key, None)
            if leg.is_over:
                self.dialogs.forget(CallIdentity(self.source, key))
            else:
                self._orphan(key)

    def export(self, identity: CallIdentity) -> bytes:
        """What `restore` needs to go on with this call."""
        received = self._received.get(identity.key)
        legs = {} if received is None else {key: self._state_of(key) for key in received.legs}
        return _ENCODER.encode(_Kept(self.dialogs.export(identity), received, legs))

    def restore(self, state: bytes) -> None:
        """Go on with a call. Raises `msgspec.DecodeError` for bytes that `export` did not give."""
        if not state or state[0] in _MAP_MARKS:
            self.dialogs.restore(state)
            return
        kept = _DECODER.decode(state)
        key = self.dialogs.restore(kept.dialog)
        if kept.received is None or not key:
            return
        self._list(key, kept.received)
        for leg, dialog in kept.legs.items():
            self.dialogs.restore(dialog)
            self._whole_of[leg] = key

    def _state_of(self, key: str) -> bytes:
        return self.dialogs.export(CallIdentity(self.source, key))

    def _orphan(self, key: str) -> None:
        self._orphans[key] = None
        if len(self._orphans) > _MOST_ORPHANS:
            self._drop_orphan(next(iter(self._orphans)))

    def _drop_orphan(self, key: str) -> None:
        del self._orphans[key]
        self._ended_orphans.pop(key, None)
        self.dialogs.forget(CallIdentity(self.source, key))

    def _sweep(self, at: datetime) -> None:
        """Drop the orphans of whose end no repetition can come any more; each hop of a BYE that is mirrored is one."""
        while self._ended_orphans:
            key, ended_at = next(iter(self._ended_orphans.items()))
            if at - ended_at < _REPEATED:
                return
            self._drop_orphan(key)

    def _list(self, key: str, received: Received) -> None:
        self._received[key] = received
        for number in _numbers_of(received):
            self._by_number.setdefault(number, {})[key] = None

    def _unlist(self, number: str, key: str) -> None:
        listed = self._by_number.get(number, {})
        listed.pop(key, None)
        if not listed:
            self._by_number.pop(number, None)

    # Reading

    def read(self, message: SipMessage, at: datetime, source: str, destination: str) -> Sequence[Signal]:
        """The signals that one message gives, those of legs told of the call that they belong to."""
        if self._ended_orphans:
            self._sweep(at)
        signals = self.dialogs.read(message, at, source, destination)
        if message.method == "REFER" and message.is_request:
            self._note_transfer(message)
        if not signals:
            return signals
        if len(signals) == 1:
            return tuple(self._told(signals[0], message, source, destination))
        return [told for signal in signals for told in self._told(signal, message, source, destination)]

    def _told(self, signal: Signal, message: SipMessage, source: str, destination: str) -> Iterable[Signal]:
        key = signal.identity.key
        whole = self._whole_of.get(key)
        if whole is not None:
            return self._of_leg(key, whole, signal)
        if key in self._orphans:
            if signal.kind in (_K.REFUSED, _K.HUNG_UP):
                self._ended_orphans.setdefault(key, signal.at)
            return ()
        received = self._received.get(key)
        if received is None:
            if signal.kind is _K.SEEN:
                return (signal,)
            if signal.kind is _K.BEGAN and message.is_request:
                found = self._find(message, source)
                if found is not None:
                    return self._join(key, found, signal, message)
            received = Received(signal.callers, signal.dialled)
            self._list(key, received)
        self._note(received, signal, message, source, destination)
        transferred = self._received.get(received.consults_for) if signal.kind is _K.HUNG_UP and signal.leg is None else None
        if transferred is None or not received.reached:
            return (signal,)
        number = received.reached
        return (signal, self._signal(received.consults_for, transferred, _K.CONNECTED, signal.at, number=number))

    def _note(self, received: Received, signal: Signal, message: SipMessage, source: str, destination: str) -> None:
        """Remember what legs of this call can be recognised by, and say who answered it."""
        if message.method == "INVITE" and message.is_request and not message.to_tag and destination not in received.addresses:
            received.addresses.append(destination)
            del received.addresses[MOST_LEGS:]
        if message.status == 100 and received.addresses and source == received.addresses[0]:
            received.agent = message.agent
        if signal.leg is not None:
            return
        if signal.kind is _K.ANSWERED:
            received.is_answered, received.is_over = True, False
            signal.number = signal.number or received.reached
        elif signal.kind is _K.BEGAN_AGAIN:
            received.is_over = False
        elif signal.kind in _OVER:
            received.is_over = True

    def _note_transfer(self, message: SipMessage) -> None:
        """A REFER inside a call or a leg of it: that leg leaves. It may name another call by its Call-ID and tags."""
        keys = [f"{message.call_id} {tag}" for tag in (message.from_tag, message.to_tag)]
        wholes = [self._whole_of.get(key, key) for key in keys]
        whole = next((key for key in wholes if key in self._received), "")
        for leg in (self._received[whole].legs.get(key) for key in keys if whole):
            if leg is not None:
                leg.is_leaving = True
        call_id, *tags = message.replaces or ("",)
        for consultation in (self._received.get(f"{call_id} {tag}") for tag in tags):
            if consultation is not None:
                consultation.consults_for = whole

    # Joining

    def _find(self, message: SipMessage, source: str) -> str | None:
        """The one call that this INVITE is a leg of."""
        if len(message.branches) > 1:
            return None
        numbers = (message.request_user or message.to_user, message.diverted_user, message.from_user, *message.asserted_users)
        keys = {key for name in {compared(number) for number in numbers} - {""} for key in self._with_number(name)}
        sent = [key for key in keys if self._received[key].may_have_sent(message, source)]  # hardly any, so it is asked first
        fitting = [(likeness, key) for key in sent if (likeness := self._likeness(key, message)) is not None]
        return _the_likeliest(fitting)

    def _likeness(self, key: str, message: SipMessage) -> Likeness | None:
        """How likely this INVITE, by whom that call was sent to, is a leg of it; None if it is none."""
        received = self._received[key]
        number, callers = message.request_user or message.to_user, (message.from_user, *message.asserted_users)
        is_caller = received.is_called_by(callers)
        is_dialled = compared(number) == compared(received.dialled) != ""
        is_called = is_dialled or compared(message.diverted_user) == compared(received.dialled) != ""
        if not received.takes_leg(number, is_caller, is_called):
            return None
        kinship = self._kinship(CallIdentity(self.source, key), callers, number, is_called=is_dialled)
        is_likelier = kinship is Kinship.TOLD and received.is_waiting  # a guess that tells nobody of what is not theirs
        return None if kinship is Kinship.NONE else (is_called and is_caller, kinship, is_likelier)

    def _with_number(self, number: str) -> Iterable[str]:
        keys = self._by_number.get(number, {})
        return keys if len(keys) <= _MOST_CANDIDATES else ()

    def _join(self, key: str, whole: str, signal: Signal, message: SipMessage) -> Iterator[Signal]:
        received = self._received[whole]
        number = message.request_user or message.to_user
        received.legs[key] = Reached(number)
        self._whole_of[key] = whole
        known = {"", *(compared(user) for user in received.callers)}
        if compared(number) == compared(received.dialled) and not known.issuperset(map(compared, signal.callers)):
            # The switch shows another number of the caller's than the telephone does.
            yield self._signal(whole, received, _K.CALLER_KNOWN, signal.at, callers=signal.callers)
        yield self._signal(whole, received, _K.LEG_BEGAN, signal.at, leg=key, number=number)

    def _of_leg(self, key: str, whole: str, signal: Signal) -> Iterator[Signal]:
        """What a leg's own signal says of the whole call."""
        if signal.leg is not None:
            return  # hops behind the leg
        received = self._received[whole]
        leg = received.legs[key]
        for kind in self._follow(received, leg, signal.kind):
            yield self._signal(whole, received, kind, signal.at, leg=key, number=leg.number, cause=signal.cause)

    @staticmethod
    def _follow(received: Received, leg: Reached, kind: SignalKind) -> tuple[SignalKind, ...]:
        said = _SAYS.get(kind, ())
        if kind is _K.ANSWERED:
            said = (_K.SEEN,) if leg.is_up else (_K.CONNECTED,) if received.is_answered else (_K.NOTED,)
        if kind in (_K.ANSWERED, _K.BEGAN_AGAIN, _K.REFUSED, _K.HUNG_UP):
            leg.is_up, leg.is_over = kind is _K.ANSWERED, kind in (_K.REFUSED, _K.HUNG_UP)
        return said

    def _signal(self, whole: str, received: Received, kind: SignalKind, at: datetime, **parts: Any) -> Signal:
        callers = parts.pop("callers", received.callers)
        return Signal(CallIdentity(self.source, whole), kind, at, callers=callers, dialled=received.dialled, **parts)


def _numbers_of(received: Received) -> set[str]:
    return {compared(number) for number in (*received.callers, received.dialled)} - {""}


def _the_likeliest(fitting: list[tuple[Likeness, str]]) -> str | None:
    """The call that agrees in more than every other."""
    best = max((likeness for likeness, _ in fitting), default=None)
    keys = [key for likeness, key in fitting if likeness == best]
    return keys[0] if len(keys) == 1 else None
