"""A connection is opened as for a post, and nothing is sent over it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme
from tests.support.connect_proxy import ConnectProxy
from tests.support.posting import LOOPBACK, black_hole, showing, trusting
from tests.support.scripted_receiver import ScriptedReceiver

from toque.callbacks.url import parse_url
from toque.sending.guard import Guard
from toque.sending.outcomes import Forbidden, Unreachable, Unsent
from toque.sending.reaching import Reached, Reaching

AUTHORITY = trustme.CA()


@asynccontextmanager
async def reaching(guard: Guard = LOOPBACK, **more: Any) -> AsyncIterator[Reaching]:
    more.setdefault("ssl_context", ssl.create_default_context())
    one = Reaching(guard, **more)
    try:
        yield one
    finally:
        await one.close()


async def test_a_server_that_is_there() -> None:
    async with ScriptedReceiver() as receiver, reaching() as one:
        outcome = await one.reach(parse_url(receiver.url("/status")))
        assert isinstance(outcome, Reached)
        assert outcome.certificate_ends_at is None
        assert receiver.requests == []


async def test_what_posts_may_not_reach_is_not_dialled() -> None:
    async with ScriptedReceiver() as receiver, reaching(Guard()) as one:
        assert await one.reach(parse_url(receiver.url("/"))) == Forbidden("loopback address")


async def test_tls_is_verified_and_its_end_is_told() -> None:
    ends_at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    known = showing(AUTHORITY.issue_cert("127.0.0.1", not_after=ends_at))
    async with ScriptedReceiver(ssl_context=known) as receiver:
        async with reaching(ssl_context=trusting(AUTHORITY)) as one:
            outcome = await one.reach(parse_url(receiver.url("/")))
            assert isinstance(outcome, Reached)
            assert outcome.certificate_ends_at == ends_at
        async with reaching() as one:
            assert await one.reach(parse_url(receiver.url("/"))) == Unreachable("certificate: unknown issuer")


@pytest.mark.parametrize("url", ["http://nome.invalid/", "https://nome.invalid/"])
async def test_a_name_that_is_none(url: str) -> None:
    async with reaching() as one:
        assert await one.reach(parse_url(url)) == Unreachable("name not found")


async def test_nobody_answers() -> None:
    with black_hole() as port:
        async with reaching(connect_timeout_s=0.1) as one:
            assert await one.reach(parse_url(f"http://127.0.0.1:{port}/")) == Unreachable("connect timed out")


async def test_through_a_proxy() -> None:
    async with ScriptedReceiver() as receiver, ConnectProxy() as proxy:
        url = parse_url(receiver.url("/"))
        async with reaching(proxy=parse_url(proxy.url())) as one:
            assert isinstance(await one.reach(url), Reached)
            assert proxy.targets == [f"127.0.0.1:{url.port}"]
    async with reaching(proxy=parse_url(proxy.url())) as one:
        assert isinstance(await one.reach(url), Unsent)
