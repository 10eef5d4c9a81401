"""Signals in the middle of load: SIGTERM, SIGTERM and another one, and SIGSTOP for a while."""

import random
import signal
import time
from pathlib import Path

from tests.faults.storm.kills import only_always, slowly, wait_until_taken_in
from tests.faults.storm.scene import Outcome, Scene, opened
from tests.support.recording_receiver import thanks

LONGEST_LIFE_S = 1.0
LONGEST_PATIENCE_S = 0.3  # of an operator who sends the second signal
AT_ONCE_S = 5.0
PAUSE_S = 20.0
LAST_CALLS = 50  # which no signal touches
FIRST = (signal.SIGTERM, signal.SIGINT)


def run_terms(folder: Path, chance: random.Random, times: int) -> Outcome:
    """Stop the server in order so often, and start it again at once."""
    with opened(folder, chance) as scene:
        scene.receiver.behave(slowly)
        with scene.switch.calling():
            for _ in range(times):
                scene.wait_a_while(LONGEST_LIFE_S)
                if (code := scene.toque.terminate()) != 0:
                    scene.problem(f"SIGTERM under load ended the server with exit code {code}")
                scene.outcome.done["SIGTERM under load"] += 1
                start_again(scene)
        outcome = judge_restarted(scene)
        if outcome.tally.duplicated:
            scene.problem(f"a stop in order repeated {outcome.tally.duplicated} posts")
        return outcome


def run_second_signals(folder: Path, chance: random.Random, times: int) -> Outcome:
    """Stop it so often while receivers keep it waiting, and lose patience."""
    with opened(folder, chance, attempt_timeout="60s") as scene:
        with scene.switch.calling():
            for _ in range(times):
                scene.receiver.behave(only_always)
                scene.wait_a_while(LONGEST_LIFE_S)
                end_impatiently(scene)
                scene.receiver.behave(thanks)
                start_again(scene)
        return judge_restarted(scene)


def end_impatiently(scene: Scene) -> None:
    """Once: two signals, shortly after each other."""
    scene.toque.signal(scene.chance.choice(FIRST))
    time.sleep(scene.chance.uniform(0.05, LONGEST_PATIENCE_S))
    scene.toque.signal(scene.chance.choice(FIRST))
    code = scene.toque.wait(AT_ONCE_S)
    if code == 0:
        scene.problem("a second signal ended the server with exit code 0, as if everything were in order")
    scene.outcome.done["SIGTERM and a second signal"] += 1


def start_again(scene: Scene) -> None:
    """Start the next server once nothing can come of the last one any more."""
    last_ones = scene.receiver.connections
    scene.toque.start()
    scene.receiver.wait_until_closed(last_ones)
    scene.toque.wait_ready()


def judge_restarted(scene: Scene) -> Outcome:
    """For servers that ended in between: calls that the last one saw from their beginning must be whole."""
    scene.receiver.behave(thanks)
    for _ in range(LAST_CALLS):
        scene.switch.call()
    wait_until_taken_in(scene)
    whole = scene.switch.sent_whole()
    scene.wait_for_peace()
    scene.conclude()
    return scene.judge(whole)


def run_pauses(folder: Path, chance: random.Random, times: int, *, pause_s: float = PAUSE_S) -> Outcome:
    """Let it stand still so often, longer than an attempt may take."""
    with opened(folder, chance) as scene:
        scene.warm_up()
        with scene.switch.calling():
            for _ in range(times):
                scene.toque.signal(signal.SIGSTOP)
                time.sleep(pause_s)
                scene.toque.signal(signal.SIGCONT)
                scene.outcome.done[f"SIGSTOP for {pause_s:g} s"] += 1
                scene.wait_until_well()
                scene.wait_a_while(LONGEST_LIFE_S)
        return scene.judge_survivor()
