"""Every recording, played over real sockets into `toque serve`: Asterisks by AMI, FreeSWITCHes by ESL, and all of them by HEP.

Each recording is a source of its own, twice: `whole`, and `cut`, whose connection is lost at three places and made again. What a
customer's server was posted is the result.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.support.ami_recordings import RECORDINGS, load
from tests.support.recording_receiver import Post, RecordingReceiver, by_side
from tests.support.switch_server import (
    PASSWORD,
    PATIENCE_S,
    USERNAME,
    AmiSwitch,
    Cut,
    EslSwitch,
    PlayedSwitch,
    SwitchServer,
    random_cuts,
)
from tests.support.toque_process import ToqueProcess

from toque.callbacks.payload import STATUS_WORDS
from toque.calls.hep_packet import SIP, parse_hep
from toque.calls.identity import callerid
from toque.calls.model import CallIdentity
from toque.calls.sip import SipError, parse_sip
from toque.sources.recording import read_recording

ROOT = RECORDINGS.parent
MODES = ("whole", "cut")
CUTS = 3
LINES = {"extensions": ["~1(00[1-5]|999)"], "numbers": ["5541306003*", "554130609999", "5541988880001", "auth1"]}
FINALS = {word for status, word in STATUS_WORDS.items() if status.is_final}
_HOST = "127.0.0.1"


@dataclass
class Play:
    """One recording seen by one kind of source, once."""

    switch: str  # asterisk, freeswitch, kamailio
    scenario: str
    kind: str  # ami, esl, hep
    mode: str
    posts: list[Post] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return ROOT / self.switch / self.scenario

    @property
    def name(self) -> str:
        """The source's name."""
        return f"{self.mode}-{self.kind}-{self.switch}-{self.scenario}"

    @cached_property
    def truths(self) -> list[dict[str, Any]]:
        truths: list[dict[str, Any]] = json.loads((self.folder / "truth.json").read_text(encoding="utf-8"))["calls"]
        return truths

    @cached_property
    def packets(self) -> list[bytes]:
        """The HEP packets as the switch sent them."""
        return [recorded.data for recorded in read_recording(self.folder / "hep.pcap")]

    def callerids(self) -> set[str]:
        """Every `callerid` that a call of this play can have."""
        keys = {"ami": self._ami_keys, "esl": self._esl_keys, "hep": self._hep_keys}[self.kind]()
        return {callerid(CallIdentity(self.name, key), 0) for key in keys}

    def _ami_keys(self) -> set[str]:
        text = (self.folder / "ami.txt").read_text(encoding="utf-8", errors="replace")
        blocks = [dict(re.findall(r"^(\w+): (.*?)\r?$", block, re.MULTILINE)) for block in text.split("\r\n\r\n")]
        asked = {
            " ".join(("originate", block.get("ActionID", ""), block.get("Channel", ""), block.get("Exten", "")))
            for block in blocks
            if block.get("Event") == "OriginateResponse"
        }
        return asked | set(re.findall(r"^(?:Dest)?(?:Uniqueid|Linkedid): (\S+)", text, re.MULTILINE))

    def _esl_keys(self) -> set[str]:
        return {event["Unique-ID"] for event in EslSwitch(self.folder).recorded if "Unique-ID" in event}

    def _hep_keys(self) -> set[str]:
        keys = set()
        for data in self.packets:
            packet = parse_hep(data)
            if packet.protocol != SIP or not packet.payload.strip():
                continue
            try:
                message = parse_sip(packet.payload)
            except SipError:
                continue
            keys |= {f"{message.call_id} {tag}" for tag in (message.from_tag, message.to_tag)}
        return keys

    def sides(self) -> list[list[Post]]:
        return list(by_side(self.posts).values())

    def is_told(self) -> bool:
        """Whether every side that was told anything was told its end."""
        return all(posts[-1].word in FINALS for posts in self.sides())


def plays(modes: Mapping[str, Sequence[str]]) -> list[Play]:
    """All that can be played, in the order of the page; `modes` of each kind of source."""
    found = []
    for switch, kinds in (("kamailio", ["hep"]), ("asterisk", ["ami", "hep"]), ("freeswitch", ["esl", "hep"])):
        for truth in sorted((ROOT / switch).glob("*/truth.json")):
            found += [Play(switch, truth.parent.name, kind, mode) for kind in kinds for mode in modes.get(kind, MODES)]
    return found


class _SourcesProcess(ToqueProcess):
    """A server whose sources are in its folder's file."""

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in super().environment.items() if name != "TOQUE_HEP"}


def run(folder: Path, modes: Mapping[str, Sequence[str]] | None = None) -> list[Play]:
    """Play everything. Two servers at once: one connects to the switches, the other listens for HEP."""
    every = plays(modes or {})
    switches, mirrored = folder / "switches", folder / "mirrored"
    for place in (switches, mirrored):
        place.mkdir()
    with RecordingReceiver() as receiver:
        _register(switches, receiver)
        shutil.copy(switches / "toque.db", mirrored / "toque.db")
        with ThreadPoolExecutor(2) as pool:
            connecting = pool.submit(_run_switches, switches, [play for play in every if play.kind != "hep"])
            listening = pool.submit(_run_hep, mirrored, [play for play in every if play.kind == "hep"], receiver)
            connecting.result()
            listening.result()
        _share_out(every, receiver.posts)
    return every


