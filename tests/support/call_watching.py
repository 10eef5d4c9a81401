"""What a client is told of packets: a SipWatch with its clock moved by hand, and a model of the store that it tells."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tests.support.sip_messages import CALLER, DIALLED

from toque.calls.hep_packet import HepPacket
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import CallFacts, CallIdentity, Side, Status, StatusChange
from toque.calls.sip_watch import SipWatch
from toque.calls.tracker import Patience

SOURCE = "proxy"
LINES = LineBook.of([parse_line("acme", "vendas", CALLER), parse_line("zeta", "suporte", DIALLED)])
ARRIVAL = timedelta(microseconds=300)  # from the switch to us
_PROGRESS = {Status.INITIATED: 1, Status.RINGING: 2, Status.ANSWERED: 3}


@dataclass
class Ledger:
    """What every store promises of changes (see `Store.append`): a status once per side, in order, nothing after the end."""

    told: dict[tuple[CallIdentity, int, Side], list[StatusChange]] = field(default_factory=dict)
    generation: dict[CallIdentity, int] = field(default_factory=dict)
    ended_at: dict[CallIdentity, datetime] = field(default_factory=dict)
    states: dict[CallIdentity, bytes] = field(default_factory=dict)
    refused: list[StatusChange] = field(default_factory=list)  # what the store had to leave out

    def append(self, watch: SipWatch) -> None:
        """Accept what the watch has to say."""
        changes, snapshots = watch.take()
        ended = dict(self.ended_at)
        for change in changes:
            self._accept(change, ended)
        for snapshot in snapshots:
            if snapshot.state is None:
                self.states.pop(snapshot.identity, None)
            else:
                self.states[snapshot.identity] = snapshot.state

    def _accept(self, change: StatusChange, ended: dict[CallIdentity, datetime]) -> None:
        identity, began_at = change.identity, change.facts.began_at
        end = self.ended_at.get(identity)
        if end is not None and began_at is not None and began_at > end:
            self.generation[identity] = self.generation.get(identity, 0) + 1
            del self.ended_at[identity]
            ended.pop(identity, None)
        key = (identity, self.generation.get(identity, 0), change.side)
        so_far = self.told.setdefault(key, []) if identity not in ended else []
        order = _PROGRESS.get(change.status, 4)
        if identity in ended or any(_PROGRESS.get(earlier.status, 4) >= order for earlier in so_far):
            self.refused.append(change)
            return
        so_far.append(change)
        if change.status.is_final:
            self.ended_at[identity] = change.at

    def words(self, client_id: str | None = None) -> list[list[str]]:
        """The statuses of each side, in the order in which the sides began."""
        return [
            [str(change.status) for change in changes]
            for (_, _, side), changes in self.told.items()
            if changes and client_id in (None, side.owner.client_id)
        ]

    def last(self) -> StatusChange:
        """The change that was told last."""
        return max((changes[-1] for changes in self.told.values() if changes), key=lambda change: change.at)

    def facts(self) -> CallFacts:
        """What was known at the end."""
        return self.last().facts


class Watcher:
    """A SipWatch that is fed packets as they arrive, and asked for what is due as time passes."""

    def __init__(self, lines: LineBook = LINES, patience: Patience | None = None) -> None:
        self.lines, self.patience = lines, patience
        self.watch = SipWatch(SOURCE, lines, patience)
        self.ledger = Ledger()
        self.now: datetime | None = None

    def feed(self, packet: HepPacket, now: datetime | None = None) -> None:
        """Take one packet at the moment of its arrival."""
        assert packet.at is not None
        self.pass_until(now or packet.at + ARRIVAL)
        assert self.now is not None
        self.watch.feed(packet, self.now)

    def feed_all(self, packets: Iterable[HepPacket]) -> None:
        for packet in packets:
            self.feed(packet)

    def pass_until(self, now: datetime) -> None:
        """Let time pass, doing what is due when it is due."""
        while (due := self.watch.tracker.next_due()) is not None and due <= now:
            self.watch.tick(due)
            self.ledger.append(self.watch)
        self.now = max(now, self.now or now)

    def pass_time(self, span: timedelta) -> None:
        assert self.now is not None
        self.pass_until(self.now + span)
        self.ledger.append(self.watch)

    def restart(self) -> None:
        """Lose all that was not stored, and go on with what was."""
        self.ledger.append(self.watch)
        self.watch = SipWatch(SOURCE, self.lines, self.patience)
        assert self.now is not None
        for state in self.ledger.states.values():
            self.watch.restore(state, self.now)


def told(
    packets: Sequence[HepPacket],
    *,
    lines: LineBook = LINES,
    patience: Patience | None = None,
    restart_after: int | None = None,
    wait: timedelta = timedelta(minutes=1),
) -> Ledger:
    """What is told of packets that arrive in this order; with a restart after so many of them."""
    watcher = Watcher(lines, patience)
    for number, packet in enumerate(packets, start=1):
        watcher.feed(packet)
        watcher.ledger.append(watcher.watch)
        if number == restart_after:
            watcher.restart()
    watcher.pass_time(wait)
    return watcher.ledger
