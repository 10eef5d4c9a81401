"""Receivers that come and go: they hang, refuse, reset, fail and recover, while the server is killed now and then."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.storm.kills import NEVER_S
from tests.faults.storm.scene import ALWAYS, Outcome, Scene, opened
from tests.faults.storm.signals import judge_restarted, start_again
from tests.support.recording_receiver import Reply, thanks

KILLED = 0.5  # of the times
LONGEST_S = 2.0
DEAF = "nobody listens"
MOODS = {
    "hangs": Reply(after_s=NEVER_S),
    "fails": Reply(500),
    "asks to wait": Reply(503, headers={"Retry-After": "1"}),
    "resets": Reply(is_cut=True),
    "is slow": Reply(after_s=0.5),
}


def run(folder: Path, chance: random.Random, times: int) -> Outcome:
    """So many moods, one after the other, with good times between them."""
    with opened(folder, chance, attempt_timeout="2s", connect_timeout="1s") as scene:
        with scene.switch.calling():
            for number in range(times):
                moods = [DEAF, *MOODS]
                with flapping(scene, moods[number % len(moods)]):
                    scene.wait_a_while(LONGEST_S)
                    if chance.random() < KILLED:
                        scene.toque.kill()
                        scene.outcome.done["kill -9 meanwhile"] += 1
                        start_again(scene)
                scene.wait_a_while(LONGEST_S)
        return judge_restarted(scene)


@contextmanager
def flapping(scene: Scene, mood: str) -> Iterator[None]:
    """Two URLs, or all of them when nobody listens, are in this mood."""
    scene.outcome.done[f"receiver: {mood}"] += 1
    if mood == DEAF:
        with scene.receiver.deaf():
            yield
        return
    scene.receiver.behave(lambda post: Reply() if post.path == ALWAYS else MOODS[mood])
    yield
    scene.receiver.behave(thanks)
