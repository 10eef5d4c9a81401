"""Small bodies past ASGI: who may take that way, and that its answers are those of the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.support.clock import START, ManualClock

from toque.callbacks.callback import IntakeCredential
from toque.calls.http_items import Vocabulary
from toque.calls.http_watch import HttpWatch
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import CallIdentity, Status
from toque.errors import IllegalStep, StoreError
from toque.web import ingest as ingest_module
from toque.web.ingest import Ingest, hash_token

URL = b"/intake/events"
ITEM = b'{"call":"c","status":"initiated","from":1001}'
HEAD = {b"authorization": b"Bearer door", b"content-length": b"100", b"content-type": b"application/json"}


class Desk:
    """An intake with one poster, and whoever listens for the store."""

    def __init__(self) -> None:
        self.is_open = True
        self.listeners: list[Callable[[Any], None]] = []
        self.answers: list[tuple[int, dict[str, Any], Mapping[str, str]]] = []
        self.watch = HttpWatch("http:dialer", LineBook.of([parse_line("acme", "vendas", "1001")]))
        self.ingest = Ingest(self, ManualClock(), Vocabulary())
        self.ingest.apply([(IntakeCredential("dialer", hash_token("door"), START), self.watch)])

    async def durable(self) -> frozenset[Any]:
        raise NotImplementedError

    def tell(self, listener: Callable[[Any], None]) -> None:
        self.listeners.append(listener)

    def can_take(self) -> bool:
        return self.is_open

    def post(self, body: bytes, url: bytes = URL) -> None:
        taker = self.ingest.shortcut(url, list(HEAD.items()))
        assert taker is not None
        taker(body, lambda status, body, headers: self.answers.append((status, json.loads(body), headers)))


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        (b"/intake/schema.json", {}),
        (b"/intake/events/", {}),
        (b"http://toque/intake/events", {}),
        (URL + b"?a#answer=short", {}),
        (URL, {b"authorization": b"Bearer window"}),
        (URL, {b"content-length": b"10000"}),
        (URL, {b"content-length": b"-1"}),
        (URL, {b"transfer-encoding": b"chunked"}),
        (URL, {b"expect": b"100-continue"}),
        (URL, {b"content-encoding": b"gzip"}),
        (URL, {b"content-type": b"text/csv"}),
    ],
)
def test_what_is_not_plain_goes_the_usual_way(url: bytes, headers: dict[bytes, bytes]) -> None:
    assert Desk().ingest.shortcut(url, list((HEAD | headers).items())) is None


def test_while_the_store_does_not_keep_up_the_usual_way_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    desk.is_open = False
    assert desk.ingest.shortcut(URL, list(HEAD.items())) is None
    desk.is_open = True
    monkeypatch.setattr(ingest_module, "MAX_HELD_BYTES", 10)
    desk.post(ITEM)
    assert desk.ingest.shortcut(URL, list(HEAD.items())) is None
    desk.listeners[0](frozenset())
    assert desk.ingest.shortcut(URL, list(HEAD.items())) is not None


def test_an_item_is_answered_once_it_is_stored() -> None:
    desk = Desk()
    desk.post(ITEM)
    assert desk.answers == []
    desk.listeners[0](frozenset())
    ((status, told, _),) = desk.answers
    assert (status, told["accepted"], told["items"][0]["call"], desk.ingest.items) == (200, 1, "c", 1)


def test_what_the_store_had_before_is_a_repetition() -> None:
    desk = Desk()
    desk.post(ITEM, URL + b"?answer=short")
    desk.listeners[0](frozenset({(CallIdentity("http:dialer", "c"), Status.INITIATED)}))
    assert desk.answers[0][:2] == (200, {"accepted": 0, "repeated": 1, "unmatched": 0, "refused": 0, "items": []})


def test_a_store_that_does_not_take_it_is_503() -> None:
    desk = Desk()
    desk.post(ITEM)
    desk.listeners[0](StoreError("disk full"))
    status, told, headers = desk.answers[0]
    assert (status, told["error"], headers) == (503, "busy", {"Retry-After": "1"})


@pytest.mark.parametrize(("body", "status"), [(b"", 400), (b"{", 400), (b"{}", 422)])
def test_bad_bodies_are_refused_as_ever(body: bytes, status: int) -> None:
    desk = Desk()
    desk.post(body)
    for listener in desk.listeners:
        listener(frozenset())
    assert desk.answers[0][0] == status


def test_a_fault_of_ours_is_told_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    with capture_logs() as logs:
        desk.post(ITEM)
        desk.listeners[0](IllegalStep("no such column"))
        monkeypatch.setattr(desk.watch, "read", None)
        desk.post(ITEM)
    assert [(status, told["error"]) for status, told, _ in desk.answers] == [(500, "internal")] * 2
    assert [log["event"] for log in logs] == ["intake.failed"] * 2
