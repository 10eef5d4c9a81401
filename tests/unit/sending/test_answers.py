"""Reading answers without a socket: what a reader says of them, and which of them are known by heart."""

from __future__ import annotations

import pytest

from toque.sending.answers import MAX_KNOWN, MAX_KNOWN_BYTES, AnswerReader, KnownAnswers
from toque.sending.outcomes import Answered


def new_reader() -> AnswerReader:
    reader = AnswerReader()
    reader.begin_reading()
    return reader


@pytest.mark.parametrize(
    ("field", "idle_s"),
    [
        (b"timeout=5", 4.0),
        (b"timeout=5, max=100", 4.0),
        (b"max=100, timeout=60", 59.0),
        (b"max=1;TimeOut = 2", 1.0),
        (b'timeout="15"', 14.0),
        (b"timeout=1", 0.5),
        (b"timeout=0", 0.0),
        (b"timeout=999999999", 999_999_998.0),
        (b"timeout=", None),
        (b"timeout=x", None),
        (b"notimeout=5", None),
        (b"max=100", None),
        (b"", None),
    ],
)
def test_how_long_a_connection_may_be_idle(field: bytes, idle_s: float | None) -> None:
    reader = new_reader()
    assert reader.feed(b"HTTP/1.1 204 No Content\r\nkeep-ALIVE: %s\r\n\r\n" % field)
    assert (reader.has_ended, reader.keeps_alive, reader.idle_s) == (True, True, idle_s)


def test_a_hint_in_an_interim_answer_or_a_trailer_is_none() -> None:
    reader = new_reader()
    assert reader.feed(b"HTTP/1.1 103 Early\r\nKeep-Alive: timeout=5\r\nRetry-After: 9\r\n\r\n")
    assert reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nKeep-Alive: timeout=5\r\n\r\n")
    assert (reader.has_ended, reader.idle_s, reader.retry_after) == (True, None, None)


def test_a_reader_reads_the_next_answer_as_if_it_were_the_first() -> None:
    reader = new_reader()
    assert reader.feed(b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nno")
    assert reader.answered(503) == Answered(503, "7", "no")
    reader.clear()
    assert reader.feed(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
    assert (reader.answered(500), reader.idle_s) == (Answered(500), None)


def test_what_is_long_is_not_learnt() -> None:
    known = KnownAnswers()
    known.learn(b"x" * MAX_KNOWN_BYTES, (Answered(204), None))
    known.learn(b"x" * (MAX_KNOWN_BYTES + 1), (Answered(204), None))
    assert [len(data) for data in known] == [MAX_KNOWN_BYTES]


def test_only_so_much_is_known() -> None:
    known = KnownAnswers()
    for number in range(3 * MAX_KNOWN):
        known.learn(b"%d" % number, (Answered(204), None))
        assert 1 <= len(known) <= MAX_KNOWN
