"""Clients, lines, callbacks and credentials of the intake on the engine: what is done to their documents."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import msgspec

from toque.callbacks.callback import Client, IntakeCredential, KeptHealth, Registered, Registry, TooMany
from toque.callbacks.signature import SECRET_BYTES, render_secret
from toque.callbacks.token import KEY_BYTES
from toque.calls.lines import Line
from toque.errors import InputError, SettingsError, StoreError
from toque.store.contract import Removal
from toque.store.nats_documents import (
    Account,
    Book,
    CallbackDocument,
    ClientDocument,
    Document,
    Gone,
    IntakeDocument,
    LineDocument,
    Tombstone,
    callback_of,
    client_key,
    intake_key,
    lines_of,
)
from toque.store.nats_layout import Layout
from toque.store.nats_link import Conflict
from toque.store.nats_registry import RegistryChain, Unchanged
from toque.store.sealing import Sealer, WrongKey
from toque.store.sqlite_rows import from_us_or_none, to_us, to_us_or_none

_CODE_BYTES = 20  # 40 hex digits
_copy = msgspec.structs.replace


class _Health(msgspec.Struct):
    """What is kept of a callback's health; of no account once the callback was enabled again."""

    failing_since: int | None
    enabled: int


_HEALTH = msgspec.json.Decoder(_Health)
_encode = msgspec.json.encode


