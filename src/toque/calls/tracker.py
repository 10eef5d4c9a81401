"""From signals to statuses: one state machine for every switch.

The rules of this file:

1. What a phase does with a signal is a row of `STEPS`; a pair without a row changes nothing.
2. Each side is told each status at most once, in the order of a call's life, and nothing after its end.
3. No clock and no chance: `now` is an argument; what must happen later is done by `tick`.
4. Some ends are not believed at once. A challenge or a redirection may be followed up, a called leg may still have to say why it
   ended, and packets overtake each other: the call then stays REFUSED or LEAVING for a short time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from heapq import heappop, heappush
from itertools import count

import msgspec

from toque.calls.causes import ender_of, is_plain, is_retriable, word_for, word_of_group
from toque.calls.lines import LineBook
from toque.calls.model import (
    CallFacts,
    CallIdentity,
    Cause,
    Direction,
    Owner,
    Party,
    Side,
    Signal,
    SignalKind,
    Snapshot,
    Status,
    StatusChange,
)


class Phase(StrEnum):
    """Where a call is."""

    CALLING = "calling"
    RINGING = "ringing"
    ANSWERED = "answered"
    REFUSED = "refused"  # the caller was told that it failed; a follow-up or a better reason may come
    LEAVING = "leaving"  # somebody hung up before an answer was seen; it may have been overtaken
    ENDED = "ended"  # told; remembered so that late repetitions begin nothing


_K = SignalKind
STEPS: Mapping[tuple[Phase, SignalKind], Phase] = {
    (Phase.CALLING, _K.BEGAN): Phase.CALLING,
    (Phase.CALLING, _K.BEGAN_AGAIN): Phase.CALLING,
    (Phase.CALLING, _K.LEG_BEGAN): Phase.CALLING,
    (Phase.CALLING, _K.RINGING): Phase.RINGING,
    (Phase.CALLING, _K.PICKED_UP): Phase.CALLING,
    (Phase.CALLING, _K.ANSWERED): Phase.ANSWERED,
    (Phase.CALLING, _K.GAVE_UP): Phase.CALLING,
    (Phase.CALLING, _K.LEG_CANCELLED): Phase.CALLING,
    (Phase.CALLING, _K.LEG_ENDED): Phase.CALLING,
    (Phase.CALLING, _K.REFUSED): Phase.REFUSED,
    (Phase.CALLING, _K.HUNG_UP): Phase.LEAVING,
    (Phase.RINGING, _K.BEGAN): Phase.RINGING,
    (Phase.RINGING, _K.BEGAN_AGAIN): Phase.CALLING,
    (Phase.RINGING, _K.LEG_BEGAN): Phase.RINGING,
    (Phase.RINGING, _K.RINGING): Phase.RINGING,
    (Phase.RINGING, _K.PICKED_UP): Phase.RINGING,
    (Phase.RINGING, _K.ANSWERED): Phase.ANSWERED,
    (Phase.RINGING, _K.GAVE_UP): Phase.RINGING,
    (Phase.RINGING, _K.LEG_CANCELLED): Phase.RINGING,
    (Phase.RINGING, _K.LEG_ENDED): Phase.RINGING,
    (Phase.RINGING, _K.REFUSED): Phase.REFUSED,
    (Phase.RINGING, _K.HUNG_UP): Phase.LEAVING,
    (Phase.REFUSED, _K.BEGAN): Phase.REFUSED,
    (Phase.REFUSED, _K.BEGAN_AGAIN): Phase.CALLING,
    (Phase.REFUSED, _K.LEG_BEGAN): Phase.REFUSED,
    (Phase.REFUSED, _K.RINGING): Phase.REFUSED,
    (Phase.REFUSED, _K.ANSWERED): Phase.ANSWERED,
    (Phase.REFUSED, _K.GAVE_UP): Phase.REFUSED,
    (Phase.REFUSED, _K.LEG_CANCELLED): Phase.REFUSED,
    (Phase.REFUSED, _K.LEG_ENDED): Phase.REFUSED,
    (Phase.REFUSED, _K.REFUSED): Phase.REFUSED,
    (Phase.REFUSED, _K.HUNG_UP): Phase.REFUSED,
    (Phase.LEAVING, _K.ANSWERED): Phase.ANSWERED,
    (Phase.LEAVING, _K.REFUSED): Phase.REFUSED,
    (Phase.ANSWERED, _K.BEGAN): Phase.ANSWERED,
    (Phase.ANSWERED, _K.LEG_BEGAN): Phase.ANSWERED,
    (Phase.ANSWERED, _K.ANSWERED): Phase.ANSWERED,
    (Phase.ANSWERED, _K.LEG_HUNG_UP): Phase.ANSWERED,
    (Phase.ANSWERED, _K.HUNG_UP): Phase.ENDED,
}

_ORDER = {Status.INITIATED: 1, Status.RINGING: 2, Status.ANSWERED: 3}
_FINAL_ORDER = 4
_UNKNOWN = Cause()
_BEGINNINGS = (SignalKind.BEGAN, SignalKind.BEGAN_AGAIN)
_LONGEST_SLEEP = timedelta(minutes=5)
_SAVES_IN_PATIENCE = 8  # a call that only shows signs of life is stored so often while it is waited for


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what."""

    answered: timedelta = timedelta(hours=4)  # no sign of life from an answered call: its end was missed
    unanswered: timedelta = timedelta(minutes=10)  # no sign of life before an answer (RFC 3261's timer C is 3 minutes)
    follow_up: timedelta = timedelta(seconds=5)  # for another INVITE after a challenge or a redirection
    straggler: timedelta = timedelta(milliseconds=500)  # for what other workers of a switch mirrored late
    cancelled: timedelta = timedelta(seconds=32)  # for the refusal that a CANCEL brings about (64 times T1, RFC 3261 9.1)
    remembered: timedelta = timedelta(minutes=5)  # an ended call; SIP repeats itself for 32 s at most (64 times T1)
    concluded: timedelta = timedelta(hours=24)  # an ended call that somebody was told about by conclusion: it may yet go on


