"""The store's contract: what is accepted of calls' statuses, and the calls in progress."""

import asyncio
import json
from uuid import UUID

import pytest
from tests.contract.conftest import Place, waiting
from tests.support.stored_calls import (
    BEGINNING,
    MADE,
    RECEIVED,
    URL,
    change,
    identity,
    in_progress,
    over,
    seconds,
    told,
    whole_call,
)

from toque.callbacks.delivery import Delivery
from toque.calls.identity import callerid, event_id
from toque.calls.model import CallIdentity, Direction, Owner, Side, Snapshot, Status, StatusChange
from toque.errors import IllegalStep
from toque.store.contract import Appended, Store

FINALS = [status for status in Status if status.is_final]
FIRST, SECOND, THIRD = (callerid(identity(), generation) for generation in range(3))


@pytest.fixture
async def store(store: Store) -> Store:
    """Both clients have a callback, so that what was accepted can be seen."""
    for client in ("acme", "outra"):
        await store.register_callback(client, URL, None, None, limit=100)
    return store


async def recovered(place: Place) -> list[Delivery]:
    """All that was accepted and not settled so far, as a restarted server finds it, in the order of acceptance."""
    store, _ = await place.restarted()
    deliveries = [delivery for page in (await waiting(store)).values() for delivery in page]
    return sorted(deliveries, key=lambda delivery: delivery.event.seq)


async def accepted(place: Place) -> list[tuple[str, int, str]]:
    """All that was accepted so far: status, sequence, callerid. The store is opened anew."""
    return told(await recovered(place))


# Numbering


async def test_each_side_is_numbered_from_one_without_gaps(store: Store) -> None:
    mine, theirs = whole_call(), whole_call(client="outra", direction=RECEIVED)
    appended = await store.append([mine[0], theirs[0], theirs[2], mine[1], mine[2], theirs[3], mine[3]], [])
    assert appended.events == 7
    assert [(d.event.client_id, d.event.status, d.event.sequence) for d in appended.deliveries] == [
        ("acme", Status.INITIATED, 1),
        ("outra", Status.INITIATED, 1),
        ("outra", Status.ANSWERED, 2),
        ("acme", Status.RINGING, 2),
        ("acme", Status.ANSWERED, 3),
        ("outra", Status.HUNG_UP, 3),
        ("acme", Status.HUNG_UP, 4),
    ]


@pytest.mark.parametrize(
    "other", [{"client": "outra"}, {"pin": "1002"}, {"direction": RECEIVED}, {"call": "call-2"}, {"source": "sbc2"}]
)
async def test_what_makes_another_side(store: Store, other: dict[str, str]) -> None:
    await store.append([change(Status.RINGING)], [])
    appended = await store.append([change(Status.RINGING, **other)], [])  # type: ignore[arg-type]
    assert [d.event.sequence for d in appended.deliveries] == [1]


async def test_numbering_goes_on_after_a_restart(store: Store, place: Place) -> None:
    for number, step in enumerate(whole_call(), 1):
        assert [d.event.sequence for d in (await store.append([step], [in_progress()])).deliveries] == [number]
        store = await place.reopen()
    seqs = [delivery.event.seq for delivery in await recovered(place)]
    assert seqs == sorted(set(seqs))
    assert len(seqs) == 4


async def test_an_event_says_what_the_change_said(store: Store, place: Place) -> None:
    said = change(Status.BUSY, 2, pin="São João", direction=RECEIVED)
    (delivery,) = (await store.append([said], [])).deliveries
    event = delivery.event
    assert event.callerid == FIRST == str(UUID(FIRST))
    assert event.id == event_id(Side(Owner("acme", "São João"), RECEIVED), FIRST, Status.BUSY)
    assert (event.client_id, event.direction, event.pin) == ("acme", "received", "São João")
    assert (event.status, event.sequence, event.accepted_at) == (Status.BUSY, 1, BEGINNING)
    data = json.loads(event.payload)
    assert (data["id"], data["callerid"], data["sequencia"], data["pin"]) == (event.id, FIRST, 1, "São João")
    assert (data["tipo"], data["status"], data["fim"]) == ("recebida", "ocupado", "2026-03-01 09:05:09")
    assert (delivery.attempts, delivery.due_at) == (0, None)
    assert [found.event for found in await recovered(place)] == [event]


