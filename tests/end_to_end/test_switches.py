"""Asterisks and FreeSWITCHes that play recordings over real sockets, `toque serve` connected to all of them, and a customer's server.

Each recording is three switches, and each switch a source: one plays it as it was; one loses its connection, and nothing else; one
is torn away within a message while calls go on. Posts must then say the truth: what the telephones did. tests/faults/test_cut_links.py
cuts at every place. Another folder of recordings, with the same layout, is named by TOQUE_RECORDINGS.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support.ami_recordings import CANNOT_BE_SEEN, RECORDINGS, load
from tests.support.recording_receiver import Post, RecordingReceiver, assert_signed, by_side, words
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
from toque.calls.identity import callerid
from toque.calls.model import CallIdentity, Status

pytestmark = pytest.mark.slow

ASTERISK, FREESWITCH = RECORDINGS, RECORDINGS.with_name("freeswitch")
FOLDERS = [*sorted(ASTERISK.glob("*/ami.txt")), *sorted(FREESWITCH.glob("*/esl.json.raw*"))]
NAMES = [f"{path.parent.parent.name}-{path.parent.name}" for path in FOLDERS]
WORDS = {str(status): word for status, word in STATUS_WORDS.items()}
FINALS = {word for status, word in STATUS_WORDS.items() if status.is_final}
ORDER = [STATUS_WORDS[status] for status in (Status.INITIATED, Status.RINGING, Status.ANSWERED)]
TOLERANCE_S = 1.5  # posts tell whole seconds, cut off
MODES = ("whole", "cut", "torn")


@dataclass
class Scene:
    """One recording, played by one switch."""

    name: str
    mode: str
    truths: Sequence[Mapping[str, Any]]
    switch: PlayedSwitch
    port: int
    callerids: set[str]
    posts: list[Post] = field(default_factory=list)

    @property
    def is_asterisk(self) -> bool:
        return isinstance(self.switch, AmiSwitch)

    @property
    def table(self) -> str:
        """Its settings."""
        login = f'username = "{USERNAME}"\nsecret = "{PASSWORD}"' if self.is_asterisk else f'password = "{PASSWORD}"'
        trunks = '"PJSIP/trunk*"' if self.is_asterisk else '"sofia/external/*"'
        kind = "ami" if self.is_asterisk else "esl"
        head = f'[[sources]]\nkind = "{kind}"\nname = "{self.name}"\naddress = "127.0.0.1:{self.port}"\n'
        return f"{head}{login}\ntrunks = [{trunks}]\n"

    def sides(self) -> list[list[Post]]:
        return list(by_side(self.posts).values())

    def sides_of(self, truth: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Who must be told of the call, in which direction: URL and `tipo`."""
        match truth["direction"]:
            case "made":
                return [("/extensions", "realizada")]
            case "received":
                return [("/numbers", "recebida")]
            case _:
                return [("/extensions", "realizada")]

    def told(self, truth: Mapping[str, Any], path: str, kind: str) -> list[list[Post]]:
        """What one side was told of each call that is like this one."""
        wanted = (path, kind, truth["caller"], truth.get("dialled", truth["callee"]))
        return [
            posts for posts in self.sides()
            if (posts[-1].path, posts[-1].data["tipo"], posts[-1].data["origem"], posts[-1].data["destino"]) == wanted
        ]  # fmt: skip

    def is_told(self) -> bool:
        """Whether every side that was told anything was told an end, and every side was told something."""
        expected = sum(truth.get("count", 1) * len(self.sides_of(truth)) for truth in self.truths)
        sides = self.sides()
        return len(sides) >= expected and all(posts[-1].word in FINALS for posts in sides)


class SwitchesProcess(ToqueProcess):
    """A server whose sources are in its folder's file."""

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in super().environment.items() if name != "TOQUE_HEP"}


