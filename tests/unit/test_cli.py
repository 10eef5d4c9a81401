"""The commands: what they print, for people and as JSON, and how they end."""

import contextlib
import http.server
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import toque
from toque.cli import app, main
from toque.commands.replays import parse_moment
from toque.settings import OPTIONS, flag_of, load_settings
from toque.store.sqlite import SqliteStore

NOBODY = "0123456789abcdef"
NOTHING = "0" * 40
SECRET = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Commands:
    """Runs commands in this process, on a store of the test's own."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.store = folder / "toque.db"
        self._capture = capture

    def __call__(self, *words: str) -> Done:
        self._capture.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(words)
        told = self._capture.readouterr()
        assert "Traceback" not in told.err
        return Done(caught.value.code, told.out, told.err)

    def fails(self, code: int, *words: str) -> str:
        """The one line that a command which cannot be done says."""
        done = self(*words)
        assert done.code == code, (done.out, done.err)
        assert done.out == ""
        assert done.err.startswith("toque: ")
        assert done.err.count("\n") == 1
        return done.err

    def add_client(self, name: str = "Escritório") -> str:
        return self("client", "add", name, "--json").json["client_id"]

    def add_callback(self, client_id: str, url: str, credentials: str | None = None, pin: str | None = None) -> str:
        """Register a URL as the API does."""
        import asyncio

        from toque.settings import load_settings
        from toque.store.opening import open_store

        async def work() -> str:
            store = open_store(load_settings(None, {"TOQUE_STORE": f"sqlite://{self.store}"}, {}))
            try:
                return (await store.register_callback(client_id, url, credentials, pin, limit=100)).callback.code
            finally:
                await store.close()

        return asyncio.run(work())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TOQUE_STORE", f"sqlite://{tmp_path}/toque.db")
    return Commands(tmp_path, capsys)


# Clients


def test_a_client_is_added_and_its_secret_is_shown_once(run: Commands):
    done = run("client", "add", "Escritório")
    assert (done.code, done.err) == (0, "")
    client_id, secret = re.fullmatch(
        r"client_id      ([0-9a-f]{16})\nclient_secret  (\S+)\nThe secret is shown this once.\n", done.out
    ).groups()
    assert SECRET.fullmatch(secret)
    listed = run("client", "list").out
    assert client_id in listed
    assert secret not in listed
    assert secret.encode() not in run.store.read_bytes()  # only its hash


def test_clients_are_listed(run: Commands):
    assert run("client", "list").out == "No clients yet: toque client add NAME\n"
    assert run("client", "list", "--json").json == []
    client_id = run.add_client("Ana & Filhos")
    run("line", "add", client_id, "vendas", "554130600300", "1001")
    run.add_callback(client_id, "https://crm.example.com/")
    (told,) = run("client", "list", "--json").json
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", told.pop("created_at"))
    assert told == {"client_id": client_id, "name": "Ana & Filhos", "state": "enabled", "lines": 2, "callbacks": 1}
    shown = run("client", "list").out.splitlines()
    assert shown[0].split() == ["client_id", "name", "created", "state", "lines", "callbacks"]
    assert "Ana & Filhos" in shown[1]


def test_a_client_is_rotated(run: Commands):
    client_id = run.add_client()
    first = run("client", "rotate", client_id, "--json").json
    second = run("client", "rotate", client_id, "--json").json
    assert first["client_id"] == second["client_id"] == client_id
    assert first["client_secret"] != second["client_secret"]
    assert f"client_id      {client_id}\n" in run("client", "rotate", client_id).out


def test_a_client_is_disabled_and_enabled(run: Commands):
    client_id = run.add_client()
    assert run("client", "disable", client_id).out == f"{client_id} is disabled.\n"
    assert run("client", "list", "--json").json[0]["state"] == "disabled"
    assert run("client", "disable", client_id, "--undo", "--json").json == {"client_id": client_id, "state": "enabled"}
    assert run("client", "list", "--json").json[0]["state"] == "enabled"


def test_a_client_is_removed_with_all_that_is_its_own(run: Commands):
    client_id = run.add_client()
    run("line", "add", client_id, "vendas", "1001")
    run.add_callback(client_id, "https://crm.example.com/")
    assert run("client", "remove", client_id).out == f"{client_id} is removed.\n"
    for what in ("client", "line", "callback"):
        assert run(what, "list", "--json").json == []
    other = run.add_client()
    assert run("client", "remove", other, "--json").json == {"client_id": other, "state": "removed"}


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1bb"])
def test_a_name_is_for_people(run: Commands, name: str):
    assert "a client's name has printable characters" in run.fails(2, "client", "add", name)


def test_a_name_is_taken_once(run: Commands):
    run.add_client("Escritório")
    assert "'Escritório'" in run.fails(2, "client", "add", "Escritório")


@pytest.mark.parametrize("command", ["rotate", "disable", "remove"])
def test_a_client_that_is_not_there(run: Commands, command: str):
    assert run.fails(1, "client", command, NOBODY) == f"toque: there is no client '{NOBODY}'\n"


# Lines


def test_lines_are_added_listed_and_removed(run: Commands):
    client_id = run.add_client()
    done = run("line", "add", client_id, "vendas", "+55 41 3060-0300", "5541306003*", "~55413060[45]\\d\\d", "auth1")
    assert done.out == "4 added to pin vendas: 554130600300, 5541306003*, ~55413060[45]\\d\\d, auth1\n"
    told = run("line", "add", client_id, "vendas", "554130600300", "1002", "--json").json
    assert told == {"client_id": client_id, "pin": "vendas", "added": 1, "lines": ["554130600300", "1002"]}
    lines = run("line", "list", "--json").json
    assert [(line["number"], line["kind"]) for line in lines] == [
        ("554130600300", "exact"),
        ("5541306003*", "prefix"),
        ("~55413060[45]\\d\\d", "pattern"),
        ("auth1", "exact"),
        ("1002", "exact"),
    ]
    assert run("line", "list", client_id, "--json").json == lines
    assert run("line", "list", NOBODY).out == "No lines.\n"
    assert "~55413060[45]\\d\\d" in run("line", "list").out  # square brackets are no markup
    assert run("line", "remove", client_id, "vendas", "4130600300").out == "1 removed.\n"
    assert run("line", "remove", client_id, "vendas", "--json").json == {"client_id": client_id, "pin": "vendas", "removed": 4}
    assert run("line", "list").out == "No lines.\n"


def test_numbers_are_completed_with_the_country(run: Commands):
    client_id = run.add_client()
    told = run("line", "add", client_id, "a", "2125550123", "--country", "1", "--json").json
    assert [number.removeprefix("+") for number in told["lines"]] == ["12125550123"]


def test_lines_that_cannot_be_added(run: Commands):
    client_id, other = run.add_client(), run.add_client("Outro")
    run("line", "add", client_id, "vendas", "1001")
    assert "at least one number" in run.fails(2, "line", "add", client_id, "vendas")
    assert "the end only" in run.fails(2, "line", "add", client_id, "vendas", "55*1")
    assert "cannot be compiled" in run.fails(2, "line", "add", client_id, "vendas", "~[")
    assert "belongs to another client" in run.fails(2, "line", "add", other, "vendas", "1002", "1001")
    assert [line["number"] for line in run("line", "list", "--json").json] == ["1001"]  # all or none
    assert NOBODY in run.fails(1, "line", "add", NOBODY, "vendas", "1002")


@pytest.mark.parametrize("pin", ["", " ", "a\nb", " vendas", "x" * 101])
def test_a_pin_can_be_written_in_a_form(run: Commands, pin: str):
    client_id = run.add_client()
    assert "a pin has 1 to 100 printable characters" in run.fails(2, "line", "add", client_id, pin, "1001")


def test_lines_that_are_not_there(run: Commands):
    client_id = run.add_client()
    run("line", "add", client_id, "vendas", "1001")
    for words in ((client_id, "compras"), (client_id, "vendas", "1002"), (NOBODY, "vendas")):
        assert "has no such lines" in run.fails(1, "line", "remove", *words)


# Callbacks


def test_callbacks_are_listed_without_their_credentials(run: Commands):
    assert run("callback", "list").out == "No callbacks.\n"
    client_id = run.add_client()
    code = run.add_callback(client_id, "https://crm.example.com/a", "ana:senha", "vendas")
    ipv6 = run.add_callback(client_id, "http://[fd00::1]:8080/b")
    first, second = run("callback", "list", "--json").json
    assert first.pop("created_at")
    assert first == {
        "code": code,
        "client_id": client_id,
        "url": "https://crm.example.com/a",
        "credentials": True,
        "pin": "vendas",
        "state": "healthy",
    }
    assert (second["code"], second["credentials"], second["pin"]) == (ipv6, False, None)
    assert run("callback", "list", client_id, "--json").json[0]["code"] == code
    assert run("callback", "list", NOBODY, "--json").json == []
    shown = run("callback", "list").out
    assert "http://[fd00::1]:8080/b" in shown
    assert "senha" not in shown + run("callback", "list", "--json").out


def test_a_disabled_callback_says_why(run: Commands):
    run.add_callback(run.add_client(), "https://crm.example.com/a")
    with contextlib.closing(sqlite3.connect(run.store)) as store, store:
        store.execute("UPDATE callbacks SET disabled_at = 1, disabled_reason = ?", ("410 \x1b[31m[/b]",))
    assert "disabled: 410 \\x1b[31m[/b]" in run("callback", "list").out
    assert run("callback", "list", "--json").json[0]["state"] == "disabled: 410 \x1b[31m[/b]"


def test_a_callbacks_secret_is_rotated(run: Commands):
    code = run.add_callback(run.add_client(), "https://crm.example.com/a")
    secret = re.compile(r"whsec_[A-Za-z0-9+/]{43}=")
    first = re.fullmatch(r"secret  (\S+)\n", run("callback", "rotate", code).out)[1]
    told = run("callback", "rotate", code, "--json").json
    assert told["code"] == code
    assert secret.fullmatch(first)
    assert secret.fullmatch(told["secret"])
    assert first != told["secret"]


@pytest.mark.parametrize("command", ["rotate", "test"])
def test_a_callback_that_is_not_there(run: Commands, command: str):
    assert run.fails(1, "callback", command, NOTHING) == f"toque: there is no callback '{NOTHING}'\n"


class Receiver(http.server.BaseHTTPRequestHandler):
    """Takes posts whose path is /ok, and answers others with what should not reach a terminal."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert body.startswith(b"data=")
        answer = b"" if self.path == "/ok" else b"n\x1b[2J\xc2\x9bo [/red]"
        self.send_response(204 if self.path == "/ok" else 500)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_callback_is_tried(run: Commands, receiver: str):
    code = run.add_callback(run.add_client(), f"{receiver}/ok")
    assert re.fullmatch(rf"{receiver}/ok: 204 \(\d+ ms\)\n", run("callback", "test", code, "--allow-network", "127.0.0.0/8").out)
    told = run("callback", "test", code, "--allow-network", "127.0.0.0/8", "--json").json
    assert told.pop("took_ms") > 0
    assert told == {"code": code, "url": f"{receiver}/ok", "delivered": True, "answer": "204"}


