"""The registry's chain: documents, and a copy of all of them in memory.

A change is thought out in memory and written only if the registry is still as it was thought to be; otherwise it is read again
and thought out anew. So of two changes that exclude each other, the later one is refused. The registry's version is the place of
its last message: whoever wants to know whether his copy is the latest asks for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from toque.errors import StoreError
from toque.store.nats_documents import Book, Document, parse, render
from toque.store.nats_layout import Layout
from toque.store.nats_link import Conflict, Unanswered
from toque.store.nats_stream import Stored

T = TypeVar("T")
_PATIENCE_S = 8.0  # an election takes 4 to 9 s; whoever waits at a command line gets to know before
_AGAIN_S = 0.1
_HEADERS_BYTES = 1024  # they count as well


class Unchanged(Exception):  # noqa: N818 - a way out
    """There is nothing to write; what the caller is told instead."""

    def __init__(self, told: object) -> None:
        super().__init__(told)
        self.told = told


class RegistryChain:
    """The chain, and the copy of what it has."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._names = layout.names
        self._stream = layout.registry
        self._reading = asyncio.Lock()
        self.book = Book()

    async def version(self) -> int:
        """See `Store.registry_version`. Afterwards the copy is at least of this version."""
        last = await self._stream.last(self._names.registry(">"))
        if last is not None and last.seq > self.book.version:
            await self._catch_up(last)
        return self.book.version

    async def _catch_up(self, last: Stored) -> None:
        async with self._reading:
            after = self.book.version
            if last.seq <= after:
                return
            found = [last] if last.seq == after + 1 else await self._stream.all(self._names.registry(">"), after + 1)
            prefix = len(self._names.registry(""))
            for message in found:
                if message.seq > self.book.version:
                    self.book.take(parse(message.subject[prefix:], message.data), message.seq)

    async def change(self, think: Callable[[Book, int], tuple[str, Document, T]]) -> T:
        """Write what `think` makes of the book and the version to be; again, while others come first or nobody answers."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _PATIENCE_S
        doubts: dict[int, tuple[bytes, T]] = {}
        while True:
            await self.version()
            if (landed := await self._landed(doubts)) is not None:
                return doubts[landed][1]
            after = self.book.version
            try:
                key, document, told = think(self.book, after + 1)
            except Unchanged as unchanged:
                return unchanged.told  # type: ignore[return-value]
            data = self._rendered(key, document)
            try:
                place = await self._stream.put(self._names.registry(key), data, stream_after=after)
            except Conflict:
                if loop.time() > deadline_s:
                    raise StoreError("the registry changes too often") from None
            except Unanswered:
                doubts[after + 1] = (data, told)
                if loop.time() > deadline_s:
                    raise
                await asyncio.sleep(_AGAIN_S)
            else:
                if place == self.book.version + 1:
                    self.book.take(document, place)
                return told

    async def _landed(self, doubts: dict[int, tuple[bytes, T]]) -> int | None:
        """The place of a change that nobody confirmed, but that is there."""
        for place, (data, _) in doubts.items():
            found = await self._stream.next(self._names.registry(">"), place) if place <= self.book.version else None
            if found is not None and (found.seq, found.data) == (place, data):
                return place
        return None

    def _rendered(self, key: str, document: Document) -> bytes:
        data = render(document)
        if len(data) > self._layout.link.max_payload - _HEADERS_BYTES:
            raise StoreError(f"{key} is larger than the engine's max_payload; raise that on the servers")
        return data
