"""The store's contract: what is old goes, what waits stays, and what was removed leaves nothing behind."""

from datetime import timedelta

import pytest
from tests.contract.conftest import Place, tidy, waiting
from tests.support.stored_calls import BEGINNING, URL, change, in_progress, left, over, settled, whole_call

from toque.callbacks.callback import Callback, Registered
from toque.callbacks.delivery import DeliveryState
from toque.calls.model import Status
from toque.errors import InputError
from toque.store.contract import Appended, Replay, Store

DAY = timedelta(days=1)
FOREVER = BEGINNING + 365 * DAY


async def register(store: Store, url: str = URL, *, client: str = "acme") -> Callback:
    registered = await store.register_callback(client, url, None, None, limit=100)
    assert isinstance(registered, Registered)
    return registered.callback


async def replayed(store: Store, callback: Callback) -> list[int]:
    """The seqs of all events that are still there, as a replay to a callback finds them."""
    replay = await store.add_replay(Replay(0, callback.id, None, FOREVER))
    while await store.requeue(replay.id, 100):
        pass
    found = await store.backlog(callback.id)
    await store.settle(found)
    return sorted(delivery.event.seq for delivery in found)


async def test_a_store_with_nothing_in_it_needs_nothing(store: Store) -> None:
    assert await tidy(store, DAY) == 1


async def test_what_is_old_goes(store: Store, place: Place) -> None:
    callback = await register(store)
    old = (await store.append(whole_call("old"), [over("old")])).deliveries
    await store.settle(old[:3], [settled(old[3], DeliveryState.DEAD)])
    replay = await store.add_replay(Replay(0, callback.id, None, FOREVER))
    await store.cancel_replay(replay.id)
    place.clock.advance(2 * 86_400)
    young = (await store.append(whole_call("young"), [over("young")])).deliveries
    await store.settle(young[:3], [settled(young[3], DeliveryState.DEAD)])

    await tidy(store, 3 * DAY)
    assert len(await store.dead(callback.id)) == 2
    assert len(await store.replays()) == 1
    await tidy(store, DAY)
    assert [found.delivery.event.seq for found in await store.dead(callback.id)] == [8]
    assert await store.replays() == []
    assert await replayed(store, callback) == [5, 6, 7, 8]
    with pytest.raises(InputError):
        await store.add_replay(Replay(0, callback.id, None, FOREVER, event_id=old[0].event.id))


async def test_what_waits_stays_however_old_it_is(store: Store, place: Place) -> None:
    callback = await register(store)
    offered = (await store.append(whole_call(), [])).deliveries
    await store.settle(offered[:1], left(*offered[1:3]))
    running = await store.add_replay(Replay(0, callback.id, None, FOREVER))
    place.clock.advance(90 * 86_400)
    await tidy(store, DAY)
    assert [d.event.seq for d in (await waiting(store))[callback.id]] == [2, 3]
    assert await store.replays() == [running]
    store, found = await place.restarted()
    await tidy(store, DAY)
    assert found == [callback.id]
    assert [d.event for d in await store.backlog(callback.id)] == [d.event for d in offered[1:]]


async def test_what_was_settled_long_ago_is_not_recovered(store: Store, place: Place) -> None:
    """Little was to be told since: the last events are kept, and so is how each of them ended."""
    await register(store)
    offered = (await store.append(whole_call(), [over()])).deliveries
    await store.settle(offered[:2])
    await store.settle(offered[2:])
    place.clock.advance(90 * 86_400)
    await tidy(store, DAY)
    store, found = await place.restarted()
    assert found == []


