"""Settings: one row a setting, from which the file, the environment, the flags, their help and the docs come.

A value comes from its default, then `toque.toml`, then `TOQUE_*`, then a flag; the last one wins. A value that cannot be used
raises `SettingsError`, which names the setting, where it was set and what is allowed. Secrets have no flag.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from zoneinfo import ZoneInfo

from toque.callbacks.url import TargetUrl, UrlError, parse_url
from toque.errors import SettingsError

DEFAULT_FILE = Path("toque.toml")
MIN_KEY_CHARACTERS = 16
ENVIRONMENT_PREFIX = "TOQUE_"
_DEFAULT = "default"
Network = IPv4Network | IPv6Network
_HOST = re.compile(r"[A-Za-z0-9_:.%-]{1,253}")
_PORT = re.compile(r"[0-9]{1,5}")
_CREDENTIALS = re.compile(r"(?<=//)[^/@]*@")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)?", re.ASCII)
_UNITS_S = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
NATS_PORT = 4222
AMI_PORT, ESL_PORT = 5038, 8021  # where Asterisk's manager and FreeSWITCH's event socket listen by default


class _Unusable(ValueError):  # noqa: N818 - what is wrong with a value; becomes a SettingsError with its name and source
    pass


@dataclass(frozen=True, slots=True)
class NatsServers:
    """Where the distributed engine is; as text, without the credentials that the setting may have."""

    servers: tuple[str, ...]
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return "nats://" + ",".join(self.servers)


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        """As people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class HepSource:
    """Where to listen for HEP, and whom to believe: without key and networks everybody who reaches the address."""

    name: str
    host: str
    port: int
    key: bytes = field(default=b"", repr=False)
    allow_from: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class AmiSource:
    """An Asterisk, by its manager interface. `trunks` and `outside_contexts` are patterns; see `SwitchRules`."""

    name: str
    host: str
    port: int
    username: str
    secret: str = field(repr=False)
    trunks: tuple[str, ...] = ()
    outside_contexts: tuple[str, ...] | None = None  # None: the usual ones
    tenant_variable: str = ""
    tls: bool = False
    tls_ca_file: Path | None = None  # authorities for the switch's certificate, beside the system's


@dataclass(frozen=True, slots=True)
class EslSource:
    """A FreeSWITCH, by its event socket. `trunks` are patterns of the names of channels that lead outside."""

    name: str
    host: str
    port: int
    password: str = field(repr=False)
    trunks: tuple[str, ...] = ()
    tenant_variable: str = "domain_name"


Source = HepSource | AmiSource | EslSource


# Readers of one value: what TOML, the environment or a flag gave -> the value. Each raises `_Unusable`.


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _Unusable("must be a text that is not empty")
    return value


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            raise _Unusable(f"must be a whole number from {low} to {high}")
        return number

    return read


def _span(low_s: float, high_s: float) -> Callable[[Any], timedelta]:
    def read(value: Any) -> timedelta:
        found = _SPAN.fullmatch(str(value).strip()) if isinstance(value, str | int | float) else None
        seconds = float(found[1]) * _UNITS_S[found[2]] if found else -1.0
        if not low_s <= seconds <= high_s:
            raise _Unusable(f'must be a time from {low_s:g} to {high_s:g} seconds, such as "30s", "10m" or "4h"')
        return timedelta(seconds=seconds)

    return read


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise _Unusable("must be true or false")


def _one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise _Unusable(f"must be one of {', '.join(words)}")
        return str(value)

    return read


def _networks(value: Any) -> tuple[Network, ...]:
    found: list[Network] = []
    for text in _list(value):
        try:
            found.append(ip_network(text))
        except ValueError as error:
            raise _Unusable(f"must be networks such as 10.20.0.0/16: {error}") from None
    return tuple(found)


