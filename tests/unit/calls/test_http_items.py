"""Bodies of the HTTP intake: every item is good or refused by itself, and what is no JSON is refused as a whole."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toque.calls.http_items import (
    MAX_CALL_CHARACTERS,
    MAX_ITEMS,
    RANKS,
    Item,
    Refusal,
    TooManyItems,
    Vocabulary,
    check_items,
    order_of,
    read_items,
)
from toque.calls.model import Cause, Direction, Party, Status
from toque.errors import InputError

NOW = datetime(2026, 7, 1, 15, 0, tzinfo=UTC)
WORDS = Vocabulary({Status.BUSY: "ocupado", Status.ANSWERED: "atendeu"}, {Party.CALLER: "origem"}, {Direction.MADE: "realizada"})
GOOD = {"call": "1", "status": "ringing"}


def read(body: Any, **how: Any) -> list[Item | Refusal]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return check_items(read_items(raw, **how), WORDS, NOW)


def refusal(**members: Any) -> str:
    (item,) = read(GOOD | members)
    assert isinstance(item, Refusal), item
    return item.reason


def test_an_object_an_array_and_lines_are_read() -> None:
    item = Item("1", "ringing", NOW)
    assert read(GOOD) == [item]
    assert read([GOOD, GOOD]) == [item, item]
    line = json.dumps(GOOD).encode()
    assert read(line + b"\n\r\n" + line + b"\r\n", is_lines=True) == [item, item]
    assert read(line + b"\n" + line) == [item, item]
    assert read(json.dumps(GOOD, indent=2).encode()) == [item]
    assert read([]) == []


def test_every_member_is_read() -> None:
    whole = {
        "call": 7, "status": "ended", "at": "2026-07-01T11:59:59.250-03:00", "from": 1001, "to": "+55 11 97777-0002", "answered_by": "1002",
        "cause": {"sip": 486, "q850": 17, "text": "Busy Here"}, "ended_by": "callee", "direction": "received", "account": "acme",
        "tenant": None, "id": "x-1", "something": {"else": []},
    }  # fmt: skip
    (item,) = read(whole)
    at = datetime(2026, 7, 1, 14, 59, 59, 250_000, UTC)
    cause = Cause(486, 17, "Busy Here")
    assert item == Item(
        "7", "ended", at, "1001", "+55 11 97777-0002", "1002", cause, "callee", "received", "acme", None, id="x-1"
    )
    assert item.at.tzinfo is UTC


@pytest.mark.parametrize(
    ("at", "moment"),
    [
        (1782918000000, NOW),
        (1782918000000.5, NOW + timedelta(microseconds=500)),
        ("2026-07-01T15:00:00Z", NOW),
        ("2026-07-01T12:00:00-03:00", NOW),
        (None, NOW),
    ],
)
def test_a_moment_is_a_date_with_an_offset_or_milliseconds(at: Any, moment: datetime) -> None:
    (item,) = read(GOOD | {"at": at})
    assert item.at == moment


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"at": "2026-07-01T12:00:00"}, "offset"),
        ({"at": "yesterday"}, "at: Invalid"),
        ({"at": 1782918000}, "milliseconds"),
        ({"at": 1e300}, "milliseconds"),
        ({"at": -(10**17)}, "milliseconds"),
        ({"at": "2026-07-03T15:00:00Z"}, "ahead"),
        ({"at": "1999-12-31T23:59:59Z"}, "1999"),
        ({"at": "0001-01-01T00:00:00+14:00"}, "range"),
        ({"at": True}, "at: Expected"),
        ({"call": ""}, "call: must not be empty"),
        ({"call": "x" * (MAX_CALL_CHARACTERS + 1)}, "call: must have at most"),
        ({"call": "a\nb"}, "printable"),
        ({"call": 1.5}, "call: Expected"),
        ({"call": None}, "call: Expected"),
        ({"status": "gone"}, "status: must be one of picked_up"),
        ({"status": 3}, "status: Expected"),
        ({"from": "x" * 300}, "from: must have"),
        ({"to": "a\tb"}, "to: must have"),
        ({"from": ["1"]}, "from: Expected"),
        ({"answered_by": "\u202e"}, "answered_by: must have"),
        ({"cause": {"sip": 200}}, "cause.sip"),
        ({"cause": {"q850": 128}}, "cause.q850"),
        ({"cause": {"text": "x" * 300}}, "cause.text"),
        ({"cause": 16}, "cause: Expected"),
        ({"ended_by": "me"}, "ended_by: must be one of"),
        ({"direction": "up"}, "direction: must be one of"),
        ({"id": "x" * 256}, "id: must have at most"),
        ({"from": 10**400}, "from: "),
    ],
)
def test_what_is_wrong_with_an_item_is_told(members: dict[str, Any], said: str) -> None:
    reason = refusal(**members)
    assert said in reason
    assert "`" not in reason


def test_a_missing_member_is_named() -> None:
    (item,) = read({"call": "1", "id": 7})
    assert item == Refusal("Object missing required field status", "1", 7)


@pytest.mark.parametrize("is_lines", [False, True])
def test_one_bad_item_leaves_the_others_alone(is_lines: bool) -> None:
    items = [GOOD | {"call": str(number)} for number in range(100)]
    items[41] = {"status": "ringing", "id": "bad"}
    body = b"\n".join(json.dumps(item).encode() for item in items) if is_lines else json.dumps(items).encode()
    found = read(body, is_lines=is_lines)
    assert [isinstance(item, Refusal) for item in found] == [number == 41 for number in range(100)]
    assert found[41].id == "bad"


def test_a_line_that_is_no_json_is_refused_alone() -> None:
    line = json.dumps(GOOD).encode()
    found = read(line + b"\n{oops\n" + line, is_lines=True)
    assert [isinstance(item, Refusal) for item in found] == [False, True, False]


@pytest.mark.parametrize(
    "body", [b"", b" \n ", b"{", b"[", b"oops", b"[{},", b'{"call":"1"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000]
)
def test_what_is_no_json_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(InputError):
        read_items(body)
    try:
        found = read_items(body, is_lines=True)
    except InputError:
        return
    assert all(isinstance(item, Refusal) for item in found)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_items_or_an_input_error(body: bytes) -> None:
    for is_lines in (False, True):
        try:
            found = read_items(body, is_lines=is_lines)
        except InputError:
            continue
        assert all(isinstance(item, Item | Refusal) for item in check_items(found, WORDS, NOW))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3),
)
NEARLY_ITEMS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("call", "status", "at", "from", "to", "answered_by", "cause", "ended_by", "id"), ANYTHING),
)


@given(st.lists(NEARLY_ITEMS | ANYTHING, max_size=5))
def test_any_json_is_one_answer_an_item(items: list[Any]) -> None:
    for found in (read(items), read(b"\n".join(json.dumps(item).encode() for item in items) or b"{}", is_lines=True)):
        assert len(found) == len(items) or not items
        for item in found:
            if isinstance(item, Item):
                assert item.at.tzinfo is UTC
                assert isinstance(item.call, str)


def test_the_words_of_the_wire_are_read() -> None:
    assert WORDS.said["ocupado"] == WORDS.said["busy"]
    assert WORDS.said["atendeu"] == WORDS.said["answered"]
    assert WORDS.parties["origem"] is WORDS.parties["caller"] is Party.CALLER
    assert WORDS.directions["realizada"] is Direction.MADE
    assert {WORDS.said[str(status)].rank for status in Status if status.is_final} == {4}
    assert all(WORDS.said[str(status)].rank == RANKS[status] for status in Status)


def ordered(*items: tuple[str, str, float]) -> list[int]:
    body = [{"call": call, "status": status, "at": (NOW.timestamp() + at) * 1000} for call, status, at in items]
    return list(order_of(read(body), WORDS))


def test_items_stand_as_they_were_sent_where_each_call_is_in_order() -> None:
    assert ordered(("a", "initiated", -1), ("a", "hung_up", 0), ("b", "initiated", -9), ("b", "ringing", -9)) == [0, 1, 2, 3]


def test_a_call_whose_items_are_out_of_order_is_put_in_order() -> None:
    assert ordered(("a", "hung_up", 0), ("a", "answered", -5), ("a", "initiated", -9)) == [2, 1, 0]


def test_where_moments_are_equal_the_order_of_a_calls_life_counts() -> None:
    assert ordered(("a", "hung_up", 0), ("a", "ringing", 0), ("a", "answered", 0), ("a", "initiated", 0)) == [3, 1, 2, 0]


@pytest.mark.parametrize("item", [b"1", b"{}", b'{"call":1,"status":"x"}'])
def test_too_many_items_are_not_read_one_by_one(item: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen MiB of bad items would hold everybody up for ten seconds, and take a gigabyte."""
    monkeypatch.setattr("toque.calls.http_items._read_item", lambda _: pytest.fail("it was read"))
    for count in (MAX_ITEMS + 1, 101 * MAX_ITEMS):
        with pytest.raises(TooManyItems):
            read_items(b"[" + b",".join([item] * count) + b"]")
        with pytest.raises(TooManyItems):
            read_items(b"\n\n".join([item] * count), is_lines=True)


