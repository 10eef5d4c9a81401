"""Each example as its reader would start it: a real process on a real port, sent signed callbacks and forged ones."""

import http.client
import json
import os
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook
from tests.support.requirements import require
from tests.support.wire_server import CALLBACK_SECRET, CLIENT_ID, CLIENT_SECRET, WireServer

EXAMPLES = Path(__file__).parents[2] / "examples"
OTHER_SECRET = "whsec_YW5vdGhlciBzZWNyZXQsIG5vYm9keSBrbm93cyBpdCE="
PATIENCE_S = 30.0

PYTHON_RECEIVERS = ["receiver_flask.py", "receiver_django.py", "receiver_fastapi.py", "receiver_wsgi.py"]
RECEIVERS = [*PYTHON_RECEIVERS, pytest.param("receiver.php", marks=pytest.mark.php)]
REGISTRARS = [
    "register.py",
    pytest.param("register.php", marks=pytest.mark.php),
    pytest.param("register.sh", marks=pytest.mark.shell),
]

# Whatever a form parser, a JSON parser or a log may trip over.
NASTY = """São Paulo "aspas" 'simples' & + %20 %C3 = ; <b> \\ / \t\r\n ☎ 😀 á\u0301 \u2028"""


def status(event_id: str) -> dict[str, Any]:
    return {
        "id": event_id,
        "callerid": "b683e934-f1d3-4a98-a0d2-16a476dfcdc4",
        "sequencia": 2,
        "pin": "1001",
        "tipo": "recebida",
        "origem": NASTY,
        "destino": "+55 41 3060-0300",
        "atendido_por": NASTY,
        "status": "desligou",
        "inicio": "2026-03-01 09:05:07",
        "atendimento": "2026-03-01 09:05:12",
        "fim": "2026-03-01 09:15:12",
        "toque": "00:00:05",
        "duracao": "00:10:00",
        "momento": "2026-03-01T09:15:12.345-03:00",
        "pbx_atendeu": None,
        "desligado_por": "origem",
        "causa": {"sip": 200, "q850": 16, "texto": NASTY},
        "inferido": False,
    }


@dataclass
class Running:
    """An example that takes callbacks."""

    port: int
    log: Path

    def logged(self) -> list[Any]:
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        # Not splitlines(), to which U+2028 is the end of a line.
        return [json.loads(line) for line in text.split("\n") if line.startswith("{")]

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.request("POST", body, form | headers)

    def request(self, method: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, "/callback", body, headers or {})
            with connection.getresponse() as response:
                response.read()
                return response.status
        finally:
            connection.close()


def encode(members: dict[str, Any]) -> bytes:
    return urllib.parse.urlencode({"data": json.dumps(members, ensure_ascii=False)}).encode()


def sign(event_id: str, body: bytes, *secrets: str, age: timedelta = timedelta(0)) -> dict[str, str]:
    at = datetime.now(UTC) - age
    signatures = [Webhook(secret).sign(event_id, at, body.decode()) for secret in secrets or [CALLBACK_SECRET]]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def command(example: str, *options: str) -> list[str]:
    """How to start the example, if what it needs is installed."""
    match Path(example).suffix:
        case ".php":
            require("php")
            # As php.ini-development has it, under which PHP's own answer to an uncaught error is 200.
            return ["php", "-d", "display_errors=1", *options, example]
        case ".sh":
            require("curl", "sed")
            return ["sh", example]
        case _:
            return [sys.executable, "-W", "error", example]


def environment(**variables: str) -> dict[str, str]:
    unset = {"TOQUE_EXAMPLE_LOG", "CALLBACK_PIN"}
    ours = {name: value for name, value in os.environ.items() if name not in unset and not name.lower().endswith("_proxy")}
    return ours | variables


@contextmanager
def running(example: str, output: Path, **variables: str) -> Iterator[Running]:
    """Serving while the block lasts; its standard output and errors go to `output`."""
    port = free_port()
    arguments = command(example, "-S", f"127.0.0.1:{port}")
    variables |= {"PORT": str(port), "CALLBACK_SECRET": CALLBACK_SECRET}
    with (
        output.open("wb") as sink,
        subprocess.Popen(arguments, cwd=EXAMPLES, env=environment(**variables), stdout=sink, stderr=subprocess.STDOUT) as process,
    ):
        try:
            await_listening(process, port, output)
            yield Running(port, Path(variables.get("TOQUE_EXAMPLE_LOG", output)))
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_listening(process: subprocess.Popen[bytes], port: int, output: Path) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=PATIENCE_S)
    while datetime.now(UTC) < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
        except ConnectionRefusedError:
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            break
        else:
            return
    pytest.fail(f"the example does not listen:\n{output.read_text(encoding='utf-8')}")


@pytest.fixture(scope="module", params=RECEIVERS)
def receiver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("example")
    with running(request.param, folder / "output", TOQUE_EXAMPLE_LOG=str(folder / "log")) as example:
        yield example


def test_what_is_sent_is_logged_unchanged(receiver: Running) -> None:
    sent = status("ev_true")
    body = encode(sent)
    assert receiver.post(body, sign("ev_true", body)) == 204
    assert receiver.logged()[-1] == sent


