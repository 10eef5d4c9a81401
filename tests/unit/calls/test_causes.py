import pytest

from toque.calls.causes import ender_of, is_plain, is_retriable, word_for, word_of_group
from toque.calls.model import Cause, Party, Status

BUSY, REJECTED, INVALID = Status.BUSY, Status.REJECTED, Status.INVALID_NUMBER
CONGESTION, NO_ANSWER, UNREACHABLE, FAILED = Status.CONGESTION, Status.NO_ANSWER, Status.UNREACHABLE, Status.FAILED

# The rows of docs/api.md in their order: SIP codes, Q.850 values, the word after ringing and without ringing.
ROWS = [
    ({486, 600}, {17}, BUSY, BUSY),
    ({603, 607, 608, 403, 401, 407}, {21, *range(50, 58)}, REJECTED, REJECTED),
    ({404, 410, 484, 485, 604, 414, 416, 300, 301, 302, 305, 380}, {1, 5, 22, 28}, INVALID, INVALID),
    ({503}, {34, 42, 44, 47}, CONGESTION, CONGESTION),
    ({480, 408, 504}, {18, 19, 102}, NO_ANSWER, UNREACHABLE),
    ({487}, {16}, NO_ANSWER, FAILED),
    ({430}, {20, 27}, FAILED, UNREACHABLE),
    ({400, 405, 415, 420, 481, 482, 483, 488, 491, 500, 501, 502, 505, 513, 580, 606}, {2, 3, 31, 38, 41, 88, 127}, FAILED, FAILED),
]  # fmt: skip
SIP = [(code, rang, word) for codes, _, *words in ROWS for code in codes for rang, word in zip((True, False), words, strict=True)]
Q850 = [
    (value, rang, word) for _, values, *words in ROWS for value in values for rang, word in zip((True, False), words, strict=True)
]


@pytest.mark.parametrize(("code", "rang", "word"), SIP)
def test_sip_codes(code: int, rang: bool, word: Status):
    assert word_for(Cause(sip=code), rang=rang) is word


@pytest.mark.parametrize(("value", "rang", "word"), Q850)
def test_q850_values(value: int, rang: bool, word: Status):
    assert word_for(Cause(q850=value), rang=rang) is word


@pytest.mark.parametrize("wrapper", [480, 487, 500, 502, 503])
@pytest.mark.parametrize(("value", "rang", "word"), [row for row in Q850 if row[2] is not FAILED])
def test_a_wrapped_q850_value_decides(wrapper: int, value: int, rang: bool, word: Status):
    assert word_for(Cause(sip=wrapper, q850=value), rang=rang) is word


@pytest.mark.parametrize(
    ("code", "word"), [(486, BUSY), (600, BUSY), (603, REJECTED), (403, REJECTED), (404, INVALID), (484, INVALID)]
)
def test_a_code_that_speaks_for_itself_decides(code: int, word: Status):
    assert is_plain(code)
    assert word_for(Cause(sip=code, q850=16), rang=True) is word


@pytest.mark.parametrize("value", [26, 31, 127])
def test_a_q850_value_that_says_nothing_leaves_it_to_the_code(value: int):
    assert word_for(Cause(sip=480, q850=value), rang=True) is NO_ANSWER
    assert word_for(Cause(sip=503, q850=value), rang=False) is CONGESTION


@pytest.mark.parametrize("rang", [True, False])
def test_nothing_known_is_failed(rang: bool):
    assert word_for(Cause(), rang=rang) is FAILED


@pytest.mark.parametrize(
    ("words", "word"),
    [
        ([], None),
        ([BUSY], BUSY),
        ([BUSY, NO_ANSWER], NO_ANSWER),
        ([NO_ANSWER, BUSY], NO_ANSWER),
        ([NO_ANSWER, REJECTED], NO_ANSWER),
        ([NO_ANSWER, BUSY, REJECTED], NO_ANSWER),
        ([NO_ANSWER, UNREACHABLE], UNREACHABLE),
        ([NO_ANSWER, INVALID], INVALID),
        ([BUSY, REJECTED], REJECTED),
        ([CONGESTION, BUSY], BUSY),
    ],
)
def test_the_last_leg_speaks_for_a_group_unless_one_rang_out(words: list[Status], word: Status | None):
    assert word_of_group(words) is word


@pytest.mark.parametrize(
    ("cause", "party"),
    [
        (Cause(sip=486), Party.CALLEE),
        (Cause(sip=600), Party.CALLEE),
        (Cause(sip=603), Party.CALLEE),
        (Cause(sip=607), Party.CALLEE),
        (Cause(sip=608), Party.NETWORK),
        (Cause(sip=403), Party.NETWORK),
        (Cause(sip=404), Party.NETWORK),
        (Cause(sip=503), Party.NETWORK),
        (Cause(sip=480, q850=17), Party.CALLEE),
        (Cause(sip=480, q850=21), Party.CALLEE),
        (Cause(sip=480, q850=18), Party.NETWORK),
        (Cause(sip=404, q850=17), Party.NETWORK),
        (Cause(sip=480), None),
        (Cause(sip=487), None),
        (Cause(), Party.NETWORK),
    ],
)
def test_who_ended_it(cause: Cause, party: Party | None):
    assert ender_of(cause) is party


@pytest.mark.parametrize("code", [300, 302, 399, 401, 407, 413, 415, 416, 420, 421, 422, 428, 494])
def test_retriable(code: int):
    assert is_retriable(code)


@pytest.mark.parametrize("code", [None, 200, 400, 403, 404, 480, 486, 487, 500, 503, 603])
def test_not_retriable(code: int | None):
    assert not is_retriable(code)
