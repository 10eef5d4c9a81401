"""A server whose clock is off by what a file says: `python clocked_server.py OFFSET_FILE`, with settings from the environment.

The file holds one float of seconds; whoever writes it sets the server's clock at that moment.
"""

import asyncio
import mmap
import os
import signal
import struct
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvloop

from toque.server import Server, calm_collector
from toque.settings import load_settings
from toque.telemetry import set_up_logs

OFFSET = struct.Struct("=d")


def write_offset(path: Path, offset: timedelta) -> None:
    """Set the clock of the server that watches this file."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(OFFSET.pack(offset.total_seconds()))


async def serve(path: Path) -> None:
    settings = load_settings(None, os.environ, {})
    set_up_logs(form=settings.log_format, level=settings.log_level)
    with path.open("rb") as file, mmap.mmap(file.fileno(), OFFSET.size, prot=mmap.PROT_READ) as offset:

        def clock() -> datetime:
            return datetime.now(UTC) + timedelta(seconds=OFFSET.unpack_from(offset)[0])

        async with Server(settings, clock=clock) as server:
            calm_collector()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
            await server.run()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
