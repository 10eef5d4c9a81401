"""The disk is full: what cannot be stored waits, whoever asks is refused, and when there is space again all goes on by itself.

The store lies on a small disk of its own (tmpfs). Where mounting is not allowed, the process's files are limited instead.
"""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tests.faults.storm.breakage import files_limited, full_disk, small_disk
from tests.faults.storm.registrations import Registrations
from tests.faults.storm.scene import Outcome, Scene, opened

MIB = 128
LIMIT = 256 * 1024  # bytes of a file, where the disk cannot be small
LONGEST_S = 3.0  # that the disk stays full once it is noticed

Break = Callable[[Scene], AbstractContextManager[None]]


def run(folder: Path, chance: random.Random, times: int) -> Outcome:
    """Fill the disk so often, for a moment each."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    with small_disk(disk, MIB) as is_small:
        name = "disk full (tmpfs)" if is_small else "disk full (limited files: no right to mount)"
        with opened(folder, chance, store=disk / "toque.db") as scene:
            return break_writing(
                scene, name, times, lambda _: full_disk(scene.toque.store) if is_small else files_limited(scene.toque.pid, LIMIT)
            )


def break_writing(scene: Scene, name: str, times: int, fault: Break) -> Outcome:
    """Let the store fail so often while calls and registrations come; each time it must be said, and pass."""
    scene.warm_up()
    registrations = Registrations(scene)
    recovered = []
    with scene.switch.calling():
        for _ in range(times):
            with fault(scene):
                if not scene.wait_until_failing():
                    scene.problem(f"{name}: /health says that all is well")
                registrations.try_one()
                scene.wait_a_while(LONGEST_S)
            recovered.append(scene.wait_until_well())
            registrations.try_one()
            scene.outcome.done[name] += 1
    if "append_failed" not in scene.toque.log:
        scene.problem(f"{name}: the log does not say that events cannot be stored")
    scene.outcome.notes.append(f"well again {max(recovered):.1f} s after the fault at most")
    registrations.check()
    return scene.judge_survivor()