async def test_nothing_is_told_twice_and_nothing_goes_back(store: Store, place: Place) -> None:
    initiated, ringing, answered, hung_up = whole_call()
    assert (await store.append([ringing, initiated, ringing, answered], [])).events == 2
    assert (await store.append([answered, ringing, initiated], [])).events == 0
    assert (await store.append([hung_up, answered], [])).events == 1
    assert await accepted(place) == [("ringing", 1, FIRST), ("answered", 2, FIRST), ("hung_up", 3, FIRST)]


@pytest.mark.parametrize("first", FINALS)
async def test_after_a_final_comes_nothing(store: Store, place: Place, first: Status) -> None:
    assert (await store.append([change(first, 1), *(change(s, 2) for s in Status)], [over(at=1)])).events == 1
    assert (await store.append([change(s, 2) for s in Status], [])).events == 0
    store = await place.reopen()
    assert (await store.append([change(s, 2) for s in Status], [])).events == 0
    assert await accepted(place) == [(first.value, 1, FIRST)]


async def test_a_repetition_adds_nothing(store: Store, place: Place) -> None:
    changes = [*whole_call()[:2], change(Status.INITIATED, client="outra")]
    appended = await store.append(changes, [in_progress()])
    assert appended.events == 3
    for _ in range(2):
        assert await store.append(changes, [in_progress()]) == Appended()
        store = await place.reopen()
    assert [found.event for found in await recovered(place)] == [delivery.event for delivery in appended.deliveries]


async def test_a_batch_half_of_which_was_accepted_adds_the_rest(store: Store) -> None:
    changes = whole_call()
    await store.append(changes[:2], [])
    appended = await store.append(changes, [over()])
    assert told(appended.deliveries) == [("answered", 3, FIRST), ("hung_up", 4, FIRST)]


async def test_the_two_sides_of_one_call_share_its_callerid(store: Store) -> None:
    appended = await store.append(
        [change(Status.INITIATED), change(Status.INITIATED, client="outra", pin="3001", direction=RECEIVED)], []
    )
    assert [d.event.callerid for d in appended.deliveries] == [FIRST, FIRST]
    assert len({d.event.id for d in appended.deliveries}) == 2


async def test_nothing_is_accepted_of_nothing(store: Store) -> None:
    assert await store.append([], []) == Appended()


async def test_one_big_batch_is_in_order_too(store: Store) -> None:
    changes = [step for n in range(700) for step in whole_call(f"call-{n}")]
    appended = await store.append(changes, [over(f"call-{n}") for n in range(700)])
    assert appended.events == len(changes)
    assert [(d.event.status, d.event.sequence) for d in appended.deliveries] == [
        (status, n) for _ in range(700) for n, status in enumerate([c.status for c in whole_call()], 1)
    ]


# Both sides get their end


@pytest.mark.parametrize("snapshots", [[], [over(at=9)]])
async def test_both_sides_get_their_final_in_one_batch(store: Store, snapshots: list[Snapshot]) -> None:
    await store.append([change(Status.INITIATED), change(Status.INITIATED, direction=RECEIVED)], [in_progress()])
    assert (await store.append([change(Status.BUSY, 9), change(Status.BUSY, 9, direction=RECEIVED)], snapshots)).events == 2


@pytest.mark.parametrize("snapshots", [[], [over(at=9)]])
async def test_both_sides_get_their_final_in_batches_of_their_own(store: Store, place: Place, snapshots: list[Snapshot]) -> None:
    await store.append([change(Status.INITIATED), change(Status.INITIATED, direction=RECEIVED)], [in_progress()])
    assert (await store.append([change(Status.BUSY, 9)], snapshots)).events == 1
    store = await place.reopen()
    appended = await store.append([change(Status.BUSY, 9, direction=RECEIVED)], snapshots)
    assert told(appended.deliveries) == [("busy", 2, FIRST)]


async def test_a_side_that_joins_a_call_that_is_just_ending_gets_its_final(store: Store) -> None:
    """The caller gave up at 5.0; the switch still called somebody at 5.1; the call's end is the caller's."""
    joined = {"direction": RECEIVED, "began": 5.1}
    await store.append([change(Status.INITIATED), change(Status.INITIATED, 5.1, **joined)], [in_progress()])  # type: ignore[arg-type]
    ends = [change(Status.CANCELLED, 5.0), change(Status.CANCELLED, 5.0, **joined)]  # type: ignore[arg-type]
    appended = await store.append(ends, [over(at=5.0)])
    assert told(appended.deliveries) == [("cancelled", 2, FIRST), ("cancelled", 2, FIRST)]
    assert (await store.append(ends, [over(at=5.0)])).events == 0


