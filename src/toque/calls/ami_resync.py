"""What the list of an Asterisk's channels says of calls that went on while nobody watched.

Channels that are gone have ended; calls whose principal is gone have ended, and that is concluded, a little later: Asterisk sends
events that are older than the list after it. Channels that are new belong to calls that are told from their middle. What is known
and still there stays as it is: a list without news changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from toque.calls.ami_book import FEATURE_HOLD, CallBook
from toque.calls.ami_calls import AmiCall, Leg, Origin
from toque.calls.ami_channels import Channel, State
from toque.calls.ami_events import AmiEvents
from toque.calls.ami_names import endpoint, is_helper, is_number, is_short, is_telephone, reached_number
from toque.calls.ami_wire import AmiMessage
from toque.calls.model import Signal

_CALLED_APPLICATIONS = ("AppDial", "AppDial2", "AppQueue")  # what the channels of called telephones run


def reconcile(events: AmiEvents, listed: Sequence[AmiMessage], held: Sequence[AmiMessage], now: datetime) -> Iterator[Signal]:
    """The signals that a complete list gives; `held` is what came while it was being made, and is read afterwards."""
    events.book.now = now
    events.book.whole_from = min(events.book.whole_from, now)
    made = {message.get("uniqueid") for message in held if message.event == "Newchannel"}
    ended = {message.get("uniqueid") for message in held if message.event == "Hangup"}
    present = {message.get("uniqueid"): message for message in listed if message.get("uniqueid")}
    found = [
        channel for uid, message in present.items() if uid not in made and (channel := _learn(events, message, now)) is not None
    ]
    _join(events, found, present)
    missing = events.book.board.channels.keys() - present.keys() - made - ended
    events.book.missing = {uid: events.book.missing.get(uid, now) for uid in missing}
    for call in list(events.book.calls.values()):
        if call.principal in present:
            events.book.note_state(events.book.board.channels[call.principal], now)
            yield from events.news.advance(call, now)


def _learn(events: AmiEvents, message: AmiMessage, now: datetime) -> Channel | None:
    """Bring a channel up to date; returns it if it is new, or if what it is to its call was missed."""
    channel = events.book.board.channels.get(message.get("uniqueid"))
    bridge = message.get("bridgeid")
    if channel is not None:
        channel.learn(message)
        _note_merge(events, channel, message.get("linkedid"))
        if bridge:
            events.book.board.enter(channel, bridge)
        events.book.note_state(channel, now)
        return channel if _is_unplaced(events, channel) else None
    uid, name = message.get("uniqueid"), message.get("channel")
    if not name or is_helper(name):
        return None
    linkedid = message.get("linkedid") or uid
    channel = Channel(uid, name, linkedid, made_at=now - _age(message), bridge=bridge)
    channel.learn(message)
    return channel if events.book.board.add(channel) else None


def _note_merge(events: AmiEvents, channel: Channel, linkedid: str) -> None:
    """A channel that has another call's Linkedid than before picked that call up, or fetched it: that was missed."""
    call = events.book.calls.get(linkedid)
    if call is not None and linkedid != channel.linkedid and events.book.is_newcomer(channel):
        channel.linkedid = linkedid
        events.book.absorb(channel, call)


def _is_unplaced(events: AmiEvents, channel: Channel) -> bool:
    """Whether it was called, and nobody saw by whom."""
    call = events.book.calls.get(channel.call)
    is_called = channel.is_person and channel.state in (State.RINGING, State.UP)
    return call is not None and is_called and not call.is_answered and channel.uid not in (call.principal, *call.legs)


def _age(message: AmiMessage) -> timedelta:
    hours, _, rest = message.get("duration").partition(":")
    minutes, _, seconds = rest.partition(":")
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in (hours, minutes, seconds)):
        return timedelta()
    return timedelta(hours=int(hours), minutes=int(minutes), seconds=int(seconds))


