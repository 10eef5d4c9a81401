"""The dispatcher's promises: order within a lane, caps, turns, waits, and that nothing is lost on the way to the store.

Most tests move a clock and a posting double by hand; those at the end use the real transport against a real receiver.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_network
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from standardwebhooks import Webhook
from structlog.testing import capture_logs
from tests.support.clock import START, ManualClock
from tests.support.scripted_receiver import ScriptedReceiver, answer, reset, silence

from toque.callbacks.callback import Callback, Registry
from toque.callbacks.delivery import DEADLINE, JITTER, RETRIES, Delivery, DeliveryState, Event, Settlement
from toque.calls.model import Status
from toque.errors import StoreError
from toque.sending.dispatcher import Dispatcher
from toque.sending.guard import Guard
from toque.sending.transport import Answered, Forbidden, Outcome, Post, Transport, Unreachable

SECRET = "whsec_" + b64encode(bytes(range(32))).decode()
OTHER_SECRET = "whsec_" + b64encode(bytes(32)).decode()
DELIVERED = Answered(204)
CUT_OFF = Unreachable("closing")


def make_callback(number: int = 1, **changes: object) -> Callback:
    made = Callback(
        id=number,
        code=f"{number:040x}",
        client_id="client",
        url=f"http://receiver.example/{number}",
        pin=None,
        created_at=START,
        secrets=(SECRET,),
    )
    return replace(made, **changes)


def registry_of(*callbacks: Callback) -> Registry:
    return Registry(1, {}, (), {callback.id: callback for callback in callbacks})


_SEQ = count(1)


def make_delivery(call: str = "call", sequence: int = 1, callback: int = 1, **changes: object) -> Delivery:
    """The n-th event of a call; its id says so."""
    event = Event(
        seq=next(_SEQ),
        id=f"{call}.{sequence}",
        client_id="client",
        callerid=call,
        direction="made",
        pin="pin",
        status=Status.INITIATED,
        sequence=sequence,
        accepted_at=changes.pop("accepted_at", START),
        payload=f'{{"sequencia":{sequence}}}',
    )
    return Delivery(event, callback, **changes)


def make_call(call: str = "call", events: int = 3, callback: int = 1) -> list[Delivery]:
    return [make_delivery(call, sequence, callback) for sequence in range(1, events + 1)]


class Attempt:
    """A post that was started."""

    def __init__(self, post: Post, on_outcome: Callable[[Post, Outcome], None]) -> None:
        self.post = post
        self.callback = int(post.url.target.removeprefix("/"))
        self.headers = dict(line.split(": ", 1) for line in post.head.decode().split("\r\n")[1:] if line)
        self.event = self.headers["webhook-id"]
        self.is_open = True
        self._on_outcome = on_outcome

    @property
    def lane(self) -> tuple[int, str]:
        return self.callback, self.event.partition(".")[0]

    def ends(self, outcome: Outcome = DELIVERED) -> None:
        assert self.is_open
        self.is_open = False
        self._on_outcome(self.post, outcome)


class Posting:
    """A transport that does nothing by itself."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def start(self, post: Post, on_outcome: Callable[[Post, Outcome], None]) -> None:
        self.attempts.append(Attempt(post, on_outcome))

    @property
    def open(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.is_open]

    @property
    def events(self) -> list[str]:
        return [attempt.event for attempt in self.attempts]

    def of(self, callback: int) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.callback == callback]


@dataclass
class Ledger:
    """The store's part: remembers what was settled, waits while its gate is shut, fails as often as it is told to."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    failures: int = 0
    tries: int = 0
    history: list[Settlement] = field(default_factory=list)
    disabled: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        self.tries += 1
        await self._write()
        self.history += settlements

    async def disable(self, callback_id: int, reason: str) -> None:
        await self._write()
        self.disabled.append((callback_id, reason))

    async def _write(self) -> None:
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is full")

    @property
    def last(self) -> Settlement:
        return self.history[-1]

    def of(self, delivery: Delivery) -> Settlement:
        """How this delivery stands."""
        key = (delivery.event.seq, delivery.callback_id)
        return [told for told in self.history if (told.event_seq, told.callback_id) == key][-1]


@dataclass
class Desk:
    """A dispatcher at work, and everything around it."""

    clock: ManualClock
    posting: Posting
    ledger: Ledger
    dispatcher: Dispatcher
    settling: asyncio.Task[None]
    chance: float = 0.5  # which is no jitter

    async def rest(self) -> None:
        """Until the dispatcher has done all that it can do now."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def end(self, attempt: Attempt, outcome: Outcome = DELIVERED) -> None:
        attempt.ends(outcome)
        await self.rest()

    async def end_all(self, outcome: Outcome = DELIVERED) -> None:
        """End what is in flight and whatever starts because of it, until nothing more does."""
        while self.posting.open:
            for attempt in self.posting.open:
                attempt.ends(outcome)
            await self.rest()

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.rest()


@asynccontextmanager
async def desk(*callbacks: Callback, concurrency: int = 256, callback_concurrency: int = 10) -> AsyncIterator[Desk]:
    """Work, and at the end nothing is left behind."""
    clock, posting, ledger = ManualClock(), Posting(), Ledger()
    tasks = asyncio.all_tasks()
    dispatcher = Dispatcher(
        posting,
        ledger.settle,
        ledger.disable,
        clock=clock,
        chance=lambda: made.chance,
        timers=clock,
        concurrency=concurrency,
        callback_concurrency=callback_concurrency,
    )
    settling = asyncio.create_task(dispatcher.run())
    made = Desk(clock, posting, ledger, dispatcher, settling)
    dispatcher.apply(registry_of(*(callbacks or (make_callback(),))))
    try:
        yield made
        dispatcher.stop()
        assert clock.timers == []
    finally:
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
    assert asyncio.all_tasks() == tasks


