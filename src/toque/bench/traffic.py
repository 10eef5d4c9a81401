"""Made-up calls for measurements: each is one side with four statuses, as an answered call has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count

from toque.callbacks.callback import Client, Registered
from toque.calls.lines import parse_line
from toque.calls.model import CallFacts, CallIdentity, Direction, Owner, Party, Side, Status, StatusChange
from toque.store.contract import Store

PIN = "central"
_CALLEE = "5511977770002"
_LIFE = (Status.INITIATED, Status.RINGING, Status.ANSWERED, Status.HUNG_UP)


def client_id(number: int) -> str:
    """The name of one of the made-up clients."""
    return f"client{number:05d}"


async def populate(store: Store, urls: Sequence[str]) -> None:
    """A client with a line and a callback for each of these URLs."""
    await asyncio.gather(*(_add_client(store, number, url) for number, url in enumerate(urls)))  # so they share commits


async def _add_client(store: Store, number: int, url: str) -> None:
    name = client_id(number)
    await store.add_client(Client(name, name, "no login", 1, datetime.now(UTC)))
    await store.add_lines([parse_line(name, PIN, number_of(number))])
    done = await store.register_callback(name, url, None, None, limit=1)
    assert isinstance(done, Registered)  # noqa: S101 - the limit is not reached


def number_of(client: int) -> str:
    """A made-up client's telephone number."""
    return f"55413060{client:04d}"


def changes(clients: Sequence[int], *, run: str) -> Iterator[StatusChange]:
    """Status changes without end, of calls spread over these clients; many calls are in progress at once."""
    sides = [Side(Owner(client_id(number), PIN), Direction.MADE) for number in clients]
    for first in count(step=len(clients)):
        identities = [CallIdentity("bench", f"{run}-{first + i}") for i in range(len(clients))]
        second = datetime.now(UTC).replace(microsecond=0)
        for step, status in enumerate(_LIFE):
            at = second + timedelta(milliseconds=step)
            for identity, side, number in zip(identities, sides, clients, strict=True):
                yield StatusChange(identity, side, status, at, _facts(number, step, second))


@lru_cache(maxsize=4096)  # a second of 1,000 clients
def _facts(client: int, step: int, began_at: datetime) -> CallFacts:
    """What is known at this step; shared by a client's calls that begin in the same second, to cost the measured process less."""
    at = began_at + timedelta(milliseconds=step)
    return CallFacts(
        caller=number_of(client),
        dialled=_CALLEE,
        answered_by=_CALLEE if step > 1 else None,
        began_at=began_at,
        ringing_at=at if step > 0 else None,
        answered_at=at if step > 1 else None,
        ended_at=at if step > 2 else None,
        hung_up_by=Party.CALLER if step > 2 else None,
    )
