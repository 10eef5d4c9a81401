"""A callback's health: when its deliveries wait in the store, when it is tried again, and how many posts it gets at once.

The rules of this file (docs/guarantees.md, "Health", tells them to operators):

1. What happens to a callback is a `Sign`; what follows is a row of `STEPS`. A pair without a row changes nothing.
2. An outage is the callback's, not a delivery's: while it is parked its deliveries stay in the store and burn no attempts.
   One probe at a time goes out, 5 s apart at first, 5 min apart at last.
3. A callback that answers again gets its backlog in order, few posts at once at first (RECOVERING), until nothing waits. Until
   it has convinced with ten successes, one failure is enough to park it again.
4. What says nothing about the callback (a refusal of one event, a wait that was asked for, a post that we could not send) is
   no failure. As a probe's outcome it is UNDECIDED: the next probe follows soon.
5. Five days of failing, or the receiver's own 410, disable it. Only people enable it again.

docs/diagrams/health.mmd is drawn from the table by tools/state_diagrams.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from toque.callbacks.callback import KeptHealth

FAILURES_IN_A_ROW = 5
CONVINCING = 10  # successes after an outage, after which one failure is a failure like any other
FIRST_PROBE = timedelta(seconds=5)
LONGEST_PROBE = timedelta(minutes=5)
DISABLED_AFTER = timedelta(days=5)
LEAST_LOOK = timedelta(hours=1)  # by one process, before it disables a callback


class State(StrEnum):
    """How a callback stands."""

    HEALTHY = "healthy"
    FAILING = "failing"
    PROBING = "probing"  # failing, with a probe under way
    RECOVERING = "recovering"
    DISABLED = "disabled"


class Sign(StrEnum):
    """What can happen to a callback."""

    SUCCESS = "success"  # a 2xx
    FAILURE = "failure"  # an attempt that says something about the callback; refusals of one event do not
    TOO_MANY_FAILURES = "too_many_failures"  # the fifth in a row, one soon after an outage, or too many deliveries that are late
    PROBE_DUE = "probe_due"
    UNDECIDED = "undecided"  # a probe that says nothing about the callback
    DRAINED = "drained"  # nothing waits for it in the store any more
    GONE = "gone"  # 410
    GIVEN_UP = "given_up"  # it failed for five days
    ENABLED = "enabled"  # by people, or by registering the URL again


STEPS: Mapping[tuple[State, Sign], State] = {
    (State.HEALTHY, Sign.SUCCESS): State.HEALTHY,
    (State.HEALTHY, Sign.FAILURE): State.HEALTHY,
    (State.HEALTHY, Sign.TOO_MANY_FAILURES): State.FAILING,
    (State.HEALTHY, Sign.GONE): State.DISABLED,
    (State.FAILING, Sign.SUCCESS): State.RECOVERING,  # of an attempt that began before it failed
    (State.FAILING, Sign.FAILURE): State.FAILING,
    (State.FAILING, Sign.PROBE_DUE): State.PROBING,
    (State.FAILING, Sign.GONE): State.DISABLED,
    (State.FAILING, Sign.GIVEN_UP): State.DISABLED,
    (State.PROBING, Sign.SUCCESS): State.RECOVERING,
    (State.PROBING, Sign.FAILURE): State.FAILING,
    (State.PROBING, Sign.UNDECIDED): State.FAILING,
    (State.PROBING, Sign.GONE): State.DISABLED,
    (State.PROBING, Sign.GIVEN_UP): State.DISABLED,
    (State.RECOVERING, Sign.SUCCESS): State.RECOVERING,
    (State.RECOVERING, Sign.FAILURE): State.RECOVERING,
    (State.RECOVERING, Sign.TOO_MANY_FAILURES): State.FAILING,
    (State.RECOVERING, Sign.DRAINED): State.HEALTHY,
    (State.RECOVERING, Sign.GONE): State.DISABLED,
    (State.DISABLED, Sign.ENABLED): State.RECOVERING,
}

PARKED = frozenset({State.FAILING, State.PROBING, State.DISABLED})
_FRUITLESS = frozenset({Sign.FAILURE, Sign.UNDECIDED})


@dataclass(slots=True)
class Health:
    """One callback's state and what leads to the next. Times are seconds on a clock that nobody sets."""

    state: State = State.HEALTHY
    failures: int = 0  # in a row
    successes: int = 0  # since it recovers
    failing_from_s: float | None = None  # None: it is not
    probe_wait: timedelta = FIRST_PROBE

    @classmethod
    def restored(cls, kept: KeptHealth, now: datetime, now_s: float) -> Health:
        """Go on where an earlier process was: an outage goes on being one, with a probe soon.

        How long it lasts already is the wall clock's word. It may be wrong just now, so this process looks for itself as well,
        for an hour at least, before it gives the callback up.
        """
        if kept.failing_since is None:
            return cls()
        outage = min(now - kept.failing_since, DISABLED_AFTER - LEAST_LOOK)
        return cls(State.FAILING, failing_from_s=now_s - max(0.0, outage.total_seconds()))

    @property
    def is_parked(self) -> bool:
        """Whether its deliveries wait in the store."""
        return self.state in PARKED

    def kept(self, now: datetime, now_s: float) -> KeptHealth:
        """What the store keeps of it."""
        return KeptHealth(None if self.failing_from_s is None else now - timedelta(seconds=self.outage_s(now_s)))

    def outage_s(self, now_s: float) -> float:
        """For how many seconds it has been failing."""
        return 0.0 if self.failing_from_s is None else now_s - self.failing_from_s

    def note(self, sign: Sign, now_s: float) -> bool:
        """Take a sign; whether the state changed."""
        following = STEPS.get((self.state, self._weighed(sign, now_s)))
        if following is None:
            return False
        came_from, self.state = self.state, following
        if came_from is not following:
            self._enter(came_from, sign, now_s)
        return came_from is not following

    def _weighed(self, sign: Sign, now_s: float) -> Sign:
        """What a sign amounts to after those before it."""
        if sign is Sign.SUCCESS:
            self._count_success()
        elif sign is Sign.FAILURE:
            self.failures += 1
            if self._is_too_many():
                return Sign.TOO_MANY_FAILURES
        if sign in _FRUITLESS and self.is_parked and self.outage_s(now_s) >= DISABLED_AFTER.total_seconds():
            return Sign.GIVEN_UP
        return sign

    def _count_success(self) -> None:
        self.failures = 0
        if self.state is State.RECOVERING:
            self.successes += 1
            if self.successes == CONVINCING:
                self.probe_wait = FIRST_PROBE

    def _is_too_many(self) -> bool:
        match self.state:
            case State.HEALTHY:
                return self.failures >= FAILURES_IN_A_ROW
            case State.RECOVERING:
                return self.failures >= FAILURES_IN_A_ROW or self.successes < CONVINCING
            case _:
                return False

    def _enter(self, came_from: State, sign: Sign, now_s: float) -> None:
        match self.state:
            case State.FAILING if came_from is State.PROBING:
                self.probe_wait = FIRST_PROBE if sign is Sign.UNDECIDED else min(self.probe_wait * 2, LONGEST_PROBE)
            case State.FAILING:
                self.failing_from_s = now_s
            case State.RECOVERING:
                self.failures = self.successes = 0
                self.failing_from_s = None
            case State.HEALTHY:
                self.probe_wait = FIRST_PROBE
            case _:
                pass


