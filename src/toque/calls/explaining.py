"""Why a call ended as it did, in words and as data: what each leg said, which line is whose, which rule decided. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from toque.calls.call import Leg
from toque.calls.causes import is_plain, word_for
from toque.calls.identity import callerid
from toque.calls.lines import Line, LineBook, LineKind, normalise
from toque.calls.model import Cause, Direction, Owner, Side, SignalKind, Status, StatusChange
from toque.calls.phases import STEPS, Phase
from toque.calls.trace import CallTrace, Ended, Heard, Item

Mask = Callable[[str], str]


# The rule


def rule_of(end: Ended, last: Heard | None = None) -> str:
    """Which rule made this the end; `last` is the last signal that was heard before it."""
    call = end.call
    if call.is_inferred:
        return _concluded(end, last)
    if end.status is Status.HUNG_UP:
        if end.phase is Phase.LEAVING:
            return "a BYE ended it and no answer was seen: nobody hangs up like that before an answer, so the answer was missed"
        return f"it was answered, and then {f'the {call.hung_up_by}' if call.hung_up_by else 'somebody'} hung up"
    if call.gave_up:
        return "the caller gave up before anybody answered"
    legs = [(name, leg) for name, leg in end.legs if leg.has_ended]
    if legs and not (call.cause is not None and (call.cause.sip or 0) >= 600):
        return _by_legs(end, legs)
    return _by_caller(end)


def _concluded(end: Ended, last: Heard | None) -> str:
    """The end was not seen."""
    if last is not None and last.signal.kind is SignalKind.VANISHED:
        return "the switch was asked and does not know the call any more: its end was missed"
    if end.call.gave_up:
        return "the caller gave up, and the switch did not say what came of it within 32 s"
    setting = "stale_answered" if end.phase is Phase.ANSWERED else "stale_unanswered"
    return f"no sign of life for as long as {setting} says: its end was missed"


def _by_caller(end: Ended) -> str:
    call = end.call
    if call.word is not None:
        return f"the switch itself says so: {call.word}{_said(call.cause)}"
    return f"what the caller was told: {row_of(call.cause or Cause(), rang=call.ringing_at is not None)}"


def _by_legs(end: Ended, legs: Sequence[tuple[str, Leg]]) -> str:
    """The last leg that ended says why, unless it was busy or refused and another rang out."""
    words = ", ".join(f"{leg.number or name}: {_word(leg)}" for name, leg in legs)
    if len(legs) == 1:
        return f"the called leg says why ({words}): {_row_of_end(end)}"
    rule = "the last one counts, but busy or rejected not where another rang out"
    return f"{len(legs)} called legs ended ({words}); {rule}: {_row_of_end(end)}"


def _row_of_end(end: Ended) -> str:
    legs = [leg for _, leg in end.legs]
    if any(leg.word is end.status for leg in legs):
        return f"the switch's own word for that end is {end.status}"
    if end.status is Status.NO_ANSWER and any(leg.is_cancelled for leg in legs):
        return "the switch stopped calling a leg that rang, so nobody answered"
    return row_of(end.call.cause or Cause(), rang=end.call.ringing_at is not None)


def _word(leg: Leg) -> str:
    said = "stopped by the switch" if leg.is_cancelled else str(leg.word or "ended")
    return f"{said}{_said(leg.cause)}{', had rung' if leg.rang else ''}"


def _said(cause: Cause | None) -> str:
    told = render_cause(cause)
    return f" ({told})" if told else ""


def row_of(cause: Cause, *, rang: bool) -> str:
    """The row of docs/api.md ("Como cada chamada termina") that this evidence falls under, and by which part of it."""
    word, when = word_for(cause, rang=rang), "after ringing" if rang else "without ringing"
    by_q850 = cause.q850 is not None and not is_plain(cause.sip)
    if by_q850 and word_for(Cause(q850=cause.q850), rang=rang) is not Status.FAILED:
        wrapper = f", of which SIP {cause.sip} is a wrapper" if cause.sip is not None else ""
        return f"Q.850 {cause.q850}{wrapper}, {when} means {word}"
    if word is Status.FAILED:
        return f"no row has {render_cause(cause) or 'an end without any evidence'}, so it is {word}"
    return f"SIP {cause.sip} {when} means {word}"


def render_cause(cause: Cause | None) -> str:
    """Evidence as people write it; empty when there is none."""
    if cause is None:
        return ""
    sip = None if cause.sip is None else f"SIP {cause.sip}"
    q850 = None if cause.q850 is None else f"Q.850 {cause.q850}"
    return ", ".join(part for part in (sip, q850, cause.text) if part)


# Whose call it is


def numbers_of(trace: CallTrace) -> dict[str, str]:
    """Every number and hint by which the call could be somebody's, and what each is."""
    found: dict[str, str] = {}
    for heard in trace.heard():
        signal = heard.signal
        for number in signal.callers:
            found.setdefault(number, "caller")
        if signal.dialled:
            found.setdefault(signal.dialled, "dialled")
        if signal.number:
            found.setdefault(signal.number, "reached")
        for hint in signal.hints:
            found.setdefault(hint, "hint")
    return found


def matches_of(trace: CallTrace, lines: Iterable[Line], country: str, mask: Mask = str) -> list[dict[str, Any]]:
    """For each number of the call: what it is, how it is compared, and the line that it is by now, if any."""
    lines = tuple(lines)
    book = LineBook.of(lines, country)
    told = []
    for number, role in numbers_of(trace).items():
        is_hint = role == "hint"
        owner = book.owner_of_hint(number) if is_hint else book.owner(number)
        line = None if owner is None else _line_of(owner, number, lines, country, is_hint=is_hint)
        told.append(
            {
                "number": mask(number),
                "role": role,
                "compared_as": mask(number if is_hint else normalise(number, country)),
                "client": owner.client_id if owner else None,
                "pin": owner.pin if owner else None,
                "line": line and (line.text if line.kind is LineKind.PREFIX else mask(line.text)),
            }
        )
    return told


