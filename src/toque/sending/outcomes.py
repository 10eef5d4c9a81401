"""One attempt and the ways in which it ends: the words that the transport and whoever uses it have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from toque.callbacks.url import TargetUrl


@dataclass(slots=True, eq=False)
class Post:
    """One attempt: what is sent, and where to."""

    url: TargetUrl
    head: bytes = field(repr=False)
    """The whole request head, ending in an empty line; it holds secrets."""
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answered:
    """The receiver gave a final status; whether that is a success is for others to say."""

    status: int
    retry_after: str | None = None
    """The `Retry-After` field as it came."""
    excerpt: str = ""
    """How the body began, in printable characters; empty for 2xx."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No complete head of an answer came; `reason` is a short stable phrase."""

    reason: str


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Nothing was dialled, as all addresses of the host are forbidden; `reason` is the guard's."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unsent:
    """It ended for a reason on our side, which says nothing about the receiver; `reason` is a short stable phrase.

    Nothing was sent: no descriptor, port or memory was left, or the egress proxy would not work for us. Only for `closing`
    the post may have been on its way, when the transport's own end cut it off.
    """

    reason: str


Outcome = Answered | Unreachable | Forbidden | Unsent
OnOutcome = Callable[[Post, Outcome], None]
