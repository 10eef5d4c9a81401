"""Answers of the engine that get lost, and writers that come between: nothing is written twice, and nothing is lost."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.support.nats_servers import NatsServers, drop_streams
from tests.support.stored_calls import URL, ZONE, a_client, change, in_progress, left, lines, over, seconds, settled, whole_call

from toque.callbacks.callback import Registered
from toque.callbacks.delivery import Delivery, DeliveryState
from toque.callbacks.payload import PayloadWriter
from toque.calls.model import Status
from toque.errors import InputError, StoreError
from toque.store import nats_accepting, nats_registry, nats_work
from toque.store.nats import NatsStore
from toque.store.nats_link import Access, Answer, Unanswered
from toque.store.nats_rows import is_late

pytestmark = pytest.mark.nats


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with NatsServers(tmp_path_factory.mktemp("nats")) as servers:
        yield servers


@pytest.fixture
async def opened(server: NatsServers, tmp_path: Path) -> AsyncIterator[Callable[[], NatsStore]]:
    """Opens stores on the same data."""
    stores: list[NatsStore] = []
    prefix = f"doubt-{tmp_path.name[-30:]}".replace("[", "_").replace("]", "_")

    def do() -> NatsStore:
        stores.append(NatsStore(Access(server.addresses), PayloadWriter(ZONE), prefix=prefix))
        return stores[-1]

    yield do
    for store in stores:
        await store.close()
    await drop_streams(server, prefix)


@pytest.fixture
async def store(opened: Callable[[], NatsStore]) -> NatsStore:
    store = opened()
    await store.add_client(a_client())
    assert isinstance(await store.register_callback("acme", URL, None, None, limit=100), Registered)
    assert await store.recover() == []
    return store


@contextmanager
def losing(store: NatsStore, subject: str, times: int, *, is_done: bool = True, is_read: bool = False) -> Iterator[list[str]]:
    """So many answers to messages on this subject are lost; with `is_done` False the messages themselves are.

    With `is_read`, this very store comes across them in between.
    """
    link, lost = store._link, []
    answer = link.answer

    async def lossy(to: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, timeout_s: float = 3.0) -> Answer:
        if subject in to and len(lost) < times:
            lost.append(to)
            if is_done:
                await answer(to, body, headers, timeout_s=timeout_s)
            if is_read:
                await store.backlog_sizes()
            raise Unanswered("lost")
        return await answer(to, body, headers, timeout_s=timeout_s)

    link.answer = lossy  # type: ignore[method-assign]
    try:
        yield lost
    finally:
        link.answer = answer  # type: ignore[method-assign]


@contextmanager
def without_patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever is not answered tells its caller at once."""
    with monkeypatch.context() as patch:
        patch.setattr(nats_accepting, "_PATIENCE_S", 0.0)
        patch.setattr(nats_work, "_PATIENCE_S", 0.0)
        patch.setattr(nats_registry, "_PATIENCE_S", 0.0)
        yield


async def told_after_a_restart(opened: Callable[[], NatsStore], store: NatsStore) -> list[tuple[str, int]]:
    await store.close()
    again = opened()
    (callback_id,) = await again.recover()
    found = await again.backlog(callback_id, limit=1000)
    assert await again.backlog_sizes() == {callback_id: len(found)}
    return [(d.event.callerid, d.event.sequence) for d in found]


def named(deliveries: list[Delivery]) -> list[tuple[str, int]]:
    return [(d.event.callerid, d.event.sequence) for d in deliveries]


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize("subject", [".log.", ".work.snapshots"])
async def test_an_append_whose_answer_is_lost_is_accepted_once(
    opened: Callable[[], NatsStore], store: NatsStore, subject: str, is_done: bool
) -> None:
    with losing(store, subject, 2, is_done=is_done) as lost:
        appended = await store.append(whole_call()[:3], [in_progress()])
    assert lost
    assert (appended.events, [d.event.sequence for d in appended.deliveries]) == (3, [1, 2, 3])
    last = await store.append(whole_call(), [over()])
    assert [d.event.sequence for d in last.deliveries] == [4]
    assert await store.open_calls() == []
    assert await told_after_a_restart(opened, store) == named([*appended.deliveries, *last.deliveries])


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize("subject", [".log.", ".work.snapshots"])
async def test_deliveries_of_an_append_that_failed_and_was_done_come_with_the_next_try(
    opened: Callable[[], NatsStore], store: NatsStore, monkeypatch: pytest.MonkeyPatch, subject: str, is_done: bool
) -> None:
    changes = whole_call()
    with without_patience(monkeypatch), losing(store, subject, 1, is_done=is_done), pytest.raises(StoreError):
        await store.append(changes[:2], [in_progress()])
    appended = await store.append(changes[:3], [in_progress()])
    assert (appended.events, [d.event.sequence for d in appended.deliveries]) == (3, [1, 2, 3])
    await store.settle(appended.deliveries[:1])
    assert [seq for _, seq in await told_after_a_restart(opened, store)] == [2, 3]