# Order


async def test_events_of_one_call_go_one_after_the_other() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=3))
        assert at.posting.events == ["call.1"]
        await at.end(at.posting.attempts[0])
        assert at.posting.events == ["call.1", "call.2"]
        await at.end_all()
        assert at.posting.events == ["call.1", "call.2", "call.3"]
        assert [told.state for told in at.ledger.history] == [DeliveryState.DELIVERED] * 3
        assert at.dispatcher.backlog() == 0


async def test_next_of_a_call_waits_until_the_outcome_is_durable() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=2))
        at.ledger.gate.clear()
        await at.end(at.posting.attempts[0])
        assert at.ledger.tries == 1
        assert at.posting.events == ["call.1"]
        at.ledger.gate.set()
        await at.rest()
        assert at.posting.events == ["call.1", "call.2"]
        await at.end_all()


async def test_events_of_a_call_that_come_later_queue_behind_the_one_in_flight() -> None:
    async with desk() as at:
        for sequence in (1, 2, 3):
            at.dispatcher.offer([make_delivery(sequence=sequence)])
        assert at.posting.events == ["call.1"]
        await at.end_all()
        assert at.posting.events == ["call.1", "call.2", "call.3"]


async def test_sides_of_one_call_are_lanes_of_their_own() -> None:
    async with desk() as at:
        first = make_delivery()
        other_pin = Delivery(replace_event(first.event, id="call.x", pin="other"), 1)
        other_direction = Delivery(replace_event(first.event, id="call.y", direction="received"), 1)
        at.dispatcher.offer([first, other_pin, other_direction])
        assert at.posting.events == ["call.1", "call.x", "call.y"]
        await at.end_all()


def replace_event(event: Event, **changes: object) -> Event:
    return Event(**{name: getattr(event, name) for name in Event.__annotations__} | changes)


async def test_a_failed_event_holds_up_its_own_lane_only() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call("a", 2) + make_call("b", 2))
        await at.end(at.posting.attempts[0], Unreachable("connection refused"))
        await at.end_all()
        assert at.posting.events == ["a.1", "b.1", "b.2"]
        await at.pass_time(1)
        await at.end_all()
        assert at.posting.events == ["a.1", "b.1", "b.2", "a.1", "a.2"]


# Room


async def test_lanes_of_one_callback_go_in_parallel_up_to_its_cap() -> None:
    async with desk(callback_concurrency=3) as at:
        at.dispatcher.offer(make_delivery(f"call{number}") for number in range(5))
        assert len(at.posting.open) == 3
        await at.end(at.posting.open[1])
        assert at.posting.events == ["call0.1", "call1.1", "call2.1", "call3.1"]
        await at.end_all()
        assert len(at.posting.attempts) == 5


async def test_all_callbacks_together_keep_within_the_total_cap() -> None:
    async with desk(*map(make_callback, range(1, 6)), concurrency=7, callback_concurrency=3) as at:
        at.dispatcher.offer(make_delivery(f"call{number}", callback=1 + number % 5) for number in range(50))
        while at.posting.open:
            assert len(at.posting.open) <= 7
            assert max(Counter(attempt.callback for attempt in at.posting.open).values()) <= 3
            await at.end(at.posting.open[0])
        assert len(at.posting.attempts) == 50


async def test_a_callback_with_very_much_to_send_starves_no_other() -> None:
    async with desk(make_callback(1), make_callback(2), concurrency=4, callback_concurrency=4) as at:
        at.dispatcher.offer(make_delivery(f"flood{number}", callback=1) for number in range(10_000))
        assert len(at.posting.open) == 4
        at.dispatcher.offer(make_delivery(f"call{number}", callback=2) for number in range(10))
        for _ in range(20):
            await at.end(at.posting.open[0])
        started = [attempt.callback for attempt in at.posting.attempts[4:]]
        assert started[:20].count(2) == 10  # every other turn was its
        at.dispatcher.apply(registry_of())
        await at.end_all()


async def test_callbacks_that_came_first_are_served_in_turn() -> None:
    async with desk(*map(make_callback, (1, 2, 3)), concurrency=1) as at:
        at.dispatcher.offer(
            make_delivery(f"call{number}.{callback}", callback=callback) for callback in (1, 2, 3) for number in range(3)
        )
        await at.end_all()
        assert [attempt.callback for attempt in at.posting.attempts] == [1, 2, 3] * 3


# What follows from an outcome


@pytest.mark.parametrize("status", [200, 201, 204, 206, 299])
async def test_every_2xx_is_a_success(status: int) -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=1))
        await at.end(at.posting.attempts[0], Answered(status))
        assert at.ledger.last.state is DeliveryState.DELIVERED
        assert at.ledger.last.due_at is None
        assert at.ledger.last.outcome == str(status)
        assert at.dispatcher.counters.delivered == 1


@pytest.mark.parametrize(
    "outcome",
    [
        *(Answered(status) for status in (300, 301, 302, 307, 308, 304, 401, 403, 404, 405, 408, 429, 500, 502, 503)),
        Unreachable("connection refused"),
        Unreachable("no answer within 15 s"),
        Unreachable("closing"),
        Forbidden("loopback address"),
    ],
)
async def test_everything_else_is_tried_again(outcome: Outcome) -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=2))
        await at.end(at.posting.attempts[0], outcome)
        assert at.ledger.last.state is DeliveryState.WAITING
        assert at.ledger.last.due_at == START + RETRIES[0]
        assert at.ledger.last.attempts == 1
        assert at.dispatcher.counters.delivered == 0
        await at.pass_time(1)
        assert at.posting.events == ["call.1", "call.1"]
        await at.end_all()


