"""What every store does. `tests/contract` holds each engine to it.

A method that writes returns when what it wrote is durable, and raises `StoreError` when it is not; repeating it is safe. What can
never be written, however often it is tried, is `IllegalStep`: a mistake of ours. A store that was closed raises `StoreError`.

Several store objects may be open on the same data, in as many processes. What one of them changed in the registry, the others
know within a second, and from then on go by. Events and deliveries are the business of one of them, the server's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import Protocol, runtime_checkable

from toque.callbacks.callback import Client, IntakeCredential, KeptHealth, Registered, Registry, TooMany
from toque.callbacks.delivery import Delivery, Settlement
from toque.calls.lines import Line
from toque.calls.model import CallIdentity, Snapshot, Status, StatusChange


class Removal(Enum):
    """What came of removing a callback."""

    REMOVED = "removed"
    ALREADY_REMOVED = "already removed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Appended:
    """What was accepted: `events` counts those that are new, `deliveries` are theirs, in the order of acceptance.

    `left_out` are the changes that had been told before, where the store says so; a source may want to know.
    """

    events: int = 0
    deliveries: list[Delivery] = field(default_factory=list)
    left_out: Sequence[StatusChange] = field(default=(), compare=False)


class ReplayState(StrEnum):
    """How a replay stands."""

    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Replay:
    """What a callback is to be sent again, and how far that is. Its `id`s on the wire are those of the first time.

    `since` and `until` bound the moments of acceptance; `callerid` and `event_id` narrow it to a call or an event. With
    `is_for_dead` only deliveries that are dead are sent again, otherwise every event that the callback's client and pin had.
    """

    id: int
    callback_id: int
    since: datetime | None
    until: datetime
    callerid: str | None = None
    event_id: str | None = None
    is_for_dead: bool = False
    rate: float = 50.0  # deliveries a second at most
    state: ReplayState = ReplayState.RUNNING
    place: int = 0  # how far it has come, in the store's own order
    requeued: int = 0  # deliveries put into the callback's backlog so far
    created_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeadDelivery:
    """A delivery that was given up, for people and for replays."""

    delivery: Delivery
    died_at: datetime
    outcome: str


@dataclass(frozen=True, slots=True)
class PastDelivery:
    """How a delivery stands: `delivered`, `waiting`, `dead`, `on its way`, or what became of it; `code` is its callback's."""

    code: str
    state: str
    attempts: int
    settled_at: datetime | None
    due_at: datetime | None
    outcome: str


@dataclass(frozen=True, slots=True)
class PastEvent:
    """An event as it was told, and its deliveries."""

    id: str
    client_id: str
    callerid: str
    direction: str
    pin: str
    status: Status
    sequence: int
    happened_at: datetime
    accepted_at: datetime
    payload: str
    deliveries: tuple[PastDelivery, ...]


@runtime_checkable
class Archive(Protocol):
    """What people ask of a store, beside `Store`: for `toque trace` and `toque doctor`. It may take its time."""

    async def events_of(self, callerid: str) -> list[PastEvent]:
        """The events of a call in the order of acceptance, as far as they are kept."""

    async def events_with(self, numbers: Sequence[str], *, since: datetime, most_calls: int = 10) -> list[PastEvent]:
        """The events, accepted since then, of the latest calls in which one of these numbers calls, is called or answers."""

    async def callerid_of(self, identity: CallIdentity) -> str:
        """What the call is called that bore a switch's identity last."""

    async def dead_sizes(self) -> dict[int, int]:
        """How many deliveries of each callback are dead and kept."""

    async def last_accepted_at(self) -> datetime | None:
        """When the last events were accepted, None when there are none."""


