"""From SIP messages to signals: each test plays part of a call and reads what one message says."""

from collections.abc import Iterable

import msgspec
import pytest
from tests.support.sip_messages import CALLER, DIALLED, ProxiedCall

from toque.calls.hep_packet import HepPacket
from toque.calls.model import CallIdentity, Cause, Party, Signal, SignalKind
from toque.calls.sip import parse_sip
from toque.calls.sip_dialogs import SipDialogs

K = SignalKind
IDENTITY = CallIdentity("proxy", "call@192.0.2.1 call-a")


def read(dialogs: SipDialogs, packets: Iterable[HepPacket]) -> list[Signal]:
    return [
        signal
        for packet in packets
        for signal in dialogs.read(parse_sip(packet.payload), packet.at, packet.source, packet.destination)
    ]


def kinds(signals: list[Signal]) -> list[tuple[SignalKind, str | None]]:
    """Each signal's kind, and the number of its leg (None: the caller's own)."""
    return [
        (signal.kind, signal.leg.rpartition(".")[2] if signal.leg else None) for signal in signals if signal.kind is not K.SEEN
    ]


class Playing:
    """A call, and what is read of the messages that were added since the last look."""

    def __init__(self, **parts: str) -> None:
        self.dialogs = SipDialogs("proxy")
        self.call = ProxiedCall(**parts)
        self._read = 0

    def signals(self) -> list[Signal]:
        news = self.call.packets[self._read :]
        self._read = len(self.call.packets)
        return read(self.dialogs, news)

    def kinds(self) -> list[tuple[SignalKind, str | None]]:
        return kinds(self.signals())


def playing(*steps: str) -> Playing:
    """A call that has gone so far."""
    play = Playing()
    for step in steps:
        getattr(play.call, step)()
    play.signals()
    return play


def test_an_invite_over_two_hops_is_a_call_and_its_leg():
    play = Playing(asserted="4130600300")
    play.call.numbers[0] = "1001"
    play.call.invite()
    began, leg = [signal for signal in play.signals() if signal.kind is not K.SEEN]
    assert (began.identity, began.kind, began.leg, began.at) == (IDENTITY, K.BEGAN, None, play.call.packets[0].at)
    assert (began.callers, began.dialled) == ((CALLER, "4130600300"), DIALLED)
    assert (leg.kind, leg.leg, leg.number) == (K.LEG_BEGAN, play.call.down_branch(), "1001")


def test_a_whole_call():
    play = playing("invite")
    play.call.ring()
    assert play.kinds() == [(K.RINGING, "0"), (K.RINGING, None)]
    play.call.answer()
    assert play.kinds() == [(K.ANSWERED, "0"), (K.ANSWERED, None)]
    play.call.in_dialog("BYE", by="callee", reason="Q.850;cause=16")
    ends = play.signals()
    assert kinds(ends) == [(K.HUNG_UP, None)] * 2
    assert (ends[0].by, ends[0].cause) == (Party.CALLEE, Cause(q850=16))


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [(180, "", K.RINGING), (180, "v=0", K.RINGING), (183, "v=0", K.RINGING), (183, "", None), (100, "", None)],
)
def test_what_rings(code: int, body: str, kind: SignalKind | None):
    play = playing("invite")
    play.call.up(code, body=body)
    assert play.kinds() == ([(kind, None)] if kind else [])


def test_a_refusal_of_a_leg_and_of_the_caller():
    play = playing("invite")
    play.call.down(503, reason="Q.850;cause=34")
    play.call.up(500)
    leg, root = play.signals()
    assert (leg.kind, leg.cause) == (K.LEG_ENDED, Cause(503, 34, "Service Unavailable"))
    assert (root.kind, root.cause) == (K.REFUSED, Cause(500, None, "Server Internal Error"))


@pytest.mark.parametrize("message", ["INVITE", "CANCEL"])
def test_requests_are_told_apart_by_hop(message: str):
    play = playing() if message == "INVITE" else playing("invite")
    play.call.up(message)
    play.call.down(message)
    expected = {"INVITE": [(K.BEGAN, None), (K.LEG_BEGAN, "0")], "CANCEL": [(K.GAVE_UP, None), (K.LEG_CANCELLED, "0")]}
    assert play.kinds() == expected[message]


def test_the_answer_to_a_cancel_says_the_same():
    play = playing("invite")
    play.call.up(200, to="CANCEL")
    play.call.down(200, to="CANCEL")
    play.call.up(481, to="CANCEL")
    assert play.kinds() == [(K.GAVE_UP, None), (K.LEG_CANCELLED, "0")]