async def test_the_store_is_told_how_a_refusal_began() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=1))
        await at.end(at.posting.attempts[0], Answered(500, None, "x" * 500))
        assert at.ledger.last.outcome == "500 " + "x" * 120
        await at.pass_time(1)
        await at.end(at.posting.attempts[1], Forbidden("loopback address"))
        assert at.ledger.last.outcome == "loopback address"
        await at.pass_time(2)
        await at.end_all()


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.999])
async def test_waits_between_tries_follow_the_table(chance: float) -> None:
    async with desk() as at:
        at.chance = chance
        at.dispatcher.offer(make_call(events=1))
        factor = 1 + JITTER * (2 * chance - 1)
        waits = [*RETRIES, RETRIES[-1], RETRIES[-1]]
        for number, wait in enumerate(waits, 1):
            await at.end(at.posting.open[0], Answered(500))
            assert at.ledger.last.attempts == number
            seconds = wait.total_seconds() * factor
            assert at.clock.timers == pytest.approx([seconds])
            await at.pass_time(seconds * 0.999)
            assert not at.posting.open
            await at.pass_time(seconds * 0.001 + 0.001)
        await at.end_all()


async def test_jitter_is_drawn_anew_for_each_wait() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_delivery(f"call{number}") for number in range(3))
        for number, attempt in enumerate(at.posting.open):
            at.chance = number / 3
            attempt.ends(Answered(500))
        await at.rest()
        assert len({told.due_at for told in at.ledger.history}) == 3
        await at.pass_time(2)
        await at.end_all()


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_an_unwelcome_event_is_dead_after_three_tries_and_its_call_goes_on(status: int) -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=2))
        for wait in (1, 2):
            await at.end(at.posting.open[0], Answered(status))
            assert at.ledger.last.state is DeliveryState.WAITING
            await at.pass_time(wait)
        await at.end(at.posting.open[0], Answered(status))
        dead = at.ledger.last
        assert (dead.state, dead.attempts, dead.due_at) == (DeliveryState.DEAD, 3, None)
        assert at.dispatcher.counters.dead == 1
        assert [attempt.event for attempt in at.posting.open] == ["call.2"]
        await at.end_all()


async def test_410_disables_the_callback_and_nothing_more_starts() -> None:
    async with desk(make_callback(1), make_callback(2), callback_concurrency=2) as at:
        waiting = [make_delivery(f"call{number}") for number in range(4)]
        at.dispatcher.offer([*waiting, make_delivery("other", callback=2)])
        at.ledger.gate.clear()
        await at.end(at.posting.of(1)[0], Answered(410))
        assert len(at.posting.of(1)) == 2  # not even while the store is slow
        at.dispatcher.apply(registry_of(make_callback(1, credentials="new:one"), make_callback(2)))
        assert len(at.posting.of(1)) == 2  # nor because its registration changed just now
        at.ledger.gate.set()
        await at.rest()
        assert at.ledger.disabled == [(1, "410 Gone")]
        assert at.ledger.of(waiting[0]).state is DeliveryState.DEAD
        await at.end_all()  # the other one in flight
        assert at.ledger.of(waiting[1]).state is DeliveryState.DELIVERED
        assert len(at.posting.of(1)) == 2
        assert at.dispatcher.backlog() == 0
        at.dispatcher.apply(registry_of(make_callback(1, disabled_at=START, disabled_reason="410 Gone"), make_callback(2)))
        await at.pass_time(86_400)
        assert len(at.posting.of(1)) == 2
        assert len(at.posting.of(2)) == 1


async def test_410_of_several_lanes_disables_once() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_delivery(f"call{number}") for number in range(3))
        for attempt in at.posting.open:
            attempt.ends(Answered(410))
        await at.rest()
        assert at.ledger.disabled == [(1, "410 Gone")]


async def test_410_of_a_turn_that_was_waited_for_takes_the_turn_away() -> None:
    async with desk(make_callback(1), make_callback(2), concurrency=2) as at:
        at.dispatcher.offer([make_delivery("a"), make_delivery("b", callback=2), make_delivery("c")])
        await at.end(at.posting.of(1)[0], Answered(410))
        assert [attempt.event for attempt in at.posting.attempts] == ["a.1", "b.1"]
        await at.end_all()


async def test_a_callback_that_was_registered_again_after_its_410_is_posted_to() -> None:
    """Registering brings a disabled callback back under the same number, also before anybody saw that it was disabled."""
    async with desk() as at:
        at.dispatcher.offer(make_call(events=2))
        await at.end(at.posting.open[0], Answered(410))
        assert at.ledger.disabled
        at.dispatcher.offer([make_delivery("new")])
        at.dispatcher.apply(registry_of(make_callback()))
        assert [attempt.event for attempt in at.posting.open] == ["new.1"]
        await at.end_all()
        assert at.dispatcher.backlog() == 0


async def test_disabling_is_repeated_until_the_store_has_it() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=1))
        at.ledger.failures = 3
        await at.end(at.posting.open[0], Answered(410))
        for _ in range(3):
            assert at.ledger.disabled == []
            await at.pass_time(0.5)
        assert at.ledger.disabled == [(1, "410 Gone")]


# Retry-After


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        ("120", 120),
        (format_datetime(START + timedelta(seconds=90), usegmt=True), 90),
        ("7200", 3600),
        ("99999999999999999999", 3600),
    ],
)
async def test_retry_after_lets_the_whole_callback_rest(status: int, retry_after: str, wait_s: float) -> None:
    async with desk(make_callback(1), make_callback(2)) as at:
        at.dispatcher.offer([make_delivery("a"), make_delivery("other", callback=2)])
        await at.end(at.posting.of(1)[0], Answered(status, retry_after))
        assert at.ledger.last.due_at == START + timedelta(seconds=wait_s)
        at.dispatcher.offer([make_delivery("b"), make_delivery("more", callback=2)])
        assert len(at.posting.of(1)) == 1
        assert len(at.posting.of(2)) == 2  # which are no concern of the other's
        await at.pass_time(wait_s - 0.01)
        assert len(at.posting.of(1)) == 1
        await at.pass_time(0.02)
        assert {attempt.event for attempt in at.posting.of(1)[1:]} == {"a.1", "b.1"}
        await at.end_all()


