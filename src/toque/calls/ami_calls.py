"""What is remembered of one call on an Asterisk, and what its end means.

An Asterisk's words cannot be taken as they stand: DialEnd says NOANSWER for 404, 603 and a time-out alike, and the caller's own
cause is whatever the dialplan made of it. What a called channel's far end asked for (HangupRequest) and its Hangup's cause tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from toque.calls.causes import word_for
from toque.calls.model import Cause, Direction, Party, Status

_NORMAL = 16
_INTERWORKING = 127
_NO_ROUTE = 3
_ANSWERED_ELSEWHERE = 26
_REQUEST_TERMINATED = 487
# The switch's own words, for ends whose codes say nothing (app_dial's DIALSTATUS and DialEnd).
_BY_DIAL_STATUS = {
    "BUSY": Status.BUSY,
    "CONGESTION": Status.CONGESTION,
    "CHANUNAVAIL": Status.UNREACHABLE,
    "NOANSWER": Status.NO_ANSWER,
    "DONTCALL": Status.REJECTED,
    "TORTURE": Status.REJECTED,
}
# OriginateResponse's Reason: the control frame that ended the attempt (include/asterisk/frame.h).
_BY_REASON = {"1": Status.FAILED, "3": Status.NO_ANSWER, "5": Status.BUSY, "8": Status.CONGESTION}


class Origin(StrEnum):
    """Who called whom first."""

    UNKNOWN = "unknown"
    CALLER = "caller"  # the caller called the switch
    CLICK = "click"  # the switch called the caller's own telephone first
    DIALER = "dialer"  # the switch called the far end first


@dataclass(slots=True)
class Leg:
    """A channel that was called for a call, until the call's end."""

    number: str = ""
    is_local: bool = False
    is_own: bool = False  # the caller's own telephone
    has_legs: bool = False  # of a Local channel: somebody was called behind it
    rang_at: datetime | None = None
    is_up: bool = False
    status: str = ""  # DialEnd's first word
    is_lost: bool = False  # redirected, or picked up by another telephone
    hangup_asked: bool = False  # by its far end
    q850: int = 0
    sip: int | None = None
    is_over: bool = False
    told: int = 0  # 1 begun, 2 rang, 3 ended


@dataclass(frozen=True, slots=True)
class End:
    """What the principal's Hangup said."""

    at: datetime
    q850: int
    sip: int | None
    text: str


@dataclass(slots=True)
class AmiCall:
    """One call in progress."""

    key: str
    principal: str  # uid of the channel whose end is the call's end: the caller's, or one that took its place
    began_at: datetime
    origin: Origin = Origin.UNKNOWN
    first_name: str = ""  # the name of its first channel
    hub: str = ""  # uid of the Local channel that an Originate made, which then runs the dialplan
    callers: tuple[str, ...] = ()
    dialled: str = ""
    tenant: str = ""
    hints: tuple[str, ...] = ()
    direction: Direction | None = None
    is_held: bool = False  # it asked for a feature, which may turn out to be the pickup of another call
    is_begun: bool = False
    is_blurred: bool = False  # events were missed before anybody had answered
    has_news: bool = False  # of the caller's or the dialled number
    is_callers_ringing: bool = False
    is_caller_ready: bool = False  # click-to-call: the caller has taken the telephone up
    is_picked_up: bool = False
    is_doubtful: bool = False  # it was picked up while it was blurred, and nothing since then says that it was the switch
    is_answered: bool = False
    is_swapped: bool = False  # the caller left it to others by a transfer, and the far end's channel carries it
    has_left: bool = False  # the caller gave its place away by a transfer
    talks_to: str = ""  # uid
    answered_by: str = ""
    legs: dict[str, Leg] = field(default_factory=dict)
    agent: str = ""  # uid, by the queue's own word
    voicemail: str | None = None  # the box that the caller was sent to
    is_queued: bool = False
    was_queued: bool = False
    asked_by: Party | None = None  # whose telephone asked for the hangup first
    is_soft: bool = False  # the switch itself asked for it
    is_giving_up: bool = False  # the caller hung up while somebody was yet to answer
    own_refusal: bool = False  # what looks like the caller's hangup is our own refusal
    dial_status: str = ""  # the variable
    reason: str = ""  # OriginateResponse's
    has_response: bool = False
    end: End | None = None  # it is over, and waits for OriginateResponse, which says whom the caller wanted


@dataclass(frozen=True, slots=True)
class LegEnd:
    """How a called leg ended, by itself or by time."""

    word: Status
    cause: Cause
    by: Party | None = None


def q850_of(text: str) -> int:
    """A `Cause` as Asterisk writes it; 0, which is none, for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and 0 < int(text[:4]) < 128 else 0


def sip_of(text: str) -> int | None:
    """A `TechCause`: the SIP code of a failure, where there is one."""
    return int(text) if text.isascii() and text.isdecimal() and 300 <= int(text[:4]) < 700 else None


def evidence(q850: int, sip: int | None, text: str = "") -> Cause:
    """What goes into a status's cause."""
    return Cause(sip=sip, q850=q850 or None, text=text[:200] or None)


