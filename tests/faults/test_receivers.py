"""Receivers that misbehave, each over real sockets: how the attempt ends, that the next one is none the worse for it, and
that nothing is left behind.

    pytest -s tests/faults/test_receivers.py -k after_all     # prints the table that docs/guarantees.md shows

Deadlines are cut short by the transport's own settings. No row waits for longer than that.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trustme
from tests.support.posting import Sender, names, on_both_loops, showing, trusting
from tests.support.scripted_receiver import ScriptedReceiver, Step, answer, close, dribble, raw, reset, silence, stream

from toque.sending.connection import MAX_BODY_BYTES
from toque.sending.guard import Guard
from toque.sending.transport import Answered, Outcome, Unreachable

ATTEMPT_S = 0.4
"""The deadline of an attempt, instead of 15 s."""

ROUNDS = 2
TAKEN_BY_SOCKETS = 32 << 20
"""Bytes of an endless body that may be gone before its sender notices: what the kernel's buffers hold, generously."""

MAY_GROW = 24 << 20
"""Bytes of memory: what an allocator keeps after all rows, generously; one unbounded answer would be far more."""

OK = Answered(204)
LATE = Unreachable(f"no answer within {ATTEMPT_S:g} s")
NOT_HTTP = Unreachable("answer is not HTTP")
TOO_LONG = Unreachable("head of the answer too long")
CUT = Unreachable("answer cut short")
RESET = Unreachable("connection reset")
REFUSED = Unreachable("connection refused")

Play = Callable[[], Awaitable[list[Outcome]]]
Allowed = tuple[Outcome, ...]


@dataclass(frozen=True)
class Row:
    """What a receiver does, as the table shows it, and the outcomes that must come, one after the other."""

    does: str
    play: Play
    outcomes: Sequence[Outcome | Allowed]
    """Where the network decides which of two it is, both."""


def posting(**options: object) -> Sender:
    return Sender(Guard([ip_network("127.0.0.0/8")]), attempt_timeout_s=ATTEMPT_S, names_kept_s=3600, **options)


async def scripted(step: Callable[[], Step]) -> list[Outcome]:
    """One post to a receiver that does this, and another one to see that it works again."""
    async with ScriptedReceiver(step()) as receiver, posting() as sender:
        return [await sender.post(receiver.url()), await sender.post(receiver.url())]


