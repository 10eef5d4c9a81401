"""Stopping in order, starting wrongly, and changes by commands while the server runs."""

import contextlib
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.support.hep_sender import send_by_tcp
from tests.support.recording_receiver import RecordingReceiver, Reply, assert_signed, by_side, words
from tests.support.sip_messages import ProxiedCall
from tests.support.toque_process import (
    HOST,
    PATIENCE_S,
    Account,
    ToqueProcess,
    clean_environment,
    free_port,
    run_toque,
)

from toque.client import AuthenticationFailed, Client, ClientError, InvalidParameter, Refused

LINE = "554130600300"
ANSWERED = ["iniciou", "chamando", "atendeu", "desligou"]
AT_ONCE = 2  # posts to one callback whose answers have not shown yet that it takes more
STARTED_AT_ONCE = 4  # processes that are to fail
AT_ONCE_S = 5.0  # "at once" for a process that ends, on a busy machine
SEEN_WITHIN_S = 1.0  # what a command changes (docs/operation.md)

_names = (f"call{number}" for number in count(1))


@pytest.fixture
def receiver() -> Iterator[RecordingReceiver]:
    with RecordingReceiver() as receiver:
        yield receiver


@pytest.fixture
def toque(tmp_path: Path) -> Iterator[ToqueProcess]:
    """A server whose callers may mistake their secrets as often as they like."""
    with ToqueProcess(tmp_path, login_failures="1000", stop_grace="60s", attempt_timeout="60s") as toque:
        yield toque


def make_calls(toque: ToqueProcess, number: int = 1, *, caller: str = LINE) -> int:
    """Calls that are answered and hung up, all at this moment; the number of their packets."""
    packets = []
    for _ in range(number):
        call = ProxiedCall(name=next(_names), caller=caller, begins=datetime.now(UTC))
        call.invite()
        call.ring(after=0.01)
        call.answer(after=0.01)
        call.hang_up(after=0.01)
        packets += call.packets
    send_by_tcp(toque.hep_port, packets)
    return len(packets)


# Stopping


def test_posts_under_way_end_and_are_settled_before_the_server_does(toque: ToqueProcess, receiver: RecordingReceiver) -> None:
    secret = toque.add_client("Escritório", vendas=[LINE]).api().add_callback(receiver.url()).secret or ""
    with receiver.hold():
        make_calls(toque, 3)
        held = receiver.wait_for_count(AT_ONCE)
        toque.wait_until(lambda: toque.health()["events"] == 12, "the calls are not stored")
        toque.signal(signal.SIGTERM)
        wait_until_nobody_listens(toque.hep_port)
    assert toque.wait() == 0
    assert words(receiver.posts) == ["iniciou"] * AT_ONCE  # nothing was begun after the signal

    toque.start()
    toque.wait_ready()
    receiver.wait_for_count(12)
    toque.wait_until(lambda: toque.waiting() == 0, "the server goes on")
    assert len(receiver.posts) == 12
    assert {post.id for post in receiver.posts[AT_ONCE:]}.isdisjoint(post.id for post in held)
    assert [words(side) for side in by_side(receiver.posts).values()] == [ANSWERED] * 3
    assert_signed(receiver.posts, secret)


def test_what_was_understood_is_stored_before_the_server_ends(toque: ToqueProcess, receiver: RecordingReceiver) -> None:
    toque.add_client("Escritório", vendas=[LINE]).api().add_callback(receiver.url())
    with receiver.hold():
        packets = make_calls(toque, 200)
        toque.wait_until(lambda: toque.health()["hep_packets"] == packets, "the packets do not arrive")
        toque.signal(signal.SIGTERM)
        wait_until_nobody_listens(toque.hep_port)
    assert toque.wait() == 0
    toque.start()
    receiver.wait_for(lambda posts: len({post.id for post in posts}) == 800)


def test_nobody_is_waited_for_longer_than_the_grace(tmp_path: Path, receiver: RecordingReceiver) -> None:
    with ToqueProcess(tmp_path, stop_grace="200ms") as toque:
        toque.add_client("Escritório", vendas=[LINE]).api().add_callback(receiver.url())
        with receiver.hold():
            make_calls(toque)
            receiver.wait_for_count(1)
            toque.signal(signal.SIGTERM)
            assert toque.wait(AT_ONCE_S) == 0
        toque.start()  # nobody knows whether it was taken, so it comes again
        posts = receiver.wait_for_count(5)
        assert words(posts) == ["iniciou", *ANSWERED]
        assert posts[0].id == posts[1].id


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)]
)
def test_a_second_signal_ends_it_at_once(
    toque: ToqueProcess, receiver: RecordingReceiver, first: signal.Signals, second: signal.Signals
) -> None:
    toque.add_client("Escritório", vendas=[LINE]).api().add_callback(receiver.url())
    with receiver.hold():
        make_calls(toque)
        receiver.wait_for_count(1)
        toque.signal(first)
        wait_until_nobody_listens(toque.hep_port)
        assert toque.is_running
        toque.signal(second)
        assert toque.wait(AT_ONCE_S) != 0
    toque.start()
    assert words(receiver.wait_for_count(5)) == ["iniciou", *ANSWERED]


