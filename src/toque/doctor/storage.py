"""The store: can it be opened and written, how fast, where does it lie, and who may read it."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median

from toque.doctor.findings import Finding, ok, problem, warning
from toque.errors import StoreError
from toque.store.contract import Archive, Store

_PROBES = 5
_SLOW_MS, _TOO_SLOW_MS = 50.0, 1000.0
_LITTLE_BYTES, _TOO_LITTLE_BYTES = 1 * 2**30, 200 * 2**20
_LITTLE_SHARE = 0.05
_LARGE_LOG_BYTES = 1 * 2**30
_FORGETFUL = {"tmpfs": "memory", "ramfs": "memory", "devtmpfs": "memory"}
_FOREIGN = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "fuse.glusterfs", "afs", "lustre")
_CLOCK_SLACK = timedelta(seconds=5)


def check_files(path: Path) -> Iterator[Finding]:
    """The files of a SQLite store."""
    files = [found for suffix in ("", "-wal", "-shm", ".lock") if (found := Path(f"{path}{suffix}")).exists()]
    sizes = {file.name: file.stat().st_size for file in files}
    open_ones = [file.name for file in files if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)]
    shown = f"{_size(sizes.get(path.name, 0))}, its log {_size(sizes.get(f'{path.name}-wal', 0))}"
    if open_ones:
        advice = f"chmod 0600 them, and keep them in a folder of mode 0700: {path.parent}"
        yield problem("store.file", f"others may read {', '.join(open_ones)}, with all numbers and secrets", advice, sizes=sizes)
    elif sizes.get(f"{path.name}-wal", 0) > _LARGE_LOG_BYTES:
        advice = "something reads for very long (a backup, a database browser), so the log cannot be put away"
        yield warning("store.file", f"{shown}: the log grows", advice, sizes=sizes)
    else:
        yield ok("store.file", shown, sizes=sizes)


def check_place(path: Path, mounts: str | None = None) -> Iterator[Finding]:
    """The file system that the store lies on, and its room. `mounts` has the form of /proc/self/mountinfo."""
    folder = path.resolve().parent
    kind = _file_system(folder, Path("/proc/self/mountinfo").read_text() if mounts is None else mounts)
    if kind in _FORGETFUL:
        advice = "put it on a disk: what is in memory is gone with the next restart of the machine"
        yield problem("store.place", f"{folder} is in {_FORGETFUL[kind]} ({kind})", advice, file_system=kind)
    elif kind in _FOREIGN:
        advice = "put it on a local disk: SQLite's locks and fsync cannot be relied on over a network"
        yield problem("store.place", f"{folder} is on another machine ({kind})", advice, file_system=kind)
    elif kind == "overlay":
        advice = "mount a volume there: a container's own file system goes with the container"
        yield warning("store.place", f"{folder} is in a container's own file system", advice, file_system=kind)
    else:
        yield ok("store.place", f"{folder} ({kind})", file_system=kind)
    yield _space(folder)


def _space(folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    text = f"{_size(usage.free)} of {_size(usage.total)} are free"
    free, total = usage.free, usage.total
    advice = "make room: without any, nothing can be accepted. `keep` says how long events stay"
    if usage.free < _TOO_LITTLE_BYTES:
        return problem("store.space", text, advice, free=free, total=total)
    if usage.free < _LITTLE_BYTES or usage.free < usage.total * _LITTLE_SHARE:
        return warning("store.space", text, advice, free=free, total=total)
    return ok("store.space", text, free=free, total=total)


def _file_system(folder: Path, mounts: str) -> str:
    """The kind of the mount that a folder is under: the one with the longest path, the last one mounted there."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        point = fields.split()[4].replace("\\040", " ")
        is_above = point == "/" or folder == Path(point) or Path(point) in folder.parents
        if is_above and len(point) >= len(best):
            best, kind = point, rest.split()[0]
    return kind


async def check_write(store: Store) -> Finding:
    """Durable writes from here, one after the other, beside those of a server."""
    took_ms = []
    try:
        for _ in range(_PROBES):
            began_s = time.perf_counter()
            await store.ping()
            took_ms.append((time.perf_counter() - began_s) * 1000)
    except StoreError as error:
        return write_failed(str(error))
    middle, slowest = round(median(took_ms), 1), round(max(took_ms), 1)
    text = f"{middle} ms, the slowest of {_PROBES} {slowest} ms"
    advice = "statuses wait for the disk's fsync: use a local SSD, and see what else writes to it"
    if middle > _TOO_SLOW_MS:
        return problem("store.write", text, advice, median_ms=middle, max_ms=slowest)
    if middle > _SLOW_MS:
        return warning("store.write", text, advice, median_ms=middle, max_ms=slowest)
    return ok("store.write", text, median_ms=middle, max_ms=slowest)


def write_failed(why: str) -> Finding:
    """The store cannot be written."""
    advice = "is the disk full, or does another program hold the file? A running server tries again until it can be written"
    return problem("store.write", why, advice)


async def check_clock(store: Archive, now: datetime) -> Finding:
    """Nothing can have been accepted in the future."""
    last = await store.last_accepted_at()
    if last is None:
        return ok("store.clock", "nothing has been accepted yet")
    if last > now + _CLOCK_SLACK:
        advice = "the clock was set back: see that it is synchronised. Replays by time and `keep` go by it"
        return problem("store.clock", f"the last event was accepted at {last:%Y-%m-%d %H:%M:%S} UTC, which is to come", advice)
    return ok("store.clock", f"the last event was accepted at {last:%Y-%m-%d %H:%M:%S} UTC", last_accepted_at=last.isoformat())


def is_locked(path: Path) -> bool | None:
    """Whether a server has claimed the store, without trying to: that could keep one that starts from doing so."""
    lock = Path(f"{path.resolve()}.lock")
    try:
        found = lock.stat()
        locks = Path("/proc/locks").read_text()
    except FileNotFoundError:
        return False
    except OSError:
        return None
    name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any(name in line and "FLOCK" in line for line in locks.splitlines())


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
