"""Ways to make a server connect to where it must not: none leads anywhere.

    pytest -s tests/faults/test_ssrf.py -k table     # prints the table that docs/guarantees.md shows

Traps listen on one port at every address of this machine, IPv4 and IPv6; they must see no connection. Every address that is
dialled at all is written down as well, as most of the addresses here are not this machine's. The resolver is hostile: it
gives 127.0.0.1 for every name that it has no other answer for.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from tests.support.connect_proxy import ConnectProxy
from tests.support.posting import Sender, dialled, make_post, names, on_both_loops
from tests.support.scripted_receiver import ScriptedReceiver, answer

from toque.callbacks.url import UrlError, parse_url
from toque.sending.guard import Address, Guard, literal_address
from toque.sending.transport import Answered, Forbidden, Outcome, Unreachable

NO_URL = "no URL"
"""Refused when it is registered, and when it is read once more."""

LOOPBACK, PRIVATE, LINK_LOCAL = Forbidden("loopback address"), Forbidden("private address"), Forbidden("link-local address")
SHARED, UNSPECIFIED = Forbidden("shared address (carrier-grade NAT)"), Forbidden("unspecified address")
RESERVED, TUNNEL = Forbidden("reserved address"), Forbidden("tunnel address")
Verdict = Forbidden | str

# Family -> what stands between "http://" and ":port/" -> what must come of it.
HOSTS: dict[str, dict[str, Verdict]] = {
    "plain addresses": {
        "127.0.0.1": LOOPBACK,
        "127.0.0.2": LOOPBACK,
        "127.255.255.254": LOOPBACK,
        "10.0.0.1": PRIVATE,
        "172.16.0.1": PRIVATE,
        "192.168.0.1": PRIVATE,
        "100.64.0.1": SHARED,
        "0.0.0.0": UNSPECIFIED,
        "0.1.2.3": UNSPECIFIED,
        "224.0.0.1": Forbidden("multicast address"),
        "240.0.0.1": RESERVED,
        "255.255.255.255": Forbidden("broadcast address"),
        "198.18.0.1": Forbidden("benchmarking address"),
        "192.0.2.1": Forbidden("documentation address"),
    },
    "decimal, octal, hexadecimal and short forms": {
        "2130706433": NO_URL,
        "3232235521": NO_URL,
        "2852039166": NO_URL,
        "0": NO_URL,
        "017700000001": NO_URL,
        "0177.0.0.1": NO_URL,
        "0177.0.0.01": NO_URL,
        "00000177.0.0.1": NO_URL,
        "0x7f000001": NO_URL,
        "0X7F000001": NO_URL,
        "0x7f.0.0.1": NO_URL,
        "0x7f.0x0.0x0.0x1": NO_URL,
        "0x7f.1": NO_URL,
        "127.0x0.0.0x1": NO_URL,
        "0xa9.254.0251.0376": NO_URL,
        "0xa9fea9fe": NO_URL,
        "127.1": NO_URL,
        "127.0.1": NO_URL,
        "127.65535": NO_URL,
        "10.1": NO_URL,
        "192.168.257": NO_URL,
        "127.0.0.256": NO_URL,
        "127.0.0.1.0": NO_URL,
        "127.00.00.01": NO_URL,
        "08.0.0.1": NO_URL,
        "0x": NO_URL,
        "4294967297": NO_URL,
        "-127.0.0.1": NO_URL,
        "+127.0.0.1": NO_URL,
        "1e3": LOOPBACK,  # a name, so it is the resolver's to say
    },
    "IPv6, and IPv4 inside of it": {
        "[::1]": LOOPBACK,
        "[0:0:0:0:0:0:0:1]": LOOPBACK,
        "[0000:0000:0000:0000:0000:0000:0000:0001]": LOOPBACK,
        "[::]": UNSPECIFIED,
        "[0::0]": UNSPECIFIED,
        "[::ffff:127.0.0.1]": LOOPBACK,
        "[::FFFF:7F00:1]": LOOPBACK,
        "[0:0:0:0:0:ffff:127.0.0.1]": LOOPBACK,
        "[::ffff:10.0.0.1]": PRIVATE,
        "[::ffff:169.254.169.254]": LINK_LOCAL,
        "[::ffff:0.0.0.0]": UNSPECIFIED,
        "[::127.0.0.1]": RESERVED,
        "[::7f00:1]": RESERVED,
        "[::ffff:0:127.0.0.1]": RESERVED,
        "[64:ff9b::127.0.0.1]": LOOPBACK,
        "[64:ff9b::a9fe:a9fe]": LINK_LOCAL,
        "[64:ff9b:1::10.0.0.1]": Forbidden("local NAT64 address"),
        "[2002:7f00:1::1]": LOOPBACK,
        "[2002:a00:1::]": PRIVATE,
        "[2002:a9fe:a9fe::]": LINK_LOCAL,
        "[2001:0:7f00:1::]": TUNNEL,
        "[2001:0:4136:e378:8000:63bf:80ff:fffe]": TUNNEL,
        "[2a00:1450::5efe:127.0.0.1]": TUNNEL,
        "[fc00::1]": PRIVATE,
        "[fd12:3456:789a::1]": PRIVATE,
        "[fe80::1]": LINK_LOCAL,
        "[fec0::1]": PRIVATE,
        "[ff02::1]": Forbidden("multicast address"),
        "[100::1]": RESERVED,
        "[::1%lo]": NO_URL,
        "[::1%25lo]": NO_URL,
        "[fe80::1%25eth0]": NO_URL,
        "[fe80::1%251]": NO_URL,
        "[::1": NO_URL,
        "::1": NO_URL,
        "[::1]]": NO_URL,
        "[[::1]]": NO_URL,
        "[127.0.0.1]": NO_URL,
        "[v1.127.0.0.1]": NO_URL,
        "[::ffff:127.1]": NO_URL,
        "[::ffff:0177.0.0.1]": NO_URL,
        "[::1]evil.example": NO_URL,
    },
    "dots, digits and letters of other scripts": {
        "127.0.0.1.": LOOPBACK,
        "127.0.0.1..": NO_URL,
        "127..0.1": NO_URL,
        ".127.0.0.1": NO_URL,
        "１２７.０.０.１": LOOPBACK,
        "127。0。0。1": LOOPBACK,
        "127．0．0．1": LOOPBACK,
        "127｡0｡0｡1": LOOPBACK,
        "①②⑦.⓪.⓪.①": LOOPBACK,
        "𝟏𝟐𝟕.𝟎.𝟎.𝟏": LOOPBACK,
        "２１３０７０６４３３": NO_URL,
        "0ｘ7f.1": NO_URL,
        "١٢٧.0.0.1": NO_URL,
        "127.0.0.１": LOOPBACK,
        "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ": LOOPBACK,
        "ｌｏｃａｌｈｏｓｔ": LOOPBACK,
        "LOCALHOST": LOOPBACK,
        "localhost.": LOOPBACK,
        "localho\u017ft": LOOPBACK,  # a long s
        "local\u00adhost": LOOPBACK,  # a soft hyphen
        "local\u200bhost": LOOPBACK,  # a space of no width
        "xn--localhost-": NO_URL,
        "xn--127-0-0-1": NO_URL,
        "［::1］": NO_URL,
    },
    "user information and what parsers disagree about": {
        "ok.example@127.0.0.1": LOOPBACK,
        "ok.example:80@127.0.0.1": LOOPBACK,
        "user:password@127.0.0.1": LOOPBACK,
        "ok.example%40127.0.0.1": NO_URL,
        "127.0.0.1%40ok.example": NO_URL,
        "a@b@127.0.0.1": LOOPBACK,
        "ok.example:80%40@127.0.0.1": LOOPBACK,
        "@127.0.0.1": LOOPBACK,
        ":@127.0.0.1": LOOPBACK,
        "ok.example:80@[::1]": LOOPBACK,
        "ok.example\\@127.0.0.1": NO_URL,
        "127.0.0.1\\@ok.example": NO_URL,
        "ok.example#@127.0.0.1": NO_URL,
        "127.0.0.1#@ok.example": NO_URL,
        "ok.example\t@127.0.0.1": NO_URL,
        "127.0.0.1:80:80": NO_URL,
        "127.0.0.1 ": NO_URL,
        " 127.0.0.1": NO_URL,
        "127.0.0.1 ok.example": NO_URL,
        "127.0.0.1\t": NO_URL,
        "127.0.\n0.1": NO_URL,
        "127.0.0.1\r\nHost: x": NO_URL,
        "127.0.0.1\x00.ok.example": NO_URL,
        "\x7f127.0.0.1": NO_URL,
        "127.0.0.1%00.ok.example": NO_URL,
        "127.0.0.1%2eok.example": NO_URL,
        "%31%32%37.0.0.1": NO_URL,
        "127%2e0%2e0%2e1": NO_URL,
        "%6c%6f%63%61%6c%68%6f%73%74": NO_URL,
        "127.0.0.1;ok.example": NO_URL,
        "127.0.0.1&ok.example": NO_URL,
        "{127.0.0.1}": NO_URL,
        "$(127.0.0.1)": NO_URL,
        "": NO_URL,
    },
    "metadata services": {
        "169.254.169.254": LINK_LOCAL,
        "169.254.170.2": LINK_LOCAL,
        "169.254.0.23": LINK_LOCAL,
        "100.100.100.200": SHARED,
        "168.63.129.16": Forbidden("metadata address"),
        "192.0.0.192": RESERVED,
        "[fd00:ec2::254]": PRIVATE,
        "[fd20:ce::254]": PRIVATE,
        "[fe80::a9fe:a9fe]": LINK_LOCAL,
        "[::ffff:a9fe:a9fe]": LINK_LOCAL,
        "[::ffff:100.100.100.200]": SHARED,
        "[64:ff9b::169.254.169.254]": LINK_LOCAL,
    },
    "names whose answers are private": {
        "localhost": LOOPBACK,
        "sub.localhost": LOOPBACK,
        "127.0.0.1.nip.example": LOOPBACK,
        "lo.example": LOOPBACK,
        "private.example": PRIVATE,
        "metadata.example": LINK_LOCAL,
        "metadata.google.internal": LINK_LOCAL,
        "mapped.example": LINK_LOCAL,
        "nat64.example": PRIVATE,
        "six.example": LOOPBACK,
        "zone.example": LINK_LOCAL,
        "any.example": UNSPECIFIED,
        "many.example": PRIVATE,
    },
}

ANSWERS: dict[str, Sequence[str]] = {
    "private.example": ["10.1.2.3"],
    "metadata.example": ["169.254.169.254"],
    "metadata.google.internal": ["169.254.169.254"],
    "mapped.example": ["::ffff:169.254.169.254"],
    "nat64.example": ["64:ff9b::10.0.0.1"],
    "six.example": ["::1"],
    "zone.example": ["fe80::1%lo"],
    "any.example": ["0.0.0.0", "::"],
    "many.example": ["10.0.0.1", "127.0.0.1", "::1", "fd00::1", "169.254.169.254", "::ffff:127.0.0.1"],
}

PORT = "{port}"
"""In a URL: the traps' port."""

