"""The upkeep's steps on a real store."""

from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.support.clock import ManualClock
from tests.support.stored_calls import BEGINNING, ZONE, a_client, whole_call

from toque.callbacks.payload import PayloadWriter
from toque.errors import StoreError
from toque.store.sqlite import SqliteStore
from toque.upkeep import Upkeep


async def test_it_goes_on_until_nothing_old_is_left(tmp_path: Path) -> None:
    clock = ManualClock(BEGINNING)
    store = SqliteStore(tmp_path / "toque.db", PayloadWriter(ZONE), clock=clock)
    try:
        await store.add_client(a_client())
        for number in range(600):
            await store.append(whole_call(f"call-{number}"), [])
        clock.advance(3600)
        await store.append(whole_call("young", began=3600), [])
        upkeep = Upkeep(store, keep=timedelta(minutes=30))
        steps = 0
        while await upkeep.step():
            steps += 1
            assert steps < 100
        assert steps > 1  # small ones
        assert await store._read(lambda c: c.execute("SELECT count(*) FROM events").fetchone()) == (4,)
    finally:
        await store.close()


async def test_a_store_that_fails_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*, keep: timedelta) -> bool:
        raise StoreError("the disk is full")

    store = SqliteStore(tmp_path / "toque.db", PayloadWriter(ZONE))
    try:
        monkeypatch.setattr(store, "housekeep", fail)
        with capture_logs() as logs:
            assert not await Upkeep(store, keep=timedelta(days=30)).step()
        assert logs == [{"event": "upkeep.failed", "log_level": "warning", "error": "the disk is full"}]
    finally:
        await store.close()
