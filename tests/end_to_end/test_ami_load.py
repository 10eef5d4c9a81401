"""Many calls at once on one Asterisk: each is told as it was, and nothing of it stays in memory. No speed is judged here."""

import asyncio
import json
import subprocess
import sys
from datetime import timedelta

from tests.support.linking import HOST, NAME, linked

from toque.bench.ami_traffic import KINDS, SECRET, USERNAME, caller_of, kind_of, made_up_asterisk
from toque.bench.goals import GOALS
from toque.bench.traffic import number_of
from toque.callbacks.payload import STATUS_WORDS
from toque.calls.lines import LineBook, parse_line
from toque.settings import AmiSource

LIMIT_S = 120
CALLS = 300


def test_every_call_of_a_busy_asterisk_is_told_as_it_was() -> None:
    command = (sys.executable, "-m", "toque", "bench", "ami", "--seconds", "1", "--rate", "150", "--callbacks", "10", "--json")
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["calls"], figures["lost"], figures["wrong"], figures["connections"]) == (150, 0, 0, 1)
    assert figures["statuses"] == sum(len(kind_of(call).words) for call in range(150))
    assert set(GOALS["ami"]) <= set(figures)


async def test_of_calls_that_have_ended_nothing_stays_in_memory() -> None:
    async with made_up_asterisk(clients=10) as switch:
        source = AmiSource(NAME, HOST, switch.port, USERNAME, SECRET, ("PJSIP/trunk*",))
        async with linked(source) as post:
            post.watch.tracker.lines = LineBook.of([parse_line("acme", "did", number_of(0)[:-1] + "*")])
            playing = asyncio.create_task(switch.play(CALLS, CALLS))
            await post.logged("source.resynced")
            await playing
            await post.until(lambda: len(post.watch.events.book) == 0)  # type: ignore[union-attr]
            told = [changes for changes in post.ledger.told.values() if changes]
            assert len(told) == CALLS
            words = {changes[0].facts.caller: tuple(STATUS_WORDS[change.status] for change in changes) for changes in told}
            assert words == {caller_of(call): kind_of(call).words for call in range(CALLS)}
            assert switch.most_at_once > CALLS // len(KINDS)
            post.pass_time(timedelta(minutes=2))
            assert (post.watch.tracker.calls, post.ledger.states) == ({}, {})
            assert post.watch.events.book.ended == set()  # type: ignore[union-attr]
