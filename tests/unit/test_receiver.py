"""What `toque.receiver` takes for a status callback, and what it answers to everything else."""

import base64
import json
import sqlite3
import threading
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from email.message import Message
from typing import Any

import django
import pytest
from django.http.request import HttpHeaders
from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook
from starlette.datastructures import Headers as StarletteHeaders
from werkzeug.datastructures import EnvironHeaders
from werkzeug.datastructures import Headers as WerkzeugHeaders

from toque.errors import ClientError
from toque.receiver import (
    FINAL_STATUSES,
    AlreadySeen,
    BadSignature,
    BeingHandled,
    CallStatus,
    Cause,
    Malformed,
    Receiver,
    ReceiverError,
    SeenIds,
    SeenInMemory,
    TooOld,
    headers_from_environ,
    parse_body,
)

SECRET = "whsec_" + base64.b64encode(b"the secret of this callback here").decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"another secret, as after a change").decode()
SENT_AT = datetime(2026, 3, 1, 12, 5, 30, tzinfo=UTC)
NOW_S = SENT_AT.timestamp()
PATIENCE_S = 20.0

BUSY: dict[str, Any] = {
    "id": "ev_3b1f",
    "callerid": "b683e934-f1d3-4a98-a0d2-16a476dfcdc4",
    "sequencia": 3,
    "pin": "1001",
    "tipo": "realizada",
    "origem": "554130600300",
    "destino": "+55 (11) 2222-3333 & cia = 100%",
    "atendido_por": None,
    "status": "ocupado",
    "inicio": "2026-03-01 09:05:07",
    "atendimento": None,
    "fim": "2026-03-01 09:05:30",
    "toque": "00:00:21",
    "duracao": "00:00:00",
    "momento": "2026-03-01T09:05:30.125-03:00",
    "pbx_atendeu": "2026-03-01 09:05:09",
    "desligado_por": "destino",
    "causa": {"sip": 486, "q850": 17, "texto": 'Ocupado aqui: "João" disse não ☎'},
    "inferido": False,
}
OPTIONAL = sorted(set(BUSY) - {"id", "callerid", "sequencia", "pin", "tipo", "status", "momento"})


def form(members: Any) -> bytes:
    return urllib.parse.urlencode({"data": json.dumps(members, ensure_ascii=False)}).encode()


def signed(body: bytes, *, event_id: str = BUSY["id"], at: datetime = SENT_AT, secret: str = SECRET) -> dict[str, str]:
    """Headers as the Standard Webhooks' own library signs them. It signs text only."""
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(event_id, at, body.decode()),
    }


def receiver(*secrets: str, **options: Any) -> Receiver:
    options.setdefault("clock", lambda: NOW_S)
    return Receiver(secrets or SECRET, **options)


BODY = form(BUSY)
HEADERS = signed(BODY)


# --- what is read


def test_every_member_is_read_as_what_it_is() -> None:
    status = receiver().read(HEADERS, BODY)
    assert status == CallStatus(
        id="ev_3b1f",
        callerid="b683e934-f1d3-4a98-a0d2-16a476dfcdc4",
        sequencia=3,
        pin="1001",
        tipo="realizada",
        origem="554130600300",
        destino="+55 (11) 2222-3333 & cia = 100%",
        atendido_por=None,
        status="ocupado",
        inicio=datetime(2026, 3, 1, 9, 5, 7),
        atendimento=None,
        fim=datetime(2026, 3, 1, 9, 5, 30),
        toque=timedelta(seconds=21),
        duracao=timedelta(0),
        momento=datetime(2026, 3, 1, 9, 5, 30, 125000, tzinfo=timezone(timedelta(hours=-3))),
        pbx_atendeu=datetime(2026, 3, 1, 9, 5, 9),
        desligado_por="destino",
        causa=Cause(486, 17, 'Ocupado aqui: "João" disse não ☎'),
        inferido=False,
        raw={},
    )
    assert status.raw == BUSY
    assert status.momento.utcoffset() == timedelta(hours=-3)
    assert hash(status) == hash(receiver().read(HEADERS, BODY))


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("is_absent", [True, False], ids=["absent", "null"])
def test_what_is_not_known_is_none(name: str, is_absent: bool) -> None:
    members = BUSY | {name: None}
    if is_absent:
        del members[name]
    assert getattr(parse_body(form(members)), name) is None


