"""One HTTP connection: uvicorn's, with bounds on what a stranger may cost us, and our envelope for what is no HTTP.

uvicorn leaves three things to a proxy in front that may not be there: how long a request may take to arrive, how large its head
may be, and how many connections there may be. And a request that asks for an upgrade loses its body there.

A request in the usual way costs a task, a context, two timers and a dozen objects. An application that has a `shortcut` gets
what it wants of the small ones as a call, and answers by one; whatever else comes goes the usual way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from toque.web.app import NOWHERE
from toque.web.directcall import Problem, problem_answer
from toque.web.envelopes import FAILURE, PARAMETER

REQUEST_TIMEOUT_S = 60.0  # from a connection's or a request's first moment until the request is here as a whole
MAX_HEAD_BYTES = 64 * 1024  # request line and headers; the parser itself would take any amount
MAX_CONNECTIONS = 500  # half of the file descriptors that a process usually may have; posts need some as well
_RETRY_AFTER_S = 5
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings", b"connection")

GiveAnswer = Callable[[int, bytes, Mapping[str, str]], None]
"""Status, a JSON body, and further headers. To be called once, at any time."""
Taker = Callable[[bytes, GiveAnswer], None]
"""Takes a whole body. It must not raise."""
Shortcut = Callable[[bytes, list[tuple[bytes, bytes]]], Taker | None]
"""Given the target and headers of a POST: who takes it, or None where it is to go the usual way."""


JSON_HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
_NO_HEAD: tuple[object, bytes] = (None, b"")
_HEADS: dict[int, tuple[object, bytes]] = {}  # by status: the headers that they were made of, which change with the date


class _NobodyWaits:
    """For what uvicorn calls an event."""

    def set(self) -> None:
        """Nobody is told."""


def _has_taken(body: bytes, answer: GiveAnswer) -> None:
    """Nothing is to be taken twice."""


class _Posted:
    """A request that takes the shortcut, in the place and shape of uvicorn's cycle: it decides what may be answered next."""

    __slots__ = ("_connection", "_taker", "body", "disconnected", "keep_alive", "more_body", "response_complete", "scope")
    message_event = _NobodyWaits()

    def __init__(self, connection: HttpConnection, taker: Taker, *, keep_alive: bool) -> None:
        self._connection = connection
        self._taker = taker
        self.keep_alive = keep_alive
        self.body = b""
        self.more_body = True
        self.response_complete = False
        self.disconnected = False
        self.scope = {"path": connection.url.partition(b"?")[0].decode("ascii")}

    def take(self) -> None:
        """The body is here as a whole."""
        taker, self._taker = self._taker, _has_taken  # which knows this one from here on
        taker(self.body, self.answer)

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """See `GiveAnswer`."""
        connection = self._connection
        if self.disconnected or connection.transport.is_closing():
            return
        further = [f"{name.lower()}: {value}\r\n".encode("ascii") for name, value in headers.items()]
        if not self.keep_alive:
            further.append(b"connection: close\r\n")
        connection.transport.write(
            b"%scontent-length: %d\r\n%s\r\n%s" % (connection.head_of(status), len(body), b"".join(further), body)
        )
        self.response_complete = True
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()


