"""kill -9 at any moment: what the store has accepted is told, in order and at least once; the server goes on where it was.

The moments are drawn from a seed, which is printed; `TOQUE_KILL_SEED` sets it. The verdict does not depend on them.
"""

import json
import os
import random
import threading
import time
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support.hep_sender import HepAgent
from tests.support.recording_receiver import Post, RecordingReceiver, Reply, assert_signed, by_side, thanks
from tests.support.sip_messages import ProxiedCall
from tests.support.toque_process import PATIENCE_S, ProcessError, ToqueProcess

from toque.receiver import FINAL_STATUSES

pytestmark = pytest.mark.slow

KILLS_EACH = 25  # while taking in, and again while sending out
CALLS_A_SECOND = 100
FULL = 3000  # packets that wait at the switch, twice what is normal: on a slow machine it makes no further calls meanwhile
BACKLOG_CALLS = 500
LASTING_CALLS = 20  # answered before the first kill, hung up after the last one that hits the taking in
EARLY = 0.25  # of the kills hit a server that is still starting
LONGEST_START_S, LONGEST_LIFE_S = 0.9, 0.6  # how long a server may live that is killed early, or once it is ready
SLOW_S = 0.08  # ten posts at once to each of two URLs: 250 a second
ENDING = 4  # a call's last packets, among them what the caller is told of its end

TAKING_IN, SENDING_OUT = "taking in", "sending out"
ONE, OTHER = "/one", "/other"
DIALLED = "5511977770002"

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
    kinds: dict[str, str] = field(default_factory=dict)  # by the caller's name
    packets: dict[str, int] = field(default_factory=dict)
    lasting: list[ProxiedCall] = field(default_factory=list)

    def call(self) -> None:
        name, kind = self._new_name(), self.chance.choice(list(KINDS))
        self._make(some_call(kind, name, self.chance), kind)

    def begin_lasting_call(self) -> None:
        call = ProxiedCall(name=self._new_name(), dialled=DIALLED, begins=datetime.now(UTC))
        call.caller = call.name
        call.invite()
        call.ring(after=0.01)
        call.answer(after=0.01)
        self._make(call, "answered")
        self.lasting.append(call)

    def end_lasting_calls(self) -> None:
        for call in self.lasting:
            begun = len(call.packets)
            call.hang_up(after=(datetime.now(UTC) - call.at).total_seconds())
            self.agent.add(call.name, call.packets[begun:])
            self.packets[call.name] = len(call.packets)

    def _new_name(self) -> str:
        return f"fone{len(self.kinds) + 1}"

    def _make(self, call: ProxiedCall, kind: str) -> None:
        self.kinds[call.name], self.packets[call.name] = kind, len(call.packets)
        self.agent.add(call.name, call.packets)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """So many calls a second while the block lasts, whoever listens."""
        stop = threading.Event()

        def work() -> None:
            began, made = time.monotonic(), 0
            while not stop.wait(0.02):
                while made < (time.monotonic() - began) * CALLS_A_SECOND:
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
        sent = self.agent.sent[self.agent.connection]
        return {name for name, packets in self.packets.items() if sent.get(name) == packets}

    def ended(self) -> set[str]:
        """The calls at least whose end went over it."""
        return {name for name, packets in self.agent.sent[self.agent.connection].items() if packets >= ENDING}


@dataclass(frozen=True)
class Kill:
    """One of the fifty."""

    phase: str
    at: float
    was_ready: bool
    lived_s: float
    waiting: int  # deliveries in the store
    events: int


@dataclass
class Killer:
    """Ends servers at random moments, and starts the next one at once."""

    toque: ToqueProcess
    receiver: RecordingReceiver
    chance: random.Random
    kills: list[Kill] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def kill(self, phase: str) -> None:
        waits_for_ready = self.chance.random() >= EARLY
        if waits_for_ready:
            self.toque.wait_ready()
            ready = time.monotonic()
            time.sleep(self.chance.uniform(0, LONGEST_LIFE_S))
            lived_s = time.monotonic() - ready
        else:
            time.sleep(max(0.0, self.started + self.chance.uniform(0, LONGEST_START_S) - time.monotonic()))
            lived_s = time.monotonic() - self.started
        self.toque.kill()
        at, last_ones = time.monotonic(), self.receiver.connections
        self.toque.start()
        self.started = time.monotonic()
        self.receiver.wait_until_closed(last_ones)  # nothing of the dead one's comes after the new one's
        [(events,)] = self.toque.rows("SELECT count(*) FROM events")
        self.kills.append(Kill(phase, at, waits_for_ready, lived_s, self.toque.waiting(), events))