async def test_retry_after_applies_before_any_other_timer() -> None:
    async with desk() as at:
        at.dispatcher.offer([make_delivery("a"), make_delivery("b")])
        a, b = at.posting.open
        await at.end(a, Unreachable("connection refused"))  # again in 1 s
        await at.end(b, Answered(429, "60"))
        await at.pass_time(59)
        assert len(at.posting.attempts) == 2
        await at.pass_time(1)
        assert len(at.posting.open) == 2
        await at.end_all()


async def test_the_longest_of_several_pauses_counts() -> None:
    async with desk() as at:
        at.dispatcher.offer([make_delivery("a"), make_delivery("b"), make_delivery("c")])
        a, b, c = at.posting.open
        await at.end(a, Answered(429, "30"))
        await at.end(b, Answered(429, "60"))
        await at.end(c, Answered(429, "10"))
        await at.pass_time(59)
        assert not at.posting.open
        await at.pass_time(1)
        assert len(at.posting.open) == 3
        await at.end_all()


async def test_a_pause_takes_effect_for_a_turn_that_was_waited_for() -> None:
    """The callback stands in line for room when it is asked to pause."""
    async with desk(make_callback(1), make_callback(2), concurrency=2) as at:
        at.dispatcher.offer([make_delivery("a"), make_delivery("b", callback=2), make_delivery("c")])
        await at.end(at.posting.of(1)[0], Answered(429, "60"))
        await at.end(at.posting.of(2)[0])
        assert at.posting.events == ["a.1", "b.1"]
        await at.pass_time(60)
        await at.end_all()
        assert sorted(at.posting.events) == ["a.1", "a.1", "b.1", "c.1"]


async def test_a_pause_holds_also_when_the_registration_changes() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=1))
        await at.end(at.posting.open[0], Answered(503, "60"))
        at.dispatcher.apply(registry_of(make_callback(secrets=(OTHER_SECRET, SECRET))))
        await at.pass_time(59)
        assert not at.posting.open
        await at.pass_time(1)
        assert len(at.posting.open) == 1
        await at.end_all()


async def test_429_without_a_time_is_an_ordinary_failure() -> None:
    async with desk() as at:
        at.dispatcher.offer([make_delivery("a")])
        await at.end(at.posting.open[0], Answered(429, "soon"))
        at.dispatcher.offer([make_delivery("b")])
        assert [attempt.event for attempt in at.posting.open] == ["b.1"]
        await at.pass_time(1)
        await at.end_all()


# Deadline


async def test_after_a_day_of_failures_a_delivery_is_dead_and_its_call_goes_on() -> None:
    async with desk() as at:
        deliveries = make_call(events=2)
        at.dispatcher.offer(deliveries)
        while at.posting.open[0].event == "call.1":
            await at.end(at.posting.open[0], Answered(500))
            if not at.posting.open:
                assert at.clock() < START + DEADLINE
                await at.pass_time(at.clock.timers[0])
        told = at.ledger.of(deliveries[0])
        assert (told.state, told.due_at) == (DeliveryState.DEAD, None)
        assert at.clock() == START + DEADLINE
        assert told.attempts == 35
        assert at.posting.open[0].event == "call.2"
        await at.end_all()


async def test_what_waited_through_a_long_outage_of_ours_is_still_tried_once() -> None:
    async with desk() as at:
        old = make_delivery("old", accepted_at=START - timedelta(days=3))
        at.dispatcher.offer([old])
        await at.end_all(Answered(500))
        assert at.ledger.of(old).state is DeliveryState.DEAD
        assert len(at.posting.attempts) == 1


# The registry


async def test_removed_callback_gets_nothing_after_apply() -> None:
    async with desk(make_callback(1), make_callback(2), callback_concurrency=1) as at:
        deliveries = make_call("a", 3) + make_call("b", 2)
        at.dispatcher.offer([*deliveries, make_delivery("c", callback=2)])
        at.dispatcher.apply(registry_of(make_callback(2)))
        assert at.dispatcher.backlog() == 1
        at.dispatcher.offer([])
        await at.end(at.posting.of(1)[0])  # in flight when it was removed: ends harmlessly
        assert at.ledger.of(deliveries[0]).state is DeliveryState.DELIVERED
        await at.pass_time(86_400)
        assert len(at.posting.of(1)) == 1
        await at.end_all()


async def test_removed_callback_that_failed_is_not_tried_again() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=2))
        await at.end(at.posting.open[0], Answered(500))
        at.dispatcher.apply(registry_of())
        await at.pass_time(86_400)
        assert len(at.posting.attempts) == 1
        assert at.dispatcher.backlog() == 0


async def test_removed_callback_whose_post_fails_afterwards_is_not_tried_again() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=2))
        at.dispatcher.apply(registry_of())
        await at.end(at.posting.open[0], Answered(429, "60"))
        await at.pass_time(86_400)
        assert len(at.posting.attempts) == 1


async def test_disabled_callback_is_dropped_once_the_registry_says_so() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=2))
        gone = registry_of(make_callback(disabled_at=START, disabled_reason="by hand"))
        at.dispatcher.apply(gone)
        await at.end(at.posting.open[0])
        assert len(at.posting.attempts) == 1
        at.dispatcher.apply(gone)
        assert at.dispatcher.backlog() == 0


async def test_a_callback_that_is_not_known_yet_is_waited_for() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call("new", 2, callback=9))
        assert at.posting.attempts == []
        at.dispatcher.apply(registry_of(make_callback(1), make_callback(9)))
        await at.end_all()
        assert at.posting.events == ["new.1", "new.2"]


