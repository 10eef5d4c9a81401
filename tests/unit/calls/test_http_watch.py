"""What owners of lines are told of posted calls; the store is a real one, since what has been told before is its business."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toque.callbacks.callback import Client
from toque.callbacks.payload import DIRECTION_WORDS, PARTY_WORDS, STATUS_WORDS, PayloadWriter
from toque.calls.gone_watch import GoneWatch
from toque.calls.http_items import Refusal, TooManyItems, Vocabulary
from toque.calls.http_watch import HttpWatch, Result
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import Cause, Direction, Party, Status, StatusChange
from toque.errors import InputError
from toque.store.sqlite import SqliteStore

START = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
OURS, THEIRS = "554130600300", "5511977770002"
LINES = LineBook.of(
    [parse_line("acme", "vendas", OURS), parse_line("zeta", "suporte", "1001"), parse_line("conta", "central", "account:conta")]
)
WORDS = Vocabulary(STATUS_WORDS, PARTY_WORDS, DIRECTION_WORDS)
WHOLE = ("initiated", "ringing", "answered", "hung_up")
A_SECOND = timedelta(seconds=1)
FINALS = [status for status in Status if status.is_final]


class Desk:
    """A watch, its clock, and what it told."""

    def __init__(self) -> None:
        self.watch = HttpWatch("http:dialer", LINES, vocabulary=WORDS)
        self.now = START
        self.told: list[StatusChange] = []

    def post(self, *items: dict[str, Any]) -> list[str]:
        """Post some items in one body; what came of each."""
        read = self.watch.read(msgspec.json.encode(items), self.now)
        results = ["refused"] * len(read)
        for index in self.watch.order_of(read):
            item = read[index]
            if not isinstance(item, Refusal):
                results[index] = str(self.watch.take_in(item, self.now))
        self.pass_time(timedelta())
        return results

    def say(self, status: str, call: str = "c1", **members: Any) -> str:
        """Post one item of an outgoing call, a second after the last."""
        self.now += A_SECOND
        (result,) = self.post({"call": call, "status": status, "from": OURS, "to": THEIRS} | members)
        return result

    def pass_time(self, span: timedelta) -> None:
        self.now += span
        self.watch.tick(self.now)
        changes, self.snapshots = self.watch.take()
        self.told += changes

    def words(self) -> list[str]:
        return [str(change.status) for change in self.told]

    def restart(self) -> None:
        """As a crash does, with what the store has."""
        kept = {one.identity: one.state for one in self.snapshots if one.state is not None}
        self.watch = HttpWatch("http:dialer", LINES, vocabulary=WORDS)
        for state in kept.values():
            self.watch.restore(state, self.now)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_call_is_told_as_it_is_posted(desk: Desk) -> None:
    assert [desk.say(word) for word in WHOLE] == ["accepted"] * 4
    assert desk.words() == list(WHOLE)
    facts = desk.told[-1].facts
    assert (facts.caller, facts.dialled) == (OURS, THEIRS)
    moments = [facts.began_at, facts.ringing_at, facts.answered_at, facts.ended_at]
    assert moments == [START + number * A_SECOND for number in (1, 2, 3, 4)]
    assert not facts.is_inferred
    assert desk.told[0].side.direction is Direction.MADE


def test_the_wires_words_say_the_same(desk: Desk) -> None:
    assert [desk.say(word) for word in ("iniciou", "chamando", "atendeu", "desligou")] == ["accepted"] * 4
    assert desk.words() == list(WHOLE)


@pytest.mark.parametrize("status", [status for status in FINALS if status is not Status.HUNG_UP])
def test_an_end_is_believed_at_once(desk: Desk, status: Status) -> None:
    desk.say("initiated")
    assert desk.say(str(status), cause={"sip": 480}) == "accepted"
    assert desk.words() == ["initiated", str(status)]
    assert desk.told[-1].facts.cause == Cause(480)


@pytest.mark.parametrize("status", FINALS)
def test_after_an_answer_every_end_is_a_hanging_up(desk: Desk, status: Status) -> None:
    desk.say("initiated")
    desk.say("answered")
    assert desk.say(str(status), ended_by="callee", cause={"q850": 16}) == "accepted"
    assert desk.words() == ["initiated", "answered", "hung_up"]
    assert desk.told[-1].facts.hung_up_by is Party.CALLEE
    assert desk.told[-1].facts.cause == Cause(q850=16)


@pytest.mark.parametrize(
    ("before", "members", "word"),
    [
        ((), {"cause": {"sip": 486}}, "busy"),
        ((), {"cause": {"sip": 480, "q850": 17}}, "busy"),
        ((), {"cause": {"q850": 1}}, "invalid_number"),
        ((), {"cause": {"sip": 480}}, "unreachable"),
        (("ringing",), {"cause": {"sip": 480}}, "no_answer"),
        (("ringing",), {"cause": {"sip": 487}, "ended_by": "caller"}, "cancelled"),
        (("ringing",), {"ended_by": "origem"}, "cancelled"),
        (("ringing",), {"cause": {"sip": 401}}, "rejected"),
        (("ringing",), {"cause": {"sip": 302}}, "invalid_number"),
        ((), {"cause": {"sip": 503}}, "congestion"),
        ((), {}, "failed"),
    ],
)
def test_an_ends_word_follows_from_its_cause(desk: Desk, before: tuple[str, ...], members: dict[str, Any], word: str) -> None:
    desk.say("initiated")
    for status in before:
        desk.say(status)
    assert desk.say("ended", **members) == "accepted"
    assert desk.words() == ["initiated", *before, word]


@pytest.mark.parametrize(
    ("status", "by"),
    [("busy", Party.CALLEE), ("rejected", Party.CALLEE), ("cancelled", Party.CALLER), ("congestion", Party.NETWORK)],
)
def test_who_ended_it_is_known_from_some_words(desk: Desk, status: str, by: Party) -> None:
    desk.say(status)
    assert desk.told[-1].facts.hung_up_by is by


def test_hung_up_without_an_answer_stands_for_both(desk: Desk) -> None:
    desk.say("initiated")
    assert desk.say("hung_up") == "accepted"
    assert desk.say("hung_up") == "repeated"
    assert desk.say("busy") == "repeated"
    desk.pass_time(A_SECOND)
    assert desk.words() == ["initiated", "answered", "hung_up"]
    assert desk.told[-1].facts.answered_at is None
    assert not desk.told[-1].facts.is_inferred


def test_hung_up_without_an_answer_survives_a_crash(desk: Desk) -> None:
    desk.say("hung_up")
    desk.restart()
    desk.pass_time(A_SECOND)
    assert desk.words() == ["answered", "hung_up"]


def test_an_answer_that_was_overtaken_by_its_end_is_told_with_its_time(desk: Desk) -> None:
    desk.say("initiated")
    answered_at = desk.now
    desk.say("hung_up")
    assert desk.post({"call": "c1", "status": "answered", "at": answered_at.isoformat()}) == ["accepted"]
    assert desk.words() == ["initiated", "answered", "hung_up"]
    assert desk.told[-1].facts.answered_at == answered_at


@pytest.mark.parametrize(
    "late", ["initiated", "ringing", "answered", "busy", "hung_up", "ended", "alive", "connected", "picked_up"]
)
def test_nothing_is_told_after_the_end(desk: Desk, late: str) -> None:
    desk.say("initiated")
    desk.say("busy")
    assert desk.say(late) == "repeated"
    assert desk.words() == ["initiated", "busy"]


def test_what_was_overtaken_is_not_told(desk: Desk) -> None:
    desk.say("answered")
    assert desk.say("ringing") == "repeated"
    assert desk.say("initiated") == "repeated"
    desk.say("hung_up")
    assert desk.words() == ["answered", "hung_up"]


def test_repetitions_within_a_call_add_nothing(desk: Desk) -> None:
    for word in WHOLE:
        assert desk.say(word) == "accepted"
        assert desk.say(word) == "repeated"
    assert desk.words() == list(WHOLE)


def test_a_call_first_seen_in_its_middle_is_told_from_there(desk: Desk) -> None:
    desk.say("ringing")
    desk.say("no_answer")
    assert desk.words() == ["ringing", "no_answer"]
    assert desk.told[0].facts.began_at is None


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_items_of_one_body_go_by_their_moments(desk: Desk, order: tuple[int, ...]) -> None:
    items = [
        {"call": "c1", "status": word, "from": OURS, "at": (START + number * A_SECOND).isoformat()}
        for number, word in enumerate(WHOLE)
    ]
    assert desk.post(*(items[number] for number in order)) == ["accepted"] * 4
    assert desk.words() == list(WHOLE)


def test_a_queues_own_answer_is_kept_apart(desk: Desk) -> None:
    desk.say("initiated")
    assert desk.say("picked_up") == "accepted"
    assert desk.words() == ["initiated"]
    desk.say("answered", answered_by="1002")
    assert desk.told[-1].facts.pbx_answered_at == START + 2 * A_SECOND
    assert desk.told[-1].facts.answered_by == "1002"


def test_who_is_connected_later_is_told_with_the_end(desk: Desk) -> None:
    desk.say("answered", answered_by="1002")
    assert desk.say("connected", answered_by=1003) == "accepted"
    desk.say("hung_up")
    assert desk.words() == ["answered", "hung_up"]
    assert desk.told[-1].facts.answered_by == "1003"


def test_whoever_is_connected_has_been_answered(desk: Desk) -> None:
    assert desk.say("connected", answered_by="1003") == "accepted"
    assert desk.words() == ["answered"]


def test_nobodys_call_is_unmatched(desk: Desk) -> None:
    assert desk.say("initiated", **{"from": "4199990000"}) == "unmatched"
    assert desk.say("busy", **{"from": "4199990000"}) == "unmatched"
    assert desk.told == []
    assert len(desk.watch.take_unmatched()) == 1


def test_lines_decide_owner_and_direction(desk: Desk) -> None:
    desk.say("initiated", **{"from": "+55 (41) 3060-0300", "to": "1001"})
    assert [(one.side.owner.client_id, str(one.side.direction)) for one in desk.told] == [("acme", "made"), ("zeta", "received")]


def test_the_sources_direction_counts_where_a_call_comes_in(desk: Desk) -> None:
    desk.say("initiated", direction="recebida", **{"from": OURS, "to": "1001"})
    assert [one.side.owner.client_id for one in desk.told] == ["zeta"]


def test_hints_count_where_no_number_is_a_line(desk: Desk) -> None:
    assert desk.say("initiated", account="conta", direction="received", **{"from": "41999"}) == "accepted"
    assert [(one.side.owner.client_id, str(one.side.direction)) for one in desk.told] == [("conta", "received")]


def test_numbers_that_come_later_may_say_whose_call_it_is(desk: Desk) -> None:
    assert desk.post({"call": "c1", "status": "initiated"}) == ["unmatched"]
    assert desk.say("ringing") == "accepted"
    desk.say("busy")
    assert desk.words() == ["initiated", "ringing", "busy"]
    assert desk.told[-1].facts.dialled == THEIRS


def test_later_items_need_no_numbers(desk: Desk) -> None:
    desk.say("initiated")
    desk.post({"call": "c1", "status": "ringing"}, {"call": "c1", "status": "no_answer"})
    assert desk.words() == ["initiated", "ringing", "no_answer"]
    assert (desk.told[-1].facts.caller, desk.told[-1].facts.dialled) == (OURS, THEIRS)


def test_a_call_that_falls_silent_is_concluded(desk: Desk) -> None:
    desk.say("initiated")
    desk.pass_time(timedelta(minutes=11))
    assert desk.words() == ["initiated", "failed"]
    assert desk.told[-1].facts.is_inferred
    assert desk.say("answered") == "repeated"
    assert list(desk.watch.take_late()) == [desk.told[0].identity]


def test_a_sign_of_life_puts_that_off_and_begins_nothing(desk: Desk) -> None:
    assert desk.say("alive") == "repeated"
    desk.say("answered")
    for _ in range(5):
        desk.pass_time(timedelta(hours=3))
        assert desk.say("alive") == "accepted"
    assert desk.words() == ["answered"]


def test_too_many_items_are_refused_as_a_whole(desk: Desk) -> None:
    with pytest.raises(TooManyItems):
        desk.watch.read(b"[" + b",".join([b"{}"] * 10_001) + b"]", START)
    with pytest.raises(InputError):
        desk.watch.read(b"{", START)


SAID = st.fixed_dictionaries(
    {"call": st.sampled_from("ab"), "status": st.sampled_from(sorted(WORDS.said)), "from": st.just(OURS)},
    optional={
        "at": st.integers(0, 5).map(lambda s: (START + s * A_SECOND).isoformat()),
        "ended_by": st.sampled_from(list(Party)),
    },
)


@given(st.lists(st.lists(SAID, max_size=4), max_size=8))
def test_whatever_is_posted_each_call_is_told_in_order_and_ends_once(bodies: list[list[dict[str, Any]]]) -> None:
    desk = Desk()
    for body in bodies:
        desk.post(*body)
        desk.now += A_SECOND / 4
    desk.pass_time(timedelta(hours=5))
    ranks = {Status.INITIATED: 1, Status.RINGING: 2, Status.ANSWERED: 3}
    for call in "ab":
        told = [ranks.get(change.status, 4) for change in desk.told if change.identity.key == call]
        assert told == sorted(set(told))
        if told:
            assert told[-1] == 4
            words = [change.status for change in desk.told if change.identity.key == call]
            assert (words[-1] is Status.HUNG_UP) == (Status.ANSWERED in words)


# What the store remembers


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "toque.db", PayloadWriter(ZoneInfo("America/Sao_Paulo")))
    store.lock()
    await store.recover()
    await store.add_client(Client("acme", "acme", "no login", 1, START))
    yield store
    await store.close()


@pytest.mark.parametrize("has_moments", [True, False])
async def test_repeating_a_call_hours_later_adds_nothing(store: SqliteStore, has_moments: bool) -> None:
    desk = Desk()
    items = [
        {"call": "c1", "status": word, "from": OURS} | ({"at": START.isoformat()} if has_moments else {})
        for word in ("initiated", "ringing", "no_answer")
    ]
    for hours, whole in [(0, True), (0, True), (1, True), (24, True), (48, False), (72, True)]:
        desk.now = START + timedelta(hours=hours)
        if hours == 24:
            desk = Desk()  # a restart
        body = desk.watch.read(msgspec.json.encode(items if whole else items[1:]), desk.now)
        results = [desk.watch.take_in(item, desk.now) for item in body]
        desk.watch.tick(desk.now)
        appended = await store.append(*desk.watch.take())
        assert appended.events == (3 if (hours, results[0]) == (0, Result.ACCEPTED) else 0)


def test_a_poster_that_comes_back_goes_on_with_its_calls(desk: Desk) -> None:
    """Its credential was removed and the server restarted; then it was added again under the same name."""
    desk.say("initiated")
    gone = GoneWatch("http:dialer")
    (kept,) = desk.snapshots
    gone.restore(kept.state, desk.now)
    desk.watch = HttpWatch("http:dialer", LINES, vocabulary=WORDS, tracker=gone.tracker)
    desk.watch.tracker.lines = LINES
    assert desk.say("initiated") == "repeated"
    assert desk.say("busy") == "accepted"
    assert desk.words() == ["initiated", "busy"]