def _line_of(owner: Owner, number: str, lines: tuple[Line, ...], country: str, *, is_hint: bool) -> Line | None:
    """The line by which a number is its owner's."""
    for line in lines:
        if (line.client_id, line.pin) == (owner.client_id, owner.pin):
            book = LineBook.of([line], country)
            if (book.owner_of_hint(number) if is_hint else book.owner(number)) is not None:
                return line
    return None


# As data


def tell_item(item: Item, mask: Mask = str, last: Heard | None = None) -> dict[str, Any]:
    """One item, for a line of output; `last` is the last signal before it, which ends are explained by."""
    match item:
        case Heard():
            return _tell_heard(item, mask)
        case StatusChange():
            return _tell_told(item, mask)
        case Ended():
            return _tell_end(item, last, mask)


def _tell_heard(heard: Heard, mask: Mask) -> dict[str, Any]:
    signal, following = heard.signal, None if heard.phase is None else STEPS.get((heard.phase, heard.signal.kind))
    return {
        "what": "signal",
        "at": _moment(signal.at),
        "received_at": _moment(heard.now),
        "kind": str(signal.kind),
        "leg": signal.leg,
        "caller": mask(signal.callers[0]) if signal.callers else None,
        "dialled": mask(signal.dialled) or None,
        "number": mask(signal.number) or None,
        "cause": render_cause(signal.cause) or None,
        "word": signal.word and str(signal.word),
        "by": signal.by and str(signal.by),
        "hints": [mask(hint) for hint in signal.hints],
        "phase": heard.phase and str(heard.phase),
        "changes": heard.phase is None or following is not None,
    }


def _tell_told(change: StatusChange, mask: Mask) -> dict[str, Any]:
    facts = change.facts
    return {
        "what": "status",
        "at": _moment(change.at),
        "status": str(change.status),
        "client": change.side.owner.client_id,
        "pin": mask(change.side.owner.pin),
        "direction": str(change.side.direction),
        "caller": mask(facts.caller) or None,
        "dialled": mask(facts.dialled) or None,
        "answered_by": mask(facts.answered_by or "") or None,
        "cause": render_cause(facts.cause) or None,
        "inferred": facts.is_inferred,
    }


def _tell_end(end: Ended, last: Heard | None, mask: Mask) -> dict[str, Any]:
    call = end.call
    came_from = last.phase if end.phase is Phase.ENDED and last is not None else end.phase
    return {
        "what": "end",
        "at": _moment(end.at),
        "received_at": _moment(end.now),
        "status": str(end.status),
        "rule": mask(rule_of(end, last)),
        "phase": came_from and str(came_from),
        "caller": mask(call.caller) or None,
        "dialled": mask(call.dialled) or None,
        "cause": render_cause(call.cause) or None,
        "hung_up_by": call.hung_up_by and str(call.hung_up_by),
        "inferred": call.is_inferred,
        "sides": len(call.sides),
    }


def _last_before(trace: CallTrace, end: Ended) -> Heard | None:
    last: Heard | None = None
    for item in trace.items:
        if item is end:
            break
        if isinstance(item, Heard):
            last = item
    return last


def tell_call(trace: CallTrace, lines: Iterable[Line], country: str, mask: Mask = str) -> dict[str, Any]:
    """All that is known of a call: its items, its legs, its sides and the lines, and its end."""
    end = trace.end()
    return {
        "source": trace.identity.source,
        "call": trace.identity.key,
        "callerid": callerid(trace.identity, 0),
        "phase": str(_phase_now(trace)),
        "is_whole": trace.is_whole,
        "items": list(_tell_items(trace, mask)),
        "legs": list(_tell_legs(trace, mask)),
        "sides": [_tell_side(side, mask) for side in trace.sides()],
        "lines": matches_of(trace, lines, country, mask),
        "end": None if end is None else _tell_end(end, _last_before(trace, end), mask),
    }


def _tell_items(trace: CallTrace, mask: Mask) -> Iterator[dict[str, Any]]:
    last: Heard | None = None
    for item in trace.items:
        last = item if isinstance(item, Heard) else last
        yield tell_item(item, mask, last)


def _phase_now(trace: CallTrace) -> Phase:
    """Where the call is, by what was heard and decided; what a timer is about to do is not known here."""
    phase = Phase.CALLING
    for item in trace.items:
        if isinstance(item, Ended):
            phase = Phase.ENDED
        elif isinstance(item, Heard) and (item.begins or phase is not Phase.ENDED):
            found = Phase.CALLING if item.begins or item.phase is None else item.phase
            phase = STEPS.get((found, item.signal.kind), found)
    return phase


def _tell_side(side: Side, mask: Mask) -> dict[str, Any]:
    return {"client": side.owner.client_id, "pin": mask(side.owner.pin), "direction": str(Direction(side.direction))}


def _tell_legs(trace: CallTrace, mask: Mask) -> Iterator[dict[str, Any]]:
    """What each leg said, the caller's own first."""
    said: dict[str | None, list[Heard]] = {None: []}
    for heard in trace.heard():
        said.setdefault(heard.signal.leg, []).append(heard)
    for name, signals in said.items():
        numbers = [heard.signal.number for heard in signals if heard.signal.number]
        yield {
            "leg": name,  # None: the caller's own
            "number": mask(numbers[-1]) if numbers and name is not None else None,
            "said": [
                {"at": _moment(h.signal.at), "kind": str(h.signal.kind), "cause": render_cause(h.signal.cause) or None}
                for h in signals
            ],
        }


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
