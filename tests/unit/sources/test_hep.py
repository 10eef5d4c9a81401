"""The HEP listener with real sockets, on uvloop and on asyncio's own loop: what is taken, refused, dropped or made to wait.

Every scenario fails as well on descriptors, tasks or errors that it leaves behind.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, ip_network
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

import toque.sources.hep
from toque.calls.hep_packet import HepPacket, render_hep
from toque.errors import InputError, SettingsError
from toque.settings import HepSource
from toque.sources.hep import HepListener

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
AT = datetime(2026, 3, 2, 12, 0, 0, tzinfo=UTC)
TIME_FOR_A_SCENARIO_S = 30


def on_both_loops(scenario: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(scenario)
    def test(new_loop: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        _warm_up(new_loop)
        descriptors = set(os.listdir("/proc/self/fd"))
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_checked(scenario(**fixtures)))
        assert set(os.listdir("/proc/self/fd")) == descriptors

    signature = inspect.signature(scenario)
    new_loop = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    test.__signature__ = signature.replace(parameters=[new_loop, *signature.parameters.values()])  # type: ignore[attr-defined]
    return pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)(test)


@functools.cache
def _warm_up(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """What a process opens once for all its loops is no leak."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.sleep(0))


async def _checked(scenario: Awaitable[None]) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with asyncio.timeout(TIME_FOR_A_SCENARIO_S):
        await scenario
        while asyncio.all_tasks() != {asyncio.current_task()}:
            await asyncio.sleep(0)
    assert complaints == []


def hep(payload: bytes = b"SIP", key: bytes = b"") -> bytes:
    place = IPv4Address("192.0.2.1"), 5060
    return render_hep(payload, at=AT, source=place, destination=place, auth_key=key)


@dataclass
class Post:
    """A listener and what it gave."""

    listener: HepListener
    taken: list[bytes] = field(default_factory=list)
    is_full: bool = False
    fails_with: Exception | None = None

    @property
    def port(self) -> int:
        return self.listener.port

    @property
    def counts(self) -> tuple[int, int, int]:
        counters = self.listener.counters
        return counters.packets, counters.refused, counters.dropped

    def take(self, packet: HepPacket) -> None:
        if self.fails_with is not None:
            raise self.fails_with
        self.taken.append(packet.payload)

    def send(self, *packets: bytes, address: str = "127.0.0.1", sender: str | None = None) -> None:
        """Datagrams from a socket of their own."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as udp:
            if sender is not None:
                udp.bind((sender, 0))
            for packet in packets:
                udp.sendto(packet, (address, self.port))

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await asyncio.sleep(0)

    async def has_taken(self, count: int) -> None:
        await self.until(lambda: len(self.taken) >= count)

    @asynccontextmanager
    async def connected(self, address: str = "127.0.0.1", sender: str | None = None) -> AsyncIterator[Stream]:
        local = None if sender is None else (sender, 0)
        reader, writer = await asyncio.open_connection(address, self.port, local_addr=local)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            yield Stream(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@dataclass
class Stream:
    """The switch's end of a TCP connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, *packets: bytes) -> None:
        self.writer.write(b"".join(packets))

    async def is_closed_by_peer(self) -> None:
        with suppress(ConnectionResetError):
            assert await self.reader.read() == b""


@asynccontextmanager
async def listening(host: str = "127.0.0.1", *, key: bytes = b"", allow_from: tuple[str, ...] = ()) -> AsyncIterator[Post]:
    settings = HepSource("hep", host, 0, key, tuple(map(ip_network, allow_from)))
    post = Post(HepListener(settings, lambda packet: Post.take(post, packet), is_full=lambda: post.is_full))
    await post.listener.open()
    try:
        yield post
    finally:
        await post.listener.close()
        await asyncio.sleep(0)  # for the transports to say that they are closed
        await asyncio.sleep(0)


# UDP


@on_both_loops
async def test_datagrams_of_many_senders() -> None:
    async with listening() as post:
        for sender in range(20):
            post.send(*(hep(b"%d.%d" % (sender, number)) for number in range(50)))
        await post.has_taken(1000)
        assert sorted(post.taken) == sorted(b"%d.%d" % (sender, number) for sender in range(20) for number in range(50))
        assert post.counts == (1000, 0, 0)


