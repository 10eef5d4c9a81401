"""Watching what the trackers hear and tell, and why one call ended as it did."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from cyclopts import Parameter
from rich.console import Console

from toque.commands.replays import parse_moment
from toque.commands.terminal import Json, NotDone, flags_of, opened, registry_of, run, settings_of
from toque.commands.trace_text import call_text, live_line
from toque.errors import InputError
from toque.settings import Settings
from toque.store.contract import Archive, PastDelivery, PastEvent
from toque.store.sqlite import utc_now
from toque.telemetry import mask_number, printable

TraceFlags: Any = flags_of("store", "http", "tls_certificate", "tls_key", "country", "time_zone", "log_numbers")
_TOO_MANY = 10  # calls that a number finds in the store
_AFTER_RECORDING = timedelta(minutes=1)  # what a recording's last call still waits for, and no call becomes stale by


def trace(
    call: Annotated[str | None, Parameter(help="explain this call: a callerid, a number, or the switch's own name of it")] = None,
    *,
    number: Annotated[str | None, Parameter(help="only calls with this number")] = None,
    source: Annotated[str | None, Parameter(help="only calls of this source")] = None,
    callerid: Annotated[str | None, Parameter(help="only this call")] = None,
    client: Annotated[str | None, Parameter(help="only what this client is told of (its client_id)")] = None,
    since: Annotated[str, Parameter(help="how far back the store is searched for a number: a time, or a span: 2h")] = "24h",
    limit: Annotated[int | None, Parameter(help="end after so many lines; of explained calls, how many at most")] = None,
    pcap: Annotated[Path | None, Parameter(help="explain a pcap file of HEP packets; needs no server")] = None,
    json: Json = False,
    flags: TraceFlags = None,
) -> None:
    """Watch signals and statuses as they come, or explain one call. Numbers are masked (--log-numbers true shows them)."""
    settings = settings_of(flags)
    if call == "":
        msg = "CALL must not be empty: a callerid, a number, or the switch's own name of the call"
        raise InputError(msg)
    if limit is not None and limit < 1:
        msg = "--limit is at least 1"
        raise InputError(msg)
    if pcap is not None:
        _show_calls(_of_recording(pcap, call or number or callerid, settings), limit, settings, as_json=json)
        return
    _must_have_store(settings)
    if call is not None:
        since_at = parse_moment(since, utc_now(), settings)
        _show_calls(run(_explained(call, source, since_at, settings)), limit or 1, settings, as_json=json)
    else:
        _watch({"number": number, "source": source, "callerid": callerid, "client": client}, limit, settings, as_json=json)


def _must_have_store(settings: Settings) -> None:
    """Or a new one would be made, in a wrong folder or by a wrong user, whose key no server knows."""
    store = settings.store
    if isinstance(store, Path) and not store.exists():
        msg = f"there is no store at {store}: run this as the server's user, with the server's settings (--config, --store)"
        raise NotDone(msg)


# Live


def _watch(wanted: dict[str, str | None], limit: int | None, settings: Settings, *, as_json: bool) -> None:
    from toque.asking import NoAnswerError, NoServerError, OperatorClient  # noqa: PLC0415 - see opened

    console, shown = _console(), 0
    lines = OperatorClient(settings, run(_token_key(settings))).trace(**wanted, **_numbers(settings))
    try:
        with closing(lines):  # type: ignore[type-var]
            for told in lines:
                if told["what"] == "watching" and not shown and not as_json:
                    Console(highlight=False, stderr=True).print("Watching; Ctrl-C ends it.", style="dim")
                if not _show_live(told, console, settings, as_json=as_json):
                    continue
                shown += 1
                if shown == limit:
                    return
    except (NoServerError, NoAnswerError) as error:
        raise NotDone(str(error)) from None
    msg = "the server has stopped"
    raise NotDone(msg)


def _show_live(told: dict[str, Any], console: Console, settings: Settings, *, as_json: bool) -> bool:
    """Show one line; whether it counts."""
    if as_json:
        _print_json(told)
    else:
        line = live_line(told, settings.time_zone)
        if line is not None:
            console.print(printable(line))
    return bool(told["what"] != "watching")


async def _token_key(settings: Settings) -> bytes:
    async with opened(settings) as store:
        return await store.token_key()


def _numbers(settings: Settings) -> dict[str, str]:
    return {"numbers": "whole"} if settings.log_numbers else {}


# One call


async def _explained(wanted: str, source: str | None, since: datetime, settings: Settings) -> list[dict[str, Any]]:
    """The calls that a text names, the latest first: from the server's memory with what the store knows, or from the store."""
    async with opened(settings) as store:
        told = _remembered(wanted, source, settings, await store.token_key())
        if not isinstance(store, Archive):
            return told
        calls = []
        for call in told:
            call["callerid"] = await _callerid(store, call, wanted)
            calls.append(call | {"events": [_tell_event(e, settings) for e in await store.events_of(call["callerid"])]})
        return calls or await _from_store(store, wanted, since, settings)


