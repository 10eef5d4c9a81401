"""Calls on the engine: how far each side has been told, and the snapshots of those in progress.

What changes of a call stands in the segment that changed it, and stays in memory; now and then all that has changed goes into a
table, with the calls' keys as keys, and a mark says from where on the log has what the table has not. Snapshots go the same way,
through a subject of their own, since they are large and of no use later. The engine forgets the calls that are over by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from toque.calls.identity import callerid
from toque.calls.model import CallIdentity
from toque.store.nats_layout import Layout
from toque.store.nats_log import NOTHING, Log, LoggedSegment
from toque.store.nats_stream import TIME_TO_LIVE, Draft
from toque.store.sqlite_calls import Call, CallRow, SnapshotRow, Unwritten, key_of, parse_call
from toque.store.sqlite_upkeep import CALL_KEPT

UNWRITTEN = 10_000  # calls and snapshots in memory, about, before they go into the table
_PART_BYTES = 400_000  # of snapshots in one message; the engine's usual limit is 1 MiB
_KEPT = f"{int(CALL_KEPT.total_seconds())}s"
_AT_ONCE = "1s"  # the shortest time that the engine knows


class _Mark(msgspec.Struct, array_like=True):
    """What lies behind these places of the log, and of the snapshots, is not in the table."""

    log: int = 0
    snapshots: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be written into the table, and up to which places that is all."""

    mark: _Mark
    calls: list[CallRow]
    snapshots: list[SnapshotRow]


class _Unwritten(Unwritten):
    """Calls that are in the log alone, all of which go into the table at once."""

    def rows(self) -> list[CallRow]:
        """All of them."""
        return list(self._rows.values())


_MARK = msgspec.json.Decoder(_Mark)
_ROW = msgspec.json.Decoder(tuple[str, int, str])
_SNAPSHOT = msgspec.msgpack.Decoder(tuple[str, str, bytes])
_PART = msgspec.msgpack.Decoder(tuple[str, list[SnapshotRow]])
_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


