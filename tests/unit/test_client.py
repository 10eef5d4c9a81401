"""Against a real HTTP server in a thread: what `toque.client` sends, understands and survives."""

import os
import pickle
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trustme
from tests.support.wire_server import (
    CALLBACK_SECRET,
    CLIENT_ID,
    CLIENT_SECRET,
    Answer,
    Request,
    WireServer,
    answer,
    ok,
    refusal,
)

import toque
from toque import client as client_module
from toque.client import (
    AlreadyRemoved,
    AuthenticationFailed,
    BadAnswer,
    CallbackInfo,
    Client,
    InvalidParameter,
    Refused,
    Registration,
    ServerFailed,
    TooManyAttempts,
    UnknownCode,
    Unreachable,
)
from toque.errors import ClientError

THREADS = 16
PATIENCE_S = 20.0  # how long a test waits for a milestone before it counts as lost
URL = "https://crm.example.com/chamadas?fila=são paulo&x=1+1"


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[WireServer]:
    with WireServer() as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def client(server: WireServer, clock: ManualClock) -> Client:
    return Client(server.url, CLIENT_ID, CLIENT_SECRET, clock=clock, timeout=PATIENCE_S)


def token(value: str, **members: object) -> Answer:
    return answer(access_token=value, **members)


# --- the methods


def test_registers_a_url(server: WireServer, client: Client) -> None:
    registration = client.add_callback(URL)
    assert registration == Registration("0" * 39 + "1", CALLBACK_SECRET)
    [asked] = server.requests("/request_token")
    assert asked.fields == {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "format": "json"}
    [sent] = server.requests("/voz/add-callback")
    assert sent.method == "POST"
    assert sent.headers["content-type"] == "application/x-www-form-urlencoded"
    assert sent.fields == {"url": URL, "access_token": "token-1", "format": "json"}


def test_registers_a_url_for_one_pin(server: WireServer, client: Client) -> None:
    client.add_callback(URL, pin="1001")
    assert server.requests("/voz/add-callback")[0].fields["pin"] == "1001"


def test_the_same_url_again_comes_without_a_secret(client: Client) -> None:
    first = client.add_callback(URL)
    assert client.add_callback(URL) == Registration(first.code, None)


def test_lists_what_is_registered(client: Client) -> None:
    everything = client.add_callback(URL).code
    one_pin = client.add_callback(URL, pin="1001").code
    created = datetime(2026, 3, 1, 9, 5, 7)
    assert client.list_callbacks() == [
        CallbackInfo(everything, URL, None, created, "saudavel"),
        CallbackInfo(one_pin, URL, "1001", created, "saudavel"),
    ]


def test_an_empty_list_is_a_list(client: Client) -> None:
    assert client.list_callbacks() == []


def test_removes_once(client: Client) -> None:
    code = client.add_callback(URL).code
    client.remove_callback(code)
    with pytest.raises(AlreadyRemoved):
        client.remove_callback(code)
    with pytest.raises(UnknownCode):
        client.remove_callback("f" * 40)


def test_a_base_url_may_have_a_path_and_a_slash(server: WireServer) -> None:
    server.on("/pabx/request_token", token("t"))
    server.on("/pabx/voz/list-callback", ok(total=0, data=[]))
    assert Client(server.url + "/pabx/", CLIENT_ID, CLIENT_SECRET).list_callbacks() == []


# --- tokens


def test_one_token_serves_many_calls(server: WireServer, client: Client) -> None:
    for _ in range(3):
        client.list_callbacks()
    assert len(server.requests("/request_token")) == 1


@pytest.mark.parametrize(
    ("lifetime_s", "used_for_s"),
    [(3600, 3540.0), ("3600", 3540.0), (100, 90.0), (None, 3540.0)],
    ids=["an hour", "as a text", "short", "not said"],
)
def test_a_token_is_renewed_before_it_expires(
    server: WireServer, client: Client, clock: ManualClock, lifetime_s: object, used_for_s: float
) -> None:
    members = {} if lifetime_s is None else {"expires_in": lifetime_s}
    server.on("/request_token", token("first", **members), token("second", **members))
    server.valid_tokens |= {"first", "second"}
    client.list_callbacks()
    clock.now_s += used_for_s - 0.1
    client.list_callbacks()
    clock.now_s += 0.2
    client.list_callbacks()
    used = [request.fields["access_token"] for request in server.requests("/voz/list-callback")]
    assert used == ["first", "first", "second"]


