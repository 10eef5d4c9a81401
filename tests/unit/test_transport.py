"""The transport against real sockets on loopback, on uvloop and on asyncio's own loop.

Every scenario ends with the same questions: has each attempt had exactly one outcome, is no task, thread or descriptor
left, and has nothing gone wrong behind the scenes?
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Address, ip_network
from typing import Any

import pytest
import trustme
from tests.support.descriptors import no_descriptor_left
from tests.support.posting import (
    LOOPBACK,
    NO_ANSWER,
    SHORT_S,
    Sender,
    black_hole,
    dialled,
    intercept,
    make_post,
    names,
    on_both_loops,
    scene,
    showing,
    trusting,
)
from tests.support.scripted_receiver import (
    Exchange,
    ScriptedReceiver,
    Step,
    answer,
    close,
    dribble,
    raw,
    reset,
    silence,
)

from toque.sending.answers import MAX_EXCERPT
from toque.sending.connection import MAX_BODY_BYTES
from toque.sending.dialler import MAX_ADDRESSES
from toque.sending.guard import Address, Guard
from toque.sending.transport import (
    SHED_AT_ONCE,
    Answered,
    Forbidden,
    Outcome,
    Post,
    Transport,
    Unreachable,
    Unsent,
)

# What is sent.


@on_both_loops
async def test_a_post_arrives_as_written() -> None:
    async with scene() as (receiver, sender):
        assert await sender.post(receiver.url("/a?b=c", user="user:password"), b"data=%7B%7D") == Answered(204)
        (request,) = receiver.requests
        assert (request.method, request.target, request.body) == ("POST", "/a?b=c", b"data=%7B%7D")
        assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
        assert request.headers["authorization"] == "Basic dXNlcjpwYXNzd29yZA=="


@on_both_loops
async def test_ipv6() -> None:
    async with ScriptedReceiver(host="::1") as receiver, Sender() as sender:
        assert await sender.post(receiver.url()) == Answered(204)
        assert receiver.requests[0].headers["host"] == f"[::1]:{receiver.port}"


@on_both_loops
async def test_the_convenience_waits_for_the_outcome() -> None:
    async with ScriptedReceiver() as receiver, Transport(LOOPBACK) as transport:
        assert await transport.post(make_post(receiver.url())) == Answered(204)


@on_both_loops
async def test_an_attempt_whose_waiter_left_goes_on() -> None:
    may_answer = asyncio.Event()
    async with scene(answer(after=may_answer)) as (receiver, sender):
        waiting = asyncio.create_task(sender.transport.post(make_post(receiver.url())))
        await receiver.has_received(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        may_answer.set()
        while not sender.transport._keeper.idle_count:
            await asyncio.sleep(0)
        await sender.post(receiver.url())
        assert len(receiver.connections) == 1


# Connections that are kept.


@on_both_loops
async def test_posts_in_turn_share_a_connection() -> None:
    async with scene() as (receiver, sender):
        for _ in range(20):
            assert await sender.post(receiver.url()) == Answered(204)
        assert len(receiver.connections) == 1


@on_both_loops
async def test_posts_at_once_have_a_connection_each_and_keep_it() -> None:
    async with scene() as (receiver, sender):
        for _ in range(3):
            assert await sender.post_all([receiver.url()] * 10) == [Answered(204)] * 10
        assert len(receiver.connections) == 10
        assert [len(connection.requests) for connection in receiver.connections] == [3] * 10


@on_both_loops
async def test_a_post_started_by_an_outcome_uses_the_connection_just_freed() -> None:
    async with scene() as (receiver, sender):
        done = asyncio.Event()
        left = 50

        def on_outcome(post: Post, outcome: Outcome) -> None:
            nonlocal left
            assert outcome == Answered(204)
            left -= 1
            if left:
                sender.transport.start(post, on_outcome)
            else:
                done.set()

        sender.transport.start(make_post(receiver.url()), on_outcome)
        await done.wait()
        assert len(receiver.requests) == 50
        assert len(receiver.connections) == 1


@on_both_loops
async def test_origins_do_not_share_connections() -> None:
    resolve = names(["127.0.0.1"])
    async with scene(resolve=resolve) as (receiver, sender):
        await sender.post(receiver.url(host="a.example"))
        await sender.post(receiver.url(host="b.example"))
        await sender.post(receiver.url(host="A.example.", user="u:p"))
        assert [len(connection.requests) for connection in receiver.connections] == [2, 1]


@pytest.mark.parametrize("limit", [{"max_idle_per_origin": 1}, {"max_idle": 1}], ids=str)
@on_both_loops
async def test_only_so_many_idle_connections_are_kept(limit: dict[str, int]) -> None:
    async with scene(**limit) as (receiver, sender):
        await sender.post_all([receiver.url()] * 3)
        await receiver.has_closed(2)
        await sender.post(receiver.url())
        assert len(receiver.connections) == 3


@on_both_loops
async def test_an_idle_connection_is_closed_in_time() -> None:
    async with scene(idle_timeout_s=0.01) as (receiver, sender):
        await sender.post(receiver.url())
        await receiver.has_closed(1)
        assert await sender.post(receiver.url()) == Answered(204)
        assert len(receiver.connections) == 2


@pytest.mark.parametrize("hint", ["timeout=1", "timeout=0, max=5"])
@on_both_loops
async def test_a_receiver_that_says_when_it_closes_is_not_waited_for(hint: str) -> None:
    async with scene(answer(204, {"Keep-Alive": hint})) as (receiver, sender):
        await sender.post(receiver.url())
        await receiver.has_closed(1)
        assert await sender.post(receiver.url()) == Answered(204)
        assert len(receiver.connections) == 2


@on_both_loops
async def test_what_a_receiver_says_of_idle_connections_counts_each_time_it_is_said() -> None:
    """Also when the answer is known already, and so is not read."""
    async with scene(otherwise=answer(204, {"Keep-Alive": "timeout=9"})) as (receiver, sender):
        loop = asyncio.get_running_loop()
        for _ in range(3):
            await sender.post(receiver.url())
            (connection,) = sender.transport._keeper._connections
            assert loop.time() < connection.due <= loop.time() + 8
        assert len(receiver.connections) == 1


@on_both_loops
async def test_a_connection_that_the_peer_half_closed_is_given_to_no_post() -> None:
    async with scene() as (receiver, sender):
        await sender.post(receiver.url())
        (connection,) = sender.transport._keeper._connections
        connection.eof_received()
        assert sender.transport._keeper.idle_count == 0
        assert await sender.post(receiver.url()) == Answered(204)
        assert len(receiver.connections) == 2


@on_both_loops
async def test_kept_connections_beside_one_that_is_not_answered_are_not_trusted() -> None:
    async with scene(attempt_timeout_s=SHORT_S) as (receiver, sender):
        await sender.post_all([receiver.url()] * 3)
        receiver.add(silence())
        assert await sender.post(receiver.url()) == NO_ANSWER
        await receiver.has_closed(3)
        assert await sender.post(receiver.url()) == Answered(204)
        assert len(receiver.connections) == 4


@pytest.mark.parametrize("data", [b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"\r\n", b"x"])
@on_both_loops
async def test_bytes_that_nobody_asked_for_close_an_idle_connection(data: bytes) -> None:
    async with scene() as (receiver, sender):
        await sender.post(receiver.url())
        receiver.connections[0].transport.write(data)
        await receiver.has_closed(1)
        assert await sender.post(receiver.url()) == Answered(204)
        assert len(receiver.connections) == 2


@on_both_loops
async def test_nothing_is_remembered_of_an_origin_without_connections() -> None:
    async with scene(answer(closes=True)) as (receiver, sender):
        await sender.post(receiver.url())
        await receiver.has_closed(1)
        while sender.transport._keeper._connections:
            await asyncio.sleep(0)
        assert sender.transport._keeper.pools == {}


# Answers, and whether the connection serves again after them.

KEPT, CLOSED = 1, 2
ANSWERS: dict[str, tuple[bytes, Outcome, int]] = {
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", Answered(204), KEPT),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Answered(200), KEPT),
    "empty body": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Answered(200), KEPT),
    "no reason phrase": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", Answered(200), KEPT),
    "accepted": (b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", Answered(202), KEPT),
    "chunks and trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nRetry-After: 9\r\n\r\n",
        Answered(200),
        KEPT,
    ),
    "chunked refusal": (
        b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n3\r\npe!\r\n0\r\n\r\n",
        Answered(500, None, "nope!"),
        KEPT,
    ),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", Answered(204), KEPT),
    "early hints": (
        b"HTTP/1.1 103 Early Hints\r\nRetry-After: 9\r\n\r\nHTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
        Answered(503),
        KEPT,
    ),
    "several interim answers": (b"HTTP/1.1 102 Wait\r\n\r\n" * 9 + b"HTTP/1.1 204 OK\r\n\r\n", Answered(204), KEPT),
    "switching protocols": (
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        Answered(101),
        CLOSED,
    ),
    "switching protocols and data": (b"HTTP/1.1 101 Switching\r\n\r\nfoo", Answered(101), CLOSED),
    "offer of HTTP/2": (
        b"HTTP/1.1 200 OK\r\nUpgrade: h2,h2c\r\nConnection: Upgrade, Keep-Alive\r\nContent-Length: 2\r\n\r\nok",
        Answered(200),
        KEPT,
    ),
    "not modified": (b"HTTP/1.1 304 No\r\nContent-Length: 99\r\n\r\n", Answered(304), KEPT),
    "moved": (
        b"HTTP/1.1 302 Moved\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
        Answered(302),
        KEPT,
    ),
    "gone": (b"HTTP/1.1 410 Gone\r\nContent-Length: 4\r\n\r\ngone", Answered(410, None, "gone"), KEPT),
    "retry later": (
        b"HTTP/1.1 429 No\r\nreTRY-after:  120 \r\nRetry-After-X: 1\r\nContent-Length: 0\r\n\r\n",
        Answered(429, "120"),
        KEPT,
    ),
    "retry on a date": (
        b"HTTP/1.1 503 No\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\nContent-Length: 0\r\n\r\n",
        Answered(503, "Wed, 21 Oct 2026 07:28:00 GMT"),
        KEPT,
    ),
    "success with retry": (b"HTTP/1.1 204 OK\r\nRetry-After: 5\r\n\r\n", Answered(204, "5"), KEPT),
    "long retry": (
        b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nRetry-After: " + b"9" * 1000 + b"\r\n\r\n",
        Answered(503, "9" * 64),
        KEPT,
    ),
    "control characters": (
        b"HTTP/1.1 500 No\r\nContent-Length: 17\r\n\r\na\x1b[31m\r\n\tb\x00\xc3\xa7\xffc d",
        Answered(500, None, "a [31m b ç\ufffdc d"),
        KEPT,
    ),
    "direction override": (
        b"HTTP/1.1 500 No\r\nContent-Length: 8\r\n\r\na\xe2\x80\xaebcde"[:-1],
        Answered(500, None, "a bcd"),
        CLOSED,
    ),
    "unknown status": (b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n", Answered(999), KEPT),
    "said to be closed": (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        Answered(200),
        CLOSED,
    ),
    "old and closed": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", Answered(200), CLOSED),
    "old and without length": (b"HTTP/1.0 500 No\r\n\r\nno", Answered(500, None, "no"), CLOSED),
    "old and kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", Answered(200), KEPT),
    "two answers": (b"HTTP/1.1 204 OK\r\n\r\nHTTP/1.1 500 Forged\r\nContent-Length: 0\r\n\r\n", Answered(204), CLOSED),
    "part of a second answer": (b"HTTP/1.1 204 OK\r\n\r\nHT", Answered(204), CLOSED),
    "body where none may be": (b"HTTP/1.1 204 OK\r\nContent-Length: 2\r\n\r\nok", Answered(204), CLOSED),
    "more than its length": (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno!", Answered(500, None, "no"), CLOSED),
    "more after the end": (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok!",
        Answered(200),
        CLOSED,
    ),
    "broken chunk": (
        b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\nxyz\r\n",
        Answered(500, None, "no"),
        CLOSED,
    ),
    "as much as is read": (
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (MAX_BODY_BYTES, b"x" * MAX_BODY_BYTES),
        Answered(200),
        KEPT,
    ),
    "more than is read": (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 99999, Answered(200), CLOSED),
    "refusal of more than is read": (
        b"HTTP/1.1 500 No\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 99999,
        Answered(500, None, "x" * MAX_EXCERPT),
        CLOSED,
    ),
}


@pytest.mark.parametrize(("data", "outcome", "connections"), ANSWERS.values(), ids=ANSWERS)
@on_both_loops
async def test_answers(data: bytes, outcome: Outcome, connections: int) -> None:
    last = close() if connections == CLOSED else None
    async with scene(raw(data, then=last)) as (receiver, sender):
        assert await sender.post(receiver.url()) == outcome
        if connections == CLOSED:
            await receiver.has_closed(1)
        assert await sender.post(receiver.url()) == Answered(204)
        assert len(receiver.connections) == connections


@pytest.mark.parametrize("name", ["body", "chunks and trailers", "early hints", "retry later", "old and kept"])
@on_both_loops
async def test_answers_byte_by_byte(name: str) -> None:
    data, outcome, connections = ANSWERS[name]
    async with scene(dribble(bytes([byte]) for byte in data)) as (receiver, sender):
        assert await sender.post(receiver.url()) == outcome
        if outcome == Answered(200):  # told before its body has come
            while not sender.transport._keeper.idle_count:
                await asyncio.sleep(0.001)
        assert await sender.post(receiver.url()) == Answered(204)
        assert len(receiver.connections) == connections


@on_both_loops
async def test_nothing_of_an_answer_stays_for_the_next_one() -> None:
    first = answer(503, {"Retry-After": "7"}, b"busy")
    async with scene(first, answer(503), answer(204)) as (receiver, sender):
        outcomes = [await sender.post(receiver.url()) for _ in range(3)]
        assert outcomes == [Answered(503, "7", "busy"), Answered(503), Answered(204)]
        assert len(receiver.connections) == 1


@on_both_loops
async def test_an_answer_before_the_post_was_read() -> None:
    early = raw(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig", then=silence())
    async with ScriptedReceiver(greeting=early) as receiver, Sender() as sender:
        outcome = await sender.post(receiver.url(), b"x" * 8_000_000)
        # Before the post began it was no answer to it; which came first is the network's to say.
        assert outcome in {Answered(413, None, "big"), Unreachable("connection closed without an answer")}


# Failures.


class Endless:
    """The first piece and then the second for ever, each time anew."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        self.first = first
        self.rest = rest

    def __iter__(self) -> Iterator[bytes]:
        yield self.first
        yield from itertools.repeat(self.rest)


