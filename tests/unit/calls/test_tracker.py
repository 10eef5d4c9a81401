from base64 import b85decode
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from tools.state_diagrams import DIAGRAMS, DRAWN

from toque.calls.call import Call, Leg, SideState
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import CallIdentity, Cause, Direction, Party, Signal, SignalKind, Status, StatusChange
from toque.calls.phases import STEPS, Phase
from toque.calls.tracker import CallTracker, Patience

START = datetime(2026, 3, 2, 12, 0, 0, tzinfo=UTC)
IDENTITY = CallIdentity("pbx", "c1 a1")
CALLER, DIALLED, REACHED = "5541988880001", "554130600300", "1001"
PATIENCE = Patience()
K = SignalKind


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class Told:
    """A tracker whose clock is the signals'; remembers what it told."""

    def __init__(self, *lines: tuple[str, str, str], caller: str = CALLER, dialled: str = DIALLED) -> None:
        lines = lines or (("acme", "vendas", CALLER),)
        self.tracker = CallTracker(LineBook.of(parse_line(*line) for line in lines), PATIENCE)
        self.callers, self.dialled = (caller,), dialled
        self.changes: list[StatusChange] = []

    def say(
        self,
        kind: SignalKind,
        seconds: float = 0,
        *,
        sip: int | None = None,
        leg: str | None = None,
        number: str = "",
        by: Party | None = None,
        stamped: float | None = None,
        identity: CallIdentity = IDENTITY,
        word: Status | None = None,
        hints: tuple[str, ...] = (),
        direction: Direction | None = None,
    ) -> "Told":
        """Feed a signal that arrives at `seconds`, and is stamped so unless told otherwise."""
        cause = Cause(sip=sip) if sip is not None else None
        moment = at(seconds if stamped is None else stamped)
        signal = Signal(identity, kind, moment, leg, self.callers, self.dialled, number, cause, by, word, hints, direction)
        self.tracker.feed(signal, at(seconds))
        return self._take()

    def tick(self, seconds: float) -> "Told":
        self.forgotten = self.tracker.tick(at(seconds))
        return self._take()

    def _take(self) -> "Told":
        changes, self.snapshots = self.tracker.take()
        self.changes += changes
        return self

    @property
    def call(self) -> Call:
        return self.tracker.calls[IDENTITY]

    @property
    def words(self) -> list[str]:
        return [str(change.status) for change in self.changes]


# The table

PATHS = {
    Phase.CALLING: [K.BEGAN],
    Phase.RINGING: [K.BEGAN, K.RINGING],
    Phase.ANSWERED: [K.BEGAN, K.ANSWERED],
    Phase.REFUSED: [K.BEGAN, K.REFUSED],
    Phase.LEAVING: [K.BEGAN, K.HUNG_UP],
    Phase.ENDED: [K.BEGAN, K.ANSWERED, K.HUNG_UP],
}
AT_ONCE = {  # what the following phase does by itself
    (Phase.LEAVING, K.ANSWERED): Phase.ENDED,
    (Phase.LEAVING, K.REFUSED): Phase.ENDED,
}


def brought_to(phase: Phase) -> Told:
    told = Told()
    for seconds, kind in enumerate(PATHS[phase]):
        told.say(kind, seconds, sip=407 if kind is K.REFUSED else None)
    assert told.call.phase is phase
    return told


@pytest.mark.parametrize(("pair", "following"), STEPS.items(), ids=str)
def test_every_row_of_the_table_is_taken(pair: tuple[Phase, SignalKind], following: Phase):
    phase, kind = pair
    told = brought_to(phase)
    told.say(kind, 2, leg="b0" if "leg" in kind else None, sip=407 if kind is K.REFUSED else None)
    assert told.call.phase is AT_ONCE.get(pair, following)


@pytest.mark.parametrize(
    ("phase", "kind"), [(phase, kind) for phase in Phase for kind in SignalKind if (phase, kind) not in STEPS], ids=str
)
def test_a_pair_without_a_row_changes_nothing(phase: Phase, kind: SignalKind):
    told = brought_to(phase)
    words, before = list(told.words), msgspec.to_builtins(told.call)
    told.say(kind, 2, stamped=0, leg="b0", sip=486)
    after = msgspec.to_builtins(told.call)
    assert {name for name in after if after[name] != before[name]} <= {"seen_at"}
    assert told.words == words


