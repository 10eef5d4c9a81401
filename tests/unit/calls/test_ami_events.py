"""What an Asterisk's events mean, for scenarios that were not recorded; their order is that of its source code."""

from datetime import timedelta

import pytest
from tests.support.ami_recordings import AmiWatcher
from tests.support.ami_switch import START, Chan, Pbx
from tests.support.ami_telling import DID, MOBILE, call, calls, in_talk, lines, words

from toque.callbacks.payload import ring_time, talk_time
from toque.calls.model import Direction, Party

# Unanswered


@pytest.mark.parametrize(
    ("cause", "sip", "rings", "word"),
    [
        (17, 486, False, "busy"),
        (17, None, True, "busy"),
        (21, 603, True, "rejected"),
        (21, 403, False, "rejected"),
        (1, 404, False, "invalid_number"),
        (28, 484, False, "invalid_number"),
        (22, 410, False, "invalid_number"),
        (34, 503, False, "congestion"),
        (19, 480, True, "no_answer"),
        (19, 480, False, "unreachable"),
        (18, 408, False, "unreachable"),
        (18, 408, True, "no_answer"),
        (20, None, False, "unreachable"),
        (38, 500, False, "failed"),
        (58, 488, False, "failed"),
        (127, None, False, "failed"),
    ],
)
def test_the_called_channels_cause_decides(cause: int, sip: int | None, rings: bool, word: str):
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", MOBILE)
    b = pbx.dial(a, "PJSIP/trunk", f"{MOBILE}@trunk")
    if rings:
        pbx.ring(a, b)
    pbx.refuse(a, b, cause, sip)
    pbx.hang(a, 16)  # the caller's own cause is the dialplan's
    told = call(pbx)
    assert words(told)[-1] == word
    assert told[-1].facts.cause.q850 == cause
    assert told[-1].facts.cause.sip == sip
    assert told[-1].facts.dialled == MOBILE


def test_a_caller_who_hears_the_busy_tone_was_not_cancelling():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", MOBILE)
    b = pbx.dial(a, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.refuse(a, b, 17, 486, "BUSY")
    pbx.wait(5).give_up(a)
    assert words(call(pbx)) == ["initiated", "busy"]


def test_our_own_refusal_is_not_the_callers_hangup():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", MOBILE)
    pbx.ask(a, 34, 503)
    pbx.hang(a, 34, 503)
    assert words(call(pbx)) == ["initiated", "congestion"]


def test_a_telephone_that_is_not_registered_makes_no_channel():
    pbx = Pbx()
    a = pbx.inbound()
    pbx.soft(a)
    pbx.hang(a, 20)
    told = call(pbx)
    assert words(told) == ["initiated", "unreachable"]
    assert told[-1].facts.hung_up_by is Party.NETWORK


def test_the_dial_status_where_no_code_says_anything():
    pbx = Pbx()
    a = pbx.inbound()
    pbx.say("VarSet", a.fields(), Variable="DIALSTATUS", Value="CHANUNAVAIL")
    pbx.hang(a, 16)
    assert words(call(pbx)) == ["initiated", "unreachable"]


def test_a_channel_of_the_old_sip_driver_begins_down():
    pbx = Pbx()
    a = pbx.chan("SIP/1001", MOBILE, number="1001")
    pbx.set(a, 4)
    b = pbx.dial(a, "SIP/trunk", f"trunk/{MOBILE}")
    pbx.ring(a, b)
    pbx.wait(3).ask(a, 0)
    pbx.end_dial(a, b, "CANCEL")
    pbx.hang(b, 16)
    pbx.hang(a, 0)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "cancelled"]
    assert told[0].facts.began_at == START


def test_ringing_that_overtakes_the_dial():
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.chan("PJSIP/1001", of=a, number="1001")
    pbx.set(b, 5)
    pbx.begin_dial(a, b)
    pbx.wait(2).talk(a, b)
    pbx.end(a, b)
    assert words(call(pbx)) == ["initiated", "ringing", "answered", "hung_up"]


