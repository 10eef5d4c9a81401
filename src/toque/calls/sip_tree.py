"""The tree that the hops of one INVITE form by their Via branches, and where a transaction that is seen stands in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from toque.calls.sip import SipMessage

MAX_HOPS = 128  # forks of one INVITE, and their tags: nobody calls more at once, and each costs memory in every snapshot


@dataclass(slots=True)
class Hop:
    """One INVITE transaction: who sent it (`host:port`), and whom it is to reach."""

    client: str
    number: str
    is_invited: bool = True  # False while only responses were seen


@dataclass(slots=True)
class Dialog:
    """What must be remembered of one call's messages."""

    call_id: str
    tag: str  # the caller's
    callers: tuple[str, ...]
    dialled: str
    root: str = ""  # branch of the caller's own INVITE transaction; "" until one was seen
    above: tuple[str, ...] = ()  # branches between the caller and what we take for the root
    cseq: int = 0
    is_refused: bool = False
    hops: dict[str, Hop] = field(default_factory=dict)
    # Calls that ended are remembered by the thousand: an empty set takes 216 bytes, an empty frozenset none.
    passed: frozenset[str] = frozenset()  # branches of the attempt before this one
    answered_tags: frozenset[str] = frozenset()  # dialogs that are up, by the called party's tag
    gone_tags: frozenset[str] = frozenset()

    @property
    def is_over(self) -> bool:
        """Whether another INVITE must be another attempt."""
        return self.is_refused or (bool(self.gone_tags) and not self.answered_tags)

    @property
    def was_answered(self) -> bool:
        """Whether a dialog is or was up."""
        return bool(self.answered_tags or self.gone_tags)


class Place(Enum):
    """Where an INVITE transaction stands in the tree."""

    KNOWN = auto()
    FIRST = auto()  # nothing was seen before
    LEG = auto()
    NEARER = auto()  # to the caller than what we took for the root: that is a leg
    AGAIN = auto()  # the caller's next attempt
    PASSED = auto()  # of an attempt that the caller has left behind, or one leg too many


def transaction_of(message: SipMessage, client: str) -> str:
    """The transaction's name; clients older than RFC 3261 give no branch, their address and CSeq must do."""
    return (message.branches[0] if message.branches else "") or f"{client}/{message.cseq}"


def place_of(dialog: Dialog, branch: str, message: SipMessage) -> Place:
    if branch in dialog.hops:
        return Place.KNOWN
    if branch in dialog.passed:
        return Place.PASSED
    if not dialog.root:
        return Place.AGAIN if dialog.is_over and message.is_request else Place.FIRST
    return _relation(dialog, branch, message)


def _relation(dialog: Dialog, branch: str, message: SipMessage) -> Place:
    """How a transaction that is new to us stands to those we know; the first question that is answered yes decides."""
    if dialog.root in message.branches[1:]:
        return Place.LEG if len(dialog.hops) < MAX_HOPS else Place.PASSED
    if branch in dialog.above:
        return Place.NEARER
    if message.cseq > dialog.cseq or (dialog.is_over and message.is_request):
        return Place.AGAIN
    # The same request on a path that shares no Via with the first is a leg as well.
    return Place.LEG if message.cseq == dialog.cseq and len(dialog.hops) < MAX_HOPS else Place.PASSED
