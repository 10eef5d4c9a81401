"""Answers of the wire API: its return codes, and one envelope, as JSON with one key a line or as XML.

Shell clients cut values out of the JSON line by line; Delphi clients read `//directcall/msg` and `//oauth/access_token`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

API = "voz"
OK = "000"
PARAMETER = "001"
FAILURE = "005"
AUTHENTICATION = "006"
UNKNOWN_CODE = "009"
ALREADY_REMOVED = "010"


@dataclass(frozen=True, slots=True)
class ReturnCode:
    """One kind of answer: the code in the envelope, the HTTP status that goes with it, and what it means, for customers."""

    codigo: str
    http_status: int
    meaning: str


# Every answer of the API is one of these; docs/api.md and the OpenAPI document tell them to customers.
RETURN_CODES: tuple[ReturnCode, ...] = (
    ReturnCode(OK, 200, "sucesso"),
    ReturnCode(PARAMETER, 400, "parâmetro ausente ou inválido; `msg` diz qual"),
    ReturnCode(PARAMETER, 404, "endereço desconhecido"),
    ReturnCode(PARAMETER, 405, "método HTTP não permitido; o cabeçalho `Allow` traz os permitidos"),
    ReturnCode(PARAMETER, 408, "a requisição não chegou inteira a tempo"),
    ReturnCode(PARAMETER, 413, "requisição grande demais: o máximo é 64 KiB"),
    ReturnCode(PARAMETER, 431, "cabeçalhos grandes demais: o máximo é 64 KiB"),
    ReturnCode(FAILURE, 500, "falha do servidor"),
    ReturnCode(FAILURE, 503, "o servidor não pode atender agora; tente de novo depois de `Retry-After` segundos"),
    ReturnCode(AUTHENTICATION, 401, "token ou credenciais ausentes, incorretos, expirados ou revogados"),
    ReturnCode(AUTHENTICATION, 429, "tentativas demais; espere `Retry-After` segundos"),
    ReturnCode(UNKNOWN_CODE, 404, "o `code` não existe"),
    ReturnCode(ALREADY_REMOVED, 404, "o `code` já foi removido"),
)

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2


def envelope(module: str, codigo: str, msg: str, **more: Any) -> dict[str, Any]:
    """The members every answer has, then its own."""
    return {
        "api": API,
        "modulo": module,
        "status": "ok" if codigo == OK else "erro",
        "codigo": codigo,
        "msg": msg,
        **more,
    }


def render(answer: Mapping[str, Any], form: str, *, root: str = "directcall") -> tuple[bytes, str]:
    """Body and media type, in `form` `json` or `xml`."""
    if form == "xml":
        element = ET.Element(root)
        _fill(element, answer)
        ET.indent(element)
        return ET.tostring(element, encoding="utf-8", xml_declaration=True) + b"\n", "application/xml; charset=utf-8"
    return json.dumps(answer, ensure_ascii=False, indent=4).encode() + b"\n", "application/json; charset=utf-8"


def _fill(element: ET.Element, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _fill(ET.SubElement(element, name), inner)
    elif isinstance(value, list):
        for inner in value:
            _fill(ET.SubElement(element, "item"), inner)
    elif value is not None:
        element.text = _NOT_XML.sub("\ufffd", str(value))
