"""A real Kamailio between real SIPp phones, on loopback ports of its own."""

import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.sip_lab.programs import POLL_S, Program, ProgramError, free_udp_port, is_udp_port_bound
from tests.support.sip_lab.scenarios import AUTH_PASSWORD, MOVED_TO, SCENARIOS, Phone, Scenario

HOST = "127.0.0.1"
HERE = Path(__file__).parent
LAB_LIMIT_S = 600
# What a phone may take beyond the calls' own time: repeats after losses, and a busy machine.
PHONE_SLACK_S = 30

PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
ALONE = re.compile(r"^[ \t]*\{\{(\w+)\}\}[ \t]*\n", re.MULTILINE)

DEFAULTS: Mapping[str, str] = {
    "bye_headers": "",
    "reply_headers": "",
    "linger_ms": "0",
    "patience_ms": "400",
    "silence_ms": "2000",
    "timeout_ms": "3000",
    "moved_to": MOVED_TO,
    "password": AUTH_PASSWORD,
}


@dataclass(frozen=True)
class Run:
    """What a scenario's run left to look for in the capture."""

    scenario: Scenario
    call_ids: tuple[str, ...]
    caller_port: int
    phone_ports: tuple[int, ...]


class SipLab:
    """A Kamailio that mirrors all SIP to a HEP collector, and a way to make calls through it.

    `run` may be called from several threads at once.
    """

    def __init__(self, hep_port: int, *, hep_version: int = 3, auth_key: str | None = None, hep_host: str = HOST) -> None:
        self.port = free_udp_port()
        self._defines = {
            "LAB_HEP_URI": f'"sip:{hep_host}:{hep_port}"',
            "LAB_HEP_VERSION": str(hep_version),
            "LAB_PASSWORD": f'"{AUTH_PASSWORD}"',
        }
        if auth_key is not None:
            self._defines["LAB_HEP_KEY"] = f'"{auth_key}"'
        self._folder: Path | None = None
        self._programs: list[Program] = []
        self._proxy: Program | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="sip-lab-"))
        try:
            self._start_proxy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    @property
    def proxy_log(self) -> str:
        """What the proxy has said until now."""
        return self._proxy.output if self._proxy else ""

    @property
    def process_groups(self) -> list[int]:
        """The process groups of all programs that run now."""
        with self._lock:
            return [program.group for program in self._programs]

    def stop(self) -> None:
        """End every program and remove the lab's folder. Safe to repeat."""
        with self._lock:
            programs, self._programs = self._programs, []
        for program in reversed(programs):
            program.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    def run(
        self,
        scenario: str | Scenario,
        *,
        caller: str | None = None,
        callee: str | None = None,
        calls: int | None = None,
        rate: int | None = None,
        ring_ms: int | None = None,
        talk_ms: int | None = None,
    ) -> Run:
        """Run a scenario's phones to the end.

        What is not given comes from the scenario's row. Raises `ProgramError`, with SIPp's own words, where a phone
        saw anything else than its script says.
        """
        row = SCENARIOS[scenario] if isinstance(scenario, str) else scenario
        given: dict[str, Any] = {
            "caller": caller,
            "callee": callee,
            "calls": calls,
            "rate": rate,
            "ring_ms": ring_ms,
            "talk_ms": talk_ms,
        }
        return self._run(replace(row, **{name: value for name, value in given.items() if value is not None}))

    def _run(self, row: Scenario) -> Run:
        token = f"{row.name}-{secrets.token_hex(6)}"
        ports = tuple(free_udp_port(HOST) for _ in row.phones)
        params = {**DEFAULTS, **_params_of(row, ports)}
        caller_port = free_udp_port()
        phones: list[Program] = []
        caller: Program | None = None
        try:
            for number, (phone, port) in enumerate(zip(row.phones, ports, strict=True), start=1):
                phones.append(self._start_phone(f"{token}-phone-{number}", phone, port, row, params))
            caller = self._start_caller(f"{token}-caller", caller_port, row, params)
            # Where packets get lost, a phone may wait for one in vain; the caller's script has then seen the whole call.
            self._expect_success([caller] if row.lost else [caller, *phones], _limit_s(row))
        finally:
            for program in (*phones, *([caller] if caller else [])):
                self._forget(program)
        call_ids = tuple(f"{number}-{token}@{HOST}" for number in range(1, row.calls + 1))
        return Run(row, call_ids, caller_port, ports)

    def _expect_success(self, phones: list[Program], limit_s: float) -> None:
        """Wait until all have ended well; the first one that does not ends the waiting."""
        deadline = time.monotonic() + limit_s
        while any(phone.exit_status is None for phone in phones):
            if any(phone.exit_status for phone in phones) or time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        if any(phone.exit_status != 0 for phone in phones):
            told = (f"--- {phone.name} (exit status {phone.exit_status})\n{phone.output}" for phone in phones)
            raise ProgramError("\n".join(("a phone did not see what its script says", *told)))

    def _start_proxy(self) -> None:
        defines = [part for name, value in self._defines.items() for part in ("-A", f"{name}={value}")]
        proxy = self._proxy = self._start(
            "kamailio",
            [
                "kamailio", "-DD", "-E", "-f", str(HERE / "kamailio.cfg"), "-l", f"udp:{HOST}:{self.port}", *defines,
                "-Y", str(self._folder), "-m", "32", "-M", "4",
            ],
            LAB_LIMIT_S,
        )  # fmt: skip
        proxy.wait_until(lambda: "sip-lab: proxy is up" in proxy.output, "the proxy's first worker")

    def _start_phone(self, name: str, phone: Phone, port: int, row: Scenario, params: Mapping[str, str]) -> Program:
        own = {**params, **phone.params, "user": phone.user or row.callee}
        program = self._start_sipp(name, phone.script, port, row, own)
        program.wait_until(lambda: is_udp_port_bound(port), f"UDP port {port}")
        return program

    def _start_caller(self, name: str, port: int, row: Scenario, params: Mapping[str, str]) -> Program:
        token = name.removesuffix("-caller")
        options = ["-r", str(row.rate), "-l", str(row.calls), "-cid_str", f"%u-{token}@%s"]
        return self._start_sipp(name, row.uac, port, row, params, *options)

    def _start_sipp(self, name: str, script: str, port: int, row: Scenario, params: Mapping[str, str], *options: str) -> Program:
        rendered = self._folder_in_use() / f"{name}.xml"
        rendered.write_text(render((HERE / "scenarios" / f"{script}.xml").read_text(), params))
        limit_s = _limit_s(row)
        command = [
            "sipp", f"{HOST}:{self.port}", "-sf", str(rendered), "-i", HOST, "-p", str(port), "-m", str(row.calls),
            "-cp", str(free_udp_port()), "-lost", str(row.lost), "-nostdin", "-timeout", f"{limit_s}s", "-timeout_error",
            *options,
        ]  # fmt: skip
        return self._start(name, command, limit_s + 5)

    def _start(self, name: str, command: list[str], limit_s: float) -> Program:
        program = Program(name, command, self._folder_in_use(), limit_s=limit_s)
        with self._lock:
            self._programs.append(program)
        return program

    def _forget(self, program: Program) -> None:
        program.stop()
        with self._lock:
            if program in self._programs:
                self._programs.remove(program)

    def _folder_in_use(self) -> Path:
        if self._folder is None:
            raise RuntimeError("the lab is not open: use `with SipLab(...) as lab`")
        return self._folder


def render(text: str, params: Mapping[str, str]) -> str:
    """Fill in each `{{name}}`; a line of nothing but an empty one goes away, since it would end the message's headers."""
    text = ALONE.sub(lambda match: match[0] if params[match[1]] else "", text)
    return PLACEHOLDER.sub(lambda match: params[match[1]], text)


def _params_of(row: Scenario, ports: tuple[int, ...]) -> dict[str, str]:
    uris = {
        f"phone_{number}": f"sip:{phone.user or row.callee}@{HOST}:{port}"
        for number, (phone, port) in enumerate(zip(row.phones, ports, strict=True), start=1)
    }
    own = {"caller": row.caller, "callee": row.callee, "ring_ms": str(row.ring_ms), "talk_ms": str(row.talk_ms)}
    params = {**uris, **own, **{name: render(value, uris) for name, value in row.params.items()}}
    params["headers"] = "\n".join(("User-Agent: sip-lab", *(render(header, params) for header in row.headers)))
    return params


def _limit_s(row: Scenario) -> int:
    return PHONE_SLACK_S + row.calls // row.rate + (row.ring_ms + row.talk_ms) // 1000