async def test_a_message_that_comes_late_is_not_lost(
    opened: Callable[[], NatsStore], store: NatsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given up, and lands just before the next one."""
    late: list[tuple[str, bytes, Mapping[str, str] | None]] = []
    link, answer = store._link, store._link.answer

    async def delayed(to: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, timeout_s: float = 3) -> Answer:
        if ".log." in to and not late:
            late.append((to, body, headers))
            raise Unanswered("late")
        if ".log." in to and len(late) == 1:
            late.append(late[0])
            await answer(*late[0])
        return await answer(to, body, headers, timeout_s=timeout_s)

    link.answer = delayed  # type: ignore[method-assign]
    with without_patience(monkeypatch), pytest.raises(StoreError):
        await store.append(whole_call()[:2], [])
    appended = await store.append(whole_call(), [])
    assert len(late) == 2
    assert (appended.events, [d.event.sequence for d in appended.deliveries]) == (4, [1, 2, 3, 4])
    assert len({d.event.seq for d in appended.deliveries}) == 4
    assert [seq for _, seq in await told_after_a_restart(opened, store)] == [1, 2, 3, 4]


@pytest.mark.parametrize("has_patience", [True, False])
@pytest.mark.parametrize(("is_done", "is_read"), [(True, False), (False, False), (True, True)])
async def test_a_settlement_whose_answer_is_lost_is_written_once(
    opened: Callable[[], NatsStore],
    store: NatsStore,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_done: bool,
    is_read: bool,
    has_patience: bool,
) -> None:
    """Also if somebody reads what was written before the answer is given up."""
    offered = (await store.append([change(Status.INITIATED, call=f"call-{n}") for n in range(6)], [])).deliveries
    dead = settled(offered[1], DeliveryState.DEAD)
    others = [dead, *left(*offered[2:4]), settled(offered[4], DeliveryState.WAITING, 2, seconds(60))]
    with losing(store, ".work.", 1, is_done=is_done, is_read=is_read) as lost:
        if has_patience:
            await store.settle(offered[:1], others)
        else:
            with without_patience(monkeypatch), nullcontext() if is_read else pytest.raises(StoreError):
                await store.settle(offered[:1], others)
            await store.settle(offered[:1], others)
    assert len(lost) == 1
    (callback_id,) = await store.backlog_sizes()
    found = await store.backlog(callback_id)
    assert [d.event.seq for d in found] == [3, 4, 5]
    assert [d.row for d in found] == [d.row for d in offered[2:5]]
    assert [one.delivery.event.seq for one in await store.dead(callback_id)] == [2]
    await store.settle(found[:1])
    await store.close()
    again = opened()
    assert await again.recover() == [callback_id]
    assert [d.event.seq for d in await again.backlog(callback_id)] == [4, 5, 6]
    assert await again.backlog_sizes() == {callback_id: 3}


@pytest.mark.parametrize("is_done", [True, False])
async def test_a_registration_whose_answer_is_lost_is_made_once(store: NatsStore, is_done: bool) -> None:
    with losing(store, "_registry.", 1, is_done=is_done):
        await store.add_client(a_client("outra"))
    with losing(store, "_registry.", 1, is_done=is_done):
        registered = await store.register_callback("outra", URL, None, None, limit=1)
    assert isinstance(registered, Registered)
    assert registered.is_new
    with losing(store, "_registry.", 1, is_done=is_done):
        assert await store.add_lines(lines("outra", "1001", "554130600300")) == 1
    registry = await store.registry()
    assert [one.code for one in registry.callbacks_of("outra")] == [registered.callback.code]
    with pytest.raises(InputError):
        await store.add_client(a_client("outra"))


async def test_two_who_append_the_same_at_once_tell_it_once(opened: Callable[[], NatsStore], store: NatsStore) -> None:
    """As two nodes on one switch would: each status has one number, whoever was quicker."""
    other = opened()
    await other.registry()
    calls = [whole_call(f"call-{n}") for n in range(10)]
    found = await asyncio.gather(*(one.append([step], []) for call in calls for step in call for one in (store, other)))
    deliveries = [delivery for appended in found for delivery in appended.deliveries]
    assert sum(appended.events for appended in found) == len(deliveries) == 40
    lanes: dict[str, list[int]] = {}
    for delivery in sorted(deliveries, key=lambda one: one.event.seq):
        lanes.setdefault(delivery.event.callerid, []).append(delivery.event.sequence)
    assert list(lanes.values()) == [[1, 2, 3, 4]] * 10
    assert sorted(delivery.event.seq for delivery in deliveries) == list(range(1, 41))


async def test_boxes_that_were_written_down_in_part_count_right(opened: Callable[[], NatsStore], store: NatsStore) -> None:
    """A crash in the middle of writing them down: some are newer than the mark."""
    offered = (await store.append(whole_call() + whole_call("call-2"), [])).deliveries
    await store.settle([], left(*offered[1:5]))
    await store.settle([], left(offered[0]))  # which goes before what comes after it
    assert is_late(offered[0].row)
    boxes = store._work.boxes
    await boxes._state.put_all([boxes._draft(number, box) for number, box in boxes.items()])
    (callback_id,) = await store.backlog_sizes()
    await store.settle(offered[1:2])
    await store.close()
    again = opened()
    assert await again.backlog_sizes() == {callback_id: 4}
    assert await again.recover() == [callback_id]
    assert await again.backlog_sizes() == {callback_id: 7}
    assert [d.event.seq for d in await again.backlog(callback_id)] == [1, 3, 4, 5, 6, 7, 8]


async def test_a_box_that_was_emptied_when_it_was_written_down_in_part_counts_right(
    opened: Callable[[], NatsStore], store: NatsStore
) -> None:
    offered = (await store.append([change(Status.INITIATED, call=f"call-{n}") for n in range(8)], [])).deliveries
    await store.settle([], left(*offered[:5]))
    await store._work.tidy(is_forced=True)
    await store.settle(offered[:5])
    put, written = store._layout.state.put, []

    async def crash(subject: str, *_: object, **__: object) -> int:
        written.append(subject)
        raise StoreError("it ends here")

    store._layout.state.put = crash  # type: ignore[method-assign]
    await store._work.tidy(is_forced=True)
    assert [subject.rpartition(".")[2] for subject in written] == ["work"]
    store._layout.state.put = put  # type: ignore[method-assign]
    await store.settle([], left(*offered[5:]))
    await store.close()
    again = opened()
    (callback_id,) = await again.recover()
    assert await again.backlog_sizes() == {callback_id: 3}
    await again.settle(await again.backlog(callback_id))
    await again._work.tidy(is_forced=True)
    await again.close()
    last = opened()
    assert await last.recover() == []
    assert await last.backlog_sizes() == {}


async def test_what_is_being_accepted_is_not_taken_for_written_back(opened: Callable[[], NatsStore], store: NatsStore) -> None:
    """The segment is in the log, its snapshots are under way, and it is time to write the calls into their table."""
    began, go_on = asyncio.Event(), asyncio.Event()
    put = store._calls.put_snapshots

    async def slow(nonce: str, rows: Sequence[Any]) -> None:
        began.set()
        await go_on.wait()
        await put(nonce, rows)

    await store.append(whole_call("before")[:1], [])
    store._calls.put_snapshots = slow  # type: ignore[method-assign]
    appending = asyncio.ensure_future(store.append(whole_call()[:2], [in_progress()]))
    await began.wait()
    while store._log.tail.last_seq < 3:
        await asyncio.sleep(0)
    writing = asyncio.ensure_future(store._accepting.write_back())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(appending, writing)
    await store.close()
    again = opened()
    assert [d.event.sequence for d in (await again.append(whole_call(), [over()])).deliveries] == [3, 4]


async def test_calls_that_went_into_the_table_are_known_from_there(opened: Callable[[], NatsStore], store: NatsStore) -> None:
    calls = [f"call-{n}" for n in range(30)]
    for name in calls:
        await store.append(whole_call(name)[:2], [in_progress(name, name.encode())])
    await store._accepting.write_back()
    assert not store._calls.has_changed
    assert {identity.key: state for identity, state in await store.open_calls()} == {name: name.encode() for name in calls}
    await store.close()
    again = opened()
    assert len(await again.open_calls()) == 30
    appended = await again.append([step for name in calls for step in whole_call(name)], [over(name) for name in calls])
    assert [d.event.sequence for d in appended.deliveries] == [3, 4] * 30
    assert await again.open_calls() == []
    await again._accepting.write_back()
    assert await again.open_calls() == []
    assert (await again.append([step for name in calls for step in whole_call(name)], [])).events == 0