def _list(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise _Unusable("must be a list of texts")
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _address(value: Any) -> Address:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not _is_host(host) or not _PORT.fullmatch(port) or int(port) > 65_535:
        raise _Unusable("must be an address and a port such as 127.0.0.1:8080 (port 0: any free one)")
    return Address(host, int(port))


def _switch(port: int) -> Callable[[Any], Address]:
    """The address of a switch; its port may be left out."""

    def read(value: Any) -> Address:
        is_bare = isinstance(value, str) and (value.endswith("]") or ":" not in value)
        try:
            address = _address(f"{value}:{port}" if is_bare else value)
        except _Unusable:
            address = Address("", 0)
        if not address.port:
            raise _Unusable(f"must be the switch's address, such as 192.0.2.10 or 192.0.2.10:{port}")
        return address

    return read


def _word(value: Any) -> str:
    """A text that goes into one line of a protocol."""
    if not _text(value).isprintable() or value != value.strip():
        raise _Unusable("must be a text of one line, without spaces around it")
    return str(value)


def _patterns(value: Any) -> tuple[str, ...]:
    return tuple(_list(value))


def _is_host(text: str) -> bool:
    try:
        return _HOST.fullmatch(text) is not None and bool(text.encode("idna"))  # as the socket module will read it
    except UnicodeError:
        return False


def _store(value: Any) -> Path | NatsServers:
    text = _text(value)
    if text.startswith("nats:"):
        return _nats(text)
    path = text.removeprefix("sqlite:")
    if path.startswith("///"):
        path = path[2:]
    # ":memory:" would be another database for each connection.
    if path != text and path and path.isprintable() and not path.startswith(("//", ":")) and not path.endswith("/"):
        return Path(path)
    raise _Unusable("must be sqlite:///absolute/path, sqlite:relative/path or nats://host:port,host:port")


def _nats(text: str) -> NatsServers:
    access, at, places = text.removeprefix("nats:").removeprefix("//").rpartition("@")
    user, _, password = access.partition(":")
    try:
        servers = tuple(str(_switch(NATS_PORT)(place)) for place in places.split(","))
    except _Unusable:
        servers = ()
    if not servers or not text.startswith("nats://") or (at and not (user and password)):
        raise _Unusable("must be nats://host:port, with commas between servers; credentials are user:password@ in front of them")
    return NatsServers(servers, unquote(user) if at else None, unquote(password) if at else None)


def store_named(text: str, source: str) -> Path | NatsServers:
    """The engine that an argument of a command names; `source` says which. Raises `SettingsError`."""
    try:
        return _store(text)
    except _Unusable as error:
        raise SettingsError("store", source, str(error)) from None


def nats_servers(text: str) -> NatsServers:
    """The engine that a flag `--store` of a measurement names. Raises `SettingsError`."""
    try:
        return _nats(text)
    except _Unusable as error:
        raise SettingsError("store", "flag --store", str(error)) from None


def _prefix(value: Any) -> str:
    text = _text(value)
    if not re.fullmatch("[A-Za-z0-9_-]{1,40}", text):
        raise _Unusable("must be 1 to 40 letters, digits, - or _")
    return text


def _zone(value: Any) -> ZoneInfo:
    try:
        return ZoneInfo(_text(value))
    except (ValueError, OSError, KeyError):
        raise _Unusable("must be a time zone's name such as America/Sao_Paulo") from None


def _country(value: Any) -> str:
    text = str(value)
    if not re.fullmatch(r"[1-9][0-9]{0,2}", text):
        raise _Unusable("must be a country's calling code such as 55")
    return text


def _file(value: Any) -> Path:
    path = Path(_text(value))
    if not path.is_file():
        raise _Unusable(f"must be a file that exists; {path} does not")
    return path


def _secret_key(value: Any) -> str:
    if not isinstance(value, str) or len(value) < MIN_KEY_CHARACTERS:
        raise _Unusable(f"must have at least {MIN_KEY_CHARACTERS} characters")
    return value


def _key(value: Any) -> bytes:
    return _text(value).encode()


def _proxy(value: Any) -> TargetUrl:
    try:
        url = parse_url(_text(value))
    except UrlError:  # its text is for callers of the API
        url = None
    if url is None or url.scheme != "http" or url.target != "/":
        raise _Unusable("must be http://host:port, or http://user:password@host:port")
    return url


def _sources(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _Unusable("must be tables, each under [[sources]]")
    return tuple(value)


@dataclass(frozen=True, slots=True)
class Option:
    """What a row says beyond name and type."""

    read: Callable[[Any], Any]
    default: Any
    help: str
    is_secret: bool = False
    flag: str | None = None  # None: the name with dashes
    has_flag: bool = True


def _row(
    read: Callable[[Any], Any],
    default: Any,
    text: str,
    *,
    is_secret: bool = False,
    flag: str | None = None,
    has_flag: bool = True,
) -> Any:
    option = Option(read, default, text, is_secret, flag, has_flag and not is_secret)
    return field(metadata={"option": option}, repr=not is_secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, read and checked."""

    store: Path | NatsServers = _row(
        _store, "sqlite:toque.db", "where everything is kept: sqlite:///absolute/path, sqlite:relative/path or nats://host:port,…"
    )
    http: Address = _row(_address, "127.0.0.1:8080", "address and port of the API")
    hep: Address = _row(_address, "127.0.0.1:9060", "address and port for HEP (UDP and TCP), where no [[sources]] are given")
    hep_key: bytes | None = _row(_key, None, "the key that HEP packets must carry", is_secret=True)
    hep_allow_from: tuple[Network, ...] = _row(_networks, [], "networks that HEP packets may come from")
    sources: tuple[Source, ...] = _row(_sources, [], "the switches to listen to", has_flag=False)
    allow_networks: tuple[Network, ...] = _row(_networks, [], "private networks that callbacks may reach", flag="allow-network")
    trusted_proxies: tuple[Network, ...] = _row(_networks, [], "reverse proxies whose X-Forwarded-For counts")
    tls_certificate: Path | None = _row(_file, None, "certificate chain (PEM) for serving the API over HTTPS")
    tls_key: Path | None = _row(_file, None, "private key (PEM) of the certificate")
    ca_file: Path | None = _row(_file, None, "further certificate authorities (PEM) that callbacks' servers may have")
    proxy: TargetUrl | None = _row(_proxy, None, "an HTTP proxy that all posts go through (CONNECT)", is_secret=True)
    secret_key: str | None = _row(_secret_key, None, "encrypts the secrets in the store", is_secret=True)
    time_zone: ZoneInfo = _row(_zone, "America/Sao_Paulo", "the zone of wall-clock times in callbacks and lists")
    country: str = _row(_country, "55", "the calling code that national numbers get")
    token_lifetime: timedelta = _row(_span(1, 86_400), "1h", "how long an access token is valid")
    login_failures: int = _row(_whole(1, 1000), 5, "wrong secrets from one address for one client before 429, per login_window")
    login_window: timedelta = _row(_span(1, 3600), "1m", "the time over which wrong secrets are counted")
    max_callbacks: int = _row(_whole(1, 10_000), 100, "URLs that one client may have registered")
    rotation_overlap: timedelta = _row(_span(0, 2_592_000), "24h", "how long a rotated callback secret goes on signing too")
    stale_answered: timedelta = _row(
        _span(60, 2_592_000), "4h", "an answered call without a sign of life is concluded after this"
    )
    stale_unanswered: timedelta = _row(_span(10, 86_400), "10m", "the same for a call that nobody answered")
    concurrency: int = _row(_whole(1, 10_000), 256, "posts under way at once, in all")
    callback_concurrency: int = _row(_whole(1, 1000), 10, "posts under way at once to one callback")
    ordering_window: timedelta = _row(
        _span(0, 86_400), "30s", "a status that fails for so long at a healthy URL no longer holds up the later ones of its call"
    )
    expire_stale_ringing: bool = _row(
        _flag, False, "true gives up a late chamando once a later status of its call has been delivered"
    )
    keep: timedelta = _row(_span(60, 315_360_000), "30d", "how long events, outcomes and dead deliveries are kept")
    connect_timeout: timedelta = _row(_span(0.1, 60), "5s", "the time to connect to a callback's server, TLS included")
    attempt_timeout: timedelta = _row(_span(0.1, 300), "15s", "the time from the start of a post to the answer's status")
    stop_grace: timedelta = _row(_span(0, 300), "20s", "how long a stop waits for posts under way")
    log_format: str = _row(_one_of("human", "json"), "human", "human or json")
    log_level: str = _row(_one_of("debug", "info", "warning", "error"), "info", "debug, info, warning or error")
    log_numbers: bool = _row(_flag, False, "true shows whole telephone numbers in the log")
    nats_prefix: str = _row(_prefix, "toque", "the beginning of the names of toque's streams on the engine nats://")
    nats_replicas: int | None = _row(_whole(1, 5), None, "copies of each stream; without it 3 on a cluster, 1 on a single server")
    nats_user: str | None = _row(_word, None, "the user name for the engine")
    nats_password: str | None = _row(_word, None, "its password", is_secret=True)
    nats_nkey_file: Path | None = _row(_file, None, "a file with the nkey seed for the engine")
    nats_credentials_file: Path | None = _row(_file, None, "a .creds file for the engine")
    nats_tls: bool = _row(_flag, False, "true speaks TLS with the engine's servers")
    nats_ca_file: Path | None = _row(_file, None, "further certificate authorities (PEM) that the engine's servers may have")
    nats_certificate: Path | None = _row(_file, None, "our certificate (PEM), where the engine asks for one")
    nats_key: Path | None = _row(_file, None, "private key (PEM) of that certificate")
    nats_reconnect_wait: timedelta = _row(_span(0.05, 60), "500ms", "the pause before a server of the engine is tried again")
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each setting came from, by its name."""

    def located(self, error: SettingsError) -> SettingsError:
        """The same error, found out while the settings were put to use, with the place where its setting was set."""
        name = error.option
        if name == "hep" and self.origins.get("sources", _DEFAULT) != _DEFAULT:
            name = "sources"
        origin = self.origins.get(name)
        return error if origin is None else SettingsError(name, origin, error.problem)


OPTIONS: Mapping[str, Option] = {row.name: row.metadata["option"] for row in fields(Settings) if "option" in row.metadata}


def flag_of(name: str) -> str:
    """A setting's flag, without the dashes in front."""
    return OPTIONS[name].flag or name.replace("_", "-")


def load_settings(config: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """Read all settings. `flags` has those that were given, by their settings' names. Raises `SettingsError`."""
    given: dict[str, tuple[Any, str]] = {name: (option.default, _DEFAULT) for name, option in OPTIONS.items()}
    given.update(_from_file(config))
    for name in OPTIONS:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            given[name] = (environment[variable], f"environment {variable}")
    given.update({name: (value, f"flag --{flag_of(name)}") for name, value in flags.items() if value is not None})
    values = {name: _read(name, value, source) for name, (value, source) in given.items()}
    values["sources"] = _all_sources(values, given)
    _check_together(values, given)
    return Settings(**values, origins={name: origin for name, (_, origin) in given.items()})


def _read(name: str, value: Any, source: str) -> Any:
    option = OPTIONS[name]
    if value is None:
        return None
    try:
        return option.read(value)
    except _Unusable as error:
        # What has no flag is a secret or holds some.
        hidden = _CREDENTIALS.sub("***@", value) if isinstance(value, str) else value
        shown = f"{hidden!r} " if option.has_flag and isinstance(value, str | int | float) else ""
        raise SettingsError(name, source, f"{shown}{error}") from None


def _from_file(config: Path | None) -> dict[str, tuple[Any, str]]:
    path = config or DEFAULT_FILE
    if config is None and not path.is_file():
        return {}
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError("config", str(path), f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # TOML's and UTF-8's
        raise SettingsError("config", str(path), f"is not TOML: {error}") from None
    for name in read:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; allowed are {', '.join(OPTIONS)}"
            raise SettingsError(name, str(path), f"there is no such setting{hint}")
    return {name: (value, str(path)) for name, value in read.items()}


@dataclass(frozen=True, slots=True)
class _Key:
    """What a key of a source's table holds; one without a default must be given."""

    read: Callable[[Any], Any]
    default: Any = None
    is_required: bool = True


_SOURCE_KINDS: Mapping[str, Mapping[str, _Key]] = {
    "hep": {
        "kind": _Key(_text),
        "name": _Key(_text, "hep", is_required=False),
        "listen": _Key(_address, Address("127.0.0.1", 9060), is_required=False),
        "key": _Key(_key, b"", is_required=False),
        "allow_from": _Key(_networks, (), is_required=False),
    },
    "ami": {
        "kind": _Key(_text),
        "name": _Key(_word),
        "address": _Key(_switch(AMI_PORT)),
        "username": _Key(_word),
        "secret": _Key(_word, is_required=False),
        "secret_file": _Key(_file, is_required=False),
        "trunks": _Key(_patterns, (), is_required=False),
        "outside_contexts": _Key(_patterns, is_required=False),
        "tenant_variable": _Key(_word, "", is_required=False),
        "tls": _Key(_flag, default=False, is_required=False),
        "tls_ca_file": _Key(_file, is_required=False),
    },
    "esl": {
        "kind": _Key(_text),
        "name": _Key(_word),
        "address": _Key(_switch(ESL_PORT)),
        "password": _Key(_word, is_required=False),
        "password_file": _Key(_file, is_required=False),
        "trunks": _Key(_patterns, (), is_required=False),
        "tenant_variable": _Key(_word, "domain_name", is_required=False),
    },
}


def _all_sources(values: Mapping[str, Any], given: Mapping[str, tuple[Any, str]]) -> tuple[Source, ...]:
    tables: tuple[Mapping[str, Any], ...] = values["sources"]
    if not tables:
        address = values["hep"]
        source = HepSource("hep", address.host, address.port, values["hep_key"] or b"", values["hep_allow_from"])
        _check_open(source, "hep", given["hep"][1], keys="hep_key or hep_allow_from")
        return (source,)
    for name in ("hep", "hep_key", "hep_allow_from"):
        if given[name][1] != _DEFAULT:
            raise SettingsError(name, given[name][1], "is for set-ups without [[sources]]; write it in the source's table")
    read = tuple(_source(table, number, given["sources"][1]) for number, table in enumerate(tables, 1))
    names = [source.name for source in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsError("sources.name", given["sources"][1], f"two sources are named {twice!r}; give each a name of its own")
    poster = next((name for name in names if name.startswith("http:")), None)
    if poster is not None:
        problem = f"{poster!r} is a name for those who post to the HTTP intake; it must not begin with http:"
        raise SettingsError("sources.name", given["sources"][1], problem)
    return read


def _source(table: Mapping[str, Any], number: int, origin: str) -> Source:
    where = f"sources[{number}]"
    *most, last = _SOURCE_KINDS
    allowed = f"{', '.join(most)} or {last}"
    kind = table.get("kind")
    if kind is None:
        raise SettingsError(f"{where}.kind", origin, f"must be given; allowed is {allowed}")
    if not isinstance(kind, str) or kind not in _SOURCE_KINDS:
        raise SettingsError(f"{where}.kind", origin, f"{kind!r} must be {allowed}")
    values = _source_values(table, _SOURCE_KINDS[kind], where, origin)
    address = values.pop("listen" if kind == "hep" else "address")
    if kind == "hep":
        source = HepSource(host=address.host, port=address.port, **values)
        _check_open(source, f"{where}.listen", origin, keys="key or allow_from")
        return source
    if kind == "ami":
        if values["tls_ca_file"] is not None and not values["tls"]:
            raise SettingsError(f"{where}.tls_ca_file", origin, "needs tls = true as well")
        return AmiSource(host=address.host, port=address.port, **_with_secret(values, "secret", where, origin))
    return EslSource(host=address.host, port=address.port, **_with_secret(values, "password", where, origin))


def _source_values(table: Mapping[str, Any], keys: Mapping[str, _Key], where: str, origin: str) -> dict[str, Any]:
    unknown = next((key for key in table if key not in keys), None)
    if unknown is not None:
        raise SettingsError(f"{where}.{unknown}", origin, f"there is no such setting; allowed are {', '.join(keys)}")
    values: dict[str, Any] = {}
    for name, key in keys.items():
        if name not in table and key.is_required:
            raise SettingsError(f"{where}.{name}", origin, "must be given")
        try:
            values[name] = key.read(table[name]) if name in table else key.default
        except _Unusable as error:
            raise SettingsError(f"{where}.{name}", origin, str(error)) from None
    del values["kind"]
    return values


def _with_secret(values: Mapping[str, Any], name: str, where: str, origin: str) -> dict[str, Any]:
    """The values with the secret that stands in the table itself or, alone in it, in a file."""
    kept = {key: value for key, value in values.items() if key != f"{name}_file"}
    secret, file = values[name], values[f"{name}_file"]
    if (secret is None) == (file is None):
        raise SettingsError(f"{where}.{name}", origin, f"must be given, or else {name}_file")
    if file is None:
        return kept
    try:
        return kept | {name: _word(file.read_text(encoding="utf-8").strip())}
    except (_Unusable, OSError, UnicodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "must hold one line of text"
        raise SettingsError(f"{where}.{name}_file", origin, f"{file}: {problem}") from None


def _check_open(source: HepSource, name: str, origin: str, *, keys: str) -> None:
    """HEP's sender addresses can be forged and its packets read like facts: off loopback somebody must vouch for them."""
    if not Address(source.host, source.port).is_loopback and not source.key and not source.allow_from:
        raise SettingsError(name, origin, f"{source.host}:{source.port} is not loopback, so {keys} must be set as well")


def _check_together(values: Mapping[str, Any], given: Mapping[str, tuple[Any, str]]) -> None:
    pairs = [("tls_certificate", "tls_key"), ("nats_certificate", "nats_key")]
    for one, other in [*pairs, *((two, first) for first, two in pairs)]:
        if values[one] is not None and values[other] is None:
            raise SettingsError(one, given[one][1], f"needs {other} as well")
