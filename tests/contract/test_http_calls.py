"""The store's contract: calls whose names are used once, as those of the HTTP intake are."""

from tests.contract.conftest import Place
from tests.support.stored_calls import change, identity, in_progress, whole_call

from toque.calls.http_watch import NEVER_AGAIN
from toque.calls.model import Snapshot, Status
from toque.store.contract import Store

OVER_FOR_EVER = Snapshot(identity(), None, NEVER_AGAIN)


async def test_a_call_that_ended_for_ever_does_not_begin_again(store: Store, place: Place) -> None:
    assert (await store.append(whole_call(), [OVER_FOR_EVER])).events == 4
    later = whole_call(began=3600)
    assert (await store.append(later[:1], [in_progress()])).events == 0
    assert (await store.append(later[1:], [OVER_FOR_EVER])).events == 0
    store, _ = await place.restarted()
    assert (await store.append(later, [OVER_FOR_EVER])).events == 0
    assert await store.open_calls() == []


async def test_what_was_left_out_is_told_or_can_be_counted(store: Store) -> None:
    """A store that names what it left out names exactly that; `events` is right in any case."""
    await store.append([change(Status.INITIATED), change(Status.RINGING, 1)], [in_progress()])
    repeated, new = change(Status.RINGING, 2), change(Status.ANSWERED, 3)
    appended = await store.append([repeated, new], [in_progress()])
    assert appended.events == 1
    assert list(appended.left_out) in ([], [repeated])
