"""The server, and its demonstration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from toque.commands.terminal import (
    Json,
    ServeFlags,
    locating,
    run,
    settings_of,
)
from toque.telemetry import set_up_logs


def serve(*, flags: ServeFlags = None) -> None:
    """Serve: listen to switches, answer the API, post statuses. SIGTERM ends it in order."""
    from toque.server import serve as run_server  # noqa: PLC0415 - see opened

    settings = settings_of(flags)
    set_up_logs(form=settings.log_format, level=settings.log_level)
    with locating(settings):
        run(run_server(settings))


def demo(
    *,
    speed: Annotated[float, Parameter(help="how many times faster than it was recorded")] = 1.0,
    recording: Annotated[Path | None, Parameter(help="another pcap of HEP packets; its lines are all numbers")] = None,
    stay: Annotated[bool, Parameter(help="keep the server running afterwards", negative=())] = False,
    json: Json = False,
) -> None:
    """Show the whole way: replay recorded SIP traffic into a server of its own and print each callback as it arrives."""
    from toque.demo import run_demo  # noqa: PLC0415 - see opened

    if not run(run_demo(speed=speed, recording=recording, stay=stay, as_json=json)):
        sys.exit(1)
