"""One connection, and the attempt that uses it.

A connection is in one of these states:

========  =====================================  ===================================================================
state     told by                                what ends it
========  =====================================  ===================================================================
idle      nobody to tell                         `send` makes it waiting; any byte from the peer, its end, or the
                                                 idle time-out closes it
waiting   somebody to tell, no status            a complete head makes it reading; anything else ends the attempt
reading   somebody to tell, a status             a 2xx is told at once; others when the excerpt or the body ends;
                                                 then it is draining
draining  nobody to tell, `_is_draining`         the end of the body makes it idle, a limit or the attempt's deadline
                                                 closes it
========  =====================================  ===================================================================

An answer that comes in whole, in one piece, and is known already leads from waiting to idle without being read.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from toque.callbacks.url import Origin
from toque.sending.answers import EXCERPT_BYTES, SUCCESSES, AnswerReader, KnownAnswers
from toque.sending.outcomes import Answered, OnOutcome, Outcome, Post, Unreachable

MAX_HEAD_BYTES = 32 * 1024
"""The answer's head, interim answers included: twice what common servers and proxies let a head have."""

MAX_BODY_BYTES = 16 * 1024
"""Read from a body to keep the connection; a new connection costs less than reading more than this."""

NEVER = float("inf")

_PATIENCE = 8
_PAUSE = 256
# Answers in a row that nobody knew, after which a receiver is taken for one whose answers all differ; and how many are then
# read before it is given another chance. Looking up and learning what never comes again would cost more than it saves.


class Pool:
    """The connections to one origin."""

    __slots__ = ("idle", "origin", "users")

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.idle: list[Connection] = []
        """The one that was used last is at the end."""
        self.users = 0
        """Dials and connections that refer to it; with the last one it goes."""


class Keeping(Protocol):
    """What a connection asks of whoever keeps all of them."""

    known: KnownAnswers

    def write_soon(self, connection: Connection) -> None:
        """Have the connection's post written together with others."""

    def release(self, connection: Connection, idle_s: float | None) -> bool:
        """Keep the connection for the next post; False when enough are kept already."""

    def withdraw(self, connection: Connection) -> None:
        """Give the connection to no post any longer."""

    def closed(self, connection: Connection) -> None:
        """The connection is over."""

    def dial(self, post: Post, on_outcome: OnOutcome, deadline: float) -> None:
        """Make the attempt over a new connection."""

    def tell(self, post: Post, on_outcome: OnOutcome, outcome: Outcome) -> None:
        """Hand an outcome over."""


