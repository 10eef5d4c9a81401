"""What is remembered of FreeSWITCH's calls: their channels, who called whom, who talks to whom, and when a call is over.

A call is the channel it began with, and every channel that the switch called, bridged or looped back on its account. A channel
may be in two calls: whoever picks up a parked or ringing call has made one of their own; a consultation's party goes over to the
call that is transferred. The older call then holds the channel; the younger one does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from toque.calls.model import Cause, Party

MAX_CHANNELS = 256  # in one call: a ring group calls fewer, and each costs memory in every snapshot
_TOGETHER = timedelta(seconds=1)  # both ends of a bridge go down within this


class Origin(StrEnum):
    """How a call began."""

    INCOMING = "incoming"  # somebody called the switch
    CLICK = "click"  # the switch called the caller first, to connect them to the far end then
    DIALLER = "dialler"  # the switch called the far end first


@dataclass(slots=True)
class Ending:
    """How a channel ended."""

    at: datetime
    is_seen: bool = True  # False where it was gone when we came back
    has_hung_up: bool = False  # this party itself hung up
    has_moved: bool = False  # it left by transferring the call
    is_silent: bool = False  # its technology does not say who hung up
    name: str = ""  # the switch's word
    cause: Cause | None = None


@dataclass(slots=True)
class Channel:
    """One channel, as one call sees it."""

    uuid: str
    number: str = ""  # whom it reaches; of one that called the switch, its own
    is_called: bool = True
    is_inner: bool = False  # the switch calls itself
    is_guest: bool = False  # it came from another call
    is_caller_side: bool = False
    must_confirm: bool = False  # who answers has to press a key first
    is_agent: bool = False  # a queue calls it: that this one refuses is no end
    has_legs: bool = False  # of an inner channel: somebody was called through it
    rang: bool = False
    answered_at: datetime | None = None
    above: str = ""
    peer: str = ""  # with whom it was bridged last
    end: Ending | None = None


@dataclass(slots=True)
class EslCall:
    """One call."""

    key: str  # the UUID that its first channel had at the beginning
    root: str  # that channel's UUID now
    origin: Origin
    core: str  # the switch's life
    began_at: datetime
    callers: tuple[str, ...] = ()
    dialled: str = ""
    hints: tuple[str, ...] = ()
    is_from_trunk: bool = False
    is_stub: bool = False  # only known from a leg of it
    is_untold: bool = False  # it may turn out to be the pickup of another call, and so none of its own
    picked_up_at: datetime | None = None  # by the switch, while it was untold
    is_answered: bool = False
    is_over: bool = False
    has_gap: bool = False  # events of it may have been missed
    channels: dict[str, Channel] = field(default_factory=dict)

    @property
    def caller(self) -> Channel:
        """The channel that the call began with."""
        return self.channels[self.root]

    def is_callers_own(self, channel: Channel) -> bool:
        """Whether this is the caller's own leg: the first channel, or the telephone behind it where that one is an inner one."""
        if channel.uuid == self.root:
            return True
        return self.origin is not Origin.INCOMING and self.caller.is_inner and channel.is_caller_side and not channel.is_guest

    def own(self) -> Iterator[Channel]:
        """The caller's own legs."""
        return (channel for channel in self.channels.values() if self.is_callers_own(channel))

    def gave_up(self) -> bool:
        """Whether the caller hung up."""
        return any(channel.end is not None and channel.end.has_hung_up for channel in self.own())

    def was_up(self) -> bool:
        """Whether the caller's leg was ever up."""
        return any(channel.answered_at is not None for channel in self.own())

    def rang(self) -> bool:
        """Whether any telephone rang."""
        return any(channel.rang for channel in self.channels.values())

    def living(self) -> Iterator[Channel]:
        """The channels that have not ended, with somebody at their end."""
        return (channel for channel in self.channels.values() if channel.end is None and not channel.is_inner)

    def is_connected(self) -> bool:
        """Whether two living channels talk to each other."""
        alive = {channel.uuid for channel in self.living()}
        return any(channel.peer in alive for channel in self.living())

    # Who is on whose side

    def seat(self, one: Channel, two: Channel) -> None:
        """Two channels talk: they are on opposite sides, the root always on the caller's."""
        one.peer, two.peer = two.uuid, one.uuid
        fixed, other = (two, one) if two.uuid == self.root or one.is_guest else (one, two)
        if other.uuid != self.root:
            other.is_caller_side = not fixed.is_caller_side

    def note_called_through(self, above: Channel | None) -> None:
        """A channel was called; the inner ones above it were only the way there."""
        while above is not None and above.is_inner and not above.has_legs:
            above.has_legs = True
            above = self.channels.get(above.above)

    # How it ended

    def ended_at(self) -> datetime:
        """When the last leg of the caller's ended: its own, or, after it left by a transfer, the last of those that went on."""
        caller = self.caller.end
        ends = [
            channel.end.at for channel in self.channels.values() if channel.end and not channel.is_inner and not channel.is_guest
        ]
        if caller is None:
            return max(ends, default=self.began_at)
        latest = max(ends, default=caller.at)
        return latest if latest - caller.at > _TOGETHER and not caller.has_hung_up else caller.at

    def cause(self) -> Cause | None:
        """Why the last of its legs ended."""
        at = self.ended_at()
        ends = [channel.end for channel in self.channels.values() if channel.end is not None and not channel.is_inner]
        first = self.caller.end
        if first is not None and (first.at == at or not ends):
            return first.cause
        return max(ends, key=lambda end: (end.at <= at, end.at)).cause if ends else None

    def hung_up_by(self) -> Party:
        """Whose party hung up last; the network where nobody did."""
        ends = [(channel.end, channel) for channel in self.channels.values() if channel.end is not None and not channel.is_inner]
        enders = [(end.at, channel.uuid, channel) for end, channel in ends if end.has_hung_up]
        if not enders:
            return self._silent_ender(ends)
        *_, last = max(enders)
        return self._party(last)

    def _party(self, channel: Channel) -> Party:
        """Where the far end was called first, that one is on the side on which callers are otherwise."""
        return Party.CALLER if channel.is_caller_side is not (self.origin is Origin.DIALLER) else Party.CALLEE

    def _silent_ender(self, ends: list[tuple[Ending, Channel]]) -> Party:
        """Where channels do not say who hung up, the one that ended first did, if it ended as calls do."""
        first = min(ends, key=lambda end: end[0].at, default=None)
        if first is None or not first[0].is_silent or first[0].name not in ("NORMAL_CLEARING", "SUCCESS"):
            return Party.NETWORK
        return self._party(first[1])

    def trim(self) -> list[str]:
        """Forget the channels that ended first, where there are too many; gives their names."""
        ended = [uuid for uuid, channel in self.channels.items() if channel.end is not None and uuid != self.root]
        dropped = ended[: max(0, len(self.channels) - MAX_CHANNELS)]
        for uuid in dropped:
            del self.channels[uuid]
        return dropped


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(EslCall)


