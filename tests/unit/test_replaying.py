"""The replayer on a real store: its rate, its pauses, and what it tells of itself."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.support.clock import ManualClock
from tests.support.stored_calls import BEGINNING, URL, ZONE, a_client, whole_call

from toque.callbacks.callback import Registered
from toque.callbacks.payload import PayloadWriter
from toque.errors import StoreError
from toque.replaying import Replayer
from toque.store.contract import Replay, ReplayState
from toque.store.sqlite import SqliteStore

CALLS = 50


@dataclass
class Bench:
    """A store with a callback that has had 200 events, and a replayer whose clock is moved by hand."""

    store: SqliteStore
    callback_id: int
    clock: ManualClock
    resumed: list[int] = field(default_factory=list)
    parked: set[int] = field(default_factory=set)

    def replayer(self) -> Replayer:
        def resume(callback_ids: Iterable[int]) -> None:
            self.resumed += callback_ids

        return Replayer(self.store, resume, self.parked.__contains__, clock=self.clock.time)

    async def begin(self, rate: float) -> Replay:
        wanted = Replay(0, self.callback_id, BEGINNING, self.clock(), rate=rate, created_at=self.clock())
        return await self.store.add_replay(wanted)

    async def put_back(self) -> int:
        return len(await self.store.backlog(self.callback_id, limit=1000))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    clock = ManualClock(BEGINNING)
    store = SqliteStore(tmp_path / "toque.db", PayloadWriter(ZONE), clock=clock)
    await store.add_client(a_client())
    registered = await store.register_callback("acme", URL, None, None, limit=1)
    assert isinstance(registered, Registered)
    for number in range(CALLS):
        await store.settle((await store.append(whole_call(f"call-{number}"), [])).deliveries)
    clock.advance(60)
    yield Bench(store, registered.callback.id, clock)
    await store.close()


async def test_a_new_replay_begins_at_once_and_goes_on_at_its_rate(bench: Bench) -> None:
    await bench.begin(rate=20)
    replayer = bench.replayer()
    await replayer.turn()
    assert await bench.put_back() == 20
    for step in range(1, 9):
        bench.clock.advance(0.25)
        await replayer.turn()
        assert await bench.put_back() == 20 + 5 * step
    assert set(bench.resumed) == {bench.callback_id}


async def test_what_is_missed_is_made_up_for_by_a_second_at_most(bench: Bench) -> None:
    await bench.begin(rate=20)
    replayer = bench.replayer()
    await replayer.turn()
    bench.clock.advance(60)
    await replayer.turn()
    assert await bench.put_back() == 40


async def test_a_slow_one_goes_on_too(bench: Bench) -> None:
    await bench.begin(rate=0.5)
    replayer = bench.replayer()
    for _ in range(17):  # four seconds
        await replayer.turn()
        bench.clock.advance(0.25)
    assert await bench.put_back() == 3


async def test_it_ends_and_says_so(bench: Bench) -> None:
    begun = await bench.begin(rate=1000)
    with capture_logs() as logs:
        await bench.replayer().turn()
    assert await bench.put_back() == 4 * CALLS
    (done,) = await bench.store.replays()
    assert (done.id, done.state, done.requeued) == (begun.id, ReplayState.DONE, 4 * CALLS)
    assert logs == [
        {"event": "replay.ended", "log_level": "info", "replay": begun.id, "callback": bench.callback_id, "requeued": 4 * CALLS}
    ]


async def test_it_stands_still_while_the_callback_is_parked(bench: Bench) -> None:
    await bench.begin(rate=1000)
    bench.parked.add(bench.callback_id)
    replayer = bench.replayer()
    await replayer.turn()
    assert (await bench.put_back(), bench.resumed) == (0, [])
    bench.parked.clear()
    await replayer.turn()
    assert await bench.put_back() == 4 * CALLS


async def test_a_cancelled_one_goes_no_further(bench: Bench) -> None:
    begun = await bench.begin(rate=20)
    replayer = bench.replayer()
    await replayer.turn()
    assert await bench.store.cancel_replay(begun.id)
    bench.clock.advance(1)
    await replayer.turn()
    assert await bench.put_back() == 20


async def test_another_server_process_goes_on_where_this_one_was(bench: Bench) -> None:
    begun = await bench.begin(rate=20)
    await bench.replayer().turn()
    await bench.replayer().turn()
    assert await bench.put_back() == 40
    (now,) = await bench.store.replays()
    assert replace(now, place=0) == replace(begun, requeued=40, place=0)


async def test_a_store_that_fails_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> list[Replay]:
        raise StoreError("the disk is full")

    await bench.begin(rate=1000)
    replayer = bench.replayer()
    with capture_logs() as logs, monkeypatch.context() as broken:
        broken.setattr(bench.store, "replays", fail)
        await replayer.turn()
    assert logs == [{"event": "replay.failed", "log_level": "warning", "error": "the disk is full"}]
    await replayer.turn()
    assert await bench.put_back() == 4 * CALLS
