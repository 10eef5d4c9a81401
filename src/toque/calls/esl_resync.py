"""Coming back to a FreeSWITCH after its events were not heard for a while: what is still alive, and what was missed.

Nothing is concluded from a list alone: the switch writes it late. Each channel in doubt is asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from toque.calls.esl_calls import Channel, Ending
from toque.calls.esl_event import EslEvent
from toque.calls.esl_events import EslEvents
from toque.calls.esl_parties import Parties
from toque.calls.model import Signal, SignalKind

_ENDS = ("CHANNEL_HANGUP_COMPLETE", "CHANNEL_DESTROY")
_LAST_WORDS = ("CHANNEL_HANGUP", *_ENDS)
_BEGINNINGS = ("CHANNEL_CREATE", "CHANNEL_ORIGINATE")
_RINGS = ("CHANNEL_PROGRESS", "CHANNEL_PROGRESS_MEDIA")
_MAX_ENDED = 100_000
_RINGING = (SignalKind.RINGING, SignalKind.CALLER_RINGS)


class EslReader(EslEvents):
    """Reads events, and catches up with a switch that was not listened to."""

    def __init__(self, source: str, parties: Parties | None = None) -> None:
        super().__init__(source, parties)
        self._doubted: set[str] = set()  # channels of which nothing was heard since `doubt`
        self._is_gap = True  # events may have been missed
        self._ended_since: set[str] | None = None  # channels that ended since `doubt`, while the switch is asked

    def read(self, event: EslEvent) -> Sequence[Signal]:
        """The signals that one event gives; most give none or one."""
        if self._ended_since is not None:
            self._dispel(event)
        return super().read(event)

    def doubt(self, *, is_gap: bool = True) -> None:
        """What is remembered may be gone: the connection was lost, or (no gap) it is time to make sure."""
        self._is_gap, self._ended_since = is_gap, set()
        alive = {channel.uuid for call in self.calls.going_on() for channel in call.channels.values() if channel.end is None}
        self._doubted = alive | set(self._held)
        if is_gap:  # at once: a call may end before `catch_up`
            self._note_gap()

    def _note_gap(self) -> None:
        for call in self.calls.going_on():
            call.has_gap = True

    def _dispel(self, event: EslEvent) -> None:
        """While the switch is asked: an event makes its channel sure, and tells of it what a dump would."""
        if event.name in _ENDS and self._ended_since is not None and len(self._ended_since) < _MAX_ENDED:
            self._ended_since.add(event.uuid)
        if not event.is_whole:
            return
        is_first = event.uuid in self._doubted or not self._is_known(event.uuid)
        self._doubted.discard(event.uuid)
        if self._is_gap and is_first and event.name not in _BEGINNINGS:
            self._live(event)
            self._learn_by(event)

    def _is_known(self, uuid: str) -> bool:
        return uuid in self.calls or uuid in self._held

    def _learn_by(self, event: EslEvent) -> None:
        """The first event after a gap: what it tells of was missed, but for what it is about itself."""
        if not self._is_known(event.uuid):
            if event.name in _LAST_WORDS:
                return  # it came and went
            self._appeared(event)
            self._note_gap()
        if event.name not in _RINGS:
            self._learn_ringing(event)
        if event.name != "CHANNEL_ANSWER":
            self._learn_answer(event)
        self._learn_bridge(event, self._is_alive)

    def _is_unanswered(self, channel: Channel) -> bool:
        return channel.uuid not in self._doubted and super()._is_unanswered(channel)

    def _is_alive(self, uuid: str) -> bool:
        return any(call.channels[uuid].end is None for call in self.calls.of(uuid))

    def to_ask(self, listed: Iterable[str]) -> list[str]:
        """Of which channels a dump is wanted, by the switch's list: those that are new to us, and all in doubt."""
        new = [uuid for uuid in listed if uuid not in self.calls and uuid not in self._held]
        return list(dict.fromkeys([*new, *sorted(self._doubted)]))

    def catch_up(self, dumps: Iterable[EslEvent], at: datetime) -> Sequence[Signal]:
        """The signals that follow from what the living channels say; of the others in doubt, the end was missed at `at`."""
        ended, self._ended_since = self._ended_since or set(), None
        alive = sorted((dump for dump in dumps if dump.uuid not in ended), key=_by_age)
        for dump in alive:
            self._live(dump)
        known, uuids = set(self.calls.calls), {dump.uuid for dump in alive}
        stale = {uuid for uuid in uuids if self._is_known(uuid) and uuid not in self._doubted}  # its events said more since
        self._place_all(alive)
        for dump in alive:
            if dump.uuid not in stale:
                self._learn_missed(dump, uuids, known)
        if self._is_gap:
            self._note_gap()
        said = self._with_beginnings(known, self._speech.take())
        never_seen = {call.root for call in self.calls.going_on() if call.is_stub}
        self._miss(sorted((self._doubted | never_seen) - uuids), at)
        self._doubted = set()
        return [*said, *self._speech.take()]

    def _place_all(self, dumps: Sequence[EslEvent]) -> None:
        """Callers first, then legs, then the legs of those; a leg whose caller is gone begins nothing."""
        waiting = list(dumps)
        while waiting:
            later: list[EslEvent] = []
            for dump in waiting:
                if dump.originator and dump.originator not in self.calls:
                    later.append(dump)
                else:
                    self._appeared(dump)
            if len(later) == len(waiting):
                return
            waiting = later

    def _learn_missed(self, dump: EslEvent, alive: set[str], known: set[str]) -> None:
        self._learn_ringing(dump)
        self._learn_answer(dump)
        for call in self.calls.of(dump.uuid):
            self._speech.say(call, SignalKind.SEEN, dump.at)
        self._learn_bridge(dump, alive.__contains__)
        for call in self.calls.of(dump.uuid):
            is_alone = not any(channel.is_called for channel in call.living() if channel.uuid != call.root)
            if call.root == dump.uuid and is_alone and (self._is_gap or call.key not in known):
                call.has_gap = True
                self._note_missed_answer(call, dump)

    def _learn_ringing(self, event: EslEvent) -> None:
        if event.rang_at is not None:
            self._ring(event, event.rang_at)
            self._caller_heard_ringing(event)

    def _learn_answer(self, event: EslEvent) -> None:
        if event.is_answered:
            self._answer(event, event.moment("Caller-Channel-Answered-Time") or event.at)

    def _learn_bridge(self, dump: EslEvent, is_alive: Callable[[str], bool]) -> None:
        bond = next((uuid for uuid in (dump.variable("signal_bond"), dump.text("Other-Leg-Unique-ID")) if is_alive(uuid)), "")
        if bond not in self.calls or dump.moment("Caller-Channel-Bridged-Time") is None:
            return
        if any(call.channels[dump.uuid].peer != bond for call in self.calls.at_home(dump.uuid)):
            pair = {"Bridge-A-Unique-ID": dump.uuid, "Bridge-B-Unique-ID": bond}
            self._bridged(EslEvent({**dump.fields, **pair}, dump.received_at))

    def _with_beginnings(self, known: set[str], said: Sequence[Signal]) -> list[Signal]:
        """Calls that are new to us are told from where they are: that they began, or that it rings, or that it was answered."""
        ringing = {signal.identity.key for signal in said if signal.kind in _RINGING}
        new = [call for call in self.calls.going_on() if call.key not in known]
        answered = {call.key for call in new if call.is_answered}
        for call in new:
            if call.key not in ringing and call.key not in answered:
                self._speech.say(call, SignalKind.BEGAN, call.began_at)
        told = [signal for signal in said if signal.identity.key not in answered or signal.kind not in _RINGING]
        return [*self._speech.take(), *told]

    def _miss(self, gone: Sequence[str], at: datetime) -> None:
        """Channels ended while nobody listened."""
        for uuid in gone:
            self._held.pop(uuid, None)
            for call in self.calls.of(uuid):
                channel = call.channels[uuid]
                if channel.end is None:
                    channel.end = Ending(at=at, is_seen=False)
                    if uuid != call.root:
                        self._speech.leg_ended(call, channel, at, None)
        for uuid in gone:
            self._settle(uuid)


def _by_age(dump: EslEvent) -> tuple[datetime, bool]:
    return dump.created_at, dump.is_called
