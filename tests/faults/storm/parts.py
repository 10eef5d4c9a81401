"""The parts of the storm: one row each."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.faults.storm import clocks, descriptors, disks, flapping, floods, io_errors, kills, locks, signals
from tests.faults.storm.scene import Outcome

Run = Callable[[Path, random.Random, int], Outcome]


@dataclass(frozen=True)
class Part:
    """What is done, and how often: in the storm, and in the short version that every test run makes."""

    run: Run
    times: int
    short_times: int
    shorter: Run | None = None  # where the faults themselves must be shorter too

    @property
    def short_run(self) -> Run:
        """What the tests run."""
        return self.shorter or self.run


PARTS = {
    "kill": Part(kills.run, times=300, short_times=12),
    "disk": Part(disks.run, times=10, short_times=2),
    "io": Part(io_errors.run, times=20, short_times=3),
    "clock": Part(clocks.run, times=24, short_times=6),
    "descriptors": Part(descriptors.run, times=10, short_times=2),
    "lock": Part(locks.run, times=12, short_times=2),
    "flood": Part(floods.run, times=2, short_times=0),  # half a minute each: for the storm only
    "term": Part(signals.run_terms, times=20, short_times=2),
    "twice": Part(signals.run_second_signals, times=20, short_times=2),
    "pause": Part(signals.run_pauses, times=4, short_times=1, shorter=partial(signals.run_pauses, pause_s=3.0)),
    "flap": Part(flapping.run, times=40, short_times=5),
}
