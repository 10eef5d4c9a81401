"""A callback's health: every row of the table, what the signs amount to, and the pace of posts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools.state_diagrams import DIAGRAMS, health_diagram

from toque.callbacks.callback import KeptHealth
from toque.callbacks.health import (
    CONVINCING,
    DISABLED_AFTER,
    FAILURES_IN_A_ROW,
    FIRST_PROBE,
    LONGEST_PROBE,
    STEPS,
    Allowance,
    Health,
    Sign,
    State,
)

WALL = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = 5000.0  # on a clock that nobody sets
SECOND, HOUR, DAY = 1.0, 3600.0, 86_400.0
FIVE_DAYS = DISABLED_AFTER.total_seconds()


def brought_to(state: State) -> Health:
    health = Health()
    paths = {
        State.HEALTHY: [],
        State.FAILING: [Sign.TOO_MANY_FAILURES],
        State.PROBING: [Sign.TOO_MANY_FAILURES, Sign.PROBE_DUE],
        State.RECOVERING: [Sign.TOO_MANY_FAILURES, Sign.PROBE_DUE, Sign.SUCCESS],
        State.DISABLED: [Sign.GONE],
    }
    for sign in paths[state]:
        health.note(sign, NOW)
    for _ in range(CONVINCING if state is State.RECOVERING else 0):
        health.note(Sign.SUCCESS, NOW)
    assert health.state is state
    return health


@pytest.mark.parametrize(("pair", "following"), STEPS.items(), ids=str)
def test_every_row_of_the_table_is_taken(pair: tuple[State, Sign], following: State) -> None:
    state, sign = pair
    health = brought_to(state)
    assert health.note(sign, NOW) is (following is not state)
    assert health.state is following


@pytest.mark.parametrize(
    ("state", "sign"), [(state, sign) for state in State for sign in Sign if (state, sign) not in STEPS], ids=str
)
def test_a_pair_without_a_row_changes_nothing(state: State, sign: Sign) -> None:
    health = brought_to(state)
    before = (health.state, health.kept(WALL, NOW), health.probe_wait)
    assert not health.note(sign, NOW)
    assert (health.state, health.kept(WALL, NOW), health.probe_wait) == before


def test_the_diagram_is_that_of_the_table() -> None:
    assert (DIAGRAMS / "health.mmd").read_text(encoding="utf-8") == health_diagram(), "run python tools/state_diagrams.py"


def test_five_failures_in_a_row_are_too_many() -> None:
    health = Health()
    for _ in range(FAILURES_IN_A_ROW - 1):
        assert not health.note(Sign.FAILURE, NOW)
    health.note(Sign.SUCCESS, NOW)
    for _ in range(FAILURES_IN_A_ROW - 1):
        assert not health.note(Sign.FAILURE, NOW)
    assert health.note(Sign.FAILURE, NOW)
    assert health.state is State.FAILING
    assert health.is_parked


def test_one_failure_is_too_many_until_it_has_convinced() -> None:
    health = brought_to(State.PROBING)
    for _ in range(CONVINCING):
        health.note(Sign.SUCCESS, NOW)
    assert health.note(Sign.FAILURE, NOW)
    assert health.state is State.FAILING


def test_after_it_has_convinced_it_takes_five_again() -> None:
    health = brought_to(State.RECOVERING)
    for _ in range(FAILURES_IN_A_ROW - 1):
        assert not health.note(Sign.FAILURE, NOW)
    assert health.note(Sign.FAILURE, NOW)
    assert health.state is State.FAILING


def test_probes_come_ever_more_rarely() -> None:
    health = brought_to(State.FAILING)
    waits = []
    for _ in range(9):
        waits.append(health.probe_wait.total_seconds())
        health.note(Sign.PROBE_DUE, NOW)
        health.note(Sign.FAILURE, NOW)
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert health.probe_wait == LONGEST_PROBE


def test_probes_come_often_again_after_one_that_says_nothing() -> None:
    health = brought_to(State.PROBING)
    health.note(Sign.FAILURE, NOW)
    assert health.probe_wait == 2 * FIRST_PROBE
    health.note(Sign.PROBE_DUE, NOW)
    health.note(Sign.UNDECIDED, NOW)
    assert health.state is State.FAILING
    assert health.probe_wait == FIRST_PROBE


def test_a_flapping_callback_is_not_probed_more_often_for_it() -> None:
    health = brought_to(State.PROBING)
    for sign in (Sign.FAILURE, Sign.PROBE_DUE, Sign.SUCCESS, Sign.FAILURE):
        health.note(sign, NOW)
    assert health.state is State.FAILING
    assert health.probe_wait == 2 * FIRST_PROBE


def test_probes_come_often_again_once_it_has_convinced() -> None:
    health = brought_to(State.PROBING)
    health.note(Sign.FAILURE, NOW)
    health.note(Sign.PROBE_DUE, NOW)
    for _ in range(1 + CONVINCING):
        health.note(Sign.SUCCESS, NOW)
    assert health.probe_wait == FIRST_PROBE


@pytest.mark.parametrize("sign", [Sign.FAILURE, Sign.UNDECIDED])
def test_five_days_of_failing_disable(sign: Sign) -> None:
    health = brought_to(State.PROBING)
    health.note(sign, NOW + FIVE_DAYS - SECOND)
    assert health.state is State.FAILING
    health.note(Sign.PROBE_DUE, NOW + FIVE_DAYS)
    assert health.note(sign, NOW + FIVE_DAYS)
    assert health.state is State.DISABLED


def test_a_success_in_five_days_begins_them_anew() -> None:
    health = brought_to(State.PROBING)
    health.note(Sign.SUCCESS, NOW + 4 * DAY)
    health.note(Sign.FAILURE, NOW + 4 * DAY)
    health.note(Sign.PROBE_DUE, NOW + 8 * DAY)
    health.note(Sign.FAILURE, NOW + 8 * DAY)
    assert health.state is State.FAILING


def test_an_outage_is_kept_as_the_wall_clock_has_it() -> None:
    health = brought_to(State.PROBING)
    assert health.outage_s(NOW + 30) == 30
    assert health.kept(WALL, NOW + 30) == KeptHealth(WALL - timedelta(seconds=30))
    health.note(Sign.SUCCESS, NOW + 40)
    assert health.kept(WALL, NOW + 40) == KeptHealth()
    assert health.outage_s(NOW + HOUR) == 0


def test_an_outage_goes_on_over_a_restart() -> None:
    health = Health.restored(KeptHealth(WALL - timedelta(days=4)), WALL, NOW)
    assert health.state is State.FAILING
    assert health.outage_s(NOW) == 4 * DAY
    assert Health.restored(KeptHealth(), WALL, NOW).state is State.HEALTHY


@pytest.mark.parametrize("since", [timedelta(days=-40), timedelta(days=-17_000), timedelta(days=300)])
def test_a_process_looks_for_itself_for_an_hour_before_it_gives_up(since: timedelta) -> None:
    """The wall clock may be wrong when it starts."""
    health = Health.restored(KeptHealth(WALL + since), WALL, NOW)
    for hours in (0.1, 0.5, 0.99):
        health.note(Sign.PROBE_DUE, NOW + hours * HOUR)
        health.note(Sign.FAILURE, NOW + hours * HOUR)
        assert health.state is State.FAILING
    health.note(Sign.PROBE_DUE, NOW + HOUR)
    health.note(Sign.FAILURE, NOW + HOUR)
    assert health.state is (State.DISABLED if since < timedelta() else State.FAILING)


# How many posts at once


def test_a_quick_receiver_reaches_the_cap_within_a_few_dozen_posts() -> None:
    allowance = Allowance(64)
    assert allowance.posts == 2
    answers = 0
    while allowance.posts < 64:
        allowance.answered(0.02)
        answers += 1
    assert answers <= 64


def test_failures_halve_it_and_it_grows_more_slowly_then() -> None:
    allowance = Allowance(64, at_once=64)
    allowance.failed()
    assert allowance.posts == 32
    for _ in range(32):
        allowance.answered(0.02)
    assert allowance.posts in (32, 33)
    for _ in range(20):
        allowance.failed()
    assert allowance.posts == 1


def test_it_shrinks_while_answers_take_longer_for_being_many() -> None:
    allowance = Allowance(64, at_once=32)
    for _ in range(10):
        allowance.answered(0.02)
    most = allowance.posts
    for _ in range(200):
        allowance.answered(0.2)
    assert allowance.posts < most


def test_who_became_slower_for_good_is_believed_in_the_end() -> None:
    allowance = Allowance(10, at_once=10)
    for _ in range(10):
        allowance.answered(0.02)
    for _ in range(6000):
        allowance.answered(0.2)
    assert allowance.posts == 10


def test_at_the_cap_usual_answers_teach_nothing() -> None:
    allowance = Allowance(4)
    assert allowance.expected_s < 0
    while allowance.posts < 4:
        allowance.answered(0.02)
    assert 0.02 < allowance.expected_s < 0.1


@given(st.lists(st.one_of(st.none(), st.floats(0, 20)), max_size=300), st.integers(1, 100))
def test_it_stays_between_one_and_the_cap(answers: list[float | None], cap: int) -> None:
    allowance = Allowance(cap)
    for took_s in answers:
        if took_s is None:
            allowance.failed()
        else:
            allowance.answered(took_s)
        assert 1 <= allowance.posts <= cap
