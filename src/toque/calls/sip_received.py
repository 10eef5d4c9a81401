"""What is remembered of a call that a back-to-back user agent received, so that its legs are known by it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from toque.calls.sip import SipMessage

_NOBODY = frozenset({"", "anonymous", "unknown", "restricted", "unavailable", "private", "asterisk"})  # names that many have
_COMPARED_DIGITS = 8  # a subscriber's number; what is before it is added and removed on the way
MOST_LEGS = 128  # of one call


@dataclass(slots=True)
class Reached:
    """A leg that was joined to a call."""

    number: str
    is_up: bool = False
    is_over: bool = False
    is_leaving: bool = False  # it asked for a transfer: the call may be sent on before this leg ends


@dataclass(slots=True)
class Received:
    """A call as the switch received it."""

    callers: tuple[str, ...]
    dialled: str
    addresses: list[str] = field(default_factory=list)  # `host:port` that its INVITE was sent to, the caller's own first
    agent: str = ""  # what the switch calls itself
    is_answered: bool = False
    is_over: bool = False
    legs: dict[str, Reached] = field(default_factory=dict)
    consults_for: str = ""  # the call that is to be transferred to whom this one reaches

    @property
    def reached(self) -> str:
        """Whom it reaches now, or ''."""
        return next((leg.number for leg in self.legs.values() if leg.is_up), "")

    def may_have_sent(self, message: SipMessage, source: str) -> bool:
        """Whether the sender of this INVITE is whom the call was sent to."""
        if source in self.addresses:
            return True
        if not self.agent or self.agent != message.agent:
            return False
        return self.addresses[0].rpartition(":")[0] == source.rpartition(":")[0]

    def is_called_by(self, callers: Iterable[str]) -> bool:
        """Whether one of these is its caller, and not whom it calls: a called telephone may make a call meanwhile."""
        own = {compared(user) for user in self.callers} - {"", compared(self.dialled)}
        return any(compared(user) in own for user in callers)

    def takes_leg(self, number: str, is_caller: bool, is_called: bool) -> bool:
        """Whether a leg to this number that agrees in so much may be one of this call."""
        if self.is_over or len(self.legs) >= MOST_LEGS or self.reaches(compared(number)):
            return False
        is_talking = any(leg.is_up and not leg.is_leaving for leg in self.legs.values())
        return (is_caller and is_called) if is_talking else (is_caller or is_called)

    def reaches(self, number: str) -> bool:
        """Whether a leg to this number is under way."""
        return any(not leg.is_over and compared(leg.number) == number for leg in self.legs.values())

    @property
    def is_waiting(self) -> bool:
        """Whether it reaches nobody now."""
        return all(leg.is_over for leg in self.legs.values())


def compared(number: str) -> str:
    """What of a number is compared; '' where it is nobody's."""
    digits = number.translate(_SEPARATORS)
    if digits.isascii() and digits.isdecimal():
        return digits[-_COMPARED_DIGITS:]
    return "" if number.lower() in _NOBODY else number


_SEPARATORS = str.maketrans("", "", "+-.() ")