@pytest.mark.parametrize("name", DRAWN)
def test_the_diagrams_are_those_of_the_tables(name: str):
    assert (DIAGRAMS / name).read_text(encoding="utf-8") == DRAWN[name](), "run python tools/state_diagrams.py"


# What is told


def test_an_answered_call():
    told = Told().say(K.BEGAN).say(K.LEG_BEGAN, 0.1, leg="b0", number=REACHED).say(K.RINGING, 1, leg="b0")
    told.say(K.ANSWERED, 4, leg="b0", number=REACHED).say(K.HUNG_UP, 10, by=Party.CALLEE)
    assert told.words == ["initiated", "ringing", "answered", "hung_up"]
    assert [change.at for change in told.changes] == [at(0), at(1), at(4), at(10)]
    facts = told.changes[-1].facts
    assert (facts.caller, facts.dialled, facts.answered_by) == (CALLER, DIALLED, REACHED)
    assert (facts.began_at, facts.ringing_at, facts.answered_at, facts.ended_at) == (at(0), at(1), at(4), at(10))
    assert (facts.hung_up_by, facts.cause, facts.is_inferred, facts.is_whole) == (Party.CALLEE, None, False, True)


def test_facts_are_those_of_their_moment():
    first, *_ = Told().say(K.BEGAN).say(K.RINGING, 1).say(K.ANSWERED, 2).changes
    assert (first.facts.began_at, first.facts.ringing_at, first.facts.answered_at) == (at(0), None, None)


def test_the_switch_picking_up_is_a_fact_and_no_status():
    told = Told().say(K.BEGAN).say(K.PICKED_UP, 1).say(K.PICKED_UP, 2).say(K.ANSWERED, 5)
    assert told.words == ["initiated", "answered"]
    assert told.changes[-1].facts.pbx_answered_at == at(1)


def test_giving_up_while_the_switch_alone_has_picked_up_is_cancelling():
    assert Told().say(K.BEGAN).say(K.PICKED_UP, 1).say(K.GAVE_UP, 5).say(K.REFUSED, 5.1, sip=487).words[-1] == "cancelled"


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (K.RINGING, ["ringing", "answered", "hung_up"]),
        (K.ANSWERED, ["answered", "hung_up"]),
        (K.LEG_BEGAN, ["answered", "hung_up"]),
    ],
)
def test_a_call_first_seen_in_its_middle_is_told_from_there(first: SignalKind, words: list[str]):
    told = Told().say(first, 0, leg="b0").say(K.ANSWERED, 1).say(K.HUNG_UP, 2)
    assert told.words == words
    assert (told.changes[-1].facts.began_at, told.changes[-1].facts.is_whole) == (None, False)


def test_a_sign_of_life_begins_no_call():
    assert not Told().say(K.SEEN).tracker.calls


# Whose call it is


def sides(told: Told) -> list[tuple[str, str, Direction]]:
    return [(c.side.owner.client_id, c.side.owner.pin, c.side.direction) for c in told.changes if c.status is Status.INITIATED]


MADE, RECEIVED = Direction.MADE, Direction.RECEIVED


def test_a_call_between_two_lines_is_told_once_per_side():
    told = Told(("acme", "a", CALLER), ("acme", "b", DIALLED)).say(K.BEGAN).say(K.ANSWERED, 1).say(K.HUNG_UP, 2)
    assert sides(told) == [("acme", "a", MADE), ("acme", "b", RECEIVED)]
    assert told.words == ["initiated"] * 2 + ["answered"] * 2 + ["hung_up"] * 2


def test_a_number_and_the_extension_it_reaches_are_one_side():
    told = Told(("acme", "did", DIALLED), ("acme", "ramal", REACHED)).say(K.BEGAN).say(K.LEG_BEGAN, 1, leg="b0", number=REACHED)
    assert sides(told) == [("acme", "did", RECEIVED)]


