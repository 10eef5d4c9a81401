"""What every store does. `tests/contract` holds each engine to it.

A method that writes returns when what it wrote is durable, and raises `StoreError` when it is not; repeating it is safe. What can
never be written, however often it is tried, is `IllegalStep`: a mistake of ours. A store that was closed raises `StoreError`.

Several store objects may be open on the same data, in as many processes. What one of them changed in the registry, the others
know within a second, and from then on go by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

from toque.callbacks.callback import Client, Registered, Registry, TooMany
from toque.callbacks.delivery import Delivery, Settlement
from toque.calls.lines import Line
from toque.calls.model import CallIdentity, Snapshot, StatusChange


class Removal(Enum):
    """What came of removing a callback."""

    REMOVED = "removed"
    ALREADY_REMOVED = "already removed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Appended:
    """What was accepted: `events` counts those that are new, `deliveries` are theirs, in the order of acceptance."""

    events: int = 0
    deliveries: list[Delivery] = field(default_factory=list)


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

    async def disable_callback(self, callback_id: int, reason: str) -> None:
        """Stop posting to a callback; its waiting deliveries are dead."""

    async def rotate_callback(self, code: str, *, keep_old_for: timedelta) -> str | None:
        """Give a callback another signing secret and return it; the old one signs as well for a while. None: unknown code."""

    # Events

    async def append(self, changes: Sequence[StatusChange], snapshots: Sequence[Snapshot]) -> Appended:
        """Accept status changes: give each its callerid, id and sequence, and a delivery for every callback that wants it.

        What a side has been told already, or after its end, is left out, and so is what no client would be told of, because
        it was removed. Snapshots are kept until their call ends: with its first final, or a snapshot without state. What
        begins later than that under the same identity is another call.
        """

    async def open_calls(self) -> list[tuple[CallIdentity, bytes]]:
        """The snapshots of the calls in progress."""

    async def pending(self, *, after: tuple[int, int] = (0, 0), limit: int = 10_000) -> list[Delivery]:
        """Waiting deliveries in the order of acceptance, from behind the given (event seq, callback id)."""

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        """Write down how deliveries stand. What was removed meanwhile is passed over."""
