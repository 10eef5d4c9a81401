"""Running out of file descriptors, and getting them back."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

_ROOM = 40  # above the highest descriptor in use: enough to be sure that all below are taken


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Take every descriptor that this process may have, and give them back at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, highest + _ROOM), hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