async def test_a_registry_that_was_read_before_the_registration_loses_nothing() -> None:
    """It is read, somebody registers, an event is accepted for the new callback, and only then it is applied."""
    async with desk() as at:
        at.dispatcher.offer(make_call("new", 2, callback=9))
        at.dispatcher.apply(registry_of(make_callback(1)))
        assert at.dispatcher.backlog() == 2
        at.dispatcher.apply(registry_of(make_callback(1), make_callback(9)))
        await at.end_all()
        assert at.posting.events == ["new.1", "new.2"]


async def test_a_registry_that_was_read_while_it_was_disabled_loses_nothing() -> None:
    async with desk(make_callback(disabled_at=START, disabled_reason="410 Gone")) as at:
        at.dispatcher.offer(make_call("new", 2))
        at.dispatcher.apply(registry_of(make_callback(disabled_at=START, disabled_reason="410 Gone")))
        assert at.dispatcher.backlog() == 2
        assert at.posting.attempts == []
        at.dispatcher.apply(registry_of(make_callback()))
        await at.end_all()
        assert at.posting.events == ["new.1", "new.2"]


async def test_what_waits_for_a_callback_that_never_appears_is_forgotten() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call("gone", 2, callback=9))
        at.dispatcher.apply(registry_of(make_callback(1)))
        at.dispatcher.apply(registry_of(make_callback(1)))
        assert at.dispatcher.backlog() == 0


async def test_one_lane_stays_one_lane_over_a_removal_and_a_return() -> None:
    """The post in flight belongs to a delivery that is dead; the call's next event comes after it all the same."""
    async with desk() as at:
        at.dispatcher.offer(make_call(events=2))
        gone = registry_of(make_callback(disabled_at=START, disabled_reason="by hand"))
        at.dispatcher.apply(gone)
        at.dispatcher.apply(gone)
        at.dispatcher.apply(registry_of(make_callback()))
        at.dispatcher.offer([make_delivery(sequence=3)])
        assert at.posting.events == ["call.1"]
        await at.end(at.posting.open[0], Answered(500))
        assert at.posting.events == ["call.1", "call.3"]
        await at.end_all()
        assert at.dispatcher.backlog() == 0


async def test_new_credentials_and_secrets_count_from_the_next_attempt_on() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=1))
        at.dispatcher.apply(registry_of(make_callback(credentials="user:word", secrets=(OTHER_SECRET,))))
        before = at.posting.open[0]
        assert "Authorization" not in before.headers
        await at.end(before, Answered(401))
        await at.pass_time(1)
        after = at.posting.open[0]
        assert after.headers["Authorization"] == "Basic " + b64encode(b"user:word").decode()
        assert after.headers["webhook-signature"] != before.headers["webhook-signature"]
        await at.end_all()


async def test_each_attempt_is_signed_anew_with_its_own_time() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=1))
        await at.end(at.posting.open[0], Answered(500))
        await at.pass_time(1)
        first, second = at.posting.attempts
        assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 1
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        await at.end_all()


async def test_a_callback_that_cannot_be_used_harms_nobody_else() -> None:
    with capture_logs() as logs:
        async with desk(make_callback(1, secrets=("no secret",)), make_callback(2, url="ftp://x/"), make_callback(3)) as at:
            at.dispatcher.offer(make_delivery("call", callback=number) for number in (1, 2, 3))
            assert [attempt.callback for attempt in at.posting.attempts] == [3]
            assert [(log["event"], log["callback"]) for log in logs] == [("callback.unusable", 1), ("callback.unusable", 2)]
            at.dispatcher.apply(registry_of(*map(make_callback, (1, 2, 3))))
            await at.end_all()
            assert {attempt.callback for attempt in at.posting.attempts} == {1, 2, 3}
    assert "no secret" not in str(logs)


# The store


async def test_outcomes_wait_for_the_store_and_nothing_is_lost() -> None:
    async with desk() as at:
        deliveries = make_call("a", 3) + make_call("b", 3)
        at.dispatcher.offer(deliveries)
        at.ledger.failures = 5
        with capture_logs() as logs:
            for attempt in at.posting.open:
                attempt.ends()
            await at.rest()
            for _ in range(5):
                assert at.posting.events == ["a.1", "b.1"]
                assert at.ledger.history == []
                assert at.clock.timers == [0.5]
                await at.pass_time(0.5)
        assert [log["event"] for log in logs] == ["delivery.settle_failed"] * 5
        await at.end_all()
        assert at.posting.events == ["a.1", "b.1", "a.2", "b.2", "a.3", "b.3"]
        assert all(at.ledger.of(delivery).state is DeliveryState.DELIVERED for delivery in deliveries)


async def test_outcomes_that_come_during_a_write_are_the_next_one() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_delivery(f"call{number}") for number in range(10))
        at.ledger.gate.clear()
        await at.end(at.posting.open[0])
        for attempt in at.posting.open:
            attempt.ends()
        await at.rest()
        assert at.ledger.tries == 1
        at.ledger.gate.set()
        await at.rest()
        assert at.ledger.tries == 2
        assert len(at.ledger.history) == 10


async def test_an_error_that_is_no_store_error_ends_the_settling() -> None:
    """Nobody may go on posting while outcomes go nowhere: `run` ends, and the server with it."""

    async def settle(_: Sequence[Settlement]) -> None:
        raise ZeroDivisionError

    posting, clock = Posting(), ManualClock()
    dispatcher = Dispatcher(posting, settle, Ledger().disable, clock=clock, chance=lambda: 0.5, timers=clock)
    dispatcher.apply(registry_of(make_callback()))
    dispatcher.offer(make_call())
    posting.open[0].ends()
    with pytest.raises(ZeroDivisionError):
        await dispatcher.run()


