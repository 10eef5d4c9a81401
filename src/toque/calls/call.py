"""One call: what is known of it, what each signal adds to that, and which word its end has.

Nothing here decides when; that is the tracker's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import lru_cache

import msgspec

from toque.calls.causes import ender_of, word_for, word_of_group
from toque.calls.model import CallFacts, CallIdentity, Cause, Direction, Owner, Party, Side, Signal, SignalKind, Status
from toque.calls.phases import Phase

UNKNOWN = Cause()
_encode = msgspec.msgpack.Encoder().encode
_A_MOMENT = timedelta(milliseconds=50)  # no menu is heard within it, and nobody is called


# Made for every call, and written into snapshots by the names of their members: msgspec's, which takes a third of the time.


class Leg(msgspec.Struct, gc=False):
    """A called leg."""

    number: str = ""
    rang: bool = False
    is_cancelled: bool = False  # by the switch
    cause: Cause | None = None  # set when the leg has ended
    word: Status | None = None  # the switch's own word for that end
    by: Party | None = None  # who ended it, where the switch says so

    @property
    def has_ended(self) -> bool:
        """Whether it was refused, or stopped by the switch."""
        return self.is_cancelled or self.cause is not None


class SideState(msgspec.Struct, gc=False):
    """How far a side has been told."""

    client_id: str
    pin: str
    direction: Direction
    began_at: datetime | None
    told: int = 0

    @property
    def side(self) -> Side:
        """The side itself; the same object for every call of a line, as long as it is called often."""
        return _side(self.client_id, self.pin, self.direction)


@lru_cache(8_192)
def _side(client_id: str, pin: str, direction: Direction) -> Side:
    return Side(Owner(client_id, pin), direction)


class Call(msgspec.Struct, gc=False):
    """One call in progress, or one that ended a short while ago."""

    source: str
    key: str
    caller: str
    dialled: str
    seen_at: datetime  # our own clock: the last sign of life
    phase: Phase = Phase.CALLING
    is_whole: bool = False
    began_at: datetime | None = None
    pbx_answered_at: datetime | None = None
    ringing_at: datetime | None = None
    answered_at: datetime | None = None
    answered_by: str | None = None
    ended_at: datetime | None = None
    gave_up: bool = False
    word: Status | None = None  # the switch's own word for the caller's end
    is_callers_ringing: bool = False  # what rang so far is the caller's own telephone
    legs: dict[str, Leg] = {}  # those that have ended stand in the order of their ends
    cause: Cause | None = None
    hung_up_by: Party | None = None
    is_inferred: bool = False
    sides: list[SideState] = []
    decide_at: datetime | None = None  # our own clock: until when an end is waited over
    told_until: datetime | None = None  # the moment of the latest signal, for an end that is concluded
    saved_at: datetime | None = None  # our own clock: the last sign of life that was stored
    wakes_at: datetime | None = None  # our own clock: when `tick` looks at the call next
    is_counted: bool = False
    reader: bytes = b""  # what the switch's reader wants to remember of this call

    named: CallIdentity | msgspec.UnsetType = msgspec.UNSET  # for `identity`; not written

    @property
    def identity(self) -> CallIdentity:
        """What the switch calls this call."""
        named = self.named
        if named is msgspec.UNSET:
            named = self.named = CallIdentity(self.source, self.key)
        return named

    def encode(self) -> bytes:
        """For a snapshot."""
        self.named = msgspec.UNSET
        return _encode(self)

    def facts(self, side: SideState) -> CallFacts:
        """What is known now, as this side sees it."""
        return CallFacts(  # by position, which takes half the time
            self.caller,
            self.dialled,
            self.answered_by,
            side.began_at,
            self.pbx_answered_at,
            self.ringing_at,
            self.answered_at,
            self.ended_at,
            self.is_whole,
            self.hung_up_by,
            self.cause,
            self.is_inferred,
        )


# How it ended


def outcome(call: Call) -> Status:
    """The word for an unanswered end; leaves its evidence in `call.cause`."""
    root = call.cause or Cause()
    if call.gave_up:
        call.hung_up_by = Party.CALLER
        return Status.CANCELLED
    rang = call.ringing_at is not None
    if root.sip is not None and root.sip >= 600 and call.word is None and not _is_own_refusal(call):
        # It ends every other leg (RFC 3261, 16.7 step 5).
        call.hung_up_by = ender_of(root)
        return word_for(root, rang=rang)
    # Where the caller heard ringing but no leg was seen to ring, any may have.
    all_may_have_rung = rang and not any(leg.rang for leg in call.legs.values())
    ends = [_word_of_leg(leg, root, rang=leg.rang or all_may_have_rung) for leg in call.legs.values() if leg.has_ended]
    word = word_of_group([word for word, _ in ends])
    if word is None:
        call.hung_up_by = call.hung_up_by or ender_of(root)
        return call.word or word_for(root, rang=rang)
    ended = [leg for leg in call.legs.values() if leg.has_ended]
    leg, call.cause = next(
        (leg, cause) for leg, (of_leg, cause) in zip(reversed(ended), reversed(ends), strict=True) if of_leg is word
    )
    stopped = any(leg.is_cancelled for leg in ended)
    call.hung_up_by = leg.by or (Party.NETWORK if word is Status.NO_ANSWER and stopped else ender_of(call.cause))
    return word


def _is_own_refusal(call: Call) -> bool:
    """Whether a 6xx is the switch's own: it let every leg ring, stopped them all, and none had said such a thing."""
    legs = call.legs.values()
    return bool(legs) and all(leg.is_cancelled and (leg.cause is None or (leg.cause.sip or 0) < 600) for leg in legs)