def identities(path: Path, name: str) -> set[str]:
    """Every `callerid` that a call of this recording can have."""
    if path.name == "ami.txt":
        found = re.findall(rb"^(?:Dest)?(?:Uniqueid|Linkedid): (\S+)", path.read_bytes(), re.MULTILINE)
        keys = {key.decode() for key in found} | nothings(path.read_bytes().decode("utf-8", "replace"))
    else:
        keys = {event["Unique-ID"] for event in EslSwitch(path.parent).recorded if "Unique-ID" in event}
    return {callerid(CallIdentity(name, key), 0) for key in keys}


def nothings(text: str) -> set[str]:
    """The calls that were asked for and came to nothing: no channel was ever made for them."""
    blocks = [dict(re.findall(r"^(\w+): (.*?)\r?$", block, re.MULTILINE)) for block in text.split("\r\n\r\n")]
    return {
        " ".join(("originate", block.get("ActionID", ""), block.get("Channel", ""), block.get("Exten", "")))
        for block in blocks
        if block.get("Event") == "OriginateResponse"
    }


def make_scene(path: Path, name: str, mode: str, server: SwitchServer) -> Scene:
    name = f"{name}-{mode}"
    recording = load(path.parent) if path.name == "ami.txt" else None
    events = AmiSwitch(recording).events if recording is not None else EslSwitch(path.parent).events
    cuts: list[Cut] = []
    if mode != "whole" and events > 4:
        cuts = random_cuts(events, name, count=1, most_lost=0 if mode == "cut" else 6)
    dies = "shutdown" in name
    if recording is not None:
        switch: PlayedSwitch = AmiSwitch(recording, cuts=cuts, seed=name, dies=dies)
    else:
        switch = EslSwitch(path.parent, cuts=cuts, seed=name, dies=dies)
    truths = () if recording is not None and path.parent.name in CANNOT_BE_SEEN else _truths(path.parent)
    return Scene(name, mode, truths, switch, server.add(switch), identities(path, name))


def _truths(folder: Path) -> Sequence[Mapping[str, Any]]:
    return json.loads((folder / "truth.json").read_text(encoding="utf-8"))["calls"]


@dataclass
class Played:
    """All scenes, played."""

    scenes: dict[str, Scene]
    posts: list[Post]
    secrets: dict[str, str]
    health: dict[str, Any]
    log: str


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    folder = tmp_path_factory.mktemp("switches")
    with SwitchServer() as server, RecordingReceiver() as receiver:
        made = (make_scene(path, name, mode, server) for path, name in zip(FOLDERS, NAMES, strict=True) for mode in MODES)
        scenes = {scene.name: scene for scene in made}
        secrets = register(folder, receiver)
        (folder / "toque.toml").write_text("\n".join(scene.table for scene in scenes.values()), encoding="utf-8")
        with SwitchesProcess(folder) as toque:
            for scene in scenes.values():
                assert scene.switch.is_done.wait(PATIENCE_S), f"{scene.name} is not done\n{toque.tail()}"
            with suppress(TimeoutError):  # the tests say what is missing
                receiver.wait_for(lambda posts: bool(posts) and posts[-1].word in FINALS and share_out(scenes, posts))
            toque.wait_until(lambda: toque.waiting() == 0, "something waits")
            health = toque.health()
            assert toque.terminate() == 0
            share_out(scenes, receiver.posts)
            yield Played(scenes, receiver.posts, secrets, health, toque.log)


def register(folder: Path, receiver: RecordingReceiver) -> dict[str, str]:
    """Two clients, whose the extensions are and whose the outside numbers; the secrets of their URLs."""
    secrets = {}
    with ToqueProcess(folder) as toque:
        for name, number in {"extensions": "~1(00[1-5]|999)", "numbers": "5541306003*"}.items():
            account = toque.add_client(name, **{name: [number]})
            secrets[f"/{name}"] = account.api().add_callback(receiver.url(f"/{name}")).secret or ""
        assert toque.terminate() == 0
    return secrets


