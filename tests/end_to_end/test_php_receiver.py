"""What a real PHP reads out of `$_POST['data']` is what was posted, whatever the telephones call themselves."""

import base64
import contextlib
import json
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.support.hep_sender import send_by_udp
from tests.support.recording_receiver import RecordingReceiver
from tests.support.requirements import require
from tests.support.sip_messages import ProxiedCall
from tests.support.toque_process import HOST, PATIENCE_S, ToqueProcess, clean_environment, free_port

pytestmark = pytest.mark.php

EXAMPLE = Path(__file__).parents[2] / "examples" / "receiver.php"

# A receiver as people write it, except that it tells us all that PHP made of the request.
RECEIVER = """<?php
$seen = [
    'post' => $_POST,
    'decoded' => json_decode($_POST['data'], true, 8, JSON_THROW_ON_ERROR),
    'raw' => base64_encode(file_get_contents('php://input')),
    'id' => $_SERVER['HTTP_WEBHOOK_ID'],
    'user' => $_SERVER['PHP_AUTH_USER'] ?? null,
    'password' => $_SERVER['PHP_AUTH_PW'] ?? null,
];
file_put_contents(getenv('SEEN'), json_encode($seen, JSON_THROW_ON_ERROR) . "\\n", FILE_APPEND | LOCK_EX);
http_response_code(204);
"""

# Whatever a form parser, a JSON parser or PHP's own array names may trip over.
CALLER = 'João "&+%📞'
DIALLED = "Ç=;,ã[data]<b>\\n\\u0041 'x' 1%20+1%3D2 \u2028 e\u0301 \\"
PIN = 'São João nº 7 & Cia. + 50% "à vista" 📞'
REASON = "Até logo & +1% <👋> \\ 'tchau'"


def in_uri(user: str) -> str:
    """A SIP user as RFC 3261 escapes it."""
    return urllib.parse.quote(user, safe="")


@dataclass
class Php:
    """PHP's own web server with one script."""

    port: int
    seen: Path

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """What the script wrote, once so many posts have come."""
        deadline = time.monotonic() + PATIENCE_S
        while len(lines := self.lines()) < count:
            assert time.monotonic() < deadline, f"PHP saw {len(lines)} of {count} posts"
            time.sleep(0.02)
        return [json.loads(line) for line in lines]

    def lines(self) -> list[str]:
        return self.seen.read_text(encoding="utf-8").split("\n")[:-1] if self.seen.exists() else []

    def url(self, path: str, *, user: str = "") -> str:
        return f"http://{user}{'@' if user else ''}{HOST}:{self.port}{path}"


@contextlib.contextmanager
def serving(script: Path, seen: Path, port: int | None = None, **variables: str) -> Iterator[Php]:
    require("php")
    php = Php(port or free_port(), seen)
    log = seen.with_suffix(".log")
    command = ["php", "-d", "display_errors=1", "-S", f"{HOST}:{php.port}", str(script)]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=clean_environment() | variables, stdout=output, stderr=output) as process,
    ):
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not is_listening(php.port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            yield php
        finally:
            process.kill()


def is_listening(port: int) -> bool:
    try:
        socket.create_connection((HOST, port)).close()
    except OSError:
        return False
    return True


def nasty_call() -> ProxiedCall:
    call = ProxiedCall(name="nasty", caller=in_uri(CALLER), dialled=in_uri(DIALLED), begins=datetime.now(UTC))
    call.invite()
    call.ring(after=0.01)
    call.answer(after=0.01)
    call.hang_up(by="callee", after=0.01, reason=f'Q.850;cause=16;text="{REASON}"')
    return call


def test_php_reads_what_was_posted(tmp_path: Path) -> None:
    script = tmp_path / "receiver.php"
    script.write_text(RECEIVER, encoding="utf-8")
    user, password = "maria", "s3nh4:&+%ção"
    with (
        RecordingReceiver() as receiver,
        serving(script, tmp_path / "seen", SEEN=str(tmp_path / "seen")) as php,
        ToqueProcess(tmp_path) as toque,
    ):
        api = toque.add_client("Escritório", **{PIN: ["~.*"]}).api()
        api.add_callback(php.url("/status.php", user=f"{user}:{urllib.parse.quote(password)}"), PIN)
        api.add_callback(receiver.url("/status"))
        send_by_udp(toque.hep_port, nasty_call().packets)
        by_php = {seen["id"]: seen for seen in php.wait_for(8)}
        by_python = {post.headers["webhook-id"]: post for post in receiver.wait_for_count(8)}
        payloads = {json.loads(payload)["id"]: payload for (payload,) in toque.rows("SELECT payload FROM events")}

    assert by_php.keys() == by_python.keys() == payloads.keys()
    for event_id, seen in by_php.items():
        post = by_python[event_id]
        assert base64.b64decode(seen["raw"]) == post.body
        assert seen["post"] == {"data": payloads[event_id]}
        [parsed] = urllib.parse.parse_qs(post.body.decode("ascii"), strict_parsing=True)["data"]
        assert parsed == payloads[event_id]
        assert seen["decoded"] == json.loads(parsed) == post.data
        assert (post.data["origem"], post.data["destino"], post.data["pin"]) == (CALLER, DIALLED, PIN)
        assert (seen["user"], seen["password"]) == (user, password)
    finals = [post.data for post in by_python.values() if post.word == "desligou"]
    assert [final["causa"] for final in finals] == [{"sip": None, "q850": 16, "texto": REASON}] * 2
    assert [final["atendido_por"] for final in finals] == [DIALLED] * 2


def test_the_example_in_php_takes_the_servers_own_posts(tmp_path: Path) -> None:
    port = free_port()
    seen = tmp_path / "seen"
    with ToqueProcess(tmp_path) as toque:
        registration = toque.add_client("Escritório", **{PIN: ["~.*"]}).api().add_callback(f"http://{HOST}:{port}/")
        with serving(EXAMPLE, seen, port, CALLBACK_SECRET=registration.secret or "", TOQUE_EXAMPLE_LOG=str(seen)) as php:
            send_by_udp(toque.hep_port, nasty_call().packets)
            told = php.wait_for(8)
            toque.wait_until(lambda: toque.waiting() == 0, "the example has not taken everything")
        payloads = [json.loads(payload) for (payload,) in toque.rows("SELECT payload FROM events")]
        assert toque.rows("SELECT DISTINCT state, attempts FROM settled_deliveries") == [("delivered", 1)]
    assert sorted(told, key=lambda status: status["id"]) == sorted(payloads, key=lambda status: status["id"])