HOPELESS: dict[str, tuple[Step, str]] = {
    "closes": (close(), "connection closed without an answer"),
    "resets": (reset(), "connection reset"),
    "garbage": (raw(b"\x16\x03\x01\x02\x00"), "answer is not HTTP"),
    "another protocol": (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "answer is not HTTP"),
    "status without sense": (raw(b"HTTP/1.1 abc\r\n\r\n"), "answer is not HTTP"),
    "status too low": (raw(b"HTTP/1.1 99 No\r\n\r\n"), "answer is not HTTP"),
    "two lengths": (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n"), "answer is not HTTP"),
    "length and chunks": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        "answer is not HTTP",
    ),
    "half a head, then closes": (raw(b"HTTP/1.1 200 OK\r\nServ", then=close()), "answer cut short"),
    "half a status, then closes": (raw(b"HTTP/1.1 2", then=close()), "answer cut short"),
    "only an interim answer": (raw(b"HTTP/1.1 100 Continue\r\n\r\n", then=close()), "answer cut short"),
    "head without end": (dribble(itertools.repeat(b"X: " + b"y" * 1000 + b"\r\n")), "answer is not HTTP"),
    "fields without end": (
        dribble(Endless(b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 1000 + b"\r\n")),
        "head of the answer too long",
    ),
    "field without end": (
        dribble(Endless(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 1000)),
        "head of the answer too long",
    ),
    "interim answers without end": (
        dribble(itertools.repeat(b"HTTP/1.1 102 Wait\r\nX: " + b"y" * 1000 + b"\r\n\r\n")),
        "head of the answer too long",
    ),
    "empty lines without end": (dribble(itertools.repeat(b"\r\n" * 500)), "head of the answer too long"),
}