def test_early_media_rings():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", MOBILE)
    b = pbx.dial(a, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.dial_state(a, b, "PROGRESS")
    pbx.wait(4).refuse(a, b, 19, 480)
    pbx.hang(a, 19)
    assert words(call(pbx)) == ["initiated", "ringing", "no_answer"]


def test_the_callers_hangup_may_come_before_the_called_ones():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", MOBILE)
    b = pbx.dial(a, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.ask(b, 17, 486)
    pbx.end_dial(a, b, "BUSY")
    pbx.hang(a, 17)
    pbx.hang(b, 17, 486)
    assert words(call(pbx)) == ["initiated", "busy"]


# What the switch itself picks up


def test_a_caller_who_hangs_up_in_the_menu_gave_up():
    pbx = Pbx()
    a = pbx.inbound()
    pbx.set(a, 6)
    pbx.wait(5).end(a)
    told = call(pbx)
    assert words(told) == ["initiated", "cancelled"]
    assert told[-1].facts.pbx_answered_at is not None
    assert told[-1].facts.hung_up_by is Party.CALLER


def test_an_announcement_that_ends_was_answered_by_nobody():
    pbx = Pbx()
    a = pbx.inbound()
    pbx.set(a, 6)
    pbx.wait(5).soft(a)
    pbx.hang(a, 16)
    assert words(call(pbx)) == ["initiated", "no_answer"]


def test_a_person_behind_the_menu():
    pbx = Pbx()
    a = pbx.inbound()
    pbx.set(a, 6)
    pbx.wait(4)
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    pbx.wait(2).talk(a, b)
    pbx.wait(5).end(a, b)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert talk_time(told[-1].facts, told[-1].status).seconds == 5
    assert told[-1].facts.pbx_answered_at < told[-1].facts.answered_at


def test_voicemail_is_the_destination_where_the_switch_says_so():
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    pbx.wait(9).time_out(a, b)
    pbx.say("Newexten", a.fields(), Application="VoiceMail", AppData="1001@default,u")
    pbx.set(a, 6)
    pbx.wait(5).end(a)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[-1].facts.answered_by == "1001"


def test_voicemail_that_nobody_told_of_leaves_a_missed_call():
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    pbx.wait(9).time_out(a, b)
    pbx.set(a, 6)
    pbx.wait(5).end(a)
    assert words(call(pbx)) == ["initiated", "ringing", "no_answer"]


def test_a_callee_who_must_confirm_has_not_answered_before():
    """Dial with a macro for the called one: it is up, and the caller is not, until it has pressed a key."""
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    pbx.wait(2).answer(a, b)
    pbx.wait(3).ask(b)
    pbx.hang(b)
    pbx.soft(a)
    pbx.hang(a)
    assert words(call(pbx)) == ["initiated", "ringing", "no_answer"]


# Local channels, groups, forwards


def test_a_ring_group_over_local_channels():
    """As FreePBX builds them: the caller's Dial calls Local channels, and each of those calls a telephone."""
    pbx = Pbx()
    a = pbx.inbound()
    pairs = [pbx.local(number, of=a, context="from-internal") for number in ("1001", "1002")]
    for one, _ in pairs:
        pbx.begin_dial(a, one)
    phones = []
    for (_, two), number in zip(pairs, ("1001", "1002"), strict=True):
        phone = pbx.dial(two, f"PJSIP/{number}")
        pbx.ring(two, phone)
        phones.append(phone)
    for one, _ in pairs:
        pbx.ring(a, one)
    (one1, two1), (one2, two2) = pairs
    pbx.wait(3).answer(two2, phones[1])
    pbx.set(two2, 6)
    pbx.set(one2, 6)
    pbx.end_dial(a, one1, "CANCEL")
    pbx.end_dial(a, one2, "ANSWER")
    pbx.set(a, 6)
    pbx.bridge(phones[1], two2)
    pbx.bridge(one2, a)
    pbx.end_dial(two1, phones[0], "CANCEL")
    pbx.hang(phones[0], 26)
    pbx.hang(two1, 26)
    pbx.hang(one1, 26)
    bridge = phones[1].bridge  # the Local channel is optimised away
    pbx.leave(two2)
    pbx.leave(a)
    pbx.enter(a, bridge)
    pbx.hang(one2)
    pbx.hang(two2)
    pbx.wait(4).end(phones[1], a)
    told = call(pbx, DID, "1001", "1002")
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[-1].facts.answered_by == "1002"
    assert told[-1].facts.hung_up_by is Party.CALLEE


def test_a_forward_by_the_telephone():
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    pbx.wait(1).end_dial(a, b, "CANCEL", Forward="1002")
    one, two = pbx.local("1002", of=a)
    pbx.begin_dial(a, one)
    pbx.hang(b, 16)
    c = pbx.dial(two, "PJSIP/1002")
    pbx.ring(two, c)
    pbx.wait(2).answer(two, c)
    pbx.set(two, 6)
    pbx.set(one, 6)
    pbx.end_dial(a, one, "ANSWER")
    pbx.set(a, 6)
    pbx.bridge(c, two)
    pbx.bridge(one, a)
    pbx.wait(3).end(a, one, two, c)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[-1].facts.answered_by == "1002"
    assert told[-1].facts.hung_up_by is Party.CALLER


def test_a_forward_to_somebody_who_is_busy():
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.end_dial(a, b, "CANCEL", Forward="1002")
    one, two = pbx.local("1002", of=a)
    pbx.begin_dial(a, one)
    pbx.hang(b, 16)
    c = pbx.dial(two, "PJSIP/1002")
    pbx.refuse(two, c, 17, 486, "BUSY")
    pbx.hang(two, 17)
    pbx.end_dial(a, one, "BUSY")
    pbx.hang(one, 17)
    pbx.hang(a, 17)
    assert words(call(pbx)) == ["initiated", "busy"]


def test_a_local_channel_behind_which_nobody_is_called():
    pbx = Pbx()
    a = pbx.inbound()
    one, two = pbx.local("1999", of=a)
    pbx.begin_dial(a, one)
    pbx.hang(two, 20)
    pbx.end_dial(a, one, "CHANUNAVAIL")
    pbx.hang(one, 20)
    pbx.hang(a, 16)
    assert words(call(pbx)) == ["initiated", "unreachable"]


def test_a_busy_member_does_not_outrank_one_that_rang_out():
    pbx = Pbx()
    a = pbx.inbound()
    b, c = pbx.dial(a, "PJSIP/1001"), pbx.dial(a, "PJSIP/1002")
    pbx.refuse(a, b, 17, 486, "BUSY")
    pbx.ring(a, c)
    pbx.wait(8).time_out(a, c)
    pbx.soft(a)
    pbx.hang(a, 17, 486)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "no_answer"]
    assert told[-1].facts.hung_up_by is Party.NETWORK


def test_a_caller_who_leaves_the_queue_although_members_declined():
    pbx = Pbx()
    a = pbx.inbound()
    pbx.set(a, 6)
    pbx.say("QueueCallerJoin", a.fields(), Queue="vendas")
    b = pbx.dial(a, "PJSIP/1001", "PJSIP/1001")
    pbx.ring(a, b)
    pbx.refuse(a, b, 21, 603)
    pbx.wait(5).ask(a, 0)
    pbx.say("QueueCallerAbandon", a.fields(), Queue="vendas")
    pbx.say("QueueCallerLeave", a.fields(), Queue="vendas")
    pbx.soft(a)
    pbx.hang(a, 0)
    assert words(call(pbx)) == ["initiated", "ringing", "cancelled"]


# Transfers


def test_an_attended_transfer_by_the_switch():
    """One Linkedid; the consultation runs over a Local channel, which stays."""
    pbx = Pbx()
    a, b = in_talk(pbx)
    pbx.leave(b)
    one, two = pbx.local("1002", of=b)
    c = pbx.dial(two, "PJSIP/1002")
    pbx.ring(two, c)
    target = pbx.bridge(b)
    pbx.wait(2).answer(two, c)
    pbx.set(two, 6)
    pbx.set(one, 6)
    pbx.bridge(c, two)
    pbx.enter(one, target)
    pbx.wait(2).ask(b)
    pbx.say(
        "AttendedTransfer", b.fields("OrigTransferer"), b.fields("SecondTransferer"), a.fields("Transferee"),
        one.fields("TransferTarget"), Result="Success", DestType="Bridge",
    )  # fmt: skip
    pbx.hang(b)
    pbx.say("BridgeMerge", ToBridgeUniqueid=a.bridge, FromBridgeUniqueid=target)
    one.bridge = a.bridge
    pbx.wait(4).end(c, two, one, a)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[2].facts.answered_by == "1001"
    assert told[-1].facts.answered_by == "1002"
    assert told[-1].facts.hung_up_by is Party.CALLEE
    assert talk_time(told[-1].facts, told[-1].status).seconds == 11


def test_a_blonde_transfer():
    """The one who consults hangs up while the target rings: a Local channel takes its place in the Dial."""
    pbx = Pbx()
    a, b = in_talk(pbx)
    b2 = pbx.caller("PJSIP/1001", "1002")
    c = pbx.dial(b2, "PJSIP/1002")
    pbx.ring(b2, c)
    one, two = pbx.local("_attended", of=a, context="transfer")
    pbx.say(
        "AttendedTransfer", b.fields("OrigTransferer"), b2.fields("SecondTransferer"), a.fields("Transferee"),
        Result="Success", DestType="App", DestApp="Dial",
    )  # fmt: skip
    pbx.enter(one, a.bridge, SwapUniqueid=b.uid)
    b.bridge = ""
    pbx.hang(b)
    pbx.say("Rename", b2.fields(), Newname=b2.name + "<ZOMBIE>")
    pbx.hang(b2)
    pbx.wait(2).answer(two, c)
    pbx.set(two, 6)
    pbx.bridge(c, two)
    pbx.wait(4).end(a, one, two, c)
    told = calls(pbx, DID, "1001")
    assert [words(changes) for changes in told] == [
        ["initiated", "ringing", "answered", "hung_up"],
        ["initiated", "ringing", "cancelled"],
    ]
    assert told[0][-1].facts.answered_by == "1002"


def test_a_caller_who_transfers_leaves_the_call_to_the_far_end():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", MOBILE)
    b = pbx.dial(a, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.wait(1).talk(a, b)
    pbx.wait(3)
    pbx.say("BlindTransfer", a.fields("Transferer"), b.fields("Transferee"), Result="Success", Extension="1002")
    pbx.leave(b)
    pbx.hang(a)
    c = pbx.dial(b, "PJSIP/1002")
    pbx.ring(b, c)
    pbx.wait(2).talk(b, c)
    pbx.wait(5).end(b, c)
    told = call(pbx)
    assert words(told) == ["initiated", "answered", "hung_up"]
    assert told[-1].facts.answered_by == MOBILE
    assert told[-1].facts.hung_up_by is Party.CALLEE
    assert talk_time(told[-1].facts, told[-1].status).seconds == 10


def test_two_callers_joined_by_whom_both_called():
    """1001 has two calls that came in, and connects them: both go on to the end, and each was answered."""
    pbx = Pbx()
    a, b = in_talk(pbx)
    c = pbx.caller("PJSIP/1002", "1001")
    b2 = pbx.dial(c, "PJSIP/1001")
    pbx.wait(1).talk(c, b2)
    pbx.say(
        "AttendedTransfer", b.fields("OrigTransferer"), b2.fields("SecondTransferer"), a.fields("Transferee"),
        c.fields("TransferTarget"), Result="Success", DestType="Bridge",
    )  # fmt: skip
    pbx.leave(b2)
    pbx.enter(a, c.bridge, SwapUniqueid=b2.uid)
    pbx.hang(b)
    pbx.hang(b2)
    pbx.wait(2).end(c, a)
    told = calls(pbx, DID, "1002")
    assert [words(changes)[-2:] for changes in told] == [["answered", "hung_up"]] * 2
    assert [changes[-1].facts.answered_by for changes in told] == ["1002", "5511988887777"]
    assert [changes[-1].facts.hung_up_by for changes in told] == [Party.CALLEE, Party.CALLER]


def test_a_redirect_by_the_manager_is_a_transfer_without_a_word():
    pbx = Pbx()
    a, b = in_talk(pbx)
    pbx.leave(a)
    pbx.soft(b)
    pbx.hang(b)
    c = pbx.dial(a, "PJSIP/1002")
    pbx.ring(a, c)
    pbx.wait(2).talk(a, c)
    pbx.wait(3).end(c, a)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[-1].facts.answered_by == "1002"


def test_a_transfer_to_nobody_ends_the_call_by_the_switch():
    pbx = Pbx()
    a, b = in_talk(pbx)
    pbx.say("BlindTransfer", b.fields("Transferer"), a.fields("Transferee"), Result="Success", Extension="9999")
    pbx.leave(a)
    pbx.hang(b)
    pbx.soft(a)
    pbx.hang(a, 1)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[-1].facts.answered_by == "1001"
    assert told[-1].facts.hung_up_by is Party.NETWORK


def test_a_parked_caller_hears_music_not_the_other_parked_ones():
    pbx = Pbx()
    a, b = in_talk(pbx)
    other = pbx.caller("PJSIP/1005", "700")
    pbx.set(other, 6)
    pbx.leave(a)
    for parked in (a, other):
        parked.bridge = "lot"
        pbx.say("BridgeEnter", {"BridgeUniqueid": "lot", "BridgeTechnology": "holding_bridge"}, parked.fields())
    pbx.hang(b)
    c = pbx.caller("PJSIP/1002", "701")
    pbx.set(c, 6)
    pbx.wait(1).leave(a)
    pbx.bridge(c, a)
    pbx.wait(3).end(a, c)
    pbx.hang(other)
    told = call(pbx, DID)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[-1].facts.answered_by == "1002"


def test_a_pickup_is_no_call_of_its_own():
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    c = pbx.caller("PJSIP/1002", "*8")
    pbx.set(c, 6)
    pbx.say("Pickup", c.fields(), b.fields("Target"))
    pbx.end_dial(a, c, "ANSWER")
    pbx.set(a, 6)
    pbx.hang(b, 26)
    pbx.bridge(c, a)
    pbx.wait(3).end(c, a)
    told = call(pbx, DID, "1002")
    assert told[-1].facts.answered_by == "1002"
    assert told[-1].facts.hung_up_by is Party.CALLEE


def test_a_call_to_a_feature_that_picks_nothing_up():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", "*60")
    pbx.set(a, 6)
    pbx.wait(9).end(a)
    assert words(call(pbx)) == ["initiated", "cancelled"]


# Calls that the switch begins


def click(pbx: Pbx, *, over_local: bool = False) -> tuple[Chan, Chan | None]:
    """1001 is called first, and answers."""
    if not over_local:
        a = pbx.begin_dial(None, pbx.chan("PJSIP/1001", number="1001"))
        pbx.ring(None, a)
        pbx.wait(2).answer(None, a)
        return a, None
    hub, two = pbx.local("1001", context="from-internal")
    pbx.begin_dial(None, hub)
    a = pbx.dial(two, "PJSIP/1001")
    pbx.ring(two, a)
    pbx.ring(None, hub)
    pbx.wait(2).answer(two, a)
    pbx.set(two, 6)
    pbx.set(hub, 6)
    pbx.end_dial(None, hub, "ANSWER")
    pbx.bridge(a, two)
    return a, hub


@pytest.mark.parametrize("over_local", [False, True])
def test_click_to_call_whose_far_end_is_busy(over_local: bool):
    pbx = Pbx()
    a, hub = click(pbx, over_local=over_local)
    dialler = hub or a
    dialler.exten = MOBILE
    b = pbx.dial(dialler, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.refuse(dialler, b, 17, 486, "BUSY")
    if hub is not None:
        pbx.hang(hub, 17)
    pbx.soft(a)
    pbx.hang(a, 17)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "busy"]
    assert (told[-1].side.direction, told[-1].facts.dialled) == (Direction.MADE, MOBILE)


@pytest.mark.parametrize("over_local", [False, True])
def test_click_to_call_that_the_caller_gives_up(over_local: bool):
    pbx = Pbx()
    a, hub = click(pbx, over_local=over_local)
    dialler = hub or a
    b = pbx.dial(dialler, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.ring(dialler, b)
    pbx.wait(3).ask(a)
    pbx.end_dial(dialler, b, "CANCEL")
    pbx.hang(b, 127)
    pbx.hang(a)
    if hub is not None:
        pbx.hang(hub)
    assert words(call(pbx)) == ["initiated", "ringing", "cancelled"]


def test_click_to_call_over_a_local_channel_that_is_optimised_away():
    pbx = Pbx()
    a, hub = click(pbx, over_local=True)
    assert hub is not None
    b = pbx.dial(hub, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.ring(hub, b)
    pbx.wait(2).answer(hub, b)
    bridge = pbx.bridge(b, hub)
    pbx.leave(a)
    pbx.enter(a, bridge, SwapUniqueid=hub.uid)
    hub.bridge = ""
    pbx.hang(hub)
    pbx.wait(4).end(b, a)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[-1].facts.answered_by == MOBILE
    assert told[-1].facts.hung_up_by is Party.CALLEE
    assert ring_time(told[-1].facts, told[-1].status).seconds == 2


def test_click_to_call_over_local_channels_of_local_channels():
    """As FreePBX's follow-me has it."""
    pbx = Pbx()
    hub, two = pbx.local("1001", context="from-internal")
    pbx.begin_dial(None, hub)
    inner, inner_two = pbx.local("FMPR-1001", of=hub, context="from-internal")
    pbx.begin_dial(two, inner)
    a = pbx.dial(inner_two, "PJSIP/1001")
    pbx.ring(inner_two, a)
    pbx.wait(2).answer(inner_two, a)
    for half in (inner_two, inner):
        pbx.set(half, 6)
    pbx.end_dial(two, inner, "ANSWER")
    for half in (two, hub):
        pbx.set(half, 6)
    pbx.end_dial(None, hub, "ANSWER")
    pbx.bridge(a, inner_two)
    pbx.bridge(inner, two)
    hub.exten = MOBILE
    b = pbx.dial(hub, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.ring(hub, b)
    pbx.wait(2).answer(hub, b)
    pbx.bridge(b, hub)
    pbx.wait(3).end(a, inner_two, inner, two, hub, b)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    facts = told[-1].facts
    assert (facts.caller, facts.dialled, facts.answered_by, facts.hung_up_by) == ("1001", MOBILE, MOBILE, Party.CALLER)


def test_a_dialer_whose_customer_cannot_be_called():
    pbx = Pbx()
    fields = {"Response": "Failure", "Channel": f"PJSIP/{MOBILE}@trunk", "Exten": "1001", "Reason": "8", "Uniqueid": "<unknown>"}
    pbx.say("OriginateResponse", fields, ActionID="a1", CallerIDNum=DID)
    told = call(pbx, DID)
    assert words(told) == ["initiated", "congestion"]
    assert told[-1].facts.dialled == MOBILE


def test_a_dialer_that_calls_the_customer_first():
    pbx = Pbx()
    b = pbx.begin_dial(None, pbx.chan("PJSIP/trunk", number=DID), f"{MOBILE}@trunk")
    pbx.ring(None, b)
    pbx.wait(3).answer(None, b)
    a = pbx.dial(b, "PJSIP/1001")
    pbx.wait(1).talk(b, a)
    pbx.wait(4).end(b, a)
    told = call(pbx, DID)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    facts = told[-1].facts
    assert (told[-1].side.direction, facts.dialled, facts.answered_by) == (Direction.MADE, MOBILE, MOBILE)
    assert facts.hung_up_by is Party.CALLEE


@pytest.mark.parametrize(("reason", "word"), [("0", "failed"), ("3", "no_answer"), ("5", "busy"), ("8", "congestion")])
def test_an_originate_that_makes_no_channel(reason: str, word: str):
    pbx = Pbx()
    fields = {"Response": "Failure", "Channel": "PJSIP/1001", "Exten": MOBILE, "Reason": reason, "Uniqueid": "<unknown>"}
    pbx.say("OriginateResponse", fields, ActionID="a1")
    told = call(pbx)
    assert words(told) == ["initiated", word]
    assert told[-1].facts.dialled == MOBILE


def test_the_answer_to_an_originate_that_comes_after_the_end():
    pbx = Pbx()
    a = pbx.begin_dial(None, pbx.chan("PJSIP/1001", number="1001"))
    pbx.refuse(None, a, 17, 486, "BUSY")
    fields = {"Response": "Failure", "Channel": "PJSIP/1001", "Exten": MOBILE, "Reason": "5", "Uniqueid": "<unknown>"}
    pbx.say("OriginateResponse", fields)
    told = call(pbx)
    assert words(told) == ["initiated", "busy"]
    assert told[-1].facts.dialled == MOBILE


def test_an_originate_whose_answer_never_comes():
    pbx = Pbx()
    a = pbx.begin_dial(None, pbx.chan("PJSIP/1001", number="1001"))
    pbx.ring(None, a)
    pbx.wait(6).hang(a, 0)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "no_answer"]
    assert (told[-1].at - START).seconds == 6


# Whose call it is


def test_a_callers_number_that_comes_to_light_later():
    pbx = Pbx()
    a = pbx.caller("PJSIP/ana", MOBILE, number="ana")
    a.number = DID
    pbx.say("NewCallerid", a.fields())
    b = pbx.dial(a, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.wait(1).talk(a, b)
    pbx.end(a, b)
    told = call(pbx, DID)
    assert words(told) == ["initiated", "answered", "hung_up"]
    assert (told[0].side.direction, told[0].at, told[0].facts.caller) == (Direction.MADE, START, "ana")


@pytest.mark.parametrize("hint", ["account:acme", "tenant:t1", "endpoint:PJSIP/trunk", "context:from-trunk"])
def test_what_the_switch_knows_beside_numbers(hint: str):
    pbx = Pbx()
    a = Chan("PJSIP/trunk-1", "1.1", "1.1", "5511988887777", "554133330000", "from-trunk", 4)
    fields = a.fields() | {"AccountCode": "acme", "Tenantid": "t1"}
    pbx.say("Newchannel", fields)
    pbx.hang(a, 17)
    told = call(pbx, hint)
    assert told[0].side.direction is Direction.RECEIVED


def test_numbers_come_before_what_else_is_known():
    pbx = Pbx()
    a = pbx.inbound()
    pbx.hang(a, 17)
    told = call(pbx, DID, "context:from-trunk")
    assert told[0].side.owner.pin == DID


def test_helpers_of_the_switch_are_no_calls():
    pbx = Pbx()
    for name in ("CBAnn/1", "Announcer/ARI", "Message/ast_msg_queue", "Recorder/ARI"):
        pbx.hang(pbx.chan(name, state=6))
    assert calls(pbx, "~.*") == []


def test_the_switchs_own_time():
    pbx = Pbx()
    a = pbx.inbound()
    pbx.hang(a, 17)
    stamped = {"timestamp": "1795400000.250000"}
    watcher = AmiWatcher(lines(DID))
    for at, message in pbx.said:
        message.fields |= stamped
        watcher.feed(message, at)
    watcher.pass_time(timedelta(seconds=1))
    assert {change.at.timestamp() for changes in watcher.ledger.told.values() for change in changes} == {1795400000.25}
