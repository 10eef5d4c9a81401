"""The status callback's body: every member of the JSON, and the form that carries it."""

import json
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import parse_qs, quote_plus
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from toque.callbacks.payload import (
    DIRECTION_WORDS,
    PARTY_WORDS,
    STATUS_WORDS,
    CallbackData,
    CauseData,
    PayloadWriter,
    encode_form,
    ring_time,
    talk_time,
)
from toque.calls.model import CallFacts, CallIdentity, Cause, Direction, Owner, Party, Side, Status, StatusChange

SAO_PAULO = ZoneInfo("America/Sao_Paulo")
BEGAN = datetime(2026, 3, 1, 12, 5, 7, 123_999, tzinfo=UTC)
RANG, ANSWERED, ENDED = (BEGAN + timedelta(seconds=s) for s in (2.5, 7.5, 3667.5))
CALL = CallFacts(caller="554130600300", dialled="5511988887777", began_at=BEGAN)
RINGING = replace(CALL, ringing_at=RANG)
TALKING = replace(RINGING, answered_at=ANSWERED, answered_by="5511988886666")
HUNG_UP = replace(TALKING, ended_at=ENDED, hung_up_by=Party.CALLEE, cause=Cause(q850=16, text="Normal call clearing"))

COMMON = {
    "id": "event", "callerid": "call", "sequencia": 2, "pin": "1001", "tipo": "realizada",
    "origem": "554130600300", "destino": "5511988887777", "atendido_por": None,
    "status": "iniciou", "inicio": "2026-03-01 09:05:07", "atendimento": None, "fim": None, "toque": None, "duracao": None,
    "momento": "2026-03-01T09:05:07.123-03:00", "pbx_atendeu": None, "desligado_por": None, "causa": None, "inferido": False,
}  # fmt: skip
WHILE_TALKING = {"atendido_por": "5511988886666", "atendimento": "2026-03-01 09:05:14", "toque": "00:00:05"}
AT_THE_END = {"fim": "2026-03-01 10:06:14", "momento": "2026-03-01T10:06:14.623-03:00"}


def render(
    status: Status,
    facts: CallFacts,
    at: datetime = BEGAN,
    *,
    zone: ZoneInfo = SAO_PAULO,
    direction: Direction = Direction.MADE,
    pin: str = "1001",
) -> str:
    change = StatusChange(CallIdentity("sbc1", "a84b"), Side(Owner("acme", pin), direction), status, at, facts)
    return PayloadWriter(zone).render(change, event_id="event", callerid="call", sequence=2)


def busy(status: Status) -> tuple[Status, CallFacts, datetime, dict[str, object]]:
    """A call that rang and that nobody answered."""
    facts = replace(RINGING, ended_at=ENDED, cause=Cause(486, 17, "Busy Here"), hung_up_by=Party.CALLEE)
    told = {**AT_THE_END, "status": STATUS_WORDS[status], "toque": "01:01:05", "duracao": "00:00:00", "desligado_por": "destino"}
    return status, facts, ENDED, {**told, "causa": {"sip": 486, "q850": 17, "texto": "Busy Here"}}


@pytest.mark.parametrize(
    ("status", "facts", "at", "told"),
    [
        (Status.INITIATED, CALL, BEGAN, {}),
        (Status.RINGING, RINGING, RANG, {"status": "chamando", "momento": "2026-03-01T09:05:09.623-03:00"}),
        (
            Status.ANSWERED,
            TALKING,
            ANSWERED,
            {**WHILE_TALKING, "status": "atendeu", "momento": "2026-03-01T09:05:14.623-03:00"},
        ),
        (
            Status.HUNG_UP,
            HUNG_UP,
            ENDED,
            {
                **WHILE_TALKING, **AT_THE_END, "status": "desligou", "duracao": "01:01:00", "desligado_por": "destino",
                "causa": {"sip": None, "q850": 16, "texto": "Normal call clearing"},
            },
        ),
        *(busy(status) for status in Status if status.is_final and status is not Status.HUNG_UP),
    ],
)  # fmt: skip
def test_each_status_has_all_members_in_their_order(
    status: Status, facts: CallFacts, at: datetime, told: dict[str, object]
) -> None:
    text = render(status, facts, at)
    assert text == json.dumps({**COMMON, **told}, separators=(",", ":"), ensure_ascii=False)


