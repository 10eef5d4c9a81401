"""Work in a fresh process, whose memory and CPU are those of that work alone."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from toque.bench.children import child
from toque.telemetry import set_up_logs


async def apart(work: Callable[..., Coroutine[Any, Any, Any]], **arguments: Any) -> Any:
    """What `work`, a module's own coroutine function, returns there. What goes in and out is JSON; the process ends with us.

    Raises `RuntimeError` when it fails; it has said why on stderr.
    """
    command = (sys.executable, "-m", "toque.bench.apart", work.__module__, work.__name__)
    async with child(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE) as process:
        output, _ = await process.communicate(json.dumps(arguments).encode())
    if process.returncode != 0:
        msg = f"{work.__name__} ended with code {process.returncode}"
        raise RuntimeError(msg)
    return json.loads(output)


def _main(module: str, name: str) -> None:
    set_up_logs(form="human", level="error")
    work = getattr(importlib.import_module(module), name)
    print(json.dumps(uvloop.run(work(**json.load(sys.stdin)))))  # noqa: T201 - the answer


if __name__ == "__main__":
    _main(*sys.argv[1:])
