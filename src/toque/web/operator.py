"""What the operator's own commands ask of a running server: how it stands, what it hears, and why a call ended.

`toque doctor` and `toque trace` have the store, and so they prove themselves by a token signed with a key that is derived from
the one in it. An operator's token opens nothing of the customers' API, nor a customer's anything here: they have different keys.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec
from litestar import Request, Response, get
from litestar.response import Stream

from toque.callbacks.token import TokenClaims, TokenError, mint, verify

STATE_PATH, CALLS_PATH, TRACE_PATH = "/operator/state", "/operator/calls", "/operator/trace"
TOKEN_LIFETIME = timedelta(seconds=60)  # it opens a connection, which may go on for longer
_AUDIENCE = TokenClaims("operator", 1)
_PURPOSE = b"toque operator token 1"
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_JSON, _NDJSON = "application/json", "application/x-ndjson"
_MOST_CHARACTERS = 500  # of a filter
_encode = msgspec.json.Encoder().encode


class TooBusyError(Exception):
    """As many watch as may."""


class Operating(Protocol):
    """What the server can tell its operator."""

    async def state(self) -> dict[str, Any]:
        """How everything stands."""

    async def calls(self, wanted: Mapping[str, str]) -> list[dict[str, Any]]:
        """The recent calls that `q` names."""

    def trace(self, wanted: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """Lines of JSON, the first at once, until the server stops. Raises `TooBusyError`, and that at once."""


def operator_key(token_key: bytes) -> bytes:
    """The key that signs operators' tokens, from the one that signs customers'."""
    return hmac.digest(token_key, _PURPOSE, "sha256")


def mint_operator_token(token_key: bytes, now: datetime) -> str:
    """A token for one request."""
    return mint(operator_key(token_key), _AUDIENCE, now + TOKEN_LIFETIME)


class Gate:
    """Lets operators in."""

    def __init__(self, token_key: bytes, clock: Callable[[], datetime]) -> None:
        self._key = operator_key(token_key)
        self._clock = clock

    def problem(self, request: Request[Any, Any, Any]) -> str | None:
        """Why this request may not come in."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return "an operator's token is needed"
        try:
            claims = verify(self._key, token.strip(), self._clock())
        except (TokenError, ValueError):
            return "this is no operator's token, or it has expired"
        return None if claims == _AUDIENCE else "this is no operator's token"


def operator_routes(gate: Gate, operating: Operating) -> list[Any]:
    """The resources, each behind the gate."""

    async def tell_state(_: Mapping[str, str]) -> Response[bytes]:
        return _json(200, await operating.state())

    async def tell_calls(wanted: Mapping[str, str]) -> Response[bytes]:
        if not wanted.get("q"):
            return _json(400, {"error": "q must say which call: a callerid, a number, or the switch's own name of it"})
        return _json(200, await operating.calls(wanted))

    async def stream(wanted: Mapping[str, str]) -> Response[Any]:
        try:
            lines = operating.trace(wanted)
        except TooBusyError:
            return _json(429, {"error": "as many watch already as may"})
        first = await anext(lines, b"")  # not later: who has begun to watch is counted, and who comes at the same time is not
        return Stream(_beginning(first, lines), media_type=_NDJSON, headers=_HEADERS)

    return [
        _route(gate, path, answer) for path, answer in ((STATE_PATH, tell_state), (CALLS_PATH, tell_calls), (TRACE_PATH, stream))
    ]


async def _beginning(first: bytes, lines: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(lines):
        yield first
        async for line in lines:
            yield line


def _route(gate: Gate, path: str, answer: Callable[[Mapping[str, str]], Awaitable[Response[Any]]]) -> Any:
    async def handle(request: Request[Any, Any, Any]) -> Response[Any]:
        problem = gate.problem(request)
        if problem is not None:
            return _json(401, {"error": problem}, {"WWW-Authenticate": "Bearer"})
        wanted = {name: value[:_MOST_CHARACTERS] for name, value in request.query_params.items()}
        return await answer(wanted)

    return get(path)(handle)


def _json(status: int, told: object, headers: Mapping[str, str] | None = None) -> Response[bytes]:
    return Response(_encode(told) + b"\n", status_code=status, media_type=_JSON, headers={**_HEADERS, **(headers or {})})
