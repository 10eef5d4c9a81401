"""Somebody else locks the database: for moments, and for longer than the server waits for a lock."""

import random
import time
from pathlib import Path

from tests.faults.storm.breakage import locked
from tests.faults.storm.scene import Outcome, Scene, opened

MOMENT_S, LONG_S = 1.0, 15.0  # the longer one outlasts the 10 s that the writer waits for a lock
LONG_ONES = 3  # every so manieth lock is a long one, the second one first


def run(folder: Path, chance: random.Random, times: int) -> Outcome:
    """Lock it so often while calls come in."""
    with opened(folder, chance) as scene:
        scene.warm_up()
        with scene.switch.calling():
            for number in range(times):
                lock(scene, LONG_S if number % LONG_ONES == 1 else MOMENT_S)
                scene.wait_until_well()
                scene.wait_a_while(1.0)
        return scene.judge_survivor()


def lock(scene: Scene, span_s: float) -> None:
    """Once; a long lock must be told by /health while it lasts."""
    with locked(scene.toque.store):
        until = time.monotonic() + span_s
        if span_s >= LONG_S and not scene.wait_until_failing(span_s):
            scene.problem("/health says that all is well while the database is locked")
        time.sleep(max(0.0, until - time.monotonic()))
    scene.outcome.done[f"locked for {span_s:g} s"] += 1