def test_a_callback_that_refuses_is_told(run: Commands, receiver: str):
    code = run.add_callback(run.add_client(), f"{receiver}/nao")
    done = run("callback", "test", code, "--allow-network", "127.0.0.0/8")
    assert (done.code, done.err) == (1, "")
    assert re.fullmatch(rf"{receiver}/nao: 500 n.*o \[/red\] \(\d+ ms\)\n", done.out)
    assert done.out.rstrip("\n").isprintable()
    forbidden = run("callback", "test", code, "--json")
    assert forbidden.code == 1
    assert json.loads(forbidden.out)["answer"] == "loopback address"


def test_a_callback_is_disabled_and_enabled(run: Commands):
    code = run.add_callback(run.add_client(), "http://crm.example.com/")
    assert run("callback", "disable", code).out == f"{code} is disabled.\n"
    assert run("callback", "list", "--json").json[0]["state"] == "disabled: by the operator"
    assert run("callback", "enable", code, "--json").json == {"code": code, "state": "enabled"}
    assert run("callback", "list", "--json").json[0]["state"] == "healthy"
    assert run("callback", "dead", code).out == "Nothing is dead.\n"


@pytest.mark.parametrize("word", ["disable", "enable", "dead"])
def test_a_callback_that_is_not_there_is_told(run: Commands, word: str):
    run.add_client()
    assert run.fails(1, "callback", word, NOTHING) == f"toque: there is no callback '{NOTHING}'\n"