def share_out(scenes: Mapping[str, Scene], posts: Sequence[Post]) -> bool:
    """Give each scene its posts; whether all have what they must have."""
    owners = {callerid: scene for scene in scenes.values() for callerid in scene.callerids}
    for scene in scenes.values():
        scene.posts = []
    for post in posts:
        if post.data["callerid"] in owners:
            owners[post.data["callerid"]].posts.append(post)
    return all(scene.is_told() for scene in scenes.values())


@pytest.fixture(params=[f"{name}-{mode}" for name in NAMES for mode in MODES])
def scene(played: Played, request: pytest.FixtureRequest) -> Scene:
    return played.scenes[request.param]


def seconds(span: str) -> int:
    hours, minutes, rest = map(int, span.split(":"))
    return 3600 * hours + 60 * minutes + rest


def check_truth(posts: Sequence[Post], truth: Mapping[str, Any]) -> None:
    *_, last = posts
    assert last.word in {WORDS[word] for word in (truth["final"], *truth.get("also_right", ()))}
    assert words(posts)[0] == "iniciou"
    assert ("atendeu" in words(posts)) == (last.word == "desligou")
    if truth.get("ring_s"):
        assert "chamando" in words(posts)


def check_times(last: Post, truth: Mapping[str, Any]) -> None:
    if "ring_s" in truth:
        assert abs(seconds(last.data["toque"]) - truth["ring_s"]) <= TOLERANCE_S
    if "talk_s" in truth and last.data["pbx_atendeu"] is None:
        assert abs(seconds(last.data["duracao"]) - truth["talk_s"]) <= TOLERANCE_S


def test_the_owner_is_told_the_truth(scene: Scene) -> None:
    if scene.mode == "torn":
        return
    for truth in scene.truths:
        for path, kind in scene.sides_of(truth):
            found = scene.told(truth, path, kind)
            assert len(found) == truth.get("count", 1), [words(posts) for posts in scene.sides()]
            for posts in found:
                check_truth(posts, truth)
                if scene.mode == "whole" and "shutdown" not in scene.name:
                    check_times(posts[-1], truth)
                    assert not posts[-1].data["inferido"]


def test_every_side_is_told_each_status_once_in_order_and_one_end(scene: Scene) -> None:
    for posts in scene.sides():
        told = words(posts)
        assert [post.data["sequencia"] for post in posts] == list(range(1, len(posts) + 1))
        assert [word for word in ORDER if word in told] == told[:-1]
        assert told[-1] in FINALS
        assert ("atendeu" in told) == (told[-1] == "desligou")


def test_what_was_missed_is_true_or_marked_as_concluded(scene: Scene) -> None:
    for truth in scene.truths:
        right = {WORDS[word] for word in (truth["final"], *truth.get("also_right", ()))}
        for path, kind in scene.sides_of(truth):
            for posts in scene.told(truth, path, kind):
                last = posts[-1]
                assert last.word in right or last.data["inferido"], words(posts)


def test_nobody_is_told_of_a_call_that_was_none(played: Played) -> None:
    known = set().union(*(scene.callerids for scene in played.scenes.values()))
    assert {post.data["callerid"] for post in played.posts} <= known
    for scene in played.scenes.values():
        if not scene.truths:
            assert scene.posts == []


def test_every_post_is_signed_and_told_once(played: Played) -> None:
    for path, secret in played.secrets.items():
        assert_signed((post for post in played.posts if post.path == path), secret)
    assert len({post.id for post in played.posts}) == len(played.posts)


def test_every_switch_was_connected_and_nothing_went_wrong(played: Played) -> None:
    assert played.health["sources"] == dict.fromkeys(played.scenes, "connected")
    assert "source.failed" not in played.log
    assert "source.unreadable" not in played.log
    assert "source.resync_failed" not in played.log
    for text in (PASSWORD, *played.secrets.values()):
        assert text not in played.log
    for scene in played.scenes.values():
        assert scene.switch.connections >= 2


def test_there_are_recordings() -> None:
    assert len(FOLDERS) > 50 or "TOQUE_RECORDINGS" in os.environ
