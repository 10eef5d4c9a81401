"""Lines: whose call it is.

A line is one number of a client's pin: exact (`554130600300`, or an extension or SIP user as it stands: `1001`, `auth1`), a
prefix (`5541306003*`) or a pattern (`~` and a regular expression that must match the whole number). Numbers are compared in
international form. Exact beats the longest prefix, which beats patterns; no number has two owners.

What a switch knows of a call beside its numbers can be a line too, exact or a prefix: `account:acme`, `tenant:acme`,
`endpoint:PJSIP/trunk-acme`, `context:from-acme-*`. It counts where no number of the call is a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

import phonenumbers

from toque.calls.model import Owner
from toque.errors import InputError

DEFAULT_COUNTRY = "55"
MAX_LINE_CHARACTERS = 200
_SHORTEST_PUBLIC_NUMBER = 10  # area code and eight digits; anything shorter is an extension or a local number
_LONGEST_PUBLIC_NUMBER = 18  # E.164 has 15 digits; trunk 0, 00 and a carrier code may come before them
_HINT = re.compile(r"(account|context|endpoint|tenant):.")  # what a switch knows of a call whose numbers are nobody's lines
_NUMBERS_KNOWN = 50_000  # numbers whose owner is remembered, or that they have none
_TYPED_SEPARATORS = str.maketrans("", "", " -.()")


class LineKind(StrEnum):
    """How a line is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    PATTERN = "pattern"


@dataclass(frozen=True, slots=True)
class Line:
    """One number of a pin. `number` is the normalised number, the prefix without `*`, or the expression without `~`."""

    client_id: str
    pin: str
    kind: LineKind
    number: str

    @property
    def text(self) -> str:
        """As people write it, and as `parse_line` reads it: a foreign number that looks like a national one has its `+`."""
        match self.kind:
            case LineKind.EXACT:
                return self.number if normalise(self.number) == self.number else f"+{self.number}"
            case LineKind.PREFIX:
                return f"{self.number}*"
            case LineKind.PATTERN:
                return f"~{self.number}"


def parse_line(client_id: str, pin: str, text: str, country: str = DEFAULT_COUNTRY) -> Line:
    """Read a line as people write it. Raises `InputError`."""
    number = text.strip()
    if not number or len(number) > MAX_LINE_CHARACTERS or not number.isprintable():
        msg = f"a line has 1 to {MAX_LINE_CHARACTERS} printable characters"
        raise InputError(msg)
    if number.startswith("~"):
        return Line(client_id, pin, LineKind.PATTERN, _checked_pattern(number[1:]))
    if number.endswith("*"):
        is_hint = _HINT.match(number) is not None
        prefix = number[:-1] if is_hint else number[:-1].translate(_TYPED_SEPARATORS).removeprefix("+")
        if not prefix or "*" in prefix or "+" in prefix:
            msg = f"{text!r}: a prefix is its first characters and one * at the end"
            raise InputError(msg)
        if prefix.startswith("0"):
            msg = f"{text!r}: a prefix has international form ({country}800*); extensions that begin with 0 need a pattern"
            raise InputError(msg)
        return Line(client_id, pin, LineKind.PREFIX, prefix)
    if "*" in number:
        msg = f"{text!r}: * is allowed at the end only; write a pattern as ~ and a regular expression"
        raise InputError(msg)
    return Line(client_id, pin, LineKind.EXACT, normalise(number, country))


def _checked_pattern(expression: str) -> str:
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        msg = f"the expression after ~ cannot be compiled: {error}"
        raise InputError(msg) from None
    if not expression:
        msg = "an expression must follow ~"
        raise InputError(msg)
    return expression


@lru_cache(maxsize=65_536)
def normalise(number: str, country: str = DEFAULT_COUNTRY) -> str:
    """The number in international form without `+`; what is no public number (extensions, SIP users) stays as it stands.

    `+`, an international `00`, the trunk `0` and a carrier selection code (Brazil: `0 XX`) are removed; a national number
    gets `country`. Numbering plans are those of Google's libphonenumber.
    """
    digits = number.translate(_TYPED_SEPARATORS)
    international = digits.startswith("+")
    digits = digits.removeprefix("+")
    if not (digits.isascii() and digits.isdecimal()):
        return number
    if len(digits) < _SHORTEST_PUBLIC_NUMBER or len(digits) > _LONGEST_PUBLIC_NUMBER:
        return digits
    if international:
        return digits
    if digits.startswith("00"):
        plain = _parsed("+" + digits[2:], None)
        if plain:
            return plain
    return _parsed(digits, _region(country)) or digits


