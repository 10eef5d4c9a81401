"""Faults of the machine that undo themselves at the end of their block: full disks, limits, locks."""

import contextlib
import os
import resource
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

_BALLAST_STEPS = (1024 * 1024, 64 * 1024, 4096, 512)


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[bool]:
    """Make the folder a disk of its own; False where mounting is not allowed, and it is a folder like any other."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "toque-storm", folder], capture_output=True, check=False)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def full_disk(store: Path) -> Iterator[None]:
    """Fill the disk that the database is on to the last block; its log is made short before, or it had room of its own."""
    ballast = store.with_name("ballast")
    with contextlib.closing(sqlite3.connect(store, timeout=30.0)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in _BALLAST_STEPS:
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def limited(pid: int, kind: int, limit: int) -> Iterator[None]:
    """A running process's limit (resource.RLIMIT_…), lowered."""
    soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (limit, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, (soft, hard))


@contextlib.contextmanager
def files_limited(pid: int, size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes, nor is written there: EFBIG, which SQLite tells as an I/O error."""
    with limited(pid, resource.RLIMIT_FSIZE, size):
        yield


@contextlib.contextmanager
def descriptors_exhausted(pid: int) -> Iterator[None]:
    """This process can open nothing more: the next descriptor would be beyond its limit."""
    taken = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    free = next(number for number in range(len(taken) + 1) if number not in taken)
    with limited(pid, resource.RLIMIT_NOFILE, free):
        yield


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    """Somebody else has the database to himself."""
    with contextlib.closing(sqlite3.connect(store, timeout=30.0, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")
