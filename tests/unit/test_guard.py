"""Which spellings of which addresses may be reached."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toque.callbacks.url import UrlError, parse_url
from toque.sending.guard import Address, Guard, literal_address

OPEN = None
"""The verdict on what may be reached."""

# Every spelling of a host that a resolver reads as an address, and the verdict without any allowed network.
SPELLINGS = {
    # Ordinary public addresses.
    "1.1.1.1": OPEN,
    "8.8.8.8": OPEN,
    "93.184.216.34": OPEN,
    "100.63.255.255": OPEN,
    "100.128.0.0": OPEN,
    "126.255.255.255": OPEN,
    "128.0.0.1": OPEN,
    "169.253.255.255": OPEN,
    "172.15.255.255": OPEN,
    "172.32.0.0": OPEN,
    "192.167.255.255": OPEN,
    "192.169.0.0": OPEN,
    "198.17.255.255": OPEN,
    "198.20.0.0": OPEN,
    "223.255.255.255": OPEN,
    "134744072": OPEN,
    "0x08.8.8.8": OPEN,
    "8.8.8.8.": OPEN,
    "2606:4700:4700::1111": OPEN,
    "[2606:4700:4700::1111]": OPEN,
    "2a00:1450:4001::200e": OPEN,
    "2001:200::1": OPEN,
    "2001:4860:4860::8888": OPEN,
    "2804:14c::1": OPEN,
    "3ffe::1": OPEN,
    "::ffff:8.8.8.8": OPEN,
    "::ffff:808:808": OPEN,
    "64:ff9b::8.8.8.8": OPEN,
    "2002:808:808::1": OPEN,
    # Loopback, however it is written.
    "127.0.0.1": "loopback address",
    "127.255.255.254": "loopback address",
    "127.1": "loopback address",
    "127.0.1": "loopback address",
    "2130706433": "loopback address",
    "0x7f000001": "loopback address",
    "0X7F.1": "loopback address",
    "0x7f.0x0.0x0.0x1": "loopback address",
    "017700000001": "loopback address",
    "0177.0.0.1": "loopback address",
    "0177.0.0.01": "loopback address",
    "127.0.0.1.": "loopback address",
    "::1": "loopback address",
    "[::1]": "loopback address",
    "0:0:0:0:0:0:0:1": "loopback address",
    "::1%lo": "loopback address",
    "::ffff:127.0.0.1": "loopback address",
    "::ffff:7f00:1": "loopback address",
    "[::FFFF:127.0.0.1]": "loopback address",
    # This machine or none.
    "0.0.0.0": "unspecified address",
    "0": "unspecified address",
    "0x0": "unspecified address",
    "0.1.2.3": "unspecified address",
    "::": "unspecified address",
    "::ffff:0.0.0.0": "unspecified address",
    # Private and shared networks.
    "10.0.0.1": "private address",
    "10.1": "private address",
    "012.0.0.1": "private address",
    "172.16.0.1": "private address",
    "172.31.255.255": "private address",
    "192.168.0.1": "private address",
    "192.168.257": "private address",
    "3232235521": "private address",
    "fc00::1": "private address",
    "fd12:3456:789a::1": "private address",
    "fec0::1": "private address",
    "::ffff:10.0.0.1": "private address",
    "100.64.0.1": "shared address (carrier-grade NAT)",
    "100.100.100.200": "shared address (carrier-grade NAT)",  # Alibaba's metadata
    "100.127.255.255": "shared address (carrier-grade NAT)",
    # Link-local, and the metadata services of clouds.
    "169.254.0.1": "link-local address",
    "169.254.169.254": "link-local address",
    "169.254.170.2": "link-local address",
    "2852039166": "link-local address",
    "0xa9fea9fe": "link-local address",
    "0xa9.254.0251.0376": "link-local address",
    "::ffff:a9fe:a9fe": "link-local address",
    "fe80::1": "link-local address",
    "fe80::1%eth0": "link-local address",
    "[fe80::1%1]": "link-local address",
    "fd00:ec2::254": "private address",
    "168.63.129.16": "metadata address",
    "192.0.0.192": "reserved address",
    # What is no end of a connection, or belongs to nobody.
    "192.0.0.1": "reserved address",
    "192.88.99.1": "reserved address",
    "192.0.2.1": "documentation address",
    "198.51.100.1": "documentation address",
    "203.0.113.1": "documentation address",
    "198.18.0.1": "benchmarking address",
    "198.19.255.255": "benchmarking address",
    "224.0.0.1": "multicast address",
    "239.255.255.250": "multicast address",
    "240.0.0.1": "reserved address",
    "255.255.255.255": "broadcast address",
    "4294967295": "broadcast address",
    "ff02::1": "multicast address",
    "ff0e::1": "multicast address",
    "100::1": "reserved address",
    "2001:db8::1": "documentation address",
    "3fff::1": "documentation address",
    "2001:2::1": "reserved address",
    "2001:10::1": "reserved address",
    "2001:20::1": "reserved address",
    "4000::1": "reserved address",
    "5f00::1": "reserved address",
    # IPv6 that carries a forbidden IPv4 address, or may.
    "::127.0.0.1": "reserved address",
    "::8.8.8.8": "reserved address",
    "::ffff:0:127.0.0.1": "reserved address",
    "64:ff9b::127.0.0.1": "loopback address",
    "64:ff9b::10.0.0.1": "private address",
    "64:ff9b::a9fe:a9fe": "link-local address",
    "64:ff9b:1::8.8.8.8": "local NAT64 address",
    "64:ff9b:1:a00:0:100::": "local NAT64 address",
    "2002:7f00:1::1": "loopback address",
    "2002:a00:1::1": "private address",
    "2002:a9fe:a9fe::1": "link-local address",
    "2001:0:808:808::1": "tunnel address",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "tunnel address",
    "2a00:1450::5efe:10.0.0.1": "tunnel address",
    "2a00:1450::200:5efe:8.8.8.8": "tunnel address",
    "fe80::5efe:8.8.8.8": "link-local address",
}


@pytest.mark.parametrize(("host", "verdict"), SPELLINGS.items())
def test_spelling(host: str, verdict: str | None) -> None:
    address = literal_address(host)
    assert address is not None, "a resolver reads it as an address"
    guard = Guard([])
    assert guard.forbids(address) == verdict
    assert guard.check_host(host) == verdict
    assert Guard([ip_network("0.0.0.0/0"), ip_network("::/0")]).forbids(address) is None


@pytest.mark.parametrize("host", [spelling for spelling in SPELLINGS if ":" not in spelling and spelling[-1] != "."])
def test_the_resolver_reads_ipv4_the_same_way(host: str) -> None:
    """The C library's own reading, which is what would be dialled if a host were handed to it."""
    found = socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    assert ip_address(found[0][4][0]) == literal_address(host)