def _word_of_leg(leg: Leg, root: Cause, *, rang: bool) -> tuple[Status, Cause]:
    """The word of a leg that has ended, and its evidence; `root` is what the caller was told.

    A leg that the switch stopped has nothing of its own to say but that it rang out.
    """
    if leg.word is not None:
        return leg.word, leg.cause or UNKNOWN
    own = root if leg.cause in (None, UNKNOWN) else leg.cause
    if not leg.is_cancelled:
        return word_for(own, rang=rang), own
    from_root = word_for(root, rang=rang)
    if not rang or from_root is Status.NO_ANSWER:
        return from_root, root
    return Status.NO_ANSWER, own


# What each signal adds


def _learn_began(call: Call, signal: Signal) -> None:
    call.is_whole = True
    if call.began_at is None or signal.at < call.began_at:
        call.began_at = signal.at
        call.dialled = signal.dialled  # a leg's INVITE, if that came first, may name another
        for side in call.sides:
            side.began_at = side.began_at or signal.at


def _learn_began_again(call: Call, signal: Signal) -> None:
    """What the earlier try came to no longer counts."""
    call.is_whole = True
    call.began_at = call.began_at or signal.at
    call.cause = None
    call.ended_at = None
    call.gave_up = False
    call.word = None
    call.hung_up_by = None
    call.legs.clear()


def _learn_caller_known(call: Call, signal: Signal) -> None:
    call.caller = call.caller or (signal.callers[0] if signal.callers else "")
    call.dialled = call.dialled or signal.dialled


def _learn_caller_rings(call: Call, signal: Signal) -> None:
    if call.ringing_at is None:
        call.ringing_at, call.is_callers_ringing = signal.at, True


def _learn_leg(call: Call, signal: Signal) -> None:
    leg = _leg(call, signal)
    if leg is not None and signal.number:
        leg.number = signal.number


def _learn_ringing(call: Call, signal: Signal) -> None:
    leg = _leg(call, signal)
    if leg is not None:
        leg.rang = True
    if call.ringing_at is None or signal.at < call.ringing_at or call.is_callers_ringing:
        call.ringing_at, call.is_callers_ringing = signal.at, False


def _learn_picked_up(call: Call, signal: Signal) -> None:
    call.pbx_answered_at = call.pbx_answered_at or signal.at


def _learn_answered(call: Call, signal: Signal) -> None:
    if call.phase is Phase.ANSWERED:
        call.answered_by = call.answered_by or signal.number or None
        return
    call.answered_at = signal.at
    call.answered_by = signal.number or None
    if call.pbx_answered_at is not None and signal.at - call.pbx_answered_at < _A_MOMENT:
        call.pbx_answered_at = None  # the switch picked up because the far end had; what it said of both came crosswise
    if call.phase is not Phase.LEAVING:  # a refusal that was waited over is forgotten, a hang-up is not
        call.cause = None
        call.ended_at = None