async def test_successes_are_told_in_the_log_only_where_somebody_listens(caplog: pytest.LogCaptureFixture) -> None:
    async with desk() as at:
        with capture_logs() as logs:
            at.dispatcher.offer([make_delivery("a")])
            await at.end_all()
            assert logs == []
            with caplog.at_level(logging.DEBUG, "toque.sending"):
                at.dispatcher.offer([make_delivery("b")])
                await at.end_all()
        assert [(log["event"], log["event_id"]) for log in logs] == [("delivery.settled", "b.1")]


async def test_what_receivers_say_stays_out_of_the_log() -> None:
    async with desk() as at:
        with capture_logs() as logs:
            at.dispatcher.offer(make_call(events=1))
            for _ in range(3):
                await at.end(at.posting.open[0], Answered(400, None, "Authorization: Basic c2VjcmV0"))
                await at.pass_time(5)
        assert [log["event"] for log in logs] == ["delivery.failed", "delivery.failed", "delivery.died"]
        assert "c2VjcmV0" not in str(logs)


# After a restart


async def test_deliveries_of_an_earlier_run_go_on_where_they_were() -> None:
    async with desk() as at:
        first = make_delivery(sequence=1, attempts=4, due_at=START + timedelta(seconds=20))
        at.dispatcher.offer([first, make_delivery(sequence=2)])
        await at.pass_time(19)
        assert at.posting.events == []
        await at.pass_time(1)
        assert at.posting.events == ["call.1"]
        await at.end(at.posting.open[0], Answered(500))
        assert at.ledger.of(first).attempts == 5
        assert at.ledger.of(first).due_at == at.clock() + RETRIES[4]
        await at.pass_time(30)
        await at.end_all()


async def test_a_due_time_from_a_clock_that_was_wrong_does_not_count() -> None:
    async with desk() as at:
        at.dispatcher.offer([make_delivery(due_at=START + timedelta(days=4000))])
        await at.pass_time(3961)
        assert at.posting.events == ["call.1"]
        await at.end_all()


# The wall clock is set


@pytest.mark.parametrize("by", [timedelta(hours=-5), timedelta(hours=5), timedelta(days=-4000), timedelta(hours=23)])
async def test_waits_do_not_notice_that_the_wall_clock_is_set(by: timedelta) -> None:
    async with desk() as at:
        at.dispatcher.offer([make_delivery("a"), make_delivery("b")])
        a, b = at.posting.open
        await at.end(a, Answered(500))
        await at.end(b, Answered(429, "60"))
        at.clock.set_wall(by)
        await at.pass_time(59)
        assert len(at.posting.attempts) == 2
        await at.pass_time(1)
        assert len(at.posting.open) == 2
        await at.end_all()


async def test_deadlines_go_by_the_wall_clock() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=1))
        at.clock.set_wall(timedelta(hours=25))
        await at.end_all(Answered(500))
        assert at.ledger.last.state is DeliveryState.DEAD


# Stopping


async def test_drain_lets_what_is_in_flight_end_and_starts_nothing() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call("a", 2) + make_call("b", 2))
        draining = asyncio.create_task(at.dispatcher.drain(timedelta(seconds=20)))
        await at.rest()
        for attempt in at.posting.open:
            assert not draining.done()
            await at.end(attempt)
        assert await draining
        assert len(at.ledger.history) == 2
        at.dispatcher.offer([make_delivery("c")])
        await at.pass_time(86_400)
        assert at.posting.events == ["a.1", "b.1"]


async def test_drain_waits_until_the_outcomes_are_durable() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=1))
        at.ledger.gate.clear()
        draining = asyncio.create_task(at.dispatcher.drain(timedelta(seconds=20)))
        await at.rest()
        await at.end(at.posting.open[0])
        assert not draining.done()
        at.ledger.gate.set()
        assert await draining


async def test_drain_waits_also_after_a_time_when_nothing_was_to_do() -> None:
    async with desk() as at:
        at.dispatcher.offer([make_delivery("a")])
        await at.end_all()
        at.dispatcher.offer([make_delivery("b")])
        draining = asyncio.create_task(at.dispatcher.drain(timedelta(seconds=20)))
        await at.rest()
        assert not draining.done()
        await at.end_all()
        assert await draining


async def test_drain_of_an_idle_dispatcher_is_over_at_once() -> None:
    async with desk() as at:
        assert await at.dispatcher.drain(timedelta())
        assert await at.dispatcher.drain(timedelta())


async def test_attempts_that_our_own_stop_cuts_off_do_not_count() -> None:
    async with desk() as at:
        deliveries = make_call("a", 2) + make_call("b", 2)
        at.dispatcher.offer(deliveries)
        a, b = at.posting.open
        assert not await at.dispatcher.drain(timedelta())
        await at.end(a, CUT_OFF)  # as the transport does when it is closed
        assert not await at.dispatcher.drain(timedelta())
        await at.end(b, Answered(500))  # this one did answer
        assert await at.dispatcher.drain(timedelta())
        assert [told.event_seq for told in at.ledger.history] == [deliveries[2].event.seq]
        assert at.ledger.last.state is DeliveryState.WAITING


async def test_no_timer_is_left_after_a_stop() -> None:
    async with desk() as at:
        at.dispatcher.offer([make_delivery("a"), make_delivery("b")])
        a, b = at.posting.open
        await at.end(a, Answered(500))
        assert at.clock.timers
        at.dispatcher.stop()
        assert at.clock.timers == []
        await at.end(b, Answered(500))
        assert at.clock.timers == []


async def test_settled_waits_for_everything_that_can_be_sent_now() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=2))
        waiting = asyncio.create_task(at.dispatcher.settled())
        await at.end(at.posting.open[0])
        assert not waiting.done()
        await at.end(at.posting.open[0], Answered(500))
        assert waiting.done()
        await waiting


