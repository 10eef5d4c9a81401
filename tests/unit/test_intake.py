"""The intake: durable before offered, in order, nothing given up; what a store or a bug of ours does to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from structlog.testing import capture_logs
from tests.support.clock import START, ManualClock
from tests.support.sip_messages import CALLER, DIALLED, ProxiedCall

import toque.intake
from toque.callbacks.callback import Client
from toque.callbacks.delivery import Delivery, Event
from toque.callbacks.payload import PayloadWriter
from toque.calls import tracked
from toque.calls.call import Call
from toque.calls.hep_packet import SIP, HepPacket
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import CallIdentity, Snapshot, Status, StatusChange
from toque.calls.sip_watch import SipWatch
from toque.calls.tracker import Patience
from toque.errors import IllegalStep, InputError, StoreError
from toque.intake import Intake
from toque.store.contract import Appended
from toque.store.sqlite import SqliteStore
from toque.telemetry import Sparingly

LINES = LineBook.of([parse_line("client", "central", CALLER)])
WHOLE_CALL = [Status.INITIATED, Status.RINGING, Status.ANSWERED, Status.HUNG_UP]
KEEP_ALIVE = HepPacket(b"\r\n\r\n", SIP, None, "192.0.2.1:5060", "192.0.2.2:5060")


def told(changes: Iterable[StatusChange]) -> list[tuple[str, Status]]:
    """Which call was told what."""
    return [(change.identity.key.partition("@")[0], change.status) for change in changes]


class StoreDouble:
    """Takes changes while its gate is open, refuses as it is told to, remembers everything."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.tries: list[list[tuple[str, Status]]] = []
        self.taken: list[StatusChange] = []
        self.snapshots: dict[CallIdentity, Snapshot] = {}
        self.stored: list[tuple[CallIdentity, bytes]] = []
        self.failures = 0
        self.poisoned: set[str] = set()
        self.before: Callable[[], None] = lambda: None

    async def append(self, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot]) -> Appended:
        self.tries.append(told(changes))
        await asyncio.sleep(0)
        await self.gate.wait()
        self.before()
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is full")
        identities = [change.identity for change in changes] + [snapshot.identity for snapshot in snapshots]
        if any(identity.key.partition("@")[0] in self.poisoned for identity in identities):
            raise IllegalStep("a side cannot be told twice")
        new = [change for change in changes if change not in self.taken]
        self.taken += new
        self.snapshots.update((snapshot.identity, snapshot) for snapshot in snapshots)
        return Appended(len(new), [delivery_of(change) for change in new])

    async def open_calls(self) -> list[tuple[CallIdentity, bytes]]:
        return self.stored


def delivery_of(change: StatusChange) -> Delivery:
    call, status = told([change])[0]
    return Delivery(Event(1, f"{call}.{status}", "client", call, "made", "central", status, 1, START, "{}"), 1)


@dataclass
class Desk:
    """An intake at work, and everything around it."""

    store: Any
    clock: ManualClock = field(default_factory=ManualClock)
    offered: list[str] = field(default_factory=list)
    naps: list[float] = field(default_factory=list)
    nap_over: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.watch = SipWatch("hep", LINES)
        self.intake = Intake(self.store, self._offer, clock=self.clock, patience=Patience(), sleep=self._sleep)
        self.intake.add(self.watch)

    def _offer(self, deliveries: Iterable[Delivery]) -> None:
        self.offered += [delivery.event.id for delivery in deliveries]

    async def _sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.nap_over.clear()
        await self.nap_over.wait()

    def feed(self, packets: Iterable[HepPacket]) -> None:
        for packet in packets:
            self.intake.receive(self.watch, packet)

    async def rest(self) -> None:
        """Until the intake has done all that it can do now."""
        for _ in range(30):
            await asyncio.sleep(0)

    async def wake(self, seconds: float = 0) -> None:
        """Let time pass, and have the intake notice it."""
        self.clock.advance(seconds)
        self.feed([KEEP_ALIVE])
        await self.rest()

    async def end_nap(self) -> None:
        self.nap_over.set()
        await self.wake()


@asynccontextmanager
async def at_work(made: Desk) -> AsyncIterator[Desk]:
    async with asyncio.TaskGroup() as parts:  # so that a test ends when the intake does
        running = parts.create_task(made.intake.run())
        yield made
        running.cancel()


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    async with at_work(Desk(StoreDouble())) as made:
        yield made


