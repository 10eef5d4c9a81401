"""Whether a URL's server can be reached: a connection is opened as for a post, by the same guard and dialler, and then closed."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from toque.callbacks.url import TargetUrl
from toque.sending.answers import KnownAnswers
from toque.sending.connection import Connection, Pool
from toque.sending.dialler import Dialler
from toque.sending.guard import Guard
from toque.sending.names import Names, SystemResolver
from toque.sending.outcomes import Forbidden, OnOutcome, Post, Unreachable, Unsent


@dataclass(frozen=True, slots=True)
class Reached:
    """A connection was opened, TLS included, after so many milliseconds; until when its certificate is valid."""

    took_ms: float
    certificate_ends_at: datetime | None = None


class Reaching:
    """Opens connections and posts nothing."""

    def __init__(
        self, guard: Guard, *, ssl_context: ssl.SSLContext, proxy: TargetUrl | None = None, connect_timeout_s: float = 5.0
    ) -> None:
        self._names = Names(SystemResolver())
        self._timeout_s = connect_timeout_s
        self._dialler = Dialler(guard, self._names, ssl_context, connect_timeout_s, proxy)

    async def reach(self, url: TargetUrl) -> Reached | Unreachable | Forbidden | Unsent:
        """Open a connection to a URL's server and close it."""
        loop, keeper, pool = asyncio.get_running_loop(), _Nobody(), Pool(url.origin)
        began_s = time.perf_counter()
        result = await self._dialler.connect(url, loop.time() + self._timeout_s, lambda: _Knock(keeper, pool))
        took_ms = (time.perf_counter() - began_s) * 1000
        if not isinstance(result, _Knock):
            assert not isinstance(result, Connection)  # noqa: S101 - for the type checker: `_Knock` is what was made
            return result
        ends_at = result.certificate_ends_at
        if not result.is_closed:
            result.drop()
            await result.closed.wait()
        return Reached(round(took_ms, 1), ends_at)

    async def close(self) -> None:
        """Wait for no lookup any longer."""
        await self._names.close()


class _Knock(Connection):
    """A connection that sends nothing."""

    __slots__ = ("certificate_ends_at", "closed")

    def __init__(self, keeper: _Nobody, pool: Pool) -> None:
        super().__init__(keeper, pool)
        self.closed = asyncio.Event()
        self.certificate_ends_at: datetime | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `Connection.connection_made`."""
        super().connection_made(transport)
        shown: dict[str, Any] = transport.get_extra_info("peercert") or {}
        if "notAfter" in shown:
            self.certificate_ends_at = datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)

    def connection_lost(self, error: Exception | None) -> None:
        """See `Connection.connection_lost`."""
        super().connection_lost(error)
        self.closed.set()


class _Nobody:
    """Keeps no connection; see `connection.Keeping`."""

    def __init__(self) -> None:
        self.known = KnownAnswers()

    def write_soon(self, connection: Connection) -> None:
        pass

    def release(self, connection: Connection, idle_s: float | None) -> bool:  # noqa: ARG002 - see `Keeping`
        return False

    def withdraw(self, connection: Connection) -> None:
        pass

    def closed(self, connection: Connection) -> None:
        pass

    def dial(self, post: Post, on_outcome: OnOutcome, deadline: float) -> None:
        pass

    def tell(self, post: Post, on_outcome: OnOutcome, outcome: Any) -> None:
        pass
