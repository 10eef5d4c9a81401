"""Copies between engines that are broken off at every step: the next try goes on, and in the end everything is there once."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.clock import ManualClock
from tests.support.nats_servers import NatsServers
from tests.support.stored_calls import (
    BEGINNING,
    URL,
    ZONE,
    a_client,
    change,
    in_progress,
    left,
    lines,
    seconds,
    settled,
    whole_call,
)

from toque.callbacks.callback import IntakeCredential, KeptHealth, Registered
from toque.callbacks.delivery import DeliveryState
from toque.callbacks.payload import PayloadWriter
from toque.calls.model import Status
from toque.errors import InputError, SettingsError
from toque.store.contract import Replay, ReplayState, Store
from toque.store.copying import Counts, copy
from toque.store.movable import Movable
from toque.store.nats_link import Access
from toque.store.nats_moving import MovableNats
from toque.store.sqlite_moving import MovableSqlite

pytestmark = pytest.mark.nats
KEY = "uma chave bem comprida"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with NatsServers(tmp_path_factory.mktemp("nats")) as servers:
        yield servers


class Places:
    """Opens stores by their names: `nats-…` on the engine, others in files."""

    def __init__(self, engine: NatsServers, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self.clock = ManualClock(BEGINNING)

    def open(self, name: str, key: str | None = KEY) -> Movable:
        payloads = PayloadWriter(ZONE)
        if not name.startswith("nats"):
            return MovableSqlite(self._folder / f"{name}.db", payloads, secret_key=key, clock=self.clock)
        access, prefix = Access(self._engine.addresses), f"{name}-{self._folder.name[-20:]}"
        return MovableNats(access, payloads, prefix=prefix, secret_key=key, clock=self.clock)

    async def copy(self, source: str, target: str, *, steps: int | None = None) -> tuple[Counts, Counts]:
        """Copy; with `steps`, only until so many steps were done."""
        there, here = self.open(source), self.open(target)
        try:
            return await copy(there, here if steps is None else Broken(here, steps), lambda _: None)  # type: ignore[arg-type]
        finally:
            await there.close()
            await here.close()

    async def broken_and_finished(self, source: str, target: str) -> Counts:
        """Copy, broken off once before each step that there is."""
        for steps in range(1, 200):
            try:
                found = await self.copy(source, target, steps=steps)
            except BrokenOff:
                continue
            assert found[0] == found[1]
            assert await self.copy(source, target) == found  # once more adds nothing
            return found[1]
        pytest.fail("it comes to no end")


class BrokenOff(Exception):  # noqa: N818 - a fact
    """The end of a try."""


class Broken:
    """A target whose writer dies: after so many steps, and then after every further one."""

    def __init__(self, target: Movable, steps: int) -> None:
        self._target = target
        self._left = steps

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not name.startswith(("take_", "end_", "put_")):
            return found

        async def step(*values: Any) -> None:
            if not self._left:
                raise BrokenOff
            self._left -= 1
            await found(*values)

        return step


@pytest.fixture
def places(engine: NatsServers, tmp_path: Path) -> Places:
    return Places(engine, tmp_path)


async def fill(store: Store, clock: ManualClock) -> None:
    """Something of every kind."""
    await store.claim()  # type: ignore[attr-defined]
    await store.recover()
    await store.token_key()
    for name in ("acme", "other", "gone"):
        await store.add_client(a_client(name))
    await store.add_lines([*lines("acme", "1001", "554130600300", "5541306004*"), *lines("gone", "1", "5511999990000")])
    await store.add_lines(lines("other", "2002", "554130600500"))
    await store.add_intake(IntakeCredential("discador", "a" * 64, BEGINNING))
    made = []
    for number in range(4):
        registered = await store.register_callback("acme", f"{URL}/{number}", "ana:segredo", None, limit=9)
        assert isinstance(registered, Registered)
        made.append(registered.callback)
    well, parked, disabled, removed = made
    await store.register_callback("gone", URL, None, None, limit=9)
    await store.rotate_callback(well.code, keep_old_for=timedelta(days=1))
    for number in range(6):
        call = f"call-{number}"
        appended = await store.append(whole_call(call, number), [])
        mine = [d for d in appended.deliveries if d.callback_id == well.id]
        others = [d for d in appended.deliveries if d.callback_id in (parked.id, disabled.id, removed.id)]
        await store.settle(mine, left(*others))
    await store.append(whole_call("call-gone", 1, client="gone", pin="1"), [])
    begun = [change(Status.INITIATED, 20, call="open"), change(Status.RINGING, 21, call="open")]
    await store.append(begun, [in_progress("open", b"half a call")])  # nobody settles it: a server that crashed
    waiting = await store.backlog(parked.id)
    await store.settle([], [settled(waiting[0], DeliveryState.WAITING, 3, seconds(500)), settled(waiting[5], DeliveryState.DEAD)])
    await store.keep_health(parked.id, KeptHealth(seconds(2)))
    await store.disable_callback(disabled.id, "by hand")
    await store.remove_callback("acme", removed.code)
    await store.remove_client("gone")
    await store.disable_client("other", seconds(3))
    clock.advance(60)
    await store.add_replay(Replay(0, well.id, None, seconds(900), created_at=seconds(60)))
    ended = await store.add_replay(Replay(0, parked.id, None, seconds(900), created_at=seconds(61)))
    await store.cancel_replay(ended.id)


async def all_of(store: Store) -> dict[str, Any]:
    """What the world can see of a store, but for the numbers of rows."""
    registry = await store.registry()
    return {
        "clients": list(registry.clients.values()),
        "lines": registry.lines,
        "callbacks": list(registry.callbacks.values()),
        "health": {number: one.health for number, one in registry.callbacks.items()},
        "intakes": list(registry.intakes.values()),
        "token key": await store.token_key(),
        "calls": sorted(await store.open_calls(), key=str),
        "waiting": {n: [(d.event, d.attempts, d.due_at, d.age_s) for d in await store.backlog(n)] for n in registry.callbacks},
        "dead": {
            n: [(d.delivery.event, d.delivery.attempts, d.died_at, d.outcome) for d in await store.dead(n)]
            for n in registry.callbacks
        },
        "replays": await store.replays(),
    }


async def seen(places: Places, name: str) -> dict[str, Any]:
    store = places.open(name)
    try:
        return await all_of(store)
    finally:
        await store.close()


async def test_a_copy_that_breaks_off_anywhere_is_finished_in_both_directions(places: Places) -> None:
    store = places.open("first")
    await fill(store, places.clock)
    await store.close()
    there = await places.broken_and_finished("first", "nats-a")
    assert min(there.values()) > 0, there  # something of every kind
    original = await seen(places, "first")
    assert await seen(places, "nats-a") == original
    assert await places.broken_and_finished("nats-a", "back") == there
    assert await seen(places, "back") == original
    assert (await places.copy("nats-a", "nats-b"))[1] == there
    assert await seen(places, "nats-b") == original
    for name in ("nats-a", "back"):
        await goes_on(places.open(name))


async def goes_on(store: Movable) -> None:
    """What a server does next with a copy is what it would have done with the original."""
    try:
        await store.claim()
        assert await store.recover() == [1, 2]
        appended = await store.append([change(Status.HUNG_UP, 30, call="open")], [])
        assert {(d.event.sequence, d.callback_id) for d in appended.deliveries} == {(3, 1), (3, 2)}
        assert appended.deliveries[0].event.seq == 31
        assert (await store.append(whole_call("call-1", 1), [])).events == 0  # it has been told
        await store.settle([], left(*appended.deliveries))
        assert [d.event.seq for d in await store.backlog(2)][-1] == 31
        replay = (await store.replays())[0]
        while replay.state is ReplayState.RUNNING:
            found = await store.requeue(replay.id, 100)
            assert found is not None
            replay = found
        assert replay.requeued == 24
        events = await store.events_of(appended.deliveries[0].event.callerid)
        assert [event.sequence for event in events] == [1, 2, 3]
        registered = await store.register_callback("acme", f"{URL}/new", None, None, limit=9)
        assert isinstance(registered, Registered)
        assert registered.callback.id > 5  # no number is given twice
        waits = {number: len(await store.backlog(number)) for number in (1, 2)}
        while await store.housekeep(keep=timedelta()):
            pass
        assert await store.backlog_sizes() == waits
        assert (await store.append(whole_call("call-1", 1), [])).events == 0
    finally:
        await store.close()


async def test_what_is_in_use_is_no_target_and_what_was_used_since_is_another_source(places: Places) -> None:
    store = places.open("first")
    await store.add_client(a_client())
    await store.claim()
    with pytest.raises(SettingsError, match="another toque server uses"):
        await places.copy("first", "second")
    await store.close()
    store = places.open("used")
    await store.add_client(a_client("other"))
    await store.close()
    with pytest.raises(InputError, match="is in use"):
        await places.copy("first", "used")
    with pytest.raises(BrokenOff):
        await places.copy("first", "second", steps=3)
    with pytest.raises(InputError, match="no source"):
        await places.copy("second", "third")
    store = places.open("first")
    await store.add_client(a_client("new"))
    await store.close()
    with pytest.raises(InputError, match="was used since"):
        await places.copy("first", "second")


async def test_a_copy_that_broke_off_before_its_first_document_is_finished(places: Places) -> None:
    store = places.open("first")
    await fill(store, places.clock)
    version = await store.registry_version()
    await store.close()
    with pytest.raises(BrokenOff):
        await places.copy("first", "nats-e", steps=1)
    store = places.open("nats-e")
    assert isinstance(store, MovableNats)
    await store.claim()
    await store._make_room(version)
    await store.close()
    there, here = await places.copy("first", "nats-e")
    assert there == here


async def test_secrets_are_sealed_in_the_target(places: Places) -> None:
    store = places.open("first")
    await fill(store, places.clock)
    await store.close()
    await places.copy("first", "nats-d")
    with pytest.raises(SettingsError, match="TOQUE_SECRET_KEY"):
        places.open("first", key=None)
    store = places.open("nats-d", key=None)
    with pytest.raises(SettingsError, match="TOQUE_SECRET_KEY"):
        await store.registry()
    await store.close()
