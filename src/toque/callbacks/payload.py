"""The status callback's body: form field `data`, whose value is JSON in the API's own Portuguese vocabulary (docs/api.md)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from urllib.parse import quote_plus
from zoneinfo import ZoneInfo

import msgspec

from toque.calls.model import PROGRESS, CallFacts, Cause, Direction, Party, Status, StatusChange

STATUS_WORDS = {
    Status.INITIATED: "iniciou",
    Status.RINGING: "chamando",
    Status.ANSWERED: "atendeu",
    Status.HUNG_UP: "desligou",
    Status.BUSY: "ocupado",
    Status.NO_ANSWER: "nao_atendeu",
    Status.CANCELLED: "cancelou",
    Status.REJECTED: "recusou",
    Status.CONGESTION: "congestionado",
    Status.INVALID_NUMBER: "numero_invalido",
    Status.UNREACHABLE: "indisponivel",
    Status.FAILED: "falhou",
}
DIRECTION_WORDS = {Direction.MADE: "realizada", Direction.RECEIVED: "recebida"}
PARTY_WORDS = {Party.CALLER: "origem", Party.CALLEE: "destino", Party.NETWORK: "rede"}


class CauseData(msgspec.Struct):
    """The member `causa`."""

    sip: int | None
    q850: int | None
    texto: str | None


class CallbackData(msgspec.Struct):
    """The members of the JSON in their order; all are always present, null until known."""

    id: str
    callerid: str
    sequencia: int
    pin: str
    tipo: str
    origem: str | None
    destino: str | None
    atendido_por: str | None
    status: str
    inicio: str | None
    atendimento: str | None
    fim: str | None
    toque: str | None
    duracao: str | None
    momento: str
    pbx_atendeu: str | None
    desligado_por: str | None
    causa: CauseData | None
    inferido: bool


_NO_CAUSE = Cause()
_PROGRESS = frozenset(PROGRESS)
_UNKNOWN = ("null", "null")
_NO_SPANS = ',"toque":null,"duracao":null'
_ENCODER = msgspec.json.Encoder()
_PARTS_KEPT = 8_192  # of each kind; most recur in all events of their call, and this many calls may be in progress at once

# A run of members as JSON, and the same as the form carries it. Escaping goes by the character, so escaped parts can be joined.
Part = tuple[str, str]


class PayloadWriter:
    """Renders events in the server's time zone.

    What recurs in the events of a call, or in most calls, is rendered once and kept, in both spellings: to write an event is
    then to join some parts (docs/performance.md).
    """

    def __init__(self, zone: ZoneInfo) -> None:
        self.zone = zone
        keep = lru_cache(_PARTS_KEPT)
        self._whose = keep(_whose)
        self._reached = keep(_reached)
        self._spans = keep(_spans)
        self._closing = keep(self._close)
        self._minute = keep(self._spell_minute)
        self._minute_of = keep(self._spell_minute_of)
        self._spelled = keep(self._spell)
        self._read = keep(self._spell_json)
        self._open_end, _ = self._close(None, None, None, is_inferred=False)

    def render(self, change: StatusChange, event_id: str, callerid: str, sequence: int) -> str:
        """The JSON text of one event, which nobody may want to be sent; both ids are UUIDs as text."""
        facts, status, side = change.facts, change.status, change.side
        whose, _ = self._whose(side.owner.pin, side.direction, facts.caller, facts.dialled)
        reached, _ = self._reached(facts.answered_by, status)
        spell, answered_at = self._read, facts.answered_at
        began, _ = spell(facts.began_at)
        answered, _ = _UNKNOWN if answered_at is None else spell(answered_at)
        at = change.at
        at_read, moment = spell(at)
        ended, spans = "null", _NO_SPANS
        if status in _PROGRESS:
            if answered_at is not None:
                spans, _ = self._spans(_seconds(ring_time(facts, status)), None)
            if facts.pbx_answered_at is None and not facts.is_inferred:
                closing = self._open_end
            else:
                closing, _ = self._closing(facts.pbx_answered_at, None, None, facts.is_inferred)
        else:
            ended_at = facts.ended_at
            ended = at_read if ended_at is at else spell(ended_at)[0]
            spans, _ = self._spans(_seconds(ring_time(facts, status)), _seconds(talk_time(facts, status)))
            closing, _ = self._closing(facts.pbx_answered_at, facts.hung_up_by, facts.cause, facts.is_inferred)
        return (
            f'{{"id":"{event_id}","callerid":"{callerid}","sequencia":{sequence}{whose}{reached}'
            f',"inicio":{began},"atendimento":{answered},"fim":{ended}{spans},"momento":{moment}{closing}}}'
        )

    def write(self, change: StatusChange, event_id: str, callerid: str, sequence: int) -> tuple[str, bytes]:
        """The same, and the request body that carries it, which is `encode_form` of it."""
        facts, status, side = change.facts, change.status, change.side
        is_final = status.is_final
        whose, whose_form = self._whose(side.owner.pin, side.direction, facts.caller, facts.dialled)
        reached, reached_form = self._reached(facts.answered_by, status)
        began, began_form, _, _ = self._spelled(facts.began_at)
        answered, answered_form, _, _ = self._spelled(facts.answered_at)
        ended, ended_form, _, _ = self._spelled(facts.ended_at if is_final else None)
        spans, spans_form = self._spans(_seconds(ring_time(facts, status)), _seconds(talk_time(facts, status)))
        _, _, moment, moment_form = self._spelled(change.at)
        if is_final:
            closing, closing_form = self._closing(facts.pbx_answered_at, facts.hung_up_by, facts.cause, facts.is_inferred)
        else:
            closing, closing_form = self._closing(facts.pbx_answered_at, None, None, facts.is_inferred)
        payload = (
            f'{{"id":"{event_id}","callerid":"{callerid}","sequencia":{sequence}{whose}{reached}'
            f',"inicio":{began},"atendimento":{answered},"fim":{ended}{spans},"momento":{moment}{closing}}}'
        )
        body = (
            f"data=%7B%22id%22%3A%22{event_id}%22%2C%22callerid%22%3A%22{callerid}%22%2C%22sequencia%22%3A{sequence}"
            f"{whose_form}{reached_form}%2C%22inicio%22%3A{began_form}%2C%22atendimento%22%3A{answered_form}"
            f"%2C%22fim%22%3A{ended_form}{spans_form}%2C%22momento%22%3A{moment_form}{closing_form}%7D"
        )
        return payload, body.encode("ascii")

    def _close(self, pbx_answered_at: datetime | None, hung_up_by: Party | None, cause: Cause | None, is_inferred: bool) -> Part:
        return _members(
            pbx_atendeu=self._wall_clock(pbx_answered_at),
            desligado_por=PARTY_WORDS[hung_up_by] if hung_up_by else None,
            causa=_cause(cause),
            inferido=is_inferred,
        )

    def _wall_clock(self, moment: datetime | None) -> str | None:
        return None if moment is None else self._spelled(moment)[0].strip('"')

    def _spell(self, moment: datetime | None) -> tuple[str, str, str, str]:
        """A moment in the server's time zone: as on a clock on the wall and as ISO 8601 has it, each as JSON and in the form."""
        if moment is None:
            return "null", "null", "null", "null"
        day, minute, offset = self._minute(moment.replace(second=0, microsecond=0))
        second, offset_form = f"{moment.second:02d}", offset.replace("+", "%2B").replace(":", "%3A")
        fraction, minute_form = f".{moment.microsecond // 1000:03d}", minute.replace(":", "%3A")
        return (
            f'"{day} {minute}{second}"',
            f"%22{day}+{minute_form}{second}%22",
            f'"{day}T{minute}{second}{fraction}{offset}"',
            f"%22{day}T{minute_form}{second}{fraction}{offset_form}%22",
        )

    def _spell_json(self, moment: datetime | None) -> tuple[str, str]:
        """The same as JSON alone. Where the moment is in UTC, as nearly all are, its text says which minute it lies in."""
        if moment is None:
            return _UNKNOWN
        if moment.tzinfo is not UTC:
            moment = moment.astimezone(UTC)
        text = moment.isoformat("T", "milliseconds")
        day, minute, offset = self._minute_of(text[:16])
        return f'"{day} {minute}{text[17:19]}"', f'"{day}T{minute}{text[17:23]}{offset}"'

    def _spell_minute_of(self, text: str) -> tuple[str, str, str]:
        """The same, of the minute in UTC that is spelled so."""
        return self._spell_minute(datetime.fromisoformat(text).replace(tzinfo=UTC))

    def _spell_minute(self, minute: datetime) -> tuple[str, str, str]:
        """Day, hours and minutes with their colons, and the offset: the part of a moment that a zone has a say in."""
        local = minute.astimezone(self.zone)
        iso = local.isoformat(timespec="seconds")
        return iso[:10], iso[11:17], iso[19:]