def test_every_status_direction_and_party_has_its_word() -> None:
    assert [STATUS_WORDS[status] for status in Status] == [
        "iniciou", "chamando", "atendeu", "desligou", "ocupado", "nao_atendeu", "cancelou", "recusou", "congestionado",
        "numero_invalido", "indisponivel", "falhou",
    ]  # fmt: skip
    assert [DIRECTION_WORDS[direction] for direction in Direction] == ["realizada", "recebida"]
    assert [PARTY_WORDS[party] for party in Party] == ["origem", "destino", "rede"]


@pytest.mark.parametrize(
    ("change", "member", "told"),
    [
        ({"pbx_answered_at": RANG}, "pbx_atendeu", "2026-03-01 09:05:09"),
        ({"caller": ""}, "origem", None),
        ({"dialled": ""}, "destino", None),
        ({"began_at": None}, "inicio", None),
        ({"cause": None}, "causa", None),
        ({"cause": Cause()}, "causa", None),
        ({"cause": Cause(sip=0)}, "causa", {"sip": 0, "q850": None, "texto": None}),
        ({"cause": Cause(text="CHAN_NOT_IMPLEMENTED")}, "causa", {"sip": None, "q850": None, "texto": "CHAN_NOT_IMPLEMENTED"}),
        ({"hung_up_by": None}, "desligado_por", None),
        ({"hung_up_by": Party.NETWORK}, "desligado_por", "rede"),
        ({"is_inferred": True}, "inferido", True),
        ({"ended_at": None}, "fim", None),
        ({"ended_at": None}, "duracao", None),
    ],
)
def test_what_is_known_or_not_known(change: dict[str, object], member: str, told: object) -> None:
    assert json.loads(render(Status.HUNG_UP, replace(HUNG_UP, **change), ENDED))[member] == told  # type: ignore[arg-type]


@pytest.mark.parametrize("member", ["fim", "desligado_por", "causa", "duracao"])
def test_what_only_an_end_says(member: str) -> None:
    """A refusal that is still waited over, and then followed by an answer, has left its traces in the facts."""
    assert json.loads(render(Status.ANSWERED, HUNG_UP, ANSWERED))[member] is None


@pytest.mark.parametrize(
    ("zone", "at", "inicio", "momento"),
    [
        ("America/Sao_Paulo", datetime(2026, 1, 1, 1, 59, 59, 999_999, UTC), "2025-12-31 22:59:59", "2025-12-31T22:59:59.999-03:00"),
        ("America/Noronha", datetime(2026, 1, 1, 2, 0, tzinfo=UTC), "2026-01-01 00:00:00", "2026-01-01T00:00:00.000-02:00"),
        ("UTC", datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01 00:00:00", "2026-01-01T00:00:00.000+00:00"),
        ("Asia/Kolkata", datetime(2026, 1, 1, 20, tzinfo=UTC), "2026-01-02 01:30:00", "2026-01-02T01:30:00.000+05:30"),
        # the hour that Lisbon has twice, and the one that São Paulo skipped in 2018
        ("Europe/Lisbon", datetime(2026, 10, 25, 0, 30, tzinfo=UTC), "2026-10-25 01:30:00", "2026-10-25T01:30:00.000+01:00"),
        ("Europe/Lisbon", datetime(2026, 10, 25, 1, 30, tzinfo=UTC), "2026-10-25 01:30:00", "2026-10-25T01:30:00.000+00:00"),
        ("America/Sao_Paulo", datetime(2018, 11, 4, 3, 0, tzinfo=UTC), "2018-11-04 01:00:00", "2018-11-04T01:00:00.000-02:00"),
        # whatever zone the moment is given in
        (
            "America/Sao_Paulo",
            datetime(2026, 3, 1, 21, 5, 7, tzinfo=timezone(timedelta(hours=9))),
            "2026-03-01 09:05:07",
            "2026-03-01T09:05:07.000-03:00",
        ),
    ],
)  # fmt: skip
def test_moments_are_told_in_the_servers_time_zone(zone: str, at: datetime, inicio: str, momento: str) -> None:
    told = json.loads(render(Status.INITIATED, replace(CALL, began_at=at), at, zone=ZoneInfo(zone)))
    assert (told["inicio"], told["momento"]) == (inicio, momento)
    assert datetime.fromisoformat(told["momento"]) == at.replace(microsecond=at.microsecond // 1000 * 1000)


@given(
    st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(["America/Sao_Paulo", "Europe/Lisbon", "Australia/Lord_Howe"]),
)
def test_any_moment_is_told_as_the_clock_on_the_wall_shows_it(at: datetime, zone: str) -> None:
    told = json.loads(render(Status.INITIATED, replace(CALL, began_at=at), at, zone=ZoneInfo(zone)))
    assert told["inicio"] == at.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M:%S")
    assert told["momento"] == at.astimezone(ZoneInfo(zone)).isoformat(timespec="milliseconds")


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(), "00:00:00"),
        (timedelta(milliseconds=999), "00:00:00"),
        (timedelta(seconds=59.999), "00:00:59"),
        (timedelta(minutes=60), "01:00:00"),
        (timedelta(hours=23, minutes=59, seconds=59), "23:59:59"),
        (timedelta(days=5, seconds=1), "120:00:01"),
        (timedelta(seconds=-5), "00:00:00"),  # two clocks, or packets that overtook each other
    ],
)
def test_how_long_it_rang_and_lasted(span: timedelta, text: str) -> None:
    talked = replace(HUNG_UP, ended_at=ANSWERED + span)
    assert json.loads(render(Status.HUNG_UP, talked, ENDED))["duracao"] == text
    rang = replace(TALKING, ringing_at=ANSWERED - span)
    assert json.loads(render(Status.ANSWERED, rang, ANSWERED))["toque"] == text


