"""Whatever other calls a HEP source carries at the same time, each side is told what it is told when its call is alone.

Recordings of three switches, each copy of which is another client's, from the same addresses. Where several clients are called by
the same caller, legs may become calls of their own; then too, nobody is told less, and nobody of another one's.
"""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from heapq import merge
from itertools import accumulate, count
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.call_watching import Watcher

from toque.calls.hep_packet import SIP, HepPacket, parse_hep
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import CallIdentity, Side, StatusChange
from toque.sources.recording import read_recording

ROOT = Path(__file__).parents[1] / "recordings"
_LEFT_OUT = (  # too long, or without SIP
    "load_200_calls_20cps",
    "retransmissions_lost10",
    "pbx_shutdown_mid_call",
    "out_answered_long_rtp",
    "originate_a_invalid",
)
RECORDINGS = [path.parent for path in sorted(ROOT.glob("*/*/hep.pcap")) if path.parent.name not in _LEFT_OUT]
BEGIN = datetime(2026, 3, 2, 12, tzinfo=UTC)
_CALL_ID = re.compile(rb"^Call-ID: *(\S+)", re.MULTILINE | re.IGNORECASE)
_OWN = (  # what is a client's own in these recordings
    (rb"(?<!\d)1(00[1-5]|999)(?!\d)", rb"%d\1"),
    (rb"55413060(03\d\d|9999)", rb"5541306%d\1"),
    (rb"554198888(0001)", rb"55419888%d\1"),
    (rb"\bauth1\b", rb"auth%d"),
)
_OTHERS = (
    (rb"551198888(7777)", rb"55119888%d\1"),
    (rb"55419999(9\d{4})", rb"5541999%d\1"),
    (rb"551197777(0002)", rb"55119777%d\1"),
)
Told = dict[tuple[CallIdentity, Side], list[StatusChange]]


@cache
def recorded(folder: Path) -> list[HepPacket]:
    packets = (parse_hep(item.data) for item in read_recording(folder / "hep.pcap"))
    return [packet for packet in packets if packet.protocol == SIP and packet.payload.strip()]


def copied(folder: Path, copy: int, begins: datetime, *, same_others: bool) -> list[HepPacket]:
    """The same calls with names and numbers of a client's own."""
    packets = recorded(folder)
    call_ids = {found[1] for packet in packets if (found := _CALL_ID.search(packet.payload))}
    first = packets[0].at
    assert first is not None

    def renamed(payload: bytes) -> bytes:
        for call_id in call_ids:
            payload = payload.replace(call_id, b"%d-%s" % (copy, call_id))
        for pattern, name in (*_OWN, *(() if same_others else _OTHERS)):
            payload = re.sub(pattern, name.replace(b"%d", b"%d" % (copy + 1)), payload)
        return payload.replace(b"z9hG4bK", b"z9hG4bK%d" % copy)

    return [replace(packet, payload=renamed(packet.payload), at=begins + (packet.at - first)) for packet in packets if packet.at]


def lines_of(copies: int) -> LineBook:
    texts = ("~{0}(00[1-5]|999)", "5541306{0}*", "55419888{0}0001", "auth{0}")
    return LineBook.of([parse_line(f"client{n}", "tudo", text.format(n + 1)) for n in range(1, copies + 1) for text in texts])


def told(packets: list[HepPacket], lines: LineBook) -> Told:
    watcher = Watcher(lines)
    watcher.feed_all(packets)
    watcher.pass_time(timedelta(minutes=10))
    assert watcher.ledger.refused == []
    return {(identity, side): changes for (identity, _, side), changes in watcher.ledger.told.items() if changes}


def words(changes: list[StatusChange]) -> list[str]:
    return [str(change.status) for change in changes]


CALLS = st.lists(st.tuples(st.sampled_from(RECORDINGS), st.integers(0, 5000)), min_size=2, max_size=4)
Chosen = list[tuple[Path, int]]


def traffic(chosen: Chosen, *, same_others: bool) -> list[list[HepPacket]]:
    return [
        copied(folder, copy, BEGIN + timedelta(milliseconds=after), same_others=same_others)
        for copy, (folder, after) in enumerate(chosen, 1)
    ]


def together(calls: list[list[HepPacket]]) -> list[HepPacket]:
    """Those of each call in their own order, which is not quite that of their stamps."""
    arrived = [
        zip(accumulate((packet.at or BEGIN for packet in call), max), count(number * 1_000_000), call, strict=False)
        for number, call in enumerate(calls)
    ]
    return [packet for _, _, packet in merge(*arrived)]


@settings(deadline=None, max_examples=25)
@given(CALLS)
def test_calls_do_not_disturb_each_other(chosen: Chosen):
    calls = traffic(chosen, same_others=False)
    lines = lines_of(len(calls))
    alone = {key: changes for call in calls for key, changes in told(call, lines).items()}
    assert told(together(calls), lines) == alone


@settings(deadline=None, max_examples=25)
@given(CALLS)
def test_with_the_same_callers_and_the_same_numbers_outside_nobody_is_told_less(chosen: Chosen):
    calls = traffic(chosen, same_others=True)
    lines = lines_of(len(calls))
    everything = told(together(calls), lines)
    for copy, call in enumerate(calls, 1):
        for key, changes in told(call, lines).items():
            assert words(everything[key]) == words(changes)
            assert everything[key][-1].facts.answered_by in (changes[-1].facts.answered_by, None)
        own = {identity for identity, side in everything if side.owner.client_id == f"client{copy}"}
        assert all(identity.key.startswith(f"{copy}-") for identity in own)
