"""Staying connected to a switch that is asked for its events: what the clients of all such switches share.

A `Link` dials, has a `Talk` do the talking, and dials again when the connection is lost, for as long as the server runs. Nothing
that a switch sends, and no bug that it brings to light, ends it. While the store is behind, it stops reading: the switch's bytes
then wait in the kernel, and soon in the switch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

import structlog

from toque.calls.tracker import CallTracker
from toque.errors import ToqueError
from toque.telemetry import Sparingly

CONNECTED = "connected"
_READ_BYTES = 262_144
_ROOM_POLL_S = 0.05
_LAST_WORD_S = 0.1  # for understanding an answer that came with the end of the connection
_Answer = TypeVar("_Answer")
_Heard = TypeVar("_Heard", contravariant=True)  # noqa: PLC0105 - its name says what it is


class LinkLostError(ToqueError):
    """The connection is of no use any more; the text says why."""


class LinkRefusedError(LinkLostError):
    """The switch does not let us in: somebody has to set something, there or here."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long is waited for what, in seconds."""

    connect_s: float = 10.0
    answer_s: float = 20.0  # to anything that is asked of the switch
    quiet_s: float = 15.0  # nothing heard: ask for a sign of life; as long again, and the connection is dead
    resync_s: float = 240.0  # between two looks at what the switch has; well below the time after which a call is stale
    resync_retry_s: float = 30.0  # after a look that failed
    first_s: float = 0.5  # before dialling again after a connection that was good; it doubles with each failure
    longest_s: float = 60.0
    refused_s: float = 60.0  # switches ban those who come with a wrong password too often
    good_s: float = 10.0  # a connection that lasted so long was good


def wait_before_dialling(pace: Pace, failures: int, chance: float, *, is_refused: bool = False) -> float:
    """Seconds to wait after so many connections in a row that were not good, 0 after a good one; `chance` is from [0, 1)."""
    growing_s = min(pace.longest_s, pace.first_s * 2.0 ** min(failures, 30))
    return max(growing_s, pace.refused_s if is_refused else 0.0) * (0.75 + 0.5 * chance)


class Wire:
    """What a `Talk` may do with its connection."""

    def __init__(self, writer: asyncio.StreamWriter, pace: Pace, on_connected: Callable[[], None]) -> None:
        self.pace = pace
        self._writer = writer
        self._on_connected = on_connected
        self.was_held_back = False  # answers may have been waiting in the kernel

    def send(self, data: bytes) -> None:
        """Write; a connection that is gone is noticed by its reader."""
        if not self._writer.is_closing():
            self._writer.write(data)

    def connected(self) -> None:
        """The switch let us in, and sends its events."""
        self._on_connected()

    async def answer(self, awaited: asyncio.Future[_Answer], to: str) -> _Answer:
        """What the switch answers. Raises `LinkLostError` when it does not."""
        while True:
            self.was_held_back = False
            await asyncio.wait([awaited], timeout=self.pace.answer_s)
            if awaited.done():
                return awaited.result()
            if not self.was_held_back:
                raise LinkLostError(f"no answer to {to} within {self.pace.answer_s:g} s")


class Talk(Protocol):
    """What is said and understood on one connection to one kind of switch."""

    def take(self, data: bytes) -> None:
        """Understand what came. Raises `LinkLostError` when nothing that follows can be understood."""

    def probe(self) -> None:
        """Ask for a sign of life."""

    async def converse(self) -> None:
        """Log in, subscribe, look what the switch has; then again and again until cancelled. Raises `LinkLostError`."""

    def end(self) -> None:
        """The connection is gone."""


class Watch(Protocol[_Heard]):
    """What a link's events are fed to."""

    source: str
    tracker: CallTracker

    def feed(self, heard: _Heard, now: datetime, /) -> None:
        """Take one event that arrived at `now`."""


