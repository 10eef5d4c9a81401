"""What a process holds of the machine, by /proc: it must return to where it was."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

A_CALL = 12 * 2**10  # bytes: calls that ended are remembered for minutes, so that their repetitions are known
MEMORY_SLACK = 128 * 2**20  # SQLite's cache (64 MiB) fills up, and allocators give back in their own time


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