@pytest.mark.parametrize(("step", "reason"), HOPELESS.values(), ids=HOPELESS)
@on_both_loops
async def test_no_answer_that_counts(step: Step, reason: str) -> None:
    async with scene(step) as (receiver, sender):
        assert await sender.post(receiver.url()) == Unreachable(reason)
        await receiver.has_closed(1)
        assert len(receiver.requests) == 1, "a new connection's failure is not tried again here"
        assert await sender.post(receiver.url()) == Answered(204)


@on_both_loops
async def test_half_a_head_then_reset() -> None:
    may_reset = asyncio.Event()
    step = raw(b"HTTP/1.1 200 OK\r\nServ", then=silence(until=may_reset, then=reset()))
    async with scene(step) as (receiver, sender):
        ended = sender.start(receiver.url())
        while not any(connection._received for connection in sender.transport._keeper._connections):
            await asyncio.sleep(0)
        may_reset.set()
        assert await ended == Unreachable("connection reset")


@pytest.mark.parametrize("end", [close(), reset()], ids=["closes", "resets"])
@on_both_loops
async def test_a_receiver_that_ends_what_it_accepts(end: Step) -> None:
    async with ScriptedReceiver(greeting=end) as receiver, Sender() as sender:
        # Whether the end comes before or after the post is written decides how it reads.
        assert await sender.post(receiver.url()) in {
            Unreachable("connection reset"),
            Unreachable("connection closed without an answer"),
        }


