"""The load: a switch whose telephones make one call each, so that what is told of a call is known by its caller's name."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.support.hep_sender import HepAgent
from tests.support.sip_messages import ProxiedCall

NUMBERS = "fone*"  # the line that all telephones belong to
DIALLED = "5511977770002"
FULL = 3000  # packets that wait at the switch, twice what is normal: on a slow machine it makes no further calls meanwhile
ENDING = 4  # a call's last packets, among them what the caller is told of its end

KINDS = {
    "answered": ["iniciou", "chamando", "atendeu", "desligou"],
    "busy": ["iniciou", "ocupado"],
    "cancelled": ["iniciou", "chamando", "cancelou"],
    "rang out": ["iniciou", "chamando", "nao_atendeu"],
}


def some_call(kind: str, name: str, chance: random.Random) -> ProxiedCall:
    """A call that begins now and takes a second or two."""
    call = ProxiedCall(name=name, caller=name, dialled=DIALLED, begins=datetime.now(UTC))
    call.invite()
    match kind:
        case "answered":
            call.ring(after=chance.uniform(0.02, 0.3))
            call.answer(after=chance.uniform(0.1, 0.5))
            call.hang_up(by=chance.choice(["caller", "callee"]), after=chance.uniform(0.1, 1.0))
        case "busy":
            call.fail(486, after=chance.uniform(0.02, 0.3))
        case "cancelled":
            call.ring(after=chance.uniform(0.02, 0.3))
            call.cancel(after=chance.uniform(0.1, 0.5))
        case "rang out":
            call.ring(after=chance.uniform(0.02, 0.3))
            call.fail(480, after=chance.uniform(0.1, 0.5))
    return call


@dataclass
class Switch:
    """Makes calls, each from a telephone of its own, and mirrors them."""

    agent: HepAgent
    chance: random.Random
    calls_a_second: float = 100.0
    kinds: dict[str, str] = field(default_factory=dict)  # by the caller's name
    packets: dict[str, int] = field(default_factory=dict)
    lives: dict[str, tuple[datetime, datetime]] = field(default_factory=dict)  # from the first packet to the last
    lasting: list[ProxiedCall] = field(default_factory=list)

    def call(self) -> None:
        """One call that begins now."""
        name, kind = self._new_name(), self.chance.choice(list(KINDS))
        self._make(some_call(kind, name, self.chance), kind)

    def begin_lasting_call(self) -> None:
        """One that is answered, and goes on until `end_lasting_calls`."""
        call = ProxiedCall(name=self._new_name(), dialled=DIALLED, begins=datetime.now(UTC))
        call.caller = call.name
        call.invite()
        call.ring(after=0.01)
        call.answer(after=0.01)
        self._make(call, "answered")
        self.lasting.append(call)

    def end_lasting_calls(self) -> None:
        """Hang up, now."""
        for call in self.lasting:
            begun = len(call.packets)
            call.hang_up(after=(datetime.now(UTC) - call.at).total_seconds())
            self.agent.add(call.name, call.packets[begun:])
            self.packets[call.name] = len(call.packets)
            self.lives[call.name] = (call.begins, call.at)

    def _new_name(self) -> str:
        return f"fone{len(self.kinds) + 1}"

    def _make(self, call: ProxiedCall, kind: str) -> None:
        self.kinds[call.name], self.packets[call.name] = kind, len(call.packets)
        self.lives[call.name] = (call.begins, call.at)
        self.agent.add(call.name, call.packets)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """So many calls a second while the block lasts, whoever listens."""
        stop = threading.Event()

        def work() -> None:
            began, made = time.monotonic(), 0
            while not stop.wait(0.02):
                while made < (time.monotonic() - began) * self.calls_a_second:
                    made += 1
                    if self.agent.waiting < FULL:
                        self.call()

        thread = threading.Thread(target=work, name="switch")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def sent_whole(self) -> set[str]:
        """The calls all of whose packets went over the connection that is up."""
        sent = self.agent.sent.get(self.agent.connection, {})
        return {name for name, packets in self.packets.copy().items() if sent.get(name) == packets}

    def ended(self) -> set[str]:
        """The calls at least whose end went over it."""
        return {name for name, packets in self.agent.sent.get(self.agent.connection, {}).copy().items() if packets >= ENDING}

    def in_progress(self, since: datetime, until: datetime) -> set[str]:
        """The calls that lived at some moment between these."""
        return {name for name, (first, last) in self.lives.copy().items() if first <= until and last >= since}

    def words(self, names: set[str]) -> dict[str, list[str]]:
        """What must be told of these calls."""
        return {name: KINDS[self.kinds[name]] for name in names}
