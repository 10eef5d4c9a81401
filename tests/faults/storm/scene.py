"""Where a part of the storm plays: one server, one switch that makes calls, one receiver with several URLs."""

import contextlib
import http.client
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Self

from tests.faults.storm import clocked_server
from tests.faults.storm.switch import NUMBERS, Switch
from tests.faults.storm.verdict import Tally, callers, judge
from tests.faults.storm.vitals import Vitals, take_vitals
from tests.support.hep_sender import HepAgent
from tests.support.recording_receiver import EVERYWHERE, Post, RecordingReceiver
from tests.support.toque_process import PATIENCE_S, Account, ToqueProcess

from toque.receiver import FINAL_STATUSES

ALWAYS, ONE, OTHER = "/always", "/one", "/other"  # the first always takes what it is given: it shows what is durable
PATHS = (ALWAYS, ONE, OTHER)
WARM_UP_CALLS = 40
PEACE_S = 120.0  # for all that waits to be delivered once the fault is over: back-offs included
CONCLUDED_AFTER = timedelta(hours=5)  # beyond `stale_answered` (4 h): no call is waited for any longer
SETTLES_S = 90.0  # for descriptors and threads to return: idle connections are kept for a minute
POLL_S = 0.1


@dataclass
class Outcome:
    """What a part of the storm did and what came of it. Problems make the storm fail; notes are only told."""

    done: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    refused: int = 0  # told to whoever asked, and therefore nobody's loss
    tally: Tally = field(default_factory=Tally)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Outcome") -> Self:
        self.done += other.done
        self.calls += other.calls
        self.refused += other.refused
        self.tally += other.tally
        self.problems += other.problems
        self.notes += other.notes
        return self

    @property
    def is_clean(self) -> bool:
        """Whether everything is as promised."""
        return self.tally.is_clean and not self.problems


@dataclass
class Scene:
    """All that plays, while it plays."""

    toque: ToqueProcess
    receiver: RecordingReceiver
    switch: Switch
    chance: random.Random
    account: Account
    secrets: Mapping[str, str]  # by path
    outcome: Outcome = field(default_factory=Outcome)
    before: Vitals | None = None

    @property
    def paths(self) -> Sequence[str]:
        """The URLs' paths."""
        return list(self.secrets)

    # What is told

    def accepted(self) -> set[str]:
        """The ids of all statuses that the URL which always takes them was told."""
        return {post.headers["webhook-id"] for post in self.receiver.posts_to(ALWAYS)}

    def outstanding(self) -> int:
        """Posts that are still to be made, as far as receivers can know."""
        known, taken = set[str](), set[tuple[str, str]]()
        for post in self.receiver.posts:
            id_ = post.headers["webhook-id"]
            known.add(id_)
            if post.status == 204:
                taken.add((post.path, id_))
        return len(known) * len(self.paths) - len(taken)

    def health(self) -> tuple[bool, str]:
        """Whether /health says that all is well, and what it says; a server that cannot be asked is not well."""
        try:
            status, body = self.toque.get("/health")
        except (OSError, http.client.HTTPException) as error:
            return False, str(error)
        return status == 200, body.decode()

    def vitals(self) -> Vitals:
        """What the server holds, without the connections to receivers, which are kept for a while by design."""
        kept = len(self.receiver.connections)
        taken = take_vitals(self.toque.pid)
        return replace(taken, descriptors=taken.descriptors - kept)

    # Milestones

    def warm_up(self) -> None:
        """Have every part of the server work once, then note what it holds of the machine."""
        for _ in range(WARM_UP_CALLS):
            self.switch.call()
        self.wait_for_whole(set(self.switch.kinds))
        self.before = self.vitals()

    def wait_for_whole(self, names: set[str], *, paths: Sequence[str] = (), timeout_s: float = PEACE_S) -> bool:
        """Until each of these calls was told whole at every URL, or at these, or the time is over; whether it was."""
        wanted = sum(len(words) for words in self.switch.words(names).values())

        def is_so() -> bool:
            taken = self._taken(names)
            return self.switch.agent.waiting == 0 and all(taken[path] >= wanted for path in paths or self.paths)

        return wait_until(is_so, timeout_s)

    def _taken(self, names: set[str]) -> dict[str, int]:
        """How many different statuses of these calls each URL took."""
        ids: dict[str, set[str]] = {path: set() for path in self.paths}
        everything = len(names) == len(self.switch.kinds)
        for post in self.receiver.posts:
            if post.status == 204 and (everything or post.data["origem"] in names):
                ids[post.path].add(post.headers["webhook-id"])
        return {path: len(taken) for path, taken in ids.items()}

    def wait_for_peace(self, *, timeout_s: float = PEACE_S) -> None:
        """Until nothing waits to be delivered, as the server says and as receivers know. That it never does is a problem."""

        def is_so() -> bool:
            return self.outstanding() == 0 and self._holds_nothing()

        if not wait_until(is_so, timeout_s):
            self.problem(f"{self.outstanding()} posts are not made {timeout_s:g} s after the fault was over: {self.health()[1]}")

    def wait_until_idle(self, *, most: int = 100) -> bool:
        """Until next to nothing waits, although calls go on."""
        return wait_until(lambda: self.outstanding() < most, PEACE_S)

    def _holds_nothing(self) -> bool:
        try:
            return self.toque.waiting() == 0
        except (OSError, http.client.HTTPException):
            return False

    def wait_until_failing(self, timeout_s: float = PATIENCE_S) -> bool:
        """Until /health says that something is wrong."""
        return wait_until(lambda: not self.health()[0], timeout_s)

    def wait_until_well(self, timeout_s: float = PATIENCE_S) -> float:
        """Until /health is ok again; the seconds that took. A server that never is, is a problem."""
        began = time.monotonic()
        if not wait_until(lambda: self.health()[0], timeout_s):
            self.problem(f"/health is not ok {timeout_s:g} s after the fault was over: {self.health()[1]}")
        return time.monotonic() - began

    def wait_a_while(self, longest_s: float) -> None:
        """Let the fault last for a random time: this is no milestone, and no verdict depends on it."""
        time.sleep(self.chance.uniform(0.2, longest_s))

    # The end

    def conclude(self) -> None:
        """Give up waiting for the ends that were never seen: the server goes on five hours later."""
        if (code := self.toque.terminate()) != 0:
            self.problem(f"SIGTERM in peace ended the server with exit code {code}")
        set_clock(self.toque, CONCLUDED_AFTER)
        self.toque.start()
        self.toque.wait_ready()
        self.wait_for_ends()

    def wait_for_ends(self) -> None:
        """Until every call of which anything was told has its end everywhere, or the time is over."""

        def is_so() -> bool:
            return all(words[-1] in FINAL_STATUSES for words in callers(self.receiver.posts_to(ALWAYS)).values())

        wait_until(is_so, PATIENCE_S)
        self.wait_for_peace()

    def judge(self, whole: set[str]) -> Outcome:
        """Count what was told, with these calls expected whole."""
        outcome = self.outcome
        outcome.calls += len(self.switch.kinds)
        outcome.tally += judge(self.receiver.posts, self.paths, whole=self.switch.words(whole))
        if "Traceback" in self.toque.log:
            self.problem(f"a traceback is in the log: {self.toque.tail()}")
        return outcome

    def judge_survivor(self) -> Outcome:
        """For a server that lived through everything, and whose switch kept its connection: not one call may be incomplete."""
        self.wait_for_whole(set(self.switch.kinds))
        self.wait_for_peace()
        if self.switch.agent.connection != 1:
            self.problem(f"the switch's connection was lost {self.switch.agent.connection - 1} times")
        self.check_vitals()
        return self.judge(set(self.switch.kinds))

    def check_vitals(self) -> None:
        """Threads, descriptors and memory must have returned to what they were after the warm-up."""
        assert self.before is not None
        before, calls = self.before, self.outcome.calls + len(self.switch.kinds)
        wait_until(lambda: not self.vitals().excess(before, calls=calls), SETTLES_S)
        after = self.vitals()
        self.outcome.notes.append(f"threads {before.threads} -> {after.threads}, descriptors {before.descriptors} -> "
                                  f"{after.descriptors}, MiB {before.resident >> 20} -> {after.resident >> 20}")  # fmt: skip
        for excess in after.excess(before, calls=calls):
            self.problem(f"did not return to where it was: {excess}")

    def problem(self, text: str) -> None:
        """Note what must not be."""
        self.outcome.problems.append(text)


