"""A customer's server that takes in many posts a second, in a thread of its own, and keeps every one in the order of arrival.

    with RecordingReceiver() as receiver:
        ...  # register receiver.url("/all")
        posts = receiver.wait_for(lambda posts: len(posts) == 4)
        assert [post.data["status"] for post in posts] == [...]

It answers 204 unless told otherwise: `behave` sets what is answered to which post and how late, `hold` lets all answers wait, and
while it is `deaf` nobody can connect.
"""

import asyncio
import contextlib
import errno
import itertools
import json
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from standardwebhooks import Webhook

from toque.receiver import Receiver

HOST = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
PATIENCE_S = 30.0
POLL_S = 0.01
BACKLOG = 1024  # connections that may wait to be accepted

Side = tuple[str, str, str, str]  # path, callerid, tipo, pin


@dataclass(eq=False)
class Post:
    """One request as it arrived. `status` is what it was answered; None as long as it was not, or if its sender was gone."""

    number: int  # in the order of arrival, over all connections
    at: float  # monotonic seconds
    connection: int
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes = field(repr=False)
    status: int | None = None

    @cached_property
    def data(self) -> dict[str, Any]:
        """The JSON of the form's one field."""
        [(name, value)] = urllib.parse.parse_qsl(self.body.decode("ascii"), strict_parsing=True, errors="strict")
        assert name == "data"
        data: dict[str, Any] = json.loads(value)
        return data

    @property
    def id(self) -> str:
        return str(self.data["id"])

    @property
    def word(self) -> str:
        return str(self.data["status"])

    @property
    def side(self) -> Side:
        """Whose view of which call this is, to which URL."""
        return (self.path, self.data["callerid"], self.data["tipo"], self.data["pin"])

    @property
    def signatures(self) -> list[str]:
        return self.headers["webhook-signature"].split(" ")


@dataclass(frozen=True)
class Reply:
    """What a post is answered, and after how many seconds. `is_cut`: not at all, the connection is reset instead."""

    status: int = 204
    after_s: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    is_cut: bool = False


def thanks(_: Post) -> Reply:
    """The answer of a receiver in good health."""
    return Reply()


