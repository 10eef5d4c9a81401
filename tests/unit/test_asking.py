"""Asking a running server as its operator, over HTTP and HTTPS; and what is said when somebody else is there, or nobody."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from toque.asking import NoAnswerError, NoServerError, OperatorClient
from toque.callbacks.callback import IntakeCredential
from toque.calls.lines import LineBook
from toque.calls.model import CallIdentity, Signal, SignalKind
from toque.calls.tracker import CallTracker
from toque.errors import SettingsError
from toque.server import running
from toque.settings import Address, Settings, load_settings
from toque.sources.link import CONNECTED
from toque.tracing import MAX_WATCHERS, Tracing
from toque.web.operator import mint_operator_token


def settings_in(folder: Path, **more: Any) -> Settings:
    given = {"store": f"sqlite://{folder}/toque.db", "http": "127.0.0.1:0", "hep": "127.0.0.1:0", **more}
    return load_settings(None, {}, given)


def at_port(settings: Settings, port: int, host: str = "127.0.0.1") -> Settings:
    object.__setattr__(settings, "http", Address(host, port))
    return settings


async def test_over_http_and_with_another_stores_key(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with running(settings) as server:
        for host in ("127.0.0.1", "0.0.0.0"):
            there = OperatorClient(at_port(settings_in(tmp_path), server.http_port, host), await server.store.token_key())
            state = await asyncio.to_thread(there.state)
            assert [source["state"] for source in state["sources"]] == ["listening"]
            assert state["store"]["problem"] is None
            assert await asyncio.to_thread(lambda one=there: one.calls(q="nobody")) == []
        stranger = OperatorClient(at_port(settings_in(tmp_path), server.http_port), b"x" * 32)
        with pytest.raises(NoAnswerError, match="another store"):
            await asyncio.to_thread(stranger.state)
        assert (await asyncio.to_thread(stranger.health))["status"] == "ok"


async def test_whose_credential_was_removed_is_no_source_any_more(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as server:
        client = OperatorClient(at_port(settings_in(tmp_path), server.http_port), await server.store.token_key())

        async def names() -> list[str]:
            await server.directory.refresh()
            return [source["name"] for source in (await asyncio.to_thread(client.state))["sources"]]

        await server.store.add_intake(IntakeCredential("dialer", "0" * 64, datetime.now(UTC)))
        assert await names() == ["hep", "http:dialer"]
        await server.store.remove_intake("dialer")
        assert await names() == ["hep"]


async def test_a_watcher_that_does_not_read_holds_nothing_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(settings_in(tmp_path)) as server:
        token = mint_operator_token(await server.store.token_key(), datetime.now(UTC))
        stuck = socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", server.http_port))
        stuck.sendall(f"GET /operator/trace HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        async with asyncio.timeout(30):
            while not server.tracing.record.followers:
                await asyncio.sleep(0.01)
            await flood(server.tracing)
    stuck.close()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_of_many_who_come_at_once_so_many_may_watch_and_no_more(tmp_path: Path) -> None:
    async with running(settings_in(tmp_path)) as server:
        token = mint_operator_token(await server.store.token_key(), datetime.now(UTC))
        request = f"GET /operator/trace HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        streams = [await asyncio.open_connection("127.0.0.1", server.http_port) for _ in range(3 * MAX_WATCHERS)]
        for _, writer in streams:
            writer.write(request)
        async with asyncio.timeout(30):
            codes = Counter([(await reader.readuntil(b"\r\n")).split()[1] for reader, _ in streams])
            watching = len(server.tracing.record.followers)
            for _, writer in streams:
                writer.close()
                await writer.wait_closed()
            while server.tracing.record.followers:
                await asyncio.sleep(0.01)
        assert codes == {b"200": MAX_WATCHERS, b"429": 2 * MAX_WATCHERS}
        assert watching == MAX_WATCHERS


async def flood(tracing: Tracing) -> None:
    """Calls begin until nothing of the watcher's queue goes any more: all buffers on the way are full."""
    tracker = CallTracker(LineBook())
    tracker.observer = tracing.onlooker("pbx")
    [watcher], number, now = tracing._watchers, 0, datetime.now(UTC)
    while not watcher.has_more:
        watcher.dropped = 0
        while not watcher.dropped:
            number += 1
            tracker.feed(Signal(CallIdentity("pbx", "x" * 2000 + str(number)), SignalKind.BEGAN, now), now)
        for _ in range(100):
            if not watcher.has_more:
                break
            await asyncio.sleep(0.01)


async def test_over_https_the_certificate_itself_is_trusted(tmp_path: Path) -> None:
    authority = trustme.CA()
    shown, other = authority.issue_cert("toque.example.com"), authority.issue_cert("toque.example.com")
    for name, certificate in (("shown", shown), ("other", other)):
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    pem = {
        name: {"tls_certificate": f"{tmp_path}/{name}.pem", "tls_key": f"{tmp_path}/{name}.key"} for name in ("shown", "other")
    }
    async with running(settings_in(tmp_path, **pem["shown"])) as server:
        key = await server.store.token_key()
        known = OperatorClient(at_port(settings_in(tmp_path, **pem["shown"]), server.http_port), key)
        assert (await asyncio.to_thread(known.state))["version"]
        impostor = OperatorClient(at_port(settings_in(tmp_path, **pem["other"]), server.http_port), key)
        with pytest.raises(NoAnswerError, match="no TLS that can be trusted"):
            await asyncio.to_thread(impostor.state)


async def test_nobody_and_somebody_else(tmp_path: Path) -> None:
    with pytest.raises(NoServerError, match="nobody answers"):
        await asyncio.to_thread(OperatorClient(at_port(settings_in(tmp_path), 1), b"").state)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(replies.pop(0))
        writer.close()

    replies = [
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n<>",
        b"",
    ]
    texts = ["stopped answering", "no toque server of this version", "cannot be read", "stopped answering"]
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        client = OperatorClient(at_port(settings_in(tmp_path), server.sockets[0].getsockname()[1]), b"")
        for text in texts:
            with pytest.raises(NoAnswerError, match=text):
                await asyncio.to_thread(client.state)


async def test_somebody_else_who_answers_with_json(tmp_path: Path) -> None:
    bodies = (b"{}", b"null", b"[[]]", b'"ok"', b'{"version": "9", "pid": 1}')
    said: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(said[-1]), said[-1]))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        client = OperatorClient(at_port(settings_in(tmp_path), server.sockets[0].getsockname()[1]), b"")
        for body in bodies:
            said.append(body)
            for ask in (client.state, client.health, lambda: client.calls(q="1"), lambda: list(client.trace())):
                with pytest.raises(NoAnswerError, match="no toque server of this version"):
                    await asyncio.to_thread(ask)


async def test_a_certificate_that_is_none_is_the_settings_fault(tmp_path: Path) -> None:
    for name in ("bad.pem", "bad.key"):
        (tmp_path / name).write_text("no certificate\n")
    settings = settings_in(tmp_path, tls_certificate=f"{tmp_path}/bad.pem", tls_key=f"{tmp_path}/bad.key")
    with pytest.raises(SettingsError, match=r"tls_certificate.*cannot be used"):
        OperatorClient(settings, b"").state()


def test_a_link_knows_for_how_long_it_has_been_connected() -> None:
    from toque.sources.link import Link

    link = Link("pbx", None, None, is_full=bool)  # type: ignore[arg-type]
    assert link.connected_for_s is None
    link._note_connected()
    assert link.state == CONNECTED
    assert timedelta() <= timedelta(seconds=link.connected_for_s or 0.0) < timedelta(minutes=1)
