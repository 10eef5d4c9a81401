"""What a poster is told of his items. docs/intake.md is the reference."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from toque.calls.http_items import Item, Refusal
from toque.calls.http_watch import Result
from toque.calls.identity import callerid
from toque.calls.model import CallIdentity

_encode = msgspec.json.Encoder().encode


class _Told(msgspec.Struct, omit_defaults=True, gc=False):
    """One item in the answer."""

    index: int
    result: str
    call: str | int | None = None
    id: str | int | None = None
    callerid: str | None = None
    reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    accepted: int
    repeated: int
    unmatched: int
    refused: int
    items: list[_Told]


def render_answer(source: str, items: Sequence[Item | Refusal], results: Sequence[str], *, is_short: bool) -> tuple[int, bytes]:
    """The status and the answer. Where nothing could be taken, the status says so for those who look at nothing else."""
    refused = results.count(Result.REFUSED)
    told = _told_of(source, items, results, is_short=is_short) if refused or not is_short else []
    counts = (results.count(Result.ACCEPTED), results.count(Result.REPEATED), results.count(Result.UNMATCHED), refused)
    status = HTTPStatus.UNPROCESSABLE_ENTITY if refused and refused == len(items) else HTTPStatus.OK
    return int(status), _encode(_Answer(*counts, told)) + b"\n"


def _told_of(source: str, items: Sequence[Item | Refusal], results: Sequence[str], *, is_short: bool) -> list[_Told]:
    """What is told of each item; of none but those that are refused, if it is to be short."""
    told: list[_Told] = []
    call, uuid = None, ""
    for index, item in enumerate(items):
        if isinstance(item, Refusal):
            told.append(_Told(index, Result.REFUSED, item.call, item.id, None, item.reason))
        elif not is_short:
            if item.call != call:  # a call's items often follow each other
                call = item.call
                uuid = callerid(CallIdentity(source, str(call)), 0)
            told.append(_Told(index, results[index], call, item.id, uuid))
    return told
