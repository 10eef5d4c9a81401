"""The URLs that callbacks are posted to: what is accepted, and the one form in which each is kept.

Two spellings of one URL have to come out as one text, because the URL, credentials apart, and the pin say which
registration is meant. So everything is normalised here, once, and what is ambiguous is refused, not guessed.
The messages are Portuguese, as they are shown to callers of the wire API; none repeats any part of the URL, whose user
information, path and query may all be secrets.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import idna

from toque.errors import InputError

MAX_URL_LENGTH = 2048
"""Characters, as given and as normalised: common servers, proxies and log formats stop not far above."""

MAX_HOST_LENGTH = 253
"""Characters of a host name without its final dot (RFC 1035 §2.3.4, less the length octets)."""

DEFAULT_PORTS = {"http": 80, "https": 443}

_SHAPE = re.compile(r"(?P<scheme>[A-Za-z]+)://(?P<authority>[^/?]*)(?P<path>[^?]*)(?P<query>.*)", re.DOTALL)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
# RFC 1123 §2.1, and the underscore that resolvers accept and container networks use.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
# A host whose last label is a number is an IPv4 address or nothing (WHATWG URL, "ends in a number").
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
# What RFC 3986 lets stand in a path or query, escapes that are there already, and the brackets of PHP's `a[]=1`.
_KEPT_IN_TARGET = "%/?:@!$&'()*+,;=[]"


class UrlError(InputError):
    """The text is no URL that can be posted to; the message says why, in Portuguese, and repeats nothing of it."""


class Origin(NamedTuple):
    """What connections are shared by (RFC 6454 §4)."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True, repr=False)
