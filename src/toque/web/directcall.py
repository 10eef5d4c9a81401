"""The wire API: `request_token`, `voz/add-callback`, `voz/remove-callback`, `voz/list-callback`.

Each method is a row of `METHODS`; reading, authentication, error answers and rendering are the same for all. docs/api.md tells
customers, in Portuguese, what this room does.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from zoneinfo import ZoneInfo

import structlog

from toque.callbacks.callback import Callback, Client, Registry, TooMany
from toque.callbacks.health import State
from toque.callbacks.url import MAX_URL_LENGTH, TargetUrl, parse_url
from toque.errors import InputError, StoreError
from toque.store.contract import Removal, Store
from toque.web.access import Access, Busy, Refused
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
from toque.web.forms import FormError, glimpse_format, read_fields
from toque.web.methods import ACCESS_TOKEN, FORMAT, FORMATO, Field, Member, Method, allow_header

_RETRY_AFTER_STORE_S = 2
_SHOWN_OF_CODE = 64
# OAuth's words (RFC 6749, 5.2), which clients look for in every answer to a token request that has no token.
_OAUTH_WORDS = {PARAMETER: "invalid_request", FAILURE: "server_error", AUTHENTICATION: "invalid_client"}


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came. `headers` have lower-case names; `address` is the customer's, behind trusted proxies too."""

    verb: str
    query: bytes
    headers: Mapping[str, str]
    body: bytes
    address: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, read."""

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
    """An answer that is not `000`. `error` is OAuth's word for it, where there is one."""

    def __init__(
        self, http_status: int, codigo: str, msg: str, *, headers: Mapping[str, str] | None = None, error: str | None = None
    ) -> None:
        super().__init__(msg)
        self.http_status = http_status
        self.codigo = codigo
        self.msg = msg
        self.headers = headers or {}
        self.error = error


HEALTH_WORDS = {
    State.HEALTHY: "saudavel",
    State.FAILING: "falhando",
    State.PROBING: "falhando",
    State.RECOVERING: "recuperando",
    State.DISABLED: "desativado",
}


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
        health_of: Callable[[int], State],
        *,
        refresh: Callable[[], Awaitable[None]],
        look: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._access = access
        self._deployment = deployment
        self._registry = registry
        self._health_of = health_of
        self._refresh = refresh
        self._look = look
        self._log = structlog.get_logger("toque.api")

    async def answer(self, method: Method, received: Received) -> Answer:
        """Do what was asked. Nothing is raised: whatever goes wrong is an answer in the asked format."""
        form = glimpse_format(received.query, received.body)
        try:
            fields = _fields(method, received)
            form = _asked_format(fields)
            told = await method.handle(self, Asked(fields, received.headers, received.address))
            return Answer(200, *render(told, form, root=method.root))
        except Exception as error:  # noqa: BLE001 - the customer gets an answer in the asked format, the log the reason
            return problem_answer(method, self._problem(method, error), form)

    def _problem(self, method: Method, error: Exception) -> Problem:
        match error:
            case Problem():
                return error
            case FormError():
                return Problem(400, PARAMETER, str(error))
            case Refused():
                return _problem_of(error)
            case Busy():
                return _not_now(error.retry_after_s, "há pedidos de token demais; tente de novo")
            case StoreError():
                self._log.error("api.store_failed", method=method.module, error=str(error))
                return _not_now(_RETRY_AFTER_STORE_S, "não foi possível gravar agora; tente de novo")
            case _:
                self._log.error("api.failed", method=method.module, exc_info=error)
                return Problem(500, FAILURE, "erro interno")

    # Methods

    async def request_token(self, asked: Asked) -> dict[str, Any]:
        """`POST /request_token`."""
        grant_type = asked.fields.get("grant_type", "client_credentials")
        if grant_type != "client_credentials":
            raise Problem(400, PARAMETER, "grant_type deve ser client_credentials", error="unsupported_grant_type")
        client_id, client_secret = _credentials(asked)
        await self._look()  # a secret that a command has just printed is good at once
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
        try:
            done = await self._store.register_callback(client.client_id, url.text, url.credentials, pin, limit=limit)
        except InputError:  # the client was removed, and the directory does not know it yet
            raise Refused("access_token revogado") from None
        if isinstance(done, TooMany):
            raise Problem(400, PARAMETER, f"limite de {done.limit} URLs por cliente atingido")
        try:
            await self._refresh()
        except StoreError as error:  # it is registered, the secret is told only now, and the directory soon looks again
            self._log.warning("directory.look_failed", error=str(error))
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
                raise Problem(404, UNKNOWN_CODE, f'o code "{code[:_SHOWN_OF_CODE]}" não existe')
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

    def _checked_url(self, text: str) -> TargetUrl:
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
        if not self._registry().owns_pin(client.client_id, pin):
            raise Problem(400, PARAMETER, "pin inválido: não pertence a este cliente")
        return pin

    def _entry(self, callback: Callback) -> dict[str, Any]:
        return {
            "code": callback.code,
            "url": replace(parse_url(callback.url), credentials=callback.credentials).masked,
            "pin": callback.pin,
            "criado": callback.created_at.astimezone(self._deployment.zone).strftime("%Y-%m-%d %H:%M:%S"),
            "saude": HEALTH_WORDS[State.DISABLED if callback.disabled_at is not None else self._health_of(callback.id)],
        }


_PIN = Field("pin", "só as chamadas deste pin (uma linha, um ramal ou um produto do cliente); sem ele, todas")

