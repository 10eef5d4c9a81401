"""Posts to the HTTP intake as fast as it takes them, in a process and on a core of its own (see `apart`).

Each connection waits for an answer before it posts again. Bodies are made beforehand; only the names of the calls change.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count as numbers
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any, cast

from toque.bench.children import child
from toque.bench.traffic import number_of

CLIENTS = 100  # whose lines the calls match
_MARK = b"@@@@@@@@@@@@"  # where a run's name goes
_WORDS = ("initiated", "ringing", "answered", "hung_up")
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_RATE, _BAD = re.compile(r"(\d+) requests in ([\d.]+)(m?s)"), re.compile(r"Non-2xx or 3xx responses: (\d+)")
_LUA = """
local run, n, words = "{run}", 0, {{"initiated", "ringing", "answered", "hung_up"}}
wrk.headers["Authorization"] = "Bearer {token}"
wrk.headers["Content-Type"] = "application/json"
function request()  -- the four statuses of a call are 256 requests apart: more than are under way
  local block, step, call = math.floor(n / 1024), math.floor(n / 256) % 4 + 1, n % 256
  n = n + 1
  return wrk.format("POST", nil, nil, string.format(
    '{{"call":"%s-%d-%d","status":"%s","from":"55413060%04d","to":"5511977770002"}}', run, block, call, words[step], call % 100))
end
"""


def last_core() -> set[int]:
    """The core that is the poster's, where there is more than one."""
    return {max(os.sched_getaffinity(0))}


def pin_to_first_core(pid: int) -> bool:
    """Leave a process, with all its threads, one core and no other; False where there is but one."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        return False
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {min(cores)})
    return True


async def post(port: int, token: str, kind: str, seconds: float, connections: int) -> dict[str, Any]:
    """Post for a while; how many requests were answered 200 in how long, and with which program. Kinds: whole, live, single."""
    os.sched_setaffinity(0, last_core())
    if kind == "single" and (program := which("wrk")) is not None:
        return await _wrk(program, port, token, seconds, connections)
    return await _post(port, token, kind, seconds, connections)


async def _wrk(program: str, port: int, token: str, seconds: float, connections: int) -> dict[str, Any]:
    with TemporaryDirectory(prefix="toque-wrk-") as folder:
        script = Path(folder, "post.lua")
        script.write_text(_LUA.format(run=time.time_ns(), token=token), encoding="utf-8")  # noqa: ASYNC240 - some bytes
        arguments = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
        async with child(
            program, *arguments, f"http://127.0.0.1:{port}/intake/events", stdout=asyncio.subprocess.PIPE
        ) as process:
            output, _ = await process.communicate()
    found, bad = _RATE.search(output.decode()), _BAD.search(output.decode())
    if found is None or bad is not None:
        msg = f"wrk says: {output.decode()[-500:]}"
        raise RuntimeError(msg)
    return {"requests": int(found[1]), "took_s": float(found[2]) / (1000 if found[3] == "ms" else 1), "program": "wrk"}


async def _post(port: int, token: str, kind: str, seconds: float, connections: int) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    templates = _templates(kind)
    began_s = time.monotonic()
    posters = []
    for number in range(connections):
        requests = _requests(token, templates, f"{time.time_ns() % 10**8:08}{number:04}")
        make = partial(_Poster, requests, began_s + seconds)
        posters.append((await loop.create_connection(make, "127.0.0.1", port))[1])
    count = sum(await asyncio.gather(*(poster.done for poster in posters)))
    return {"requests": count, "took_s": time.monotonic() - began_s, "program": "built-in"}


def _templates(kind: str) -> list[bytes]:
    """The bodies that follow each other on a connection, for the same calls: each status once, in order."""
    now = datetime.now(UTC)
    steps = [
        [_item(call, word, now + timedelta(milliseconds=5 * step)) for call in range(1000)] for step, word in enumerate(_WORDS)
    ]
    match kind:
        case "single":
            return [json.dumps(items[0]).encode() for items in steps]
        case "live":
            return [json.dumps(items).encode() for items in steps]
        case _:
            return [json.dumps([items[call] for call in range(250) for items in steps]).encode()]


def _item(call: int, word: str, at: datetime) -> dict[str, Any]:
    moment = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    name = f"{_MARK.decode()}@@@@@@@@-{call}"
    return {"call": name, "status": word, "at": moment, "from": number_of(call % CLIENTS), "to": "5511977770002"}


def _requests(token: str, templates: list[bytes], run: str) -> Iterator[bytes]:
    """Whole requests without end."""
    target = "/intake/events?answer=short"
    for number in numbers():
        name = f"{run}{number:08}".encode()
        for template in templates:
            body = template.replace(_MARK + b"@@@@@@@@", name)
            head = (
                f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            yield head.encode() + body


class _Poster(asyncio.Protocol):
    """One connection."""

    def __init__(self, requests: Iterator[bytes], until_s: float) -> None:
        self._requests = requests
        self._until_s = until_s
        self._buffer = b""
        self._count = 0
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(next(self._requests))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionResetError("the intake closed the connection"))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._buffer, 0, end)
        if length is None or len(self._buffer) < end + 4 + int(length[1]):
            return
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self._buffer.decode("latin-1")))
            self._transport.close()
            return
        self._buffer = b""
        self._count += 1
        if time.monotonic() < self._until_s:
            self._transport.write(next(self._requests))
        else:
            self.done.set_result(self._count)
            self._transport.close()
