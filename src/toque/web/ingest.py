"""`POST /intake/events`: calls told over HTTP, durable before they are answered.

A plain ASGI application beside the wire API's, since ten thousand single requests a second are more than a framework's routing
lets through. It reads the body, has the poster's watch take its items in, waits until the store has what came of them, and says
of each what that was. docs/intake.md is the reference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
import structlog

from toque.callbacks.callback import IntakeCredential
from toque.calls.http_items import FINAL_RANK, RANKS, Item, Refusal, TooManyItems, Vocabulary
from toque.calls.http_watch import HttpWatch, Result
from toque.calls.identity import callerid
from toque.calls.model import CallIdentity, Status
from toque.errors import InputError, StoreError
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
_HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Hinge(Protocol):
    """What of the intake a poster's request needs."""

    async def durable(self) -> frozenset[tuple[CallIdentity, Status]]:
        """Wait until the store has everything; what of it was no news. Raises `StoreError`."""

    def can_take(self) -> bool:
        """Whether the store keeps up."""


class _Told(msgspec.Struct, omit_defaults=True, gc=False):
    """One item in the answer."""

    index: int
    result: str
    call: str | int | None = None
    id: str | int | None = None
    callerid: str | None = None
    reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    accepted: int
    repeated: int
    unmatched: int
    refused: int
    items: list[_Told]


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
            status, headers = problem.status, problem.headers
            if any(name == b"expect" for name, _ in scope["headers"]):
                headers["Connection"] = "close"  # the body may never come (RFC 9110, 10.1.1)
            body = _encode({"error": problem.error, "message": problem.message}) + b"\n"
        except _Gone:
            return
        except Exception as error:  # noqa: BLE001 - a bug of ours, or of the store's; the poster reads JSON all the same
            _log.error("intake.failed", exc_info=error)
            status, headers = 500, {}
            body = _encode({"error": "internal", "message": "a mistake of ours; the log of the server says more"}) + b"\n"
        fields = [*_HEADERS, (b"content-length", b"%d" % len(body))]
        fields += [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

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
        try:
            items = watch.read(body, now, is_lines=is_lines)
        except TooManyItems as error:
            raise _Problem(413, "too_large", str(error)) from None
        except InputError as error:
            raise _Problem(400, "unreadable", str(error)) from None
        results = await self._take_items(watch, items, now)
        repeated = await self._stored()
        if repeated:
            self._correct(results, items, watch.source, repeated)
        return _told(watch.source, items, results, is_short=is_short)

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

    async def _stored(self) -> frozenset[tuple[CallIdentity, Status]]:
        """Wait for the store, which itself gives up after some seconds; what had been told before."""
        try:
            return await self._hinge.durable()
        except StoreError:
            raise _busy("the store cannot take it now") from None

    def _correct(
        self, results: list[str], items: list[Item | Refusal], source: str, repeated: frozenset[tuple[CallIdentity, Status]]
    ) -> None:
        """The store remembers longer than the watch: what it left out is a repetition, and its call is over."""
        over = {identity for identity, _ in repeated}
        ranks = {(identity, RANKS[status]) for identity, status in repeated}
        for index, item in enumerate(items):
            if results[index] is Result.ACCEPTED and isinstance(item, Item):
                identity, rank = CallIdentity(source, str(item.call)), self._words.said[item.status].rank
                if (identity, rank) in ranks or (rank == FINAL_RANK and identity in over):
                    results[index] = Result.REPEATED


def beside(ingest: Ingest, app: Callable[[Any, Any, Any], Awaitable[None]]) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """One application of both: what is posted to the intake comes past the other's routing."""

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/intake/"):
            await ingest(scope, receive, send)
        else:
            await app(scope, receive, send)

    return either


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


def _told(source: str, items: list[Item | Refusal], results: list[str], *, is_short: bool) -> tuple[int, bytes]:
    """The status and the answer. Where nothing could be taken, the status says so for those who look at nothing else."""
    refused = results.count(Result.REFUSED)
    told = _told_of(source, items, results, is_short=is_short) if refused or not is_short else []
    counts = (results.count(Result.ACCEPTED), results.count(Result.REPEATED), results.count(Result.UNMATCHED), refused)
    status = HTTPStatus.UNPROCESSABLE_ENTITY if refused and refused == len(items) else HTTPStatus.OK
    return int(status), _encode(_Answer(*counts, told)) + b"\n"


def _told_of(source: str, items: list[Item | Refusal], results: list[str], *, is_short: bool) -> list[_Told]:
    """What is told of each item; of none but those that are refused, if it is to be short."""
    told: list[_Told] = []
    call, uuid = None, ""
    for index, item in enumerate(items):
        if isinstance(item, Refusal):
            told.append(_Told(index, Result.REFUSED, item.call, item.id, None, item.reason))
        elif not is_short:
            if item.call != call:  # a call's items often follow each other
                call = item.call
                uuid = callerid(CallIdentity(source, str(call)), 0)
            told.append(_Told(index, results[index], call, item.id, uuid))
    return told
