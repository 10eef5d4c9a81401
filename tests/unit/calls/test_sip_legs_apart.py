"""What must never be joined to another call: whoever it belongs to would be told nothing of it, or of somebody else's end."""

from datetime import timedelta
from typing import Any

import pytest
from tests.support.b2bua_calls import CARRIER, DID, MOBILE, OTHER, PHONE, SWITCH, Leg, Traffic, reached, received
from tests.support.call_watching import Ledger, Watcher

from toque.calls.hep_packet import HepPacket
from toque.calls.lines import LineBook, parse_line

OWNED = (("acme", "ramais", "~100[1-9]"), ("zeta", "ddr", "5541306003*"))
LINES = LineBook.of([parse_line(*line) for line in OWNED])
PROXY = "192.0.2.8:5060"
OUTSIDE, ELSEWHERE = "5511977770002", "5511966660009"
MISSED = ["initiated", "ringing", "busy"]


def told(traffic: Traffic, lines: LineBook = LINES) -> Ledger:
    watcher = Watcher(lines)
    watcher.feed_all(traffic.packets)
    watcher.pass_time(timedelta(minutes=20))
    assert watcher.ledger.refused == []
    return watcher.ledger


def statuses(ledger: Ledger, call_id: str) -> dict[str, list[str]]:
    return {
        f"{side.owner.client_id} {side.direction}": [str(change.status) for change in changes]
        for (identity, _, side), changes in ledger.told.items()
        if identity.key.startswith(f"{call_id} ")
    }


def test_a_leg_of_a_menu_to_another_clients_line_is_that_clients_call():
    """After the answer a call takes no more sides: joined, nobody would tell of this one."""
    traffic = Traffic()
    call = received(traffic).send(200)
    reached(traffic).send(180).send(486)
    call.send("BYE", "BYE", after=3)
    assert statuses(told(traffic), "leg") == {"acme received": MISSED}


@pytest.mark.parametrize("is_answered", [False, True])
def test_a_leg_with_another_clients_number_is_that_clients_call(is_answered: bool):
    traffic = Traffic()
    call = received(traffic, called="auth9")
    if is_answered:
        call.send(200)
    reached(traffic, ELSEWHERE, headers=(("P-Asserted-Identity", f"<sip:{DID}@pbx>"),)).send(180).send(486)
    call.send("BYE", "BYE") if is_answered else call.send(486)
    assert statuses(told(traffic), "leg") == {"zeta made": MISSED}


def test_an_asserted_number_of_the_leg_to_the_dialled_number_is_the_callers():
    traffic = Traffic()
    call = received(traffic, caller="3333", called=OUTSIDE)
    reached(traffic, OUTSIDE, "3333", headers=(("P-Asserted-Identity", f"<sip:{DID}@pbx>"),)).send(180).send(486)
    call.send(180).send(486)
    assert statuses(told(traffic), "in") == {"zeta made": MISSED}


def test_a_call_whose_end_was_missed_takes_no_leg_any_more():
    traffic = Traffic()
    received(traffic, caller=DID, called=OUTSIDE).send(200)
    traffic.at += timedelta(hours=5)  # past the patience for its BYE
    reached(traffic, ELSEWHERE, DID).send(180).send(486)
    ledger = told(traffic)
    assert statuses(ledger, "leg") == {"zeta made": MISSED}


def test_a_call_that_talks_takes_no_leg_to_another_number():
    """A dialler on the same switch shows the same number."""
    traffic = Traffic()
    call = received(traffic, caller=DID, called=OUTSIDE)
    reached(traffic, OUTSIDE, DID, call_id="leg1").send(200)
    call.send(200)
    reached(traffic, ELSEWHERE, DID).send(180).send(486)
    call.send("BYE", "BYE", after=3)
    assert statuses(told(traffic), "leg") == {"zeta made": MISSED}


def test_a_telephone_that_is_called_in_its_own_name_makes_calls_meanwhile():
    """Click-to-call shows the agent's own extension."""
    traffic = Traffic()
    call = traffic.leg("click", "1001", "1001", SWITCH, PHONE, agents=("PBX", "phone")).begin().send(180).send(200)
    traffic.leg("own", "1001", ELSEWHERE, PHONE, SWITCH, agents=("phone", "PBX")).begin().send(180).send(486)
    call.send("BYE", "BYE", after=3)
    assert statuses(told(traffic), "own") == {"acme made": MISSED}