@on_both_loops
async def test_the_largest_datagram() -> None:
    async with listening() as post:
        largest = hep(b"x" * (65_507 - len(hep(b""))))
        post.send(largest)
        await post.has_taken(1)
        assert len(largest) == 65_507


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"x",
        b"GET / HTTP/1.1\r\n\r\n",
        b"HEP3",
        b"HEP3\x00\x05",
        b"HEP3\xff\xff" + bytes(100),
        hep()[:-1],
        b"\x01\x10",
        random.Random(7).randbytes(1000),
    ],
    ids=lambda garbage: repr(garbage[:8]),
)
@on_both_loops
async def test_garbage_is_counted_and_harms_nobody(garbage: bytes) -> None:
    async with listening() as post:
        with capture_logs() as logs:
            post.send(garbage, hep())
            await post.has_taken(1)
        assert post.counts == (2, 1, 0)
        assert [(log["event"], log["sender"]) for log in logs] == [("hep.refused", "127.0.0.1")]


@on_both_loops
async def test_a_payload_that_cannot_be_understood_is_counted() -> None:
    async with listening() as post:
        post.fails_with = InputError("no SIP")
        post.send(hep())
        await post.until(lambda: post.listener.counters.refused == 1)


@on_both_loops
async def test_a_bug_of_ours_costs_the_packet_that_meets_it_and_no_other() -> None:
    async with listening() as post:
        post.fails_with = ZeroDivisionError()
        with capture_logs() as logs:
            async with post.connected() as stream:
                post.send(hep(b"1"))
                stream.send(hep(b"2"))
                await post.until(lambda: post.listener.counters.refused == 2)
                post.fails_with = None
                post.send(hep(b"3"))
                await post.has_taken(1)
                stream.send(hep(b"4"))
                await post.has_taken(2)
        assert [(log["event"], log["exc_info"]) for log in logs] == [("hep.failed", True)] * 2


@on_both_loops
async def test_a_flood_of_garbage_floods_no_log_and_hides_no_loss() -> None:
    async with listening() as post:
        with capture_logs() as logs:
            post.send(*[b"garbage"] * 100)
            await post.until(lambda: post.listener.counters.refused == 100)
            assert len(logs) == 20
            post.is_full = True
            post.send(hep())
            await post.until(lambda: post.listener.counters.dropped == 1)
        assert (logs[-1]["event"], logs[-1]["log_level"], logs[-1]["dropped"]) == ("hep.dropped", "error", 1)


@on_both_loops
async def test_datagrams_that_find_no_room_are_dropped_and_counted() -> None:
    async with listening() as post:
        post.is_full = True
        post.send(*[hep()] * 30)
        with capture_logs() as logs:
            await post.until(lambda: post.listener.counters.dropped == 30)
        assert {log["event"] for log in logs} == {"hep.dropped"}
        assert post.counts == (0, 0, 30)
        post.is_full = False
        post.send(hep())
        await post.has_taken(1)


# TCP


@on_both_loops
async def test_packets_split_at_every_byte() -> None:
    first, second = hep(b"first"), hep(b"the second")
    both = first + second
    async with listening() as post, post.connected() as stream:
        for place in range(1, len(both)):
            post.taken.clear()
            stream.send(both[:place])
            (connection,) = post.listener._streams or await accepted(post)
            expected = (0, place) if place < len(first) else (1, place - len(first))
            await post.until(lambda it=connection, expected=expected: (len(post.taken), len(it._buffer)) == expected)
            stream.send(both[place:])
            await post.has_taken(2)
            assert post.taken == [b"first", b"the second"]
        assert post.counts[1:] == (0, 0)


async def accepted(post: Post) -> set[Any]:
    await post.until(lambda: bool(post.listener._streams))
    return post.listener._streams


@on_both_loops
async def test_packets_that_come_byte_by_byte() -> None:
    async with listening() as post, post.connected() as stream:
        for byte in hep(b"1") + hep(b"2"):
            stream.send(bytes([byte]))
            await stream.writer.drain()
            await asyncio.sleep(0)
        await post.has_taken(2)
        assert post.taken == [b"1", b"2"]


