"""Made-up calls for measurements: each is one side with four statuses, as an answered call has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from toque.callbacks.callback import Client, Registered
from toque.calls.lines import parse_line
from toque.calls.model import CallFacts, CallIdentity, Direction, Owner, Party, Side, Status, StatusChange
from toque.store.contract import Store

PIN = "central"
_LIFE = (Status.INITIATED, Status.RINGING, Status.ANSWERED, Status.HUNG_UP)


def client_id(number: int) -> str:
    """The name of one of the made-up clients."""
    return f"client{number:05d}"


async def populate(store: Store, urls: list[str]) -> list[Registered]:
    """A client with a line and a callback for each of these URLs."""
    registered = []
    for number, url in enumerate(urls):
        name = client_id(number)
        await store.add_client(Client(name, name, "no login", 1, datetime.now(UTC)))
        await store.add_lines([parse_line(name, PIN, number_of(number))])
        done = await store.register_callback(name, url, None, None, limit=1)
        assert isinstance(done, Registered)  # noqa: S101 - the limit is not reached
        registered.append(done)
    return registered


def number_of(client: int) -> str:
    """A made-up client's telephone number."""
    return f"55413060{client:04d}"


def changes(clients: list[int], *, run: str) -> Iterator[StatusChange]:
    """Status changes without end, of calls spread over these clients; many calls are in progress at once."""
    call = 0
    sides = {number: Side(Owner(client_id(number), PIN), Direction.MADE) for number in clients}
    while True:
        now = datetime.now(UTC)
        batch = [(CallIdentity("bench", f"{run}-{call + i}"), number) for i, number in enumerate(clients)]
        call += len(clients)
        for step, status in enumerate(_LIFE):
            at = now + timedelta(milliseconds=step)
            for identity, number in batch:
                facts = CallFacts(
                    caller=number_of(number),
                    dialled="5511977770002",
                    answered_by="5511977770002" if step > 1 else None,
                    began_at=now,
                    ringing_at=at if step > 0 else None,
                    answered_at=at if step > 1 else None,
                    ended_at=at if step > 2 else None,
                    hung_up_by=Party.CALLER if step > 2 else None,
                )
                yield StatusChange(identity, sides[number], status, at, facts)
