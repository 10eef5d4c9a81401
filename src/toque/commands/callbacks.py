"""Registered URLs."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from cyclopts import App, Parameter

from toque.callbacks.callback import Callback
from toque.commands.terminal import (
    Json,
    NotDone,
    RotateFlags,
    StoreFlags,
    TestFlags,
    as_table,
    callback_of,
    opened,
    registry_of,
    run,
    settings_of,
    show,
)
from toque.store.contract import DeadDelivery
from toque.store.sqlite import utc_now
from toque.telemetry import printable

app = App(name="callback", help="Registered URLs.")


@app.command(name="list")
def callback_list(client_id: str | None = None, *, json: Json = False, flags: StoreFlags = None) -> None:
    """List the registered URLs, of one client or of all."""
    callbacks = [c for c in registry_of(settings_of(flags)).callbacks.values() if client_id in (None, c.client_id)]
    result = [
        {
            "code": c.code,
            "client_id": c.client_id,
            "url": c.url,
            "credentials": c.credentials is not None,
            "pin": c.pin,
            "created_at": c.created_at.isoformat(timespec="seconds"),
            "state": _state(c),
        }
        for c in callbacks
    ]
    rows = [(str(r["code"]), str(r["client_id"]), str(r["url"]), str(r["pin"] or ""), str(r["state"])) for r in result]
    show(result, as_json=json, human=as_table(("code", "client_id", "url", "pin", "state"), rows, "No callbacks."))


def _state(callback: Callback) -> str:
    if callback.disabled_at is not None:
        return f"disabled: {callback.disabled_reason}"
    since = callback.health.failing_since
    return "healthy" if since is None else f"failing since {since.isoformat(timespec='seconds')}"


@app.command(name="disable")
def callback_disable(code: str, *, json: Json = False, flags: StoreFlags = None) -> None:
    """Post nothing more to a URL; what waits for it is dead."""

    async def work() -> None:
        async with opened(settings_of(flags)) as store:
            callback = callback_of(await store.registry(), code)
            await store.disable_callback(callback.id, "by the operator")

    run(work())
    show({"code": code, "state": "disabled"}, as_json=json, human=lambda c: c.print(f"{code} is disabled."))


@app.command(name="enable")
def callback_enable(code: str, *, json: Json = False, flags: StoreFlags = None) -> None:
    """Post to a URL again, from what comes next on; what died stays dead until it is replayed."""

    async def work() -> bool:
        async with opened(settings_of(flags)) as store:
            return await store.enable_callback(code)

    if not run(work()):
        raise NotDone(f"there is no callback {code!r}")
    show({"code": code, "state": "enabled"}, as_json=json, human=lambda c: c.print(f"{code} is enabled."))


@app.command(name="dead")
def callback_dead(
    code: str,
    *,
    limit: Annotated[int, Parameter(help="how many at most, the oldest first")] = 100,
    json: Json = False,
    flags: StoreFlags = None,
) -> None:
    """List the dead deliveries of a URL: when each died and why."""

    async def work() -> list[DeadDelivery]:
        async with opened(settings_of(flags)) as store:
            callback = callback_of(await store.registry(), code)
            return await store.dead(callback.id, limit=max(0, limit))

    result = [_dead(one) for one in run(work())]
    columns = ("id", "callerid", "status", "sequence", "attempts", "died_at", "outcome")
    rows = [tuple(str(one[name]) for name in columns) for one in result]
    show(result, as_json=json, human=as_table(columns, rows, "Nothing is dead."))


def _dead(one: DeadDelivery) -> dict[str, Any]:
    event = one.delivery.event
    return {
        "id": event.id,
        "callerid": event.callerid,
        "status": str(event.status),
        "sequence": event.sequence,
        "attempts": one.delivery.attempts,
        "accepted_at": event.accepted_at.isoformat(timespec="seconds"),
        "died_at": one.died_at.isoformat(timespec="seconds"),
        "outcome": one.outcome,
    }


@app.command(name="test")
def callback_test(code: str, *, json: Json = False, flags: TestFlags = None) -> None:
    """Post a made-up, correctly signed status to a registered URL from here and show the answer."""
    from toque.sending.trial import try_callback  # noqa: PLC0415 - see opened
    from toque.server import make_transport  # noqa: PLC0415

    settings = settings_of(flags)
    callback = callback_of(registry_of(settings), code)

    async def work() -> tuple[bool, str, float]:
        async with make_transport(settings) as transport:
            return await try_callback(transport, callback, settings.time_zone, utc_now())

    is_well, answer, took_ms = run(work())
    result = {"code": code, "url": callback.url, "delivered": is_well, "answer": answer, "took_ms": round(took_ms, 1)}
    show(result, as_json=json, human=lambda c: c.print(printable(f"{callback.url}: {answer} ({took_ms:.0f} ms)")))
    if not is_well:
        sys.exit(1)


@app.command(name="rotate")
def callback_rotate(code: str, *, json: Json = False, flags: RotateFlags = None) -> None:
    """Give a callback another signing secret; for a while (rotation_overlap) posts carry signatures by both."""
    settings = settings_of(flags)

    async def work() -> str | None:
        async with opened(settings) as store:
            return await store.rotate_callback(code, keep_old_for=settings.rotation_overlap)

    secret = run(work())
    if secret is None:
        raise NotDone(f"there is no callback {code!r}")
    show({"code": code, "secret": secret}, as_json=json, human=lambda c: c.print(f"secret  {secret}"))
