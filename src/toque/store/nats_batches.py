"""What callers append, as it becomes batches: cut where it is too much, and refused one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from toque.calls.model import CallIdentity, Snapshot, StatusChange
from toque.errors import StoreError, ToqueError
from toque.store.nats_documents import Book
from toque.store.sqlite_accepting import Append, Subscribers, Wanted

CHANGES_A_SEGMENT = 250  # some hundred kilobytes: the engine's messages have a limit, and large ones hold up small ones


def size_of(append: Append) -> int:
    """How much one caller brings."""
    return len(append.changes) + len(append.snapshots)


def cut(
    changes: Sequence[StatusChange], snapshots: Sequence[Snapshot]
) -> Iterator[tuple[Sequence[StatusChange], Sequence[Snapshot]]]:
    """What one caller brings, cut between calls where it is more than a segment should have."""
    if len(changes) + len(snapshots) <= CHANGES_A_SEGMENT:
        if changes or snapshots:
            yield changes, snapshots
        return
    calls: dict[CallIdentity, tuple[list[StatusChange], list[Snapshot]]] = {}
    for change in changes:
        calls.setdefault(change.identity, ([], []))[0].append(change)
    for snapshot in snapshots:
        calls.setdefault(snapshot.identity, ([], []))[1].append(snapshot)
    part: tuple[list[StatusChange], list[Snapshot]] = ([], [])
    for mine, states in calls.values():
        part[0].extend(mine)
        part[1].extend(states)
        if len(part[0]) + len(part[1]) >= CHANGES_A_SEGMENT:
            yield part
            part = ([], [])
    if part[0] or part[1]:
        yield part


def subscribers(book: Book) -> Subscribers:
    """Every client and who wants its events, as the planner wants to know it."""
    clients = {
        document.client_id: Wanted([(one.id, one.pin) for one in document.callbacks if one.disabled_at is None])
        for document, _ in book.accounts()
    }
    return Subscribers(str(book.version), clients)


def refuse(batch: Sequence[Append], error: Exception) -> None:
    """Tell everyone, each with an error of his own."""
    told = error if isinstance(error, ToqueError) else StoreError(f"{type(error).__name__}: {error}")
    for append in batch:
        if not append.future.done():
            own = type(told)(*told.args)
            own.__cause__ = told.__cause__
            append.future.set_exception(own)