# Generations


async def test_a_name_that_is_used_again_is_another_call(store: Store, place: Place) -> None:
    for generation, began in enumerate((0, 100, 200)):
        store = await place.reopen()
        appended = await store.append(whole_call(began=began), [over(at=began + 3)])
        expected = callerid(identity(), generation)
        assert told(appended.deliveries) == [("initiated", 1, expected), ("ringing", 2, expected), ("answered", 3, expected),
                                             ("hung_up", 4, expected)]  # fmt: skip
    assert len({d.event.id for d in await recovered(place)}) == 12


async def test_an_end_and_a_new_beginning_in_one_batch(store: Store) -> None:
    await store.append([change(Status.INITIATED)], [in_progress()])
    appended = await store.append(
        [change(Status.BUSY, 1), change(Status.INITIATED, 10, began=10), change(Status.RINGING, 11, began=10)],
        [in_progress(state=b"second")],
    )
    assert told(appended.deliveries) == [("busy", 2, FIRST), ("initiated", 1, SECOND), ("ringing", 2, SECOND)]
    assert await store.open_calls() == [(identity(), b"second")]
    appended = await store.append([change(Status.BUSY, 12, began=10)], [over(at=12)])
    assert told(appended.deliveries) == [("busy", 3, SECOND)]


async def test_three_calls_of_one_name_in_one_batch(store: Store, place: Place) -> None:
    changes = whole_call() + whole_call(began=100) + whole_call(began=200)[:2]
    assert (await store.append(changes, [over(), over(at=103), in_progress(state=b"third")])).events == 10
    assert [call for _, _, call in await accepted(place)] == [FIRST] * 4 + [SECOND] * 4 + [THIRD] * 2
    store = place.stores[-1]
    assert await store.open_calls() == [(identity(), b"third")]
    assert await store.append(changes, [over(), over(at=103), in_progress(state=b"third")]) == Appended()


@pytest.mark.parametrize("is_second_over", [False, True])
async def test_a_repetition_of_the_old_call_adds_nothing_to_the_new_one(store: Store, place: Place, is_second_over: bool) -> None:
    old = whole_call()
    await store.append(old[:2], [in_progress(state=b"first")])
    await store.append(old[2:], [over()])
    new = whole_call(began=100)
    await store.append(new if is_second_over else new[:1], [over(at=103) if is_second_over else in_progress(state=b"second")])
    for _ in range(2):
        assert (await store.append(old, [over()])).events == 0
        assert await store.open_calls() == ([] if is_second_over else [(identity(), b"second")])
        store = await place.reopen()
    assert len(await recovered(place)) == (8 if is_second_over else 5)


async def test_a_batch_that_ends_one_call_and_begins_the_next_may_be_repeated(store: Store) -> None:
    await store.append([change(Status.INITIATED)], [in_progress()])
    batch = [change(Status.BUSY, 1), change(Status.INITIATED, 10, began=10)]
    assert (await store.append(batch, [in_progress(state=b"second")])).events == 2
    assert await store.append(batch, [in_progress(state=b"second")]) == Appended()
    assert told((await store.append([change(Status.BUSY, 12, began=10)], [over(at=12)])).deliveries) == [("busy", 2, SECOND)]


async def test_both_sides_of_the_new_call_are_in_it(store: Store) -> None:
    sides: list[Direction] = [MADE, RECEIVED]
    await store.append([change(Status.BUSY, 1, direction=side) for side in sides], [over(at=1)])
    appended = await store.append([change(Status.INITIATED, 10, began=10, direction=side) for side in sides], [in_progress()])
    assert told(appended.deliveries) == [("initiated", 1, SECOND)] * 2


async def test_a_call_first_seen_in_its_middle_is_told_from_there(store: Store) -> None:
    middle = [change(Status.ANSWERED, 5, began=None), change(Status.HUNG_UP, 9, began=None)]
    appended = await store.append(middle, [over(at=9)])
    assert told(appended.deliveries) == [("answered", 1, FIRST), ("hung_up", 2, FIRST)]
    assert (await store.append(middle, [over(at=9)])).events == 0


async def test_of_a_call_whose_beginning_is_unknown_nothing_new_is_believed_after_its_end(store: Store) -> None:
    await store.append(whole_call(), [over()])
    assert (await store.append([change(Status.HUNG_UP, 20, began=None)], [over(at=20)])).events == 0


# Snapshots