class HttpConnection(HttpToolsProtocol):
    """See above; `uvicorn.Config(http=HttpConnection)`."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0  # of the request whose head is not complete yet
    _is_in_head = True
    _idle_since_s: float | None = None  # the loop's time of the last answer, while no other request has begun
    _idle_timer: asyncio.TimerHandle | None = None
    _has_begun = True  # something of a request, or the connection itself

    def __init__(self, config: Config, *arguments: Any, **more: Any) -> None:
        super().__init__(config, *arguments, **more)
        is_plain = config.limit_concurrency is None and not config.root_path and not config.access_log
        self._shortcut: Shortcut | None = getattr(config.app, "shortcut", None) if is_plain else None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A customer connected."""
        super().connection_made(transport)
        self._start_deadline()
        if len(self.connections) > MAX_CONNECTIONS:
            headers = {"Retry-After": str(_RETRY_AFTER_S)}
            self._end_with(Problem(503, FAILURE, "conexões demais; tente de novo", headers=headers))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_deadline()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        super().connection_lost(exc)
        if isinstance(self.cycle, _Posted):  # the two know each other
            self.cycle = None

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request, or of several."""
        self._idle_since_s = None
        if self.transport.is_closing():
            return
        self._has_begun = True
        if self._is_in_head:
            self._head_bytes += len(data)
        self._feed(data)
        if self._has_begun and self._deadline is None:  # not for what was here at once: a timer costs
            self._start_deadline()
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._end_with(Problem(431, PARAMETER, f"cabeçalhos grandes demais: o máximo é {MAX_HEAD_BYTES} bytes"))

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    self.send_400_response("")
                    return
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError:
                self.send_400_response("")
                return
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        """The head once more, its upgrade ignored (RFC 9110, 7.8). Java's client asks for h2c; the parser would drop its body."""
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode("ascii"))
        kept = [name + b": " + value for name, value in self.headers if name not in _UPGRADE_HEADERS]
        return b"\r\n".join([line, *kept, b"", b""])

    # The parser's news

    def on_message_begin(self) -> None:
        """A request begins."""
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._has_begun = True

    def on_headers_complete(self) -> None:
        """A request's head is here."""
        if not self.parser.should_upgrade():
            self._is_in_head = False
            taker = self._find_taker()
            if taker is None:
                self._begin_as_usual()
                super().on_headers_complete()
            else:
                is_old = self.parser.get_http_version() == "1.0"
                self.cycle = _Posted(self, taker, keep_alive=not is_old and self.parser.should_keep_alive())  # type: ignore[assignment]

    def _find_taker(self) -> Taker | None:
        """Who takes this request past the application; nobody while another waits for its answer."""
        if self._shortcut is None or self.parser.get_method() != b"POST" or self.flow.write_paused:
            return None
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        return self._shortcut(self.url, self.headers)

    def _begin_as_usual(self) -> None:
        """Do what was put off until it was known that it is needed."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers  # in place: the scope has the list

    def on_message_complete(self) -> None:
        """A request is here as a whole."""
        if not self.parser.should_upgrade():
            self._is_in_head, self._head_bytes, self._has_begun = True, 0, False
            self._stop_deadline()
            super().on_message_complete()
            if isinstance(self.cycle, _Posted) and not self.cycle.response_complete:
                self.cycle.take()

    # Answers

    def head_of(self, status: int) -> bytes:
        """The beginning of an answer in JSON, as far as it is the same for all of a second."""
        of, head = _HEADS.get(status, _NO_HEAD)
        headers = self.server_state.default_headers
        if of is not headers:
            lines = [b"%s: %s\r\n" % header for header in (*headers, *JSON_HEADERS)]
            head = b"".join([STATUS_LINE[status], *lines])
            _HEADS[status] = (headers, head)
        return head

    def on_response_complete(self) -> None:
        """An answer is written. As uvicorn does, but for its timer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since_s = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_whether_idle)

    def _look_whether_idle(self) -> None:
        """Close what waited long enough for another request. One timer sees to all that come within its time."""
        self._idle_timer = None
        if self._idle_since_s is None:  # a request is being answered; its answer sets the next timer
            return
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s <= 0:
            self.timeout_keep_alive_handler()
        else:
            self._idle_timer = self.loop.call_later(left_s, self._look_whether_idle)

    # Ends

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own text is plain
        """What came is no HTTP."""
        if self._is_answering:  # the request before this was a good one: it gets its answer, which is the last
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self._end_with(Problem(400, PARAMETER, "requisição HTTP malformada"))

    @property
    def _is_answering(self) -> bool:
        """Whether a complete request waits for its answer."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _start_deadline(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_TIMEOUT_S, self._take_too_long)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _take_too_long(self) -> None:
        self._deadline = None
        if self._is_in_head and self._head_bytes and not self._is_answering:
            self._end_with(Problem(408, PARAMETER, "a requisição não chegou inteira a tempo"))
        else:
            self.transport.close()

    def _end_with(self, problem: Problem) -> None:
        """Say what is wrong, and close."""
        if self.transport.is_closing():
            return
        answer = problem_answer(NOWHERE, problem, "json")
        headers: dict[str, Any] = {
            "content-type": answer.media_type,
            "content-length": len(answer.body),
            "cache-control": "no-store",
            "connection": "close",
            **answer.headers,
        }
        status = HTTPStatus(answer.http_status)
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self.transport.write("\r\n".join(lines).encode("ascii") + answer.body)
        self.transport.close()