def test_a_post_signed_with_an_old_and_a_new_secret_is_taken(receiver: Running) -> None:
    body = encode(status("ev_rotation"))
    assert receiver.post(body, sign("ev_rotation", body, OTHER_SECRET, CALLBACK_SECRET)) == 204
    assert receiver.logged()[-1]["id"] == "ev_rotation"


@pytest.mark.parametrize(
    ("forge", "http_status"),
    [
        (lambda body: (body, sign("ev_forged", body, OTHER_SECRET)), 401),
        (lambda body: (body.replace(b"desligou", b"atendeu"), sign("ev_forged", body)), 401),
        (lambda body: (body, sign("ev_other", body) | {"webhook-id": "ev_forged"}), 401),
        (lambda body: (body, sign("ev_forged", body, age=timedelta(minutes=10))), 401),
        (lambda body: (body, sign("ev_forged", body, age=timedelta(minutes=-10))), 401),
        (lambda body: (body, {}), 401),
        (lambda body: (body, sign("ev_other", body)), 400),
        (lambda _: (b"data=%7B", sign("ev_forged", b"data=%7B")), 400),
    ],
    ids=["other secret", "altered", "other id", "old", "ahead", "unsigned", "id apart", "no JSON"],
)
def test_a_forgery_is_refused_and_not_logged(receiver: Running, forge: Any, http_status: int) -> None:
    before = receiver.logged()
    assert receiver.post(*forge(encode(status("ev_forged")))) == http_status
    assert receiver.logged() == before


def test_only_posts_are_taken(receiver: Running) -> None:
    assert receiver.request("GET") == 405


@pytest.mark.parametrize("example", PYTHON_RECEIVERS)
def test_a_repetition_is_logged_once(example: str, tmp_path: Path) -> None:
    with running(example, tmp_path / "output", TOQUE_EXAMPLE_LOG=str(tmp_path / "log")) as receiver:
        body = encode(status("ev_twice"))
        assert [receiver.post(body, sign("ev_twice", body)) for _ in range(2)] == [204, 200]
        assert len(receiver.logged()) == 1


@pytest.mark.parametrize("example", RECEIVERS)
def test_a_status_that_could_not_be_handled_is_not_acknowledged(example: str, tmp_path: Path) -> None:
    """The sender then tries again, and the second time it is not taken for a repetition."""
    log = tmp_path / "folder that is missing" / "log"
    with running(example, tmp_path / "output", TOQUE_EXAMPLE_LOG=str(log)) as receiver:
        body = encode(status("ev_later"))
        assert receiver.post(body, sign("ev_later", body)) == 500
        log.parent.mkdir()
        assert receiver.post(body, sign("ev_later", body)) == 204
        assert [logged["id"] for logged in receiver.logged()] == ["ev_later"]


@pytest.mark.parametrize("example", RECEIVERS)
def test_without_a_file_the_log_is_the_standard_output(example: str, tmp_path: Path) -> None:
    with running(example, tmp_path / "output") as receiver:
        sent = status("ev_stdout")
        body = encode(sent)
        assert receiver.post(body, sign("ev_stdout", body)) == 204
        assert receiver.logged() == [sent]


# --- registering


@pytest.fixture
def server() -> Iterator[WireServer]:
    with WireServer() as running_server:
        yield running_server


def register(example: str, server_url: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = {"API_URL": server_url, "CLIENT_ID": CLIENT_ID, "CLIENT_SECRET": CLIENT_SECRET} | variables
    variables.setdefault("CALLBACK_URL", "https://crm.example.com/callback")
    return subprocess.run(
        command(example),
        cwd=EXAMPLES,
        env=environment(**variables),
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("example", REGISTRARS)
def test_a_url_is_registered_as_it_is(server: WireServer, example: str) -> None:
    url = """https://maria:s3nh4@crm.example.com/são?a=1+1&b=%20"c"\\$HOME `x`"""
    done = register(example, server.url + "/", CALLBACK_URL=url, CALLBACK_PIN="1001")
    assert (done.returncode, done.stderr) == (0, "")
    [(code, registered)] = server.callbacks.items()
    assert registered == {"url": url, "pin": "1001"}
    assert code in done.stdout
    assert CALLBACK_SECRET in done.stdout


@pytest.mark.parametrize("example", REGISTRARS)
def test_a_url_that_was_registered_before_has_no_secret_to_show(server: WireServer, example: str) -> None:
    register(example, server.url)
    done = register(example, server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert [entry["pin"] for entry in server.callbacks.values()] == [None]
    assert "whsec_" not in done.stdout


@pytest.mark.parametrize("example", REGISTRARS)
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"CLIENT_SECRET": "s3nh4-errada"}, "credenciais inválidas"), ({"CALLBACK_URL": "s3nh4"}, "001")],
    ids=["credentials", "url"],
)
def test_a_refusal_is_told_with_its_reason(server: WireServer, example: str, wrong: dict[str, str], reason: str) -> None:
    done = register(example, server.url, **wrong)
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr
    assert "s3nh4" not in done.stderr


@pytest.mark.parametrize("example", REGISTRARS)
def test_a_server_that_is_not_there_is_told(example: str) -> None:
    with socket.socket() as reserved:  # bound and not listening
        reserved.bind(("127.0.0.1", 0))
        done = register(example, f"http://127.0.0.1:{reserved.getsockname()[1]}")
    assert (done.returncode, done.stdout) == (1, "")
    assert CLIENT_SECRET not in done.stderr
    assert "Traceback" not in done.stderr
