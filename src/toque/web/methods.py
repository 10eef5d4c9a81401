"""What a method of the wire API is: one row, from which its route, the OpenAPI document and the docs come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toque.web.envelopes import FAILURE, PARAMETER

if TYPE_CHECKING:
    from toque.web.directcall import Asked, DirectcallApi


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request. `text` is for customers."""

    name: str
    text: str
    is_required: bool = False
    max_characters: int | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an answer beyond the envelope's own. `items` are the members of a list's entries."""

    name: str
    text: str
    kind: str = "string"  # JSON Schema's word
    is_always: bool = True
    may_be_null: bool = False
    items: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the API. `problems` are its own answers as (HTTP status, return code); any method has `COMMON_PROBLEMS`."""

    path: str
    module: str
    http_methods: tuple[str, ...]
    handle: Callable[[DirectcallApi, Asked], Awaitable[dict[str, Any]]]
    text: str = ""
    fields: tuple[Field, ...] = ()
    members: tuple[Member, ...] = ()
    problems: tuple[tuple[int, str], ...] = ()
    root: str = "directcall"
    takes_token: bool = True


COMMON_PROBLEMS: tuple[tuple[int, str], ...] = (
    (400, PARAMETER),
    (408, PARAMETER),
    (413, PARAMETER),
    (431, PARAMETER),
    (500, FAILURE),
    (503, FAILURE),
)

ACCESS_TOKEN = Field("access_token", "o token de acesso; vale também o cabeçalho `Authorization: Bearer`", max_characters=512)
FORMAT = Field("format", "formato da resposta, em maiúsculas ou minúsculas; sem ele, json", choices=("json", "xml"))
FORMATO = Field("formato", "o mesmo que `format`", choices=("json", "xml"))


def allow_header(http_methods: tuple[str, ...]) -> str:
    """What `Allow` says (RFC 9110, 10.2.1): what answers GET answers HEAD, and everything answers OPTIONS."""
    return ", ".join(sorted({*http_methods, "OPTIONS", *(["HEAD"] if "GET" in http_methods else [])}))
