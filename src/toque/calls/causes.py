"""Which end of an unanswered call means which word.

The rows are those of docs/api.md ("Como cada chamada termina"), taken in their order: the first that fits decides.
SIP codes are RFC 3261's (607, 608: RFC 8197, RFC 8688), cause values are ITU-T Q.850's.
"""

from __future__ import annotations

from toque.calls.model import Cause, Party, Status

_BUSY_SIP = frozenset({486, 600})
_REJECTED_SIP = frozenset({603, 607, 608, 403, 401, 407})
_INVALID_SIP = frozenset({404, 410, 484, 485, 604, 414, 416})
_CONGESTION_SIP = frozenset({503})
_NO_ANSWER_SIP = frozenset({480, 408, 504, 487})  # after ringing
_UNREACHABLE_SIP = frozenset({480, 408, 430, 504})  # without ringing

_BUSY_Q850 = frozenset({17})
_REJECTED_Q850 = frozenset({21, *range(50, 58)})
_INVALID_Q850 = frozenset({1, 5, 22, 28})
_CONGESTION_Q850 = frozenset({34, 42, 44, 47})
_NO_ANSWER_Q850 = frozenset({16, 18, 19, 102})  # after ringing
_UNREACHABLE_Q850 = frozenset({18, 19, 20, 27, 102})  # without ringing

# Codes that say by themselves what happened; every other may be a gateway's wrapper around a Q.850 cause (RFC 3398, 8.2.6.1).
_PLAIN_SIP = _BUSY_SIP | _REJECTED_SIP | _INVALID_SIP

# Refusals that the caller's software answers by itself with another INVITE of the same call: redirections (RFC 3261, 8.1.3.4),
# challenges and what can be mended (8.1.3.5), a larger session interval (RFC 4028), a required extension.
_RETRIABLE_SIP = frozenset({401, 407, 413, 415, 416, 420, 421, 422, 428, 494})


def is_plain(sip: int | None) -> bool:
    """Whether this SIP code says by itself what happened."""
    return sip in _PLAIN_SIP


def is_retriable(sip: int | None) -> bool:
    """Whether a refusal with this SIP code is often followed by another try within the same call."""
    return sip is not None and (300 <= sip < 400 or sip in _RETRIABLE_SIP)


def word_for(cause: Cause, *, rang: bool) -> Status:
    """The end that this evidence stands for, the caller not having given up."""
    if cause.sip not in _PLAIN_SIP and cause.q850 is not None:
        told = _word_of_q850(cause.q850, rang=rang)
        if told is not None:
            return told
    return _word_of_sip(cause.sip, rang=rang) or Status.FAILED


def _word_of_sip(sip: int | None, *, rang: bool) -> Status | None:
    if sip is None:
        return None
    if 300 <= sip < 400:
        return Status.INVALID_NUMBER
    waiting = (_NO_ANSWER_SIP, Status.NO_ANSWER) if rang else (_UNREACHABLE_SIP, Status.UNREACHABLE)
    rows = (
        (_BUSY_SIP, Status.BUSY),
        (_REJECTED_SIP, Status.REJECTED),
        (_INVALID_SIP, Status.INVALID_NUMBER),
        (_CONGESTION_SIP, Status.CONGESTION),
        waiting,
    )
    return next((word for codes, word in rows if sip in codes), None)


def _word_of_q850(value: int, *, rang: bool) -> Status | None:
    waiting = (_NO_ANSWER_Q850, Status.NO_ANSWER) if rang else (_UNREACHABLE_Q850, Status.UNREACHABLE)
    rows = (
        (_BUSY_Q850, Status.BUSY),
        (_REJECTED_Q850, Status.REJECTED),
        (_INVALID_Q850, Status.INVALID_NUMBER),
        (_CONGESTION_Q850, Status.CONGESTION),
        waiting,
    )
    return next((word for values, word in rows if value in values), None)


def word_of_group(words: list[Status]) -> Status | None:
    """The word of a call by the words of its called legs in the order in which they ended; None without any.

    The last leg's word counts, but a busy or rejecting member of a group does not outrank one that rang out.
    """
    if not words:
        return None
    last = words[-1]
    if last in (Status.BUSY, Status.REJECTED) and Status.NO_ANSWER in words:
        return Status.NO_ANSWER
    return last


_ENDED_BY_CALLEE_SIP = _BUSY_SIP | {603, 607}
_ENDED_BY_CALLEE_Q850 = frozenset({17, 21})


def ender_of(cause: Cause) -> Party | None:
    """Who ended an unanswered call by this evidence: the called party where it spoke for itself, else the network."""
    if cause.sip in _ENDED_BY_CALLEE_SIP or (cause.sip not in _PLAIN_SIP and cause.q850 in _ENDED_BY_CALLEE_Q850):
        return Party.CALLEE
    if cause.sip in _NO_ANSWER_SIP and cause.q850 is None:
        return None  # a telephone and a network both say 480
    return Party.NETWORK
