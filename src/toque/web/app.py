"""The HTTP application: the wire API's routes, health, and the envelope for what goes wrong before a method is reached."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from litestar import HttpMethod, Litestar, MediaType, Request, Response, get, route
from litestar.exceptions import HTTPException, MethodNotAllowedException

from toque import __version__
from toque.web.directcall import METHODS, Answer, DirectcallApi, Method, Problem, problem_answer
from toque.web.envelopes import FAILURE, PARAMETER
from toque.web.forms import MAX_BODY_BYTES

Health = Callable[[], Awaitable[tuple[bool, dict[str, Any]]]]
_BY_PATH = {method.path: method for method in METHODS}
_NOWHERE = Method("", "desconhecido", (), DirectcallApi.list_callbacks)


def make_app(api: DirectcallApi, health: Health) -> Litestar:
    """The ASGI application."""
    return Litestar(
        route_handlers=[*(_route(api, method) for method in METHODS), _health_route(health)],
        exception_handlers={Exception: _on_exception},
        request_max_body_size=MAX_BODY_BYTES,
        openapi_config=None,
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )


def _route(api: DirectcallApi, method: Method) -> Any:
    async def handle(request: Request[Any, Any, Any]) -> Response[bytes]:
        body = await request.body()
        headers = {name: value for name, value in request.headers.items()}  # noqa: C416 - a plain dict of the last values
        address = request.client.host if request.client is not None else ""
        return _response(await api.answer(method, request.scope["query_string"], headers, body, address))

    verbs = [HttpMethod(name) for name in method.http_methods]
    return route(method.path, http_method=verbs, status_code=200, name=method.module)(handle)


def _health_route(health: Health) -> Any:
    @get("/health", media_type=MediaType.JSON, name="health")
    async def handle() -> Response[dict[str, Any]]:
        is_well, told = await health()
        return Response(
            {"status": "ok" if is_well else "failing", "version": __version__, **told},
            status_code=200 if is_well else 503,
            media_type=MediaType.JSON,
            headers={"Cache-Control": "no-store"},
        )

    return handle


def _response(answer: Answer) -> Response[bytes]:
    headers = {"Cache-Control": "no-store", **answer.headers}
    return Response(answer.body, status_code=answer.http_status, media_type=answer.media_type, headers=headers)


def _on_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """What went wrong before or around a method, in the format that the query string asks for."""
    method = _BY_PATH.get(request.scope["path"].rstrip("/"), _NOWHERE)
    asked = parse_qs(request.scope["query_string"].decode("latin-1"))
    form = (asked.get("format") or asked.get("formato") or ["json"])[-1].lower()
    problem = _problem(method, error)
    return _response(problem_answer(method, problem, form if form in ("json", "xml") else "json"))


def _problem(method: Method, error: Exception) -> Problem:
    if isinstance(error, MethodNotAllowedException):
        allowed = ", ".join(method.http_methods) or "GET"
        return Problem(405, PARAMETER, f"método HTTP não permitido: use {allowed}", headers={"Allow": allowed})
    status = error.status_code if isinstance(error, HTTPException) else 500
    match status:
        case 404:
            return Problem(404, PARAMETER, "endereço desconhecido")
        case 413:
            return Problem(413, PARAMETER, f"requisição grande demais: o máximo é {MAX_BODY_BYTES} bytes")
        case _ if 400 <= status < 500:
            return Problem(status, PARAMETER, "requisição malformada")
        case _:
            return Problem(500, FAILURE, "erro interno")