def test_the_reached_number_of_another_client_is_a_side_from_its_leg_on():
    told = Told(("acme", "did", DIALLED), ("zeta", "ramal", REACHED)).say(K.BEGAN).say(K.LEG_BEGAN, 1, leg="b0", number=REACHED)
    assert sides(told) == [("acme", "did", RECEIVED), ("zeta", "ramal", RECEIVED)]
    assert told.changes[-1].facts.began_at == at(1)


def test_a_leg_whose_ringing_overtook_its_invite_is_told_both():
    """Workers of a proxy mirror one packet each: the 180 of a forked leg may be seen before the INVITE that it answers."""
    told = Told(("acme", "a", CALLER), ("zeta", "ramal", REACHED)).say(K.BEGAN).say(K.RINGING, 1, leg="b1")
    told.say(K.LEG_BEGAN, 1.1, leg="b1", number=REACHED).say(K.ANSWERED, 2)
    assert [str(change.status) for change in told.changes if change.side.owner.client_id == "zeta"] == [
        "initiated",
        "ringing",
        "answered",
    ]


def test_a_leg_that_has_not_rung_is_not_told_that_another_rang():
    told = Told(("acme", "a", CALLER), ("zeta", "ramal", REACHED)).say(K.BEGAN).say(K.RINGING, 1, leg="b0")
    told.say(K.LEG_BEGAN, 2, leg="b1", number=REACHED)
    assert [str(change.status) for change in told.changes if change.side.owner.client_id == "zeta"] == ["initiated"]


def test_members_of_a_group_of_one_client_are_one_side():
    told = Told(("acme", "a", "1001"), ("acme", "b", "1002")).say(K.BEGAN)
    told.say(K.LEG_BEGAN, 1, leg="b0", number="1001").say(K.LEG_BEGAN, 1, leg="b1", number="1002")
    assert sides(told) == [("acme", "a", RECEIVED)]


def test_a_leg_after_the_answer_makes_no_side():
    told = Told(("acme", "a", CALLER), ("zeta", "b", REACHED)).say(K.BEGAN).say(K.ANSWERED, 1)
    assert sides(told.say(K.LEG_BEGAN, 2, leg="b1", number=REACHED)) == [("acme", "a", MADE)]


def test_an_asserted_identity_finds_the_caller():
    told = Told(("acme", "a", CALLER))
    told.callers = ("anonymous", CALLER)
    told.say(K.BEGAN)
    assert sides(told) == [("acme", "a", MADE)]
    assert told.changes[0].facts.caller == "anonymous"


def test_the_dialled_number_is_corrected_by_the_callers_own_invite():
    told = Told(("acme", "did", DIALLED), ("zeta", "ramal", REACHED), dialled=REACHED).say(K.BEGAN, 0.1)
    told.dialled = DIALLED
    told.say(K.BEGAN, 0.2, stamped=0)
    assert sides(told) == [("zeta", "ramal", RECEIVED), ("acme", "did", RECEIVED)]
    assert told.call.dialled == DIALLED


def test_calls_that_match_no_line_are_counted_once_and_told_to_nobody():
    told = Told(("acme", "a", "1999")).say(K.BEGAN).say(K.REFUSED, 1, sip=404)
    assert (told.changes, told.snapshots) == ([], [])
    assert [call.dialled for call in told.tracker.take_unmatched()] == [DIALLED]
    assert told.tracker.take_unmatched() == []
    assert told.tracker.counters.unmatched == 1


# Ends


@pytest.mark.parametrize(
    ("sip", "wait"),
    [
        pytest.param(486, 0, id="plain"),
        pytest.param(404, 0, id="plain-too"),
        pytest.param(487, 0.5, id="a-CANCEL-may-turn-up"),
        pytest.param(500, 0.5, id="a-leg-may-explain"),
        pytest.param(407, 5, id="challenge"),
        pytest.param(302, 5, id="redirection"),
        pytest.param(None, 0.5, id="only-the-ACK-was-seen"),
    ],
)
def test_how_long_a_refusal_may_turn_out_to_be_something_else(sip: int | None, wait: float):
    told = Told().say(K.BEGAN).say(K.REFUSED, 1, sip=sip)
    assert (told.call.phase is Phase.ENDED) == (wait == 0)
    assert told.tick(1 + wait - 0.001).call.phase is (Phase.REFUSED if wait else Phase.ENDED)
    told.tick(1 + wait)
    assert told.call.phase is Phase.ENDED
    assert told.changes[-1].at == at(1)


