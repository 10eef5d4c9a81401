"""The HTTP application: the wire API's routes, its OpenAPI document, health, and the envelope for what goes wrong around them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog
from litestar import HttpMethod, Litestar, MediaType, Request, Response, route
from litestar.exceptions import HTTPException

from toque import __version__
from toque.web.directcall import METHODS, Answer, DirectcallApi, Problem, Received, not_allowed, problem_answer
from toque.web.envelopes import FAILURE, PARAMETER
from toque.web.forms import MAX_BODY_BYTES, glimpse_format
from toque.web.methods import Method, allow_header
from toque.web.openapi import openapi_document

Health = Callable[[], Awaitable[tuple[bool, dict[str, Any]]]]

BODY_TIMEOUT_S = 30.0  # 64 KiB at the pace of the slowest mobile link; after that a sender only holds the connection
_JSON = "application/json; charset=utf-8"
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_GET = ("GET",)
_HEALTH_PATH, _DOCUMENT_PATH = "/health", "/voz/openapi.json"
_BY_PATH = {method.path: method for method in METHODS}
# What answers for an address that is none of the API's.
NOWHERE = Method("", "desconhecido", (), DirectcallApi.list_callbacks)

_log = structlog.get_logger("toque.api")


class _Gone(Exception):  # noqa: N818 - nobody is there any more to be told
    """The customer hung up before the request was complete."""


def make_app(api: DirectcallApi, health: Health, others: Sequence[Any] = ()) -> Litestar:
    """The ASGI application. `others` are further resources, which look after themselves."""
    document = json.dumps(openapi_document(), ensure_ascii=False, indent=2).encode()

    async def tell_health(_: Request[Any, Any, Any]) -> Answer:
        is_well, told = await health()
        body = json.dumps({"status": "ok" if is_well else "failing", "version": __version__, **told}, ensure_ascii=False)
        return Answer(200 if is_well else 503, body.encode() + b"\n", _JSON)

    async def tell_document(_: Request[Any, Any, Any]) -> Answer:
        return Answer(200, document, _JSON)

    return Litestar(
        route_handlers=[
            *(_route(method.path, method.http_methods, _asking(api, method)) for method in METHODS),
            _route(_HEALTH_PATH, _GET, tell_health),
            _route(_DOCUMENT_PATH, _GET, tell_document),
            *others,
        ],
        exception_handlers={Exception: _on_exception},
        openapi_config=None,
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )


def _asking(api: DirectcallApi, method: Method) -> Callable[[Request[Any, Any, Any]], Awaitable[Answer]]:
    async def ask(request: Request[Any, Any, Any]) -> Answer:
        body = await _body(request)
        headers = {name: value for name, value in request.headers.items()}  # noqa: C416 - a plain dict of the last values
        address = request.client.host if request.client is not None else ""
        verb = "GET" if request.method == "HEAD" else request.method
        return await api.answer(method, Received(verb, request.scope["query_string"], headers, body, address))

    return ask


def _route(path: str, http_methods: tuple[str, ...], answer: Callable[[Request[Any, Any, Any]], Awaitable[Answer]]) -> Any:
    """One resource. A wrong HTTP method comes here as well if it may have a body, which says the format of the answer."""
    takes_any = path in _BY_PATH

    async def handle(request: Request[Any, Any, Any]) -> Response[bytes]:
        if request.method == "OPTIONS":
            return Response(b"", status_code=204, headers={**_HEADERS, "Allow": allow_header(http_methods)})
        return _response(await answer(request))

    verbs = [verb for verb in HttpMethod if takes_any or verb in (*http_methods, "HEAD", "OPTIONS")]
    return route(path, http_method=verbs, status_code=200, media_type=MediaType.TEXT)(handle)


async def _body(request: Request[Any, Any, Any]) -> bytes:
    """The whole body. Raises `Problem` when it is too large or too slow."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
        raise _too_large(expects="expect" in request.headers)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message: Mapping[str, Any] = await request.receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Problem(408, PARAMETER, "a requisição não chegou inteira a tempo", headers={"Connection": "close"}) from None


def _too_large(*, expects: bool = False) -> Problem:
    """`expects`: with `Expect: 100-continue` the body may never come, so the connection cannot go on (RFC 9110, 10.1.1)."""
    headers = {"Connection": "close"} if expects else {}
    return Problem(413, PARAMETER, f"requisição grande demais: o máximo é {MAX_BODY_BYTES} bytes", headers=headers)


def _response(answer: Answer) -> Response[bytes]:
    headers = {**_HEADERS, **answer.headers}
    return Response(answer.body, status_code=answer.http_status, media_type=answer.media_type, headers=headers)


def _on_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """What went wrong before or around a method, in the format that the query string asks for."""
    path = "/" + request.scope["path"].strip("/")
    method = _BY_PATH.get(path, NOWHERE)
    form = glimpse_format(request.scope["query_string"])
    return _response(problem_answer(method, _problem(error, method.http_methods or _GET), form))


def _problem(error: Exception, http_methods: tuple[str, ...]) -> Problem:
    if isinstance(error, Problem):
        return error
    status = error.status_code if isinstance(error, HTTPException) else 500
    match status:
        case 404:
            return Problem(404, PARAMETER, "endereço desconhecido")
        case 405:
            return not_allowed(http_methods)
        case _ if isinstance(error, _Gone):
            return Problem(400, PARAMETER, "requisição incompleta")
        case _ if 400 <= status < 500:
            return Problem(400, PARAMETER, "requisição malformada")
        case _:
            _log.error("api.failed", exc_info=error)
            return Problem(500, FAILURE, "erro interno")