def _register(folder: Path, receiver: RecordingReceiver) -> None:
    with ToqueProcess(folder) as toque:
        for name, numbers in LINES.items():
            account = toque.add_client(name, **{name: numbers})
            account.api().add_callback(receiver.url(f"/{name}"))
        assert toque.terminate() == 0


def _share_out(every: Sequence[Play], posts: Sequence[Post]) -> None:
    owners = {identity: play for play in every for identity in play.callerids()}
    strangers = [post for post in posts if post.data["callerid"] not in owners]
    assert not strangers, strangers
    for play in every:
        play.posts = []
    for post in posts:
        owners[post.data["callerid"]].posts.append(post)


# Asterisk and FreeSWITCH by their own interfaces


def _run_switches(folder: Path, every: Sequence[Play]) -> None:
    with SwitchServer() as server:
        switches = {play.name: _switch(play) for play in every}
        tables = [_table(play, server.add(switches[play.name])) for play in every]
        (folder / "toque.toml").write_text("\n".join(tables), encoding="utf-8")
        with _SourcesProcess(folder) as toque:
            for name, switch in switches.items():
                assert switch.is_done.wait(PATIENCE_S), f"{name} is not done\n{toque.tail()}"
            _finish(toque)


def _switch(play: Play) -> PlayedSwitch:
    recording = load(play.folder) if play.kind == "ami" else None
    events = (AmiSwitch(recording) if recording else EslSwitch(play.folder)).events
    cuts: list[Cut] = random_cuts(events, play.scenario, count=CUTS, most_lost=0) if play.mode == "cut" and events > CUTS else []
    dies = "shutdown" in play.scenario
    if recording is not None:
        return AmiSwitch(recording, cuts=cuts, seed=play.name, dies=dies)
    return EslSwitch(play.folder, cuts=cuts, seed=play.name, dies=dies)


def _table(play: Play, port: int) -> str:
    is_ami = play.kind == "ami"
    login = f'username = "{USERNAME}"\nsecret = "{PASSWORD}"' if is_ami else f'password = "{PASSWORD}"'
    trunks = "PJSIP/trunk*" if is_ami else "sofia/external/*"
    head = f'[[sources]]\nkind = "{play.kind}"\nname = "{play.name}"\naddress = "{_HOST}:{port}"\n'
    return f'{head}{login}\ntrunks = ["{trunks}"]\n'


# All of them by HEP


def _run_hep(folder: Path, every: Sequence[Play], receiver: RecordingReceiver) -> None:
    tables = [f'[[sources]]\nkind = "hep"\nname = "{play.name}"\nlisten = "{_HOST}:0"\n' for play in every]
    (folder / "toque.toml").write_text("\n".join(tables), encoding="utf-8")
    # A switch that died says nothing by SIP: those calls are concluded hours later.
    ending = {identity for play in every if "shutdown" not in play.scenario for identity in play.callerids()}
    with _SourcesProcess(folder, log_format="json") as toque:
        logged = (json.loads(line) for line in toque.log.splitlines() if '"hep.listening"' in line)
        ports = {line["source"]: line["port"] for line in logged}
        for play in every:
            _send(play, ports[play.name])
        toque.wait_until(lambda: _packets(toque) >= sum(len(play.packets) for play in every), "packets are missing")
        receiver.wait_for(lambda posts: _are_ended([post for post in posts if post.data["callerid"] in ending]))
        _finish(toque)


def _packets(toque: ToqueProcess) -> int:
    health = toque.health()
    assert health["hep_refused"] == 0, toque.tail()
    return int(health["hep_packets"])


def _are_ended(posts: Sequence[Post]) -> bool:
    return bool(posts) and all(told[-1].word in FINALS for told in by_side(posts).values())


def _send(play: Play, port: int) -> None:
    """Over TCP, in pieces of any size; `cut` closes the connection between packets."""
    chance = random.Random(play.name)
    count = len(play.packets)
    edges = sorted(chance.sample(range(1, count), CUTS)) if play.mode == "cut" and count > CUTS else []
    for start, until in zip([0, *edges], [*edges, count], strict=True):
        with _connection(port) as connection:
            data = b"".join(play.packets[start:until])
            while data:
                size = chance.choice((1, 7, 100, 1460, 65_536))
                connection.sendall(data[:size])
                data = data[size:]


@contextmanager
def _connection(port: int) -> Iterator[socket.socket]:
    """The next connection is made when the server has read this one to its end."""
    with socket.create_connection((_HOST, port), timeout=PATIENCE_S) as connection:
        yield connection
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def _finish(toque: ToqueProcess) -> None:
    toque.wait_until(lambda: toque.waiting() == 0, "something waits")
    mistakes = ("source.failed", "hep.failed", "source.unreadable", "source.resync_failed", "source.restarted")
    assert [line for line in toque.log.splitlines() if any(mistake in line for mistake in mistakes)] == []
    assert toque.terminate() == 0
