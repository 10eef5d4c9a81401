"""Whatever happens in whatever order: nothing accepted is lost, a call's events go out one at a time and in order except for
late ones, the caps and the bound of memory hold, and once everybody is well everything arrives.

The store is a double that outlives the dispatcher: a crash is a new dispatcher on the same store.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.clock import ManualClock
from tests.support.dispatching import (
    CUT_OFF,
    DELIVERED,
    REFUSED,
    Attempt,
    PostingDouble,
    dispatcher_is_consistent,
    make_callback,
    make_delivery,
    registry_of,
)
from tests.support.store_double import StoreDouble, key_of

from toque.callbacks.callback import Callback
from toque.callbacks.delivery import Delivery, DeliveryState
from toque.callbacks.health import State
from toque.sending.dispatcher import Dispatcher
from toque.sending.transport import Answered, Forbidden, Outcome, Post, Unsent

CAP, TOTAL, MAX_HELD = 3, 4, 24
WINDOW_S = 30
FAILURES = (Answered(500), Answered(302), REFUSED, Forbidden("private address"))
OUTCOMES = (
    *(DELIVERED,) * 6,
    *FAILURES,
    Answered(400),
    Answered(429, "7"),
    Answered(429),
    Answered(503, "3000"),
    Answered(410),
    Unsent("too many open files"),
    CUT_OFF,
)


class DispatcherRules(RuleBasedStateMachine):
    """The dispatcher's promises, against everything that can happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.store = self.loop.run_until_complete(self._make_store())
        self.registered: dict[int, Callback] = {}
        self.next_callback = 1
        self.lanes: dict[tuple[int, str], list[Delivery]] = {}
        self.failed_at: dict[tuple[int, int], float] = {}
        self.arrived: set[tuple[int, int]] = set()  # a 2xx came, in this incarnation
        self.void: set[tuple[int, int]] = set()  # accepted for callbacks that were disabled or removed since
        self.has_crashed = False
        self._start()

    async def _make_store(self) -> StoreDouble:
        return StoreDouble()

    def _start(self) -> None:
        self.posting = PostingDouble()
        self.dispatcher = Dispatcher(
            self, self.store, clock=self.clock, chance=lambda: 0.3, timers=self.clock,
            concurrency=TOTAL, callback_concurrency=CAP, max_held=MAX_HELD,
            ordering_window=timedelta(seconds=WINDOW_S),
        )  # fmt: skip
        self.running = self.loop.create_task(self.dispatcher.run())

    # The transport

    def start(self, post: Post, on_outcome: Callable[[Post, Outcome], None]) -> None:
        attempt = Attempt(post, on_outcome)
        assert attempt.callback in self.registered, "started for a callback that is removed"
        mine = self.lanes[attempt.lane]
        number = next(number for number, delivery in enumerate(mine) if delivery.event.id == attempt.event)
        key = key_of(mine[number])
        assert key not in self.arrived, "sent again after it arrived"
        assert self.store.state[key] is not DeliveryState.DELIVERED
        assert attempt.event not in {other.event for other in self.posting.open if other.callback == attempt.callback}, (
            "the same event twice at once"
        )
        for earlier in mine[:number]:
            assert self._is_over(earlier) or self._may_be_late(earlier), "started before an earlier event has ended"
        self.posting.attempts.append(attempt)

    def _is_over(self, delivery: Delivery) -> bool:
        return self.store.state[key_of(delivery)] is not DeliveryState.WAITING or key_of(delivery) in self.void

    def _may_be_late(self, delivery: Delivery) -> bool:
        failed_at = self.failed_at.get(key_of(delivery))
        return failed_at is not None and (self.clock.time() - failed_at >= WINDOW_S - 1 or self.has_crashed)

    # What happens

    def _rest(self, turns: int = 60) -> None:
        async def rest() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.loop.run_until_complete(rest())
        if self.running.done():
            self.running.result()

    def _apply(self) -> None:
        self.dispatcher.apply(registry_of(*self.registered.values()))

    @initialize(callbacks=st.integers(1, 3))
    def begin(self, callbacks: int) -> None:
        for _ in range(callbacks):
            self.register()
        self._apply()

    @rule()
    def register(self) -> None:
        if len(self.registered) < 3:
            self.registered[self.next_callback] = make_callback(self.next_callback)
            self.next_callback += 1

    @rule()
    def look(self) -> None:
        """The directory reads the registry and applies it."""
        self._note_disabled()
        self._apply()
        self._rest()

    @precondition(lambda self: self.registered)
    @rule(data=st.data(), calls=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=20), rests=st.booleans())
    def accept(self, data: st.DataObject, calls: list[str], rests: bool) -> None:
        """The store accepts events, as it does for callbacks that are active in it; the dispatcher may not know them yet."""
        self._note_disabled()
        callback = data.draw(st.sampled_from(sorted(self.registered)))
        if self.registered[callback].disabled_at is None:
            offered = []
            for call in calls:
                lane = self.lanes.setdefault((callback, call), [])
                lane.append(make_delivery(call, len(lane) + 1, callback, accepted_at=self.clock()))
                offered.append(lane[-1])
            self.dispatcher.offer(self.store.append(offered))
        if rests:
            self._rest()

    def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        delivery = next(one for one in self.lanes[attempt.lane] if one.event.id == attempt.event)
        if outcome is DELIVERED:
            self.arrived.add(key_of(delivery))
        else:
            self.failed_at.setdefault(key_of(delivery), self.clock.time())
        attempt.ends(outcome)

    @precondition(lambda self: self.posting.open)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES), rests=st.booleans())
    def end(self, data: st.DataObject, outcome: Outcome, rests: bool) -> None:
        self._end(data.draw(st.sampled_from(self.posting.open)), outcome)
        if rests:
            self._rest()

    @rule(data=st.data(), outcome=st.sampled_from((*FAILURES, DELIVERED)), rounds=st.integers(1, 8))
    def be_so_for_a_while(self, data: st.DataObject, outcome: Outcome, rounds: int) -> None:
        """One receiver, or all of them, fail or answer for some time."""
        whose = data.draw(st.sampled_from([*sorted(self.registered), 0]))
        for _ in range(rounds):
            for attempt in self.posting.open:
                if attempt.is_open and whose in (0, attempt.callback):
                    self._end(attempt, outcome)
            self._rest()
            self.clock.advance(3)
            self._rest()

    @rule(turns=st.integers(1, 5))
    def rest_a_little(self, turns: int) -> None:
        self._rest(turns)

    @rule(seconds=st.sampled_from([0.3, 0.5, 1.1, 7, 31, 60, 400, 3700]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self._rest()

    @rule(by=st.sampled_from([-3600, 3600]))
    def set_wall_clock(self, by: int) -> None:
        self.clock.set_wall(timedelta(seconds=by))

    @rule()
    def break_or_mend_store(self) -> None:
        self.store.is_broken = not self.store.is_broken

    @rule()
    def hold_up_or_let_go(self) -> None:
        """Pages take their time."""
        if self.store.read_gate.is_set():
            self.store.read_gate.clear()
        else:
            self.store.read_gate.set()

    @rule()
    def crash(self) -> None:
        """And begin anew, as a server does."""
        self._end_incarnation()
        self.has_crashed = True
        self.arrived.clear()
        self._note_disabled()
        callbacks = self.store.recover()
        kept = dict(self.store.healths)
        self.registered = {
            number: replace(callback, health=kept.get(number, callback.health)) for number, callback in self.registered.items()
        }
        self._start()
        self._apply()
        self.dispatcher.resume(callbacks)
        self._rest()

    @precondition(lambda self: self.registered)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """As the API does it: removed in the store, then applied before the answer."""
        callback = data.draw(st.sampled_from(sorted(self.registered)))
        del self.registered[callback]
        self._end_callback(callback)
        self.store.remove(callback)
        self._apply()
        self._rest()

    @precondition(lambda self: self.registered)
    @rule(data=st.data(), looks=st.booleans())
    def disable(self, data: st.DataObject, looks: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.registered)))
        self.registered[number] = replace(self.registered[number], disabled_at=self.clock(), disabled_reason="by hand")
        self._end_callback(number)
        self.store.kill(number)
        if looks:
            self._apply()

    @precondition(lambda self: self.registered)
    @rule(data=st.data(), looks=st.booleans())
    def register_again(self, data: st.DataObject, looks: bool) -> None:
        """Other credentials, and enabled if it was not."""
        self._note_disabled()
        number = data.draw(st.sampled_from(sorted(self.registered)))
        credentials = data.draw(st.sampled_from(["a:b", "c:d"]))
        self.registered[number] = replace(
            self.registered[number], credentials=credentials, disabled_at=None, disabled_reason=None
        )
        if looks:
            self._apply()

    def _note_disabled(self) -> None:
        """What the dispatcher had disabled in the store shows in the registry."""
        for number, reason in self.store.disabled:
            self._end_callback(number)
            if number in self.registered and self.registered[number].disabled_at is None:
                self.registered[number] = replace(self.registered[number], disabled_at=self.clock(), disabled_reason=reason)
        self.store.disabled.clear()

    def _end_callback(self, number: int) -> None:
        self.void |= {key_of(delivery) for (callback, _), lane in self.lanes.items() if callback == number for delivery in lane}

    # What is always so

    @invariant()
    def caps_are_kept(self) -> None:
        assert len(self.posting.open) <= TOTAL
        assert all(many <= CAP for many in Counter(attempt.callback for attempt in self.posting.open).values())

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.dispatcher.held() <= MAX_HELD
        dispatcher_is_consistent(self.dispatcher)
        dispatcher_is_consistent(self.dispatcher)

    @invariant()
    def who_fails_holds_nothing_but_a_probe(self) -> None:
        for queue in self.dispatcher._queues.values():
            if queue.health.state is State.FAILING:
                assert queue.held == queue.in_use
            elif queue.health.state is State.PROBING:
                assert queue.held == 1

    # And in the end

    def teardown(self) -> None:
        """Everything is well again: whatever still waits arrives."""
        try:
            self.store.is_broken = False
            self.store.read_gate.set()
            self.clock.advance(1)
            self._rest()
            self._note_disabled()
            self._apply()
            self._apply()
            for _ in range(2 * len(self.store.state) + 30):
                for attempt in self.posting.open:
                    self._end(attempt, DELIVERED)
                self._rest()
                self.clock.advance(400)
                self._rest()
            self._nothing_is_left()
        finally:
            self._end_incarnation()
            self.loop.close()

    def _nothing_is_left(self) -> None:
        assert not self.posting.open
        assert self.dispatcher.held() == 0
        assert not self.store.fresh
        for lane in self.lanes.values():
            assert all(self._is_over(delivery) for delivery in lane), "it waits in the store for ever"
        for queue in self.dispatcher._queues.values():
            if queue.writer is not None:
                assert queue.health.state is State.HEALTHY or queue.is_dry, "nobody finds out whether it is well"

    def _end_incarnation(self) -> None:
        self.dispatcher.stop()
        self.running.cancel()
        self.loop.run_until_complete(asyncio.gather(self.running, return_exceptions=True))
        assert self.clock.timers == []


TestDispatcherRules = DispatcherRules.TestCase
TestDispatcherRules.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
