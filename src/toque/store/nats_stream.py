"""What is done with a stream: writing by compare-and-set, reading what no replica may leave out, throwing away.

A subject that only grows by messages which name the last one before them is a *chain* (docs/design-nats.md). Reads in batches may
be answered by any replica, and one may lag behind. So whoever must see everything asks the leader for the last message first, and
reads again until it has come.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from toque.store.nats_link import NOT_FOUND, Conflict, Link, Refused, Stored, Unanswered, checked

EXPECTED_SUBJECT_SEQ = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_STREAM_SEQ = "Nats-Expected-Last-Sequence"
TIME_TO_LIVE = "Nats-TTL"
BATCH_MESSAGES = 1_000  # the server's own limit of an atomic batch
PAGE_MESSAGES = 1_000
_LAG_S = 3.0  # a replica that takes longer to catch up is given up for this time
_AGAIN_S = 0.005
_BATCH_BYTES = 4 * 2**20


class _Message(msgspec.Struct):
    subject: str
    seq: int
    data: str = ""


class _Got(msgspec.Struct):
    message: _Message | None = None


class _State(msgspec.Struct):
    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class _Cluster(msgspec.Struct):
    name: str | None = None


class Info(msgspec.Struct):
    """What the engine tells of a stream."""

    config: dict[str, Any]
    state: _State
    cluster: _Cluster | None = None


_GOT = msgspec.json.Decoder(_Got)
_INFO = msgspec.json.Decoder(Info)


class Draft(msgspec.Struct):
    """A message to be written."""

    subject: str
    data: bytes
    headers: dict[str, str] = {}


class Stream:
    """One stream of the engine."""

    def __init__(self, link: Link, name: str) -> None:
        self.link = link
        self.name = name

    # Writing

    async def put(
        self, subject: str, data: bytes, *, after: int | None = None, stream_after: int | None = None, ttl: str | None = None
    ) -> int:
        """Write a message, only if its subject's last one is `after` or the stream's is `stream_after`; returns its place.

        Raises `Conflict`, or `StoreError`; then it may have been written, or will be.
        """
        headers = {}
        if after is not None:
            headers[EXPECTED_SUBJECT_SEQ] = str(after)
        if stream_after is not None:
            headers[EXPECTED_STREAM_SEQ] = str(stream_after)
        if ttl is not None:
            headers[TIME_TO_LIVE] = ttl
        return (await self.link.answer(subject, data, headers or None)).seq

    async def put_together(self, drafts: Sequence[Draft]) -> int:
        """Write all of these or none, one behind the other; returns the place of the first. Raises as `put` does."""
        if len(drafts) == 1:
            (draft,) = drafts
            return (await self.link.answer(draft.subject, draft.data, draft.headers or None)).seq
        batch = uuid4().hex
        for number, draft in enumerate(drafts[:-1], 1):
            headers = {**draft.headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            await self.link.send(draft.subject, draft.data, headers)
        last = drafts[-1]
        headers = {**last.headers, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(len(drafts)), "Nats-Batch-Commit": "1"}
        return (await self.link.answer(last.subject, last.data, headers)).seq - len(drafts) + 1

    async def put_all(self, drafts: Iterable[Draft]) -> None:
        """Write many that may each be written again. When that fails, some may be there. Raises as `put` does.

        They go in atomic batches because that is by far the cheapest way.
        """
        part: list[Draft] = []
        size = 0
        for draft in drafts:
            part.append(draft)
            size += len(draft.data)
            if len(part) >= BATCH_MESSAGES or size >= _BATCH_BYTES:
                await self.put_together(part)
                part, size = [], 0
        if part:
            await self.put_together(part)

    # Reading

    async def last(self, subject: str) -> Stored | None:
        """The last message of a subject, which may have wildcards, as the leader has it."""
        return await self._get({"last_by_subj": subject})

    async def next(self, subject: str, seq: int) -> Stored | None:
        """The first message of a subject from a place on, as the leader has it."""
        return await self._get({"seq": max(seq, 1), "next_by_subj": subject})

    async def _get(self, wanted: dict[str, Any]) -> Stored | None:
        message = await self.link.request(f"$JS.API.STREAM.MSG.GET.{self.name}", msgspec.json.encode(wanted))
        try:
            checked(message)
        except Refused as refused:
            if refused.status == NOT_FOUND:
                return None
            raise
        found = _GOT.decode(message.data).message
        return None if found is None else Stored(found.seq, found.subject, base64.b64decode(found.data))

    async def page(self, subject: str, seq: int, *, through: int, most: int = PAGE_MESSAGES) -> tuple[list[Stored], bool]:
        """Messages of a subject from a place on, and whether that is all there are.

        `through` is the place of one that exists, so that a replica which lags behind is found out. What has been removed
        meanwhile counts as read.
        """
        deadline_s = asyncio.get_running_loop().time() + _LAG_S
        wanted = {"batch": most, "seq": max(seq, 1), "next_by_subj": subject}
        while True:
            found, is_all = await self.link.read(self.name, wanted)
            reached = found[-1].seq if found else 0
            if reached >= through or not is_all or len(found) >= most:
                return found, is_all
            if await self.next(subject, max(reached + 1, seq)) is None:  # the last one was removed
                return found, True
            if asyncio.get_running_loop().time() > deadline_s:
                raise Unanswered("a replica of the engine lags behind")
            await asyncio.sleep(_AGAIN_S)

    async def all(self, subject: str, seq: int = 1) -> list[Stored]:
        """All messages of a subject from a place on. In a table, one that is written meanwhile is there, old or new."""
        last = await self.last(subject)
        if last is None or last.seq < seq:
            return []
        if last.seq == seq:
            return [last]
        found: list[Stored] = []
        is_all = False
        while not is_all:
            page, is_all = await self.page(subject, seq, through=last.seq)
            found += page
            seq = page[-1].seq + 1 if page else seq
        return found

    async def lasts(self, subjects: Sequence[str], *, mark: str, at_least: int) -> dict[str, Stored]:
        """The last message of each of these subjects; `mark` is one whose last place is at least `at_least`.

        It goes by the mark whether the replica that answers is up to date.
        """
        deadline_s = asyncio.get_running_loop().time() + _LAG_S
        found: dict[str, Stored] = {}
        for start in range(0, len(subjects), PAGE_MESSAGES):
            part = list(subjects[start : start + PAGE_MESSAGES])
            while True:
                got, _ = await self.link.read(self.name, {"multi_last": [*part, mark]})
                read = {message.subject: message for message in got}
                if not at_least or (mark in read and read[mark].seq >= at_least):
                    break
                if asyncio.get_running_loop().time() > deadline_s:
                    raise Unanswered("a replica of the engine lags behind")
                await asyncio.sleep(_AGAIN_S)
            read.pop(mark, None)
            found.update(read)
        return found

    async def info(self, subjects: str | None = None) -> Info:
        """The stream's state, and with `subjects` how many messages each of those has (100,000 at most)."""
        body = b"" if subjects is None else msgspec.json.encode({"subjects_filter": subjects})
        message = await self.link.request(f"$JS.API.STREAM.INFO.{self.name}", body)
        checked(message)
        return _INFO.decode(message.data)

    # Throwing away

    async def drop(self, seq: int, *, is_erased: bool = False) -> None:
        """Remove a message, if it is there; `is_erased`: overwrite it."""
        body = msgspec.json.encode({"seq": seq, "no_erase": not is_erased})
        try:
            await self.link.answer(f"$JS.API.STREAM.MSG.DELETE.{self.name}", body)
        except Refused as refused:
            if refused.status not in (NOT_FOUND, 400, 500):
                raise
            if await self._get({"seq": seq}) is not None:
                raise

    async def purge(self, subject: str, *, before: int | None = None) -> None:
        """Remove the messages of a subject, all or those before a place."""
        wanted: dict[str, Any] = {"filter": subject}
        if before is not None:
            wanted["seq"] = before
        await self.link.answer(f"$JS.API.STREAM.PURGE.{self.name}", msgspec.json.encode(wanted))


__all__ = ["Conflict", "Draft", "Info", "Stored", "Stream", "Unanswered"]
