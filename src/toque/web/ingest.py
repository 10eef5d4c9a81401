"""`POST /intake/events`: calls told over HTTP, durable before they are answered.

A plain ASGI application beside the wire API's, since ten thousand single requests a second are more than a framework's routing
lets through. It reads the body, has the poster's watch take its items in, waits until the store has what came of them, and says
of each what that was. Small bodies, of which there are so many, come past ASGI as well (`Ingest.shortcut`, web/connection.py).
docs/intake.md is the reference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any, Protocol

import msgspec
import structlog

from toque.callbacks.callback import IntakeCredential
from toque.calls.http_items import FINAL_RANK, RANKS, Item, Refusal, TooManyItems, Vocabulary
from toque.calls.http_watch import HttpWatch, Result
from toque.calls.model import CallIdentity, Status
from toque.errors import IllegalStep, InputError, StoreError
from toque.web.connection import JSON_HEADERS, GiveAnswer, Taker
from toque.web.item_answers import render_answer
from toque.web.schema import item_schema

EVENTS_PATH, SCHEMA_PATH = "/intake/events", "/intake/schema.json"
MAX_BODY_BYTES = 16 * 2**20  # 10,000 items of 1.6 KiB
MAX_HELD_BYTES = 64 * 2**20  # of all bodies that are being read, or whose items wait for the store
RETRY_AFTER_S = 1
TOKEN_PREFIX = "toque_intake_"  # noqa: S105 - by which a leaked token is known for what it is
_ITEMS_AT_ONCE = 500  # then everybody else on the loop has a turn
_JSON_TYPES = ("", "application/json", "text/json")
_LINES_TYPES = (
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
    "application/json-lines",
)
_SHORT = b"answer=short"
_EVENTS_URL = EVENTS_PATH.encode("ascii")
_SMALL_DIGITS = 5  # of a body's length, less one: below 10,000 bytes, which is less work than `_ITEMS_AT_ONCE`
_NOT_NOW = "the store cannot take it now"

Repeated = frozenset[tuple[CallIdentity, Status]]
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Hinge(Protocol):
    """What of the intake a poster's request needs."""

    async def durable(self) -> Repeated:
        """Wait until the store has everything; what of it was no news. Raises `StoreError`."""

    def tell(self, listener: Callable[[Repeated | StoreError | IllegalStep], None]) -> None:
        """Call this when `durable` would come to its end."""

    def can_take(self) -> bool:
        """Whether the store keeps up."""


