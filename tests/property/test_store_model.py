"""A store is a dictionary that survives: whatever is done to it, in whatever order, restarts included, it says what a few
dictionaries say. The machine plays calls whose names are used again, repeats what was told, and lets callbacks come and go.
"""

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.stored_calls import BEGINNING, URL, ZONE, a_client, change, identity, seconds

from toque.callbacks.callback import Registered
from toque.callbacks.delivery import Delivery, DeliveryState, Settlement
from toque.callbacks.payload import PayloadWriter
from toque.calls.identity import callerid
from toque.calls.lines import Line, LineKind, conflict
from toque.calls.model import Direction, Snapshot, Status, StatusChange
from toque.errors import InputError
from toque.store.contract import Removal, Replay
from toque.store.sqlite import SqliteStore

T = TypeVar("T")
CLIENTS, PINS, NAMES = ("acme", "outra"), ("1001", "1002"), ("call-1", "call-2")
ORDER = {Status.INITIATED: 1, Status.RINGING: 2, Status.ANSWERED: 3}

FOREVER = BEGINNING + timedelta(days=36_500)

SideKey = tuple[str, str, Direction]


@dataclass
class Call:
    """One call of a name, as the switch plays it."""

    generation: int = 0
    began: float = 0
    is_over: bool = False
    told: dict[SideKey, list[StatusChange]] = field(default_factory=dict)


@dataclass
class Row:
    """A callback as the model knows it."""

    client: str
    url: str
    pin: str | None
    code: str
    is_disabled: bool = False
    refused_through: int = 0  # the last event when it was disabled the last time


@dataclass
class Told:
    """An event as the model knows it."""

    client: str
    pin: str
    lane: tuple[str, str, str]


@dataclass
class Waits:
    """A delivery in a backlog."""

    seq: int
    attempts: int = 0
    due_at: datetime | None = None