def test_a_cancel_with_a_branch_of_its_own_is_the_callers_by_address():
    play = playing("invite")
    play.call.up("CANCEL")
    play.call.packets[-1].payload = play.call.packets[-1].payload.replace(b"z9hG4bK-", b"z9hG4bK-other-")
    assert play.kinds() == [(K.GAVE_UP, None)]


@pytest.mark.parametrize("by", ["caller", "callee"])
def test_the_cancel_of_a_reinvite_says_nothing(by: str):
    play = playing("invite", "answer")
    play.call.in_dialog("INVITE", by=by)
    play.call.in_dialog("CANCEL", by=by, cseq=play.call.dialog_cseq)
    play.call.dialog_answer(487, "INVITE", by=by)
    assert play.kinds() == []


def test_a_cancel_between_others_says_nothing():
    play = playing("invite")
    play.call.down("CANCEL", 7)
    assert play.kinds() == []


def test_the_ack_of_a_refusal_tells_of_it():
    play = playing("invite")
    play.call.down("ACK")
    play.call.up("ACK")
    signals = play.signals()
    assert kinds(signals) == [(K.LEG_ENDED, "0"), (K.REFUSED, None)]
    assert {signal.cause for signal in signals} == {None}


def test_the_ack_of_an_answer_tells_nothing():
    play = playing("invite", "answer")
    play.call.up("ACK")  # some telephones give it the INVITE's branch
    assert play.kinds() == []


def test_an_unknown_ack_begins_nothing():
    play = Playing()
    play.call.up("ACK")
    assert play.kinds() == []
    assert len(play.dialogs) == 0


@pytest.mark.parametrize("message", ["INVITE", "CANCEL", 100, 180, 486])
def test_repetitions_of_an_invite_begin_nothing(message: str | int):
    play = playing("invite")
    play.call.up(message)
    once = play.kinds()
    play.call.up(message)
    assert play.kinds() == once
    assert not {K.BEGAN, K.BEGAN_AGAIN} & {kind for kind, _ in once}


def test_messages_that_belong_to_no_call_begin_nothing():
    play = Playing()
    play.call.in_dialog("UPDATE")
    play.call.dialog_answer(200, "UPDATE")
    play.call.up(183)
    play.call.up(100, to_tag="b")
    play.call.dialog_answer(200, "BYE")
    play.call.in_dialog("CANCEL")
    play.call.up(200, to="CANCEL")
    play.call.up("OPTIONS")
    assert play.kinds() == []
    assert len(play.dialogs) == 0


def test_in_dialog_requests_are_signs_of_life():
    play = playing("invite", "answer")
    for method in ("UPDATE", "INFO", "PRACK", "REFER", "NOTIFY", "MESSAGE", "OPTIONS"):
        play.call.in_dialog(method, by="callee")
    assert {signal.kind for signal in play.signals()} == {K.SEEN}


# Attempts


def test_the_next_attempt():
    play = playing("invite")
    play.call.fail(407)
    assert play.kinds() == [(K.LEG_ENDED, "0"), (K.LEG_ENDED, "0"), (K.REFUSED, None)]
    play.call.try_again()
    assert play.kinds() == [(K.BEGAN_AGAIN, None), (K.LEG_BEGAN, "0")]


def test_what_is_left_of_an_earlier_attempt_says_nothing():
    play = playing("invite", "try_again")
    play.call.attempt = 1
    play.call.down(407)
    play.call.up(407)
    play.call.up("ACK")
    play.call.up("INVITE")
    play.call.down("INVITE")
    assert play.kinds() == []


def test_the_next_attempt_is_known_by_its_responses_too():
    play = playing("invite")
    play.call.refuse(407)
    play.signals()
    play.call.attempt = 2
    play.call.up(180)
    play.call.up("INVITE")
    assert play.kinds() == [(K.BEGAN_AGAIN, None), (K.RINGING, None), (K.BEGAN, None)]


def test_a_new_call_under_the_same_name():
    play = playing("invite", "answer", "hang_up")
    play.call.attempt = 2
    play.call.invite()
    assert play.kinds() == [(K.BEGAN_AGAIN, None), (K.LEG_BEGAN, "0")]
    play.call.answer()
    assert play.kinds() == [(K.ANSWERED, "0"), (K.ANSWERED, None)]


def test_the_number_of_hops_is_bounded():
    play = playing("invite")
    for leg in range(1, 300):
        play.call.down("INVITE", leg)
    assert len(play.kinds()) == 126
    assert play.dialogs.export(IDENTITY)


