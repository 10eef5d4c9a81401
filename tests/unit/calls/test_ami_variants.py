"""What an Asterisk says of the same things in other ways: other features, other technologies, other releases, other orders."""

import pytest
from tests.support.ami_switch import Chan, Pbx
from tests.support.ami_telling import DID, MOBILE, call, calls, in_talk, lines, played, words

from toque.calls.ami_names import SwitchRules, explicit_number, is_of, is_telephone, peer_name
from toque.calls.model import Party

# Pickups by any code


@pytest.mark.parametrize("extension", ["8", "81001", "#81001", "**1001", "1001", "s"])
def test_whatever_was_dialled_a_pickup_is_no_call_of_its_own(extension: str):
    """`1001` is what a telephone dials that sends an INVITE with Replaces."""
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    c = pbx.wait(3).caller("PJSIP/1002", extension)
    pbx.set(c, 6)
    pbx.wait(0.5).say("Pickup", c.fields(), b.fields("Target"))
    pbx.soft(b)
    pbx.end_dial(a, c, "ANSWER")
    pbx.set(a, 6)
    pbx.hang(b, 26)
    pbx.bridge(c, a)
    pbx.wait(3).end(a, c)
    told = call(pbx, DID, "1002")
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[-1].facts.answered_by == "1002"


def test_an_internal_call_is_told_as_soon_as_somebody_is_called():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", "1002")
    b = pbx.dial(a, "PJSIP/1002")
    pbx.wait(9).refuse(a, b, 17, 486, "BUSY")
    pbx.hang(a, 17)
    told = call(pbx, "1001")
    assert words(told) == ["initiated", "busy"]
    assert (told[1].at - told[0].at).seconds == 9


def test_a_short_call_to_the_switch_itself():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", "600")
    pbx.set(a, 6)
    pbx.wait(0.2).end(a)
    assert words(call(pbx, "1001")) == ["initiated", "cancelled"]


def test_a_parked_caller_who_is_fetched():
    pbx = Pbx()
    a, b = in_talk(pbx)
    pbx.say("BlindTransfer", b.fields("Transferer"), a.fields("Transferee"), Result="Success", Extension="700")
    pbx.leave(a)
    a.bridge = "lot"
    pbx.say("BridgeEnter", {"BridgeUniqueid": "lot", "BridgeTechnology": "holding_bridge"}, a.fields())
    pbx.hang(b)
    c = pbx.wait(5).caller("PJSIP/1002", "701")
    pbx.set(c, 6)
    pbx.say("UnParkedCall", a.fields("Parkee"), c.fields("Retriever"), ParkingLot="default")
    pbx.leave(a)
    pbx.bridge(c, a)
    pbx.wait(3).end(a, c)
    told = call(pbx, DID, "1002")
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[-1].facts.answered_by == "1002"


# Transfers in other orders


def test_a_blonde_transfer_whose_caller_is_gone_before_the_word_of_it():
    pbx = Pbx()
    a, b = in_talk(pbx)
    b2 = pbx.caller("PJSIP/1001", "1002")
    c = pbx.dial(b2, "PJSIP/1002")
    pbx.ring(b2, c)
    one, two = pbx.local("_attended", of=a, context="transfer")
    pbx.hang(b2)  # its place in the Dial is the Local channel's
    pbx.enter(one, a.bridge, SwapUniqueid=b.uid)
    b.bridge = ""
    pbx.say(
        "AttendedTransfer", b.fields("OrigTransferer"), a.fields("Transferee"), Result="Success", DestType="App", DestApp="Dial"
    )
    pbx.hang(b)
    pbx.wait(2).answer(two, c)
    pbx.set(two, 6)
    pbx.bridge(c, two)
    pbx.wait(4).end(a, one, two, c)
    told = calls(pbx, DID, "1001")
    assert [words(changes)[-1] for changes in told] == ["hung_up", "cancelled"]
    assert told[0][-1].facts.answered_by == "1002"


def test_a_blonde_transfer_that_nobody_answers():
    pbx = Pbx()
    a, b = in_talk(pbx)
    b2 = pbx.caller("PJSIP/1001", "1002")
    c = pbx.dial(b2, "PJSIP/1002")
    pbx.ring(b2, c)
    one, two = pbx.local("_attended", of=a, context="transfer")
    pbx.hang(b2)
    pbx.enter(one, a.bridge, SwapUniqueid=b.uid)
    b.bridge = ""
    pbx.hang(b)
    pbx.wait(5).time_out(two, c)
    pbx.hang(two)
    pbx.hang(one)
    pbx.soft(a)
    pbx.hang(a)
    told = calls(pbx, DID, "1001")
    assert [words(changes)[-1] for changes in told] == ["hung_up", "cancelled"]
    assert told[0][-1].facts.answered_by == "1001"