@dataclass(slots=True)
class Leg:
    """A called leg."""

    number: str = ""
    rang: bool = False
    is_cancelled: bool = False  # by the switch
    cause: Cause | None = None  # set when the leg has ended

    @property
    def has_ended(self) -> bool:
        """Whether it was refused, or stopped by the switch."""
        return self.is_cancelled or self.cause is not None


@dataclass(slots=True)
class SideState:
    """How far a side has been told."""

    client_id: str
    pin: str
    direction: Direction
    began_at: datetime | None
    told: int = 0

    @property
    def side(self) -> Side:
        """The side itself."""
        return Side(Owner(self.client_id, self.pin), self.direction)


@dataclass(slots=True)
class Call:
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
    legs: dict[str, Leg] = field(default_factory=dict)  # those that have ended stand in the order of their ends
    cause: Cause | None = None
    hung_up_by: Party | None = None
    is_inferred: bool = False
    sides: list[SideState] = field(default_factory=list)
    decide_at: datetime | None = None  # our own clock: until when an end is waited over
    told_until: datetime | None = None  # the moment of the latest signal, for an end that is concluded
    saved_at: datetime | None = None  # our own clock: the last sign of life that was stored
    wakes_at: datetime | None = None  # our own clock: when `tick` looks at the call next
    is_counted: bool = False
    reader: bytes = b""  # what the switch's reader wants to remember of this call

    @property
    def identity(self) -> CallIdentity:
        """What the switch calls this call."""
        return CallIdentity(self.source, self.key)

    def facts(self, side: SideState) -> CallFacts:
        """What is known now, as this side sees it."""
        return CallFacts(
            caller=self.caller,
            dialled=self.dialled,
            answered_by=self.answered_by,
            began_at=side.began_at,
            pbx_answered_at=self.pbx_answered_at,
            ringing_at=self.ringing_at,
            answered_at=self.answered_at,
            ended_at=self.ended_at,
            is_whole=self.is_whole,
            hung_up_by=self.hung_up_by,
            cause=self.cause,
            is_inferred=self.is_inferred,
        )


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Call)


@dataclass(slots=True)
class Counters:
    """What the tracker has seen since it began."""

    calls: int = 0
    unmatched: int = 0
    inferred: int = 0
    late: int = 0  # signs of life of calls whose end had been concluded