@on_both_loops
async def test_many_packets_in_one_segment() -> None:
    async with listening() as post, post.connected() as stream:
        stream.send(*(hep(b"%d" % number) for number in range(5000)))
        await post.has_taken(5000)
        assert post.taken == [b"%d" % number for number in range(5000)]


@on_both_loops
async def test_the_longest_packet() -> None:
    longest = hep(b"x" * (65_535 - len(hep(b""))))
    assert len(longest) == 65_535
    async with listening() as post, post.connected() as stream:
        stream.send(longest, hep(b"y"))
        await post.has_taken(2)


@on_both_loops
async def test_many_connections() -> None:
    async with listening() as post:

        async def talk(sender: int) -> None:
            async with post.connected() as stream:
                for number in range(20):
                    stream.send(hep(b"%d.%d" % (sender, number)))
                    await stream.writer.drain()
                await post.until(lambda: sum(text.startswith(b"%d." % sender) for text in post.taken) == 20)

        await asyncio.gather(*map(talk, range(50)))
        for sender in range(50):
            mine = [text for text in post.taken if text.startswith(b"%d." % sender)]
            assert mine == [b"%d.%d" % (sender, number) for number in range(20)]
        await post.until(lambda: not post.listener._streams)


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"HEP3\x00\x05", b"HEP3\x00\x00", b"\x01\x10\x02\x00\x00\x00", b"hep3\x00\x10", bytes(6)],
    ids=repr,
)
@on_both_loops
async def test_garbage_ends_the_connection_and_is_counted_once(garbage: bytes) -> None:
    async with listening() as post:
        with capture_logs() as logs:
            async with post.connected() as stream:
                stream.send(hep(b"before"), garbage, hep(b"after"))
                await stream.is_closed_by_peer()
            await post.until(lambda: not post.listener._streams)
        assert post.taken == [b"before"]
        assert post.counts == (1, 1, 0)
        assert [log["event"] for log in logs] == ["hep.refused"]


@on_both_loops
async def test_a_packet_that_is_wrong_inside_its_frame_ends_no_connection() -> None:
    wrong = b"HEP3" + struct.pack("!H", 12) + b"\x00\x00\x00\x0f\x00\x06"
    without_payload = b"HEP3" + struct.pack("!H", 6)
    async with listening() as post, post.connected() as stream:
        stream.send(without_payload, wrong, hep(b"after"))
        await post.until(lambda: b"after" in post.taken)
        assert post.counts[0] == 3
        assert post.counts[1] >= 1


@pytest.mark.parametrize("length", [1, 5, 6, 7, len(hep()) - 1])
@on_both_loops
async def test_half_a_packet_at_the_end_is_counted(length: int) -> None:
    async with listening() as post:
        with capture_logs() as logs:
            async with post.connected() as stream:
                stream.send(hep(b"whole"), hep()[:length])
                stream.writer.write_eof()
                await stream.is_closed_by_peer()
            await post.until(lambda: not post.listener._streams)
        assert post.taken == [b"whole"]
        assert post.counts == (1, 1, 0)
        assert f"{length} bytes lost" in logs[0]["problem"]


@on_both_loops
async def test_a_connection_that_ends_after_whole_packets_is_no_fault() -> None:
    async with listening() as post:
        async with post.connected() as stream:
            stream.send(hep())
            await post.has_taken(1)
        await post.until(lambda: not post.listener._streams)
        assert post.counts == (1, 0, 0)


@on_both_loops
async def test_senders_wait_while_there_is_no_room_and_nothing_is_lost() -> None:
    packets = [hep(b"%06d" % number + bytes(1000)) for number in range(20_000)]  # more than sockets hold
    async with listening() as post, post.connected() as stream:
        post.is_full = True
        stream.send(*packets)
        sending = asyncio.create_task(stream.writer.drain())
        (connection,) = await accepted(post)
        await post.until(lambda: connection._pause is not None)
        first_pause = connection._pause
        await post.until(lambda: connection._pause not in (None, first_pause))  # it looked again, in vain
        assert post.taken == []
        assert not sending.done()
        assert len(connection._buffer) < 1_000_000
        post.is_full = False
        await post.has_taken(len(packets))
        await sending
        assert [text[:6] for text in post.taken] == [b"%06d" % number for number in range(20_000)]
        assert post.counts == (20_000, 0, 0)


