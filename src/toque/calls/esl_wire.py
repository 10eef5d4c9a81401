"""The bytes of a FreeSWITCH event socket: header blocks, some with a body. Pure; bytes are fed in, frames come out.

A frame is lines of `Name: value`, an empty line, and `Content-Length` bytes where that header is given. The kinds are those of
mod_event_socket; one that we do not know is a frame like every other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from toque.errors import InputError

AUTH_REQUEST = "auth/request"  # the greeting: a password is wanted
COMMAND_REPLY = "command/reply"  # what became of a command, in `Reply-Text`
API_RESPONSE = "api/response"  # what an `api` command printed, as the body
EVENT_JSON = "text/event-json"
DISCONNECT_NOTICE = "text/disconnect-notice"  # the switch closes the connection
RUDE_REJECTION = "text/rude-rejection"  # the switch's access list refuses us

MAX_HEADER_BYTES = 65_536  # of one frame; the switch's own are below 200
MAX_BODY_BYTES = 64 * 1_048_576  # `show channels as json` takes 1.5 KiB a channel, and 20,000 is more than one switch carries
_KEEP_BYTES = 1_048_576  # a buffer that grew beyond this is given back when it is empty


class EslError(InputError):
    """The bytes are not an event socket's, or a body is not what its frame says."""


class Frame(msgspec.Struct, frozen=True):
    """One header block, with its body."""

    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def kind(self) -> str:
        """Its `Content-Type`, or ''."""
        return self.headers.get("content-type", "")

    @property
    def reply(self) -> str:
        """The `Reply-Text` of a command's reply, or ''."""
        return self.headers.get("reply-text", "")

    @property
    def is_accepted(self) -> bool:
        """Whether a command was accepted."""
        return self.reply.startswith("+OK")


class EslParser:
    """Cuts a byte stream into frames. After an `EslError` the connection is of no use any more."""

    def __init__(self, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_body_bytes = max_body_bytes
        self._buffer = bytearray()
        self._begin = 0  # of the frame that is read
        self._searched = 0  # no empty line begins before this
        self._headers: dict[str, str] | None = None  # of a frame whose body is awaited
        self._body_bytes = 0

    def receive(self, data: bytes) -> None:
        """Take bytes from the connection; `next_frame` gives what they complete."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame; None until more bytes have come. Raises `EslError`."""
        if self._headers is None and not self._read_headers():
            return None
        if len(self._buffer) - self._begin < self._body_bytes:
            return None
        end = self._begin + self._body_bytes
        frame = Frame(self._headers or {}, bytes(self._buffer[self._begin : end]))
        self._begin = self._searched = end
        self._headers, self._body_bytes = None, 0
        return frame

    def _read_headers(self) -> bool:
        """Read a header block, if it is whole."""
        self._skip_blank_lines()
        end = self._buffer.find(b"\n\n", max(self._searched - 1, self._begin))
        if end < 0:
            self._drop_what_was_read()
            if len(self._buffer) > MAX_HEADER_BYTES:
                msg = f"no end of a header block within {MAX_HEADER_BYTES} bytes"
                raise EslError(msg)
            self._searched = len(self._buffer)
            return False
        if end - self._begin > MAX_HEADER_BYTES:
            msg = f"a header block is longer than {MAX_HEADER_BYTES} bytes"
            raise EslError(msg)
        self._headers = _parse_headers(bytes(self._buffer[self._begin : end]))
        self._body_bytes = _content_length(self._headers, self._max_body_bytes)
        self._begin = self._searched = end + 2
        return True

    def _skip_blank_lines(self) -> None:
        """Some bodies are followed by a line end that is not counted."""
        while self._begin < len(self._buffer) and self._buffer[self._begin] == 0x0A:
            self._begin += 1
        self._searched = max(self._searched, self._begin)

    def _drop_what_was_read(self) -> None:
        if not self._begin:
            return
        if self._begin > _KEEP_BYTES:
            self._buffer = self._buffer[self._begin :]
        else:
            del self._buffer[: self._begin]
        self._searched -= self._begin
        self._begin = 0


def _parse_headers(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in block.decode("utf-8", "replace").split("\n"):
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            msg = f"no header of an event socket: {line[:80]!r}"
            raise EslError(msg)
        headers[name.strip().lower()] = value.strip()
    return headers


def _content_length(headers: Mapping[str, str], most: int) -> int:
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdecimal()) or len(text) > 12 or int(text) > most:
        msg = f"Content-Length {text[:20]!r} is no number up to {most}"
        raise EslError(msg)
    return int(text)


_OBJECT = msgspec.json.Decoder(dict[str, Any])


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of an event, a channel's dump or a list. Raises `EslError`.

    The switch hands on what telephones call themselves as it came, so the bytes need not be UTF-8.
    """
    try:
        return _OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return _OBJECT.decode(body.decode("utf-8", "replace").encode())
    except (msgspec.DecodeError, RecursionError) as error:
        msg = f"a body is no JSON object: {error}"
        raise EslError(msg) from None


def parse_channel_list(body: bytes) -> list[str]:
    """The channels' UUIDs that `api show channels as json` gives. Raises `EslError`."""
    rows = parse_object(body).get("rows", [])
    if not isinstance(rows, list):
        msg = "a list of channels has no rows"
        raise EslError(msg)
    uuids = [row.get("uuid") for row in rows if isinstance(row, dict)]
    return [uuid for uuid in uuids if isinstance(uuid, str) and uuid]


def parse_dump(body: bytes) -> dict[str, Any] | None:
    """What `api uuid_dump UUID json` gives; None when the switch knows no such channel (any more). Raises `EslError`."""
    return None if body.startswith(b"-ERR") else parse_object(body)