def handed_over_late(loop: asyncio.AbstractEventLoop) -> None:
    """Hand over no connection on this loop before its peer has done something about it."""
    create_connection = loop.create_connection

    async def late(*arguments: Any, **options: Any) -> Any:
        transport, connection = await create_connection(*arguments, **options)
        while not connection.is_closed:
            await asyncio.sleep(0)
        return transport, connection

    loop.create_connection = late  # type: ignore[method-assign]


@pytest.mark.parametrize("greeting", [close(), raw(b"220 mail.example ESMTP\r\n", then=silence())], ids=["ends", "speaks"])
@on_both_loops
async def test_a_connection_that_is_over_before_it_is_used(greeting: Step) -> None:
    handed_over_late(asyncio.get_running_loop())
    async with ScriptedReceiver(greeting=greeting) as receiver, Sender() as sender:
        assert await sender.post(receiver.url()) == Unreachable("connection closed without an answer")
        assert receiver.requests == []
        assert sender.transport._keeper.pools == {}


@on_both_loops
async def test_a_receiver_that_speaks_first() -> None:
    greeting = raw(b"220 mail.example ESMTP\r\n", then=silence())
    async with ScriptedReceiver(greeting=greeting) as receiver, Sender() as sender:
        # Read before the post is written it ends the connection, read after that it is an answer.
        assert await sender.post(receiver.url()) in {
            Unreachable("answer is not HTTP"),
            Unreachable("connection closed without an answer"),
        }
        await receiver.has_closed(1)


# A body that does not end as it should, after a head that was complete.


@pytest.mark.parametrize("end", [close(), reset()], ids=["closes", "resets"])
@pytest.mark.parametrize(
    ("head", "outcome"),
    [(b"HTTP/1.1 200 OK\r\n", Answered(200)), (b"HTTP/1.1 500 No\r\n", Answered(500, None, "par"))],
)
@on_both_loops
async def test_a_body_that_is_cut_off(head: bytes, outcome: Outcome, end: Step) -> None:
    may_end = asyncio.Event()
    step = raw(head + b"Content-Length: 9\r\n\r\npar", then=silence(until=may_end, then=end))
    async with scene(step) as (receiver, sender):
        ended = sender.start(receiver.url())
        while not any(connection.body for connection in sender.transport._keeper._connections):
            await asyncio.sleep(0)
        may_end.set()
        assert await ended == outcome
        await receiver.has_closed(1)