class TargetUrl:
    """An absolute http or https URL in normal form; made by `parse_url`."""

    scheme: str
    host: str
    """A lower-case A-label name without final dot, or an IP literal without brackets."""
    port: int
    target: str
    """The origin-form of the request line, in ASCII: path, at least `/`, and query (RFC 9112 §3.2.1)."""
    credentials: str | None = None
    """`user:password`, percent-decoded; None when the URL has none."""
    origin: Origin = field(init=False, compare=False)
    """Kept, not worked out anew: the transport looks its connections up by it for every post."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", Origin(self.scheme, self.host, self.port))

    @property
    def host_header(self) -> str:
        """The `Host` field: the default port is left out (RFC 9110 §7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def text(self) -> str:
        """The normalised URL without credentials: what identifies it."""
        return f"{self.scheme}://{self.host_header}{self.target}"

    @property
    def masked(self) -> str:
        """The URL as its owner may see it, its password masked. A user without one is a key by itself, so masked as well."""
        if self.credentials is None:
            return self.text
        user, _, password = self.credentials.partition(":")
        shown = f"{quote(user, safe='')}:***" if password else "***"
        return f"{self.scheme}://{shown}@{self.host_header}{self.target}"

    @property
    def authorization(self) -> str | None:
        """The `Authorization` field's value, credentials in UTF-8 (RFC 7617 §2.1); None when there are none."""
        if self.credentials is None:
            return None
        return f"Basic {base64.b64encode(self.credentials.encode()).decode('ascii')}"

    def __repr__(self) -> str:
        """Only where it leads: path and query often hold a secret as well."""
        return f"<TargetUrl {self.scheme}://{self.host_header}/…>"


def parse_url(text: str) -> TargetUrl:
    """Read a URL as a caller gave it; UrlError says, in Portuguese, what is wrong with it."""
    _check_characters(text)
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        raise UrlError("a url deve ser absoluta e começar com http:// ou https://")
    scheme = shape["scheme"].lower()
    if scheme not in DEFAULT_PORTS:
        raise UrlError("a url deve começar com http:// ou https://")
    userinfo, at, place = shape["authority"].rpartition("@")
    host, port = _split_place(place)
    url = TargetUrl(
        scheme=scheme,
        host=_normal_host(host),
        port=DEFAULT_PORTS[scheme] if port is None else port,
        target=_normal_target(shape["path"], shape["query"]),
        credentials=_credentials(userinfo) if at else None,
    )
    if len(url.text) > MAX_URL_LENGTH:
        raise UrlError(f"a url codificada passa de {MAX_URL_LENGTH} caracteres")
    return url


def _check_characters(text: str) -> None:
    if not text:
        raise UrlError("a url está vazia")
    if len(text) > MAX_URL_LENGTH:
        raise UrlError(f"a url passa de {MAX_URL_LENGTH} caracteres")
    if any(character.isspace() or unicodedata.category(character) in {"Cc", "Cs"} for character in text):
        raise UrlError("a url contém espaço ou caractere de controle")
    if "\\" in text:
        raise UrlError("a url contém barra invertida")
    if "#" in text:
        raise UrlError("a url não pode ter fragmento (#); em senha ou caminho escreva %23")
    if _BAD_ESCAPE.search(text):
        raise UrlError("a url contém um % que não é seguido de dois dígitos hexadecimais")


def _split_place(place: str) -> tuple[str, int | None]:
    """Part host and port; an IPv6 literal keeps its brackets. An empty port is the default one (RFC 3986 §3.2.3)."""
    head, bracket, rest = place.rpartition("]")
    if rest.count(":") > 1 or place.startswith("[") != bool(bracket):
        raise UrlError("um endereço IPv6 na url fica entre colchetes, como em http://[2001:db8::1]/")
    host, colon, port = rest.partition(":")
    host = head + bracket + host
    if not host:
        raise UrlError("falta o host na url")
    if not colon or not port:
        return host, None
    if not _PORT.fullmatch(port) or not 0 < int(port) <= 0xFFFF:
        raise UrlError("a porta da url deve ser um número de 1 a 65535")
    return host, int(port)


def _normal_host(host: str) -> str:
    if host.startswith("["):
        return _ipv6(host)
    labels = _mapped(host).split(".")
    if len(labels) > 1 and not labels[-1]:
        labels.pop()  # the final dot of an absolute name: TLS and the Host field do without it
    if _NUMBER.fullmatch(labels[-1]):
        return _ipv4(".".join(labels))
    name = ".".join(map(_a_label, labels))
    if len(name) > MAX_HOST_LENGTH:
        raise UrlError("o host da url é longo demais")
    return name


def _ipv6(literal: str) -> str:
    """RFC 3986 §3.2.2; zones (RFC 6874) mean nothing outside one machine and are refused."""
    try:
        address = IPv6Address("" if "%" in literal or not literal.endswith("]") else literal[1:-1])
    except AddressValueError:
        raise UrlError("o endereço IPv6 da url é inválido") from None
    # Python's own text of a mapped address has changed between versions; the identity of a URL must not.
    mapped = address.ipv4_mapped
    return address.compressed if mapped is None else f"::ffff:{mapped}"


def _ipv4(text: str) -> str:
    """Dotted decimal only: the C library's other spellings (octal, hexadecimal, fewer parts) serve nobody but attackers."""
    try:
        return str(IPv4Address(text))
    except AddressValueError:
        raise UrlError("o host numérico da url não é um endereço IPv4 na forma decimal com quatro partes") from None


def _mapped(host: str) -> str:
    """Lower case, full-width forms and ideographic dots folded (UTS #46, non-transitional)."""
    if host.isascii():
        return host.lower()
    try:
        return idna.uts46_remap(host, std3_rules=False, transitional=False)
    except ValueError:  # IDNAError is one
        raise UrlError("o host da url não é um nome válido") from None


def _a_label(label: str) -> str:
    """One label as the DNS has it (RFC 5891 §4 and §5)."""
    try:
        if not label.isascii():
            label = idna.alabel(label).decode("ascii")
        elif label.startswith("xn--"):
            label = idna.alabel(idna.ulabel(label)).decode("ascii")
    except ValueError:
        label = ""
    if not _LABEL.fullmatch(label):
        raise UrlError("o host da url não é um nome válido")
    return label


def _normal_target(path: str, query: str) -> str:
    return quote((path or "/") + query, safe=_KEPT_IN_TARGET)


def _credentials(userinfo: str) -> str | None:
    """User and password as RFC 7617 §2 allows them: no control characters, no colon in the user's name."""
    user, _, password = (_decoded(part) for part in userinfo.partition(":"))
    if not user and not password:
        return None
    if ":" in user:
        raise UrlError("o usuário da url não pode conter dois-pontos")
    return f"{user}:{password}"


def _decoded(part: str) -> str:
    try:
        decoded = unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise UrlError("o usuário ou a senha da url não é UTF-8") from None
    if any(unicodedata.category(character) == "Cc" for character in decoded):
        raise UrlError("o usuário ou a senha da url contém caractere de controle")
    return decoded
