"""The least of HTTP that a receiver of posts needs: requests with a Content-Length, answered in their order."""

from __future__ import annotations

import asyncio
from typing import cast

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


class Posts(asyncio.Protocol):
    """One connection. Override `came`, which answers 204 at once."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no instances of asyncio's

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            size = end + 4 + _length(self._buffer[:end])
            if len(self._buffer) < size:
                return
            body, self._buffer = self._buffer[end + 4 : size], self._buffer[size:]
            self.came(body)

    def came(self, _: bytes) -> None:
        """A post with this body came."""
        self.answer()

    def answer(self) -> None:
        """Answer 204."""
        if not self._transport.is_closing():
            self._transport.write(NO_CONTENT)


def _length(head: bytes) -> int:
    at = head.lower().find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