async def test_run_can_be_cancelled_while_it_waits_for_the_store() -> None:
    async with desk() as at:
        at.dispatcher.offer(make_call(events=1))
        at.ledger.failures = 99
        await at.end(at.posting.open[0])
        assert at.clock.timers == [0.5]
        at.settling.cancel()
        await at.rest()
        assert at.clock.timers == []


# All of it at once


class DispatcherRules(RuleBasedStateMachine):
    """Whatever happens in whatever order: a call's events arrive in order, one at a time, within the caps, and none is lost.

    The store is a model: it knows how each delivery stands, and that what waits for a disabled or removed callback is dead.
    """

    CAP, TOTAL = 2, 4

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock, self.posting = ManualClock(), Posting()
        self.registered: dict[int, Callback] = {}
        self.next_callback = 1
        self.lanes: dict[tuple[int, str], list[Delivery]] = {}
        self.state: dict[tuple[int, int], DeliveryState | None] = {}
        self.told: dict[tuple[int, int], Settlement] = {}
        self.started: dict[tuple[int, str], list[str]] = {}
        self.started_when: list[tuple[Attempt, Callback | None]] = []
        self.is_store_well = True
        self.dispatcher = Dispatcher(
            self, self.settle, self.disable, clock=self.clock, chance=lambda: 0.3, timers=self.clock,
            concurrency=self.TOTAL, callback_concurrency=self.CAP,
        )  # fmt: skip
        self.settling = self.loop.create_task(self.dispatcher.run())

    # What the dispatcher uses

    def start(self, post: Post, on_outcome: Callable[[Post, Outcome], None]) -> None:
        attempt = Attempt(post, on_outcome)
        callback = self.registered.get(attempt.callback)
        assert callback is not None, "started for a callback that is removed"
        mine = self.lanes[attempt.lane]
        number = next(number for number, delivery in enumerate(mine) if delivery.event.id == attempt.event)
        for earlier in mine[:number]:
            assert self.state[key_of(earlier)] is not DeliveryState.WAITING, "started before an earlier event has ended"
        assert attempt.lane not in {other.lane for other in self.posting.open}, "two at once in one lane"
        self.posting.attempts.append(attempt)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        await self._write()
        for told in settlements:
            key = (told.event_seq, told.callback_id)
            if self.state[key] is DeliveryState.WAITING:
                self.state[key] = told.state
                self.told[key] = told

    async def disable(self, callback_id: int, reason: str) -> None:
        await self._write()
        callback = self.registered.get(callback_id)
        if callback is not None and callback.disabled_at is None:
            self.registered[callback_id] = replace(callback, disabled_at=self.clock(), disabled_reason=reason)
            self._end_all_of(callback_id, DeliveryState.DEAD)

    async def _write(self) -> None:
        await asyncio.sleep(0)
        if not self.is_store_well:
            raise StoreError("no")

    def _end_all_of(self, callback_id: int, state: DeliveryState | None) -> None:
        for key in [key for key, is_so in self.state.items() if key[1] == callback_id and is_so is DeliveryState.WAITING]:
            self.state[key] = state

    def _rest(self) -> None:
        async def turns() -> None:
            for _ in range(20):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        if self.settling.done():
            self.settling.result()

    def _apply(self) -> None:
        self.dispatcher.apply(registry_of(*self.registered.values()))
        self._rest()

    # What happens

    @initialize(callbacks=st.integers(1, 3))
    def begin(self, callbacks: int) -> None:
        for _ in range(callbacks):
            self.register()

    @rule()
    def register(self) -> None:
        if len(self.registered) < 3:
            self.registered[self.next_callback] = make_callback(self.next_callback)
            self.next_callback += 1

    @rule()
    def look(self) -> None:
        """The directory reads the registry and applies it."""
        self._apply()

    @precondition(lambda self: self.registered)
    @rule(data=st.data(), calls=st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
    def accept(self, data: st.DataObject, calls: list[str]) -> None:
        """The store accepts events, as it does for callbacks that are active in it; the dispatcher may not know them yet."""
        offered = []
        for call in calls:
            callback = data.draw(st.sampled_from(sorted(self.registered)))
            if self.registered[callback].disabled_at is None:
                lane = self.lanes.setdefault((callback, call), [])
                delivery = make_delivery(call, len(lane) + 1, callback, accepted_at=self.clock())
                lane.append(delivery)
                self.state[key_of(delivery)] = DeliveryState.WAITING
                offered.append(delivery)
        self.dispatcher.offer(offered)
        self._rest()

    @precondition(lambda self: self.posting.open)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(
            [DELIVERED, DELIVERED, DELIVERED, Answered(500), Answered(400), Answered(429, "7"), Answered(503, "3000"), Answered(410),
             Unreachable("connection refused"), Forbidden("private address"), CUT_OFF]
        ),
        rests=st.booleans(),
    )  # fmt: skip
    def end(self, data: st.DataObject, outcome: Outcome, rests: bool) -> None:
        data.draw(st.sampled_from(self.posting.open)).ends(outcome)
        if rests:
            self._rest()

    @rule(seconds=st.sampled_from([0.3, 0.5, 1.1, 7, 60, 3700]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self._rest()

    @rule(by=st.sampled_from([-3600, 3600]))
    def set_wall_clock(self, by: int) -> None:
        self.clock.set_wall(timedelta(seconds=by))

    @rule()
    def change_store(self) -> None:
        self.is_store_well = not self.is_store_well

    @precondition(lambda self: self.registered)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """As the API does it: removed in the store, then applied before the answer."""
        callback = data.draw(st.sampled_from(sorted(self.registered)))
        del self.registered[callback]
        self._end_all_of(callback, None)
        self._apply()

    @precondition(lambda self: self.registered)
    @rule(data=st.data(), looks=st.booleans())
    def register_again(self, data: st.DataObject, looks: bool) -> None:
        """Other credentials, and enabled if it was not."""
        number = data.draw(st.sampled_from(sorted(self.registered)))
        credentials = data.draw(st.sampled_from(["a:b", "c:d"]))
        self.registered[number] = replace(
            self.registered[number], credentials=credentials, disabled_at=None, disabled_reason=None
        )
        if looks:
            self._apply()

    # What is always so

    @invariant()
    def caps_are_kept(self) -> None:
        assert len(self.posting.open) <= self.TOTAL
        assert all(many <= self.CAP for many in Counter(attempt.callback for attempt in self.posting.open).values())

    @invariant()
    def failed_deliveries_have_a_due_time(self) -> None:
        for key, state in self.state.items():
            if state is DeliveryState.WAITING and key in self.told:
                assert self.told[key].due_at is not None

    def teardown(self) -> None:
        """Everything is well again: whatever still waits arrives."""
        try:
            self.is_store_well = True
            self._apply()
            self._apply()
            for _ in range(len(self.state) + 10):
                for attempt in self.posting.open:
                    attempt.ends()
                self._rest()
                self.clock.advance(600)
                self._rest()
            assert not self.posting.open
            assert DeliveryState.WAITING not in self.state.values()
            assert self.dispatcher.backlog() == 0
            self.dispatcher.stop()
            assert self.clock.timers == []
        finally:
            self.settling.cancel()
            self._rest_after_the_end()

    def _rest_after_the_end(self) -> None:
        self.loop.run_until_complete(asyncio.gather(self.settling, return_exceptions=True))
        self.loop.close()


def key_of(delivery: Delivery) -> tuple[int, int]:
    return delivery.event.seq, delivery.callback_id


TestDispatcherRules = DispatcherRules.TestCase
TestDispatcherRules.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


# With the real transport


LOOPBACK = Guard([ip_network("127.0.0.0/8")])


class RealDesk:
    """A dispatcher over the real transport. Waits between tries are moved by hand, sockets are not."""

    def __init__(self, transport: Transport) -> None:
        self.clock, self.ledger = ManualClock(), Ledger()
        self.dispatcher = Dispatcher(
            transport, self.ledger.settle, self.ledger.disable, clock=self.clock, chance=lambda: 0.5, timers=self.clock
        )

    async def settled(self) -> None:
        async with asyncio.timeout(10):
            await self.dispatcher.settled()


@asynccontextmanager
async def real_desk(guard: Guard = LOOPBACK) -> AsyncIterator[RealDesk]:
    async with Transport(guard) as transport:
        made = RealDesk(transport)
        settling = asyncio.create_task(made.dispatcher.run())
        try:
            yield made
        finally:
            made.dispatcher.stop()
            settling.cancel()
            await asyncio.gather(settling, return_exceptions=True)


def targets(receiver: ScriptedReceiver) -> list[str]:
    return [request.headers["webhook-id"] for request in receiver.requests]


async def test_real_posts_arrive_in_order_and_verify() -> None:
    async with (
        ScriptedReceiver(answer(204), answer(500, closes=True), reset(), answer(302, {"Location": "/elsewhere"})) as receiver,
        real_desk() as at,
    ):
        at.dispatcher.apply(registry_of(make_callback(url=receiver.url("/here?a=1"))))
        at.dispatcher.offer(make_call(events=3))
        await at.settled()
        for seconds in (1, 2, 5):
            at.clock.advance(seconds)
            await at.settled()
        assert targets(receiver) == ["call.1", "call.2", "call.2", "call.2", "call.2", "call.3"]
        assert {request.target for request in receiver.requests} == {"/here?a=1"}
        assert [told.outcome for told in at.ledger.history] == ["204", "500", "connection reset", "302", "204", "204"]
        for request in receiver.requests:
            sent_at = datetime.fromtimestamp(int(request.headers["webhook-timestamp"]), UTC)
            signature = Webhook(SECRET).sign(request.headers["webhook-id"], sent_at, request.body.decode())
            assert request.headers["webhook-signature"] == signature
            assert request.headers["content-type"] == "application/x-www-form-urlencoded"


async def test_real_posts_to_a_forbidden_address_are_never_dialled() -> None:
    async with ScriptedReceiver() as receiver, real_desk(Guard()) as at:
        at.dispatcher.apply(registry_of(make_callback(url=receiver.url())))
        at.dispatcher.offer(make_call(events=2))
        await at.settled()
        assert at.ledger.last.state is DeliveryState.WAITING
        assert at.ledger.last.outcome == "loopback address"
        at.clock.advance(1)
        await at.settled()
        assert at.ledger.last.attempts == 2
        assert receiver.connections == []


async def test_real_lanes_go_in_parallel_over_connections_of_their_own() -> None:
    everyone = asyncio.Event()
    async with ScriptedReceiver(otherwise=answer(204, after=everyone)) as receiver, real_desk() as at:
        at.dispatcher.apply(registry_of(make_callback(url=receiver.url())))
        at.dispatcher.offer(delivery for number in range(20) for delivery in make_call(f"call{number}", 2))
        await receiver.has_received(10)
        assert len(receiver.connections) == 10
        everyone.set()
        await at.settled()
        assert len(receiver.requests) == 40
        assert len(receiver.connections) == 10


async def test_a_real_stop_in_the_middle_of_a_post_does_not_count_it() -> None:
    async with ScriptedReceiver(otherwise=silence()) as receiver, Transport(LOOPBACK) as transport:
        at = RealDesk(transport)
        settling = asyncio.create_task(at.dispatcher.run())
        at.dispatcher.apply(registry_of(make_callback(url=receiver.url())))
        at.dispatcher.offer(make_call(events=2))
        await receiver.has_received(1)
        assert not await at.dispatcher.drain(timedelta())
        await transport.close()
        assert await at.dispatcher.drain(timedelta(seconds=10))
        assert at.ledger.history == []
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