class Connection(AnswerReader, asyncio.Protocol):
    """One connection and the attempt that uses it; it reads its answers, one after the other."""

    __slots__ = (
        "_is_draining",
        "_keeper",
        "_known",
        "_on_outcome",
        "_patience",
        "_post",
        "_received",
        "_transport",
        "_write",
        "due",
        "is_closed",
        "is_kept",
        "pool",
    )

    def __init__(self, keeper: Keeping, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.due = NEVER
        """When the attempt's or the idle time is over, on the loop's clock."""
        self.is_closed = False
        self.is_kept = False
        """It has served a post before."""
        self._keeper = keeper
        self._known = keeper.known
        self._transport: asyncio.Transport
        self._post: Post
        self._on_outcome: OnOutcome | None = None
        self._is_draining = False
        self._received = 0  # bytes of the answer that is being read
        self._patience = _PATIENCE  # answers to learn before giving up; below 0 none is looked up

    @property
    def is_silent(self) -> bool:
        """An attempt waits, and not a byte has come."""
        return self._on_outcome is not None and not self._received

    def send(self, post: Post, on_outcome: OnOutcome, deadline: float) -> None:
        """Make the attempt over this connection, which is idle."""
        self._post = post
        self._on_outcome = on_outcome
        self.due = deadline
        self._keeper.write_soon(self)

    def write(self) -> None:
        """Put the post on the wire, unless the connection is over meanwhile."""
        if not self.is_closed and self._on_outcome is not None:
            self._write(self._post.head + self._post.body)

    def end(self, otherwise: Outcome) -> None:
        """Close it now; its attempt, if it has one, ends with the status that has come, or else as given."""
        self.drop()
        self._tell(otherwise)

    def drop(self) -> None:
        """Close it at once. No farewell is due where it is done, and waiting for one would help nobody."""
        self._is_draining = False
        self.due = NEVER
        self._keeper.withdraw(self)
        self._transport.abort()

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be used from now on."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._write = self._transport.write
        self.begin_reading()

    def data_received(self, data: bytes) -> None:
        """Part of an answer came, most often one that is known as it stands."""
        on_outcome = self._on_outcome
        if on_outcome is None or self._received or self._patience < 0 or (known := self._known.get(data)) is None:
            self._read(data)
            return
        self._on_outcome = None
        self._patience = _PATIENCE
        answered, idle_s = known
        if not self._keeper.release(self, idle_s):
            self.drop()
        self._keeper.tell(self._post, on_outcome, answered)

    def eof_received(self) -> None:
        """The peer says no more, and so it is closed; no post may be given to it meanwhile."""
        self._keeper.withdraw(self)

    def connection_lost(self, error: Exception | None) -> None:
        """It is over, by whichever side."""
        self.is_closed = True
        self._keeper.closed(self)
        if self.is_kept and self._on_outcome is not None and not self._received:
            # The peer closed it while the post was on its way: a race that every kept connection can lose.
            on_outcome, self._on_outcome = self._on_outcome, None
            self._keeper.dial(self._post, on_outcome, self.due)
        self._tell(Unreachable(_lost_reason(error, has_begun=self._received > 0)))
        self.end_reading()
        del self._write  # it refers back to this connection

    # How an answer is read, and how it ends.

    def _read(self, data: bytes) -> None:
        if self._on_outcome is None and not self._is_draining:
            self.drop()  # nothing was asked, so it can be no answer
            return
        before = self._received
        self._received = before + len(data)
        if not self.feed(data):
            self.end(Unreachable("answer is not HTTP"))
        elif self.has_ended:
            self._finish(None if before else data)
        elif self.status is not None:
            self._go_on_reading()
        elif self._received > MAX_HEAD_BYTES:
            self.end(Unreachable("head of the answer too long"))

    def _finish(self, whole: bytes | None) -> None:
        """The answer has ended; it came in one piece when `whole` is given."""
        answered = self.answered(self.status or 0)
        idle_s, keeps_alive = self.idle_s, self.keeps_alive
        on_outcome, self._on_outcome = self._on_outcome, None
        self._received = 0
        self._is_draining = False
        self.clear()
        if not keeps_alive:
            self.drop()
        else:
            if whole is not None:
                self._learn(whole, answered, idle_s)
            if not self._keeper.release(self, idle_s):
                self.drop()
        if on_outcome is not None:
            self._keeper.tell(self._post, on_outcome, answered)

    def _learn(self, whole: bytes, answered: Answered, idle_s: float | None) -> None:
        """Know this answer the next time, unless none seems to come twice."""
        self._patience -= 1
        if self._patience >= 0:
            self._known.learn(whole, (answered, idle_s))
        elif self._patience < -_PAUSE:
            self._patience = _PATIENCE

    def _go_on_reading(self) -> None:
        """The head is there and the body is not over."""
        if self.body_bytes > MAX_BODY_BYTES or self._received > MAX_HEAD_BYTES + MAX_BODY_BYTES:
            self.end(Unreachable("answer too long"))  # not told, as there is a status
        elif self.status in SUCCESSES or len(self.body) >= EXCERPT_BYTES:
            self._is_draining = True
            self._tell(Unreachable("answer cut short"))  # not told either

    def _tell(self, otherwise: Outcome) -> None:
        """End the attempt, unless that has been done: with the status, or as given while there is none."""
        on_outcome = self._on_outcome
        if on_outcome is None:
            return
        self._on_outcome = None
        status = self.status
        self._keeper.tell(self._post, on_outcome, otherwise if status is None else self.answered(status))


def _lost_reason(error: Exception | None, *, has_begun: bool) -> str:
    if isinstance(error, OSError):
        return "connection reset" if isinstance(error, ConnectionError) else "connection lost"
    return "answer cut short" if has_begun else "connection closed without an answer"
