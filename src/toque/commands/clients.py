"""Accounts."""

from __future__ import annotations

import secrets
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from toque.callbacks.callback import Client
from toque.commands.terminal import (
    Json,
    StoreFlags,
    as_table,
    must_be_known,
    opened,
    registry_of,
    run,
    settings_of,
    show,
)
from toque.errors import InputError
from toque.store.sqlite import utc_now

_CLIENT_ID_BYTES = 8
app = App(name="client", help="Accounts: who may register URLs.")


@app.command(name="add")
def client_add(name: str, *, json: Json = False, flags: StoreFlags = None) -> None:
    """Add a client; prints its client_id and client_secret, which is shown this once."""
    from toque.web.access import hash_secret, new_client_secret  # noqa: PLC0415 - see opened

    settings = settings_of(flags)
    if not name.strip() or not name.isprintable():
        msg = "a client's name has printable characters"
        raise InputError(msg)
    client_id, secret = secrets.token_hex(_CLIENT_ID_BYTES), new_client_secret()

    async def work() -> None:
        async with opened(settings) as store:
            await store.add_client(Client(client_id, name.strip(), hash_secret(secret), 1, utc_now()))

    run(work())
    _show_credentials(client_id, secret, as_json=json)


def _show_credentials(client_id: str, secret: str, *, as_json: bool) -> None:
    def human(console: Console) -> None:
        console.print(f"client_id      {client_id}")
        console.print(f"client_secret  {secret}")
        console.print("The secret is shown this once.", style="dim")

    show({"client_id": client_id, "client_secret": secret}, as_json=as_json, human=human)


@app.command(name="list")
def client_list(*, json: Json = False, flags: StoreFlags = None) -> None:
    """List the clients."""
    registry = registry_of(settings_of(flags))
    result = [
        {
            "client_id": client.client_id,
            "name": client.name,
            "created_at": client.created_at.isoformat(timespec="seconds"),
            "state": "enabled" if client.disabled_at is None else "disabled",
            "lines": sum(line.client_id == client.client_id for line in registry.lines),
            "callbacks": len(registry.callbacks_of(client.client_id)),
        }
        for client in registry.clients.values()
    ]
    rows = [
        (str(r["client_id"]), str(r["name"]), str(r["created_at"]), str(r["state"]), str(r["lines"]), str(r["callbacks"]))
        for r in result
    ]
    table = as_table(
        ("client_id", "name", "created", "state", "lines", "callbacks"), rows, "No clients yet: toque client add NAME"
    )
    show(result, as_json=json, human=table)


@app.command(name="rotate")
def client_rotate(client_id: str, *, json: Json = False, flags: StoreFlags = None) -> None:
    """Give a client another secret; its access tokens end at once."""
    from toque.web.access import hash_secret, new_client_secret  # noqa: PLC0415 - see opened

    settings, secret = settings_of(flags), new_client_secret()

    async def work() -> bool:
        async with opened(settings) as store:
            return await store.rotate_client(client_id, hash_secret(secret))

    must_be_known(run(work()), client_id)
    _show_credentials(client_id, secret, as_json=json)


@app.command(name="disable")
def client_disable(
    client_id: str,
    *,
    undo: Annotated[bool, Parameter(help="enable the client again", negative=())] = False,
    json: Json = False,
    flags: StoreFlags = None,
) -> None:
    """Disable a client: its tokens are refused and its lines match nothing."""
    settings = settings_of(flags)

    async def work() -> bool:
        async with opened(settings) as store:
            return await store.disable_client(client_id, None if undo else utc_now())

    must_be_known(run(work()), client_id)
    word = "enabled" if undo else "disabled"
    show({"client_id": client_id, "state": word}, as_json=json, human=lambda c: c.print(f"{client_id} is {word}."))


@app.command(name="remove")
def client_remove(client_id: str, *, json: Json = False, flags: StoreFlags = None) -> None:
    """Remove a client with its lines, callbacks and events."""
    settings = settings_of(flags)

    async def work() -> bool:
        async with opened(settings) as store:
            return await store.remove_client(client_id)

    must_be_known(run(work()), client_id)
    show({"client_id": client_id, "state": "removed"}, as_json=json, human=lambda c: c.print(f"{client_id} is removed."))