@on_both_loops
async def test_a_pause_in_the_middle_of_a_segment_keeps_the_order() -> None:
    async with listening() as post, post.connected() as stream:
        take = post.take

        def take_and_be_full(packet: HepPacket) -> None:
            take(packet)
            post.is_full = len(post.taken) % 3 == 0
            if post.is_full:
                asyncio.get_running_loop().call_soon(setattr, post, "is_full", False)

        post.listener._on_packet = take_and_be_full
        stream.send(*(hep(b"%d" % number) for number in range(10)))
        await post.has_taken(10)
        assert post.taken == [b"%d" % number for number in range(10)]


@on_both_loops
async def test_what_was_received_before_the_close_is_taken_in_though_it_waited() -> None:
    async with listening() as post, post.connected() as stream:
        post.is_full = True
        stream.send(hep(b"1"), hep(b"2"), hep()[:-1])
        (connection,) = await accepted(post)
        await post.until(lambda: connection._pause is not None and len(connection._buffer) > 2 * len(hep(b"1")))
        await post.listener.close()
        assert post.taken == [b"1", b"2"]
        await post.until(lambda: post.listener.counters.refused == 1)


# Whom to believe


@on_both_loops
async def test_the_key() -> None:
    async with listening(key=b"secret") as post:
        with capture_logs() as logs:
            post.send(hep(b"1"), hep(b"2", b"wrong"), hep(b"3", b"secre"), hep(b"4", b"secret "), hep(b"5", b"secret"))
            await post.has_taken(1)
            async with post.connected() as stream:
                stream.send(hep(b"6"), hep(b"7", b"wrong"), hep(b"8", b"secret"))
                await post.has_taken(2)
        assert post.taken == [b"5", b"8"]
        assert post.counts == (8, 6, 0)
        assert {log["problem"] for log in logs} == {"wrong or missing key"}
        assert "secret" not in str([log["problem"] for log in logs])


@on_both_loops
async def test_a_key_where_none_is_asked_for_does_no_harm() -> None:
    async with listening() as post:
        post.send(hep(b"1", b"whatever"))
        await post.has_taken(1)


@pytest.mark.parametrize(
    ("allow_from", "sender", "is_allowed"),
    [
        ((), "198.51.100.1", True),
        (("192.0.2.0/24",), "192.0.2.1", True),
        (("192.0.2.0/24",), "192.0.3.1", False),
        (("192.0.2.0/24", "198.51.100.7/32"), "198.51.100.7", True),
        (("192.0.2.0/24",), "::ffff:192.0.2.1", True),
        (("192.0.2.0/24",), "::ffff:192.0.3.1", False),
        (("::ffff:192.0.2.0/120",), "::ffff:192.0.2.1", True),
        (("2001:db8::/32",), "2001:db8::1", True),
        (("2001:db8::/32",), "2001:db9::1", False),
        (("fe80::/10",), "fe80::1%eth0", True),
        (("192.0.2.0/24",), "2001:db8::1", False),
        (("0.0.0.0/0",), "2001:db8::1", False),
        (("0.0.0.0/0",), "?", False),
    ],
)
def test_allow_from(allow_from: tuple[str, ...], sender: str, is_allowed: bool) -> None:
    listener = HepListener(HepSource("hep", "0.0.0.0", 0, b"", tuple(map(ip_network, allow_from))), lambda _: None)
    assert listener.is_allowed(sender) is is_allowed