def test_a_cause_may_be_known_in_part() -> None:
    assert parse_body(form(BUSY | {"causa": {"q850": 31}})).causa == Cause(None, 31, None)


def test_unknown_members_and_words_are_let_through() -> None:
    status = parse_body(form(BUSY | {"novo": [1], "status": "estacionou", "tipo": "interna", "causa": {"x": 1}}))
    assert (status.status, status.tipo, status.is_final) == ("estacionou", "interna", False)
    assert status.raw["novo"] == [1]


@pytest.mark.parametrize("word", ["iniciou", "chamando", "atendeu"])
def test_a_call_in_progress_is_not_final(word: str) -> None:
    assert not parse_body(form(BUSY | {"status": word})).is_final


@pytest.mark.parametrize("word", sorted(FINAL_STATUSES))
def test_a_call_that_ended_is_final(word: str) -> None:
    assert parse_body(form(BUSY | {"status": word})).is_final


@pytest.mark.parametrize(("text", "hours"), [("99:59:59", 99), ("100:59:59", 100), ("123456:59:59", 123456)])
def test_a_long_call_has_more_digits(text: str, hours: int) -> None:
    assert parse_body(form(BUSY | {"duracao": text})).duracao == timedelta(hours=hours, minutes=59, seconds=59)


@pytest.mark.parametrize("moment", ["2026-03-01T12:05:30.125Z", "2026-03-01T12:05:30.125+00:00"])
def test_a_moment_may_be_in_utc(moment: str) -> None:
    assert parse_body(form(BUSY | {"momento": moment})).momento == SENT_AT + timedelta(milliseconds=125)


WRONG = [
    *[{name: value} for name in ("id", "callerid", "pin", "tipo", "status", "momento") for value in (None, "", 7)],
    *[{"sequencia": value} for value in (None, 0, -1, "1", True, 1.0)],
    *[{name: 7} for name in OPTIONAL],
    *[{"inicio": value} for value in ("", "2026-03-01", "2026-03-01T09:05:07", "2026-13-01 09:05:07", "ontem")],
    *[{"toque": value} for value in ("", "21", "0:21", "00:60:00", "00:00:60", "-00:00:01", "1000000:00:00", "٠٠:٠٠:٠١")],
    *[{"momento": value} for value in ("2026-03-01T09:05:30.125", "2026-03-01 09:05:30-03:00", "0000-00-00T00:00:00Z")],
    {"momento": "2026-03-01T09:05:30.125+99:99"},
    {"momento": "---------- T::::::::Z"},
    {"inferido": 1},
    {"inferido": "true"},
    {"causa": []},
    {"causa": {"sip": "486"}},
    {"causa": {"q850": True}},
    {"causa": {"texto": 1}},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_a_wrong_member_is_named(change: dict[str, Any]) -> None:
    [name] = change
    inner = change[name]
    expected = "|".join(inner) if isinstance(inner, dict) else name
    with pytest.raises(Malformed, match=expected):
        parse_body(form(BUSY | change))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"data",
        b"=",
        b"data=",
        b"data=%7B",
        b"data=[]",
        b"data=null",
        b"data=%ff",
        b"\xff=1",
        BODY + b"&",
        BODY + b"&data=1",
        BODY + b"&x=1",
        BODY.replace(b"data=", b"Data="),
        json.dumps(BUSY).encode(),
        b"data=" + b"[" * 100_000,
        b"data=" + b"9" * 10_000,
    ],
    ids=lambda body: repr(body[-30:]),
)
def test_a_body_that_is_not_one_field_of_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        parse_body(body)