_CROWDED = 2.0  # times the usual: from here on an answer takes long because too much is asked at once
_CROWDED_S = 0.005  # and by this much, in seconds, lest the quickest receivers count as slow
_SHARE_OF_NEW = 0.1  # of each answer's time in the mean
_FORGETTING = 1.001  # by which the usual time creeps up, so that a receiver that became slower for good is believed


@dataclass(slots=True)
class Allowance:
    """How many posts one callback gets at once: few at first, more while its answers stay quick, half after a failure.

    Growth is quick until the first set-back and additive from then on, shrinking is by half, as TCP shares a path that it does
    not know (RFC 5681, 3.1).
    """

    cap: int
    at_once: float = 2.0
    usual_s: float = 0.0  # what an answer takes when it is not crowded
    lately_s: float = 0.0  # what it took of late
    is_new: bool = True  # no set-back yet

    @property
    def posts(self) -> int:
        """Posts that may be under way."""
        return max(1, min(int(self.at_once), self.cap))

    @property
    def expected_s(self) -> float:
        """Answers that take up to this long teach nothing: it is as good as it gets. Negative while more posts may be tried."""
        return _CROWDED * self.usual_s + _CROWDED_S if self.at_once >= self.cap else -1.0

    def answered(self, took_s: float) -> None:
        """A post was answered well after this many seconds."""
        self.lately_s += (took_s - self.lately_s) * _SHARE_OF_NEW if self.lately_s else took_s
        self.usual_s = min(self.usual_s * _FORGETTING, self.lately_s) if self.usual_s else self.lately_s
        if self.lately_s <= _CROWDED * self.usual_s + _CROWDED_S:
            self.at_once = min(self.at_once + (1.0 if self.is_new else 1 / self.at_once), float(self.cap))
        else:
            self.is_new = False
            self.at_once = max(1.0, self.at_once - 1 / self.at_once)

    def failed(self) -> None:
        """A post failed or was asked to wait."""
        self.is_new = False
        self.at_once = max(1.0, self.at_once / 2)
