"""Each newcomer's page, followed literally: its settings, commands and programs, with a switch in the place of the reader's.

Only addresses are others. An Asterisk and a FreeSWITCH are played by a small server from recordings; the Kamailio is a real one, run
with the page's own configuration, with real SIPp phones. What `pip install .` gives is here already.
"""

from __future__ import annotations

import asyncio
import configparser
import os
import re
import subprocess
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.ami_recordings import RECORDINGS, load
from tests.support.requirements import require
from tests.support.sip_lab.lab import HERE, HOST, LAB_LIMIT_S, SipLab
from tests.support.sip_lab.programs import is_udp_port_bound
from tests.support.switch_server import PASSWORD, AmiSwitch, EslSwitch, PlayedSwitch, SwitchServer
from tests.support.toque_process import COMMAND, PATIENCE_S, POLL_S, clean_environment, free_port

ROOT = Path(__file__).resolve().parents[2]
LONG_RUNNING = ("toque serve", "python receiver.py")
pytestmark = pytest.mark.shell


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [block for of, block in found if of == language]


@dataclass
class Reader:
    """Somebody with terminals in one folder, who does what the page says. `instead`: what stands for what on the page."""

    folder: Path
    page: str
    instead: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        ports = {f"127.0.0.1:{port}": f"{HOST}:{free_port()}" for port in (8080, 8000)}
        self.instead = {
            **ports,
            '("127.0.0.1", 8000)': f'("127.0.0.1", {ports["127.0.0.1:8000"].rpartition(":")[2]})',
            **self.instead,
        }
        self.environment = clean_environment()
        self.environment["PATH"] = f"{COMMAND.parent}{os.pathsep}{self.environment['PATH']}"

    def adapted(self, text: str) -> str:
        for said, meant in self.instead.items():
            text = text.replace(said, meant)
        return text

    def follow(self) -> None:
        """Save the files, and type the commands in their order."""
        (settings,), (program,) = blocks(self.page, "toml"), blocks(self.page, "python")
        (self.folder / "toque.toml").write_text(self.adapted(settings), encoding="utf-8")
        (self.folder / "receiver.py").write_text(self.adapted(program), encoding="utf-8")
        for block in blocks(self.page, "sh"):
            if block.startswith("python3.11 -m venv"):
                assert block.splitlines()[-1] == "pip install ."
            elif block.strip() in LONG_RUNNING:
                self.start(block.strip())
            elif block.strip() != "toque doctor":  # once there has been a call
                self.type(block)

    def type(self, block: str) -> str:
        """Run a block to its end, as in the reader's first terminal: what it exports stays."""
        script = f"set -eo pipefail\n{self.adapted(block)}\nenv -0 > environment\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}\n{self.log('toque')}"
        pairs = (self.folder / "environment").read_text(encoding="utf-8").split("\0")
        self.environment |= {name: value for name, _, value in (pair.partition("=") for pair in pairs) if name != "_" and name}
        return done.stdout

    def start(self, command: str) -> None:
        """Run a program in a terminal of its own, and wait until it is there."""
        name, *_ = command.split()
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running.append(
                subprocess.Popen(command.split(), cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
            )
        port = self.instead["127.0.0.1:8080" if name == "toque" else "127.0.0.1:8000"].rpartition(":")[2]
        self.wait(lambda: _is_listening(int(port)), f"{command} does not listen")

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def wait(self, is_so: object, otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"{otherwise}\n{self.log('toque')}\n{self.log('python')}"
            assert all(process.poll() is None for process in self.running), f"{self.log('toque')}\n{self.log('python')}"
            time.sleep(POLL_S)

    def received(self) -> list[str]:
        """What the receiver has printed of calls; durations may be those of a busy machine."""
        lines = [line for line in self.log("python").splitlines() if re.match(r"\d ", line)]
        return [line for line in lines if "551155550000" not in line]

    def stop(self) -> None:
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            process.wait(PATIENCE_S)

    def sees(self, expected: Sequence[str]) -> None:
        """Wait for what the page says that the receiver prints."""
        self.wait(lambda: len(self.received()) >= len(expected), f"the receiver did not print {expected}")
        assert [line.split()[:4] for line in self.received()] == [line.split()[:4] for line in expected]
        assert "1 desligou 551155550000 551155550001" in self.log("python")

    def looks_for_what_is_wrong(self) -> None:
        if "doctor" in subprocess.run([COMMAND, "--help"], capture_output=True, encoding="utf-8", check=True).stdout:
            self.type("toque doctor")


def _is_listening(port: int) -> bool:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines)


@contextmanager
def reading(folder: Path, page: str, **instead: str) -> Iterator[Reader]:
    reader = Reader(folder, page, instead)
    try:
        yield reader
    finally:
        reader.stop()


def printed(page: str) -> list[str]:
    """What the page says that the receiver prints."""
    (block,) = [block for block in blocks(page, "") if block.startswith("1 iniciou")]
    return block.splitlines()


class _Waiting:
    """The call is made when somebody makes it."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)
        self.is_called = threading.Event()

    async def _play(self, writer: asyncio.StreamWriter) -> None:
        while not self.is_called.is_set():
            await asyncio.sleep(POLL_S)
        await super()._play(writer)  # type: ignore[misc]


class WaitingAsterisk(_Waiting, AmiSwitch):
    pass


class WaitingFreeSwitch(_Waiting, EslSwitch):
    """Its recording ends now: a switch whose clock is hours off is something that `toque doctor` tells."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        late = int(time.time() * 1_000_000) - int(self.recorded[-1]["Event-Date-Timestamp"])
        self.recorded = [{name: _later(value, late) for name, value in event.items()} for event in self.recorded]


def _later(value: object, by_us: int) -> object:
    """A moment in microseconds since 1970 moves; nothing else has sixteen digits."""
    return str(int(value) + by_us) if isinstance(value, str) and re.fullmatch(r"1\d{15}", value) else value


def follow(tmp_path: Path, page: str, switch: PlayedSwitch, said: str, secret: str) -> None:
    with SwitchServer() as server:
        address = f"127.0.0.1:{server.add(switch)}"
        with reading(tmp_path, page) as reader:
            reader.instead |= {said: address, secret: PASSWORD}
            reader.follow()
            reader.wait(lambda: "source.resynced" in reader.log("toque"), "the source is not connected")
            switch.is_called.set()  # type: ignore[attr-defined]
            reader.sees(printed(page))
            assert reader.received() == printed(page)
            assert switch.is_done.wait(PATIENCE_S)
            reader.wait(lambda: reader.log("toque").count("source.connected") >= 2, "the source is not connected again")
            reader.looks_for_what_is_wrong()


def test_from_an_asterisk_to_the_first_callback(tmp_path: Path) -> None:
    require("curl", "sed", "bash")
    page = (ROOT / "docs" / "asterisk.md").read_text(encoding="utf-8")
    recording = load(RECORDINGS / "in_answered")
    follow(tmp_path, page, WaitingAsterisk(recording), "192.0.2.10:5038", "a long random secret")


def test_what_the_page_sets_in_asterisk_is_what_it_sets_in_toque() -> None:
    page = (ROOT / "docs" / "asterisk.md").read_text(encoding="utf-8")
    manager = configparser.ConfigParser()
    manager.read_string(blocks(page, "ini")[0])
    (source,) = tomllib.loads(blocks(page, "toml")[0])["sources"]
    assert manager[source["username"]]["secret"] == source["secret"]
    assert manager[source["username"]]["read"] == "system,call,cdr,user,agent"
    assert manager[source["username"]]["write"] == "reporting"


def test_from_a_freeswitch_to_the_first_callback(tmp_path: Path) -> None:
    require("curl", "sed", "bash")
    page = (ROOT / "docs" / "freeswitch.md").read_text(encoding="utf-8")
    switch = WaitingFreeSwitch(RECORDINGS.with_name("freeswitch") / "in_answered_caller_hangup")
    follow(tmp_path, page, switch, "192.0.2.11:8021", "a long random password")


def test_what_the_page_sets_in_freeswitch_is_what_it_sets_in_toque() -> None:
    page = (ROOT / "docs" / "freeswitch.md").read_text(encoding="utf-8")
    told = dict(re.findall(r'<param name="([\w-]+)" value="([^"]*)"/>', blocks(page, "xml")[0]))
    (source,) = tomllib.loads(blocks(page, "toml")[0])["sources"]
    assert (told["password"], told["listen-port"]) == (source["password"], source["address"].rpartition(":")[2])
    assert f'<list name="{told["apply-inbound-acl"]}"' in blocks(page, "xml")[1]


class PageLab(SipLab):
    """The lab with the page's proxy. The carrier is where the caller's phone says."""

    def __init__(self, hep_port: int, config: str) -> None:
        super().__init__(hep_port)
        self._config = config.replace("192.0.2.12:5060", f"{HOST}:{self.port}").replace("127.0.0.1:9060", f"{HOST}:{hep_port}")
        assert '$du = "sip:192.0.2.20:5060";' in self._config
        self._config = self._config.replace('$du = "sip:192.0.2.20:5060";', "$du = $hdr(X-Lab-Target);")

    def _start_proxy(self) -> None:
        folder = self._folder_in_use()
        (folder / "kamailio.cfg").write_text(self._config)
        command = ["kamailio", "-f", "kamailio.cfg", "-DD", "-E", "-Y", str(folder), "-m", "32", "-M", "4"]
        proxy = self._proxy = self._start("kamailio", command, LAB_LIMIT_S)
        proxy.wait_until(lambda: is_udp_port_bound(self.port), "the proxy's port")


@pytest.mark.sip
def test_from_a_kamailio_to_the_first_callback(tmp_path: Path) -> None:
    require("curl", "sed", "bash", "kamailio", "sipp")
    page = (ROOT / "docs" / "kamailio.md").read_text(encoding="utf-8")
    (config,) = blocks(page, "cfg")
    (snippet,) = [block for block in blocks(page, "") if block.startswith('loadmodule "siptrace.so"')]
    assert set(snippet.splitlines()) <= set(config.splitlines())
    assert HERE.is_dir()
    hep_port = free_port()
    with reading(tmp_path, page) as reader:
        reader.instead["127.0.0.1:9060"] = f"{HOST}:{hep_port}"
        reader.follow()
        with PageLab(hep_port, config) as lab:
            _, _, caller, callee, _ = printed(page)[0].split()
            lab.run("answered_caller_hangs_up", caller=caller, callee=callee, talk_ms=1100)
            reader.sees(printed(page))
            reader.looks_for_what_is_wrong()
