"""What a process holds of the machine, by /proc: it must return to where it was."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

A_CALL = 5 * 2**10  # bytes: calls that ended are remembered for minutes, so that their repetitions are known; 3.5 KiB measured

# What fills up once and then stays as it is, in bytes
SQLITE_CACHE = 64 * 2**20  # `sqlite._CACHE_KIB`
TRACES = 40 * 2**20  # `trace.MAX_BYTES`, which counts a little less than there is
CALLS_OF_THE_STORE = 18 * 2**20  # `CALLS_HELD`, `UNWRITTEN_CALLS`
ALLOCATORS = 32 * 2**20  # what was needed for the largest batch is kept for the next one
MEMORY_SLACK = SQLITE_CACHE + TRACES + CALLS_OF_THE_STORE + ALLOCATORS


@dataclass(frozen=True)
class Vitals:
    """A process at one moment."""

    threads: int
    descriptors: int
    resident: int  # bytes

    def excess(self, before: "Vitals", *, calls: int) -> list[str]:
        """In words, what is more than before, when so many calls came since; descriptors and threads to the last one."""
        return [
            f"{name} {asdict(before)[name]} -> {asdict(self)[name]}"
            for name, slack in (("threads", 0), ("descriptors", 0), ("resident", MEMORY_SLACK + calls * A_CALL))
            if asdict(self)[name] > asdict(before)[name] + slack
        ]


def take_vitals(pid: int) -> Vitals:
    """Now."""
    folder = Path("/proc", str(pid))
    resident = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Vitals(len(os.listdir(folder / "task")), len(os.listdir(folder / "fd")), resident)
