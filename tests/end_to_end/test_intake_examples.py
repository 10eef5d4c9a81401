"""The examples that post calls, each with the real program: curl, Python, PHP as Asterisk runs it, Kamailio with SIPp phones."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.requirements import require
from tests.support.sip_lab.lab import HERE, HOST, LAB_LIMIT_S, SipLab
from tests.support.sip_lab.scenarios import SCENARIOS
from tests.support.toque_process import PATIENCE_S, ToqueProcess, clean_environment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KAMAILIO_MODULES = [Path(place, "kamailio/modules/http_client.so") for place in Path("/usr/lib").glob("*-linux-gnu")]
LINE = "554130600300"
PAYLOADS = "SELECT payload FROM events ORDER BY seq"


@pytest.fixture(scope="module")
def toque(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToqueProcess]:
    with ToqueProcess(tmp_path_factory.mktemp("examples")) as toque:
        toque.add_client("Escritório", vendas=[LINE, *{row.caller for row in SCENARIOS.values()} - {LINE}])
        yield toque


@pytest.fixture(scope="module")
def token(toque: ToqueProcess) -> str:
    token: str = toque.cli("intake", "add", "examples")["token"]
    toque.wait_until(lambda: posted(toque, token) == 200, "the token is not known")
    return token


def posted(toque: ToqueProcess, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    with closing(http.client.HTTPConnection(HOST, toque.http_port, timeout=PATIENCE_S)) as connection:
        connection.request("POST", "/intake/events", b"[]", headers)
        with connection.getresponse() as response:
            return response.status


def told(toque: ToqueProcess, call: str | None = None) -> list[dict[str, object]]:
    """What was told of the last call, or of this one."""
    payloads = [json.loads(payload) for (payload,) in toque.rows(PAYLOADS)]
    wanted = call or (payloads[-1]["callerid"] if payloads else "")
    return [payload for payload in payloads if payload["callerid"] == wanted]


def words(payloads: list[dict[str, object]]) -> list[object]:
    return [payload["status"] for payload in payloads]


def test_curl_tells_of_a_call(toque: ToqueProcess, token: str) -> None:
    require("curl")
    environment = clean_environment() | {"API_URL": toque.http, "TOKEN": token}
    for arguments in (("initiated", LINE, "5511977770002"), ("answered",), ("ended",)):
        command = ["sh", EXAMPLES / "intake.sh", "curl-1", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE_S, check=True)
        assert json.loads(done.stdout)["accepted"] == 1
    assert words(told(toque)) == ["iniciou", "atendeu", "desligou"]
    bad = subprocess.run(["sh", EXAMPLES / "intake.sh", "curl-1", "gone"], env=environment, capture_output=True, check=False)
    assert bad.returncode != 0
    assert b"status: must be one of" in bad.stdout


def test_python_posts_a_file(toque: ToqueProcess, token: str) -> None:
    lines = [{"call": "python-1", "status": word, "from": LINE} for word in ("iniciou", "ocupado", "nonsense")]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "intake.py"],
        input="\n".join(map(json.dumps, lines)),
        env=clean_environment() | {"API_URL": toque.http, "TOKEN": token},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout)["accepted"]) == (1, 2)
    assert "nonsense" in done.stderr
    assert words(told(toque)) == ["iniciou", "ocupado"]


class Asterisk:
    """The switch's side of AGI, for one script."""

    def __init__(self, folder: Path, url: str, token: str) -> None:
        self.folder = folder
        ini = f'url = "{url}/intake/events"\ntoken = "{token}"\nspool = "{folder}/spool"\n'
        (folder / "toque.ini").write_text(ini)

    def agi(self, *arguments: str, **variables: str) -> int:
        """Run the script as AGI() does; the variables are those of its channel."""
        environment = clean_environment() | {"TOQUE_INI": str(self.folder / "toque.ini")}
        command = ["php", str(EXAMPLES / "intake_freepbx.php"), *arguments]
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(
                "agi_request: toque.php\nagi_uniqueid: 1690.1\nagi_callerid: 1001\nagi_dnid: 2\nagi_accountcode: \n\n"
            )
            process.stdin.flush()
            for line in process.stdout:
                name = line.removeprefix("GET FULL VARIABLE ${").rstrip("}\n")
                value = variables.get(name.replace("(", "_").rstrip(")"))
                process.stdin.write("200 result=0\n" if value is None else f"200 result=1 ({value})\n")
                process.stdin.flush()
        return process.returncode

    def spooled(self) -> int:
        return len(list((self.folder / "spool").glob("*.json")))


