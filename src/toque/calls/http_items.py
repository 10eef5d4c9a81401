"""What is posted to the HTTP intake: bytes in, items out, each by itself good or refused. Pure; docs/intake.md is its reference.

A body is one JSON object, an array of objects, or one object a line (NDJSON). What cannot be taken apart into items is refused
as a whole, with `InputError`; one bad item leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec

from toque.calls.lines import MAX_LINE_CHARACTERS
from toque.calls.model import Cause, Direction, Party, SignalKind, Status
from toque.errors import InputError

MAX_ITEMS = 10_000  # in one body: a tenth of a second's work
_MOST_SEPARATORS = 100 * MAX_ITEMS  # commas or lines: a body of nothing else would be ten seconds' work
MAX_CALL_CHARACTERS = 255
MAX_TEXT_CHARACTERS = 255
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)  # seconds that were meant for milliseconds lie in 1970
LATEST_AHEAD = timedelta(days=1)  # of our clock; a source's own may be a little fast, and time zones get mixed up


class Item(msgspec.Struct, gc=False):
    """One item as it is posted. Members that are not named here are passed over."""

    call: str | int
    status: str
    at: datetime | int | float | None = None  # aware, or milliseconds since 1970
    from_: str | int | None = msgspec.field(name="from", default=None)
    to: str | int | None = None
    answered_by: str | int | None = None
    cause: Cause | None = None
    ended_by: str | None = None
    direction: str | None = None
    account: str | None = None
    tenant: str | None = None
    endpoint: str | None = None
    context: str | None = None
    id: str | int | None = None


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why an item is not taken; `call` and `id` as far as they can be read."""

    reason: str
    call: str | int | None = None
    id: str | int | None = None


class Said(NamedTuple):
    """What a status word stands for. `rank` is the order of a call's life; `status` is what the word says by itself."""

    rank: int
    kind: SignalKind
    status: Status | None = None


FINAL_RANK = 4
_ENDED = Said(FINAL_RANK, SignalKind.REFUSED)
# Words for what has no status of its own, beside the statuses' own.
_PHASES: Mapping[str, Said] = {
    "picked_up": Said(2, SignalKind.PICKED_UP),
    "connected": Said(3, SignalKind.CONNECTED),
    "ended": _ENDED,
    "alive": Said(3, SignalKind.SEEN),
}
_PROGRESS: Mapping[Status, Said] = {
    Status.INITIATED: Said(1, SignalKind.BEGAN, Status.INITIATED),
    Status.RINGING: Said(2, SignalKind.RINGING, Status.RINGING),
    Status.ANSWERED: Said(3, SignalKind.ANSWERED, Status.ANSWERED),
}
RANKS: Mapping[Status, int] = {status: _PROGRESS[status].rank if status in _PROGRESS else FINAL_RANK for status in Status}


class Vocabulary:
    """The words that may be posted: our own, and others for the same things (those of the wire)."""

    def __init__(
        self,
        statuses: Mapping[Status, str] | None = None,
        parties: Mapping[Party, str] | None = None,
        directions: Mapping[Direction, str] | None = None,
    ) -> None:
        self.said: dict[str, Said] = dict(_PHASES)
        for status in Status:
            said = _PROGRESS.get(status) or Said(FINAL_RANK, SignalKind.REFUSED, status)
            for word in {str(status), (statuses or {}).get(status, str(status))}:
                self.said[word] = said
        self.parties = {str(party): party for party in Party} | {word: party for party, word in (parties or {}).items()}
        self.directions = {str(one): one for one in Direction} | {word: one for one, word in (directions or {}).items()}


class TooManyItems(InputError):  # noqa: N818 - it names what is wrong
    """More items than one body may have."""

    def __init__(self) -> None:
        super().__init__(f"more than {MAX_ITEMS} items")


_NOTHING = msgspec.Raw(b"")


class _Named(msgspec.Struct, gc=False):
    """As much of a bad item as says which one it is; not decoded, for it may be anything, of any size."""

    call: msgspec.Raw = _NOTHING
    id: msgspec.Raw = _NOTHING


_ITEM = msgspec.json.Decoder(Item)
_ITEMS = msgspec.json.Decoder(list[Item])
_RAW, _RAWS = msgspec.json.Decoder(msgspec.Raw), msgspec.json.Decoder(list[msgspec.Raw])
_NAMED = msgspec.json.Decoder(_Named)
_BLANKS = b" \t\r\n"
_PLAIN = tuple(bytes([first]) for first in b'"-0123456789')  # how texts and numbers begin
_Found = TypeVar("_Found")


