"""The channels of one Asterisk, and who is connected with whom through bridges and Local channels.

A Local channel is two halves: what is in a bridge with one half hears what is in a bridge with the other. Nothing here knows
what a call is; `ami_book.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from toque.calls.ami_names import endpoint, is_gone, is_helper, is_local, other_half
from toque.calls.ami_wire import AmiMessage

MAX_CHANNELS = 100_000  # a hundred times what one Asterisk carries; each costs about a kilobyte
_SAYS_STATE = frozenset({"Newchannel", "Newstate"})  # a channel's new state comes with these first
_MAX_CONNECTED = 32  # in a conference with more, whom one hears is no longer a question


class State(IntEnum):
    """A channel's state, by Asterisk's numbers; those that matter."""

    DOWN = 0
    DIALING = 3
    RING = 4  # it called us
    RINGING = 5  # we called it, and it rings
    UP = 6


@dataclass(slots=True)
class Channel:
    """One channel: a telephone, a trunk's line, or half of a Local channel."""

    uid: str
    name: str
    linkedid: str
    made_at: datetime
    call: str = ""  # the key of the call that it belongs to
    state: int = State.DOWN
    own_number: str = ""  # its caller id when it was made
    number: str = ""  # its caller id now
    connected: str = ""
    extension: str = ""
    context: str = ""
    account: str = ""
    reaches: str = ""  # whom it was called to reach
    bridge: str = ""
    hangup_asked: bool = False  # by its own far end, not by the switch
    is_found_up: bool = False  # nobody saw how it came to be up

    @property
    def is_local(self) -> bool:
        """Whether this is half of a Local channel."""
        return is_local(self.name)

    @property
    def is_person(self) -> bool:
        """Whether there may be somebody at the other end of it."""
        return not (is_local(self.name) or is_helper(self.name) or is_gone(self.name))

    @property
    def is_up(self) -> bool:
        """Whether it was answered, or is the caller's and the switch has picked up."""
        return self.state == State.UP

    @property
    def shown_number(self) -> str:
        """Who is there."""
        return self.reaches or self.own_number or self.number or endpoint(self.name)

    def learn(self, message: AmiMessage, prefix: str = "") -> None:
        """Take over what an event says of the channel; `prefix` is that of its keys, in lower case."""
        get = message.get
        state = get(prefix + "channelstate")
        if state.isdecimal() and len(state) < 3:
            self._learn_state(int(state), is_news=message.event in _SAYS_STATE)
        self.number = get(prefix + "calleridnum") or self.number
        self.connected = get(prefix + "connectedlinenum") or self.connected
        self.account = get(prefix + "accountcode") or self.account
        self.context = get(prefix + "context") or self.context
        self.extension = get(prefix + "exten") or self.extension

    def _learn_state(self, state: int, *, is_news: bool) -> None:
        if state == State.UP:
            self.is_found_up = not is_news and (self.is_found_up or self.state != State.UP)
        self.state = state


@dataclass(slots=True)
class Switchboard:
    """All channels by uid, and the bridges that they are in."""

    channels: dict[str, Channel] = field(default_factory=dict)
    bridges: dict[str, set[str]] = field(default_factory=dict)
    locals: dict[str, str] = field(default_factory=dict)  # uids of halves of Local channels by name
    refused: int = 0  # channels beyond the limit

    def add(self, channel: Channel) -> bool:
        """Remember a channel; False if there are too many."""
        if len(self.channels) >= MAX_CHANNELS and channel.uid not in self.channels:
            self.refused += 1
            return False
        self.channels[channel.uid] = channel
        if channel.is_local:
            self.locals[channel.name] = channel.uid
        if channel.bridge:
            self.bridges.setdefault(channel.bridge, set()).add(channel.uid)
        return True

    def remove(self, uid: str) -> Channel | None:
        """Forget a channel."""
        channel = self.channels.pop(uid, None)
        if channel is not None:
            self.leave(channel)
            if self.locals.get(channel.name) == uid:
                del self.locals[channel.name]
        return channel

    def rename(self, channel: Channel, name: str) -> None:
        """Channels change names when one takes the place of another."""
        if self.locals.get(channel.name) == channel.uid:
            del self.locals[channel.name]
        channel.name = name
        if channel.is_local:
            self.locals[name] = channel.uid

    def enter(self, channel: Channel, bridge: str) -> None:
        """A channel is in one bridge at a time."""
        if channel.bridge != bridge:
            self.leave(channel)
            channel.bridge = bridge
        if bridge:
            self.bridges.setdefault(bridge, set()).add(channel.uid)

    def leave(self, channel: Channel, bridge: str | None = None) -> None:
        """Leave a bridge, if the channel is still in that one."""
        if not channel.bridge or bridge not in (None, channel.bridge):
            return
        members = self.bridges.get(channel.bridge)
        if members is not None:
            members.discard(channel.uid)
            if not members:
                del self.bridges[channel.bridge]
        channel.bridge = ""

    def merge(self, into: str, old: str) -> None:
        """Move everybody from one bridge into another."""
        for uid in list(self.bridges.get(old, ())):
            self.enter(self.channels[uid], into)

    def half(self, channel: Channel) -> Channel | None:
        """The other half of a Local channel."""
        name = other_half(channel.name)
        return self.channels.get(self.locals.get(name, "")) if name else None

    def connected(self, channel: Channel) -> list[Channel]:
        """The channels that hear this one, the nearest first; the halves of Local channels between them are listed too."""
        found = {channel.uid: channel}
        waiting = [channel]
        for current in waiting:
            for neighbour in self._neighbours(current):
                if neighbour.uid not in found and len(found) < _MAX_CONNECTED:
                    found[neighbour.uid] = neighbour
                    waiting.append(neighbour)
        del found[channel.uid]
        return list(found.values())

    def _neighbours(self, channel: Channel) -> Iterator[Channel]:
        for uid in sorted(self.bridges.get(channel.bridge, ())) if channel.bridge else ():
            if uid != channel.uid:
                yield self.channels[uid]
        half = self.half(channel)
        if half is not None:
            yield half