def whole_call(name: str = "call", **parts: str) -> list[HepPacket]:
    call = ProxiedCall(name, **parts)
    call.invite()
    call.ring()
    call.answer()
    call.hang_up()
    return call.packets


def call_in_parts(name: str = "call") -> tuple[list[HepPacket], list[HepPacket]]:
    """What comes up to the answer, and the rest."""
    call = ProxiedCall(name)
    call.invite()
    call.ring()
    call.answer()
    first = list(call.packets)
    call.hang_up()
    return first, call.packets[len(first) :]


def statuses(offered: Iterable[str], call: str = "call") -> list[Status]:
    return [Status(name.partition(".")[2]) for name in offered if name.partition(".")[0] == call]


# The way of a change


async def test_deliveries_are_offered_only_once_they_are_durable() -> None:
    async with desk() as at:
        at.store.gate.clear()
        at.feed(whole_call())
        await at.rest()
        assert len(at.store.tries) == 1
        assert at.offered == []
        at.store.gate.set()
        await at.rest()
        assert statuses(at.offered) == WHOLE_CALL
        assert at.intake.events == 4


async def test_what_is_seen_during_an_append_is_the_next_one() -> None:
    async with desk() as at:
        first, rest = call_in_parts()
        at.store.gate.clear()
        at.feed(first)
        await at.rest()
        at.feed(rest)
        await at.rest()
        assert len(at.store.tries) == 1
        at.store.gate.set()
        await at.rest()
        assert [len(batch) for batch in at.store.tries] == [3, 1]
        assert statuses(at.offered) == WHOLE_CALL


async def test_the_state_of_a_call_is_stored_with_its_changes_and_ended_with_its_end() -> None:
    async with desk() as at:
        first, rest = call_in_parts()
        at.feed(first)
        await at.rest()
        (snapshot,) = at.store.snapshots.values()
        assert snapshot.state is not None
        at.feed(rest)
        await at.rest()
        (snapshot,) = at.store.snapshots.values()
        assert snapshot.state is None


async def test_what_is_nothing_costs_no_append() -> None:
    async with desk() as at:
        at.feed([KEEP_ALIVE] * 10)
        await at.wake(3600)
        assert at.store.tries == []


async def test_conclusions_come_without_any_packet() -> None:
    async with desk() as at:
        first, _ = call_in_parts()
        at.feed(first)
        await at.wake(5 * 3600)
        assert statuses(at.offered) == WHOLE_CALL
        assert at.store.taken[-1].facts.is_inferred


async def test_a_packet_that_cannot_be_understood_is_the_senders_to_know() -> None:
    async with desk() as at:
        with pytest.raises(InputError):
            at.intake.receive(at.watch, HepPacket(b"no sip\r\n\r\n", SIP, None, "", ""))
        at.feed(whole_call())
        await at.rest()
        assert statuses(at.offered) == WHOLE_CALL


async def test_new_lines_count_for_the_calls_that_begin_then() -> None:
    async with desk() as at:
        first, rest = call_in_parts("old")
        at.feed(first)
        at.intake.apply(LineBook.of([parse_line("other", "pin", DIALLED)]))
        at.feed(rest)
        at.feed(whole_call("new"))
        await at.rest()
        assert {change.side.owner.client_id for change in at.store.taken if change.identity.key.startswith("old")} == {"client"}
        assert {change.side.owner.client_id for change in at.store.taken if change.identity.key.startswith("new")} == {"other"}


async def test_watches_of_several_sources_are_taken_in_together() -> None:
    async with desk() as at:
        other = SipWatch("other", LINES)
        at.intake.add(other)
        at.feed(whole_call())
        for packet in whole_call():
            at.intake.receive(other, packet)
        await at.rest()
        assert [change.identity.source for change in at.store.taken] == ["hep"] * 4 + ["other"] * 4
        assert at.intake.calls == 2


# A store that fails


async def test_nothing_is_lost_or_reordered_while_the_store_fails() -> None:
    async with desk() as at:
        first, rest = call_in_parts()
        at.store.failures = 3
        with capture_logs() as logs:
            at.feed(first)
            await at.rest()
            assert at.naps == [0.5]
            at.feed(rest)
            for _ in range(3):
                await at.end_nap()
        assert [(log["event"], log["log_level"]) for log in logs] == [("event.append_failed", "error")] * 3
        assert statuses(at.offered) == WHOLE_CALL
        assert at.store.tries[-1] == [("call", status) for status in WHOLE_CALL]
        assert [len(batch) for batch in at.store.tries] == [3, 4, 4, 4]
        assert len(at.naps) == 3