def test_a_tokens_life_counts_from_before_it_was_asked_for(server: WireServer, client: Client, clock: ManualClock) -> None:
    def slow(_: Request) -> Answer:
        clock.now_s += 80
        return token("first", expires_in=100)

    server.on("/request_token", slow)
    server.valid_tokens.add("first")
    client.list_callbacks()
    clock.now_s += 11
    client.list_callbacks()
    assert server.requests("/voz/list-callback")[1].fields["access_token"] == "token-1"


def test_a_token_that_lives_no_time_is_used_once(server: WireServer, client: Client) -> None:
    server.on("/request_token", token("now", expires_in=0))
    server.valid_tokens.add("now")
    client.list_callbacks()
    client.list_callbacks()
    assert len(server.requests("/request_token")) == 2


def test_a_refused_token_is_replaced_and_the_call_repeated(server: WireServer, client: Client) -> None:
    client.list_callbacks()
    server.revoke_tokens()
    client.add_callback(URL)
    used = [request.fields["access_token"] for request in server.requests("/voz/add-callback")]
    assert used == ["token-1", "token-2"]
    assert len(server.callbacks) == 1


def test_a_new_token_that_is_refused_too_is_the_end(server: WireServer, client: Client) -> None:
    server.on("/voz/list-callback", refusal(401, "006"), refusal(401, "006"))
    with pytest.raises(AuthenticationFailed) as caught:
        client.list_callbacks()
    assert len(server.requests("/voz/list-callback")) == 2
    assert len(server.requests("/request_token")) == 2
    assert caught.value.__context__ is None


def test_wrong_credentials_are_tried_once(server: WireServer) -> None:
    with pytest.raises(AuthenticationFailed):
        Client(server.url, CLIENT_ID, "wrong").list_callbacks()
    assert len(server.requests("/request_token")) == 1
    assert server.requests("/voz/list-callback") == []


def test_a_failed_renewal_is_tried_again_by_the_next_call(server: WireServer, client: Client) -> None:
    server.on("/request_token", refusal(503, "005"))
    with pytest.raises(ServerFailed):
        client.list_callbacks()
    assert client.list_callbacks() == []


# --- many threads


def in_crowd(work: object, *arguments: object) -> list[object]:
    """The outcomes of THREADS calls at once; a ClientError is an outcome."""

    def attempt(_: int) -> object:
        try:
            return work(*arguments)  # type: ignore[operator]
        except ClientError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(attempt, range(THREADS), timeout=PATIENCE_S))


def test_a_crowd_without_a_token_asks_for_one(server: WireServer, client: Client) -> None:
    assert in_crowd(client.list_callbacks) == [[]] * THREADS
    assert len(server.requests("/request_token")) == 1


def test_a_crowd_whose_token_is_refused_renews_it_once(server: WireServer, client: Client) -> None:
    client.list_callbacks()
    everybody_sent = threading.Barrier(THREADS)

    def refuse_all_at_once(request: Request) -> Answer:
        assert request.fields["access_token"] == "token-1"
        everybody_sent.wait(PATIENCE_S)
        return refusal(401, "006")

    server.on("/voz/list-callback", *[refuse_all_at_once] * THREADS)
    assert in_crowd(client.list_callbacks) == [[]] * THREADS
    assert len(server.requests("/request_token")) == 2


def test_a_refusal_that_comes_late_does_not_renew_a_newer_token(server: WireServer, client: Client) -> None:
    client.list_callbacks()
    arrived, go_on = threading.Event(), threading.Event()

    def refuse_late(_: Request) -> Answer:
        arrived.set()
        assert go_on.wait(PATIENCE_S)
        return refusal(401, "006")

    server.on("/voz/list-callback", refuse_late)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(client.list_callbacks)
        assert arrived.wait(PATIENCE_S)
        server.revoke_tokens()
        client.list_callbacks()  # has its token refused, and renews it
        go_on.set()
        assert late.result(PATIENCE_S) == []
    assert len(server.requests("/request_token")) == 2


def test_a_crowd_shares_an_expiry(server: WireServer, client: Client, clock: ManualClock) -> None:
    client.list_callbacks()
    clock.now_s += 3600
    assert in_crowd(client.list_callbacks) == [[]] * THREADS
    assert len(server.requests("/request_token")) == 2


