"""From signals to statuses: one state machine for every switch. Its table is `calls/phases.py`, what is known is `calls/call.py`.

The rules of this file:

1. What a phase does with a signal is a row of `STEPS`; a pair without a row changes nothing.
2. Each side is told each status at most once, in the order of a call's life, and nothing after its end.
3. No clock and no chance: `now` is an argument; what must happen later is done by `tick`.
4. Some ends are not believed at once. A challenge or a redirection may be followed up, a called leg may still have to say why it
   ended, and packets overtake each other: the call then stays REFUSED or LEAVING for a short time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Protocol

import msgspec

from toque.calls.call import LEARN, UNKNOWN, Call, SideState, outcome
from toque.calls.causes import is_plain, is_retriable
from toque.calls.lines import LineBook
from toque.calls.model import (
    CallIdentity,
    Direction,
    Owner,
    Party,
    Signal,
    SignalKind,
    Snapshot,
    Status,
    StatusChange,
)
from toque.calls.phases import STEPS, Phase

_ORDER = {Status.INITIATED: 1, Status.RINGING: 2, Status.ANSWERED: 3}
_FINAL_ORDER = 4
_BEGINNINGS = (SignalKind.BEGAN, SignalKind.BEGAN_AGAIN)
_NAMING = frozenset({SignalKind.BEGAN, SignalKind.LEG_BEGAN, SignalKind.CALLER_KNOWN})  # signals that may name a line
_SIGNS_OF_LIFE = (SignalKind.SEEN, SignalKind.NOTED)
_UNDER_WAY = (Phase.CALLING, Phase.RINGING)
_ENDED = Phase.ENDED
_STALE_TICKETS = 10_000  # entries of calls that are gone, before they are thrown out
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


_DECODER = msgspec.msgpack.Decoder(Call)


@dataclass(slots=True)
class Counters:
    """What the tracker has seen since it began."""

    calls: int = 0
    unmatched: int = 0
    inferred: int = 0
    late: int = 0  # signs of life of calls whose end had been concluded
    crowded: int = 0  # calls under way that matched no line, forgotten because there were too many


class Observer(Protocol):
    """Whoever wants to know what the tracker hears and concludes, as it happens. It only looks on, and must not raise."""

    def heard(self, signal: Signal, call: Call | None, now: datetime) -> None:
        """A signal arrived; the call is as it was before it, None when there was none."""

    def told(self, change: StatusChange) -> None:
        """A side is told a status."""

    def ended(self, call: Call, status: Status, at: datetime, now: datetime) -> None:
        """A call's end is decided, whether it has sides or not. The call still has its legs."""