METHODS: tuple[Method, ...] = (
    Method(
        "/request_token",
        "request-token",
        ("POST",),
        DirectcallApi.request_token,
        text="Pede um token de acesso.",
        fields=(
            Field("client_id", "identificação do cliente; vale também HTTP Basic", is_required=True),
            Field("client_secret", "segredo do cliente; vale também HTTP Basic", is_required=True),
            Field("grant_type", "opcional, como no OAuth 2.0", choices=("client_credentials",)),
            FORMAT,
            FORMATO,
        ),
        members=(
            Member("access_token", "o token, para o campo `access_token` dos outros métodos"),
            Member("token_type", "sempre `Bearer`"),
            Member("expires_in", "por quantos segundos o token vale", kind="integer"),
        ),
        problems=((401, AUTHENTICATION), (429, AUTHENTICATION)),
        root="oauth",
        takes_token=False,
    ),
    Method(
        "/voz/add-callback",
        "add-callback-status-chamada",
        ("POST",),
        DirectcallApi.add_callback,
        text="Registra a URL que recebe os status das chamadas.",
        fields=(
            ACCESS_TOKEN,
            Field(
                "url",
                "URL absoluta, http ou https, sem fragmento; pode trazer credenciais, `https://usuario:senha@host/caminho`",
                is_required=True,
                max_characters=MAX_URL_LENGTH,
            ),
            _PIN,
            FORMAT,
            FORMATO,
        ),
        members=(
            Member("code", "identificador único da URL: 40 dígitos hexadecimais"),
            Member("segredo", "segredo das assinaturas (`whsec_…`), mostrado só quando o `code` é novo", is_always=False),
        ),
        problems=((401, AUTHENTICATION),),
    ),
    Method(
        "/voz/remove-callback",
        "remove-callback-status-chamada",
        ("POST",),
        DirectcallApi.remove_callback,
        text="Remove uma URL registrada.",
        fields=(ACCESS_TOKEN, Field("code", "identificador da URL, como no registro", is_required=True), FORMAT, FORMATO),
        problems=((401, AUTHENTICATION), (404, UNKNOWN_CODE), (404, ALREADY_REMOVED)),
    ),
    Method(
        "/voz/list-callback",
        "list-callback-status-chamada",
        ("GET", "POST"),
        DirectcallApi.list_callbacks,
        text="Lista as URLs registradas.",
        fields=(ACCESS_TOKEN, FORMAT, FORMATO),
        members=(
            Member("total", "quantas URLs estão registradas", kind="integer"),
            Member(
                "data",
                "as URLs, na ordem do registro",
                kind="array",
                items=(
                    Member("code", "identificador da URL"),
                    Member("url", "a URL, com a senha mascarada"),
                    Member("pin", "o pin do registro, ou nulo", may_be_null=True),
                    Member("criado", "quando foi registrada, `AAAA-MM-DD HH:MM:SS`"),
                    Member(
                        "saude",
                        "`saudavel`; `falhando` quando não responde e o que há espera; `recuperando` quando voltou a responder e "
                        "recebe o que esperava; `desativado` quando não recebe mais nada",
                    ),
                ),
            ),
        ),
        problems=((401, AUTHENTICATION),),
    ),
)


def problem_answer(method: Method, problem: Problem, form: str) -> Answer:
    """The answer that tells a problem."""
    error = problem.error or (_OAUTH_WORDS.get(problem.codigo) if method.root == "oauth" else None)
    more = {} if error is None else {"error": error, "error_description": problem.msg}
    told = envelope(method.module, problem.codigo, problem.msg, **more)
    return Answer(problem.http_status, *render(told, form, root=method.root), problem.headers)


def not_allowed(http_methods: tuple[str, ...]) -> Problem:
    """The problem with a request by another HTTP method than these."""
    headers = {"Allow": allow_header(http_methods)}
    return Problem(405, PARAMETER, f"método HTTP não permitido: use {' ou '.join(http_methods)}", headers=headers)


def _not_now(retry_after_s: int, msg: str) -> Problem:
    return Problem(503, FAILURE, msg, headers={"Retry-After": str(retry_after_s)})


def _problem_of(refused: Refused) -> Problem:
    if refused.retry_after_s is not None:
        headers = {"Retry-After": str(refused.retry_after_s)}
        return Problem(429, AUTHENTICATION, refused.text, headers=headers, error=refused.error)
    # A 401 says how to authenticate, and what was wrong with what was sent, if anything was (RFC 6749 5.2, RFC 6750 3).
    match refused.error:
        case "invalid_client":
            challenge = 'Basic realm="toque"'
        case "invalid_request":
            challenge = 'Bearer realm="toque"'
        case _:
            challenge = f'Bearer realm="toque", error="{refused.error}"'
    return Problem(401, AUTHENTICATION, refused.text, headers={"WWW-Authenticate": challenge}, error=refused.error)


def _fields(method: Method, received: Received) -> dict[str, str]:
    if received.verb not in method.http_methods:
        raise not_allowed(method.http_methods)
    return read_fields(received.query, received.headers.get("content-type", ""), received.body)


def _asked_format(fields: Mapping[str, str]) -> str:
    """`json` or `xml`, from `format` or `formato` in any letter case."""
    asked = (fields.get("format") or fields.get("formato") or "json").lower()
    if asked not in FORMAT.choices:
        raise Problem(400, PARAMETER, "format deve ser json ou xml")
    return asked


def _credentials(asked: Asked) -> tuple[str, str]:
    scheme, _, encoded = asked.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic" and not asked.fields.get("client_secret"):
        try:
            client_id, _, client_secret = b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            raise Problem(400, PARAMETER, "cabeçalho Authorization malformado") from None
    else:
        client_id, client_secret = asked.fields.get("client_id", ""), asked.fields.get("client_secret", "")
    for name, value in (("client_id", client_id), ("client_secret", client_secret)):
        if not value:
            raise Problem(400, PARAMETER, f"parâmetro obrigatório ausente: {name}")
    return client_id, client_secret