@dataclass(frozen=True)
class Aftermath:
    """What the store holds and what was posted, when all was over."""

    events: list[dict[str, Any]]
    posts: list[Post]
    kills: list[Kill]
    kinds: dict[str, str]
    whole: set[str]  # calls that no kill touched, by their callers
    ended: set[str]  # calls whose end no kill touched
    deliveries: dict[str, int]
    secrets: dict[str, str]


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    """All the kills, and then peace until nothing waits any more."""
    seed = int(os.environ.get("TOQUE_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"TOQUE_KILL_SEED={seed}")
    chance = random.Random(seed)
    with RecordingReceiver() as receiver, ToqueProcess(tmp_path_factory.mktemp("toque"), log_level="warning") as toque:
        api = toque.add_client("Escritório", fones=["fone*"]).api()
        secrets = {path: api.add_callback(receiver.url(path)).secret or "" for path in (ONE, OTHER)}
        killer = Killer(toque, receiver, random.Random(chance.random()))
        with HepAgent(toque.hep_port) as agent:
            switch = Switch(agent, random.Random(chance.random()))
            receiver.behave(refusing_some())
            for _ in range(LASTING_CALLS):
                switch.begin_lasting_call()
            toque.wait_until(lambda: len(told_by(toque)) == LASTING_CALLS * 3, "calls are not answered")
            with switch.calling():
                for _ in range(KILLS_EACH):
                    agent.keeps = killer.chance.random() < 0.5
                    killer.kill(TAKING_IN)
                toque.wait_ready()
            receiver.behave(out_of_order)
            switch.end_lasting_calls()
            for _ in range(BACKLOG_CALLS):
                switch.call()
            wait_until_taken_in(toque, switch)
            whole, ended = switch.sent_whole(), switch.ended()
        receiver.behave(lambda _: Reply(after_s=SLOW_S))
        for _ in range(KILLS_EACH):
            killer.kill(SENDING_OUT)
        toque.wait_ready()
        receiver.behave(thanks)
        toque.wait_until(lambda: toque.waiting() == 0, "deliveries go on waiting", timeout_s=3 * PATIENCE_S)
        assert toque.terminate() == 0
        posts, deliveries = receiver.posts, dict(toque.rows("SELECT state, count(*) FROM deliveries GROUP BY state"))
        return Aftermath(told_by(toque), posts, killer.kills, switch.kinds, whole, ended, deliveries, secrets)


def refusing_some() -> Callable[[Post], Reply]:
    """One URL takes everything, the other one refuses one event in sixteen the first time."""
    refused: set[str] = set()

    def answer(post: Post) -> Reply:
        if post.path == ONE or post.id[0] != "0" or post.id in refused:
            return Reply()
        refused.add(post.id)
        return Reply(500)

    return answer


def out_of_order(post: Post) -> Reply:
    """One URL fails, the other one asks to be left alone for a while."""
    return Reply(500) if post.path == ONE else Reply(503, headers={"Retry-After": "1"})


def wait_until_taken_in(toque: ToqueProcess, switch: Switch) -> None:
    """Until the server has understood all that this connection brought, and the store has it."""
    agent = switch.agent
    toque.wait_until(lambda: agent.waiting == 0, "the switch does not get rid of its packets")
    sent = sum(agent.sent[agent.connection].values())
    toque.wait_until(lambda: toque.health()["hep_packets"] >= sent, "packets are missing")
    whole, ended = switch.sent_whole(), switch.ended()

    def is_so() -> bool:
        told = by_caller(told_by(toque))
        is_whole = all(len(told[name]) == len(KINDS[switch.kinds[name]]) for name in whole)
        return is_whole and all(told[name][-1]["status"] in FINAL_STATUSES for name in ended if told[name])

    with suppress(ProcessError):  # the tests say what is missing
        toque.wait_until(is_so, "statuses are missing", timeout_s=PATIENCE_S / 3)


def told_by(toque: ToqueProcess) -> list[dict[str, Any]]:
    """The events in the store in the order of acceptance: what each tells."""
    return [json.loads(payload) for (payload,) in toque.rows("SELECT payload FROM events ORDER BY seq")]


def by_caller(events: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Every telephone makes one call, and one client hears of it as its caller: these are the sides."""
    sides: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        sides[event["origem"]].append(event)
    return sides


def test_there_were_enough_kills_and_each_in_the_middle_of_something(aftermath: Aftermath) -> None:
    phases = Counter(kill.phase for kill in aftermath.kills)
    assert phases == {TAKING_IN: KILLS_EACH, SENDING_OUT: KILLS_EACH}
    assert phases.total() >= 50
    assert all(kill.waiting for kill in aftermath.kills if kill.phase == SENDING_OUT)
    assert len(aftermath.whole) >= BACKLOG_CALLS


def test_every_event_was_delivered_to_every_url(aftermath: Aftermath) -> None:
    ids = {event["id"] for event in aftermath.events}
    assert len(ids) == len(aftermath.events)
    for path in (ONE, OTHER):
        assert {post.id for post in aftermath.posts if post.path == path and post.status == 204} == ids
        assert {post.id for post in aftermath.posts if post.path == path} == ids
    assert aftermath.deliveries == {"delivered": 2 * len(ids)}


def test_each_side_is_told_in_order_and_repetitions_repeat_the_latest(aftermath: Aftermath) -> None:
    for side, posts in by_side(aftermath.posts).items():
        latest = 0
        for post in posts:
            assert post.data["sequencia"] in (latest, latest + 1), (side, [post.data["sequencia"] for post in posts])
            latest = post.data["sequencia"]
        assert latest > 0


def test_what_was_posted_is_what_was_stored_however_often(aftermath: Aftermath) -> None:
    stored = {event["id"]: event for event in aftermath.events}
    assert all(post.data == stored[post.id] and post.headers["webhook-id"] == post.id for post in aftermath.posts)
    for path, secret in aftermath.secrets.items():
        assert_signed((post for post in aftermath.posts if post.path == path), secret)


def test_each_side_is_numbered_without_gaps_and_has_at_most_one_end(aftermath: Aftermath) -> None:
    for events in by_caller(aftermath.events).values():
        told = [event["status"] for event in events]
        assert [event["sequencia"] for event in events] == list(range(1, len(events) + 1))
        assert len({event["callerid"] for event in events}) == 1
        assert len(set(told)) == len(told)
        assert not any(word in FINAL_STATUSES for word in told[:-1])


def test_calls_that_no_kill_touched_are_told_whole(aftermath: Aftermath) -> None:
    told = by_caller(aftermath.events)
    for name in aftermath.whole:
        assert [event["status"] for event in told[name]] == KINDS[aftermath.kinds[name]]


def test_a_call_that_began_before_a_kill_and_ended_after_it_has_its_end(aftermath: Aftermath) -> None:
    told = by_caller(aftermath.events)
    begun_before = [name for name in aftermath.ended - aftermath.whole if told[name]]
    assert len(begun_before) >= LASTING_CALLS
    for name in begun_before:
        assert told[name][-1]["status"] in FINAL_STATUSES


def test_a_call_that_outlasts_all_kills_is_told_as_if_nothing_had_happened(aftermath: Aftermath) -> None:
    told = by_caller(aftermath.events)
    for name in list(aftermath.kinds)[:LASTING_CALLS]:
        *_, answer, end = told[name]
        assert [event["status"] for event in told[name]] == KINDS["answered"]
        assert (end["atendimento"], end["atendido_por"], end["desligado_por"]) == (answer["atendimento"], DIALLED, "origem")
        lasted = datetime.fromisoformat(end["momento"]) - datetime.fromisoformat(answer["momento"])
        assert lasted > timedelta(seconds=KILLS_EACH * 0.2)
        assert abs(lasted - span(end["duracao"])) <= timedelta(seconds=1)
        assert end["inferido"] is False


def span(told: str) -> timedelta:
    hours, minutes, seconds = map(int, told.split(":"))
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def test_repetitions_are_counted(aftermath: Aftermath) -> None:
    """Not a promise but a measure: how often a kill made the server post again what a receiver had already taken."""
    taken: set[tuple[str, str]] = set()
    repeated: Counter[int] = Counter()
    moments = [kill.at for kill in aftermath.kills]
    for post in aftermath.posts:
        if (post.path, post.id) in taken:
            repeated[bisect(moments, post.at) - 1] += 1
        elif post.status in (204, None):
            taken.add((post.path, post.id))
    assert -1 not in repeated  # none before the first kill
    print(f"\n{len(aftermath.kinds)} calls, {len(aftermath.whole)} of them untouched; {len(aftermath.events)} events")
    header = ("phase", "kills", "starting", "ready for", "events", "waiting", "posts", "repeated", "at most")
    print("{:12}{:>6}{:>10}{:>16}{:>8}{:>14}{:>8}{:>10}{:>9}".format(*header))
    for phase in (TAKING_IN, SENDING_OUT):
        kills = [(number, kill) for number, kill in enumerate(aftermath.kills) if kill.phase == phase]
        lives = [kill.lived_s for _, kill in kills if kill.was_ready]
        waiting = [kill.waiting for _, kill in kills]
        until = moments[kills[-1][0] + 1] if kills[-1][0] + 1 < len(moments) else float("inf")
        posts = sum(moments[kills[0][0]] <= post.at < until for post in aftermath.posts)
        print(
            f"{phase:12}{len(kills):6}{sum(not kill.was_ready for _, kill in kills):10}"
            f"{f'{min(lives):.2f}..{max(lives):.2f} s':>16}{kills[-1][1].events:8}{f'{min(waiting)}..{max(waiting)}':>14}"
            f"{posts:8}{sum(repeated[number] for number, _ in kills):10}{max(repeated[number] for number, _ in kills):9}"
        )
