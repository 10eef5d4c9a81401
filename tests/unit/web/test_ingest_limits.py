"""What one poster, or many at once, may cost the server; and what posters are told of a fault of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.support.clock import START, ManualClock

from toque.callbacks.callback import IntakeCredential
from toque.calls.http_items import Vocabulary
from toque.calls.http_watch import HttpWatch
from toque.calls.lines import LineBook, parse_line
from toque.errors import IllegalStep
from toque.web import ingest as ingest_module
from toque.web.ingest import EVENTS_PATH, Ingest, hash_token


class Desk:
    """An intake with one poster. The store takes things while its gate is open, and keeps up with so many changes."""

    def __init__(self, most: int = 1_000_000, error: Exception | None = None) -> None:
        self.gate = asyncio.Event()
        self.waiting_for = asyncio.Semaphore(0)
        self.watch = HttpWatch("http:dialer", LineBook.of([parse_line("acme", "vendas", "1001")]))
        self.most, self.error = most, error
        self.ingest = Ingest(self, ManualClock(), Vocabulary())
        self.ingest.apply([(IntakeCredential("dialer", hash_token("door"), START), self.watch)])

    async def durable(self) -> frozenset[Any]:
        self.waiting_for.release()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return frozenset()

    def can_take(self) -> bool:
        return self.watch.waiting() <= self.most

    async def post(self, parts: Iterable[bytes]) -> tuple[int, dict[str, Any]]:
        """One request whose body comes in these parts."""
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages[-1]["more_body"] = False
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            return messages.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"authorization", b"Bearer door")]
        scope = {"type": "http", "path": EVENTS_PATH, "method": "POST", "query_string": b"", "headers": headers}
        await self.ingest(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])


def items(count: int, name: str = "c", status: str = "initiated") -> bytes:
    return json.dumps([{"call": f"{name}{n}", "status": status, "from": 1001} for n in range(count)]).encode()


async def test_bodies_that_wait_for_the_store_count_as_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "MAX_HELD_BYTES", 3_000)
    desk = Desk()
    body = items(1).ljust(2_000)
    waiting = [asyncio.create_task(desk.post([body])) for _ in range(2)]
    for _ in waiting:
        await desk.waiting_for.acquire()
    status, told = await desk.post([body])
    assert (status, told["error"]) == (503, "busy")
    desk.gate.set()
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200]
    assert (await desk.post([body]))[0] == 200


async def test_many_bodies_at_once_do_not_pass_the_limit_of_what_may_wait() -> None:
    desk = Desk(most=1_000)
    desk.gate.set()
    bodies = [items(2_000, f"b{number}-") for number in range(10)]
    told = await asyncio.gather(*(desk.post([body[:10], body[10:]]) for body in bodies))
    assert {status for status, _ in told} == {503}
    assert desk.watch.waiting() <= 1_000 + 10 * 500
    desk.watch.take()
    desk.most = 1_000_000
    status, again = await desk.post([bodies[0]])
    assert (status, again["accepted"] + again["repeated"], again["refused"]) == (200, 2_000, 0)


async def test_a_fault_of_ours_is_told_as_json_and_logged() -> None:
    desk = Desk(error=IllegalStep("no such column"))
    desk.gate.set()
    with capture_logs() as logs:
        status, told = await desk.post([items(1)])
    assert (status, told["error"]) == (500, "internal")
    assert "column" not in told["message"]
    assert [log["event"] for log in logs] == ["intake.failed"]
