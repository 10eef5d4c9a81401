"""Calls that no recording has: pickups, loopbacks, transfers by the caller, mailboxes, diallers, queues that call by themselves …

The events have the order in which FreeSWITCH's sources give them.
"""

from datetime import timedelta

import pytest
from tests.support.esl_events import DID, OUTSIDE, Script
from tests.support.esl_watching import LINES, EslWatcher

from toque.calls.lines import LineBook, parse_line
from toque.calls.model import Cause, Direction, Party, StatusChange

ANSWERED = ["initiated", "ringing", "answered", "hung_up"]


def run(script: Script, lines: LineBook = LINES, *, restarts: bool = False) -> EslWatcher:
    watcher = EslWatcher(lines)
    for event in script.events:
        watcher.feed(event)
        if restarts:
            watcher.restart()
    watcher.pass_time(timedelta(seconds=40))
    return watcher


def told(script: Script, lines: LineBook = LINES) -> dict[tuple[str, str, str], list[StatusChange]]:
    """What each side was told, by call, client and direction; the same with a restart after each event."""
    sides = [
        {
            (identity.key, side.owner.client_id, str(side.direction)): changes
            for (identity, _, side), changes in run(script, lines, restarts=restarts).ledger.told.items()
        }
        for restarts in (False, True)
    ]
    assert sides[0] == sides[1]
    return sides[0]


def words(changes: list[StatusChange]) -> list[str]:
    return [str(change.status) for change in changes]


def received(script: Script, key: str = "A") -> list[StatusChange]:
    return told(script)[key, "zeta", "received"]


def made(script: Script, key: str = "A") -> list[StatusChange]:
    return told(script)[key, "acme", "made"]


def answered_call(script: Script, callee: str = "1001") -> None:
    """A rings B, who answers."""
    script.call("B", callee, "A")
    script.ring("B")
    script.wait(2)
    script.answer("B")
    script.answer("A", "bridge")
    script.bridge("A", "B")
    script.wait(3)


@pytest.fixture
def script() -> Script:
    return Script()


# Who else answers


def pickup_of(script: Script, answered_by: str, hung_up_by: Party) -> list[StatusChange]:
    """What the owner of the dialled number is told; to pick up is no call of its own."""
    told = run(script).ledger.told
    assert {identity.key for identity, _, _ in told} == {"A"}
    (changes,) = (changes for (_, _, side), changes in told.items() if side.owner.client_id == "zeta")
    facts = changes[-1].facts
    assert (words(changes), facts.answered_by, facts.hung_up_by) == (ANSWERED, answered_by, hung_up_by)
    return changes