def test_a_caller_whose_place_a_local_channel_takes():
    """1001 called out, and transfers blonde: its channel goes before the word of the transfer comes."""
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", MOBILE)
    b = pbx.dial(a, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.talk(a, b)
    one, two = pbx.local("_attended", of=a, context="transfer")
    pbx.enter(one, b.bridge, SwapUniqueid=a.uid)
    a.bridge = ""
    pbx.hang(a)
    c = pbx.dial(two, "PJSIP/1002")
    pbx.wait(2).answer(two, c)
    pbx.set(two, 6)
    pbx.bridge(c, two)
    pbx.wait(4).end(b, one, two, c)
    told = call(pbx)
    assert words(told) == ["initiated", "answered", "hung_up"]
    assert told[-1].facts.hung_up_by is Party.CALLEE
    assert (told[-1].at - told[1].at).seconds == 6


def test_a_conversation_that_the_caller_moves_to_another_telephone():
    """An INVITE with Replaces: the new channel takes the old one's place in the bridge."""
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", MOBILE)
    b = pbx.dial(a, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.talk(a, b)
    c = pbx.wait(2).caller("PJSIP/1002", "1001")
    pbx.set(c, 6)
    pbx.enter(c, a.bridge, SwapUniqueid=a.uid)
    a.bridge = ""
    pbx.hang(a)
    pbx.wait(3).end(c, b)
    told = call(pbx, "1001", "1002")
    assert words(told) == ["initiated", "answered", "hung_up"]
    assert told[-1].facts.hung_up_by is Party.CALLER
    assert told[-1].facts.answered_by == MOBILE


def test_a_transfer_to_three_leaves_nobody_out():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", MOBILE)
    b = pbx.dial(a, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.talk(a, b)
    pbx.say(
        "AttendedTransfer",
        a.fields("OrigTransferer"),
        a.fields("SecondTransferer"),
        b.fields("Transferee"),
        Result="Success",
        DestType="Threeway",
    )
    c = pbx.chan("PJSIP/1002", of=a, number="1002", state=6)
    pbx.enter(c, a.bridge)
    pbx.wait(2).hang(b)
    pbx.wait(3).end(a, c)
    told = call(pbx)
    assert words(told) == ["initiated", "answered", "hung_up"]
    assert (told[-1].at - told[1].at).seconds == 5


def test_a_caller_who_consults_by_a_feature_code_and_transfers():
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", MOBILE)
    b = pbx.dial(a, "PJSIP/trunk", f"{MOBILE}@trunk")
    pbx.talk(a, b)
    pbx.leave(a)
    one, two = pbx.local("1002", of=a)
    c = pbx.dial(two, "PJSIP/1002")
    pbx.answer(two, c)
    pbx.set(two, 6)
    pbx.set(one, 6)
    pbx.bridge(c, two)
    target = pbx.bridge(a, one)
    pbx.wait(2).say(
        "AttendedTransfer", a.fields("OrigTransferer"), a.fields("SecondTransferer"), b.fields("Transferee"),
        one.fields("TransferTarget"), Result="Success", DestType="Bridge",
    )  # fmt: skip
    pbx.hang(a)
    pbx.say("BridgeMerge", ToBridgeUniqueid=target, FromBridgeUniqueid=b.bridge)
    b.bridge = target
    pbx.wait(3).end(b, one, two, c)
    told = call(pbx)
    assert words(told) == ["initiated", "answered", "hung_up"]
    assert told[-1].facts.answered_by == MOBILE


def test_two_callers_in_a_conference_one_of_whom_transfers():
    """Its far end is the caller of a call of its own: each call ends with its own caller's channel."""
    pbx = Pbx()
    a, c = pbx.inbound(), pbx.caller("PJSIP/1002", "8000")
    for chan in (a, c):
        pbx.set(chan, 6)
    pbx.bridge(a, c)
    pbx.wait(2).say("BlindTransfer", c.fields("Transferer"), a.fields("Transferee"), Result="Success", Extension="1003")
    pbx.leave(a)
    pbx.hang(c)
    d = pbx.dial(a, "PJSIP/1003")
    pbx.talk(a, d)
    pbx.wait(3).end(a, d)
    watcher = played(pbx, DID, "1002")
    assert sorted(words(changes)[-1] for changes in watcher.ledger.told.values() if changes) == ["hung_up", "hung_up"]
    assert len(watcher.watch.events.book) == 0


# Queues, groups, forwards


def test_a_queue_whose_agents_are_local_channels():
    """As FreePBX has them; the queue's first member rings out, the second answers."""
    pbx = Pbx()
    a = pbx.inbound()
    pbx.set(a, 6)
    pbx.say("QueueCallerJoin", a.fields(), Queue="vendas")
    for number, takes in (("1001", False), ("1002", True)):
        one, two = pbx.local(number, of=a, context="from-queue")
        pbx.say("AgentCalled", a.fields(), one.fields("Dest"), Queue="vendas")
        pbx.begin_dial(a, one, f"Local/{number}@from-queue/n")
        phone = pbx.dial(two, f"PJSIP/{number}")
        pbx.ring(two, phone)
        pbx.ring(a, one)
        pbx.wait(4)
        if not takes:
            pbx.say("AgentRingNoAnswer", a.fields(), one.fields("Dest"), Queue="vendas")
            pbx.end_dial(a, one, "NOANSWER")
            pbx.end_dial(two, phone, "CANCEL")
            pbx.hang(phone, 16)
            pbx.hang(two, 0)
            pbx.hang(one, 0)
    pbx.answer(two, phone)
    pbx.set(two, 6)
    pbx.set(one, 6)
    pbx.end_dial(a, one, "ANSWER")
    pbx.say("QueueCallerLeave", a.fields(), Queue="vendas")
    pbx.say("AgentConnect", a.fields(), one.fields("Dest"), Queue="vendas")
    pbx.bridge(phone, two)
    pbx.bridge(one, a)
    pbx.wait(3).end(phone, two, one, a)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert (told[-1].facts.answered_by, told[-1].facts.hung_up_by) == ("1002", Party.CALLEE)


def test_a_queue_that_gives_up_and_another_that_answers():
    pbx = Pbx()
    a = pbx.inbound()
    pbx.set(a, 6)
    pbx.say("QueueCallerJoin", a.fields(), Queue="vendas")
    b = pbx.dial(a, "PJSIP/1001", "PJSIP/1001")
    pbx.ring(a, b)
    pbx.wait(5).time_out(a, b)
    pbx.say("QueueCallerAbandon", a.fields(), Queue="vendas")
    pbx.say("QueueCallerLeave", a.fields(), Queue="vendas")
    pbx.say("QueueCallerJoin", a.fields(), Queue="suporte")
    c = pbx.dial(a, "PJSIP/1002", "PJSIP/1002")
    pbx.ring(a, c)
    pbx.wait(1).answer(a, c)
    pbx.say("QueueCallerLeave", a.fields(), Queue="suporte")
    pbx.bridge(c, a)
    pbx.wait(2).end(a, c)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[-1].facts.answered_by == "1002"


def test_a_group_one_of_whose_members_forwards():
    pbx = Pbx()
    a = pbx.inbound()
    b, c = pbx.dial(a, "PJSIP/1001"), pbx.dial(a, "PJSIP/1002")
    pbx.ring(a, c)
    pbx.end_dial(a, b, "CANCEL", Forward="1003")
    one, two = pbx.local("1003", of=a)
    pbx.begin_dial(a, one)
    pbx.hang(b, 16)
    d = pbx.dial(two, "PJSIP/1003")
    pbx.refuse(two, d, 17, 486, "BUSY")
    pbx.hang(two, 17)
    pbx.end_dial(a, one, "BUSY")
    pbx.hang(one, 17)
    pbx.wait(6).time_out(a, c)
    pbx.hang(a, 16)
    assert words(call(pbx)) == ["initiated", "ringing", "no_answer"]


def test_a_group_whose_members_must_confirm():
    """FreePBX's ring groups may ask whoever takes the call to press 1: the first is still being asked when the second has."""
    pbx = Pbx()
    a = pbx.inbound()
    ones, twos, phones = [], [], []
    for number in ("1001", "1002"):
        one, two = pbx.local(number, of=a)
        pbx.begin_dial(a, one)
        phone = pbx.dial(two, f"PJSIP/{number}")
        pbx.ring(two, phone)
        ones.append(one)
        twos.append(two)
        phones.append(phone)
    pbx.wait(2).answer(twos[0], phones[0])
    pbx.wait(1).answer(twos[1], phones[1])
    pbx.wait(1).set(twos[1], 6)
    pbx.bridge(phones[1], twos[1])
    pbx.set(ones[1], 6)
    pbx.end_dial(a, ones[0], "CANCEL")
    pbx.end_dial(a, ones[1], "ANSWER")
    pbx.set(a, 6)
    pbx.bridge(ones[1], a)
    for chan in (phones[0], twos[0], ones[0]):
        pbx.hang(chan, 26)
    pbx.wait(5).end(a, ones[1], twos[1], phones[1])
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert [change.facts.answered_by for change in told[2:]] == ["1002", "1002"]
    assert (told[-1].at - told[2].at).seconds == 5


# Where no channel is made, or HangupRequest is told


@pytest.mark.parametrize(("cause", "word"), [(3, "unreachable"), (20, "unreachable"), (17, "busy"), (34, "congestion")])
def test_a_caller_for_whom_no_channel_could_be_made(cause: int, word: str):
    pbx = Pbx()
    a = pbx.caller("PJSIP/1001", "1005")
    pbx.hang(a, cause)
    assert words(call(pbx, "1001")) == ["initiated", word]


def test_a_busy_tone_for_somebody_who_is_not_registered():
    pbx = Pbx()
    a = pbx.inbound()
    pbx.say("VarSet", a.fields(), Variable="DIALSTATUS", Value="CHANUNAVAIL")
    pbx.hang(a, 17)
    assert words(call(pbx)) == ["initiated", "unreachable"]


def test_a_time_out_that_is_told_as_a_cancel():
    """As Asterisk 13 may: only because it has told before who asks for a hangup is this no caller that gave up."""
    pbx = Pbx()
    in_talk(pbx)
    pbx.end(*in_talk(pbx))
    a = pbx.inbound("554130600301")
    b = pbx.dial(a, "SIP/1001")
    pbx.ring(a, b)
    pbx.wait(9).end_dial(a, b, "CANCEL")
    pbx.hang(b, 16)
    pbx.hang(a, 0)
    assert words(call(pbx, "554130600301")) == ["initiated", "ringing", "no_answer"]


def test_a_leg_that_a_program_calls_into_the_call():
    """ARI: DialBegin has no caller, and the program bridges both."""
    pbx = Pbx()
    a = pbx.inbound()
    b = pbx.chan("PJSIP/1001", of=a, number="1001")
    pbx.begin_dial(None, b)
    pbx.ring(None, b)
    pbx.wait(2).answer(None, b)
    pbx.set(a, 6)
    pbx.bridge(a, b)
    pbx.wait(3).end(a, b)
    told = call(pbx)
    assert words(told) == ["initiated", "ringing", "answered", "hung_up"]
    assert told[-1].facts.answered_by == "1001"


# Names of other technologies


@pytest.mark.parametrize(
    ("name", "peer", "is_phone"),
    [
        ("SIP/1001-0000000a", "SIP/1001", True),
        ("IAX2/1001-4711", "IAX2/1001", True),
        ("DAHDI/1-1", "DAHDI/1", False),
        ("DAHDI/i1/5541999990001-2f", "DAHDI/i1/5541999990001", False),
        ("Khomp/B0C3-12.0", "Khomp/B0C3", False),
        ("PJSIP/acme_1001-00000001", "PJSIP/acme_1001", False),
    ],
)
def test_names_of_channels(name: str, peer: str, is_phone: bool):
    assert (peer_name(name), is_telephone(name)) == (peer, is_phone)


@pytest.mark.parametrize(
    ("dial_string", "name"),
    [("ana/sip:x8f3kq@192.0.2.7:5061;ob", "PJSIP/ana-01"), ("acme_1001/sip:1001@192.0.2.7", "PJSIP/acme_1001-01")],
)
def test_a_telephones_own_address_is_no_number(dial_string: str, name: str):
    assert explicit_number(dial_string, name) == ""


def test_a_channel_of_a_group_of_lines():
    assert is_of("DAHDI/i1/5541999990001-1", "DAHDI/g0/5541999990001")
    assert not is_of("PJSIP/1001-01", "DAHDI/g0/5541999990001")


@pytest.mark.parametrize("prefix", ["pbx1-", "br-sp.loja-"])
def test_ids_with_the_name_of_the_system(prefix: str):
    pbx = Pbx()
    a = Chan("SIP/trunk-0a", f"{prefix}1795400000.1", f"{prefix}1795400000.1", "5511988887777", DID, "from-trunk", 4)
    pbx.say("Newchannel", a.fields())
    b = pbx.dial(a, "SIP/1001")
    pbx.talk(a, b)
    pbx.end(a, b)
    assert words(call(pbx)) == ["initiated", "answered", "hung_up"]


def test_an_analogue_line_leads_outside():
    rules = SwitchRules()
    pbx = Pbx()
    a = pbx.caller("DAHDI/1", "s", number="5511988887777", context="from-analog")
    pbx.set(a, 6)
    pbx.wait(2).end(a)
    (told,) = calls(pbx, "context:from-analog", rules=rules)
    assert (told[0].side.direction.value, told[-1].facts.caller) == ("received", "5511988887777")
    assert lines(DID)