class Accounts(RegistryChain):
    """The registry."""

    def __init__(self, layout: Layout, sealer: Sealer, clock: Callable[[], datetime]) -> None:
        super().__init__(layout)
        self._sealer = sealer
        self._clock = clock

    # Reading

    async def registry(self) -> Registry:
        """See `Store.registry`."""
        await self.version()
        health = await self._health()
        return self.book.registry(self._sealer, self._clock(), health)

    async def _health(self) -> dict[int, KeptHealth]:
        found: dict[int, KeptHealth] = {}
        for message in await self._layout.state.all(self._names.state("health.*")):
            number = int(message.subject.rpartition(".")[2])
            kept, callback = _HEALTH.decode(message.data), self.book.callback(number)
            if callback is not None and kept.enabled == callback.enabled:
                found[number] = KeptHealth(from_us_or_none(kept.failing_since))
        return found

    async def keep_health(self, callback_id: int, health: KeptHealth) -> None:
        """See `Store.keep_health`."""
        callback = self.book.callback(callback_id)
        if callback is not None:
            kept = _Health(to_us_or_none(health.failing_since), callback.enabled)
            await self._layout.state.put(self._names.state(f"health.{callback_id}"), _encode(kept))

    async def token_key(self) -> bytes:
        """See `Store.token_key`."""
        subject = self._names.state("token_key")
        found = await self._layout.state.last(subject)
        if found is None:
            with suppress(Conflict):
                await self._layout.state.put(subject, self._sealer.seal(os.urandom(KEY_BYTES).hex()).encode(), after=0)
            found = await self._layout.state.last(subject)
        if found is None:
            raise StoreError("the engine lost the key of the tokens")
        return bytes.fromhex(self._sealer.open(found.data.decode()))

    # Changing

    async def add_client(self, client: Client) -> None:
        """See `Store.add_client`."""

        def think(book: Book, _: int) -> tuple[str, Document, None]:
            names = {account.name for _, account in book.accounts()}
            known = book.clients.get(client.client_id)
            if client.name in names or (known is not None and known.account is not None):
                raise InputError(f"there is a client {client.client_id!r}, or one named {client.name!r}, already")
            earlier = [] if known is None else known.earlier
            account = Account(
                client.name,
                client.secret_hash,
                client.secret_version,
                to_us(client.created_at),
                to_us_or_none(client.disabled_at),
                max((one.through for one in earlier), default=0),
            )
            return client_key(client.client_id), ClientDocument(client.client_id, account, earlier=earlier), None

        await self.change(think)

    async def _change_account(self, client_id: str, change: Callable[[Account], Account]) -> bool:
        def think(book: Book, _: int) -> tuple[str, Document, bool]:
            document = book.clients.get(client_id)
            if document is None or document.account is None:
                raise Unchanged(told=False)
            return client_key(client_id), _copy(document, account=change(document.account)), True

        return await self.change(think)

    async def rotate_client(self, client_id: str, secret_hash: str) -> bool:
        """See `Store.rotate_client`."""
        return await self._change_account(
            client_id, lambda one: _copy(one, secret_hash=secret_hash, secret_version=one.secret_version + 1)
        )

    async def disable_client(self, client_id: str, at: datetime | None) -> bool:
        """See `Store.disable_client`."""
        return await self._change_account(client_id, lambda one: _copy(one, disabled_at=to_us_or_none(at)))

    async def remove_client(self, client_id: str, through: int) -> bool:
        """See `Store.remove_client`; `through` is the last event that he may have."""

        def think(book: Book, _: int) -> tuple[str, Document, bool]:
            document = book.clients.get(client_id)
            if document is None or document.account is None:
                raise Unchanged(told=False)
            left = [one.id for one in document.callbacks] + [one.id for one in document.gone if one.is_to_be_tidied]
            earlier = [*document.earlier, Tombstone(through, left)]
            return client_key(client_id), ClientDocument(client_id, earlier=earlier), True

        return await self.change(think)

    async def add_lines(self, lines: Sequence[Line]) -> int:
        """See `Store.add_lines`."""
        clients = list(dict.fromkeys(line.client_id for line in lines))
        await self.version()
        _check_lines(self.book, lines)
        if len(clients) > 1:  # nobody does; all are looked at before any is written
            return sum([await self.add_lines([line for line in lines if line.client_id == client]) for client in clients])

        def think(book: Book, version: int) -> tuple[str, Document, int]:
            added = _check_lines(book, lines)
            if not added:
                raise Unchanged(0)
            document = book.clients[clients[0]]
            more = [LineDocument(line.pin, line.kind, line.number, version) for line in added]
            return client_key(document.client_id), _copy(document, lines=[*document.lines, *more]), len(added)

        return await self.change(think) if lines else 0

    async def remove_lines(self, client_id: str, pin: str, numbers: Sequence[Line] | None) -> int:
        """See `Store.remove_lines`."""
        wanted = None if numbers is None else {(line.kind, line.number) for line in numbers}

        def think(book: Book, _: int) -> tuple[str, Document, int]:
            document = book.clients.get(client_id)
            if document is None:
                raise Unchanged(0)
            kept = [
                one for one in document.lines if one.pin != pin or (wanted is not None and (one.kind, one.number) not in wanted)
            ]
            removed = len(document.lines) - len(kept)
            if not removed:
                raise Unchanged(0)
            return client_key(client_id), _copy(document, lines=kept), removed

        return await self.change(think)

    # Credentials of the HTTP intake

    async def add_intake(self, credential: IntakeCredential) -> None:
        """See `Store.add_intake`."""

        def think(book: Book, _: int) -> tuple[str, Document, None]:
            known = book.intakes.get(credential.name)
            if known is not None and known.token_hash is not None:
                raise InputError(f"there is an intake credential named {credential.name!r} already")
            document = IntakeDocument(credential.name, credential.token_hash, to_us(credential.created_at))
            return intake_key(credential.name), document, None

        await self.change(think)

    async def change_intake(self, name: str, token_hash: str | None) -> bool:
        """Give a credential another token, or none any more."""

        def think(book: Book, _: int) -> tuple[str, Document, bool]:
            known = book.intakes.get(name)
            if known is None or known.token_hash is None:
                raise Unchanged(told=False)
            return intake_key(name), _copy(known, token_hash=token_hash), True

        return await self.change(think)

    # Callbacks

    async def register_callback(
        self, client_id: str, url: str, credentials: str | None, pin: str | None, limit: int
    ) -> Registered | TooMany:
        """See `Store.register_callback`."""
        sealed = None if credentials is None else self._sealer.seal(credentials)
        fresh = (os.urandom(_CODE_BYTES).hex(), self._sealer.seal(render_secret(os.urandom(SECRET_BYTES))))

        def think(book: Book, version: int) -> tuple[str, Document, tuple[CallbackDocument, bool]]:
            document = book.clients.get(client_id)
            if document is None or document.account is None:
                raise InputError(f"there is no client {client_id!r}")
            known = next((one for one in document.callbacks if one.url == url and (one.pin or "") == (pin or "")), None)
            if known is None:
                if len(document.callbacks) >= limit:
                    raise Unchanged(TooMany(limit))
                code, secret = fresh
                made = CallbackDocument(version, code, url, pin or None, sealed, secret, to_us(self._clock()), version)
            else:  # registering again is also how a customer brings a disabled URL back
                made = _enabled(_copy(known, credentials=sealed), version)
            return client_key(client_id), _with_callback(document, made), (made, known is None)

        found = await self.change(think)
        if isinstance(found, TooMany):
            return found
        made, is_new = found
        return Registered(callback_of(client_id, made, self._sealer, self._clock()), is_new)

    async def remove_callback(self, client_id: str, code: str) -> Removal:
        """See `Store.remove_callback`."""

        def think(book: Book, _: int) -> tuple[str, Document, Removal]:
            document = book.clients.get(client_id)
            if document is None or document.account is None:
                raise Unchanged(Removal.UNKNOWN)
            if any(one.code == code for one in document.gone):
                raise Unchanged(Removal.ALREADY_REMOVED)
            known = next((one for one in document.callbacks if one.code == code), None)
            if known is None:
                raise Unchanged(Removal.UNKNOWN)
            kept = [one for one in document.callbacks if one is not known]
            gone = [*document.gone, Gone(known.id, code)]
            return client_key(client_id), _copy(document, callbacks=kept, gone=gone), Removal.REMOVED

        return await self.change(think)

    async def change_callback(self, which: int | str, change: Callable[[CallbackDocument, int], CallbackDocument]) -> bool:
        """Change a callback, named by its id or its code; False when there is none."""

        def think(book: Book, version: int) -> tuple[str, Document, bool]:
            if isinstance(which, int):
                found = book.callbacks.get(which)
            else:
                found = next((pair for pair in book.callbacks.values() if pair[1].code == which), None)
            if found is None:
                raise Unchanged(told=False)
            client_id, known = found
            return client_key(client_id), _with_callback(book.clients[client_id], change(known, version)), True

        return await self.change(think)

    async def disable_callback(self, callback_id: int, reason: str, row: int, seq: int) -> None:
        """See `Store.disable_callback`; what waits has rows until `row`, and what was accepted has seqs until `seq`."""
        at = to_us(self._clock())

        def disabled(one: CallbackDocument, _: int) -> CallbackDocument:
            if one.disabled_at is not None:
                raise Unchanged(told=False)
            return _copy(
                one, disabled_at=at, disabled_reason=reason, dead_at=at, dead_reason=reason, dead_through=row,
                dead_through_seq=seq, is_to_be_marked=True,
            )  # fmt: skip

        await self.change_callback(callback_id, disabled)

    async def enable_callback(self, code: str) -> bool:
        """See `Store.enable_callback`."""
        return await self.change_callback(code, _enabled)

    async def rotate_callback(self, code: str, keep_old_for: timedelta) -> str | None:
        """See `Store.rotate_callback`."""
        secret = render_secret(os.urandom(SECRET_BYTES))
        sealed, until = self._sealer.seal(secret), to_us(self._clock() + keep_old_for)

        def rotated(one: CallbackDocument, _: int) -> CallbackDocument:
            return _copy(one, old_secret=one.secret, old_secret_until=until, secret=sealed)

        return secret if await self.change_callback(code, rotated) else None

    # Secrets

    async def reseal(self) -> None:
        """See to it that every secret is written as this sealer would. Raises `SettingsError` for what it cannot open."""
        await self.version()
        try:
            for document, _ in list(self.book.accounts()):
                for one in document.callbacks:
                    secrets = [text for text in (one.credentials, one.secret, one.old_secret) if text is not None]
                    self._sealer.open(secrets[-1])
                    if not all(map(self._sealer.is_current, secrets)):
                        await self.change_callback(one.id, self._resealed)
            await self._reseal_token_key()
        except WrongKey:
            problem = "the store's secrets were encrypted under another key, or TOQUE_SECRET_KEY is missing"
            raise SettingsError("secret_key", self._layout.link.shown, problem) from None

    def _resealed(self, one: CallbackDocument, _: int) -> CallbackDocument:
        def again(text: str | None) -> str | None:
            return None if text is None else self._sealer.seal(self._sealer.open(text))

        secret = self._sealer.seal(self._sealer.open(one.secret))
        return _copy(one, credentials=again(one.credentials), secret=secret, old_secret=again(one.old_secret))

    async def _reseal_token_key(self) -> None:
        subject = self._names.state("token_key")
        found = await self._layout.state.last(subject)
        if found is not None and not self._sealer.is_current(text := found.data.decode()):
            await self._layout.state.put(subject, self._sealer.seal(self._sealer.open(text)).encode(), after=found.seq)
        elif found is not None:
            self._sealer.open(found.data.decode())