# Whole URLs, where it is not the host that is odd.
WHOLE: dict[str, Verdict] = {
    "http:127.0.0.1:{port}/": NO_URL,
    "http:/127.0.0.1:{port}/": NO_URL,
    "http:///127.0.0.1:{port}/": NO_URL,
    "//127.0.0.1:{port}/": NO_URL,
    "127.0.0.1:{port}/": NO_URL,
    "http:\\\\127.0.0.1:{port}/": NO_URL,
    "ftp://127.0.0.1:{port}/": NO_URL,
    "gopher://127.0.0.1:{port}/_x": NO_URL,
    "file:///etc/passwd": NO_URL,
    "unix:///run/docker.sock": NO_URL,
    "http+unix://%2Frun%2Fdocker.sock/": NO_URL,
    "javascript:alert(1)": NO_URL,
    "HTTPS://127.0.0.1:{port}/": LOOPBACK,
    "hTTp://127.0.0.1:{port}/": LOOPBACK,
    "http://127.0.0.1:{port}?@ok.example/": LOOPBACK,
    "http://127.0.0.1:{port}/@ok.example/": LOOPBACK,
    "http://ok.example?@127.0.0.1:{port}/": LOOPBACK,  # of the resolver's making
    "http://127.0.0.1:{port}٠/": NO_URL,
    "http://127.0.0.1:-{port}/": NO_URL,
    "http://127.0.0.1:0x50/": NO_URL,
    "http://127.0.0.1:99999/": NO_URL,
    "http://127.0.0.1:/": LOOPBACK,
    "\ufeffhttp://127.0.0.1:{port}/": NO_URL,
}