# --- who sent it, and when


@pytest.mark.parametrize("secrets", [[SECRET], [OTHER_SECRET, SECRET], [f" {SECRET}\n"]])
def test_the_standards_own_signature_fits(secrets: list[str]) -> None:
    assert receiver(*secrets).read(HEADERS, BODY).id == BUSY["id"]


def test_one_secret_may_come_as_it_is() -> None:
    assert Receiver(SECRET, clock=lambda: NOW_S).read(HEADERS, BODY).id == BUSY["id"]


@pytest.mark.parametrize("known", [SECRET, OTHER_SECRET])
def test_during_a_rotation_either_secret_will_do(known: str) -> None:
    both = [signed(BODY, secret=secret)["webhook-signature"] for secret in (SECRET, OTHER_SECRET)]
    headers = HEADERS | {"webhook-signature": " ".join(both)}
    assert receiver(known).read(headers, BODY).id == BUSY["id"]


def test_signatures_of_other_kinds_are_passed_over() -> None:
    headers = HEADERS | {"webhook-signature": f"v1a,abc= v2 {HEADERS['webhook-signature']}"}
    assert receiver().read(headers, BODY).id == BUSY["id"]


@pytest.mark.parametrize("name", sorted(HEADERS))
@pytest.mark.parametrize("value", [None, "", " ", "é", "x\udc80", "v1,", "0" * 30])
def test_a_header_that_is_missing_or_odd_is_a_bad_signature(name: str, value: str | None) -> None:
    headers = {key: text for key, text in HEADERS.items() if key != name}
    if value is not None:
        headers[name] = value
    with pytest.raises(BadSignature):
        receiver().read(headers, BODY)


