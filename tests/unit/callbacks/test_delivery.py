"""What follows from an attempt, and what a Retry-After header asks for."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toque.callbacks.delivery import (
    DEADLINE,
    JITTER,
    RETRIES,
    Delivered,
    Delivery,
    Event,
    GiveUp,
    TryAgain,
    Verdict,
    judge,
    parse_retry_after,
)
from toque.calls.model import Status

ACCEPTED = datetime(2026, 3, 1, 12, tzinfo=UTC)
MIDDLE = 0.5  # chance that changes nothing


def judged(
    status: int | None,
    *,
    attempts: int = 1,
    retry_after: str | None = None,
    since: timedelta = timedelta(),
    chance: float = MIDDLE,
) -> Verdict:
    return judge(status, retry_after, attempts=attempts, age=since, now=ACCEPTED + since, chance=chance)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 226, 299])
@pytest.mark.parametrize("since", [timedelta(), DEADLINE, DEADLINE * 2])
def test_a_2xx_is_a_success_however_late(status: int, since: timedelta) -> None:
    assert judged(status, since=since) == Delivered()


@pytest.mark.parametrize("status", [None, 100, 199, 300, 301, 302, 307, 308, 401, 403, 404, 409, 429, 500, 502, 503, 504, 999])
def test_everything_else_is_tried_again(status: int | None) -> None:
    assert judged(status) == TryAgain(timedelta(seconds=1))


def test_retries_grow_until_they_are_hourly() -> None:
    waits = [judged(500, attempts=n) for n in range(1, 15)]
    seconds = [1, 2, 5, 10, 30, 60, 120, 300, 900, 1800, 3600, 3600, 3600, 3600]
    assert waits == [TryAgain(timedelta(seconds=s)) for s in seconds]


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_chance_moves_a_retry_by_a_tenth_at_most(attempts: int, chance: float) -> None:
    verdict = judged(500, attempts=attempts, chance=chance)
    base = RETRIES[min(attempts, len(RETRIES)) - 1]
    assert isinstance(verdict, TryAgain)
    assert base * (1 - JITTER) <= verdict.wait <= base * (1 + JITTER)


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.9), (0.5, 1.0), (0.75, 1.05)])
def test_chance_is_spread_evenly(chance: float, factor: float) -> None:
    assert judged(500, attempts=6, chance=chance) == TryAgain(timedelta(minutes=1) * factor)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_unwelcome_event_is_tried_three_times(status: int) -> None:
    assert [judged(status, attempts=n) for n in (1, 2)] == [TryAgain(timedelta(seconds=1)), TryAgain(timedelta(seconds=2))]
    for attempts in (3, 4):
        verdict = judged(status, attempts=attempts)
        assert isinstance(verdict, GiveUp)
        assert str(status) in verdict.reason
        assert not verdict.disables_callback


def test_gone_is_for_good_and_for_the_whole_callback() -> None:
    assert judged(410) == GiveUp("410 Gone", disables_callback=True)


@pytest.mark.parametrize("status", [None, 302, 400, 429, 500, 503])
def test_after_a_day_it_is_dead(status: int | None) -> None:
    assert isinstance(judged(status, since=DEADLINE - timedelta(seconds=1)), TryAgain)
    verdict = judged(status, since=DEADLINE, retry_after="10")
    assert isinstance(verdict, GiveUp)
    assert "24" in verdict.reason
    assert not verdict.disables_callback


@pytest.mark.parametrize(("status", "retry_after"), [(500, None), (503, "3000")])
def test_the_last_try_is_at_the_deadline(status: int, retry_after: str | None) -> None:
    verdict = judged(status, attempts=11, retry_after=retry_after, since=DEADLINE - timedelta(minutes=10))
    assert isinstance(verdict, TryAgain)
    assert verdict.wait == timedelta(minutes=10)


@pytest.mark.parametrize("status", [429, 503])
def test_who_asks_to_be_left_alone_is_left_alone_as_a_whole(status: int) -> None:
    assert judged(status, retry_after="120") == TryAgain(timedelta(seconds=120), pauses_callback=True)
    assert judged(status, attempts=9, retry_after="1") == TryAgain(timedelta(seconds=1), pauses_callback=True)
    assert judged(status, retry_after="99999") == TryAgain(timedelta(hours=1), pauses_callback=True)
    assert judged(status, retry_after="0") == TryAgain(timedelta(seconds=1), pauses_callback=True), "a loop otherwise"


@pytest.mark.parametrize("retry_after", [None, "", "soon", "-5"])
@pytest.mark.parametrize("status", [429, 503])
def test_who_asks_for_nothing_readable_is_tried_as_usual(status: int, retry_after: str | None) -> None:
    assert judged(status, retry_after=retry_after) == TryAgain(timedelta(seconds=1))


@pytest.mark.parametrize("status", [301, 404, 500, 502])
def test_retry_after_counts_only_where_it_belongs(status: int) -> None:
    assert judged(status, retry_after="120") == TryAgain(timedelta(seconds=1))


HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("1", SECOND),
        (" 7\t", 7 * SECOND),
        ("3600", HOUR),
        ("3601", HOUR),
        ("0", SECOND),
        ("00000000000000000005", 5 * SECOND),
        ("9" * 5000, HOUR),
        ("Sun, 01 Mar 2026 12:00:30 GMT", 30 * SECOND),
        ("Sunday, 01-Mar-26 12:00:30 GMT", 30 * SECOND),  # the two obsolete forms
        ("Sun Mar  1 12:00:30 2026", 30 * SECOND),
        ("Sun, 01 Mar 2026 09:00:30 -0300", 30 * SECOND),
        ("Sun, 01 Mar 2026 11:59:00 GMT", SECOND),
        ("Mon, 02 Mar 2026 12:00:00 GMT", HOUR),
        ("Fri, 31 Dec 9999 23:59:59 GMT", HOUR),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("+1", None),
        ("٣", None),
        ("²", None),
        ("120 seconds", None),
        ("Sun, 99 Mar 2026 12:00:30 GMT", None),
        ("Sun, 01 Mar 2026 12:00:30 +9999999999999999999999", None),
        ("\0", None),
    ],
)
def test_what_retry_after_asks_for(text: str, wait: timedelta | None) -> None:
    assert parse_retry_after(text, ACCEPTED) == wait


@given(st.datetimes(datetime(2026, 3, 1, 12, 0, 1), datetime(2026, 3, 1, 13)))
def test_a_date_means_until_then(moment: datetime) -> None:
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    assert parse_retry_after(format_datetime(moment, usegmt=True), ACCEPTED) == moment - ACCEPTED


PIECES = ["Mon", "Sun,", "06", "Nov", "31", "1994", "9999", "0000", "08:49:37", "99:99:99", "GMT", "+9999", "-2359", "-0000", "EST",
          ":", "/", "-", ",", "(", ")", '"', "1", " "]  # fmt: skip


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=10).map(" ".join)))
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example("Mon, 01 Jan 0001 00:00:00 +2359")
def test_any_text_is_a_wait_or_nothing(text: str) -> None:
    wait = parse_retry_after(text, ACCEPTED)
    assert wait is None or SECOND <= wait <= HOUR


def test_one_lane_for_each_side() -> None:
    def lane(call: str = "call", direction: str = "made", pin: str = "1001") -> object:
        event = Event(1, "id", "acme", call, direction, pin, Status.RINGING, 1, ACCEPTED, "{}")
        return Delivery(event, 1).lane

    assert lane() == lane()
    assert len({lane(), lane(call="other"), lane(direction="received"), lane(pin="1002")}) == 4


def test_an_event_is_not_changed_once_it_is_made() -> None:
    event = Event(1, "id", "acme", "call", "made", "1001", Status.RINGING, 1, ACCEPTED, "{}")
    with pytest.raises(AttributeError):
        event.seq = 2  # type: ignore[misc]
