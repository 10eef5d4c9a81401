"""What all commands share: settings from flags, an open store, and showing a result."""

from __future__ import annotations

import contextlib
import json as jsonlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import uvloop
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from toque.callbacks.callback import Callback, Registry
from toque.errors import SettingsError
from toque.settings import OPTIONS, Settings, flag_of, load_settings
from toque.store.contract import Store
from toque.telemetry import printable

T = TypeVar("T")


def flags_of(*names: str) -> Any:
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


ServeFlags: Any = flags_of(*OPTIONS)
StoreFlags: Any = flags_of("store")
RotateFlags: Any = flags_of("store", "rotation_overlap")
LineFlags: Any = flags_of("store", "country")
TestFlags: Any = flags_of("store", "allow_networks", "ca_file", "connect_timeout", "attempt_timeout", "time_zone")
MoveFlags: Any = flags_of()
ReplayFlags: Any = flags_of("store", "time_zone")
Json = Annotated[bool, Parameter(help="print the result as JSON", negative=())]


class NotDone(Exception):  # noqa: N818 - exit code 1 and one line
    pass


def settings_of(flags: Any) -> Settings:
    given = {} if flags is None else asdict(flags)
    config = given.pop("config", None)
    return load_settings(config, os.environ, given)


@contextlib.contextmanager
def locating(settings: Settings) -> Iterator[None]:
    """Let errors that settings cause when they are put to use say where the setting was set."""
    try:
        yield
    except SettingsError as error:
        raise settings.located(error) from None


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Store]:
    from toque.store.opening import open_store  # noqa: PLC0415 - commands that need no store start faster

    with locating(settings):
        store = open_store(settings)
    try:
        yield store
    finally:
        await store.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    return uvloop.run(work)


def show(result: Any, *, as_json: bool, human: Callable[[Console], None]) -> None:
    if as_json:
        print(jsonlib.dumps(result, ensure_ascii=False, indent=2))  # noqa: T201 - it is what was asked for
    else:
        human(Console(highlight=False, markup=False, emoji=False, soft_wrap=True))


def as_table(columns: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> Callable[[Console], None]:
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


def registry_of(settings: Settings) -> Registry:
    async def work() -> Registry:
        async with opened(settings) as store:
            return await store.registry()

    return run(work())


def must_be_known(found: bool, client_id: str) -> None:
    if not found:
        msg = f"there is no client {client_id!r}"
        raise NotDone(msg)


def callback_of(registry: Registry, code: str) -> Callback:
    """The registration of this code. Raises `NotDone`."""
    for callback in registry.callbacks.values():
        if callback.code == code:
            return callback
    msg = f"there is no callback {code!r}"
    raise NotDone(msg)
