"""The registry's documents, one for each client, and what they come to together: the book.

One document holds all that belongs to a client, so that a change is one message, which names the registry's last one before it.
What uniqueness there is between clients (names, numbers) is looked up in the book, and holds because of that.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec

from toque.callbacks.callback import Callback, Client, IntakeCredential, KeptHealth, Registry
from toque.calls.lines import Line, LineKind, conflict
from toque.errors import StoreError
from toque.store.sealing import Sealer
from toque.store.sqlite_rows import from_us, from_us_or_none

_COMPRESSED_FROM = 65_536  # bytes; smaller ones can be read with the engine's own tools
_PLAIN_KEY = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_LAST_CHARACTER = chr(0x10FFFF)


class Account(msgspec.Struct):
    """A client that is not removed."""

    name: str
    secret_hash: str
    secret_version: int
    created_at: int
    disabled_at: int | None = None
    since: int = 0  # events until here are an earlier client's of the same client_id


class CallbackDocument(msgspec.Struct):
    """A registered URL. `enabled` is the registry's version when it was last enabled."""

    id: int
    code: str
    url: str
    pin: str | None
    credentials: str | None
    secret: str
    created_at: int
    enabled: int
    old_secret: str | None = None
    old_secret_until: int | None = None
    disabled_at: int | None = None
    disabled_reason: str | None = None
    dead_through: int = 0  # rows of its backlog that were there when it was last disabled,
    dead_through_seq: int = 0  # and events that were accepted until then
    dead_at: int | None = None
    dead_reason: str | None = None
    is_to_be_marked: bool = False  # what is dead through its disabling still lies among what waits

    def refuses(self, seq: int) -> str | None:
        """Why an event that has no row yet can only be dead: the callback is, or was since the event was accepted, disabled."""
        return self.disabled_reason or (self.dead_reason if seq <= self.dead_through_seq else None)


class Gone(msgspec.Struct, array_like=True):
    """A removed callback; `is_to_be_tidied` until nothing is left of what it had."""

    id: int
    code: str
    is_to_be_tidied: bool = True


class Tombstone(msgspec.Struct, array_like=True):
    """A removed client of whom something may be left: events until `through`, and what these callbacks had."""

    through: int
    callback_ids: list[int]


class LineDocument(msgspec.Struct, array_like=True):
    """A line; `order` is the registry's version that brought it."""

    pin: str
    kind: LineKind
    number: str
    order: int


class ClientDocument(msgspec.Struct):
    """All that belongs to a client_id."""

    client_id: str
    account: Account | None = None
    lines: list[LineDocument] = []
    callbacks: list[CallbackDocument] = []
    gone: list[Gone] = []
    earlier: list[Tombstone] = []


class IntakeDocument(msgspec.Struct):
    """A credential of the HTTP intake; without a hash it was removed."""

    name: str
    token_hash: str | None
    created_at: int


Document = ClientDocument | IntakeDocument
_CLIENT, _INTAKE = "client.", "intake."
_encode = msgspec.json.Encoder().encode
_CLIENTS = msgspec.json.Decoder(ClientDocument)
_INTAKES = msgspec.json.Decoder(IntakeDocument)


def client_key(client_id: str) -> str:
    """The key of a client's document."""
    return _CLIENT + _key(client_id)


def intake_key(name: str) -> str:
    """The key of a credential's document."""
    return _INTAKE + _key(name)


def _key(text: str) -> str:
    """A text as a part of a key, which has few characters to choose from."""
    if text and _PLAIN_KEY.issuperset(text):
        return text
    return "=" + text.encode("utf-8", "surrogatepass").hex()


def render(document: Document) -> bytes:
    """A document as it is stored."""
    data = _encode(document)
    return data if len(data) < _COMPRESSED_FROM else zlib.compress(data)


def parse(key: str, data: bytes) -> Document | None:
    """A document again; None for a key of no known kind."""
    try:
        text = data if data.startswith(b"{") else zlib.decompress(data)
        if key.startswith(_CLIENT):
            return _CLIENTS.decode(text)
        return _INTAKES.decode(text) if key.startswith(_INTAKE) else None
    except (msgspec.DecodeError, zlib.error) as error:
        raise StoreError(f"the registry's entry {key} cannot be read: {error}") from None


