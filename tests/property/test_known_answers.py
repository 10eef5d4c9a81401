"""An answer that is known by heart gives exactly what reading it gives: the same outcome, at the same moment, and the same
end or going on of the connection, in whatever pieces it comes and whatever came before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from toque.callbacks.url import Origin, parse_url
from toque.sending.answers import KnownAnswer, KnownAnswers
from toque.sending.connection import Connection, Pool
from toque.sending.outcomes import OnOutcome, Outcome, Post

POST = Post(parse_url("http://a.example/"), b"", b"")
WHOLE = None
"""Instead of places to cut: in one piece."""


class Forgetful(KnownAnswers):
    """Learns nothing, so that every answer is read."""

    def learn(self, data: bytes, answer: KnownAnswer) -> None:
        pass


class Counting(KnownAnswers):
    """Counts how often an answer was known."""

    hits = 0

    def get(self, data: bytes, default: Any = None) -> Any:
        found = super().get(data, default)
        self.hits += found is not None
        return found


class Trace:
    """Keeper and transport of a connection, which write down all that it does."""

    def __init__(self, known: KnownAnswers) -> None:
        self.known = known
        self.done: list[object] = []

    # The keeper.

    def write_soon(self, connection: Connection) -> None:
        connection.write()

    def release(self, connection: Connection, idle_s: float | None) -> bool:
        self.done.append(("released", idle_s))
        connection.is_kept = True
        return True

    def withdraw(self, connection: Connection) -> None:
        self.done.append("withdrawn")

    def closed(self, connection: Connection) -> None:
        self.done.append("closed")

    def dial(self, post: Post, on_outcome: OnOutcome, deadline: float) -> None:
        self.done.append("dialled again")

    def tell(self, post: Post, on_outcome: OnOutcome, outcome: Outcome) -> None:
        self.done.append(outcome)

    # The transport.

    def write(self, data: bytes) -> None:
        self.done.append("written")

    def abort(self) -> None:
        self.done.append("aborted")

    @property
    def is_over(self) -> bool:
        return "aborted" in self.done


def converse(known: KnownAnswers, answers: Sequence[tuple[bytes, Sequence[int] | None]]) -> list[object]:
    """Ask once for each answer on one connection, give it in pieces, and say what the connection did."""
    trace = Trace(known)
    connection = Connection(trace, Pool(Origin("http", "a.example", 80)))
    connection.connection_made(trace)  # type: ignore[arg-type]
    for data, cuts in answers:
        if not trace.is_over and connection._on_outcome is None and not connection._is_draining:
            connection.send(POST, lambda *_: None, 1.0)
        for piece in pieces(data, cuts):
            if not trace.is_over:
                connection.data_received(piece)
                trace.done.append("received")
    connection.connection_lost(None)
    return trace.done


def pieces(data: bytes, cuts: Sequence[int] | None) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts or ())})
    return [data[start:end] for start, end in itertools.pairwise(places)]


FIELDS = st.sampled_from(
    [
        b"Date: Mon, 02 Mar 2026 12:00:00 GMT",
        b"Connection: close",
        b"Connection: keep-alive",
        b"Keep-Alive: timeout=5, max=99",
        b"Retry-After: 7",
        b"Content-Length: 0",
        b"Content-Length: 2",
        b"content-length: 00",
        b"Transfer-Encoding: chunked",
        b"Upgrade: h2c",
        b"X-Folded: a\r\n b",
        b"Broken field",
        b"",
    ]
)
STARTS = st.sampled_from(
    [
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 101 Switching",
        b"HTTP/1.1 304 Not Modified",
        b"HTTP/1.1 503 No",
        b"HTTP/2 200",
        b"\r\nHTTP/1.1 204 No Content",
        b"ICY 200 OK",
    ]
)
BODIES = st.sampled_from([b"", b"", b"ok", b"2\r\nok\r\n0\r\n\r\n", b"0\r\n\r\n", b"\r\n", b"HTTP/1.1 204 X\r\n\r\n", b"H"])
ANSWERS = st.builds(
    lambda start, fields, body: b"\r\n".join([start, *fields, b"", b""]) + body, STARTS, st.lists(FIELDS, max_size=3), BODIES
) | st.binary(max_size=20)
CUTS = st.just(WHOLE) | st.lists(st.integers(0, 300), max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> list[list[tuple[bytes, Sequence[int] | None]]]:
    """Several connections that share what is known, and whose receivers repeat themselves."""
    vocabulary = st.sampled_from(draw(st.lists(ANSWERS, min_size=1, max_size=4)))
    return draw(st.lists(st.lists(st.tuples(vocabulary, CUTS), max_size=5), min_size=1, max_size=4))


@settings(max_examples=500)
@given(conversations())
def test_known_answers_mean_what_reading_them_gives(told: list[list[tuple[bytes, Sequence[int] | None]]]) -> None:
    known = KnownAnswers()
    for answers in told * 2:
        assert converse(known, answers) == converse(Forgetful(), answers)


def test_answers_that_come_again_are_known() -> None:
    known = Counting()
    for data in (
        b"HTTP/1.1 204 No Content\r\nDate: Mon, 02 Mar 2026 12:00:00 GMT\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy",
    ):
        known.hits = 0
        assert converse(known, [(data, WHOLE)] * 3) == converse(Forgetful(), [(data, WHOLE)] * 3)
        assert known.hits == 2


def test_a_receiver_whose_answers_all_differ_is_given_up_for_a_while() -> None:
    """So that looking up and learning cost nothing where they gain nothing."""
    known = Counting()
    unlike = [(b"HTTP/1.1 204 No Content\r\nX-Request-Id: %d\r\n\r\n" % number, WHOLE) for number in range(600)]
    assert converse(known, unlike) == converse(Forgetful(), unlike)
    assert 0 < len(known) < 50
    alike = [*unlike[:100], *[unlike[0]] * 600]
    assert converse(known, alike) == converse(Forgetful(), alike)
    assert known.hits > 300, "and then tried again"


def test_what_ends_a_connection_is_never_known() -> None:
    known = KnownAnswers()
    for data in (
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nbody until the end",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"garbage",
    ):
        converse(known, [(data, WHOLE)])
    assert known == {}
