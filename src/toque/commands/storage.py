"""What is done to stores as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from toque.commands.terminal import Json, MoveFlags, NotDone, as_table, run, settings_of, show
from toque.errors import InputError, SettingsError
from toque.settings import Settings, store_named

_From = Annotated[str, Parameter(name="FROM", help="the store to copy, left as it is")]
_To = Annotated[str, Parameter(name="TO", help="an empty store, or one that this copy was begun in")]

app = App(name="store", help="Where everything is kept.")


@app.command(name="copy")
def store_copy(from_: _From, to: _To, /, *, json: Json = False, flags: MoveFlags = None) -> None:
    """Copy everything from one store into an empty one, of any engine; repeated, it goes on where it was broken off.

    Both are named as `--store` is. No server may use either meanwhile. Nothing is removed from the first.
    """
    from toque.store.copying import missing  # noqa: PLC0415 - see terminal.opened

    given = settings_of(flags)
    source, target = (replace(given, store=store_named(text, f"argument {name}")) for text, name in ((from_, "FROM"), (to, "TO")))
    if source.store == target.store:
        raise InputError("FROM and TO are the same store")
    if isinstance(source.store, Path) and not source.store.is_file():
        raise InputError(f"there is no store {source.store}")
    there, here = run(_copied(source, target))
    rows = [(kind, str(there[kind]), str(here[kind])) for kind in there]
    table = as_table(("kind", "in FROM", "in TO"), rows, "")
    show([{"kind": kind, "from": there[kind], "to": here[kind]} for kind in there], as_json=json, human=table)
    if kinds := missing(there, here):
        raise NotDone(f"FROM and TO do not have as much of: {', '.join(kinds)}. Was TO used since?")


async def _copied(source: Settings, target: Settings) -> tuple[dict[str, int], dict[str, int]]:
    from toque.store.copying import copy  # noqa: PLC0415 - see terminal.opened
    from toque.store.opening import open_movable  # noqa: PLC0415

    console = Console(highlight=False, stderr=True)

    def tell(kinds: str) -> None:
        console.print(f"copied: {kinds}")

    there: Any = None
    try:
        there = open_movable(source)
        here = open_movable(target)
        try:
            return await copy(there, here, tell)
        finally:
            await here.close()
    except SettingsError as error:
        raise error if error.option == "store" else source.located(error) from None
    finally:
        if there is not None:
            await there.close()
