"""Who calls whom, by what FreeSWITCH says of a channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from toque.calls.esl_calls import Channel, Ending, EslCall, Origin
from toque.calls.esl_causes import caller_cause, cause_name, end_cause, has_hung_up, has_moved, is_silent, is_transferring
from toque.calls.esl_event import EslEvent

# The caller who gets here has got where they wanted: a mailbox, a room, a fax machine, a test.
_DESTINATIONS = frozenset({"voicemail", "conference", "rxfax", "txfax", "echo", "delay_echo", "eavesdrop", "three_way"})
# FusionPBX does the same by one script.
_SCRIPTED_DESTINATIONS = frozenset({"voicemail", "conference", "conference_center", "fax"})
# While these run, the caller's channel is only answered because a called one was.
_CALLING = frozenset({"bridge", "intercept", "att_xfer", "uuid_bridge"})
_SHORTEST_OUTSIDE = 7  # digits: extensions have fewer
_NO_NUMBER = frozenset({"", "0000000000", "anonymous", "unknown", "FreeSWITCH"})  # what the switch shows when it was given none


@dataclass(frozen=True, slots=True)
class Parties:
    """What one switch's owner has said of its numbers and channels."""

    trunks: tuple[str, ...] = ()  # patterns of the names of channels that lead outside
    is_line: Callable[[str], bool] = lambda _: False
    tenant_variable: str = "domain_name"

    def origin(self, event: EslEvent) -> Origin:
        """How a call begins that begins with this channel."""
        if not event.is_called:
            return Origin.INCOMING
        if event.is_inner:  # it leads on through the dialplan
            is_outside = len(event.destination) >= _SHORTEST_OUTSIDE and not self.is_line(event.destination)
            return Origin.DIALLER if is_outside else Origin.CLICK
        return Origin.DIALLER if event.is_on_trunk(self.trunks) else Origin.CLICK

    def may_be_pickup(self, call: EslCall, event: EslEvent) -> bool:
        """Whether somebody may be about to fetch another call: a telephone of the switch's own dials a code or a few digits."""
        is_short = call.dialled.startswith(("*", "#")) or len(call.dialled) < _SHORTEST_OUTSIDE
        return call.origin is Origin.INCOMING and not call.is_from_trunk and (is_short or event.is_inline)

    def is_dialler_of(self, call: EslCall, event: EslEvent) -> bool:
        """Whether this leg is the telephone for which the far end was called first: who has it is the caller. Notes them."""
        if call.origin is not Origin.DIALLER or not call.is_answered or event.is_on_trunk(self.trunks):
            return False
        call.callers = _distinct(*(number for number in call.callers if number not in _NO_NUMBER), event.destination)
        return True

    def describe(self, call: EslCall, event: EslEvent) -> None:
        """Note who calls whom, by the channel that a call begins with."""
        call.is_from_trunk = event.is_on_trunk(self.trunks)
        call.hints = self._hints(event)
        match call.origin:
            case Origin.INCOMING:
                call.callers = (event.caller,) if call.is_from_trunk else _names_of_phone(event)
                call.dialled = event.first_destination
            case Origin.DIALLER:
                call.callers = ("" if event.caller in _NO_NUMBER else event.caller,)
                call.dialled = event.destination
            case Origin.CLICK:
                call.callers = _distinct(event.destination, event.text("Caller-Destination-Number"))
                call.dialled = self._announced(call, event.caller)

    def _announced(self, call: EslCall, shown: str) -> str:
        """The caller's own telephone is shown the number to be called, or else the company's: then it is not known yet."""
        return "" if shown in _NO_NUMBER or shown in call.callers or self.is_line(shown) else shown

    def outside_name(self, call: EslCall, event: EslEvent) -> str:
        """The number by which the caller is known where this leg leads, where that is outside and it is another one."""
        shown = event.caller
        is_same = call.is_from_trunk or shown in _NO_NUMBER or shown in call.callers
        return shown if not is_same and event.is_on_trunk(self.trunks) else ""

    def _hints(self, event: EslEvent) -> tuple[str, ...]:
        found = (
            ("account", event.variable("accountcode")),
            ("tenant", event.variable(self.tenant_variable)),
            ("endpoint", f"sofia/gateway/{event.gateway}" if event.gateway else event.channel_name.rpartition("/")[0]),
            ("context", event.text("Caller-Context")),
        )
        return tuple(f"{name}:{value}" for name, value in found if value)


