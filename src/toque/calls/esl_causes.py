"""FreeSWITCH's words for why a channel ended, and what they say in ours.

The switch numbers its own causes beyond Q.850's, and then reports 16 as the Q.850 value, which says nothing; and it folds SIP
codes into few causes (400, 481, 500 and 503 are all NORMAL_TEMPORARY_FAILURE), so the code that the far end sent goes with them.
Names and numbers: switch_types.h, switch_call_cause_t; from SIP: sofia_glue.c.
"""

from __future__ import annotations

from collections.abc import Mapping

from toque.calls.esl_event import EslEvent
from toque.calls.model import Cause, Status

# The switch's own causes: Q.850 has no value for them.
OWN_CAUSES = frozenset(
    {
        "ORIGINATOR_CANCEL", "CRASH", "SYSTEM_SHUTDOWN", "LOSE_RACE", "MANAGER_REQUEST", "BLIND_TRANSFER", "ATTENDED_TRANSFER",
        "ALLOTTED_TIMEOUT", "USER_CHALLENGE", "MEDIA_TIMEOUT", "PICKED_OFF", "USER_NOT_REGISTERED", "PROGRESS_TIMEOUT",
        "INVALID_GATEWAY", "GATEWAY_DOWN", "INVALID_URL", "INVALID_PROFILE", "NO_PICKUP", "SRTP_READ_ERROR", "BOWOUT",
        "BUSY_EVERYWHERE", "DECLINE", "DOES_NOT_EXIST_ANYWHERE", "NOT_ACCEPTABLE", "UNWANTED", "NO_IDENTITY", "BAD_IDENTITY_INFO",
        "UNSUPPORTED_CERTIFICATE", "INVALID_IDENTITY", "STALE_DATE", "REJECT_ALL",
    }
)  # fmt: skip

# What some causes say by themselves; for the others, their SIP code and Q.850 value decide (calls/causes.py).
_WORDS: Mapping[str, Status] = {
    "NO_PICKUP": Status.NO_ANSWER,
    "BUSY_EVERYWHERE": Status.BUSY,
    "DECLINE": Status.REJECTED,
    "UNWANTED": Status.REJECTED,
    "REJECT_ALL": Status.REJECTED,
    "DOES_NOT_EXIST_ANYWHERE": Status.INVALID_NUMBER,
    "USER_NOT_REGISTERED": Status.UNREACHABLE,
    "SUBSCRIBER_ABSENT": Status.UNREACHABLE,
    "DESTINATION_OUT_OF_ORDER": Status.UNREACHABLE,
    # Of a caller's own channel only: a redirection that nobody followed, a call that another one made superfluous.
    "REDIRECTION_TO_NEW_DESTINATION": Status.INVALID_NUMBER,
    "LOSE_RACE": Status.CANCELLED,
    "PICKED_OFF": Status.CANCELLED,
}
# The same, where no far end sent a code: no dialplan matched; the caller is told 404.
_WORDS_OF_OUR_OWN: Mapping[str, Status] = {"NO_ROUTE_DESTINATION": Status.INVALID_NUMBER}

# The switch stopped calling after the time it was given.
_RING_TIME_OVER = frozenset({"NO_ANSWER", "ALLOTTED_TIMEOUT", "PROGRESS_TIMEOUT"})

# A called leg that these ended was not refused: the call went on elsewhere.
GONE = frozenset({"LOSE_RACE", "PICKED_OFF", "BOWOUT", "BLIND_TRANSFER", "ATTENDED_TRANSFER", "REDIRECTION_TO_NEW_DESTINATION"})

# The switch or its operator ended the channel, whoever the SIP messages came from.
BY_SWITCH = frozenset({"MANAGER_REQUEST", "SYSTEM_SHUTDOWN", "CRASH", "MEDIA_TIMEOUT", "ALLOTTED_TIMEOUT", "SRTP_READ_ERROR"})

_HUNG_UP_ITSELF = frozenset({"recv_bye", "recv_cancel"})
_CALLED_OFF = frozenset({"NORMAL_CLEARING", "ORIGINATOR_CANCEL"})
_MOVED = frozenset({"BLIND_TRANSFER", "ATTENDED_TRANSFER"})
# These say nothing about why nobody answered; the last three are what a caller's channel says while an attempt is made.
WRAPPERS = frozenset({"", "NORMAL_CLEARING", "NORMAL_UNSPECIFIED", "SUCCESS", "failure", "call accepted"})


def leg_cause(event: EslEvent) -> Cause:
    """Why a called leg ended, by its last event."""
    name = event.hangup_cause
    codes = ("proto_specific_hangup_cause", "sip_term_status", "sip_invite_failure_status")
    sip = None if is_stopped(event) else _sip_of(*map(event.variable, codes))
    return _cause(event, name, sip)


def caller_cause(event: EslEvent) -> Cause:
    """Why the caller's leg ended unanswered. Its own cause is often a wrapper; then that of the last attempt counts."""
    name = cause_name(event)
    sip = _sip_of(
        event.variable("last_bridge_proto_specific_hangup_cause"),
        event.variable("proto_specific_hangup_cause"),
        event.variable("sip_term_status"),
    )
    return _cause(event, name, sip)