def _learn_gave_up(call: Call, signal: Signal) -> None:
    if call.phase is Phase.REFUSED and not _is_caused_by_cancel(call, signal):
        return  # it crossed the refusal: the attempt had already failed
    call.gave_up = True
    call.ended_at = call.ended_at or signal.at


def _is_caused_by_cancel(call: Call, signal: Signal) -> bool:
    """A 487 is the answer to a CANCEL, whichever of the two is seen first; what is not yet known may be one."""
    may_be_487 = call.cause is None or call.cause.sip == 487
    return may_be_487 or call.ended_at is None or signal.at <= call.ended_at


def _learn_leg_cancelled(call: Call, signal: Signal) -> None:
    leg = _leg(call, signal)
    if leg is not None and signal.leg is not None and not leg.is_cancelled:
        leg.is_cancelled = True
        call.legs[signal.leg] = call.legs.pop(signal.leg)  # among the legs that have ended, the last one ended last


def _learn_leg_ended(call: Call, signal: Signal) -> None:
    leg = _leg(call, signal)
    if leg is None or leg.cause not in (None, UNKNOWN) or signal.leg is None:
        return
    leg.cause, leg.word, leg.by = signal.cause or UNKNOWN, signal.word, signal.by
    if not leg.is_cancelled:
        call.legs[signal.leg] = call.legs.pop(signal.leg)


def _learn_leg_gone(call: Call, signal: Signal) -> None:
    if signal.leg is not None:
        call.legs.pop(signal.leg, None)


def _learn_connected(call: Call, signal: Signal) -> None:
    call.answered_by = signal.number or call.answered_by


def _learn_refused(call: Call, signal: Signal) -> None:
    if call.phase is Phase.REFUSED and call.cause is not None:
        return
    if call.phase is Phase.LEAVING:
        call.gave_up = True  # hung up, and the attempt was refused for it: nobody had answered
    call.cause, call.word, call.hung_up_by = signal.cause, signal.word, signal.by
    call.ended_at = signal.at


def _learn_hung_up(call: Call, signal: Signal) -> None:
    if call.phase is Phase.REFUSED:  # a BYE may end an early dialog as a CANCEL does (RFC 3261, 15), and its 487 overtake it
        _learn_gave_up(call, signal)
        return
    call.hung_up_by = signal.by
    call.cause = signal.cause
    call.ended_at = signal.at


def _learn_vanished(call: Call, signal: Signal) -> None:
    call.hung_up_by = signal.by


def _learn_nothing(_: Call, __: Signal) -> None:
    return


def _leg(call: Call, signal: Signal) -> Leg | None:
    return None if signal.leg is None else call.legs.setdefault(signal.leg, Leg())


LEARN: Mapping[SignalKind, Callable[[Call, Signal], None]] = {
    SignalKind.BEGAN: _learn_began,
    SignalKind.BEGAN_AGAIN: _learn_began_again,
    SignalKind.CALLER_KNOWN: _learn_caller_known,
    SignalKind.CALLER_RINGS: _learn_caller_rings,
    SignalKind.LEG_BEGAN: _learn_leg,
    SignalKind.RINGING: _learn_ringing,
    SignalKind.PICKED_UP: _learn_picked_up,
    SignalKind.ANSWERED: _learn_answered,
    SignalKind.GAVE_UP: _learn_gave_up,
    SignalKind.LEG_CANCELLED: _learn_leg_cancelled,
    SignalKind.LEG_ENDED: _learn_leg_ended,
    SignalKind.LEG_GONE: _learn_leg_gone,
    SignalKind.REFUSED: _learn_refused,
    SignalKind.CONNECTED: _learn_connected,
    SignalKind.LEG_HUNG_UP: _learn_nothing,
    SignalKind.HUNG_UP: _learn_hung_up,
    SignalKind.VANISHED: _learn_vanished,
    SignalKind.NOTED: _learn_nothing,
    SignalKind.SEEN: _learn_nothing,
}