def _join(events: AmiEvents, found: Sequence[Channel], present: dict[str, AmiMessage]) -> None:
    """Give every new channel to its call, or make one."""
    strangers: dict[str, list[Channel]] = {}
    for channel in found:
        call = events.book.calls.get(channel.call or channel.linkedid)
        if call is None:
            strangers.setdefault(channel.linkedid, []).append(channel)
        else:
            _join_as_leg(events, call, channel)
    for linkedid, channels in strangers.items():
        if not events.book.has_ended(linkedid):
            _begin(events, linkedid, channels, present)


def _join_as_leg(events: AmiEvents, call: AmiCall, channel: Channel) -> None:
    channel.call = call.key
    if not channel.is_person:
        return
    channel.reaches = channel.reaches or reached_number("", channel.name, channel.number)
    leg = call.legs.setdefault(channel.uid, Leg(number=channel.reaches))
    leg.is_up = channel.is_up
    if channel.state == State.RINGING:
        leg.rang_at = leg.rang_at or channel.made_at
    if call.principal == call.hub:
        events.book.learn_first(call, channel, leg)


def _begin(events: AmiEvents, linkedid: str, channels: Sequence[Channel], present: dict[str, AmiMessage]) -> None:
    """A call that is met in its middle."""
    first = next((channel for channel in channels if channel.uid == linkedid), None) or _talker(events, channels, present)
    if first is None:
        return  # what is left of a call whose caller has gone
    call = AmiCall(key=linkedid, principal=first.uid, began_at=first.made_at, hub=first.uid if first.is_local else "")
    call.first_name, call.is_blurred = first.name, True
    first.call = call.key
    _meet(events.book, call, first, _origin(first, present[first.uid].get("application")))
    for channel in channels:
        if channel is not first:
            _join_as_leg(events, call, channel)


def _meet(book: CallBook, call: AmiCall, principal: Channel, origin: Origin) -> None:
    """Go on with a call that is met in its middle."""
    book.calls[call.key] = call
    book.carried[principal.uid] = call.key
    if origin is Origin.UNKNOWN:
        return
    if origin is Origin.CALLER:
        if _shows_another(principal):
            book.learn_callers(call, endpoint(principal.name))
        book.called_in(call, principal)
        if not is_number(call.dialled):
            call.dialled = principal.connected or call.dialled
    else:
        call.origin = origin
        own = call.legs.setdefault(principal.uid, Leg(number=endpoint(principal.name), is_own=True))
        book.note_leg(own, principal, book.now)
        book.learn_callers(call, endpoint(principal.name), principal.own_number)
        book.learn_dialled(call, principal.extension)
    # Begun before it was seen: if somebody talks already, that is the first thing to be told.
    call.is_begun = book.is_talking(principal)
    if call.is_begun:
        call.is_held = False
        book.held.pop(call.key, None)
        book.describe(call)
    elif principal.is_up:  # it may be about to pick up another call
        book.hold(call, FEATURE_HOLD)


def _shows_another(channel: Channel) -> bool:
    """Whether a telephone that nobody saw begin shows a number of the company's rather than its own: the dialplan changed it."""
    return not channel.own_number and is_telephone(channel.name) and not is_short(channel.number)


def _talker(events: AmiEvents, channels: Sequence[Channel], present: dict[str, AmiMessage]) -> Channel | None:
    """Somebody who talks, rather one who was not called."""
    talkers = [channel for channel in channels if channel.is_person and events.book.is_talking(channel)]
    talkers.sort(
        key=lambda channel: (present[channel.uid].get("application") in _CALLED_APPLICATIONS, channel.made_at, channel.uid)
    )
    return talkers[0] if talkers else None


def _origin(first: Channel, application: str) -> Origin:
    if first.is_local or (first.state == State.DOWN and application not in _CALLED_APPLICATIONS):
        return Origin.UNKNOWN  # what comes next will tell
    if first.state == State.RINGING or application in _CALLED_APPLICATIONS:
        return Origin.CLICK
    return Origin.CALLER
