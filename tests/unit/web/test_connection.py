"""The HTTP connection: real sockets, an application that says what it got, and peers that misbehave."""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn

from toque.web import connection as module
from toque.web.connection import MAX_HEAD_BYTES, HttpConnection

PATIENCE_S = 5.0  # for what must come; nothing here takes as long when all is well


class Application:
    """Answers every request with its method, path and body, at once or when `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.asked: list[tuple[str, str, str]] = []
        self.gone = 0

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.asked.append((scope["method"], scope["path"], body.decode()))
        await self.go.wait()
        answer = json.dumps(self.asked[-1]).encode()
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class Peer:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self) -> tuple[int, str, str]:
        """Status, head and body of the next answer."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            length = int(re.search(r"content-length: (\d+)", head)[1])
            return int(head.split()[1]), head, (await self.reader.readexactly(length)).decode()

    async def rest(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Lab:
    def __init__(self, port: int) -> None:
        self.app = Application()
        self.port = port
        self.peers: list[Peer] = []

    async def connect(self) -> Peer:
        self.peers.append(Peer(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.peers[-1]


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    # With the protocol named, asyncio switches Nagle's algorithm off; it would cost 40 ms an answer.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        made = Lab(listening.getsockname()[1])
        config = uvicorn.Config(made.app, http=HttpConnection, ws="none", lifespan="off", access_log=False, log_config=None)
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext
        task = asyncio.create_task(server.serve([listening]))
        yield made
        for peer in made.peers:
            await peer.close()
        made.app.go.set()
        server.should_exit = True
        await task


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.15)


def post(path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: toque", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def told(answer: tuple[int, str, str]) -> tuple[int, str]:
    """Status and code of one of our envelopes; whoever gets one of these is hung up on."""
    status, head, body = answer
    assert "content-type: application/json; charset=utf-8" in head
    assert "cache-control: no-store" in head
    assert "connection: close" in head
    envelope = json.loads(body)
    assert (envelope["api"], envelope["modulo"], envelope["status"]) == ("voz", "desconhecido", "erro")
    return status, envelope["codigo"]


async def test_requests_are_answered_on_one_connection(lab: Lab):
    peer = await lab.connect()
    for path in ("/a", "/b"):
        await peer.send(post(path, b"x=1"))
        assert json.loads((await peer.answer())[2]) == ["POST", path, "x=1"]


# Time


@pytest.mark.usefixtures("hurried")
async def test_a_connection_without_a_request_is_closed(lab: Lab):
    assert await (await lab.connect()).rest() == b""


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("begun", [b"P", b"POST / HTTP/1.1\r\n", post("/")[:-1], b"\r\n\r\n"])
async def test_a_head_that_does_not_come_to_its_end_is_told(lab: Lab, begun: bytes):
    peer = await lab.connect()
    await peer.send(begun)
    assert told(await peer.answer()) == (408, "001")
    assert await peer.rest() == b""


@pytest.mark.usefixtures("hurried")
async def test_a_head_that_drips_in_has_no_more_time(lab: Lab):
    peer = await lab.connect()
    began = asyncio.get_running_loop().time()
    for byte in post("/", b"", "X-Long: " + "a" * 1000):
        await peer.send(bytes([byte]))
        await asyncio.sleep(0.01)
        if peer.reader._buffer:
            break
    assert told(await peer.answer()) == (408, "001")
    assert asyncio.get_running_loop().time() - began < 2


@pytest.mark.usefixtures("hurried")
async def test_a_body_that_does_not_come_to_its_end_is_the_end(lab: Lab):
    peer = await lab.connect()
    await peer.send(post("/", b"x=1")[:-1])
    assert await peer.rest() == b""
    assert (lab.app.asked, lab.app.gone) == ([], 1)


@pytest.mark.usefixtures("hurried")
async def test_blank_lines_do_not_keep_a_connection(lab: Lab):
    peer = await lab.connect()
    await peer.send(post("/a"))
    await peer.answer()
    await peer.send(b"\r\n")
    await peer.rest()


@pytest.mark.usefixtures("hurried")
async def test_the_time_for_a_request_is_not_the_time_for_its_answer(lab: Lab):
    lab.app.go.clear()
    peer = await lab.connect()
    await peer.send(post("/a"))
    await asyncio.sleep(0.3)  # twice the time for a request
    lab.app.go.set()
    assert (await peer.answer())[0] == 200
    await asyncio.sleep(0.3)  # waiting for the next request is the business of keep-alive
    await peer.send(post("/b"))
    assert (await peer.answer())[0] == 200


# Size and number


@pytest.mark.parametrize("piece", [100, 4096, 60_000])
@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\nX: ", b"GET /?"])
async def test_a_head_has_its_largest_size(lab: Lab, begin: bytes, piece: int):
    peer = await lab.connect()
    head = begin + b"a" * (MAX_HEAD_BYTES + 1 - len(begin))
    for start in range(0, len(head), piece):
        await peer.send(head[start : start + piece])
        await asyncio.sleep(0)
    assert told(await peer.answer()) == (431, "001")


async def test_heads_within_that_size_are_taken_one_after_the_other(lab: Lab):
    peer = await lab.connect()
    for _ in range(4):
        await peer.send(post("/", b"x=1", "X: " + "a" * 30_000))
        assert (await peer.answer())[0] == 200


async def test_a_large_body_is_no_large_head(lab: Lab):
    peer = await lab.connect()
    await peer.send(post("/", b"a" * 60_000))
    assert (await peer.answer())[0] == 200
    await peer.send(post("/", b"a" * 60_000))
    assert (await peer.answer())[0] == 200


async def test_the_number_of_connections_is_limited(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    first, _ = await lab.connect(), await lab.connect()
    await first.send(post("/"))
    await first.answer()
    third = await lab.connect()
    answer = await third.answer()
    assert told(answer) == (503, "005")
    assert "Retry-After: 5" in answer[1]
    await third.rest()
    await first.close()
    async with asyncio.timeout(PATIENCE_S):  # the server learns of it in its own time
        while True:
            fourth = await lab.connect()
            await fourth.send(post("/"))
            if (await fourth.answer())[0] == 200:
                break
            await fourth.close()


# What is no HTTP


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"CONNECT toque:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT /a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://toque HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\nX: a\rb\n\n",
        b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_told_in_our_envelope(lab: Lab, data: bytes):
    peer = await lab.connect()
    await peer.send(data)
    assert told(await peer.answer()) == (400, "001")
    assert await peer.rest() == b""
    assert lab.app.asked == []


async def test_garbage_behind_a_good_request_does_not_take_its_answer(lab: Lab):
    lab.app.go.clear()
    peer = await lab.connect()
    await peer.send(post("/a", b"x=1") + b"garbage\r\n\r\n")
    await asyncio.sleep(0.05)
    lab.app.go.set()
    status, head, body = await peer.answer()
    assert (status, json.loads(body)) == (200, ["POST", "/a", "x=1"])
    assert "connection: close" in head
    assert await peer.rest() == b""


# Upgrades are not taken


H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
WEBSOCKET = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA==")


@pytest.mark.parametrize("headers", [H2C, WEBSOCKET])
async def test_an_upgrade_is_not_taken_and_the_body_is_read(lab: Lab, headers: tuple[str, ...]):
    peer = await lab.connect()
    for path in ("/a", "/b"):
        await peer.send(post(path, b"x=1&y=2", *headers))
        assert json.loads((await peer.answer())[2]) == ["POST", path, "x=1&y=2"]
    await peer.send(b"GET /c HTTP/1.1\r\nHost: x\r\n" + "\r\n".join(headers).encode() + b"\r\n\r\n")
    assert json.loads((await peer.answer())[2]) == ["GET", "/c", ""]


async def test_an_upgrade_wherever_the_network_cuts_it(lab: Lab):
    data = post("/a", b"x=1", *H2C)
    peer = await lab.connect()
    for cut in range(1, len(data)):
        await peer.send(data[:cut])
        await asyncio.sleep(0)
        await peer.send(data[cut:])
        assert json.loads((await peer.answer())[2]) == ["POST", "/a", "x=1"]


async def test_pipelined_upgrades_and_chunks(lab: Lab):
    chunked = post("/b", b"", "Transfer-Encoding: chunked", *H2C).replace(b"Content-Length: 0\r\n", b"")
    peer = await lab.connect()
    await peer.send(post("/a", b"x=1", *H2C) + chunked + b"3\r\ny=2\r\n0\r\n\r\n" + post("/c", b"z=3"))
    answers = [json.loads((await peer.answer())[2]) for _ in range(3)]
    assert answers == [["POST", "/a", "x=1"], ["POST", "/b", "y=2"], ["POST", "/c", "z=3"]]


# Ends


async def test_a_peer_that_goes_leaves_nothing_behind(lab: Lab):
    before = len(asyncio.all_tasks())
    for begun in (b"", b"POST", post("/", b"x=1")[:-1], post("/a", b"x=1", *H2C)[:-1]):
        peer = await lab.connect()
        await peer.send(begun)
        await peer.close()
    async with asyncio.timeout(PATIENCE_S):
        while lab.app.gone < 2 or len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0.001)
