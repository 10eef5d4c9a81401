"""What one event of FreeSWITCH says about its channel. A dump of a channel has the same headers as an event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

DUMP = "CHANNEL_DATA"  # how `uuid_dump` names what it gives

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_MICROSECONDS = 4_102_444_800_000_000  # the year 2100: nothing a working clock says is later
_MAX_CHARACTERS = 256  # of a number, a name or a UUID; longer ones are made to fill our memory

# Channels by which the switch calls itself: one end goes through the dialplan once more. Nobody is there.
_INNER = ("loopback/", "pickup/", "error/", "null/")

# A queue's or an enterprise dialling's legs have no originator; these say for whom they are called (mod_callcenter, mod_fifo,
# switch_ivr_originate.c).
_CALLED_FOR = ("cc_member_session_uuid", "fifo_bridge_uuid", "ent_originate_aleg_uuid")
# Legs that some application called and will connect to somebody; until then it is not known to whom.
_HELD_FOR_LATER = ("fifo_outbound_uuid", "fifo_name", "fifo_originate_uuid")


class EslEvent:
    """One event, read without trust: what is missing is '', and what is no text is none."""

    __slots__ = ("fields", "received_at")

    def __init__(self, fields: dict[str, Any], received_at: datetime) -> None:
        self.fields = fields
        self.received_at = received_at  # our own clock, for an event without a time

    def __repr__(self) -> str:
        return f"EslEvent({self.name} {self.uuid})"  # no numbers: it may get into a log

    def text(self, name: str) -> str:
        """A header; of one that was given several times, the first."""
        value = self.fields.get(name, "")
        if isinstance(value, list):
            value = value[0] if value else ""
        return value[:_MAX_CHARACTERS] if isinstance(value, str) else ""

    def variable(self, name: str) -> str:
        """A variable of the channel."""
        return self.text(f"variable_{name}")

    # What happened, and when

    @property
    def name(self) -> str:
        """What kind of event it is."""
        return self.text("Event-Name")

    @property
    def core(self) -> str:
        """The life of the switch that it comes from: another one after every start."""
        return self.text("Core-UUID")

    @property
    def at(self) -> datetime:
        """When it happened."""
        return self.moment("Event-Date-Timestamp") or self.received_at

    def moment(self, name: str) -> datetime | None:
        """A header in microseconds since 1970; None where there is none, or it is 0."""
        text = self.text(name)
        if not (text.isascii() and text.isdecimal()) or len(text) > 16:
            return None
        microseconds = int(text)
        return _EPOCH + timedelta(microseconds=microseconds) if 0 < microseconds < _MOST_MICROSECONDS else None

    # The channel

    @property
    def uuid(self) -> str:
        """The channel's name."""
        return self.text("Unique-ID")

    @property
    def channel_name(self) -> str:
        """The channel's name for people, such as `sofia/internal/1001@example.com`."""
        return self.text("Channel-Name")

    @property
    def is_whole(self) -> bool:
        """Whether it tells of its channel what a dump does; a few kinds of events tell less."""
        return bool(self.uuid) and any(name.startswith("variable_") for name in self.fields)

    @property
    def created_at(self) -> datetime:
        """When the channel began."""
        return self.moment("Caller-Channel-Created-Time") or self.at

    @property
    def is_called(self) -> bool:
        """Whether the switch calls this channel; otherwise it calls the switch."""
        return self.text("Call-Direction") == "outbound"

    @property
    def is_inner(self) -> bool:
        """Whether the switch calls itself."""
        return self.channel_name.startswith(_INNER)

    @property
    def is_for_inner(self) -> bool:
        """Whether the other channel is one by which the switch calls itself."""
        return self.text("Other-Leg-Channel-Name").startswith(_INNER)

    @property
    def is_answered(self) -> bool:
        """Whether the channel is or was up."""
        return self.text("Answer-State") == "answered" or self.moment("Caller-Channel-Answered-Time") is not None

    @property
    def rang_at(self) -> datetime | None:
        """Since when the channel has been ringing, or was told that the other one does."""
        return self.moment("Caller-Channel-Progress-Time") or self.moment("Caller-Channel-Progress-Media-Time")

    @property
    def application(self) -> str:
        """What the dialplan does with the channel now, or did last; its arguments with it."""
        name = self.text("Application") or self.variable("current_application") or self.variable("loopback_app")
        if name:
            arguments = self.text("Application-Data") or self.variable("current_application_data")
        else:
            name, arguments = self.variable("last_app"), self.variable("last_arg")
        return f"{name} {arguments}".strip()

    @property
    def hangup_cause(self) -> str:
        """Why the channel ended, in the switch's word."""
        return self.text("Hangup-Cause") or self.variable("hangup_cause")

    # Who

    @property
    def is_inline(self) -> bool:
        """Whether the switch made up what to do with the channel: its telephone picks up another one's call by a key."""
        return not self.is_called and self.text("Caller-Dialplan") == "inline"

    @property
    def destination(self) -> str:
        """The number dialled on this channel; an extension's name where the switch looked one up."""
        dialled = _user_of(self.text("Caller-Destination-Number"))
        if self.is_called and not self.gateway:
            return self.variable("dialed_user") or dialled or self.text("Caller-Callee-ID-Number")
        return (self.variable("sip_req_user") or dialled) if self.is_inline else dialled

    @property
    def first_destination(self) -> str:
        """The number dialled on this channel before it was transferred anywhere."""
        before = self.text("Caller-RDNIS")
        if not before or not self.variable("transfer_source"):
            return self.destination
        asked_for = self.variable("sip_req_user")
        return before if not asked_for or asked_for.startswith("gw+") else asked_for  # `gw+NAME`: what a gateway registered

    @property
    def caller(self) -> str:
        """The number that this channel shows or is shown."""
        return self.text("Caller-Caller-ID-Number") or self.text("Caller-ANI")

    @property
    def gateway(self) -> str:
        """The gateway that the channel leaves by, where it does by one."""
        return self.variable("sip_gateway_name") if self.is_called else self.variable("sip_gateway")

    def is_on_trunk(self, trunks: tuple[str, ...]) -> bool:
        """Whether the channel leads outside: by a gateway, or by a name that fits one of these patterns."""
        if self.gateway:
            return True
        return any(fnmatchcase(self.channel_name, pattern) for pattern in trunks)

    # With whom

    @property
    def originator(self) -> str:
        """The channel for which this one is called, or ''; of an inner channel's second half, its first."""
        if not self.is_called:
            return self.variable("other_loopback_leg_uuid") if self.is_inner else ""
        candidates = (
            self.text("Other-Leg-Unique-ID") if self.text("Other-Type") == "originator" else "",
            self.variable("originator"),
            self.variable("originating_leg_uuid"),
            *(self.variable(name) for name in _CALLED_FOR),
        )
        return next((uuid for uuid in candidates if uuid and uuid != self.uuid), "")

    @property
    def call_uuid(self) -> str:
        """The channel whose call this one is said to belong to; not to be relied on, scripts set it as well."""
        return self.text("Channel-Call-UUID") if self.is_called else ""

    @property
    def is_held_for_later(self) -> bool:
        """Whether an application called this channel for somebody whom it does not name yet."""
        is_agent = self.variable("cc_side") == "agent"  # the one who waits has it as well: `member`
        return self.is_called and (is_agent or any(self.variable(name) for name in _HELD_FOR_LATER))

    @property
    def talked_since(self) -> datetime | None:
        """Since when a channel that the switch connected has been talking, as far as it says itself; None where it has not.

        A bridge alone is none: there is one for early media too.
        """
        answered_at = self.moment("Caller-Channel-Answered-Time")
        bridged_at = self.moment("Caller-Channel-Bridged-Time")
        if answered_at is None or (bridged_at is None and not self.variable("bridge_uuid")) or self._was_refused_last:
            return None
        return max(answered_at, bridged_at or answered_at)

    @property
    def bond(self) -> str:
        """The channel that this one is, or was last, bridged with."""
        return self.variable("bridge_uuid") or self.variable("signal_bond") or self.text("Other-Leg-Unique-ID")

    @property
    def _was_refused_last(self) -> bool:
        """Whether the last one that it was bridged with, for early media, did not answer in the end."""
        code = self.variable("last_bridge_proto_specific_hangup_cause").removeprefix("sip:")
        return code[:1] in tuple("3456") and len(code) == 3

    @property
    def bridged(self) -> tuple[str, str]:
        """The two channels of a bridge."""
        one = self.text("Bridge-A-Unique-ID") or self.uuid
        return one, self.text("Bridge-B-Unique-ID") or self.text("Other-Leg-Unique-ID")


def _user_of(text: str) -> str:
    """The number of what may be a whole address, such as `sip:1001@192.0.2.7:5060;transport=tcp`."""
    if "@" not in text and not text.startswith("sip"):
        return text
    return text.removeprefix("sips:").removeprefix("sip:").partition("@")[0].partition(";")[0] or text
