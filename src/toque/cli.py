"""The command line.

Each command is a function here; what it does is done by the rooms below. Exit codes: 0 done, 1 not done (no such client, no
answer), 2 used wrongly or set wrongly. Whatever prints a result takes `--json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as jsonlib
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import cyclopts
import uvloop
from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from toque import __version__
from toque.callbacks.callback import Client, Registry
from toque.calls.lines import Line, parse_line
from toque.errors import InputError, SettingsError, StoreError
from toque.settings import OPTIONS, Settings, flag_of, load_settings
from toque.store.sqlite import SqliteStore, utc_now
from toque.telemetry import printable, set_up_logs

_CLIENT_ID_BYTES = 8
_MAX_PIN_CHARACTERS = 100
T = TypeVar("T")

app = App(
    name="toque",
    version=f"toque {__version__}",
    help="Tells software what happens to telephone calls.",
    version_flags=["--version"],
    result_action="return_value",
)
client_app = App(name="client", help="Accounts: who may register URLs.")
line_app = App(name="line", help="Lines: which numbers belong to a client's pins.")
callback_app = App(name="callback", help="Registered URLs.")
bench_app = App(name="bench", help="Measurements of the real paths on this machine.")
for _group in (client_app, line_app, callback_app, bench_app):
    app.command(_group)


def _flags(*names: str) -> Any:
    """A group of flags, one for each of these settings that may have one."""
    rows: list[Any] = [
        ("config", Annotated[Path | None, Parameter(help="settings file (default: toque.toml if it exists)")], None)
    ]
    for name in names:
        option = OPTIONS[name]
        if option.has_flag:
            is_list = isinstance(option.default, list)
            kind: Any = list[str] | None if is_list else str | None
            shown = "" if option.default in (None, []) else f" (default: {option.default})"
            parameter = Parameter(name=f"--{flag_of(name)}", help=option.help + shown, negative=())
            rows.append((name, Annotated[kind, parameter], None))
    made = make_dataclass("Flags", [(name, kind, field(default=default)) for name, kind, default in rows])
    made.__module__ = __name__  # cyclopts takes classes of the module `types` for the standard library's
    return Annotated[made | None, Parameter(name="*")]


_ServeFlags: Any = _flags(*OPTIONS)
_StoreFlags: Any = _flags("store")
_RotateFlags: Any = _flags("store", "rotation_overlap")
_LineFlags: Any = _flags("store", "country")
_TestFlags: Any = _flags("store", "allow_networks", "ca_file", "connect_timeout", "attempt_timeout", "time_zone")
Json = Annotated[bool, Parameter(help="print the result as JSON", negative=())]


class _NotDone(Exception):  # noqa: N818 - exit code 1 and one line
    pass


def _settings(flags: Any) -> Settings:
    given = {} if flags is None else asdict(flags)
    config = given.pop("config", None)
    return load_settings(config, os.environ, given)


@contextlib.contextmanager
def _locating(settings: Settings) -> Iterator[None]:
    """Let errors that settings cause when they are put to use say where the setting was set."""
    try:
        yield
    except SettingsError as error:
        raise settings.located(error) from None


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[SqliteStore]:
    from toque.server import open_store  # noqa: PLC0415 - commands that need no server start faster

    with _locating(settings):
        store = open_store(settings)
    try:
        yield store
    finally:
        await store.close()


def _run(work: Coroutine[Any, Any, T]) -> T:
    return uvloop.run(work)


def _show(result: Any, *, as_json: bool, human: Callable[[Console], None]) -> None:
    if as_json:
        print(jsonlib.dumps(result, ensure_ascii=False, indent=2))  # noqa: T201 - it is what was asked for
    else:
        human(Console(highlight=False, markup=False, emoji=False, soft_wrap=True))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> Callable[[Console], None]:
    def show(console: Console) -> None:
        if not rows:
            console.print(nothing)
            return
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")  # codes are for copying: never shortened
        for row in rows:
            table.add_row(*map(printable, row))
        console.print(table, soft_wrap=False)

    return show


# The server


@app.command
def serve(*, flags: _ServeFlags = None) -> None:
    """Serve: listen to switches, answer the API, post statuses. SIGTERM ends it in order."""
    from toque.server import serve as run_server  # noqa: PLC0415 - see _opened

    settings = _settings(flags)
    set_up_logs(form=settings.log_format, level=settings.log_level)
    with _locating(settings):
        _run(run_server(settings))


@app.command
def demo(
    *,
    speed: Annotated[float, Parameter(help="how many times faster than it was recorded")] = 1.0,
    recording: Annotated[Path | None, Parameter(help="another pcap of HEP packets; its lines are all numbers")] = None,
    stay: Annotated[bool, Parameter(help="keep the server running afterwards", negative=())] = False,
    json: Json = False,
) -> None:
    """Show the whole way: replay recorded SIP traffic into a server of its own and print each callback as it arrives."""
    from toque.demo import run_demo  # noqa: PLC0415 - see _opened

    if not _run(run_demo(speed=speed, recording=recording, stay=stay, as_json=json)):
        sys.exit(1)


# Clients


@client_app.command(name="add")
def client_add(name: str, *, json: Json = False, flags: _StoreFlags = None) -> None:
    """Add a client; prints its client_id and client_secret, which is shown this once."""
    from toque.web.access import hash_secret, new_client_secret  # noqa: PLC0415 - see _opened

    settings = _settings(flags)
    if not name.strip() or not name.isprintable():
        msg = "a client's name has printable characters"
        raise InputError(msg)
    client_id, secret = secrets.token_hex(_CLIENT_ID_BYTES), new_client_secret()

    async def work() -> None:
        async with _opened(settings) as store:
            await store.add_client(Client(client_id, name.strip(), hash_secret(secret), 1, utc_now()))

    _run(work())
    _show_credentials(client_id, secret, as_json=json)


def _show_credentials(client_id: str, secret: str, *, as_json: bool) -> None:
    def human(console: Console) -> None:
        console.print(f"client_id      {client_id}")
        console.print(f"client_secret  {secret}")
        console.print("The secret is shown this once.", style="dim")

    _show({"client_id": client_id, "client_secret": secret}, as_json=as_json, human=human)


@client_app.command(name="list")
def client_list(*, json: Json = False, flags: _StoreFlags = None) -> None:
    """List the clients."""
    registry = _registry(_settings(flags))
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
    table = _table(("client_id", "name", "created", "state", "lines", "callbacks"), rows, "No clients yet: toque client add NAME")
    _show(result, as_json=json, human=table)


def _registry(settings: Settings) -> Registry:
    async def work() -> Registry:
        async with _opened(settings) as store:
            return await store.registry()

    return _run(work())


@client_app.command(name="rotate")
def client_rotate(client_id: str, *, json: Json = False, flags: _StoreFlags = None) -> None:
    """Give a client another secret; its access tokens end at once."""
    from toque.web.access import hash_secret, new_client_secret  # noqa: PLC0415 - see _opened

    settings, secret = _settings(flags), new_client_secret()

    async def work() -> bool:
        async with _opened(settings) as store:
            return await store.rotate_client(client_id, hash_secret(secret))

    _found(_run(work()), client_id)
    _show_credentials(client_id, secret, as_json=json)


@client_app.command(name="disable")
def client_disable(
    client_id: str,
    *,
    undo: Annotated[bool, Parameter(help="enable the client again", negative=())] = False,
    json: Json = False,
    flags: _StoreFlags = None,
) -> None:
    """Disable a client: its tokens are refused and its lines match nothing."""
    settings = _settings(flags)

    async def work() -> bool:
        async with _opened(settings) as store:
            return await store.disable_client(client_id, None if undo else utc_now())

    _found(_run(work()), client_id)
    word = "enabled" if undo else "disabled"
    _show({"client_id": client_id, "state": word}, as_json=json, human=lambda c: c.print(f"{client_id} is {word}."))


@client_app.command(name="remove")
def client_remove(client_id: str, *, json: Json = False, flags: _StoreFlags = None) -> None:
    """Remove a client with its lines, callbacks and events."""
    settings = _settings(flags)

    async def work() -> bool:
        async with _opened(settings) as store:
            return await store.remove_client(client_id)

    _found(_run(work()), client_id)
    _show({"client_id": client_id, "state": "removed"}, as_json=json, human=lambda c: c.print(f"{client_id} is removed."))


def _found(found: bool, client_id: str) -> None:
    if not found:
        msg = f"there is no client {client_id!r}"
        raise _NotDone(msg)


# Lines


@line_app.command(name="add")
def line_add(client_id: str, pin: str, *numbers: str, json: Json = False, flags: _LineFlags = None) -> None:
    """Add numbers to a client's pin.

    A number is exact (554130600300, 1001, auth1), a prefix (5541306003*) or a pattern (~ and a regular expression).
    """
    settings = _settings(flags)
    lines = _parsed(client_id, pin, numbers, settings)
    if not lines:
        msg = "at least one number is needed"
        raise InputError(msg)

    async def work() -> int:
        async with _opened(settings) as store:
            _found(client_id in (await store.registry()).clients, client_id)
            return await store.add_lines(lines)

    added = _run(work())
    result = {"client_id": client_id, "pin": pin, "added": added, "lines": [line.text for line in lines]}
    _show(result, as_json=json, human=lambda c: c.print(f"{added} added to pin {pin}: {', '.join(line.text for line in lines)}"))


def _parsed(client_id: str, pin: str, numbers: Sequence[str], settings: Settings) -> list[Line]:
    if not 0 < len(pin) <= _MAX_PIN_CHARACTERS or not pin.isprintable() or pin != pin.strip():
        msg = f"a pin has 1 to {_MAX_PIN_CHARACTERS} printable characters, no blank first or last"
        raise InputError(msg)
    return [parse_line(client_id, pin, number, settings.country) for number in numbers]


@line_app.command(name="list")
def line_list(client_id: str | None = None, *, json: Json = False, flags: _StoreFlags = None) -> None:
    """List the lines, of one client or of all."""
    lines = [line for line in _registry(_settings(flags)).lines if client_id in (None, line.client_id)]
    result = [{"client_id": line.client_id, "pin": line.pin, "number": line.text, "kind": str(line.kind)} for line in lines]
    rows = [(r["client_id"], r["pin"], r["number"], r["kind"]) for r in result]
    _show(result, as_json=json, human=_table(("client_id", "pin", "number", "kind"), rows, "No lines."))


@line_app.command(name="remove")
def line_remove(client_id: str, pin: str, *numbers: str, json: Json = False, flags: _LineFlags = None) -> None:
    """Remove numbers from a client's pin, or the whole pin when no number is given."""
    settings = _settings(flags)
    lines = _parsed(client_id, pin, numbers, settings) or None

    async def work() -> int:
        async with _opened(settings) as store:
            return await store.remove_lines(client_id, pin, lines)

    removed = _run(work())
    if not removed:
        msg = f"client {client_id!r} has no such lines at pin {pin!r}"
        raise _NotDone(msg)
    _show({"client_id": client_id, "pin": pin, "removed": removed}, as_json=json, human=lambda c: c.print(f"{removed} removed."))


