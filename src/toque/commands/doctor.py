"""Is everything well? What the checks found, for people and for monitoring."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from toque.commands.terminal import Json, ServeFlags, run, settings_of, show
from toque.telemetry import printable

_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    *,
    strict: Annotated[bool, Parameter(help="exit code 1 for warnings, too", negative=())] = False,
    quiet: Annotated[bool, Parameter(help="show only what is not ok", negative=())] = False,
    json: Json = False,
    flags: ServeFlags = None,
) -> None:
    """Check sources, store, callbacks, settings and machine; exit code 0: no problem, 1: some. Nothing is posted."""
    from toque.doctor.examination import examine  # noqa: PLC0415 - see opened

    result = run(examine(settings_of(flags)))
    shown = [finding for finding in result["checks"] if not quiet or finding["level"] != "ok"]
    show(result | {"checks": shown}, as_json=json, human=lambda console: _tell(console, result, shown))
    if result["status"] == "problem" or (strict and result["status"] == "warning"):
        sys.exit(1)


def _tell(console: Console, result: dict[str, Any], shown: list[dict[str, Any]]) -> None:
    for finding in shown:
        subject = f" {finding['subject']}" if finding["subject"] else ""
        console.print(f"{finding['level']:<8}", style=_STYLES[finding["level"]], end="")
        console.print(printable(f" {finding['id']}{subject}: {finding['text']}"))
        for line in finding["examples"]:
            console.print(printable(f"           {line}"), style="dim")
        if finding["advice"]:
            console.print(printable(f"         -> {finding['advice']}"))
    counts = result["counts"]
    console.print(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['problem']} problems")