def wait_until(is_so: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a milestone; whether it came in time."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def set_clock(toque: ToqueProcess, offset: timedelta) -> None:
    """From now on, or from its start on, the server's clock is off by this much."""
    path = toque.folder / "clock"
    clocked_server.write_offset(path, offset)
    toque.program = (sys.executable, Path(clocked_server.__file__), path)


@contextlib.contextmanager
def opened(
    folder: Path,
    chance: random.Random,
    *,
    store: Path | None = None,
    offset: timedelta | None = None,
    paths: Sequence[str] = PATHS,
    origins: int = 0,
    **settings: str,
) -> Iterator[Scene]:
    """A scene with a server that is ready.

    `store` is where the database lies if not in the folder; `offset` the server's clock's; `paths` are the receiver's URLs, and
    `origins` is the number of further ones, each with an address of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    toque = ToqueProcess(folder, **{"log_level": "warning", "max_callbacks": "1000", "login_failures": "1000"} | settings)
    if store is not None:
        toque.store = store
    if offset is not None:
        set_clock(toque, offset)
    with RecordingReceiver(EVERYWHERE) as receiver, toque:
        account = toque.add_client("Escritório", fones=[NUMBERS], ninguem=["554130600999"])
        api = account.api()
        urls = {path: receiver.url(path) for path in paths}
        urls |= {f"/{number}": receiver.url(f"/{number}", host=f"127.0.1.{number}") for number in range(1, origins + 1)}
        secrets = {path: api.add_callback(url, "fones").secret or "" for path, url in urls.items()}
        with HepAgent(toque.hep_port) as agent:
            yield Scene(toque, receiver, Switch(agent, random.Random(chance.random())), chance, account, secrets)


def refused_once(post_is_meant: Callable[[Post], bool]) -> Callable[[Post], bool]:
    """True for each event that is meant the first time it comes."""
    refused: set[tuple[str, str]] = set()

    def is_refused(post: Post) -> bool:
        key = (post.path, post.id)
        if key in refused or not post_is_meant(post):
            return False
        refused.add(key)
        return True

    return is_refused
