import pytest

from toque.calls.lines import MAX_LINE_CHARACTERS, Line, LineBook, LineKind, conflict, normalise, parse_line
from toque.calls.model import Owner
from toque.errors import InputError

CURITIBA, MOBILE, TOLL_FREE = "554130600300", "5541999990001", "558007771234"


@pytest.mark.parametrize(
    ("dialled", "number"),
    [
        (CURITIBA, CURITIBA),
        ("+55 (41) 3060-0300", CURITIBA),
        ("4130600300", CURITIBA),
        ("(41) 3060.0300", CURITIBA),
        pytest.param("04130600300", CURITIBA, id="trunk-0"),
        pytest.param("0154130600300", CURITIBA, id="carrier-15"),
        pytest.param("0 21 41 3060-0300", CURITIBA, id="carrier-21"),
        pytest.param("0414130600300", CURITIBA, id="carrier-41-is-not-the-area"),
        pytest.param("904130600300", CURITIBA, id="collect-call"),
        pytest.param("00554130600300", CURITIBA, id="00"),
        pytest.param("0015554130600300", CURITIBA, id="00-and-carrier"),
        ("41999990001", MOBILE),
        ("041999990001", MOBILE),
        ("01541999990001", MOBILE),
        ("+5541999990001", MOBILE),
        pytest.param("5532210000", "555532210000", id="area-55-landline"),
        pytest.param("55999990001", "5555999990001", id="area-55-mobile"),
        pytest.param("555532210000", "555532210000", id="area-55-with-country"),
        ("0800 777 1234", TOLL_FREE),
        ("8007771234", TOLL_FREE),
        (TOLL_FREE, TOLL_FREE),
        ("03001234567", "553001234567"),
        ("+1 212 555 1234", "12125551234"),
        ("0012125551234", "12125551234"),
        ("001512125551234", "12125551234"),
        ("00351211234567", "351211234567"),
    ],
)
def test_public_numbers_are_compared_in_international_form(dialled: str, number: str):
    assert normalise(dialled) == number


@pytest.mark.parametrize(
    "number",
    [
        "1001",
        "190",
        "0",
        "30600300",
        "999990001",
        "40041234",
        "auth1",
        "ip4130600300",
        "*8",
        "#31#",
        "+",
        "-",
        "",
        "٤١٣٠٦٠٠٣٠٠",
        "1" * 19,
    ],
)
def test_what_is_no_public_number_stays_as_it_stands(number: str):
    assert normalise(number) == number


@pytest.mark.parametrize(
    ("number", "country", "expected"),
    [
        ("2125551234", "1", "12125551234"),
        ("02079460000", "44", "442079460000"),
        ("011442079460000", "1", "442079460000"),
        ("4130600300", "999", "4130600300"),
        ("4130600300", "", "4130600300"),
        ("4130600300", "zz", "4130600300"),
    ],
)
def test_other_countries(number: str, country: str, expected: str):
    assert normalise(number, country) == expected


@pytest.mark.parametrize(
    ("text", "kind", "number", "again"),
    [
        ("(41) 3060-0300", LineKind.EXACT, CURITIBA, CURITIBA),
        (" 1001 ", LineKind.EXACT, "1001", "1001"),
        ("auth1", LineKind.EXACT, "auth1", "auth1"),
        ("001 212 555 1234", LineKind.EXACT, "12125551234", "+12125551234"),
        ("5541306003*", LineKind.PREFIX, "5541306003", "5541306003*"),
        ("+55 (41) 3060-03*", LineKind.PREFIX, "5541306003", "5541306003*"),
        ("10*", LineKind.PREFIX, "10", "10*"),
        (r"~55(11|21)\d*", LineKind.PATTERN, r"55(11|21)\d*", r"~55(11|21)\d*"),
    ],
)
def test_lines_are_read_and_written(text: str, kind: LineKind, number: str, again: str):
    line = parse_line("acme", "vendas", text)
    assert line == Line("acme", "vendas", kind, number)
    assert line.text == again
    assert parse_line("acme", "vendas", line.text) == line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "*",
        "+*",
        "4*1",
        "4**",
        "~",
        "~(",
        "~[",
        "~*",
        "~a{99999999999}",
        "10\n01",
        "\x00",
        "0800*",
        "00*",
        "0*",
        "1" * (MAX_LINE_CHARACTERS + 1),
    ],
)
def test_refused_lines(text: str):
    with pytest.raises(InputError):
        parse_line("acme", "vendas", text)