def _members(**members: object) -> Part:
    text = "," + _ENCODER.encode(members).decode()[1:-1]
    return text, quote_plus(text)


def _whose(pin: str, direction: Direction, caller: str, dialled: str) -> Part:
    return _members(pin=pin, tipo=DIRECTION_WORDS[direction], origem=caller or None, destino=dialled or None)


def _reached(answered_by: str | None, status: Status) -> Part:
    return _members(atendido_por=answered_by, status=STATUS_WORDS[status])


def _spans(ring_s: int | None, talk_s: int | None) -> Part:
    return _members(toque=_span(ring_s), duracao=_span(talk_s))


def ring_time(facts: CallFacts, status: Status) -> timedelta | None:
    """From the first ringing to the answer or the end; zero for a call seen whole that never rang, None until known."""
    until = facts.answered_at or (facts.ended_at if status.is_final and status is not Status.HUNG_UP else None)
    if until is None:  # it rings on, or it was answered and nobody saw when
        return None
    if facts.ringing_at is None:
        return timedelta() if facts.is_whole else None
    return max(until - facts.ringing_at, timedelta())


def talk_time(facts: CallFacts, status: Status) -> timedelta | None:
    """From the answer to the end; zero for a call that nobody answered, None until known."""
    if not status.is_final or facts.ended_at is None:
        return None
    if facts.answered_at is None:
        return None if status is Status.HUNG_UP else timedelta()
    return max(facts.ended_at - facts.answered_at, timedelta())


def _seconds(span: timedelta | None) -> int | None:
    return None if span is None else span.days * 86_400 + span.seconds


def _span(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}"


def _cause(cause: Cause | None) -> CauseData | None:
    if cause is None or cause == _NO_CAUSE:
        return None
    return CauseData(sip=cause.sip, q850=cause.q850, texto=cause.text)


_PRINTABLE = bytes(range(0x20, 0x7F))
# One replacement after the other: `%` and `+` come first, since the others bring them in.
_ESCAPED = sorted((text for text in map(chr, _PRINTABLE) if quote_plus(text) != text), key=lambda text: text not in "%+")
_ESCAPES = [(text.encode(), quote_plus(text).encode()) for text in _ESCAPED]


def encode_form(payload: str) -> bytes:
    """The request body: `data=` and the JSON, escaped as WHATWG's application/x-www-form-urlencoded asks, in UTF-8.

    The same as `quote_plus` gives, in a sixth of its time as long as all is ASCII.
    """
    data = payload.encode()
    if data.translate(None, _PRINTABLE):
        return b"data=" + quote_plus(payload).encode("ascii")
    for text, escape in _ESCAPES:
        data = data.replace(text, escape)
    return b"data=" + data
