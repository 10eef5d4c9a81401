"""`toque doctor` beside a real server and without one, in good states and bad ones; what it prints holds no secret."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.support.hep_sender import send_by_tcp
from tests.support.recording_receiver import RecordingReceiver
from tests.support.sip_messages import ProxiedCall
from tests.support.switch_server import PASSWORD, USERNAME, AmiSwitch, EslSwitch, PlayedSwitch, SwitchServer
from tests.support.toque_process import Account, ToqueProcess, free_port

WRONG = "uma senha errada"
KEY = "uma chave bem comprida"
OFFICE = ["5541306003*"]


class SwitchesProcess(ToqueProcess):
    """A server whose sources are in its folder's file."""

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in super().environment.items() if name != "TOQUE_HEP"}


@dataclass
class Report:
    """What doctor said."""

    code: int
    told: dict[str, Any]
    text: str

    def levels(self, check: str) -> dict[str, str]:
        """Subject to level, of one check."""
        return {found["subject"]: found["level"] for found in self.told["checks"] if found["id"] == check}

    def the(self, check: str, subject: str | None = None) -> dict[str, Any]:
        """The one finding of a check."""
        [found] = [one for one in self.told["checks"] if one["id"] == check and subject in (None, one["subject"])]
        return dict(found)


def examined(toque: ToqueProcess, *arguments: str) -> Report:
    done = toque.run("doctor", "--json", *arguments)
    assert "Traceback" not in done.stderr
    return Report(done.returncode, json.loads(done.stdout), done.stdout + done.stderr)


def idle(switch: PlayedSwitch) -> PlayedSwitch:
    """A switch on which nothing happens, and which stays."""
    switch._cuts.clear()
    return switch


def ami_table(port: int, secret: str = PASSWORD, name: str = "pbx1") -> str:
    head = f'[[sources]]\nkind = "ami"\nname = "{name}"\naddress = "127.0.0.1:{port}"\n'
    return f'{head}username = "{USERNAME}"\nsecret = "{secret}"\n'


def esl_table(port: int, password: str = PASSWORD) -> str:
    return f'[[sources]]\nkind = "esl"\nname = "fs1"\naddress = "127.0.0.1:{port}"\npassword = "{password}"\n'


def write_settings(folder: Path, *tables: str) -> None:
    path = folder / "toque.toml"
    path.write_text("\n".join(tables))
    path.chmod(0o600)


@pytest.fixture
def switches() -> Iterator[SwitchServer]:
    with SwitchServer() as server:
        yield server


def registered(toque: ToqueProcess, *urls: str) -> Account:
    account = toque.add_client("Escritório", vendas=OFFICE)
    for url in urls:
        account.api().add_callback(url)
    return account


# Beside a server


def test_all_is_well_and_calls_of_nobody_are_shown_masked(tmp_path: Path, switches: SwitchServer) -> None:
    hep = free_port()
    ports = switches.add(idle(AmiSwitch())), switches.add(idle(EslSwitch()))
    write_settings(tmp_path, ami_table(ports[0]), esl_table(ports[1]), f'[[sources]]\nkind = "hep"\nlisten = "127.0.0.1:{hep}"\n')
    with RecordingReceiver() as receiver, SwitchesProcess(tmp_path, secret_key=KEY) as toque:
        registered(toque, receiver.url("/segredo?token=oculto"))
        call_of_strangers(toque, hep)
        report = examined(toque)
        assert [one for one in report.told["checks"] if one["level"] == "problem"] == []
        assert report.code == 0
        assert report.told["server"]["pid"] == toque.pid
        assert report.levels("source.connected") == {"pbx1": "ok", "fs1": "ok", "hep": "ok"}
        assert report.the("callback.reach")["level"] == "ok"
        assert report.the("settings.secret_key")["level"] == "ok"
        assert report.the("source.packets")["data"]["refused"] == 0
        assert report.the("source.clock", "hep")["data"]["behind_s"] > 0
        unmatched = report.the("calls.unmatched")
        assert (unmatched["level"], unmatched["data"]["unmatched"]) == ("warning", 1)
        assert unmatched["examples"] == ["hep: 551198888**** -> 552197777****, busy"]
        assert receiver.posts == []
        told = toque.run("doctor", "--strict")
        assert told.returncode == 1
        assert "server.running" in told.stdout
        for secret in (PASSWORD, KEY, "segredo", "oculto", "5511988887777"):
            assert secret not in report.text + told.stdout + told.stderr