async def test_while_the_store_fails_calls_are_concluded_and_forgotten_all_the_same() -> None:
    """Or a long outage would cost memory for every call that passes."""
    async with desk() as at:
        at.store.failures = 2
        first, _ = call_in_parts()
        at.feed(first)
        at.feed(whole_call("unmatched", caller="100"))
        await at.rest()
        assert at.intake.calls == 2
        at.clock.advance(4 * 3600)
        await at.end_nap()
        assert at.intake.calls == 1
        await at.end_nap()
        assert statuses(at.offered) == WHOLE_CALL


async def test_sources_are_held_back_while_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toque.intake, "MAX_WAITING_CHANGES", 7)
    async with desk() as at:
        at.store.failures = 1
        at.feed(whole_call("a"))
        assert not at.intake.is_full()
        await at.rest()  # the store does not take them, so they still count
        at.feed(whole_call("b"))
        assert at.intake.is_full()
        await at.end_nap()
        assert not at.intake.is_full()
        assert len(at.offered) == 8


async def test_after_an_outage_what_waits_goes_in_parts_and_a_calls_state_not_before_its_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toque.intake, "_CHANGES_AT_ONCE", 5)
    async with desk() as at:
        at.store.failures = 1
        for packets in zip(*(whole_call(name) for name in "abc"), strict=True):
            at.feed(packets)
        parts: list[tuple[int, list[str]]] = []

        def note() -> None:
            parts.append((len(at.store.tries[-1]), [identity.key[0] for identity in at.store.snapshots]))

        at.store.before = note
        await at.rest()
        assert parts == [(5, [])]
        await at.end_nap()
        assert parts[1:] == [(5, []), (5, []), (2, ["a"])]  # what was there before each part
        assert [snapshot.identity.key[0] for snapshot in at.store.snapshots.values()] == ["a", "b", "c"]
        for name in "abc":
            assert statuses(at.offered, name) == WHOLE_CALL


async def test_an_error_that_is_no_store_error_ends_the_intake() -> None:
    made = Desk(StoreDouble())

    def fail() -> None:
        raise ZeroDivisionError

    made.store.before = fail
    made.feed(whole_call())
    with pytest.raises(ZeroDivisionError):
        await made.intake.run()


# A bug of ours


async def test_a_call_that_the_store_refuses_for_good_takes_no_other_with_it() -> None:
    async with desk() as at:
        at.store.poisoned = {"b"}
        with capture_logs() as logs:
            for name in "abc":
                at.feed(whole_call(name))
            await at.rest()
            at.feed(whole_call("d"))
            await at.rest()
        assert [(log["event"], log["log_level"], log["events"]) for log in logs] == [("call.unacceptable", "critical", 4)]
        assert logs[0]["call"].startswith("b@")
        for name in "acd":
            assert statuses(at.offered, name) == WHOLE_CALL
        assert statuses(at.offered, "b") == []
        assert at.naps == []


async def test_a_store_that_fails_while_calls_are_sorted_out_loses_nothing() -> None:
    """What was appended by then is offered, once; the rest is tried again."""
    async with desk() as at:
        at.store.poisoned = {"b"}

        def fail_at_the_third() -> None:
            if len(at.store.tries) == 3:
                at.store.failures = 1

        at.store.before = fail_at_the_third
        with capture_logs():
            for name in "abc":
                at.feed(whole_call(name))
            await at.rest()
            assert at.naps == [0.5]
            assert [name.partition(".")[0] for name in at.offered] == ["a"] * 4
            await at.end_nap()
        assert at.store.tries[3:] == [[(name, status) for name in "bc" for status in WHOLE_CALL], *(
            [(name, status) for status in WHOLE_CALL] for name in "bc"
        )]  # fmt: skip
        assert [name.partition(".")[0] for name in at.offered] == ["a"] * 4 + ["c"] * 4


async def test_a_snapshot_that_the_store_refuses_is_told_too() -> None:
    async with desk() as at:
        first, rest = call_in_parts("b")
        at.feed(first)
        await at.rest()
        at.store.poisoned = {"b"}
        with capture_logs() as logs:
            at.feed(rest)
            at.feed(whole_call("a"))
            await at.rest()
        assert [log["event"] for log in logs] == ["call.unacceptable"]
        assert statuses(at.offered, "a") == WHOLE_CALL