URLS: list[tuple[str, str, Verdict]] = [
    *((family, f"http://{host}:{PORT}/", verdict) for family, rows in HOSTS.items() for host, verdict in rows.items()),
    *(("schemes, ports and slashes", url, verdict) for url, verdict in WHOLE.items()),
]  # fmt: skip


@contextmanager
def traps() -> Iterator[tuple[int, Callable[[], int]]]:
    """A port on which every address of this machine listens, and how many connections have come there."""
    with socket.create_server(("0.0.0.0", 0)) as four:
        port = four.getsockname()[1]
        with socket.create_server(("::", port), family=socket.AF_INET6) as six:
            yield port, lambda: sum(map(_caught, (four, six)))


def _caught(listener: socket.socket) -> int:
    """Connections that wait to be accepted: the kernel has taken them, even from who has left again."""
    listener.setblocking(False)
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


async def hostile(host: str, _port: int) -> list[Address]:
    return [ip_address(text) for text in ANSWERS.get(host, ["127.0.0.1"])]


async def attempt(sender: Sender, url: str) -> Outcome | str:
    try:
        parse_url(url)
    except UrlError:
        return NO_URL
    return await sender.post(url)


def test_the_traps_catch() -> None:
    with traps() as (port, caught):
        for host in ("127.0.0.1", "127.9.9.9", "::1"):
            socket.create_connection((host, port)).close()
        assert caught() == 3


