"""The store's contract: who gets which events, how deliveries are settled, and what waits."""

import asyncio
import random
from datetime import timedelta

import pytest
from tests.contract.conftest import Place, tidy, waiting
from tests.support.stored_calls import BEGINNING, RECEIVED, URL, change, left, seconds, settled, whole_call

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


def said(deliveries: list[Delivery]) -> list[tuple[object, ...]]:
    """All that the world sees of deliveries."""
    return [(d.event, d.callback_id, d.attempts, d.due_at, d.age_s) for d in deliveries]


async def dead(store: Store, callback: Callback) -> list[int]:
    """The seqs of a callback's dead deliveries."""
    return [found.delivery.event.seq for found in await store.dead(callback.id)]


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


async def test_one_url_registered_twice_gets_an_event_twice(store: Store) -> None:
    both = await register(store), await register(store, pin="1001")
    assert [d.callback_id for d in await accept(store)] == [callback.id for callback in both]


async def test_an_event_that_nobody_wants_is_accepted_all_the_same(store: Store, place: Place) -> None:
    await register(store, pin="1002")
    appended = await store.append(whole_call(), [])
    assert (appended.events, appended.deliveries) == (4, [])
    assert (await store.append(whole_call(), [])).events == 0
    assert (await place.restarted())[1] == []


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


async def test_deliveries_say_when_their_event_was_accepted(store: Store, place: Place) -> None:
    await register(store)
    place.clock.advance(5 * 60)
    (delivery,) = await accept(store)
    assert delivery.event.accepted_at == BEGINNING + timedelta(minutes=5)


async def test_a_fresh_delivery_has_no_place(store: Store) -> None:
    callback = await register(store)
    (delivery,) = await accept(store)
    assert (delivery.row, delivery.attempts, delivery.due_at, delivery.age_s) == (0, 0, None, 0.0)
    assert await store.backlog(callback.id) == []


# The backlog


async def test_what_is_left_to_the_store_waits_in_the_order_in_which_it_was_left(store: Store, place: Place) -> None:
    callbacks = [await register(store, f"{URL}/{n}") for n in range(3)]
    offered = [delivery for n in range(4) for delivery in await accept(store, 2, first=2 * n)]
    mixed = random.Random(5).sample(offered, len(offered))
    await store.settle([], left(*mixed[:10]))
    await store.settle([], left(*mixed[10:]))
    expected = {callback.id: said([d for d in mixed if d.callback_id == callback.id]) for callback in callbacks}
    for again in (place.open, place.reopen):
        found = await waiting(await again())
        assert {number: said(deliveries) for number, deliveries in found.items()} == expected
    rows = dict(zip(places(offered), [d.row for d in offered], strict=True))
    assert rows == {(d.event.seq, d.callback_id): d.row for page in found.values() for d in page}
    assert 0 not in rows.values()