# Callbacks


@callback_app.command(name="list")
def callback_list(client_id: str | None = None, *, json: Json = False, flags: _StoreFlags = None) -> None:
    """List the registered URLs, of one client or of all."""
    callbacks = [c for c in _registry(_settings(flags)).callbacks.values() if client_id in (None, c.client_id)]
    result = [
        {
            "code": c.code,
            "client_id": c.client_id,
            "url": c.url,
            "credentials": c.credentials is not None,
            "pin": c.pin,
            "created_at": c.created_at.isoformat(timespec="seconds"),
            "state": "healthy" if c.disabled_at is None else f"disabled: {c.disabled_reason}",
        }
        for c in callbacks
    ]
    rows = [(str(r["code"]), str(r["client_id"]), str(r["url"]), str(r["pin"] or ""), str(r["state"])) for r in result]
    _show(result, as_json=json, human=_table(("code", "client_id", "url", "pin", "state"), rows, "No callbacks."))


@callback_app.command(name="test")
def callback_test(code: str, *, json: Json = False, flags: _TestFlags = None) -> None:
    """Post a made-up, correctly signed status to a registered URL from here and show the answer."""
    from toque.sending.trial import try_callback  # noqa: PLC0415 - see _opened
    from toque.server import make_transport  # noqa: PLC0415

    settings = _settings(flags)
    callback = next((c for c in _registry(settings).callbacks.values() if c.code == code), None)
    if callback is None:
        msg = f"there is no callback {code!r}"
        raise _NotDone(msg)

    async def work() -> tuple[bool, str, float]:
        async with make_transport(settings) as transport:
            return await try_callback(transport, callback, settings.time_zone, utc_now())

    is_well, answer, took_ms = _run(work())
    result = {"code": code, "url": callback.url, "delivered": is_well, "answer": answer, "took_ms": round(took_ms, 1)}
    _show(result, as_json=json, human=lambda c: c.print(printable(f"{callback.url}: {answer} ({took_ms:.0f} ms)")))
    if not is_well:
        sys.exit(1)