def call_of_strangers(toque: ToqueProcess, port: int) -> None:
    call = ProxiedCall("stranger", "5511988887777", "5521977776666", begins=datetime.now(UTC) - timedelta(seconds=2))
    call.invite()
    call.fail(486)
    send_by_tcp(port, call.packets)
    toque.wait_until(lambda: toque.health()["unmatched_calls"] == 1, "not seen")
    toque.wait_until(lambda: set(toque.health()["sources"].values()) == {"connected", "listening"}, "not connected")


def test_what_is_wrong_is_said(tmp_path: Path, switches: SwitchServer) -> None:
    write_settings(tmp_path, ami_table(switches.add(idle(AmiSwitch())), WRONG), esl_table(1))
    with SwitchesProcess(tmp_path) as toque, self_signed() as port:
        account = registered(toque, "http://127.0.0.1:1/status", f"https://127.0.0.1:{port}/status")
        toque.wait_until(lambda: "not connected yet" not in toque.health()["sources"].values(), "not dialled")
        report = examined(toque, "--quiet")
        assert (report.code, report.told["status"]) == (1, "problem")
        refused, unreachable = report.the("source.connected", "pbx1"), report.the("source.connected", "fs1")
        assert "refuses the login" in refused["text"]
        assert "manager.conf" in refused["advice"]
        assert "connection refused" in unreachable["text"]
        assert reasons(report) == {"connection refused", "certificate: unknown issuer"}
        assert all(one["level"] != "ok" for one in report.told["checks"])
        toque.settings["allow_networks"] = "192.168.0.0/16"
        elsewhere = examined(toque, "--http", "127.0.0.1:1")
        assert reasons(elsewhere) == {"loopback address"}
        assert "a server has the store" in elsewhere.the("server.running")["text"]
        toque.terminate()
        toque.store.chmod(0o644)
        stopped = examined(toque)
        assert stopped.code == 1
        assert "no server is running" in stopped.the("server.running")["text"]
        assert stopped.the("store.file")["level"] == "problem"
        for secret in (WRONG, account.client_secret):
            assert secret not in report.text + elsewhere.text + stopped.text


def reasons(report: Report) -> set[str]:
    return {one["text"] for one in report.told["checks"] if one["id"] == "callback.reach"}


# Without one


def test_a_newcomer_without_a_server_learns_whether_the_switch_lets_toque_in(tmp_path: Path, switches: SwitchServer) -> None:
    switch = AmiSwitch()
    switch.may_list = False
    esl = idle(EslSwitch())
    tables = (
        ami_table(switches.add(idle(AmiSwitch()))),
        ami_table(switches.add(idle(AmiSwitch())), WRONG, name="pbx2"),
        ami_table(switches.add(esl), name="pbx3"),
        ami_table(switches.add(idle(switch)), name="pbx4"),
        esl_table(switches.add(idle(EslSwitch())), WRONG),
    )
    write_settings(tmp_path, *tables)
    toque = SwitchesProcess(tmp_path)
    report = examined(toque)
    assert report.levels("source.connected") == {
        "pbx1": "ok",
        "pbx2": "problem",
        "pbx3": "problem",
        "pbx4": "problem",
        "fs1": "problem",
    }
    assert "write = reporting" in report.the("source.connected", "pbx4")["advice"]
    assert "refuses the password" in report.the("source.connected", "fs1")["text"]
    assert report.the("store.opens")["level"] == "warning"
    assert not toque.store.exists()
    assert WRONG not in report.text
    assert PASSWORD not in report.text


def test_a_full_disk(tmp_path: Path) -> None:
    """A small tmpfs of our own, where the kernel lets us have one."""
    script = (
        f"mount -t tmpfs -o size=600k none {tmp_path} && cd {tmp_path} && toque client add um >/dev/null"
        " && (dd if=/dev/zero of=fill bs=1k 2>/dev/null; toque doctor --json; echo $?)"
    )
    environment = ToqueProcess(tmp_path).environment
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], env=environment, capture_output=True, encoding="utf-8", check=False, timeout=60
    )
    if done.returncode != 0:
        pytest.skip(f"no namespace of our own: {done.stderr}")
    text, _, code = done.stdout.strip().rpartition("\n")
    checks = {one["id"]: one for one in json.loads(text)["checks"]}
    assert code == "1"
    assert checks["store.place"]["level"] == "problem"
    assert checks["store.space"]["level"] == "problem"
    assert "problem" in (checks["store.opens"]["level"], checks.get("store.write", {}).get("level"))


def test_wrong_settings_are_still_exit_code_2(tmp_path: Path) -> None:
    done = ToqueProcess(tmp_path).run("doctor", "--time-zone", "Marte")
    assert done.returncode == 2
    assert "time_zone" in done.stderr


@contextlib.contextmanager
def self_signed() -> Iterator[int]:
    """An HTTPS server whose issuer nobody knows; its port."""

    class Quiet(HTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