ZERO = timedelta()


@pytest.mark.parametrize(
    ("facts", "status", "rang"),
    [
        (CALL, Status.INITIATED, None),
        (RINGING, Status.RINGING, None),
        (TALKING, Status.ANSWERED, timedelta(seconds=5)),
        (HUNG_UP, Status.HUNG_UP, timedelta(seconds=5)),
        (replace(CALL, answered_at=ANSWERED), Status.ANSWERED, ZERO),
        (replace(CALL, answered_at=ANSWERED, is_whole=False), Status.ANSWERED, None),
        (replace(RINGING, ended_at=ENDED), Status.NO_ANSWER, ENDED - RANG),
        (replace(CALL, ended_at=ENDED), Status.BUSY, ZERO),
        (replace(CALL, ended_at=ENDED, is_whole=False), Status.BUSY, None),
        (RINGING, Status.FAILED, None),  # concluded; nobody saw when it ended
        (replace(RINGING, ended_at=ENDED), Status.HUNG_UP, None),  # answered; nobody saw when
        (replace(RINGING, ended_at=ENDED), Status.ANSWERED, None),
    ],
)
def test_ring_time_is_told_when_it_is_known(facts: CallFacts, status: Status, rang: timedelta | None) -> None:
    assert ring_time(facts, status) == rang


@pytest.mark.parametrize(
    ("facts", "status", "talked"),
    [
        (TALKING, Status.ANSWERED, None),
        (HUNG_UP, Status.ANSWERED, None),
        (HUNG_UP, Status.HUNG_UP, ENDED - ANSWERED),
        (replace(HUNG_UP, ended_at=None), Status.HUNG_UP, None),
        (replace(HUNG_UP, answered_at=None), Status.HUNG_UP, None),
        (replace(RINGING, ended_at=ENDED), Status.CANCELLED, ZERO),
        (RINGING, Status.FAILED, None),
    ],
)
def test_talk_time_is_told_when_it_is_known(facts: CallFacts, status: Status, talked: timedelta | None) -> None:
    assert talk_time(facts, status) == talked


# The form