class _Problem(Exception):  # noqa: N818 - an answer, not a fault
    """The request as a whole is not taken."""

    def __init__(self, status: int, error: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.headers = dict(headers or {})


class _Gone(Exception):  # noqa: N818 - nobody is there any more to be told
    """The poster hung up before the request was complete."""


_encode = msgspec.json.Encoder().encode
_log = structlog.get_logger("toque.intake")


def hash_token(token: str) -> str:
    """What is stored of a token."""
    return sha256(token.encode()).hexdigest()


class Ingest:
    """The ASGI application, and who may post to it."""

    def __init__(self, hinge: Hinge, clock: Callable[[], datetime], vocabulary: Vocabulary) -> None:
        self._hinge = hinge
        self._clock = clock
        self._words = vocabulary
        self._posters: dict[str, HttpWatch] = {}
        self._held_bytes = 0
        self._schema = msgspec.json.format(_encode(item_schema(vocabulary)), indent=2) + b"\n"
        self.items = 0  # that were read, since the start

    def apply(self, posters: Iterable[tuple[IntakeCredential, HttpWatch]]) -> None:
        """These may post from now on, and nobody else."""
        self._posters = {credential.token_hash: watch for credential, watch in posters}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            status, body, headers = await self._answer(scope, receive)
        except _Problem as problem:
            status, body, headers = _told_problem(problem)
            if any(name == b"expect" for name, _ in scope["headers"]):
                headers = {**headers, "Connection": "close"}  # the body may never come (RFC 9110, 10.1.1)
        except _Gone:
            return
        except Exception as error:  # noqa: BLE001 - a bug of ours, or of the store's; the poster reads JSON all the same
            status, body, headers = _told_fault(error)
        fields = [*JSON_HEADERS, (b"content-length", b"%d" % len(body))]
        fields += [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def shortcut(self, url: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Taker | None:
        """Who takes a small body with this head, past all that ASGI costs; None where the long way has something to say."""
        path, _, query = url.partition(b"?")
        if path != _EVENTS_URL or b"#" in query:
            return None
        found = dict(headers)
        length = found.get(b"content-length", b"")
        if not (length.isdigit() and len(length) < _SMALL_DIGITS) or b"expect" in found or b"transfer-encoding" in found:
            return None
        try:
            self._must_keep_up()
            return _Small(self, self._poster(found), is_lines=_is_lines(found), is_short=_SHORT in query)
        except _Problem:
            return None

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes, Mapping[str, str]]:
        if scope["path"] == SCHEMA_PATH:
            if scope["method"] not in ("GET", "HEAD"):
                raise _Problem(405, "method_not_allowed", "GET it", {"Allow": "GET, HEAD"})
            return 200, self._schema, {}
        if scope["path"] != EVENTS_PATH:
            raise _Problem(404, "not_found", f"post to {EVENTS_PATH}")
        if scope["method"] != "POST":
            raise _Problem(405, "method_not_allowed", "POST it", {"Allow": "POST"})
        status, body = await self._take(scope, receive)
        return status, body, {}

    async def _take(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        """One request by somebody who may post."""
        headers = dict(scope["headers"])
        watch = self._poster(headers)
        is_lines = _is_lines(headers)
        self._must_keep_up()
        body = await self._body(headers, receive)
        size = len(body)
        self._held_bytes += size
        try:
            return await self._take_body(watch, body, is_lines=is_lines, is_short=_SHORT in scope["query_string"])
        finally:
            self._held_bytes -= size

    async def _take_body(self, watch: HttpWatch, body: bytes, *, is_lines: bool, is_short: bool) -> tuple[int, bytes]:
        """A whole body, until the store has what came of it."""
        now = self._clock()
        items = _read(watch, body, now, is_lines=is_lines)
        results = await self._take_items(watch, items, now)
        repeated = await self._stored()
        if repeated:
            self._correct(results, items, watch.source, repeated)
        return render_answer(watch.source, items, results, is_short=is_short)

    def take_small(self, small: _Small, body: bytes) -> None:
        """A whole small body; `small` hears of it when the store has what came of it. Raises `_Problem`."""
        watch, now = small.watch, self._clock()
        items = small.items = _read(watch, body, now, is_lines=small.is_lines)
        results: list[str] = [Result.REFUSED] * len(items)
        small.results = results
        for index in watch.order_of(items):
            item = items[index]
            if item.__class__ is Item:
                results[index] = watch.take_in(item, now)
        self.items += len(items)
        self._held_bytes += len(body)
        small.held_bytes = len(body)
        self._hinge.tell(small.hear)

    def told_small(self, small: _Small, told: Repeated | Exception) -> tuple[int, bytes]:
        """The answer to it. Raises what stands in its way."""
        self._held_bytes -= small.held_bytes
        if isinstance(told, StoreError):
            raise _busy(_NOT_NOW)
        if isinstance(told, Exception):
            raise told
        source = small.watch.source
        if told:
            self._correct(small.results, small.items, source, told)
        return render_answer(source, small.items, small.results, is_short=small.is_short)

    def _must_keep_up(self) -> None:
        """Not while more waits for the store, or for posters, than memory should hold."""
        if not self._hinge.can_take():
            raise _busy("what came before is not stored yet")
        if self._held_bytes > MAX_HELD_BYTES:
            raise _busy("too many large bodies at once")

    def _poster(self, headers: Mapping[bytes, bytes]) -> HttpWatch:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        watch = self._posters.get(sha256(token.strip()).hexdigest()) if scheme.lower() == b"bearer" else None
        if watch is None:
            said = "no token of the intake; send Authorization: Bearer and one that `toque intake add` gave"
            raise _Problem(401, "unauthorized", said, {"WWW-Authenticate": 'Bearer realm="toque intake"'})
        return watch

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
            raise _too_large({"Connection": "close"})
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            return message.get("body", b"")  # type: ignore[no-any-return]
        return await self._long_body(message, receive)

    async def _long_body(self, message: Mapping[str, Any], receive: Receive) -> bytes:
        """A body in several parts. How long it may take is the connection's business."""
        body = bytearray()
        try:
            while True:
                if message["type"] != "http.request":
                    raise _Gone
                part = message.get("body", b"")
                body += part
                self._held_bytes += len(part)
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large({"Connection": "close"})
                if not message.get("more_body", False):
                    return bytes(body)
                if self._held_bytes > MAX_HELD_BYTES:
                    raise _busy("too many large bodies at once", {"Connection": "close"})
                message = await receive()
        finally:
            self._held_bytes -= len(body)

    async def _take_items(self, watch: HttpWatch, items: list[Item | Refusal], now: datetime) -> list[str]:
        """What comes of each, as far as the watch knows."""
        results: list[str] = [Result.REFUSED] * len(items)
        take_in = watch.take_in
        for count, index in enumerate(watch.order_of(items), 1):
            item = items[index]
            if item.__class__ is Item:
                results[index] = take_in(item, now)
            if count % _ITEMS_AT_ONCE == 0:
                await asyncio.sleep(0)
                if not self._hinge.can_take():  # others may have brought as much meanwhile
                    raise _busy("what came before is not stored yet")
        self.items += len(items)
        return results

    async def _stored(self) -> Repeated:
        """Wait for the store, which itself gives up after some seconds; what had been told before."""
        try:
            return await self._hinge.durable()
        except StoreError:
            raise _busy(_NOT_NOW) from None

    def _correct(self, results: list[str], items: list[Item | Refusal], source: str, repeated: Repeated) -> None:
        """The store remembers longer than the watch: what it left out is a repetition, and its call is over."""
        over = {identity for identity, _ in repeated}
        ranks = {(identity, RANKS[status]) for identity, status in repeated}
        for index, item in enumerate(items):
            if results[index] is Result.ACCEPTED and isinstance(item, Item):
                identity, rank = CallIdentity(source, str(item.call)), self._words.said[item.status].rank
                if (identity, rank) in ranks or (rank == FINAL_RANK and identity in over):
                    results[index] = Result.REPEATED


class _Small:
    """A small body that is posted: taken in when it is here, answered when the store has what came of it."""

    __slots__ = ("_answer", "_ingest", "held_bytes", "is_lines", "is_short", "items", "results", "watch")

    def __init__(self, ingest: Ingest, watch: HttpWatch, *, is_lines: bool, is_short: bool) -> None:
        self._ingest = ingest
        self.watch = watch
        self.is_lines = is_lines
        self.is_short = is_short
        self.items: list[Item | Refusal] = []
        self.results: list[str] = []
        self.held_bytes = 0

    def __call__(self, body: bytes, answer: GiveAnswer) -> None:
        """See `Taker`."""
        self._answer = answer
        try:
            self._ingest.take_small(self, body)
        except _Problem as problem:
            answer(*_told_problem(problem))
        except Exception as error:  # noqa: BLE001 - see `Ingest.__call__`
            answer(*_told_fault(error))

    def hear(self, told: Repeated | Exception) -> None:
        """The store has it, or not."""
        headers: Mapping[str, str] = {}
        try:
            status, body = self._ingest.told_small(self, told)
        except _Problem as problem:
            status, body, headers = _told_problem(problem)
        except Exception as error:  # noqa: BLE001 - see `Ingest.__call__`
            status, body, headers = _told_fault(error)
        self._answer(status, body, headers)


class Beside:
    """One application of both: what is posted to the intake comes past the other's routing."""

    def __init__(self, ingest: Ingest, app: Callable[[Any, Any, Any], Awaitable[None]]) -> None:
        self._ingest = ingest
        self._app = app
        self.shortcut = ingest.shortcut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["path"].startswith("/intake/"):
            await self._ingest(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _read(watch: HttpWatch, body: bytes, now: datetime, *, is_lines: bool) -> list[Item | Refusal]:
    try:
        return watch.read(body, now, is_lines=is_lines)
    except TooManyItems as error:
        raise _Problem(413, "too_large", str(error)) from None
    except InputError as error:
        raise _Problem(400, "unreadable", str(error)) from None


def _told_problem(problem: _Problem) -> tuple[int, bytes, Mapping[str, str]]:
    return problem.status, _encode({"error": problem.error, "message": problem.message}) + b"\n", problem.headers


def _told_fault(error: Exception) -> tuple[int, bytes, Mapping[str, str]]:
    _log.error("intake.failed", exc_info=error)
    return 500, _encode({"error": "internal", "message": "a mistake of ours; the log of the server says more"}) + b"\n", {}


def _is_lines(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the body says that it has an object a line. Raises `_Problem` for a type that is neither that nor JSON."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise _Problem(415, "unsupported_media_type", "the body must not be compressed")
    if kind in _LINES_TYPES:
        return True
    if kind not in _JSON_TYPES:
        raise _Problem(415, "unsupported_media_type", "send application/json or application/x-ndjson")
    return False


def _busy(message: str, headers: Mapping[str, str] | None = None) -> _Problem:
    return _Problem(503, "busy", f"{message}; send the same again", {"Retry-After": str(RETRY_AFTER_S), **(headers or {})})


def _too_large(headers: Mapping[str, str]) -> _Problem:
    return _Problem(413, "too_large", f"a body has at most {MAX_BODY_BYTES} bytes", headers)