async def test_the_watch_forgets_a_call_that_the_store_refuses_for_good() -> None:
    async with desk() as at:
        at.store.poisoned = {"b"}
        with capture_logs():
            at.feed(whole_call("b"))
            await at.rest()
        assert (at.intake.calls, len(at.watch.dialogs), len(at.watch.legs)) == (0, 0, 0)
        at.store.poisoned = set()
        at.feed(whole_call("b"))
        await at.rest()
        assert statuses(at.offered, "b") == WHOLE_CALL


# Calls of nobody


async def test_calls_of_nobody_that_are_too_many_are_forgotten_and_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked, "MAX_UNMATCHED", 20)
    async with desk() as at:
        with capture_logs() as logs:
            for number in range(100):
                call = ProxiedCall(f"n{number}", "5521999990003", "5521999990004")
                call.invite()
                at.feed(call.packets)
                await at.rest()
                assert at.intake.calls <= 20
    assert {(log["event"], log["log_level"], log["source"]) for log in logs} == {("call.crowded", "warning", "hep")}
    assert len(logs) == 20  # a minute
    assert 0 < logs[0]["forgotten"] < logs[-1]["forgotten"] < 80  # since the start


async def test_calls_of_nobody_are_counted_and_told_with_masked_numbers() -> None:
    async with desk() as at:
        with capture_logs() as logs:
            at.feed(whole_call(caller="5521999990003"))
            await at.rest()
        assert at.intake.unmatched == 1
        assert at.store.tries == []
        (log,) = logs
        assert log["event"] == "call.unmatched"
        assert (log["caller"], log["dialled"]) == ("552199999****", "551197777****")


async def test_numbers_are_shown_where_the_operator_wants_that() -> None:
    store = StoreDouble()
    made = Desk(store)
    made.intake = Intake(store, print, clock=made.clock, mask=lambda number: number)
    made.intake.add(made.watch)
    async with at_work(made) as at:
        with capture_logs() as logs:
            at.feed(whole_call(caller="5521999990003"))
            await at.rest()
        assert logs[0]["caller"] == "5521999990003"


async def test_a_flood_of_them_floods_no_log() -> None:
    async with desk() as at:
        at.intake._sparingly = Sparingly(at.clock.time)
        with capture_logs() as logs:
            for number in range(100):
                at.feed(whole_call(f"call{number}", caller="100"))
            await at.rest()
            assert len(logs) == 20
            await at.wake(60)
            at.feed(whole_call("last", caller="100"))
            await at.rest()
        assert at.intake.unmatched == 101
        assert len(logs) == 21
        assert logs[-1]["held_back"] == 80
        assert logs[-1]["unmatched"] == 101


# Over a restart


@asynccontextmanager
async def real_store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path / "toque.db", PayloadWriter(ZoneInfo("America/Sao_Paulo")))
    try:
        with suppress(InputError):  # it is there from the run before
            await store.add_client(Client("client", "Client", "no hash", 1, START))
        yield store
    finally:
        await store.close()


async def accepted(store: SqliteStore, count: int, made: Desk) -> None:
    """Wait until so many events have been accepted by a real store."""
    async with asyncio.timeout(10):
        while made.intake.events < count:
            await store.ping()


async def test_a_call_goes_on_after_a_restart(tmp_path: Path) -> None:
    first, rest = call_in_parts()
    async with real_store(tmp_path) as store, at_work(Desk(store)) as at:
        at.feed(first)
        await accepted(store, 3, at)
    async with real_store(tmp_path) as store:
        made = Desk(store)
        assert await made.intake.restore() == 1
        assert made.intake.calls == 1
        async with at_work(made) as at:
            at.feed(first[-2:])  # a switch repeats itself
            at.feed(rest)
            await accepted(store, 1, at)
        assert made.intake.events == 1
        assert await store.open_calls() == []


async def test_a_call_whose_source_is_gone_is_concluded_in_time(tmp_path: Path) -> None:
    first, _ = call_in_parts()
    async with real_store(tmp_path) as store:
        async with at_work(Desk(store)) as at:
            at.feed(first)
            await accepted(store, 3, at)
        made = Desk(store)
        made.intake = Intake(store, made._offer, clock=made.clock, patience=Patience(answered=timedelta(hours=1)))
        with capture_logs() as logs:
            assert await made.intake.restore() == 1
        assert [(log["event"], log["source"]) for log in logs] == [("source.gone", "hep")]
        async with at_work(made) as at:
            at.clock.advance(3601)
            await accepted(store, 1, at)
        assert await store.open_calls() == []


