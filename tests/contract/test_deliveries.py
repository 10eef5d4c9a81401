"""The store's contract: who gets which events, what waits, and how deliveries are settled."""

import asyncio
import random
from datetime import timedelta

import pytest
from tests.contract.conftest import Place
from tests.support.stored_calls import BEGINNING, RECEIVED, URL, change, seconds, settled, whole_call

from toque.callbacks.callback import Callback, Registered
from toque.callbacks.delivery import Delivery, DeliveryState
from toque.calls.model import Status
from toque.store.contract import Store

DELIVERED, DEAD, WAITING = DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.WAITING


async def register(store: Store, url: str = URL, *, client: str = "acme", pin: str | None = None) -> Callback:
    registered = await store.register_callback(client, url, None, pin, limit=100)
    assert isinstance(registered, Registered)
    return registered.callback


async def accept(store: Store, calls: int = 1, *, client: str = "acme", first: int = 0) -> list[Delivery]:
    """Deliveries of the first status of so many calls."""
    changes = [change(Status.INITIATED, call=f"call-{n}", client=client) for n in range(first, first + calls)]
    return (await store.append(changes, [])).deliveries


def places(deliveries: list[Delivery]) -> list[tuple[int, int]]:
    return [(delivery.event.seq, delivery.callback_id) for delivery in deliveries]


# Who gets what


async def test_an_event_goes_to_its_clients_callbacks_for_all_pins_or_its_own(store: Store) -> None:
    everything, mine, other = await register(store), await register(store, pin="1001"), await register(store, pin="1002")
    await register(store, client="outra")
    await register(store, client="outra", pin="1001")
    appended = await store.append([change(Status.INITIATED), change(Status.INITIATED, pin="1002", direction=RECEIVED)], [])
    assert [(d.event.pin, d.callback_id) for d in appended.deliveries] == [
        ("1001", everything.id),
        ("1001", mine.id),
        ("1002", everything.id),
        ("1002", other.id),
    ]
    assert await store.pending() == appended.deliveries


async def test_one_url_registered_twice_gets_an_event_twice(store: Store) -> None:
    both = await register(store), await register(store, pin="1001")
    assert [d.callback_id for d in await accept(store)] == [callback.id for callback in both]


async def test_an_event_that_nobody_wants_is_accepted_all_the_same(store: Store) -> None:
    await register(store, pin="1002")
    appended = await store.append(whole_call(), [])
    assert (appended.events, appended.deliveries) == (4, [])
    assert (await store.append(whole_call(), [])).events == 0
    assert await store.pending() == []


async def test_what_is_registered_later_gets_what_comes_later(store: Store) -> None:
    await accept(store)
    callback = await register(store)
    appended = await store.append([change(Status.INITIATED, call="call-0"), change(Status.RINGING, 1, call="call-0")], [])
    assert [(d.event.sequence, d.callback_id) for d in appended.deliveries] == [(2, callback.id)]


async def test_what_another_store_object_registers_is_heeded(store: Store, place: Place) -> None:
    other = await place.open()
    assert await accept(store) == []
    callback = await register(other)
    await place.agree()
    assert [d.callback_id for d in await accept(store, first=1)] == [callback.id]
    await other.remove_callback("acme", callback.code)
    await place.agree()
    assert await accept(store, first=2) == []


# What waits


async def test_what_waits_comes_in_the_order_of_acceptance(store: Store, place: Place) -> None:
    for n in range(3):
        await register(store, f"{URL}/{n}")
    offered = [delivery for n in range(4) for delivery in await accept(store, 2, first=2 * n)]
    assert len(offered) == 24
    assert places(offered) == sorted(set(places(offered)))
    assert await store.pending() == offered
    assert await (await place.reopen()).pending() == offered


@pytest.mark.parametrize("limit", [1, 2, 5, 24, 100])
async def test_what_waits_can_be_read_page_by_page(store: Store, limit: int) -> None:
    for n in range(3):
        await register(store, f"{URL}/{n}")
    offered = await accept(store, 8)
    read: list[Delivery] = []
    after = (0, 0)
    while page := await store.pending(after=after, limit=limit):
        assert len(page) <= limit
        read += page
        after = (page[-1].event.seq, page[-1].callback_id)
    assert read == offered


