"""One HEP source's calls: packets in, status changes out. Pure; `sources/hep.py` does the listening."""

from __future__ import annotations

from datetime import datetime

import msgspec

from toque.calls.call import Call
from toque.calls.hep_packet import SIP, HepPacket
from toque.calls.lines import LineBook
from toque.calls.model import CallIdentity, SignalKind, Snapshot, StatusChange
from toque.calls.sip import parse_sip
from toque.calls.sip_dialogs import SipDialogs
from toque.calls.tracker import CallTracker, Patience


class SipWatch:
    """Dialogs and tracker of one source, which live and are forgotten together."""

    def __init__(self, source: str, lines: LineBook, patience: Patience | None = None) -> None:
        self.source = source
        self.dialogs = SipDialogs(source)
        self.tracker = CallTracker(lines, patience)

    def feed(self, packet: HepPacket, now: datetime) -> None:
        """Take one packet that arrived at `now`. Raises `SipError` for a payload that should be SIP and is not."""
        if packet.protocol != SIP or not packet.payload.strip():
            return  # RTCP, logs and the like, or a keep-alive
        message = parse_sip(packet.payload)
        at = packet.at or now
        for signal in self.dialogs.read(message, at, packet.source, packet.destination):
            self.tracker.feed(signal, now)
            if signal.identity not in self.tracker.calls:
                self.dialogs.forget(signal.identity)

    def tick(self, now: datetime) -> None:
        """Do what has become due."""
        for identity in self.tracker.tick(now):
            self.dialogs.forget(identity)

    def take(self) -> tuple[list[StatusChange], list[Snapshot]]:
        """The changes since the last call, and the state of the calls they touched."""
        for call in self.tracker.touched():
            call.reader = self.dialogs.export(call.identity)
        return self.tracker.take()

    def waiting(self) -> int:
        """How many changes `take` would give."""
        return self.tracker.waiting()

    def take_unmatched(self) -> list[Call]:
        """The calls that ended without matching a line."""
        return self.tracker.take_unmatched()

    def take_late(self) -> dict[CallIdentity, SignalKind]:
        """The calls that showed a sign of life after their end had been concluded, and the last sign: to be logged, not told."""
        return self.tracker.take_late()

    def restore(self, state: bytes, now: datetime) -> None:
        """Go on with a call. Raises `ValueError` for bytes that are no snapshot of ours."""
        try:
            call = self.tracker.restore(state, now)
            self.dialogs.restore(call.reader)
        except msgspec.DecodeError as error:
            msg = f"a stored call cannot be read: {error}"
            raise ValueError(msg) from None
