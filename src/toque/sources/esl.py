"""The client of a FreeSWITCH's event socket: logs in, subscribes to what calls do, and asks what is alive.

After every connection, and every few minutes, it asks for the list of channels and then for each channel by its name; what
happens meanwhile is fed to the watch as it comes. Replies come in the order of the commands, between the events.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from toque.calls.esl_watch import EVENTS, EslWatch
from toque.calls.esl_wire import (
    API_RESPONSE,
    AUTH_REQUEST,
    COMMAND_REPLY,
    DISCONNECT_NOTICE,
    EVENT_JSON,
    RUDE_REJECTION,
    EslError,
    EslParser,
    Frame,
    parse_channel_list,
    parse_dump,
    parse_object,
)
from toque.settings import EslSource
from toque.sources.link import Ear, Link, LinkLostError, LinkRefusedError, Pace, Wire, stay_in_step

_AT_ONCE = 16  # dumps that are asked for before the first has come: a round trip each would take long over a slow line


def esl_link(
    settings: EslSource,
    watch: EslWatch,
    *,
    clock: Callable[[], datetime],
    on_news: Callable[[], None],
    is_full: Callable[[], bool],
    pace: Pace | None = None,
    chance: Callable[[], float] = random.random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Link:
    """The link to a FreeSWITCH whose events this watch is fed."""
    return Link(
        settings.name,
        partial(asyncio.open_connection, settings.host, settings.port),
        partial(EslTalk, settings.password, watch, Ear(watch, clock, on_news)),
        is_full=is_full,
        pace=pace,
        chance=chance,
        sleep=sleep,
    )


class EslTalk:
    """What is said and understood on one connection to a FreeSWITCH."""

    def __init__(self, password: str, watch: EslWatch, ear: Ear[dict[str, Any]], wire: Wire) -> None:
        self._password = password
        self._watch = watch
        self._ear = ear
        self._wire = wire
        self._parser = EslParser()
        self._greeting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._replies: deque[asyncio.Future[Frame]] = deque()
        self._is_in_doubt = False  # what the watch remembers is to be made sure of

    # What comes

    def take(self, data: bytes) -> None:
        """Understand what came."""
        self._parser.receive(data)
        try:
            while (frame := self._parser.next_frame()) is not None:
                self._take_frame(frame)
        except EslError as error:
            raise LinkLostError(f"what answers there is no event socket: {error}") from None
        finally:
            self._ear.on_news()

    def _take_frame(self, frame: Frame) -> None:
        match frame.kind:
            case kind if kind == EVENT_JSON:
                self._take_event(frame.body)
            case kind if kind in (COMMAND_REPLY, API_RESPONSE):
                self._take_reply(frame)
            case kind if kind == AUTH_REQUEST:
                if not self._greeting.done():
                    self._greeting.set_result(None)
            case kind if kind == RUDE_REJECTION:
                raise LinkRefusedError("its access list refuses this address (apply-inbound-acl in event_socket.conf.xml)")
            case kind if kind == DISCONNECT_NOTICE:
                raise LinkLostError("the switch ended the connection")

    def _take_event(self, body: bytes) -> None:
        try:
            fields = parse_object(body)
        except EslError as error:
            self._ear.misread(str(error))
            return
        self._ear.hear(fields)

    def _take_reply(self, frame: Frame) -> None:
        if self._replies:
            reply = self._replies.popleft()
            if not reply.done():
                reply.set_result(frame)

    # What is asked

    def probe(self) -> None:
        """Anything will be answered, if only by an error."""
        self._ask("api uptime")

    def end(self) -> None:
        """The connection is gone; so is what it did not answer."""
        self._greeting.cancel()
        for reply in self._replies:
            reply.cancel()

    async def converse(self) -> None:
        """Log in, subscribe, look what is alive."""
        await self._wire.answer(self._greeting, "a connection: no event socket greets there")
        if not (await self._reply(f"auth {self._password}", "auth")).is_accepted:
            raise LinkRefusedError("it refuses the password")
        self._doubt(is_gap=True)
        subscribed = await self._reply(f"event json {' '.join(EVENTS)}", "event")
        if not subscribed.is_accepted:
            raise LinkRefusedError(f"it refuses to send events: {subscribed.reply[:100]}")
        self._wire.connected()
        self._ear.log.info("source.connected")
        await stay_in_step(self._wire, self._look)

    def _doubt(self, *, is_gap: bool) -> None:
        """Once, until it is dispelled: what comes after that is sure."""
        if not self._is_in_doubt:
            self._watch.doubt(is_gap=is_gap)
            self._is_in_doubt = True

    async def _look(self, is_gap: bool) -> bool:
        self._doubt(is_gap=is_gap)
        try:
            listed = parse_channel_list(_printed(await self._reply("api show channels as json", "show channels")))
            dumps = await self._dumps(self._watch.to_ask(listed))
        except EslError as error:  # a channel that cannot be asked for is not one that has ended
            self._ear.tell_unsynced(str(error))
            return False
        self._is_in_doubt = False
        try:
            self._watch.resync(dumps, self._ear.clock())
        except Exception:  # noqa: BLE001 - a bug of ours; the events still come
            self._ear.fail()
            return False
        finally:
            self._ear.on_news()
        self._ear.tell_resynced(len(listed), is_first=is_gap)
        return True

    async def _dumps(self, uuids: Sequence[str]) -> list[dict[str, Any]]:
        """What the channels say that are alive, of those with these names."""
        dumps = []
        for start in range(0, len(uuids), _AT_ONCE):
            asked = [self._ask(f"api uuid_dump {uuid} json") for uuid in uuids[start : start + _AT_ONCE] if _is_name(uuid)]
            for reply in asked:
                dump = parse_dump(_printed(await self._wire.answer(reply, "uuid_dump")))
                if dump is not None:
                    dumps.append(dump)
        return dumps

    async def _reply(self, command: str, name: str) -> Frame:
        return await self._wire.answer(self._ask(command), name)

    def _ask(self, command: str) -> asyncio.Future[Frame]:
        reply: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)
        self._wire.send(f"{command}\n\n".encode())
        return reply


def _printed(frame: Frame) -> bytes:
    """What a command printed. Raises `EslError` where it was not run."""
    if frame.kind != API_RESPONSE:
        raise EslError(f"the switch does not let us ask: {frame.reply[:100]}")
    return frame.body


def _is_name(uuid: str) -> bool:
    """Whether it can be a command's argument: what a stranger may have put into an event goes no further."""
    return uuid.isprintable() and " " not in uuid and len(uuid) < 200