class CallTracker:
    """The calls of one source. Feed it signals, take what became of them."""

    def __init__(self, lines: LineBook, patience: Patience | None = None) -> None:
        self.lines = lines
        self.patience = patience or Patience()
        self.counters = Counters()
        self.calls: dict[CallIdentity, Call] = {}
        self._due: list[tuple[datetime, int, CallIdentity]] = []
        self._ticket = count()
        self._changes: list[StatusChange] = []
        self._dirty: dict[CallIdentity, Call] = {}
        self._unmatched: list[Call] = []
        self._late: dict[CallIdentity, SignalKind] = {}

    # What goes in

    def feed(self, signal: Signal, now: datetime) -> None:
        """Take one signal that arrived at `now` (our clock; `signal.at` is the switch's)."""
        call = self.calls.get(signal.identity)
        if call is None or self._begins_again(call, signal):
            if signal.kind is SignalKind.SEEN:
                return
            call = self._begin(signal, now)
        if call.phase is Phase.ENDED:
            if call.is_inferred:
                self.counters.late += 1
                self._late[call.identity] = signal.kind
            return
        call.seen_at = now
        following = STEPS.get((call.phase, signal.kind))
        if following is None:
            if call.saved_at is not None and now - call.saved_at > self._patience_for(call) / _SAVES_IN_PATIENCE:
                self._dirty[call.identity] = call
            return
        if call.told_until is None or signal.at > call.told_until:
            call.told_until = signal.at
        _LEARN[signal.kind](call, signal)
        self._open_sides(call, signal)
        self._enter(call, following, signal, now)
        self._dirty[call.identity] = call

    def tick(self, now: datetime) -> list[CallIdentity]:
        """Do what has become due; returns the calls that are forgotten from here on."""
        forgotten: list[CallIdentity] = []
        while self._due and self._due[0][0] <= now:
            wakes_at, _, identity = heappop(self._due)
            call = self.calls.get(identity)
            if call is None or call.wakes_at != wakes_at:
                continue  # it has been put off, or brought forward
            call.wakes_at = None
            if self._due_of(call) > now:
                self._schedule(call, now)
            elif call.phase is Phase.ENDED:
                del self.calls[identity]
                self._late.pop(identity, None)
                forgotten.append(identity)
            elif call.decide_at is not None:
                self._decide(call, now)
            else:
                self._conclude_stale(call, now)
        return forgotten

    # What comes out

    def touched(self) -> list[Call]:
        """The calls whose state `take` will give, and that are still in progress."""
        return [call for call in self._dirty.values() if call.sides and call.phase is not Phase.ENDED]

    def take(self) -> tuple[list[StatusChange], list[Snapshot]]:
        """The changes since the last call in their order, and the state of every call they touched that has a side."""
        changes, dirty = self._changes, self._dirty
        self._changes, self._dirty = [], {}
        for call in dirty.values():
            call.saved_at = call.seen_at
        snapshots = [
            Snapshot(identity, None if call.phase is Phase.ENDED else _ENCODER.encode(call), call.ended_at)
            for identity, call in dirty.items()
            if call.sides
        ]
        return changes, snapshots

    def waiting(self) -> int:
        """How many changes `take` would give."""
        return len(self._changes)

    def take_unmatched(self) -> list[Call]:
        """The calls that ended without ever matching a line, since the last call."""
        unmatched, self._unmatched = self._unmatched, []
        return unmatched

    def take_late(self) -> dict[CallIdentity, SignalKind]:
        """The calls that showed a sign of life after their end had been concluded, since the last call, and the last sign."""
        late, self._late = self._late, {}
        return late

    def restore(self, state: bytes, now: datetime) -> Call:
        """Go on with a call as a snapshot left it. Raises `msgspec.DecodeError` for bytes that are no snapshot."""
        call = _DECODER.decode(state)
        call.seen_at, call.wakes_at = min(call.seen_at, now), None
        self.calls[call.identity] = call
        self._schedule(call, now)
        return call

    def next_due(self) -> datetime | None:
        """When `tick` has something to do at the earliest."""
        return self._due[0][0] if self._due else None

    # One call's life

    @staticmethod
    def _begins_again(call: Call, signal: Signal) -> bool:
        """A switch uses an identity again; a repetition of the old call's own messages would not be later than its end."""
        return (
            call.phase is Phase.ENDED
            and signal.kind is SignalKind.BEGAN_AGAIN
            and call.ended_at is not None
            and signal.at > call.ended_at
        )

    def _begin(self, signal: Signal, now: datetime) -> Call:
        is_whole = signal.kind in _BEGINNINGS
        call = Call(
            source=signal.identity.source,
            key=signal.identity.key,
            caller=signal.callers[0] if signal.callers else "",
            dialled=signal.dialled,
            seen_at=now,
            is_whole=is_whole,
            began_at=signal.at if is_whole else None,
        )
        self.calls[signal.identity] = call
        self.counters.calls += 1
        self._schedule(call, now)
        for number in signal.callers:
            owner = self.lines.owner(number)
            if owner is not None:
                self._open_side(call, owner, Direction.MADE, call.began_at)
                break
        owner = self.lines.owner(signal.dialled)
        if owner is not None:
            self._open_side(call, owner, Direction.RECEIVED, call.began_at)
        return call

    def _open_sides(self, call: Call, signal: Signal) -> None:
        """A leg reaches a number: its owner has a side too, unless the dialled number gave that client one already.

        The dialled number itself may first be known from a leg's INVITE, which can name another.
        """
        if call.phase is Phase.ANSWERED or signal.kind not in (SignalKind.BEGAN, SignalKind.LEG_BEGAN):
            return
        owner = self.lines.owner(signal.number if signal.kind is SignalKind.LEG_BEGAN else signal.dialled)
        if owner is not None and not any(
            side.client_id == owner.client_id and side.direction is Direction.RECEIVED for side in call.sides
        ):
            self._open_side(call, owner, Direction.RECEIVED, signal.at)
            self._tell_new_side(call, call.sides[-1], signal.at)

    @staticmethod
    def _open_side(call: Call, owner: Owner, direction: Direction, began_at: datetime | None) -> None:
        call.sides.append(SideState(owner.client_id, owner.pin, direction, began_at))

    def _tell_new_side(self, call: Call, side: SideState, at: datetime) -> None:
        if call.began_at is not None:
            self._tell(call, side, Status.INITIATED, at)

    def _enter(self, call: Call, phase: Phase, signal: Signal, now: datetime) -> None:
        """Go to a phase and do what belongs to it, coming from where the call is."""
        came_from, call.phase = call.phase, phase
        match phase:
            case Phase.CALLING | Phase.RINGING:
                self._expect_refusal(call, now)
                self._progress(call, signal)
            case Phase.ANSWERED:
                self._answer(call, signal, came_from, now)
            case Phase.REFUSED:
                self._progress(call, signal)
                self._weigh(call, signal, came_from, now)
            case Phase.LEAVING:
                call.decide_at = now + self.patience.straggler
                self._schedule(call, now)
            case Phase.ENDED:
                self._end(call, Status.HUNG_UP, signal.at, now)

    def _progress(self, call: Call, signal: Signal) -> None:
        if signal.kind in _BEGINNINGS:
            self._tell_all(call, Status.INITIATED, signal.at)
        elif signal.kind is SignalKind.RINGING:
            self._tell_all(call, Status.RINGING, signal.at)

    def _answer(self, call: Call, signal: Signal, came_from: Phase, now: datetime) -> None:
        call.decide_at = None
        if came_from is Phase.ANSWERED:
            return
        self._tell_all(call, Status.ANSWERED, signal.at)
        self._schedule(call, now)
        if came_from is Phase.LEAVING:
            self._end(call, Status.HUNG_UP, call.ended_at or signal.at, now)

    def _expect_refusal(self, call: Call, now: datetime) -> None:
        """After the caller gave up, the switch has a while to say so to everyone; its answer may also be lost."""
        if call.gave_up:
            call.decide_at = call.decide_at or now + self.patience.cancelled
            self._schedule(call, now)
        else:
            call.decide_at = None

    def _wait_for(self, call: Call) -> timedelta:
        """How long a refusal may turn out to be something else."""
        if call.cause is None:  # only its ACK was seen
            retriable = any(is_retriable(leg.cause.sip) for leg in call.legs.values() if leg.cause is not None)
            return self.patience.follow_up if retriable else self.patience.straggler
        if call.gave_up:
            return timedelta()
        if is_retriable(call.cause.sip):
            return self.patience.follow_up
        # 487 says that the request was cancelled: by the caller, if its CANCEL turns up.
        if call.cause.sip == 487 or not call.is_whole or self._may_be_explained(call):
            return self.patience.straggler
        return timedelta()

    @staticmethod
    def _may_be_explained(call: Call) -> bool:
        """Whether a called leg may still say why the caller was refused."""
        if call.legs:
            return any(leg.cause in (None, _UNKNOWN) for leg in call.legs.values())
        return call.cause is not None and not is_plain(call.cause.sip)

    def _weigh(self, call: Call, signal: Signal, came_from: Phase, now: datetime) -> None:
        """Decide on a refusal, or wait. Once its cause is known, what comes meanwhile makes the wait shorter, never longer."""
        until = now + self._wait_for(call)
        is_explained_now = signal.kind is SignalKind.REFUSED and call.cause is not None and call.cause is signal.cause
        if came_from is Phase.REFUSED and call.decide_at is not None and not is_explained_now:
            until = min(until, call.decide_at)
        call.decide_at = until
        if until <= now:
            self._decide(call, now)
        else:
            self._schedule(call, now)

    def _decide(self, call: Call, now: datetime) -> None:
        at = call.ended_at or call.told_until or now
        if call.phase in (Phase.CALLING, Phase.RINGING):
            self._conclude(call, Status.CANCELLED, at, now)
        elif call.phase is Phase.LEAVING:
            # Nobody hangs up an unanswered call with BYE; its answer was lost on the way to us.
            self._tell_all(call, Status.ANSWERED, at)
            self._end(call, Status.HUNG_UP, at, now)
        else:
            self._end(call, self._outcome(call), at, now)

    @staticmethod
    def _outcome(call: Call) -> Status:
        """The word for an unanswered end; leaves its evidence in `call.cause`."""
        root = call.cause or Cause()
        if call.gave_up:
            call.hung_up_by = Party.CALLER
            return Status.CANCELLED
        rang = call.ringing_at is not None
        if root.sip is not None and root.sip >= 600:  # a global failure ends every other leg (RFC 3261, 16.7 step 5)
            call.hung_up_by = ender_of(root)
            return word_for(root, rang=rang)
        # Where the caller heard ringing but no leg was seen to ring, any may have.
        all_may_have_rung = rang and not any(leg.rang for leg in call.legs.values())
        ends = [_word_of_leg(leg, root, rang=leg.rang or all_may_have_rung) for leg in call.legs.values() if leg.has_ended]
        word = word_of_group([word for word, _ in ends])
        if word is None:
            call.hung_up_by = ender_of(root)
            return word_for(root, rang=rang)
        call.cause = next(cause for of_leg, cause in reversed(ends) if of_leg is word)
        stopped = any(leg.is_cancelled for leg in call.legs.values())
        call.hung_up_by = Party.NETWORK if word is Status.NO_ANSWER and stopped else ender_of(call.cause)
        return word

    def _end(self, call: Call, status: Status, at: datetime, now: datetime) -> None:
        at = max([at, *(side.began_at for side in call.sides if side.began_at is not None)])  # stamps may be out of order
        if not call.is_inferred:
            call.ended_at = at
        self._tell_all(call, status, at)
        call.phase = Phase.ENDED
        call.decide_at = None
        call.ended_at = at
        call.seen_at = now
        call.legs.clear()
        call.reader = b""
        if not call.sides and not call.is_counted:
            call.is_counted = True
            self.counters.unmatched += 1
            self._unmatched.append(call)
        self._dirty[call.identity] = call
        self._schedule(call, now)

    def _conclude_stale(self, call: Call, now: datetime) -> None:
        was_answered = call.phase is Phase.ANSWERED
        self._conclude(call, Status.HUNG_UP if was_answered else Status.FAILED, now, now)

    def _conclude(self, call: Call, status: Status, at: datetime, now: datetime) -> None:
        """The end was missed: every side is told one, marked as inferred."""
        call.is_inferred = True
        if call.gave_up:
            call.hung_up_by = Party.CALLER
        self.counters.inferred += 1
        self._end(call, status, at, now)

    # Telling

    def _tell_all(self, call: Call, status: Status, at: datetime) -> None:
        for side in call.sides:
            self._tell(call, side, status, at)

    def _tell(self, call: Call, side: SideState, status: Status, at: datetime) -> None:
        order = _ORDER.get(status, _FINAL_ORDER)
        if order <= side.told:
            return
        side.told = order
        self._changes.append(StatusChange(call.identity, side.side, status, at, call.facts(side)))

    # Timing

    def _due_of(self, call: Call) -> datetime:
        if call.decide_at is not None:
            return call.decide_at
        return call.seen_at + self._patience_for(call)

    def _patience_for(self, call: Call) -> timedelta:
        """How long a call stays as it is without a sign of life."""
        match call.phase:
            case Phase.ENDED:
                return self.patience.concluded if call.is_inferred and call.sides else self.patience.remembered
            case Phase.ANSWERED:
                return self.patience.answered
            case _:
                return self.patience.unanswered

    def _schedule(self, call: Call, now: datetime) -> None:
        """See that `tick` looks at the call when it is due; before that too, lest ended calls wait here for hours."""
        wakes_at = min(self._due_of(call), now + _LONGEST_SLEEP)
        if call.wakes_at is None or wakes_at < call.wakes_at:
            call.wakes_at = wakes_at
            heappush(self._due, (wakes_at, next(self._ticket), call.identity))