async def test_a_call_of_another_kind_of_switch_that_is_gone_is_concluded_too() -> None:
    """What its reader knew is nobody's business any more, and is kept in case the source comes back."""
    first, _ = call_in_parts()
    async with desk() as at:
        at.feed(first)
        await at.rest()
        (snapshot,) = at.store.snapshots.values()
    assert snapshot.state is not None
    call = msgspec.msgpack.decode(snapshot.state, type=Call)
    call.source, call.reader = "fs1", b"what another reader wrote"
    store = StoreDouble()
    store.stored = [(call.identity, msgspec.msgpack.encode(call))]
    made = Desk(store)
    with capture_logs() as logs:
        assert await made.intake.restore() == 1
    assert [(log["event"], log["source"]) for log in logs] == [("source.gone", "fs1")]
    async with at_work(made) as at:
        await at.wake(5 * 3600)
        assert [change.status for change in store.taken] == [Status.HUNG_UP]


async def test_what_a_client_feeds_to_its_watch_is_taken_in_when_it_says_so() -> None:
    async with desk() as at:
        at.watch.feed(call_in_parts()[0][0], at.clock())
        at.intake.notice()
        await at.rest()
        assert at.store.taken


async def test_a_call_that_cannot_be_read_is_told_and_harms_no_other() -> None:
    first, rest = call_in_parts("readable")
    async with desk() as at:
        at.feed(first)
        await at.rest()
        (snapshot,) = at.store.snapshots.values()
    assert snapshot.state is not None
    store = StoreDouble()
    store.stored = [
        (CallIdentity("hep", "garbage"), b"\xff\x00garbage"),
        (CallIdentity("hep", "empty"), b""),
        (snapshot.identity, snapshot.state),
        (CallIdentity("gone", "garbage"), b"\xc1"),
    ]
    made = Desk(store)
    with capture_logs() as logs:
        assert await made.intake.restore() == 1
    assert [log["event"] for log in logs] == ["call.unreadable", "call.unreadable", "source.gone", "call.unreadable"]
    async with at_work(made) as at:
        at.feed(rest)
        await at.rest()
        assert statuses(at.offered, "readable") == [Status.HUNG_UP]


# Stopping


async def test_stop_makes_everything_durable_that_was_understood() -> None:
    made = Desk(StoreDouble())
    running = asyncio.create_task(made.intake.run())
    made.feed(whole_call())
    assert await made.intake.stop(timedelta(seconds=10))
    await running
    assert statuses(made.offered) == WHOLE_CALL


async def test_stop_waits_for_the_append_under_way_and_what_came_during_it() -> None:
    made = Desk(StoreDouble())
    running = asyncio.create_task(made.intake.run())
    first, rest = call_in_parts()
    made.store.gate.clear()
    made.feed(first)
    await made.rest()
    made.feed(rest)
    stopping = asyncio.create_task(made.intake.stop(timedelta(seconds=10)))
    await made.rest()
    assert not stopping.done()
    made.store.gate.set()
    assert await stopping
    await running
    assert statuses(made.offered) == WHOLE_CALL


async def test_stop_goes_on_trying_while_the_store_fails() -> None:
    made = Desk(StoreDouble())
    running = asyncio.create_task(made.intake.run())
    made.store.failures = 2
    made.feed(whole_call())
    stopping = asyncio.create_task(made.intake.stop(timedelta(seconds=10)))
    await made.rest()
    for _ in range(2):
        assert not stopping.done()
        await made.end_nap()
    assert await stopping
    await running
    assert statuses(made.offered) == WHOLE_CALL


async def test_stop_says_when_the_store_did_not_let_it() -> None:
    made = Desk(StoreDouble())
    running = asyncio.create_task(made.intake.run())
    made.store.gate.clear()
    made.feed(whole_call())
    await made.rest()
    assert not await made.intake.stop(timedelta())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert made.offered == []


async def test_stop_of_an_idle_intake_is_over_at_once() -> None:
    made = Desk(StoreDouble())
    running = asyncio.create_task(made.intake.run())
    await made.rest()
    assert await made.intake.stop(timedelta(seconds=10))
    await running
    assert made.store.tries == []