async def test_calls_in_progress_are_kept_over_a_restart(store: Store, place: Place) -> None:
    await store.append([change(Status.INITIATED)], [in_progress(state=b"\x00\xff"), in_progress("call-2", b"two")])
    for again in (place.open, place.reopen):
        calls = await (await again()).open_calls()
        assert dict(calls) == {identity(): b"\x00\xff", identity("call-2"): b"two"}
        assert len(calls) == 2


async def test_the_latest_snapshot_counts(store: Store) -> None:
    await store.append([], [in_progress(state=b"1"), in_progress(state=b"2")])
    assert await store.open_calls() == [(identity(), b"2")]
    await store.append([change(Status.RINGING)], [in_progress(state=b"3")])
    assert await store.open_calls() == [(identity(), b"3")]


async def test_a_call_that_ended_is_no_longer_in_progress(store: Store, place: Place) -> None:
    await store.append([change(Status.INITIATED)], [in_progress(), in_progress("call-2")])
    await store.append([change(Status.BUSY, 1)], [over(at=1)])
    assert await store.open_calls() == [(identity("call-2"), b"state")]
    assert await (await place.reopen()).open_calls() == [(identity("call-2"), b"state")]


async def test_a_call_that_ended_may_be_said_to_have_ended_without_saying_when(store: Store) -> None:
    await store.append([change(Status.INITIATED)], [in_progress()])
    await store.append([change(Status.BUSY, 1)], [Snapshot(identity(), None)])
    assert await store.open_calls() == []
    assert (await store.append([change(Status.INITIATED), change(Status.BUSY, 1)], [])).events == 0


async def test_a_repeated_snapshot_does_not_bring_a_call_back(store: Store) -> None:
    batch: list[StatusChange] = [change(Status.INITIATED)]
    await store.append(batch, [in_progress()])
    await store.append([change(Status.BUSY, 1)], [over(at=1)])
    await store.append(batch, [in_progress()])
    assert await store.open_calls() == []


async def test_calls_of_two_sources_are_two(store: Store) -> None:
    one, two = CallIdentity("sbc1", "call-1"), CallIdentity("sbc2", "call-1")
    await store.append([], [Snapshot(one, b"1"), Snapshot(two, b"2")])
    await store.append([], [Snapshot(one, None, seconds(1))])
    assert await store.open_calls() == [(two, b"2")]


# At once


async def test_many_append_at_once(store: Store, place: Place) -> None:
    calls = {f"call-{n}": whole_call(f"call-{n}") for n in range(60)}

    async def tell(name: str) -> int:
        return sum([(await store.append([step], [in_progress(name)])).events for step in calls[name]])

    assert await asyncio.gather(*(tell(name) for name in calls)) == [4] * 60
    deliveries = await recovered(place)
    assert len({delivery.event.seq for delivery in deliveries}) == 240
    for name in calls:
        mine = [d.event.sequence for d in deliveries if d.event.callerid == callerid(identity(name), 0)]
        assert mine == [1, 2, 3, 4]


async def test_many_append_the_same_at_once(store: Store, place: Place) -> None:
    appended = await asyncio.gather(*(store.append(whole_call(), [over()]) for _ in range(40)))
    assert [a.events for a in appended] == [4] + [0] * 39
    assert await accepted(place) == [
        ("initiated", 1, FIRST),
        ("ringing", 2, FIRST),
        ("answered", 3, FIRST),
        ("hung_up", 4, FIRST),
    ]


async def test_a_mistake_is_its_makers_alone(store: Store) -> None:
    doings = [
        store.append([change(Status.INITIATED)], []),
        store.append([change(Status.INITIATED, pin="\ud800 is no text")], []),
        store.append([change(Status.RINGING, 1)], []),
    ]
    first, wrong, last = await asyncio.gather(*doings, return_exceptions=True)
    assert isinstance(first, Appended)
    assert isinstance(last, Appended)
    assert isinstance(wrong, IllegalStep)
    assert told([*first.deliveries, *last.deliveries]) == [("initiated", 1, FIRST), ("ringing", 2, FIRST)]


async def test_an_append_whose_caller_gave_up_is_accepted_all_the_same(store: Store, place: Place) -> None:
    doings = [asyncio.ensure_future(store.append([step], [])) for step in whole_call()]
    await asyncio.sleep(0)
    doings[1].cancel()
    assert [type(done) for done in await asyncio.gather(*doings, return_exceptions=True)].count(asyncio.CancelledError) == 1
    assert len(await recovered(place)) == 4
