"""The client of Asterisk's manager, over real sockets: what it says, what it makes of any answer, and what it leaves behind.

What it shares with the client of FreeSWITCH's event socket is tested there. Every scenario fails as well on tasks or descriptors
that the link leaves behind.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import trustme
from tests.support.ami_recordings import RECORDINGS, load
from tests.support.linking import HOST, NAME, PATIENT, Post, linked, saying, speaking
from tests.support.switch_server import PASSWORD, USERNAME, AmiSwitch, Cut, SwitchServer

from toque.errors import SettingsError
from toque.settings import AmiSource
from toque.sources.ami import ami_link
from toque.sources.link import CONNECTED

BANNER = b"Asterisk Call Manager/11.0.0\r\n"
ANSWERED = load(RECORDINGS / "in_answered")
QUICK = replace(PATIENT, answer_s=0.05)
WHOLE = [["initiated", "ringing", "answered", "hung_up"]]


def source(port: int, secret: str = PASSWORD) -> AmiSource:
    return AmiSource(NAME, HOST, port, USERNAME, secret, ("PJSIP/trunk*",))


@pytest.fixture
def server() -> Iterator[SwitchServer]:
    with SwitchServer() as server:
        yield server


def idle() -> AmiSwitch:
    """A switch on which nothing happens, and which stays."""
    switch = AmiSwitch()
    switch._cuts.clear()
    return switch


def halfway() -> AmiSwitch:
    """A switch that loses its connection while somebody talks, who then goes on for ever."""
    switch = AmiSwitch(ANSWERED)
    switch._cuts[-1] = Cut(25)
    return switch


def actions(switch: AmiSwitch) -> list[str]:
    return [command.split("\r\n")[0].removeprefix("Action: ") for command in switch.commands]


def words(post: Post) -> list[list[str]]:
    return post.ledger.words("zeta")


# A switch in good health


async def test_it_logs_in_subscribes_looks_and_listens(server: SwitchServer) -> None:
    switch = AmiSwitch(ANSWERED)
    async with linked(source(server.add(switch))) as post:
        await post.logged("source.lost")
        assert actions(switch) == ["Challenge", "Login", "Events", "CoreShowChannels"]
        assert "EventMask: system,call,agent" in switch.commands[2]
        assert words(post) == WHOLE
        assert [entry["event"] for entry in post.logs] == ["source.connected", "source.resynced", "source.lost"]
        assert post.entries("source.connected")[0]["switch"] == "Asterisk Call Manager/11.0.0"
        assert PASSWORD not in str(switch.commands)


async def test_a_switch_that_knows_no_challenge(server: SwitchServer) -> None:
    switch = idle()
    switch.knows_challenge = False
    async with linked(source(server.add(switch))) as post:
        await post.logged("source.resynced")
        assert f"Secret: {PASSWORD}" in switch.commands[1]


async def test_what_was_missed_is_concluded(server: SwitchServer) -> None:
    switch = AmiSwitch(ANSWERED, cuts=[Cut(30, lost=50)])
    async with linked(source(server.add(switch))) as post:
        await post.logged("source.lost")
        assert words(post) == [["initiated", "ringing", "answered"]]
        post.may_dial_again.set()
        await post.logged("source.resynced", 2)
        post.pass_time(timedelta(seconds=5))
        assert words(post) == WHOLE
        assert post.ledger.facts().is_inferred


async def test_silence_is_probed(server: SwitchServer) -> None:
    switch = idle()
    async with linked(source(server.add(switch)), pace=replace(PATIENT, quiet_s=0.05)) as post:
        await post.until(lambda: actions(switch).count("Ping") > 2)
        assert post.link.state == CONNECTED


async def test_a_restart_is_noticed(server: SwitchServer) -> None:
    switch = AmiSwitch(ANSWERED, cuts=[Cut(30)])
    async with linked(source(server.add(switch))) as post:
        await post.logged("source.lost")
        switch.uptime_s = 1
        switch.state.channels.clear()
        post.may_dial_again.set()
        assert (await post.logged("source.restarted"))["uptime_s"] == 1
        await post.logged("source.resynced", 2)
        post.pass_time(timedelta(seconds=5))
        assert words(post) == WHOLE


# Not let in


async def test_a_wrong_secret_is_told_and_tried_again_slowly(server: SwitchServer) -> None:
    async with linked(source(server.add(idle()), "um segredo errado")) as post:
        entry = await post.logged("source.refused")
        assert (entry["log_level"], entry["problem"]) == ("error", "it refuses the login: Authentication failed")
        assert entry["retry_in_s"] == 60.0
        assert "segredo errado" not in str(post.logs)


async def test_a_list_that_is_refused_concludes_nothing(server: SwitchServer) -> None:
    switch = idle()
    switch.may_list = False
    async with linked(source(server.add(switch)), pace=replace(PATIENT, resync_retry_s=0.01)) as post:
        assert "needs write = reporting" in (await post.logged("source.resync_failed"))["problem"]
        assert post.link.state == CONNECTED
        switch.may_list = True
        await post.logged("source.resynced")


async def test_a_list_that_is_not_whole_concludes_nothing(server: SwitchServer) -> None:
    switch = halfway()
    async with linked(source(server.add(switch))) as post:
        await post.logged("source.lost")
        switch.left_out = 1
        post.may_dial_again.set()
        assert "items" in (await post.logged("source.resync_failed"))["problem"]
        assert not post.ledger.facts().is_inferred


async def test_a_list_with_an_item_that_names_no_channel_concludes_nothing(server: SwitchServer) -> None:
    switch = halfway()
    plain = switch._list
    switch._list = lambda action_id: re.sub(rb"(?i)\r\nuniqueid: [^\r]*", b"", plain(action_id))  # type: ignore[method-assign]
    async with linked(source(server.add(switch))) as post:
        await post.logged("source.lost")
        post.may_dial_again.set()
        assert "name no channel" in (await post.logged("source.resync_failed"))["problem"]
        post.pass_time(timedelta(minutes=1))
        assert not post.ledger.facts().is_inferred


async def test_events_that_are_refused_are_told(server: SwitchServer) -> None:
    switch = idle()
    plain = switch._answer

    def answer(lines: dict[str, str], action_id: str) -> tuple[bytes, str]:
        if lines["Action"] == "Events":
            return f"Response: Error\r\n{action_id}\r\nMessage: Permission denied\r\n\r\n".encode(), ""
        return plain(lines, action_id)

    switch._answer = answer  # type: ignore[method-assign]
    async with linked(source(server.add(switch))) as post:
        entry = await post.logged("source.refused")
        assert entry["problem"] == "it refuses to send events: Permission denied"


# No manager interface


@pytest.mark.parametrize(
    "said",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"Content-Type: auth/request\n\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 3000, b"Asterisk C" + b"x" * 3000],
    ids=["ssh", "esl", "http", "binary", "nearly"],
)  # fmt: skip
async def test_what_is_no_manager_interface_is_left(said: bytes) -> None:
    async with speaking(saying(said)) as port, linked(source(port)) as post:
        assert (await post.logged("source.unreachable"))["problem"] == "what answers there is not Asterisk's manager interface"


@pytest.mark.parametrize(
    "said", [b"", BANNER[:10], BANNER, BANNER + b"Response: Succ"], ids=["nothing", "half", "banner", "answer"]
)
async def test_what_does_not_answer_is_left(said: bytes) -> None:
    async with speaking(saying(said)) as port, linked(source(port), pace=QUICK) as post:
        assert (await post.logged("source.unreachable"))["problem"].startswith("no answer to ")


# Strange messages


@pytest.mark.parametrize(
    "strange",
    [
        b"Event: Newchannel\r\n\r\n",
        b"Event: Hangup\r\nUniqueid: \xff\xfe\r\nCause: many\r\n\r\n",
        b"Event: Newstate\r\nUniqueid: 1.1\r\nChannelState: 99999999999999999999\r\nTimestamp: never\r\n\r\n",
        b"Event: CoreShowChannelsComplete\r\nListItems: 7\r\n\r\n",
        b"no colon at all\r\n\r\n\r\n\r\n",
        b"Response: Success\r\nActionID: somebody's\r\n\r\n",
        b"Event: FullyBooted\r\nUptime: -1\r\n\r\n",
    ],
)
async def test_missing_and_strange_fields_do_no_harm(server: SwitchServer, strange: bytes) -> None:
    switch = AmiSwitch(ANSWERED)
    plain = switch.bytes_of
    switch.bytes_of = lambda number: strange + plain(number)  # type: ignore[method-assign]
    async with linked(source(server.add(switch))) as post:
        await post.logged("source.lost")
        assert words(post) == WHOLE
        assert post.entries("source.failed") == []


async def test_a_message_that_is_too_long_costs_itself_only(server: SwitchServer) -> None:
    switch = AmiSwitch(ANSWERED)
    plain = switch.bytes_of
    long = b"Event: UserEvent\r\nText: " + b"x" * 400_000 + b"\r\n\r\n"
    switch.bytes_of = lambda number: (long if number == 20 else b"") + plain(number)  # type: ignore[method-assign]
    async with linked(source(server.add(switch))) as post:
        await post.logged("source.lost")
        assert words(post) == WHOLE
        assert post.entries("source.unreadable")[0]["problem"] == "a message is too long"


@pytest.mark.parametrize(
    "strange",
    [
        b"x" * 3_000_000 + b"\r\n\r\n",
        b"Event: Newchannel\r\nUniqueid: 9.9\r\n" + b"CallerIDName: a\r\n" * 100_000 + b"\r\n",
        b"Event: Newstate\r\nUniqueid: 9.9\r\nCallerIDName: \xf0\x28\x8c\x28\xff\xfe\x00\r\n\r\n" * 50,
        b"Event: RTCPSent\r\nUniqueid: 9.9\r\n\r\n" * 20_000,
        b"Event: Newstate\r\nUniqueid: 9.9\r\nChannelState: 6\r\n\r\n" * 10_000,
        b"".join(b"Event: Newchannel\r\nUniqueid: 9.%d\r\nChannel: PJSIP/9-%x\r\nChannelState: 4\r\n\r\n" % (n, n) for n in range(2000)),
    ],
    ids=["one line", "one message", "encodings", "unread events", "strangers", "calls without an end"],
)  # fmt: skip
async def test_a_flood_costs_no_call(server: SwitchServer, strange: bytes) -> None:
    switch = AmiSwitch(ANSWERED)
    plain = switch.bytes_of
    switch.bytes_of = lambda number: (strange if number == 20 else b"") + plain(number)  # type: ignore[method-assign]
    async with linked(source(server.add(switch))) as post:
        await post.logged("source.lost")
        assert words(post) == WHOLE
        assert post.entries("source.failed") == []


async def test_a_bug_of_ours_costs_one_event(server: SwitchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked(source(server.add(AmiSwitch(ANSWERED)))) as post:
        monkeypatch.setattr(post.watch.events, "read", lambda *_: 1 / 0)
        await post.logged("source.failed", 2)
        await post.logged("source.lost")


@pytest.mark.parametrize("turns", range(0, 60, 5))
async def test_it_may_be_cancelled_anywhere(server: SwitchServer, turns: int) -> None:
    async with linked(source(server.add(AmiSwitch(ANSWERED)))):
        for _ in range(turns):
            await asyncio.sleep(0)


# TLS


async def test_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    asterisk = await asyncio.start_server(idle().serve, HOST, 0, ssl=context)
    async with asterisk:
        plain = replace(source(asterisk.sockets[0].getsockname()[1]), tls=True)
        async with linked(replace(plain, tls_ca_file=tmp_path / "ca.pem")) as post:
            await post.logged("source.resynced")
        async with linked(plain) as post:
            assert (await post.logged("source.unreachable"))["problem"].startswith("certificate: ")


async def test_tls_to_a_port_that_speaks_none(server: SwitchServer) -> None:
    async with linked(replace(source(server.add(idle())), tls=True)) as post:
        assert (await post.logged("source.unreachable"))["problem"].startswith("tls: ")


async def test_no_tls_to_a_port_that_speaks_it() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    asterisk = await asyncio.start_server(idle().serve, HOST, 0, ssl=context)
    async with asterisk, linked(source(asterisk.sockets[0].getsockname()[1]), pace=QUICK) as post:
        problem = (await post.logged("source.unreachable"))["problem"]
        assert problem == "no answer to a connection: no manager interface greets there within 0.05 s"


async def test_authorities_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    bad = replace(source(5039), tls=True, tls_ca_file=tmp_path / "ca.pem")
    with pytest.raises(SettingsError, match="tls_ca_file cannot be read as PEM"):
        ami_link(bad, None, clock=None, on_news=None, is_full=None)  # type: ignore[arg-type]