def test_a_leg_that_has_not_said_why_is_waited_for():
    told = Told().say(K.BEGAN).say(K.LEG_BEGAN, leg="b0").say(K.REFUSED, 1, sip=486)
    assert told.words == ["initiated"]
    assert told.say(K.LEG_ENDED, 1.1, leg="b0", sip=486).words == ["initiated", "busy"]


def test_what_comes_meanwhile_makes_the_wait_no_longer():
    told = Told().say(K.BEGAN).say(K.REFUSED, 1, sip=487).say(K.REFUSED, 1.3, sip=487).say(K.LEG_BEGAN, 1.4, leg="b0")
    assert told.tick(1.5).words == ["initiated", "failed"]


def test_a_refusal_known_by_its_ack_waits_anew_once_its_code_is_known():
    told = Told().say(K.BEGAN).say(K.REFUSED, 1).say(K.REFUSED, 1.1, sip=407)
    assert told.tick(6).words == ["initiated"]
    assert told.tick(6.1).words == ["initiated", "rejected"]


def test_a_challenge_that_is_followed_is_no_end():
    told = Told().say(K.BEGAN).say(K.REFUSED, 0.1, sip=407).say(K.BEGAN_AGAIN, 0.2).say(K.RINGING, 1).tick(60)
    assert told.words == ["initiated", "ringing"]
    assert told.call.began_at == at(0)
    assert told.say(K.REFUSED, 61, sip=486).words == ["initiated", "ringing", "busy"]


def test_a_begin_seen_after_the_refusal_is_told_before_it():
    told = Told().say(K.REFUSED, 0.1, sip=404).say(K.BEGAN, 0.2, stamped=0).tick(1)
    assert told.words == ["initiated", "invalid_number"]
    assert told.changes[-1].facts.is_whole


def test_an_end_is_never_stamped_before_its_begin():
    told = Told().say(K.REFUSED, 0.1, sip=404).say(K.BEGAN, 0.2).tick(1)
    assert [change.at for change in told.changes] == [at(0.2), at(0.2)]


@pytest.mark.parametrize(
    ("refusal", "cancel", "word"),
    [
        pytest.param((487, 2.0), 2.1, "cancelled", id="487-is-always-caused-by-it"),
        pytest.param((None, 2.0), 2.1, "cancelled", id="the-code-is-not-known-yet"),
        pytest.param((500, 2.0), 1.9, "cancelled", id="it-was-first"),
        pytest.param((500, 2.0), 2.1, "failed", id="it-was-too-late"),
    ],
)
def test_a_cancel_seen_after_the_refusal(refusal: tuple[int | None, float], cancel: float, word: str):
    told = Told().say(K.BEGAN).say(K.REFUSED, refusal[1], sip=refusal[0])
    assert told.say(K.GAVE_UP, 2.2, stamped=cancel).tick(3).words[-1] == word


def test_a_bye_before_any_answer_that_its_487_overtook():
    assert Told().say(K.BEGAN).say(K.REFUSED, 2, sip=487).say(K.HUNG_UP, 2.1, stamped=1.9).words == ["initiated", "cancelled"]


def test_cancelled_and_never_refused():
    told = Told().say(K.BEGAN).say(K.GAVE_UP, 2).say(K.SEEN, 20).tick(33.9)
    assert told.words == ["initiated"]
    final = told.tick(34).changes[-1]
    assert (final.status, final.at) == (Status.CANCELLED, at(2))
    assert (final.facts.is_inferred, final.facts.hung_up_by) == (True, Party.CALLER)


def test_an_answer_that_crosses_a_cancel_wins():
    told = Told().say(K.BEGAN).say(K.GAVE_UP, 2).say(K.ANSWERED, 2.1).tick(100).say(K.HUNG_UP, 101, by=Party.CALLER)
    assert told.words == ["initiated", "answered", "hung_up"]