@callback_app.command(name="rotate")
def callback_rotate(code: str, *, json: Json = False, flags: _RotateFlags = None) -> None:
    """Give a callback another signing secret; for a while (rotation_overlap) posts carry signatures by both."""
    settings = _settings(flags)

    async def work() -> str | None:
        async with _opened(settings) as store:
            return await store.rotate_callback(code, keep_old_for=settings.rotation_overlap)

    secret = _run(work())
    if secret is None:
        msg = f"there is no callback {code!r}"
        raise _NotDone(msg)
    _show({"code": code, "secret": secret}, as_json=json, human=lambda c: c.print(f"secret  {secret}"))


# Measurements


@bench_app.command(name="deliver")
def bench_deliver(
    *,
    seconds: Annotated[float, Parameter(help="how long each round lasts")] = 5.0,
    rounds: Annotated[int, Parameter(help="rounds of toque and of wrk in turns")] = 5,
    callbacks: Annotated[int, Parameter(help="URLs that the deliveries are spread over")] = 100,
    json: Json = False,
) -> None:
    """Durable, signed, ordered deliveries a second of one process, beside wrk (where it is installed) on the same sink."""
    from toque.bench.deliver import bench_deliver as measure  # noqa: PLC0415 - see _opened

    set_up_logs(form="human", level="warning")
    _show_figures(_run(measure(seconds=seconds, rounds=rounds, callbacks=callbacks)), as_json=json)