def test_a_call_that_another_picks_up_is_answered_by_them(script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    script.ring("B")
    script.wait(2)
    script.incoming("P", "1003", "*8", "internal")
    script.answer("P", "intercept")
    script.answer("A", "bridge")
    script.end("B", "PICKED_OFF", "send_cancel")
    script.bridge("P", "A")
    script.wait(4)
    script.end("A", disposition="recv_bye")
    script.end("P", disposition="send_bye")
    assert pickup_of(script, "1003", Party.CALLER)[-1].facts.pbx_answered_at is None


def test_a_parked_call_goes_on_with_whoever_fetches_it(script: Script):
    script.incoming()
    answered_call(script)
    script.end("B", endpoint_disposition="", v_endpoint_disposition="BLIND_TRANSFER")
    script.wait(10)
    script.incoming("P", "1002", "*5901", "internal")
    script.answer("P", "valet_park")
    script.bridge("A", "P")
    script.wait(5)
    script.end("P", disposition="recv_bye")
    script.end("A")
    pickup_of(script, "1002", Party.CALLEE)


@pytest.mark.parametrize("application", ["voicemail", "conference", "rxfax"])
def test_an_application_can_be_the_destination(script: Script, application: str):
    script.incoming()
    script.call("B", "1001", "A")
    script.ring("B")
    script.wait(5)
    script.stop("B")
    script.answer("A", application)
    script.wait(6)
    script.end("A", disposition="recv_bye")
    changes = received(script)
    assert words(changes) == ANSWERED
    assert changes[-1].facts.pbx_answered_at is None
    assert changes[2].at == script.now - timedelta(seconds=6)


def test_voicemail_behind_an_answer_is_known_at_the_end(script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    script.ring("B")
    script.wait(5)
    script.stop("B")
    script.answer("A", "answer")
    script.wait(6)
    script.keep("A", v_current_application="voicemail")
    script.end("A", disposition="recv_bye")
    changes = received(script)
    assert words(changes) == ANSWERED
    assert changes[2].at == script.now - timedelta(seconds=6)
    assert changes[-1].facts.pbx_answered_at is None


def test_voicemail_behind_a_loopback(script: Script):
    script.incoming()
    script.appear("L-a", "loopback/app=voicemail:default x 1001-a", OUTSIDE, "app=voicemail", above="A")
    script.appear(
        "L-b",
        "loopback/app=voicemail:default x 1001-b",
        OUTSIDE,
        "x",
        v_other_loopback_leg_uuid="L-a",
        v_loopback_app="voicemail",
    )
    script.answer("L-b", "voicemail")
    script.answer("L-a")
    script.answer("A", "bridge")
    script.bridge("A", "L-a")
    script.wait(3)
    script.end("A", disposition="recv_bye")
    script.end("L-a", disposition="")
    script.end("L-b", disposition="")
    changes = received(script)
    assert words(changes) == ["initiated", "answered", "hung_up"]
    assert changes[-1].facts.hung_up_by is Party.CALLER


# Loopbacks


def test_a_loopback_is_nobody_and_may_vanish_in_mid_call(script: Script):
    script.incoming()
    script.appear("L-a", "loopback/1002/default-a", OUTSIDE, "1002", above="A")
    script.appear("L-b", "loopback/1002/default-b", OUTSIDE, "1002", v_other_loopback_leg_uuid="L-a")
    script.call("C", "1002", "L-b")
    script.ring("C")
    script.wait(2)
    script.answer("C")
    script.answer("L-b", "bridge")
    script.bridge("L-b", "C")
    script.answer("L-a")
    script.answer("A", "bridge")
    script.bridge("A", "L-a")
    script.bridge("A", "C")
    script.end("L-a", "NORMAL_UNSPECIFIED", "")
    script.end("L-b", "NORMAL_UNSPECIFIED", "")
    script.wait(3)
    script.end("C", disposition="recv_bye")
    script.end("A")
    changes = received(script)
    assert words(changes) == ANSWERED
    assert (changes[-1].facts.answered_by, changes[-1].facts.hung_up_by) == ("1002", Party.CALLEE)
    assert changes[-1].facts.pbx_answered_at is None


def test_what_is_called_through_a_loopback_says_why_it_failed(script: Script):
    script.incoming()
    script.appear("L-a", "loopback/1002/default-a", OUTSIDE, "1002", above="A")
    script.appear("L-b", "loopback/1002/default-b", OUTSIDE, "1002", v_other_loopback_leg_uuid="L-a")
    script.call("C", "1002", "L-b")
    script.refuse("C", "USER_BUSY", 486, 17)
    script.end("L-b", "USER_BUSY", "", v_hangup_cause_q850="17")
    script.end("L-a", "USER_BUSY", "", v_hangup_cause_q850="17")
    script.end("A", "NORMAL_CLEARING", "send_refuse")
    changes = received(script)
    assert words(changes) == ["initiated", "busy"]
    assert changes[-1].facts.cause.sip == 486


def test_a_loopback_that_leads_nowhere_speaks_for_itself(script: Script):
    script.incoming()
    script.appear("L-a", "loopback/9999/default-a", OUTSIDE, "9999", above="A")
    script.appear("L-b", "loopback/9999/default-b", OUTSIDE, "9999", v_other_loopback_leg_uuid="L-a")
    script.end("L-b", "NO_ROUTE_DESTINATION", "", v_hangup_cause_q850="3")
    script.end("L-a", "NO_ROUTE_DESTINATION", "", v_hangup_cause_q850="3")
    script.end("A", "NORMAL_CLEARING", "send_refuse")
    assert words(received(script)) == ["initiated", "invalid_number"]


# Transfers


def test_who_was_called_goes_on_after_the_caller_transferred_them(script: Script):
    script.incoming("A", "1001", "5541999990001", "internal")
    script.call("B", "5541999990001", "A", "external", "554130600300")
    script.ring("B")
    script.wait(1)
    script.answer("B")
    script.answer("A", "bridge")
    script.bridge("A", "B")
    script.wait(2)
    script.end("A", v_endpoint_disposition="BLIND_TRANSFER")
    script.call("C", "1002", "B")
    script.ring("C")
    script.wait(1)
    script.answer("C")
    script.bridge("B", "C")
    script.wait(5)
    script.end("C", disposition="recv_bye")
    script.end("B")
    changes = made(script)
    assert words(changes) == ANSWERED
    assert changes[-1].at == script.now
    assert (changes[-1].facts.answered_by, changes[-1].facts.hung_up_by) == ("5541999990001", Party.CALLER)


def test_a_consultation_ends_where_the_caller_leaves_it_and_the_call_goes_on(script: Script):
    """The transferring party has called both: the older call keeps the two that are left."""
    script.incoming("A", "1001", "5541999990001", "internal")
    script.call("B", "5541999990001", "A", "external")
    script.wait(1)
    script.answer("B")
    script.answer("A", "bridge")
    script.bridge("A", "B")
    script.wait(2)
    script.incoming("C", "1001", "1002", "internal")
    script.call("D", "1002", "C", shown="1001")
    script.wait(1)
    script.answer("D")
    script.answer("C", "bridge")
    script.bridge("C", "D")
    script.wait(2)
    script.end("C", v_endpoint_disposition="ATTENDED_TRANSFER")
    consulted_until = script.now
    script.bridge("B", "D")
    script.end("A")
    script.wait(7)
    script.end("B", disposition="recv_bye")
    script.end("D")
    first, second = made(script, "A"), made(script, "C")
    assert (words(first)[-1], first[-1].at, first[-1].facts.hung_up_by) == ("hung_up", script.now, Party.CALLEE)
    assert (words(second)[-1], second[-1].at) == ("hung_up", consulted_until)


def test_a_transferred_caller_whom_nobody_answers_has_hung_up(script: Script):
    script.incoming()
    answered_call(script)
    script.end("B", v_endpoint_disposition="BLIND_TRANSFER")
    script.call("C", "1002", "A")
    script.ring("C")
    script.wait(5)
    script.stop("C")
    script.end("A", "NO_ANSWER")
    changes = received(script)
    assert words(changes) == ANSWERED
    assert (changes[-1].facts.hung_up_by, changes[-1].facts.answered_by) == (Party.NETWORK, "1001")


def test_a_callee_who_stays_on_does_not_hold_the_callers_call(script: Script):
    script.incoming()
    answered_call(script)
    script.end("A", disposition="recv_bye")
    ended_at = script.now
    script.wait(30)
    watcher = run(script)
    assert watcher.ledger.last().at == ended_at
    assert watcher.now - ended_at > timedelta(seconds=39)


# Groups and queues


def test_a_loser_of_a_group_is_no_missed_call_of_its_own(script: Script):
    script.incoming()
    for uuid, number in (("B", "1001"), ("C", "1002")):
        script.call(uuid, number, "A")
        script.ring(uuid)
    script.wait(1)
    script.answer("C")
    script.stop("B", "LOSE_RACE", 16)
    script.answer("A", "bridge")
    script.bridge("A", "C")
    script.wait(1)
    script.end("A", disposition="recv_bye")
    script.end("C")
    sides = told(script)
    assert {key for key, _, _ in sides} == {"A"}
    assert sides["A", "zeta", "received"][-1].facts.answered_by == "1002"


def test_who_must_press_a_key_has_answered_when_they_did(script: Script):
    script.incoming()
    script.call("B", "5541999990001", "A", "external", v_group_confirm_key="1")
    script.ring("B")
    script.wait(1)
    script.answer("B")
    script.wait(4)
    script.answer("A", "bridge")
    script.bridge("A", "B")
    confirmed_at = script.now
    script.end("A", disposition="recv_bye")
    script.end("B")
    assert received(script)[2].at == confirmed_at


@pytest.mark.parametrize("variable", ["cc_member_session_uuid", "fifo_bridge_uuid", "ent_originate_aleg_uuid"])
def test_a_queue_names_for_whom_it_calls(script: Script, variable: str):
    script.incoming()
    script.answer("A", "answer")
    script.wait(1)
    script.appear("B", "sofia/internal/1001@192.0.2.7", OUTSIDE, "1001", called=True, **{f"v_{variable}": "A"})
    script.ring("B")
    script.wait(1)
    script.answer("B")
    script.bridge("A", "B")
    script.end("A", disposition="recv_bye")
    script.end("B")
    sides = told(script)
    assert {key for key, _, _ in sides} == {"A"}
    assert words(sides["A", "zeta", "received"]) == ANSWERED
    assert sides["A", "zeta", "received"][-1].facts.pbx_answered_at is not None


def test_a_queues_leg_without_a_name_is_no_call_until_it_is_bridged(script: Script):
    script.incoming()
    script.answer("A", "fifo")
    script.appear("B", "sofia/internal/1001@192.0.2.7", OUTSIDE, "1001", called=True, v_fifo_outbound_uuid="x")
    script.ring("B")
    script.wait(1)
    script.answer("B")
    script.bridge("A", "B")
    script.wait(1)
    script.end("B", disposition="recv_bye")
    script.end("A")
    sides = told(script)
    assert {key for key, _, _ in sides} == {"A"}
    changes = sides["A", "zeta", "received"]
    assert words(changes) == ["initiated", "answered", "hung_up"]
    assert (changes[-1].facts.answered_by, changes[-1].facts.hung_up_by) == ("1001", Party.CALLEE)


@pytest.mark.parametrize(
    ("disposition", "word", "who"), [("recv_bye", "cancelled", Party.CALLER), ("send_bye", "no_answer", Party.NETWORK)]
)
def test_a_queue_that_nobody_answers(script: Script, disposition: str, word: str, who: Party):
    script.incoming()
    script.answer("A", "answer")
    script.wait(20)
    script.end("A", disposition=disposition, v_hangup_cause_q850="16")
    changes = received(script)
    assert words(changes) == ["initiated", word]
    assert changes[-1].facts.hung_up_by is who


# Why nobody answered


@pytest.mark.parametrize(
    ("refusal", "rings", "word"),
    [
        (("USER_BUSY", 486, 17), True, "busy"),
        (("CALL_REJECTED", 403, 21), False, "rejected"),
        (("DECLINE", 603, 16), True, "rejected"),
        (("UNALLOCATED_NUMBER", 404, 1), False, "invalid_number"),
        (("NO_ROUTE_DESTINATION", 604, 3), False, "invalid_number"),
        (("NUMBER_CHANGED", 410, 22), False, "invalid_number"),
        (("NORMAL_TEMPORARY_FAILURE", 503, 41), False, "congestion"),
        (("NORMAL_TEMPORARY_FAILURE", 500, 41), False, "failed"),
        (("NO_USER_RESPONSE", 480, 18), True, "no_answer"),
        (("NO_USER_RESPONSE", 480, 18), False, "unreachable"),
        (("RECOVERY_ON_TIMER_EXPIRE", 408, 102), False, "unreachable"),
        (("INCOMPATIBLE_DESTINATION", 488, 88), False, "failed"),
    ],
)
def test_the_called_leg_says_why(script: Script, refusal: tuple[str, int, int], rings: bool, word: str):
    cause, sip, q850 = refusal
    script.incoming()
    script.call("B", "1001", "A")
    if rings:
        script.ring("B")
    script.refuse("B", cause, sip, q850)
    script.end("A", "NORMAL_CLEARING", "send_refuse", v_hangup_cause_q850="16", v_originate_disposition=cause)
    changes = received(script)
    assert words(changes)[-1] == word
    assert changes[-1].facts.cause.sip == sip
    assert changes[-1].facts.cause.q850 == (q850 if cause != "DECLINE" else None)


@pytest.mark.parametrize(
    ("cause", "word"),
    [
        ("USER_NOT_REGISTERED", "unreachable"),
        ("SUBSCRIBER_ABSENT", "unreachable"),
        ("USER_BUSY", "busy"),
        ("NO_ROUTE_DESTINATION", "invalid_number"),
        ("INVALID_GATEWAY", "failed"),
        ("GATEWAY_DOWN", "failed"),
        ("SWITCH_CONGESTION", "congestion"),
    ],
)
def test_where_no_leg_was_ever_made_the_callers_own_says_why(script: Script, cause: str, word: str):
    script.incoming()
    script.end("A", "NORMAL_CLEARING", "send_refuse", v_hangup_cause_q850="16", v_originate_disposition=cause)
    changes = received(script)
    assert words(changes) == ["initiated", word]
    assert changes[-1].facts.cause.text == cause


def test_a_redirection_that_was_followed_does_not_count(script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    script.refuse("B", "REDIRECTION_TO_NEW_DESTINATION", 302, 23)
    script.call("C", "5541999990001", "A", "external")
    script.ring("C")
    script.wait(5)
    script.stop("C")
    script.end("A", "NORMAL_CLEARING", "send_refuse", v_originate_disposition="NO_ANSWER")
    assert words(received(script)) == ["initiated", "ringing", "no_answer"]


def test_channels_without_sip_end_with_who_ended_first(script: Script):
    script.appear("A", "verto.rtc/1001", "1001", "1002")
    script.call("B", "1002", "A", shown="1001")
    script.ring("B")
    script.wait(1)
    script.answer("B")
    script.answer("A", "bridge")
    script.bridge("A", "B")
    script.wait(1)
    script.end("A", disposition="")
    script.wait(0.02)
    script.end("B")
    assert made(script)[-1].facts.hung_up_by is Party.CALLER


# Calls that the switch begins


def test_click_to_call_with_the_companys_number_shown_learns_what_was_dialled(script: Script):
    script.appear("A", "sofia/internal/1001@192.0.2.7", DID, "1001", called=True, v_dialed_user="1001")
    script.ring("A")
    script.wait(1)
    script.answer("A")
    script.call("B", "5541999990001", "A", "external", DID)
    script.ring("B")
    script.wait(3)
    script.answer("B")
    script.bridge("A", "B")
    script.wait(1)
    script.end("A", disposition="recv_bye")
    script.end("B")
    sides = told(script)
    assert set(sides) == {("A", "acme", "made")}
    facts = sides["A", "acme", "made"][-1].facts
    assert (facts.caller, facts.dialled, facts.answered_by) == ("1001", "5541999990001", "5541999990001")
    assert facts.answered_at - facts.ringing_at == timedelta(seconds=3)


def click_through_a_loopback(script: Script) -> None:
    """The caller's telephone is called through the dialplan."""
    script.appear("L-a", "loopback/1001/default-a", "5541999990001", "1001", called=True)
    script.appear("L-b", "loopback/1001/default-b", "5541999990001", "1001", v_other_loopback_leg_uuid="L-a")
    script.call("C", "1001", "L-b", shown="5541999990001")
    script.ring("C")
    script.wait(1)


def test_click_to_call_through_a_loopback(script: Script):
    click_through_a_loopback(script)
    script.answer("C")
    script.answer("L-b", "bridge")
    script.bridge("L-b", "C")
    script.answer("L-a")
    script.call("D", "5541999990001", "L-a", "external", DID)
    script.ring("D")
    script.wait(2)
    script.answer("D")
    script.bridge("L-a", "D")
    script.bridge("C", "D")
    script.end("L-a", "NORMAL_UNSPECIFIED", "")
    script.end("L-b", "NORMAL_UNSPECIFIED", "")
    script.wait(5)
    script.end("C", disposition="recv_bye", v_hangup_cause_q850="16")
    script.end("D", v_hangup_cause_q850="16")
    sides = told(script)
    assert set(sides) == {("L-a", "acme", "made")}
    changes = sides["L-a", "acme", "made"]
    facts = changes[-1].facts
    assert words(changes) == ANSWERED
    assert (facts.caller, facts.dialled, facts.answered_by) == ("1001", "5541999990001", "5541999990001")
    assert (facts.hung_up_by, facts.cause.q850, changes[-1].at) == (Party.CALLER, 16, script.now)
    assert facts.answered_at - facts.ringing_at == timedelta(seconds=2)


def test_a_loopback_may_make_way_before_the_far_end_is_called(script: Script):
    """The caller's real channel then takes over what was left to do."""
    click_through_a_loopback(script)
    script.answer("C")
    script.answer("L-b", "bridge")
    script.bridge("L-b", "C")
    script.answer("L-a")
    script.end("L-a", "NORMAL_UNSPECIFIED", "")
    script.end("L-b", "NORMAL_UNSPECIFIED", "")
    script.call("D", "5541999990001", "C", "external", DID)
    script.ring("D")
    script.wait(2)
    script.refuse("D", "USER_BUSY", 486, 17)
    script.end("C", "USER_BUSY", v_hangup_cause_q850="17")
    sides = told(script)
    assert set(sides) == {("L-a", "acme", "made")}
    changes = sides["L-a", "acme", "made"]
    assert words(changes) == ["initiated", "ringing", "busy"]
    assert (changes[-1].facts.cause.sip, changes[-1].facts.hung_up_by) == (486, Party.NETWORK)


def test_who_is_passed_on_to_a_survey_hangs_up_there(script: Script):
    script.incoming()
    answered_call(script)
    script.end("B", disposition="recv_bye")
    script.wait(20)
    script.end("A", disposition="recv_bye")
    changes = received(script)
    assert (words(changes), changes[-1].at, changes[-1].facts.hung_up_by) == (ANSWERED, script.now, Party.CALLER)


def test_an_attended_transfer_by_a_code_that_was_dialled(script: Script):
    """The switch calls the third party on behalf of the one who transfers."""
    script.incoming()
    answered_call(script)
    script.call("C", "1002", "B", shown="1001")
    script.ring("C")
    script.wait(1)
    script.answer("C")
    script.bridge("B", "C")
    script.wait(2)
    script.end("B", "ATTENDED_TRANSFER")
    script.bridge("A", "C")
    script.wait(3)
    script.end("C", disposition="recv_bye")
    script.end("A")
    changes = received(script)
    assert words(changes) == ANSWERED
    assert (changes[-1].facts.answered_by, changes[-1].facts.hung_up_by) == ("1002", Party.CALLEE)


def test_click_to_call_through_a_loopback_that_the_caller_refuses(script: Script):
    click_through_a_loopback(script)
    script.refuse("C", "USER_BUSY", 486, 17)
    script.end("L-b", "USER_BUSY", "", v_hangup_cause_q850="17")
    script.end("L-a", "USER_BUSY", "", v_hangup_cause_q850="17")
    sides = told(script)
    assert set(sides) == {("L-a", "acme", "made")}
    assert words(sides["L-a", "acme", "made"])[-1] == "busy"


def test_a_dialler_calls_the_customer_first(script: Script):
    script.appear("A", "sofia/external/5541999990001", DID, "5541999990001", called=True, v_sip_gateway_name="trunk")
    script.ring("A")
    script.wait(2)
    script.answer("A")
    script.call("B", "1001", "A", shown="5541999990001")
    script.answer("B")
    script.bridge("A", "B")
    script.wait(4)
    script.end("A", disposition="recv_bye")
    script.end("B")
    sides = told(script)
    changes = sides["A", "zeta", "made"]
    assert words(changes) == ANSWERED
    assert (changes[-1].facts.caller, changes[-1].facts.dialled) == (DID, "5541999990001")
    assert changes[-1].at - changes[2].at == timedelta(seconds=4)


def test_a_call_made_belongs_to_the_number_it_is_known_by_outside(script: Script):
    lines = LineBook.of([parse_line("zeta", "ddr", DID)])
    script.incoming("A", "2001", "5541999990001", "internal")
    script.call("B", "5541999990001", "A", "external", DID)
    script.refuse("B", "USER_BUSY", 486, 17)
    script.end("A", "USER_BUSY", "send_refuse", v_hangup_cause_q850="17")
    changes = told(script, lines)["A", "zeta", "made"]
    assert (words(changes), changes[-1].facts.caller) == (["initiated", "busy"], "2001")


@pytest.mark.parametrize(
    ("hint", "more"),
    [
        ("account:acme", {"v_accountcode": "acme"}),
        ("tenant:acme.example", {"v_domain_name": "acme.example"}),
        ("context:acme", {"Caller_Context": "acme"}),
        ("endpoint:sofia/external", {}),
    ],
)
def test_where_no_number_is_a_line_the_switch_knows_whose_call_it_is(script: Script, hint: str, more: dict[str, str]):
    lines = LineBook.of([parse_line("acme", "x", hint)])
    script.incoming(**more)
    script.end("A", "USER_BUSY", "send_refuse", v_hangup_cause_q850="17")
    ((_, _, direction), changes), *_ = told(script, lines).items()
    assert (words(changes), direction) == (["initiated", "busy"], Direction.RECEIVED)


# Losing sight


def test_a_restarted_switch_has_lost_its_calls(script: Script):
    script.incoming()
    answered_call(script)
    script.restarted()
    changes = received(script)
    assert words(changes) == ANSWERED
    assert changes[-1].facts.is_inferred


def test_channels_may_be_given_another_name(script: Script):
    script.incoming()
    script.channels["X"] = {**script.channels["A"], "Unique-ID": "X", "variable_uuid": "X"}
    script.say("CHANNEL_UUID", "X", Old_Unique_ID="A")
    script.call("B", "1001", "X")
    script.refuse("B", "USER_BUSY", 486, 17)
    script.end("X", "USER_BUSY", "send_refuse")
    ledger = run(script).ledger
    assert ledger.words("zeta") == [["initiated", "busy"]]


def test_a_leg_that_comes_before_its_caller_begins_the_same_call(script: Script):
    script.incoming()
    answered_call(script)
    script.end("A", disposition="recv_bye")
    script.end("B")
    expected = run(script).ledger.words("zeta")
    script.events[0], script.events[1] = script.events[1], script.events[0]
    assert run(script).ledger.words("zeta") == expected == [ANSWERED]


def test_a_uuid_that_is_used_again_is_another_call(script: Script):
    for _ in range(2):
        script.incoming()
        script.end("A", "USER_BUSY", "send_refuse", v_hangup_cause_q850="17")
        script.wait(10)
    watcher = run(script)
    assert watcher.ledger.words("zeta") == [["initiated", "busy"]] * 2


def test_nothing_is_left_of_calls_that_are_over(script: Script):
    script.incoming()
    answered_call(script)
    script.end("A", disposition="recv_bye")
    script.end("B")
    watcher = run(script)
    watcher.pass_time(timedelta(hours=1))
    assert (len(watcher.watch.reader.calls), watcher.watch.tracker.calls, watcher.ledger.states) == (0, {}, {})
    assert "A" not in watcher.watch.reader.calls
    assert "B" not in watcher.watch.reader.calls


def test_the_evidence_goes_with_the_end(script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    script.refuse("B", "NO_USER_RESPONSE", 480, 18)
    script.events[-1]["variable_sip_hangup_phrase"] = "Temporarily Unavailable"
    script.end("A", "NORMAL_CLEARING", "send_refuse", v_originate_disposition="NO_USER_RESPONSE")
    assert received(script)[-1].facts.cause == Cause(sip=480, q850=18, text="NO_USER_RESPONSE")
