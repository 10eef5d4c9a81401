"""Where a call can be, and what each signal makes of that: the state machine of `calls/tracker.py`, as a table.

docs/diagrams/call.mmd is drawn from it by tools/state_diagrams.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from toque.calls.model import SignalKind


class Phase(StrEnum):
    """Where a call is."""

    CALLING = "calling"
    RINGING = "ringing"
    ANSWERED = "answered"
    REFUSED = "refused"  # the caller was told that it failed; a follow-up or a better reason may come
    LEAVING = "leaving"  # somebody hung up before an answer was seen; it may have been overtaken
    ENDED = "ended"  # told; remembered so that late repetitions begin nothing


_K = SignalKind
STEPS: Mapping[tuple[Phase, SignalKind], Phase] = {
    (Phase.CALLING, _K.BEGAN): Phase.CALLING,
    (Phase.CALLING, _K.BEGAN_AGAIN): Phase.CALLING,
    (Phase.CALLING, _K.CALLER_KNOWN): Phase.CALLING,
    (Phase.CALLING, _K.CALLER_RINGS): Phase.RINGING,
    (Phase.CALLING, _K.LEG_BEGAN): Phase.CALLING,
    (Phase.CALLING, _K.RINGING): Phase.RINGING,
    (Phase.CALLING, _K.PICKED_UP): Phase.CALLING,
    (Phase.CALLING, _K.ANSWERED): Phase.ANSWERED,
    (Phase.CALLING, _K.GAVE_UP): Phase.CALLING,
    (Phase.CALLING, _K.LEG_CANCELLED): Phase.CALLING,
    (Phase.CALLING, _K.LEG_ENDED): Phase.CALLING,
    (Phase.CALLING, _K.LEG_GONE): Phase.CALLING,
    (Phase.CALLING, _K.REFUSED): Phase.REFUSED,
    (Phase.CALLING, _K.HUNG_UP): Phase.LEAVING,
    (Phase.CALLING, _K.VANISHED): Phase.ENDED,
    (Phase.CALLING, _K.NOTED): Phase.CALLING,
    (Phase.RINGING, _K.BEGAN): Phase.RINGING,
    (Phase.RINGING, _K.BEGAN_AGAIN): Phase.CALLING,
    (Phase.RINGING, _K.CALLER_KNOWN): Phase.RINGING,
    (Phase.RINGING, _K.CALLER_RINGS): Phase.RINGING,
    (Phase.RINGING, _K.LEG_BEGAN): Phase.RINGING,
    (Phase.RINGING, _K.RINGING): Phase.RINGING,
    (Phase.RINGING, _K.PICKED_UP): Phase.RINGING,
    (Phase.RINGING, _K.ANSWERED): Phase.ANSWERED,
    (Phase.RINGING, _K.GAVE_UP): Phase.RINGING,
    (Phase.RINGING, _K.LEG_CANCELLED): Phase.RINGING,
    (Phase.RINGING, _K.LEG_ENDED): Phase.RINGING,
    (Phase.RINGING, _K.LEG_GONE): Phase.RINGING,
    (Phase.RINGING, _K.REFUSED): Phase.REFUSED,
    (Phase.RINGING, _K.HUNG_UP): Phase.LEAVING,
    (Phase.RINGING, _K.VANISHED): Phase.ENDED,
    (Phase.RINGING, _K.NOTED): Phase.RINGING,
    (Phase.REFUSED, _K.BEGAN): Phase.REFUSED,
    (Phase.REFUSED, _K.BEGAN_AGAIN): Phase.CALLING,
    (Phase.REFUSED, _K.CALLER_KNOWN): Phase.REFUSED,
    (Phase.REFUSED, _K.LEG_BEGAN): Phase.REFUSED,
    (Phase.REFUSED, _K.RINGING): Phase.REFUSED,
    (Phase.REFUSED, _K.ANSWERED): Phase.ANSWERED,
    (Phase.REFUSED, _K.GAVE_UP): Phase.REFUSED,
    (Phase.REFUSED, _K.LEG_CANCELLED): Phase.REFUSED,
    (Phase.REFUSED, _K.LEG_ENDED): Phase.REFUSED,
    (Phase.REFUSED, _K.LEG_GONE): Phase.REFUSED,
    (Phase.REFUSED, _K.REFUSED): Phase.REFUSED,
    (Phase.REFUSED, _K.HUNG_UP): Phase.REFUSED,
    (Phase.REFUSED, _K.VANISHED): Phase.ENDED,
    (Phase.LEAVING, _K.ANSWERED): Phase.ANSWERED,
    (Phase.LEAVING, _K.REFUSED): Phase.REFUSED,
    (Phase.LEAVING, _K.VANISHED): Phase.ENDED,
    (Phase.ANSWERED, _K.BEGAN): Phase.ANSWERED,
    (Phase.ANSWERED, _K.CALLER_KNOWN): Phase.ANSWERED,
    (Phase.ANSWERED, _K.LEG_BEGAN): Phase.ANSWERED,
    (Phase.ANSWERED, _K.ANSWERED): Phase.ANSWERED,
    (Phase.ANSWERED, _K.CONNECTED): Phase.ANSWERED,
    (Phase.ANSWERED, _K.LEG_HUNG_UP): Phase.ANSWERED,
    (Phase.ANSWERED, _K.HUNG_UP): Phase.ENDED,
    (Phase.ANSWERED, _K.VANISHED): Phase.ENDED,
    (Phase.ANSWERED, _K.NOTED): Phase.ANSWERED,
}
