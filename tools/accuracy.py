"""What is told of every recorded scenario, by every source that saw it: `python tools/accuracy.py` writes docs/accuracy.md.

Each recording is played over real sockets into `toque serve` (tests/support/accuracy_runs.py), and what a customer's server is
posted is compared with what the telephones did. A cell that is not right must have a note that says why; a note that no cell
needs any more is a mistake as well.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.accuracy_runs import LINES, MODES, Play, run  # noqa: E402 - the tests are not an installed package
from tests.support.recording_receiver import Post, words  # noqa: E402

from toque.callbacks.payload import STATUS_WORDS  # noqa: E402

PAGE = ROOT / "docs" / "accuracy.md"
TOLERANCE_S = 1.5  # posts tell whole seconds, cut off
WORDS = {str(status): word for status, word in STATUS_WORDS.items()}
HEADS = {"kamailio": "Kamailio 5.6.3", "asterisk": "Asterisk 22.9 (PJSIP)", "freeswitch": "FreeSWITCH 1.11.1"}
KINDS = {"kamailio": ("hep",), "asterisk": ("ami", "hep"), "freeswitch": ("esl", "hep")}
# The truth of these counts talking from when the switch itself picked up.
COUNTS_FROM_PICKUP = {"in_ivr_answered", "queue_answered"}


@dataclass(frozen=True)
class Note:
    """Why a source cannot know better, and what is told instead."""

    kinds: tuple[str, ...]
    scenarios: str  # a regular expression
    text: str


NOTES = (
    Note(
        ("ami",),
        "in_unknown_did|out_no_such_extension",
        "Asterisk refuses a number that its dialplan does not have before it makes a channel, so the manager interface says "
        "nothing at all of such a call, and nothing is told. HEP sees it.",
    ),
    Note(
        ("hep",),
        "originate_(local|pjsip)_answered|originate_a_(busy|no_answer)|c2c_.*",
        "Click-to-call. In SIP the switch calls the agent, and nothing says on whose behalf: that is told as a call that the "
        "agent's telephone *received*, from the number that the switch shows (the destination, or `anonymous`). A switch that "
        "stops ringing the agent looks like a caller who gave up. The second call, to the destination, is a call of its own, "
        "*made* by the number that is shown outside. AMI and ESL know that it is one call, and who made it.",
    ),
    Note(
        ("hep",),
        "originate_a_invalid",
        "Click-to-call to a telephone that does not exist: the switch sends no SIP, so nothing is told.",
    ),
    Note(
        ("hep",),
        "queue_(abandoned|timeout|answered)|in_ivr_answered",
        "A queue or an IVR that picks up answers in SIP as a person does. It is told as `atendeu` at once, `duracao` counts from "
        "there, `pbx_atendeu` stays null, and who waits in vain ends with `desligou`. `atendido_por` follows when a member "
        "answers. Where the members' lines are another client's, as here, that one is told of each leg as of a call of its own, "
        "and `atendido_por` stays null.",
    ),
    Note(
        ("hep",),
        "pickup_directed",
        "A pickup is in SIP a call of its own to the pickup code: `1002` is told of a call made to `*81001` as well, and the "
        "call that was picked up does not say by whom.",
    ),
    Note(
        ("hep",),
        "pbx_shutdown_mid_call",
        "The switch dies without a BYE, and SIP says nothing more. The end is concluded after `stale_answered` (4 h): "
        "`desligou` with `inferido`.",
    ),
)  # fmt: skip


@dataclass
class Verdict:
    """How what was told of one play compares with what happened."""

    told: list[str] = field(default_factory=list)  # every side that was told anything
    wrong: list[str] = field(default_factory=list)  # missing calls, wrong ends
    inexact: list[str] = field(default_factory=list)  # the end is right, something beside it is not

    @property
    def is_right(self) -> bool:
        """Whether everything that was told is what happened."""
        return not self.wrong and not self.inexact

    def text(self) -> str:
        """The cell."""
        if self.is_right:
            return "right"
        if not self.wrong:
            return "right, but " + "; ".join(self.inexact)
        return "told instead: " + ("; ".join(self.told) or "nothing")


def judge(play: Play) -> Verdict:
    """Compare one play with its truth."""
    sides = play.sides()
    verdict = Verdict(told=list(dict.fromkeys(_shown(posts) for posts in sides)))
    for truth in play.truths:
        found = [posts for posts in sides if _key(posts[-1]) == _wanted(truth)]
        if len(found) != truth.get("count", 1):
            verdict.wrong.append(f"{len(found)} calls of {truth.get('count', 1)}")
        for posts in found:
            _compare(posts, truth, play, verdict)
    expected = sum(truth.get("count", 1) for truth in play.truths)
    extra = len({post.data["callerid"] for post in play.posts}) - expected
    if extra > 0 and not verdict.wrong:
        known = {posts[0].data["callerid"] for posts in sides if _key(posts[-1]) in map(_wanted, play.truths)}
        others = [_shown(posts) for posts in sides if posts[0].data["callerid"] not in known]
        verdict.inexact.append("also told: " + "; ".join(others))
    verdict.inexact = sorted(set(verdict.inexact))
    return verdict


def _key(post: Post) -> tuple[str, str, str, str]:
    return (post.path, post.data["tipo"], post.data["origem"], post.data["destino"])


def _wanted(truth: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """The side whose owner must be told."""
    is_received = truth["direction"] == "received"
    owner = truth["callee"] if is_received else truth["caller"]
    path = "/extensions" if re.fullmatch(r"1\d{3}", owner) else "/numbers"
    return (path, "recebida" if is_received else "realizada", truth["caller"], truth.get("dialled", truth["callee"]))


def _shown(posts: Sequence[Post]) -> str:
    data = posts[-1].data
    statuses = " ".join(f"`{word}`" for word in words(posts))
    return f"{data['tipo']} {data['origem']} → {data['destino']}: {statuses}"


def _compare(posts: Sequence[Post], truth: Mapping[str, Any], play: Play, verdict: Verdict) -> None:
    told, last = words(posts), posts[-1]
    finals = {WORDS[word] for word in (truth["final"], *truth.get("also_right", ()))}
    has_end = [post.data["sequencia"] for post in posts] == list(range(1, len(posts) + 1)) and told[0] == "iniciou"
    if last.word not in finals or not has_end or ("atendeu" in told) != (last.word == "desligou"):
        verdict.wrong.append(" ".join(told))
        return
    verdict.inexact += [*_times(last, truth, told, play), *_parties(last, truth), *_picks_up(last, play)]
    if last.data["inferido"] and "shutdown" not in play.scenario:
        verdict.inexact.append("`inferido`")


def _seconds(span: str) -> int:
    hours, minutes, seconds = map(int, span.split(":"))
    return 3600 * hours + 60 * minutes + seconds


def _times(last: Post, truth: Mapping[str, Any], told: Sequence[str], play: Play) -> Iterator[str]:
    if "ring_s" in truth:
        if ("chamando" in told) != bool(truth["ring_s"]):
            yield "no `chamando`" if truth["ring_s"] else "`chamando`"
        elif abs(_seconds(last.data["toque"]) - truth["ring_s"]) > TOLERANCE_S:
            yield f"`toque` {_seconds(last.data['toque'])} s of {truth['ring_s']:g}"
    if "talk_s" in truth:
        talk = _seconds(last.data["duracao"])
        # Where the switch's own pick-up is known, it is not talking, which the truth of these has.
        is_known = last.data["pbx_atendeu"] is not None
        if not (is_known and play.scenario in COUNTS_FROM_PICKUP) and abs(talk - truth["talk_s"]) > TOLERANCE_S:
            yield f"`duracao` {talk} s of {truth['talk_s']:g}"


def _picks_up(last: Post, play: Play) -> Iterator[str]:
    if play.scenario in COUNTS_FROM_PICKUP and last.data["pbx_atendeu"] is None:
        yield "`atendeu` when the switch picked up, not a person"


def _parties(last: Post, truth: Mapping[str, Any]) -> Iterator[str]:
    reached = truth.get("transferred_to") or str(truth.get("reached", "")).rpartition("then ")[2]
    if last.word == "desligou" and reached and last.data["atendido_por"] != reached:
        yield f"`atendido_por` {last.data['atendido_por'] or 'null'}, not {reached}"
    who = {"caller": "origem", "callee": "destino", truth["caller"]: "origem"}.get(str(truth.get("hung_up_by")))
    if who is not None and last.data["desligado_por"] != who:
        yield f"`desligado_por` {last.data['desligado_por'] or 'null'}, not {who}"
    sip = truth.get("sip_final")
    has_code = sip and truth["final"] not in ("hung_up", "cancelled", "no_answer")
    if has_code and (last.data["causa"] or {}).get("sip") != sip:
        yield f"`causa` {(last.data['causa'] or {}).get('sip')}, not {sip}"


# The page


def page(every: Sequence[Play]) -> str:
    """The whole page. Raises `ValueError` for a cell that nothing explains, and for a note that explains nothing."""
    used: list[Note] = []
    parts = [_INTRODUCTION.format(**_counts(every))]
    parts += [_table(switch, [play for play in every if play.switch == switch], used) for switch in HEADS]
    if unneeded := [note.scenarios for note in NOTES if note not in used]:
        msg = f"notes that explain nothing: {unneeded}"
        raise ValueError(msg)
    parts.append("## Notes\n\n" + "\n".join(f"{number}. {note.text}" for number, note in enumerate(NOTES, start=1)))
    return "\n\n".join(parts) + "\n"


def _counts(every: Sequence[Play]) -> dict[str, Any]:
    scenarios = {(play.switch, play.scenario) for play in every}
    lines = ", ".join(f"`{number}`" for numbers in LINES.values() for number in numbers)
    return {"lines": lines, **{switch: sum(1 for of, _ in scenarios if of == switch) for switch in HEADS}}


def _table(switch: str, every: Sequence[Play], used: list[Note]) -> str:
    kinds = KINDS[switch]
    rows = [f"## {HEADS[switch]}", "", f"| scenario | what happened | {' | '.join(kind.upper() for kind in kinds)} |"]
    rows.append("| --- " * (2 + len(kinds)) + "|")
    for scenario in dict.fromkeys(play.scenario for play in every):
        plays = [play for play in every if play.scenario == scenario]
        cells = [_cell([play for play in plays if play.kind == kind], used) for kind in kinds]
        rows.append(f"| `{scenario}` | {_happened(plays[0].truths)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _happened(truths: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for truth in truths:
        ends = " or ".join(f"`{WORDS[word]}`" for word in (truth["final"], *truth.get("also_right", ())))
        count = f"{truth['count']} × " if "count" in truth else ""
        shown.append(f"{count}{truth['caller']} → {truth['callee']}: {ends}")
    return "; ".join(shown) or "no call"


def _cell(plays: Sequence[Play], used: list[Note]) -> str:
    """One source's result; where a lost connection makes it another one, that too."""
    texts = {play.mode: judge(play).text() for play in plays}
    cell = texts[MODES[0]]
    for mode, text in texts.items():
        if text != cell:
            cell += f"; {mode}: {text}"
    if cell == "right":
        return cell
    note = next((note for note in NOTES if plays[0].kind in note.kinds and re.fullmatch(note.scenarios, plays[0].scenario)), None)
    if note is None:
        msg = f"nothing explains {plays[0].name}: {cell}"
        raise ValueError(msg)
    used.append(note)
    return f"{cell} [({NOTES.index(note) + 1})](#notes)"


