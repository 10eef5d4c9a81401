"""Which SIP calls are legs of another one: each test plays a back-to-back user agent, as it mirrors itself."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tests.support.b2bua_calls import CARRIER, DID, MOBILE, OTHER, PHONE, SWITCH, Traffic, reached, received
from tests.support.call_watching import Ledger, Watcher

from toque.calls.lines import LineBook, parse_line
from toque.calls.sip import parse_sip
from toque.calls.sip_received import compared

LINES = LineBook.of([parse_line("acme", "ramais", "~100[1-9]"), parse_line("zeta", "ddr", "5541306003*")])


def told(traffic: Traffic, *, restarts: bool = False, lines: LineBook = LINES) -> Ledger:
    watcher = Watcher(lines)
    for packet in traffic.packets:
        watcher.feed(packet)
        watcher.ledger.append(watcher.watch)
        if restarts:
            watcher.restart()
    watcher.pass_time(timedelta(minutes=1))
    assert watcher.ledger.refused == []
    return watcher.ledger


def one_call(ledger: Ledger) -> dict[str, list[str]]:
    assert len({identity for identity, _, _ in ledger.told}) == 1
    return {
        f"{side.owner.client_id} {side.direction}": [str(c.status) for c in changes]
        for (_, _, side), changes in ledger.told.items()
    }


@pytest.mark.parametrize("restarts", [False, True])
def test_a_call_and_its_leg_are_one(restarts: bool):
    traffic = Traffic()
    call = received(traffic)
    leg = reached(traffic).send(180)
    call.send(180)
    leg.send(200, after=2)
    call.send(200)
    leg.send("BYE", "BYE", by=1, after=3)
    call.send("BYE", "BYE", by=1)
    ledger = told(traffic, restarts=restarts)
    whole = ["initiated", "ringing", "answered", "hung_up"]
    assert one_call(ledger) == {"zeta received": whole, "acme received": whole}
    assert ledger.facts().answered_by == "1001"


@pytest.mark.parametrize("restarts", [False, True])
def test_the_losing_members_of_a_group_missed_nothing(restarts: bool):
    traffic = Traffic()
    call = received(traffic)
    first, second = reached(traffic).send(180), reached(traffic, "1002", call_id="leg2", destination=OTHER).send(180)
    call.send(180)
    second.send(200, after=2)
    first.cancel(0.01)
    call.send(200)
    second.send("BYE", "BYE", by=1, after=3)
    call.send("BYE", "BYE", by=1)
    ledger = told(traffic, restarts=restarts)
    assert set(map(tuple, one_call(ledger).values())) == {("initiated", "ringing", "answered", "hung_up")}
    assert ledger.facts().answered_by == "1002"


def test_who_let_all_ring_and_then_declines_was_not_declined():
    """Asterisk's Hangup without a cause is a 603 towards the caller."""
    traffic = Traffic()
    call = received(traffic)
    leg = reached(traffic).send(180)
    call.send(180)
    leg.cancel(8)
    call.send(603)
    assert one_call(told(traffic))["zeta received"] == ["initiated", "ringing", "no_answer"]


def test_a_leg_that_declines_was_declined_whatever_the_caller_is_told():
    traffic = Traffic()
    call = received(traffic)
    leg = reached(traffic).send(180)
    call.send(180)
    leg.send(603, after=2)
    call.send(480)
    ledger = told(traffic)
    assert one_call(ledger)["zeta received"] == ["initiated", "ringing", "rejected"]
    assert ledger.facts().cause.sip == 603


def test_a_leg_that_answers_alone_does_not_answer_the_call():
    """What the caller is told decides: the switch may ask the member to press a key first."""
    traffic = Traffic()
    call = received(traffic)
    leg = reached(traffic).send(180)
    call.send(180)
    leg.send(200, after=2)
    leg.send("BYE", "BYE", after=2)
    call.send(480)
    assert "answered" not in one_call(told(traffic))["zeta received"]


def test_a_member_of_a_queue_answers_a_call_that_was_picked_up():
    traffic = Traffic()
    call = received(traffic).send(200)
    leg = reached(traffic).send(180).send(200, after=3)
    call.send("BYE", "BYE", after=3)
    leg.send("BYE", "BYE")
    ledger = told(traffic, lines=LineBook.of([parse_line("zeta", "tudo", line) for line in (DID, "1001")]))
    assert one_call(ledger) == {"zeta received": ["initiated", "answered", "hung_up"]}
    assert ledger.facts().answered_by == "1001"


def test_the_number_that_is_shown_outside_is_the_callers_too():
    traffic = Traffic()
    call = traffic.leg("out", "3333", f"90{MOBILE}", PHONE, SWITCH, agents=("phone", "PBX")).begin()
    leg = reached(traffic, MOBILE, DID, destination=CARRIER, source="192.0.2.2:5080").send(486)
    call.send(486)
    assert one_call(told(traffic)) == {"zeta made": ["initiated", "busy"]}
    assert leg.called == MOBILE


def test_a_diverted_call_is_the_same():
    traffic = Traffic()
    call = received(traffic)
    leg = reached(
        traffic,
        "5541999990000",
        "554130600399",
        destination=CARRIER,
        headers=(("Diversion", f"<sip:{DID}@pbx>;reason=no-answer"),),
    )
    leg.send(200)
    call.send(200)
    call.send("BYE", "BYE", after=3)
    assert one_call(told(traffic)) == {"zeta received": ["initiated", "answered", "hung_up"]}


def identities(traffic: Traffic) -> int:
    return len({identity for identity, _, _ in told(traffic).told})


