"""Reading what customers send: form fields from the query string and the body, urlencoded or multipart.

Messages are in Portuguese, since customers read them.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qsl

import multipart

from toque.errors import InputError

MAX_BODY_BYTES = 64 * 1024
MAX_FIELDS = 50
_URLENCODED = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
_UTF8_NAMES = frozenset({"", "utf-8", "utf8", "us-ascii", "ascii"})


class FormError(InputError):
    """The fields cannot be read. `http_status` is 400, 413 or 415; `fields` are those that could be read all the same."""

    def __init__(self, text: str, http_status: int = 400, fields: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.http_status = http_status
        self.fields = fields or {}


def read_fields(query: bytes, content_type: str, body: bytes) -> dict[str, str]:
    """All fields of a request by name, values without surrounding blanks. Raises `FormError`."""
    pairs = _urlencoded(query)
    if body:
        pairs += _body_fields(content_type, body)
    return _once_each(pairs)


def _body_fields(content_type: str, body: bytes) -> list[tuple[str, str]]:
    kind, options = multipart.parse_options_header(content_type)
    charset = options.get("charset", "").lower()
    if charset not in _UTF8_NAMES:
        raise FormError(f"charset {charset[:20]!r} não suportado: use UTF-8")
    if kind in ("", _URLENCODED):
        return _urlencoded(body)
    if kind == _MULTIPART:
        return _multipart(options.get("boundary", ""), body)
    raise FormError(f"Content-Type não suportado: use {_URLENCODED}")


def _urlencoded(data: bytes) -> list[tuple[str, str]]:
    if not data:
        return []
    try:
        return parse_qsl(data.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError:
        raise FormError("os campos não estão codificados em UTF-8") from None
    except ValueError:
        raise FormError(f"campos demais: o máximo é {MAX_FIELDS}") from None


def _multipart(boundary: str, body: bytes) -> list[tuple[str, str]]:
    if not boundary:
        raise FormError("multipart/form-data sem boundary")
    pairs: list[tuple[str, str]] = []
    try:
        parser = multipart.PushMultipartParser(
            boundary, content_length=len(body), max_segment_count=MAX_FIELDS, max_segment_size=MAX_BODY_BYTES
        )
        with parser:
            name, value = "", bytearray()
            for part in parser.parse(body):
                if isinstance(part, multipart.MultipartSegment):
                    if part.filename is not None:
                        raise FormError(f"o campo {part.name[:40]!r} não pode ser um arquivo")
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
    repeated: str | None = None
    for name, value in pairs:
        if name in fields:
            repeated = repeated or name
            continue
        fields[name] = value.strip()
    if repeated is not None:
        raise FormError(f"campo repetido: {repeated[:40]!r}", fields=fields)
    return fields