def _word_of_leg(leg: Leg, root: Cause, *, rang: bool) -> tuple[Status, Cause]:
    """The word of a leg that has ended, and its evidence; `root` is what the caller was told.

    A leg that the switch stopped has nothing of its own to say but that it rang out.
    """
    own = root if leg.cause in (None, _UNKNOWN) else leg.cause
    if not leg.is_cancelled:
        return word_for(own, rang=rang), own
    from_root = word_for(root, rang=rang)
    if not rang or from_root is Status.NO_ANSWER:
        return from_root, root
    return Status.NO_ANSWER, own


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
    call.legs.clear()


def _learn_leg(call: Call, signal: Signal) -> None:
    leg = _leg(call, signal)
    if leg is not None and signal.number:
        leg.number = signal.number


def _learn_ringing(call: Call, signal: Signal) -> None:
    leg = _leg(call, signal)
    if leg is not None:
        leg.rang = True
    if call.ringing_at is None or signal.at < call.ringing_at:
        call.ringing_at = signal.at


def _learn_picked_up(call: Call, signal: Signal) -> None:
    call.pbx_answered_at = call.pbx_answered_at or signal.at


def _learn_answered(call: Call, signal: Signal) -> None:
    if call.phase is Phase.ANSWERED:
        call.answered_by = call.answered_by or signal.number or None
        return
    call.answered_at = signal.at
    call.answered_by = signal.number or None
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
    if leg is None or leg.cause not in (None, _UNKNOWN) or signal.leg is None:
        return
    leg.cause = signal.cause or _UNKNOWN
    if not leg.is_cancelled:
        call.legs[signal.leg] = call.legs.pop(signal.leg)