@on_both_loops
async def test_a_success_is_told_before_its_body_has_come() -> None:
    may_end = asyncio.Event()
    rest = silence(until=may_end, then=raw(b"rest"))
    async with scene(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", then=rest)) as (receiver, sender):
        assert await sender.post(receiver.url()) == Answered(200)
        assert await sender.post(receiver.url()) == Answered(204)
        assert len(receiver.connections) == 2, "the first is still being read"
        may_end.set()
        while sender.transport._keeper.idle_count < 2:
            await asyncio.sleep(0)
        await sender.post_all([receiver.url()] * 2)
        assert len(receiver.connections) == 2


@on_both_loops
async def test_a_success_whose_body_never_comes() -> None:
    step = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", then=silence())
    async with scene(step, attempt_timeout_s=SHORT_S) as (receiver, sender):
        assert await sender.post(receiver.url()) == Answered(200)
        await receiver.has_closed(1)


@on_both_loops
async def test_a_refusal_whose_body_does_not_end() -> None:
    step = raw(b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\npart", then=silence())
    async with scene(step, attempt_timeout_s=SHORT_S) as (receiver, sender):
        assert await sender.post(receiver.url()) == Answered(500, None, "part")
        await receiver.has_closed(1)


@pytest.mark.parametrize("status", [200, 500])
@on_both_loops
async def test_a_body_without_end(status: int) -> None:
    head = f"HTTP/1.1 {status} X\r\n\r\n".encode()
    async with scene(dribble(Endless(head, b"y" * 1000))) as (receiver, sender):
        excerpt = "" if status == 200 else "y" * MAX_EXCERPT
        assert await sender.post(receiver.url()) == Answered(status, None, excerpt)
        await receiver.has_closed(1)


@on_both_loops
async def test_chunks_that_are_nearly_all_overhead() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"1;" + b"x" * 1000 + b"\r\ny\r\n"
    async with scene(dribble(Endless(head, chunk))) as (receiver, sender):
        assert await sender.post(receiver.url()) == Answered(200)
        await receiver.has_closed(1)


# Time.


@pytest.mark.parametrize(
    "step",
    [
        silence(),
        raw(b"HTTP/1.1 200 OK\r\n", then=silence()),
        raw(b"HTTP/1.1 100 Continue\r\n\r\n", then=silence()),
        dribble(itertools.repeat(b"\r\n")),
    ],
    ids=["silent", "half a head", "interim", "dribbles"],
)
@on_both_loops
async def test_no_answer_in_time(step: Step) -> None:
    async with scene(step, attempt_timeout_s=SHORT_S) as (receiver, sender):
        began = asyncio.get_running_loop().time()
        assert await sender.post(receiver.url()) == NO_ANSWER
        assert asyncio.get_running_loop().time() - began >= SHORT_S
        await receiver.has_closed(1)


@on_both_loops
async def test_a_kept_connection_has_a_new_deadline_for_each_attempt() -> None:
    async with scene(attempt_timeout_s=SHORT_S) as (receiver, sender):
        began = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - began < 2 * SHORT_S:
            assert await sender.post(receiver.url()) == Answered(204)
        assert len(receiver.connections) == 1
        receiver.add(silence())
        assert await sender.post(receiver.url()) == NO_ANSWER


@on_both_loops
async def test_one_late_receiver_does_not_end_others() -> None:
    may_answer = asyncio.Event()
    async with scene(silence(), attempt_timeout_s=SHORT_S) as (late, sender), ScriptedReceiver(answer(after=may_answer)) as other:
        ended = sender.start(late.url())
        await late.has_received(1)
        assert await ended == NO_ANSWER
        second = sender.start(other.url())
        await other.has_received(1)
        may_answer.set()
        assert await second == Answered(204)


@on_both_loops
async def test_connecting_takes_too_long() -> None:
    with black_hole() as port:
        async with Sender(connect_timeout_s=SHORT_S) as sender:
            assert await sender.post(f"http://127.0.0.1:{port}/") == Unreachable("connect timed out")


@on_both_loops
async def test_the_attempts_deadline_counts_while_connecting() -> None:
    with black_hole() as port:
        async with Sender(attempt_timeout_s=SHORT_S) as sender:
            assert await sender.post(f"http://127.0.0.1:{port}/") == NO_ANSWER


@on_both_loops
async def test_the_name_takes_too_long() -> None:
    async def resolve(_host: str, _port: int) -> list[Address]:
        await asyncio.Event().wait()
        raise AssertionError

    async with Sender(connect_timeout_s=SHORT_S, resolve=resolve) as sender:
        assert await sender.post("http://slow.example/") == Unreachable("name lookup timed out")


@on_both_loops
async def test_tls_takes_too_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with Sender(connect_timeout_s=SHORT_S) as sender:
            url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
            assert await sender.post(url) == Unreachable("connect timed out")


# The race that a kept connection can lose.


@pytest.mark.parametrize("end", [close(), reset()], ids=["closes", "resets"])
@on_both_loops
async def test_a_kept_connection_that_the_peer_closed_is_replaced_at_once(end: Step) -> None:
    async with scene(answer(204), end, answer(201)) as (receiver, sender):
        assert await sender.post(receiver.url()) == Answered(204)
        assert await sender.post(receiver.url(), b"data=2") == Answered(201)
        assert [request.connection for request in receiver.requests] == [0, 0, 1]
        assert [request.body for request in receiver.requests[1:]] == [b"data=2"] * 2


@on_both_loops
async def test_all_kept_connections_are_closed_by_the_peer() -> None:
    async with scene() as (receiver, sender):
        await sender.post_all([receiver.url()] * 5)
        receiver.hang_up()
        assert await sender.post_all([receiver.url()] * 5) == [Answered(204)] * 5
        await sender.post_all([receiver.url()] * 5)
        assert len(receiver.connections) == 10


@pytest.mark.parametrize(("end", "reason"), [(close(), "connection closed without an answer"), (reset(), "connection reset")])
@on_both_loops
async def test_it_is_replaced_only_once(end: Step, reason: str) -> None:
    async with scene(answer(204), end, end, answer(204)) as (receiver, sender):
        await sender.post(receiver.url())
        assert await sender.post(receiver.url()) == Unreachable(reason)
        assert len(receiver.requests) == 3


@on_both_loops
async def test_it_is_not_replaced_once_an_answer_has_begun() -> None:
    async with scene(answer(204), raw(b"H", then=close()), answer(204)) as (receiver, sender):
        await sender.post(receiver.url())
        assert await sender.post(receiver.url()) == Unreachable("answer cut short")
        assert len(receiver.requests) == 2


@on_both_loops
async def test_the_replacement_has_what_is_left_of_the_time() -> None:
    may_close = asyncio.Event()
    script = (answer(204), silence(until=may_close, then=close()), silence())
    async with scene(*script, attempt_timeout_s=SHORT_S) as (receiver, sender):
        await sender.post(receiver.url())
        latest = asyncio.get_running_loop().time() + SHORT_S
        ended = sender.start(receiver.url())
        await receiver.has_received(2)
        while asyncio.get_running_loop().time() < latest - SHORT_S / 2:
            await asyncio.sleep(SHORT_S / 10)
        may_close.set()
        keeper = sender.transport._keeper
        while not keeper._dials and not ended.done():
            await asyncio.sleep(0)
        assert [dial.deadline for dial in keeper._dials if dial.deadline > latest + 0.01] == []
        assert await ended == NO_ANSWER


@on_both_loops
async def test_the_replacement_cannot_be_made() -> None:
    async with scene(answer(204), silence(until=(gone := asyncio.Event()), then=close())) as (receiver, sender):
        await sender.post(receiver.url())
        ended = sender.start(receiver.url())
        await receiver.has_received(2)
        receiver._server.close()
        await asyncio.sleep(0)
        gone.set()
        assert await ended == Unreachable("connection refused")


# Names and addresses.


@on_both_loops
async def test_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with Sender() as sender:
        assert await sender.post(f"http://127.0.0.1:{port}/") == Unreachable("connection refused")
        assert sender.transport._keeper.pools == {}


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "secret"), UnicodeError("label too long")])
@on_both_loops
async def test_no_such_name(error: Exception) -> None:
    async def resolve(_host: str, _port: int) -> list[Address]:
        raise error

    async with Sender(resolve=resolve) as sender:
        assert await sender.post("http://nothing.example/") == Unreachable("name not found")


@on_both_loops
async def test_a_name_without_addresses() -> None:
    async with Sender(resolve=names([])) as sender:
        assert await sender.post("http://nothing.example/") == Unreachable("name not found")


@on_both_loops
async def test_the_systems_resolver() -> None:
    async with scene() as (receiver, sender):
        assert await sender.post(receiver.url(host="localhost")) == Answered(204)


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("127.0.0.2", "loopback address"),
        ("10.0.0.1", "private address"),
        ("169.254.169.254", "link-local address"),
        ("[::ffff:10.0.0.1]", "private address"),
        ("[fd00:ec2::254]", "private address"),
    ],
)
@on_both_loops
async def test_forbidden_literals_are_not_dialled(host: str, kind: str) -> None:
    addresses = dialled(asyncio.get_running_loop())
    async with Sender() as sender:
        assert await sender.post(f"http://{host}/") == Forbidden(kind)
        assert addresses == []