async def scripted_late() -> list[Outcome]:
    """The 200 is sent once the attempt is over, and must be nobody's."""
    is_over = asyncio.Event()
    step = silence(until=is_over, then=raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    async with ScriptedReceiver(step) as receiver, posting() as sender:
        first = await sender.post(receiver.url())
        is_over.set()
        return [first, await sender.post(receiver.url())]


class Endless:
    """The beginning and then the same for ever, anew for each who iterates."""

    def __init__(self, beginning: bytes, rest: bytes) -> None:
        self.beginning = beginning
        self.rest = rest

    def __iter__(self) -> Iterator[bytes]:
        yield self.beginning
        yield from itertools.repeat(self.rest)


async def ten_gibibytes(head: bytes, piece: bytes) -> list[Outcome]:
    """A body of 10 GiB: it must be cut off, and not only read without end."""
    sent: list[int] = []
    step = stream(head, piece, (10 << 30) // len(piece), sent)
    async with ScriptedReceiver(step) as receiver, posting() as sender:
        outcomes = [await sender.post(receiver.url())]
        await receiver.has_closed(1)
        assert sum(sent) < TAKEN_BY_SOCKETS
        return [*outcomes, await sender.post(receiver.url())]


LENGTH_10_GIB = b"Content-Length: %d\r\n\r\n" % (10 << 30)
PIECE = b"x" * 65536
CHUNK = b"10000\r\n" + PIECE + b"\r\n"


async def refuses() -> list[Outcome]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with posting() as sender:
        return [await sender.post(f"http://127.0.0.1:{port}/") for _ in range(2)]


async def flaps() -> list[Outcome]:
    """There, gone, there again, and so on, at one port."""
    outcomes: list[Outcome] = []
    port = 0
    async with posting() as sender:
        for _ in range(5):
            async with ScriptedReceiver(port=port) as receiver:
                port = receiver.port
                outcomes.append(await sender.post(receiver.url()))
            outcomes.append(await sender.post(f"http://127.0.0.1:{port}/"))
    return outcomes


class Moving:
    """A resolver for a receiver that was here and is there from now on."""

    def __init__(self) -> None:
        self.address = "127.0.0.1"

    async def __call__(self, _host: str, _port: int) -> list[object]:
        return [ip_address(self.address)]


@asynccontextmanager
async def old_place(*script: Step) -> object:
    resolve = Moving()
    async with ScriptedReceiver(*script) as old, posting(resolve=resolve) as sender:
        yield old, sender, resolve


async def moves() -> list[Outcome]:
    """Its old address refuses from then on; the kept connection ends."""
    async with old_place() as (old, sender, resolve), ScriptedReceiver(host="127.0.0.2", port=old.port) as new:
        url = old.url(host="moving.example")
        outcomes = [await sender.post(url)]
        resolve.address = "127.0.0.2"
        await old.stop_listening()
        old.hang_up()
        await old.has_closed(1)
        outcomes += [await sender.post(url) for _ in range(2)]
        assert len(new.requests) == 1
        return outcomes


async def moves_and_leaves_silence() -> list[Outcome]:
    """Its old address takes everything and says nothing more, also on the connections that were kept."""
    async with (
        old_place(answer(), answer(), *[silence()] * 9) as (old, sender, resolve),
        ScriptedReceiver(host="127.0.0.2", port=old.port) as new,
    ):
        url = old.url(host="moving.example")
        outcomes = await sender.post_all([url] * 2)
        resolve.address = "127.0.0.2"
        outcomes += [await sender.post(url) for _ in range(2)]
        assert len(new.requests) == 1
        return outcomes


# TLS.


@cache
def authorities() -> tuple[trustme.CA, trustme.CA]:
    """One that is trusted, and a stranger."""
    return trustme.CA(), trustme.CA()


def expired() -> ssl.SSLContext:
    began, ended = datetime(2001, 1, 1, tzinfo=UTC), datetime(2002, 1, 1, tzinfo=UTC)
    return showing(authorities()[0].issue_cert("secure.example", not_before=began, not_after=ended))


def wrong_host() -> ssl.SSLContext:
    return showing(authorities()[0].issue_cert("other.example"))


def unknown_issuer() -> ssl.SSLContext:
    return showing(authorities()[1].issue_cert("secure.example"))


def self_signed() -> ssl.SSLContext:
    own = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with TemporaryDirectory() as folder:
        path = Path(folder, "own.pem")
        path.write_bytes(own.cert_pem.bytes() + own.private_key_pem.bytes())
        context.load_cert_chain(path)
    return context


async def shows(context: Callable[[], ssl.SSLContext]) -> list[Outcome]:
    """Two posts to a server with such a certificate; it must be told nothing."""
    options = {"ssl_context": trusting(authorities()[0]), "resolve": names(["127.0.0.1"])}
    async with ScriptedReceiver(ssl_context=context()) as receiver, posting(**options) as sender:
        outcomes = [await sender.post(receiver.url(host="secure.example", user="user:secret")) for _ in range(2)]
        assert receiver.requests == []
        return outcomes


async def speaks_no_tls() -> list[Outcome]:
    async with ScriptedReceiver(greeting=raw(b"HTTP/1.1 400 Bad Request\r\n\r\n", then=close())) as receiver, posting() as sender:
        return [await sender.post(f"https://127.0.0.1:{receiver.port}/")]


async def stalls_in_the_handshake() -> list[Outcome]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with posting() as sender:
            return [await sender.post(f"https://127.0.0.1:{listener.getsockname()[1]}/")]


def row(does: str, step: Callable[[], Step], *outcome: Outcome) -> Row:
    """A receiver that does this once, and then answers as it should."""
    return Row(does, partial(scripted, step), [outcome, OK])


ROWS: Sequence[Row] = (
    row("accepts and says nothing", silence, LATE),
    row("answers one byte at a time, without end", lambda: dribble(Endless(b"HTTP/1.1 200 OK\r\nX: ", b"y")), LATE),
    row("sends empty lines for ever", lambda: dribble(itertools.repeat(b"\r\n")), LATE),
    row("sends header fields without end", lambda: dribble(Endless(b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 1000 + b"\r\n")), TOO_LONG),
    row("sends one header field without end", lambda: dribble(Endless(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 1000)), TOO_LONG),
    Row("sends a 10 GiB body after a 200", partial(ten_gibibytes, b"HTTP/1.1 200 OK\r\n" + LENGTH_10_GIB, PIECE), [Answered(200), OK]),
    Row(
        "sends a 10 GiB body after a 500",
        partial(ten_gibibytes, b"HTTP/1.1 500 No\r\n" + LENGTH_10_GIB, PIECE),
        [Answered(500, None, "x" * 500), OK],
    ),
    Row(
        "sends a 10 GiB body in chunks",
        partial(ten_gibibytes, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK),
        [Answered(200), OK],
    ),
    Row("sends a 10 GiB body without a length", partial(ten_gibibytes, b"HTTP/1.1 200 OK\r\n\r\n", PIECE), [Answered(200), OK]),
    Row("sends a 10 GiB head", partial(ten_gibibytes, b"HTTP/1.1 200 OK\r\nX: ", PIECE), [TOO_LONG, OK]),
    row("sends a body as long as is read", lambda: raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MAX_BODY_BYTES + b"x" * MAX_BODY_BYTES), Answered(200)),
    row("sends garbage", lambda: raw(b"\x16\x03\x01\x02\x00\xff\xfe"), NOT_HTTP),
    row("sends another protocol's greeting", lambda: raw(b"SSH-2.0-OpenSSH_9.2\r\n"), NOT_HTTP),
    row("sends an answer with two lengths", lambda: raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n"), NOT_HTTP),
    row("sends half an answer, then resets", lambda: raw(b"HTTP/1.1 200 OK\r\nServ", then=reset()), RESET, CUT),
    row("sends half an answer, then closes", lambda: raw(b"HTTP/1.1 200 OK\r\nServ", then=close()), CUT),
    row("sends half a body, then closes", lambda: raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", then=close()), Answered(200)),
    row("closes without a word", close, Unreachable("connection closed without an answer")),
    row("resets without a word", reset, RESET),
    row("says 100 Continue once", lambda: raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"), OK),
    row("says 100 Continue and nothing else", lambda: raw(b"HTTP/1.1 100 Continue\r\n\r\n", then=silence()), LATE),
    row("says 100 Continue for ever", lambda: stream(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 1_000_000), TOO_LONG),
    row("answers in chunks, with trailers", lambda: raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n"), Answered(200)),
    row("answers with Connection: close", lambda: answer(closes=True), OK),
    row("answers in HTTP/1.0", lambda: raw(b"HTTP/1.0 200 OK\r\n\r\nok", then=close()), Answered(200)),
    row("redirects to itself", lambda: answer(302, {"Location": "/"}), Answered(302)),
    Row("answers 200 after the deadline", scripted_late, [LATE, OK]),
    Row("refuses", refuses, [REFUSED] * 2),
    Row("flaps", flaps, [OK, REFUSED] * 5),
    Row("moves to a new address; the old one refuses", moves, [OK, REFUSED, OK]),
    Row("moves to a new address; the old one says nothing more", moves_and_leaves_silence, [OK, OK, LATE, OK]),
    Row("shows an expired certificate", partial(shows, expired), [Unreachable("certificate: expired")] * 2),
    Row("shows another host's certificate", partial(shows, wrong_host), [Unreachable("certificate: hostname mismatch")] * 2),
    Row("shows a self-signed certificate", partial(shows, self_signed), [Unreachable("certificate: self-signed")] * 2),
    Row("shows a certificate of an unknown issuer", partial(shows, unknown_issuer), [Unreachable("certificate: unknown issuer")] * 2),
    Row("speaks no TLS", speaks_no_tls, [(Unreachable("tls: handshake failed"), RESET)]),
    Row("stalls in the TLS handshake", stalls_in_the_handshake, [LATE]),
)  # fmt: skip


def check(row: Row, outcomes: list[Outcome]) -> None:
    assert len(outcomes) == len(row.outcomes)
    for outcome, wanted in zip(outcomes, row.outcomes, strict=True):
        assert outcome in (wanted if isinstance(wanted, tuple) else (wanted,)), row.does


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.does)
@on_both_loops
async def test_a_receiver_that(row: Row) -> None:
    check(row, await row.play())


# All of them, and what is left.


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    threads: int
    tasks: int
    descriptors: int
    resident: int


async def footprint() -> Footprint:
    """Once what has ended is gone."""
    while asyncio.all_tasks() != {asyncio.current_task()}:
        await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0.01)  # lets sockets close that were told to
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Footprint(threading.active_count(), len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")), resident)


def table(counts: dict[str, Counter[str]]) -> str:
    """As docs/guarantees.md shows it."""
    lines = ["| a receiver that | attempts | outcomes |", "| --- | --- | --- |"]
    for does, counted in counts.items():
        told = ", ".join(f"{word} ({times})" for word, times in counted.items())
        lines.append(f"| {does} | {counted.total()} | {told} |")
    return "\n".join(lines)


def word(outcome: Outcome) -> str:
    return str(outcome.status) if isinstance(outcome, Answered) else outcome.reason


@on_both_loops
async def test_after_all_of_them_everything_is_as_it_was() -> None:
    counts: dict[str, Counter[str]] = {row.does: Counter() for row in ROWS}

    async def play_all() -> None:
        for row in ROWS:
            outcomes = await row.play()
            check(row, outcomes)
            counts[row.does].update(map(word, outcomes))

    await play_all()  # what a process loads and allocates once is no leak
    before = await footprint()
    for _ in range(ROUNDS - 1):
        await play_all()
    after = await footprint()
    assert (after.threads, after.tasks, after.descriptors) == (before.threads, before.tasks, before.descriptors)
    assert after.resident - before.resident < MAY_GROW
    print(f"\n{table(counts)}\n\n{before} before, {after} after {ROUNDS - 1} more rounds")