def test_a_hang_up_without_an_answer_is_believed_after_a_while():
    told = Told().say(K.BEGAN).say(K.HUNG_UP, 2, by=Party.CALLER)
    assert told.words == ["initiated"]
    told.tick(2.5)
    assert [(c.status, c.at) for c in told.changes[1:]] == [(Status.ANSWERED, at(2)), (Status.HUNG_UP, at(2))]
    assert told.changes[-1].facts.answered_at is None


def test_a_hang_up_that_overtook_its_answer():
    told = Told().say(K.BEGAN).say(K.HUNG_UP, 2, by=Party.CALLER).say(K.ANSWERED, 2.1, stamped=1.9, number=REACHED)
    assert [(c.status, c.at) for c in told.changes[1:]] == [(Status.ANSWERED, at(1.9)), (Status.HUNG_UP, at(2))]
    assert told.changes[-1].facts.hung_up_by is Party.CALLER


@pytest.mark.parametrize(
    ("legs", "root", "word", "cause"),
    [
        pytest.param([("rang", 480), ("", 486)], 486, "no_answer", 480, id="busy-does-not-outrank-one-that-rang-out"),
        pytest.param([("", 486), ("rang", 480)], 486, "no_answer", 480, id="nor-the-other-way-round"),
        pytest.param([("rang cancelled", 487), ("", 486)], 486, "no_answer", 487, id="stopped-while-ringing"),
        pytest.param([("rang cancelled", 487)], 408, "no_answer", 408, id="ring-timeout"),
        pytest.param([("rang cancelled", None)], 408, "no_answer", 408, id="ring-timeout-never-confirmed"),
        pytest.param([("cancelled", 487)], 408, "unreachable", 408, id="stopped-without-ringing"),
        pytest.param([("", 503)], 500, "congestion", 503, id="a-leg-says-why"),
        pytest.param([("", 302), ("", 486)], 486, "busy", 486, id="redirected-then-busy"),
        pytest.param([("rang", 0)], 480, "no_answer", 480, id="a-leg-known-by-its-ACK-ended-as-the-caller-was-told"),
        pytest.param([("rang", None)], 486, "busy", 486, id="a-leg-that-never-ended-says-nothing"),
        pytest.param([("rang", 480), ("", 603)], 603, "rejected", 603, id="a-6xx-speaks-for-all"),
    ],
)  # fmt: skip
def test_the_word_of_several_legs(legs: list[tuple[str, int | None]], root: int, word: str, cause: int):
    told = Told().say(K.BEGAN)
    for number, (facts, sip) in enumerate(legs):
        leg = f"b{number}"
        told.say(K.LEG_BEGAN, number, leg=leg)
        if "rang" in facts:
            told.say(K.RINGING, number + 0.1, leg=leg)
        if "cancelled" in facts:
            told.say(K.LEG_CANCELLED, number + 0.2, leg=leg)
        if sip is not None:
            told.say(K.LEG_ENDED, number + 0.3, leg=leg, sip=sip or None)
    told.say(K.REFUSED, 10, sip=root).tick(11)
    assert told.words[-1] == word
    assert told.changes[-1].facts.cause.sip == cause


def test_ringing_that_was_seen_on_no_leg_may_have_been_any():
    told = Told().say(K.BEGAN).say(K.LEG_BEGAN, leg="b0").say(K.RINGING, 1).say(K.LEG_ENDED, 20, leg="b0", sip=480)
    assert told.say(K.REFUSED, 20, sip=480).words == ["initiated", "ringing", "no_answer"]


# Time


