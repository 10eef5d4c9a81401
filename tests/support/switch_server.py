"""Switches that play recordings over real sockets: they let a client in, send it events, and answer what it asks.

    with SwitchServer() as server:
        switch = EslSwitch(folder, cuts=[Cut(after=20, lost=3)])
        port = server.add(switch)
        ...  # toque connects to the port
        assert switch.is_done.wait(PATIENCE_S)

What a switch answers is made from the events up to where it is. A cut ends the connection, and so many events happen while nobody
listens; after that they go on as soon as a client wants them, also while it asks what is alive. After the last event the connection
is ended once more; the switch is done when a client has come back and has been told what is alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.ami_recordings import ChannelList, Recording
from tests.support.esl_watching import Event, Switch, events_of, moment_of, recorded_bytes

from toque.calls.ami_wire import AmiMessage, parse_block
from toque.calls.esl_watch import EVENTS

HOST = "127.0.0.1"
PATIENCE_S = 60.0
PIECES = (7, 100, 1460, 65_536)
PAUSES = (0, 0, 0, 1, 5)  # turns of the loop between two events: what is asked is answered between any two of them
PASSWORD = "uma senha boa"
USERNAME = "toque"
CHALLENGE = "847362514"


@dataclass(frozen=True)
class Cut:
    """The connection ends after so many events; so many more are missed. With `is_half`, it ends within the next event."""

    after: int
    lost: int = 0
    is_half: bool = False


def random_cuts(events: int, seed: str, *, count: int, most_lost: int) -> list[Cut]:
    """Cuts anywhere; none is so late that nothing follows."""
    chance = random.Random(seed)
    places = sorted(chance.sample(range(1, max(events, count + 2)), count))
    return [
        Cut(place, chance.randint(0, most_lost), is_half=bool(most_lost) and chance.random() < 0.5)
        for place in places
        if place < events
    ]


class SwitchServer:
    """Several switches, each on a port of its own, in a thread of their own."""

    def __init__(self) -> None:
        self._listens = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._done: asyncio.Event
        self._listening: list[socket.socket] = []
        self._talks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="switches")

    def __enter__(self) -> Self:
        self._thread.start()
        self._listens.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()

    def add(self, switch: PlayedSwitch) -> int:
        """Put a switch on a port."""
        return asyncio.run_coroutine_threadsafe(self._open(switch), self._loop).result()

    async def _open(self, switch: PlayedSwitch) -> int:
        listening = socket.create_server((HOST, 0), backlog=8)
        listening.setblocking(False)
        self._listening.append(listening)
        self._loop.add_reader(listening, self._accept, switch, listening)
        return int(listening.getsockname()[1])

    def _accept(self, switch: PlayedSwitch, listening: socket.socket) -> None:
        """Unlike asyncio's servers, it loses nobody who is just being accepted when it ends."""
        with contextlib.suppress(BlockingIOError):
            accepted, _ = listening.accept()
            talk = asyncio.create_task(self._talk(switch, accepted))
            self._talks.add(talk)
            talk.add_done_callback(self._talks.discard)
            talk.add_done_callback(lambda _: accepted.close())  # also if it was cancelled before it began

    async def _talk(self, switch: PlayedSwitch, accepted: socket.socket) -> None:
        with accepted:
            reader, writer = await asyncio.open_connection(sock=accepted)
            try:
                await switch.serve(reader, writer)
                await writer.wait_closed()
            finally:
                writer.transport.abort()

    async def _serve(self) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        self._listens.set()
        await self._done.wait()
        for listening in self._listening:
            self._loop.remove_reader(listening)
            listening.close()
        for talk in list(self._talks):
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        await asyncio.sleep(0)


