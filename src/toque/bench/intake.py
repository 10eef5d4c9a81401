"""`toque bench intake`, by HEP: packets understood on one core, statuses worked out and matched to lines, nothing stored."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from statistics import median
from typing import Any

from toque.bench.sip import messages, wrapped
from toque.bench.traffic import PIN, client_id, number_of
from toque.calls.hep_packet import parse_hep
from toque.calls.lines import LineBook, parse_line
from toque.calls.sip_watch import SipWatch

_CLIENTS = 100
_CALLS = 5000
_BATCH = 500


def bench_intake(*, rounds: int = 5) -> dict[str, Any]:
    """Messages a second, the median of some rounds."""
    packets = _packets()
    rates = [_round(packets) for _ in range(rounds)]
    return {
        "messages": len(packets),
        "messages_per_s": round(median(rates)),
        "us_per_message": round(1e6 / median(rates), 2),
        "rounds": [round(rate) for rate in rates],
    }


def _packets() -> list[bytes]:
    packets = []
    for first in range(0, _CALLS, _CLIENTS):
        batch = [list(messages(number_of(i), first + i, "intake")) for i in range(_CLIENTS)]
        packets += [wrapped(four[step]) for step in range(len(batch[0])) for four in batch]
    return packets


def _round(packets: list[bytes]) -> float:
    lines = LineBook.of(parse_line(client_id(i), PIN, number_of(i)) for i in range(_CLIENTS))
    watch, told = SipWatch("hep", lines), 0
    began = time.perf_counter()
    for start in range(0, len(packets), _BATCH):
        now = datetime.now(UTC)
        for packet in packets[start : start + _BATCH]:
            watch.feed(parse_hep(packet), now)
        watch.tick(now)
        told += len(watch.take()[0])
    took_s = time.perf_counter() - began
    assert told == len(packets)  # noqa: S101 - a measurement of something that went wrong is none
    return len(packets) / took_s