@pytest.mark.parametrize("what", [200, "BYE"])
def test_the_number_of_tags_is_bounded(what: int | str):
    play = playing("invite", "answer")
    for number in range(300):
        if what == 200:
            play.call.up(200, to_tag=f"b{number}")
        else:
            play.call.in_dialog("BYE", leg=number + 1)
    play.signals()
    assert len(play.dialogs.export(IDENTITY)) < 10_000


# Lost and late messages


def test_the_callee_hop_may_come_first():
    play = Playing()
    play.call.numbers[0] = "1001"
    play.call.invite()
    up, down = play.call.packets[0], play.call.packets[2]
    first, began, leg = read(play.dialogs, [down, up])
    assert (first.kind, first.dialled) == (K.BEGAN, "1001")
    assert (began.kind, began.dialled) == (K.BEGAN, DIALLED)
    assert (leg.kind, leg.leg, leg.number) == (K.LEG_BEGAN, play.call.down_branch(), "1001")


@pytest.mark.parametrize(
    ("answer", "first"),
    [(100, K.BEGAN), (180, K.RINGING), (200, K.ANSWERED), (486, K.REFUSED)],
)
def test_an_invite_may_come_after_its_responses(answer: int, first: SignalKind):
    play = Playing()
    play.call.up(answer)
    assert play.kinds() == [(first, None)]
    play.call.up("INVITE")
    assert play.kinds() == [(K.BEGAN, None)]
    play.call.up("INVITE")
    assert play.kinds() == []


def test_a_leg_may_be_known_by_its_responses():
    play = Playing()
    play.call.up("INVITE")
    play.call.down(180)
    play.call.down("INVITE")
    assert play.kinds() == [(K.BEGAN, None), (K.RINGING, "0"), (K.LEG_BEGAN, "0")]


def test_the_callers_hop_may_be_known_by_its_responses():
    play = Playing()
    play.call.down("INVITE")
    play.call.up(100)
    play.call.down(486)
    play.call.up(486)
    assert play.kinds() == [(K.BEGAN, None), (K.LEG_BEGAN, "0"), (K.LEG_ENDED, "0"), (K.REFUSED, None)]


def test_a_cancel_from_above_what_was_taken_for_the_root():
    play = Playing()
    play.call.down("INVITE")
    play.call.up("CANCEL")
    assert play.kinds() == [(K.BEGAN, None), (K.GAVE_UP, None)]


def test_three_proxies_in_a_row_in_any_order():
    play = Playing()
    play.call.invite()
    up, down = play.call.packets[0], play.call.packets[2]
    further = HepPacket(
        down.payload.replace(b"Via:", b"Via: SIP/2.0/UDP 192.0.2.3;branch=z9hG4bKfar\r\nVia:", 1),
        1,
        down.at,
        "192.0.2.3:5060",
        "192.0.2.4:5060",
    )
    signals = read(play.dialogs, [further, up, down])
    assert [signal.kind for signal in signals] == [K.BEGAN, K.BEGAN, K.LEG_BEGAN, K.LEG_BEGAN]
    assert [signal.leg for signal in signals[2:]] == ["z9hG4bKfar", play.call.down_branch()]


def test_hops_that_hide_their_vias_are_legs_all_the_same():
    play = playing("invite")
    play.call.down("INVITE", 5)
    play.call.packets[-1].payload = play.call.packets[-1].payload.replace(play.call.up_branch().encode(), b"hidden")
    assert play.kinds() == [(K.LEG_BEGAN, "5")]


def without_vias(packet: HepPacket) -> HepPacket:
    packet.payload = b"\r\n".join(line for line in packet.payload.split(b"\r\n") if not line.startswith(b"Via"))
    return packet


def test_a_response_without_vias_is_known_by_whom_it_is_sent_to():
    play = playing("invite")
    without_vias(play.call.down(486))
    without_vias(play.call.up(486))
    assert play.kinds() == [(K.LEG_ENDED, "0"), (K.REFUSED, None)]


def test_an_old_response_without_vias_says_nothing():
    play = playing("invite", "try_again")
    play.call.attempt = 1
    without_vias(play.call.up(407))
    assert play.kinds() == []


def test_telephones_older_than_branches():
    play = Playing()
    for message in ("INVITE", 180, 486, "ACK"):
        play.call.up(message)
        play.call.packets[-1].payload = play.call.packets[-1].payload.replace(b";branch=" + play.call.up_branch().encode(), b"")
    assert play.kinds() == [(K.BEGAN, None), (K.RINGING, None), (K.REFUSED, None)]


# Inside the dialog