@pytest.mark.parametrize(
    ("signals", "after", "word"),
    [
        ([K.BEGAN], PATIENCE.unanswered, "failed"),
        ([K.BEGAN, K.RINGING], PATIENCE.unanswered, "failed"),
        ([K.BEGAN, K.RINGING, K.ANSWERED], PATIENCE.answered, "hung_up"),
    ],
)
def test_an_end_that_was_missed_is_concluded(signals: list[SignalKind], after: timedelta, word: str):
    told = Told()
    for kind in signals:
        told.say(kind)
    told.tick(after.total_seconds() - 1)
    assert not told.changes[-1].status.is_final
    told.tick(after.total_seconds())
    assert told.words[-1] == word
    assert told.changes[-1].facts.is_inferred
    assert told.changes[-1].facts.ended_at is None
    assert told.tracker.counters.inferred == 1


def test_signs_of_life_keep_a_call():
    told = Told().say(K.BEGAN).say(K.ANSWERED, 1)
    for hours in range(1, 20):
        told.tick(3600 * hours).say(K.SEEN, 3600 * hours)
    assert told.words == ["initiated", "answered"]


def test_signs_of_life_are_stored_now_and_then():
    told = Told().say(K.BEGAN).say(K.ANSWERED, 1)
    assert not told.say(K.SEEN, 60).snapshots
    assert told.say(K.SEEN, 3600).snapshots


def test_a_conclusion_is_remembered_and_what_comes_later_is_not_told():
    told = Told().say(K.BEGAN).say(K.ANSWERED, 1).tick(PATIENCE.answered.total_seconds() + 1)
    words = list(told.words)
    for hours in (5, 10, 23):
        told.tick(3600 * hours).say(K.HUNG_UP, 3600 * hours)
    assert told.words == words
    assert told.tracker.take_late() == {IDENTITY: K.HUNG_UP}
    assert told.tracker.take_late() == {}
    assert told.tracker.counters.late == 3
    assert told.tick(3600 * 40).forgotten == [IDENTITY]


def test_an_ended_call_is_forgotten_after_a_while():
    told = Told().say(K.BEGAN).say(K.REFUSED, 1, sip=486)
    assert told.snapshots[0].state is None
    assert told.tick(300).forgotten == []
    assert told.say(K.REFUSED, 300, sip=486).tick(301).forgotten == [IDENTITY]
    assert not told.tracker.calls
    assert told.words == ["initiated", "busy"]


def test_an_identity_used_again_is_another_call():
    told = Told().say(K.BEGAN).say(K.REFUSED, 1, sip=486).say(K.BEGAN_AGAIN, 2, stamped=1)
    assert told.words == ["initiated", "busy"]
    told.say(K.BEGAN_AGAIN, 2).say(K.ANSWERED, 3).say(K.HUNG_UP, 4)
    assert told.words == ["initiated", "busy", "initiated", "answered", "hung_up"]
    assert told.changes[-1].facts.began_at == at(2)


def test_little_is_kept_for_the_clock():
    told = Told()
    for number in range(100):
        identity = CallIdentity("pbx", str(number))
        for kind in (K.BEGAN, K.RINGING, K.ANSWERED, K.HUNG_UP):
            told.say(kind, number, identity=identity)
    assert told.tracker.next_due() is not None
    assert len(told.tracker._due) == 100
    told.tick(1000)
    assert not told.tracker._due


# State


def test_a_call_goes_on_from_its_snapshot():
    told = Told(("acme", "a", CALLER), ("zeta", "b", REACHED)).say(K.BEGAN).say(K.LEG_BEGAN, 0, leg="b0", number=REACHED)
    told.say(K.RINGING, 1, leg="b0")
    again = Told()
    again.tracker.restore(told.snapshots[0].state, at(2))
    again.say(K.RINGING, 2, leg="b0").say(K.LEG_ENDED, 3, leg="b0", sip=480).say(K.REFUSED, 3, sip=480)
    assert again.words == ["no_answer"] * 2
    assert again.changes[0].facts.ringing_at == at(1)


