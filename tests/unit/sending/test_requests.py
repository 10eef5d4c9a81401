"""What goes over the wire for one attempt, byte for byte, and that receivers can check where it came from."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from toque import __version__
from toque.callbacks.callback import Callback
from toque.callbacks.delivery import Event
from toque.callbacks.url import parse_url
from toque.calls.model import Status
from toque.errors import InputError
from toque.sending.requests import RequestWriter

NOW = datetime(2026, 3, 2, 12, 0, 0, 999_999, tzinfo=UTC)
NEW_SECRET, OLD_SECRET = ("whsec_" + b64encode(bytes([number]) * 32).decode() for number in (1, 2))
PAYLOAD = '{"status":"iniciou","destino":"+55 (11) 9&7%=ção\\n\\"😀\\"#?"}'


def make_callback(url: str = "https://receiver.example/status", **changes: object) -> Callback:
    made = Callback(
        id=1, code="c" * 40, client_id="client", url=url, pin=None, created_at=NOW, secrets=(NEW_SECRET,)
    )  # fmt: skip
    return replace(made, **changes)


def make_event(payload: str = PAYLOAD) -> Event:
    return Event(
        seq=1,
        id="c2b8f1a4-5d0b-5f35-9f0e-2f4f6a9e4d27",
        client_id="client",
        callerid="6f1f2d0e-93a5-5c6e-8a3c-6b1d3c0f7a11",
        direction="made",
        pin="central",
        status=Status.INITIATED,
        sequence=1,
        accepted_at=NOW - timedelta(seconds=3),
        payload=payload,
    )


class Read:
    """A request as llhttp, the parser of Node and uvicorn, reads it."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.headers: dict[str, str] = {}
        self.target = self.body = b""
        self.is_whole = False
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(head + body)
        self.method = parser.get_method()
        self.version = parser.get_http_version()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert name.decode().lower() not in self.headers
        self.headers[name.decode().lower()] = value.decode("ascii")

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_whole = True


def read(callback: Callback, event: Event | None = None, now: datetime = NOW) -> Read:
    post = RequestWriter(callback).write(event or make_event(), now)
    return Read(post.head, post.body)


def test_the_head_byte_for_byte() -> None:
    event = make_event('{"a":1}')
    post = RequestWriter(make_callback("http://receiver.example:8080/a/b?c=d&e=%20", credentials="user:word")).write(event, NOW)
    signature = Webhook(NEW_SECRET).sign(event.id, NOW, "data=%7B%22a%22%3A1%7D")
    assert post.body == b"data=%7B%22a%22%3A1%7D"
    assert post.head == (
        "POST /a/b?c=d&e=%20 HTTP/1.1\r\n"
        "Host: receiver.example:8080\r\n"
        f"User-Agent: toque/{__version__}\r\n"
        "Accept: */*\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        "Authorization: Basic dXNlcjp3b3Jk\r\n"
        "Content-Length: 22\r\n"
        "webhook-id: c2b8f1a4-5d0b-5f35-9f0e-2f4f6a9e4d27\r\n"
        "webhook-timestamp: 1772452800\r\n"
        f"webhook-signature: {signature}\r\n"
        "\r\n"
    ).encode("ascii")
    assert post.url == replace(parse_url("http://receiver.example:8080/a/b?c=d&e=%20"), credentials="user:word")


def test_a_parser_reads_it_whole() -> None:
    request = read(make_callback())
    assert (request.method, request.version, request.target) == (b"POST", "1.1", b"/status")
    assert request.is_whole
    assert request.headers["content-length"] == str(len(request.body))
    assert parse_qs(request.body.decode("ascii"), strict_parsing=True, encoding="utf-8") == {"data": [PAYLOAD]}
    assert "authorization" not in request.headers


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://receiver.example/", "receiver.example"),
        ("http://receiver.example:80/", "receiver.example"),
        ("https://receiver.example:443/", "receiver.example"),
        ("https://receiver.example:80/", "receiver.example:80"),
        ("http://receiver.example:8080/", "receiver.example:8080"),
        ("http://192.0.2.1:81/", "192.0.2.1:81"),
        ("http://[2001:db8::1]/", "[2001:db8::1]"),
        ("http://[2001:DB8:0:0::1]:8080/", "[2001:db8::1]:8080"),
        ("https://Ação.com.br/", "xn--ao-siap.com.br"),
        ("https://receiver.example./", "receiver.example"),
    ],
)
def test_host(url: str, host: str) -> None:
    assert read(make_callback(parse_url(url).text)).headers["host"] == host


