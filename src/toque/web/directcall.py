"""The wire API: `request_token`, `voz/add-callback`, `voz/remove-callback`, `voz/list-callback`.

Each method is a row of `METHODS`; reading, authentication, error answers and rendering are the same for all. docs/api.md tells
customers, in Portuguese, what this room does.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

import structlog

from toque.callbacks.callback import Callback, Client, Registry, TooMany
from toque.callbacks.url import parse_url
from toque.errors import InputError, StoreError
from toque.store.contract import Removal, Store
from toque.web.access import Access, Refused
from toque.web.envelopes import (
    ALREADY_REMOVED,
    AUTHENTICATION,
    FAILURE,
    OK,
    PARAMETER,
    UNKNOWN_CODE,
    envelope,
    render,
)
from toque.web.forms import FormError, read_fields

_FORMATS = ("json", "xml")
_RETRY_AFTER_STORE_S = 2
MAX_PIN_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, read. `address` is the customer's, behind trusted proxies too."""

    fields: Mapping[str, str]
    headers: Mapping[str, str]
    address: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: HTTP status, body, media type, further headers."""

    http_status: int
    body: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Problem(Exception):  # noqa: N818 - an answer to the customer, not a fault of ours
    """An answer that is not `000`."""

    def __init__(self, http_status: int, codigo: str, msg: str, *, headers: Mapping[str, str] | None = None, **more: str) -> None:
        super().__init__(msg)
        self.http_status = http_status
        self.codigo = codigo
        self.msg = msg
        self.headers = headers or {}
        self.more = more


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the API."""

    path: str
    module: str
    http_methods: tuple[str, ...]
    handle: Callable[[DirectcallApi, Asked], Awaitable[dict[str, Any]]]
    root: str = "directcall"


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the operator decided."""

    zone: ZoneInfo
    max_callbacks: int
    check_host: Callable[[str], str | None]


class DirectcallApi:
    """Answers requests of the wire API."""

    def __init__(
        self,
        store: Store,
        access: Access,
        deployment: Deployment,
        registry: Callable[[], Registry],
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._access = access
        self._deployment = deployment
        self._registry = registry
        self._refresh = refresh
        self._log = structlog.get_logger("toque.api")

    async def answer(self, method: Method, query: bytes, headers: Mapping[str, str], body: bytes, address: str) -> Answer:
        """Do what was asked. Nothing is raised: whatever goes wrong is an answer in the asked format."""
        form = "json"
        try:
            try:
                fields = read_fields(query, headers.get("content-type", ""), body)
            except FormError as error:
                form = _asked_format(error.fields, lenient=True)
                raise Problem(error.http_status, PARAMETER, str(error)) from None
            form = _asked_format(fields, lenient=True)
            form = _asked_format(fields)
            told = await method.handle(self, Asked(fields, headers, address))
        except Problem as problem:
            return problem_answer(method, problem, form)
        except Refused as refused:
            return problem_answer(method, _problem_of(refused), form)
        except StoreError as error:
            self._log.error("api.store_failed", method=method.module, error=str(error))
            wait = {"Retry-After": str(_RETRY_AFTER_STORE_S)}
            return problem_answer(
                method, Problem(503, FAILURE, "não foi possível gravar agora; tente de novo", headers=wait), form
            )
        except Exception:  # noqa: BLE001 - the customer gets an answer in the asked format, the log the reason
            self._log.exception("api.failed", method=method.module)
            return problem_answer(method, Problem(500, FAILURE, "erro interno"), form)
        return Answer(200, *render(told, form, root=method.root))

    # Methods

    async def request_token(self, asked: Asked) -> dict[str, Any]:
        """`POST /request_token`."""
        grant_type = asked.fields.get("grant_type", "client_credentials")
        if grant_type != "client_credentials":
            raise Problem(400, PARAMETER, "grant_type deve ser client_credentials", error="unsupported_grant_type")
        client_id, client_secret = _credentials(asked)
        token = await self._access.grant(client_id, client_secret, asked.address)
        self._log.info("token.granted", client=client_id, address=asked.address)
        return {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": int(self._access.lifetime.total_seconds()),
            **envelope("request-token", OK, "token emitido"),
        }

    async def add_callback(self, asked: Asked) -> dict[str, Any]:
        """`POST /voz/add-callback`."""
        client = self._client(asked)
        url = self._checked_url(asked.fields.get("url", ""))
        pin = self._checked_pin(client, asked.fields.get("pin", ""))
        limit = self._deployment.max_callbacks
        done = await self._store.register_callback(client.client_id, url.text, url.credentials, pin, limit=limit)
        if isinstance(done, TooMany):
            raise Problem(400, PARAMETER, f"limite de {done.limit} URLs por cliente atingido")
        await self._refresh()
        self._log.info("callback.registered", client=client.client_id, code=done.callback.code, new=done.is_new)
        more = {"code": done.callback.code}
        if done.is_new:
            more["segredo"] = done.callback.secrets[0]
        return envelope("add-callback-status-chamada", OK, "URL registrada" if done.is_new else "URL atualizada", **more)

    async def remove_callback(self, asked: Asked) -> dict[str, Any]:
        """`POST /voz/remove-callback`."""
        client = self._client(asked)
        code = asked.fields.get("code", "")
        if not code:
            raise Problem(400, PARAMETER, "parâmetro obrigatório ausente: code")
        match await self._store.remove_callback(client.client_id, code):
            case Removal.UNKNOWN:
                raise Problem(404, UNKNOWN_CODE, f'o code "{code[:64]}" não existe')
            case Removal.ALREADY_REMOVED:
                raise Problem(404, ALREADY_REMOVED, "esta URL já foi removida")
            case Removal.REMOVED:
                await self._refresh()  # no attempt starts on this server once the customer has the answer
        self._log.info("callback.removed", client=client.client_id, code=code)
        return envelope("remove-callback-status-chamada", OK, "URL removida")

    async def list_callbacks(self, asked: Asked) -> dict[str, Any]:
        """`POST|GET /voz/list-callback`."""
        client = self._client(asked)
        callbacks = self._registry().callbacks_of(client.client_id)
        data = [self._entry(callback) for callback in callbacks]
        msg = "1 URL registrada" if len(data) == 1 else f"{len(data)} URLs registradas"
        return envelope("list-callback-status-chamada", OK, msg, total=len(data), data=data)

    # Parts of methods

    def _client(self, asked: Asked) -> Client:
        scheme, _, bearer = asked.headers.get("authorization", "").partition(" ")
        token = asked.fields.get("access_token") or (bearer.strip() if scheme.lower() == "bearer" else "")
        return self._access.admit(token)

    def _checked_url(self, text: str) -> Any:
        if not text:
            raise Problem(400, PARAMETER, "parâmetro obrigatório ausente: url")
        try:
            url = parse_url(text)
        except InputError as error:
            raise Problem(400, PARAMETER, f"url inválida: {error}") from None
        if self._deployment.check_host(url.host) is not None:
            raise Problem(400, PARAMETER, "url inválida: o endereço não é público")
        return url

    def _checked_pin(self, client: Client, pin: str) -> str | None:
        if not pin:
            return None
        if len(pin) > MAX_PIN_CHARACTERS or not self._registry().owns_pin(client.client_id, pin):
            raise Problem(400, PARAMETER, "pin inválido: não pertence a este cliente")
        return pin

    def _entry(self, callback: Callback) -> dict[str, Any]:
        url = parse_url(callback.url)
        if callback.credentials is not None:
            user = callback.credentials.partition(":")[0]
            url = type(url)(url.scheme, url.host, url.port, url.target, f"{user}:")
        return {
            "code": callback.code,
            "url": url.masked,
            "pin": callback.pin,
            "criado": callback.created_at.astimezone(self._deployment.zone).strftime("%Y-%m-%d %H:%M:%S"),
            "saude": "saudavel" if callback.disabled_at is None else "desativado",
        }


METHODS: tuple[Method, ...] = (
    Method("/request_token", "request-token", ("POST",), DirectcallApi.request_token, root="oauth"),
    Method("/voz/add-callback", "add-callback-status-chamada", ("POST",), DirectcallApi.add_callback),
    Method("/voz/remove-callback", "remove-callback-status-chamada", ("POST",), DirectcallApi.remove_callback),
    Method("/voz/list-callback", "list-callback-status-chamada", ("GET", "POST"), DirectcallApi.list_callbacks),
)


def problem_answer(method: Method, problem: Problem, form: str) -> Answer:
    """The answer that tells a problem."""
    told = envelope(method.module, problem.codigo, problem.msg, **problem.more)
    return Answer(problem.http_status, *render(told, form, root=method.root), problem.headers)


def _problem_of(refused: Refused) -> Problem:
    more = {"error": refused.error, "error_description": refused.text}
    if refused.retry_after_s is not None:
        return Problem(429, AUTHENTICATION, refused.text, headers={"Retry-After": str(refused.retry_after_s)}, **more)
    # RFC 6749 5.2 and RFC 6750 3: a 401 says how to authenticate.
    challenge = 'Basic realm="toque"' if refused.error == "invalid_client" else f'Bearer realm="toque", error="{refused.error}"'
    return Problem(401, AUTHENTICATION, refused.text, headers={"WWW-Authenticate": challenge}, **more)


def _asked_format(fields: Mapping[str, str], *, lenient: bool = False) -> str:
    """`json` or `xml`, from `format` or `formato` in any letter case."""
    asked = (fields.get("format") or fields.get("formato") or "json").lower()
    if asked in _FORMATS:
        return asked
    if lenient:
        return "json"
    raise Problem(400, PARAMETER, "format deve ser json ou xml")


def _credentials(asked: Asked) -> tuple[str, str]:
    scheme, _, encoded = asked.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic" and not asked.fields.get("client_secret"):
        try:
            client_id, _, client_secret = b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            raise Problem(400, PARAMETER, "cabeçalho Authorization malformado", error="invalid_request") from None
    else:
        client_id, client_secret = asked.fields.get("client_id", ""), asked.fields.get("client_secret", "")
    for name, value in (("client_id", client_id), ("client_secret", client_secret)):
        if not value:
            raise Problem(400, PARAMETER, f"parâmetro obrigatório ausente: {name}", error="invalid_request")
    return client_id, client_secret