class Ear(Generic[_Heard]):
    """What is heard on a link goes through here to the source's watch; it outlives the connections."""

    def __init__(self, watch: Watch[_Heard], clock: Callable[[], datetime], on_news: Callable[[], None]) -> None:
        """`on_news` is called when the watch may have something to say."""
        self.clock = clock
        self.on_news = on_news
        self.log = structlog.get_logger("toque.sources").bind(source=watch.source)
        self._watch = watch
        self._concluded = watch.tracker.counters.inferred
        self._sparingly = Sparingly(time.monotonic)

    def hear(self, heard: _Heard) -> bool:
        """One event. A bug of ours costs the event that brought it to light, and no other; False where there was one."""
        try:
            self._watch.feed(heard, self.clock())
        except Exception:  # noqa: BLE001 - see above
            self.fail()
            return False
        return True

    def fail(self) -> None:
        """Tell of the exception that is being handled."""
        if self._sparingly.admits():
            held_back = self._sparingly.take_held_back()
            self.log.error("source.failed", exc_info=True, held_back=held_back)  # noqa: LOG014 - see the docstring

    def misread(self, problem: str) -> None:
        """Something that the switch sent could not be read."""
        if self._sparingly.admits():
            self.log.warning("source.unreadable", problem=problem, held_back=self._sparingly.take_held_back())

    def tell_resynced(self, channels: int, *, is_first: bool) -> None:
        """The watch knows what the switch has; told after each connection, and when ends were concluded since the last look."""
        before, self._concluded = self._concluded, self._watch.tracker.counters.inferred
        concluded = self._concluded - before
        if is_first or concluded:
            self.log.info("source.resynced", channels=channels, concluded=concluded)

    def tell_unsynced(self, problem: str) -> None:
        """What the switch has could not be learned. Nothing is concluded from that."""
        self.log.warning("source.resync_failed", problem=problem)


async def stay_in_step(wire: Wire, look: Callable[[bool], Awaitable[bool]]) -> None:
    """Look what the switch has, now and every few minutes; `look` is told whether events may have been missed since the last
    look that succeeded, and says whether it did.
    """
    is_gap = True
    while True:
        if await look(is_gap):
            is_gap = False
            await asyncio.sleep(wire.pace.resync_s)
        else:
            await asyncio.sleep(wire.pace.resync_retry_s)