AWKWARD = [
    'São "João" & Cia',
    "100% + 1 = 101",
    "back\\slash / slash",
    "tab\tnew\nline\r\0",
    "📞☎️ Ωμέγα 中文",
    "&data=x;y=z#f",
    "<script>alert('x')</script>",
    "\u2028\u2029\x7f\u0085",
    "",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_a_form_parser_gives_back_what_was_said(text: str) -> None:
    facts = replace(HUNG_UP, caller=text, dialled=f"{text}!", answered_by=text, cause=Cause(text=text))
    body = encode_form(render(Status.HUNG_UP, facts, ENDED, pin=text or "1"))
    form = parse_qs(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict")
    assert list(form) == ["data"]
    told = json.loads(form["data"][0])
    assert (told["origem"], told["destino"]) == (text or None, f"{text}!")
    assert (told["atendido_por"], told["causa"]["texto"], told["pin"]) == (text, text, text or "1")


@given(st.one_of(st.text(), st.text(st.characters(max_codepoint=127)), st.text(st.sampled_from('%+ "{}[]:,/\\&=;#~-._*()a'))))
def test_the_form_is_the_one_that_the_standard_library_makes(text: str) -> None:
    assert encode_form(text) == b"data=" + quote_plus(text).encode("ascii")
    assert parse_qs(encode_form(text).decode("ascii"), keep_blank_values=True) == {"data": [text]}


@given(st.text(), st.text(), st.text())
def test_any_text_survives_the_json_and_the_form(caller: str, dialled: str, cause: str) -> None:
    facts = replace(HUNG_UP, caller=caller, dialled=dialled, cause=Cause(text=cause))
    body = encode_form(render(Status.HUNG_UP, facts, ENDED))
    told = json.loads(parse_qs(body.decode("ascii"), strict_parsing=True)["data"][0])
    assert (told["origem"], told["destino"], told["causa"]["texto"]) == (caller or None, dialled or None, cause)


# The quick way of writing against the plain one


def plainly(change: StatusChange, zone: ZoneInfo) -> str:
    """What the writer must say, member by member, by the types that docs/api.md is checked against."""
    facts, final = change.facts, change.status.is_final

    def clock(moment: datetime | None) -> str | None:
        return None if moment is None else moment.astimezone(zone).isoformat(" ", "seconds")[:19]

    def span(value: timedelta | None) -> str | None:
        return None if value is None else "{:02d}:{:02d}:{:02d}".format(*spread(int(value.total_seconds())))

    causa = None
    if final and facts.cause is not None and facts.cause != Cause():
        causa = CauseData(sip=facts.cause.sip, q850=facts.cause.q850, texto=facts.cause.text)
    data = CallbackData(
        id="event",
        callerid="call",
        sequencia=3,
        pin=change.side.owner.pin,
        tipo=DIRECTION_WORDS[change.side.direction],
        origem=facts.caller or None,
        destino=facts.dialled or None,
        atendido_por=facts.answered_by,
        status=STATUS_WORDS[change.status],
        inicio=clock(facts.began_at),
        atendimento=clock(facts.answered_at),
        fim=clock(facts.ended_at) if final else None,
        toque=span(ring_time(facts, change.status)),
        duracao=span(talk_time(facts, change.status)),
        momento=change.at.astimezone(zone).isoformat(timespec="milliseconds"),
        pbx_atendeu=clock(facts.pbx_answered_at),
        desligado_por=PARTY_WORDS[facts.hung_up_by] if final and facts.hung_up_by else None,
        causa=causa,
        inferido=facts.is_inferred,
    )
    return msgspec.json.encode(data).decode()


def spread(seconds: int) -> tuple[int, int, int]:
    return seconds // 3600, seconds // 60 % 60, seconds % 60


MOMENTS = st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
TEXTS = st.text(max_size=12) | st.from_regex(r"\+?\d{3,15}", fullmatch=True)
FACTS = st.builds(
    CallFacts,
    caller=TEXTS,
    dialled=TEXTS,
    answered_by=st.none() | TEXTS,
    began_at=st.none() | MOMENTS,
    pbx_answered_at=st.none() | MOMENTS,
    ringing_at=st.none() | MOMENTS,
    answered_at=st.none() | MOMENTS,
    ended_at=st.none() | MOMENTS,
    is_whole=st.booleans(),
    hung_up_by=st.none() | st.sampled_from(Party),
    cause=st.none() | st.builds(Cause, st.none() | st.integers(100, 699), st.none() | st.integers(0, 127), st.none() | TEXTS),
    is_inferred=st.booleans(),
)
ZONES = st.sampled_from(["America/Sao_Paulo", "Asia/Kathmandu", "Europe/Lisbon", "America/St_Johns", "UTC"]).map(ZoneInfo)


@given(
    zone=ZONES,
    changes=st.lists(
        st.builds(
            StatusChange,
            st.just(CallIdentity("sbc1", "a84b")),
            st.builds(Side, st.builds(Owner, st.just("acme"), TEXTS), st.sampled_from(Direction)),
            st.sampled_from(Status),
            MOMENTS,
            FACTS,
        ),
        max_size=4,
    ),
)
def test_an_event_is_written_as_it_would_be_plainly(zone: ZoneInfo, changes: list[StatusChange]) -> None:
    writer = PayloadWriter(zone)
    for change in changes:
        payload, body = writer.write(change, "event", "call", 3)
        assert payload == plainly(change, zone)
        assert body == encode_form(payload)
        assert writer.render(change, "event", "call", 3) == payload
