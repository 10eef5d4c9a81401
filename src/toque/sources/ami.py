"""The client of an Asterisk's manager interface: logs in, takes what calls do, and asks which channels there are.

After every login, and every few minutes, it asks for the list of channels, whose items come among the events; the watch holds
back what is newer than the list. Only a list that is whole is believed.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from itertools import count

from toque.calls.ami_watch import WANTED_EVENTS, AmiWatch
from toque.calls.ami_wire import AmiError, AmiMessage, AmiReader
from toque.errors import SettingsError
from toque.settings import AmiSource
from toque.sources.link import Ear, Link, LinkLostError, LinkRefusedError, Pace, Wire, stay_in_step

EVENT_CLASSES = "system,call,agent"  # what the watch reads; a manager user's `read =` may name more
_ITEM, _COMPLETE = "CoreShowChannel", "CoreShowChannelsComplete"
_SAME_START = timedelta(seconds=10)  # an uptime is in whole seconds, and clocks are set


def ami_link(
    settings: AmiSource,
    watch: AmiWatch,
    *,
    clock: Callable[[], datetime],
    on_news: Callable[[], None],
    is_full: Callable[[], bool],
    pace: Pace | None = None,
    chance: Callable[[], float] = random.random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Link:
    """The link to an Asterisk whose events this watch is fed. Raises `SettingsError` for authorities that cannot be read."""
    context = _tls(settings)
    return Link(
        settings.name,
        partial(asyncio.open_connection, settings.host, settings.port, ssl=context),
        partial(AmiTalk, settings, watch, Ear(watch, clock, on_news), _Uptime()),
        is_full=is_full,
        pace=pace,
        chance=chance,
        sleep=sleep,
    )


def _tls(settings: AmiSource) -> ssl.SSLContext | None:
    if not settings.tls:
        return None
    context = ssl.create_default_context()
    if settings.tls_ca_file is not None:
        try:
            context.load_verify_locations(settings.tls_ca_file)
        except (ssl.SSLError, OSError) as error:
            raise SettingsError("sources", str(settings.tls_ca_file), f"tls_ca_file cannot be read as PEM: {error}") from None
    return context


class _Uptime:
    """Since when the switch runs; known from one connection to the next."""

    def __init__(self) -> None:
        self._started_at: datetime | None = None

    def is_another_life(self, uptime: str, now: datetime) -> bool:
        """Whether the switch has been restarted since this was asked last."""
        if not (uptime.isascii() and uptime.isdecimal()) or len(uptime) > 10:
            return False
        before, self._started_at = self._started_at, now - timedelta(seconds=int(uptime))
        return before is not None and self._started_at - before > _SAME_START


class AmiTalk:
    """What is said and understood on one connection to an Asterisk."""

    def __init__(self, settings: AmiSource, watch: AmiWatch, ear: Ear[AmiMessage], uptime: _Uptime, wire: Wire) -> None:
        self._settings = settings
        self._watch = watch
        self._ear = ear
        self._uptime = uptime
        self._wire = wire
        self._reader = AmiReader(WANTED_EVENTS)
        self._skipped = 0
        self._loop = asyncio.get_running_loop()
        self._numbers = count(1)
        self._replies: dict[str, asyncio.Future[AmiMessage]] = {}  # by ActionID
        self._greeting: asyncio.Future[None] = self._loop.create_future()
        self._list_id = ""  # the ActionID of the list that is awaited
        self._items = 0
        self._unreadable_items = 0
        self._list: asyncio.Future[str | None] | None = None  # what was wrong with it

    # What comes

    def take(self, data: bytes) -> None:
        """Understand what came."""
        try:
            messages = self._reader.feed(data)
        except AmiError as error:
            raise LinkLostError(str(error)) from None
        if self._reader.banner and not self._greeting.done():
            self._greeting.set_result(None)
        if self._reader.skipped != self._skipped:
            self._skipped = self._reader.skipped
            self._ear.misread("a message is too long")
        for message in messages:
            self._take_message(message)
        self._ear.on_news()

    def _take_message(self, message: AmiMessage) -> None:
        if message.event in (_ITEM, _COMPLETE):
            if self._list_id and message.get("actionid") == self._list_id:
                self._take_listed(message)
        elif message.event:
            if message.event == "FullyBooted":
                self._note_uptime(message.get("uptime"))
            self._ear.hear(message)
        else:
            reply = self._replies.pop(message.get("actionid"), None)
            if reply is not None and not reply.done():
                reply.set_result(message)

    def _take_listed(self, message: AmiMessage) -> None:
        if message.event == _ITEM:
            self._items += 1
            self._unreadable_items += bool(message.get("uniqueid")) != bool(message.get("channel"))
            self._ear.hear(message)
            return
        problem = self._problem_of_list(message)
        if problem is None and not self._ear.hear(message):
            problem = "a bug of ours"
        self._end_list(problem)

    def _problem_of_list(self, complete: AmiMessage) -> str | None:
        """What is not in the list is taken for ended, so a list with something left out must not be believed."""
        said = complete.get("listitems")
        if said.isascii() and said.isdecimal() and said != str(self._items):
            return f"the list of channels has {self._items} of {said[:10]} items"
        if self._unreadable_items:
            return f"the list of channels has {self._unreadable_items} items that name no channel"
        return None if self._watch.is_resyncing else "too many events came before the list of channels was complete"

    def _end_list(self, problem: str | None) -> None:
        self._list_id = ""
        if self._watch.is_resyncing:
            self._watch.abandon_resync(self._ear.clock())
        if self._list is not None and not self._list.done():
            self._list.set_result(problem)

    def _note_uptime(self, uptime: str) -> None:
        if self._uptime.is_another_life(uptime, self._ear.clock()):
            self._ear.log.warning("source.restarted", uptime_s=int(uptime))

    # What is asked

    def probe(self) -> None:
        """Ask for a sign of life."""
        self._ask("Ping", self._next_id())

    def end(self) -> None:
        """The connection is gone; so is what it did not answer."""
        self._end_list("the connection was lost")
        self._ear.on_news()
        self._greeting.cancel()
        for reply in self._replies.values():
            reply.cancel()

    async def converse(self) -> None:
        """Log in, and look which channels there are."""
        await self._wire.answer(self._greeting, "a connection: no manager interface greets there")
        await self._log_in()
        self._wire.connected()
        self._ear.log.info("source.connected", switch=self._reader.banner[:100])
        # Events begin right before the list: what happened between them would be read without what was missed before.
        subscribed = self._ask("Events", self._next_id(), EventMask=EVENT_CLASSES)
        await stay_in_step(self._wire, partial(self._look, subscribed))

    async def _log_in(self) -> None:
        fields = {"Username": self._settings.username, "Events": "system"}  # of which FullyBooted tells the uptime
        challenge = await self._reply("Challenge", AuthType="MD5")
        if challenge.response == "Success" and challenge.get("challenge"):
            proof = challenge.get("challenge") + self._settings.secret
            digest = hashlib.md5(proof.encode(), usedforsecurity=False).hexdigest()  # what the protocol has
            reply = await self._reply("Login", **fields, AuthType="MD5", Key=digest)
        else:
            reply = await self._reply("Login", **fields, Secret=self._settings.secret)
        if reply.response != "Success":
            raise LinkRefusedError(f"it refuses the login: {reply.get('message')[:100] or 'without a reason'}")

    async def _look(self, subscribed: asyncio.Future[AmiMessage], is_gap: bool) -> bool:
        self._watch.begin_resync(is_gap=is_gap)
        problem = await self._listed()
        answer = await self._wire.answer(subscribed, "Events")
        if answer.response != "Success":
            raise LinkRefusedError(f"it refuses to send events: {answer.get('message')[:100]}")
        if problem is not None:
            self._ear.tell_unsynced(problem)
            return False
        self._ear.tell_resynced(self._items, is_first=is_gap)
        return True

    async def _listed(self) -> str | None:
        """Have the list of channels sent; what was wrong with it, once it is complete."""
        self._items, self._unreadable_items, self._list = 0, 0, self._loop.create_future()
        self._list_id = self._next_id()
        answered = await self._wire.answer(self._ask("CoreShowChannels", self._list_id), "CoreShowChannels")
        if answered.response != "Success":
            self._end_list(f"CoreShowChannels is refused, which needs write = reporting: {answered.get('message')[:100]}")
        return await self._wire.answer(self._list, "CoreShowChannels")

    async def _reply(self, action: str, **fields: str) -> AmiMessage:
        return await self._wire.answer(self._ask(action, self._next_id(), **fields), action)

    def _next_id(self) -> str:
        return f"toque-{next(self._numbers)}"

    def _ask(self, action: str, action_id: str, **fields: str) -> asyncio.Future[AmiMessage]:
        reply: asyncio.Future[AmiMessage] = self._loop.create_future()
        self._replies[action_id] = reply
        lines = {"Action": action, "ActionID": action_id, **fields}
        self._wire.send("".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n")
        return reply
