"""A scripted proxy call, as a switch mirrors it: every message of the caller's hop and of each called leg's hop.

The looks are Kamailio's: its branches end in the leg's number, CANCEL and the ACK of a refusal go hop by hop with one Via, requests
inside a dialog carry the caller's tag in a Route (`append_fromtag`), telephones answer with all Vias in one line.

    call = ProxiedCall()
    call.invite()
    call.ring(after=1.5)
    call.answer(after=4)
    call.hang_up(by="caller", after=10)
    call.packets  # HepPacket values in the order and at the moments of the wire
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from toque.calls.hep_packet import SIP, HepPacket

START = datetime(2026, 3, 2, 12, 0, 0, tzinfo=UTC)
CALLER, DIALLED = "5541988880001", "5511977770002"
PROXY = "192.0.2.2:5060"
HOP_DELAY = timedelta(milliseconds=1)

PHRASES = {
    100: "Trying", 180: "Ringing", 183: "Session Progress", 200: "OK", 202: "Accepted", 302: "Moved Temporarily",
    401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 407: "Proxy Authentication Required", 408: "Request Timeout",
    480: "Temporarily Unavailable", 481: "Call/Transaction Does Not Exist", 486: "Busy Here", 487: "Request Terminated",
    488: "Not Acceptable Here", 491: "Request Pending", 500: "Server Internal Error", 503: "Service Unavailable",
    600: "Busy Everywhere", 603: "Decline",
}  # fmt: skip

By = Literal["caller", "callee"]


def sip_bytes(start_line: str, headers: list[tuple[str, str]], body: str = "", end: str = "\r\n") -> bytes:
    """A message of these parts."""
    lines = [start_line, *(f"{name}: {value}" for name, value in headers), f"Content-Length: {len(body)}", "", body]
    return end.join(lines).encode()


def via(address: str, branch: str) -> str:
    """One Via value."""
    return f"SIP/2.0/UDP {address};branch={branch}"


def sdp() -> str:
    """A short session description."""
    return "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 8\r\n"


@dataclass
class ProxiedCall:
    """One call through one proxy. Methods add messages; `after` is seconds since what was added last.

    `up` and `down` add a single message to the caller's hop or a leg's; the others add what belongs together.
    """

    name: str = "call"
    caller: str = CALLER
    dialled: str = DIALLED
    begins: datetime = START
    packets: list[HepPacket] = field(default_factory=list)
    attempt: int = 1  # the INVITE's CSeq; another try after a challenge is the next
    dialog_cseq: int = 10  # of the latest request inside the dialog
    numbers: dict[int, str] = field(default_factory=dict)  # whom a leg reaches, where it is not the dialled number
    asserted: str = ""
    caller_address: str = "192.0.2.1:5060"

    def __post_init__(self) -> None:
        self.at = self.begins
        self.call_id = f"{self.name}@192.0.2.1"
        self.caller_tag = f"{self.name}-a"

    # Names

    def callee_tag(self, leg: int = 0) -> str:
        return f"{self.name}-b{leg}"

    def callee_address(self, leg: int = 0) -> str:
        return f"192.0.2.{10 + leg}:5060"

    def up_branch(self) -> str:
        return f"z9hG4bK-{self.name}-{self.attempt}"

    def down_branch(self, leg: int = 0) -> str:
        return f"z9hG4bKe94d.{self.name}{self.attempt}.{leg}"

    # Time

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.at += timedelta(seconds=seconds)

    # Single messages of the INVITE's transactions

    def up(self, what: str | int, *, to: str = "INVITE", after: float = 0, **parts: str) -> HepPacket:
        """A message on the caller's hop: a request by its method, or a response by its code (`to` an INVITE or a CANCEL)."""
        vias = [via(self.caller_address, self.up_branch())]
        if isinstance(what, int):
            tag = parts.pop("to_tag", "" if what == 100 else self.callee_tag())
            return self._add(PROXY, self.caller_address, self._response(what, to, vias, tag, **parts), after)
        tag = parts.pop("to_tag", self.callee_tag() if what == "ACK" else "")
        return self._add(self.caller_address, PROXY, self._request(what, self.dialled, vias, tag, **parts), after)

    def down(self, what: str | int, leg: int = 0, *, to: str = "INVITE", after: float = 0, **parts: str) -> HepPacket:
        """A message on a called leg's hop, likewise."""
        own = via(PROXY, self.down_branch(leg))
        is_hop_by_hop = "CANCEL" in (what, to) or what == "ACK"
        vias = [own] if is_hop_by_hop else [own, via(self.caller_address, self.up_branch())]
        callee = self.callee_address(leg)
        if isinstance(what, int):
            tag = parts.pop("to_tag", "" if what == 100 else self.callee_tag(leg))
            return self._add(callee, PROXY, self._response(what, to, [", ".join(vias)], tag, **parts), after)
        tag = parts.pop("to_tag", self.callee_tag(leg) if what == "ACK" else "")
        number = self.numbers.get(leg, self.dialled)
        return self._add(PROXY, callee, self._request(what, number, vias, tag, **parts), after)

    # Both hops

    def invite(self, after: float = 0) -> None:
        """The caller calls, and the proxy calls the first leg."""
        self.up("INVITE", after=after)
        self.up(100)
        self.fork()

    def fork(self, leg: int = 0, after: float = 0) -> None:
        """The proxy calls a leg."""
        self.down("INVITE", leg, after=after)
        self.down(100, leg)

    def ring(self, leg: int = 0, *, code: int = 180, after: float = 0.5, **parts: str) -> None:
        """A leg rings, and the caller hears it."""
        self.down(code, leg, after=after, **parts)
        self.up(code, to_tag=self.callee_tag(leg), **parts)

    def answer(self, leg: int = 0, *, after: float = 3) -> None:
        """A leg answers."""
        self.down(200, leg, after=after, body=sdp())
        self.up(200, to_tag=self.callee_tag(leg), body=sdp())
        self.in_dialog("ACK", by="caller", leg=leg, cseq=self.attempt)

    def end_leg(self, code: int, leg: int = 0, *, after: float = 0.5, **parts: str) -> None:
        """A leg ends unanswered; the caller hears nothing of it."""
        self.down(code, leg, after=after, **parts)
        self.down("ACK", leg)

    def refuse(self, code: int, *, after: float = 0, **parts: str) -> None:
        """The caller is told that the attempt failed."""
        self.up(code, after=after, **parts)
        self.up("ACK")

    def fail(self, code: int, *, after: float = 0.5, **parts: str) -> None:
        """The only leg ends unanswered, and the caller is told the same."""
        self.end_leg(code, after=after, **parts)
        self.refuse(code, **parts)

    def stop_leg(self, leg: int = 0, *, after: float = 0) -> None:
        """The proxy stops calling a leg, which confirms it."""
        self.down("CANCEL", leg, after=after)
        self.down(200, leg, to="CANCEL")
        self.end_leg(487, leg, after=0)

    def cancel(self, after: float = 3) -> None:
        """The caller gives up, and all is confirmed."""
        self.up("CANCEL", after=after)
        self.up(200, to="CANCEL")
        self.stop_leg()
        self.refuse(487)

    def try_again(self, after: float = 0.1) -> None:
        """The caller's next INVITE of the same call (with credentials, or to where it was redirected)."""
        self.attempt += 1
        self.invite(after)

    def hang_up(self, by: By = "caller", *, leg: int = 0, after: float = 10, **parts: str) -> None:
        """BYE over both hops, and its answer."""
        self.in_dialog("BYE", by=by, leg=leg, after=after, **parts)
        self.dialog_answer(200, "BYE", by=by, leg=leg)

    def in_dialog(
        self, method: str, *, by: By = "caller", leg: int = 0, after: float = 0, cseq: int | None = None, **parts: str
    ) -> None:
        """A request inside the dialog, over both hops."""
        if cseq is None:
            self.dialog_cseq += 1
            cseq = self.dialog_cseq
        first, second = self._ends(by, leg)
        branch = f"z9hG4bK-{self.name}-{method}-{cseq}-{by}"
        own, proxied = via(first, branch), via(PROXY, f"z9hG4bKe94d.{self.name}{method}{cseq}{by}.0")
        start = f"{method} sip:{self.dialled}@192.0.2.9 SIP/2.0"
        sent = self._dialog_message(start, [own], f"{cseq} {method}", by=by, leg=leg, route=True, **parts)
        self._add(first, PROXY, sent, after)
        sent_on = self._dialog_message(start, [proxied, own], f"{cseq} {method}", by=by, leg=leg, **parts)
        self._add(PROXY, second, sent_on, 0)

    def dialog_answer(
        self, code: int, method: str, *, by: By = "caller", leg: int = 0, after: float = 0, cseq: int | None = None, **parts: str
    ) -> None:
        """The response to the latest request inside the dialog that `by` sent, over both hops."""
        cseq = self.dialog_cseq if cseq is None else cseq
        first, second = self._ends(by, leg)
        own = via(first, f"z9hG4bK-{self.name}-{method}-{cseq}-{by}")
        proxied = via(PROXY, f"z9hG4bKe94d.{self.name}{method}{cseq}{by}.0")
        start = f"SIP/2.0 {code} {PHRASES[code]}"
        sent = self._dialog_message(start, [proxied, own], f"{cseq} {method}", by=by, leg=leg, **parts)
        self._add(second, PROXY, sent, after)
        sent_on = self._dialog_message(start, [own], f"{cseq} {method}", by=by, leg=leg, **parts)
        self._add(PROXY, first, sent_on, 0)

    # Rendering

    def _ends(self, by: By, leg: int) -> tuple[str, str]:
        ends = self.caller_address, self.callee_address(leg)
        return ends if by == "caller" else (ends[1], ends[0])

    def _request(self, method: str, number: str, vias: list[str], to_tag: str, **parts: str) -> bytes:
        cseq = f"{self.attempt} {method}"
        body = sdp() if method == "INVITE" else ""
        return self._message(f"{method} sip:{number}@192.0.2.2:5060 SIP/2.0", vias, cseq, to_tag, body=body, **parts)

    def _response(self, code: int, method: str, vias: list[str], to_tag: str, **parts: str) -> bytes:
        return self._message(f"SIP/2.0 {code} {PHRASES[code]}", vias, f"{self.attempt} {method}", to_tag, **parts)

    def _message(self, start: str, vias: list[str], cseq: str, to_tag: str, *, body: str = "", reason: str = "") -> bytes:
        caller = f"<sip:{self.caller}@192.0.2.2>;tag={self.caller_tag}"
        dialled = f"<sip:{self.dialled}@192.0.2.2:5060>" + (f";tag={to_tag}" if to_tag else "")
        return self._rendered(start, vias, (caller, dialled), cseq, body=body, reason=reason)

    def _dialog_message(
        self, start: str, vias: list[str], cseq: str, *, by: By, leg: int, route: bool = False, body: str = "", reason: str = ""
    ) -> bytes:
        caller = f"<sip:{self.caller}@192.0.2.2>;tag={self.caller_tag}"
        callee = f"<sip:{self.dialled}@192.0.2.2:5060>;tag={self.callee_tag(leg)}"
        parties = (caller, callee) if by == "caller" else (callee, caller)
        return self._rendered(start, vias, parties, cseq, route=route, body=body, reason=reason)

    def _rendered(
        self,
        start: str,
        vias: list[str],
        parties: tuple[str, str],
        cseq: str,
        *,
        route: bool = False,
        body: str = "",
        reason: str = "",
    ) -> bytes:
        headers = [("Via", value) for value in vias]
        headers += [("From", parties[0]), ("To", parties[1]), ("Call-ID", self.call_id), ("CSeq", cseq)]
        if route:
            headers.append(("Route", f"<sip:192.0.2.2;lr=on;ftag={self.caller_tag}>"))
        if self.asserted and start.startswith("INVITE"):
            headers.append(("P-Asserted-Identity", f"<sip:{self.asserted}@192.0.2.2>"))
        if reason:
            headers.append(("Reason", reason))
        if body:
            headers.append(("Content-Type", "application/sdp"))
        return sip_bytes(start, headers, body)

    def _add(self, source: str, destination: str, payload: bytes, after: float) -> HepPacket:
        self.at += timedelta(seconds=after) + HOP_DELAY
        packet = HepPacket(payload=payload, protocol=SIP, at=self.at, source=source, destination=destination)
        self.packets.append(packet)
        return packet


def repeated(packets: list[HepPacket], times: int = 2) -> list[HepPacket]:
    """Every message mirrored so many times."""
    return [packet for packet in packets for _ in range(times)]


def moved(packets: list[HepPacket], offset: timedelta) -> list[HepPacket]:
    """The same messages at another time."""
    return [replace(packet, at=packet.at + offset) for packet in packets if packet.at is not None]
