"""A scripted back-to-back user agent, as it mirrors itself: the call that it received, and those that it makes for it.

traffic = Traffic()
call = received(traffic)
leg = reached(traffic).send(180)
call.send(180)
leg.send(486, after=2)
call.send(486)
traffic.packets  # HepPacket values in the order and at the moments of the wire
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.support.sip_messages import START, sip_bytes

from toque.calls.hep_packet import SIP, HepPacket

SWITCH, CARRIER, PHONE, OTHER = "192.0.2.2:5060", "192.0.2.9:5060", "10.0.0.1:5062", "10.0.0.2:5062"
MOBILE, DID = "5511988887777", "554130600300"
PHRASES = {100: "Trying", 180: "Ringing", 200: "OK", 480: "Away", 486: "Busy", 487: "Terminated", 603: "Decline"}


@dataclass
class Traffic:
    """Packets in the order of the wire."""

    packets: list[HepPacket] = field(default_factory=list)
    at: datetime = START

    def leg(self, call_id: str, caller: str, called: str, source: str, destination: str, **more: Any) -> "Leg":
        return Leg(self, call_id, caller, called, source, destination, **more)


@dataclass
class Leg:
    """One SIP call between two user agents."""

    traffic: Traffic
    call_id: str
    caller: str
    called: str
    source: str
    destination: str
    agents: tuple[str, str] = ("phone", "phone")
    headers: tuple[tuple[str, str], ...] = ()
    vias: int = 1

    def send(self, what: str | int, method: str = "INVITE", *, by: int = 0, after: float = 0.01, tag: str = "b") -> "Leg":
        self.traffic.at += timedelta(seconds=after)
        cseq = {"INVITE": 1, "CANCEL": 1, "ACK": 1, "BYE": 2}[method]
        has_tag = (isinstance(what, int) and what > 100) or method in ("BYE", "ACK")
        parties = [
            ("From", f"<sip:{self.caller}@a>;tag={self.call_id}-a"),
            ("To", f"<sip:{self.called}@b>" + has_tag * f";tag={tag}"),
        ]
        if method == "BYE" and by:
            parties = [("From", f"<sip:{self.called}@b>;tag={tag}"), ("To", f"<sip:{self.caller}@a>;tag={self.call_id}-a")]
        branches = ", ".join(
            f"SIP/2.0/UDP h{n};branch=z9hG4bK{self.call_id}{method * (method == 'BYE')}{n}" for n in reversed(range(self.vias))
        )
        is_response = isinstance(what, int)
        start = f"SIP/2.0 {what} {PHRASES[what]}" if is_response else f"{what} sip:{self.called}@b SIP/2.0"
        agent = ("Server", self.agents[1]) if is_response else ("User-Agent", self.agents[by])
        headers = [("Via", branches), *parties, ("Call-ID", self.call_id), ("CSeq", f"{cseq} {method}"), agent, *self.headers]
        ends = (self.source, self.destination)
        back = is_response != bool(by)
        source, destination = reversed(ends) if back else ends
        self.traffic.packets.append(HepPacket(sip_bytes(start, headers), SIP, self.traffic.at, source, destination))
        return self

    def begin(self, **when: float) -> "Leg":
        return self.send("INVITE", **when).send(100)

    def cancel(self, after: float = 1) -> None:
        self.send("CANCEL", "CANCEL", after=after).send(200, "CANCEL").send(487)


def received(traffic: Traffic, agent: str = "PBX", call_id: str = "in", caller: str = MOBILE, called: str = DID) -> Leg:
    """A call from outside to the switch."""
    return traffic.leg(call_id, caller, called, CARRIER, SWITCH, agents=("carrier", agent)).begin()


def reached(traffic: Traffic, called: str = "1001", caller: str = MOBILE, call_id: str = "leg", **more: Any) -> Leg:
    """The switch's own call to a telephone."""
    more = {"source": SWITCH, "destination": PHONE, "agents": ("PBX", "phone"), **more}
    return traffic.leg(call_id, caller, called, **more).begin()
