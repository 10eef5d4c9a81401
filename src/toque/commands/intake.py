"""Credentials of the HTTP intake: who may post calls."""

from __future__ import annotations

import re
import secrets

from cyclopts import App
from rich.console import Console

from toque.callbacks.callback import IntakeCredential
from toque.commands.terminal import (
    Json,
    NotDone,
    StoreFlags,
    as_table,
    opened,
    registry_of,
    run,
    settings_of,
    show,
)
from toque.errors import InputError
from toque.store.sqlite import utc_now

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN_BYTES = 32
app = App(name="intake", help="Credentials of the HTTP intake: who may post calls.")


@app.command(name="add")
def intake_add(name: str, *, json: Json = False, flags: StoreFlags = None) -> None:
    """Let a source post calls under this name; prints its token, which is shown this once.

    The name is part of the identities of its calls: give each billing system, dialer or switch one of its own.
    """
    settings = settings_of(flags)
    if not _NAME.fullmatch(name):
        msg = "a name has 1 to 64 letters, digits, dots, dashes or underscores, and begins with a letter or digit"
        raise InputError(msg)
    token, token_hash = _new_token()

    async def work() -> None:
        async with opened(settings) as store:
            await store.add_intake(IntakeCredential(name, token_hash, utc_now()))

    run(work())
    _show_token(name, token, as_json=json)


def _new_token() -> tuple[str, str]:
    """A token and what is stored of it."""
    from toque.web.ingest import TOKEN_PREFIX, hash_token  # noqa: PLC0415 - see opened

    token = TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    return token, hash_token(token)


def _show_token(name: str, token: str, *, as_json: bool) -> None:
    def human(console: Console) -> None:
        console.print(f"name   {name}")
        console.print(f"token  {token}")
        console.print("The token is shown this once.", style="dim")

    show({"name": name, "token": token}, as_json=as_json, human=human)


@app.command(name="list")
def intake_list(*, json: Json = False, flags: StoreFlags = None) -> None:
    """List the credentials of the HTTP intake."""
    found = registry_of(settings_of(flags)).intakes.values()
    result = [{"name": one.name, "created_at": one.created_at.isoformat(timespec="seconds")} for one in found]
    rows = [(one["name"], one["created_at"]) for one in result]
    show(result, as_json=json, human=as_table(("name", "created"), rows, "Nobody may post calls yet: toque intake add NAME"))


@app.command(name="rotate")
def intake_rotate(name: str, *, json: Json = False, flags: StoreFlags = None) -> None:
    """Give a source another token; the old one ends at once."""
    settings = settings_of(flags)
    token, token_hash = _new_token()

    async def work() -> bool:
        async with opened(settings) as store:
            return await store.rotate_intake(name, token_hash)

    _must_be_known(run(work()), name)
    _show_token(name, token, as_json=json)


@app.command(name="remove")
def intake_remove(name: str, *, json: Json = False, flags: StoreFlags = None) -> None:
    """Let a source post no more; its calls in progress are concluded when they are stale."""
    settings = settings_of(flags)

    async def work() -> bool:
        async with opened(settings) as store:
            return await store.remove_intake(name)

    _must_be_known(run(work()), name)
    show({"name": name, "state": "removed"}, as_json=json, human=lambda c: c.print(f"{name} is removed."))


def _must_be_known(found: bool, name: str) -> None:
    if not found:
        msg = f"there is no intake credential {name!r}"
        raise NotDone(msg)