@pytest.mark.parametrize(
    "host",
    [
        *("example.com", "localhost", "1.2.3.4.example", "127.0.0.1.nip.io", "deadbeef", "0x", "", "a:b", "ａ"),
        *("1.2.3.4.5", "256.1.1.1", "127..1", "08.0.0.1", "1\x00", "١٢٧.0.0.1", ":", ":::", "[::1", "1:2:3", "::1%"),
    ],
)
def test_not_a_literal(host: str) -> None:
    assert literal_address(host) is None


@pytest.mark.parametrize(
    ("host", "verdict"),
    [
        ("localhost", "loopback address"),
        ("LocalHost.", "loopback address"),
        ("api.localhost", "loopback address"),
        ("notlocalhost", None),
        ("localhost.example.com", None),
        ("example.com", None),
        ("metadata.google.internal", None),  # its address is judged when it is dialled
    ],
)
def test_names_at_registration(host: str, verdict: str | None) -> None:
    assert Guard().check_host(host) == verdict


@pytest.mark.parametrize("network", ["127.0.0.0/8", "127.0.0.1/32", "::1/128"])
def test_localhost_with_loopback_allowed(network: str) -> None:
    assert Guard([ip_network(network)]).check_host("localhost") is None


@pytest.mark.parametrize(
    ("network", "reached", "refused"),
    [
        ("10.20.0.0/16", ["10.20.1.2", "::ffff:10.20.1.2", "64:ff9b::10.20.1.2"], ["10.21.0.1", "::ffff:10.21.0.1"]),
        ("127.0.0.1/32", ["127.0.0.1", "127.1", "::ffff:127.0.0.1"], ["127.0.0.2", "::1", "::127.0.0.1"]),
        ("::1/128", ["::1"], ["127.0.0.1", "::ffff:127.0.0.1"]),
        ("fd00::/8", ["fd00::1"], ["fc00::1", "10.0.0.1"]),
        ("fe80::/10", ["fe80::1%eth0"], ["169.254.169.254"]),
        ("::ffff:10.0.0.0/104", ["::ffff:10.0.0.1"], ["10.0.0.1"]),
        ("64:ff9b:1::/48", ["64:ff9b:1::1"], ["64:ff9b::10.0.0.1"]),
    ],
)
def test_allowed_networks(network: str, reached: Sequence[str], refused: Sequence[str]) -> None:
    guard = Guard([ip_network(network)])
    assert [host for host in reached if guard.check_host(host) is not None] == []
    assert [host for host in refused if guard.check_host(host) is None] == []
    assert guard.check_host("8.8.8.8") is None


@given(st.ip_addresses())
def test_never_more_than_python_calls_global(address: Address) -> None:
    """What Python's table calls not global is forbidden, apart from the forms that merely lead to IPv4."""
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address in ip_network("64:ff9b::/96")):
        address = IPv4Address(int(address) & 0xFFFF_FFFF)
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert Guard().forbids(address) is not None


@given(st.ip_addresses(v=4))
def test_a_carried_address_is_judged_like_itself(address: IPv4Address) -> None:
    number = int(address)
    for carrier in (0xFFFF << 32 | number, 0x0064_FF9B << 96 | number, 0x2002 << 112 | number << 80 | 1):
        assert Guard().forbids(IPv6Address(carrier)) == Guard().forbids(address)


@given(st.text(st.sampled_from("0123456789abfx.:[]%"), max_size=24) | st.text(max_size=24))
def test_any_text_is_an_address_or_none(host: str) -> None:
    address = literal_address(host)
    verdict = Guard().check_host(host)
    if address is not None:
        assert verdict == Guard().forbids(address)
    elif not host.lower().rstrip(".").endswith("localhost"):
        assert verdict is None


@given(st.text(st.sampled_from("01x.:[]１。"), max_size=24))
def test_a_host_that_was_parsed_is_a_literal_or_no_number(host: str) -> None:
    """No numeric spelling gets through as a name: what `parse_url` lets pass, the guard reads the same way."""
    try:
        url = parse_url(f"http://{host}/")
    except UrlError:
        return
    is_number = ":" in url.host or url.host.rpartition(".")[2].isdigit()
    assert literal_address(url.host) == (ip_address(url.host) if is_number else None)