def test_who_waits_for_a_renewal_shares_its_failure() -> None:
    """Sixteen threads with a wrong secret must not become sixteen failed logins."""
    waiting = threading.Semaphore(0)
    fetches: list[int] = []

    def fetch() -> client_module._Token:
        fetches.append(1)
        for _ in range(THREADS - 1):
            assert waiting.acquire(timeout=PATIENCE_S)
        raise AuthenticationFailed("006", "no", 401)

    class WatchedFuture(client_module.Future):  # type: ignore[type-arg]
        def result(self, timeout: float | None = None) -> object:
            waiting.release()
            return super().result(timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "Future", WatchedFuture)
        tokens = client_module._Tokens(fetch, lambda: 0.0)
        outcomes = in_crowd(tokens.current)
    assert [type(outcome) for outcome in outcomes] == [AuthenticationFailed] * THREADS
    assert len(fetches) == 1


def test_an_interrupted_renewal_is_taken_over_by_who_waited() -> None:
    waits = threading.Event()
    outcomes: list[object] = []

    class WatchedFuture(client_module.Future):  # type: ignore[type-arg]
        def result(self, timeout: float | None = None) -> object:
            waits.set()
            return super().result(timeout)

    def fetch() -> client_module._Token:
        if threading.current_thread() is threading.main_thread():
            waiter.start()
            assert waits.wait(PATIENCE_S)
            raise KeyboardInterrupt
        return client_module._Token("taken over", 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "Future", WatchedFuture)
        tokens = client_module._Tokens(fetch, lambda: 0.0)
        waiter = threading.Thread(target=lambda: outcomes.append(tokens.current().value))
        with pytest.raises(KeyboardInterrupt):
            tokens.current()
        waiter.join(PATIENCE_S)
    assert outcomes == ["taken over"]


# --- refusals


@pytest.mark.parametrize(
    ("status", "codigo", "kind"),
    [
        (400, "001", InvalidParameter),
        (503, "005", ServerFailed),
        (500, "005", ServerFailed),
        (401, "006", AuthenticationFailed),
        (404, "009", UnknownCode),
        (404, "010", AlreadyRemoved),
        (200, "011", Refused),
        (200, "001", InvalidParameter),
    ],
)
def test_a_return_code_becomes_its_error(
    server: WireServer, client: Client, status: int, codigo: str, kind: type[Refused]
) -> None:
    server.on("/voz/list-callback", *[refusal(status, codigo, "não deu")] * 2)
    with pytest.raises(Refused) as caught:
        client.list_callbacks()
    assert type(caught.value) is kind
    assert (caught.value.codigo, caught.value.msg, caught.value.http_status) == (codigo, "não deu", status)
    assert str(caught.value) == f"{codigo}: não deu (HTTP {status})"
    assert isinstance(caught.value, ClientError)


@pytest.mark.parametrize(
    ("header", "expected"),
    [("30", timedelta(seconds=30)), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None), ("9" * 40, None)],
)
def test_too_many_attempts_say_how_long_to_wait(
    server: WireServer, client: Client, header: str, expected: timedelta | None
) -> None:
    server.on("/request_token", refusal(429, "006", Retry_After=header))
    with pytest.raises(TooManyAttempts) as caught:
        client.list_callbacks()
    assert caught.value.retry_after == expected
    assert len(server.requests("/request_token")) == 1


def test_a_limit_on_a_method_is_not_taken_for_a_refused_token(server: WireServer, client: Client) -> None:
    server.on("/voz/list-callback", refusal(429, "006", Retry_After="5"))
    with pytest.raises(TooManyAttempts):
        client.list_callbacks()
    assert len(server.requests("/request_token")) == 1


@pytest.mark.parametrize(
    "error",
    [Refused("011", "x", 200, timedelta(1)), Unreachable("http://x", "gone"), BadAnswer("http://x", "odd", 502)],
)
def test_errors_survive_pickling(error: ClientError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, str(again)) == (type(error), error.args, str(error))


# --- garbage, and nobody there


ENVELOPE = b'{"codigo": "000"}'


