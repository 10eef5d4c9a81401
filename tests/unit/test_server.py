"""The server as a whole, in this process: real sockets, a real store, uvloop as it is run; and nothing is left when it is gone."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import resource
import signal
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import uvloop
from structlog.testing import capture_logs
from tests.support.clock import ManualClock
from tests.support.hep_sender import render, send_by_udp
from tests.support.scripted_receiver import ScriptedReceiver, answer, silence
from tests.support.sip_messages import ProxiedCall

from toque.callbacks.callback import Callback, Client, Registered
from toque.callbacks.delivery import Delivery
from toque.calls.hep_packet import HepPacket
from toque.calls.lines import parse_line
from toque.errors import SettingsError, StoreError
from toque.intake import Intake
from toque.receiver import CallStatus, Receiver, parse_body
from toque.sending.dispatcher import Dispatcher
from toque.sending.settling import Settling
from toque.server import Server, running, serve
from toque.settings import Settings, load_settings
from toque.store.opening import open_store
from toque.store.sqlite import SqliteStore
from toque.web.access import hash_secret

TIME_FOR_A_SCENARIO_S = 60
CLIENT, SECRET = "cliente-1", "um-segredo-de-teste"
CENTRAL, SALES, STRANGER = "554130600300", "554130600301", "5511977770002"
WHOLE_CALL = ["iniciou", "chamando", "atendeu", "desligou"]
_SECRET_HASH = functools.cache(hash_secret)
_NAMES = (f"call{number}" for number in count(1))


def in_a_process_of_its_own(scenario: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a scenario on uvloop, and fail on whatever it leaves behind: descriptors, threads, tasks, errors nobody saw."""

    @functools.wraps(scenario)
    def test(**fixtures: Any) -> None:
        _warm_up()
        descriptors, threads = open_files(), set(threading.enumerate())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_checked(scenario(**fixtures)))
        assert open_files() == descriptors
        assert set(threading.enumerate()) == threads

    test.__signature__ = inspect.signature(scenario)  # type: ignore[attr-defined]
    return test


async def _checked(scenario: Awaitable[None]) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with asyncio.timeout(TIME_FOR_A_SCENARIO_S):
        await _warm_up_loop()
        await scenario
    for _ in range(10):  # those that were cancelled may need a few turns
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert complaints == []


async def _warm_up_loop() -> None:
    """What a loop opens once and keeps while it lives is none either: its executor's thread, libuv's spare descriptor."""
    await asyncio.to_thread(time.monotonic)
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0)


@functools.cache
def _warm_up() -> None:
    """What a process opens once for all its loops is no leak."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


def open_files() -> dict[str, str]:
    """What this process has open."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the list itself
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


def settings_of(path: Path, **given: Any) -> Settings:
    flags = {"store": f"sqlite://{path}/toque.db", "http": "127.0.0.1:0", "hep": "127.0.0.1:0", "allow_networks": "127.0.0.0/8"}
    return load_settings(None, {}, {**flags, **given})


@asynccontextmanager
async def store_of(settings: Settings) -> AsyncIterator[SqliteStore]:
    """The store by itself, while no server uses it."""
    store = open_store(settings)
    try:
        yield store
    finally:
        await store.close()


async def prepare(settings: Settings, *urls: tuple[str, str | None]) -> list[Callback]:
    """A client with two lines, and these URLs with their pins."""
    async with store_of(settings) as store:
        await store.add_client(Client(CLIENT, "Cliente", _SECRET_HASH(SECRET), 1, datetime.now(UTC)))
        await store.add_lines([parse_line(CLIENT, "central", CENTRAL), parse_line(CLIENT, "vendas", SALES)])
        return [await register(store, url, pin) for url, pin in urls]


async def register(store: SqliteStore, url: str, pin: str | None = None) -> Callback:
    registered = await store.register_callback(CLIENT, url, None, pin, limit=100)
    assert isinstance(registered, Registered)
    return registered.callback


def a_call(caller: str = CENTRAL) -> ProxiedCall:
    return ProxiedCall(next(_NAMES), caller=caller, begins=datetime.now(UTC) - timedelta(seconds=30))


