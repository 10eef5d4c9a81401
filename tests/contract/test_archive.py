"""What people ask of a store: a call's events with their deliveries, the calls with a number, what is dead. See `Archive`."""

from datetime import timedelta

import pytest
from tests.contract.conftest import Place
from tests.support.stored_calls import BEGINNING, URL, change, identity, left, seconds, settled, whole_call

from toque.callbacks.callback import Registered
from toque.callbacks.delivery import DeliveryState
from toque.calls.identity import callerid
from toque.calls.model import Status
from toque.store.contract import Archive, PastEvent, Store

FIRST = callerid(identity(), 0)
ORIGIN, DESTINATION = "554130600300", "5511988887777"  # of every call in these tests


@pytest.fixture
async def store(store: Store) -> Store:
    if not isinstance(store, Archive):
        pytest.skip("this engine is no archive yet")
    await registered(store)
    return store


async def registered(store: Store, url: str = URL) -> str:
    answer = await store.register_callback("acme", url, None, None, limit=100)
    assert isinstance(answer, Registered)
    return answer.callback.code


def states(events: list[PastEvent]) -> list[tuple[int, str, str]]:
    """Of each event: its sequence, and how its first delivery stands."""
    return [(event.sequence, event.status.value, event.deliveries[0].state) for event in events]


async def test_a_call_with_all_its_deliveries(store: Store) -> None:
    assert isinstance(store, Archive)
    await store.append(whole_call("another"), [])
    deliveries = (await store.append(whole_call(), [])).deliveries
    for delivery in deliveries:
        delivery.attempts = 1
    await store.settle(deliveries[:1])
    await store.settle([], left(deliveries[1]))
    await store.settle([], [settled(deliveries[2], DeliveryState.DEAD, 3)])
    events = await store.events_of(FIRST)
    assert states(events) == [
        (1, "initiated", "delivered"),
        (2, "ringing", "waiting"),
        (3, "answered", "dead"),
        (4, "hung_up", "on its way"),
    ]
    assert [event.id for event in events] == [delivery.event.id for delivery in deliveries]
    assert events[0].happened_at == seconds(0)
    assert events[2].deliveries[0].attempts == 3
    assert events[2].deliveries[0].outcome == "as the test says"
    assert await store.dead_sizes() == {deliveries[2].callback_id: 1}
    assert await store.events_of(callerid(identity("unknown"), 0)) == []


async def test_after_a_restart_it_is_all_there(place: Place, store: Store) -> None:
    await store.append(whole_call()[:2], [])
    again, _ = await place.restarted()
    assert isinstance(again, Archive)
    assert states(await again.events_of(FIRST)) == [(1, "initiated", "waiting"), (2, "ringing", "waiting")]
    [callback_id] = (await again.registry()).callbacks
    [first] = await again.backlog(callback_id, limit=1)
    await again.settle([first])
    assert states(await again.events_of(FIRST))[0] == (1, "initiated", "delivered")
    assert await again.callerid_of(identity()) == FIRST


async def test_what_a_disabled_callback_took_with_it_is_dead(store: Store) -> None:
    assert isinstance(store, Archive)
    deliveries = (await store.append(whole_call(), [])).deliveries
    await store.settle([], left(*deliveries))
    await store.disable_callback(deliveries[0].callback_id, "by the operator")
    assert {state for _, _, state in states(await store.events_of(FIRST))} == {"dead"}
    assert await store.dead_sizes() == {deliveries[0].callback_id: 4}


async def test_calls_are_found_by_their_numbers(store: Store) -> None:
    assert isinstance(store, Archive)
    for name in ("one", "two", "three"):
        await store.append(whole_call(name), [])
    for number in (ORIGIN, DESTINATION):
        found = await store.events_with([number], since=BEGINNING)
        assert len(found) == 12
        latest = await store.events_with([number, "1001"], since=BEGINNING, most_calls=1)
        assert {event.callerid for event in latest} == {callerid(identity("three"), 0)}
        assert [event.sequence for event in latest] == [1, 2, 3, 4]
    assert await store.events_with(["55413060"], since=BEGINNING) == []  # part of a number is none
    assert await store.events_with([ORIGIN], since=BEGINNING + timedelta(days=1)) == []


async def test_a_name_that_was_used_again_is_the_later_call(store: Store) -> None:
    assert isinstance(store, Archive)
    await store.append(whole_call(), [])
    await store.append([change(Status.INITIATED, 60, began=60)], [])
    assert await store.callerid_of(identity()) == callerid(identity(), 1)
    assert [event.sequence for event in await store.events_of(callerid(identity(), 1))] == [1]
    assert len(await store.events_of(FIRST)) == 4


async def test_when_anything_was_accepted_last(store: Store, place: Place) -> None:
    assert isinstance(store, Archive)
    assert await store.last_accepted_at() is None
    await store.append(whole_call(), [])
    assert await store.last_accepted_at() == place.clock()