class Store(Protocol):
    """Clients, lines, callbacks, calls, events and deliveries that survive."""

    async def close(self) -> None:
        """Finish what was begun and let go. Safe to repeat."""

    async def ping(self) -> None:
        """Write something and have it durable. Raises `StoreError` when that fails."""

    # Registry

    async def registry_version(self) -> int:
        """A number that grows with every change of the registry, whoever made it."""

    async def registry(self) -> Registry:
        """All clients, lines and active callbacks."""

    async def token_key(self) -> bytes:
        """The key that signs access tokens; made when first asked for, the same ever after."""

    async def add_client(self, client: Client) -> None:
        """Add an account. Raises `InputError` when the client_id or name is taken."""

    async def rotate_client(self, client_id: str, secret_hash: str) -> bool:
        """Give a client another secret, which ends its tokens. False when there is no such client."""

    async def disable_client(self, client_id: str, at: datetime | None) -> bool:
        """Disable a client, or with None enable it again. False when there is no such client."""

    async def remove_client(self, client_id: str) -> bool:
        """Remove a client with its lines, callbacks and waiting deliveries. False when there is no such client."""

    async def add_lines(self, lines: Sequence[Line]) -> int:
        """Add lines, all or none; those that the client has already are not counted.

        Raises `InputError` when there is no such client, another one owns one of the numbers, or the client owns it under
        another pin.
        """

    async def remove_lines(self, client_id: str, pin: str, numbers: Sequence[Line] | None) -> int:
        """Remove these lines of a pin, or with None all of them; returns how many there were."""

    async def register_callback(
        self, client_id: str, url: str, credentials: str | None, pin: str | None, *, limit: int
    ) -> Registered | TooMany:
        """Register a URL, or update the credentials of the registration that has the same URL and pin.

        That also enables it, if it was disabled. Raises `InputError` when there is no such client.
        """

    async def remove_callback(self, client_id: str, code: str) -> Removal:
        """End a registration of this client; its waiting deliveries are dropped with it."""

    async def disable_callback(self, callback_id: int, reason: str) -> int:
        """Stop posting to a callback. What waits for it at this moment is dead from then on, however much it is.

        Returns the registry's version from which on that is known: one that was read earlier may have a smaller one.
        """

    async def enable_callback(self, code: str) -> bool:
        """Post to a callback again, from what is accepted next on. False when there is no such callback."""

    async def keep_health(self, callback_id: int, health: KeptHealth) -> None:
        """Remember a callback's health. The registry shows it from its next reading on, under the same version."""

    async def rotate_callback(self, code: str, *, keep_old_for: timedelta) -> str | None:
        """Give a callback another signing secret and return it; the old one signs as well for a while. None: unknown code."""

    async def add_intake(self, credential: IntakeCredential) -> None:
        """Let somebody post calls. Raises `InputError` when the name is taken."""

    async def rotate_intake(self, name: str, token_hash: str) -> bool:
        """Give a credential of the intake another token; the old one ends. False when there is none of this name."""

    async def remove_intake(self, name: str) -> bool:
        """Remove a credential of the intake. Its calls stay. False when there is none of this name."""

    # Events. All of these are for the one store object that has claimed the events; the others may only change the registry.

    async def append(self, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot]) -> Appended:
        """Accept status changes: give each its callerid, id and sequence, and a delivery for every callback that wants it.

        What a side has been told already, or after its end, is left out, and so is what no client would be told of, because
        it was removed. Snapshots are kept until their call ends: with its first final, or a snapshot without state. What
        begins later than that under the same identity is another call.

        The deliveries are in the hands of the caller, who settles each of them some day. Those that nobody settled before
        the process ended are put into their callbacks' backlogs by `recover`.
        """

    async def open_calls(self) -> list[tuple[CallIdentity, bytes]]:
        """The snapshots of the calls in progress."""

    async def settle(self, delivered: Sequence[Delivery], others: Sequence[Settlement] = ()) -> None:
        """Write down how deliveries stand: those that were delivered, and all others with their state.

        A WAITING one goes to the end of its callback's backlog, or stays at its place if it has one. What is delivered or
        dead stays so, and what belongs to a removed callback is passed over. The order of `others` is kept.
        """

    async def recover(self) -> list[int]:
        """Put what an earlier process left unsettled into the backlogs; the ids of all callbacks that have one.

        To be called once, before the first `append`.
        """

    async def backlog(self, callback_id: int, *, after: int = 0, limit: int = 500) -> list[Delivery]:
        """A page of what waits for a callback, from behind the place `after` (a delivery's `row`), in the order of places.

        A page shorter than `limit` is the last one.
        """

    async def backlog_sizes(self) -> dict[int, int]:
        """How many deliveries wait in each callback's backlog. It counts, so it is for people and not for every second."""

    # Again

    async def dead(self, callback_id: int, *, after: int = 0, limit: int = 500) -> list[DeadDelivery]:
        """A page of a callback's dead deliveries, from behind a `row`, in the order of rows."""

    async def add_replay(self, replay: Replay) -> Replay:
        """Begin a replay (its id is given here). Raises `InputError` when there is no such callback, call or event."""

    async def replays(self) -> list[Replay]:
        """All replays that are remembered, the oldest first."""

    async def cancel_replay(self, replay_id: int) -> bool:
        """End a replay; what it has put into the backlog stays there. False when none runs under this id."""

    async def requeue(self, replay_id: int, limit: int) -> Replay | None:
        """Put up to `limit` more deliveries of a replay into the callback's backlog, with no attempts made yet.

        The new place of the replay is written down in the same transaction, so that a crash repeats nothing. What waits there
        already is not put there twice. None when the replay is gone or no longer runs.
        """

    # Upkeep

    async def housekeep(self, *, keep: timedelta) -> bool:
        """Do a small part of the upkeep, in one short transaction; whether there is more to do at once.

        What is older than `keep` goes: events, how their deliveries ended, dead deliveries, ended replays; and what belongs to
        removed clients and callbacks. Nothing that waits goes, and no call that is in progress or may still be repeated.
        """