def _enabled(one: CallbackDocument, version: int) -> CallbackDocument:
    """It is well, as far as we know. What its last disabling took with it stays dead."""
    return _copy(one, disabled_at=None, disabled_reason=None, enabled=version)


def _with_callback(document: ClientDocument, made: CallbackDocument) -> ClientDocument:
    others = [one for one in document.callbacks if one.id != made.id]
    return _copy(document, callbacks=sorted([*others, made], key=lambda one: one.id))


def _check_lines(book: Book, lines: Sequence[Line]) -> list[Line]:
    """Those that are new. Raises `InputError` when one of them cannot be."""
    for line in lines:
        known = book.clients.get(line.client_id)
        if known is None or known.account is None:
            raise InputError(f"there is no client {line.client_id!r}")
    index, added = book.lines, []
    fresh = False
    for line in lines:
        twin = index.twin(line)
        if line == twin:
            continue
        if twin is not None and twin.client_id == line.client_id:
            raise InputError(f"{line.text} is already a line of this client's pin {twin.pin}")
        other = index.rival(line)
        if other is not None:
            raise InputError(f"{line.text} belongs to another client: {other.client_id}, pin {other.pin}, line {other.text}")
        if not fresh:  # the book's own index stays as it is
            index, fresh = type(index)(one for document, _ in book.accounts() for one in lines_of(document)), True
        index.add(line)
        added.append(line)
    return added