def whole_call(caller: str = CENTRAL) -> list[HepPacket]:
    call = a_call(caller)
    call.invite()
    call.ring()
    call.answer()
    call.hang_up()
    return call.packets


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0)


def told(receiver: ScriptedReceiver, target: str | None = None) -> list[str]:
    """The statuses that were posted there, in the order of their arrival."""
    return [status.status for status in statuses(receiver, target)]


def statuses(receiver: ScriptedReceiver, target: str | None = None) -> list[CallStatus]:
    return [parse_body(request.body) for request in receiver.requests if target in (None, request.target)]


# The whole way


@dataclass
class Customer:
    """Somebody who speaks to the API."""

    http: httpx.AsyncClient
    token: str = ""

    async def call(self, path: str, **fields: str) -> dict[str, Any]:
        if not self.token:
            granted = await self.http.post("/request_token", data={"client_id": CLIENT, "client_secret": SECRET})
            self.token = granted.json()["access_token"]
        answered = await self.http.post(path, data={"access_token": self.token, **fields})
        told: dict[str, Any] = answered.json()
        return told

    async def add(self, url: str, **fields: str) -> dict[str, Any]:
        told = await self.call("/voz/add-callback", url=url, **fields)
        assert told["codigo"] == "000", told
        return told


@asynccontextmanager
async def customer_of(server: Server) -> AsyncIterator[Customer]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}", trust_env=False, timeout=20) as http:
        yield Customer(http)