def _learn_refused(call: Call, signal: Signal) -> None:
    if call.phase is Phase.REFUSED and call.cause is not None:
        return
    if call.phase is Phase.LEAVING:
        call.gave_up = True  # hung up, and the attempt was refused for it: nobody had answered
    call.cause = signal.cause
    call.ended_at = signal.at


def _learn_hung_up(call: Call, signal: Signal) -> None:
    if call.phase is Phase.REFUSED:  # a BYE may end an early dialog as a CANCEL does (RFC 3261, 15), and its 487 overtake it
        _learn_gave_up(call, signal)
        return
    call.hung_up_by = signal.by
    call.cause = signal.cause
    call.ended_at = signal.at


def _learn_nothing(_: Call, __: Signal) -> None:
    return


def _leg(call: Call, signal: Signal) -> Leg | None:
    return None if signal.leg is None else call.legs.setdefault(signal.leg, Leg())


_LEARN: Mapping[SignalKind, Callable[[Call, Signal], None]] = {
    SignalKind.BEGAN: _learn_began,
    SignalKind.BEGAN_AGAIN: _learn_began_again,
    SignalKind.LEG_BEGAN: _learn_leg,
    SignalKind.RINGING: _learn_ringing,
    SignalKind.PICKED_UP: _learn_picked_up,
    SignalKind.ANSWERED: _learn_answered,
    SignalKind.GAVE_UP: _learn_gave_up,
    SignalKind.LEG_CANCELLED: _learn_leg_cancelled,
    SignalKind.LEG_ENDED: _learn_leg_ended,
    SignalKind.REFUSED: _learn_refused,
    SignalKind.LEG_HUNG_UP: _learn_nothing,
    SignalKind.HUNG_UP: _learn_hung_up,
    SignalKind.SEEN: _learn_nothing,
}
