"""What is held in memory: each callback's queue, and in it the lanes of its calls.

A lane holds the deliveries of one side of one call to one callback, strictly one after the other. It is

========  ==================================================================================
WAITING   until its head is due: a timer makes it READY
READY     in its queue's line for a turn
BUSY      while its head's attempt is under way
ENDED     until that attempt's outcome is durable
LEFT      nobody's any more: what it held is in the store, or dead. A timer may still know it
========  ==================================================================================

A delivery that is *late* has left its lane, which went on without it; it has a lane of its own that no other delivery joins.

These are made and changed by the ten thousand each second, so they are bare: what they mean together is kept by the modules that
use them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

import msgspec

from toque.callbacks.delivery import Delivery, LaneKey
from toque.callbacks.health import Allowance, Health, State
from toque.sending.outcomes import Outcome, Post
from toque.sending.requests import RequestWriter

WAITING, READY, BUSY, ENDED, LEFT = range(5)


class Desk(Protocol):
    """Who is told of outcomes."""

    def ended(self, lane: Lane, outcome: Outcome) -> None:
        """The attempt at a lane's head ended."""


class Lane(msgspec.Struct, eq=False):
    """Deliveries that must keep their order: the head, which is the one to be posted, and the rest."""

    queue: CallbackQueue
    key: LaneKey
    head: Delivery
    state: int = WAITING
    rest: list[Delivery] | None = None
    started_s: float = 0.0  # the last attempt, on the loop's clock
    retry_s: float = 0.0  # when the head is tried again; 0: it is not
    failed_s: float = 0.0  # the head's first failure; 0: none
    is_late: bool = False
    is_stale: bool = False  # late, and by now of no use to the receiver

    def ended(self, _: Post, outcome: Outcome) -> None:
        """What the transport calls."""
        self.queue.desk.ended(self, outcome)

    def add(self, delivery: Delivery) -> None:
        """Put a delivery behind those that are there."""
        if self.rest is None:
            self.rest = [delivery]
        else:
            self.rest.append(delivery)

    def deliveries(self) -> Iterator[Delivery]:
        """All of them in order."""
        yield self.head
        if self.rest:
            yield from self.rest


class CallbackQueue(msgspec.Struct, eq=False):
    """One callback: what is held for it, how it stands, and how far its backlog has been read."""

    callback_id: int
    desk: Desk
    allowance: Allowance
    health: Health = msgspec.field(default_factory=Health)

    # The registration
    writer: RequestWriter | None = None  # None: not known yet, disabled or unusable, so nothing starts
    has_news: bool = False  # deliveries have come that may be younger than the registry
    is_new: bool = True  # nothing is known of its health yet
    is_dropped: bool = False  # the callback is gone, and this lives only until its last attempt ends
    is_disabling: bool = False  # the store is yet to be told that it is disabled
    disabled_in: int = 0  # the registry's version in which we disabled it; an older one does not know

    # What is held
    lanes: dict[LaneKey, Lane] = msgspec.field(default_factory=dict)
    late: dict[Lane, None] = msgspec.field(default_factory=dict)
    ready: deque[Lane] = msgspec.field(default_factory=deque)
    held: int = 0

    # Turns
    slots: int = 0  # how many posts it may have until their outcomes are durable; 0 while nothing may start
    in_use: int = 0
    in_flight: int = 0  # those of them that are on the wire
    has_turn: bool = False
    is_slow: bool = True  # it has to prove first that it answers quickly
    heard_s: float = 0.0  # when it answered last, or was first waited for, on the loop's clock
    expected_s: float = -1.0  # answers that take up to this long teach nothing
    paused_until: float = 0.0  # on the loop's clock; 0: not paused

    # How it stands
    is_well: bool = True  # a success would be no news
    probes: int = 0  # of this outage
    is_probe_due: bool = False
    is_dry: bool = False  # it is to be probed, and nothing waits for it

    # Its backlog in the store
    is_behind: bool = False  # something waits there that is not held here, so everything new goes there as well
    cursor: int = 0  # rows up to this one have been read
    reading: int = 0  # grows when what is being read is of no use any more
    is_reading: bool = False
    has_left: bool = False  # something was left to the store that the page being read need not show
    leaving: int = 0  # batches with something for the store that are not durable yet
    gone: set[int] = msgspec.field(default_factory=set)  # rows done with while a page is being read that may show them
    landing: list[Delivery] | None = None  # new deliveries that wait for the last page, so as not to go by the store as well
    is_old: bool = False  # its backlog is of an earlier process: of how it came to be only the attempts are known
    late_seqs: set[int] = msgspec.field(default_factory=set)  # events that were late when it was parked

    def hold(self, delivery: Delivery) -> Lane | None:
        """Put a delivery into its lane; the lane, if it is new."""
        self.held += 1
        key = delivery.lane
        lane = self.lanes.get(key)
        if lane is not None:
            lane.add(delivery)
            return None
        lane = self.lanes[key] = Lane(self, key, delivery)
        return lane

    def hold_late(self, delivery: Delivery) -> Lane:
        """Hold a delivery that went its own way before."""
        self.held += 1
        lane = Lane(self, delivery.lane, delivery, is_late=True)
        self.late[lane] = None
        return lane

    def let_go(self, lane: Lane) -> bool:
        """The lane's head is done with; whether there is another one, which is the head now."""
        self.held -= 1
        if self.is_reading:
            self.gone.add(lane.head.row)
        if lane.rest:
            lane.head = lane.rest.pop(0)
            lane.failed_s = 0.0
            lane.state = WAITING
            return True
        lane.state = LEFT
        if lane.is_late:
            del self.late[lane]
        else:
            del self.lanes[lane.key]
        return False

    def set_apart(self, lane: Lane) -> Lane:
        """The lane's head is late: give it a lane of its own, which is returned."""
        late = Lane(self, lane.key, lane.head, retry_s=lane.retry_s, is_late=True)
        self.late[late] = None
        if lane.rest:
            lane.head = lane.rest.pop(0)
            lane.failed_s = 0.0
        else:
            lane.state = LEFT
            del self.lanes[lane.key]
        return late

    def allow(self) -> None:
        """Say anew how many posts it may have, after whatever that depends on has changed."""
        may_post = self.writer is not None and not self.paused_until
        if not may_post or self.health.is_parked:
            self.slots = 1 if may_post and self.health.state is State.PROBING else 0
        else:
            self.slots = self.allowance.posts
        self.expected_s = -1.0 if self.is_slow else self.allowance.expected_s

    @property
    def is_over(self) -> bool:
        """Whether nothing may be sent to it any more, and what is held for it waits for the registry's word at most."""
        return self.is_dropped or self.health.state is State.DISABLED

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost with it."""
        return (
            not (self.held or self.in_use or self.is_behind or self.leaving or self.paused_until or self.has_turn)
            and self.is_well
            and self.writer is not None
            and self.writer.callback.health.failing_since is None
        )
