"""What receivers were told, held against what must be told of it. Pure: posts in, counts out.

The rules, of all posts to all URLs, each of which was registered before the first call:

1. A status that any URL was posted is accepted: every URL must take it in the end. One that did not is lost.
2. A side's statuses are numbered 1, 2, 3 …; a number that nobody was told is a lost status. No number and no `id` has two contents.
3. A call that came in whole is told whole; every status missing is lost.
4. Where `must_end`, each side has exactly one end, its last status. A side without one has lost it. None has two, ever.
5. At each URL a side's posts go up by one, or repeat the latest. Whatever else is reordered, except when the status that was
   overtaken was older than the ordering window: then it is late.
6. A post of what a receiver had taken before is a duplicate. That is allowed, and counted.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from tests.support.recording_receiver import Post, by_side

from toque.receiver import FINAL_STATUSES

WINDOW_S = 30.0  # the ordering window: a healthy callback's lane waits so long for its head
_SHOWN = 5  # of each kind of problem, as text

Told = Mapping[int, Post]  # one side's statuses by their numbers
Who = tuple[str, str, str]  # callerid, tipo, pin


@dataclass
class Tally:
    """What was counted; `problems` says in words which ones they were."""

    told: int = 0
    lost: int = 0
    reordered: int = 0
    late: int = 0
    duplicated: int = 0
    contradicted: int = 0
    problems: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Tally") -> Self:
        for name in ("told", "lost", "reordered", "late", "duplicated", "contradicted"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.problems += other.problems
        return self

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.reordered or self.contradicted)

    def lose(self, number: int, what: str) -> None:
        """Count so many lost statuses."""
        self.lost += number
        self._note("lost", number, what)

    def contradict(self, what: str) -> None:
        """Count what was told in two ways."""
        self.contradicted += 1
        self._note("contradicted", 1, what)

    def reorder(self, number: int, what: str) -> None:
        """Count statuses that were overtaken."""
        self.reordered += number
        self._note("reordered", number, what)

    def _note(self, kind: str, number: int, what: str) -> None:
        if number and sum(text.startswith(kind) for text in self.problems) < _SHOWN:
            self.problems.append(f"{kind} ({number}): {what}")


def judge(
    posts: Sequence[Post], paths: Iterable[str], *, whole: Mapping[str, Sequence[str]] | None = None, must_end: bool = True
) -> Tally:
    """Hold all posts against the rules above. `whole` has the words of calls that came in whole, by their callers."""
    paths, tally = list(paths), Tally()
    first = _first_told(posts, tally)
    tally.told = len(first)
    _check_every_url(posts, paths, set(first), tally)
    sides = _numbered(first.values(), tally)
    for who, told in sides.items():
        _check_side(who, told, tally, must_end=must_end)
    _check_whole(sides, whole or {}, tally)
    numbers = {(who, number): post for who, told in sides.items() for number, post in told.items()}
    for (path, *who), of_side in by_side(posts).items():
        _check_order(path, (who[0], who[1], who[2]), of_side, numbers, tally)
    tally.duplicated = _repetitions(posts)
    return tally


def callers(posts: Iterable[Post]) -> dict[str, list[str]]:
    """What is told of each call by its caller's name: the words, in the order of their numbers."""
    words: dict[str, dict[int, str]] = defaultdict(dict)
    for post in posts:
        words[post.data["origem"]][post.data["sequencia"]] = post.word
    return {name: [told[number] for number in sorted(told)] for name, told in words.items()}


def _first_told(posts: Sequence[Post], tally: Tally) -> dict[str, Post]:
    """The first post of each status, whoever got it; its others must say the same."""
    first: dict[str, Post] = {}
    for post in posts:
        earlier = first.setdefault(post.headers["webhook-id"], post)
        if earlier.body != post.body or post.id != post.headers["webhook-id"]:
            tally.contradict(f"{post.id} has two contents")
    return first


def _check_every_url(posts: Sequence[Post], paths: Iterable[str], accepted: set[str], tally: Tally) -> None:
    taken: dict[str, set[str]] = {path: set() for path in paths}
    for post in posts:
        if _is_taken(post):
            taken.setdefault(post.path, set()).add(post.headers["webhook-id"])
    for path, ids in taken.items():
        missing = accepted - ids
        tally.lose(len(missing), f"{path} never took {sorted(missing)[:3]}")


def _numbered(posts: Iterable[Post], tally: Tally) -> dict[Who, dict[int, Post]]:
    sides: dict[Who, dict[int, Post]] = defaultdict(dict)
    for post in posts:
        who = (post.data["callerid"], post.data["tipo"], post.data["pin"])
        other = sides[who].setdefault(post.data["sequencia"], post)
        if other is not post:
            tally.contradict(f"{who} has {other.word} and {post.word} as number {post.data['sequencia']}")
    return dict(sides)


def _check_side(who: Who, told: Told, tally: Tally, *, must_end: bool) -> None:
    words = [told[number].word for number in sorted(told)]
    tally.lose(max(told) - len(told), f"{who} has a gap: {sorted(told)} {words}")
    if must_end and words[-1] not in FINAL_STATUSES:
        tally.lose(1, f"{who} has no end: {words}")
    if any(word in FINAL_STATUSES for word in words[:-1]) or len(set(words)) != len(words):
        tally.contradict(f"{who} was told {words}")


def _check_whole(sides: Mapping[Who, Told], whole: Mapping[str, Sequence[str]], tally: Tally) -> None:
    told = callers(post for side in sides.values() for post in side.values())
    for name, words in whole.items():
        missing = [word for word in words if word not in told.get(name, [])]
        tally.lose(len(missing), f"{name} came in whole; {missing} missing, told {told.get(name)}")
        if not missing and told[name] != list(words):
            tally.contradict(f"{name} came in whole and was told {told[name]} instead of {words}")


def _check_order(path: str, who: Who, posts: Sequence[Post], numbers: Mapping[tuple[Who, int], Post], tally: Tally) -> None:
    will_come = {int(post.data["sequencia"]) for post in posts}
    taken, overtaken, latest = set[int](), set[int](), 0
    for post in posts:
        number = int(post.data["sequencia"])
        if number < latest and number not in overtaken:
            tally.reorder(1, f"at {path} number {number} of {who} came again after number {latest}")
        passed = {other for other in will_come if other < number} - taken - overtaken
        old = {other for other in passed if post.at - numbers[who, other].at >= WINDOW_S}
        tally.late += len(old)
        tally.reorder(len(passed - old), f"at {path} number {number} of {who} overtook {sorted(passed - old)}")
        overtaken |= passed
        latest = max(latest, number)
        if _is_taken(post):
            taken.add(number)


def _is_taken(post: Post) -> bool:
    return post.status is not None and 200 <= post.status < 300


def _repetitions(posts: Iterable[Post]) -> int:
    """Posts of what had been taken; one without an answer may have been."""
    taken: set[tuple[str, str]] = set()
    repeated = 0
    for post in posts:
        key = (post.path, post.headers["webhook-id"])
        if key in taken:
            repeated += 1
        elif post.status is None or _is_taken(post):
            taken.add(key)
    return repeated
