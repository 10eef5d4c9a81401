"""`toque trace` beside a real server: live, after the fact, after a restart, without a server; and who may ask at all."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.support.hep_sender import send_by_tcp
from tests.support.recording_receiver import Post, RecordingReceiver
from tests.support.sip_messages import ProxiedCall
from tests.support.toque_process import COMMAND, HOST, PATIENCE_S, Account, ToqueProcess

from toque.callbacks.token import TokenClaims, mint
from toque.web.operator import mint_operator_token, operator_key

CALLER, CALLED = "554130600300", "5511977770002"
DEMO = Path(__file__).resolve().parents[2] / "src/toque/recordings/demo.pcap"
PATHS = ("/operator/state", "/operator/trace", "/operator/calls?q=5511977770002")


def busy_call(name: str = "busy", caller: str = CALLER) -> ProxiedCall:
    call = ProxiedCall(name, caller, CALLED, begins=datetime.now(UTC) - timedelta(seconds=5))
    call.invite()
    call.ring()
    call.fail(486)
    return call


def told_busy(posts: list[Post]) -> bool:
    return any(post.word == "ocupado" for post in posts)


@contextmanager
def watching(toque: ToqueProcess, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command, once it watches; killed at the end."""
    command = [COMMAND, "trace", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=toque.folder, env=toque.environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_watching_and_explaining(tmp_path: Path) -> None:
    with RecordingReceiver() as receiver, ToqueProcess(tmp_path) as toque:
        account = toque.add_client("Escritório", vendas=["5541306003*"])
        code = account.api().add_callback(receiver.url("/status")).code
        with watching(toque, "--json", "--number", "041 3060 0300", "--client", account.client_id) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == {"what": "watching"}
            send_by_tcp(toque.hep_port, [*busy_call("other", "554130600399").packets, *busy_call().packets])
            lines = [json.loads(process.stdout.readline()) for _ in range(8)]
        assert [(line["what"], line.get("kind") or line["status"]) for line in lines] == [
            ("signal", "began"),
            ("status", "initiated"),
            ("signal", "leg_began"),
            ("signal", "ringing"),
            ("status", "ringing"),
            ("signal", "ringing"),
            ("signal", "leg_ended"),
            ("signal", "leg_ended"),
        ]
        assert {(line["call"], line["caller"]) for line in lines} == {("busy@192.0.2.1 busy-a", "55413060****")}
        receiver.wait_for(told_busy)
        explained(toque, code, receiver)
        toque.restart()
        remembered(toque, code, receiver)
        only_operators_may_ask(toque, account)
        with watching(toque) as process:
            assert process.stderr is not None
            assert "Watching" in process.stderr.readline()
            assert toque.terminate() == 0  # whoever watches does not hold it up
            assert process.wait(PATIENCE_S) == 1
            assert "the server has stopped" in process.stderr.read()


def explained(toque: ToqueProcess, code: str, receiver: RecordingReceiver) -> None:
    """By the server's memory and the store."""
    toque.wait_until(lambda: toque.waiting() == 0, "not delivered")
    [call] = [json.loads(line) for line in toque.run("trace", CALLER, "--json").stdout.splitlines()]
    post = next(post for post in receiver.posts if post.word == "ocupado" and post.data["origem"] == CALLER)
    assert call["callerid"] == post.data["callerid"]
    assert call["end"]["status"] == "busy"
    assert "SIP 486 after ringing means busy" in call["end"]["rule"]
    assert [leg["leg"] is None for leg in call["legs"]] == [True, False]
    assert call["lines"][0] | {"client": ""} == {
        "number": "55413060****",
        "role": "caller",
        "compared_as": "55413060****",
        "client": "",
        "pin": "vendas",
        "line": "5541306003*",
    }
    assert [event["status"] for event in call["events"]] == ["iniciou", "chamando", "ocupado"]
    assert [delivery["state"] for event in call["events"] for delivery in event["deliveries"]] == ["delivered"] * 3
    text = toque.run("trace", post.data["callerid"]).stdout
    assert code in text
    assert "busy (ocupado), seen" in text
    assert CALLER not in text
    assert CALLER in toque.run("trace", "busy@192.0.2.1", "--log-numbers", "true").stdout


def remembered(toque: ToqueProcess, code: str, receiver: RecordingReceiver) -> None:
    """By the store alone, by callerid and by number."""
    callerid = next(post.data["callerid"] for post in receiver.posts if post.data["origem"] == CALLER)
    text = toque.run("trace", callerid).stdout
    assert "2 chamando" in text
    assert "3 ocupado (SIP 486" in text
    assert f"callback {code}: delivered, 1 attempt" in text
    [call] = [json.loads(line) for line in toque.run("trace", "4130600300", "--json").stdout.splitlines()]
    assert call["callerid"] == callerid
    nothing = toque.run("trace", "5511900000000")
    assert (nothing.returncode, "no such call is known" in nothing.stderr) == (1, True)


def only_operators_may_ask(toque: ToqueProcess, account: Account) -> None:
    [(text,)] = toque.rows("SELECT value FROM meta WHERE name = 'token_key'")
    key, now = bytes.fromhex(text.removeprefix("plain:")), datetime.now(UTC)
    soon = now + timedelta(minutes=1)
    customers, operators = mint(key, TokenClaims(account.client_id, 1), soon), mint_operator_token(key, now)
    assert asked(toque, "/voz/list-callback", customers) == 200
    assert asked(toque, "/voz/list-callback", operators) == 401
    assert asked(toque, PATHS[0], operators) == 200
    assert asked(toque, "/operator/calls", operators) == 400
    strangers = (
        None,
        "",
        customers,
        mint(key, TokenClaims("operator", 1), soon),  # the customers' key, the operator's name
        mint(operator_key(key), TokenClaims(account.client_id, 1), soon),
        mint_operator_token(b"y" * 32, now),
        mint_operator_token(key, now - timedelta(minutes=2)),
    )
    assert {asked(toque, path, token) for path in PATHS for token in strangers} == {401}


def asked(toque: ToqueProcess, path: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with closing(http.client.HTTPConnection(HOST, toque.http_port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status


def test_a_recording_needs_no_server(tmp_path: Path) -> None:
    toque = ToqueProcess(tmp_path)
    done = toque.run("trace", "--pcap", str(DEMO), "--json")
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    ends = [call["end"]["status"] for call in calls if call["end"] is not None]
    assert (done.returncode, done.stderr) == (0, "")
    assert len(ends) >= 19
    assert {"busy", "no_answer", "cancelled", "congestion"} <= set(ends)
    assert not toque.store.exists()
    assert CALLER[:8] in done.stdout
    assert CALLER not in done.stdout
    assert toque.run("trace", "--pcap", str(tmp_path / "none.pcap")).returncode == 2
    toque.cli("client", "add", "Escritório")
    nobody = toque.run("trace")
    assert (nobody.returncode, "nobody answers" in nobody.stderr) == (1, True)


def test_where_there_is_no_store_none_is_made(tmp_path: Path) -> None:
    toque = ToqueProcess(tmp_path)
    for arguments in ((), ("4711",)):
        done = toque.run("trace", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert "there is no store at" in done.stderr
    done = toque.run("trace", "")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not list(tmp_path.glob("*.db*"))