def test_there_are_many_ways_and_each_is_another() -> None:
    assert len(URLS) == len({url for _, url, _ in URLS}) >= 60


@pytest.mark.parametrize(("url", "verdict"), [row[1:] for row in URLS], ids=[ascii(url) for _, url, _ in URLS])
@on_both_loops
async def test_no_url_leads_inside(url: str, verdict: Verdict) -> None:
    addresses = dialled(asyncio.get_running_loop())
    with traps() as (port, caught):
        async with Sender(Guard(), resolve=hostile) as sender:
            assert await attempt(sender, url.replace(PORT, str(port))) == verdict
        assert (addresses, caught()) == ([], 0)


@on_both_loops
async def test_no_url_leads_inside_through_a_proxy() -> None:
    addresses = dialled(asyncio.get_running_loop())
    with traps() as (port, caught):
        async with ConnectProxy() as proxy, Sender(Guard(), resolve=hostile, proxy=parse_url(proxy.url())) as sender:
            for _, url, verdict in URLS:
                assert await attempt(sender, url.replace(PORT, str(port))) == verdict
            assert (addresses, proxy.targets, caught()) == ([], [], 0), "the proxy is not even asked"


@on_both_loops
async def test_the_systems_own_resolver() -> None:
    with traps() as (port, caught):
        async with Sender(Guard()) as sender:
            for host in ("localhost", "LocalHost.", socket.gethostname()):
                outcome = await sender.post(f"http://{host.replace('_', '-')}:{port}/")
                assert isinstance(outcome, Forbidden) or outcome == Unreachable("name not found")
        assert caught() == 0


def test_the_guard_would_refuse_what_is_no_url_as_well() -> None:
    """Should such a host ever come another way, the guard reads it as the C library does."""
    hosts = [host for rows in HOSTS.values() for host, verdict in rows.items() if verdict == NO_URL]
    read = {host: address for host in hosts if (address := literal_address(host)) is not None}
    assert len(read) >= 20
    assert [host for host, address in read.items() if Guard().forbids(address) is None] == []


# Answers that change.

OPEN = ip_network("127.0.0.1/32")
"""Stands for the public internet here; every other loopback address is inside."""


@asynccontextmanager
async def outside(*answers: Sequence[str], **options: Any) -> AsyncIterator[Any]:
    """A receiver that may be reached and hangs up after each answer, traps at the same port, and a resolver's answers."""
    async with (
        trapped() as (receiver, trap),
        Sender(Guard([OPEN]), resolve=names(*answers), **options) as sender,
    ):
        addresses = dialled(asyncio.get_running_loop())
        yield receiver, sender, addresses
        assert set(addresses) <= {"127.0.0.1"}
        assert _caught(trap) == 0


