"""The store stands still and more comes in than the server will hold in memory: it holds TCP back, drops UDP, and says so."""

import random
import socket
import time
from pathlib import Path

from tests.faults.storm.breakage import locked
from tests.faults.storm.scene import ALWAYS, Outcome, Scene, opened
from tests.support.toque_process import HOST

from toque.bench.sip import messages, wrapped

CALLS_A_SECOND = 50  # over TCP, beside the flood
CALLS_A_STEP, STEP_S = 50, 0.02  # 10,000 packets a second at most, which the server understands as fast
CALLS_A_LOOK = 3000  # /health takes its time while the store does not answer
MOST_CALLS = 30_000
MORE_CALLS = 500  # once it is full
FIRST_CALLER = 1_000_000


def run(folder: Path, chance: random.Random, times: int) -> Outcome:
    """Flood it so often."""
    with opened(folder, chance, paths=(ALWAYS,)) as scene:
        scene.switch.calls_a_second = CALLS_A_SECOND
        scene.warm_up()
        with scene.switch.calling():
            flood(scene, FIRST_CALLER)
            scene.wait_until_idle()
            scene.before = scene.vitals()  # what was needed at the most once stays with the allocator; it may not grow again
            for number in range(1, times):
                flood(scene, FIRST_CALLER * (number + 1))
        scene.wait_for_peace()
        scene.check_vitals()
        if scene.switch.agent.connection != 1:
            scene.problem("the switch's connection was lost")
        if "hep.dropped" not in scene.toque.log:
            scene.problem("the log does not say that packets were dropped")
        whole = set(scene.switch.kinds)
        scene.wait_for_whole(whole)
        scene.conclude()
        return scene.judge(whole)


def flood(scene: Scene, first: int) -> None:
    """Once: until /health says that it is full, and a little more."""
    began, sent = time.monotonic(), 0
    with locked(scene.toque.store), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while not is_full(scene) and sent < MOST_CALLS:
            sent += send_calls(sender, scene, first + sent, CALLS_A_LOOK)
        dropped = scene.toque.health()["hep_dropped"]
        sent += send_calls(sender, scene, first + sent, MORE_CALLS)
        if not is_full(scene) or scene.toque.health()["hep_dropped"] == dropped:
            scene.problem(f"{sent} calls wait for the store and nothing is dropped: {scene.health()[1]}")
        held_s = time.monotonic() - began
    scene.outcome.done["store stands still in a flood"] += 1
    well_s = scene.wait_until_well(60.0)
    dropped = scene.toque.health()["hep_dropped"] - scene.outcome.refused
    scene.outcome.refused += dropped
    scene.outcome.calls += sent
    scene.outcome.notes.append(f"{sent} calls in {held_s:.0f} s, {dropped} packets dropped, well again after {well_s:.1f} s")


def is_full(scene: Scene) -> bool:
    """Whether /health says that the intake takes no more."""
    return scene.toque.health()["intake"] == "full"


def send_calls(sender: socket.socket, scene: Scene, first: int, calls: int) -> int:
    """So many answered calls by UDP, each from a telephone of its own."""
    for step in range(first, first + calls, CALLS_A_STEP):
        until = time.monotonic() + STEP_S
        for call in range(step, step + CALLS_A_STEP):
            for message in messages(f"fone{call}", call, "flood"):
                sender.sendto(wrapped(message), (HOST, scene.toque.hep_port))
        time.sleep(max(0.0, until - time.monotonic()))
    return calls
