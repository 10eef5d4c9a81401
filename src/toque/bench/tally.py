"""What a receiver counts: every status once, those of a call in their order."""

from __future__ import annotations

import re
import time

_KEY = re.compile(rb"%22callerid%22%3A%22([0-9a-f-]{36})%22%2C%22sequencia%22%3A(\d+)%2C")


class Tally:
    """Arrivals at the receivers of one group. Times are the monotonic clock's, which all processes share."""

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}  # for each call its sequence numbers as bits: small numbers, which Python keeps once
        self._woken_s: dict[int, float] = {}
        self.arrived = 0
        self.duplicates = 0
        self.disordered = 0
        self.last_s: float | None = None

    def note(self, receiver: int, body: bytes) -> None:
        """A post came to this receiver; a body that is no status of a call raises `ValueError`."""
        found = _KEY.search(body)
        if found is None:
            msg = "a post without callerid and sequencia"
            raise ValueError(msg)
        now_s = self.last_s = time.monotonic()
        self._woken_s.setdefault(receiver, now_s)
        self.arrived += 1
        self._note_sequence(found[1], int(found[2]))

    def _note_sequence(self, call: bytes, sequence: int) -> None:
        seen, bit = self._seen.get(call, 0), 1 << sequence
        if seen & bit:
            self.duplicates += 1
            return
        if seen != bit - 2:  # bits 1 to sequence - 1: everything before it, nothing after it
            self.disordered += 1
        self._seen[call] = seen | bit

    def report(self) -> dict[str, float | None]:
        """Counts; when the first post came, when the last of the receivers had its first, when the last post came."""
        woken = self._woken_s.values()
        return {
            "arrived": self.arrived,
            "duplicates": self.duplicates,
            "disordered": self.disordered,
            "first_s": min(woken, default=None),
            "woken_s": max(woken, default=None),
            "last_s": self.last_s,
        }
