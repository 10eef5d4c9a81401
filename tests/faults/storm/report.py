"""What the storm prints: one table, or the same as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.faults.storm.scene import Outcome

COLUMNS = ("part", "what was done", "times", "calls", "told", "lost", "reordered", "late", "duplicated", "refused", "seconds")


@dataclass(frozen=True)
class Row:
    """One part's outcome and how long it took."""

    part: str
    outcome: Outcome
    seconds: float

    @property
    def cells(self) -> list[list[str]]:
        """The row as text: a line for each kind of thing that was done, the counts in the first."""
        tally = self.outcome.tally
        counts = (self.outcome.calls, tally.told, tally.lost + tally.contradicted, tally.reordered, tally.late, tally.duplicated)
        numbers = [*map(str, counts), str(self.outcome.refused), f"{self.seconds:.0f}"]
        done = list(self.outcome.done.items()) or [("nothing", 0)]
        return [
            [self.part if number == 0 else "", what, str(times), *(numbers if number == 0 else [""] * len(numbers))]
            for number, (what, times) in enumerate(done)
        ]

    @property
    def as_json(self) -> dict[str, Any]:
        """The row for programs."""
        outcome, tally = self.outcome, self.outcome.tally
        return {
            "part": self.part,
            "done": dict(outcome.done),
            "calls": outcome.calls,
            "told": tally.told,
            "lost": tally.lost,
            "contradicted": tally.contradicted,
            "reordered": tally.reordered,
            "late": tally.late,
            "duplicated": tally.duplicated,
            "refused": outcome.refused,
            "seconds": round(self.seconds, 1),
            "is_clean": outcome.is_clean,
            "problems": outcome.problems + tally.problems,
            "notes": outcome.notes,
        }


def as_table(rows: Sequence[Row]) -> str:
    """All rows, and below them what was noted and what is wrong."""
    cells = [list(COLUMNS), *(line for row in rows for line in row.cells)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    lines = ["  ".join(_aligned(text, widths[at], at) for at, text in enumerate(line)).rstrip() for line in cells]
    return "\n".join([*lines, *_remarks(rows)])


def as_json(rows: Sequence[Row], seed: int) -> str:
    """The same for programs."""
    return json.dumps({"seed": seed, "parts": [row.as_json for row in rows]}, indent=2, ensure_ascii=False)


def _aligned(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column < 2 else text.rjust(width)


def _remarks(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        outcome = row.outcome
        lines += [f"  {row.part}: {note}" for note in dict.fromkeys(outcome.notes)]
        lines += [f"! {row.part}: {problem}" for problem in outcome.problems + outcome.tally.problems]
    return lines
