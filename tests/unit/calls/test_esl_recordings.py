"""Recordings of a real FreeSWITCH, each beside the truth of its calls (what the telephones did, not what the switch said).

Another folder of them, with the same layout, is named by TOQUE_RECORDINGS.
"""

import json
import os
import random
import re
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.support.call_watching import Ledger
from tests.support.esl_watching import EslWatcher, Event, events_of, recorded_bytes

from toque.callbacks.payload import ring_time, talk_time
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import Direction, Party, Status, StatusChange

ROOT = Path(__file__).parents[3]
RECORDINGS = Path(os.environ.get("TOQUE_RECORDINGS", ROOT / "tests" / "recordings")) / "freeswitch"
FOLDERS = sorted(path.parent for path in RECORDINGS.glob("*/truth.json"))
TOLERANCE_S = 0.5
EXTENSIONS, NUMBERS = "acme", "zeta"  # whose lines the extensions and the outside numbers are
# The truth of these counts from when the switch itself picked up.
COUNTS_FROM_PICKUP = {"in_ivr_answered", "queue_answered"}
each_recording = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def truths(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "truth.json").read_text(encoding="utf-8"))["calls"]


@cache
def events(folder: Path) -> list[Event]:
    return events_of(recorded_bytes(folder))


def finished(watcher: EslWatcher) -> Ledger:
    watcher.pass_time(timedelta(seconds=40))
    watcher.reconnect()
    return watcher.ledger


def sides_of(truth: dict[str, Any]) -> list[tuple[str, Direction]]:
    """Who must be told of the call, by which lines there are."""
    made, received = (EXTENSIONS, Direction.MADE), (EXTENSIONS, Direction.RECEIVED)
    match truth["direction"]:
        case "made":
            return [made]
        case "received":
            return [(NUMBERS, Direction.RECEIVED)]
        case _:
            return [made, received]


def told(ledger: Ledger, truth: dict[str, Any], client_id: str, direction: Direction) -> list[StatusChange]:
    """What the side was told of this call."""
    (changes,) = [
        changes
        for (_, _, side), changes in ledger.told.items()
        if (side.owner.client_id, side.direction) == (client_id, direction)
        and (changes[-1].facts.caller, changes[-1].facts.dialled) == (truth["caller"], truth["callee"])
    ]
    return changes


def check(changes: list[StatusChange], truth: dict[str, Any], folder: Path) -> None:
    words, last = [str(change.status) for change in changes], changes[-1]
    assert words[0] == "initiated"
    assert words[-1] in (truth["final"], *truth.get("also_right", ()))
    assert ("answered" in words) == (words[-1] == "hung_up")
    assert not last.facts.is_inferred or folder.name == "pbx_shutdown_mid_call"
    if "ring_s" in truth:
        assert "ringing" in words
        assert ring_time(last.facts, last.status).total_seconds() == pytest.approx(truth["ring_s"], abs=TOLERANCE_S)
    check_talk(last, truth, folder)
    check_ender(last, truth)
    if "reached" in truth and last.status is Status.HUNG_UP:
        assert last.facts.answered_by == truth["reached"].rpartition("then ")[2]
    first_answer = next((change for change in changes if change.status is Status.ANSWERED), None)
    if "reached" in truth and first_answer is not None:
        assert first_answer.facts.answered_by == truth["reached"].partition(",")[0]


def check_talk(last: StatusChange, truth: dict[str, Any], folder: Path) -> None:
    if "talk_s" not in truth:
        return
    talk = talk_time(last.facts, last.status)
    if folder.name in COUNTS_FROM_PICKUP:
        talk += last.facts.answered_at - last.facts.pbx_answered_at
    else:
        assert last.facts.pbx_answered_at is None
    assert talk.total_seconds() == pytest.approx(truth["talk_s"], abs=TOLERANCE_S)


def check_ender(last: StatusChange, truth: dict[str, Any]) -> None:
    if last.facts.is_inferred or "hung_up_by" not in truth:
        return
    who = {"caller": Party.CALLER, "callee": Party.CALLEE, truth["caller"]: Party.CALLER}
    assert last.facts.hung_up_by is who.get(truth["hung_up_by"], Party.NETWORK)


def check_all(ledger: Ledger, folder: Path) -> None:
    for truth in truths(folder):
        for client_id, direction in sides_of(truth):
            check(told(ledger, truth, client_id, direction), truth, folder)
    assert ledger.refused == []
    keys = {identity.key for identity, _, _ in ledger.told}
    assert len(keys) == len(truths(folder))  # no leg is a call of its own


def test_there_are_recordings():
    assert FOLDERS


@each_recording
def test_everybody_is_told_the_truth(folder: Path):
    watcher = EslWatcher()
    watcher.receive(recorded_bytes(folder))
    if folder.name == "pbx_shutdown_mid_call":
        watcher.switch.channels.clear()
    check_all(finished(watcher), folder)