def _remembered(wanted: str, source: str | None, settings: Settings, token_key: bytes) -> list[dict[str, Any]]:
    from toque.asking import NoAnswerError, NoServerError, OperatorClient  # noqa: PLC0415 - see opened

    try:
        return OperatorClient(settings, token_key).calls(q=wanted, source=source, **_numbers(settings))
    except (NoServerError, NoAnswerError) as error:
        hint = f"toque: {error}; only what the store has is shown"
        print(printable(hint), file=sys.stderr)  # noqa: T201 - the operator reads it
        return []


async def _callerid(store: Archive, call: dict[str, Any], wanted: str) -> str:
    from toque.calls.model import CallIdentity  # noqa: PLC0415 - see opened

    return _uuid(wanted) or await store.callerid_of(CallIdentity(call["source"], call["call"]))


async def _from_store(store: Archive, wanted: str, since: datetime, settings: Settings) -> list[dict[str, Any]]:
    """What is known of calls that no server remembers: what was told of them."""
    from toque.calls.lines import normalise  # noqa: PLC0415 - see opened

    callerid = _uuid(wanted)
    if callerid is not None:
        events = await store.events_of(callerid)
    else:
        numbers = list(dict.fromkeys([wanted, normalise(wanted, settings.country)]))
        events = await store.events_with(numbers, since=since, most_calls=_TOO_MANY)
    calls: dict[str, list[PastEvent]] = {}
    for event in reversed(events):
        calls.setdefault(event.callerid, []).insert(0, event)
    return [{"callerid": name, "events": [_tell_event(one, settings) for one in told]} for name, told in calls.items()]


def _tell_event(event: PastEvent, settings: Settings) -> dict[str, Any]:
    mask = str if settings.log_numbers else mask_number
    data = jsonlib.loads(event.payload)
    return {
        "id": event.id,
        "sequencia": event.sequence,
        "status": data["status"],
        "client": event.client_id,
        "pin": mask(event.pin),
        "direction": event.direction,
        "origem": mask(data["origem"] or ""),
        "destino": mask(data["destino"] or ""),
        "causa": data["causa"],
        "inferido": data["inferido"],
        "at": event.happened_at.isoformat(timespec="milliseconds"),
        "accepted_at": event.accepted_at.isoformat(timespec="milliseconds"),
        "deliveries": [_tell_delivery(delivery) for delivery in event.deliveries],
    }


def _tell_delivery(delivery: PastDelivery) -> dict[str, Any]:
    return {
        "code": delivery.code,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "settled_at": delivery.settled_at and delivery.settled_at.isoformat(timespec="milliseconds"),
        "due_at": delivery.due_at and delivery.due_at.isoformat(timespec="milliseconds"),
        "outcome": delivery.outcome,
    }


def _uuid(text: str) -> str | None:
    try:
        return str(UUID(text))
    except ValueError:
        return None


# A recording


def _of_recording(path: Path, wanted: str | None, settings: Settings) -> list[dict[str, Any]]:
    """The calls of a pcap, or those that a text names. Its lines are the store's, or all numbers where there is no store."""
    from toque.calls.lines import parse_line  # noqa: PLC0415 - see opened
    from toque.retracing import calls_of_recording  # noqa: PLC0415

    store = settings.store
    is_there = not isinstance(store, Path) or store.is_file()
    lines = list(registry_of(settings).active_lines()) if is_there else []
    lines = lines or [parse_line("anybody", "any", "~.*")]
    return calls_of_recording(path, wanted, lines, settings.country, shows_numbers=settings.log_numbers, after=_AFTER_RECORDING)


# Showing


def _show_calls(calls: Sequence[dict[str, Any]], limit: int | None, settings: Settings, *, as_json: bool) -> None:
    if not calls:
        msg = "no such call is known: neither does a server remember it, nor was anything told of it"
        raise NotDone(msg)
    console = _console()
    for place, call in enumerate(calls[:limit]):
        if as_json:
            _print_json(call)
            continue
        for line in [""] * bool(place) + list(call_text(call, settings.time_zone)):
            console.print(printable(line))
    rest = calls[limit:] if limit is not None else []
    if rest and not as_json:
        console.print(f"\n{len(rest)} earlier ones: " + ", ".join(call["callerid"] for call in rest[:_TOO_MANY]))


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _print_json(told: dict[str, Any]) -> None:
    print(jsonlib.dumps(told, ensure_ascii=False, separators=(",", ":")), flush=True)  # noqa: T201 - it is what was asked for