async def test_pages_go_on_behind_a_place_that_is_settled_meanwhile(store: Store) -> None:
    await register(store)
    offered = await accept(store, 6)
    await store.settle([settled(delivery) for delivery in offered[:4]])
    assert await store.pending(after=places(offered)[2], limit=10) == offered[4:]
    assert await store.pending(limit=1) == offered[4:5]
    assert await store.pending(after=places(offered)[-1]) == []


# Settling


@pytest.mark.parametrize("state", [DELIVERED, DEAD])
async def test_what_is_settled_waits_no_more(store: Store, place: Place, state: DeliveryState) -> None:
    await register(store)
    one, two = await accept(store, 2)
    await store.settle([settled(one, state, attempts=3)])
    assert await store.pending() == [two]
    assert await (await place.reopen()).pending() == [two]


async def test_what_has_to_be_tried_again_waits_with_its_attempts_and_its_time(store: Store, place: Place) -> None:
    await register(store)
    (delivery,) = await accept(store)
    await store.settle([settled(delivery, WAITING, attempts=2, due_at=seconds(30))])
    await store.settle([settled(delivery, WAITING, attempts=3, due_at=seconds(60.000_001))])
    for again in (place.open, place.reopen):
        (waiting,) = await (await again()).pending()
        assert (waiting.event, waiting.callback_id) == (delivery.event, delivery.callback_id)
        assert (waiting.attempts, waiting.due_at) == (3, seconds(60.000_001))


async def test_one_event_is_settled_for_each_callback_by_itself(store: Store) -> None:
    await register(store)
    await register(store, pin="1001")
    one, two = await accept(store)
    await store.settle([settled(one)])
    assert await store.pending() == [two]


@pytest.mark.parametrize("final", [DELIVERED, DEAD])
@pytest.mark.parametrize("later", DeliveryState)
async def test_a_settled_delivery_is_never_turned_back(store: Store, final: DeliveryState, later: DeliveryState) -> None:
    await register(store)
    (delivery,) = await accept(store)
    due_at = seconds(30) if later is WAITING else None
    await store.settle([settled(delivery, final)])
    await store.settle([settled(delivery, later, attempts=2, due_at=due_at)])
    assert await store.pending() == []


@pytest.mark.parametrize("final", [DELIVERED, DEAD])
@pytest.mark.parametrize("finals_place", [0, 1, 2])
async def test_several_settlements_of_one_delivery_at_once(store: Store, final: DeliveryState, finals_place: int) -> None:
    await register(store)
    delivery, other = await accept(store, 2)
    settlements = [settled(delivery, WAITING, attempts=n + 1, due_at=seconds(n)) for n in range(2)]
    settlements.insert(finals_place, settled(delivery, final, attempts=3))
    await store.settle(settlements)
    assert await store.pending() == [other]


async def test_the_last_of_several_tries_counts(store: Store) -> None:
    await register(store)
    (delivery,) = await accept(store)
    await store.settle([settled(delivery, WAITING, attempts=n, due_at=seconds(n)) for n in (1, 2, 3)])
    (waiting,) = await store.pending()
    assert (waiting.attempts, waiting.due_at) == (3, seconds(3))


async def test_settling_may_be_repeated(store: Store) -> None:
    await register(store)
    offered = await accept(store, 3)
    settlements = [settled(offered[0]), settled(offered[1], DEAD), settled(offered[2], WAITING, due_at=seconds(1))]
    await store.settle(settlements)
    before = await store.pending()
    await store.settle(settlements)
    assert await store.pending() == before
    await store.settle([])


async def test_what_was_removed_meanwhile_is_passed_over(store: Store) -> None:
    gone, stays = await register(store), await register(store, pin="1001")
    offered = await accept(store, 2)
    await store.remove_callback("acme", gone.code)
    await store.settle([settled(delivery) for delivery in offered[:3]])
    await store.settle([settled(offered[0], WAITING, due_at=seconds(1))])
    assert places(await store.pending()) == [(offered[3].event.seq, stays.id)]


