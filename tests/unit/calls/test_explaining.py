"""Why a call ended so: the rule that is told is the one that decided, for hand-made calls and for every recording."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.ami_recordings import AmiWatcher, messages, recordings
from tests.support.esl_watching import EslWatcher, events_of, recorded_bytes

from toque.calls.explaining import matches_of, row_of, tell_call
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import CallIdentity, Cause, Party, Signal, SignalKind, Status
from toque.calls.trace import Onlooker, Record
from toque.calls.tracker import CallTracker
from toque.retracing import calls_of_recording
from toque.telemetry import mask_number

K = SignalKind
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
IDENTITY = CallIdentity("pbx", "call-1")
LINES = [parse_line("acme", "vendas", "5541306003*"), parse_line("acme", "conta", "account:acme")]
CALLER, DIALLED = "554130600300", "5511977770002"
ROOT = Path(__file__).parents[3]
PCAPS = sorted((ROOT / "tests/recordings/kamailio").glob("*/hep.pcap"))
FREESWITCH = sorted(path.parent for path in (ROOT / "tests/recordings/freeswitch").glob("*/truth.json"))
DECIDED = (Status.BUSY, Status.NO_ANSWER, Status.REJECTED, Status.CONGESTION, Status.INVALID_NUMBER, Status.UNREACHABLE)


class Scene:
    """One tracker that is looked on at."""

    def __init__(self, caller: str = CALLER, dialled: str = DIALLED) -> None:
        self.record, self.now = Record(), NOW
        self.tracker = CallTracker(LineBook.of(LINES))
        self.tracker.observer = Onlooker("pbx", self.record)
        self.callers, self.dialled = (caller,), dialled

    def feed(self, kind: SignalKind, leg: str | None = None, **more: Any) -> None:
        self.now += timedelta(seconds=1)
        more = {"callers": self.callers, "dialled": self.dialled} | more
        self.tracker.feed(Signal(IDENTITY, kind, self.now - timedelta(seconds=3), leg, **more), self.now)

    def wait(self, span: timedelta) -> None:
        self.now += span
        self.tracker.tick(self.now)

    def told(self, mask: Any = str) -> dict[str, Any]:
        return tell_call(self.record.gather([IDENTITY])[IDENTITY], LINES, "55", mask)

    @property
    def rule(self) -> str:
        return str(self.told()["end"]["rule"])


def test_an_answered_call() -> None:
    scene = Scene()
    for kind in (K.BEGAN, K.RINGING, K.ANSWERED):
        scene.feed(kind)
    assert scene.told()["phase"] == "answered"
    assert scene.told()["end"] is None
    scene.feed(K.HUNG_UP, by=Party.CALLEE)
    told = scene.told()
    assert told["end"]["rule"] == "it was answered, and then the callee hung up"
    assert [item.get("kind") or item["status"] for item in told["items"]] == [
        "began",
        "initiated",
        "ringing",
        "ringing",
        "answered",
        "answered",
        "hung_up",
        "hung_up",
        "hung_up",
    ]
    assert [item["phase"] for item in told["items"] if item["what"] == "signal"] == [None, "calling", "ringing", "answered"]
    assert told["sides"] == [{"client": "acme", "pin": "vendas", "direction": "made"}]
    assert told["lines"][0]["line"] == "5541306003*"
    assert told["lines"][1]["client"] is None


def test_the_last_leg_says_why() -> None:
    scene = Scene()
    for step in (K.BEGAN, K.RINGING):
        scene.feed(step)
    for leg, number, code in (("a", "1001", 486), ("b", "1002", 503)):
        scene.feed(K.LEG_BEGAN, leg, number=number)
        scene.feed(K.LEG_ENDED, leg, cause=Cause(sip=code))
    scene.feed(K.REFUSED, cause=Cause(sip=500))
    assert scene.rule.startswith("2 called legs ended (1001: ended (SIP 486), 1002: ended (SIP 503)); the last one counts")
    assert scene.rule.endswith("SIP 503 after ringing means congestion")
    assert [leg["leg"] for leg in scene.told()["legs"]] == [None, "a", "b"]


@pytest.mark.parametrize(
    ("steps", "rule"),
    [
        ([(K.REFUSED, {"cause": Cause(sip=404)})], "what the caller was told: SIP 404 without ringing means invalid_number"),
        ([(K.REFUSED, {"cause": Cause(q850=17), "word": Status.BUSY})], "the switch itself says so: busy (Q.850 17)"),
        ([(K.GAVE_UP, {}), (K.REFUSED, {"cause": Cause(sip=487)})], "the caller gave up before anybody answered"),
        ([(K.VANISHED, {})], "the switch was asked and does not know the call any more: its end was missed"),
    ],
)
def test_each_kind_of_end(steps: list[tuple[SignalKind, dict[str, Any]]], rule: str) -> None:
    scene = Scene()
    scene.feed(K.BEGAN)
    for kind, more in steps:
        scene.feed(kind, **more)
    assert scene.rule == rule


def test_ends_that_are_concluded_by_the_clock() -> None:
    stale = Scene()
    stale.feed(K.BEGAN)
    stale.wait(timedelta(hours=1))
    assert "stale_unanswered" in stale.rule
    assert stale.told()["end"]["inferred"]
    given_up = Scene()
    given_up.feed(K.BEGAN)
    given_up.feed(K.GAVE_UP)
    given_up.wait(timedelta(minutes=1))
    assert "within 32 s" in given_up.rule
    leaving = Scene()
    leaving.feed(K.BEGAN)
    leaving.feed(K.HUNG_UP)
    leaving.wait(timedelta(seconds=2))
    assert "the answer was missed" in leaving.rule


def test_why_no_line_matches() -> None:
    scene = Scene(caller="1001", dialled="0 15 11 97777-0002")
    scene.feed(K.BEGAN, hints=("account:acme", "context:from-x"))
    told = scene.told(mask_number)
    assert [(match["role"], match["compared_as"], match["line"]) for match in told["lines"]] == [
        ("caller", "1001", None),
        ("dialled", "551197777****", None),
        ("hint", "account:acme", "account:acme"),
        ("hint", "context:from-x", None),
    ]


@pytest.mark.parametrize(("line", "shown"), [("554130600300", "55413060****"), ("~554130600300|1001", "~55413060****|1001")])
def test_a_line_that_is_a_whole_number_is_masked_as_numbers_are(line: str, shown: str) -> None:
    scene = Scene(caller="554130600300")
    scene.feed(K.BEGAN)
    for mask, text in ((mask_number, shown), (str, line)):
        trace = scene.record.gather([IDENTITY])[IDENTITY]
        match = matches_of(trace, [parse_line("acme", "vendas", line)], "55", mask)[0]
        assert match["line"] == text


def test_a_name_that_is_used_again_begins_another_trace() -> None:
    scene = Scene()
    scene.feed(K.BEGAN)
    scene.feed(K.REFUSED, cause=Cause(sip=486))
    scene.feed(K.BEGAN_AGAIN)
    told = scene.told()
    assert (told["end"], told["phase"], told["is_whole"]) == (None, "calling", True)


@pytest.mark.parametrize(
    ("cause", "rang", "text"),
    [
        (Cause(sip=480, q850=17), True, "Q.850 17, of which SIP 480 is a wrapper, after ringing means busy"),
        (Cause(sip=486, q850=16), False, "SIP 486 without ringing means busy"),
        (Cause(sip=480, q850=99), True, "SIP 480 after ringing means no_answer"),
        (Cause(sip=418), True, "no row has SIP 418, so it is failed"),
        (Cause(), True, "no row has an end without any evidence, so it is failed"),
    ],
)
def test_the_row_of_evidence(cause: Cause, rang: bool, text: str) -> None:
    assert row_of(cause, rang=rang) == text


# Every recording: the rule names the end that was told.


def check(call: dict[str, Any]) -> None:
    end = call["end"]
    if end is None or end["inferred"]:
        return
    assert end["rule"]
    if end["status"] in DECIDED:
        assert end["status"] in end["rule"] or "nobody answered" in end["rule"]
    if end["status"] == Status.CANCELLED:
        assert "gave up" in end["rule"] or "cancelled" in end["rule"]
    json.dumps(call)


@pytest.mark.parametrize("pcap", [path for path in PCAPS if "load" not in str(path)], ids=lambda path: path.parent.name)
def test_recorded_sip(pcap: Path) -> None:
    calls = calls_of_recording(pcap, None, LINES, "55", shows_numbers=True, after=timedelta(minutes=1))
    assert calls
    for call in calls:
        check(call)


def calls_seen(record: Record) -> list[dict[str, Any]]:
    identities = {item.identity: None for block in record.blocks() for item in block}
    return [tell_call(trace, LINES, "55") for trace in record.gather(identities).values()]


def test_recorded_asterisk() -> None:
    for recording in recordings():
        watcher, record = AmiWatcher(LineBook.of(LINES)), Record()
        watcher.watch.tracker.observer = Onlooker("ami", record)
        for at, message in messages(recording):
            watcher.feed(message, at)
        watcher.pass_time(timedelta(minutes=1))
        for call in calls_seen(record):
            check(call)


@pytest.mark.parametrize("folder", FREESWITCH, ids=lambda folder: folder.name)
def test_recorded_freeswitch(folder: Path) -> None:
    watcher, record = EslWatcher(LineBook.of(LINES)), Record()
    watcher.watch.tracker.observer = Onlooker("esl", record)
    watcher.feed_all(events_of(recorded_bytes(folder)))
    watcher.pass_time(timedelta(minutes=1))
    for call in calls_seen(record):
        check(call)
