"""A link to a switch in this process: its watch, its log, the waits that it would make, and a switch that says what a test wants."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from structlog.testing import capture_logs
from tests.support.call_watching import Ledger

from toque.calls.ami_watch import AmiWatch
from toque.calls.esl_watch import EslWatch
from toque.calls.lines import LineBook, parse_line
from toque.settings import AmiSource, EslSource
from toque.sources.ami import ami_link
from toque.sources.esl import esl_link
from toque.sources.link import Link, Pace

HOST = "127.0.0.1"
NAME = "switch"
LINES = LineBook.of([parse_line("acme", "ramais", "~100[1-5]"), parse_line("zeta", "ddr", "5541306003*")])
PATIENT = Pace(connect_s=20, answer_s=20, quiet_s=20, resync_s=20, resync_retry_s=20)
TIME_FOR_A_SCENARIO_S = 10
Speaker = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Post:
    """A link at work, and everything around it."""

    watch: EslWatch | AmiWatch
    link: Link = field(init=False)
    logs: list[Any] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    is_full: bool = False
    news: int = 0
    may_dial_again: asyncio.Event = field(default_factory=asyncio.Event)
    ahead: timedelta = timedelta()

    def clock(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def on_news(self) -> None:
        self.news += 1
        self.ledger.append(self.watch)  # type: ignore[arg-type]

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await self.may_dial_again.wait()

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await asyncio.sleep(0.001)

    async def logged(self, event: str, count: int = 1) -> dict[str, Any]:
        """The entry, once the log has so many of them."""
        await self.until(lambda: len(self.entries(event)) >= count)
        return self.entries(event)[count - 1]

    def entries(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.logs if entry["event"] == event]

    def pass_time(self, span: timedelta) -> None:
        """Have the watch do what is due later."""
        self.ahead += span
        self.watch.tick(self.clock())
        self.on_news()


@asynccontextmanager
async def linked(source: EslSource | AmiSource, *, pace: Pace = PATIENT) -> AsyncIterator[Post]:
    """A link that runs; at the end it is cancelled, and must leave nothing behind."""
    tasks = asyncio.all_tasks()
    descriptors = set(os.listdir("/proc/self/fd"))
    watch = EslWatch(source.name, LINES, trunks=source.trunks) if isinstance(source, EslSource) else AmiWatch(source.name, LINES)
    post = Post(watch)
    means = {"clock": post.clock, "on_news": post.on_news, "is_full": lambda: post.is_full, "pace": pace, "chance": lambda: 0.5}
    make: Any = esl_link if isinstance(source, EslSource) else ami_link
    post.link = make(source, watch, sleep=post.sleep, **means)
    with capture_logs() as logs:
        post.logs = logs
        running = asyncio.create_task(post.link.run())
        try:
            async with asyncio.timeout(TIME_FOR_A_SCENARIO_S):
                yield post
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
    await asyncio.sleep(0)
    await post.until(lambda: asyncio.all_tasks() <= tasks)
    await post.until(lambda: set(os.listdir("/proc/self/fd")) <= descriptors)


@asynccontextmanager
async def speaking(speak: Speaker) -> AsyncIterator[int]:
    """A server that says what it wants to whoever connects; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await speak(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    before = asyncio.all_tasks()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in asyncio.all_tasks() - before:
            task.cancel()
        await server.wait_closed()


def saying(*pieces: bytes, then_waits: bool = True) -> Speaker:
    """Says this, whatever it is asked; then waits until the client goes, or goes first."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        while then_waits and await reader.read(65_536):
            pass

    return speak


def answering(greeting: bytes, separator: bytes, replies: Sequence[bytes], *pieces: bytes, then_waits: bool = True) -> Speaker:
    """Greets, answers so many commands with these replies, and goes on as `saying` does."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        for reply in replies:
            await reader.readuntil(separator)
            writer.write(reply)
        await saying(*pieces, then_waits=then_waits)(reader, writer)

    return speak