@pytest.mark.parametrize(
    ("credentials", "sent"),
    [
        ("user:word", b"user:word"),
        ("user:", b"user:"),
        (":word", b":word"),
        ("user:a:b c", b"user:a:b c"),
        ("usuário:ção€", "usuário:ção€".encode()),
    ],
)
def test_credentials_are_sent_as_basic_authorization(credentials: str, sent: bytes) -> None:
    assert read(make_callback(credentials=credentials)).headers["authorization"] == "Basic " + b64encode(sent).decode()


@given(st.text(), st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_whatever_is_sent_arrives_unchanged_and_verifies(text: str, now: datetime) -> None:
    payload = json.dumps({"texto": text}, ensure_ascii=False).encode("utf-8", "replace").decode()
    event = make_event(payload)
    request = read(make_callback(), event, now)
    assert parse_qs(request.body.decode("ascii"), strict_parsing=True)["data"] == [payload]
    assert request.headers["webhook-id"] == event.id
    assert int(request.headers["webhook-timestamp"]) == int(now.timestamp())
    assert request.headers["webhook-signature"] == Webhook(NEW_SECRET).sign(event.id, now, request.body.decode("ascii"))


def test_a_standard_webhooks_receiver_accepts_it() -> None:
    now = datetime.now(UTC)  # its `verify` looks at the real clock
    request = read(make_callback(), now=now)
    # It parses the body as JSON once the signature is right, which a form is not.
    with pytest.raises(json.JSONDecodeError):
        Webhook(NEW_SECRET).verify(request.body, request.headers)


def test_during_a_rotation_both_secrets_sign_and_afterwards_the_new_one() -> None:
    until = NOW + timedelta(hours=1)
    writer = RequestWriter(make_callback(secrets=(NEW_SECRET, OLD_SECRET), old_secret_until=until))
    event = make_event()

    def signatures(now: datetime) -> list[str]:
        post = writer.write(event, now)
        return Read(post.head, post.body).headers["webhook-signature"].split(" ")

    def expected(now: datetime) -> list[str]:
        body = writer.write(event, now).body.decode("ascii")
        return [Webhook(secret).sign(event.id, now, body) for secret in (NEW_SECRET, OLD_SECRET)]

    assert signatures(NOW) == expected(NOW)
    just_before = until - timedelta(microseconds=1)
    assert signatures(just_before) == expected(just_before)
    assert signatures(until) == expected(until)[:1]
    assert signatures(until + timedelta(days=1)) == expected(until + timedelta(days=1))[:1]


def test_another_attempt_has_another_time_and_signature_and_the_same_id_and_body() -> None:
    writer = RequestWriter(make_callback())
    first, second = (writer.write(make_event(), NOW + timedelta(seconds=wait)) for wait in (0, 5))
    one, other = Read(first.head, first.body), Read(second.head, second.body)
    assert one.body == other.body
    assert one.headers["webhook-id"] == other.headers["webhook-id"]
    assert one.headers["webhook-signature"] != other.headers["webhook-signature"]
    assert int(other.headers["webhook-timestamp"]) - int(one.headers["webhook-timestamp"]) == 5


def test_a_payload_that_is_no_event() -> None:
    post = RequestWriter(make_callback()).write_payload("some-id", "{}", NOW)
    assert Read(post.head, post.body).headers["webhook-id"] == "some-id"


def test_secrets_show_in_no_repr() -> None:
    writer = RequestWriter(make_callback("http://receiver.example/hidden?token=hidden", credentials="user:hidden"))
    post = writer.write(make_event(), NOW)
    shown = repr((post, writer.callback.credentials is not None, writer.url))
    assert "hidden" not in shown
    assert b64encode(b"user:hidden").decode() not in shown


@pytest.mark.parametrize(
    "unusable",
    [
        lambda: make_callback("ftp://receiver.example/"),
        lambda: make_callback(secrets=("secret",)),
        lambda: make_callback(secrets=("whsec_???",)),
    ],
)
def test_a_registration_that_makes_no_request_is_told_at_once(unusable: Callable[[], Callback]) -> None:
    with pytest.raises((InputError, ValueError)):
        RequestWriter(unusable())