def book(*lines: tuple[str, str]) -> LineBook:
    return LineBook.of(parse_line("acme", pin, text) for pin, text in lines)


@pytest.mark.parametrize(
    ("number", "pin"),
    [
        ("554130600300", "exact"),
        ("04130600300", "exact"),
        ("554130600301", "long prefix"),
        ("554130600399", "long prefix"),
        ("554130601234", "short prefix"),
        ("554139999999", "pattern"),
        ("5541", "pattern"),
        ("554", None),
        ("5511977770002", None),
        ("", None),
        ("554130600300" + "0" * MAX_LINE_CHARACTERS, None),
    ],
)
def test_exact_beats_the_longest_prefix_which_beats_patterns(number: str, pin: str | None):
    lines = book(("pattern", r"~5541\d*"), ("short prefix", "55413060*"), ("long prefix", "5541306003*"), ("exact", CURITIBA))
    assert lines.owner(number) == (Owner("acme", pin) if pin else None)


def test_patterns_match_the_whole_number_in_the_order_of_the_lines():
    lines = book(("first", r"~1\d"), ("second", r"~1\d\d?"))
    assert [lines.owner(number) for number in ("10", "100", "1000")] == [Owner("acme", "first"), Owner("acme", "second"), None]


def test_of_equal_lines_the_first_keeps_the_number():
    assert book(("first", "1001"), ("second", "1001"), ("first", "2*"), ("second", "2*")).owner("1001") == Owner("acme", "first")


def test_the_country_of_the_book_counts():
    lines = LineBook.of([parse_line("acme", "ny", "2125551234", "1")], country="1")
    assert lines.owner("+12125551234") == lines.owner("2125551234") == Owner("acme", "ny")


@pytest.mark.parametrize(
    ("mine", "theirs", "is_conflict"),
    [
        ("1001", "1001", True),
        ("04130600300", "+554130600300", True),
        ("1001", "1002", False),
        ("5541306003*", "554130600300", True),
        ("554130600300", "5541306003*", True),
        ("5541306003*", "5541306004*", False),
        ("5541306003*", "55413060*", True),
        ("55413060*", "5541306003*", True),
        (r"~55\d*", r"~55\d*", True),
        (r"~55\d*", r"~5\d*", False),
        (r"~55\d*", "554130600300", True),
        ("554130600300", r"~55\d*", True),
        ("1001", r"~55\d*", False),
        (r"~55\d*", "55*", False),
    ],
)
def test_no_number_has_two_owners(mine: str, theirs: str, is_conflict: bool):
    other = parse_line("zeta", "suporte", theirs)
    assert conflict(parse_line("acme", "vendas", mine), [other]) == (other if is_conflict else None)


def test_a_client_may_own_a_number_twice():
    assert conflict(parse_line("acme", "vendas", "10*"), [parse_line("acme", "suporte", "1001")]) is None


def test_what_a_switch_knows_can_be_a_line():
    book = LineBook.of([parse_line("acme", "a", "account:acme"), parse_line("zeta", "b", "context:from-zeta-*")])
    assert book.owner_of_hint("account:acme") == Owner("acme", "a")
    assert book.owner_of_hint("context:from-zeta-1") == Owner("zeta", "b")
    assert book.owner_of_hint("context:from-acme") is None
    assert book.owner("account:acme") is None  # that is what a caller says of himself
