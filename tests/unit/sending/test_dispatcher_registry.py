"""Who is posted to, and with what: the dispatcher goes by the registry."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import pytest
from structlog.testing import capture_logs
from tests.support.clock import START
from tests.support.dispatching import (
    OTHER_SECRET,
    desk,
    make_call,
    make_callback,
    make_delivery,
    registry_of,
)

from toque.callbacks.delivery import DeliveryState
from toque.callbacks.health import State
from toque.sending.transport import Answered


async def test_removed_callback_gets_nothing_after_apply() -> None:
    async with desk(make_callback(1), make_callback(2), callback_concurrency=1) as at:
        deliveries = make_call("a", 3) + make_call("b", 2)
        at.offer([*deliveries, make_delivery("c", callback=2)])
        at.dispatcher.apply(registry_of(make_callback(2)))
        assert at.dispatcher.held() == 2  # the other's, and what is in flight
        at.offer([])
        await at.end(at.posting.of(1)[0])  # in flight when it was removed: ends harmlessly
        assert at.store.of(deliveries[0]).state is DeliveryState.DELIVERED
        await at.pass_time(86_400)
        assert len(at.posting.of(1)) == 1
        await at.end_all()


async def test_removed_callback_that_failed_is_not_tried_again() -> None:
    async with desk() as at:
        at.offer(make_call(events=2))
        await at.end(at.posting.open[0], Answered(500))
        at.dispatcher.apply(registry_of())
        await at.pass_time(86_400)
        assert len(at.posting.attempts) == 1
        assert at.dispatcher.held() == 0


async def test_removed_callback_whose_post_fails_afterwards_is_not_tried_again() -> None:
    async with desk() as at:
        at.offer(make_call(events=2))
        at.dispatcher.apply(registry_of())
        await at.end(at.posting.open[0], Answered(429, "60"))
        await at.pass_time(86_400)
        assert len(at.posting.attempts) == 1


async def test_disabled_callback_is_dropped_once_the_registry_says_so() -> None:
    async with desk() as at:
        at.offer(make_call(events=2))
        gone = registry_of(make_callback(disabled_at=START, disabled_reason="by hand"))
        at.dispatcher.apply(gone)
        await at.end(at.posting.open[0])
        assert len(at.posting.attempts) == 1
        at.dispatcher.apply(gone)
        assert at.dispatcher.held() == 0


async def test_a_callback_that_is_not_known_yet_is_waited_for() -> None:
    async with desk() as at:
        at.offer(make_call("new", 2, callback=9))
        assert at.posting.attempts == []
        at.dispatcher.apply(registry_of(make_callback(1), make_callback(9)))
        await at.end_all()
        assert at.posting.events == ["new.1", "new.2"]


async def test_a_registry_that_was_read_before_the_registration_loses_nothing() -> None:
    """It is read, somebody registers, an event is accepted for the new callback, and only then it is applied."""
    async with desk() as at:
        at.offer(make_call("new", 2, callback=9))
        at.dispatcher.apply(registry_of(make_callback(1)))
        await at.rest()
        assert at.dispatcher.held() == 0
        assert at.store.backlog_of(9) == ["new.1", "new.2"]
        at.dispatcher.apply(registry_of(make_callback(1), make_callback(9)))
        await at.end_all()
        assert at.posting.events == ["new.1", "new.2"]


async def test_a_registry_that_was_read_while_it_was_disabled_loses_nothing() -> None:
    async with desk(make_callback(disabled_at=START, disabled_reason="410 Gone")) as at:
        at.offer(make_call("new", 2))
        at.dispatcher.apply(registry_of(make_callback(disabled_at=START, disabled_reason="410 Gone")))
        await at.rest()
        assert at.dispatcher.held() == 0
        assert at.posting.attempts == []
        at.dispatcher.apply(registry_of(make_callback()))
        await at.end_all()
        assert at.posting.events == ["new.1", "new.2"]


async def test_what_came_just_before_its_callback_was_disabled_is_not_held_for_ever() -> None:
    """As long as it is, the store cannot throw away what is older. No other registry may come for a long time."""
    async with desk() as at:
        at.offer(make_call("last", 1))
        at.posting.open[0].ends(Answered(410))
        at.offer(make_call("later", 1))
        await at.rest()
        at.dispatcher.apply(registry_of(make_callback(disabled_at=START, disabled_reason="410 Gone")))
        await at.rest()
        assert at.dispatcher.held() == 0
        assert at.store.fresh == {}
        assert at.posting.events == ["last.1"]


async def test_a_registry_that_was_read_before_the_disabling_does_not_take_it_back() -> None:
    async with desk() as at:
        at.store.version = 3
        at.offer(make_call("last", 1))
        before = replace(registry_of(make_callback()), version=2)
        await at.end(at.posting.open[0], Answered(410))
        at.dispatcher.apply(before)
        assert at.dispatcher.health_of(1) is State.DISABLED
        at.offer(make_call("later", 1))
        await at.rest()
        assert at.posting.events == ["last.1"]
        at.dispatcher.apply(replace(registry_of(make_callback()), version=4))  # somebody registered it again
        at.offer(make_call("next", 1))
        await at.end_all()
        assert "next.1" in at.posting.events


@pytest.mark.parametrize("is_in_flight", [False, True])
async def test_what_is_offered_after_its_callback_was_removed_is_not_held(is_in_flight: bool) -> None:
    """It was accepted just before. No other registry may come for a long time."""
    async with desk() as at:
        at.offer(make_call("first", 1))
        if not is_in_flight:
            await at.end_all()
        at.store.remove(1)
        at.dispatcher.apply(registry_of())
        at.offer(make_call("second", 2))
        await at.rest()
        assert at.dispatcher.held() == is_in_flight
        assert len(at.store.fresh) == is_in_flight
        await at.end_all()
        assert at.posting.events == ["first.1"]


async def test_what_waits_for_a_callback_that_never_appears_is_forgotten() -> None:
    async with desk() as at:
        at.offer(make_call("gone", 2, callback=9))
        at.dispatcher.apply(registry_of(make_callback(1)))
        at.dispatcher.apply(registry_of(make_callback(1)))
        assert at.dispatcher.held() == 0


async def test_one_lane_stays_one_lane_over_a_removal_and_a_return() -> None:
    """What was in flight all the time goes on; what waited behind it is dead; the call's next event comes after it."""
    async with desk() as at:
        deliveries = make_call(events=2)
        at.offer(deliveries)
        gone = registry_of(make_callback(disabled_at=START, disabled_reason="by hand"))
        at.dispatcher.apply(gone)
        at.dispatcher.apply(gone)
        at.dispatcher.apply(registry_of(make_callback()))
        at.offer([make_delivery(sequence=3)])
        assert at.posting.events == ["call.1"]
        await at.end(at.posting.open[0], Answered(500))
        assert at.posting.events == ["call.1"]
        await at.pass_time(1)
        await at.end_all()
        assert at.posting.events == ["call.1", "call.1", "call.3"]
        assert at.store.of(deliveries[1]).state is DeliveryState.DEAD
        assert at.dispatcher.held() == 0