def test_an_idle_server_ends_at_once_and_again_and_again(toque: ToqueProcess) -> None:
    for _ in range(3):
        toque.signal(signal.SIGINT)
        assert toque.wait(AT_ONCE_S) == 0
        toque.start()
        toque.wait_ready()


def wait_until_nobody_listens(port: int) -> None:
    """A server that stops lets go of its HEP port first."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection((HOST, port)).close()
        except OSError:
            return
        time.sleep(0.01)
    pytest.fail(f"somebody still listens on port {port}")


# Starting wrongly: exit code 2, and one line that names the setting, where it was set, and what is allowed.


@contextlib.contextmanager
def taken_port(kind: socket.SocketKind) -> Iterator[int]:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind((HOST, port := free_port()))
        if kind is socket.SOCK_STREAM:
            other.listen()
        yield port


def serve(folder: Path, *flags: str, config: str | None = None, **variables: str) -> tuple[int, str]:
    """Exit code and stderr of a server that cannot start."""
    if config is not None:
        (folder / "toque.toml").write_text(config, encoding="utf-8")
    free = {"TOQUE_HTTP": f"{HOST}:{free_port()}", "TOQUE_HEP": f"{HOST}:{free_port()}"} if config is None else {}
    variables = {f"TOQUE_{name.upper()}": value for name, value in variables.items()}
    done = run_toque("serve", *flags, cwd=folder, environment=clean_environment() | free | variables)
    assert done.stdout == ""
    return done.returncode, done.stderr


# One row each: how it is set wrongly, and what the line must say: the setting, its source, what is allowed.
BAD_SETTINGS: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "http without port",
        {"flags": ["--http", "localhost"]},
        ["http (flag --http)", "an address and a port such as 127.0.0.1:8080"],
    ),
    ("port too large", {"hep": "127.0.0.1:70000"}, ["hep (environment TOQUE_HEP)", "'127.0.0.1:70000'", "an address and a port"]),
    ("hep for the world", {"hep": "0.0.0.0:9060"}, ["hep (environment TOQUE_HEP)", "hep_key or hep_allow_from must be set"]),
    (
        "store",
        {"flags": ["--store", "postgres://x"]},
        ["store (flag --store)", "sqlite:///absolute/path, sqlite:relative/path or nats://host:port"],
    ),
    ("store without servers", {"store": "nats://"}, ["store (environment TOQUE_STORE)", "nats://host:port, with commas"]),
    ("store in no folder", {"store": "sqlite:///dev/null/x.db"}, ["store", "/dev/null/x.db cannot be opened for writing"]),
    ("time", {"token_lifetime": "soon"}, ["token_lifetime (environment TOQUE_TOKEN_LIFETIME)", "'soon'", '"30s", "10m" or "4h"']),
    ("time too long", {"flags": ["--stop-grace", "1h"]}, ["stop_grace (flag --stop-grace)", "from 0 to 300 seconds"]),
    ("number", {"concurrency": "many"}, ["concurrency (environment TOQUE_CONCURRENCY)", "a whole number from 1 to 10000"]),
    ("number too small", {"flags": ["--max-callbacks", "0"]}, ["max_callbacks (flag --max-callbacks)", "from 1 to 10000"]),
    ("network", {"flags": ["--allow-network", "10.0.0.1/8"]}, ["allow_networks (flag --allow-network)", "networks such as"]),
    ("zone", {"time_zone": "Curitiba"}, ["time_zone (environment TOQUE_TIME_ZONE)", "'Curitiba'", "America/Sao_Paulo"]),
    ("country", {"country": "BR"}, ["country (environment TOQUE_COUNTRY)", "'BR'", "calling code such as 55"]),
    ("word", {"log_format": "xml"}, ["log_format (environment TOQUE_LOG_FORMAT)", "'xml'", "human, json"]),
    ("flag", {"log_numbers": "maybe"}, ["log_numbers (environment TOQUE_LOG_NUMBERS)", "'maybe'", "true or false"]),
    ("short key", {"secret_key": "s3nh4"}, ["secret_key (environment TOQUE_SECRET_KEY)", "must have at least"]),
    ("one of two", {"tls_certificate": __file__}, ["tls_certificate (environment TOQUE_TLS_CERTIFICATE)", "needs tls_key"]),
    ("no PEM", {"tls_certificate": __file__, "tls_key": __file__}, ["tls_certificate", "cannot be used"]),
    ("no authorities", {"ca_file": __file__}, ["ca_file", "cannot be read as PEM"]),
    ("no such file", {"ca_file": "/nowhere.pem"}, ["ca_file (environment TOQUE_CA_FILE)", "a file that exists", "/nowhere.pem"]),
    ("unknown setting", {"config": "htp = 1"}, ["htp (toque.toml)", "there is no such setting", "did you mean http?"]),
    ("wrong type", {"config": "http = 8080"}, ["http (toque.toml)", "8080", "an address and a port"]),
    ("no TOML", {"config": "http: 8080"}, ["config (toque.toml)", "is not TOML"]),
    ("no config", {"flags": ["--config", "mine.toml"]}, ["config (mine.toml)", "cannot be read: No such file or directory"]),
    ("unknown source", {"config": '[[sources]]\nkind = "sip"'}, ["sources[1].kind (toque.toml)", "'sip'", "must be hep"]),
    ("source without a name", {"config": '[[sources]]\nkind = "ami"'}, ["sources[1].name (toque.toml)", "must be given"]),
    (
        "source's setting",
        {"config": '[[sources]]\nkind = "hep"\nlisten_on = "127.0.0.1:0"'},
        ["sources[1].listen_on (toque.toml)", "allowed are kind, name, listen, key, allow_from"],
    ),
    (
        "open source",
        {"config": '[[sources]]\nkind = "hep"\nlisten = "0.0.0.0:0"'},
        ["sources[1].listen (toque.toml)", "0.0.0.0:0 is not loopback", "key or allow_from must be set"],
    ),
    (
        "twins",
        {"config": '[[sources]]\nkind = "hep"\n[[sources]]\nkind = "hep"'},
        ["sources.name (toque.toml)", "two sources are named 'hep'"],
    ),
    (
        "both ways",
        {"config": '[[sources]]\nkind = "hep"', "hep": "127.0.0.1:0"},
        ["hep (environment TOQUE_HEP)", "is for set-ups without [[sources]]"],
    ),
]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What a server says to each row, several at a time."""

    def try_row(row: tuple[str, dict[str, Any], list[str]]) -> tuple[int, str]:
        _, wrong, _ = row
        settings = {name: value for name, value in wrong.items() if name != "flags"}
        return serve(tmp_path_factory.mktemp("wrong"), *wrong.get("flags", []), **settings)

    with ThreadPoolExecutor(STARTED_AT_ONCE) as pool:
        return dict(zip([row[0] for row in BAD_SETTINGS], pool.map(try_row, BAD_SETTINGS), strict=True))


