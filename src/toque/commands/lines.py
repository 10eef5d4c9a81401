"""Lines: which numbers belong to a client's pins."""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import App

from toque.calls.lines import Line, parse_line
from toque.commands.terminal import (
    Json,
    LineFlags,
    NotDone,
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
from toque.settings import Settings

_MAX_PIN_CHARACTERS = 100
app = App(name="line", help="Lines: which numbers belong to a client's pins.")


@app.command(name="add")
def line_add(client_id: str, pin: str, *numbers: str, json: Json = False, flags: LineFlags = None) -> None:
    """Add numbers to a client's pin.

    A number is exact (554130600300, 1001, auth1), a prefix (5541306003*) or a pattern (~ and a regular expression).
    """
    settings = settings_of(flags)
    lines = _parsed(client_id, pin, numbers, settings)
    if not lines:
        msg = "at least one number is needed"
        raise InputError(msg)

    async def work() -> int:
        async with opened(settings) as store:
            must_be_known(client_id in (await store.registry()).clients, client_id)
            return await store.add_lines(lines)

    added = run(work())
    result = {"client_id": client_id, "pin": pin, "added": added, "lines": [line.text for line in lines]}
    show(result, as_json=json, human=lambda c: c.print(f"{added} added to pin {pin}: {', '.join(line.text for line in lines)}"))


def _parsed(client_id: str, pin: str, numbers: Sequence[str], settings: Settings) -> list[Line]:
    if not 0 < len(pin) <= _MAX_PIN_CHARACTERS or not pin.isprintable() or pin != pin.strip():
        msg = f"a pin has 1 to {_MAX_PIN_CHARACTERS} printable characters, no blank first or last"
        raise InputError(msg)
    return [parse_line(client_id, pin, number, settings.country) for number in numbers]


@app.command(name="list")
def line_list(client_id: str | None = None, *, json: Json = False, flags: StoreFlags = None) -> None:
    """List the lines, of one client or of all."""
    lines = [line for line in registry_of(settings_of(flags)).lines if client_id in (None, line.client_id)]
    result = [{"client_id": line.client_id, "pin": line.pin, "number": line.text, "kind": str(line.kind)} for line in lines]
    rows = [(r["client_id"], r["pin"], r["number"], r["kind"]) for r in result]
    show(result, as_json=json, human=as_table(("client_id", "pin", "number", "kind"), rows, "No lines."))


@app.command(name="remove")
def line_remove(client_id: str, pin: str, *numbers: str, json: Json = False, flags: LineFlags = None) -> None:
    """Remove numbers from a client's pin, or the whole pin when no number is given."""
    settings = settings_of(flags)
    lines = _parsed(client_id, pin, numbers, settings) or None

    async def work() -> int:
        async with opened(settings) as store:
            return await store.remove_lines(client_id, pin, lines)

    removed = run(work())
    if not removed:
        msg = f"client {client_id!r} has no such lines at pin {pin!r}"
        raise NotDone(msg)
    show({"client_id": client_id, "pin": pin, "removed": removed}, as_json=json, human=lambda c: c.print(f"{removed} removed."))