class CallTracker:
    """The calls of one source. Feed it signals, take what became of them."""

    def __init__(self, lines: LineBook, patience: Patience | None = None) -> None:
        self.lines = lines
        self.patience = patience or Patience()
        self.counters = Counters()
        self.observer: Observer | None = None
        self.calls: dict[CallIdentity, Call] = {}
        self._due: list[tuple[datetime, int, CallIdentity]] = []
        self._unscheduled: dict[CallIdentity, datetime] = {}  # calls whose moment in `_due` has changed, and when that was
        self._ticket = count()
        self.changes: list[StatusChange] = []  # since they were taken
        self._dirty: dict[CallIdentity, Call] = {}
        self._unmatched: list[Call] = []
        self._late: dict[CallIdentity, SignalKind] = {}

    # What goes in

    def feed(self, signal: Signal, now: datetime) -> None:
        """Take one signal that arrived at `now` (our clock; `signal.at` is the switch's)."""
        identity, kind = signal.identity, signal.kind
        call = self.calls.get(identity)
        if self.observer is not None:
            self.observer.heard(signal, call, now)
        is_new = call is None or (call.phase is _ENDED and self._begins_again(call, signal))
        if is_new:
            if kind in _SIGNS_OF_LIFE:
                return
            call = self._begin(signal, now)
        assert call is not None  # noqa: S101 - for the type checker
        phase = call.phase
        if phase is _ENDED:
            if call.is_inferred:
                self.counters.late += 1
                self._late[identity] = kind
            return
        call.seen_at = now
        following = STEPS.get((phase, kind))
        if following is None:
            if call.saved_at is not None and now - call.saved_at > self._patience_for(call) / _SAVES_IN_PATIENCE:
                self._dirty[identity] = call
            return
        if call.told_until is None or signal.at > call.told_until:
            call.told_until = signal.at
        LEARN[kind](call, signal)
        if kind in _NAMING and (not is_new or kind is SignalKind.LEG_BEGAN):  # what else names a line did so as the call began
            self._open_sides(call, signal)
        self._enter(call, following, signal, now)
        self._dirty[identity] = call

    def tick(self, now: datetime) -> list[CallIdentity]:
        """Do what has become due; returns the calls that are forgotten from here on."""
        forgotten: list[CallIdentity] = []
        self._arrange()
        if len(self._due) > 2 * len(self.calls) + _STALE_TICKETS:  # mostly of calls that are long forgotten
            self._due = [(call.wakes_at, next(self._ticket), identity) for identity, call in self.calls.items() if call.wakes_at]
            heapify(self._due)
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
            self._arrange()
        return forgotten

    def forget(self, identity: CallIdentity) -> None:
        """Remember nothing of a call any more, whatever its phase. The changes that were not taken yet stay."""
        for known in (self.calls, self._unscheduled, self._dirty, self._late):
            known.pop(identity, None)

    # What comes out

    def touched(self) -> list[Call]:
        """The calls whose state `take` will give, and that are still in progress."""
        return [call for call in self._dirty.values() if call.sides and call.phase is not Phase.ENDED]

    def take(self) -> tuple[list[StatusChange], list[Snapshot]]:
        """The changes since the last call in their order, and the state of every call they touched that has a side."""
        changes, dirty = self.changes, self._dirty
        self.changes, self._dirty = [], {}
        for call in dirty.values():
            call.saved_at = call.seen_at
        snapshots = [
            Snapshot(identity, None if call.phase is Phase.ENDED else call.encode(), call.ended_at)
            for identity, call in dirty.items()
            if call.sides
        ]
        return changes, snapshots

    def waiting(self) -> int:
        """How many changes `take` would give."""
        return len(self.changes)

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
        self._arrange()
        return self._due[0][0] if self._due else None

    # One call's life

    @staticmethod
    def _begins_again(call: Call, signal: Signal) -> bool:
        """A switch uses an identity again; a repetition of the old call's own messages would not be later than its end."""
        return (
            call.phase is _ENDED
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
        maker = self._maker(signal)
        if maker is not None:
            self._open_side(call, maker, Direction.MADE, call.began_at)
        owner = self.lines.owner(signal.dialled)
        if owner is not None:
            self._open_side(call, owner, Direction.RECEIVED, call.began_at)
        if not call.sides:
            self._open_by_hints(call, signal)
        return call

    def _maker(self, signal: Signal) -> Owner | None:
        """Whose line the caller is.

        A call that comes in from outside for one of our lines was not made by another of them, whatever number it shows.
        """
        if signal.direction is Direction.RECEIVED and self.lines.owner(signal.dialled) is not None:
            return None
        for number in signal.callers:
            owner = self.lines.owner(number)
            if owner is not None:
                return owner
        return None

    def _open_by_hints(self, call: Call, signal: Signal) -> None:
        """No number is a line: what else the switch knows of the call may say whose it is."""
        owner = next((owner for hint in signal.hints if (owner := self.lines.owner_of_hint(hint)) is not None), None)
        if owner is not None:
            self._open_side(call, owner, signal.direction or Direction.MADE, call.began_at)

    def _open_sides(self, call: Call, signal: Signal) -> None:
        """A leg reaches a number: its owner has a side too, unless the dialled number gave that client one already.

        The dialled number itself may first be known from a leg's INVITE, which can name another, and the caller's numbers come
        to light one by one. After the answer, nobody is told any more of whom a leg reaches; but a call that was nobody's may
        turn out to be somebody's.
        """
        is_answered = call.phase is Phase.ANSWERED
        if is_answered and (call.sides or signal.kind is not SignalKind.CALLER_KNOWN):
            return
        if signal.kind is SignalKind.CALLER_KNOWN:
            self._open_callers_side(call, signal)
        if is_answered:
            return
        owner = self.lines.owner(signal.number if signal.kind is SignalKind.LEG_BEGAN else signal.dialled)
        if owner is not None and not any(
            side.client_id == owner.client_id and side.direction is Direction.RECEIVED for side in call.sides
        ):
            self._open_side(call, owner, Direction.RECEIVED, signal.at)
            self._tell_new_side(call, call.sides[-1], signal)

    def _open_callers_side(self, call: Call, signal: Signal) -> None:
        if any(side.direction is Direction.MADE for side in call.sides):
            return
        owner = self._maker(signal)
        if owner is not None:
            self._open_side(call, owner, Direction.MADE, call.began_at)
            self._tell_new_side(call, call.sides[-1], signal)

    @staticmethod
    def _open_side(call: Call, owner: Owner, direction: Direction, began_at: datetime | None) -> None:
        call.sides.append(SideState(owner.client_id, owner.pin, direction, began_at))

    def _tell_new_side(self, call: Call, side: SideState, signal: Signal) -> None:
        """Tell it what came first: a leg's ringing may overtake its INVITE, where a switch's workers mirror one each."""
        if call.began_at is not None:
            began_late = signal.kind is SignalKind.CALLER_KNOWN  # whose call it is came to light later than the call
            self._tell(call, side, Status.INITIATED, call.began_at if began_late else signal.at)
        leg = None if signal.leg is None else call.legs.get(signal.leg)
        if (leg is not None and leg.rang) or (signal.kind is SignalKind.CALLER_KNOWN and call.ringing_at is not None):
            self._tell(call, side, Status.RINGING, max(signal.at, call.ringing_at or signal.at))
        if call.answered_at is not None:
            self._tell(call, side, Status.ANSWERED, call.answered_at)

    def _enter(self, call: Call, phase: Phase, signal: Signal, now: datetime) -> None:
        """Go to a phase and do what belongs to it, coming from where the call is."""
        came_from, call.phase = call.phase, phase
        if phase in _UNDER_WAY:
            if call.gave_up or call.decide_at is not None:
                self._expect_refusal(call, now)
            self._progress(call, signal)
        elif phase is Phase.ANSWERED:
            self._answer(call, signal, came_from, now)
        elif phase is _ENDED:
            if signal.kind is SignalKind.VANISHED:
                self._conclude_vanished(call, came_from, signal, now)
            else:
                self._end(call, Status.HUNG_UP, signal.at, now)
        elif phase is Phase.REFUSED:
            self._progress(call, signal)
            self._weigh(call, signal, came_from, now)
        else:
            assert phase is Phase.LEAVING  # noqa: S101
            call.decide_at = now + self.patience.straggler
            self._schedule(call, now)

    def _progress(self, call: Call, signal: Signal) -> None:
        if signal.kind in _BEGINNINGS:
            self._tell_all(call, Status.INITIATED, signal.at)
        elif signal.kind in (SignalKind.RINGING, SignalKind.CALLER_RINGS):
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
        """How long a refusal may turn out to be something else. A switch that has a word for it knows what it means."""
        if call.word is not None:
            return timedelta()
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
            return any(leg.cause in (None, UNKNOWN) for leg in call.legs.values())
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
            self._end(call, outcome(call), at, now)

    def _end(self, call: Call, status: Status, at: datetime, now: datetime) -> None:
        for side in call.sides:
            if side.began_at is not None and side.began_at > at:  # stamps may be out of order
                at = side.began_at
        if not call.is_inferred:
            call.ended_at = at
        self._tell_all(call, status, at)
        if self.observer is not None:
            self.observer.ended(call, status, at, now)
        call.phase = _ENDED
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

    def _conclude_vanished(self, call: Call, came_from: Phase, signal: Signal, now: datetime) -> None:
        if came_from is Phase.REFUSED:
            self._end(call, outcome(call), call.ended_at or signal.at, now)
        elif came_from in (Phase.ANSWERED, Phase.LEAVING):
            self._tell_all(call, Status.ANSWERED, call.ended_at or signal.at)
            self._conclude(call, Status.HUNG_UP, call.ended_at or signal.at, now)
        else:
            self._conclude(call, Status.CANCELLED if call.gave_up else Status.FAILED, call.ended_at or signal.at, now)

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
        change = StatusChange(call.identity, side.side, status, at, call.facts(side))
        self.changes.append(change)
        if self.observer is not None:
            self.observer.told(change)

    # Timing

    def _due_of(self, call: Call) -> datetime:
        if call.decide_at is not None:
            return call.decide_at
        return call.seen_at + self._patience_for(call)

    def _patience_for(self, call: Call) -> timedelta:
        """How long a call stays as it is without a sign of life."""
        phase = call.phase
        if phase is _ENDED:
            return self.patience.concluded if call.is_inferred and call.sides else self.patience.remembered
        return self.patience.answered if phase is Phase.ANSWERED else self.patience.unanswered

    def _schedule(self, call: Call, now: datetime) -> None:
        """See that `tick` looks at the call when it is due. When that is, is worked out once for all that is heard at once."""
        self._unscheduled[call.identity] = now

    def _arrange(self) -> None:
        """Put what was scheduled into the line; before it is due too, lest ended calls wait there for hours."""
        if not self._unscheduled:
            return
        unscheduled, self._unscheduled = self._unscheduled, {}
        for identity, now in unscheduled.items():
            call = self.calls[identity]
            wakes_at = min(self._due_of(call), now + _LONGEST_SLEEP)
            if call.wakes_at is None or wakes_at < call.wakes_at:
                call.wakes_at = wakes_at
                heappush(self._due, (wakes_at, next(self._ticket), identity))