@each_recording
def test_bytes_may_come_in_any_pieces(folder: Path):
    data, chance = recorded_bytes(folder), random.Random(folder.name)
    watcher, whole = EslWatcher(), EslWatcher()
    whole.receive(data)
    at = 0
    while at < len(data):
        size = chance.choice((1, 2, 7, 100, 1460, 65_536))
        watcher.receive(data[at : at + size])
        at += size
    assert finished(watcher).told == finished(whole).told


def test_bytes_may_come_one_by_one():
    folder = min(FOLDERS, key=lambda folder: len(recorded_bytes(folder)))
    watcher = EslWatcher()
    for byte in recorded_bytes(folder):
        watcher.receive(bytes([byte]))
    check_all(finished(watcher), folder)


def whole_run(folder: Path) -> Ledger:
    watcher = EslWatcher()
    watcher.feed_all(events(folder))
    if folder.name == "pbx_shutdown_mid_call":
        watcher.switch.channels.clear()
    return finished(watcher)


def cut(folder: Path, at: int, *, lost: int, restarts: bool) -> Ledger:
    """The connection is lost after so many events, and so many are missed until there is another one."""
    watcher, sent = EslWatcher(), events(folder)
    watcher.feed_all(sent[:at])
    for event in sent[at : at + lost]:
        watcher.miss(event)
    if watcher.now is not None:
        watcher.restart() if restarts else watcher.reconnect()
    watcher.feed_all(sent[at + lost :])
    if folder.name == "pbx_shutdown_mid_call":
        watcher.switch.channels.clear()
    return finished(watcher)


@pytest.mark.parametrize("restarts", [False, True], ids=["reconnect", "restart"])
@each_recording
def test_a_connection_may_be_cut_after_every_event(folder: Path, restarts: bool):
    expected = whole_run(folder).told
    for at in range(1, len(events(folder))):
        assert cut(folder, at, lost=0, restarts=restarts).told == expected, at


@pytest.mark.parametrize("lost", [1, 5, 20])
@each_recording
def test_what_was_missed_is_learned_or_concluded(folder: Path, lost: int):
    expected = whole_run(folder).told
    for at in range(1, len(events(folder)), 2):
        for key, changes in cut(folder, at, lost=lost, restarts=at % 4 == 1).told.items():
            words = [str(change.status) for change in changes]
            if changes[-1].facts.is_inferred:
                assert words[-1] == ("hung_up" if "answered" in words else "failed"), at
            elif words[0] == "initiated" and key in expected:
                assert words[-1] == str(expected[key][-1].status), at
                # Who had come and gone meanwhile is not known.
                assert changes[-1].facts.answered_by in (None, *(change.facts.answered_by for change in expected[key])), at
            assert sum(change.status.is_final for change in changes) == 1


