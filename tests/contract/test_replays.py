"""The store's contract: replays, which send a callback again what it was, or was not, sent before."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.contract.conftest import Place, tidy, waiting
from tests.support.stored_calls import BEGINNING, URL, change, left, seconds, settled, whole_call

from toque.callbacks.callback import Callback, Registered
from toque.callbacks.delivery import Delivery, DeliveryState
from toque.calls.model import Status
from toque.errors import InputError
from toque.store.contract import Replay, ReplayState, Store

FOREVER = BEGINNING + timedelta(days=365)


async def register(store: Store, url: str = URL, *, client: str = "acme", pin: str | None = None) -> Callback:
    registered = await store.register_callback(client, url, None, pin, limit=100)
    assert isinstance(registered, Registered)
    return registered.callback


def of_all(callback: Callback, **more: object) -> Replay:
    """A replay of everything."""
    return replace(Replay(0, callback.id, None, FOREVER), **more)  # type: ignore[arg-type]


async def run(store: Store, replay: Replay, limit: int = 100) -> Replay:
    """Have a replay put into the backlog all that it finds."""
    for _ in range(1000):
        found = await store.requeue(replay.id, limit)
        assert found is not None
        assert found.requeued - replay.requeued <= limit
        assert found.place >= replay.place
        replay = found
        if replay.state is ReplayState.DONE:
            assert await store.requeue(replay.id, limit) is None
            return replay
    raise AssertionError("it comes to no end")


async def delivered(store: Store, place: Place, calls: int, *, first: int = 0, client: str = "acme") -> list[Delivery]:
    """Calls of which everything was delivered, a second after each other."""
    found: list[Delivery] = []
    for n in range(first, first + calls):
        place.clock.advance(1)
        found += (await store.append(whole_call(f"call-{n}", client=client), [])).deliveries
    await store.settle(found)
    return found


def seqs(deliveries: list[Delivery]) -> list[int]:
    return [delivery.event.seq for delivery in deliveries]


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_all_that_a_client_was_told_is_told_again_in_order(store: Store, place: Place, limit: int) -> None:
    callback, _ = await register(store), await register(store, client="outra")
    mine = await delivered(store, place, 3)
    await delivered(store, place, 2, first=3, client="outra")
    mine += await delivered(store, place, 2, first=5)
    added = await store.add_replay(of_all(callback, rate=7.0))
    assert (added.state, added.requeued, added.rate, added.created_at) == (ReplayState.RUNNING, 0, 7.0, place.clock())
    done = await run(store, added, limit)
    assert (done.requeued, done.ended_at) == (20, place.clock())
    found = await waiting(store)
    assert [d.event for d in found[callback.id]] == [d.event for d in mine], "with the same ids"
    assert {(d.attempts, d.due_at) for d in found[callback.id]} == {(0, None)}
    assert set(found) == {callback.id}
    assert await store.replays() == [done]


async def test_a_replay_goes_on_after_a_restart(store: Store, place: Place) -> None:
    callback = await register(store)
    await delivered(store, place, 5)
    replay = await store.add_replay(of_all(callback))
    progress = []
    while replay.state is ReplayState.RUNNING:
        store, _ = await place.restarted()
        assert await store.replays() == [replay]
        found = await store.requeue(replay.id, 6)
        assert found is not None
        replay = found
        progress.append(replay.requeued)
    assert progress[:3] == [6, 12, 18]
    assert progress[-1] == 20
    assert seqs((await waiting(store))[callback.id]) == list(range(1, 21))


async def test_a_replay_of_a_time(store: Store, place: Place) -> None:
    callback = await register(store)
    offered = await delivered(store, place, 6)
    replay = await store.add_replay(of_all(callback, since=seconds(3), until=seconds(4)))
    assert (await run(store, replay)).requeued == 8
    assert seqs((await waiting(store))[callback.id]) == seqs(offered[8:16])


@pytest.mark.parametrize("since", [100, -100])
async def test_a_replay_of_a_time_when_nothing_or_everything_was_told(store: Store, place: Place, since: float) -> None:
    callback = await register(store)
    await delivered(store, place, 2)
    replay = await store.add_replay(of_all(callback, since=seconds(since)))
    assert (await run(store, replay)).requeued == (0 if since > 0 else 8)


async def test_a_replay_ends_with_what_had_been_told_when_it_began(store: Store, place: Place) -> None:
    callback = await register(store)
    await delivered(store, place, 2)
    replay = await store.add_replay(of_all(callback))
    await delivered(store, place, 2, first=2)
    assert (await run(store, replay)).requeued == 8


async def test_a_replay_for_a_pin_has_only_its_events(store: Store, place: Place) -> None:
    await register(store)
    callback = await register(store, pin="1002")
    await store.append([change(Status.INITIATED), change(Status.INITIATED, pin="1002")], [])
    assert (await run(store, await store.add_replay(of_all(callback)))).requeued == 1
    assert [d.event.pin for d in await store.backlog(callback.id)] == ["1002"]


@pytest.mark.parametrize("began", [0, 100])
@pytest.mark.parametrize("is_late", [False, True])
async def test_a_replay_of_a_call(store: Store, place: Place, began: float, is_late: bool) -> None:
    """Of one whose name was used once or twice; and of one that ended so long ago that it is no longer known as a call."""
    callback = await register(store)
    await delivered(store, place, 2)
    mine: list[Delivery] = []
    for begins in (0, 100)[: 2 if began else 1]:
        mine = (await store.append(whole_call("mine", begins), [])).deliveries
        await store.settle(mine)
    await delivered(store, place, 2, first=2)
    if is_late:
        place.clock.advance(48 * 3600)
        await tidy(store)
        store, _ = await place.restarted()
    replay = await store.add_replay(of_all(callback, callerid=mine[0].event.callerid))
    assert (await run(store, replay)).requeued == 4
    assert seqs(await store.backlog(callback.id)) == seqs(mine)


async def test_a_replay_of_an_event(store: Store, place: Place) -> None:
    callback = await register(store)
    offered = await delivered(store, place, 4)
    replay = await store.add_replay(of_all(callback, event_id=offered[6].event.id))
    assert (await run(store, replay)).requeued == 1
    assert seqs(await store.backlog(callback.id)) == seqs(offered[6:7])


@pytest.mark.parametrize("is_for_dead", [False, True])
@pytest.mark.parametrize(
    "what", [{"callerid": "00000000-0000-5000-8000-000000000000"}, {"event_id": "nothing"}, {"callerid": "x"}]
)
async def test_what_there_is_not_cannot_be_replayed(store: Store, place: Place, what: dict[str, str], is_for_dead: bool) -> None:
    callback = await register(store)
    await delivered(store, place, 1)
    with pytest.raises(InputError, match=next(iter(what.values()))):
        await store.add_replay(of_all(callback, is_for_dead=is_for_dead, **what))
    assert await store.replays() == []


async def test_another_clients_call_cannot_be_replayed(store: Store, place: Place) -> None:
    callback, _ = await register(store), await register(store, client="outra")
    (theirs, *_) = await delivered(store, place, 1, client="outra")
    for what in ({"callerid": theirs.event.callerid}, {"event_id": theirs.event.id}):
        with pytest.raises(InputError):
            await store.add_replay(of_all(callback, **what))


async def test_a_removed_callback_cannot_be_replayed_to(store: Store, place: Place) -> None:
    callback, other = await register(store), await register(store, pin="1001")
    await delivered(store, place, 2)
    replay, stays = await store.add_replay(of_all(callback)), await store.add_replay(of_all(other))
    await store.requeue(replay.id, 2)
    await store.remove_callback("acme", callback.code)
    assert await store.requeue(replay.id, 2) is None
    assert await store.replays() == [stays]
    for gone in (callback.id, 987_654):
        with pytest.raises(InputError, match="callback"):
            await store.add_replay(Replay(0, gone, None, FOREVER))


async def test_what_waits_already_is_not_there_twice(store: Store, place: Place) -> None:
    callback = await register(store)
    offered = (await store.append(whole_call(), [])).deliveries
    await store.settle(
        offered[:1], [settled(offered[1], DeliveryState.WAITING, attempts=4, due_at=seconds(9)), *left(*offered[2:])]
    )
    row = offered[1].row
    assert (await run(store, await store.add_replay(of_all(callback)))).requeued == 1
    found = await store.backlog(callback.id)
    assert seqs(found) == [2, 3, 4, 1]
    assert (found[0].row, found[0].attempts, found[0].due_at) == (row, 4, seconds(9))
    assert (await run(store, await store.add_replay(of_all(callback)))).requeued == 0


async def test_a_fresh_delivery_that_is_replayed_meanwhile_is_no_hindrance(store: Store) -> None:
    callback = await register(store)
    one, two = (await store.append(whole_call()[:2], [])).deliveries
    assert (await run(store, await store.add_replay(of_all(callback)))).requeued == 2
    await store.settle([one], [settled(two, DeliveryState.WAITING, attempts=2, due_at=seconds(7))])
    found = {d.event.seq: d for d in await store.backlog(callback.id)}
    assert (found[2].row, found[2].attempts, found[2].due_at) == (two.row, 2, seconds(7))
    await store.settle([found[2]])
    assert 2 not in {d.event.seq for d in await store.backlog(callback.id)}


@pytest.mark.parametrize("is_tidied", [False, True])
@pytest.mark.parametrize("limit", [2, 100])
async def test_dead_deliveries_are_sent_again(store: Store, place: Place, is_tidied: bool, limit: int) -> None:
    callback = await register(store)
    offered = (await store.append(whole_call() + whole_call("call-2"), [])).deliveries
    await store.settle(offered[:1], [settled(offered[3], DeliveryState.DEAD), settled(offered[2], DeliveryState.DEAD)])
    await store.settle([], left(*offered[4:]))
    await store.disable_callback(callback.id, "410 Gone")
    await store.enable_callback(callback.code)
    if is_tidied:
        await tidy(store)
    assert len(await store.dead(callback.id)) == 6
    assert (await run(store, await store.add_replay(of_all(callback, is_for_dead=True)), limit)).requeued == 6
    assert await store.dead(callback.id) == []
    found = await store.backlog(callback.id)
    assert sorted(seqs(found)) == seqs(offered[2:])
    if limit == 100:
        assert seqs(found) == seqs(offered[2:])
    assert {(d.attempts, d.due_at) for d in found} == {(0, None)}
    await tidy(store)
    store, _ = await place.restarted()
    assert seqs(await store.backlog(callback.id)) == seqs(found)


async def test_some_dead_deliveries_are_sent_again(store: Store, place: Place) -> None:
    callback = await register(store)
    offered: list[Delivery] = []
    for n in range(3):
        place.clock.advance(1)
        offered += (await store.append(whole_call(f"call-{n}"), [])).deliveries
    await store.settle([], [settled(delivery, DeliveryState.DEAD) for delivery in offered])
    for what, expected in (
        ({"callerid": offered[4].event.callerid}, offered[4:8]),
        ({"event_id": offered[9].event.id}, offered[9:10]),
        ({"since": seconds(1), "until": seconds(1)}, offered[:4]),
    ):
        before = len(await store.backlog(callback.id))
        await run(store, await store.add_replay(of_all(callback, is_for_dead=True, **what)))
        assert seqs((await store.backlog(callback.id))[before:]) == seqs(expected)
    assert [found.delivery.event.seq for found in await store.dead(callback.id)] == seqs([offered[8], *offered[10:]])


async def test_a_replay_of_everything_revives_the_dead_too(store: Store) -> None:
    callback = await register(store)
    offered = (await store.append(whole_call(), [])).deliveries
    await store.settle(offered[:3], [settled(offered[3], DeliveryState.DEAD, attempts=9)])
    assert (await run(store, await store.add_replay(of_all(callback)))).requeued == 4
    assert seqs(await store.backlog(callback.id)) == seqs(offered)
    assert await store.dead(callback.id) == []


async def test_what_is_replayed_has_its_whole_deadline_before_it(store: Store, place: Place) -> None:
    callback = await register(store)
    await delivered(store, place, 1)
    place.clock.advance(7 * 24 * 3600)
    await run(store, await store.add_replay(of_all(callback)))
    assert {found.age_s for found in await store.backlog(callback.id)} == {0.0}


async def test_a_replay_waits_while_its_callback_is_disabled(store: Store, place: Place) -> None:
    callback = await register(store)
    await delivered(store, place, 2)
    replay = await store.add_replay(of_all(callback))
    await store.disable_callback(callback.id, "410 Gone")
    assert await store.requeue(replay.id, 5) == replay
    await store.enable_callback(callback.code)
    assert (await run(store, replay)).requeued == 8


async def test_a_replay_is_cancelled(store: Store, place: Place) -> None:
    callback = await register(store)
    await delivered(store, place, 2)
    replay, other = await store.add_replay(of_all(callback)), await store.add_replay(of_all(callback))
    assert replay.id != other.id
    await store.requeue(replay.id, 3)
    assert await store.cancel_replay(replay.id)
    assert not await store.cancel_replay(replay.id)
    assert not await store.cancel_replay(987_654)
    assert await store.requeue(replay.id, 3) is None
    assert await store.requeue(987_654, 3) is None
    cancelled, running = await store.replays()
    assert (cancelled.state, cancelled.requeued, cancelled.ended_at) == (ReplayState.CANCELLED, 3, place.clock())
    assert running == other
    assert len(await store.backlog(callback.id)) == 3
