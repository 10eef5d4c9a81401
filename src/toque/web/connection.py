"""One HTTP connection: uvicorn's, with bounds on what a stranger may cost us, and our envelope for what is no HTTP.

uvicorn leaves three things to a proxy in front that may not be there: how long a request may take to arrive, how large its head
may be, and how many connections there may be. And a request that asks for an upgrade loses its body there.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from toque.web.app import NOWHERE
from toque.web.directcall import Problem, problem_answer
from toque.web.envelopes import FAILURE, PARAMETER

REQUEST_TIMEOUT_S = 60.0  # from a connection's or a request's first moment until the request is here as a whole
MAX_HEAD_BYTES = 64 * 1024  # request line and headers; the parser itself would take any amount
MAX_CONNECTIONS = 500  # half of the file descriptors that a process usually may have; posts need some as well
_RETRY_AFTER_S = 5
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings", b"connection")


class HttpConnection(HttpToolsProtocol):
    """See above; `uvicorn.Config(http=HttpConnection)`."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0  # of the request whose head is not complete yet
    _is_in_head = True

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
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of a request, or of several."""
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if self._deadline is None:
            self._start_deadline()
        if self._is_in_head:
            self._head_bytes += len(data)
        self._feed(data)
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
        super().on_message_begin()
        if self._deadline is None:
            self._start_deadline()

    def on_headers_complete(self) -> None:
        """A request's head is here."""
        if not self.parser.should_upgrade():
            self._is_in_head = False
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is here as a whole."""
        if not self.parser.should_upgrade():
            self._is_in_head, self._head_bytes = True, 0
            self._stop_deadline()
            super().on_message_complete()

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
