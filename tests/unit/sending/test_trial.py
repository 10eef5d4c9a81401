"""The trial post: what it looks like to a receiver, and what its caller is told."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_network
from urllib.parse import parse_qs
from zoneinfo import ZoneInfo

import pytest
from tests.support.scripted_receiver import ScriptedReceiver, Step, answer, close, silence

from toque.callbacks.callback import Callback
from toque.receiver import Receiver
from toque.sending.guard import Guard
from toque.sending.transport import Transport
from toque.sending.trial import try_callback

SECRET = "whsec_" + b64encode(bytes(32)).decode()
ZONE = ZoneInfo("America/Sao_Paulo")


def make_callback(url: str, pin: str | None = None) -> Callback:
    return Callback(
        id=1, code="c" * 40, client_id="client", url=url, pin=pin, created_at=datetime.now(UTC), credentials="user:word", secrets=(SECRET,)
    )  # fmt: skip


@asynccontextmanager
async def transport_to_loopback(**limits: float) -> AsyncIterator[Transport]:
    async with Transport(Guard([ip_network("127.0.0.0/8")]), **limits) as transport:
        yield transport


async def tried(step: Step, **limits: float) -> tuple[bool, str]:
    async with ScriptedReceiver(step) as receiver, transport_to_loopback(**limits) as transport:
        is_well, told, took_ms = await try_callback(transport, make_callback(receiver.url()), ZONE, datetime.now(UTC))
        assert took_ms > 0
        return is_well, told


async def test_it_is_a_status_like_any_other_and_marked_as_a_test() -> None:
    now = datetime.now(UTC)
    async with ScriptedReceiver() as receiver, transport_to_loopback() as transport:
        is_well, _, _ = await try_callback(transport, make_callback(receiver.url("/here")), ZONE, now)
        assert is_well
        await try_callback(transport, make_callback(receiver.url("/here"), pin="central"), ZONE, now)
    first, second = receiver.requests
    assert (first.method, first.target) == ("POST", "/here")
    assert first.headers["authorization"] == "Basic dXNlcjp3b3Jk"
    with Receiver(SECRET).handling(first.headers, first.body) as status:
        assert (status.status, status.sequencia, status.pin, status.tipo) == ("desligou", 1, "teste", "realizada")
        assert status.duracao is not None
        assert status.duracao.total_seconds() == 5
        assert status.is_final
    data = [json.loads(parse_qs(request.body.decode())["data"][0]) for request in (first, second)]
    assert data[1]["pin"] == "central"
    assert data[0]["id"] == first.headers["webhook-id"] != second.headers["webhook-id"]
    assert data[0]["callerid"] != data[1]["callerid"]  # no call's, so that nobody takes it for one
    assert data[0]["fim"] == now.astimezone(ZONE).strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize(
    ("step", "result"),
    [
        (answer(204), (True, "204")),
        (answer(200, body=b"OK"), (True, "200")),
        (answer(302, {"Location": "/"}), (False, "302")),
        (answer(404, body=b"no such page"), (False, "404 no such page")),
        (answer(410), (False, "410")),
        (close(), (False, "connection closed without an answer")),
    ],
)
async def test_what_its_caller_is_told(step: Step, result: tuple[bool, str]) -> None:
    assert await tried(step) == result


async def test_a_receiver_that_says_nothing() -> None:
    is_well, told = await tried(silence(until=asyncio.Event()), attempt_timeout_s=0.05)
    assert not is_well
    assert told.startswith("no answer within")


async def test_a_forbidden_address_is_not_dialled() -> None:
    async with ScriptedReceiver() as receiver, Transport(Guard()) as transport:
        is_well, told, _ = await try_callback(transport, make_callback(receiver.url()), ZONE, datetime.now(UTC))
    assert (is_well, told) == (False, "loopback address")
    assert receiver.connections == []
