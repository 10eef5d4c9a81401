"""What names stand for: lookups off the loop, and their answers kept for a few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from toque.sending.guard import Address

MAX_LOOKUPS = 64
"""Names looked up at once. A resolver's time-out can be half a minute, so a few dead names must not hold up the rest."""

KEPT_S = 10.0
"""How long an answer is kept, in seconds: the time within which a receiver that moved is found."""

MISSING_KEPT_S = 1.0
"""How long it is known that there is no such name, in seconds: short, as somebody may be mending it."""

MAX_NAMES = 4096
"""Names whose answers are kept; as many as connections."""

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


@dataclass(frozen=True, slots=True)
class _Known:
    """What was found: addresses, or the arguments of the error that there were none."""

    addresses: Sequence[Address]
    error: tuple[object, ...] | None
    until_s: float


class Names:
    """Keeps what a resolver finds for a few seconds. Who asks for a name that is being looked up shares the answer.

    The guard judges addresses each time that they are to be dialled, so a kept answer lets nobody in.
    """

    def __init__(
        self,
        resolve: Resolve,
        *,
        kept_s: float = KEPT_S,
        missing_kept_s: float = MISSING_KEPT_S,
        max_names: int = MAX_NAMES,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`clock` gives seconds that never jump; the running loop's unless it is given."""
        self._resolve = resolve
        self._kept_s = kept_s
        self._missing_kept_s = missing_kept_s
        self._max_names = max_names
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._known: dict[str, _Known] = {}
        self._under_way: dict[str, asyncio.Task[Sequence[Address]]] = {}

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        """Return the addresses of an ASCII host name, the preferred ones first; OSError when it has none."""
        known = self._known.get(host)
        if known is not None and self._clock() < known.until_s:
            if known.error is not None:
                raise socket.gaierror(*known.error)
            return known.addresses
        lookup = self._under_way.get(host)
        if lookup is None:
            lookup = self._under_way[host] = asyncio.create_task(self._look_up(host, port))
            lookup.add_done_callback(lambda task: self._ended(host, task))
        return await asyncio.shield(lookup)

    def forget(self, host: str) -> None:
        """Ask anew the next time: the host was not found where it was said to be."""
        self._known.pop(host, None)

    async def close(self) -> None:
        """Wait for no lookup any longer; safe to repeat."""
        lookups = list(self._under_way.values())
        for lookup in lookups:
            lookup.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)

    async def _look_up(self, host: str, port: int) -> Sequence[Address]:
        try:
            found = await self._resolve(host, port)
        except socket.gaierror as error:  # other errors are not the name's
            self._keep(host, (), error.args, self._missing_kept_s)
            raise
        self._keep(host, found, None, self._kept_s if found else self._missing_kept_s)
        return found

    def _keep(self, host: str, found: Sequence[Address], error: tuple[object, ...] | None, kept_s: float) -> None:
        self._known.pop(host, None)  # so that the oldest are the first
        if kept_s > 0:
            while len(self._known) >= self._max_names:
                del self._known[next(iter(self._known))]
            self._known[host] = _Known(found, error, self._clock() + kept_s)

    def _ended(self, host: str, lookup: asyncio.Task[Sequence[Address]]) -> None:
        del self._under_way[host]
        if not lookup.cancelled():
            lookup.exception()  # seen, even when everybody who asked has stopped waiting


class SystemResolver:
    """Asks the system's resolver for the addresses of names, off the loop.

    The loop's own `getaddrinfo` will not do: libuv runs two lookups at a time, so two names whose servers are dead would
    hold up everybody else's. Here each lookup has its own thread. The threads are daemons, as nothing can break off a
    lookup and an orderly stop must not wait for one.
    """

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(MAX_LOOKUPS)

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        """Return the addresses of an ASCII host name, the system's preferred ones first; OSError when it has none."""
        async with self._turns:
            answer: asyncio.Future[Sequence[Address]] = asyncio.get_running_loop().create_future()
            try:
                threading.Thread(target=_ask, args=(host, port, answer), name="lookup", daemon=True).start()
            except RuntimeError:  # the machine has no thread left
                raise OSError(errno.ENOMEM, "no thread for a lookup") from None
            return await answer


def _ask(host: str, port: int, answer: asyncio.Future[Sequence[Address]]) -> None:
    """Run in a thread of its own: the lookup, and handing what came of it to the loop."""
    result: Sequence[Address] | OSError
    try:
        # Bytes: a str would go through Python's own, older IDNA codec.
        found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
        result = list(dict.fromkeys(ip_address(sockaddr[0]) for *_, sockaddr in found))
    except OSError as error:
        result = _own_problem() or error
    with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
        answer.get_loop().call_soon_threadsafe(_hand_over, answer, result)


def _own_problem() -> OSError | None:
    """Why no lookup could have worked here: a resolver that gets no socket says that the name is not known."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as error:
        return error
    return None


def _hand_over(answer: asyncio.Future[Sequence[Address]], result: Sequence[Address] | OSError) -> None:
    if answer.done():
        return
    if isinstance(result, OSError):
        answer.set_exception(result)
    else:
        answer.set_result(result)
