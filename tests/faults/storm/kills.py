"""kill -9 at random moments: half of them while the server takes in, half while it works off a backlog.

What may be lost is what the dying process had not made durable: HEP has no acknowledgement. So a call counts as whole when all of
its packets went over the connection to the last server that took in. Of every other call, what anybody was told of it must reach
everybody, in order, without gaps, and with exactly one end.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.storm.scene import ALWAYS, OTHER, Outcome, Scene, opened, refused_once, wait_until
from tests.faults.storm.verdict import callers
from tests.support.recording_receiver import Post, Reply, thanks
from tests.support.toque_process import PATIENCE_S, ProcessError

from toque.receiver import FINAL_STATUSES

KILLS_A_ROUND = 50  # on one store; then the next one begins
CALLS_A_SECOND = (100, 200)
LASTING_CALLS = 20  # answered before the first kill, hung up after the last one that hits the taking in
BACKLOG_A_KILL = 20  # calls; ten posts at once, each of SLOW_S, are not through with them while a server lives
EARLY = 0.25  # of the kills hit a server that is still starting
LONGEST_START_S, LONGEST_LIFE_S = 0.9, 0.6  # how long a server may live that is killed early, or once it is ready
SLOW_S = 0.08  # ten posts at once to a URL: 125 a second
NEVER_S = 3600.0

TAKING_IN, SENDING_OUT = "kill -9 taking in", "kill -9 sending out"


@dataclass(frozen=True)
class Kill:
    """One of them."""

    phase: str
    at: float
    was_ready: bool
    lived_s: float
    accepted: int  # statuses that somebody had been told by then
    outstanding: int  # posts that were still to be made


@dataclass
class Killer:
    """Ends servers at random moments, and starts the next one at once."""

    scene: Scene
    chance: random.Random
    kills: list[Kill] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def kill(self, phase: str) -> None:
        """Once, and count it."""
        toque, receiver = self.scene.toque, self.scene.receiver
        was_ready = self.chance.random() >= EARLY
        lived_s = self._let_live(is_ready=was_ready)
        toque.kill()
        at, last_ones = time.monotonic(), receiver.connections
        toque.start()
        self.started = time.monotonic()
        receiver.wait_until_closed(last_ones)  # nothing of the dead one's comes after the new one's
        self.kills.append(Kill(phase, at, was_ready, lived_s, len(self.scene.accepted()), self.scene.outstanding()))
        self.scene.outcome.done[phase] += 1

    def _let_live(self, *, is_ready: bool) -> float:
        if not is_ready:
            time.sleep(max(0.0, self.started + self.chance.uniform(0, LONGEST_START_S) - time.monotonic()))
            return time.monotonic() - self.started
        self.scene.toque.wait_ready()
        ready = time.monotonic()
        time.sleep(self.chance.uniform(0, LONGEST_LIFE_S))
        return time.monotonic() - ready


@dataclass(frozen=True)
class Aftermath:
    """What is left of a round, when all was over."""

    posts: list[Post]
    in_peace: int  # of the posts: those before the server was told that five hours had passed
    kills: list[Kill]
    kinds: dict[str, str]
    whole: set[str]  # calls that no kill touched, by their callers
    ended: set[str]  # calls whose end no kill touched
    secrets: dict[str, str]
    outcome: Outcome


def run(folder: Path, chance: random.Random, times: int) -> Outcome:
    """So many kills, a round at a time."""
    outcome = Outcome()
    for first in range(0, times, KILLS_A_ROUND):
        try:
            outcome += play(folder / f"from-{first}", chance, min(KILLS_A_ROUND, times - first)).outcome
        except ProcessError as error:  # the other rounds have something to say as well
            outcome.problems.append(f"the round that began with kill {first + 1} ended too soon: {error}")
    return outcome


def play(folder: Path, chance: random.Random, kills: int) -> Aftermath:
    """One round of kills, and then peace until nothing waits any more."""
    with opened(folder, chance, attempt_timeout="60s") as scene:
        scene.switch.calls_a_second = chance.uniform(*CALLS_A_SECOND)
        killer = Killer(scene, random.Random(chance.random()))
        _kill_while_taking_in(scene, killer, kills - kills // 2)
        whole, ended = scene.switch.sent_whole(), scene.switch.ended()
        _kill_while_sending_out(scene, killer, kills // 2)
        scene.receiver.behave(thanks)
        scene.toque.wait_ready()
        scene.wait_for_peace()
        in_peace = len(scene.receiver.posts)
        scene.conclude()
        outcome = scene.judge(whole)
        outcome.notes.append(f"{len(scene.switch.kinds)} calls made, {len(whole)} of them came in whole, all after the last kill")
        return Aftermath(
            scene.receiver.posts, in_peace, killer.kills, scene.switch.kinds, whole, ended, dict(scene.secrets), outcome
        )


def _kill_while_taking_in(scene: Scene, killer: Killer, kills: int) -> None:
    scene.receiver.behave(refusing_some())
    for _ in range(LASTING_CALLS):
        scene.switch.begin_lasting_call()
    if not wait_until(lambda: len(scene.accepted()) == 3 * LASTING_CALLS, PATIENCE_S):
        scene.problem("calls are not answered before the first kill")
    with scene.switch.calling():
        for _ in range(kills):
            scene.switch.agent.keeps = killer.chance.random() < 0.5
            killer.kill(TAKING_IN)
        scene.toque.wait_ready()
    scene.receiver.behave(only_always)
    scene.switch.end_lasting_calls()
    for _ in range(kills * BACKLOG_A_KILL):
        scene.switch.call()
    wait_until_taken_in(scene)


def _kill_while_sending_out(scene: Scene, killer: Killer, kills: int) -> None:
    scene.receiver.behave(slowly)
    for _ in range(kills):
        killer.kill(SENDING_OUT)
        if killer.kills[-1].outstanding == 0:
            scene.problem("a kill that was to hit the sending out found nothing left to send")


def wait_until_taken_in(scene: Scene) -> None:
    """Until the server has understood all that this connection brought, and somebody was told of it, so that it is durable."""
    agent = scene.switch.agent
    scene.toque.wait_until(lambda: agent.waiting == 0, "the switch does not get rid of its packets")
    sent = sum(agent.sent[agent.connection].values())
    scene.toque.wait_until(lambda: scene.toque.health()["hep_packets"] >= sent, "packets are missing")
    whole, ended = scene.switch.words(scene.switch.sent_whole()), scene.switch.ended()

    def is_so() -> bool:
        told = callers(scene.receiver.posts_to(ALWAYS))
        return all(told.get(name) == words for name, words in whole.items()) and all(
            told[name][-1] in FINAL_STATUSES for name in ended & told.keys()
        )

    wait_until(is_so, PATIENCE_S / 3)  # the verdict says what is missing


def refusing_some() -> Callable[[Post], Reply]:
    """Two URLs take everything, the third refuses one event in sixteen the first time."""
    is_refused = refused_once(lambda post: post.path == OTHER and post.id[0] == "0")
    return lambda post: Reply(500) if is_refused(post) else Reply()


def only_always(post: Post) -> Reply:
    """Two URLs take what they are given and say nothing."""
    return Reply() if post.path == ALWAYS else Reply(after_s=NEVER_S)


def slowly(post: Post) -> Reply:
    """Two URLs take their time."""
    return Reply() if post.path == ALWAYS else Reply(after_s=SLOW_S)
