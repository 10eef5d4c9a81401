"""Who may come in: client secrets against argon2 hashes off the loop, attempts limited, tokens checked without a look-up."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv6Address, ip_address, ip_network
from math import ceil
from weakref import WeakValueDictionary

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from toque.callbacks.callback import Client, Registry
from toque.callbacks.token import TokenClaims, TokenError, mint, verify

# OWASP's second choice for Argon2id: 19 MiB, two passes. Secrets are random, so this need not be slower.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_NOBODY = _HASHER.hash(secrets.token_hex(16))  # checked for unknown clients, so that they take as long as known ones
_CHECKS_AT_ONCE = 2
MAX_CHECKS = 100  # under way and waiting, from as many addresses: some seconds' worth; who comes later shall come again
_BUSY_RETRY_AFTER_S = 3
_MAX_REMEMBERED = 50_000  # keys of the limiter
_MAX_KEY_CHARACTERS = 64  # client_ids have 16; what an attacker makes up may not fill the memory
_IPV6_NETWORK_BITS = 64  # what one subscriber has; single addresses cost nothing (RFC 6177)
_ADDRESS_SHARE = 10  # one address may stand for several clients behind one NAT
CLIENT_SECRET_BYTES = 32


def hash_secret(secret: str) -> str:
    """What is stored of a client secret."""
    return _HASHER.hash(secret)


def new_client_secret() -> str:
    """A client secret: 43 characters that need no escaping."""
    return secrets.token_urlsafe(CLIENT_SECRET_BYTES)


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """The caller does not get in; `text` is for the caller."""

    def __init__(self, text: str, *, error: str = "invalid_token", retry_after_s: int | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.error = error  # OAuth's word (RFC 6749 5.2, RFC 6750 3.1)
        self.retry_after_s = retry_after_s


class Busy(Exception):  # noqa: N818 - an answer, not a fault
    """More secrets wait to be checked than this server should take on."""

    def __init__(self) -> None:
        super().__init__("too many checks wait")
        self.retry_after_s = _BUSY_RETRY_AFTER_S


@dataclass(slots=True)
class _Tries:
    since: datetime
    count: int = 0


class AttemptLimiter:
    """Counts failures by key within a window; memory is bounded."""

    def __init__(self, limit: int, window: timedelta) -> None:
        self._limit = limit
        self._window = window
        self._tries: OrderedDict[object, _Tries] = OrderedDict()

    def wait_s(self, key: object, now: datetime) -> int:
        """The seconds until the next attempt is allowed; 0 when it is now."""
        tries = self._tries.get(key)
        if tries is None or tries.count < self._limit or now - tries.since >= self._window:
            return 0
        return max(1, ceil((tries.since + self._window - now).total_seconds()))

    def begin(self, key: object, now: datetime) -> None:
        """Count an attempt as a failure, which `succeeded` takes back."""
        tries = self._tries.get(key)
        if tries is None or now - tries.since >= self._window:
            tries = self._tries[key] = _Tries(now)
        tries.count += 1
        self._tries.move_to_end(key)
        while len(self._tries) > _MAX_REMEMBERED:
            self._tries.popitem(last=False)

    def succeeded(self, key: object) -> None:
        """The attempt was a good one."""
        tries = self._tries.get(key)
        if tries is not None:
            tries.count = max(tries.count - 1, 0)


class Access:
    """Gives tokens for secrets, and clients for tokens."""

    def __init__(
        self,
        key: bytes,
        registry: Callable[[], Registry],
        clock: Callable[[], datetime],
        *,
        lifetime: timedelta,
        failures: int,
        window: timedelta,
    ) -> None:
        self._key = key
        self._registry = registry
        self._clock = clock
        self.lifetime = lifetime
        self._by_client = AttemptLimiter(failures, window)
        self._by_address = AttemptLimiter(failures * _ADDRESS_SHARE, window)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._checks = 0  # under way or waiting for a thread
        self._threads = ThreadPoolExecutor(_CHECKS_AT_ONCE, thread_name_prefix="toque-argon2")

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def grant(self, client_id: str, client_secret: str, address: str) -> str:
        """A token for the right secret. Raises `Refused`, or `Busy` when too many wait already.

        One address has one check at a time: so no number of guesses at once gets past the limit, and a burst of good requests
        is answered one by one, not refused.
        """
        origin = _origin(address)
        async with self._turns.setdefault(origin, asyncio.Lock()):
            now = self._clock()
            keys = ((self._by_client, (client_id[:_MAX_KEY_CHARACTERS], origin)), (self._by_address, origin))
            wait_s = max(limiter.wait_s(key, now) for limiter, key in keys)
            if wait_s:
                raise Refused("tentativas demais; aguarde", error="invalid_client", retry_after_s=wait_s)
            if self._checks >= MAX_CHECKS:
                raise Busy
            for limiter, key in keys:
                limiter.begin(key, now)
            client = await self._checked(client_id, client_secret)
            for limiter, key in keys:
                limiter.succeeded(key)
        return mint(self._key, TokenClaims(client_id, client.secret_version), self._clock() + self.lifetime)

    async def _checked(self, client_id: str, client_secret: str) -> Client:
        """The client, if this is its secret. Raises `Refused`."""
        client = self._registry().clients.get(client_id)
        known_hash = client.secret_hash if client is not None else _NOBODY
        self._checks += 1
        try:
            is_right = await asyncio.get_running_loop().run_in_executor(self._threads, _is_right, known_hash, client_secret)
        finally:
            self._checks -= 1
        client = self._registry().clients.get(client_id)  # it may have been rotated or removed while we computed
        if not is_right or client is None or client.secret_hash != known_hash or client.disabled_at is not None:
            raise Refused("client_id ou client_secret incorreto", error="invalid_client")
        return client

    def admit(self, token: str) -> Client:
        """The client that a token stands for. Raises `Refused`."""
        if not token:
            raise Refused("access_token ausente", error="invalid_request")
        try:
            claims = verify(self._key, token, self._clock())
        except TokenError as error:
            raise Refused(str(error)) from None
        client = self._registry().clients.get(claims.client_id)
        if client is None or client.secret_version != claims.secret_version or client.disabled_at is not None:
            raise Refused("access_token revogado")
        return client


def _origin(address: str) -> str:
    """Whom attempts are counted for: an IPv4 address, the network of an IPv6 one, or what else a proxy told us."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:_MAX_KEY_CHARACTERS]
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ip_network((parsed, _IPV6_NETWORK_BITS), strict=False))


def _is_right(known_hash: str, secret: str) -> bool:
    try:
        return _HASHER.verify(known_hash, secret)
    except (VerificationError, InvalidHashError):
        return False
