"""How calls are told to people on a terminal: lines, from what a server, a recording or the store says of them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from toque.callbacks.payload import STATUS_WORDS

_WIRE_WORDS = {str(status): word for status, word in STATUS_WORDS.items()}
_LONGEST_LEG = 32
Told = dict[str, Any]


def live_line(told: Told, zone: ZoneInfo) -> str | None:
    """One line of what happens now; None for what is not worth one."""
    match told["what"]:
        case "watching":
            return None
        case "dropped":
            return f"… {told['count']} left out: more happens than can be shown"
        case _:
            head = f"{clock(told['at'], zone)} {told['source']} {told['callerid'][:8]}"
            return f"{head}  {item_text(told)}"


def item_text(told: Told) -> str:
    """A signal, a status or an end."""
    match told["what"]:
        case "signal":
            return f"{_signal(told)}{'' if told['changes'] else '  (changes nothing)'}"
        case "status":
            whose = f"{told['direction']}, client {told['client']}, pin {told['pin']}"
            return f"=> {word(told['status'])}{' (inferred)' if told['inferred'] else ''}  told: {whose}"
        case _:
            unmatched = "" if told["sides"] else "; nobody is told, no line matches"
            return f"## {word(told['status'])}: {told['rule']}{unmatched}"


def _signal(told: Told) -> str:
    parts = [f"{told['kind'].replace('_', ' '):<13}", _leg(told["leg"])]
    if told["kind"] in ("began", "began_again", "caller_known"):
        parts.append(f"{told['caller'] or '?'} -> {told['dialled'] or '?'}")
    if told["number"]:
        parts.append(f"-> {told['number']}")
    if told["cause"]:
        parts.append(told["cause"])
    if told["word"]:
        parts.append(f"= {told['word']}")
    if told["by"]:
        parts.append(f"by {told['by']}")
    if told["phase"]:
        parts.append(f"[{told['phase']}]")
    return "  ".join(parts)


def _leg(name: str | None) -> str:
    """A leg; of a long name, such as a Via branch, the end, by which it can be told from the others."""
    if name is None:
        return "caller"
    return f"leg {name}" if len(name) <= _LONGEST_LEG else f"leg …{name[-_LONGEST_LEG // 2 :]}"


def word(status: str) -> str:
    """A status, with the word that customers read."""
    return f"{status} ({_WIRE_WORDS.get(status, status)})"


def call_text(call: Told, zone: ZoneInfo) -> Iterator[str]:
    """All that is known of one call."""
    yield f"call {call['callerid']}"
    if call.get("source"):
        yield f"  source {call['source']}, there called {call['call']}"
    if call.get("items") is not None:
        yield from _heard(call, zone)
        yield from _legs(call)
        yield from _whose(call)
        yield from _why(call)
    if call.get("events") is not None:
        yield from _told(call["events"], zone)


def _heard(call: Told, zone: ZoneInfo) -> Iterator[str]:
    yield ""
    yield "What happened"
    if not call["is_whole"]:
        yield "  (its beginning is not kept, or was not seen)"
    for told in call["items"]:
        yield f"  {clock(told['at'], zone)}  {item_text(told)}"


def _legs(call: Told) -> Iterator[str]:
    if len(call["legs"]) < 2:
        return
    yield ""
    yield "What each leg said"
    for leg in call["legs"]:
        said = ", ".join(f"{one['kind'].replace('_', ' ')}{_of(one['cause'])}" for one in leg["said"])
        yield f"  {_leg(leg['leg'])}{' -> ' + leg['number'] if leg['number'] else ''}: {said or 'nothing'}"


def _of(cause: str | None) -> str:
    return f" ({cause})" if cause else ""


def _whose(call: Told) -> Iterator[str]:
    yield ""
    yield "Whose call it is"
    for side in call["sides"]:
        yield f"  {side['direction']} by client {side['client']}, pin {side['pin']}"
    if not call["sides"]:
        yield "  nobody's: no line matched when it was seen"
    for match in call["lines"]:
        compared = "" if match["compared_as"] == match["number"] else f", compared as {match['compared_as']}"
        found = f"line {match['line']} of client {match['client']}, pin {match['pin']}" if match["client"] else "no line"
        yield f"    {match['role']} {match['number']}{compared}: {found}"


def _why(call: Told) -> Iterator[str]:
    yield ""
    end = call["end"]
    if end is None:
        yield f"It is in progress: {call['phase']}"
        return
    yield f"How it ended: {word(end['status'])}, {'concluded (inferido)' if end['inferred'] else 'seen'}"
    yield f"  {end['rule']}"
    if end["cause"]:
        yield f"  evidence: {end['cause']}"
    if end["hung_up_by"]:
        yield f"  ended by: {end['hung_up_by']}"


def _told(events: list[Told], zone: ZoneInfo) -> Iterator[str]:
    yield ""
    if not events:
        yield "Nothing was told of it"
        return
    yield f"What was told ({events[0]['origem'] or '?'} -> {events[0]['destino'] or '?'})"
    for event in events:
        inferred = f"{_evidence(event['causa'])}{' (inferido)' if event['inferido'] else ''}"
        whose = f"{event['direction']}, client {event['client']}, pin {event['pin']}"
        yield f"  {event['sequencia']} {event['status']}{inferred}  {clock(event['at'], zone)}  {whose}  id {event['id']}"
        yield from (f"      {_delivery(delivery, zone)}" for delivery in event["deliveries"])
        if not event["deliveries"]:
            yield "      no callback wanted it"


def _evidence(causa: Told | None) -> str:
    """What a final says of its cause."""
    if not causa:
        return ""
    named = [f"{name.upper()} {causa[name]}" for name in ("sip", "q850") if causa.get(name) is not None]
    return f" ({', '.join([*named, *([causa['texto']] if causa.get('texto') else [])])})"


def _delivery(told: Told, zone: ZoneInfo) -> str:
    parts = [f"callback {told['code']}: {told['state']}"]
    if told["attempts"]:
        parts.append(f"{told['attempts']} attempt{'s' if told['attempts'] > 1 else ''}")
    if told["settled_at"]:
        parts.append(f"at {clock(told['settled_at'], zone)}")
    if told["due_at"]:
        parts.append(f"next one at {clock(told['due_at'], zone)}")
    if told["outcome"]:
        parts.append(told["outcome"])
    return ", ".join(parts)


def clock(moment: str, zone: ZoneInfo) -> str:
    """A moment on the wall clock; its day too, where that is not today."""
    at = datetime.fromisoformat(moment).astimezone(zone)
    is_today = at.date() == datetime.now(zone).date()
    return at.strftime("%H:%M:%S.") + f"{at.microsecond // 1000:03d}" if is_today else at.strftime("%Y-%m-%d %H:%M:%S")