@pytest.mark.parametrize("limit", [1, 2, 5, 24, 100])
async def test_a_backlog_can_be_read_page_by_page(store: Store, limit: int) -> None:
    callback = await register(store)
    offered = await accept(store, 24)
    await store.settle([], left(*offered))
    read: list[Delivery] = []
    pages = 0
    while page := await store.backlog(callback.id, after=read[-1].row if read else 0, limit=limit):
        assert len(page) == min(limit, 24 - len(read))
        read += page
        pages += 1
    assert said(read) == said(offered)
    assert pages == -(-24 // limit)


async def test_pages_go_on_behind_a_place_that_is_settled_meanwhile(store: Store) -> None:
    callback = await register(store)
    offered = await accept(store, 6)
    await store.settle([], left(*offered))
    await store.settle(offered[:4])
    assert places(await store.backlog(callback.id, after=offered[2].row, limit=10)) == places(offered[4:])
    assert places(await store.backlog(callback.id, limit=1)) == places(offered[4:5])
    assert await store.backlog(callback.id, after=offered[-1].row) == []


async def test_what_has_to_be_tried_again_waits_with_its_attempts_and_its_time(store: Store, place: Place) -> None:
    callback = await register(store)
    one, two = await accept(store, 2)
    one.age_s = 12.5
    await store.settle([], [settled(one, WAITING, attempts=2, due_at=seconds(30)), settled(two, WAITING)])
    row = one.row
    await store.settle([], [settled(one, WAITING, attempts=3, due_at=seconds(60.000_001))])
    assert one.row == row, "a row that exists keeps its place"
    for again in (place.open, place.reopen):
        first, second = await (await again()).backlog(callback.id)
        assert (first.event, first.callback_id, first.row) == (one.event, one.callback_id, row)
        assert (first.attempts, first.due_at, first.age_s) == (3, seconds(60.000_001), 12.5)
        assert (second.event, second.attempts, second.due_at) == (two.event, 1, None)


async def test_what_was_read_from_the_backlog_is_settled_like_the_rest(store: Store) -> None:
    callback = await register(store)
    await store.settle([], left(*await accept(store, 4)))
    one, two, three, four = await store.backlog(callback.id)
    await store.settle([one], [settled(two, DEAD, attempts=5), settled(three, WAITING, attempts=2, due_at=seconds(9))])
    found = await store.backlog(callback.id)
    assert places(found) == places([three, four])
    assert (found[0].attempts, found[0].due_at) == (2, seconds(9))
    assert await dead(store, callback) == [two.event.seq]


async def test_what_waited_with_its_callback_parked_may_be_very_much(store: Store, place: Place) -> None:
    callback = await register(store)
    for n in range(4):
        await store.settle([], left(*await accept(store, 700, first=700 * n)))
    store, found = await place.restarted()
    assert found == [callback.id]
    assert await store.backlog_sizes() == {callback.id: 2800}
    seqs = [delivery.event.seq for delivery in (await waiting(store))[callback.id]]
    assert seqs == sorted(set(seqs))


async def test_a_delivery_that_gets_its_place_late_is_before_what_follows_in_its_lane(store: Store, place: Place) -> None:
    """It was under way when the rest was left to the store; nothing of its side may overtake it."""
    callback = await register(store)
    mine = (await store.append(whole_call(), [])).deliveries
    theirs = (await store.append(whole_call("call-2"), [])).deliveries
    await store.settle([], left(mine[2], *theirs[1:], mine[3]))
    await store.settle([], [settled(theirs[0], WAITING, due_at=seconds(5)), *left(mine[1])])
    await store.settle([], [settled(mine[0], WAITING, due_at=seconds(5))])
    for again in (place.open, place.reopen):
        found = await (await again()).backlog(callback.id)
        for call in (mine, theirs):
            lane = [d.event.sequence for d in found if d.event.callerid == call[0].event.callerid]
            assert lane == [1, 2, 3, 4]


# Settling


async def test_what_was_delivered_waits_no_more(store: Store, place: Place) -> None:
    callback = await register(store)
    one, two, three = await accept(store, 3)
    await store.settle([], left(three))
    await store.settle([one, three])
    store, found = await place.restarted()
    assert found == [callback.id]
    assert places(await store.backlog(callback.id)) == places([two])


async def test_one_event_is_settled_for_each_callback_by_itself(store: Store, place: Place) -> None:
    await register(store)
    other = await register(store, pin="1001")
    one, two = await accept(store)
    await store.settle([one])
    store, found = await place.restarted()
    assert found == [other.id]
    assert places(await store.backlog(other.id)) == places([two])


@pytest.mark.parametrize("had_row", [False, True])
@pytest.mark.parametrize("final", [DELIVERED, DEAD])
@pytest.mark.parametrize("later", DeliveryState)
async def test_a_settled_delivery_is_never_turned_back(
    store: Store, place: Place, final: DeliveryState, later: DeliveryState, had_row: bool
) -> None:
    callback = await register(store)
    (delivery,) = await accept(store)
    if had_row:
        await store.settle([], left(delivery))
    await store.settle([], [settled(delivery, final)])
    await store.settle([], [settled(delivery, later, attempts=2, due_at=seconds(30) if later is WAITING else None)])
    assert await waiting(store) == {}
    assert await dead(store, callback) == ([delivery.event.seq] if final is DEAD else [])
    assert (await place.restarted())[1] == []


@pytest.mark.parametrize("had_row", [False, True])
@pytest.mark.parametrize("final", [DELIVERED, DEAD])
@pytest.mark.parametrize("finals_place", [0, 1, 2])
async def test_several_settlements_of_one_delivery_at_once(
    store: Store, place: Place, final: DeliveryState, finals_place: int, had_row: bool
) -> None:
    callback = await register(store)
    delivery, other = await accept(store, 2)
    await store.settle([], left(other))
    if had_row:
        await store.settle([], left(delivery))
    settlements = [settled(delivery, WAITING, attempts=n + 1, due_at=seconds(n)) for n in range(2)]
    settlements.insert(finals_place, settled(delivery, final, attempts=3))
    await store.settle([], settlements)
    assert places(await store.backlog(callback.id)) == places([other])
    store, _ = await place.restarted()
    assert places(await store.backlog(callback.id)) == places([other])


async def test_the_last_of_several_tries_counts(store: Store) -> None:
    callback = await register(store)
    (delivery,) = await accept(store)
    await store.settle([], [settled(delivery, WAITING, attempts=n, due_at=seconds(n)) for n in (1, 2, 3)])
    (found,) = await store.backlog(callback.id)
    assert (found.attempts, found.due_at) == (3, seconds(3))


async def test_settling_may_be_repeated(store: Store, place: Place) -> None:
    callback = await register(store)
    offered = await accept(store, 3)
    for _ in range(2):
        await store.settle(offered[:1], [settled(offered[1], DEAD), settled(offered[2], WAITING, due_at=seconds(1))])
        assert places(await store.backlog(callback.id)) == places(offered[2:])
        assert await dead(store, callback) == [offered[1].event.seq]
    await store.settle([])
    assert (await place.restarted())[1] == [callback.id]


async def test_a_dead_delivery_says_when_it_died_and_why(store: Store, place: Place) -> None:
    callback = await register(store)
    one, two = await accept(store, 2)
    await store.settle([], left(two))
    place.clock.advance(90)
    await store.settle([], [settled(one, DEAD, attempts=3), settled(two, DEAD, attempts=4)])
    for again in (place.open, place.reopen):
        found = {d.delivery.event.seq: d for d in await (await again()).dead(callback.id)}
        assert {seq: (d.died_at, d.outcome, d.delivery.attempts) for seq, d in found.items()} == {
            one.event.seq: (seconds(90), "as the test says", 3),
            two.event.seq: (seconds(90), "as the test says", 4),
        }
        assert found[one.event.seq].delivery.event == one.event


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_dead_deliveries_can_be_read_page_by_page(store: Store, limit: int) -> None:
    callback = await register(store)
    offered = await accept(store, 8)
    await store.settle([], [settled(delivery, DEAD) for delivery in offered[:5]])
    await store.settle([], left(*offered[5:]))
    await store.disable_callback(callback.id, "410 Gone")
    read: list[int] = []
    after = 0
    while page := await store.dead(callback.id, after=after, limit=limit):
        assert len(page) <= limit
        read += [found.delivery.event.seq for found in page]
        after = page[-1].delivery.row
    assert read == [delivery.event.seq for delivery in offered]


async def test_what_was_removed_meanwhile_is_passed_over(store: Store, place: Place) -> None:
    gone, stays = await register(store), await register(store, pin="1001")
    offered = await accept(store, 3)
    await store.settle([], left(*offered[:2]))
    await store.remove_callback("acme", gone.code)
    theirs = [delivery for delivery in offered if delivery.callback_id == gone.id]
    await store.settle(theirs[:1], [settled(theirs[1], WAITING, due_at=seconds(1)), settled(theirs[2], DEAD)])
    assert set(await waiting(store)) == {stays.id}
    assert await store.dead(gone.id) == []
    store, found = await place.restarted()
    assert found == [stays.id]
    assert len(await store.backlog(stays.id)) == 3


# Recovering


async def test_what_nobody_settled_waits_after_a_restart(store: Store, place: Place) -> None:
    callbacks = [await register(store, f"{URL}/{n}") for n in range(3)]
    offered = [delivery for n in range(4) for delivery in await accept(store, 2, first=2 * n)]
    await store.settle(offered[5:9], left(*offered[10:12]))
    lost = [d for d in offered if d not in offered[5:9]]
    for _ in range(2):  # and once more: nothing happens twice
        store, found = await place.restarted()
        assert found == [callback.id for callback in callbacks]
        for number, deliveries in (await waiting(store)).items():
            assert sorted(places(deliveries)) == places([d for d in lost if d.callback_id == number])


async def test_what_is_recovered_is_in_the_order_of_acceptance_and_of_lanes(store: Store, place: Place) -> None:
    callback = await register(store)
    mine = (await store.append(whole_call(), [])).deliveries
    theirs = (await store.append(whole_call("call-2"), [])).deliveries
    await store.settle([], left(mine[2], theirs[1]))
    store, _ = await place.restarted()
    found = await store.backlog(callback.id)
    assert len(found) == 8
    for call in (mine, theirs):
        assert [d.event.sequence for d in found if d.event.callerid == call[0].event.callerid] == [1, 2, 3, 4]


async def test_a_store_where_nothing_was_left_has_nothing_to_recover(store: Store, place: Place) -> None:
    assert (await place.restarted())[1] == []
    store = place.stores[-1]
    await register(store)
    await store.settle(await accept(store, 3))
    assert (await place.restarted())[1] == []
    store = place.stores[-1]
    callback = (await store.registry()).callbacks_of("acme")[0]
    (delivery,) = await accept(store, first=9)
    assert (await place.restarted())[1] == [callback.id]
    assert places(await place.stores[-1].backlog(callback.id)) == places([delivery])


async def test_what_is_recovered_has_its_whole_deadline_before_it(store: Store, place: Place) -> None:
    callback = await register(store)
    await accept(store)
    place.clock.advance(50)
    store, _ = await place.restarted()
    (found,) = await store.backlog(callback.id)
    assert (found.age_s, found.attempts, found.due_at) == (0.0, 0, None)


async def test_nothing_is_recovered_for_a_removed_callback(store: Store, place: Place) -> None:
    gone, stays = await register(store), await register(store, pin="1001")
    await accept(store, 2)
    await store.remove_callback("acme", gone.code)
    store, found = await place.restarted()
    assert found == [stays.id]
    assert await store.dead(gone.id) == []


@pytest.mark.parametrize("is_enabled_again", [False, True])
async def test_what_a_disabled_callback_had_in_memory_is_dead(store: Store, place: Place, is_enabled_again: bool) -> None:
    callback = await register(store)
    offered = await accept(store, 2)
    await store.disable_callback(callback.id, "410 Gone")
    if is_enabled_again:
        await store.enable_callback(callback.code)
        offered += await accept(store, 1, first=2)
    store, found = await place.restarted()
    assert found == ([callback.id] if is_enabled_again else [])
    assert places(await store.backlog(callback.id)) == places(offered[2:])
    assert [(d.delivery.event.seq, d.outcome) for d in await store.dead(callback.id)] == [
        (delivery.event.seq, "410 Gone") for delivery in offered[:2]
    ]


async def test_an_append_before_recovering_forgets_nothing(store: Store, place: Place) -> None:
    callback = await register(store)
    lost = await accept(store)
    store = await place.reopen()
    await store.settle(await accept(store, first=1))
    store, _ = await place.restarted()
    assert places(await store.backlog(callback.id)) == places(lost)


# Callbacks that go


async def test_a_removed_callbacks_waiting_deliveries_are_dropped_with_it(store: Store, place: Place) -> None:
    gone, stays = await register(store), await register(store, client="outra")
    await store.settle([], left(*await accept(store, 3)))
    theirs = await accept(store, 1, client="outra", first=3)
    await store.settle([], left(*theirs))
    await store.remove_callback("acme", gone.code)
    assert places((await waiting(store))[stays.id]) == places(theirs)
    assert await store.backlog(gone.id) == []
    assert await store.backlog_sizes() == {stays.id: 1}
    assert await accept(store, first=4) == []
    assert (await place.restarted())[1] == [stays.id]


async def test_registered_again_it_gets_only_what_comes_then(store: Store) -> None:
    gone = await register(store)
    await store.settle([], left(*await accept(store)))
    await store.remove_callback("acme", gone.code)
    again = await register(store)
    offered = await accept(store, first=2)
    await store.settle([], left(*offered))
    assert places((await waiting(store))[again.id]) == places(offered)


@pytest.mark.parametrize("is_tidied", [False, True])
async def test_what_waits_for_a_disabled_callback_is_dead(store: Store, place: Place, is_tidied: bool) -> None:
    gone, stays = await register(store), await register(store, pin="1001")
    offered = await accept(store, 3)
    await store.settle([], left(*offered))
    place.clock.advance(5)
    await store.disable_callback(gone.id, "410 Gone")
    theirs = [delivery for delivery in offered if delivery.callback_id == gone.id]
    if is_tidied:
        await tidy(store)
    await store.settle(theirs[:1], [settled(delivery, WAITING, due_at=seconds(1)) for delivery in theirs[1:]])
    assert set(await waiting(store)) == {stays.id}
    assert [(d.delivery.event.seq, d.died_at, d.outcome) for d in await store.dead(gone.id)] == [
        (delivery.event.seq, seconds(5), "410 Gone") for delivery in theirs
    ]
    assert [d.callback_id for d in await accept(store, first=3)] == [stays.id]
    store, found = await place.restarted()
    assert found == [stays.id]
    assert len(await store.dead(gone.id)) == 3


async def test_what_was_in_memory_when_its_callback_was_disabled_does_not_come_back(store: Store) -> None:
    """A command disabled it, and the server has not heard of that yet."""
    callback = await register(store)
    offered = await accept(store, 2)
    await store.disable_callback(callback.id, "by the operator")
    await store.settle([], left(offered[0]))
    await store.enable_callback(callback.code)
    await store.settle([], left(offered[1]))
    assert await waiting(store) == {}
    assert await dead(store, callback) == [delivery.event.seq for delivery in offered]


@pytest.mark.parametrize("is_tidied", [False, True])
async def test_enabled_again_it_gets_only_what_comes_then(store: Store, place: Place, is_tidied: bool) -> None:
    callback = await register(store)
    await store.settle([], left(*await accept(store)))
    await store.disable_callback(callback.id, "410 Gone")
    if is_tidied:
        await tidy(store)
    await accept(store, first=1)
    assert (await register(store)).id == callback.id
    offered = await accept(store, first=2)
    await store.settle([], left(*offered))
    assert places(await store.backlog(callback.id)) == places(offered)
    assert len(await store.dead(callback.id)) == 1
    store, _ = await place.restarted()
    assert places(await store.backlog(callback.id)) == places(offered)


async def test_a_rotation_leaves_deliveries_alone(store: Store) -> None:
    callback = await register(store)
    offered = await accept(store, 2)
    await store.settle([], left(*offered))
    await store.rotate_callback(callback.code, keep_old_for=timedelta(hours=1))
    await store.register_callback("acme", URL, "user:new", None, limit=100)
    assert places(await store.backlog(callback.id)) == places(offered)


async def test_what_is_not_there_has_no_backlog(store: Store) -> None:
    assert await store.backlog(987_654) == []
    assert await store.dead(987_654) == []
    assert await store.backlog_sizes() == {}


# At once


async def test_many_append_settle_register_and_read_at_once(store: Store, place: Place) -> None:
    """Each delivery that was offered is settled, or waits, or went with its callback: none is lost and none comes back."""
    registrars = [store, await place.open()]
    rng = random.Random(7)
    settled_places: set[tuple[int, int]] = set()
    offered: set[tuple[int, int]] = set()
    removed: set[int] = set()
    await register(store)

    async def tell(n: int) -> None:
        for step in whole_call(f"call-{n}"):
            deliveries = (await store.append([step], [])).deliveries
            offered.update(places(deliveries))
            delivered = [delivery for delivery in deliveries if rng.random() < 0.4]
            rest = [delivery for delivery in deliveries if delivery not in delivered]
            died = [delivery for delivery in rest if rng.random() < 0.2]
            some = [delivery for delivery in rest if delivery not in died and rng.random() < 0.5]
            await store.settle(delivered, [*left(*some), *(settled(delivery, DEAD) for delivery in died)])
            settled_places.update(places([*delivered, *died]))

    async def come_and_go(n: int) -> None:
        callback = await register(rng.choice(registrars), f"{URL}/{n}")
        await store.backlog(callback.id, limit=5)
        await rng.choice(registrars).rotate_callback(callback.code, keep_old_for=timedelta(hours=1))
        if n % 2:
            await rng.choice(registrars).remove_callback("acme", callback.code)
            removed.add(callback.id)

    await asyncio.gather(*(tell(n) for n in range(40)), *(come_and_go(n) for n in range(20)))
    store, _ = await place.restarted()
    found = places([delivery for page in (await waiting(store)).values() for delivery in page])
    assert len(found) == len(set(found))
    assert set(found) == {place for place in offered - settled_places if place[1] not in removed}
    await tidy(store)
    assert len([delivery for page in (await waiting(store)).values() for delivery in page]) == len(found)