@pytest.mark.parametrize(
    "garbage",
    [
        Answer(200, b""),
        Answer(200, b"<html>hello</html>"),
        Answer(502, b"<html>Bad Gateway</html>"),
        Answer(302, b"", {"Location": "http://127.0.0.1:9/"}),
        Answer(200, b'"000"'),
        Answer(200, b"[]"),
        Answer(200, b"{}"),
        Answer(200, b'{"codigo": 0}'),
        Answer(200, b'{"codigo": "sim"}'),
        Answer(500, ENVELOPE),
        Answer(200, b"\xff\xfe\x00"),
        Answer(200, b"[" * 100_000),
        Answer(200, b'{"codigo": ' + b"9" * 10_000 + b"}"),
        Answer(raw=b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        Answer(raw=b"HTTP/1.1 abc def\r\n\r\n"),
        Answer(raw=b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 70_000 + b"\r\n\r\n"),
        Answer(raw=b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 200 + b"\r\n"),
    ],
    ids=lambda garbage: repr(garbage.raw or (garbage.status, garbage.body))[:40],
)
def test_garbage_is_a_bad_answer(server: WireServer, client: Client, garbage: Answer) -> None:
    server.on("/voz/list-callback", garbage)
    with pytest.raises(BadAnswer) as caught:
        client.list_callbacks()
    assert caught.value.http_status == (garbage.status if garbage.raw is None else None)
    assert len(server.requests("/voz/list-callback")) == 1


@pytest.mark.parametrize(
    "odd",
    [
        token("t", expires_in="soon"),
        token("t", expires_in=-1),
        token("t", expires_in=True),
        token("t", expires_in=float("nan")),
        token("t", expires_in=float("inf")),
        token("t", expires_in=10**400),
        token("t", expires_in="9" * 5000),
        token(""),
        answer(access_token=7),
        answer(access_token=None),
        answer(500, access_token="t"),
        answer(codigo="000"),
        answer(error="invalid_client"),
    ],
    ids=lambda odd: repr(odd.body)[:60],
)
def test_an_odd_token_answer_is_a_bad_answer(server: WireServer, client: Client, odd: Answer) -> None:
    server.on("/request_token", odd)
    with pytest.raises(BadAnswer):
        client.list_callbacks()


ENTRY = {"code": "c", "url": "u", "pin": None, "criado": "2026-03-01 09:05:07", "saude": "saudavel"}


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"data": None},
        {"data": "x"},
        {"data": ["x"]},
        {"data": [ENTRY | {"code": None}]},
        {"data": [ENTRY | {"url": 3}]},
        {"data": [ENTRY | {"pin": 1001}]},
        {"data": [ENTRY | {"criado": "ontem"}]},
        {"data": [ENTRY | {"saude": []}]},
    ],
)
def test_an_odd_list_is_a_bad_answer(server: WireServer, client: Client, members: dict[str, object]) -> None:
    server.on("/voz/list-callback", ok(**members))
    with pytest.raises(BadAnswer):
        client.list_callbacks()


def test_a_registration_without_a_code_is_a_bad_answer(server: WireServer, client: Client) -> None:
    server.on("/voz/add-callback", ok(segredo=CALLBACK_SECRET))
    with pytest.raises(BadAnswer, match="no code"):
        client.add_callback(URL)


def test_an_endless_answer_is_cut_off(server: WireServer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.list_callbacks()
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 100)
    server.on("/voz/list-callback", Answer(200, b" " * 101))
    with pytest.raises(BadAnswer, match="longer than 100 bytes"):
        client.list_callbacks()


@pytest.mark.parametrize(
    "cut",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
)
def test_a_broken_connection_is_unreachable(server: WireServer, client: Client, cut: bytes) -> None:
    server.on("/voz/list-callback", Answer(raw=cut))
    with pytest.raises(Unreachable):
        client.list_callbacks()


def test_nobody_listening_is_unreachable() -> None:
    with socket.socket() as reserved:  # bound and not listening: nobody else can take the port meanwhile
        reserved.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(Unreachable, match="refused") as caught:
            Client(address, CLIENT_ID, CLIENT_SECRET).list_callbacks()
    assert caught.value.address == f"{address}/request_token"


def test_a_name_that_does_not_exist_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(Unreachable, match="not known"):
        Client("http://nowhere.invalid", CLIENT_ID, CLIENT_SECRET).list_callbacks()


def test_silence_is_unreachable(server: WireServer) -> None:
    had_enough = threading.Event()

    def never(_: Request) -> Answer:
        had_enough.wait(PATIENCE_S)
        return ok()

    server.on("/request_token", never)
    try:
        with pytest.raises(Unreachable, match="timed out"):
            Client(server.url, CLIENT_ID, CLIENT_SECRET, timeout=0.05).list_callbacks()
    finally:
        had_enough.set()


