"""The callbacks: how posts to each have ended, what waits for it, and whether its server can be reached now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from toque.callbacks.callback import Callback
from toque.callbacks.url import UrlError, parse_url
from toque.doctor.findings import Finding, ok, problem, warning
from toque.sending.outcomes import Forbidden, Unreachable, Unsent
from toque.sending.reaching import Reached, Reaching

_AT_ONCE = 128
_CERTIFICATE_ENDS_SOON = timedelta(days=14)
_ADVICE = (
    ("certificate", "the receiver shows a certificate that cannot be trusted; for a private authority set ca_file"),
    ("tls", "the receiver speaks no TLS there, or only old versions"),
    ("name", "the name cannot be looked up, here or by anybody"),
    ("refused", "nobody listens there: is the receiver running?"),
    ("timed out", "the receiver is down, or a firewall is in between"),
    ("address", "open its network with allow_networks, if posts may go there; else have the URL registered again"),
)
_ANY_ADVICE = "look at the receiver and at what is in between; `toque callback test CODE` posts a made-up status"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Of one callback: deliveries that wait in the store, and that are dead."""

    waiting: int
    dead: int


def check_callback(callback: Callback, state: str | None, waiting: Waiting, now: datetime) -> Iterator[Finding]:
    """How it stands, by the store and, where one runs, the server's `state`."""
    yield _health(callback, state, now)
    yield _backlog(callback, waiting)


def _health(callback: Callback, state: str | None, now: datetime) -> Finding:
    since = callback.health.failing_since
    if callback.disabled_at is not None:
        advice = f"when the receiver is well again: toque callback enable {callback.code}, then toque replay"
        return warning("callback.health", f"disabled: {callback.disabled_reason}", advice, _subject(callback), state="disabled")
    if since is None or state in ("healthy", "recovering"):
        return ok("callback.health", state or "healthy", _subject(callback), state=state or "healthy")
    text = f"failing for {_hours(now - since)}: what comes for it waits; after five days it is disabled"
    advice = "see callback.reach, and delivery.failed in the log"
    return problem("callback.health", text, advice, _subject(callback), state="failing", since=since.isoformat())


def _backlog(callback: Callback, waiting: Waiting) -> Finding:
    text = f"{waiting.waiting} wait, {waiting.dead} are dead"
    numbers = {"waiting": waiting.waiting, "dead": waiting.dead}
    if waiting.dead:
        advice = f"toque callback dead {callback.code} says why; toque replay {callback.code} --dead sends them again"
        return warning("callback.backlog", text, advice, _subject(callback), **numbers)
    return ok("callback.backlog", text, _subject(callback), **numbers)


async def reach_all(reaching: Reaching, callbacks: Sequence[Callback], now: datetime) -> list[Finding]:
    """Open a connection to each callback's server; each server is dialled once."""
    turns = asyncio.Semaphore(_AT_ONCE)
    origins: dict[object, asyncio.Task[Reached | Unreachable | Forbidden | Unsent]] = {}

    async def reach(callback: Callback) -> Finding:
        try:
            url = parse_url(callback.url)
        except UrlError:
            return problem("callback.reach", "its URL cannot be used", "have it registered again", _subject(callback))
        task = origins.get(url.origin)
        if task is None:
            task = origins[url.origin] = asyncio.create_task(_in_turn(reaching, url, turns))
        return _reached(callback, await task, now)

    wanted = [callback for callback in callbacks if callback.disabled_at is None]
    return list(await asyncio.gather(*map(reach, wanted)))


async def _in_turn(reaching: Reaching, url: object, turns: asyncio.Semaphore) -> Reached | Unreachable | Forbidden | Unsent:
    async with turns:
        return await reaching.reach(url)  # type: ignore[arg-type]


def _reached(callback: Callback, outcome: Reached | Unreachable | Forbidden | Unsent, now: datetime) -> Finding:
    match outcome:
        case Reached(took_ms, ends_at) if ends_at is not None and ends_at - now < _CERTIFICATE_ENDS_SOON:
            text = f"reached in {took_ms:.0f} ms, but its certificate ends {ends_at:%Y-%m-%d %H:%M} UTC"
            return warning("callback.reach", text, "tell the customer to renew it", _subject(callback), took_ms=took_ms)
        case Reached(took_ms):
            return ok("callback.reach", f"reached in {took_ms:.0f} ms", _subject(callback), took_ms=took_ms)
        case Unreachable(reason) | Forbidden(reason) | Unsent(reason):
            return problem("callback.reach", reason, _advice_for(reason), _subject(callback), reason=reason)


def _advice_for(reason: str) -> str:
    return next((advice for said, advice in _ADVICE if said in reason), _ANY_ADVICE)


def _subject(callback: Callback) -> str:
    """Code and server; path and query may hold a secret."""
    try:
        url = parse_url(callback.url)
    except UrlError:
        return callback.code
    return f"{callback.code} {url.scheme}://{url.host_header}"


def _hours(span: timedelta) -> str:
    return f"{span.days} d" if span.days else f"{span.seconds // 3600} h {span.seconds // 60 % 60} min"


def sizes_of(callbacks: Sequence[Callback], waiting: Mapping[int, int], dead: Mapping[int, int]) -> dict[int, Waiting]:
    """What the store counted, by callback."""
    return {callback.id: Waiting(waiting.get(callback.id, 0), dead.get(callback.id, 0)) for callback in callbacks}