class PlayedSwitch:
    """One switch and the events of its recording. Subclasses know what is spoken."""

    def __init__(self, events: int, cuts: Iterable[Cut] = (), seed: str = "", pieces: Sequence[int] = PIECES) -> None:
        """Bytes are sent in `pieces` of these sizes."""
        self.events = events
        self.pieces = pieces
        self.position = 0
        self.connections = 0
        self.commands: list[str] = []
        self.is_done = threading.Event()
        self.refusals = 0  # so many connections are ended before anything is said
        self._chance = random.Random(seed)
        self._cuts = deque([*sorted(cuts, key=lambda cut: cut.after), Cut(events)])
        self._writing = asyncio.Lock()
        self._ended: set[asyncio.StreamWriter] = set()
        self._has_asked = asyncio.Event()

    # What subclasses know

    greeting = b""
    separator = b""

    def bytes_of(self, number: int) -> bytes:
        """An event as it is sent."""
        raise NotImplementedError

    def note(self, number: int) -> None:
        """An event has happened."""
        raise NotImplementedError

    def end(self) -> None:
        """Nothing more happens."""

    def answer(self, command: str) -> tuple[bytes, str]:
        """What is answered, and what follows from the command: `play`, `close` or nothing."""
        raise NotImplementedError

    # Serving

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        playing: asyncio.Task[None] | None = None
        try:
            if self.refusals:
                self.refusals -= 1
                return
            writer.write(self.greeting)
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    command = (await reader.readuntil(self.separator)).decode().strip()
                    self.commands.append(command)
                    if writer in self._ended:
                        continue  # it is too late
                    async with self._writing:
                        said, then = self.answer(command)
                        writer.write(said)
                    if then == "play":
                        playing = asyncio.create_task(self._play(writer))
                    if then == "close":
                        return
        finally:
            if playing is not None:
                playing.cancel()
                await asyncio.gather(playing, return_exceptions=True)
            writer.close()

    async def _play(self, writer: asyncio.StreamWriter) -> None:
        """Send what happens from now on, up to the next cut."""
        while self._cuts:
            cut = self._cuts[0]
            if self.position >= min(cut.after, self.events):
                if len(self._cuts) == 1:
                    await self._has_asked.wait()
                self._cuts.popleft()
                await self._cut(cut, writer)
                return
            async with self._writing:
                await self._write(self.bytes_of(self.position), writer)
                self._pass()
            for _ in range(self._chance.choice(PAUSES)):
                await asyncio.sleep(0)

    async def _cut(self, cut: Cut, writer: asyncio.StreamWriter) -> None:
        async with self._writing:
            self._has_asked.clear()
            if cut.is_half and self.position < self.events:
                event = self.bytes_of(self.position)
                writer.write(event[: self._chance.randrange(1, len(event))])
                self._pass()
            for _ in range(min(cut.lost, self.events - self.position)):
                self._pass()
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            if self.position >= self.events:
                self.end()
            self._ended.add(writer)
            if cut.is_half or cut.lost:
                writer.close()
            elif writer.can_write_eof() and not writer.is_closing():
                writer.write_eof()  # a socket that is closed with something unread in it takes back what was sent

    async def _write(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        while data:
            size = self._chance.choice(self.pieces)
            writer.write(data[:size])
            data = data[size:]
            await writer.drain()
            await asyncio.sleep(0)

    def _pass(self) -> None:
        self.note(self.position)
        self.position += 1

    def told_what_is_alive(self) -> None:
        """A client has been told what is alive; the last one after the end."""
        self._has_asked.set()
        if self.position >= self.events and not self._cuts:
            self.is_done.set()


class EslSwitch(PlayedSwitch):
    """A FreeSWITCH. Without a recording, nothing happens on it."""

    greeting = b"Content-Type: auth/request\n\n"
    separator = b"\n\n"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        cuts: Iterable[Cut] = (),
        seed: str = "",
        dies: bool = False,
        pieces: Sequence[int] = PIECES,
    ) -> None:
        self.recorded = subscribed(folder) if folder is not None else []
        super().__init__(len(self.recorded), cuts, seed, pieces)
        self.dies = dies
        self.state = Switch()
        self._to_dump = 0

    def bytes_of(self, number: int) -> bytes:
        body = json.dumps(self.recorded[number], separators=(",", ":")).encode()
        return b"Content-Length: %d\nContent-Type: text/event-json\n\n%s" % (len(body), body)

    def note(self, number: int) -> None:
        self.state.note(self.recorded[number])

    def end(self) -> None:
        if self.dies:
            self.state.channels.clear()

    def answer(self, command: str) -> tuple[bytes, str]:
        match command.split():
            case ["auth", *_]:
                if command == f"auth {PASSWORD}":
                    return _reply("+OK accepted"), ""
                return _reply("-ERR invalid") + b"Content-Type: text/disconnect-notice\nContent-Length: 8\n\nGoodbye!", "close"
            case ["event", "json", *_]:
                return _reply("+OK event listener enabled json"), "play"
            case ["api", "show", "channels", "as", "json"]:
                rows = [{"uuid": uuid, "direction": "inbound"} for uuid in self.state.channels]
                self.told_what_is_alive()
                return _printed(json.dumps({"row_count": len(rows), "rows": rows} if rows else {"row_count": 0})), ""
            case ["api", "uuid_dump", uuid, "json"]:
                now = moment_of(self.recorded[max(self.position - 1, 0)])
                dump = self.state.dump(uuid, now)
                return _printed("-ERR No such channel!\n" if dump is None else json.dumps(dump)), ""
            case _:
                return _reply("-ERR command not found"), ""


@cache
def subscribed(folder: Path) -> list[Event]:
    """What a client that asks for what toque asks for is sent."""
    return [event for event in events_of(recorded_bytes(folder)) if event["Event-Name"] in EVENTS]


def _reply(text: str) -> bytes:
    return f"Content-Type: command/reply\nReply-Text: {text}\n\n".encode()