@pytest.mark.parametrize(("name", "says"), [(row[0], row[2]) for row in BAD_SETTINGS], ids=[row[0] for row in BAD_SETTINGS])
def test_a_wrong_setting_is_named_with_its_source_and_what_is_allowed(
    refusals: dict[str, tuple[int, str]], name: str, says: list[str]
) -> None:
    assert_one_line(*refusals[name], says)


def assert_one_line(code: int, told: str, says: list[str]) -> None:
    assert code == 2
    assert told.startswith("toque: ")
    assert told.count("\n") == 1
    assert told.endswith("\n")
    assert [part for part in says if part not in told] == [], told
    assert "s3nh4" not in told


@pytest.mark.parametrize(
    ("setting", "kind"), [("http", socket.SOCK_STREAM), ("hep", socket.SOCK_STREAM), ("hep", socket.SOCK_DGRAM)]
)
def test_an_address_that_is_taken_is_named(tmp_path: Path, setting: str, kind: socket.SocketKind) -> None:
    with taken_port(kind) as port:
        code, told = serve(tmp_path, **{setting: f"{HOST}:{port}"})
    assert_one_line(code, told, [setting, f"{HOST}:{port}", f"cannot listen on {HOST}:{port}: Address already in use"])


@pytest.mark.parametrize("setting", ["http", "hep"])
def test_a_server_that_cannot_start_posts_nothing(toque: ToqueProcess, receiver: RecordingReceiver, setting: str) -> None:
    """Or each try of a supervisor would post the same again, and nobody would write it down."""
    toque.add_client("Escritório", vendas=[LINE]).api().add_callback(receiver.url())
    with receiver.hold():
        make_calls(toque, 3)
        receiver.wait_for_count(AT_ONCE)
        toque.wait_until(lambda: toque.health()["events"] == 12, "the calls are not stored")
        toque.kill()
    with taken_port(socket.SOCK_STREAM) as port:
        code, told = serve(
            toque.folder, **{"store": f"sqlite://{toque.store}", setting: f"{HOST}:{port}"}, allow_networks="127.0.0.0/8"
        )
    assert code == 2, told
    assert len(receiver.posts) == AT_ONCE
    toque.start()
    assert words(receiver.wait_for_count(12 + AT_ONCE)[AT_ONCE : 2 * AT_ONCE]) == ["iniciou"] * AT_ONCE