class Calls:
    """The table of calls, and what is not in it yet."""

    def __init__(self, layout: Layout, log: Log) -> None:
        self._names = layout.names
        self._state = layout.state
        self._work = layout.work
        self._log = log
        self._mark = layout.names.state("mark.calls")
        self._marked_at = 0  # the place of the mark in its own stream
        self.logged_from = 0
        """From which place on the log has what the table has not."""
        self._snapshots_through = 0
        self._snapshots: dict[int, SnapshotRow] = {}
        self._in_progress: set[int] = set()
        self._in_table: set[int] = set()
        self.unwritten = _Unwritten()

    async def open(self) -> None:
        """Find what earlier processes left in the log, which this also reads to its end."""
        mark = await self._read_mark()
        self.logged_from = mark.log + 1
        self._log.tail = await self._segment_at(mark.log)
        segments = await self._log.catch_up()
        for segment in segments:
            self.unwritten.note(segment.call_rows())
        rows, self._snapshots_through = await self._pending(mark, {segment.nonce for segment in segments})
        self._snapshots = {row[0]: row for row in rows}
        self._in_table = set(await self._table())
        self._in_progress = self._in_table | {row[0] for row in rows if row[3] is not None}

    async def _segment_at(self, place: int) -> LoggedSegment:
        """The segment that the mark names, as an end to go on from."""
        found = [segment async for segment in self._log.between(place, place)] if place else []
        return found[0] if found else replace(NOTHING, place=place)

    async def _read_mark(self) -> _Mark:
        message = await self._state.last(self._mark)
        if message is None:
            return _Mark()
        self._marked_at = message.seq
        return _MARK.decode(message.data)

    async def _table(self) -> dict[int, tuple[CallIdentity, bytes]]:
        """The snapshots in the table."""
        found = {}
        for message in await self._state.all(self._names.state("snapshot.*")):
            if message.data:
                source, key, state = _SNAPSHOT.decode(message.data)
                found[int(message.subject.rpartition(".")[2], 16)] = (CallIdentity(source, key), state)
        return found

    async def _pending(self, mark: _Mark, known: set[str] | None = None) -> tuple[list[SnapshotRow], int]:
        """The snapshots that are not in the table, without the last ones if what they came with was not accepted; their end."""
        messages = await self._work.all(self._names.snapshots, mark.snapshots + 1)
        parts = [_PART.decode(message.data) for message in messages]
        last = parts[-1][0] if parts else ""
        if last:
            nonces = known if known is not None else {segment.nonce for segment in await self._since(mark.log)}
            parts = [part for part in parts if part[0] != last or last in nonces]
        return [row for _, rows in parts for row in rows], messages[-1].seq if messages else mark.snapshots

    async def _since(self, place: int) -> list[LoggedSegment]:
        last = await self._log.last()
        return [segment async for segment in self._log.between(place + 1, last.place)]

    async def open_calls(self) -> list[tuple[CallIdentity, bytes]]:
        """See `Store.open_calls`: as the engine has them, whoever wrote them."""
        mark = await self._read_mark()
        pending, _ = await self._pending(mark)
        found = await self._table()
        for number, source, key, state in pending:
            if state is None:
                found.pop(number, None)
            else:
                found[number] = (CallIdentity(source, key), state)
        return list(found.values())

    async def first_seq_of(self, call: str) -> int:
        """The first event of the call with this callerid; 0 when that is not known: it is long over, or not its name's first."""
        try:
            number = key_of(call)
        except ValueError:
            return 0
        row = self.unwritten.get(number) or (await self._rows({number})).get(number)
        return parse_call(CallIdentity("", ""), row[1], row).state.first_seq if row is not None and row[1] == call else 0

    async def _rows(self, numbers: Iterable[int]) -> dict[int, CallRow]:
        """What the table has of these calls."""
        subjects = {self._names.state(f"call.{number:016x}"): number for number in numbers}
        rows: dict[int, CallRow] = {}
        if subjects and self._marked_at:
            found = await self._state.lasts(list(subjects), mark=self._mark, at_least=self._marked_at)
            for subject, message in found.items():
                if message.data:
                    first, seen_at, state = _ROW.decode(message.data)
                    rows[subjects[subject]] = (subjects[subject], first, seen_at, state)
        return rows

    async def find(self, identities: Iterable[CallIdentity]) -> list[Call]:
        """These calls: those that are known, and new ones for the rest."""
        names = {identity: callerid(identity, 0) for identity in identities}
        keys = {identity: key_of(first) for identity, first in names.items()}
        rows = await self._rows({number for number in keys.values() if self.unwritten.get(number) is None})
        return [
            parse_call(identity, first, self.unwritten.get(keys[identity]) or rows.get(keys[identity]))
            for identity, first in names.items()
        ]

    async def put_snapshots(self, nonce: str, rows: Sequence[SnapshotRow]) -> None:
        """Write snapshots; they count once the segment with this mark of its writer is in the log, or at once without one."""
        for data in _parts(nonce, rows):
            place = await self._work.put(self._names.snapshots, data)
            self._snapshots_through = max(self._snapshots_through, place)

    def note(self, calls: Sequence[CallRow], snapshots: Iterable[SnapshotRow]) -> None:
        """These are durable, but not in the table."""
        self.unwritten.note(calls)
        for row in snapshots:
            self._snapshots[row[0]] = row
            (self._in_progress.discard if row[3] is None else self._in_progress.add)(row[0])

    @property
    def is_due(self) -> bool:
        """Whether enough has changed to be written into the table."""
        return len(self.unwritten) + len(self._snapshots) >= UNWRITTEN

    @property
    def has_changed(self) -> bool:
        """Whether anything is not in the table."""
        return bool(len(self.unwritten) or self._snapshots)

    def changes(self) -> Changes:
        """All that is not in the table by now. Not while something is being accepted."""
        mark = _Mark(self._log.tail.place, self._snapshots_through)
        return Changes(mark, self.unwritten.rows(), list(self._snapshots.values()))

    async def write_back(self, changes: Changes) -> None:
        """Write these into the table; meanwhile more may be accepted, but nothing else written back."""
        mark, rows, snapshots = changes.mark, changes.calls, changes.snapshots
        told = [row for row in snapshots if row[3] is not None or row[0] in self._in_table]
        await self._state.put_all([*map(self._call_draft, rows), *map(self._snapshot_draft, told)])
        for row in told:
            (self._in_table.discard if row[3] is None else self._in_table.add)(row[0])
        self._marked_at = await self._state.put(self._mark, _encode(mark))
        self.logged_from = mark.log + 1
        self.unwritten.drop(rows)
        for row in snapshots:
            if self._snapshots.get(row[0]) is row:
                del self._snapshots[row[0]]
        if snapshots:
            await self._work.purge(self._names.snapshots, before=mark.snapshots + 1)

    def _call_draft(self, row: CallRow) -> Draft:
        """A call's row. The engine forgets it by itself, unless the call is in progress."""
        headers = {} if row[0] in self._in_progress else {TIME_TO_LIVE: _KEPT}
        return Draft(self._names.state(f"call.{row[0]:016x}"), _encode(row[1:]), headers)

    def _snapshot_draft(self, row: SnapshotRow) -> Draft:
        subject = self._names.state(f"snapshot.{row[0]:016x}")
        if row[3] is None:
            return Draft(subject, b"", {TIME_TO_LIVE: _AT_ONCE})
        return Draft(subject, _pack(row[1:]))


def _parts(nonce: str, rows: Sequence[SnapshotRow]) -> Iterable[bytes]:
    """Snapshots as messages of a size that the engine takes."""
    part: list[Any] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row[3] or b"") + 100
        if size >= _PART_BYTES:
            yield _pack((nonce, part))
            part, size = [], 0
    if part:
        yield _pack((nonce, part))
