"""Posts through an egress proxy: a small one, over real sockets, that does what CONNECT asks for."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import pytest
import trustme
from tests.support.connect_proxy import ESTABLISHED, SILENCE, ConnectProxy
from tests.support.posting import LOOPBACK, SHORT_S, Sender, black_hole, dialled, names, on_both_loops, showing, trusting
from tests.support.scripted_receiver import ScriptedReceiver, answer, close

from toque.callbacks.url import parse_url
from toque.sending.guard import Guard
from toque.sending.transport import Answered, Forbidden, Outcome, Unreachable, Unsent
from toque.sending.tunnel import MAX_PROXY_HEAD_BYTES

ELSEWHERE = Guard([ip_network("127.0.0.0/8")])


@asynccontextmanager
async def proxied(proxy: ConnectProxy, *, user: str = "", **options: Any) -> Any:
    async with proxy, Sender(proxy=parse_url(proxy.url(user)), **options) as sender:
        yield sender


@on_both_loops
async def test_a_post_through_the_proxy_and_a_connection_that_is_kept() -> None:
    async with ScriptedReceiver() as receiver, proxied(proxy := ConnectProxy(), resolve=names(["127.0.0.1"])) as sender:
        for _ in range(3):
            assert await sender.post(receiver.url("/a?b", host="receiver.example")) == Answered(204)
        assert proxy.targets == [f"127.0.0.1:{receiver.port}"], "the address that was checked, not the name"
        assert [request.target for request in receiver.requests] == ["/a?b"] * 3
        assert receiver.requests[0].headers["host"] == f"receiver.example:{receiver.port}"
        assert b"Authorization" not in proxy.heads[0]


@on_both_loops
async def test_an_ipv6_target() -> None:
    async with ScriptedReceiver(host="::1") as receiver, proxied(proxy := ConnectProxy()) as sender:
        assert await sender.post(receiver.url()) == Answered(204)
        assert proxy.targets == [f"[::1]:{receiver.port}"]
        assert proxy.heads[0].startswith(b"CONNECT [::1]:%d HTTP/1.1\r\nHost: [::1]:%d\r\n" % (receiver.port, receiver.port))


@on_both_loops
async def test_credentials() -> None:
    proxy = ConnectProxy(credentials="operator:pass word")
    async with ScriptedReceiver() as receiver, proxied(proxy, user="operator:pass%20word") as sender:
        assert await sender.post(receiver.url()) == Answered(204)


@pytest.mark.parametrize("user", ["", "operator:wrong"])
@on_both_loops
async def test_credentials_that_the_proxy_does_not_take_are_our_fault(user: str) -> None:
    async with ScriptedReceiver() as receiver, proxied(ConnectProxy(credentials="operator:right"), user=user) as sender:
        outcome = await sender.post(receiver.url())
        assert outcome == Unsent("proxy: 407, it asks for credentials")
        assert receiver.connections == []


@on_both_loops
async def test_the_proxy_by_name_at_a_private_address() -> None:
    """The operator's own word: the guard, which would forbid it, is not asked about the proxy, but about the target."""
    async with ConnectProxy() as proxy, ScriptedReceiver(host="127.0.0.2") as receiver:
        at = parse_url(f"http://proxy.internal:{proxy.port}")
        async with Sender(Guard([ip_network("127.0.0.2/32")]), proxy=at, resolve=names(["127.0.0.1"])) as sender:
            assert await sender.post(receiver.url()) == Answered(204)
            assert await sender.post("http://127.0.0.1:9/") == Forbidden("loopback address")
            assert await sender.post("http://name.example/") == Forbidden("loopback address")
            assert len(proxy.targets) == 1


# TLS inside the tunnel.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@on_both_loops
async def test_tls_is_for_the_host_of_the_url(authority: trustme.CA) -> None:
    shown = showing(authority.issue_cert("secure.example"))
    options = {"ssl_context": trusting(authority), "resolve": names(["127.0.0.1"])}
    async with ScriptedReceiver(ssl_context=shown) as receiver, proxied(proxy := ConnectProxy(), **options) as sender:
        for _ in range(2):
            assert await sender.post(receiver.url(host="secure.example")) == Answered(204)
        other = await sender.post(receiver.url(host="other.example"))
        assert other == Unreachable("certificate: hostname mismatch")
        assert proxy.targets == [f"127.0.0.1:{receiver.port}"] * 2


@on_both_loops
async def test_tls_with_a_target_that_has_none() -> None:
    async with ScriptedReceiver(greeting=close()) as receiver, proxied(ConnectProxy()) as sender:
        outcome = await sender.post(f"https://127.0.0.1:{receiver.port}/")
        assert outcome in {Unreachable("connection reset"), Unreachable("tls: handshake failed")}


# What the proxy says, and by whose fault it is.