@on_both_loops
async def test_loopback_is_forbidden_by_default() -> None:
    async with scene(guard=Guard()) as (receiver, sender):
        assert await sender.post(receiver.url()) == Forbidden("loopback address")
        assert await sender.post(receiver.url(host="localhost")) == Forbidden("loopback address")
        assert receiver.connections == []


@on_both_loops
async def test_only_the_allowed_answers_of_a_name_are_dialled() -> None:
    addresses = dialled(asyncio.get_running_loop())
    answers = ["10.0.0.1", "::ffff:169.254.169.254", "127.0.0.1", "127.0.0.2"]
    async with scene(resolve=names(answers)) as (receiver, sender):
        assert await sender.post(receiver.url(host="mixed.example")) == Answered(204)
        assert addresses == ["127.0.0.1"]


@on_both_loops
async def test_a_name_that_leads_nowhere_allowed() -> None:
    addresses = dialled(asyncio.get_running_loop())
    async with Sender(resolve=names(["10.0.0.1", "127.0.0.2"])) as sender:
        assert await sender.post("http://inside.example/") == Forbidden("private address")
        assert addresses == []


@on_both_loops
async def test_a_name_that_changes_between_check_and_dial() -> None:
    """The answer that was judged is the one that is dialled: a second answer is never asked for."""
    addresses = dialled(asyncio.get_running_loop())
    resolve = names(["127.0.0.1"], ["10.0.0.1"])
    async with scene(answer(closes=True), resolve=resolve, names_kept_s=0) as (receiver, sender):
        url = receiver.url(host="rebinding.example")
        assert await sender.post(url) == Answered(204)
        assert addresses == ["127.0.0.1"]
        assert await sender.post(url) == Forbidden("private address")
        assert addresses == ["127.0.0.1"]


@on_both_loops
async def test_a_kept_connection_does_not_ask_again() -> None:
    async with scene(resolve=names(["127.0.0.1"], ["10.0.0.1"])) as (receiver, sender):
        for _ in range(3):
            assert await sender.post(receiver.url(host="kept.example")) == Answered(204)
        assert len(receiver.connections) == 1


@on_both_loops
async def test_addresses_are_tried_in_turn() -> None:
    addresses = dialled(asyncio.get_running_loop())
    guard = Guard([ip_network("127.0.0.0/8"), ip_network("::1/128")])
    resolve = names(["127.0.0.2", "127.0.0.3", "::1", "127.0.0.1"])
    async with scene(guard=guard, resolve=resolve) as (receiver, sender):
        assert await sender.post(receiver.url(host="many.example")) == Answered(204)
        assert addresses == ["127.0.0.2", "::1", "127.0.0.3", "127.0.0.1"], "families take turns"


@on_both_loops
async def test_an_address_that_hangs_leaves_time_for_the_next() -> None:
    # The port is what both addresses have in common, so the black hole is on one and the receiver on the other.
    with black_hole() as port:
        async with Sender(resolve=names(["127.0.0.1", "::1"]), connect_timeout_s=4 * SHORT_S) as sender:
            with socket.create_server(("::1", port), family=socket.AF_INET6) as listener:
                ended = sender.start(f"http://two.example:{port}/")
                connection, _ = await asyncio.to_thread(listener.accept)
                with connection:
                    connection.sendall(b"HTTP/1.1 204 OK\r\n\r\n")
                    outcome = await ended
        # The answer may have come before the post, and then is none.
        assert outcome in {Answered(204), Unreachable("connection closed without an answer")}


@on_both_loops
async def test_only_so_many_addresses_are_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    addresses = dialled(asyncio.get_running_loop())
    answers = [f"127.0.0.{last}" for last in range(1, 20)]
    async with Sender(Guard([ip_network("127.0.0.0/8")]), resolve=names(answers)) as sender:
        assert await sender.post(f"http://many.example:{port}/") == Unreachable("connection refused")
        assert addresses == answers[:MAX_ADDRESSES]


@on_both_loops
async def test_a_receiver_that_moved_is_found_at_the_next_attempt() -> None:
    resolve = names(["127.0.0.2"], ["127.0.0.1"])
    async with scene(guard=Guard([ip_network("127.0.0.0/8")]), resolve=resolve, names_kept_s=3600) as (receiver, sender):
        assert await sender.post(receiver.url(host="moved.example")) == Unreachable("connection refused")
        assert await sender.post(receiver.url(host="moved.example")) == Answered(204)


@on_both_loops
async def test_a_name_is_looked_up_once_in_a_while_and_its_addresses_are_judged_each_time() -> None:
    guard = Guard([ip_network("127.0.0.0/8")])
    async with scene(answer(closes=True), guard=guard, resolve=names(["127.0.0.1"], ["10.0.0.1"])) as (receiver, sender):
        url = receiver.url(host="kept.example")
        assert await sender.post(url) == Answered(204)
        await receiver.has_closed(1)
        assert await sender.post(url) == Answered(204), "from what was kept"
        receiver.hang_up()
        await receiver.has_closed(2)
        guard._allowed = ()
        assert await sender.post(url) == Forbidden("loopback address")


# What is missing on our side.