@pytest.mark.parametrize("by", ["caller", "callee"])
@pytest.mark.parametrize("code", [100, 180, 200, 408, 481, 487, 488, 491, 500])
def test_a_reinvite_and_its_answer_change_nothing(by: str, code: int):
    play = playing("invite", "answer")
    play.call.in_dialog("INVITE", by=by, body="v=0")
    play.call.dialog_answer(code, "INVITE", by=by)
    play.call.in_dialog("ACK", by=by, cseq=play.call.dialog_cseq)
    assert play.kinds() == []
    play.call.hang_up(by=by)
    assert {kind for kind, _ in play.kinds()} == {K.HUNG_UP}


def test_a_reinvite_proves_an_answer_that_was_lost():
    play = playing("invite", "ring")
    play.call.in_dialog("INVITE")
    assert play.kinds() == [(K.ANSWERED, None)]


@pytest.mark.parametrize("by", ["caller", "callee"])
def test_a_call_first_seen_at_a_reinvite(by: str):
    play = Playing()
    play.call.in_dialog("INVITE", by=by)
    play.call.dialog_answer(488, "INVITE", by=by)
    play.call.in_dialog("BYE", by="caller")
    signals = [signal for signal in play.signals() if signal.kind is not K.SEEN]
    assert [signal.kind for signal in signals] == [K.ANSWERED, K.HUNG_UP, K.HUNG_UP]
    assert {(s.identity, s.callers, s.dialled) for s in signals} == {(IDENTITY, (CALLER,), DIALLED)}


@pytest.mark.parametrize("by", ["caller", "callee"])
def test_a_call_first_seen_at_its_bye(by: str):
    play = Playing()
    play.call.in_dialog("BYE", by=by)
    first, _ = play.signals()
    assert (first.identity, first.kind, first.by) == (IDENTITY, K.HUNG_UP, Party(by))
    assert (first.callers, first.dialled) == ((CALLER,), DIALLED)


@pytest.mark.parametrize("method", ["BYE", "INVITE"])
def test_the_copy_that_a_proxy_sends_on_does_not_say_who_called(method: str):
    play = Playing()
    play.call.in_dialog(method, by="callee")
    assert read(play.dialogs, play.call.packets[1:]) == []


def test_a_bye_of_one_of_two_answers_leaves_the_call_up():
    play = playing("invite", "fork", "answer")
    play.call.answer(1)
    play.signals()
    play.call.in_dialog("BYE", leg=1)
    assert play.kinds() == [(K.LEG_HUNG_UP, None)] * 2
    play.call.in_dialog("BYE", by="callee", leg=0)
    assert play.kinds() == [(K.HUNG_UP, None)] * 2


def test_an_answer_seen_after_its_bye_is_not_up_again():
    play = playing("invite", "fork", "answer")
    play.call.in_dialog("BYE", leg=1)
    play.call.answer(1)
    play.signals()
    play.call.in_dialog("BYE", leg=0)
    assert play.kinds() == [(K.HUNG_UP, None)] * 2


@pytest.mark.parametrize(("code", "ends"), [(200, True), (408, True), (481, True), (401, False), (500, False)])
def test_an_answer_to_a_bye(code: int, ends: bool):
    play = playing("invite", "answer")
    play.call.dialog_answer(code, "BYE")
    assert (K.HUNG_UP in {kind for kind, _ in play.kinds()}) is ends


def test_a_response_after_the_bye_begins_nothing():
    play = playing("invite", "answer")
    play.call.in_dialog("INVITE")
    cseq = play.call.dialog_cseq
    play.call.hang_up(by="callee")
    play.signals()
    play.call.dialog_answer(487, "INVITE", cseq=cseq)
    assert play.kinds() == []


# State


def test_dialogs_go_on_from_their_state():
    play = playing("invite", "fork", "answer")
    again = SipDialogs("proxy")
    again.restore(play.dialogs.export(IDENTITY))
    assert again.export(IDENTITY) == play.dialogs.export(IDENTITY)
    before = len(play.call.packets)
    play.call.answer(1)
    play.call.hang_up(leg=1)
    play.call.hang_up(leg=0)
    rest = play.call.packets[before:]
    assert read(again, rest) == read(play.dialogs, rest)


def test_nothing_is_exported_of_an_unknown_call_and_nothing_restored_of_it():
    dialogs = SipDialogs("proxy")
    assert dialogs.export(IDENTITY) == b""
    dialogs.restore(b"")
    assert len(dialogs) == 0


def test_a_forgotten_call_is_gone():
    play = playing("invite")
    play.dialogs.forget(IDENTITY)
    play.dialogs.forget(IDENTITY)
    assert len(play.dialogs) == 0


def test_foreign_state_is_refused():
    with pytest.raises(msgspec.DecodeError):
        SipDialogs("proxy").restore(b"\x80")
