"""The connection to the engine: requests with an end to waiting, and foreign errors translated once.

The client reconnects by itself, for ever. While no server can be reached, or none leads, a request ends with `Unanswered`: it is
then not known whether the engine did it, which is why everything that is written here may be written again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import structlog

from toque.errors import SettingsError, StoreError

try:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.errors import Error
except ImportError:  # the extra `toque[nats]` brings it
    Client = None  # type: ignore[assignment,misc]

REQUEST_S = 3.0  # a leader that answers at all does so in milliseconds; an election takes 4 to 9 s, and whoever asks tries again
_CONNECT_S = 2.0
_OPEN_S = 3.0  # for the first connection, whatever number of servers there is to try
_PING_S = 10  # two missed ones, and a server that stopped without closing is left
_PENDING_BYTES = 16 * 2**20  # of what is sent while the connection is coming back
_OLDEST = (2, 12)  # it brought atomic batches
_MISSING = "the nats:// engine needs the extra toque[nats]: pip install 'toque[nats]'"

_API_UNAVAILABLE = frozenset({503, 504})
CONFLICT_CODES = frozenset({10071, 10164})  # the last sequence is another one: for good, or while one is under way
NOT_FOUND = 404


class Unanswered(StoreError):  # noqa: N818 - a fact
    """The engine did not answer in time, or had no leader. Whether it did what was asked is not known."""


class Refused(StoreError):  # noqa: N818 - a fact
    """The engine refused; `code` is its own error code."""

    def __init__(self, text: str, code: int = 0, status: int = 0) -> None:
        super().__init__(text)
        self.code = code
        self.status = status


class Conflict(Exception):  # noqa: N818 - a fact: somebody else wrote first
    """What was to be written goes by a state that is no longer the last one."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the engine is, and how to get in."""

    servers: tuple[str, ...]
    name: str = ""
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    nkey_file: Path | None = None
    credentials_file: Path | None = None
    is_tls: bool = False
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    reconnect_wait_s: float = 0.5


class _ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class Answer(msgspec.Struct):
    """What every answer of the engine has."""

    error: _ApiError | None = None
    seq: int = 0
    success: bool = False
    purged: int = 0


