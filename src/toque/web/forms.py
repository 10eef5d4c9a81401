"""Reading what customers send: form fields from the query string and the body, urlencoded or multipart.

Messages are in Portuguese, since customers read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl

import multipart

from toque.errors import InputError

MAX_BODY_BYTES = 64 * 1024
MAX_FIELDS = 50
_TOO_MANY = f"campos demais: o máximo é {MAX_FIELDS}"
_MAX_CONTENT_TYPE_CHARACTERS = 1024  # a media type, a charset and a boundary of 70 characters (RFC 2046, 5.1.1) need far less
_URLENCODED = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
_UTF8_NAMES = frozenset({"", "utf-8", "utf8", "us-ascii", "ascii"})
# `format=xml` in urlencoded fields, or as a part of multipart/form-data with up to four headers.
_FORMAT = re.compile(
    rb"""(?: (?:\A|&)formato?= | \bname="?formato?"?\r\n (?:[^\r\n]+\r\n){0,4} \r\n )  (?i:(json|xml))  (?= & | \r | \Z )""",
    re.VERBOSE,
)


class FormError(InputError):
    """The fields cannot be read; the text says why."""


def read_fields(query: bytes, content_type: str, body: bytes) -> dict[str, str]:
    """All fields of a request by name, values without surrounding blanks. Raises `FormError`."""
    pairs = _urlencoded(query)
    if body:
        pairs += _body_fields(content_type, body)
    return _once_each(pairs)


def glimpse_format(query: bytes, body: bytes = b"") -> str:
    """The format that a request asks for, as far as it can be made out of one that cannot be read as a whole."""
    found = _FORMAT.search(query) or _FORMAT.search(body)
    return "json" if found is None else found[1].decode("ascii").lower()


def _body_fields(content_type: str, body: bytes) -> list[tuple[str, str]]:
    if len(content_type) > _MAX_CONTENT_TYPE_CHARACTERS:
        raise FormError("Content-Type longo demais")
    kind, options = multipart.parse_options_header(content_type)
    _check_charset(options.get("charset"))
    if kind in ("", _URLENCODED):
        return _urlencoded(body)
    if kind == _MULTIPART:
        return _multipart(options.get("boundary", ""), body)
    raise FormError(f"Content-Type não suportado: use {_URLENCODED}")


def _check_charset(charset: str | None) -> None:
    if (charset or "").lower() not in _UTF8_NAMES:
        raise FormError("charset não suportado: use UTF-8")


def _urlencoded(data: bytes) -> list[tuple[str, str]]:
    if not data:
        return []
    try:
        return parse_qsl(data.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError:
        raise FormError("os campos não estão codificados em UTF-8") from None
    except ValueError:
        raise FormError(_TOO_MANY) from None


def _multipart(boundary: str, body: bytes) -> list[tuple[str, str]]:
    if not boundary:
        raise FormError("multipart/form-data sem boundary")
    pairs: list[tuple[str, str]] = []
    try:
        with multipart.PushMultipartParser(boundary, content_length=len(body)) as parser:
            name, value = "", bytearray()
            for part in parser.parse(body):
                if isinstance(part, multipart.MultipartSegment):
                    if len(pairs) == MAX_FIELDS:
                        raise FormError(_TOO_MANY)
                    if part.filename is not None:
                        raise FormError(f"o campo {part.name[:40]!r} não pode ser um arquivo")
                    _check_charset(part.charset)
                    name, value = part.name, bytearray()
                elif part is None:
                    pairs.append((name, value.decode("utf-8")))
                else:
                    value += part
    except UnicodeDecodeError:
        raise FormError("os campos não estão codificados em UTF-8") from None
    except (multipart.MultipartError, ValueError) as error:
        raise FormError("multipart/form-data malformado") from error
    return pairs


def _once_each(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise FormError(f"campo repetido: {name[:40]!r}")
        fields[name] = value.strip()
    return fields