# Replays


def test_a_replay_is_begun_listed_and_cancelled(run: Commands):
    code = run.add_callback(run.add_client(), "http://crm.example.com/")
    begun = run("replay", code, "--since", "2h", "--rate", "10", "--json").json
    assert (begun["code"], begun["state"], begun["rate"], begun["requeued"]) == (code, "running", 10.0, 0)
    assert run("replay", "list", "--json").json == [begun]
    assert code in run("replay", "list").out
    assert run("replay", "cancel", str(begun["id"])).out == f"Replay {begun['id']} is cancelled.\n"
    assert run.fails(1, "replay", "cancel", str(begun["id"])) == f"toque: no replay {begun['id']} is running\n"
    assert [one["state"] for one in run("replay", "list", "--json").json] == ["cancelled"]


def test_the_dead_are_replayed_too(run: Commands):
    code = run.add_callback(run.add_client(), "http://crm.example.com/")
    assert run("replay", code, "--dead").out.startswith("Replay 1 has begun: dead deliveries, 50 a second at most.")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "say what to send again: --since TIME, --call CALLERID, --event ID or --dead"),
        (("--since", "2h", "--call", NOBODY), "say what to send again"),
        (("--since", "ontem"), "'ontem' is no time: write 2026-11-23T10:00"),
        (("--call", "x"), "'x' is no id: ids are UUIDs"),
        (("--dead", "--rate", "0"), "--rate is above 0"),
        (("--event", "6f1f2d0e-93a5-5c6e-8a3c-6b1d3c0f7a11"), "6f1f2d0e-93a5-5c6e-8a3c-6b1d3c0f7a11"),
    ],
)
def test_what_cannot_be_replayed_is_told(run: Commands, words: tuple[str, ...], told: str):
    code = run.add_callback(run.add_client(), "http://crm.example.com/")
    assert told in run.fails(2, "replay", code, *words)


