"""The wire API as an OpenAPI document, built from the table of its methods: what integrators' tools read."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from toque import __version__
from toque.web.directcall import METHODS
from toque.web.envelopes import API, OK, RETURN_CODES
from toque.web.methods import COMMON_PROBLEMS, Field, Member, Method

_MEANINGS = {(row.http_status, row.codigo): row.meaning for row in RETURN_CODES}
_CHALLENGED, _RETRIED = 401, (429, 503)
_TEXT = (
    "Avisa, por callbacks HTTP, o status das chamadas feitas e recebidas. Campos desconhecidos são ignorados; campos repetidos "
    "são recusados. Toda resposta traz `api`, `modulo`, `status`, `codigo` e `msg`, em JSON ou, com `format=xml`, em XML."
)


def openapi_document() -> dict[str, Any]:
    """The document, in OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "toque: callback de status de chamada", "version": __version__, "description": _TEXT},
        "servers": [{"url": "/"}],
        "paths": {method.path: {verb.lower(): _operation(method, verb) for verb in method.http_methods} for method in METHODS},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(method: Method, verb: str) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": f"{method.module}-{verb.lower()}",
        "summary": method.text,
        "responses": {str(status): _response(method, status, codes) for status, codes in _answers(method).items()},
    }
    if method.takes_token:
        told["security"] = [{"token": []}, {}]  # {}: the token may come in the field access_token instead
    if verb == "GET":
        told["parameters"] = [
            {
                "name": field.name,
                "in": "query",
                "description": field.text,
                "required": field.is_required,
                "schema": _field_schema(field),
            }
            for field in method.fields
        ]
    else:
        form = {"schema": _form_schema(method)}
        told["requestBody"] = {
            "required": any(field.is_required for field in method.fields),
            "content": {"application/x-www-form-urlencoded": form, "multipart/form-data": form},
        }
    return told


def _form_schema(method: Method) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {field.name: {**_field_schema(field), "description": field.text} for field in method.fields},
        "required": [field.name for field in method.fields if field.is_required],
    }


def _field_schema(field: Field) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if field.choices:
        schema["enum"] = list(field.choices)
    if field.is_required:
        schema["minLength"] = 1
    if field.max_characters is not None:
        schema["maxLength"] = field.max_characters
    return schema


def _answers(method: Method) -> dict[int, list[str]]:
    """The return codes by HTTP status."""
    found: dict[int, list[str]] = {}
    for status, codigo in sorted({(200, OK), *COMMON_PROBLEMS, *method.problems}):
        found.setdefault(status, []).append(codigo)
    return found


def _response(method: Method, status: int, codes: list[str]) -> dict[str, Any]:
    meaning = "; ".join(f"`{codigo}`: {_MEANINGS[status, codigo]}" for codigo in codes)
    schema = {**_answer_schema(method, status, codes), "xml": {"name": method.root}}
    told: dict[str, Any] = {
        "description": f"{HTTPStatus(status).phrase}. {meaning}",
        "headers": {"Cache-Control": _header("const", "no-store")},
        "content": {"application/json": {"schema": schema}, "application/xml": {"schema": schema}},
    }
    if status in _RETRIED:
        told["headers"]["Retry-After"] = _header("pattern", "^[0-9]+$")
    if status == _CHALLENGED:
        told["headers"]["WWW-Authenticate"] = _header("pattern", "^(Basic|Bearer) ")
    return told


def _header(rule: str, value: str) -> dict[str, Any]:
    return {"required": True, "schema": {"type": "string", rule: value}}


def _answer_schema(method: Method, status: int, codes: list[str]) -> dict[str, Any]:
    is_well = codes == [OK]
    properties: dict[str, Any] = {
        "api": {"const": API},
        "modulo": {"const": method.module},
        "status": {"const": "ok" if is_well else "erro"},
        "codigo": {"enum": codes},
        "msg": {"type": "string", "description": "texto para pessoas"},
    }
    required = [*properties]
    if is_well:
        told, always = _members(method.members)
        properties |= told
        required += always
    elif status == _CHALLENGED or method.root == "oauth":
        properties["error"] = {"type": "string", "description": "a palavra do OAuth 2.0"}
        properties["error_description"] = {"type": "string", "description": "o mesmo que `msg`"}
        required += ["error", "error_description"]
    return _object(properties, required)


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _members(members: Iterable[Member]) -> tuple[dict[str, Any], list[str]]:
    properties: dict[str, Any] = {}
    for member in members:
        schema: dict[str, Any] = {"type": member.kind, "description": member.text}
        if member.may_be_null:
            schema["type"] = [member.kind, "null"]
        if member.items:
            inner, required = _members(member.items)
            schema["items"] = {**_object(inner, required), "xml": {"name": "item"}}
        properties[member.name] = schema
    return properties, [member.name for member in members if member.is_always]
