"""Which addresses posts may reach.

Whoever registers a URL chooses where this machine connects to, so nothing may be dialled that is not an ordinary address
of the public internet, unless the operator allowed its network. The verdict is passed on the address that is about to be
dialled, never on the name alone: names can mean something else a moment later.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# IANA IPv4 Special-Purpose Address Registry (RFC 6890), and what clouds put at addresses that look public.
_IPV4_FORBIDDEN: tuple[tuple[IPv4Network, str], ...] = tuple(
    (IPv4Network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "unspecified address"),
        ("10.0.0.0/8", "private address"),
        ("100.64.0.0/10", "shared address (carrier-grade NAT)"),
        ("127.0.0.0/8", "loopback address"),
        ("168.63.129.16/32", "metadata address"),  # Azure's host agent
        ("169.254.0.0/16", "link-local address"),  # with the metadata service of most clouds
        ("172.16.0.0/12", "private address"),
        ("192.0.0.0/24", "reserved address"),  # with Oracle's metadata service
        ("192.0.2.0/24", "documentation address"),
        ("192.88.99.0/24", "reserved address"),  # 6to4 relays, withdrawn by RFC 7526
        ("192.168.0.0/16", "private address"),
        ("198.18.0.0/15", "benchmarking address"),
        ("198.51.100.0/24", "documentation address"),
        ("203.0.113.0/24", "documentation address"),
        ("224.0.0.0/4", "multicast address"),
        ("255.255.255.255/32", "broadcast address"),
        ("240.0.0.0/4", "reserved address"),
    )
)

_IPV6_GLOBAL = IPv6Network("2000::/3")
# Everything outside 2000::/3 is forbidden; these rows give the better-known parts of it a name, and forbid parts of it.
_IPV6_FORBIDDEN: tuple[tuple[IPv6Network, str], ...] = tuple(
    (IPv6Network(network), kind)
    for network, kind in (
        ("::/128", "unspecified address"),
        ("::1/128", "loopback address"),
        ("64:ff9b:1::/48", "local NAT64 address"),  # RFC 8215; where the IPv4 address is in it, only its network knows
        ("fc00::/7", "private address"),
        ("fe80::/10", "link-local address"),
        ("fec0::/10", "private address"),
        ("ff00::/8", "multicast address"),
        ("2001::/32", "tunnel address"),  # Teredo
        ("2001::/23", "reserved address"),
        ("2001:db8::/32", "documentation address"),
        ("3fff::/20", "documentation address"),
    )
)

_LOOPBACKS = (IPv4Address("127.0.0.1"), IPv6Address("::1"))

# Forms by which an IPv4 address is reached: the network, and how far the 32 bits stand from the right.
_IPV4_INSIDE = (
    (IPv6Network("::ffff:0:0/96"), 0),  # mapped: the kernel dials IPv4 (RFC 4291 §2.5.5.2)
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052 §2.1)
    (IPv6Network("2002::/16"), 80),  # 6to4 (RFC 3056 §2)
)
# An interface identifier that begins so ends in an IPv4 address, whatever the prefix (ISATAP, RFC 5214 §6.1).
_ISATAP_MARKS = (0x0000_5EFE, 0x0200_5EFE)


class Guard:
    """Says which addresses may be dialled: public ones, and those in the networks that the operator allows."""

    def __init__(self, allowed: Iterable[Network] = ()) -> None:
        self._allowed = tuple(allowed)

    def forbids(self, address: Address) -> str | None:
        """What kind of forbidden address it is, in a short stable phrase; None when it may be reached."""
        if any(address in network for network in self._allowed):
            return None
        carried = _carried_ipv4(address)
        return _kind(address) if carried is None else self.forbids(carried)

    def check_host(self, host: str) -> str | None:
        """The verdict on a host as it is registered, without asking the DNS: None does not yet mean it may be dialled."""
        address = literal_address(host)
        if address is not None:
            return self.forbids(address)
        name = host.rstrip(".").lower()
        if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 §6.3: loopback, whatever the DNS says
            verdicts = [self.forbids(loopback) for loopback in _LOOPBACKS]
            return None if None in verdicts else verdicts[0]
        return None


def _kind(address: Address) -> str | None:
    """The kind of address it is in itself, when that kind is not to be reached."""
    if isinstance(address, IPv4Address):
        return _named(address, _IPV4_FORBIDDEN)
    kind = _named(address, _IPV6_FORBIDDEN)
    if kind is None and address not in _IPV6_GLOBAL:
        return "reserved address"  # with the IPv4-compatible and IPv4-translated forms
    if kind is None and (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP_MARKS:
        return "tunnel address"
    return kind


def _named(address: Address, table: Iterable[tuple[Network, str]]) -> str | None:
    return next((kind for network, kind in table if address in network), None)


def _carried_ipv4(address: Address) -> IPv4Address | None:
    """The IPv4 address that is reached when this one is dialled; None when it is the end itself."""
    for network, shift in _IPV4_INSIDE:
        if address in network:
            return IPv4Address((int(address) >> shift) & 0xFFFF_FFFF)
    return None


def literal_address(host: str) -> Address | None:
    """The address that a resolver reads out of the host itself; None for a name.

    Takes every spelling the C library takes (`inet_aton(3)`): `2130706433`, `0177.0.0.1`, `0x7f.1`, `127.1`, and IPv6
    with or without brackets and zone. A final dot does not make a name of a number.
    """
    text = host.rstrip(".")
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    if ":" in text:
        with contextlib.suppress(ValueError):
            return ip_address(text)
        return None
    with contextlib.suppress(OSError, UnicodeEncodeError, ValueError):
        return IPv4Address(socket.inet_aton(text))
    return None
