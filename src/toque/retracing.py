"""Tracing the calls of a recording, without a server: HEP packets from a pcap through the same reader and tracker."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from toque.calls.explaining import tell_call
from toque.calls.hep_packet import parse_hep
from toque.calls.lines import Line, LineBook
from toque.calls.sip_watch import SipWatch
from toque.calls.trace import Onlooker, Record
from toque.errors import InputError
from toque.sources.recording import read_recording
from toque.telemetry import mask_number
from toque.tracing import is_named

_SOURCE = "recording"
_BLOCKS, _BYTES = 20_000, 4 * 2**30  # all of it: ten million signals


def calls_of_recording(
    path: Path, wanted: str | None, lines: Sequence[Line], country: str, *, shows_numbers: bool, after: timedelta
) -> list[dict[str, Any]]:
    """The calls of a recording, the latest first, or those that a text names. Time goes on for `after` behind its end.

    Raises `InputError` for a file that is no recording. Packets that cannot be understood are passed over.
    """
    record = Record(max_blocks=_BLOCKS, max_bytes=_BYTES)
    watch = SipWatch(_SOURCE, LineBook.of(lines, country))
    watch.tracker.observer = Onlooker(_SOURCE, record)
    packets = read_recording(path)
    for packet in packets:
        watch.tick(packet.at)
        with suppress(InputError):
            watch.feed(parse_hep(packet.data), packet.at)
    if packets:
        watch.tick(packets[-1].at + after)
    latest_first = dict.fromkeys(item.identity for block in reversed(record.blocks()) for item in reversed(block))
    traces = record.gather(latest_first).values()
    mask = str if shows_numbers else mask_number
    return [tell_call(trace, lines, country, mask) for trace in traces if wanted is None or is_named(trace, wanted, country)]