@pytest.mark.parametrize("timestamp", ["x", "-5", f"+{int(NOW_S)}", f"{NOW_S}", "1e9", "9" * 13, "١٧٧٢٣٦٦٧٣٠", "nan"])
def test_a_time_that_is_not_in_whole_seconds_is_a_bad_signature(timestamp: str) -> None:
    with pytest.raises(BadSignature):
        receiver().read(HEADERS | {"webhook-timestamp": timestamp}, BODY)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (signed(BODY, secret=OTHER_SECRET), BODY),
        (HEADERS, BODY.replace(b"ocupado", b"atendeu")),
        (HEADERS, BODY + b" "),
        (HEADERS, b""),
        (HEADERS | {"webhook-id": "ev_0000"}, BODY),
        (HEADERS | {"webhook-timestamp": str(int(NOW_S) + 1)}, BODY),
        (HEADERS | {"webhook-signature": HEADERS["webhook-signature"].replace("v1,", "v2,")}, BODY),
        (HEADERS | {"webhook-signature": HEADERS["webhook-signature"].removeprefix("v1,")}, BODY),
        (HEADERS | {"webhook-signature": HEADERS["webhook-signature"].rstrip("=")}, BODY),
    ],
    ids=["other secret", "altered", "longer", "empty", "id", "time", "version", "no version", "cut"],
)
def test_a_forgery_is_a_bad_signature(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(BadSignature) as caught:
        receiver().read(headers, body)
    assert SECRET not in repr(caught.value)


def test_a_repeated_header_is_a_bad_signature() -> None:
    """Which of two is meant is a guess, and a forger would be the one to gain from it."""
    with pytest.raises(BadSignature, match="twice"):
        receiver().read([*HEADERS.items(), ("Webhook-Id", "ev_0000")], BODY)


def test_an_id_that_is_not_the_one_inside_is_malformed() -> None:
    with pytest.raises(Malformed):
        receiver().read(signed(BODY, event_id="ev_0000"), BODY)


@pytest.mark.parametrize("apart_s", [-300.0, 0.0, 300.0])
def test_within_the_tolerance_is_in_time(apart_s: float) -> None:
    assert receiver(clock=lambda: NOW_S + apart_s).read(HEADERS, BODY).id == BUSY["id"]


@pytest.mark.parametrize("apart_s", [-300.1, 300.1, 1e12])
def test_too_old_or_too_far_ahead(apart_s: float) -> None:
    with pytest.raises(TooOld):
        receiver(clock=lambda: NOW_S + apart_s).read(HEADERS, BODY)


def test_the_tolerance_is_a_setting() -> None:
    with pytest.raises(TooOld):
        receiver(tolerance=timedelta(seconds=1), clock=lambda: NOW_S + 2).read(HEADERS, BODY)


@pytest.mark.parametrize("secrets", [[], "", "abc", "whsec_", "whsec_???", "whsec_abc", [SECRET, "s3cret"]])
def test_what_is_no_secret_is_refused_at_once(secrets: Any) -> None:
    with pytest.raises(ValueError) as caught:
        Receiver(secrets)
    assert "s3cret" not in str(caught.value)
    assert "???" not in str(caught.value)


# --- however the headers come


def as_message(headers: dict[str, str]) -> Message:
    message = Message()
    for name, value in headers.items():
        message[name] = value
    return message


def as_environ(headers: dict[str, str]) -> dict[str, Any]:
    others: dict[str, Any] = {"REQUEST_METHOD": "POST", "CONTENT_TYPE": "text/plain", "wsgi.version": (1, 0)}
    return others | {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}


SHAPES: dict[str, Callable[[dict[str, str]], Any]] = {
    "upper case": lambda headers: {name.upper(): value for name, value in headers.items()},
    "pairs": lambda headers: list(headers.items()),
    "a generator": lambda headers: (pair for pair in headers.items()),
    "ASGI": lambda headers: [(name.encode(), value.encode()) for name, value in headers.items()],
    "http.server": as_message,
    "Flask": lambda headers: EnvironHeaders(as_environ(headers)),
    "Werkzeug": WerkzeugHeaders,
    "Django": lambda headers: HttpHeaders(as_environ(headers)),
    "Starlette": StarletteHeaders,
    "WSGI": lambda headers: headers_from_environ(as_environ(headers)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_frameworks_headers_are_read(shape: str) -> None:
    assert django.VERSION  # the shapes are the frameworks' own
    headers = HEADERS | {"content-type": "application/x-www-form-urlencoded", "x-other": "é"}
    assert receiver().read(SHAPES[shape](headers), BODY).id == BUSY["id"]


# --- repetitions


class BrokenError(Exception):
    """The application's own failure."""


def test_without_a_memory_nothing_is_a_repetition() -> None:
    plain = receiver()
    for _ in range(2):
        with plain.handling(HEADERS, BODY) as status:
            assert status.id == BUSY["id"]


def test_what_was_handled_is_a_repetition_the_second_time() -> None:
    remembering = receiver(seen=SeenInMemory())
    with remembering.handling(HEADERS, BODY):
        pass
    with pytest.raises(AlreadySeen), remembering.handling(HEADERS, BODY):
        pytest.fail("handled twice")
    with pytest.raises(AlreadySeen):
        remembering.read(HEADERS, BODY)


def test_reading_alone_marks_nothing() -> None:
    remembering = receiver(seen=SeenInMemory())
    assert remembering.read(HEADERS, BODY) == remembering.read(HEADERS, BODY)


@pytest.mark.parametrize("failure", [BrokenError, KeyboardInterrupt, GeneratorExit])
def test_what_failed_is_handled_when_it_comes_again(failure: type[BaseException]) -> None:
    seen = SeenInMemory()
    remembering = receiver(seen=seen)
    with pytest.raises(failure), remembering.handling(HEADERS, BODY):
        raise failure
    assert BUSY["id"] not in seen
    with remembering.handling(HEADERS, BODY):
        pass
    assert BUSY["id"] in seen


def test_what_is_being_handled_is_not_handled_a_second_time_at_once() -> None:
    remembering = receiver(seen=SeenInMemory())
    with remembering.handling(HEADERS, BODY):
        with pytest.raises(BeingHandled), remembering.handling(HEADERS, BODY):
            pytest.fail("handled twice at once")
        other = form(BUSY | {"id": "ev_other"})
        with remembering.handling(signed(other, event_id="ev_other"), other) as status:
            assert status.id == "ev_other"


def test_of_a_crowd_with_one_status_one_handles_it() -> None:
    """Whatever the order in which they look, begin and finish."""
    remembering = receiver(seen=SeenInMemory())
    begin = threading.Barrier(16)
    outcomes: list[str] = []

    def post() -> None:
        begin.wait(PATIENCE_S)
        try:
            with remembering.handling(HEADERS, BODY):
                outcomes.append("handled")
        except (AlreadySeen, BeingHandled):
            outcomes.append("refused")

    threads = [threading.Thread(target=post) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(outcomes) == ["handled"] + ["refused"] * 15


class SeenJustNow:
    """Another thread finishes with the id between two looks: not there when asked first, there from then on."""

    def __init__(self, receiver_of: list[Receiver]) -> None:
        self._receiver_of = receiver_of
        self._ids = SeenInMemory()
        self._is_first = True

    def __contains__(self, event_id: str, /) -> bool:
        if self._is_first:
            self._is_first = False
            with pytest.raises(BeingHandled), self._receiver_of[0].handling(HEADERS, BODY):
                pytest.fail("handled twice at once")
        return event_id in self._ids

    def add(self, event_id: str, /) -> bool:
        return self._ids.add(event_id)


def test_an_id_is_looked_up_only_when_nobody_else_can_finish_it() -> None:
    itself: list[Receiver] = []
    itself.append(receiver(seen=SeenJustNow(itself)))
    with itself[0].handling(HEADERS, BODY) as status:
        assert status.id == BUSY["id"]


class SeenElsewhere:
    """Another process marks the id while this one handles it."""

    def __contains__(self, event_id: str, /) -> bool:
        return False

    def add(self, event_id: str, /) -> bool:
        return False


def test_an_id_that_another_process_marked_meanwhile_is_a_repetition() -> None:
    with pytest.raises(AlreadySeen, match="meanwhile"), receiver(seen=SeenElsewhere()).handling(HEADERS, BODY):
        pass


class SeenInTable:
    """The example in the docstring of SeenIds."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __contains__(self, event_id: str, /) -> bool:
        return self.connection.execute("SELECT 1 FROM seen WHERE id = ?", (event_id,)).fetchone() is not None

    def add(self, event_id: str, /) -> bool:
        cursor = self.connection.execute("INSERT INTO seen VALUES (?) ON CONFLICT DO NOTHING", (event_id,))
        return cursor.rowcount == 1


@pytest.fixture
def connection() -> Any:
    connection = sqlite3.connect(":memory:")
    connection.executescript("CREATE TABLE seen (id TEXT PRIMARY KEY); CREATE TABLE calls (status TEXT)")
    yield connection
    connection.close()


def rows(connection: sqlite3.Connection) -> tuple[int, int]:
    calls, seen = (connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("calls", "seen"))
    return calls, seen


def test_in_a_transaction_effect_and_mark_stand_or_fall_together(connection: sqlite3.Connection) -> None:
    in_table = receiver(seen=SeenInTable(connection))

    def handle(*, fails: bool) -> None:
        with connection, in_table.handling(HEADERS, BODY) as status:
            connection.execute("INSERT INTO calls VALUES (?)", (status.status,))
            if fails:
                raise BrokenError

    with pytest.raises(BrokenError):
        handle(fails=True)
    assert rows(connection) == (0, 0)
    handle(fails=False)
    assert rows(connection) == (1, 1)
    with pytest.raises(AlreadySeen):
        handle(fails=False)
    assert rows(connection) == (1, 1)


def test_who_marks_second_has_the_effect_rolled_back(connection: sqlite3.Connection) -> None:
    in_table = receiver(seen=SeenInTable(connection))

    def handle() -> None:
        with connection, in_table.handling(HEADERS, BODY) as status:
            connection.execute("INSERT INTO calls VALUES (?)", (status.status,))
            connection.execute("INSERT INTO seen VALUES (?)", (status.id,))

    with pytest.raises(AlreadySeen):
        handle()
    assert rows(connection) == (0, 0)


# --- the memory


def test_the_memory_tells_new_from_known() -> None:
    seen: SeenIds = SeenInMemory()
    assert "a" not in seen
    assert seen.add("a")
    assert not seen.add("a")
    assert "a" in seen


def test_the_memory_forgets_the_oldest() -> None:
    seen = SeenInMemory(max=2)
    for event_id in "abac":
        seen.add(event_id)
    assert ["a" in seen, "b" in seen, "c" in seen] == [False, True, True]


def test_a_memory_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError):
        SeenInMemory(max=0)


def test_of_a_crowd_one_is_told_that_an_id_is_new() -> None:
    seen = SeenInMemory(max=50)
    new: list[str] = []
    begin = threading.Barrier(8)

    def add_all() -> None:
        begin.wait(PATIENCE_S)
        new.extend(event_id for event_id in map(str, range(50)) if seen.add(event_id))

    threads = [threading.Thread(target=add_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(new, key=int) == [str(number) for number in range(50)]


# --- errors


@pytest.mark.parametrize(
    ("kind", "http_status"),
    [(BadSignature, 401), (TooOld, 401), (Malformed, 400), (AlreadySeen, 200), (BeingHandled, 409)],
)
def test_each_error_says_what_to_answer(kind: type[ReceiverError], http_status: int) -> None:
    assert issubclass(kind, ReceiverError)
    assert issubclass(kind, ClientError)
    assert kind.http_status == kind("x").http_status == http_status


# --- anything at all: only a ReceiverError, whatever comes

at_any_speed = settings(deadline=None)
names = st.one_of(st.sampled_from(sorted(HEADERS)), st.text(max_size=20))
values = st.one_of(st.sampled_from(sorted(HEADERS.values())), st.text(max_size=60))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(sorted(map(str, BUSY.values()))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@at_any_speed
@given(st.lists(st.tuples(names | names.map(lambda n: n.encode("utf-8", "replace")), values)), st.binary())
def test_arbitrary_posts_raise_only_receiver_errors(headers: Any, body: bytes) -> None:
    with pytest.raises(ReceiverError):
        receiver().read(headers, body)


@at_any_speed
@given(st.dictionaries(names, values), st.binary())
def test_arbitrary_headers_over_the_true_ones_raise_only_receiver_errors(headers: Any, tail: bytes) -> None:
    with suppress(ReceiverError):
        receiver().read(HEADERS | headers, BODY + tail)


@at_any_speed
@given(st.text().map(str.encode) | st.text().map(lambda text: b"data=" + text.encode()))
def test_arbitrary_signed_bodies_raise_only_receiver_errors(body: bytes) -> None:
    with pytest.raises(ReceiverError):
        receiver().read(signed(body), body)


@at_any_speed
@given(st.dictionaries(st.sampled_from(sorted(BUSY)), json_values))
def test_arbitrary_signed_json_raises_only_receiver_errors(change: dict[str, Any]) -> None:
    body = urllib.parse.urlencode({"data": json.dumps(BUSY | change)}).encode()
    try:
        status = receiver().read(signed(body), body)
    except ReceiverError:
        return
    assert status.raw["id"] == status.id == BUSY["id"]


@at_any_speed
@given(st.text(), st.text())
def test_text_survives_the_form(origin: str, texto: str) -> None:
    body = form(BUSY | {"origem": origin, "causa": {"texto": texto}})
    status = receiver().read(signed(body), body)
    assert status.origem == origin
    assert status.causa == Cause(None, None, texto)
