"""How many deliveries are done with, and how long each took."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value that this share of the sorted values does not exceed; None when there are none."""
    return round(values[min(len(values) - 1, int(len(values) * share))], 3) if values else None


class Stopwatch:
    """Counts deliveries by the store's numbers of their events, and times one of so many; small on purpose."""

    def __init__(self, timed_every: int = 1) -> None:
        self._timed_every = timed_every
        self._began_s: dict[int, float] = {}
        self._delays_ms = array("d")
        self.accepted = 0
        self.delivered = 0

    @property
    def outstanding(self) -> int:
        """Deliveries that were accepted and are not delivered yet."""
        return self.accepted - self.delivered

    def begin(self, numbers: Sequence[int], since_s: float) -> None:
        """These are durable now; their time runs since then (monotonic)."""
        self.accepted += len(numbers)
        self._began_s.update(dict.fromkeys(numbers[:: self._timed_every], since_s))

    def end(self, numbers: Sequence[int]) -> None:
        """These are delivered, and the store has it."""
        self.delivered += len(numbers)
        now_s = time.monotonic()
        for number in numbers:
            began_s = self._began_s.pop(number, None)
            if began_s is not None:
                self._delays_ms.append((now_s - began_s) * 1000)

    def take_delays_ms(self) -> list[float]:
        """All delays since the last time, sorted."""
        delays, self._delays_ms = sorted(self._delays_ms), array("d")
        return delays
