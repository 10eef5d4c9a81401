"""What clients are told of a FreeSWITCH's events: an EslWatch with its clock moved by hand, and a switch that can be asked.

The switch's answers (which channels are alive, and what each says) are made from the events that it sent.
"""

import gzip
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.call_watching import ARRIVAL, Ledger

from toque.calls.esl_watch import EslWatch
from toque.calls.esl_wire import EVENT_JSON, EslParser, parse_object
from toque.calls.lines import LineBook, parse_line
from toque.calls.tracker import Patience

SOURCE = "fs1"
TRUNKS = ("sofia/external/*",)
LINES = LineBook.of([parse_line("acme", "ramais", "~100[1-5]"), parse_line("zeta", "ddr", "5541306003*")])
Event = dict[str, Any]
_GONE = ("CHANNEL_HANGUP_COMPLETE", "CHANNEL_DESTROY")


def recorded_bytes(folder: Path) -> bytes:
    """What one connection brought."""
    plain = folder / "esl.json.raw"
    return plain.read_bytes() if plain.exists() else gzip.decompress((folder / "esl.json.raw.gz").read_bytes())


def events_of(data: bytes) -> list[Event]:
    parser = EslParser()
    parser.receive(data)
    events = []
    while (frame := parser.next_frame()) is not None:
        if frame.kind == EVENT_JSON:
            events.append(parse_object(frame.body))
    return events


def moment_of(event: Event) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(event["Event-Date-Timestamp"]))


class Switch:
    """Which channels are alive, and what they would say, by the events so far."""

    def __init__(self) -> None:
        self.channels: dict[str, Event] = {}
        self.core = None

    def note(self, event: Event) -> None:
        if event.get("Core-UUID") != self.core:
            self.core = event.get("Core-UUID")
            self.channels.clear()
        uuid = event.get("Unique-ID")
        if not uuid:
            return
        if event["Event-Name"] in _GONE:
            self.channels.pop(uuid, None)
        elif "variable_uuid" in event:
            self.channels[uuid] = event
        elif uuid in self.channels:
            self.channels[uuid] = {**self.channels[uuid], **event}

    def dump(self, uuid: str, at: datetime) -> Event | None:
        """What `uuid_dump` gives."""
        stamp = str(int((at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)))
        known = self.channels.get(uuid)
        return None if known is None else {**known, "Event-Name": "CHANNEL_DATA", "Event-Date-Timestamp": stamp}


class EslWatcher:
    """An EslWatch that is fed events as they arrive, and asked for what is due as time passes."""

    def __init__(self, lines: LineBook = LINES, patience: Patience | None = None, trunks: Sequence[str] = TRUNKS) -> None:
        self.lines, self.patience, self.trunks = lines, patience, trunks
        self.watch = self._new()
        self.ledger = Ledger()
        self.switch = Switch()
        self.parser = EslParser()
        self.now: datetime | None = None

    def _new(self) -> EslWatch:
        return EslWatch(SOURCE, self.lines, self.patience, trunks=self.trunks)

    def receive(self, data: bytes) -> None:
        """Take bytes from the connection."""
        self.parser.receive(data)
        while (frame := self.parser.next_frame()) is not None:
            if frame.kind == EVENT_JSON:
                self.feed(parse_object(frame.body))

    def feed(self, event: Event) -> None:
        self.pass_until(moment_of(event) + ARRIVAL)
        self.switch.note(event)
        self.watch.feed(event, self.now)
        self.ledger.append(self.watch)

    def feed_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self.feed(event)

    def miss(self, event: Event) -> None:
        """The switch sends an event while nobody listens."""
        self.pass_until(moment_of(event) + ARRIVAL)
        self.switch.note(event)

    def reconnect(self, *, is_gap: bool = True) -> None:
        """A new connection, or a check: ask what is alive."""
        self.watch.doubt(is_gap=is_gap)
        asked = self.watch.to_ask(self.switch.channels)
        dumps = [self.switch.dump(uuid, self.now) for uuid in asked]
        self.watch.resync([dump for dump in dumps if dump is not None], self.now)
        self.ledger.append(self.watch)

    def forget(self) -> None:
        """Lose all that was not stored, and go on with what was."""
        self.ledger.append(self.watch)
        self.watch = self._new()
        for state in self.ledger.states.values():
            self.watch.restore(state, self.now)

    def restart(self) -> None:
        """The same, and ask what is alive."""
        self.forget()
        self.reconnect()

    def pass_until(self, now: datetime) -> None:
        """Let time pass, doing what is due when it is due."""
        while (due := self.watch.next_due()) is not None and due <= now:
            self.watch.tick(due)
            self.ledger.append(self.watch)
        self.now = max(now, self.now or now)

    def pass_time(self, span: timedelta) -> None:
        self.pass_until(self.now + span)
        self.ledger.append(self.watch)
