"""Recordings of a real Asterisk's manager interface, replayed into a watch: whole, in pieces, and cut by a lost connection."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.call_watching import Ledger

from toque.calls.ami_names import SwitchRules
from toque.calls.ami_watch import AmiWatch
from toque.calls.ami_wire import AmiMessage, AmiReader, parse_block
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import StatusChange
from toque.calls.tracker import Patience

ROOT = Path(__file__).parents[1]
RECORDINGS = Path(os.environ.get("TOQUE_RECORDINGS", ROOT / "recordings")) / "asterisk"
SOURCE = "pbx"


@dataclass(frozen=True, eq=False)
class Recording:
    """One scenario: its bytes, when each read came, and the truth of its calls."""

    name: str
    data: bytes
    reads: tuple[tuple[datetime, int, int], ...]  # moment, from, until
    truth: tuple[dict[str, Any], ...]

    def moment(self, offset: int) -> datetime:
        """When the byte at this offset came."""
        return next((at for at, _, until in self.reads if offset < until), self.reads[-1][0])

    def blocks(self) -> list[tuple[datetime, bytes]]:
        """The blocks after the banner, with the moment of their last byte."""
        found, start = [], self.data.index(b"\r\n") + 2
        while (end := self.data.find(b"\r\n\r\n", start)) >= 0:
            found.append((self.moment(end + 3), self.data[start:end]))
            start = end + 4
        return found


def load(folder: Path) -> Recording:
    rows = [json.loads(line) for line in (folder / "ami.times.jsonl").read_text(encoding="utf-8").splitlines()]
    reads = tuple(
        (datetime.fromtimestamp(row["t"], UTC), row["offset"], row["offset"] + row["len"]) for row in rows if row["dir"] == "in"
    )
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    return Recording(folder.name, (folder / "ami.txt").read_bytes(), reads, tuple(truth["calls"]))


def recordings() -> list[Recording]:
    return [load(path.parent) for path in sorted(RECORDINGS.glob("*/ami.txt"))]


@dataclass
class AmiWatcher:
    """An AmiWatch that is fed as time passes, and a model of the store that it tells."""

    lines: LineBook
    patience: Patience | None = None
    rules: SwitchRules | None = None
    ledger: Ledger = field(default_factory=Ledger)
    now: datetime | None = None

    def __post_init__(self) -> None:
        self.watch = AmiWatch(SOURCE, self.lines, self.patience, self.rules)

    def feed(self, message: AmiMessage, at: datetime) -> None:
        self.pass_until(at)
        self.watch.feed(message, at)
        self.ledger.append(self.watch)

    def pass_until(self, now: datetime) -> None:
        while (due := self.next_due()) is not None and due <= now:
            self.watch.tick(due)
            self.ledger.append(self.watch)
        self.now = max(now, self.now or now)

    def next_due(self) -> datetime | None:
        dues = [due for due in (self.watch.tracker.next_due(), self.watch.events.news.next_due()) if due is not None]
        return min(dues, default=None)

    def pass_time(self, span: timedelta) -> None:
        if self.now is not None:
            self.pass_until(self.now + span)
        self.ledger.append(self.watch)

    def restart(self) -> None:
        """Lose all that was not stored, and go on with what was."""
        self.ledger.append(self.watch)
        self.watch = AmiWatch(SOURCE, self.lines, self.patience, self.rules)
        for state in self.ledger.states.values():
            assert self.now is not None
            self.watch.restore(state, self.now)

    def resync(self, listed: Sequence[AmiMessage], at: datetime, *, is_gap: bool = True) -> None:
        """The client asks for the channels, after it has connected again or, without a gap, because it is time to."""
        self.watch.begin_resync(is_gap=is_gap)
        for message in listed:
            self.feed(message, at)
        self.feed(event("CoreShowChannelsComplete", ListItems=str(len(listed))), at)


def event(name: str, **fields: str) -> AmiMessage:
    return AmiMessage(name, {"event": name} | {key.lower(): value for key, value in fields.items()})


@dataclass
class ChannelList:
    """What CoreShowChannels would answer, derived from the events so far."""

    channels: dict[str, dict[str, str]] = field(default_factory=dict)
    made_at: dict[str, datetime] = field(default_factory=dict)

    _KEPT = (
        "channel", "channelstate", "calleridnum", "connectedlinenum", "accountcode", "context", "exten", "uniqueid", "linkedid",
    )  # fmt: skip

    def follow(self, message: AmiMessage, at: datetime) -> None:
        for prefix in ("", "dest", "target", "transferer", "transferee"):
            uid = message.fields.get(prefix + "uniqueid", "")
            if uid in self.channels or (uid and message.event == "Newchannel"):
                channel = self.channels.setdefault(uid, {})
                self.made_at.setdefault(uid, at)
                channel |= {key: value for key in self._KEPT if (value := message.fields.get(prefix + key)) is not None}
                if prefix == "dest" and message.event == "DialBegin":
                    channel["application"] = "AppDial" if "uniqueid" in message.fields else "AppDial2"
        uid = message.fields.get("uniqueid", "")
        if message.event == "BridgeEnter":
            self.channels[uid]["bridgeid"] = message.fields["bridgeuniqueid"]
        elif message.event == "BridgeLeave" and uid in self.channels:
            if self.channels[uid].get("bridgeid") == message.fields["bridgeuniqueid"]:
                self.channels[uid]["bridgeid"] = ""
        elif message.event == "Hangup":
            self.channels.pop(uid, None)
        elif message.event == "Rename" and uid in self.channels:
            self.channels[uid]["channel"] = message.fields["newname"]

    def answer(self, at: datetime) -> list[AmiMessage]:
        return [
            event("CoreShowChannel", **channel, duration=_clock(at - self.made_at[uid])) for uid, channel in self.channels.items()
        ]


def _clock(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


# What needs more rights than are asked for (`dialplan`), is switched on apart, or says nothing of calls.
_NOT_SENT = {"CEL", "VarSet", "Newexten", "DeviceStateChange", "QueueMemberStatus", "RTCPSent", "Cdr", "MusicOnHoldStart"}


@lru_cache(maxsize=256)
def messages(recording: Recording) -> list[tuple[datetime, AmiMessage]]:
    """The messages that a manager user with the least rights is sent, with the moments of their last bytes."""
    parsed = ((at, parse_block(block.replace(b"\r\n", b"\n"))) for at, block in recording.blocks())
    return [(at, message) for at, message in parsed if message is not None and message.event not in _NOT_SENT]


def watched(recording: Recording, lines: LineBook, *, cuts: Sequence[int] = (), rules: SwitchRules | None = None) -> AmiWatcher:
    """Read it in the pieces in which it came, and those cut at these offsets too."""
    watcher, reader = AmiWatcher(lines, rules=rules), AmiReader()
    edges = sorted({0, *cuts, *(until for _, _, until in recording.reads)})
    for start, until in pairwise(edges):
        for message in reader.feed(recording.data[start:until]):
            watcher.feed(message, recording.moment(until - 1))
    watcher.pass_time(timedelta(minutes=1))
    return watcher


# What must be told

OWNER_OF = {"made": "caller", "received": "callee", "internal": "caller"}
DIRECTION_OF = {"made": "made", "received": "received", "internal": "made"}
CANNOT_BE_SEEN = {  # refused before any channel exists: the manager interface says nothing of it
    "in_unknown_did",
    "out_no_such_extension",
}


def lines_for(truths: Sequence[dict[str, Any]]) -> LineBook:
    """The line that each call belongs to."""
    numbers = {truth[OWNER_OF[truth["direction"]]] for truth in truths}
    return LineBook.of([parse_line("acme", number, number) for number in sorted(numbers)])


def told_of(ledger: Ledger, truth: dict[str, Any]) -> Iterator[list[StatusChange]]:
    """What the owner of this call was told, for each call that is like it."""
    owned, direction = OWNER_OF[truth["direction"]], DIRECTION_OF[truth["direction"]]
    for (_, _, side), changes in ledger.told.items():
        if changes and side.owner.pin == truth[owned] and str(side.direction) == direction:
            yield changes
