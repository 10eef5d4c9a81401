"""The real server on free ports with a store of its own, and customers who speak to its API over real sockets.

Every answer that comes through here is held to what all answers promise: an envelope with a return code of the table, `no-store`,
one key a line in JSON, the right root in XML.
"""

import asyncio
import contextlib
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from tests.support.clock import ManualClock

from toque.callbacks.callback import Client
from toque.calls.lines import parse_line
from toque.server import Server
from toque.settings import load_settings
from toque.web.access import hash_secret
from toque.web.envelopes import RETURN_CODES

PATIENCE_S = 10.0
FORM = "application/x-www-form-urlencoded"
SECRET = "segredo-do-cliente-que-ninguem-adivinha"
PINS = ("central", "ramal")
_RETURN_CODES = {(row.http_status, row.codigo) for row in RETURN_CODES}
_hash_of = cache(hash_secret)  # argon2 takes its time, and the tests have many clients


def members(response: httpx.Response) -> dict[str, Any]:
    """The members of an answer, whichever its format; `root` is XML's."""
    assert response.headers["cache-control"] == "no-store"
    kind, _, charset = response.headers["content-type"].partition("; ")
    assert charset == "charset=utf-8"
    told = _json(response.content) if kind == "application/json" else _xml(kind, response.content)
    assert {"api", "modulo", "status", "codigo", "msg"} <= told.keys()
    assert told["api"] == "voz"
    assert (response.status_code, told["codigo"]) in _RETURN_CODES
    assert told["status"] == ("ok" if told["codigo"] == "000" else "erro")
    assert ("error" in told) == ("error_description" in told)
    if response.status_code in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    return told


def _json(body: bytes) -> dict[str, Any]:
    text = body.decode()
    told: dict[str, Any] = json.loads(text)
    for name, value in told.items():  # what `sed -n 's/.*"name": *"\(.*\)".*/\1/p'` lives on
        if isinstance(value, str | int):
            assert len(re.findall(rf'^    "{name}": .*$', text, re.MULTILINE)) == 1
    return told


def _xml(kind: str, body: bytes) -> dict[str, Any]:
    assert kind == "application/xml"
    root = ET.fromstring(body)
    told: dict[str, Any] = {child.tag: child.text or "" for child in root if child.tag != "data"}
    told["root"] = root.tag
    if (data := root.find("data")) is not None:
        assert {item.tag for item in data} <= {"item"}
        told["data"] = [{child.tag: child.text for child in item} for item in data]
    return told


@dataclass
class Customer:
    """An account and its token."""

    api: "Api"
    client_id: str
    client_secret: str = SECRET
    token: str = ""

    async def ask_token(self, **fields: str) -> httpx.Response:
        given = {"client_id": self.client_id, "client_secret": self.client_secret, **fields}
        return await self.api.post("/request_token", given)

    async def call(self, path: str, **fields: str) -> httpx.Response:
        """Call a method with a token, which is asked for the first time."""
        if not self.token:
            self.token = members(await self.ask_token())["access_token"]
        return await self.api.post(path, {"access_token": self.token, **fields})

    async def add(self, url: str, **fields: str) -> dict[str, Any]:
        """Register a URL, successfully."""
        response = await self.call("/voz/add-callback", url=url, **fields)
        told = members(response)
        assert response.status_code == 200, told
        return told

    async def listed(self) -> list[dict[str, Any]]:
        """What list-callback tells."""
        told = members(await self.call("/voz/list-callback"))
        assert told["total"] == len(told["data"])
        data: list[dict[str, Any]] = told["data"]
        return data


@dataclass
class Api:
    """A running server and an HTTP client for it."""

    server: Server
    http: httpx.AsyncClient
    clock: Any  # a ManualClock, unless the test brought its own
    _names: Iterable[int] = field(default_factory=lambda: iter(range(1, 1000)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.http_port}"

    async def post(self, path: str, fields: Mapping[str, str] | None = None, **more: Any) -> httpx.Response:
        return await self.http.post(path, data=fields, **more)

    async def post_raw(self, path: str, body: bytes, content_type: str = FORM, **more: Any) -> httpx.Response:
        return await self.http.post(path, content=body, headers={"content-type": content_type}, **more)

    async def add_client(self, *pins: str) -> Customer:
        """Add an account whose pins have one line each, and have the server know."""
        number = next(iter(self._names))
        client = Client(f"{number:016x}", f"cliente {number}", _hash_of(SECRET), 1, self.clock())
        await self.server.store.add_client(client)
        customer = Customer(self, client.client_id)
        for place, pin in enumerate(pins):
            await self.add_lines(customer, pin, f"ramal{number}-{place}")
        await self.server.directory.refresh()
        return customer

    async def add_lines(self, customer: Customer, pin: str, *numbers: str) -> None:
        """Give the customer's pin these numbers, and have the server know."""
        await self.server.store.add_lines([parse_line(customer.client_id, pin, number) for number in numbers])
        await self.server.directory.refresh()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what must come to be."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def exchange(self, *data: bytes) -> bytes:
        """What comes back for these bytes on one connection, until the server closes it or half a second passes in silence."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.http_port)
        answer = b""
        try:
            for part in data:
                writer.write(part)
                await writer.drain()
            with contextlib.suppress(TimeoutError):
                while part := await asyncio.wait_for(reader.read(65_536), 0.5):
                    answer += part
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return answer


@contextlib.asynccontextmanager
async def serving(store: Path, *, clock: Callable[[], datetime] | None = None, **flags: Any) -> AsyncIterator[Api]:
    """Serve this store for the block; `flags` are settings as on the command line."""
    clock = clock or ManualClock(datetime.now(UTC))
    given = {"store": f"sqlite://{store}", "http": "127.0.0.1:0", "hep": "127.0.0.1:0", **flags}
    settings = load_settings(None, {}, given)
    async with Server(settings, clock=clock) as server:
        task = asyncio.create_task(server.run(), name="server")
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}", trust_env=False, timeout=20) as http:
                yield Api(server, http, clock)
        finally:
            server.stop()
            await task
