"""Replays: a URL is sent again what it was told before."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from cyclopts import App, Parameter
from rich.console import Console

from toque.callbacks.callback import Registry
from toque.commands.terminal import Json, NotDone, ReplayFlags, StoreFlags, as_table, callback_of, opened, run, settings_of, show
from toque.errors import InputError
from toque.settings import Settings
from toque.store.contract import Replay, ReplayState, Store
from toque.store.sqlite import utc_now

MAX_RATE = 10_000.0  # deliveries a second: above any receiver's pace, so that a slip of the finger is noticed
_SPAN = re.compile(r"(\d+)\s*(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LOOK_EVERY_S = 0.5

app = App(name="replay", help="Send a URL again what it was told before.")


@app.default
def replay(
    code: str,
    *,
    since: Annotated[str | None, Parameter(help="accepted from here on: 2026-11-23T10:00, or a span back from now: 2h")] = None,
    until: Annotated[str | None, Parameter(help="accepted before this, in the same forms (default: now)")] = None,
    call: Annotated[str | None, Parameter(help="only this call, by its callerid")] = None,
    event: Annotated[str | None, Parameter(help="only this event, by its id; found sooner with its --call")] = None,
    dead: Annotated[bool, Parameter(help="only what is dead", negative=())] = False,
    rate: Annotated[float, Parameter(help="deliveries a second at most")] = 50.0,
    follow: Annotated[bool, Parameter(help="show the progress until the replay ends", negative=())] = False,
    json: Json = False,
    flags: ReplayFlags = None,
) -> None:
    """Send a URL again what it was told before, with the same ids: since a time, of a call, one event, or what is dead."""
    given = settings_of(flags)
    is_named = call is not None or event is not None
    if sum((since is not None, is_named, dead)) != 1 and not (since is not None and dead):
        msg = "say what to send again: --since TIME, --call CALLERID, --event ID or --dead"
        raise InputError(msg)
    if not 0 < rate <= MAX_RATE:
        msg = f"--rate is above 0 and at most {MAX_RATE:g} deliveries a second"
        raise InputError(msg)
    now = utc_now()

    def wanted(registry: Registry) -> Replay:
        return Replay(
            id=0,
            callback_id=callback_of(registry, code).id,
            since=None if since is None else parse_moment(since, now, given),
            until=now if until is None else parse_moment(until, now, given),
            callerid=None if call is None else _uuid(call),
            event_id=None if event is None else _uuid(event),
            is_for_dead=dead,
            rate=rate,
            created_at=now,
        )

    run(_begin(given, wanted, code, follow=follow, as_json=json))


async def _begin(given: Settings, wanted: Callable[[Registry], Replay], code: str, *, follow: bool, as_json: bool) -> None:
    async with opened(given) as store:
        begun = await store.add_replay(wanted(await store.registry()))
        if follow:
            begun = await _followed(store, begun, as_json=as_json)
    told = _told(begun, code)
    show(told, as_json=as_json, human=lambda console: console.print(_sentence(told)))


async def _followed(store: Store, begun: Replay, *, as_json: bool) -> Replay:
    """Wait until a running server has put everything back."""
    console = Console(highlight=False, stderr=True)
    while begun.state is ReplayState.RUNNING:
        await asyncio.sleep(_LOOK_EVERY_S)
        found = {one.id: one for one in await store.replays()}.get(begun.id)
        if found is None:
            msg = f"replay {begun.id} is gone with its callback"
            raise NotDone(msg)
        if found.requeued != begun.requeued and not as_json:
            console.print(f"{found.requeued} put back")
        begun = found
    return begun


@app.command(name="list")
def replay_list(*, json: Json = False, flags: StoreFlags = None) -> None:
    """List the replays and how far each is."""

    async def work() -> list[dict[str, Any]]:
        async with opened(settings_of(flags)) as store:
            codes = {callback.id: callback.code for callback in (await store.registry()).callbacks.values()}
            return [_told(one, codes.get(one.callback_id, "")) for one in await store.replays()]

    result = run(work())
    rows = [
        tuple("" if one[name] is None else str(one[name]) for name in ("id", "code", "what", "state", "requeued"))
        for one in result
    ]
    show(result, as_json=json, human=as_table(("id", "code", "what", "state", "put back"), rows, "No replays."))


@app.command(name="cancel")
def replay_cancel(replay_id: int, *, json: Json = False, flags: StoreFlags = None) -> None:
    """End a replay; what it has put into the backlog already is still sent."""

    async def work() -> bool:
        async with opened(settings_of(flags)) as store:
            return await store.cancel_replay(replay_id)

    if not run(work()):
        msg = f"no replay {replay_id} is running"
        raise NotDone(msg)
    show({"id": replay_id, "state": "cancelled"}, as_json=json, human=lambda c: c.print(f"Replay {replay_id} is cancelled."))


def _told(one: Replay, code: str) -> dict[str, Any]:
    return {
        "id": one.id,
        "code": code,
        "what": _what(one),
        "rate": one.rate,
        "state": str(one.state),
        "requeued": one.requeued,
        "created_at": None if one.created_at is None else one.created_at.isoformat(timespec="seconds"),
        "ended_at": None if one.ended_at is None else one.ended_at.isoformat(timespec="seconds"),
    }


def _what(one: Replay) -> str:
    if one.event_id is not None:
        return f"event {one.event_id}"
    if one.callerid is not None:
        return f"call {one.callerid}"
    since = "" if one.since is None else f" since {one.since.isoformat(timespec='seconds')}"
    return f"{'dead deliveries' if one.is_for_dead else 'events'}{since}"


def _sentence(told: dict[str, Any]) -> str:
    if told["state"] == ReplayState.RUNNING:
        return f"Replay {told['id']} has begun: {told['what']}, {told['rate']:g} a second at most. See: toque replay list"
    return f"Replay {told['id']} is {told['state']}: {told['requeued']} put back."


def parse_moment(text: str, now: datetime, given: Settings) -> datetime:
    """A moment as people write it: ISO 8601, in the server's zone unless it says another, or a span back from `now`.

    Raises `InputError`.
    """
    span = _SPAN.fullmatch(text.strip())
    if span is not None:
        return now - timedelta(**{_UNITS[span[2]]: min(int(span[1]), 36_500)})
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        msg = f"{text!r} is no time: write 2026-11-23T10:00, or a span back from now such as 2h"
        raise InputError(msg) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=given.time_zone)


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        msg = f"{text!r} is no id: ids are UUIDs, as in the callbacks' `id` and `callerid`"
        raise InputError(msg) from None
