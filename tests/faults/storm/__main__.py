"""`python -m tests.faults.storm`: run the storm, or parts of it, and print what it did and what it cost."""

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.faults.storm.parts import PARTS
from tests.faults.storm.report import Row, as_json, as_table
from tests.faults.storm.scene import Outcome


def main() -> int:
    """Exit code 1 when anything was lost or reordered against the rules, or did not return to where it was."""
    options = _options()
    seed = options.seed or random.SystemRandom().randrange(1, 2**32)
    print(f"seed {seed}", file=sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="toque-storm-"))
    rows = [_run(name, folder, seed, options) for name in options.only or _usual(options)]
    print(as_json(rows, seed) if options.json else as_table(rows))
    is_clean = all(row.outcome.is_clean for row in rows)
    if is_clean and not options.keep:
        shutil.rmtree(folder)
    else:
        print(f"logs and stores are in {folder}", file=sys.stderr)
    return 0 if is_clean else 1


def _usual(options: argparse.Namespace) -> list[str]:
    return [name for name, part in PARTS.items() if part.short_times or not options.short]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="storm", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(PARTS), help="run this part (again for another one)")
    parser.add_argument("--seed", type=int, help="of all moments; each part repeats by itself with the same one")
    parser.add_argument("--short", action="store_true", help="each part as often as the tests do it")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.add_argument("--keep", action="store_true", help="leave logs and stores behind in any case")
    parser.add_argument("--kills", type=int, help=f"how often the server is killed ({PARTS['kill'].times})")
    parser.add_argument("--times", type=int, help="how often every other part's fault happens")
    return parser.parse_args()


def _run(name: str, folder: Path, seed: int, options: argparse.Namespace) -> Row:
    part = PARTS[name]
    times = (options.kills if name == "kill" else options.times) or (options.short and part.short_times) or part.times
    print(f"{name}: {times} times …", file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
        outcome = (part.short_run if options.short else part.run)(folder / name, random.Random(f"{seed} {name}"), times)
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome(problems=[f"{type(error).__name__}: {error}"])
    return Row(name, outcome, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