class Book:
    """Every document, as of one version."""

    def __init__(self) -> None:
        self.version = 0
        self.clients: dict[str, ClientDocument] = {}
        self.intakes: dict[str, IntakeDocument] = {}
        self._callbacks: dict[int, tuple[str, CallbackDocument]] | None = None
        self._lines: LineIndex | None = None

    def take(self, document: Document | None, version: int) -> None:
        """Go by this document from now on."""
        self.version = version
        self._callbacks = self._lines = None
        match document:
            case ClientDocument():
                self.clients[document.client_id] = document
            case IntakeDocument():
                self.intakes[document.name] = document
            case None:
                pass

    def accounts(self) -> Iterator[tuple[ClientDocument, Account]]:
        """Those who are not removed."""
        for document in self.clients.values():
            if document.account is not None:
                yield document, document.account

    @property
    def callbacks(self) -> dict[int, tuple[str, CallbackDocument]]:
        """Every callback that is not removed, with its client_id, by its id and in this order."""
        if self._callbacks is None:
            found = {one.id: (document.client_id, one) for document, _ in self.accounts() for one in document.callbacks}
            self._callbacks = dict(sorted(found.items()))
        return self._callbacks

    def callback(self, callback_id: int) -> CallbackDocument | None:
        """A callback that is not removed."""
        found = self.callbacks.get(callback_id)
        return None if found is None else found[1]

    @property
    def lines(self) -> LineIndex:
        """All lines."""
        if self._lines is None:
            self._lines = LineIndex(line for document, _ in self.accounts() for line in lines_of(document))
        return self._lines

    def registry(self, sealer: Sealer, now: datetime, health: dict[int, KeptHealth]) -> Registry:
        """As the world knows it."""
        accounts = sorted(self.accounts(), key=lambda found: found[1].created_at)
        lines = [(one.order, place, line) for document, _ in accounts for place, (one, line) in enumerate(_both(document))]
        return Registry(
            self.version,
            {document.client_id: _client(document.client_id, account) for document, account in accounts},
            tuple(line for _, _, line in sorted(lines, key=lambda found: found[:2])),
            {
                number: _callback(client_id, one, sealer, now, health.get(number, KeptHealth()))
                for number, (client_id, one) in self.callbacks.items()
            },
            {
                name: IntakeCredential(name, one.token_hash, from_us(one.created_at))
                for name, one in sorted(self.intakes.items())
                if one.token_hash is not None
            },
        )


def lines_of(document: ClientDocument) -> list[Line]:
    """A client's lines."""
    return [line for _, line in _both(document)]


def _both(document: ClientDocument) -> list[tuple[LineDocument, Line]]:
    return [(one, Line(document.client_id, one.pin, one.kind, one.number)) for one in document.lines]


def _client(client_id: str, account: Account) -> Client:
    return Client(
        client_id,
        account.name,
        account.secret_hash,
        account.secret_version,
        from_us(account.created_at),
        from_us_or_none(account.disabled_at),
    )


def _callback(client_id: str, one: CallbackDocument, sealer: Sealer, now: datetime, health: KeptHealth) -> Callback:
    until = from_us_or_none(one.old_secret_until)
    secrets = [one.secret, *([one.old_secret] if one.old_secret is not None and until is not None and until > now else [])]
    return Callback(
        id=one.id,
        code=one.code,
        client_id=client_id,
        url=one.url,
        pin=one.pin,
        created_at=from_us(one.created_at),
        credentials=None if one.credentials is None else sealer.open(one.credentials),
        secrets=tuple(sealer.open(text) for text in secrets),
        old_secret_until=until,
        disabled_at=from_us_or_none(one.disabled_at),
        disabled_reason=one.disabled_reason,
        health=health,
    )


def callback_of(client_id: str, one: CallbackDocument, sealer: Sealer, now: datetime) -> Callback:
    """One callback as the world knows it; its health is looked at elsewhere."""
    return _callback(client_id, one, sealer, now, KeptHealth())


class LineIndex:
    """Lines, found by number: there may be very many."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._by_number = {(line.kind, line.number): line for line in lines}
        self._patterns = [line for line in self._by_number.values() if line.kind is LineKind.PATTERN]
        self._sorted: list[tuple[str, LineKind]] = sorted(
            (number, kind) for kind, number in self._by_number if kind is not LineKind.PATTERN
        )

    def twin(self, line: Line) -> Line | None:
        """Whoever has this very line."""
        return self._by_number.get((line.kind, line.number))

    def rival(self, line: Line) -> Line | None:
        """Another client's line that claims a number that this one claims."""
        return conflict(line, [other for other in self._near(line) if other.client_id != line.client_id])

    def _near(self, line: Line) -> Iterator[Line]:
        number = line.number
        match line.kind:
            case LineKind.PATTERN:
                yield from self._by_number.values()
                return
            case LineKind.PREFIX:
                end = bisect_left(self._sorted, (number + _LAST_CHARACTER,))
                for other, kind in self._sorted[bisect_left(self._sorted, (number,)) : end]:
                    yield self._by_number[kind, other]
            case LineKind.EXACT:
                yield from self._patterns
                if (same := self.twin(line)) is not None:
                    yield same
        for length in range(1, len(number) + 1):
            if (shorter := self._by_number.get((LineKind.PREFIX, number[:length]))) is not None:
                yield shorter

    def add(self, line: Line) -> None:
        """One more, of the list that is being looked at."""
        self._by_number[line.kind, line.number] = line
        if line.kind is LineKind.PATTERN:
            self._patterns.append(line)
        else:
            entry = (line.number, line.kind)
            self._sorted.insert(bisect_left(self._sorted, entry), entry)