@on_both_loops
async def test_no_descriptor_left_is_nobody_elses_fault_and_mends_itself() -> None:
    async with scene() as (receiver, sender), ScriptedReceiver() as other:
        await sender.post_all([receiver.url()] * (SHED_AT_ONCE + 8))
        with no_descriptor_left():
            assert await sender.post(other.url()) == Unsent("too many open files")
            await receiver.has_closed(SHED_AT_ONCE)
            assert sender.transport._keeper.idle_count == 8
            assert await sender.post(other.url()) == Answered(204)
            assert await sender.post(receiver.url()) == Answered(204)
        assert len(receiver.connections) == SHED_AT_ONCE + 8, "the youngest are kept"


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (errno.EADDRNOTAVAIL, Unsent("no local address or port free")),
        (errno.ENOBUFS, Unsent("no memory for a connection")),
        (errno.ENOMEM, Unsent("no memory for a connection")),
        (errno.ENFILE, Unsent("too many open files")),
        (errno.ENETUNREACH, Unreachable("network unreachable")),
        (errno.EHOSTUNREACH, Unreachable("host unreachable")),
        (errno.EPERM, Unreachable("connect failed")),
    ],
)
@on_both_loops
async def test_errors_of_the_system(number: int, outcome: Outcome) -> None:
    def fail(_: str) -> None:
        raise OSError(number, "injected")

    intercept(asyncio.get_running_loop(), fail)
    async with Sender(resolve=names(["127.0.0.1", "::1"])) as sender:
        assert await sender.post("http://127.0.0.1:9/") == outcome
        assert await sender.post("http://two.example:9/") == outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (OSError(errno.EMFILE, "secret"), Unsent("too many open files")),
        (OSError(errno.ENOMEM, "no thread for a lookup"), Unsent("no memory for a connection")),
        (socket.gaierror(socket.EAI_MEMORY, "secret"), Unsent("no memory for a connection")),
        (socket.gaierror(socket.EAI_AGAIN, "secret"), Unreachable("name not found")),
        (OSError(errno.EIO, "secret"), Unreachable("name not found")),
    ],
)
@on_both_loops
async def test_lookups_that_fail(error: OSError, outcome: Outcome) -> None:
    async with Sender(resolve=names(error)) as sender:
        assert await sender.post("http://a.example/") == outcome


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def tls_scene(authority: trustme.CA, shown: ssl.SSLContext, *script: Step) -> Any:
    async with (
        ScriptedReceiver(*script, ssl_context=shown) as receiver,
        Sender(ssl_context=trusting(authority), resolve=names(["127.0.0.1"])) as sender,
    ):
        yield receiver, sender


@on_both_loops
async def test_tls(authority: trustme.CA) -> None:
    shown = showing(authority.issue_cert("secure.example"))
    asked: list[str] = []
    shown.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with tls_scene(authority, shown, answer(204), answer(500, body=b"no")) as (receiver, sender):
        assert await sender.post(receiver.url(host="Secure.example.")) == Answered(204)
        assert await sender.post(receiver.url(host="secure.example")) == Answered(500, None, "no")
        assert asked == ["secure.example"]
        assert len(receiver.connections) == 1


@on_both_loops
async def test_tls_for_an_address(authority: trustme.CA) -> None:
    async with tls_scene(authority, showing(authority.issue_cert("127.0.0.1"))) as (receiver, sender):
        assert await sender.post(receiver.url()) == Answered(204)


@on_both_loops
async def test_tls_offers_http_1_1_only(authority: trustme.CA) -> None:
    shown = showing(authority.issue_cert("secure.example"))
    shown.set_alpn_protocols(["h2", "http/1.1"])
    agreed: list[str | None] = []

    async def note(exchange: Exchange) -> bool:
        tls = exchange.connection.transport.get_extra_info("ssl_object")
        agreed.append(tls.selected_alpn_protocol())
        return await answer(204)(exchange)

    async with ScriptedReceiver(note, ssl_context=shown) as receiver, Sender(resolve=names(["127.0.0.1"])) as sender:
        authority.configure_trust(sender.transport._keeper._dialler._ssl_context)
        assert await sender.post(receiver.url(host="secure.example")) == Answered(204)
        assert agreed == ["http/1.1"]


@pytest.mark.parametrize("end", [close(), reset()], ids=["closes", "resets"])
@on_both_loops
async def test_tls_connections_that_the_peer_closed_are_replaced(authority: trustme.CA, end: Step) -> None:
    shown = showing(authority.issue_cert("secure.example"))
    async with tls_scene(authority, shown, answer(204), end, answer(201)) as (receiver, sender):
        assert await sender.post(receiver.url(host="secure.example")) == Answered(204)
        assert await sender.post(receiver.url(host="secure.example")) == Answered(201)
        assert len(receiver.connections) == 2


def expired(authority: trustme.CA, _: trustme.CA) -> trustme.LeafCert:
    long_ago = datetime(2001, 1, 1, tzinfo=UTC), datetime(2002, 1, 1, tzinfo=UTC)
    return authority.issue_cert("secure.example", not_before=long_ago[0], not_after=long_ago[1])


BAD_CERTIFICATES: dict[str, tuple[Callable[[trustme.CA, trustme.CA], trustme.LeafCert], str, str]] = {
    "other host": (lambda ca, _: ca.issue_cert("other.example"), "secure.example", "hostname mismatch"),
    "other address": (lambda ca, _: ca.issue_cert("127.0.0.2"), "127.0.0.1", "address mismatch"),
    "expired": (expired, "secure.example", "expired"),
    "stranger's": (lambda _, stranger: stranger.issue_cert("secure.example"), "secure.example", "unknown issuer"),
}


@pytest.mark.parametrize(("issue", "host", "problem"), BAD_CERTIFICATES.values(), ids=BAD_CERTIFICATES)
@on_both_loops
async def test_bad_certificates(
    authority: trustme.CA, issue: Callable[[trustme.CA, trustme.CA], trustme.LeafCert], host: str, problem: str
) -> None:
    shown = showing(issue(authority, trustme.CA()))
    async with tls_scene(authority, shown) as (receiver, sender):
        outcome = await sender.post(receiver.url(host=host, user="user:hunter2"))
        assert outcome == Unreachable(f"certificate: {problem}")
        assert receiver.requests == []


@on_both_loops
async def test_a_self_signed_certificate(authority: trustme.CA, tmp_path: Any) -> None:
    stranger = trustme.CA()
    (tmp_path / "own.pem").write_bytes(stranger.cert_pem.bytes() + stranger.private_key_pem.bytes())
    shown = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    shown.load_cert_chain(tmp_path / "own.pem")
    async with tls_scene(authority, shown) as (receiver, sender):
        assert await sender.post(receiver.url(host="secure.example")) == Unreachable("certificate: self-signed")
        assert receiver.requests == []