def end_cause(event: EslEvent) -> Cause:
    """Why an answered channel ended."""
    return _cause(event, event.hangup_cause, None)


def cause_name(event: EslEvent) -> str:
    """The word of the caller's leg, or of the last attempt made for it."""
    names = (event.hangup_cause, event.variable("originate_disposition"), event.variable("last_bridge_hangup_cause"))
    return next((name for name in names if name not in WRAPPERS), event.hangup_cause)


def word_of(name: str, cause: Cause, *, rang: bool) -> Status | None:
    """The end that a cause stands for by itself; None where codes decide."""
    if name in _RING_TIME_OVER:
        return Status.NO_ANSWER if rang else Status.UNREACHABLE
    return _WORDS.get(name) or (_WORDS_OF_OUR_OWN.get(name) if cause.sip is None else None)


def is_stopped(event: EslEvent) -> bool:
    """Whether the switch stopped calling this leg."""
    return _disposition(event) == "send_cancel" or event.hangup_cause in _RING_TIME_OVER - {"NO_ANSWER"}


def has_hung_up(event: EslEvent) -> bool:
    """Whether this party itself hung up or cancelled."""
    if event.hangup_cause in BY_SWITCH or has_moved(event):
        return False
    if _is_called_off(event):
        return True
    if is_silent(event):
        return not event.is_called and "ORIGINATOR_CANCEL" in (event.hangup_cause, event.variable("originate_disposition"))
    return _disposition(event) in _HUNG_UP_ITSELF


def _is_called_off(event: EslEvent) -> bool:
    """Whether a call that the switch began was called off by whoever had asked for it."""
    is_first = event.is_called and not event.originator
    return is_first and not event.is_answered and event.hangup_cause in _CALLED_OFF and _disposition(event) == "send_cancel"


def is_silent(event: EslEvent) -> bool:
    """Whether this party's technology does not say who hung up; SIP's does."""
    return not _disposition(event)


def _disposition(event: EslEvent) -> str:
    return event.variable("sip_hangup_disposition")


def has_moved(event: EslEvent) -> bool:
    """Whether this party left by transferring the call."""
    return event.variable("endpoint_disposition") in _MOVED or event.hangup_cause in _MOVED


def is_transferring(event: EslEvent) -> bool:
    """Whether this party dialled a code to consult somebody; who hangs up then leaves the other two together."""
    return event.application.partition(" ")[0] == "att_xfer"


def _cause(event: EslEvent, name: str, sip: int | None) -> Cause:
    phrase = event.variable("sip_hangup_phrase") or event.variable("sip_invite_failure_phrase")
    text = phrase if sip is not None and phrase and phrase != "OK" else name
    return Cause(sip=sip, q850=_q850_of(event, name), text=text or None)


def _q850_of(event: EslEvent, name: str) -> int | None:
    """The Q.850 value, where it is one and belongs to this cause; for causes of its own, the switch says 16."""
    if name in OWN_CAUSES:
        return None
    if name != event.hangup_cause:
        return _Q850.get(name)
    text = event.variable("hangup_cause_q850")
    value = int(text[:4]) if text.isascii() and text.isdecimal() else 0
    return value if 0 < value <= 127 and (value != 16 or name in WRAPPERS) else _Q850.get(name)


def _sip_of(*texts: str) -> int | None:
    """The first of these texts (`sip:486` or `486`) that is a refusal's code."""
    for text in texts:
        digits = text.removeprefix("sip:")
        if digits.isascii() and digits.isdecimal() and 300 <= int(digits[:4]) <= 699:
            return int(digits[:4])
    return None


# Of the causes that a failed attempt leaves at the caller's leg, whose own value is another's.
_Q850: Mapping[str, int] = {
    "UNALLOCATED_NUMBER": 1,
    "NO_ROUTE_TRANSIT_NET": 2,
    "NO_ROUTE_DESTINATION": 3,
    "USER_BUSY": 17,
    "NO_USER_RESPONSE": 18,
    "NO_ANSWER": 19,
    "SUBSCRIBER_ABSENT": 20,
    "CALL_REJECTED": 21,
    "NUMBER_CHANGED": 22,
    "REDIRECTION_TO_NEW_DESTINATION": 23,
    "EXCHANGE_ROUTING_ERROR": 25,
    "DESTINATION_OUT_OF_ORDER": 27,
    "INVALID_NUMBER_FORMAT": 28,
    "FACILITY_REJECTED": 29,
    "NORMAL_CIRCUIT_CONGESTION": 34,
    "NETWORK_OUT_OF_ORDER": 38,
    "NORMAL_TEMPORARY_FAILURE": 41,
    "SWITCH_CONGESTION": 42,
    "REQUESTED_CHAN_UNAVAIL": 44,
    "FACILITY_NOT_SUBSCRIBED": 50,
    "OUTGOING_CALL_BARRED": 52,
    "INCOMING_CALL_BARRED": 54,
    "BEARERCAPABILITY_NOTAUTH": 57,
    "BEARERCAPABILITY_NOTAVAIL": 58,
    "SERVICE_UNAVAILABLE": 63,
    "SERVICE_NOT_IMPLEMENTED": 79,
    "INCOMPATIBLE_DESTINATION": 88,
    "RECOVERY_ON_TIMER_EXPIRE": 102,
    "INTERWORKING": 127,
}
