"""The writer's disk fails: no file of the server's grows beyond a limit, which SQLite tells as an I/O error or as a full disk."""

import random
from pathlib import Path

from tests.faults.storm.breakage import files_limited
from tests.faults.storm.disks import break_writing
from tests.faults.storm.scene import Outcome, opened

LIMITS = (4096, 64 * 1024, 256 * 1024, 1024 * 1024)  # bytes: where in the file, and so in which of its writes, it fails


def run(folder: Path, chance: random.Random, times: int) -> Outcome:
    """Fail so often, each time at another place."""
    with opened(folder, chance) as scene:
        return break_writing(scene, "I/O errors", times, lambda _: files_limited(scene.toque.pid, chance.choice(LIMITS)))