@pytest.mark.parametrize(
    "other",
    [
        {"source": "192.0.2.3:5060"},  # somebody else
        {"source": "192.0.2.2:5070", "agents": ("another", "phone")},  # another program on the switch's machine
        {"vias": 2},  # passed on by a proxy
        {"caller": "5511911112222"},  # another caller, to another number
    ],
)
def test_what_is_no_leg(other: dict[str, Any]):
    traffic = Traffic()
    received(traffic).send(180)
    reached(traffic, **other).send(180)
    assert identities(traffic) == 2


@pytest.mark.parametrize("caller", ["anonymous", "Anonymous", "unknown"])
def test_a_name_that_many_have_says_nothing(caller: str):
    traffic = Traffic()
    received(traffic, caller=caller).send(180)
    reached(traffic, caller=caller).send(180)
    assert identities(traffic) == 2


def test_of_two_calls_that_fit_as_well_neither_is_taken():
    traffic = Traffic()
    received(traffic)
    received(traffic, call_id="in2", called="554130600301")
    reached(traffic).send(180)
    assert identities(traffic) == 3


def test_a_call_that_reaches_the_number_already_is_passed_over():
    traffic = Traffic()
    received(traffic)
    reached(traffic).send(180)
    received(traffic, call_id="in2", called="554130600301")
    reached(traffic, call_id="leg2").send(180)
    assert identities(traffic) == 2


def test_an_ended_call_gets_no_more_legs():
    traffic = Traffic()
    received(traffic).send(486)
    reached(traffic).send(180)
    assert identities(traffic) == 2


def test_a_leg_that_outlives_its_call_is_never_one_of_its_own():
    """An attended transfer ends the consultation and leaves its leg up."""
    traffic = Traffic()
    call = received(traffic)
    leg = reached(traffic).send(200)
    call.send(200)
    call.send("BYE", "BYE", after=3)
    watcher = Watcher(LINES)
    watcher.feed_all(traffic.packets)
    watcher.pass_time(timedelta(minutes=10))
    assert len(watcher.watch.legs) == 1
    bye = leg.send("BYE", "BYE", after=900).traffic.packets[-1]
    watcher.feed_all([bye, bye, replace(bye, at=bye.at + timedelta(seconds=30))])  # each hop is mirrored, and it is repeated
    received(traffic, call_id="later")
    watcher.feed(replace(traffic.packets[-1], at=bye.at + timedelta(days=1)))
    watcher.pass_time(timedelta(days=2))
    assert {identity.key for identity, _, _ in watcher.ledger.told} == {"in in-a", "later later-a"}
    assert (len(watcher.watch.legs), len(watcher.watch.dialogs)) == (0, 0)


@pytest.mark.parametrize("is_over_first", [False, True])
def test_an_attended_transfer_connects_the_caller_with_whom_was_consulted(is_over_first: bool):
    traffic = Traffic()
    call = received(traffic)
    leg = reached(traffic).send(200)
    call.send(200)
    consultation = traffic.leg("consult", "1001", "1002", PHONE, SWITCH, agents=("phone", "PBX")).begin()
    second = reached(traffic, "1002", "1001", call_id="leg2", destination=OTHER).send(200)
    consultation.send(200)
    if is_over_first:
        second.send("BYE", "BYE")
    refer = leg.send("BYE", "BYE", by=1).traffic.packets.pop()
    refer_to = b"Refer-To: <sip:1002@b?Replaces=consult%3Bto-tag%3Db%3Bfrom-tag%3Dconsult-a>\r\nCSeq: 3 REFER"
    traffic.packets.append(
        replace(refer, payload=refer.payload.replace(b"BYE sip", b"REFER sip").replace(b"CSeq: 2 BYE", refer_to))
    )
    consultation.send("BYE", "BYE", by=1)
    leg.send("BYE", "BYE")
    call.send("BYE", "BYE", after=5)
    ledger = told(traffic)
    (last,) = [c[-1] for (of, _, side), c in ledger.told.items() if of.key == "in in-a" and side.owner.client_id == "zeta"]
    assert last.facts.answered_by == ("1001" if is_over_first else "1002")


def test_nothing_is_left_behind():
    traffic = Traffic()
    call, leg = received(traffic), reached(traffic).send(180)
    leg.cancel()
    call.send(480)
    watcher = Watcher(LINES)
    watcher.feed_all(traffic.packets)
    watcher.pass_time(timedelta(days=2))
    assert (len(watcher.watch.legs), len(watcher.watch.dialogs), watcher.watch.tracker.calls) == (0, 0, {})
    assert watcher.watch.legs._by_number == {}


def test_a_call_as_earlier_versions_stored_it_goes_on():
    traffic = Traffic()
    received(traffic)
    legs = Watcher(LINES).watch.legs
    packet = traffic.packets[0]
    (began, *_) = legs.read(parse_sip(packet.payload), packet.at, packet.source, packet.destination)
    again = Watcher(LINES).watch.legs
    again.restore(legs.dialogs.export(began.identity))
    assert len(again.dialogs) == 1
    with pytest.raises(msgspec.DecodeError):
        again.restore(b"\x93\x01\x02\x03")


@pytest.mark.parametrize(
    ("number", "same"),
    [("905541999990001", "+55 41 99999-0001"), ("1001", "1001"), ("auth1", "auth1"), ("", "anonymous"), ("Unknown", "")],
)
def test_numbers_are_compared_without_what_is_put_before_them(number: str, same: str):
    assert compared(number) == compared(same)


def test_so_many_orphans_and_no_more():
    legs = Watcher(LINES).watch.legs
    for number in range(10_005):
        legs._orphan(f"{number} a")
    assert len(legs) == 10_000
