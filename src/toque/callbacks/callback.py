"""Accounts and what they registered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from toque.calls.lines import Line


@dataclass(frozen=True, slots=True)
class Client:
    """An account. `secret_version` grows with every rotation and makes older tokens invalid."""

    client_id: str
    name: str
    secret_hash: str = field(repr=False)
    secret_version: int
    created_at: datetime
    disabled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeptHealth:
    """What the store keeps of a callback's health, so that an outage goes on being one over a restart.

    `failing_since` is None while it is well.
    """

    failing_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Callback:
    """A registered URL. `url` carries no credentials; `secrets` are those that sign now, the newest first.

    `health` is as of the moment when the registry was read: it changes without a new version of the registry.
    """

    id: int
    code: str
    client_id: str
    url: str
    pin: str | None
    created_at: datetime
    credentials: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    old_secret_until: datetime | None = None
    disabled_at: datetime | None = None
    disabled_reason: str | None = None
    health: KeptHealth = field(default=KeptHealth(), compare=False)

    def secrets_at(self, now: datetime) -> tuple[str, ...]:
        """The secrets that sign at this moment: the old one only until its rotation is over."""
        if self.old_secret_until is None or now < self.old_secret_until:
            return self.secrets
        return self.secrets[:1]


@dataclass(frozen=True, slots=True)
class IntakeCredential:
    """Who may post calls to the HTTP intake: a source of its own, whose calls are told apart by this name.

    Tokens are random enough that a plain SHA-256, `token_hash`, does not give them away; so a request costs no argon2.
    """

    name: str
    token_hash: str = field(repr=False)
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Registry:
    """Who may do what, as of one version; the whole of it fits in memory and is replaced, never changed."""

    version: int
    clients: Mapping[str, Client]
    lines: tuple[Line, ...]
    callbacks: Mapping[int, Callback]
    intakes: Mapping[str, IntakeCredential] = field(default_factory=dict)

    def active_lines(self) -> Iterable[Line]:
        """The lines whose client is not disabled."""
        return (line for line in self.lines if self.clients[line.client_id].disabled_at is None)

    def callbacks_of(self, client_id: str) -> list[Callback]:
        """A client's callbacks in the order of their registration."""
        return [callback for callback in self.callbacks.values() if callback.client_id == client_id]

    def owns_pin(self, client_id: str, pin: str) -> bool:
        """Whether a client has a line with this pin."""
        return any(line.client_id == client_id and line.pin == pin for line in self.lines)


@dataclass(frozen=True, slots=True)
class Registered:
    """The answer to a registration: the callback, and whether its code is new."""

    callback: Callback
    is_new: bool


@dataclass(frozen=True, slots=True)
class TooMany:
    """The client has as many callbacks as it may have."""

    limit: int