# As snapshots were written before their members were read by name alone: a call that rings.
OLD_SNAPSHOT = b85decode(
    "-T)h>b8mHWV`ZaoVtAu#WqG4vKw_q2VQg$=a-=miG%=@SX<=+^Wn`o^H8C-#b7f_2Utx6C|7t}6K&5bKVRL1ta%pa7X>MnzX>(t9Xm4y~!>D3qXJKw%V"
    "RY92YDED+uW({`Utw-@cV%*AWM5%)z^Za-Zf9w3XJ27-*8gfn0YIx^ZgY2Ka%E&+VRXQ&VQzDGWpZU?Ut)Q{sAX<sWn^Drbik))VRmI-b#TI@cW-iJq+)"
    "e*d9rD9Ut?ixY-MtDUvg<~XK8L{!lZ0vXLEs}Y=)+8b!}p0a-ugkq;g?yXTz*%b6;a&ZewL^Y-MD^rDI`rb7jD!cW-iJz@lP#z@=khb#rBdqjPC+%>m}5"
    "aX2+F5u|iwcyy#fb#r;DXmxI9Uv+R_VtJ-xVQg$=Wvgj(UukY;WpZ+5WWuF$X=G({k%g&aY-wd~bYE#?q+w%iWutIuZlN)$WNC6`V{~b6ZlrBtWM!ygWo"
    "Kb-Utx6C|7t}6K%{hUY-9qdWMyM%WMyArbik@~Z){{=b#8QNY`~~<VRmI?Utx5>sCQv&WpiI)bik@<b6;a`b#8QJWWuI$WnpAxa>N06"
)


def test_a_snapshot_of_an_earlier_version_is_read_and_what_is_written_has_the_same_members():
    tracker = CallTracker(LineBook())
    call = tracker.restore(OLD_SNAPSHOT, datetime(2026, 7, 1, 13, tzinfo=UTC))
    began = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert (call.identity, call.phase, call.began_at, call.ringing_at) == (
        CallIdentity("pbx", "a@b"),
        Phase.RINGING,
        began,
        began,
    )
    assert call.legs == {"l": Leg("77", rang=True)}
    assert call.sides == [SideState("acme", "1", Direction.MADE, began, 2)]
    assert (call.cause, call.hung_up_by, call.word) == (Cause(486, 17, "Busy"), Party.CALLEE, Status.BUSY)
    assert call.identity
    assert set(msgspec.msgpack.decode(call.encode())) == set(msgspec.msgpack.decode(OLD_SNAPSHOT))


def test_a_wait_goes_on_after_a_restart():
    told = Told().say(K.BEGAN).say(K.REFUSED, 1, sip=407)
    again = Told()
    again.tracker.restore(told.snapshots[0].state, at(3))
    assert again.tick(5.9).words == []
    assert again.tick(6).words == ["rejected"]


def test_a_snapshot_of_the_future_is_not_waited_for():
    told = Told().say(K.BEGAN, 10_000)
    again = Told()
    assert again.tracker.restore(told.snapshots[0].state, at(0)).seen_at == at(0)


@pytest.mark.parametrize("state", [b"", b"x", b"\x80", msgspec.msgpack.encode({"source": 1})])
def test_what_is_no_snapshot_is_refused(state: bytes):
    with pytest.raises(msgspec.DecodeError):
        Told().tracker.restore(state, START)


# What switches that know more than SIP say


def test_the_callers_own_telephone_rings_until_the_far_end_does():
    told = Told().say(K.BEGAN).say(K.CALLER_RINGS, 1).say(K.LEG_BEGAN, 4, leg="b").say(K.RINGING, 5, leg="b").say(K.ANSWERED, 7)
    assert told.words == ["initiated", "ringing", "answered"]
    assert told.changes[1].at == at(1)
    assert told.changes[2].facts.ringing_at == at(5)


def test_the_callers_own_telephone_alone():
    told = Told().say(K.BEGAN).say(K.CALLER_RINGS, 1).say(K.REFUSED, 7, word=Status.NO_ANSWER)
    assert told.words == ["initiated", "ringing", "no_answer"]
    assert told.changes[-1].facts.ringing_at == at(1)


def test_a_number_that_comes_to_light_opens_the_callers_side():
    told = Told(("acme", "vendas", "1001"), dialled="")
    told.say(K.BEGAN).say(K.RINGING, 1)
    assert told.words == []
    told.callers, told.dialled = (CALLER, "1001"), DIALLED
    told.say(K.CALLER_KNOWN, 2)
    assert told.words == ["initiated", "ringing"]
    assert (told.changes[0].at, told.changes[0].facts.dialled) == (at(0), DIALLED)
    told.say(K.CALLER_KNOWN, 3)
    assert told.words == ["initiated", "ringing"]