_ANSWER = msgspec.json.Decoder(Answer)


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of a stream."""

    seq: int
    subject: str
    data: bytes


class _Reading:
    """Messages that are coming in answer to one direct get."""

    __slots__ = ("end", "found")

    def __init__(self) -> None:
        self.found: list[Stored] = []
        self.end: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class Link:
    """One connection."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._log = structlog.get_logger("toque.store")
        self._client: Client | None = None
        self._readings: dict[str, _Reading] = {}
        self._inbox = ""
        self._number = 0
        self._problem = "no answer"
        self._refusal: asyncio.Future[None] | None = None
        self.is_closed = False

    async def open(self) -> None:
        """Connect. Raises `SettingsError` for what no waiting mends, else `StoreError`."""
        if Client is None:
            raise SettingsError("store", self.shown, _MISSING)
        options = _options(self._access)
        client = Client()
        try:
            await self._connected(client, options)
            self._check_version(client)
        except BaseException:
            await _abandon(client)
            raise
        self._client = client
        self._inbox = client.new_inbox()
        await client.subscribe(f"{self._inbox}.*", cb=self._arrived)

    async def _connected(self, client: Client, options: Mapping[str, Any]) -> None:
        """Connect, unless a server refuses the credentials: trying again, as the client would, does not help there."""
        self._refusal = refusal = asyncio.get_running_loop().create_future()
        connecting = asyncio.ensure_future(self._connect(client, options))
        try:
            await asyncio.wait([connecting, refusal], timeout=_OPEN_S, return_when=asyncio.FIRST_COMPLETED)
            if refusal.done():
                raise SettingsError("store", self.shown, f"{self.shown} refuses these credentials")
            if not connecting.done():
                raise StoreError(f"{self.shown} cannot be reached: {self._problem}")
            await connecting
        except (Error, OSError) as error:
            raise StoreError(f"{self.shown} cannot be reached: {_reason(error)}") from None
        finally:
            self._refusal = None
            connecting.cancel()
            await asyncio.wait([connecting])
            if not connecting.cancelled():
                connecting.exception()  # it was told above, or does not matter any more

    def _check_version(self, client: Client) -> None:
        version = client.connected_server_version
        if (version.major, version.minor) < _OLDEST:
            needed = ".".join(map(str, _OLDEST))
            found = f"{version.major}.{version.minor}"
            raise SettingsError("store", self.shown, f"nats-server {needed} or later is needed; {self.shown} is {found}")

    @property
    def shown(self) -> str:
        """The servers, for people."""
        return "nats://" + ",".join(self._access.servers)

    async def _connect(self, client: Client, options: Mapping[str, Any]) -> None:
        access = self._access
        scheme = "tls" if access.is_tls else "nats"
        await client.connect(
            [f"{scheme}://{server}" for server in access.servers],
            name=access.name or "toque",
            error_cb=self._failed,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
            connect_timeout=_CONNECT_S,  # type: ignore[arg-type]
            reconnect_time_wait=access.reconnect_wait_s,  # type: ignore[arg-type]
            max_reconnect_attempts=-1,
            ping_interval=_PING_S,
            pending_size=_PENDING_BYTES,
            **options,
        )

    async def _failed(self, error: Exception) -> None:
        self._problem = _reason(error)
        if self._refusal is not None and not self._refusal.done() and "authorization" in self._problem.lower():
            self._refusal.set_result(None)
        self._log.debug("engine.connection_failed", error=str(error) or type(error).__name__)

    async def _disconnected(self) -> None:
        if not self.is_closed:
            self._log.warning("engine.disconnected")

    async def _reconnected(self) -> None:
        assert self._client is not None  # noqa: S101 - for the type checker
        url = self._client.connected_url
        self._log.info("engine.reconnected", server="" if url is None else f"{url.hostname}:{url.port}")

    async def close(self) -> None:
        """Let go of the connection. Safe to repeat."""
        self.is_closed = True
        client, self._client = self._client, None
        if client is not None:
            await _abandon(client)

    @property
    def max_payload(self) -> int:
        """The largest message that the servers take, in bytes."""
        return 2**20 if self._client is None else self._client.max_payload

    @property
    def is_cluster(self) -> bool:
        """Whether the server says that it is part of a cluster."""
        return self._client is not None and bool(self._client._server_info.get("cluster"))  # noqa: SLF001 - nobody else tells

    def _connection(self) -> Client:
        if self._client is None or self.is_closed:
            raise StoreError("the store is closed")
        return self._client

    async def request(
        self, subject: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, timeout_s: float = REQUEST_S
    ) -> Msg:
        """Ask and wait for the answer. Raises `Unanswered`."""
        client = self._connection()
        try:
            return await client.request(subject, body, timeout=timeout_s, headers=None if headers is None else dict(headers))
        except (Error, TimeoutError, OSError, ssl.SSLError) as error:
            if self.is_closed:
                raise StoreError("the store is closed") from None
            raise Unanswered(f"the engine does not answer: {_reason(error)}") from None

    async def send(self, subject: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Send without waiting for an answer."""
        try:
            await self._connection().publish(subject, body, headers=dict(headers))
        except (Error, TimeoutError, OSError) as error:
            raise Unanswered(f"the engine does not answer: {_reason(error)}") from None

    async def answer(
        self, subject: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, timeout_s: float = REQUEST_S
    ) -> Answer:
        """The same for what is answered with JSON. Raises `Conflict`, `Refused` or `Unanswered`."""
        return checked(await self.request(subject, body, headers, timeout_s=timeout_s))

    async def read(self, stream: str, wanted: Mapping[str, Any]) -> tuple[list[Stored], bool]:
        """What a direct get finds, and whether that is all. Any replica may answer, also one that lags behind."""
        client = self._connection()
        self._number += 1
        token = str(self._number)
        reading = self._readings[token] = _Reading()
        try:
            async with asyncio.timeout(REQUEST_S):
                await client.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(wanted), reply=f"{self._inbox}.{token}")
                is_all = await reading.end
        except (Error, TimeoutError, OSError) as error:
            raise Unanswered(f"the engine does not answer: {_reason(error)}") from None
        finally:
            del self._readings[token]
        return reading.found, is_all

    async def _arrived(self, message: Msg) -> None:
        reading = self._readings.get(message.subject.rpartition(".")[2])
        if reading is None or reading.end.done():
            return
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            reading.found.append(Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], message.data))
            return
        match status:
            case "204":
                reading.end.set_result(headers.get("Nats-Num-Pending", "0") == "0")
            case "404":
                reading.end.set_result(True)
            case _:
                reading.end.set_exception(Unanswered(f"the engine cannot read now: {status}"))


def checked(message: Msg) -> Answer:
    """The answer in a message. Raises `Conflict`, `Refused` or `Unanswered`."""
    try:
        answer = _ANSWER.decode(message.data)
    except msgspec.DecodeError:
        status = (message.headers or {}).get("Status", "no status")
        raise Unanswered(f"the engine has no leader for this now: {status}") from None
    error = answer.error
    if error is None:
        return answer
    if error.err_code in CONFLICT_CODES:
        raise Conflict(error.description)
    if error.code in _API_UNAVAILABLE:
        raise Unanswered(f"the engine cannot do this now: {error.description}")
    raise Refused(f"the engine refuses: {error.description}", error.err_code, error.code)


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.removeprefix("nats: ")


def _options(access: Access) -> dict[str, Any]:
    """What the client is told of how to get in. Raises `SettingsError` for a file that cannot be used."""
    options: dict[str, Any] = {}
    if access.user is not None:
        options.update(user=access.user, password=access.password)
    if access.nkey_file is not None:
        options.update(nkeys_seed=str(_readable("nats_nkey_file", access.nkey_file)))
    if access.credentials_file is not None:
        options.update(user_credentials=str(_readable("nats_credentials_file", access.credentials_file)))
    if access.is_tls:
        options.update(tls=_tls(access))
    return options


def _readable(option: str, path: Path) -> Path:
    try:
        path.read_bytes()
    except OSError as error:
        raise SettingsError(option, str(path), f"cannot be read: {error.strerror}") from None
    return path


def _tls(access: Access) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if access.ca_file is not None:
        try:
            context.load_verify_locations(access.ca_file)
        except (ssl.SSLError, OSError) as error:
            raise SettingsError("nats_ca_file", str(access.ca_file), f"cannot be read as PEM: {error}") from None
    if access.certificate is not None:
        try:
            context.load_cert_chain(access.certificate, access.key)
        except (ssl.SSLError, OSError) as error:
            raise SettingsError("nats_certificate", str(access.certificate), f"cannot be used: {error}") from None
    return context


async def _abandon(client: Client) -> None:
    """Close, whatever state it is in."""
    if not client.is_connected:  # it would write what it has left to a connection that is gone
        client._pending, client._pending_data_size = [], 0  # noqa: SLF001 - there is no other way
    with suppress(Error, TimeoutError, OSError, RuntimeError):
        async with asyncio.timeout(_CONNECT_S):
            await client.close()
