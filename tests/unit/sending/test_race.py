"""Happy eyeballs over real sockets: who answers first serves, and nothing is left of the others."""

from __future__ import annotations

import asyncio
import errno
import socket
from ipaddress import ip_address

import pytest
from tests.support.posting import black_hole, dialled, on_both_loops
from tests.support.scripted_receiver import ScriptedReceiver

from toque.sending import race
from toque.sending.race import blamed, connect_first

FIRST, SECOND, THIRD = (ip_address(f"127.0.0.{last}") for last in (1, 2, 3))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@on_both_loops
async def test_the_only_address() -> None:
    async with ScriptedReceiver() as receiver:
        sock, address = await connect_first([FIRST], receiver.port)
        with sock:
            assert (sock.getpeername(), address) == (("127.0.0.1", receiver.port), FIRST)


@on_both_loops
async def test_a_failure_gives_the_next_its_turn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "STAGGER_S", 3600)
    async with ScriptedReceiver(host="127.0.0.3") as receiver:
        sock, address = await connect_first([FIRST, SECOND, THIRD], receiver.port)
        with sock:
            assert (sock.getpeername()[0], address) == ("127.0.0.3", THIRD)


@on_both_loops
async def test_an_address_that_hangs_is_overtaken() -> None:
    with black_hole() as port, socket.create_server(("127.0.0.2", port)):
        sock, address = await connect_first([FIRST, SECOND], port)
        with sock:
            assert (sock.getpeername()[0], address) == ("127.0.0.2", SECOND)


@on_both_loops
async def test_an_address_that_answers_has_no_rival() -> None:
    addresses = dialled(asyncio.get_running_loop())
    async with ScriptedReceiver() as receiver:
        sock, _ = await connect_first([FIRST, SECOND], receiver.port)
        with sock:
            assert addresses == ["127.0.0.1"]


def answering_at_once(loop: asyncio.AbstractEventLoop) -> None:
    """Hand over the first connection that is made on this loop only together with the second."""
    sock_connect = loop.sock_connect
    connected: list[socket.socket] = []
    both = asyncio.Event()

    async def connect(sock: socket.socket, place: tuple[str, int]) -> None:
        await sock_connect(sock, place)
        connected.append(sock)
        if len(connected) == 2:
            both.set()
        await both.wait()

    loop.sock_connect = connect  # type: ignore[method-assign]


@on_both_loops
async def test_of_two_that_answer_at_once_one_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "STAGGER_S", 0)
    answering_at_once(asyncio.get_running_loop())
    async with ScriptedReceiver(host="0.0.0.0") as receiver:
        sock, address = await connect_first([FIRST, SECOND], receiver.port)
        with sock:
            assert sock.getpeername()[0] == str(address)
            await receiver.has_accepted(2)
            await receiver.has_closed(1)
        await receiver.has_closed(2)


@on_both_loops
async def test_none_of_them() -> None:
    with pytest.raises(ConnectionRefusedError):
        await connect_first([FIRST, SECOND], free_port())


@on_both_loops
async def test_giving_up_leaves_nothing() -> None:
    with black_hole() as port:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connect_first([FIRST, ip_address("::1")], port)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connect_first([FIRST], port)


def failing(loop: asyncio.AbstractEventLoop, **failures: int) -> None:
    """Let `sock_connect` fail on this loop with these error numbers, by family."""

    async def connect(sock: socket.socket, _: tuple[str, int]) -> None:
        raise OSError(failures[sock.family.name], "injected")

    loop.sock_connect = connect  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("failures", "told"),
    [
        ({"AF_INET": errno.ECONNREFUSED, "AF_INET6": errno.ENETUNREACH}, errno.ECONNREFUSED),
        ({"AF_INET": errno.ENETUNREACH, "AF_INET6": errno.ETIMEDOUT}, errno.ETIMEDOUT),
        ({"AF_INET": errno.ECONNREFUSED, "AF_INET6": errno.EHOSTUNREACH}, errno.ECONNREFUSED),
        ({"AF_INET": errno.ECONNREFUSED, "AF_INET6": errno.EMFILE}, errno.EMFILE),
        ({"AF_INET": errno.EADDRNOTAVAIL, "AF_INET6": errno.ECONNREFUSED}, errno.EADDRNOTAVAIL),
    ],
)
@on_both_loops
async def test_the_most_telling_failure_is_told(failures: dict[str, int], told: int) -> None:
    failing(asyncio.get_running_loop(), **failures)
    with pytest.raises(OSError) as caught:
        await connect_first([FIRST, ip_address("::1")], 9)
    assert caught.value.errno == told


def test_a_family_that_this_machine_has_not_is_no_missing_port() -> None:
    """Without IPv6 Linux says EADDRNOTAVAIL, as it does when all ports are in use, and that would be our own fault."""
    error = OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
    assert blamed(error, FIRST, 9) is error
    broadcast = ip_address("255.255.255.255")  # no datagram socket may be connected to it either
    assert blamed(error, broadcast, 9).errno == errno.ENETUNREACH
    assert blamed(refused := ConnectionRefusedError(errno.ECONNREFUSED, "no"), broadcast, 9) is refused