@bench_app.command(name="latency")
def bench_latency(
    *,
    seconds: Annotated[float, Parameter(help="how long packets are sent")] = 10.0,
    rate: Annotated[int, Parameter(help="events a second")] = 1000,
    callbacks: Annotated[int, Parameter(help="URLs that the deliveries are spread over")] = 100,
    json: Json = False,
) -> None:
    """Milliseconds from a HEP packet's sending to its post's arrival, through a real server."""
    from toque.bench.latency import bench_latency as measure  # noqa: PLC0415 - see _opened

    _show_figures(_run(measure(seconds=seconds, rate=rate, callbacks=callbacks)), as_json=json)


@bench_app.command(name="intake")
def bench_intake(*, rounds: Annotated[int, Parameter(help="rounds, of which the median counts")] = 5, json: Json = False) -> None:
    """HEP packets with SIP understood a second, on one core."""
    from toque.bench.intake import bench_intake as measure  # noqa: PLC0415 - see _opened

    _show_figures(measure(rounds=rounds), as_json=json)


def _show_figures(figures: dict[str, Any], *, as_json: bool) -> None:
    rows = [(name, str(value)) for name, value in figures.items() if name != "rounds"]
    _show(figures, as_json=as_json, human=_table(("figure", ""), rows, ""))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, and end the process with its exit code."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except (cyclopts.CycloptsError, SettingsError, InputError) as error:
        _fail(error, 2)
    except (_NotDone, StoreError) as error:
        _fail(error, 1)
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except asyncio.CancelledError:
        sys.exit(1)
    sys.exit(0)


def _fail(error: Exception, code: int) -> NoReturn:
    print(f"toque: {printable(' '.join(str(error).split()))}", file=sys.stderr)  # noqa: T201 - the operator reads it
    sys.exit(code)
