"""How values lie in SQLite: moments as microseconds, and many rows in one statement."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_CHUNKS = (256, 64, 16, 4, 1)  # few sizes, so that few statements are prepared and kept


def to_us(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def from_us(value: int) -> datetime:
    """The moment again."""
    return _EPOCH + timedelta(microseconds=value)


def from_us_or_none(value: int | None) -> datetime | None:
    """The moment again, where there is one."""
    return None if value is None else from_us(value)


def to_us_or_none(moment: datetime | None) -> int | None:
    """Microseconds, where there is a moment."""
    return None if moment is None else to_us(moment)


def write_many(connection: sqlite3.Connection, template: str, rows: Sequence[Sequence[Any]]) -> None:
    """Run a statement over many rows, `{values}` in it standing for their placeholders.

    One statement for many rows, since every step of a statement hands the interpreter lock over and back.
    """
    start = 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            chunk = rows[start : start + size]
            connection.execute(_statement(template, size, len(chunk[0])), [value for row in chunk for value in row])
            start += size


@cache
def _statement(template: str, rows: int, columns: int) -> str:
    row = "(" + ",".join("?" * columns) + ")"
    return template.replace("{values}", ",".join([row] * rows))


def read_in(connection: sqlite3.Connection, template: str, keys: Iterable[Sequence[Any]]) -> list[Any]:
    """All rows that a query finds for these keys, `{values}` in it standing for them."""
    wanted = list(keys)
    found: list[Any] = []
    start = 0
    for size in _CHUNKS:
        while len(wanted) - start >= size:
            chunk = wanted[start : start + size]
            found += connection.execute(
                _statement(template, size, len(chunk[0])), [value for key in chunk for value in key]
            ).fetchall()
            start += size
    return found