@on_both_loops
async def test_a_bad_certificate_is_not_shopped_around(authority: trustme.CA) -> None:
    addresses = dialled(asyncio.get_running_loop())
    shown = showing(authority.issue_cert("other.example"))
    async with (
        ScriptedReceiver(ssl_context=shown) as receiver,
        Sender(ssl_context=trusting(authority), resolve=names(["127.0.0.1", "::1"])) as sender,
    ):
        outcome = await sender.post(receiver.url(host="secure.example"))
        assert outcome == Unreachable("certificate: hostname mismatch")
        assert addresses == ["127.0.0.1"]


@on_both_loops
async def test_tls_with_a_receiver_that_has_none() -> None:
    async with ScriptedReceiver(greeting=raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as receiver, Sender() as sender:
        outcome = await sender.post(f"https://127.0.0.1:{receiver.port}/")
        assert outcome == Unreachable("tls: handshake failed")


@on_both_loops
async def test_the_receiver_ends_it_during_the_handshake() -> None:
    async with ScriptedReceiver(greeting=close()) as receiver, Sender() as sender:
        outcome = await sender.post(f"https://127.0.0.1:{receiver.port}/")
        assert outcome in {Unreachable("connection reset"), Unreachable("tls: handshake failed")}


# The end.


@on_both_loops
async def test_close_ends_what_is_in_flight() -> None:
    stalled = raw(b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\npart", then=silence())
    async with scene(answer(), silence(), stalled) as (receiver, sender):
        await sender.post(receiver.url())
        unanswered, reading = sender.start(receiver.url()), None
        await receiver.has_received(2)
        reading = sender.start(receiver.url())
        await receiver.has_received(3)
        while not any(connection.body for connection in sender.transport._keeper._connections):
            await asyncio.sleep(0)
        with black_hole() as port:
            connecting = sender.start(f"http://127.0.0.1:{port}/")
            await sender.transport.close()
        assert unanswered.result() == connecting.result() == Unsent("closing")
        assert reading.result() == Answered(500, None, "part")
        await receiver.has_closed(2)
        await sender.transport.close()


@on_both_loops
async def test_close_before_a_dial_has_begun() -> None:
    async with Sender() as sender:
        ended = sender.start("http://127.0.0.1:9/")
        await sender.transport.close()
        assert ended.result() == Unsent("closing")


@on_both_loops
async def test_close_while_a_name_is_looked_up() -> None:
    asked = asyncio.Event()

    async def resolve(_host: str, _port: int) -> list[Address]:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError from None  # swallowed, as a careless resolver may do
        raise AssertionError

    async with Sender(resolve=resolve) as sender:
        ended = sender.start("http://slow.example/")
        await asked.wait()
        await sender.transport.close()
        assert ended.result() == Unsent("closing")


@on_both_loops
async def test_starting_after_the_end() -> None:
    async with scene() as (receiver, sender):
        await sender.post(receiver.url())
        await sender.transport.close()
        assert await sender.post(receiver.url()) == Unsent("closing")
        assert len(receiver.requests) == 1


@on_both_loops
async def test_starting_from_within_the_end() -> None:
    async with scene(silence()) as (receiver, sender):
        outcomes: list[Outcome] = []

        def again(post: Post, outcome: Outcome) -> None:
            outcomes.append(outcome)
            if len(outcomes) < 3:
                sender.transport.start(post, again)

        sender.transport.start(make_post(receiver.url()), again)
        await receiver.has_received(1)
        await sender.transport.close()
        while len(outcomes) < 3:
            await asyncio.sleep(0)
        assert outcomes == [Unsent("closing")] * 3


@pytest.mark.parametrize("turns", range(12))
@on_both_loops
async def test_close_at_any_moment_of_an_attempt(turns: int) -> None:
    async with scene(answer(204, body=b""), answer(204)) as (receiver, sender):
        attempts = [sender.start(receiver.url()) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await sender.transport.close()
        assert {attempt.result() for attempt in attempts} <= {Answered(204), Unsent("closing")}
        assert sender.transport._keeper.pools == {}


# What must not get out, and what must not get in.


@on_both_loops
async def test_a_caller_that_raises_hurts_only_itself() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    def raise_it(_: Post, outcome: Outcome) -> None:
        raise ValueError(outcome)

    async with scene(answer(204), silence(), attempt_timeout_s=SHORT_S) as (receiver, sender):
        for _ in range(2):
            sender.transport.start(make_post(receiver.url()), raise_it)
            await receiver.has_received(len(receiver.requests) + 1)
        await receiver.has_closed(1)
        assert await sender.post(receiver.url()) == Answered(204)
    assert [context["exception"].args for context in complaints] == [(Answered(204),), (NO_ANSWER,)]


@on_both_loops
async def test_an_error_of_our_own_while_dialling_still_gives_an_outcome() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def resolve(_host: str, _port: int) -> list[Address]:
        raise ZeroDivisionError

    async with Sender(resolve=resolve) as sender:
        assert await sender.post("http://a.example/") == Unreachable("connect failed")
    assert [type(context["exception"]) for context in complaints] == [ZeroDivisionError]


def test_secrets_are_not_shown() -> None:
    post = make_post("https://user:hunter2@example.com/t0ken?key=abc", b"data=554130600300")
    assert repr(post) == "Post(url=<TargetUrl https://example.com/…>)"


@on_both_loops
async def test_the_posts_own_values_are_handed_back() -> None:
    async with scene() as (receiver, sender):
        post = make_post(receiver.url())
        told: asyncio.Future[Post] = asyncio.get_running_loop().create_future()
        sender.transport.start(post, lambda given, _: told.set_result(given))
        assert await told is post
        assert IPv4Address(post.url.host).is_loopback