def test_a_time_without_a_zone_is_the_servers(run: Commands):
    now, given = datetime(2026, 11, 23, 12, tzinfo=UTC), load_settings(None, {}, {})
    assert parse_moment("2026-11-23T05:00", now, given) == datetime(2026, 11, 23, 8, tzinfo=UTC)
    assert parse_moment("2026-11-23T05:00Z", now, given) == datetime(2026, 11, 23, 5, tzinfo=UTC)
    assert parse_moment("90m", now, given) == datetime(2026, 11, 23, 10, 30, tzinfo=UTC)


# Used or set wrongly


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nada"], 'Unknown command "nada"'),
        (["client", "nada"], 'Unknown command "nada"'),
        (["client", "add"], "requires an argument"),
        (["client", "add", "a", "b"], "Unused Tokens"),
        (["client", "list", "--nada"], "Unknown option: --nada"),
        (["client", "list", "--store"], "requires an argument"),
        (["client", "list", "--store", "nada"], "store (flag --store): 'nada' must be sqlite:///absolute/path"),
        (["client", "list", "--config", "nada.toml"], "config (nada.toml): cannot be read: No such file"),
        (["serve", "--http", "nada"], "http (flag --http): 'nada' must be an address and a port"),
        (["serve", "--hep", "0.0.0.0:0"], "hep (flag --hep): 0.0.0.0:0 is not loopback"),
        (["serve", "--secret-key", "segredo"], "Unknown option"),
        (["serve", "--tls-key", "nada.pem"], "tls_key (flag --tls-key): 'nada.pem' must be a file"),
        (["demo", "--speed", "x"], "unable to convert"),
        (["demo", "--speed", "0"], "--speed must be greater than 0"),
        (["demo", "--recording", "nada.pcap"], "nada.pcap cannot be read"),
        (["line", "list", "--country", "55"], "Unknown option: --country"),
    ],
)
def test_what_is_used_wrongly_is_one_line_and_code_2(run: Commands, words: list[str], told: str):
    assert told in run.fails(2, *words)