async def test_a_call_in_progress_stays_and_so_does_what_may_be_repeated(store: Store, place: Place) -> None:
    await register(store)
    await store.append([change(Status.INITIATED, call="long")], [in_progress("long")])
    await store.append(whole_call("over"), [over("over")])
    for hours in (1, 24):
        place.clock.advance(hours * 3600)
        await tidy(store, timedelta(minutes=1))
        store, _ = await place.restarted()
        await tidy(store, timedelta(minutes=1))
        assert await store.append(whole_call("over"), [over("over")]) == Appended()
    place.clock.advance(90 * 86_400)
    await tidy(store, timedelta(minutes=1))
    store, _ = await place.restarted()
    await tidy(store, timedelta(minutes=1))
    assert [identity.key for identity, _ in await store.open_calls()] == ["long"]
    appended = await store.append([change(Status.INITIATED, call="long"), change(Status.BUSY, 9, call="long")], [over("long", 9)])
    assert [d.event.sequence for d in appended.deliveries] == [2]


async def test_no_seq_is_given_twice(store: Store, place: Place) -> None:
    await register(store)
    seqs = []
    for n in range(4):
        deliveries = (await store.append(whole_call(f"call-{n}"), [over(f"call-{n}")])).deliveries
        seqs += [delivery.event.seq for delivery in deliveries]
        await store.settle(deliveries)
        place.clock.advance(90 * 86_400)
        await tidy(store, DAY)
        store, _ = await place.restarted()
        await tidy(store, DAY)
    assert seqs == list(range(1, 17))


async def test_a_delivery_settled_after_a_restart_stays_settled(store: Store, place: Place) -> None:
    """However the upkeep and the restarts fall: what was delivered does not come back."""
    callback = await register(store)
    for n in range(3):
        deliveries = (await store.append(whole_call(f"call-{n}"), [])).deliveries
        await store.settle(deliveries[:2], left(deliveries[2]))
        await tidy(store, timedelta(seconds=1))
        place.clock.advance(10)
        store, _ = await place.restarted()
        await tidy(store, timedelta(seconds=1))
        await store.settle(await store.backlog(callback.id))
        place.clock.advance(10)
        await tidy(store, timedelta(seconds=1))
        assert (await place.restarted())[1] == []
        store = place.stores[-1]


async def test_a_removed_clients_events_are_erased(store: Store, place: Place) -> None:
    await register(store)
    theirs = await register(store, client="outra")
    for n in range(5):
        both = [*whole_call(f"call-{n}"), *whole_call(f"call-{n}", client="outra")]
        await store.settle((await store.append(both, [over(f"call-{n}")])).deliveries)
    await store.remove_client("acme")
    await tidy(store)
    store, _ = await place.restarted()
    assert await replayed(store, theirs) == [8 * n + k for n in range(5) for k in (5, 6, 7, 8)]


async def test_a_client_of_the_same_name_begins_anew(store: Store) -> None:
    await register(store)
    old = (await store.append(whole_call(), [])).deliveries
    await store.settle(old)
    client = (await store.registry()).clients["acme"]
    await store.remove_client("acme")
    await store.add_client(client)
    callback = await register(store)
    await store.settle((await store.append(whole_call("call-2"), [])).deliveries)
    with pytest.raises(InputError):
        await store.add_replay(Replay(0, callback.id, None, FOREVER, event_id=old[0].event.id))
    assert await replayed(store, callback) == [5, 6, 7, 8]
    await tidy(store)
    assert await replayed(store, callback) == [5, 6, 7, 8]


async def test_the_upkeep_goes_on_after_a_restart(store: Store, place: Place) -> None:
    gone, stays = await register(store), await register(store, client="outra")
    for n in range(3):
        offered = [change(Status.INITIATED, call=f"{n}-{k}", client=c) for k in range(300) for c in ("acme", "outra")]
        await store.settle([], left(*(await store.append(offered, [])).deliveries))
    await store.disable_callback(stays.id, "410 Gone")
    await store.remove_callback("acme", gone.code)
    steps = 1
    while await store.housekeep(keep=30 * DAY):
        steps += 1
        store, found = await place.restarted()
        assert found == []
        assert len(await store.dead(stays.id, limit=10_000)) == 900
    assert steps > 3
