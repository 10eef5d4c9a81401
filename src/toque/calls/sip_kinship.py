"""Whether whoever is to be told of a leg is told of the call that it would be joined to.

A leg that was joined is told as part of that call. If the guess is wrong, or the call is past the moment at which it takes new
sides, the owner of the leg's numbers would hear nothing of it: then it is better told as a call of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from toque.calls.call import Call
from toque.calls.model import CallIdentity, Owner
from toque.calls.phases import Phase
from toque.calls.tracker import CallTracker


class Kinship(IntEnum):
    """How the owners of a leg's numbers stand to a call; a higher one is the likelier."""

    NONE = 0  # joined to it, the leg would be lost to one of them; or the call is over
    NEW = 1  # one of them would be told of the call because of the leg
    TOLD = 2  # they are told of it anyway, or the numbers are nobody's lines


def kinship(tracker: CallTracker, identity: CallIdentity, callers: Iterable[str], number: str, *, is_called: bool) -> Kinship:
    """Of a leg with these callers to this number; `is_called` is whether the call dialled that number too."""
    call = tracker.calls.get(identity)
    if call is None or call.phase is Phase.ENDED:
        return Kinship.NONE
    told = {side.client_id for side in call.sides}
    maker = next((owner for caller in callers if (owner := tracker.lines.owner(caller)) is not None), None)
    return min(_of_maker(told, maker, is_called=is_called), _of_reached(call, told, tracker.lines.owner(number)))


def _of_maker(told: set[str], maker: Owner | None, *, is_called: bool) -> Kinship:
    """A switch shows another number than the caller's own when it calls whom that one dialled, and for no other leg."""
    if maker is None or maker.client_id in told:
        return Kinship.TOLD
    return Kinship.NEW if is_called else Kinship.NONE


def _of_reached(call: Call, told: set[str], reached: Owner | None) -> Kinship:
    """After the answer, nobody is told any more of whom a leg reaches."""
    if reached is None or reached.client_id in told:
        return Kinship.TOLD
    return Kinship.NONE if call.phase is Phase.ANSWERED else Kinship.NEW