def test_a_setting_of_the_environment_is_named(run: Commands, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOQUE_MAX_CALLBACKS", "muitos")
    told = run.fails(2, "client", "list")
    assert told == "toque: max_callbacks (environment TOQUE_MAX_CALLBACKS): 'muitos' must be a whole number from 1 to 10000\n"


def test_a_store_that_cannot_be_opened_is_named(run: Commands, tmp_path: Path):
    (tmp_path / "carta.txt").write_text("Prezados senhores,\n" * 500)
    assert "is not a toque store" in run.fails(2, "client", "list", "--store", f"sqlite://{tmp_path}/carta.txt")
    assert f"store (flag --store): {tmp_path} is there already" in run.fails(
        2, "client", "list", "--store", f"sqlite://{tmp_path}"
    )


def test_a_store_that_cannot_be_written_is_code_1(run: Commands, monkeypatch: pytest.MonkeyPatch):
    from toque.errors import StoreError

    run.add_client()

    async def fail(*_: object) -> None:
        raise StoreError("OperationalError: disk I/O\nerror")

    monkeypatch.setattr(SqliteStore, "add_client", fail)
    assert run.fails(1, "client", "add", "Outro") == "toque: OperationalError: disk I/O error\n"


def test_control_characters_of_an_argument_do_not_reach_the_terminal(run: Commands):
    assert run.fails(1, "callback", "rotate", "\x1b[2J").isprintable() is False  # its line end
    assert "\x1b" not in run.fails(1, "callback", "rotate", "\x1b[2J")
    assert "\x1b" not in run.fails(2, "nada\x1b[2J")


# Help


def test_help_and_version(run: Commands):
    assert run("--version").out == f"toque {toque.__version__}\n"
    assert run("--help").code == run("client", "--help").code == run().code == 0
    for name in ("client", "line", "callback", "serve", "demo"):
        assert name in run("--help").out


def test_serve_has_a_flag_for_every_setting_that_may_have_one(run: Commands):
    shown = run("serve", "--help").out
    for name, option in OPTIONS.items():
        assert (f"--{flag_of(name)} " in shown or f"--{flag_of(name)}\n" in shown) is option.has_flag, name


def commands() -> Iterator[tuple[str, ...]]:
    for name in app:
        if not name.startswith("-"):
            inner = [word for word in app[name] if not word.startswith("-")]
            yield from ([(name, word) for word in inner] or [(name,)])


def test_every_command_explains_itself(run: Commands):
    found = set(commands())
    assert found == {
        ("serve",),
        ("demo",),
        ("doctor",),
        ("trace",),
        *(("client", word) for word in ("add", "list", "rotate", "disable", "remove")),
        *(("line", word) for word in ("add", "list", "remove")),
        *(("intake", word) for word in ("add", "list", "rotate", "remove")),
        *(("callback", word) for word in ("list", "disable", "enable", "dead", "test", "rotate")),
        *(("replay", word) for word in ("list", "cancel")),
        ("store", "copy"),
        *(("bench", word) for word in ("deliver", "latency", "isolation", "backlog", "intake", "ami")),
    }
    for words in found:
        done = run(*words, "--help")
        assert done.code == 0
        assert len(done.out.splitlines()) > 3
        assert words == ("serve",) or "--json" in done.out


# In a process of its own


def process(folder: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "TOQUE_STORE": f"sqlite://{folder}/toque.db"}
    command = [sys.executable, "-m", "toque", *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False, **more)


def test_the_module_is_the_command(tmp_path: Path):
    done = process(tmp_path, "client", "add", "Escritório", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert process(tmp_path, "client", "disable", json.loads(done.stdout)["client_id"]).returncode == 0
    assert process(tmp_path, "client", "disable", NOBODY).returncode == 1
    assert process(tmp_path, "client").returncode == 0
    assert process(tmp_path, "nada").returncode == 2


def test_whoever_reads_the_output_may_have_enough(tmp_path: Path):
    process(tmp_path, "client", "add", "Escritório")
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as output:
        environment = {"PATH": os.environ["PATH"], "TOQUE_STORE": f"sqlite://{tmp_path}/toque.db"}
        done = subprocess.run(
            [sys.executable, "-m", "toque", "client", "list"],
            env=environment,
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")