REFUSALS: dict[str, tuple[bytes, Outcome]] = {
    "forbidden": (b"HTTP/1.1 403 Forbidden\r\n\r\nby policy", Unreachable("proxy: 403")),
    "not found": (b"HTTP/1.1 404 Not Found\r\n\r\n", Unreachable("proxy: 404")),
    "internal": (b"HTTP/1.0 500 Unable to connect\r\n\r\n", Unreachable("proxy: 500")),
    "bad gateway": (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\nno", Unreachable("proxy: 502")),
    "unavailable": (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Unreachable("proxy: 503")),
    "time-out": (b"HTTP/1.1 504\r\n\r\n", Unreachable("proxy: 504")),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n", Unreachable("proxy: 302")),
    "credentials": (b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n", Unsent("proxy: 407, it asks for credentials")),
    "no CONNECT": (b"HTTP/1.1 405 Method Not Allowed\r\n\r\n", Unsent("proxy: 405, it does not know CONNECT")),
    "not implemented": (b"HTTP/1.1 501 Not Implemented\r\n\r\n", Unsent("proxy: 501, it does not know CONNECT")),
    "too many": (b"HTTP/1.1 429 Too Many Requests\r\n\r\n", Unsent("proxy: 429, it has too much to do")),
    "interim, then no": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 502 No\r\n\r\n", Unreachable("proxy: 502")),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Unsent("proxy: answer is not HTTP")),
    "no answer": (b"HTTP/1.1 20", Unsent("proxy: connection closed without an answer")),
    "head without end": (
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2 * MAX_PROXY_HEAD_BYTES,
        Unsent("proxy: head of the answer too long"),
    ),
    "more than an answer": (ESTABLISHED + b"220 mail.example\r\n", Unreachable("proxy: more than an answer")),
}


@pytest.mark.parametrize(("said", "outcome"), REFUSALS.values(), ids=REFUSALS)
@on_both_loops
async def test_refusals(said: bytes, outcome: Outcome) -> None:
    async with ScriptedReceiver() as receiver, proxied(ConnectProxy(answers=[said])) as sender:
        assert await sender.post(receiver.url()) == outcome
        assert await sender.post(receiver.url()) == Answered(204), "the next attempt is a new one"


@on_both_loops
async def test_an_interim_answer_and_a_late_end_of_the_head() -> None:
    established = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.0 201 Created\r\nVia: x\r\n\r\n"
    async with ScriptedReceiver() as receiver, proxied(ConnectProxy(established=established)) as sender:
        assert await sender.post(receiver.url()) == Answered(204)


@on_both_loops
async def test_a_target_that_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with proxied(ConnectProxy()) as sender:
        assert await sender.post(f"http://127.0.0.1:{port}/") == Unreachable("proxy: 503")


@on_both_loops
async def test_a_target_that_does_not_answer_the_proxy() -> None:
    proxy = ConnectProxy(answers=[SILENCE])
    async with proxied(proxy, connect_timeout_s=SHORT_S) as sender:
        assert await sender.post("http://127.0.0.1:9/") == Unreachable("proxy: connect timed out")


@on_both_loops
async def test_another_address_when_the_proxy_cannot_reach_the_first() -> None:
    proxy = ConnectProxy(answers=[b"HTTP/1.1 504 Gateway Timeout\r\n\r\n"])
    async with (
        ScriptedReceiver(host="127.0.0.3") as receiver,
        proxied(proxy, guard=ELSEWHERE, resolve=names(["127.0.0.2", "127.0.0.3"])) as sender,
    ):
        assert await sender.post(receiver.url(host="two.example")) == Answered(204)
        assert proxy.targets == [f"127.0.0.2:{receiver.port}", f"127.0.0.3:{receiver.port}"]


# A proxy that is not there.


@on_both_loops
async def test_no_proxy_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    addresses = dialled(asyncio.get_running_loop())
    async with ScriptedReceiver(host="127.0.0.2") as receiver:
        async with Sender(ELSEWHERE, proxy=parse_url(f"http://127.0.0.1:{port}")) as sender:
            assert await sender.post(receiver.url()) == Unsent("proxy: connection refused")
        assert (addresses, receiver.connections) == (["127.0.0.1"], []), "never past the proxy"


@on_both_loops
async def test_a_proxy_that_does_not_answer() -> None:
    with black_hole() as port:
        proxy = parse_url(f"http://127.0.0.1:{port}")
        async with Sender(LOOPBACK, proxy=proxy, connect_timeout_s=SHORT_S) as sender:
            assert await sender.post("http://127.0.0.1:9/") == Unsent("proxy: connect timed out")
        async with Sender(LOOPBACK, proxy=proxy, attempt_timeout_s=SHORT_S) as sender:
            assert await sender.post("http://127.0.0.1:9/") == Unsent("proxy: connect timed out")


@on_both_loops
async def test_a_proxy_whose_name_is_not_known() -> None:
    proxy = parse_url("http://proxy.example:3128")
    async with Sender(proxy=proxy, resolve=names(socket.gaierror(socket.EAI_NONAME, "no"))) as sender:
        assert await sender.post("http://127.0.0.1:9/") == Unsent("proxy: name not found")


@on_both_loops
async def test_a_proxy_that_moves_is_found() -> None:
    async with ConnectProxy() as proxy, ScriptedReceiver() as receiver:
        at = parse_url(f"http://proxy.example:{proxy.port}")
        async with Sender(proxy=at, resolve=names(["127.0.0.2"], ["127.0.0.1"])) as sender:
            assert await sender.post(receiver.url()) == Unsent("proxy: connection refused")
            assert await sender.post(receiver.url()) == Answered(204)


# Kept tunnels, and the end.


@on_both_loops
async def test_a_kept_tunnel_that_ended_is_replaced_at_once() -> None:
    async with ScriptedReceiver(answer(204), close(), answer(201)) as receiver, proxied(proxy := ConnectProxy()) as sender:
        assert await sender.post(receiver.url()) == Answered(204)
        assert await sender.post(receiver.url()) == Answered(201)
        assert len(proxy.targets) == 2


@pytest.mark.parametrize("turns", range(0, 24, 2))
@on_both_loops
async def test_close_at_any_moment_of_a_dial(turns: int) -> None:
    async with ScriptedReceiver() as receiver, proxied(ConnectProxy()) as sender:
        attempts = [sender.start(receiver.url()) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await sender.transport.close()
        assert {attempt.result() for attempt in attempts} <= {Answered(204), Unsent("closing")}
        assert sender.transport._keeper.pools == {}
