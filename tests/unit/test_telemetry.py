"""Logs: their two forms, what strangers may not do to them, masked numbers, and floods held back."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from toque.telemetry import Sparingly, mask_number, printable, set_up_logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:], root.level = handlers, level
    logging.getLogger("uvicorn").setLevel(logging.NOTSET)
    structlog.reset_defaults()


# The two forms


def test_json_is_one_object_a_line(stream: io.StringIO):
    set_up_logs(form="json", level="info", stream=stream)
    structlog.get_logger("toque.api").info("token.granted", client="ana", nota="ção 📞", n=5)
    logging.getLogger("biblioteca").warning("perdeu %d", 3)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "token.granted", "level": "info", "logger": "toque.api", "client": "ana", "nota": "ção 📞", "n": 5}
    assert (second["event"], second["level"], second["logger"]) == ("perdeu 3", "warning", "biblioteca")


def test_human_is_one_line_without_colours_where_nobody_looks(stream: io.StringIO):
    set_up_logs(form="human", level="info", stream=stream)
    structlog.get_logger("toque.api").info("token.granted", client="ana")
    (line,) = stream.getvalue().splitlines()
    assert "token.granted" in line
    assert "client=ana" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("form", ["json", "human"])
def test_the_level_counts_for_everybody(stream: io.StringIO, form: str):
    set_up_logs(form=form, level="warning", stream=stream)
    for logger in (structlog.get_logger("toque"), logging.getLogger("biblioteca")):
        logger.info("calado")
        logger.warning("dito")
    assert "calado" not in stream.getvalue()
    assert stream.getvalue().count("dito") == 2


def test_uvicorn_is_heard_from_warnings_on(stream: io.StringIO):
    set_up_logs(form="json", level="debug", stream=stream)
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.error").warning("problema")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["problema"]


@pytest.mark.parametrize("form", ["json", "human"])
def test_a_traceback_shows_no_variables(stream: io.StringIO, form: str):
    set_up_logs(form=form, level="info", stream=stream)
    segredo = "whsec_abc"
    try:
        raise ValueError(len(segredo))
    except ValueError as error:
        structlog.get_logger("toque").error("api.failed", exc_info=error)
        logging.getLogger("biblioteca").exception("caiu")
    assert stream.getvalue().count("ValueError: 9") == 2
    assert "test_telemetry.py" in stream.getvalue()
    assert segredo not in stream.getvalue()


def test_setting_up_again_replaces_what_was(stream: io.StringIO):
    other = io.StringIO()
    set_up_logs(form="json", level="info", stream=other)
    set_up_logs(form="json", level="info", stream=stream)
    structlog.get_logger("toque").info("dito")
    assert (other.getvalue(), stream.getvalue().count("dito")) == ("", 1)


def test_logs_go_to_stderr_unless_told_otherwise(stream: io.StringIO, capsys: pytest.CaptureFixture[str]):
    set_up_logs(form="json", level="info")
    structlog.get_logger("toque").info("dito")
    assert json.loads(capsys.readouterr().err)["event"] == "dito"


# Strangers' texts


HOSTILE = 'x\n2026-01-01 [critical] forjado\r\x1b[2J\x1b]0;título\x07\x9b31m\u2028\u202eabc\x00\x85"'


@pytest.mark.parametrize("form", ["json", "human"])
def test_a_strangers_text_begins_no_line_and_steers_no_terminal(stream: io.StringIO, form: str):
    set_up_logs(form=form, level="info", stream=stream)
    structlog.get_logger("toque").info("hep.refused", problem=HOSTILE)
    structlog.get_logger("toque").info("hep.refused", problem="\x1b[2J\ud800")  # nothing else that would have it quoted
    logging.getLogger("biblioteca").warning("%s", HOSTILE)
    assert len(stream.getvalue().splitlines()) == 3
    assert all(character.isprintable() for character in stream.getvalue().replace("\n", ""))
    assert stream.getvalue().encode()  # a lone surrogate would be lost on its way out
    if form == "json":
        assert json.loads(stream.getvalue().splitlines()[0])["problem"].startswith("x\\n2026-01-01")


@given(st.text(alphabet=st.characters()))
def test_printable_is_printable_and_keeps_what_was_so(text: str):
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


# Numbers


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("554130600300", "55413060****"),
        ("+554130600300", "+55413060****"),
        ("5511977770001", "551197777****"),
        ("4130600300", "413060****"),
        ("30600300", "3060****"),
        ("ip4130600300", "ip413060****"),
        ("sip:554130600300@pbx.example", "sip:55413060****@pbx.example"),
        ("+55 41 3060-0300", "+55 41 3060-****"),
        ("(41) 3060-03 00", "(41) 3060-** **"),
        ("0" * 40, "0" * 36 + "****"),
        ("554130600300;554130600301", "55413060****;55413060****"),
        ("1001", "1001"),
        ("0800123", "0800123"),
        ("auth1", "auth1"),
        ("ramal-7", "ramal-7"),
        ("anonymous", "anonymous"),
        ("", ""),
    ],
)
def test_a_number_loses_its_last_four_digits(number: str, shown: str):
    assert mask_number(number) == shown


@given(st.text(alphabet="0123456789", min_size=8, max_size=40), st.text(alphabet=" .()-", max_size=2), st.integers(1, 7))
def test_separators_do_not_show_a_number(digits: str, separator: str, place: int):
    number = digits[:place] + separator + digits[place:]
    shown = mask_number(number)
    assert len(shown) == len(number)
    assert [c for c in shown if c.isdecimal() or c == "*"] == [*digits[:-4], *"****"]


# Floods


def test_a_flood_is_held_back_and_counted():
    now = 100.0
    sparingly = Sparingly(lambda: now, period_s=60, burst=3)
    assert [sparingly.admits() for _ in range(5)] == [True] * 3 + [False] * 2
    assert (sparingly.take_held_back(), sparingly.take_held_back()) == (2, 0)
    now += 59.9
    assert not sparingly.admits()
    now += 0.1
    assert sparingly.admits()
    assert sparingly.take_held_back() == 1
