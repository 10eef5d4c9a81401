"""Processes that a measurement begins: each ends with its block, however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any


@contextlib.asynccontextmanager
async def child(
    *command: str, ending: signal.Signals = signal.SIGKILL, **pipes: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command and end it by this signal; in a session of its own, so that Ctrl-C is for us alone to act upon."""
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(ending)
        await process.communicate()  # lets go of the pipes as well