class RecordingReceiver:
    """Listens on a port of `host` while it is entered; with `EVERYWHERE`, all of 127.0.0.0/8 leads here."""

    def __init__(self, host: str = HOST) -> None:
        self._host = host
        self._answer: Callable[[Post], Reply] = thanks
        self._lock = threading.Lock()
        self._posts: list[Post] = []
        self._open: dict[int, _Connection] = {}
        self._held: list[Callable[[], None]] | None = None
        self._numbers = itertools.count()
        self._listens = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._done: asyncio.Event
        self._server: asyncio.Server
        self.port = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="receiver")

    def __enter__(self) -> Self:
        self._thread.start()
        self._listens.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()

    def url(self, target: str = "/", *, user: str = "", host: str = HOST) -> str:
        """A URL that leads here; `user` is put before the host as it is."""
        return f"http://{user}{'@' if user else ''}{host}:{self.port}{target}"

    # What is answered

    def behave(self, answer: Callable[[Post], Reply]) -> None:
        """Answer by this function from now on. It runs in the receiver's thread and must not wait."""
        self._answer = answer

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """While the block lasts, posts are taken in and not answered; at its end all are."""
        with self._lock:
            assert self._held is None
            self._held = []
        try:
            yield
        finally:
            with self._lock:
                held, self._held = self._held, None
            for reply in held:
                self._loop.call_soon_threadsafe(reply)

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """While the block lasts, connections are reset and new ones refused."""
        self._in_thread(self._close())
        try:
            yield
        finally:
            self._in_thread(self._open_port())

    def _in_thread(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    # What has come

    @property
    def posts(self) -> list[Post]:
        """All posts until now."""
        with self._lock:
            return list(self._posts)

    def posts_to(self, path: str) -> list[Post]:
        """The posts to this path until now."""
        return [post for post in self.posts if post.path == path]

    def wait_for(self, is_so: Callable[[list[Post]], bool], *, timeout_s: float = PATIENCE_S) -> list[Post]:
        """Wait until `is_so` holds for all posts until then, and return them; `TimeoutError` when it never does."""
        deadline = time.monotonic() + timeout_s
        while not is_so(posts := self.posts):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so within {timeout_s:g} s; {len(posts)} posts came, the last ones {posts[-5:]}")
            time.sleep(POLL_S)
        return posts

    def wait_for_count(self, count: int, path: str | None = None, *, timeout_s: float = PATIENCE_S) -> list[Post]:
        """Wait until so many posts have come (to this path), and return them."""

        def of_path(posts: list[Post]) -> list[Post]:
            return [post for post in posts if path in (None, post.path)]

        return of_path(self.wait_for(lambda posts: len(of_path(posts)) >= count, timeout_s=timeout_s))

    @property
    def connections(self) -> set[int]:
        """The connections that are open now."""
        with self._lock:
            return set(self._open)

    def wait_until_closed(self, connections: set[int]) -> None:
        """Wait until nothing more can come over these connections."""
        deadline = time.monotonic() + PATIENCE_S
        while self.connections & connections:
            assert time.monotonic() < deadline, "the peer does not let go"
            time.sleep(POLL_S)

    # The receiver's thread

    async def _serve(self) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        await self._open_port()
        self._listens.set()
        await self._done.wait()
        await self._close()

    async def _open_port(self) -> None:
        """The same port each time. While nobody listened, somebody may have got it for a connection that is soon over."""
        while True:
            try:
                self._server = await self._loop.create_server(
                    lambda: _Connection(self, next(self._numbers)), self._host, self.port, backlog=BACKLOG
                )
                break
            except OSError as error:
                if not self.port or error.errno != errno.EADDRINUSE:
                    raise
                await asyncio.sleep(POLL_S)  # bounded by the patience of whoever asked for it
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for connection in list(self._open.values()):
            connection.transport.abort()
        await self._server.wait_closed()
        while self.connections:  # their ends are on their way through the loop
            await asyncio.sleep(0)

    def opened(self, connection: "_Connection") -> None:
        with self._lock:
            self._open[connection.number] = connection

    def closed(self, connection: "_Connection") -> None:
        with self._lock:
            self._open.pop(connection.number, None)

    def take(self, connection: "_Connection", path: str, headers: Mapping[str, str], body: bytes) -> None:
        """One whole request."""
        with self._lock:
            post = Post(len(self._posts), time.monotonic(), connection.number, path, headers, body)
            self._posts.append(post)
            held = self._held
            if held is not None:
                held.append(lambda: self._reply(connection, post))
        if held is None:
            self._reply(connection, post)

    def _reply(self, connection: "_Connection", post: Post) -> None:
        reply = self._answer(post)
        if reply.after_s:
            self._loop.call_later(reply.after_s, connection.answer, post, reply)
        else:
            connection.answer(post, reply)


class _Connection(asyncio.Protocol):
    def __init__(self, receiver: RecordingReceiver, number: int) -> None:
        self.number = number
        self.transport: asyncio.Transport
        self._receiver = receiver
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._receiver.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._receiver.closed(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (request := self._next_request()) is not None:
            self._receiver.take(self, *request)

    def _next_request(self) -> tuple[str, Mapping[str, str], bytes] | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        start, length = end + 4, int(headers.get("content-length", "0"))
        if len(self._buffer) < start + length:
            return None
        body = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        method, path, _ = first.split(" ")
        assert method == "POST", first
        return path, headers, body

    def answer(self, post: Post, reply: Reply) -> None:
        if self.transport.is_closing():
            return
        if reply.is_cut:
            self.transport.abort()
            return
        lines = [f"HTTP/1.1 {reply.status} Noted", *(f"{name}: {value}" for name, value in reply.headers.items())]
        if reply.status != 204:
            lines.append("Content-Length: 0")
        post.status = reply.status
        self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1"))


# What posts must be, whatever they tell.


def by_side(posts: Iterable[Post]) -> dict[Side, list[Post]]:
    """The posts of each side to each URL, in the order of arrival."""
    sides: dict[Side, list[Post]] = defaultdict(list)
    for post in posts:
        sides[post.side].append(post)
    return dict(sides)


def words(posts: Iterable[Post]) -> list[str]:
    """The statuses, in the order of arrival."""
    return [post.word for post in posts]


def assert_signed(posts: Iterable[Post], *secrets: str) -> None:
    """Each post has a signature by each of these secrets and no other, as both our SDK and the Standard Webhooks library see it."""
    receivers = [Receiver(secret) for secret in secrets]
    libraries = [Webhook(secret) for secret in secrets]
    for post in posts:
        assert [receiver.read(post.headers, post.body).id for receiver in receivers] == [post.id] * len(secrets)
        at = datetime.fromtimestamp(int(post.headers["webhook-timestamp"]), UTC)
        signatures = [library.sign(post.headers["webhook-id"], at, post.body.decode()) for library in libraries]
        assert post.signatures == signatures
        assert post.headers["content-type"] == "application/x-www-form-urlencoded"