@pytest.mark.php
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DIALSTATUS": "BUSY", "HANGUPCAUSE": "17"}, ["iniciou", "ocupado"]),
        ({"DIALSTATUS": "CANCEL"}, ["iniciou", "cancelou"]),
        ({"DIALSTATUS": "CHANUNAVAIL", "HANGUPCAUSE": "1"}, ["iniciou", "numero_invalido"]),
        ({"DIALSTATUS": "ANSWER", "HANGUPCAUSE": "16", "ANSWEREDTIME": "0"}, ["iniciou", "atendeu", "desligou"]),
    ],
)
def test_asterisks_dialplan_tells_of_a_call(
    toque: ToqueProcess, token: str, tmp_path: Path, variables: dict[str, str], expected: list[str]
) -> None:
    require("php")
    asterisk = Asterisk(tmp_path, toque.http, token)
    channel = {"CHANNEL_linkedid": f"1690.{variables['DIALSTATUS']}"}
    assert asterisk.agi("initiated", LINE, "5511977770002", **channel) == 0
    assert asterisk.agi("ended", **channel, **variables) == 0
    assert words(told(toque)) == expected
    assert asterisk.spooled() == 0


@pytest.mark.php
def test_what_asterisk_could_not_tell_waits_in_its_spool(toque: ToqueProcess, token: str, tmp_path: Path) -> None:
    require("php")
    nowhere = Asterisk(tmp_path, "http://127.0.0.1:9", token)
    nowhere.agi("initiated", LINE, "2", CHANNEL_linkedid="1690.spooled")
    nowhere.agi("ended", DIALSTATUS="NOANSWER", CHANNEL_linkedid="1690.spooled")
    assert nowhere.spooled() == 2
    again = Asterisk(tmp_path, toque.http, token)
    assert again.agi("flush") == 0
    assert again.spooled() == 0
    assert words(told(toque)) == ["iniciou", "nao_atendeu"]


class TellingLab(SipLab):
    """The laboratory's proxy with the example in it, mirroring nothing."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(9)
        self._config = self._with_example(url, token)

    @staticmethod
    def _with_example(url: str, token: str) -> str:
        lines = (HERE / "kamailio.cfg").read_text().splitlines()
        text = "\n".join(line for line in lines if "siptrace" not in line)
        example = f'#!define TOQUE_URL "{url}/intake/events"\n#!define TOQUE_TOKEN "{token}"\ninclude_file "{EXAMPLES}/intake_kamailio.cfg"\n'
        for place, more in (
            ("# The laboratory waits", example),
            ("    if (!t_relay()) sl_reply_error();", "    route(TOQUE_CALL);\n"),
            (
                '        t_relay();\n        exit;\n    }\n    if (is_method("ACK"))',
                '        if (is_method("BYE")) route(TOQUE_BYE);\n',
            ),
        ):
            assert text.count(place) == 1
            text = text.replace(place, more + place)
        return text

    def _start_proxy(self) -> None:
        config = self._folder_in_use() / "telling.cfg"
        config.write_text(self._config)
        password = ("-A", f"LAB_PASSWORD={self._defines['LAB_PASSWORD']}")
        command = ["kamailio", "-DD", "-E", "-f", str(config), "-l", f"udp:{HOST}:{self.port}", *password]
        command += ["-Y", str(self._folder), "-m", "32", "-M", "4"]
        proxy = self._proxy = self._start("kamailio", command, LAB_LIMIT_S)
        proxy.wait_until(lambda: "sip-lab: proxy is up" in proxy.output, "the proxy's first worker")


@pytest.mark.sip
def test_kamailio_tells_of_its_calls(toque: ToqueProcess, token: str) -> None:
    require("kamailio", "sipp")
    if not any(module.exists() for module in KAMAILIO_MODULES):
        if os.environ.get("TOQUE_REQUIRE_ALL") == "1":
            pytest.fail("needs Kamailio's http_client: apt install kamailio-utils-modules", pytrace=False)
        pytest.skip("needs Kamailio's http_client: apt install kamailio-utils-modules")
    with TellingLab(toque.http, token) as lab:
        for name in ("answered_caller_hangs_up", "answered_callee_hangs_up", "busy_486", "cancelled"):
            before = len(toque.rows(PAYLOADS))
            lab.run(name)
            truth = SCENARIOS[name].truth
            until = time.monotonic() + PATIENCE_S
            while len(toque.rows(PAYLOADS)) < before + len(truth.statuses):
                assert time.monotonic() < until, lab.proxy_log
                time.sleep(0.05)
            payloads = told(toque)
            assert tuple(words(payloads)) == truth.statuses, lab.proxy_log
            assert payloads[-1]["desligado_por"] == truth.ended_by
