"""The yardstick: `wrk`, one thread and 64 connections, posting a body of the same size to the same sink."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from pathlib import Path

from toque.bench.children import child

CONNECTIONS = 64
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")


async def wrk_rate(url: str, body: bytes, seconds: float) -> float | None:
    """Requests per second; None when wrk is not installed."""
    program = shutil.which("wrk")
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="toque-wrk-") as folder:
        script = Path(folder, "post.lua")
        script.write_text(  # noqa: ASYNC240 - a few bytes into a temporary folder
            'wrk.method = "POST"\n'
            'wrk.headers["Content-Type"] = "application/x-www-form-urlencoded"\n'
            f'wrk.body = "{body.decode("ascii")}"\n',
            encoding="utf-8",
        )
        arguments = ["-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(script), url]
        async with child(program, *arguments, stdout=asyncio.subprocess.PIPE) as process:
            output, _ = await process.communicate()
    found = _RATE.search(output.decode())
    return float(found[1]) if found else None
