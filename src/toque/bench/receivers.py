"""Receivers of all kinds in a process of their own, so that their work is not the measured process'.

The process is told on its stdin what to do, answers on its stdout, a line of JSON each, and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from toque.bench.children import child
from toque.bench.posts import Posts
from toque.bench.tally import Tally

LATE_S = 5.0
_LINE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Group:
    """Receivers of one kind, each at a port of its own; connections are refused until they listen."""

    kind: str  # a row of _KINDS
    count: int = 1
    is_listening: bool = True
    certificate: str | None = None
    key: str | None = None


class Receivers:
    """The process seen from outside. `urls` are each group's, in the order of the groups."""

    def __init__(self, process: asyncio.subprocess.Process, urls: list[list[str]]) -> None:
        self._process = process
        self.urls = urls

    async def listen(self, group: int) -> None:
        """Let this group's receivers take connections from now on."""
        await _ask(self._process, ["listen", group])

    async def report(self, group: int) -> dict[str, Any]:
        """What `Tally.report` says of a counting group."""
        told: dict[str, Any] = await _ask(self._process, ["report", group])
        return told


async def _ask(process: asyncio.subprocess.Process, words: Any) -> Any:
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    process.stdin.write(json.dumps(words).encode() + b"\n")
    line = await process.stdout.readline()
    if not line:
        msg = "the receivers are gone"
        raise RuntimeError(msg)
    return json.loads(line)


@contextlib.asynccontextmanager
async def receiving(*groups: Group) -> AsyncIterator[Receivers]:
    """These receivers, for the time of the block."""
    pipe = asyncio.subprocess.PIPE
    async with child(sys.executable, "-m", "toque.bench.receivers", stdin=pipe, stdout=pipe, limit=_LINE_BYTES) as process:
        ports = await _ask(process, [asdict(group) for group in groups])
        schemes = ["http" if group.certificate is None else "https" for group in groups]
        yield Receivers(
            process, [[f"{scheme}://127.0.0.1:{one}/" for one in many] for scheme, many in zip(schemes, ports, strict=True)]
        )


# In the process


class _Never(Posts):
    """Reads, and says nothing."""

    def came(self, _: bytes) -> None:
        pass


class _Late(Posts):
    """Answers, but not soon."""

    def came(self, _: bytes) -> None:
        asyncio.get_running_loop().call_later(LATE_S, self.answer)


class _Counted(Posts):
    """Answers at once, and counts."""

    def __init__(self, tally: Tally, number: int) -> None:
        super().__init__()
        self._tally, self._number = tally, number

    def came(self, body: bytes) -> None:
        self._tally.note(self._number, body)
        self.answer()


_KINDS: dict[str, Callable[[Tally, int], Posts]] = {
    "at once": lambda _, __: Posts(),
    "never": lambda _, __: _Never(),
    "late": lambda _, __: _Late(),
    "counted": _Counted,
}


class _Running:
    """A group at work."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.tally = Tally()
        self._sockets = [_bound() for _ in range(group.count)]
        self.ports: list[int] = [one.getsockname()[1] for one in self._sockets]

    async def listen(self) -> None:
        tls = None
        if self.group.certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(self.group.certificate, self.group.key)
        make, loop = _KINDS[self.group.kind], asyncio.get_running_loop()
        for number, one in enumerate(self._sockets):
            await loop.create_server(lambda number=number: make(self.tally, number), sock=one, ssl=tls, backlog=4096)


def _bound() -> socket.socket:
    """A port that is ours; without listening, whoever connects is refused."""
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    return made


async def _serve() -> None:
    lines = asyncio.StreamReader(limit=_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    groups = [Group(**fields) for fields in json.loads(await lines.readline())]
    running = [_Running(group) for group in groups]
    for one in running:
        if one.group.is_listening:
            await one.listen()
    _tell([one.ports for one in running])
    while line := await lines.readline():
        word, number = json.loads(line)
        if word == "listen":
            await running[number].listen()
        _tell(running[number].tally.report())


def _tell(answer: Sequence[Any] | dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201 - to whoever asked


if __name__ == "__main__":
    uvloop.run(_serve())
