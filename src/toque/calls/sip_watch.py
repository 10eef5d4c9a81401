"""One HEP source's calls: packets in, status changes out. Pure; `sources/hep.py` does the listening."""

from __future__ import annotations

from datetime import datetime
from functools import partial

from toque.calls.hep_packet import SIP, HepPacket
from toque.calls.lines import LineBook
from toque.calls.sip import parse_sip
from toque.calls.sip_dialogs import SipDialogs
from toque.calls.sip_kinship import kinship
from toque.calls.sip_legs import SipLegs
from toque.calls.tracked import Tracked
from toque.calls.tracker import CallTracker, Patience


class SipWatch(Tracked):
    """Dialogs and tracker of one source, which live and are forgotten together."""

    def __init__(self, source: str, lines: LineBook, patience: Patience | None = None) -> None:
        tracker = CallTracker(lines, patience)
        self.dialogs = SipDialogs(source)
        self.legs = SipLegs(source, self.dialogs, partial(kinship, tracker))
        super().__init__(source, tracker, self.legs)

    def feed(self, packet: HepPacket, now: datetime) -> None:
        """Take one packet that arrived at `now`. Raises `SipError` for a payload that should be SIP and is not."""
        if packet.protocol != SIP or not packet.payload.strip():
            return  # RTCP, logs and the like, or a keep-alive
        message = parse_sip(packet.payload)
        at = packet.at or now
        for signal in self.legs.read(message, at, packet.source, packet.destination):
            self.tracker.feed(signal, now)
            if signal.identity not in self.tracker.calls:
                self.legs.forget(signal.identity)
