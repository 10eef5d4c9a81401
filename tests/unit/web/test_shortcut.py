"""Requests past the application: real sockets, a taker that answers when it is told to, and the usual way beside it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn

from toque.web import connection as module
from toque.web.connection import GiveAnswer, HttpConnection, Taker

PATIENCE_S = 5.0


class Application:
    """Takes POSTs to /short past itself; says of all else that it went the usual way."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, GiveAnswer]] = []
        self.is_at_once = True
        self.something = asyncio.Event()

    def shortcut(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> Taker | None:
        return self._take if url == b"/short" and dict(headers).get(b"x-way") != b"long" else None

    def _take(self, body: bytes, answer: GiveAnswer) -> None:
        self.taken.append((body, answer))
        self.something.set()
        if self.is_at_once:
            answer(200, body, {})

    def answer(self, index: int, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body, answer = self.taken[index]
        answer(status, body, headers or {})

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        said = b"usual:" + body
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
        await send({"type": "http.response.body", "body": said})


class Lab:
    def __init__(self, server: uvicorn.Server, app: Application, port: int) -> None:
        self.server, self.app, self.port = server, app, port
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self, data: bytes = b"") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        writer.write(data)
        return reader

    async def taken(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.app.taken) < count:
                self.app.something.clear()
                await self.app.something.wait()


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        app = Application()
        config = uvicorn.Config(
            app, http=HttpConnection, ws="none", lifespan="off", access_log=False, log_config=None, timeout_keep_alive=1
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext
        task = asyncio.create_task(server.serve([listening]))
        made = Lab(server, app, listening.getsockname()[1])
        yield made
        for writer in made.writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        server.should_exit = True
        await task


def post(body: bytes, *headers: str, path: str = "/short", version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: toque", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def answer(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        return head, await reader.readexactly(length)


async def rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def test_requests_go_either_way_on_one_connection(lab: Lab):
    reader = await lab.connect()
    for body, headers, said in ((b"a", (), b"a"), (b"b", ("X-Way: long",), b"usual:b"), (b"", (), b""), (b"c", (), b"c")):
        lab.writers[0].write(post(body, *headers))
        assert (await answer(reader))[1] == said
    assert [body for body, _ in lab.app.taken] == [b"a", b"", b"c"]
    assert lab.server.server_state.total_requests == 4


async def test_the_answer_is_json_with_a_date_and_what_else_it_is_given(lab: Lab):
    lab.app.is_at_once = False
    reader = await lab.connect(post(b"{}"))
    await lab.taken(1)
    lab.app.answer(0, 503, {"Retry-After": "1"})
    head, body = await answer(reader)
    lines = head.split("\r\n")
    assert lines[0] == "HTTP/1.1 503 Service Unavailable"
    assert {"content-type: application/json", "cache-control: no-store", "retry-after: 1"} <= set(lines)
    assert "\r\ndate: " in head
    assert "connection:" not in head
    assert body == b"{}"


async def test_pipelined_requests_are_answered_in_order(lab: Lab):
    lab.app.is_at_once = False
    reader = await lab.connect(post(b"1") + post(b"2") + post(b"3", path="/"))
    await lab.taken(1)
    lab.app.answer(0)
    assert [(await answer(reader))[1] for _ in range(3)] == [b"1", b"usual:2", b"usual:3"]
    lab.writers[0].write(post(b"4"))
    await lab.taken(2)
    lab.app.answer(1)
    assert (await answer(reader))[1] == b"4"


async def test_a_body_may_come_byte_by_byte(lab: Lab):
    reader = await lab.connect()
    for byte in post(b"slow"):
        lab.writers[0].write(bytes([byte]))
        await lab.writers[0].drain()
        await asyncio.sleep(0)
    assert (await answer(reader))[1] == b"slow"


@pytest.mark.parametrize(("headers", "version"), [(("Connection: close",), "1.1"), ((), "1.0")])
async def test_who_asks_for_one_answer_gets_one(lab: Lab, headers: tuple[str, ...], version: str):
    reader = await lab.connect(post(b"x", *headers, version=version))
    head, body = await answer(reader)
    assert "connection: close" in head
    assert body == b"x"
    assert await rest(reader) == b""


async def test_a_body_that_stalls_is_not_waited_for_forever(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.15)
    reader = await lab.connect(post(b"half")[:-1])
    assert await rest(reader) == b""
    assert lab.app.taken == []


async def test_rubbish_behind_a_request_leaves_it_its_answer(lab: Lab):
    lab.app.is_at_once = False
    reader = await lab.connect(post(b"1") + b"\x00\x01\r\n\r\n")
    await lab.taken(1)
    lab.app.answer(0)
    assert (await answer(reader))[1] == b"1"
    assert await rest(reader) == b""


async def test_an_answer_for_somebody_who_is_gone_harms_nobody(lab: Lab):
    lab.app.is_at_once = False
    await lab.connect(post(b"1"))
    await lab.taken(1)
    lab.writers[0].transport.abort()
    async with asyncio.timeout(PATIENCE_S):
        while lab.server.server_state.connections:
            await asyncio.sleep(0)
    lab.app.answer(0)
    reader = await lab.connect(post(b"2"))
    await lab.taken(2)
    lab.app.answer(1)
    assert (await answer(reader))[1] == b"2"


async def test_an_idle_connection_is_closed_in_its_time(lab: Lab):
    reader = await lab.connect(post(b"1"))
    assert (await answer(reader))[1] == b"1"
    assert await rest(reader) == b""


async def test_a_server_that_stops_answers_first(lab: Lab):
    lab.app.is_at_once = False
    reader = await lab.connect(post(b"1"))
    await lab.taken(1)
    (connection,) = lab.server.server_state.connections
    connection.shutdown()
    lab.app.answer(0)
    head, body = await answer(reader)
    assert "connection: close" in head
    assert body == b"1"
    assert await rest(reader) == b""