def _printed(text: str) -> bytes:
    body = text.encode()
    return b"Content-Type: api/response\nContent-Length: %d\n\n%s" % (len(body), body)


_CLASSES = {"system", "call", "agent", "all"}  # of events that a client is sent that asks for these


class AmiSwitch(PlayedSwitch):
    """An Asterisk with `timestampevents = yes`, whose recording ended just now. Without a recording, nothing happens on it."""

    greeting = b"Asterisk Call Manager/11.0.0\r\n"
    separator = b"\r\n\r\n"

    def __init__(
        self,
        recording: Recording | None = None,
        *,
        cuts: Iterable[Cut] = (),
        seed: str = "",
        dies: bool = False,
        pieces: Sequence[int] = PIECES,
    ) -> None:
        blocks = [] if recording is None else recording.blocks()
        self.recorded = [(at, block) for at, block in blocks if _is_sent(block)]
        super().__init__(len(self.recorded), cuts, seed, pieces)
        self.dies = dies
        self.knows_challenge = True
        self.may_list = True
        self.left_out = 0  # items of each list that are not sent
        self.uptime_s = 1000
        self.state = ChannelList()
        self._shift = datetime.now(UTC) - self.recorded[-1][0] if self.recorded else None

    @property
    def uptime_s(self) -> int:
        """It grows: else the switch was restarted, as far as a client that connects again can see."""
        return int(time.monotonic() - self._booted_s)

    @uptime_s.setter
    def uptime_s(self, seconds: int) -> None:
        self._booted_s = time.monotonic() - seconds

    def bytes_of(self, number: int) -> bytes:
        at, block = self.recorded[number]
        stamp = f"\r\nTimestamp: {(at + self._shift).timestamp():.6f}" if block.startswith(b"Event:") else ""
        return block + stamp.encode() + b"\r\n\r\n"

    def note(self, number: int) -> None:
        at, block = self.recorded[number]
        self.state.follow(_parsed(block), at)

    def end(self) -> None:
        if self.dies:
            self.state.channels.clear()

    def answer(self, command: str) -> tuple[bytes, str]:
        lines = dict(line.split(": ", 1) for line in command.split("\r\n"))
        return self._answer(lines, f"ActionID: {lines['ActionID']}")

    def _answer(self, lines: dict[str, str], action_id: str) -> tuple[bytes, str]:
        said, then = _block("Response: Error", action_id, "Message: Permission denied"), ""
        match lines["Action"]:
            case "Challenge" if self.knows_challenge:
                said = _block("Response: Success", action_id, f"Challenge: {CHALLENGE}")
            case "Login" if self._is_right(lines):
                booted = _block("Event: FullyBooted", "Privilege: system,all", f"Uptime: {self.uptime_s}", "Status: Fully Booted")
                said = _block("Response: Success", action_id, "Message: Authentication accepted") + booted
            case "Login":
                said, then = _block("Response: Error", action_id, "Message: Authentication failed"), "close"
            case "Events":
                said, then = _block("Response: Success", action_id, "Events: On"), "play"
            case "CoreShowChannels" if self.may_list:
                said = self._list(action_id)
            case "Ping":
                said = _block("Response: Success", action_id, "Ping: Pong", "Timestamp: 1795407091.435535")
        return said, then

    def _is_right(self, lines: dict[str, str]) -> bool:
        key = hashlib.md5(f"{CHALLENGE}{PASSWORD}".encode(), usedforsecurity=False).hexdigest()
        return lines["Username"] == USERNAME and (lines.get("Secret") == PASSWORD or lines.get("Key") == key)

    def _list(self, action_id: str) -> bytes:
        rows = self.state.answer(self.recorded[-1][0]) if self.recorded else []
        said = [_block("Response: Success", action_id, "EventList: start", "Message: Channels will follow")]
        for row in rows[self.left_out :]:
            fields = (f"{name}: {value}" for name, value in row.fields.items() if name != "event")
            said.append(_block("Event: CoreShowChannel", action_id, *fields))
        complete = ("EventList: Complete", f"ListItems: {len(rows)}")
        said.append(_block("Event: CoreShowChannelsComplete", action_id, *complete))
        self.told_what_is_alive()
        return b"".join(said)


def _block(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


def _parsed(block: bytes) -> AmiMessage:
    message = parse_block(block.replace(b"\r\n", b"\n"))
    assert message is not None
    return message


def _is_sent(block: bytes) -> bool:
    """Whether a client that asks for what toque asks for is sent this; the login is answered anew."""
    found = re.search(rb"^Privilege: (\S+)", block, re.MULTILINE)
    if block.startswith(b"Response:"):
        return b"Authentication accepted" not in block
    return b"Event: FullyBooted" not in block and found is not None and set(found[1].decode().split(",")) <= _CLASSES