async def test_new_credentials_and_secrets_count_from_the_next_attempt_on() -> None:
    async with desk() as at:
        at.offer(make_call(events=1))
        at.dispatcher.apply(registry_of(make_callback(credentials="user:word", secrets=(OTHER_SECRET,))))
        before = at.posting.open[0]
        assert "Authorization" not in before.headers
        await at.end(before, Answered(401))
        await at.pass_time(1)
        after = at.posting.open[0]
        assert after.headers["Authorization"] == "Basic " + b64encode(b"user:word").decode()
        assert after.headers["webhook-signature"] != before.headers["webhook-signature"]
        await at.end_all()


async def test_each_attempt_is_signed_anew_with_its_own_time() -> None:
    async with desk() as at:
        at.offer(make_call(events=1))
        await at.end(at.posting.open[0], Answered(500))
        await at.pass_time(1)
        first, second = at.posting.attempts
        assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 1
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        await at.end_all()


async def test_a_callback_that_cannot_be_used_harms_nobody_else() -> None:
    with capture_logs() as logs:
        async with desk(make_callback(1, secrets=("no secret",)), make_callback(2, url="ftp://x/"), make_callback(3)) as at:
            at.offer(make_delivery("call", callback=number) for number in (1, 2, 3))
            assert [attempt.callback for attempt in at.posting.attempts] == [3]
            assert [(log["event"], log["callback"]) for log in logs] == [("callback.unusable", 1), ("callback.unusable", 2)]
            at.dispatcher.apply(registry_of(*map(make_callback, (1, 2, 3))))
            await at.end_all()
            assert {attempt.callback for attempt in at.posting.attempts} == {1, 2, 3}
    assert "no secret" not in str(logs)
