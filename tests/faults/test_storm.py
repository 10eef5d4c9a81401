"""Each part of the storm in its short form, and the judge that counts what is lost.

`test_kill.py` plays the part with the kills, and looks closer. The moments are drawn from a seed, which is printed;
`TOQUE_STORM_SEED` sets it. The verdict does not depend on them.
"""

import json
import os
import random
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.faults.storm.parts import PARTS
from tests.faults.storm.report import Row, as_table
from tests.faults.storm.scene import Outcome
from tests.faults.storm.verdict import WINDOW_S, Tally, judge
from tests.support.recording_receiver import Post

from toque.receiver import FINAL_STATUSES

SHORT_PARTS = [name for name, part in PARTS.items() if part.short_times and name != "kill"]
PLAYED_AT_ONCE = 3
WORDS = ("iniciou", "chamando", "atendeu", "desligou")
A, B = "/a", "/b"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Outcome]]]:
    """The parts that were asked for, some at a time: most of what they do is to wait."""
    seed = int(os.environ.get("TOQUE_STORM_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"TOQUE_STORM_SEED={seed}")
    mine = [
        item for item in request.session.items if item.path == request.path and "outcomes" in getattr(item, "fixturenames", ())
    ]
    asked = {item.callspec.params["name"] for item in mine}
    with ThreadPoolExecutor(PLAYED_AT_ONCE) as stages:
        yield {name: stages.submit(play, name, tmp_path_factory.mktemp(name), seed) for name in SHORT_PARTS if name in asked}


def play(name: str, folder: Path, seed: int) -> Outcome:
    part = PARTS[name]
    return part.short_run(folder, random.Random(f"{seed} {name}"), part.short_times)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT_PARTS)
def test_nothing_accepted_is_lost_or_reordered_and_the_server_returns_to_where_it_was(
    outcomes: dict[str, Future[Outcome]], name: str
) -> None:
    outcome = outcomes[name].result()
    table = as_table([Row(name, outcome, 0.0)])
    print(table)
    assert outcome.is_clean, table
    assert outcome.done.total() >= PARTS[name].short_times
    assert outcome.tally.told > 0


# The judge


def post(path: str, number: int, *, at: float = 0.0, status: int | None = 204, call: str = "fone1", **other: Any) -> Post:
    """One post of a call's, as it would have come."""
    data = {"id": f"{call}-{number}", "callerid": call, "tipo": "realizada", "pin": "fones", "origem": call}
    data |= {"sequencia": number, "status": WORDS[number - 1]} | other
    body = urllib.parse.urlencode({"data": json.dumps(data)}).encode()
    return Post(0, at, 1, path, {"webhook-id": data["id"]}, body, status)


def told(path: str, *numbers: int) -> list[Post]:
    return [post(path, number) for number in numbers]


def counts(posts: list[Post], *, paths: tuple[str, ...] = (A,), **rules: Any) -> dict[str, int]:
    """What is not zero."""
    tally = judge(posts, paths, **rules)
    assert bool(tally.problems) is not tally.is_clean
    named = ("lost", "reordered", "late", "duplicated", "contradicted")
    return {name: value for name in named if (value := getattr(tally, name))}


def test_a_call_told_whole_everywhere_is_fine() -> None:
    assert counts(told(A, 1, 2, 3, 4) + told(B, 1, 2, 3, 4), paths=(A, B), whole={"fone1": WORDS}) == {}
    assert WORDS[-1] in FINAL_STATUSES


@pytest.mark.parametrize(
    ("posts", "found"),
    [
        (told(A, 1, 2, 3, 4) + told(B, 1, 2, 3), {"lost": 1}),  # one URL was not told the end
        (told(A, 1, 2, 3, 4) + told(B, 1, 2, 3) + [post(B, 4, status=500)], {"lost": 1}),
        (told(A, 1, 2, 3, 4), {"lost": 4}),
        (told(A, 1, 2, 4) + told(B, 1, 2, 4), {"lost": 1}),  # a gap
        (told(A, 1, 2, 3) + told(B, 1, 2, 3), {"lost": 1}),  # no end
    ],
)
def test_what_is_missing_is_lost(posts: list[Post], found: dict[str, int]) -> None:
    assert counts(posts, paths=(A, B)) == found


def test_a_call_that_came_in_whole_must_be_told_whole() -> None:
    assert counts([], whole={"fone1": WORDS}) == {"lost": 4}
    assert counts(told(A, 1, 2), whole={"fone1": WORDS}, must_end=False) == {"lost": 2}
    assert counts(told(A, 1, 2), must_end=False) == {}


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ((1, 2, 2, 3, 4, 4), {"duplicated": 2}),  # repetitions of the latest
        ((2, 1, 3, 4), {"reordered": 1}),
        ((1, 2, 1, 3, 4), {"reordered": 1, "duplicated": 1}),  # what was settled comes again
        ((4, 3, 2, 1), {"reordered": 3}),
    ],
)
def test_order_within_a_side(numbers: tuple[int, ...], found: dict[str, int]) -> None:
    assert counts(told(A, *numbers)) == found


def test_a_refused_status_holds_up_the_next_one_for_the_ordering_window() -> None:
    refused = post(A, 1, status=500)
    assert counts([refused, *told(A, 1, 2, 3, 4)]) == {}
    assert counts([refused, post(A, 2, at=1), *told(A, 1, 3, 4)]) == {"reordered": 1}
    assert counts([refused, post(A, 2, at=WINDOW_S), *told(A, 1, 3, 4)]) == {"late": 1}


def test_what_nobody_answered_may_have_been_taken() -> None:
    assert counts([post(A, 1, status=None), *told(A, 1, 2, 3, 4)]) == {"duplicated": 1}


def test_two_contents_contradict_each_other() -> None:
    posts = told(A, 1, 2, 3, 4)
    assert counts([*posts, post(A, 4, duracao="00:00:09")]) == {"duplicated": 1, "contradicted": 1}
    assert counts([*posts, post(A, 4, id="another")]) == {"contradicted": 1}
    assert counts([*told(A, 1, 2, 3), post(A, 4, status=204), post(A, 4, id="x", sequencia=5)]) == {"contradicted": 1}


def test_tallies_add_up() -> None:
    total = Tally()
    total += judge(told(A, 1, 2, 3), [A])
    total += judge(told(A, 1, 2, 3, 4), [A])
    assert (total.told, total.lost, total.is_clean, len(total.problems)) == (7, 1, False, 1)
