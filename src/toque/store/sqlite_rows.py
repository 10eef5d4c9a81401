"""How values lie in SQLite: moments as microseconds, and many rows in one statement."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain
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
    for chunk in _chunks(rows):
        connection.execute(_statement(template, chunk), _flat(chunk))


def read_many(connection: sqlite3.Connection, template: str, keys: Sequence[Sequence[Any]]) -> list[Any]:
    """The rows that a query finds for these keys, `{values}` in it standing for their placeholders."""
    return [row for chunk in _chunks(keys) for row in connection.execute(_statement(template, chunk), _flat(chunk)).fetchall()]


def count_many(connection: sqlite3.Connection, template: str, rows: Sequence[Sequence[Any]]) -> int:
    """As `write_many`; how many rows were changed."""
    return sum(connection.execute(_statement(template, chunk), _flat(chunk)).rowcount for chunk in _chunks(rows))


def _chunks(rows: Sequence[Sequence[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
    start = 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


def _flat(rows: Sequence[Sequence[Any]]) -> list[Any]:
    return list(chain.from_iterable(rows))


def _statement(template: str, rows: Sequence[Sequence[Any]]) -> str:
    return _filled_in(template, len(rows), len(rows[0]))


@cache
def _filled_in(template: str, rows: int, columns: int) -> str:
    row = "(" + ",".join("?" * columns) + ")"
    return template.replace("{values}", ",".join([row] * rows))