def raced(folder: Path, at: int, chance: random.Random, *, restarts: bool) -> Ledger:
    """The connection is lost, some events are missed, and the switch goes on while it is asked what is alive."""
    watcher, sent = EslWatcher(), deque(events(folder))
    for _ in range(at):
        watcher.feed(sent.popleft())

    def happen(most: int, then: Callable[[Event], None] = watcher.feed) -> None:
        for _ in range(min(len(sent), chance.choice((0, 1, most // 4, most)))):
            then(sent.popleft())

    happen(20, watcher.miss)
    if restarts:
        watcher.forget()
    watcher.watch.doubt()
    happen(20)
    asked, dumps = watcher.watch.to_ask(list(watcher.switch.channels)), []
    for uuid in asked:
        happen(8)
        dumps.append(watcher.switch.dump(uuid, watcher.now))
    happen(20)
    watcher.watch.resync([dump for dump in dumps if dump is not None], watcher.now)
    happen(len(sent) * 4)
    watcher.feed_all(sent)
    if folder.name == "pbx_shutdown_mid_call":
        watcher.switch.channels.clear()
    return finished(watcher)


@each_recording
def test_what_goes_on_while_the_switch_is_asked_is_told_truly_or_marked(folder: Path):
    expected, chance = whole_run(folder).told, random.Random(folder.name)
    for at in range(1, len(events(folder)), 2):
        for key, changes in raced(folder, at, chance, restarts=at % 4 == 1).told.items():
            words, last = [str(change.status) for change in changes], changes[-1]
            assert sum(change.status.is_final for change in changes) == 1
            assert key in expected or last.facts.is_inferred, at
            assert words[-1] == str(expected[key][-1].status) or last.facts.is_inferred, (at, words)
            assert ("answered" in words) == (words[-1] == "hung_up")
            assert last.facts.answered_by in (None, *(change.facts.answered_by for change in expected[key])), at


@each_recording
def test_a_call_first_seen_in_its_middle_is_told_from_there(folder: Path):
    expected = whole_run(folder).told
    for at in range(1, len(events(folder))):
        watcher, sent = EslWatcher(), events(folder)
        for event in sent[:at]:
            watcher.miss(event)
        watcher.reconnect()
        current = {key: [str(change.status) for change in changes] for key, changes in watcher.ledger.told.items()}
        assert all(len(words) == 1 for words in current.values())
        watcher.feed_all(sent[at:])
        if folder.name == "pbx_shutdown_mid_call":
            watcher.switch.channels.clear()
        for key, changes in finished(watcher).told.items():
            words = [str(change.status) for change in changes]
            all_words = [str(change.status) for change in expected[key]]
            assert words == all_words[-len(words) :] or changes[-1].facts.is_inferred, at


@each_recording
def test_who_owns_the_numbers_alone_is_told_as_well(folder: Path):
    """Calls made belong to the number that is shown outside where no extension is a line; no trunk need be named for that."""
    watcher = EslWatcher(LineBook.of([parse_line("zeta", "ddr", "5541306003*")]), trunks=())
    watcher.feed_all(events(folder))
    watcher.switch.channels.clear()
    ledger = finished(watcher)
    for truth in truths(folder):
        direction = Direction(truth["direction"]) if truth["direction"] != "internal" else None
        is_known = direction is Direction.RECEIVED or any(
            event.get("variable_sip_gateway_name") and event["Caller-Caller-ID-Number"].startswith("5541306003")
            for event in events(folder)
        )
        if direction is not None and is_known:
            changes = told(ledger, truth, NUMBERS, direction)
            assert str(changes[-1].status) in (truth["final"], *truth.get("also_right", ()))
    assert all(side.owner.client_id == NUMBERS for _, _, side in ledger.told)


# What another set-up of the same switch would say

OPTIONAL_EVENTS = (
    ("CHANNEL_ORIGINATE", "CALL_UPDATE", "RECORD_START", "PLAYBACK_START", "CHANNEL_STATE", "CHANNEL_CALLSTATE"),
    ("CHANNEL_HANGUP",),
    ("CHANNEL_DESTROY",),
    ("CHANNEL_HANGUP", "CHANNEL_HANGUP_COMPLETE"),
    ("CHANNEL_ORIGINATE", "CALL_UPDATE", "CHANNEL_HANGUP", "CHANNEL_DESTROY", "HEARTBEAT"),
)
SUPERFLUOUS_HEADERS = (  # each set by itself; what else is said must do
    ("Channel-Call-UUID", "variable_call_uuid"),
    ("variable_originator", "variable_originating_leg_uuid", "variable_originate_signal_bond"),
    ("Other-Type", "Other-Leg-.*"),
    ("variable_signal_bond", "variable_bridge_uuid", "variable_bridge_to"),
    ("variable_sip_req_user", "variable_sip_to_user", "Caller-ANI", "Caller-Orig-.*", "Caller-Callee-.*"),
    ("variable_originate_disposition", "variable_last_bridge_.*", "variable_DIALSTATUS"),
    ("Caller-Channel-.*-Time",),
    ("Answer-State", "Channel-Call-State", "Channel-State.*"),
    ("Event-Sequence", "Event-Date-[GL].*", "FreeSWITCH-.*", "variable_dialed_.*"),
    ("variable_hangup_cause_q850", "variable_sip_term_.*", "variable_hangup_cause"),
)


def words_of(ledger: Ledger) -> dict[Any, list[str]]:
    return {key: [str(change.status) for change in changes] for key, changes in ledger.told.items()}


def told_of(folder: Path, sent: list[Event]) -> Ledger:
    watcher = EslWatcher()
    watcher.feed_all(sent)
    if folder.name == "pbx_shutdown_mid_call":
        watcher.switch.channels.clear()
    return finished(watcher)


@pytest.mark.parametrize("dropped", OPTIONAL_EVENTS, ids=lambda names: names[0])
@each_recording
def test_some_events_may_be_missing(folder: Path, dropped: tuple[str, ...]):
    sent = [event for event in events(folder) if event["Event-Name"] not in dropped]
    told, expected = told_of(folder, sent), whole_run(folder)
    assert words_of(told) == words_of(expected)
    assert told.told == expected.told or folder.name == "pbx_shutdown_mid_call"  # its end is when we look, not when it was


@pytest.mark.parametrize("dropped", SUPERFLUOUS_HEADERS, ids=lambda names: names[0])
@each_recording
def test_some_headers_may_be_missing(folder: Path, dropped: tuple[str, ...]):
    pattern = re.compile("|".join(dropped))
    sent = [{name: value for name, value in event.items() if not pattern.fullmatch(name)} for event in events(folder)]
    assert words_of(told_of(folder, sent)) == words_of(whole_run(folder))
