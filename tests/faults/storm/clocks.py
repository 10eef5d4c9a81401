"""The server's clock jumps, and is set right again a moment later, while calls go on and a receiver fails.

A call in progress when the clock jumps forward by more than its stale time cannot be told from one whose end was missed; it may be
concluded. It is told without gaps and with one end all the same. Calls that begin and end between the jumps are told as ever.
"""

import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.faults.storm.scene import ALWAYS, CONCLUDED_AFTER, ONE, Outcome, Scene, opened, set_clock
from tests.faults.storm.verdict import callers
from tests.support.recording_receiver import Reply, thanks

LONGEST_S = 2.0
BETWEEN_S = 4.0  # long enough for calls that see no jump
MARGIN = timedelta(seconds=1.5)  # the server's memory of a call's end, for stragglers, before and after a jump


def offsets(now: datetime) -> dict[str, timedelta]:
    """By how much the clock jumps, in words."""
    return {
        "+1 h": timedelta(hours=1),
        "-1 h": timedelta(hours=-1),
        "+1 day": timedelta(days=1),
        "-1 day": timedelta(days=-1),
        "to 1980": datetime(1980, 1, 1, tzinfo=UTC) - now,
        "to 2040": datetime(2040, 1, 1, tzinfo=UTC) - now,
    }


def run(folder: Path, chance: random.Random, times: int) -> Outcome:
    """Each kind of jump, one after the other, until there were so many."""
    jumped: set[str] = set()
    with opened(folder, chance, offset=timedelta()) as scene:
        scene.warm_up()
        with scene.switch.calling():
            for number in range(times):
                names = list(offsets(datetime.now(UTC)))
                jumped |= jump(scene, names[number % len(names)])
        whole = set(scene.switch.kinds) - jumped
        scene.wait_for_whole(whole, paths=(ALWAYS,))
        set_clock(scene.toque, CONCLUDED_AFTER)
        scene.wait_for_ends()
        scene.check_vitals()
        told = callers(scene.receiver.posts)
        as_ever = sum(told.get(name) == words for name, words in scene.switch.words(jumped).items())
        scene.outcome.notes.append(f"{len(jumped)} calls in progress at a jump, {as_ever} of them told as if there had been none")
        return scene.judge(whole)


def jump(scene: Scene, name: str) -> set[str]:
    """Once, there and back; the calls that it may have touched. A receiver fails over the first jump, or over both."""
    scene.receiver.behave(lambda post: Reply(500) if post.path == ONE else Reply())
    fails_on = scene.chance.random() < 0.5
    since = datetime.now(UTC)
    set_clock(scene.toque, offsets(since)[name])
    scene.wait_a_while(LONGEST_S)
    if not fails_on:
        scene.receiver.behave(thanks)
    set_clock(scene.toque, timedelta())
    until = datetime.now(UTC)
    scene.wait_a_while(LONGEST_S)
    scene.receiver.behave(thanks)
    scene.wait_until_well()
    time.sleep(BETWEEN_S)
    scene.outcome.done[f"clock {name}"] += 1
    return scene.switch.in_progress(since - MARGIN, until + MARGIN)
