"""The lab's scenarios: who does what with which SIPp script, and what is true about the call afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

CALLER = "5541988880001"
CALLEE = "5511977770002"
MOVED_TO = "5511977770003"
AUTH_USER = "auth1"
AUTH_PASSWORD = "lab-only"

# Headers by which the caller tells the proxy where to route; {{phone_1}} and {{phone_2}} are the phones' SIP URIs.
TO_FIRST = "X-Lab-Target: {{phone_1}}"
TO_SECOND = "X-Lab-Target: {{phone_2}}"
AND_SECOND = "X-Lab-Also: {{phone_2}}"
THEN_SECOND = "X-Lab-Then: {{phone_2}}"
RING_TIMEOUT = "X-Lab-Ring: {{timeout_ms}}"
REPLY_TIMEOUT = "X-Lab-Reply: {{timeout_ms}}"

ANSWERED = ("iniciou", "chamando", "atendeu", "desligou")


@dataclass(frozen=True)
class Phone:
    """A callee: its script, and the user name under which the proxy reaches it (the callee's number where None)."""

    script: str
    user: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Truth:
    """What is true about the call, from what the phones did."""

    statuses: tuple[str, ...]  # what the caller's client is told, in the wire's words
    sip: int  # the code that decided
    ended_by: Literal["origem", "destino", "rede"]
    told_caller: int  # the last final reply to an INVITE outside a dialogue on the caller's own hop
    reached: str | None = None  # who answered, where that is not the number that was dialled


@dataclass(frozen=True)
class Scenario:
    """One row of the table."""

    name: str
    about: str
    uac: str  # the caller's script
    phones: tuple[Phone, ...]
    truth: Truth
    headers: tuple[str, ...] = (TO_FIRST,)
    caller: str = CALLER
    callee: str = CALLEE
    params: Mapping[str, str] = field(default_factory=dict)  # for both sides' scripts
    calls: int = 1
    rate: int = 10  # calls a second
    lost: int = 0  # percent of the packets that the phones lose on sending
    ring_ms: int = 400
    talk_ms: int = 400


def _refused(name: str, about: str, phone: Phone, truth: Truth) -> Scenario:
    """The phone ends it with a final reply of its own."""
    params = {"code": str(truth.told_caller)}
    return Scenario(name=name, about=about, uac="uac_refused", phones=(phone,), params=params, truth=truth)


def _refuses(status: str, *, after_ringing: bool = False, user: str | None = None, reply_headers: str = "") -> Phone:
    script = "uas_ring_and_refuse" if after_ringing else "uas_refuse"
    return Phone(script, user=user, params={"status": status, "reply_headers": reply_headers})


def _answered(ended_by: Literal["origem", "destino"] = "origem", reached: str | None = None) -> Truth:
    return Truth(ANSWERED, sip=200, ended_by=ended_by, told_caller=200, reached=reached)


def _unanswered(
    *statuses: str, sip: int, ended_by: Literal["origem", "destino", "rede"] = "destino", told_caller: int | None = None
) -> Truth:
    return Truth(("iniciou", *statuses), sip=sip, ended_by=ended_by, told_caller=told_caller or sip)


_TABLE = (
    Scenario(
        name="answered_caller_hangs_up",
        about="The plain call.",
        uac="uac_call",
        phones=(Phone("uas_answer"),),
        truth=_answered(),
    ),
    Scenario(
        name="answered_callee_hangs_up",
        about="The BYE comes from the other side, with From and To exchanged.",
        uac="uac_call_until_hung_up",
        phones=(Phone("uas_answer_and_hang_up"),),
        truth=_answered("destino"),
    ),
    Scenario(
        name="early_media_183_answered",
        about="A 183 with SDP in place of a 180.",
        uac="uac_call",
        phones=(Phone("uas_early_media"),),
        truth=_answered(),
    ),
    Scenario(
        name="bye_with_reason_q850",
        about="The BYE says why: Q.850 cause 16.",
        uac="uac_call",
        phones=(Phone("uas_answer"),),
        params={"bye_headers": 'Reason: Q.850;cause=16;text="Normal call clearing"'},
        truth=_answered(),
    ),
    Scenario(
        name="reinvite_and_update",
        about="Hold by the caller's re-INVITE, an UPDATE, and off hold by the callee's re-INVITE.",
        uac="uac_hold",
        phones=(Phone("uas_hold"),),
        talk_ms=200,
        truth=_answered(),
    ),
    Scenario(
        name="reinvite_refused_488",
        about="A re-INVITE is refused; the call goes on.",
        uac="uac_reinvite_refused",
        phones=(Phone("uas_refuse_reinvite"),),
        talk_ms=200,
        truth=_answered(),
    ),
    Scenario(
        name="auth_407_answered",
        about="The proxy challenges the first INVITE; the second one carries the credentials.",
        uac="uac_auth_call",
        phones=(Phone("uas_answer"),),
        caller=AUTH_USER,
        truth=_answered(),
    ),
    Scenario(
        name="auth_407_refused",
        about="The credentials are wrong: a 407 is the last word.",
        uac="uac_auth_refused",
        phones=(),
        headers=(),
        caller=AUTH_USER,
        params={"password": "wrong"},
        truth=_unanswered("recusou", sip=407, ended_by="rede"),
    ),
    _refused(
        "busy_486",
        "Busy at once.",
        _refuses("486 Busy Here"),
        _unanswered("ocupado", sip=486),
    ),
    _refused(
        "busy_480_reason_q850_17",
        "A gateway wraps busy in a 480; the Reason header tells.",
        _refuses("480 Temporarily Unavailable", reply_headers='Reason: Q.850;cause=17;text="User busy"'),
        _unanswered("ocupado", sip=480),
    ),
    _refused(
        "no_answer_480",
        "Rings out at the callee's own timer.",
        _refuses("480 Temporarily Unavailable", after_ringing=True),
        _unanswered("chamando", "nao_atendeu", sip=480),
    ),
    _refused(
        "unreachable_480",
        "Does not even ring.",
        _refuses("480 Temporarily Unavailable"),
        _unanswered("indisponivel", sip=480),
    ),
    _refused(
        "rejected_603",
        "Rings, is declined.",
        _refuses("603 Decline", after_ringing=True),
        _unanswered("chamando", "recusou", sip=603),
    ),
    _refused(
        "congestion_503",
        "The proxy hides the callee's 503 behind a 500.",
        _refuses("503 Service Unavailable"),
        _unanswered("congestionado", sip=503, told_caller=500),
    ),
    _refused(
        "failed_500",
        "The callee's own 500: the same towards the caller as a hidden 503.",
        _refuses("500 Server Internal Error"),
        _unanswered("falhou", sip=500),
    ),
    Scenario(
        name="not_found_404",
        about="The proxy itself does not know the number: there is one hop only.",
        uac="uac_refused",
        phones=(),
        headers=(),
        params={"code": "404"},
        truth=_unanswered("numero_invalido", sip=404, ended_by="rede"),
    ),
    Scenario(
        name="unreachable_408",
        about="The callee is silent: the proxy repeats its INVITE and gives up without ringing.",
        uac="uac_refused",
        phones=(Phone("uas_silent"),),
        headers=(TO_FIRST, REPLY_TIMEOUT),
        params={"code": "408", "timeout_ms": "1200"},
        truth=_unanswered("indisponivel", sip=408, ended_by="rede"),
    ),
    Scenario(
        name="ring_timeout",
        about="The proxy's ring timer ends it: it cancels the callee.",
        uac="uac_refused",
        phones=(Phone("uas_ring"),),
        headers=(TO_FIRST, RING_TIMEOUT),
        params={"code": "408", "timeout_ms": "1000"},
        truth=_unanswered("chamando", "nao_atendeu", sip=408, ended_by="rede"),
    ),
    Scenario(
        name="cancelled",
        about="The caller gives up while it rings.",
        uac="uac_cancel",
        phones=(Phone("uas_ring"),),
        truth=_unanswered("chamando", "cancelou", sip=487, ended_by="origem"),
    ),
    Scenario(
        name="cancel_race_200",
        about="The answer crosses the CANCEL: the call is answered, and ended at once.",
        uac="uac_cancel_too_late",
        phones=(Phone("uas_answer_when_cancelled"),),
        truth=_answered(),
    ),
    Scenario(
        name="fork_parallel_second_answers",
        about="Two phones ring at once; the second answers, the first is cancelled.",
        uac="uac_call",
        phones=(Phone("uas_ring", user="1001"), Phone("uas_answer", user="1002")),
        headers=(TO_FIRST, AND_SECOND),
        truth=_answered(reached="1002"),
    ),
    Scenario(
        name="fork_parallel_nobody_answers",
        about="Two phones ring at once; one is busy, the other rings out. The proxy sends one of the two replies on.",
        uac="uac_refused",
        phones=(
            _refuses("486 Busy Here", user="1001"),
            _refuses("480 Temporarily Unavailable", user="1002", after_ringing=True),
        ),
        headers=(TO_FIRST, AND_SECOND),
        params={"code": "480"},
        truth=_unanswered("chamando", "nao_atendeu", sip=480),
    ),
    Scenario(
        name="fork_serial_busy_then_answers",
        about="The first phone is busy, the second one answers.",
        uac="uac_call",
        phones=(_refuses("486 Busy Here", user="1001"), Phone("uas_answer", user="1002")),
        headers=(TO_FIRST, THEN_SECOND),
        truth=_answered(reached="1002"),
    ),
    Scenario(
        name="fork_serial_timeout_then_answers",
        about="The first phone rings out at the proxy's timer, the second one answers.",
        uac="uac_call",
        phones=(Phone("uas_ring", user="1001"), Phone("uas_answer", user="1002")),
        headers=(TO_FIRST, THEN_SECOND, RING_TIMEOUT),
        params={"timeout_ms": "1000"},
        truth=_answered(reached="1002"),
    ),
    Scenario(
        name="redirect_302_followed",
        about="The callee sends the caller to another number, in the same call with a new CSeq.",
        uac="uac_follow_redirect",
        phones=(Phone("uas_redirect"), Phone("uas_answer", user=MOVED_TO)),
        params={"headers_then": TO_SECOND},
        truth=_answered(reached=MOVED_TO),
    ),
    Scenario(
        name="redirect_302_not_followed",
        about="The caller does not go there.",
        uac="uac_refused",
        phones=(Phone("uas_redirect"),),
        params={"code": "302"},
        truth=_unanswered("numero_invalido", sip=302),
    ),
    Scenario(
        name="lossy",
        about="Eighty calls, so many that chance spares none; one packet in ten is lost on sending (not the 180 and the BYE).",
        uac="uac_call",
        phones=(Phone("uas_answer", params={"linger_ms": "4000"}),),
        calls=80,
        rate=40,
        lost=10,
        truth=_answered(),
    ),
    Scenario(
        name="load",
        about="Two hundred calls, twenty a second.",
        uac="uac_call",
        phones=(Phone("uas_answer"),),
        calls=200,
        rate=20,
        ring_ms=300,
        talk_ms=500,
        truth=_answered(),
    ),
)

SCENARIOS: Mapping[str, Scenario] = MappingProxyType({scenario.name: scenario for scenario in _TABLE})