class EslCalls:
    """The calls of one switch, and which channel is in which."""

    def __init__(self) -> None:
        self.calls: dict[str, EslCall] = {}
        self._homes: dict[str, list[str]] = {}

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._homes

    def __len__(self) -> int:
        return len(self.calls)

    # Adding and forgetting

    def begin(self, call: EslCall, caller: Channel) -> None:
        """Remember a call that begins with this channel."""
        self.calls[call.key] = call
        caller.is_caller_side = True
        self.join(call, caller)

    def join(self, call: EslCall, channel: Channel) -> bool:
        """Put a channel into a call. False where the call is full."""
        self._leave(call, call.trim())
        if len(call.channels) > MAX_CHANNELS:
            return False
        call.channels[channel.uuid] = channel
        homes = self._homes.setdefault(channel.uuid, [])
        if call.key not in homes:
            homes.append(call.key)
        return True

    def visit(self, call: EslCall, channel: Channel) -> Channel:
        """The channel as this call sees it; it comes as a guest where it belongs to another one."""
        own = call.channels.get(channel.uuid)
        if own is None:
            own = replace(channel, is_guest=channel.uuid in self._homes, is_caller_side=False, above="", peer="", end=None)
            self.join(call, own)
        return own

    def rename(self, old: str, new: str) -> None:
        """The switch gave a channel another UUID."""
        for key in self._homes.pop(old, []):
            call = self.calls[key]
            channel = call.channels.pop(old)
            channel.uuid = new
            if call.root == old:
                call.root = new
            self.join(call, channel)
            for other in call.channels.values():
                other.peer = new if other.peer == old else other.peer

    def forget(self, key: str) -> None:
        """Drop what is remembered of a call."""
        call = self.calls.pop(key, None)
        if call is not None:
            self._leave(call, list(call.channels))

    def _leave(self, call: EslCall, uuids: list[str]) -> None:
        for uuid in uuids:
            homes = self._homes.get(uuid, [])
            if call.key in homes:
                homes.remove(call.key)
            if not homes:
                self._homes.pop(uuid, None)

    # Finding

    def of(self, uuid: str) -> list[EslCall]:
        """The calls that a channel is in and that go on."""
        return [call for key in self._homes.get(uuid, ()) if not (call := self.calls[key]).is_over]

    def going_on(self) -> list[EslCall]:
        """The calls that are not over."""
        return [call for call in self.calls.values() if not call.is_over]

    def at_home(self, uuid: str) -> list[EslCall]:
        """The calls that a channel belongs to; the oldest of those where it is a guest, if it belongs to none any more."""
        calls = self.of(uuid)
        own = [call for call in calls if not call.channels[uuid].is_guest]
        return own or sorted(calls, key=_age)[:1]

    # Over or not

    def is_over(self, call: EslCall) -> bool:
        """Whether the caller's last leg has ended."""
        end = call.caller.end
        if end is None:
            return False
        if end.has_hung_up and not call.is_connected():
            return True
        return not any(self._holds(call, channel) for channel in call.living())

    def _holds(self, call: EslCall, channel: Channel) -> bool:
        """Whether a call goes on as long as this channel lives, the caller having left."""
        others = [other for other in self.of(channel.uuid) if other is not call]
        if channel.is_guest and any(other.root == channel.uuid for other in others):
            return False
        return not any(_age(other) < _age(call) for other in others)

    # Storing

    def export(self, key: str) -> bytes:
        """What `restore` needs to go on with a call."""
        call = self.calls.get(key)
        return _ENCODER.encode(call) if call is not None else b""

    def restore(self, state: bytes) -> None:
        """Go on with a call. Raises `msgspec.DecodeError` for bytes that `export` did not give."""
        if not state:
            return
        call = _DECODER.decode(state)
        if call.root not in call.channels:
            msg = "a call without its first channel"
            raise msgspec.ValidationError(msg)
        self.calls[call.key] = call
        for channel in list(call.channels.values()):
            self.join(call, channel)


def _age(call: EslCall) -> tuple[datetime, str]:
    return call.began_at, call.key
