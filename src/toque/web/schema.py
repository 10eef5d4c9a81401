"""The JSON Schema of an item of the HTTP intake, as `GET /intake/schema.json` serves it. Made from the type that reads it."""

from __future__ import annotations

from typing import Any

import msgspec

from toque.calls.http_items import MAX_CALL_CHARACTERS, MAX_TEXT_CHARACTERS, Item, Vocabulary
from toque.calls.lines import MAX_LINE_CHARACTERS

_MEANINGS = {
    "call": "the source's own identity of the call; used once",
    "status": "what happened, or the phase that began",
    "at": "when; a date and time with its offset, or milliseconds since 1970; now, if it is left out",
    "from": "who calls: a number in any form, an extension or a SIP user",
    "to": "what was dialled",
    "answered_by": "who really answered; with answered and connected",
    "cause": "why it ended, as far as it is known",
    "ended_by": "who ended it",
    "direction": "the source's view, where the lines do not say it",
    "account": "looked up as the line account:… where no number is a line",
    "tenant": "looked up as the line tenant:…",
    "endpoint": "looked up as the line endpoint:…",
    "context": "looked up as the line context:…",
    "id": "the source's own identity of the item; it comes back in the answer",
}
_SHORTEST = {"call": 1}
_LONGEST = {"call": MAX_CALL_CHARACTERS, "id": MAX_TEXT_CHARACTERS} | dict.fromkeys(
    ("from", "to", "answered_by", "account", "tenant", "endpoint", "context"), MAX_LINE_CHARACTERS
)


def item_schema(words: Vocabulary) -> dict[str, Any]:
    """The schema of one item."""
    (_, parts) = msgspec.json.schema_components([Item], ref_template="#/$defs/{name}")
    item, cause = parts["Item"], parts["Cause"]
    members: dict[str, Any] = item["properties"]
    for name, meaning in _MEANINGS.items():
        members[name]["description"] = meaning
    for name, longest in _LONGEST.items():
        members[name] |= {"minLength": _SHORTEST.get(name, 0), "maxLength": longest}
    members["status"]["enum"] = list(words.said)
    members["ended_by"] = members["ended_by"] | {"enum": [*words.parties, None]}
    members["direction"] = members["direction"] | {"enum": [*words.directions, None]}
    codes = cause["properties"]
    codes["sip"] |= {"minimum": 300, "maximum": 699}
    codes["q850"] |= {"minimum": 0, "maximum": 127}
    codes["text"] |= {"maxLength": MAX_TEXT_CHARACTERS}
    cause.pop("description", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An item of toque's HTTP intake",
        **{name: value for name, value in item.items() if name not in ("title", "description")},
        "$defs": {"Cause": cause},
    }