def read_items(body: bytes, *, is_lines: bool = False) -> Sequence[Item | Refusal]:
    """The items of a body in their order. Raises `InputError` when it is no JSON at all, or has too many (`TooManyItems`).

    `is_lines` says that there is an object a line; otherwise the first character tells an array from an object, and an object
    that is followed by another is the first of many lines.
    """
    first = body.lstrip(_BLANKS)[:1]
    if not first:
        msg = "the body is empty"
        raise InputError(msg)
    try:
        if first == b"[" and not is_lines:
            return _read_array(body)
        return _read_lines(body) if is_lines else _read_object(body)
    except RecursionError:
        msg = "the body is nested too deeply"
        raise InputError(msg) from None


def _read_array(body: bytes) -> Sequence[Item | Refusal]:
    if body.count(b",") > _MOST_SEPARATORS:
        raise TooManyItems
    try:
        return _few(_ITEMS.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # at least one item is bad, or everything
    try:
        raws = _RAWS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"the body is not JSON: {error}"
        raise InputError(msg) from None
    return [_read_item(bytes(raw)) for raw in _few(raws)]


def _read_object(body: bytes) -> Sequence[Item | Refusal]:
    try:
        return [_ITEM.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        _RAW.decode(body)  # looked through, and not made into objects
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if b"\n" in body.strip(_BLANKS):
            return _read_lines(body)
        msg = f"the body is not JSON: {error}"
        raise InputError(msg) from None
    item = _read_item(body)
    if isinstance(item, Refusal) and item.reason.startswith(_NOT_JSON):  # in a text, which is not looked into before
        msg = f"the body is {item.reason}"
        raise InputError(msg)
    return [item]


def _read_lines(body: bytes) -> Sequence[Item | Refusal]:
    if body.count(b"\n") > _MOST_SEPARATORS:
        raise TooManyItems
    try:
        return _few(_ITEM.decode_lines(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    items = [_read_item(line) for line in _few([line for line in body.split(b"\n") if line.strip(_BLANKS)])]
    if all(isinstance(item, Refusal) and item.reason.startswith(_NOT_JSON) for item in items):
        msg = "the body is neither one JSON value nor one a line"
        raise InputError(msg)
    return items


def _few(found: list[_Found]) -> list[_Found]:
    """As many as a body may have: each bad one costs a hundred times a good one. Raises `TooManyItems`."""
    if len(found) > MAX_ITEMS:
        raise TooManyItems
    return found


_NOT_JSON = "not JSON: "


def _read_item(raw: bytes) -> Item | Refusal:
    try:
        return _ITEM.decode(raw)
    except msgspec.ValidationError as error:
        return _named(raw, _told(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Refusal(f"{_NOT_JSON}{error}")


def _told(error: msgspec.ValidationError) -> str:
    """Msgspec's words, the member first: ``Expected `str`, got `int` - at `$.status` ``."""
    problem, _, member = str(error).replace("`", "").partition(" - at $.")
    return f"{member}: {problem}" if member else problem


def _named(raw: bytes, reason: str) -> Refusal:
    try:
        named = _NAMED.decode(raw)
    except msgspec.DecodeError:
        return Refusal(reason)
    return Refusal(reason, _shown(_plain(named.call)), _shown(_plain(named.id)))


def _plain(raw: msgspec.Raw) -> object:
    """A text or a number; None for anything else."""
    text = bytes(raw)
    try:
        return msgspec.json.decode(text) if text[:1] in _PLAIN else None
    except (msgspec.DecodeError, UnicodeDecodeError):  # a number beyond all bounds
        return None


def _shown(value: object) -> str | int | None:
    """As much of an identity as an answer repeats."""
    if isinstance(value, str):
        return value[:MAX_CALL_CHARACTERS]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# One item


_HINTS = ("account", "tenant", "endpoint", "context")


class _Unfit(Exception):  # noqa: N818 - becomes a Refusal
    """What is wrong with an item, in words for its sender."""


def check_items(items: Sequence[Item | Refusal], words: Vocabulary, now: datetime) -> list[Item | Refusal]:
    """The same items, each fit to be taken or refused: calls are texts, moments are aware, in UTC, and there."""
    checked, latest = list(items), now + LATEST_AHEAD
    for index, item in enumerate(checked):
        if item.__class__ is Refusal:
            continue
        assert isinstance(item, Item)  # noqa: S101 - for the type checker
        try:
            _check(item, words, now, latest)
        except _Unfit as unfit:
            checked[index] = Refusal(str(unfit), _shown(item.call), _shown(item.id))
    return checked


def _check(item: Item, words: Vocabulary, now: datetime, latest: datetime) -> None:  # noqa: C901 - a call costs as much as a check
    """Raise `_Unfit`, or make the item fit: this runs for every one there is."""
    if item.status not in words.said:
        raise _Unfit(f"status: must be one of {', '.join(words.said)}")
    call = item.call
    # Most texts are good as they are: no call for those.
    if not (call.__class__ is str and len(call) <= MAX_CALL_CHARACTERS and call.isprintable()):
        call = item.call = _text("call", call, MAX_CALL_CHARACTERS)
    if not call:
        raise _Unfit("call: must not be empty")
    item.at = now if item.at is None else _moment(item.at, latest)
    from_ = item.from_
    if from_ is not None and not (from_.__class__ is str and len(from_) <= MAX_LINE_CHARACTERS and from_.isprintable()):
        item.from_ = _text("from", from_, MAX_LINE_CHARACTERS)
    to = item.to
    if to is not None and not (to.__class__ is str and len(to) <= MAX_LINE_CHARACTERS and to.isprintable()):
        item.to = _text("to", to, MAX_LINE_CHARACTERS)
    if item.answered_by is not None:
        item.answered_by = _text("answered_by", item.answered_by, MAX_LINE_CHARACTERS)
    if item.account or item.tenant or item.endpoint or item.context:
        _check_hints(item)
    if item.cause is not None:
        _check_cause(item.cause)
    if isinstance(item.id, str) and len(item.id) > MAX_TEXT_CHARACTERS:
        raise _Unfit(f"id: must have at most {MAX_TEXT_CHARACTERS} characters")
    if item.ended_by is not None or item.direction is not None:
        _check_words(item, words)


def _check_words(item: Item, words: Vocabulary) -> None:
    if item.ended_by is not None and item.ended_by not in words.parties:
        raise _Unfit(f"ended_by: must be one of {', '.join(words.parties)}")
    if item.direction is not None and item.direction not in words.directions:
        raise _Unfit(f"direction: must be one of {', '.join(words.directions)}")


def _check_hints(item: Item) -> None:
    for name in _HINTS:
        _text(name, getattr(item, name) or "", MAX_LINE_CHARACTERS)


def _text(name: str, value: str | int, limit: int) -> str:
    text = value if value.__class__ is str else str(value)
    if len(text) > limit or not text.isprintable():
        raise _Unfit(f"{name}: must have at most {limit} printable characters")
    return text


def _moment(at: datetime | float, latest: datetime) -> datetime:
    if not isinstance(at, datetime):
        try:
            at = datetime.fromtimestamp(at / 1000, UTC)
        except (OverflowError, ValueError, OSError):
            raise _Unfit("at: no milliseconds since 1970") from None
    elif at.tzinfo is not UTC:
        if at.tzinfo is None:
            raise _Unfit("at: the offset from UTC is missing (2026-07-01T12:00:00.000-03:00)")
        try:
            at = at.astimezone(UTC)
        except (OverflowError, ValueError):
            raise _Unfit("at: out of range") from None
    if at < EARLIEST:
        raise _Unfit(f"at: lies in {at.year}; a number means milliseconds since 1970")
    if at > latest:
        raise _Unfit("at: lies more than a day ahead")
    return at


def _check_cause(cause: Cause) -> None:
    if cause.sip is not None and not 300 <= cause.sip <= 699:
        raise _Unfit("cause.sip: must be a final SIP code, 300 to 699")
    if cause.q850 is not None and not 0 <= cause.q850 <= 127:
        raise _Unfit("cause.q850: must be 0 to 127")
    if cause.text is not None and len(cause.text) > MAX_TEXT_CHARACTERS:
        raise _Unfit(f"cause.text: must have at most {MAX_TEXT_CHARACTERS} characters")


def hints_of(item: Item) -> tuple[str, ...]:
    """What the source knows beside the numbers, as lines spell it (`account:acme`)."""
    return tuple(
        f"{name}:{value}"
        for name, value in (
            ("account", item.account), ("tenant", item.tenant), ("endpoint", item.endpoint), ("context", item.context),
        )
        if value
    )  # fmt: skip


def order_of(items: Sequence[Item | Refusal], words: Vocabulary) -> Iterable[int]:
    """In which order to take checked items: as they stand, unless a call's own do not stand in the order of their moments.

    Then all of them go by moment, and where moments are equal by the order of a call's life.
    """
    said = words.said
    latest: dict[object, Any] = {}
    item: Any
    for item in items:
        if item.__class__ is Item:
            before = latest.get(item.call)
            if before is not None and item.at <= before.at and _is_earlier(item, before, said):
                return sorted(range(len(items)), key=partial(_key, items, said))
            latest[item.call] = item
    return range(len(items))


def _is_earlier(item: Any, other: Any, said: Mapping[str, Said]) -> bool:
    return bool((item.at, said[item.status].rank) < (other.at, said[other.status].rank))


def _key(items: Sequence[Item | Refusal], said: Mapping[str, Said], index: int) -> tuple[datetime, int]:
    item = items[index]
    if isinstance(item, Item) and isinstance(item.at, datetime):
        return (item.at, said[item.status].rank)
    return (EARLIEST, 0)