# Callbacks that go


async def test_a_removed_callbacks_waiting_deliveries_are_dropped_with_it(store: Store, place: Place) -> None:
    gone, stays = await register(store), await register(store, client="outra")
    await accept(store, 3)
    theirs = await accept(store, 1, client="outra", first=3)
    await store.remove_callback("acme", gone.code)
    assert await store.pending() == theirs
    assert await accept(store, first=4) == []
    assert await (await place.reopen()).pending() == theirs
    assert [d.callback_id for d in theirs] == [stays.id]


async def test_registered_again_it_gets_only_what_comes_then(store: Store) -> None:
    await accept(store)
    gone = await register(store)
    await accept(store, first=1)
    await store.remove_callback("acme", gone.code)
    again = await register(store)
    offered = await accept(store, first=2)
    assert await store.pending() == offered
    assert [d.callback_id for d in offered] == [again.id]


async def test_a_disabled_callbacks_deliveries_are_dead(store: Store, place: Place) -> None:
    gone, stays = await register(store), await register(store, pin="1001")
    offered = await accept(store, 3)
    await store.disable_callback(gone.id, "410 Gone")
    kept = [delivery for delivery in offered if delivery.callback_id == stays.id]
    assert await store.pending() == kept
    await store.settle([settled(delivery, WAITING, due_at=seconds(1)) for delivery in offered if delivery not in kept])
    assert await store.pending() == kept
    assert [d.callback_id for d in await accept(store, first=3)] == [stays.id]
    assert len(await (await place.reopen()).pending()) == 4


async def test_enabled_again_it_gets_only_what_comes_then(store: Store) -> None:
    callback = await register(store)
    await accept(store)
    await store.disable_callback(callback.id, "410 Gone")
    await accept(store, first=1)
    assert (await register(store)).id == callback.id
    offered = await accept(store, first=2)
    assert await store.pending() == offered
    assert len(offered) == 1


async def test_a_rotation_leaves_deliveries_alone(store: Store) -> None:
    callback = await register(store)
    offered = await accept(store, 2)
    await store.rotate_callback(callback.code, keep_old_for=timedelta(hours=1))
    await store.register_callback("acme", URL, "user:new", None, limit=100)
    assert await store.pending() == offered


# At once


async def test_many_append_settle_register_and_read_at_once(store: Store, place: Place) -> None:
    """Each delivery that was offered is settled, or waits, or went with its callback: none is lost and none comes back."""
    stores = [store, await place.open()]
    rng = random.Random(7)
    settled_places: set[tuple[int, int]] = set()
    offered: set[tuple[int, int]] = set()
    removed: set[int] = set()
    await register(store)

    async def tell(n: int) -> None:
        for step in whole_call(f"call-{n}"):
            deliveries = (await rng.choice(stores).append([step], [])).deliveries
            offered.update(places(deliveries))
            chosen = [delivery for delivery in deliveries if rng.random() < 0.5]
            await rng.choice(stores).settle([settled(delivery, rng.choice([DELIVERED, DEAD])) for delivery in chosen])
            settled_places.update(places(chosen))

    async def come_and_go(n: int) -> None:
        callback = await register(rng.choice(stores), f"{URL}/{n}")
        await rng.choice(stores).pending(limit=5)
        await rng.choice(stores).rotate_callback(callback.code, keep_old_for=timedelta(hours=1))
        if n % 2:
            await rng.choice(stores).remove_callback("acme", callback.code)
            removed.add(callback.id)

    await asyncio.gather(*(tell(n) for n in range(40)), *(come_and_go(n) for n in range(20)))
    waiting = places(await store.pending())
    assert set(waiting) == {place for place in offered - settled_places if place[1] not in removed}
    assert waiting == sorted(set(waiting))
    assert places(await (await place.reopen()).pending()) == waiting


async def test_deliveries_say_when_their_event_was_accepted(store: Store, place: Place) -> None:
    await register(store)
    place.clock.advance(5 * 60)
    (delivery,) = await accept(store)
    assert delivery.event.accepted_at == BEGINNING + timedelta(minutes=5)
    assert await store.pending() == [delivery]
