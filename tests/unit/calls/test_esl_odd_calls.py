"""More calls that no recording has, and the ways in which FreeSWITCH's events of them can come: what one knows from its sources."""

from datetime import timedelta

import pytest
from tests.support.esl_events import DID, OUTSIDE, Script
from tests.support.esl_watching import LINES, EslWatcher

from toque.calls.lines import LineBook
from toque.calls.model import Party, StatusChange

ANSWERED = ["initiated", "ringing", "answered", "hung_up"]
FAR = "5541999990001"


@pytest.fixture
def script() -> Script:
    return Script()


def told(script: Script, lines: LineBook = LINES) -> dict[tuple[str, str, str], list[StatusChange]]:
    """What each side was told, by call, client and direction."""
    watcher = EslWatcher(lines)
    watcher.feed_all(script.events)
    watcher.pass_time(timedelta(seconds=40))
    return {
        (identity.key, side.owner.client_id, str(side.direction)): changes
        for (identity, _, side), changes in watcher.ledger.told.items()
    }


def words(changes: list[StatusChange]) -> list[str]:
    return [str(change.status) for change in changes]


def received(script: Script) -> list[StatusChange]:
    return told(script)["A", "zeta", "received"]


def swap(script: Script, one: int, two: int) -> None:
    script.events[one], script.events[two] = script.events[two], script.events[one]


def place(script: Script, name: str, uuid: str) -> int:
    """Where this event is."""
    found = (
        number for number, event in enumerate(script.events) if (event["Event-Name"], event.get("Unique-ID")) == (name, uuid)
    )
    return next(found)


# Several destinations


