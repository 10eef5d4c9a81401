"""Answers of the wire API: one envelope, as JSON with one key a line or as XML.

Shell clients cut values out of the JSON line by line; Delphi clients read `//directcall/msg` and `//oauth/access_token`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

API = "voz"
OK = "000"
PARAMETER = "001"
FAILURE = "005"
AUTHENTICATION = "006"
UNKNOWN_CODE = "009"
ALREADY_REMOVED = "010"

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