def test_the_switchs_word_decides_over_codes():
    told = Told().say(K.BEGAN).say(K.LEG_BEGAN, 1, leg="b")
    told.say(K.LEG_ENDED, 5, leg="b", sip=500, word=Status.NO_ANSWER, by=Party.NETWORK)
    told.say(K.REFUSED, 5, sip=603, word=Status.REJECTED)
    assert told.words[-1] == "no_answer"
    assert told.changes[-1].facts.hung_up_by is Party.NETWORK
    assert told.changes[-1].facts.cause == Cause(sip=500)


def test_a_leg_that_is_gone_says_nothing():
    told = Told().say(K.BEGAN).say(K.LEG_BEGAN, 1, leg="b").say(K.LEG_ENDED, 2, leg="b", sip=486).say(K.LEG_GONE, 2, leg="b")
    assert told.say(K.REFUSED, 5, sip=404, word=Status.INVALID_NUMBER, by=Party.NETWORK).words[-1] == "invalid_number"


def test_whom_the_caller_talks_to_after_a_transfer():
    told = Told().say(K.BEGAN).say(K.ANSWERED, 1, number="1001").say(K.CONNECTED, 5, number="1002").say(K.CONNECTED, 6)
    assert told.words == ["initiated", "answered"]
    assert told.say(K.HUNG_UP, 9).changes[-1].facts.answered_by == "1002"


@pytest.mark.parametrize(
    ("signals", "words"),
    [
        ([K.BEGAN], ["initiated", "failed"]),
        ([K.BEGAN, K.GAVE_UP], ["initiated", "cancelled"]),
        ([K.BEGAN, K.ANSWERED], ["initiated", "answered", "hung_up"]),
        ([K.BEGAN, K.HUNG_UP], ["initiated", "answered", "hung_up"]),
    ],
)
def test_a_call_that_the_switch_no_longer_knows(signals: list[SignalKind], words: list[str]):
    told = Told()
    for kind in signals:
        told.say(kind)
    told.say(K.VANISHED, 60)
    assert told.words == words
    assert told.changes[-1].facts.is_inferred


def test_a_refusal_that_was_seen_is_no_conclusion():
    told = Told().say(K.BEGAN).say(K.REFUSED, 1, sip=407).say(K.VANISHED, 2)
    assert told.words == ["initiated", "rejected"]
    assert not told.changes[-1].facts.is_inferred


def test_what_is_noted_is_stored_and_begins_nothing():
    assert Told().say(K.NOTED).tracker.calls == {}
    told = Told().say(K.BEGAN).say(K.NOTED, 1)
    assert [snapshot.state is not None for snapshot in told.snapshots] == [True]
    assert told.say(K.SEEN, 2).snapshots == []


@pytest.mark.parametrize("direction", [None, Direction.RECEIVED])
def test_hints_count_where_no_number_is_a_line(direction: Direction | None):
    told = Told(("acme", "a", "account:acme")).say(K.BEGAN, hints=("tenant:x", "account:acme"), direction=direction)
    assert [change.side.direction for change in told.changes] == [direction or Direction.MADE]
    told = Told(("acme", "a", "account:acme"), ("zeta", "b", DIALLED)).say(K.BEGAN, hints=("account:acme",))
    assert [change.side.owner.client_id for change in told.changes] == ["zeta"]


def test_a_call_from_outside_was_not_made_by_the_line_whose_number_it_shows():
    lines = (("acme", "a", CALLER), ("acme", "b", DIALLED))
    told = Told(*lines).say(K.BEGAN, direction=Direction.RECEIVED).say(K.CALLER_KNOWN, 1, direction=Direction.RECEIVED)
    assert [change.side.direction for change in told.changes] == [Direction.RECEIVED]
    told = Told(lines[0]).say(K.BEGAN, direction=Direction.RECEIVED)  # a customer's own switch calls through ours
    assert [change.side.direction for change in told.changes] == [Direction.MADE]