def test_one_after_the_other_the_last_one_counts(script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    script.refuse("B", "USER_BUSY", 486, 17)
    script.call("C", "1002", "A")
    script.refuse("C", "CALL_REJECTED", 403, 21)
    script.end("A", "CALL_REJECTED", "send_refuse", v_hangup_cause_q850="21", v_originate_disposition="CALL_REJECTED")
    assert words(received(script)) == ["initiated", "rejected"]


def test_a_busy_member_does_not_outrank_one_that_rang_out(script: Script):
    script.incoming()
    for uuid, number in (("B", "1001"), ("C", "1002")):
        script.call(uuid, number, "A")
    script.ring("B")
    script.wait(1)
    script.stop("B", "ALLOTTED_TIMEOUT", 16)
    script.refuse("C", "USER_BUSY", 486, 17)
    script.end("A", "USER_BUSY", "send_refuse", v_hangup_cause_q850="17")
    assert words(received(script)) == ["initiated", "ringing", "no_answer"]


def test_who_answers_too_late_is_not_who_answered(script: Script):
    """Both answered; the switch took one of them."""
    script.incoming()
    for uuid, number in (("B", "1001"), ("C", "1002")):
        script.call(uuid, number, "A")
        script.ring(uuid)
    script.wait(1)
    script.answer("B")
    script.answer("C")
    script.stop("B", "LOSE_RACE", 16)
    script.answer("A", "bridge")
    script.bridge("A", "C")
    script.end("A", disposition="recv_bye")
    script.end("C")
    changes = received(script)
    assert (words(changes), changes[-1].facts.answered_by) == (ANSWERED, "1002")


def test_who_is_called_on_nobodys_account_and_loses_has_not_failed(script: Script):
    """`originate user/1001,user/1002 &bridge(...)`: two channels, and nothing says that they are one call."""
    for uuid, number in (("A", "1001"), ("L", "1002")):
        script.appear(uuid, f"sofia/internal/{number}@192.0.2.7", FAR, number, called=True, v_dialed_user=number)
        script.ring(uuid)
    script.answer("A")
    script.stop("L", "LOSE_RACE", 16)
    sides = told(script)
    assert words(sides["L", "acme", "made"])[-1] == "cancelled"


@pytest.mark.parametrize("cause", ["ALLOTTED_TIMEOUT", "PROGRESS_TIMEOUT", "NO_ANSWER"])
@pytest.mark.parametrize(("rings", "word"), [(True, "no_answer"), (False, "unreachable")])
def test_the_time_that_the_switch_was_given_is_over(script: Script, cause: str, rings: bool, word: str):
    script.incoming()
    script.call("B", "1001", "A")
    if rings:
        script.ring("B")
    script.wait(20)
    script.stop("B", cause, 19 if cause == "NO_ANSWER" else 16)
    script.end("A", cause, "send_refuse", v_hangup_cause_q850="19" if cause == "NO_ANSWER" else "16")
    assert words(received(script))[-1] == word


# Causes


@pytest.mark.parametrize(
    ("cause", "sip", "q850", "word"),
    [
        ("DESTINATION_OUT_OF_ORDER", 502, 27, "unreachable"),
        ("SUBSCRIBER_ABSENT", 480, 20, "unreachable"),
        ("NO_ROUTE_DESTINATION", 503, 3, "congestion"),  # a carrier's Reason header
        ("NO_ROUTE_DESTINATION", 604, 3, "invalid_number"),
        ("USER_BUSY", 480, 17, "busy"),
        ("A_CAUSE_OF_TOMORROW", 500, 16, "failed"),  # the switch says 16 for what Q.850 does not have
        ("A_CAUSE_OF_TOMORROW", 486, 16, "busy"),
        ("OUTGOING_CALL_BARRED", 500, 52, "rejected"),
        ("REQUESTED_CHAN_UNAVAIL", 503, 44, "congestion"),
    ],
)
def test_causes_and_codes(script: Script, cause: str, sip: int, q850: int, word: str):
    script.incoming()
    script.call("B", "1001", "A")
    script.ring("B")
    script.refuse("B", cause, sip, q850)
    script.end("A", cause, "send_refuse", v_hangup_cause_q850=str(q850))
    assert words(received(script))[-1] == word


def test_what_a_channel_says_while_an_attempt_is_made_is_no_cause(script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    script.refuse("B", "USER_BUSY", 486, 17)
    script.end("A", "NORMAL_CLEARING", "send_refuse", v_originate_disposition="failure", v_last_bridge_hangup_cause="USER_BUSY")
    changes = received(script)
    assert (words(changes)[-1], changes[-1].facts.cause.text) == ("busy", "USER_BUSY")


def test_the_code_of_a_failed_invite_is_evidence(script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    script.end("B", "NORMAL_TEMPORARY_FAILURE", "recv_refuse", v_hangup_cause_q850="41", v_sip_invite_failure_status="503")
    script.end("A", "NORMAL_TEMPORARY_FAILURE", "send_refuse", v_hangup_cause_q850="41")
    assert words(received(script))[-1] == "congestion"


# Queues


def test_a_queue_whose_agents_refuse_has_not_been_answered(script: Script):
    script.incoming()
    script.answer("A", "answer")
    for number, uuid in enumerate("BC"):
        called = {"v_cc_member_session_uuid": "A", "v_cc_side": "agent"}
        script.appear(uuid, "sofia/internal/1001@192.0.2.7", OUTSIDE, f"100{number + 1}", called=True, **called)
        script.refuse(uuid, "USER_BUSY", 486, 17)
    script.wait(20)
    script.end("A", v_hangup_cause_q850="16")
    changes = received(script)
    assert (words(changes), changes[-1].facts.hung_up_by) == (["initiated", "no_answer"], Party.NETWORK)


def test_who_waits_in_a_queue_is_a_call_when_first_seen_there(script: Script):
    """The one who waits has the queue's variables as well."""
    script.incoming()
    script.answer("A", "callcenter")
    script.keep("A", v_cc_side="member", v_cc_queue="suporte", v_cc_agent="1001")
    watcher = EslWatcher()
    for event in script.events:
        watcher.miss(event)
    watcher.switch.channels["A"] = {**watcher.switch.channels["A"], **script.channels["A"]}
    watcher.reconnect()
    assert watcher.ledger.words("zeta") == [["initiated"]]


# Transfers


def test_who_transfers_while_it_rings_has_left_the_consultation(script: Script):
    """The switch calls the target anew for the party that is transferred."""
    script.incoming()
    script.call("B", "1001", "A")
    script.ring("B")
    script.answer("B")
    script.answer("A", "bridge")
    script.bridge("A", "B")
    script.wait(2)
    script.incoming("C", "1001", "1002", "internal")
    script.call("D", "1002", "C", shown="1001")
    script.ring("D")
    script.wait(1)
    script.end("B", v_endpoint_disposition="ATTENDED_TRANSFER")
    script.end("C", "ATTENDED_TRANSFER", "send_refuse")
    script.stop("D", "ORIGINATOR_CANCEL", 16)
    script.call("E", "1002", "A")
    script.ring("E")
    script.wait(2)
    script.answer("E")
    script.bridge("A", "E")
    script.wait(3)
    script.end("A", disposition="recv_bye")
    script.end("E")
    sides = told(script)
    changes, consultation = sides["A", "zeta", "received"], sides["C", "acme", "made"]
    assert (words(changes), changes[-1].facts.answered_by, changes[-1].at) == (ANSWERED, "1002", script.now)
    assert words(consultation) == ["initiated", "ringing", "cancelled"]
    assert consultation[-1].facts.hung_up_by is Party.CALLER


def test_a_caller_who_transfers_by_a_code_and_hangs_up_leaves_a_call_behind(script: Script):
    script.incoming("A", "1001", FAR, "internal")
    script.call("B", FAR, "A", "external", DID)
    script.ring("B")
    script.answer("B")
    script.answer("A", "bridge")
    script.bridge("A", "B")
    script.wait(2)
    script.keep("A", v_current_application="att_xfer")
    script.call("C", "1002", "A", shown="1001")
    script.ring("C")
    script.answer("C")
    script.bridge("A", "C")
    script.wait(2)
    script.end("A", disposition="recv_bye")
    script.bridge("B", "C")
    script.wait(5)
    script.end("B", disposition="recv_bye")
    script.end("C")
    changes = told(script)["A", "acme", "made"]
    assert (words(changes), changes[-1].at, changes[-1].facts.hung_up_by) == (ANSWERED, script.now, Party.CALLEE)


def test_who_hangs_up_after_a_consultation_that_came_to_nothing_has_hung_up(script: Script):
    script.incoming("A", "1001", FAR, "internal")
    script.call("B", FAR, "A", "external", DID)
    script.answer("B")
    script.answer("A", "bridge")
    script.bridge("A", "B")
    script.keep("A", v_current_application="att_xfer")
    script.call("C", "1002", "A", shown="1001")
    script.refuse("C", "USER_BUSY", 486, 17)
    script.bridge("A", "B")
    script.wait(2)
    script.end("A", disposition="recv_bye")
    script.end("B")
    changes = told(script)["A", "acme", "made"]
    assert (words(changes)[-1], changes[-1].facts.hung_up_by) == ("hung_up", Party.CALLER)


# Who may be about to pick up another call


def test_a_caller_who_is_answered_after_the_bridge_talks_to_whom_they_are_bridged_with(script: Script):
    script.incoming()
    script.call("B", "1001", "A")
    script.ring("B")
    script.wait(2)
    script.incoming("P", "1003", "*8", "internal")
    script.answer("P", "intercept")
    script.bridge("P", "A")
    script.answer("A", "intercept")
    script.end("B", "PICKED_OFF", "send_cancel")
    script.wait(4)
    script.end("A", disposition="recv_bye")
    script.end("P")
    changes = received(script)
    assert (words(changes), changes[-1].facts.answered_by, changes[-1].facts.pbx_answered_at) == (ANSWERED, "1003", None)
    assert {key for key, _, _ in told(script)} == {"A"}


def test_a_code_that_picks_up_nothing_is_a_call(script: Script):
    script.incoming("P", "1003", "*8", "internal")
    script.answer("P", "answer")
    picked_up_at = script.now
    script.wait(10)
    script.end("P", v_hangup_cause_q850="16")
    changes = told(script)["P", "acme", "made"]
    assert words(changes) == ["initiated", "no_answer"]
    assert (changes[0].at, changes[-1].facts.pbx_answered_at) == (picked_up_at, picked_up_at)


def test_a_code_is_told_as_a_call_after_a_while(script: Script):
    script.incoming("P", "1003", "*98", "internal")
    watcher = EslWatcher()
    watcher.feed_all(script.events)
    assert watcher.ledger.words("acme") == []
    watcher.pass_time(timedelta(seconds=2))
    assert watcher.ledger.words("acme") == [["initiated"]]


def test_a_call_between_extensions_is_told_as_soon_as_one_is_called(script: Script):
    script.incoming("A", "1001", "1002", "internal")
    script.call("B", "1002", "A", shown="1001")
    watcher = EslWatcher()
    watcher.feed_all(script.events)
    watcher.ledger.append(watcher.watch)
    assert sorted(watcher.ledger.words("acme")) == [["initiated"], ["initiated"]]


# Loopbacks, seen in another order


@pytest.mark.parametrize("order", [("L-a", "L-b"), ("L-b", "C"), ("L-a", "C")])
def test_legs_behind_a_loopback_may_be_seen_before_it(script: Script, order: tuple[str, str]):
    script.incoming()
    script.appear("L-a", "loopback/1002/default-a", OUTSIDE, "1002", above="A")
    script.appear("L-b", "loopback/1002/default-b", OUTSIDE, "1002", v_other_loopback_leg_uuid="L-a")
    script.call("C", "1002", "L-b", Other_Leg_Channel_Name="loopback/1002/default-b")
    script.ring("C")
    script.refuse("C", "USER_BUSY", 486, 17)
    script.end("L-b", "USER_BUSY", "", v_hangup_cause_q850="17")
    script.end("L-a", "USER_BUSY", "", v_hangup_cause_q850="17")
    script.end("A", "NORMAL_CLEARING", "send_refuse")
    swap(script, *(place(script, "CHANNEL_CREATE", uuid) for uuid in order))
    sides = told(script)
    assert {key for key, _, _ in sides} == {"A"}
    assert [words(changes) for changes in sides.values()] == [["initiated", "ringing", "busy"]] * 2


# The switch's own pick-up


def test_who_is_picked_up_because_the_far_end_answered_heard_no_menu(script: Script):
    """By a script that bridges by itself, and with both answers crosswise."""
    script.incoming()
    script.call("B", "1001", "A")
    script.ring("B")
    script.wait(1)
    script.answer("B")
    script.answer("A", "lua")
    swap(script, -1, -2)
    script.bridge("A", "B")
    script.end("A", disposition="recv_bye")
    script.end("B")
    changes = received(script)
    assert (words(changes), changes[-1].facts.pbx_answered_at) == (ANSWERED, None)


# Names and numbers


def test_a_caller_who_shows_no_number_is_known_by_their_login(script: Script):
    script.incoming("A", "anonymous", FAR, "internal", v_sip_auth_username="1001")
    script.end("A", "USER_BUSY", "send_refuse", v_hangup_cause_q850="17")
    changes = told(script)["A", "acme", "made"]
    assert changes[-1].facts.caller == "1001"


def test_an_address_is_no_number(script: Script):
    script.incoming()
    script.call("B", "sip:1001@192.0.2.7:5060;transport=tcp", "A")
    script.ring("B")
    script.answer("B")
    script.answer("A", "bridge")
    script.bridge("A", "B")
    script.end("A", disposition="recv_bye")
    script.end("B")
    sides = told(script)
    assert sides["A", "zeta", "received"][-1].facts.answered_by == "1001"


def test_who_picks_up_by_a_key_dialled_what_the_telephone_sent(script: Script):
    script.incoming("P", "1003", "answer,intercept:B", "internal", Caller_Dialplan="inline", v_sip_req_user="1001")
    script.end("P", "NORMAL_CLEARING", "send_refuse")
    assert told(script)["P", "acme", "made"][-1].facts.dialled == "1001"


def test_what_a_gateway_registered_is_not_what_was_dialled(script: Script):
    script.incoming("A", OUTSIDE, "1002", Caller_RDNIS=DID, v_transfer_source="x", v_sip_req_user="gw+operadora")
    script.end("A", "USER_BUSY", "send_refuse", v_hangup_cause_q850="17")
    assert received(script)[-1].facts.dialled == DID


# Calls that the switch begins


def test_click_to_call_whose_far_end_is_called_apart(script: Script):
    """`originate user/1001 &park`, another `originate`, `uuid_bridge`: only the bridge says whom 1001 called."""
    script.appear("A", "sofia/internal/1001@192.0.2.7", "", "1001", called=True, v_dialed_user="1001")
    script.ring("A")
    script.answer("A", "park")
    script.wait(1)
    script.appear("B", f"sofia/external/{FAR}", "", FAR, called=True, v_sip_gateway_name="trunk")
    script.ring("B")
    script.wait(1)
    script.answer("B", "park")
    script.bridge("A", "B")
    script.wait(2)
    script.end("A", disposition="recv_bye")
    script.end("B")
    facts = told(script)["A", "acme", "made"][-1].facts
    assert (facts.caller, facts.dialled, facts.answered_by) == ("1001", FAR, FAR)


@pytest.mark.parametrize("shown", ["", "0000000000", "551140000000"])
def test_the_far_end_first_and_then_the_caller(script: Script, shown: str):
    """`originate sofia/gateway/trunk/NUMBER &bridge(user/1001)`: whose call it is comes to light after the answer."""
    script.appear("A", f"sofia/external/{FAR}", shown, FAR, called=True, v_sip_gateway_name="trunk")
    script.ring("A")
    script.wait(2)
    script.answer("A")
    answered_at = script.now
    script.call("B", "1001", "A", shown=FAR)
    script.ring("B")
    script.wait(1)
    script.answer("B")
    script.bridge("A", "B")
    script.wait(3)
    script.end("B", disposition="recv_bye")
    script.end("A")
    sides = told(script)
    assert set(sides) == {("A", "acme", "made")}
    changes = sides["A", "acme", "made"]
    facts = changes[-1].facts
    assert (words(changes), changes[2].at) == (ANSWERED, answered_at)
    assert (facts.caller, facts.dialled, facts.answered_by) == (shown if shown.strip("0") else "1001", FAR, FAR)
    assert facts.hung_up_by is Party.CALLER


def test_the_far_end_first_through_the_dialplan(script: Script):
    """`originate loopback/NUMBER &bridge(user/1001)`."""
    script.appear("L-a", f"loopback/{FAR}/default-a", DID, FAR, called=True)
    script.appear("L-b", f"loopback/{FAR}/default-b", DID, FAR, v_other_loopback_leg_uuid="L-a")
    script.call("C", FAR, "L-b", "external", DID)
    script.ring("C")
    script.wait(2)
    script.answer("C")
    script.answer("L-b", "bridge")
    script.bridge("L-b", "C")
    script.answer("L-a")
    script.call("D", "1001", "L-a", shown=FAR)
    script.ring("D")
    script.wait(1)
    script.answer("D")
    script.bridge("L-a", "D")
    script.bridge("C", "D")
    script.end("L-a", "NORMAL_UNSPECIFIED", "")
    script.end("L-b", "NORMAL_UNSPECIFIED", "")
    script.wait(3)
    script.end("C", disposition="recv_bye")
    script.end("D")
    sides = told(script)
    assert set(sides) == {("L-a", "zeta", "made")}
    changes = sides["L-a", "zeta", "made"]
    facts = changes[-1].facts
    assert words(changes) == ANSWERED
    assert (facts.caller, facts.dialled, facts.answered_by, changes[-1].at) == (DID, FAR, FAR, script.now)
    assert facts.hung_up_by is Party.CALLEE


def test_the_far_end_first_that_is_busy(script: Script):
    script.appear("A", f"sofia/external/{FAR}", DID, FAR, called=True, v_sip_gateway_name="trunk")
    script.refuse("A", "USER_BUSY", 486, 17)
    changes = told(script)["A", "zeta", "made"]
    assert (words(changes), changes[-1].facts.dialled) == (["initiated", "busy"], FAR)


def test_who_asked_for_a_call_may_call_it_off(script: Script):
    script.appear("A", "sofia/internal/1001@192.0.2.7", FAR, "1001", called=True, v_dialed_user="1001")
    script.ring("A")
    script.wait(2)
    script.end("A", disposition="send_cancel", v_hangup_cause_q850="16")
    changes = told(script)["A", "acme", "made"]
    assert (words(changes), changes[-1].facts.hung_up_by) == (["initiated", "ringing", "cancelled"], Party.CALLER)


def test_a_leg_that_is_seen_first_of_a_call_that_was_clicked(script: Script):
    """Once answered and sent to the dialplan, the called caller is shown as one who calls."""
    other = {"Other_Leg_Direction": "outbound", "Other_Leg_Caller_ID_Number": "1001", "Other_Leg_Destination_Number": FAR}
    script.call("B", FAR, "A", "external", DID, **other)
    script.refuse("B", "USER_BUSY", 486, 17)
    script.appear("A", "sofia/internal/1001@192.0.2.7", FAR, "1001", called=True, v_dialed_user="1001")
    script.end("A", "USER_BUSY", "send_bye", v_hangup_cause_q850="17")
    sides = told(script)
    assert {key: words(changes) for key, changes in sides.items()} == {("A", "acme", "made"): ["initiated", "busy"]}