@pytest.mark.parametrize("number", [b"9" * 5000, b"1e999"])
@pytest.mark.parametrize("member", [b"call", b"id", b"at"])
def test_a_number_beyond_all_bounds_is_one_bad_item(member: bytes, number: bytes) -> None:
    bad = b'{"status":"ringing","call":"1","%s":%s}' % (member, number)
    (alone,), (first, second) = read(bad), read(b"[%s,%s]" % (bad, json.dumps(GOOD).encode()))
    assert isinstance(alone, Refusal)
    assert alone == first
    assert second == Item("1", "ringing", NOW)


@pytest.mark.parametrize("member", ["call", "id"])
def test_of_a_bad_items_name_no_more_is_repeated_than_a_name_may_have(member: str) -> None:
    (told,) = read(GOOD | {"status": 1, member: "x" * 1000})
    assert getattr(told, member) == "x" * MAX_CALL_CHARACTERS
    (told,) = read(GOOD | {"status": 1, member: [["x"] * 1000]})
    assert getattr(told, member) is None


@pytest.mark.parametrize("member", ["account", "tenant", "endpoint", "context"])
def test_hints_are_as_short_as_lines(member: str) -> None:
    assert refusal(**{member: "x" * 201}) == f"{member}: must have at most 200 printable characters"
    assert refusal(**{member: "a\nb"}) == f"{member}: must have at most 200 printable characters"
    (item,) = read(GOOD | {member: "x" * 200})
    assert isinstance(item, Item)