def test_a_store_serves_one_server_only(toque: ToqueProcess) -> None:
    code, told = serve(toque.folder, store=f"sqlite://{toque.store}")
    assert_one_line(code, told, ["store", str(toque.store), "another toque server uses", "give each server a store of its own"])
    assert toque.health()["status"] == "ok"


def test_what_is_no_store_is_not_touched(tmp_path: Path) -> None:
    letter = tmp_path / "carta.txt"
    letter.write_text("Prezados senhores,\n" * 1000, encoding="utf-8")
    code, told = serve(tmp_path, store=f"sqlite://{letter}")
    assert_one_line(code, told, ["store", str(letter), "is not a toque store"])
    assert letter.read_text(encoding="utf-8") == "Prezados senhores,\n" * 1000


def test_a_store_needs_the_key_that_it_was_written_with(tmp_path: Path) -> None:
    with ToqueProcess(tmp_path, secret_key="uma chave que ninguém adivinha") as toque:
        toque.add_client("Escritório")
        assert toque.terminate() == 0
        for key in ({}, {"secret_key": "uma outra chave, bem diferente"}):
            code, told = serve(tmp_path, store=f"sqlite://{toque.store}", **key)
            assert_one_line(code, told, ["secret_key", "TOQUE_SECRET_KEY", "encrypted under another key"])
            assert "chave" not in told
        toque.start()
        toque.wait_ready()


# Changes by commands


