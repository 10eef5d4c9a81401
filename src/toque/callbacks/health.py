"""A callback's health: when its deliveries wait in the store, when it is tried again, and how many posts it gets at once.

The rules of this file:

1. What happens to a callback is a `Sign`; what follows is a row of `STEPS`. A pair without a row changes nothing.
2. An outage is the callback's, not a delivery's: while a callback is FAILING its deliveries stay in the store and burn no attempts.
   One probe at a time goes out, 5 s apart at first, 5 min apart at last.
3. A callback that answers again gets its backlog in order, few posts at once at first (RECOVERING), until nothing waits.
4. Five days of failing, or the receiver's own 410, disable it. Only people enable it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

FAILURES_IN_A_ROW = 5
FIRST_PROBE = timedelta(seconds=5)
LONGEST_PROBE = timedelta(minutes=5)
DISABLED_AFTER = timedelta(days=5)


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
    TOO_MANY_FAILURES = "too_many_failures"  # the fifth failure in a row
    PROBE_DUE = "probe_due"
    DRAINED = "drained"  # nothing waits for it any more
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


@dataclass(slots=True)
class Health:
    """One callback's state and what leads to the next. `failing_since` is what the store keeps."""

    state: State = State.HEALTHY
    failures: int = 0  # in a row
    failing_since: datetime | None = None
    probe_wait: timedelta = FIRST_PROBE

    @property
    def is_parked(self) -> bool:
        """Whether its deliveries wait in the store."""
        return self.state in PARKED

    def note(self, sign: Sign, now: datetime) -> bool:
        """Take a sign; whether the state changed."""
        if sign is Sign.FAILURE:
            sign = self._weighed(now)
        elif sign is Sign.SUCCESS:
            self.failures = 0
        following = STEPS.get((self.state, sign))
        if following is None:
            return False
        came_from, self.state = self.state, following
        self._enter(came_from, following, now)
        return came_from is not following

    def _weighed(self, now: datetime) -> Sign:
        """What one more failure amounts to."""
        self.failures += 1
        if self.failing_since is not None and now - self.failing_since >= DISABLED_AFTER:
            return Sign.GIVEN_UP
        # One that has just begun to answer again is taken at its word less patiently.
        limit = FAILURES_IN_A_ROW if self.state is State.HEALTHY else 1
        return (
            Sign.TOO_MANY_FAILURES if self.failures >= limit and self.state in (State.HEALTHY, State.RECOVERING) else Sign.FAILURE
        )

    def _enter(self, came_from: State, state: State, now: datetime) -> None:
        match state:
            case State.FAILING:
                self.failing_since = self.failing_since or now
                if came_from is State.PROBING:
                    self.probe_wait = min(self.probe_wait * 2, LONGEST_PROBE)
            case State.RECOVERING if came_from is not State.RECOVERING:
                self.failures = 0
                if came_from is State.DISABLED:
                    self.failing_since, self.probe_wait = None, FIRST_PROBE
            case State.HEALTHY:
                self.failing_since, self.probe_wait = None, FIRST_PROBE
            case _:
                pass


@dataclass(slots=True)
class Allowance:
    """How many posts one callback gets at once: few at first, more while its answers stay quick, half after a failure.

    Additive growth and multiplicative shrinking, as TCP shares a path that it does not know.
    """

    cap: int
    at_once: float = 2.0
    base_s: float = 0.0  # the usual time to answer, in seconds, when it is not crowded
    usual_s: float = 0.0  # the same of late

    @property
    def posts(self) -> int:
        """Posts that may be under way."""
        return max(1, min(int(self.at_once), self.cap))

    def answered(self, took_s: float) -> None:
        """A post was answered well after this many seconds."""
        self.usual_s += (took_s - self.usual_s) * 0.1 if self.usual_s else took_s
        self.base_s = min(self.base_s * 1.001, self.usual_s) if self.base_s else self.usual_s
        if self.usual_s <= 2 * self.base_s + 0.005:
            self.at_once = min(self.at_once + 1 / self.at_once, float(self.cap))
        elif self.at_once > 1:
            self.at_once = max(1.0, self.at_once - 1 / self.at_once)

    def failed(self) -> None:
        """A post failed or was asked to wait."""
        self.at_once = max(1.0, self.at_once / 2)