_INTRODUCTION = """# Accuracy

Made by `make accuracy`; do not edit. A test fails when this page is not what the runs give.

What `toque serve` tells of recordings of a real Kamailio ({kamailio}), a real Asterisk ({asterisk}) and a real FreeSWITCH
({freeswitch}), beside what the telephones did in them. Each recording is played over real sockets: a small server speaks
the manager interface (AMI) or the event socket (ESL) of the switch, and the HEP packets that the same switch sent of the
same calls go to a HEP listener. Everything comes in pieces of random sizes, and a second time with a connection that is
lost at three places, made again, and followed by a resync where the source has one. A cell holds for both; where they
differ, it says so.

*right*: the owner of the caller (calls made, internal calls) or of the dialled number (calls received) was posted
`iniciou`, `chamando` where it rang, `atendeu` where a person answered, and the one end that stands under *what happened*,
in order and once; `toque` and `duracao` are within 1.5 s; `desligado_por`, `atendido_por` and the SIP code are those of the
telephones where the recording knows them; and nobody was told of a call that was none. *right, but*: statuses and end are
right, and something beside them is not. *told instead*: what this vantage cannot know; the note says why.

Lines were {lines}. That single bytes and cuts at every place change nothing is held by the tests of each reader
([guarantees.md](guarantees.md), promise 8)."""


def main() -> None:
    """Play everything and write the page."""
    with tempfile.TemporaryDirectory(prefix="accuracy-") as folder:
        PAGE.write_text(page(run(Path(folder))), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