class Link:
    """One switch, and one connection to it after the other: `run` until it is cancelled."""

    def __init__(
        self,
        name: str,
        dial: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]],
        new_talk: Callable[[Wire], Talk],
        *,
        is_full: Callable[[], bool],
        pace: Pace | None = None,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`is_full` says that the store is behind; `chance` and `sleep` make and pass the time before dialling again."""
        self.name = name
        self.state = "not connected yet"
        """`connected`, or why it is not."""
        self.losses = 0  # connections that the switch had let us in by, and that ended
        self.heard_s: float | None = None  # when anything came from the switch last, on the monotonic clock
        self._dial = dial
        self._new_talk = new_talk
        self._is_full = is_full
        self._pace = pace or Pace()
        self._chance = chance
        self._sleep = sleep
        self._connected_at_s: float | None = None
        self._log = structlog.get_logger("toque.sources").bind(source=name)

    @property
    def connected_for_s(self) -> float | None:
        """How long it has been connected; None when it is not."""
        is_connected = self.state == CONNECTED and self._connected_at_s is not None
        return time.monotonic() - (self._connected_at_s or 0.0) if is_connected else None

    async def run(self) -> None:
        """Stay connected until cancelled."""
        failures = 0
        while True:
            error = await self._connection()
            was_good = self._connected_at_s is not None and time.monotonic() - self._connected_at_s >= self._pace.good_s
            failures = 0 if was_good else failures + 1
            is_refused = isinstance(error, LinkRefusedError)
            wait_s = wait_before_dialling(self._pace, failures, self._chance(), is_refused=is_refused)
            self._tell_lost(error, wait_s)
            await self._sleep(wait_s)

    def _tell_lost(self, error: LinkLostError, wait_s: float) -> None:
        self.state = str(error)
        retry_in_s = round(wait_s, 1)
        if isinstance(error, LinkRefusedError):
            self._log.error("source.refused", problem=str(error), retry_in_s=retry_in_s)
        elif self._connected_at_s is None:
            self._log.warning("source.unreachable", problem=str(error), retry_in_s=retry_in_s)
        else:
            self.losses += 1
            self._log.warning("source.lost", problem=str(error), retry_in_s=retry_in_s)

    async def _connection(self) -> LinkLostError:
        """One connection from its beginning to its end, and why it ended."""
        self._connected_at_s = None
        try:
            async with asyncio.timeout(self._pace.connect_s):
                reader, writer = await self._dial()
        except (OSError, UnicodeError, TimeoutError) as error:  # the second from names that cannot be looked up
            return LinkLostError(self._problem(error))
        try:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return await self._speak(reader, Wire(writer, self._pace, self._note_connected))
        except OSError as error:
            return LinkLostError(self._problem(error))
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _speak(self, reader: asyncio.StreamReader, wire: Wire) -> LinkLostError:
        """Listen and talk until one of both finds that the connection is of no use."""
        talk = self._new_talk(wire)
        tasks = [
            asyncio.create_task(self._listen(reader, wire, talk), name=f"{self.name} listens"),
            asyncio.create_task(talk.converse(), name=f"{self.name} talks"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(tasks[1:], timeout=_LAST_WORD_S)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            talk.end()
        return self._reason(ends)

    def _reason(self, ends: list[Any]) -> LinkLostError:
        errors = [end for end in ends if isinstance(end, Exception)]
        known = [error for error in errors if isinstance(error, LinkLostError)]
        known.sort(key=lambda error: not isinstance(error, LinkRefusedError))
        for error in errors:
            if isinstance(error, OSError):
                known.append(LinkLostError(self._problem(error)))
            elif not isinstance(error, LinkLostError):
                self._log.error("source.failed", exc_info=error)
        return known[0] if known else LinkLostError("a bug of ours")

    def _note_connected(self) -> None:
        self.state = CONNECTED
        self._connected_at_s = time.monotonic()

    # Listening

    async def _listen(self, reader: asyncio.StreamReader, wire: Wire, talk: Talk) -> None:
        is_probed = False
        while True:
            await self._room(wire)
            try:
                async with asyncio.timeout(self._pace.quiet_s):
                    data = await reader.read(_READ_BYTES)
            except TimeoutError:
                if is_probed:
                    raise LinkLostError(f"silent for {2 * self._pace.quiet_s:g} s") from None
                is_probed = True
                talk.probe()
                continue
            if not data:
                raise LinkLostError("the switch closed the connection")
            is_probed, self.heard_s = False, time.monotonic()
            talk.take(data)
            await asyncio.sleep(0)  # a flood must not keep the others from their turn

    async def _room(self, wire: Wire) -> None:
        """Wait while the store is behind."""
        if not self._is_full():
            return
        began_s = time.monotonic()
        self._log.warning("source.held_back")
        while self._is_full():
            wire.was_held_back = True
            await asyncio.sleep(_ROOM_POLL_S)
        self._log.info("source.read_again", after_s=round(time.monotonic() - began_s, 1))

    def _problem(self, error: Exception) -> str:
        match error:
            case TimeoutError():
                return f"no connection within {self._pace.connect_s:g} s"
            case ssl.SSLCertVerificationError():
                return f"certificate: {error.verify_message}"
            case ssl.SSLError():
                return f"tls: {error.reason or error}"
            case socket.gaierror() | UnicodeError():
                return "its name is not found"
            case OSError(errno=int(number)):
                return os.strerror(number).lower()
            case _:
                return str(error)
