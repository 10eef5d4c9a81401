"""File descriptors run out while posts must be made to many addresses, none of which has a connection."""

import random
import time
from contextlib import ExitStack
from pathlib import Path

from tests.faults.storm.breakage import descriptors_exhausted
from tests.faults.storm.scene import Outcome, Scene, opened, wait_until

ORIGINS = 30
CALLS_A_SECOND = 10  # each of whose statuses goes to all of them
LONGEST_S = 3.0
PATIENCE_S = 10.0


def run(folder: Path, chance: random.Random, times: int) -> Outcome:
    """Exhaust them so often."""
    with opened(folder, chance, origins=ORIGINS) as scene:
        scene.switch.calls_a_second = CALLS_A_SECOND
        scene.warm_up()
        with scene.switch.calling():
            for _ in range(times):
                exhaust(scene)
                scene.wait_until_well()
                scene.wait_a_while(LONGEST_S)
        return scene.judge_survivor()


def exhaust(scene: Scene) -> None:
    """Once: take all connections to receivers away, then the descriptors that they leave, and only then let receivers listen."""
    with ExitStack() as ears:
        ears.enter_context(scene.receiver.deaf())
        wait_until(lambda: not scene.receiver.connections, PATIENCE_S)
        with descriptors_exhausted(scene.toque.pid):
            ears.close()
            scene.wait_a_while(LONGEST_S)
            time.sleep(1)
            scene.outcome.notes.append(f"/health {'answers' if scene.health()[0] else 'cannot answer'} while they are exhausted")
    scene.outcome.done["descriptors exhausted"] += 1