def end_of(leg: Leg, text: str = "") -> LegEnd | None:
    """How a leg ended; None for one that has not, or whose end says nothing: it was stopped for another's sake."""
    if leg.is_lost or leg.q850 == _ANSWERED_ELSEWHERE or (leg.status == "CANCEL" and not leg.hangup_asked):
        return None
    if not (leg.is_over or leg.hangup_asked or leg.status not in ("", "ANSWER")):
        return None
    rang = leg.rang_at is not None or leg.is_up
    cause = evidence(leg.q850, leg.sip, text or leg.status)
    if not leg.hangup_asked and leg.q850 in (0, _NORMAL) and leg.status in ("NOANSWER", "ANSWER"):
        return LegEnd(Status.NO_ANSWER if rang else Status.UNREACHABLE, cause, Party.NETWORK)
    if leg.q850 or leg.sip:
        return LegEnd(word_for(cause, rang=rang), cause)
    word = _BY_DIAL_STATUS.get(leg.status)
    return None if word is None else LegEnd(word, cause)


def gave_up(call: AmiCall, end: End, *, hears_requests: bool) -> bool:
    """Whether the caller of an unanswered call ended it: nothing else had, when it hung up.

    With `hears_requests`, the switch tells when a far end asks for a hangup (HangupRequest is not filtered out).
    """
    if call.origin is Origin.DIALER or (call.origin is Origin.CLICK and not call.is_caller_ready):
        return False
    if call.has_left:
        return True
    if call.asked_by is Party.CALLER and not call.own_refusal:
        return call.is_giving_up
    if _is_left_to_others(call):
        return True
    # Where HangupRequest is filtered out, the caller's own cause must do.
    was_stopped = any(leg.status == "CANCEL" for leg in _called(call)) or call.was_queued
    causes = (_INTERWORKING,) if hears_requests else (0, _INTERWORKING)
    return end.sip == _REQUEST_TERMINATED or (was_stopped and end.q850 in causes)


def _is_left_to_others(call: AmiCall) -> bool:
    """Whether whoever was called rings on: the caller gave its place to another channel, by a transfer before the answer."""
    legs = call.legs.values()
    return (
        bool(legs)
        and not call.is_blurred
        and not any(_is_end_seen(leg) or leg.is_lost or leg.is_over or leg.is_own for leg in legs)
    )


def is_trying(call: AmiCall) -> bool:
    """Whether somebody may yet answer: a called leg, the queue, or what the switch itself says to the caller."""
    legs = _called(call)
    return call.is_queued or not legs or any(end_of(leg) is None for leg in legs)


def is_unsure(call: AmiCall, end: End, *, is_found_up: bool, hears_requests: bool) -> bool:
    """Whether what explains an unanswered end may have been missed: sure is only what every called leg was seen to come to.

    With `is_found_up`, the caller's channel was answered while nobody looked.
    """
    if not call.is_blurred:
        return False
    own = [leg for leg in call.legs.values() if leg.is_own and not call.is_caller_ready]
    legs = _called(call) or own
    if is_found_up or call.is_doubtful or not legs or any(_may_have_talked(leg) or not _is_end_seen(leg) for leg in legs):
        return True
    was_stopped = any(end_of(leg) is None for leg in legs)
    has_given_up = gave_up(call, end, hears_requests=hears_requests)
    return was_stopped and not has_given_up  # for the sake of one that was missed, if it was not the caller who stopped it


def _is_end_seen(leg: Leg) -> bool:
    return leg.q850 != _ANSWERED_ELSEWHERE and (leg.hangup_asked or leg.status != "" or leg.q850 != 0)


def missed_answer(call: AmiCall) -> Leg | None:
    """A leg that was found answered although nobody saw it answer."""
    return next((leg for leg in _called(call) if call.is_blurred and _may_have_talked(leg)), None)


def _may_have_talked(leg: Leg) -> bool:
    return leg.is_up and not leg.is_local


def _called(call: AmiCall) -> list[Leg]:
    return [leg for leg in call.legs.values() if not (leg.is_own or leg.is_lost or (leg.is_local and leg.has_legs))]


def word_without_legs(call: AmiCall, end: End) -> Status:
    """The word for a call that no called leg explains."""
    rang = call.is_callers_ringing or any(leg.rang_at is not None for leg in call.legs.values())
    if not call.legs and (call.dial_status == "CHANUNAVAIL" or end.q850 == _NO_ROUTE):
        return Status.UNREACHABLE  # no channel could be made for whom it wanted: not registered, as a rule
    if end.sip or end.q850 not in (0, _NORMAL, _INTERWORKING):
        return word_for(evidence(end.q850, end.sip), rang=rang)
    told = _BY_DIAL_STATUS.get(call.dial_status) or _BY_REASON.get(call.reason)
    if told is not None:
        return told
    return Status.NO_ANSWER if rang or call.was_queued or call.is_picked_up else Status.FAILED


def word_of_reason(reason: str) -> Status:
    """The word for an Originate that made no channel."""
    return _BY_REASON.get(reason, Status.FAILED)
