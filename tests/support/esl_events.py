"""FreeSWITCH's events, as far as they matter, for calls that no recording has."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

Event = dict[str, Any]
START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
CORE = "11111111-0000-4000-8000-000000000001"
OUTSIDE = "5511988887777"
DID = "554130600300"


def stamp(moment: datetime) -> str:
    return str(int((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)))


@dataclass
class Script:
    """Says what the switch says, while time passes."""

    now: datetime = START
    core: str = CORE
    events: list[Event] = field(default_factory=list)
    channels: dict[str, Event] = field(default_factory=dict)

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def say(self, name: str, uuid: str, **more: str) -> Event:
        """One event of a channel; `more` are headers with _ for -, and variables as v_NAME."""
        event = {
            "Event-Name": name,
            "Core-UUID": self.core,
            "Event-Date-Timestamp": stamp(self.now),
            **self.channels.get(uuid, {}),
            **headers(more),
        }
        self.events.append(event)
        return event

    def keep(self, uuid: str, **more: str) -> None:
        """What a channel says from now on with every event."""
        self.channels[uuid].update(headers(more))

    def appear(
        self, uuid: str, name: str, caller: str, dialled: str, *, above: str = "", called: bool = False, **more: str
    ) -> None:
        """A channel is created; a called one for `above`, if that is given."""
        self.channels[uuid] = {
            "Unique-ID": uuid,
            "Channel-Name": name,
            "Call-Direction": "outbound" if called or above else "inbound",
            "Answer-State": "ringing",
            "Caller-Caller-ID-Number": caller,
            "Caller-Destination-Number": dialled,
            "Caller-Channel-Created-Time": stamp(self.now),
            "Channel-Call-UUID": above or uuid,
            "variable_uuid": uuid,
        }
        if above:
            self.keep(uuid, Other_Type="originator", Other_Leg_Unique_ID=above, v_originator=above, v_signal_bond=above)
        self.keep(uuid, **more)
        self.say("CHANNEL_CREATE", uuid)

    def incoming(
        self, uuid: str = "A", caller: str = OUTSIDE, dialled: str = DID, profile: str = "external", **more: str
    ) -> None:
        self.appear(uuid, f"sofia/{profile}/{caller}@192.0.2.9", caller, dialled, **more)

    def call(self, uuid: str, number: str, above: str, profile: str = "internal", shown: str = OUTSIDE, **more: str) -> None:
        self.appear(uuid, f"sofia/{profile}/{number}@192.0.2.7", shown, number, above=above, **more)

    def ring(self, uuid: str) -> None:
        self.keep(uuid, Caller_Channel_Progress_Time=stamp(self.now))
        self.say("CHANNEL_PROGRESS", uuid)

    def answer(self, uuid: str, application: str = "") -> None:
        self.keep(uuid, Answer_State="answered", Caller_Channel_Answered_Time=stamp(self.now))
        if application:
            self.keep(uuid, v_current_application=application)
        self.say("CHANNEL_ANSWER", uuid)

    def bridge(self, one: str, two: str) -> None:
        for uuid, other in ((one, two), (two, one)):
            self.keep(uuid, Caller_Channel_Bridged_Time=stamp(self.now), v_signal_bond=other, v_bridge_uuid=other)
        self.say("CHANNEL_BRIDGE", one, Bridge_A_Unique_ID=one, Bridge_B_Unique_ID=two)

    def end(self, uuid: str, cause: str = "NORMAL_CLEARING", disposition: str = "send_bye", **more: str) -> None:
        self.keep(uuid, Answer_State="hangup", Hangup_Cause=cause, Caller_Channel_Hangup_Time=stamp(self.now))
        self.say("CHANNEL_HANGUP", uuid)
        if disposition:
            self.keep(uuid, v_sip_hangup_disposition=disposition)
        self.keep(uuid, v_hangup_cause=cause, **more)
        self.say("CHANNEL_HANGUP_COMPLETE", uuid)
        self.say("CHANNEL_DESTROY", uuid)

    def refuse(self, uuid: str, cause: str, sip: int, q850: int) -> None:
        told = {"v_sip_term_status": str(sip), "v_proto_specific_hangup_cause": f"sip:{sip}", "v_hangup_cause_q850": str(q850)}
        self.end(uuid, cause, "recv_refuse", **told)

    def stop(self, uuid: str, cause: str = "NO_ANSWER", q850: int = 19) -> None:
        """The switch stops calling."""
        self.end(uuid, cause, "send_cancel", v_hangup_cause_q850=str(q850), v_sip_invite_failure_status="487")

    def restarted(self, core: str = "22222222-0000-4000-8000-000000000002") -> None:
        self.core = core
        self.events.append({"Event-Name": "HEARTBEAT", "Core-UUID": core, "Event-Date-Timestamp": stamp(self.now)})


def headers(more: dict[str, str]) -> Event:
    return {
        f"variable_{name[2:]}" if name.startswith("v_") else name.replace("_", "-"): value
        for name, value in more.items()
        if value
    }
