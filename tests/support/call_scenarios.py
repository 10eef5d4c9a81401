"""Calls with the statuses that their owners must be told: one table for the tests of every layer.

A script adds messages to a `ProxiedCall` in the order in which they are seen. Between what the network does at once (a cluster) and
what people do, at least 0.3 s pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.support.sip_messages import ProxiedCall

from toque.calls.hep_packet import HepPacket
from toque.calls.model import Party

MOBILE = "5511966660003"  # where calls are forwarded to; nobody's line


@dataclass(frozen=True)
class Scenario:
    """What happens, and what is told; `by` and `sip` belong to the end."""

    script: Callable[[ProxiedCall], None]
    words: tuple[str, ...]
    by: Party | None = None
    sip: int | None = None
    q850: int | None = None
    is_inferred: bool = False

    def play(self, call: ProxiedCall) -> ProxiedCall:
        self.script(call)
        return call


CALLER, CALLEE, NETWORK = Party.CALLER, Party.CALLEE, Party.NETWORK
BEGAN = ("initiated",)
RANG = ("initiated", "ringing")
TALKED = ("initiated", "ringing", "answered", "hung_up")


def answered(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.answer()
    call.hang_up()


def answered_callee_hangs_up(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.answer()
    call.hang_up("callee")


def answered_without_ringing(call: ProxiedCall) -> None:
    call.invite()
    call.answer(after=1)
    call.hang_up()


def answered_with_early_media(call: ProxiedCall) -> None:
    call.invite()
    call.ring(code=183, body="v=0\r\n")
    call.ring(code=180)
    call.answer()
    call.hang_up()


def busy(call: ProxiedCall) -> None:
    call.invite()
    call.fail(486)


def busy_after_ringing(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.fail(486, after=4)


def no_answer(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.fail(480, after=20)


def no_answer_after_early_media(call: ProxiedCall) -> None:
    call.invite()
    call.ring(code=183, body="v=0\r\n")
    call.fail(480, after=20)


def unreachable(call: ProxiedCall) -> None:
    call.invite()
    call.fail(480)


def unreachable_after_progress_without_media(call: ProxiedCall) -> None:
    call.invite()
    call.ring(code=183)
    call.fail(480)


def ring_timeout(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.refuse(408, after=60, to_tag="proxy")
    call.stop_leg()


def ring_timeout_leg_first(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.stop_leg(after=60)
    call.refuse(408, to_tag="proxy")


def ring_timeout_told_as_487(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.stop_leg(after=60)
    call.refuse(487)


def ring_timeout_of_a_leg_gone_silent(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.down("CANCEL", after=60)
    call.refuse(408, to_tag="proxy")


def silent_callee(call: ProxiedCall) -> None:
    call.up("INVITE")
    call.up(100)
    call.down("INVITE")
    call.down("INVITE", after=0.5)
    call.down("INVITE", after=1)
    call.refuse(408, after=5, to_tag="proxy")


def cancelled(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.cancel()


def cancelled_before_ringing(call: ProxiedCall) -> None:
    call.invite()
    call.cancel(after=0.5)


def cancel_seen_after_its_487(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.down("CANCEL", after=3)
    call.down(200, to="CANCEL")
    call.end_leg(487, after=0)
    call.up(487)
    call.up("CANCEL", after=0.02)
    call.up(200, to="CANCEL")
    call.up("ACK")


def cancelled_ack_before_487(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.up("CANCEL", after=3)
    call.up(200, to="CANCEL")
    call.down("CANCEL")
    call.down("ACK")
    call.down(487)
    call.down(200, to="CANCEL")
    call.up("ACK")
    call.up(487)


def cancelled_never_refused(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.up("CANCEL", after=3)
    call.down("CANCEL")


def cancel_crosses_answer(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.down(200, after=3)
    call.up("CANCEL")
    call.up(200)
    call.up(200, to="CANCEL")
    call.in_dialog("ACK", cseq=1)
    call.hang_up(after=0.4)


def cancel_crosses_busy(call: ProxiedCall) -> None:
    """The caller gave up before it was told."""
    call.invite()
    call.ring()
    call.up("CANCEL", after=3)
    call.down(486)
    call.up(200, to="CANCEL")
    call.up(486)


def declined(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.fail(603, after=2)


def forbidden(call: ProxiedCall) -> None:
    call.up("INVITE")
    call.refuse(403, to_tag="proxy")


def not_found(call: ProxiedCall) -> None:
    call.invite()
    call.fail(404, after=0.02)


def not_found_by_the_proxy(call: ProxiedCall) -> None:
    call.up("INVITE")
    call.refuse(404, to_tag="proxy")


def congestion_told_as_500(call: ProxiedCall) -> None:
    call.invite()
    call.end_leg(503, after=0.02)
    call.refuse(500)


def failed(call: ProxiedCall) -> None:
    call.invite()
    call.fail(500)


def busy_inside_480(call: ProxiedCall) -> None:
    call.invite()
    call.fail(480, reason='Q.850;cause=17;text="User busy"')


def challenged_401(call: ProxiedCall) -> None:
    call.up("INVITE")
    call.refuse(401, to_tag="proxy")
    call.try_again()
    call.ring()
    call.answer()
    call.hang_up()


def challenged_407(call: ProxiedCall) -> None:
    call.up("INVITE")
    call.refuse(407, to_tag="proxy")
    call.try_again()
    call.ring()
    call.fail(486)


def challenged_by_the_callee(call: ProxiedCall) -> None:
    call.invite()
    call.fail(407, after=0.01)
    call.try_again()
    call.ring()
    call.answer()
    call.hang_up()


def challenge_acknowledged_late(call: ProxiedCall) -> None:
    call.up("INVITE")
    call.up(401, to_tag="proxy")
    ack = call.up("ACK", to_tag="proxy")
    call.packets.remove(ack)
    call.try_again(after=0.01)
    call.packets.append(ack)
    call.ring()
    call.answer()
    call.hang_up()


def challenge_seen_late(call: ProxiedCall) -> None:
    """The 407 is mirrored after the INVITE that it brought about."""
    call.up("INVITE")
    challenge = call.up(407, to_tag="proxy")
    call.packets.remove(challenge)
    call.try_again(after=0.01)
    call.packets.append(challenge)
    call.ring()
    call.answer()
    call.hang_up()


def challenge_not_answered(call: ProxiedCall) -> None:
    call.up("INVITE")
    call.refuse(407, to_tag="proxy")


def challenged_twice(call: ProxiedCall) -> None:
    """Wrong credentials."""
    call.up("INVITE")
    call.refuse(407, to_tag="proxy")
    call.attempt = 2
    call.up("INVITE", after=0.05)
    call.refuse(403, to_tag="proxy")


def challenged_then_cancelled(call: ProxiedCall) -> None:
    call.up("INVITE")
    call.refuse(407, to_tag="proxy")
    call.try_again()
    call.ring()
    call.cancel()


def redirected_and_followed(call: ProxiedCall) -> None:
    call.invite()
    call.fail(302, after=0.01)
    call.numbers[0] = MOBILE
    call.try_again(after=1)
    call.ring()
    call.answer()
    call.hang_up()


def redirected_not_followed(call: ProxiedCall) -> None:
    call.invite()
    call.fail(302, after=0.01)


def redirection_followed_by_the_proxy(call: ProxiedCall) -> None:
    call.invite()
    call.end_leg(302, after=0.01)
    call.numbers[1] = MOBILE
    call.fork(1)
    call.ring(1)
    call.end_leg(486, 1, after=4)
    call.refuse(486)


def forked_one_answers(call: ProxiedCall) -> None:
    call.invite()
    call.fork(1)
    call.ring(0)
    call.ring(1)
    call.answer(1)
    call.stop_leg(0)
    call.hang_up(leg=1)


def forked_all_busy(call: ProxiedCall) -> None:
    call.invite()
    call.fork(1)
    call.end_leg(486, 0)
    call.end_leg(486, 1)
    call.refuse(486)


def forked_one_declines_for_all(call: ProxiedCall) -> None:
    """A 6xx ends every leg (RFC 3261, 16.7)."""
    call.invite()
    call.fork(1)
    call.ring(0)
    call.ring(1)
    call.end_leg(603, 1, after=2)
    call.stop_leg(0)
    call.refuse(603)


def forked_cancelled(call: ProxiedCall) -> None:
    call.invite()
    call.fork(1)
    call.ring(0)
    call.ring(1)
    call.up("CANCEL", after=3)
    call.up(200, to="CANCEL")
    call.stop_leg(0)
    call.stop_leg(1)
    call.refuse(487)


def serial_busy_then_answered(call: ProxiedCall) -> None:
    call.invite()
    call.end_leg(486)
    call.fork(1)
    call.ring(1)
    call.answer(1)
    call.hang_up("callee", leg=1)


def serial_rang_out_then_busy(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.stop_leg(after=20)
    call.fork(1)
    call.end_leg(486, 1)
    call.refuse(486)


def serial_rang_out_silently_then_busy(call: ProxiedCall) -> None:
    """The first telephone lost its network while it rang: it never confirms the CANCEL."""
    call.invite()
    call.ring()
    call.down("CANCEL", after=20)
    call.fork(1)
    call.end_leg(486, 1)
    call.refuse(486)


def serial_busy_then_rang_out(call: ProxiedCall) -> None:
    call.invite()
    call.end_leg(486)
    call.fork(1)
    call.ring(1)
    call.end_leg(480, 1, after=20)
    call.refuse(486)


def answered_twice(call: ProxiedCall) -> None:
    """Both legs answer; the caller keeps the first and drops the second."""
    call.invite()
    call.fork(1)
    call.ring(0)
    call.ring(1)
    call.answer(0)
    call.answer(1, after=0)
    call.hang_up(leg=1, after=0.4)
    call.hang_up("callee", leg=0)


def reinvited(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.answer()
    call.in_dialog("INVITE", by="callee", after=5, body="v=0\r\n")
    call.dialog_answer(200, "INVITE", by="callee")
    call.in_dialog("ACK", by="callee")
    call.in_dialog("INVITE", by="caller", after=5, body="v=0\r\n")
    call.dialog_answer(200, "INVITE", by="caller")
    call.in_dialog("ACK", by="caller")
    call.hang_up()


def reinvites_refused(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.answer()
    for by in ("caller", "callee"):
        for code in (488, 491, 408, 481, 487, 603):
            call.in_dialog("INVITE", by=by, after=2)
            call.dialog_answer(100, "INVITE", by=by)
            call.dialog_answer(code, "INVITE", by=by)
            call.in_dialog("ACK", by=by, cseq=call.dialog_cseq)
    call.in_dialog("UPDATE", by="callee", after=2)
    call.dialog_answer(488, "UPDATE", by="callee")
    call.hang_up("callee")


def hung_up_while_reinviting(call: ProxiedCall) -> None:
    """The re-INVITE is answered, late and in vain, after the BYE."""
    call.invite()
    call.ring()
    call.answer()
    call.in_dialog("INVITE", by="caller", after=5)
    cseq = call.dialog_cseq
    call.hang_up("callee", after=0.4)
    call.dialog_answer(487, "INVITE", by="caller", cseq=cseq, after=0.5)


def hung_up_with_reason(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.answer()
    call.hang_up("callee", reason="Q.850;cause=31")


def hung_up_answer_lost(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.hang_up(after=10)


def answer_lost_reinvite_seen(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.in_dialog("INVITE", by="callee", after=5)
    call.dialog_answer(200, "INVITE", by="callee")
    call.hang_up(after=10)


def hung_up_seen_before_the_answer(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.answer()
    late = [p for p in call.packets if p.payload.startswith(b"SIP/2.0 200")]
    call.packets = [p for p in call.packets if p not in late]
    call.hang_up(after=0.01)
    call.packets += late


def hung_up_by_bye_before_any_answer(call: ProxiedCall) -> None:
    """RFC 3261, 15: a caller may end an early dialog with BYE; the INVITE is then refused with 487."""
    call.invite()
    call.ring()
    call.hang_up(after=3)
    call.end_leg(487, after=0)
    call.refuse(487)


def answer_seen_before_ringing(call: ProxiedCall) -> None:
    call.invite()
    call.answer(after=0.3)
    call.ring(after=0)
    call.hang_up()


def callee_hop_seen_first(call: ProxiedCall) -> None:
    call.invite()
    call.packets = call.packets[2:] + call.packets[:2]
    call.ring()
    call.end_leg(503)
    call.refuse(500)


def trying_seen_before_its_invite(call: ProxiedCall) -> None:
    call.invite()
    call.packets.sort(key=lambda packet: packet.payload.startswith(b"INVITE"))
    call.ring()
    call.fail(480, after=5)


def refusal_seen_before_its_invite(call: ProxiedCall) -> None:
    call.up("INVITE")
    call.refuse(404, to_tag="proxy")
    call.packets.reverse()


def refusal_without_via(call: ProxiedCall) -> None:
    """Some switches mirror a response after its last Via was taken off."""
    call.invite()
    call.ring()
    call.cancel()
    call.packets = [_without_via(packet) if b"487 " in packet.payload and packet.source == "192.0.2.2:5060" else packet
                    for packet in call.packets]  # fmt: skip


def _without_via(packet: HepPacket) -> HepPacket:
    lines = packet.payload.split(b"\r\n")
    return replace(packet, payload=b"\r\n".join(line for line in lines if not line.startswith(b"Via:")))


def end_never_seen(call: ProxiedCall) -> None:
    call.invite()
    call.ring()
    call.answer()


def nothing_more_seen(call: ProxiedCall) -> None:
    call.invite()
    call.ring()


SCENARIOS = {
    "answered": Scenario(answered, TALKED, by=CALLER),
    "answered_callee_hangs_up": Scenario(answered_callee_hangs_up, TALKED, by=CALLEE),
    "answered_without_ringing": Scenario(answered_without_ringing, ("initiated", "answered", "hung_up"), by=CALLER),
    "answered_with_early_media": Scenario(answered_with_early_media, TALKED, by=CALLER),
    "busy": Scenario(busy, (*BEGAN, "busy"), by=CALLEE, sip=486),
    "busy_after_ringing": Scenario(busy_after_ringing, (*RANG, "busy"), by=CALLEE, sip=486),
    "no_answer": Scenario(no_answer, (*RANG, "no_answer"), sip=480),
    "no_answer_after_early_media": Scenario(no_answer_after_early_media, (*RANG, "no_answer"), sip=480),
    "unreachable": Scenario(unreachable, (*BEGAN, "unreachable"), sip=480),
    "unreachable_after_progress_without_media": Scenario(
        unreachable_after_progress_without_media, (*BEGAN, "unreachable"), sip=480
    ),
    "ring_timeout": Scenario(ring_timeout, (*RANG, "no_answer"), by=NETWORK, sip=408),
    "ring_timeout_leg_first": Scenario(ring_timeout_leg_first, (*RANG, "no_answer"), by=NETWORK, sip=408),
    "ring_timeout_told_as_487": Scenario(ring_timeout_told_as_487, (*RANG, "no_answer"), by=NETWORK, sip=487),
    "ring_timeout_of_a_leg_gone_silent": Scenario(
        ring_timeout_of_a_leg_gone_silent, (*RANG, "no_answer"), by=NETWORK, sip=408
    ),
    "silent_callee": Scenario(silent_callee, (*BEGAN, "unreachable"), sip=408),
    "cancelled": Scenario(cancelled, (*RANG, "cancelled"), by=CALLER, sip=487),
    "cancelled_before_ringing": Scenario(cancelled_before_ringing, (*BEGAN, "cancelled"), by=CALLER, sip=487),
    "cancel_seen_after_its_487": Scenario(cancel_seen_after_its_487, (*RANG, "cancelled"), by=CALLER, sip=487),
    "cancelled_ack_before_487": Scenario(cancelled_ack_before_487, (*RANG, "cancelled"), by=CALLER, sip=487),
    "cancelled_never_refused": Scenario(cancelled_never_refused, (*RANG, "cancelled"), by=CALLER, is_inferred=True),
    "cancel_crosses_answer": Scenario(cancel_crosses_answer, TALKED, by=CALLER),
    "cancel_crosses_busy": Scenario(cancel_crosses_busy, (*RANG, "cancelled"), by=CALLER, sip=486),
    "declined": Scenario(declined, (*RANG, "rejected"), by=CALLEE, sip=603),
    "forbidden": Scenario(forbidden, (*BEGAN, "rejected"), by=NETWORK, sip=403),
    "not_found": Scenario(not_found, (*BEGAN, "invalid_number"), by=NETWORK, sip=404),
    "not_found_by_the_proxy": Scenario(not_found_by_the_proxy, (*BEGAN, "invalid_number"), by=NETWORK, sip=404),
    "congestion_told_as_500": Scenario(congestion_told_as_500, (*BEGAN, "congestion"), by=NETWORK, sip=503),
    "failed": Scenario(failed, (*BEGAN, "failed"), by=NETWORK, sip=500),
    "busy_inside_480": Scenario(busy_inside_480, (*BEGAN, "busy"), by=CALLEE, sip=480, q850=17),
    "challenged_401": Scenario(challenged_401, TALKED, by=CALLER),
    "challenged_407": Scenario(challenged_407, (*RANG, "busy"), by=CALLEE, sip=486),
    "challenged_by_the_callee": Scenario(challenged_by_the_callee, TALKED, by=CALLER),
    "challenge_acknowledged_late": Scenario(challenge_acknowledged_late, TALKED, by=CALLER),
    "challenge_seen_late": Scenario(challenge_seen_late, TALKED, by=CALLER),
    "challenge_not_answered": Scenario(challenge_not_answered, (*BEGAN, "rejected"), by=NETWORK, sip=407),
    "challenged_twice": Scenario(challenged_twice, (*BEGAN, "rejected"), by=NETWORK, sip=403),
    "challenged_then_cancelled": Scenario(challenged_then_cancelled, (*RANG, "cancelled"), by=CALLER, sip=487),
    "redirected_and_followed": Scenario(redirected_and_followed, TALKED, by=CALLER),
    "redirected_not_followed": Scenario(redirected_not_followed, (*BEGAN, "invalid_number"), by=NETWORK, sip=302),
    "redirection_followed_by_the_proxy": Scenario(redirection_followed_by_the_proxy, (*RANG, "busy"), by=CALLEE, sip=486),
    "forked_one_answers": Scenario(forked_one_answers, TALKED, by=CALLER),
    "forked_all_busy": Scenario(forked_all_busy, (*BEGAN, "busy"), by=CALLEE, sip=486),
    "forked_one_declines_for_all": Scenario(forked_one_declines_for_all, (*RANG, "rejected"), by=CALLEE, sip=603),
    "forked_cancelled": Scenario(forked_cancelled, (*RANG, "cancelled"), by=CALLER, sip=487),
    "serial_busy_then_answered": Scenario(serial_busy_then_answered, TALKED, by=CALLEE),
    "serial_rang_out_then_busy": Scenario(serial_rang_out_then_busy, (*RANG, "no_answer"), by=NETWORK, sip=487),
    "serial_rang_out_silently_then_busy": Scenario(
        serial_rang_out_silently_then_busy, (*RANG, "no_answer"), by=NETWORK, sip=486
    ),
    "serial_busy_then_rang_out": Scenario(serial_busy_then_rang_out, (*RANG, "no_answer"), sip=480),
    "answered_twice": Scenario(answered_twice, TALKED, by=CALLEE),
    "reinvited": Scenario(reinvited, TALKED, by=CALLER),
    "reinvites_refused": Scenario(reinvites_refused, TALKED, by=CALLEE),
    "hung_up_while_reinviting": Scenario(hung_up_while_reinviting, TALKED, by=CALLEE),
    "hung_up_with_reason": Scenario(hung_up_with_reason, TALKED, by=CALLEE, q850=31),
    "hung_up_answer_lost": Scenario(hung_up_answer_lost, TALKED, by=CALLER),
    "answer_lost_reinvite_seen": Scenario(answer_lost_reinvite_seen, TALKED, by=CALLER),
    "hung_up_seen_before_the_answer": Scenario(hung_up_seen_before_the_answer, TALKED, by=CALLER),
    "hung_up_by_bye_before_any_answer": Scenario(hung_up_by_bye_before_any_answer, (*RANG, "cancelled"), by=CALLER, sip=487),
    "answer_seen_before_ringing": Scenario(answer_seen_before_ringing, ("initiated", "answered", "hung_up"), by=CALLER),
    "callee_hop_seen_first": Scenario(callee_hop_seen_first, (*RANG, "congestion"), by=NETWORK, sip=503),
    "trying_seen_before_its_invite": Scenario(trying_seen_before_its_invite, (*RANG, "no_answer"), sip=480),
    "refusal_seen_before_its_invite": Scenario(refusal_seen_before_its_invite, (*BEGAN, "invalid_number"), by=NETWORK, sip=404),
    "refusal_without_via": Scenario(refusal_without_via, (*RANG, "cancelled"), by=CALLER, sip=487),
    "end_never_seen": Scenario(end_never_seen, TALKED, is_inferred=True),
    "nothing_more_seen": Scenario(nothing_more_seen, (*RANG, "failed"), is_inferred=True),
}  # fmt: skip
