"""kill -9 at any moment: what the store has accepted is told, in order and at least once; the server goes on where it was.

The kills are a round of the storm's (`make storm`); here somebody looks closer at what it leaves behind. The moments are drawn from
a seed, which is printed; `TOQUE_KILL_SEED` sets it. The verdict does not depend on them.
"""

import os
import random
from bisect import bisect
from collections import Counter
from datetime import datetime, timedelta

import pytest
from tests.faults.storm.kills import LASTING_CALLS, SENDING_OUT, TAKING_IN, Aftermath, play
from tests.faults.storm.report import Row, as_table
from tests.faults.storm.switch import DIALLED, KINDS
from tests.faults.storm.verdict import callers
from tests.support.recording_receiver import Post, assert_signed

from toque.receiver import FINAL_STATUSES

pytestmark = pytest.mark.slow

KILLS = 50


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    """All the kills, and then peace until nothing waits any more."""
    seed = int(os.environ.get("TOQUE_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"TOQUE_KILL_SEED={seed}")
    return play(tmp_path_factory.mktemp("toque"), random.Random(seed), KILLS)


def test_nothing_is_lost_or_reordered_and_every_side_has_its_end(aftermath: Aftermath) -> None:
    assert aftermath.outcome.is_clean, as_table([Row("kill", aftermath.outcome, 0.0)])


def test_there_were_enough_kills_and_each_in_the_middle_of_something(aftermath: Aftermath) -> None:
    assert Counter(kill.phase for kill in aftermath.kills) == {TAKING_IN: KILLS // 2, SENDING_OUT: KILLS // 2}
    assert all(kill.outstanding for kill in aftermath.kills if kill.phase == SENDING_OUT)
    assert len(aftermath.whole) >= KILLS // 2


def test_all_that_was_posted_is_signed(aftermath: Aftermath) -> None:
    in_time = aftermath.posts[: aftermath.in_peace]  # the others are signed with a clock that is hours ahead
    for path, secret in aftermath.secrets.items():
        assert_signed((post for post in in_time if post.path == path), secret)


def test_a_call_that_began_before_a_kill_and_ended_after_it_has_its_end(aftermath: Aftermath) -> None:
    """Its own, that is: it is there before anybody concludes anything."""
    told = callers(aftermath.posts[: aftermath.in_peace])
    begun_before = [name for name in aftermath.ended - aftermath.whole if name in told]
    assert len(begun_before) >= LASTING_CALLS
    for name in begun_before:
        assert told[name][-1] in FINAL_STATUSES


def test_a_call_that_outlasts_all_kills_is_told_as_if_nothing_had_happened(aftermath: Aftermath) -> None:
    for name in list(aftermath.kinds)[:LASTING_CALLS]:
        told = side_of(name, aftermath.posts)
        assert [post.word for post in told] == KINDS["answered"]
        answer, end = told[-2].data, told[-1].data
        assert (end["atendimento"], end["atendido_por"], end["desligado_por"]) == (answer["atendimento"], DIALLED, "origem")
        lasted = datetime.fromisoformat(end["momento"]) - datetime.fromisoformat(answer["momento"])
        assert lasted > timedelta(seconds=KILLS // 2 * 0.2)
        assert abs(lasted - span(end["duracao"])) <= timedelta(seconds=1)
        assert end["inferido"] is False


def side_of(name: str, posts: list[Post]) -> list[Post]:
    """What is told of this telephone's call, each status once."""
    return list({post.id: post for post in posts if post.data["origem"] == name}.values())


def span(told: str) -> timedelta:
    hours, minutes, seconds = map(int, told.split(":"))
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def test_repetitions_are_counted(aftermath: Aftermath) -> None:
    """Not a promise but a measure: how often a kill made the server post again what a receiver had already taken."""
    taken: set[tuple[str, str]] = set()
    repeated: Counter[int] = Counter()
    moments = [kill.at for kill in aftermath.kills]
    for post in aftermath.posts:
        if (post.path, post.id) in taken:
            repeated[bisect(moments, post.at) - 1] += 1
        elif post.status in (204, None):
            taken.add((post.path, post.id))
    assert -1 not in repeated  # none before the first kill
    print(f"\n{len(aftermath.kinds)} calls, {len(aftermath.whole)} of them untouched; {aftermath.outcome.tally.told} statuses")
    header = ("phase", "kills", "starting", "ready for", "told", "outstanding", "repeated", "at most")
    print("{:22}{:>6}{:>10}{:>16}{:>8}{:>14}{:>10}{:>9}".format(*header))
    for phase in (TAKING_IN, SENDING_OUT):
        print(measured(phase, aftermath, repeated))


def measured(phase: str, aftermath: Aftermath, repeated: Counter[int]) -> str:
    """One phase's line of the table."""
    kills = [(number, kill) for number, kill in enumerate(aftermath.kills) if kill.phase == phase]
    lives = [kill.lived_s for _, kill in kills if kill.was_ready]
    outstanding = [kill.outstanding for _, kill in kills]
    again = [repeated[number] for number, _ in kills]
    return (
        f"{phase:22}{len(kills):6}{sum(not kill.was_ready for _, kill in kills):10}"
        f"{f'{min(lives):.2f}..{max(lives):.2f} s':>16}{kills[-1][1].accepted:8}"
        f"{f'{min(outstanding)}..{max(outstanding)}':>14}{sum(again):10}{max(again):9}"
    )