def test_a_plain_server_under_https_is_unreachable(server: WireServer) -> None:
    with pytest.raises(Unreachable):
        Client(server.url.replace("http", "https"), CLIENT_ID, CLIENT_SECRET).list_callbacks()


def test_a_private_authority_is_trusted_only_when_told() -> None:
    authority = trustme.CA()
    inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(inside)
    outside = ssl.create_default_context()
    authority.configure_trust(outside)
    with WireServer(tls=inside) as server:
        assert Client(server.url, CLIENT_ID, CLIENT_SECRET, context=outside).list_callbacks() == []
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            Client(server.url, CLIENT_ID, CLIENT_SECRET).list_callbacks()


def test_a_proxy_in_the_environment_is_used(server: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    server.on("http://api.invalid/request_token", token("t"))
    server.on("http://api.invalid/voz/list-callback", ok(total=0, data=[]))
    assert Client("http://api.invalid", CLIENT_ID, CLIENT_SECRET).list_callbacks() == []


# --- secrets stay where they are


WITH_PASSWORD = "https://maria:s3nh4@crm.example.com/x"


def told(error: BaseException) -> str:
    return repr(error) + str(error) + "".join(traceback.format_exception(error))


@pytest.mark.parametrize("path", ["/request_token", "/voz/add-callback"])
@pytest.mark.parametrize("shape", ["refusal", "page", "status line", "cut short"])
def test_no_error_tells_a_secret(server: WireServer, client: Client, path: str, shape: str) -> None:
    """Even where a careless server sends everything back that it was sent."""

    def echo(request: Request) -> Answer:
        text = " ".join(request.fields.values()) + " access_token=token-1"
        match shape:
            case "refusal":
                return refusal(400, "001", text)
            case "page":
                return Answer(200, text.encode())
            case "status line":
                return Answer(raw=text.encode() + b"\r\n\r\n")
            case _:
                return Answer(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + text.encode())

    server.on(path, echo)
    with pytest.raises(ClientError) as caught:
        client.add_callback(WITH_PASSWORD)
    text = told(caught.value)
    assert CLIENT_SECRET not in text
    assert "s3nh4" not in text
    if path != "/request_token":  # before the token exists it is only a word in a text
        assert "token-1" not in text


def test_no_repr_tells_a_secret(client: Client) -> None:
    registration = client.add_callback(URL)
    assert CALLBACK_SECRET not in repr(registration)
    assert CLIENT_SECRET not in repr(client)
    assert "token-1" not in repr(client._tokens.current())


def test_a_url_that_is_no_unicode_is_for_the_server_to_refuse(server: WireServer, client: Client) -> None:
    server.on("/voz/add-callback", refusal(400, "001"))
    with pytest.raises(InvalidParameter):
        client.add_callback("https://crm.example.com/\udc80")


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "api.example.com",
        "ftp://api.example.com",
        "file:///etc/passwd",
        "http://",
        "http://maria:s3nh4@api.example.com",
        "http://maria:s3n/h4@api.example.com",
        "http://api.example.com:s3nh4",
        "http://api.example.com:0",
        "http://api.example.com:70000",
        "http://api.example.com?x=s3nh4",
        "http://api.example.com#x",
        "http://api.example.com/ x",
        "http://api.example.com/\r\nX: y",
        "http://[::1",
        "http://" + "x" * 64 + ".example.com",
        "http://são.example.com",
    ],
)
def test_a_base_url_that_cannot_work_is_refused_at_once(base_url: str) -> None:
    with pytest.raises(ValueError, match="base_url must") as caught:
        Client(base_url, CLIENT_ID, CLIENT_SECRET)
    assert "s3n" not in str(caught.value)


# --- no dependencies


@pytest.mark.parametrize("module", ["client", "receiver"])
def test_the_sdk_needs_nothing_but_python(module: str) -> None:
    source = str(Path(toque.__file__).parent.parent)
    program = f"""
import sys
sys.path.insert(0, {source!r})
import toque.{module}
known = {{"__main__", *sys.stdlib_module_names}}
print(*sorted(name for name in sys.modules if name.partition(".")[0] not in known))
"""
    done = subprocess.run([sys.executable, "-S", "-I", "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["toque", *sorted([f"toque.{module}", "toque.errors"])]