def seen_within(is_so: Callable[[], bool]) -> float:
    """How long after now it was so; it must be so in time."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < SEEN_WITHIN_S, f"not seen within {SEEN_WITHIN_S} s"
        time.sleep(0.01)
    return time.monotonic() - began


def refuses(kind: type[ClientError], ask: Callable[[], object]) -> bool:
    """Whether the server says no in this way."""
    try:
        ask()
    except kind:
        return True
    except Refused:
        return False
    return False


def test_clients_come_and_go_while_the_server_runs(toque: ToqueProcess) -> None:
    office = toque.add_client("Escritório")
    seen_within(lambda: not refuses(AuthenticationFailed, office.api().list_callbacks))

    in_use = office.api()
    in_use.list_callbacks()
    secret = toque.cli("client", "rotate", office.client_id)["client_secret"]
    seen_within(lambda: refuses(AuthenticationFailed, in_use.list_callbacks))
    office = Account(toque.http, office.client_id, secret)
    in_use = office.api()
    assert in_use.list_callbacks() == []

    toque.cli("client", "disable", office.client_id)
    seen_within(lambda: refuses(AuthenticationFailed, in_use.list_callbacks))
    assert refuses(AuthenticationFailed, office.api().list_callbacks)
    toque.cli("client", "disable", office.client_id, "--undo")
    seen_within(lambda: not refuses(AuthenticationFailed, in_use.list_callbacks))

    toque.cli("client", "remove", office.client_id)
    seen_within(lambda: refuses(AuthenticationFailed, in_use.list_callbacks))


def test_lines_come_and_go_while_the_server_runs(toque: ToqueProcess, receiver: RecordingReceiver) -> None:
    office = toque.add_client("Escritório", vendas=[LINE])
    api = office.api()
    api.add_callback(receiver.url())

    def knows(pin: str) -> bool:
        return not refuses(InvalidParameter, lambda: api.add_callback(receiver.url("/pin"), pin))

    assert not knows("suporte")
    toque.cli("line", "add", office.client_id, "suporte", "554130600301", "554130600302")
    seen_within(lambda: knows("suporte"))
    make_calls(toque, caller="554130600301")
    assert {post.data["pin"] for post in receiver.wait_for_count(8)} == {"suporte"}

    toque.cli("line", "remove", office.client_id, "suporte")
    seen_within(lambda: not knows("suporte"))
    make_calls(toque, caller="554130600301")
    make_calls(toque, caller=LINE)
    assert [post.data["pin"] for post in receiver.wait_for_count(12)[8:]] == ["vendas"] * 4


def test_a_disabled_clients_lines_match_nothing(toque: ToqueProcess, receiver: RecordingReceiver) -> None:
    office, other = toque.add_client("Escritório", vendas=[LINE]), toque.add_client("Outro", vendas=["554130600999"])
    for account, path in ((office, "/office"), (other, "/other")):
        account.api().add_callback(receiver.url(path))
    toque.cli("client", "disable", office.client_id)
    seen_within(lambda: refuses(AuthenticationFailed, office.api().list_callbacks))
    make_calls(toque)
    make_calls(toque, caller="554130600999")
    receiver.wait_for_count(4)
    assert {post.path for post in receiver.posts} == {"/other"}
    assert toque.health()["events"] == 4


def test_a_rotated_callback_signs_with_both_secrets_for_a_while(tmp_path: Path, receiver: RecordingReceiver) -> None:
    with ToqueProcess(tmp_path, rotation_overlap="4s") as toque:
        registration = toque.add_client("Escritório", vendas=[LINE]).api().add_callback(receiver.url())
        old = registration.secret or ""

        def signatures() -> int:
            """How many the posts of a new call carry."""
            before = len(receiver.posts)
            make_calls(toque)
            return len(receiver.wait_for_count(before + 4)[-1].signatures)

        assert signatures() == 1
        before = len(receiver.posts)
        new = toque.cli("callback", "rotate", registration.code)["secret"]
        rotated = time.monotonic()
        seen_within(lambda: signatures() == 2)
        both = receiver.posts[-1:]
        deadline = rotated + PATIENCE_S
        while signatures() == 2:
            assert time.monotonic() < deadline, "the old secret goes on signing"
        assert_signed(receiver.posts[:before], old)
        assert_signed(both, new, old)
        assert_signed(receiver.posts[-1:], new)


# Removing


def test_no_post_starts_once_a_removal_is_answered(toque: ToqueProcess, receiver: RecordingReceiver) -> None:
    """Some posts are under way and hundreds wait. Those may end; none of the others begins."""
    api = toque.add_client("Escritório", vendas=[LINE]).api()
    doomed, other = (api.add_callback(receiver.url(path)) for path in ("/doomed", "/other"))
    with receiver.hold():
        make_calls(toque, 50)
        receiver.wait_for_count(AT_ONCE, "/doomed")
        toque.wait_until(lambda: toque.health()["events"] == 50 * 4, "the calls are not stored")
        api.remove_callback(doomed.code)
        assert len(receiver.posts_to("/doomed")) == AT_ONCE
    receiver.wait_for_count(50 * 4, "/other")
    make_calls(toque)
    receiver.wait_for_count(51 * 4, "/other")
    assert len(receiver.posts_to("/doomed")) == AT_ONCE
    assert [entry.code for entry in api.list_callbacks()] == [other.code]
    toque.wait_until(lambda: toque.waiting() == 0, "something waits for the one that is gone")


def test_a_removal_ends_the_retries_too(toque: ToqueProcess, receiver: RecordingReceiver) -> None:
    api = toque.add_client("Escritório", vendas=[LINE]).api()
    doomed, _ = (api.add_callback(receiver.url(path)) for path in ("/doomed", "/other"))
    receiver.behave(lambda _: Reply(500))
    make_calls(toque)
    for path in ("/doomed", "/other"):
        receiver.wait_for(lambda posts, path=path: any(post.path == path and post.status for post in posts))
    with receiver.hold():
        receiver.wait_for_count(2, "/doomed")  # it is tried again
        api.remove_callback(doomed.code)
        receiver.behave(lambda post: Reply(500) if post.path == "/doomed" else Reply())
    receiver.wait_for(lambda posts: sum(post.path == "/other" and post.status == 204 for post in posts) == 4)
    toque.wait_until(lambda: toque.waiting() == 0, "something still waits")
    toque.restart()
    assert toque.waiting() == 0
    assert len(receiver.posts_to("/doomed")) == 2


def test_the_api_answers_what_is_under_way_when_it_is_stopped(toque: ToqueProcess) -> None:
    account = toque.add_client("Escritório", vendas=[LINE])
    api: Client = account.api()
    api.list_callbacks()
    assert toque.terminate() == 0
    assert re.search(r"server\.stopped .*deliveries_held=0", toque.log)
