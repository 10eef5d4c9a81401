"""Posting in tests: a transport that keeps count, the loops it runs on, and what a scenario must not leave behind.

    @on_both_loops
    async def test_something() -> None:
        async with scene(answer(204)) as (receiver, sender):
            assert await sender.post(receiver.url()) == Answered(204)

Every scenario ends with the same questions: has each attempt had exactly one outcome, is no task, thread or descriptor
left, and has nothing gone wrong behind the scenes?
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address, ip_network
from types import TracebackType
from typing import Any, Self

import pytest
import trustme
import uvloop
from tests.support.scripted_receiver import ScriptedReceiver, Step

from toque.callbacks.url import parse_url
from toque.sending.guard import Address, Guard
from toque.sending.transport import Outcome, Post, Transport, Unreachable

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
LOOPBACK = Guard([ip_network("127.0.0.1/32"), ip_network("::1/128")])
TIME_FOR_A_SCENARIO_S = 30
SHORT_S = 0.25
"""A time-out that a scenario waits for."""

NO_ANSWER = Unreachable(f"no answer within {SHORT_S:g} s")


def on_both_loops(scenario: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a test of a scenario, once for each kind of loop, which also fails on whatever the scenario leaves behind."""

    @functools.wraps(scenario)
    def test(new_loop: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        _warm_up(new_loop)
        descriptors, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_checked(scenario(**fixtures)))
        assert set(os.listdir("/proc/self/fd")) == descriptors
        for thread in set(threading.enumerate()) - threads:
            thread.join(TIME_FOR_A_SCENARIO_S)
            assert not thread.is_alive()

    signature = inspect.signature(scenario)
    new_loop = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    test.__signature__ = signature.replace(parameters=[new_loop, *signature.parameters.values()])
    return pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)(test)


@functools.cache
def _warm_up(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """What a process opens once for all its loops is no leak."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.sleep(0))


async def _checked(scenario: Awaitable[None]) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with asyncio.timeout(TIME_FOR_A_SCENARIO_S):
        await scenario
        while asyncio.all_tasks() != {asyncio.current_task()}:  # asyncio's own may need a few turns more
            await asyncio.sleep(0)
    assert complaints == []


class Sender:
    """A transport that keeps count: leaving it closes the transport and fails unless each attempt had one outcome."""

    def __init__(self, guard: Guard = LOOPBACK, **options: Any) -> None:
        self.transport = Transport(guard, **options)
        self.outcomes: dict[Post, list[Outcome]] = {}

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.transport.close()
        await asyncio.sleep(0)
        if error is None:
            assert [len(outcomes) for outcomes in self.outcomes.values()] == [1] * len(self.outcomes)

    def start(self, url: str, body: bytes = b"data=1") -> asyncio.Future[Outcome]:
        """Start an attempt; the future waits for its outcome, which must not come from within."""
        post = make_post(url, body)
        outcomes = self.outcomes[post] = []
        ended = asyncio.get_running_loop().create_future()

        def on_outcome(told: Post, outcome: Outcome) -> None:
            assert told is post
            outcomes.append(outcome)
            if not ended.done():
                ended.set_result(outcome)

        self.transport.start(post, on_outcome)
        assert outcomes == [], "the outcome came from within start()"
        return ended

    async def post(self, url: str, body: bytes = b"data=1") -> Outcome:
        return await self.start(url, body)

    async def post_all(self, urls: Sequence[str]) -> list[Outcome]:
        return await asyncio.gather(*[self.start(url) for url in urls])


def make_post(url: str, body: bytes = b"data=1") -> Post:
    target = parse_url(url)
    head = f"POST {target.target} HTTP/1.1\r\nHost: {target.host_header}\r\nContent-Length: {len(body)}\r\n"
    if target.authorization:
        head += f"Authorization: {target.authorization}\r\n"
    return Post(target, f"{head}\r\n".encode(), body)


@asynccontextmanager
async def scene(*script: Step, otherwise: Step | None = None, **options: Any) -> Any:
    """A receiver that follows the script and a sender with these options."""
    async with ScriptedReceiver(*script, otherwise=otherwise) as receiver, Sender(**options) as sender:
        yield receiver, sender


def names(*answers: Sequence[str] | OSError) -> Callable[[str, int], Awaitable[list[Address]]]:
    """A resolver that gives these answers in turn, the last one for ever."""
    waiting = list(answers)

    async def resolve(_host: str, _port: int) -> list[Address]:
        found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(found, OSError):
            raise found
        return [ip_address(text) for text in found]

    return resolve


@contextmanager
def black_hole() -> Iterator[int]:
    """A port where connections are neither accepted nor refused: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port
        for filler in fillers:
            filler.close()


def dialled(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Note every address that is dialled on this loop from now on."""
    addresses: list[str] = []
    intercept(loop, addresses.append)
    return addresses


def intercept(loop: asyncio.AbstractEventLoop, before: Callable[[str], object]) -> None:
    """Call this with each address before it is dialled on this loop, by whichever of the two ways there are."""
    sock_connect, create_connection = loop.sock_connect, loop.create_connection

    async def connect(sock: socket.socket, place: tuple[str, int]) -> None:
        before(place[0])
        await sock_connect(sock, place)

    async def create(factory: Any, host: str | None = None, port: int | None = None, **options: Any) -> Any:
        if host is not None and isinstance(loop, uvloop.Loop):  # asyncio's own goes by sock_connect from here
            before(host)
        return await create_connection(factory, host, port, **options)

    loop.sock_connect = connect  # type: ignore[method-assign]
    loop.create_connection = create  # type: ignore[method-assign]


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def showing(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context
