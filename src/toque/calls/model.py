"""The words of a call: what sources say, what a call is, what its owner is told.

Pure values. Moments are aware UTC datetimes from the switch's clock where it has one; spans are timedeltas.
They are made for every message and every status, so they are msgspec's: a frozen dataclass takes many times as long to make.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec


class Status(StrEnum):
    """A step in a call's life; everything from HUNG_UP on is an end."""

    INITIATED = "initiated"
    RINGING = "ringing"
    ANSWERED = "answered"
    HUNG_UP = "hung_up"
    BUSY = "busy"
    NO_ANSWER = "no_answer"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    CONGESTION = "congestion"
    INVALID_NUMBER = "invalid_number"
    UNREACHABLE = "unreachable"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether a side is told nothing after this status."""
        return self not in PROGRESS


PROGRESS = (Status.INITIATED, Status.RINGING, Status.ANSWERED)


class Direction(StrEnum):
    """A side's direction as its owner sees it."""

    MADE = "made"
    RECEIVED = "received"


class Party(StrEnum):
    """Who ended a call."""

    CALLER = "caller"
    CALLEE = "callee"
    NETWORK = "network"


class Cause(msgspec.Struct, frozen=True, gc=False):
    """What is known of why something ended: SIP status code, Q.850 cause value, the switch's own words."""

    sip: int | None = None
    q850: int | None = None
    text: str | None = None


class CallIdentity(NamedTuple):
    """What one switch calls a call: the source's name and the call's first identity there (for SIP: Call-ID and From-tag)."""

    source: str
    key: str


class SignalKind(StrEnum):
    """What a source can say about a call. Every switch's reader speaks these words and no others."""

    BEGAN = "began"  # the caller's leg begins
    BEGAN_AGAIN = "began_again"  # the caller follows a challenge or a redirection, or calls under the same name again
    CALLER_KNOWN = "caller_known"  # another number of the caller, or the dialled number, came to light
    CALLER_RINGS = "caller_rings"  # click-to-call: the caller's own telephone rings
    LEG_BEGAN = "leg_began"  # the switch calls somebody on the caller's behalf
    RINGING = "ringing"
    PICKED_UP = "picked_up"  # the switch itself answered: an IVR, a queue, an announcement
    ANSWERED = "answered"  # a person or the far end answered
    GAVE_UP = "gave_up"  # the caller cancelled, or hung up before anyone answered
    LEG_CANCELLED = "leg_cancelled"  # the switch stopped calling this leg
    LEG_ENDED = "leg_ended"  # a called leg ended unanswered
    LEG_GONE = "leg_gone"  # a called leg says nothing of the end: redirected, lost to another, picked up elsewhere
    REFUSED = "refused"  # the caller's leg was told that the attempt failed
    CONNECTED = "connected"  # after the answer: whom the caller talks to now, by a transfer or a pickup
    LEG_HUNG_UP = "leg_hung_up"  # one of several answered legs ended
    HUNG_UP = "hung_up"  # the caller's last leg ended after an answer
    VANISHED = "vanished"  # the switch does not know the call any more: its end was missed
    NOTED = "noted"  # the switch's reader knows something that it will need; a restart must not lose it
    SEEN = "seen"  # the call is alive; nothing changed


class Signal(msgspec.Struct, gc=False):
    """One thing a source saw about one leg.

    `leg` is the source's name for a called leg, None for the caller's own. `number` is whom a leg reaches.
    `callers` and `dialled` come with every signal, so that a call first seen in its middle has them. `word` is the end by the
    switch's own words, where its codes do not say it. `hints` are looked up as lines where no number is one, and `direction` is
    the switch's own view, for those (`account:acme`, `context:from-acme`).
    """

    identity: CallIdentity
    kind: SignalKind
    at: datetime
    leg: str | None = None
    callers: tuple[str, ...] = ()  # the caller's numbers, the one that is shown first
    dialled: str = ""
    number: str = ""
    cause: Cause | None = None
    by: Party | None = None
    word: Status | None = None
    hints: tuple[str, ...] = ()
    direction: Direction | None = None


class Owner(msgspec.Struct, frozen=True, gc=False):
    """Whose line a number is."""

    client_id: str
    pin: str


class Side(msgspec.Struct, frozen=True, gc=False):
    """One client's view of one call."""

    owner: Owner
    direction: Direction


class CallFacts(msgspec.Struct, frozen=True, gc=False):
    """What is known of a call at the moment of a status; None until known."""

    caller: str
    dialled: str
    answered_by: str | None = None
    began_at: datetime | None = None
    pbx_answered_at: datetime | None = None
    ringing_at: datetime | None = None
    answered_at: datetime | None = None
    ended_at: datetime | None = None
    is_whole: bool = True  # seen from its beginning, so that what was not seen did not happen
    hung_up_by: Party | None = None
    cause: Cause | None = None
    is_inferred: bool = False


class StatusChange(msgspec.Struct, frozen=True, gc=False):
    """A status of one side, on its way into the store, which numbers it."""

    identity: CallIdentity
    side: Side
    status: Status
    at: datetime
    facts: CallFacts


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """A call's state as the store keeps it while the call is in progress; `state` is None once it has ended."""

    identity: CallIdentity
    state: bytes | None
    ended_at: datetime | None = None