@asynccontextmanager
async def trapped() -> AsyncIterator[tuple[ScriptedReceiver, socket.socket]]:
    """A receiver, and a trap at the same port of another address, where somebody may be already."""
    for _ in range(100):
        async with ScriptedReceiver(otherwise=answer(closes=True)) as receiver:
            try:
                trap = socket.create_server(("127.0.0.2", receiver.port))
            except OSError:
                continue
            with trap:
                yield receiver, trap
                return
    raise AssertionError("no port is free at both addresses")


INSIDE = LOOPBACK
REBINDING: dict[str, tuple[Sequence[Sequence[str]], dict[str, Any], Sequence[Outcome]]] = {
    "allowed when it is judged, private when it is dialled": ([["127.0.0.1"], ["127.0.0.2"]], {}, [Answered(204)]),
    "allowed at first, private from then on": (
        [["127.0.0.1"], ["127.0.0.2"]],
        {"names_kept_s": 0},
        [Answered(204), INSIDE, INSIDE],
    ),
    "to and fro": (
        [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1"], ["127.0.0.2"]],
        {"names_kept_s": 0},
        [Answered(204), INSIDE, Answered(204), INSIDE],
    ),
    "an allowed and a private answer": ([["127.0.0.2", "127.0.0.1", "::1"]], {}, [Answered(204)] * 2),
    "a private answer after an address that refuses": ([["127.0.0.2"], ["127.0.0.1"]], {"names_kept_s": 0}, [INSIDE, Answered(204)]),
    "mapped into IPv6": ([["127.0.0.1"], ["::ffff:127.0.0.2"]], {"names_kept_s": 0}, [Answered(204), INSIDE]),
}  # fmt: skip


@pytest.mark.parametrize(("answers", "options", "outcomes"), REBINDING.values(), ids=REBINDING)
@on_both_loops
async def test_answers_that_change_lead_nobody_inside(
    answers: Sequence[Sequence[str]], options: dict[str, Any], outcomes: Sequence[Outcome]
) -> None:
    async with outside(*answers, **options) as (receiver, sender, _):
        for number, outcome in enumerate(outcomes):
            assert await sender.post(receiver.url(host="rebinding.example")) == outcome
            await receiver.has_closed(sum(isinstance(told, Answered) for told in outcomes[: number + 1]))


# Redirections.

REDIRECTIONS: list[tuple[int, dict[str, str]]] = [
    *((status, {"Location": "http://127.0.0.2:{port}/"}) for status in (300, 301, 302, 303, 305, 307, 308)),
    (302, {"Location": "http://localhost:{port}/"}),
    (302, {"Location": "http://169.254.169.254/latest/meta-data/"}),
    (302, {"Location": "//127.0.0.2:{port}/"}),
    (302, {"Location": "/elsewhere"}),
    (200, {"Refresh": "0; url=http://127.0.0.2:{port}/"}),
    (200, {"Content-Location": "http://127.0.0.2:{port}/"}),
    (201, {"Location": "http://127.0.0.2:{port}/"}),
    (200, {"Alt-Svc": 'http/1.1="127.0.0.2:{port}"'}),
    (407, {"Proxy-Authenticate": "Basic", "Location": "http://127.0.0.2:{port}/"}),
]


@pytest.mark.parametrize(("status", "fields"), REDIRECTIONS, ids=str)
@on_both_loops
async def test_nobody_is_followed(status: int, fields: dict[str, str]) -> None:
    async with outside(["127.0.0.2"]) as (receiver, sender, addresses):
        receiver.add(answer(status, {name: value.replace(PORT, str(receiver.port)) for name, value in fields.items()}))
        assert await sender.post(receiver.url()) == Answered(status)
        assert (len(receiver.requests), addresses) == (1, ["127.0.0.1"])


def test_the_table() -> None:
    """How many ways there are, by family, and how many of them are stopped where."""
    stopped: dict[str, Counter[bool]] = {}
    for family, _, verdict in URLS:
        stopped.setdefault(family, Counter())[verdict == NO_URL] += 1
    lines = [
        "| ways in | tried | refused at registration | forbidden before dialling | dialled |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {family} | {count.total()} | {count[True]} | {count[False]} | 0 |" for family, count in stopped.items()]
    lines.append(f"| DNS answers that change | {len(REBINDING)} | – | each private answer | 0 |")
    lines.append(f"| redirections | {len(REDIRECTIONS)} | – | not followed | 0 |")
    print("\n" + "\n".join(lines))
    assert make_post("http://ok.example/").url.host == "ok.example"