class StoreMachine(RuleBasedStateMachine):
    """The store beside its model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="toque-model-")
        self.runner = asyncio.Runner()
        self.now = 0.0
        self.store = self.open()
        self.calls: dict[str, list[Call]] = {name: [Call()] for name in NAMES}
        self.callbacks: dict[int, Row] = {}
        self.removed: list[Row] = []
        self.events: dict[int, Told] = {}
        self.fresh: dict[tuple[int, int], Delivery] = {}  # in the hands of whoever appended, by seq and callback
        self.waiting: dict[int, list[Waits]] = {}  # by callback, in order
        self.dead: dict[int, set[int]] = {}
        self.done: list[Delivery] = []
        self.snapshots: dict[str, bytes] = {}
        self.last_seq = 0

    def open(self) -> SqliteStore:
        return SqliteStore(Path(self.folder.name) / "toque.db", PayloadWriter(ZONE))

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(doing)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()
        self.folder.cleanup()

    @initialize()
    def two_clients(self) -> None:
        for client in CLIENTS:
            self.run(self.store.add_client(a_client(client)))
        self.run(self.store.recover())

    # The model's backlog

    def leave(self, number: int, seq: int, attempts: int = 0, due_at: datetime | None = None) -> None:
        """A delivery that had no place gets one: the last, or before what follows it in its lane."""
        row = self.callbacks.get(number)
        if row is None:
            return
        backlog = self.waiting.setdefault(number, [])
        there = next((waits for waits in backlog if waits.seq == seq), None)
        if row.is_disabled or seq <= row.refused_through:
            self.die(number, seq)
        elif there is not None:  # a replay was quicker
            there.attempts, there.due_at = attempts, due_at
        else:
            later = [w for w in backlog if w.seq > seq and self.events[w.seq].lane == self.events[seq].lane]
            place = backlog.index(min(later, key=lambda w: w.seq)) if later else len(backlog)
            backlog.insert(place, Waits(seq, attempts, due_at))

    def die(self, number: int, seq: int) -> None:
        if number in self.callbacks:
            self.dead.setdefault(number, set()).add(seq)
            self.waiting[number] = [waits for waits in self.waiting.get(number, []) if waits.seq != seq]

    # Calls

    def draw_changes(self, data: st.DataObject, name: str) -> list[StatusChange]:
        """What a switch may tell next of a name: the call goes on, ends, begins again, or something is told once more."""
        call = self.calls[name][-1]
        drawn = []
        for _ in range(data.draw(st.integers(1, 4), label="steps")):
            self.now += 1
            begins = call.is_over and data.draw(st.booleans(), label="begins again")
            if begins:
                call = Call(call.generation + 1, self.now)
                self.calls[name].append(call)
            old = [c for earlier in self.calls[name] for told in earlier.told.values() for c in told]
            if old and not begins and data.draw(st.integers(0, 3), label="repeat") == 0:
                drawn.append(data.draw(st.sampled_from(old), label="repetition"))
                continue
            status = data.draw(st.sampled_from([Status.INITIATED, Status.RINGING, Status.ANSWERED, Status.BUSY, Status.HUNG_UP]))
            client, pin, direction = data.draw(
                st.tuples(st.sampled_from(CLIENTS), st.sampled_from(PINS), st.sampled_from(Direction)), label="side"
            )
            drawn.append(change(status, self.now, call=name, began=call.began, client=client, pin=pin, direction=direction))
            call.is_over |= status.is_final
        return drawn

    def expect(self, said: StatusChange) -> tuple[str, int, StatusChange] | None:
        """What the model makes of a change: its callerid and sequence, or None where it is no news."""
        call = next(c for c in self.calls[said.identity.key] if seconds(c.began) == said.facts.began_at)
        owner = said.side.owner
        told = call.told.setdefault((owner.client_id, owner.pin, said.side.direction), [])
        if any(ORDER.get(said.status, 4) <= ORDER.get(earlier.status, 4) for earlier in told):
            return None
        told.append(said)
        return callerid(said.identity, call.generation), len(told), said

    @rule(data=st.data(), names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    def append(self, data: st.DataObject, names: list[str]) -> None:
        was_over = {name: (len(self.calls[name]), self.calls[name][-1].is_over) for name in names}
        changes = [said for name in names for said in self.draw_changes(data, name)]
        snapshots = []
        for name in names:
            state = None if self.calls[name][-1].is_over else data.draw(st.binary(max_size=4), label="state")
            snapshots.append(Snapshot(identity(name), state, None if state is not None else seconds(self.now)))
            if was_over[name] != (len(self.calls[name]), True):
                self.snapshots.pop(name, None)
                if state is not None:
                    self.snapshots[name] = state
        expected = []
        news = [news for said in changes if (news := self.expect(said))]
        for number, (call, sequence, said) in enumerate(news, self.last_seq + 1):
            owner = said.side.owner
            for callback_id, row in self.callbacks.items():
                if row.client == owner.client_id and row.pin in (None, owner.pin) and not row.is_disabled:
                    expected.append((number, callback_id, call, said.status, sequence))
            self.events[number] = Told(owner.client_id, owner.pin, (call, said.side.direction.value, owner.pin))
        self.last_seq += len(news)

        appended = self.run(self.store.append(changes, snapshots))

        assert appended.events == len(news)
        assert [
            (d.event.seq, d.callback_id, d.event.callerid, d.event.status, d.event.sequence) for d in appended.deliveries
        ] == expected
        self.fresh |= {(d.event.seq, d.callback_id): d for d in appended.deliveries}

    # Callbacks

    @rule(client=st.sampled_from(CLIENTS), url=st.sampled_from([URL, URL + "/2"]), pin=st.sampled_from([None, *PINS]))
    def register(self, client: str, url: str, pin: str | None) -> None:
        known = next((n for n, row in self.callbacks.items() if (row.client, row.url, row.pin) == (client, url, pin)), None)
        registered = self.run(self.store.register_callback(client, url, None, pin, limit=100))
        assert isinstance(registered, Registered)
        assert registered.is_new == (known is None)
        callback = registered.callback
        if known is None:
            assert callback.code not in {row.code for row in [*self.callbacks.values(), *self.removed]}
            self.callbacks[callback.id] = Row(client, url, pin, callback.code)
        else:
            assert (callback.id, callback.code) == (known, self.callbacks[known].code)
            self.callbacks[known].is_disabled = False

    @precondition(lambda self: self.callbacks)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.callbacks)))
        row = self.callbacks.pop(number)
        self.removed.append(row)
        assert self.run(self.store.remove_callback(row.client, row.code)) is Removal.REMOVED
        self.waiting.pop(number, None)
        self.dead.pop(number, None)

    @precondition(lambda self: self.removed)
    @rule(data=st.data(), client=st.sampled_from(CLIENTS))
    def remove_again(self, data: st.DataObject, client: str) -> None:
        row = data.draw(st.sampled_from(self.removed))
        answer = Removal.ALREADY_REMOVED if client == row.client else Removal.UNKNOWN
        assert self.run(self.store.remove_callback(client, row.code)) is answer

    @precondition(lambda self: self.callbacks)
    @rule(data=st.data())
    def disable(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.callbacks)))
        row = self.callbacks[number]
        self.run(self.store.disable_callback(number, "410 Gone"))
        if not row.is_disabled:
            row.is_disabled, row.refused_through = True, self.last_seq
            for waits in self.waiting.pop(number, []):
                self.die(number, waits.seq)

    @precondition(lambda self: self.callbacks)
    @rule(data=st.data())
    def enable(self, data: st.DataObject) -> None:
        row = self.callbacks[data.draw(st.sampled_from(sorted(self.callbacks)))]
        assert self.run(self.store.enable_callback(row.code))
        row.is_disabled = False

    # Deliveries

    def settle_as(self, data: st.DataObject, deliveries: list[Delivery]) -> list[tuple[Delivery, DeliveryState]]:
        """Settle these, each in some way; what is ended is out of our hands."""
        ways = [(delivery, data.draw(st.sampled_from(DeliveryState))) for delivery in deliveries]
        delivered, others = [], []
        for delivery, state in ways:
            self.now += 1
            delivery.attempts = data.draw(st.integers(1, 9))
            delivery.due_at = seconds(self.now) if state is DeliveryState.WAITING else None
            if state is DeliveryState.DELIVERED:
                delivered.append(delivery)
            else:
                others.append(Settlement(delivery, state, "as drawn"))
        self.run(self.store.settle(delivered, others))
        return ways

    @precondition(lambda self: self.fresh)
    @rule(data=st.data())
    def settle_fresh_ones(self, data: st.DataObject) -> None:
        places = data.draw(st.lists(st.sampled_from(sorted(self.fresh)), min_size=1, max_size=6, unique=True))
        for delivery, state in self.settle_as(data, [self.fresh.pop(place) for place in places]):
            number, seq = delivery.callback_id, delivery.event.seq
            if state is DeliveryState.WAITING:
                self.leave(number, seq, delivery.attempts, delivery.due_at)
            elif state is DeliveryState.DEAD:
                self.die(number, seq)
            if state is not DeliveryState.WAITING:
                self.done.append(delivery)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def settle_some_of_a_backlog(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(n for n, backlog in self.waiting.items() if backlog)))
        found = self.run(self.store.backlog(number, limit=data.draw(st.integers(1, 5))))
        for delivery, state in self.settle_as(data, found):
            (waits,) = (waits for waits in self.waiting[number] if waits.seq == delivery.event.seq)
            if state is DeliveryState.WAITING:
                waits.attempts, waits.due_at = delivery.attempts, delivery.due_at
                continue
            self.done.append(delivery)
            self.waiting[number].remove(waits)
            if state is DeliveryState.DEAD:
                self.die(number, waits.seq)

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def settle_the_settled_once_more(self, data: st.DataObject) -> None:
        self.settle_as(data, data.draw(st.lists(st.sampled_from(self.done), min_size=1, max_size=4, unique_by=id)))

    @precondition(lambda self: self.callbacks)
    @rule(data=st.data(), is_for_dead=st.booleans(), limit=st.integers(1, 9))
    def replay(self, data: st.DataObject, is_for_dead: bool, limit: int) -> None:
        number = data.draw(st.sampled_from(sorted(n for n in self.callbacks)))
        row = self.callbacks[number]
        replay = self.run(self.store.add_replay(Replay(0, number, None, FOREVER, is_for_dead=is_for_dead)))
        if row.is_disabled:
            assert self.run(self.store.requeue(replay.id, limit)) == replay
            assert self.run(self.store.cancel_replay(replay.id))
            return
        while self.run(self.store.requeue(replay.id, 1000 if is_for_dead else limit)) is not None:
            pass
        mine = self.dead.get(number, set()) if is_for_dead else self.events
        backlog = self.waiting.setdefault(number, [])
        there = {waits.seq for waits in backlog}
        for seq in sorted(mine):
            event = self.events[seq]
            if event.client == row.client and row.pin in (None, event.pin) and seq not in there:
                backlog.append(Waits(seq))
        self.dead.pop(number, None)
        self.done = []  # their rows may be others' now

    @rule()
    def keep_house(self) -> None:
        while self.run(self.store.housekeep(keep=timedelta(days=3650))):
            pass

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = self.open()
        for seq, number in sorted(self.fresh):
            self.leave(number, seq)
        self.fresh.clear()
        self.done.clear()
        assert set(self.run(self.store.recover())) == {number for number, backlog in self.waiting.items() if backlog}

    # What must hold

    @invariant()
    def what_waits_is_what_the_model_says(self) -> None:
        found = {number: self.run(self.store.backlog(number)) for number in self.callbacks}
        assert {n: [Waits(d.event.seq, d.attempts, d.due_at) for d in page] for n, page in found.items() if page} == {
            number: backlog for number, backlog in self.waiting.items() if backlog
        }

    @invariant()
    def what_is_dead_is_what_the_model_says(self) -> None:
        found = {number: self.run(self.store.dead(number)) for number in self.callbacks}
        assert {n: {d.delivery.event.seq for d in page} for n, page in found.items() if page} == {
            number: seqs for number, seqs in self.dead.items() if seqs
        }

    @invariant()
    def what_is_registered_is_what_the_model_says(self) -> None:
        assert {
            number: Row(c.client_id, c.url, c.pin, c.code, c.disabled_at is not None, self.callbacks[number].refused_through)
            for number, c in self.run(self.store.registry()).callbacks.items()
        } == self.callbacks

    @invariant()
    def calls_in_progress_are_what_the_model_says(self) -> None:
        assert {i.key: state for i, state in self.run(self.store.open_calls())} == self.snapshots


StoreMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_a_store_is_a_dictionary_that_survives = StoreMachine.TestCase


NUMBERS = st.text(st.sampled_from("12"), min_size=1, max_size=4)
LINES = st.one_of(
    st.tuples(st.just(LineKind.EXACT), NUMBERS),
    st.tuples(st.just(LineKind.PREFIX), NUMBERS),
    st.tuples(st.just(LineKind.PATTERN), st.sampled_from(["1.*", "[12]2", "1?2+", "2"])),
)


@pytest.fixture(scope="module")
def runner() -> Any:
    with asyncio.Runner() as runner:
        yield runner


@settings(max_examples=100, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from(CLIENTS), st.sampled_from(PINS), LINES), min_size=1, max_size=4), max_size=8
    )
)
def test_the_store_refuses_the_lines_that_conflict_and_no_others(
    runner: asyncio.Runner, batches: list[list[tuple[str, str, tuple[LineKind, str]]]]
) -> None:
    """The store looks lines up by index; `conflict`, which compares with every line, is the rule."""
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "toque.db", PayloadWriter(ZONE))
        try:
            for client in CLIENTS:
                runner.run(store.add_client(a_client(client)))
            known: list[Line] = []
            for batch in batches:
                lines = [Line(client, pin, kind, number) for client, pin, (kind, number) in batch]
                together = list(known)
                is_refused = False
                for line in lines:
                    if line in together:
                        continue
                    twin = any((k.kind, k.number) == (line.kind, line.number) for k in together)
                    is_refused |= twin or conflict(line, together) is not None
                    together.append(line)
                if is_refused:
                    with pytest.raises(InputError):
                        runner.run(store.add_lines(lines))
                else:
                    assert runner.run(store.add_lines(lines)) == len(together) - len(known)
                    known = together
                assert list(runner.run(store.registry()).lines) == known
        finally:
            runner.run(store.close())