@lru_cache(maxsize=16)
def _region(country: str) -> str | None:
    region = phonenumbers.region_code_for_country_code(int(country)) if country.isdecimal() else None
    return None if region in (None, "ZZ", "001") else str(region)


def _parsed(digits: str, region: str | None) -> str | None:
    try:
        parsed = phonenumbers.parse(digits, region)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_possible_number(parsed):
        return None
    return f"{parsed.country_code}{phonenumbers.national_significant_number(parsed)}"


@dataclass(slots=True)
class LineBook:
    """All lines, arranged for looking up. Build a new one when lines change."""

    country: str = DEFAULT_COUNTRY
    exact: dict[str, Owner] = field(default_factory=dict)
    prefixes: dict[str, Owner] = field(default_factory=dict)
    patterns: list[tuple[re.Pattern[str], Owner]] = field(default_factory=list)
    lengths: tuple[int, ...] = ()  # of the prefixes, longest first
    _known: dict[str, Owner | None] = field(default_factory=dict, compare=False, repr=False)  # as they were dialled

    @classmethod
    def of(cls, lines: Iterable[Line], country: str = DEFAULT_COUNTRY) -> LineBook:
        """Arrange lines; where two match alike, the one that stands first keeps the number."""
        book = cls(country)
        for line in lines:
            owner = Owner(line.client_id, line.pin)
            match line.kind:
                case LineKind.EXACT:
                    book.exact.setdefault(line.number, owner)
                case LineKind.PREFIX:
                    book.prefixes.setdefault(line.number, owner)
                case LineKind.PATTERN:
                    book.patterns.append((re.compile(line.number), owner))
        book.lengths = tuple(sorted({len(prefix) for prefix in book.prefixes}, reverse=True))
        return book

    def owner(self, number: str) -> Owner | None:
        """Whose number this is, in whatever form it was dialled."""
        if number in self._known:  # a call's numbers are asked for several times
            return self._known[number]
        if not number or len(number) > MAX_LINE_CHARACTERS:  # longer ones are made to fill our memory
            return None
        if len(self._known) >= _NUMBERS_KNOWN:
            self._known.clear()
        owner = self._known[number] = self._looked_up(number)
        return owner

    def _looked_up(self, number: str) -> Owner | None:
        if ":" in number and _HINT.match(number):
            return None  # somebody calls himself what only the switch can say
        return self._owner_of(normalise(number, self.country))

    def owner_of_hint(self, hint: str) -> Owner | None:
        """Whose calls those are of which a switch knows this (`account:acme`)."""
        return self._owner_by_text(hint) if len(hint) <= MAX_LINE_CHARACTERS else None

    def _owner_by_text(self, text: str) -> Owner | None:
        found = self.exact.get(text)
        if found:
            return found
        return next((found for length in self.lengths if (found := self.prefixes.get(text[:length]))), None)

    def _owner_of(self, number: str) -> Owner | None:
        found = self._owner_by_text(number)
        if found:
            return found
        return next((owner for pattern, owner in self.patterns if pattern.fullmatch(number)), None)


def conflict(line: Line, others: Iterable[Line]) -> Line | None:
    """A line of another client that already owns a number which `line` would own; None when there is none.

    Whether a pattern overlaps a prefix or another pattern cannot be decided; there the order of comparison rules, and only
    the same text is refused.
    """
    return next((other for other in others if other.client_id != line.client_id and _overlap(line, other)), None)


def _overlap(a: Line, b: Line) -> bool:
    if a.kind is b.kind and a.number == b.number:
        return True
    kinds: Mapping[LineKind, Line] = {a.kind: a, b.kind: b}
    if a.kind is b.kind:
        return a.kind is LineKind.PREFIX and (a.number.startswith(b.number) or b.number.startswith(a.number))
    exact = kinds.get(LineKind.EXACT)
    if exact is None:
        return False
    if LineKind.PREFIX in kinds:
        return exact.number.startswith(kinds[LineKind.PREFIX].number)
    return re.fullmatch(kinds[LineKind.PATTERN].number, exact.number) is not None