@in_a_process_of_its_own
async def test_registered_then_called_then_told(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await prepare(settings)
    async with ScriptedReceiver() as receiver, running(settings) as server, customer_of(server) as customer:
        registered = await customer.add(receiver.url("/here", user="user:word"))
        send_by_udp(server.listeners[0].port, whole_call())
        await receiver.has_received(4)
        checked = Receiver(registered["segredo"])
        for request, word in zip(receiver.requests, WHOLE_CALL, strict=True):
            with checked.handling(request.headers, request.body) as status:
                assert status.status == word
                assert (status.pin, status.tipo, status.origem, status.destino) == ("central", "realizada", CENTRAL, STRANGER)
            assert request.headers["authorization"] == "Basic dXNlcjp3b3Jk"
        assert [status.sequencia for status in statuses(receiver)] == [1, 2, 3, 4]
        assert len({status.callerid for status in statuses(receiver)}) == 1


@in_a_process_of_its_own
async def test_over_https_with_an_authority_of_the_operators(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    settings = settings_of(tmp_path, ca_file=str(tmp_path / "ca.pem"))
    await prepare(settings)
    async with ScriptedReceiver(ssl_context=context) as receiver, running(settings) as server, customer_of(server) as customer:
        await customer.add(receiver.url("/here"))
        send_by_udp(server.listeners[0].port, whole_call())
        await receiver.has_received(4)
        assert told(receiver) == WHOLE_CALL


@in_a_process_of_its_own
async def test_https_without_that_authority_is_not_trusted(tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    settings = settings_of(tmp_path)
    async with ScriptedReceiver(ssl_context=context) as receiver:
        await prepare(settings, (receiver.url(), None))
        async with running(settings) as server:
            send_by_udp(server.listeners[0].port, whole_call()[:2])
            await until(lambda: server.dispatcher.counters.attempts == 1)
            await server.dispatcher.settled()
            (waiting,) = await backlogs(server.store)
            assert waiting.attempts == 1
        assert receiver.requests == []


@in_a_process_of_its_own
async def test_fan_out_to_every_code_that_wants_the_pin(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await prepare(settings)
    async with ScriptedReceiver() as receiver, running(settings) as server, customer_of(server) as customer:
        codes = [
            (await customer.add(receiver.url("/all")))["code"],
            (await customer.add(receiver.url("/central"), pin="central"))["code"],
            (await customer.add(receiver.url("/vendas"), pin="vendas"))["code"],
            (await customer.add(receiver.url("/all"), pin="central"))["code"],  # the same URL, and a code of its own
        ]
        assert len(set(codes)) == 4
        send_by_udp(server.listeners[0].port, [*whole_call(CENTRAL), *whole_call(SALES), *whole_call(STRANGER)])
        await receiver.has_received(20)
        await server.dispatcher.settled()
        assert told(receiver, "/central") == WHOLE_CALL
        assert told(receiver, "/vendas") == WHOLE_CALL
        assert {status.pin for status in statuses(receiver, "/vendas")} == {"vendas"}
        assert sorted(told(receiver, "/all")) == sorted(WHOLE_CALL * 3)
        ids = [request.headers["webhook-id"] for request in receiver.requests]
        assert sorted(ids.count(one) for one in set(ids)) == [2] * 4 + [3] * 4
        assert len(receiver.requests) == 20


@in_a_process_of_its_own
async def test_a_removed_code_is_not_posted_to(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await prepare(settings)
    goes_on = asyncio.Event()
    async with (
        ScriptedReceiver(answer(204, after=goes_on)) as receiver,
        running(settings) as server,
        customer_of(server) as customer,
    ):
        code = (await customer.add(receiver.url("/here")))["code"]
        send_by_udp(server.listeners[0].port, whole_call())
        await receiver.has_received(1)
        assert (await customer.call("/voz/remove-callback", code=code))["codigo"] == "000"
        goes_on.set()
        send_by_udp(server.listeners[0].port, whole_call())
        await until(lambda: server.intake.events == 8)
        await server.dispatcher.settled()
        assert len(receiver.requests) == 1
        assert await backlogs(server.store) == []


@in_a_process_of_its_own
async def test_a_forbidden_address_is_never_dialled_and_tried_again(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, allow_networks="10.0.0.0/8")
    async with ScriptedReceiver() as receiver:
        await prepare(settings, (receiver.url(), None))
        async with running(settings) as server, customer_of(server) as customer:
            refused = await customer.call("/voz/add-callback", url=receiver.url("/other"))
            assert refused["codigo"] == "001"
            send_by_udp(server.listeners[0].port, whole_call()[:2])
            await until(lambda: server.dispatcher.counters.attempts >= 1)
            await server.dispatcher.settled()
            (waiting,) = await backlogs(server.store)
            assert waiting.attempts >= 1
            assert waiting.due_at is not None
        assert receiver.connections == []


# Over a restart


@in_a_process_of_its_own
async def test_what_waited_when_it_stopped_goes_out_in_order(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with ScriptedReceiver(otherwise=answer(500)) as receiver:
        await prepare(settings, (receiver.url(), None))
        async with running(settings) as server:
            for _ in range(5):
                send_by_udp(server.listeners[0].port, whole_call())
            await until(lambda: server.intake.events == 20)
            await receiver.has_received(5)
    async with ScriptedReceiver() as receiver:
        async with store_of(settings) as store:
            assert len(await left(store)) == 20
            await repoint(settings, receiver.url())
        with capture_logs() as logs:
            async with Server(settings, clock=lambda: datetime.now(UTC) + timedelta(minutes=1)) as server:
                task = asyncio.create_task(server.run())
                await receiver.has_received(20)
                await server.dispatcher.settled()
                server.stop()
                await task
        (started,) = [log for log in logs if log["event"] == "server.started"]
        assert (started["backlogs"], started["calls"]) == (1, 0)
        by_call: dict[str, list[str]] = {}
        for status in statuses(receiver):
            by_call.setdefault(status.callerid, []).append(status.status)
        assert list(by_call.values()) == [WHOLE_CALL] * 5
    async with store_of(settings) as store:
        assert await left(store) == []


async def backlogs(store: SqliteStore) -> list[Delivery]:
    """What waits in the store, of all callbacks."""
    return [delivery for number in await store.backlog_sizes() for delivery in await store.backlog(number)]


async def left(store: SqliteStore) -> list[Delivery]:
    """The same once no server runs: what it had in memory is recovered first."""
    await store.recover()
    return await backlogs(store)


async def repoint(settings: Settings, url: str) -> None:
    """The customer's receiver has moved, which the API has no method for."""
    with sqlite3.connect(settings.store) as connection:
        connection.execute("UPDATE callbacks SET url = ?", (url,))
    connection.close()


@in_a_process_of_its_own
async def test_a_call_in_progress_goes_on_where_it_was(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with ScriptedReceiver() as receiver:
        await prepare(settings, (receiver.url(), None))
        call = a_call()
        call.invite()
        call.ring()
        call.answer()
        before = len(call.packets)
        call.hang_up()
        async with running(settings) as server:
            send_by_udp(server.listeners[0].port, call.packets[:before])
            await receiver.has_received(3)
            await server.dispatcher.settled()
        async with running(settings) as server:
            send_by_udp(server.listeners[0].port, call.packets[before:])
            await receiver.has_received(4)
            await server.dispatcher.settled()
        assert told(receiver) == WHOLE_CALL
        assert [status.sequencia for status in statuses(receiver)] == [1, 2, 3, 4]
        assert len({status.callerid for status in statuses(receiver)}) == 1


# Opening


def _taken(kind: int) -> tuple[socket.socket, str]:
    taken = socket.socket(socket.AF_INET, kind)
    taken.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        taken.listen()
    return taken, f"127.0.0.1:{taken.getsockname()[1]}"


async def refused(settings: Settings) -> SettingsError:
    """The server does not open, and leaves nothing behind."""
    before, threads, tasks = open_files(), set(threading.enumerate()), asyncio.all_tasks()
    with pytest.raises(SettingsError) as caught:
        async with Server(settings):
            pytest.fail("it has opened")
    for _ in range(10):
        await asyncio.sleep(0)
    assert open_files() == before
    assert set(threading.enumerate()) == threads
    assert asyncio.all_tasks() == tasks
    return caught.value


@in_a_process_of_its_own
async def test_a_port_that_is_taken_for_http(tmp_path: Path) -> None:
    taken, address = _taken(socket.SOCK_STREAM)
    with taken:
        error = await refused(settings_of(tmp_path, http=address))
    assert (error.option, error.source) == ("http", address)
    assert str(error) == f"http ({address}): cannot listen on {address}: Address already in use"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@in_a_process_of_its_own
async def test_a_port_that_is_taken_for_hep(tmp_path: Path, kind: int) -> None:
    taken, address = _taken(kind)
    with taken:
        error = await refused(settings_of(tmp_path, hep=address))
    assert str(error) == f"hep ({address}): cannot listen on {address}: Address already in use"


@in_a_process_of_its_own
async def test_a_host_that_cannot_be_looked_up(tmp_path: Path) -> None:
    error = await refused(settings_of(tmp_path, http="no.such.host.invalid:0"))
    assert error.option == "http"


@in_a_process_of_its_own
async def test_certificates_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    error = await refused(settings_of(tmp_path, ca_file=str(tmp_path / "no.pem")))
    assert error.option == "ca_file"
    error = await refused(settings_of(tmp_path, tls_certificate=str(tmp_path / "no.pem"), tls_key=str(tmp_path / "no.pem")))
    assert error.option == "tls_certificate"


@in_a_process_of_its_own
async def test_a_store_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "toque.db").write_text("this is no database, and long enough to be sure of it " * 20)
    assert (await refused(settings_of(tmp_path))).option == "store"


@in_a_process_of_its_own
async def test_a_second_server_on_one_store_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with ScriptedReceiver() as receiver:
        await prepare(settings, (receiver.url(), None))
        async with running(settings) as server:
            with pytest.raises(SettingsError, match="another toque server"):
                async with Server(settings):
                    pytest.fail("it has opened")
            send_by_udp(server.listeners[0].port, whole_call())
            await receiver.has_received(4)
        async with running(settings):  # and when it has stopped, another may begin
            pass


@pytest.mark.parametrize("step", ["registry", "open_calls", "recover", "token_key"])
@in_a_process_of_its_own
async def test_a_store_that_fails_while_it_opens(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is gone")

    monkeypatch.setattr(SqliteStore, step, fail)
    before, threads = open_files(), set(threading.enumerate())
    with pytest.raises(StoreError, match="the disk is gone"):
        async with Server(settings_of(tmp_path)):
            pytest.fail("it has opened")
    assert open_files() == before
    assert set(threading.enumerate()) == threads


@in_a_process_of_its_own
async def test_a_server_that_cannot_open_posts_nothing(tmp_path: Path) -> None:
    """Or it would post the same again at every try to start."""
    settings = settings_of(tmp_path)
    async with ScriptedReceiver(otherwise=answer(500)) as receiver:
        await prepare(settings, (receiver.url(), None))
        async with running(settings) as server:
            send_by_udp(server.listeners[0].port, whole_call())
            await receiver.has_received(1)
            await server.dispatcher.settled()
        posted = len(receiver.requests)
        taken, address = _taken(socket.SOCK_DGRAM)
        with taken, pytest.raises(SettingsError):
            async with Server(settings_of(tmp_path, hep=address), clock=lambda: datetime.now(UTC) + timedelta(minutes=1)):
                pytest.fail("it has opened")
        assert len(receiver.requests) == posted
        assert len(receiver.connections) == 1


@in_a_process_of_its_own
async def test_opened_and_never_run(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await prepare(settings)
    async with Server(settings) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.http_port)  # whoever comes early is not refused
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


# Running


@in_a_process_of_its_own
async def test_it_starts_and_stops_as_often_as_one_likes(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await prepare(settings)
    before, threads, tasks = open_files(), set(threading.enumerate()), asyncio.all_tasks()
    for round_ in range(6):
        async with running(settings) as server:
            if round_ % 2:
                async with customer_of(server) as customer:
                    assert (await customer.call("/voz/list-callback"))["total"] == 0
                send_by_udp(server.listeners[0].port, whole_call())
                await until(lambda server=server: server.intake.events == 4)
        assert open_files() == before
        assert set(threading.enumerate()) == threads
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == tasks


@in_a_process_of_its_own
async def test_stop_closes_connections_that_nobody_uses(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    await prepare(settings)
    async with running(settings) as server, customer_of(server) as customer:
        await customer.call("/voz/list-callback")
        hep_reader, hep_writer = await asyncio.open_connection("127.0.0.1", server.listeners[0].port)
        http_reader, http_writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        http_writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n")  # and never the rest
        server.stop()
        assert await http_reader.read() == b""
        with suppress(ConnectionResetError):
            assert await hep_reader.read() == b""
        for writer in (hep_writer, http_writer):
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@in_a_process_of_its_own
async def test_stop_makes_durable_what_was_understood(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with ScriptedReceiver(otherwise=answer(204)) as receiver:
        await prepare(settings, (receiver.url(), None))
        async with running(settings) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.listeners[0].port)
            writer.write(b"".join(map(render, whole_call())))
            await until(lambda: server.listeners[0].counters.packets == len(whole_call()))
            server.stop()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        async with running(settings) as server:
            await receiver.has_received(4)
            await server.dispatcher.settled()
        assert told(receiver) == WHOLE_CALL


@in_a_process_of_its_own
async def test_stop_lets_a_post_under_way_end(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    answers = asyncio.Event()
    async with ScriptedReceiver(otherwise=answer(204, after=answers)) as receiver:
        await prepare(settings, (receiver.url(), None))
        async with running(settings) as server:
            send_by_udp(server.listeners[0].port, whole_call())
            await receiver.has_received(1)
            await until(lambda: server.intake.events == 4)
            server.stop()
            await until(lambda: server.dispatcher._is_stopping)
            answers.set()
        assert len(receiver.requests) == 1
        async with store_of(settings) as store:
            assert [delivery.event.sequence for delivery in await left(store)] == [2, 3, 4]


@in_a_process_of_its_own
async def test_a_post_that_outlasts_the_grace_is_made_again_and_does_not_count(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, stop_grace="0s")
    async with ScriptedReceiver(silence()) as receiver:
        await prepare(settings, (receiver.url(), None))
        async with running(settings) as server:
            send_by_udp(server.listeners[0].port, whole_call())
            await receiver.has_received(1)
            await until(lambda: server.intake.events == 4)
        async with store_of(settings) as store:
            assert [(delivery.event.sequence, delivery.attempts) for delivery in await left(store)] == [
                (1, 0), (2, 0), (3, 0), (4, 0),
            ]  # fmt: skip
        async with running(settings) as server:
            await receiver.has_received(5)
            await server.dispatcher.settled()
        assert told(receiver) == ["iniciou", *WHOLE_CALL]


@pytest.mark.parametrize(("method", "waiting"), [("append", "statuses"), ("settle", "outcomes")])
@in_a_process_of_its_own
async def test_a_stop_that_the_store_holds_up_ends_all_the_same(
    tmp_path: Path, method: str, waiting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = asyncio.Event()

    async def fail_to_write(*_: Any) -> None:
        tried.set()
        raise StoreError("the disk is full")

    settings = settings_of(tmp_path, stop_grace="0s")
    monkeypatch.setattr("toque.server._STORE_GRACE", timedelta(seconds=0.5))
    async with ScriptedReceiver() as receiver:
        await prepare(settings, (receiver.url(), None))
        with capture_logs() as logs, monkeypatch.context() as broken:
            broken.setattr(SqliteStore, method, fail_to_write)
            async with running(settings) as server:
                send_by_udp(server.listeners[0].port, whole_call())
                await tried.wait()
        assert [log["waiting"] for log in logs if log["event"] == "server.stopped_early"] == [waiting]
        if method == "settle":  # what was posted and not written down goes out again
            async with running(settings):
                await receiver.has_received(5)
            assert told(receiver)[:2] == ["iniciou", "iniciou"]


@pytest.fixture
def process_limits() -> Iterator[None]:
    """What `serve` sets for the process that it has to itself."""
    descriptors, collector = resource.getrlimit(resource.RLIMIT_NOFILE), gc.get_threshold()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, descriptors)
    gc.unfreeze()
    gc.set_threshold(*collector)


@pytest.mark.usefixtures("process_limits")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@in_a_process_of_its_own
async def test_a_signal_ends_it_in_order(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = asyncio.Event()
    run = Server.run

    async def run_and_tell(self: Server) -> None:
        opened.set()
        await run(self)

    monkeypatch.setattr(Server, "run", run_and_tell)
    serving = asyncio.create_task(serve(settings_of(tmp_path)))
    await opened.wait()
    with capture_logs() as logs:
        os.kill(os.getpid(), number)
        await serving
    assert [log["event"] for log in logs] == ["server.stopping", "server.stopped"]


# When a part dies


async def fail(*_: Any) -> None:
    raise ZeroDivisionError("a bug")


async def end(*_: Any) -> None:
    return


@pytest.mark.parametrize(
    ("part", "owner", "method"),
    [
        ("sending", Dispatcher, "run"),
        ("intake", Intake, "run"),
        ("sending", Settling, "_write"),
        ("intake", SqliteStore, "append"),
        ("directory", SqliteStore, "registry_version"),
    ],
)
@in_a_process_of_its_own
async def test_a_part_that_dies_takes_the_server_with_it_loudly(
    tmp_path: Path, part: str, owner: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path)
    async with ScriptedReceiver() as receiver:
        await prepare(settings, (receiver.url(), None))
        with capture_logs() as logs:
            async with Server(settings) as server, customer_of(server) as customer:
                monkeypatch.setattr(owner, method, fail)
                task = asyncio.create_task(server.run())
                send_by_udp(server.listeners[0].port, whole_call())
                with pytest.raises(ZeroDivisionError, match="a bug"):
                    await task
                with pytest.raises(httpx.TransportError):
                    await customer.http.get("/health")
        (failed,) = [log for log in logs if log["event"] == "server.failed"]
        assert (failed["part"], failed["error"], failed["log_level"]) == (part, "ZeroDivisionError: a bug", "critical")


@pytest.mark.parametrize(("part", "owner"), [("sending", Dispatcher), ("intake", Intake)])
@in_a_process_of_its_own
async def test_a_part_that_ends_by_itself_is_a_failure_too(
    tmp_path: Path, part: str, owner: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "run", end)
    with capture_logs() as logs:
        async with Server(settings_of(tmp_path)) as server:
            with pytest.raises(RuntimeError, match=f"{part} ended by itself"):
                await server.run()
    assert [log["part"] for log in logs if log["event"] == "server.failed"] == [part]


@in_a_process_of_its_own
async def test_http_that_ends_by_itself_is_a_failure_too(tmp_path: Path) -> None:
    async with Server(settings_of(tmp_path)) as server:
        task = asyncio.create_task(server.run())
        await until(lambda: server._http.started)
        server._http.should_exit = True
        with pytest.raises(RuntimeError, match="http ended by itself"):
            await task


@in_a_process_of_its_own
async def test_a_request_under_way_when_a_part_dies_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def never(*_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    async def fail_when_asked(*_: Any) -> None:
        await asked.wait()
        raise ZeroDivisionError("a bug")

    settings = settings_of(tmp_path)
    await prepare(settings)
    monkeypatch.setattr(SqliteStore, "ping", never)
    monkeypatch.setattr(Dispatcher, "run", fail_when_asked)
    async with Server(settings) as server, customer_of(server) as customer:
        task = asyncio.create_task(server.run())
        with pytest.raises(httpx.TransportError):
            await customer.http.get("/health")
        with pytest.raises(ZeroDivisionError):
            await task


# Health


@in_a_process_of_its_own
async def test_health_says_when_it_cannot_store_or_take_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_full_disk = False
    ping = SqliteStore.ping

    async def ping_or_fail(self: SqliteStore) -> None:
        if is_full_disk:
            raise StoreError("the disk is full")
        await ping(self)

    monkeypatch.setattr("toque.server._HEALTH_AGE_S", -1.0)
    monkeypatch.setattr(SqliteStore, "ping", ping_or_fail)
    clock = ManualClock(datetime.now(UTC))
    async with Server(settings_of(tmp_path), clock=clock) as server, customer_of(server) as customer:
        task = asyncio.create_task(server.run())
        well = await customer.http.get("/health")
        assert (well.status_code, well.json()["status"], well.json()["store"], well.json()["intake"]) == (200, "ok", "ok", "ok")
        is_full_disk = True
        ill = await customer.http.get("/health")
        assert (ill.status_code, ill.json()["status"], ill.json()["store"]) == (503, "failing", "the disk is full")
        is_full_disk = False
        with monkeypatch.context() as broken:
            broken.setattr(Intake, "is_full", lambda _: True)
            full = await customer.http.get("/health")
            assert (full.status_code, full.json()["intake"]) == (503, "full")
        assert (await customer.http.get("/health")).status_code == 200
        server.stop()
        await task


@in_a_process_of_its_own
async def test_health_costs_a_write_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pings = 0
    ping = SqliteStore.ping

    async def counted(self: SqliteStore) -> None:
        nonlocal pings
        pings += 1
        await ping(self)

    monkeypatch.setattr("toque.server._HEALTH_AGE_S", 3600.0)
    monkeypatch.setattr(SqliteStore, "ping", counted)
    async with running(settings_of(tmp_path)) as server, customer_of(server) as customer:
        for _ in range(5):
            assert (await customer.http.get("/health")).status_code == 200
    assert pings == 1


@in_a_process_of_its_own
async def test_health_counts(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with ScriptedReceiver(otherwise=silence()) as receiver:
        await prepare(settings, (receiver.url(), None))
        async with running(settings_of(tmp_path, stop_grace="0s")) as server, customer_of(server) as customer:
            packets = [*whole_call(), *whole_call(STRANGER)]
            send_by_udp(server.listeners[0].port, packets)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"garbage", ("127.0.0.1", server.listeners[0].port))
            await until(lambda: server.listeners[0].counters.refused == 1 and server.intake.events == 4)
            health = (await customer.http.get("/health")).json()
        assert {name: value for name, value in health.items() if name not in ("version", "status", "store", "intake")} == {
            "calls": 2,
            "unmatched_calls": 1,
            "events": 4,
            "held_deliveries": 4,
            "parked_callbacks": 0,
            "sources": {"hep": "listening"},
            "hep_packets": len(packets) + 1,
            "hep_refused": 1,
            "hep_dropped": 0,
            "http_items": 0,
        }
