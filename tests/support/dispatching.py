"""A dispatcher at work in tests: its deliveries, a posting double, and a desk with everything around it.

async with desk() as at:
    at.offer(make_call(events=3))
    await at.end(at.posting.open[0], Answered(500))
    await at.pass_time(1)
    await at.end_all()
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count

from tests.support.clock import START, ManualClock
from tests.support.store_double import StoreDouble

from toque.callbacks.callback import Callback, Registry
from toque.callbacks.delivery import Delivery, Event
from toque.calls.model import Status
from toque.sending.dispatcher import Dispatcher
from toque.sending.transport import Answered, Outcome, Post, Unreachable, Unsent

SECRET = "whsec_" + b64encode(bytes(range(32))).decode()
OTHER_SECRET = "whsec_" + b64encode(bytes(32)).decode()
DELIVERED = Answered(204)
REFUSED = Unreachable("connection refused")
CUT_OFF = Unsent("closing")


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
        direction=changes.pop("direction", "made"),
        pin=changes.pop("pin", "pin"),
        status=changes.pop("status", Status.INITIATED),
        sequence=sequence,
        accepted_at=changes.pop("accepted_at", START),
        payload=f'{{"sequencia":{sequence}}}',
    )
    return Delivery(event, callback, **changes)


def make_call(call: str = "call", events: int = 3, callback: int = 1) -> list[Delivery]:
    return [make_delivery(call, sequence, callback) for sequence in range(1, events + 1)]


def make_calls(number: int, callback: int = 1, prefix: str = "call") -> list[Delivery]:
    return [make_delivery(f"{prefix}{n}", callback=callback) for n in range(number)]


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


class PostingDouble:
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
class Desk:
    """A dispatcher at work, and everything around it."""

    clock: ManualClock
    posting: PostingDouble
    store: StoreDouble
    chance: float = 0.5  # which is no jitter
    dispatcher: Dispatcher = field(init=False)
    running: asyncio.Task[None] = field(init=False)

    def offer(self, deliveries: Iterable[Delivery]) -> None:
        """They are accepted, and sent on their way."""
        self.dispatcher.offer(self.store.append(deliveries))

    async def rest(self) -> None:
        """Until the dispatcher has done all that it can do now."""
        for _ in range(40):
            await asyncio.sleep(0)

    async def end(self, attempt: Attempt, outcome: Outcome = DELIVERED) -> None:
        attempt.ends(outcome)
        await self.rest()

    async def end_all(self, outcome: Outcome = DELIVERED) -> None:
        """End what is in flight and whatever starts because of it, until nothing more does."""
        await self.rest()
        while self.posting.open:
            for attempt in self.posting.open:
                attempt.ends(outcome)
            await self.rest()

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.rest()

    async def fail(self, times: int = 5, outcome: Outcome = REFUSED) -> None:
        """Let the callback's one lane fail so often in a row; five times park it."""
        for _ in range(times):
            while not self.posting.open:
                await self.pass_time(self.clock.timers[0])
            await self.end(self.posting.open[0], outcome)

    async def be_well(self, callback: int = 1) -> None:
        """One other call's event arrives, so that failures are those of one delivery and not of the callback."""
        self.offer([make_delivery(f"well{next(_SEQ)}", callback=callback)])
        others = [attempt for attempt in self.posting.open if attempt.event.startswith("well")]
        for attempt in others:
            await self.end(attempt)

    async def warm_up(self, callback: int = 1, posts: int = 10) -> None:
        """Have the callback answer well until it gets as many posts at once as it may."""
        self.offer(make_delivery(f"warm{n}", callback=callback) for n in range(posts))
        await self.end_all()
        self.posting.attempts.clear()
        self.store.history.clear()


@asynccontextmanager
async def desk(*callbacks: Callback, store: StoreDouble | None = None, **options: object) -> AsyncIterator[Desk]:
    """Work, and at the end nothing is left behind."""
    tasks = asyncio.all_tasks()
    made = Desk(ManualClock(), PostingDouble(), store or StoreDouble())
    made.dispatcher = Dispatcher(
        made.posting, made.store, clock=made.clock, chance=lambda: made.chance, timers=made.clock, **options
    )
    made.running = asyncio.create_task(made.dispatcher.run())
    made.dispatcher.apply(registry_of(*(callbacks or (make_callback(),))))
    try:
        yield made
        dispatcher_is_consistent(made.dispatcher)
        made.dispatcher.stop()
        assert made.clock.timers == []
    finally:
        made.running.cancel()
        await asyncio.gather(made.running, return_exceptions=True)
    assert asyncio.all_tasks() == tasks


def dispatcher_is_consistent(dispatcher: Dispatcher) -> None:
    """Its counts are those of what it holds."""
    queues = dispatcher._queues.values()
    for queue in queues:
        lanes = [*queue.lanes.values(), *queue.late]
        assert queue.held == sum(len(list(lane.deliveries())) for lane in lanes) + len(queue.landing or ())
        assert queue.in_flight <= queue.in_use
        assert all(lane.queue is queue for lane in lanes)
    assert dispatcher._room.held == sum(queue.held for queue in queues)
    assert dispatcher._turns.in_flight == sum(queue.in_flight for queue in queues)
    assert dispatcher._turns.slow == sum(queue.in_flight for queue in queues if queue.is_slow)