@on_both_loops
async def test_senders_that_are_not_allowed() -> None:
    async with listening(allow_from=("127.0.0.2/32",)) as post:
        with capture_logs() as logs:
            post.send(hep(b"1"))
            await post.until(lambda: post.listener.counters.refused == 1)
            post.send(hep(b"2"), sender="127.0.0.2")
            await post.has_taken(1)
            async with post.connected() as stream:
                stream.send(hep(b"3"))
                await stream.is_closed_by_peer()
            async with post.connected(sender="127.0.0.2") as stream:
                stream.send(hep(b"4"))
                await post.has_taken(2)
        assert post.taken == [b"2", b"4"]
        assert post.listener.counters.refused == 2
        assert {(log["sender"], log["problem"]) for log in logs} == {("127.0.0.1", "sender not in allow_from")}


@on_both_loops
async def test_ipv4_senders_at_an_ipv6_address() -> None:
    async with listening("::", allow_from=("127.0.0.1/32", "::1/128")) as post:
        post.send(hep(b"1"))
        post.send(hep(b"2"), address="::1")
        await post.has_taken(2)
        async with post.connected() as stream:
            stream.send(hep(b"3"))
            await post.has_taken(3)
        async with post.connected("::1") as stream:
            stream.send(hep(b"4"))
            await post.has_taken(4)
        assert post.counts == (4, 0, 0)


# The address


@on_both_loops
async def test_every_address_of_the_name_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given_addresses(monkeypatch, "::1", "127.0.0.1")
    async with listening("localhost") as post:
        post.send(hep(b"1"), address="127.0.0.1")
        post.send(hep(b"2"), address="::1")
        await post.has_taken(2)
        for address in ("127.0.0.1", "::1"):
            async with post.connected(address) as stream:
                stream.send(hep(b"3"))
                await post.has_taken(3)
                post.taken.pop()


@on_both_loops
async def test_an_address_of_the_name_that_is_not_here_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    given_addresses(monkeypatch, "192.0.2.55", "127.0.0.1")
    async with listening("switch.example") as post:
        post.send(hep(b"1"))
        await post.has_taken(1)


@on_both_loops
async def test_an_address_that_is_not_here_at_all() -> None:
    with pytest.raises(SettingsError, match=r"cannot listen on 192\.0\.2\.55:0: Cannot assign requested address"):
        async with listening("192.0.2.55"):
            pass


def given_addresses(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def getaddrinfo(host: str, port: int, **hints: Any) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(toque.sources.hep.socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "x" * 300])
@on_both_loops
async def test_a_name_that_cannot_be_looked_up(host: str) -> None:
    with pytest.raises(SettingsError, match="cannot listen on"):
        async with listening(host):
            pass


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@on_both_loops
async def test_a_port_that_is_in_use(kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        port = other.getsockname()[1]
        listener = HepListener(HepSource("hep", "127.0.0.1", port), lambda _: None)
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use") as caught:
            await listener.open()
        assert caught.value.option == "hep"
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@on_both_loops
async def test_any_free_port_is_one_that_is_free_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    bound, refusals = toque.sources.hep._bound, 3

    def refuse_at_first(family: int, kind: int, place: tuple[Any, ...]) -> socket.socket:
        nonlocal refusals
        if kind == socket.SOCK_STREAM and refusals:
            refusals -= 1
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return bound(family, kind, place)

    monkeypatch.setattr(toque.sources.hep, "_bound", refuse_at_first)
    async with listening() as post:
        post.send(hep())
        await post.has_taken(1)
        assert refusals == 0


# Closing


@on_both_loops
async def test_close_is_safe_to_repeat_and_ends_connections() -> None:
    async with listening() as post, post.connected() as stream:
        stream.send(hep())
        await post.has_taken(1)
        port = post.port
        await post.listener.close()
        await post.listener.close()
        await stream.is_closed_by_peer()
        await post.until(lambda: not post.listener._streams)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)


@on_both_loops
async def test_close_of_what_was_never_open() -> None:
    await HepListener(HepSource("hep", "127.0.0.1", 0), lambda _: None).close()


@on_both_loops
async def test_the_same_listener_can_be_opened_again() -> None:
    async with listening() as post:
        await post.listener.close()
        await post.listener.open()
        post.send(hep())
        await post.has_taken(1)


@on_both_loops
async def test_dead_peers_are_found() -> None:
    async with listening() as post, post.connected():
        (connection,) = await accepted(post)
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