def test_of_two_calls_by_one_caller_the_leg_is_its_owners():
    lines = LineBook.of(
        [
            parse_line(client, "tudo", line)
            for client, own in {"a": (DID, "1001"), "b": (f"{DID[:-1]}9", "2001")}.items()
            for line in own
        ]
    )
    traffic = Traffic()
    first, second = received(traffic), received(traffic, call_id="in2", called=f"{DID[:-1]}9")
    one, other = reached(traffic).send(180), reached(traffic, "2001", call_id="leg2", destination=OTHER).send(180)
    first.send(180)
    second.send(180)
    one.send(486)
    first.send(486)
    other.send(200)
    second.send(200)
    other.send("BYE", "BYE", by=1, after=3)
    second.send("BYE", "BYE", by=1)
    ledger = told(traffic, lines)
    assert statuses(ledger, "in") == {"a received": MISSED}
    assert statuses(ledger, "in2") == {"b received": ["initiated", "ringing", "answered", "hung_up"]}
    assert len(ledger.told) == 2


def test_nobody_is_told_of_a_call_because_it_waits():
    """Who hunts for a member rings the second one while the same caller calls another client's number."""
    traffic = Traffic()
    call = received(traffic)
    reached(traffic, call_id="first").send(180)
    call.send(180)
    other = received(traffic, call_id="other", called=OUTSIDE)
    reached(traffic, "2001", destination=OTHER).send(180).send(486)
    other.send(480)
    call.send(480)
    ledger = told(traffic, LineBook.of([*(parse_line(*line) for line in OWNED), parse_line("beta", "ramais", "2001")]))
    assert statuses(ledger, "leg") == {"beta received": MISSED}
    assert statuses(ledger, "other") == {}


def test_a_dialler_that_tries_again_at_once_makes_two_calls():
    """Each with its own legs, and its own end."""
    traffic = Traffic()
    for attempt, code in enumerate((486, 480)):
        call = received(traffic, caller=DID, called=OUTSIDE, call_id=f"try{attempt}")
        leg = reached(traffic, OUTSIDE, DID, call_id=f"leg{attempt}", destination=CARRIER).send(180)
        call.send(180)
        leg.send(code)
        call.send(code)
    ledger = told(traffic)
    assert statuses(ledger, "try0") == {"zeta made": MISSED}
    assert statuses(ledger, "try1") == {"zeta made": ["initiated", "ringing", "no_answer"]}
    assert len(ledger.told) == 2


def test_a_caller_who_is_called_back_meanwhile():
    traffic = Traffic()
    call = received(traffic).send(200)
    reached(traffic, MOBILE, DID, destination=CARRIER).send(180).send(486)
    call.send("BYE", "BYE", after=3)
    assert statuses(told(traffic), "leg") == {"zeta made": MISSED}


class Behind:
    """A switch behind a proxy, both of which mirror: what passes between them is seen twice."""

    def __init__(self, caller: str = MOBILE) -> None:
        self.traffic = Traffic()
        agents = ("carrier", "proxy")
        self.call = (
            self.traffic.leg("in", caller, DID, CARRIER, PROXY, agents=agents).begin(),
            self.traffic.leg("in", caller, DID, PROXY, SWITCH, agents=("carrier", "PBX"), vias=2).begin(),
        )
        self.leg = (
            self.traffic.leg("leg", caller, "1001", SWITCH, PROXY, agents=("PBX", "proxy")).begin(),
            self.traffic.leg("leg", caller, "1001", PROXY, PHONE, agents=("PBX", "phone"), vias=2).begin(),
        )

    def send(self, hops: tuple[Leg, ...], *what: Any, **parts: Any) -> None:
        for hop in hops:
            hop.send(*what, **parts)

    @property
    def mirrored(self) -> list[HepPacket]:
        inside = {PROXY, SWITCH}
        return [p for p in self.traffic.packets for _ in range(2 if {p.source, p.destination} == inside else 1)]


@pytest.mark.parametrize("late", range(0, 28, 3))
@pytest.mark.parametrize("caller", [MOBILE, "anonymous"])
def test_a_switch_behind_a_proxy_that_both_mirror(caller: str, late: int):
    """Whichever copy is late. Without a caller's number the telephone's own leg is told too, by the same statuses."""
    both = Behind(caller)
    both.send(both.leg, 180)
    both.send(both.call, 180)
    both.send(both.leg, 200, after=2)
    both.send(both.call, 200)
    both.send(both.leg, "BYE", "BYE", by=1, after=5)
    both.send(both.call, "BYE", "BYE", by=1)
    packets = both.mirrored
    packets.insert(late + 2, packets.pop(late))
    watcher = Watcher(LINES)
    for packet in packets:
        watcher.feed(packet)
    watcher.pass_time(timedelta(minutes=20))
    talked = ["initiated", "ringing", "answered", "hung_up"]
    found = {key: words for call in ("in", "leg") for key, words in statuses(watcher.ledger, call).items()}
    assert found == {"zeta received": talked, "acme received": talked}
    assert len({identity for identity, _, _ in watcher.ledger.told}) == (1 if caller == MOBILE else 2)
    assert watcher.ledger.refused == []