def channel_of(event: EslEvent) -> Channel:
    """A channel as its own event describes it."""
    return Channel(
        uuid=event.uuid,
        number=event.destination if event.is_called else event.caller,
        is_called=event.is_called,
        is_inner=event.is_inner,
        must_confirm=bool(event.variable("group_confirm_key")),
        is_agent=event.is_called and (event.is_held_for_later or bool(event.variable("fifo_bridge_uuid"))),
        above=event.originator,
    )


def stranger(uuid: str, event: EslEvent) -> Channel:
    """A channel of which only a bridge is known."""
    if uuid == event.uuid:
        return channel_of(event)
    is_called = event.text("Other-Type") != "originator"
    number = event.text("Other-Leg-Destination-Number" if is_called else "Other-Leg-Caller-ID-Number")
    is_up = event.moment("Other-Leg-Channel-Answered-Time") or (event.at if event.is_answered else None)
    return Channel(uuid=uuid, number=number, is_called=is_called, answered_at=is_up)


def call_above(event: EslEvent, above: str) -> EslCall:
    """The call of a leg that was seen first: what it says of the channel above it must do until that one's own event comes."""
    origin = Origin.CLICK if event.text("Other-Leg-Direction") == "outbound" else Origin.INCOMING
    shown, dialled = event.text("Other-Leg-Caller-ID-Number"), event.text("Other-Leg-Destination-Number")
    call = EslCall(key=above, root=above, origin=origin, core=event.core, began_at=event.at, is_stub=True)
    has_turned = origin is Origin.CLICK and dialled == event.destination  # once answered, a called caller is one who calls
    if origin is Origin.INCOMING or has_turned:
        call.callers, call.dialled = (shown,), dialled
    else:
        call.callers = (dialled,)
    return call


def ending_of(event: EslEvent, call: EslCall) -> Ending:
    """How a channel of this call ended, by its last event."""
    is_unanswered_caller = event.uuid == call.root and not call.is_answered
    others = sum(channel.uuid != event.uuid for channel in call.living())
    has_left = has_moved(event) or (others > 1 and is_transferring(event))
    return Ending(
        at=event.moment("Caller-Channel-Hangup-Time") or event.at,
        has_hung_up=has_hung_up(event) and not has_left,
        has_moved=has_left,
        is_silent=is_silent(event),
        name=cause_name(event),
        cause=caller_cause(event) if is_unanswered_caller else end_cause(event),
    )


def is_calling(event: EslEvent) -> bool:
    """Whether the dialplan is calling somebody for this channel."""
    return event.application.partition(" ")[0] in _CALLING


def is_destination(event: EslEvent) -> bool:
    """Whether the dialplan has brought this channel where the caller wanted to get."""
    name, _, arguments = event.application.partition(" ")
    if name == "lua":
        return not _SCRIPTED_DESTINATIONS.isdisjoint(arguments.split())
    return name in _DESTINATIONS


def _distinct(*numbers: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(number for number in numbers if number)) or ("",)


def _names_of_phone(event: EslEvent) -> tuple[str, ...]:
    """By which names a telephone of the switch's own is known, the one that it shows first."""
    names = (
        event.caller,
        event.text("Caller-Username"),
        event.variable("sip_auth_username"),
        event.variable("sip_from_user"),
        event.text("Caller-ANI"),
    )
    return _distinct(*sorted(names, key=_NO_NUMBER.__contains__))
