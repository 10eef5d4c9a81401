"""The client of FreeSWITCH's event socket, over real sockets: what it says, what it makes of any answer, and what it leaves behind.

Every scenario fails as well on tasks or descriptors that the link leaves behind.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.linking import HOST, NAME, PATIENT, Post, Speaker, answering, linked, saying, speaking
from tests.support.switch_server import PASSWORD, Cut, EslSwitch, SwitchServer
from tests.support.toque_process import free_port

from toque.calls.esl_watch import EVENTS
from toque.calls.esl_wire import MAX_BODY_BYTES
from toque.settings import EslSource
from toque.sources.link import CONNECTED, Pace, wait_before_dialling

RECORDINGS = Path(__file__).parents[2] / "recordings" / "freeswitch"
ANSWERED = RECORDINGS / "in_answered_caller_hangup"
GREETING = b"Content-Type: auth/request\n\n"
ACCEPTED = b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n"
NO_CHANNELS = b'Content-Type: api/response\nContent-Length: 15\n\n{"row_count":0}'
QUICK = replace(PATIENT, answer_s=0.05, quiet_s=0.05)


def source(port: int, password: str = PASSWORD) -> EslSource:
    return EslSource(NAME, HOST, port, password, ("sofia/external/*",))


def event(body: bytes) -> bytes:
    return b"Content-Length: %d\nContent-Type: text/event-json\n\n%s" % (len(body), body)


def in_step(*pieces: bytes, then_waits: bool = True) -> Speaker:
    """A switch without channels, that says this once it has been asked for them."""
    return answering(GREETING, b"\n\n", (ACCEPTED, ACCEPTED, NO_CHANNELS), *pieces, then_waits=then_waits)


HEARTBEAT = event(json.dumps({"Event-Name": "HEARTBEAT", "Event-Date-Timestamp": "1795406831419000"}).encode())


@pytest.fixture
def server() -> Iterator[SwitchServer]:
    with SwitchServer() as server:
        yield server


def words(post: Post) -> list[list[str]]:
    return post.ledger.words("zeta")


# A switch in good health


async def test_it_logs_in_subscribes_looks_and_listens(server: SwitchServer) -> None:
    switch = EslSwitch(ANSWERED)
    async with linked(source(server.add(switch))) as post:
        await post.logged("source.lost")
        assert switch.commands == [f"auth {PASSWORD}", f"event json {' '.join(EVENTS)}", "api show channels as json"]
        assert words(post) == [["initiated", "ringing", "answered", "hung_up"]]
        assert [entry["event"] for entry in post.logs] == ["source.connected", "source.resynced", "source.lost"]
        assert post.entries("source.resynced")[0]["concluded"] == 0
        assert {entry["source"] for entry in post.logs} == {NAME}
        assert post.link.state == "the switch closed the connection"
        post.may_dial_again.set()
        await post.logged("source.resynced", 2)
        assert post.link.state == CONNECTED


async def test_what_was_missed_is_asked_for_and_concluded(server: SwitchServer) -> None:
    switch = EslSwitch(ANSWERED, cuts=[Cut(13, lost=50)])
    async with linked(source(server.add(switch))) as post:
        await post.logged("source.lost")
        assert words(post) == [["initiated", "ringing", "answered"]]
        post.may_dial_again.set()
        await post.until(lambda: sum(entry["concluded"] for entry in post.entries("source.resynced")) == 1)
        assert words(post) == [["initiated", "ringing", "answered", "hung_up"]]
        assert post.ledger.facts().is_inferred
        assert any(command.startswith("api uuid_dump ") for command in switch.commands)


async def test_it_looks_again_and_again(server: SwitchServer) -> None:
    switch = EslSwitch()
    switch._cuts.clear()
    async with linked(source(server.add(switch)), pace=replace(PATIENT, resync_s=0.001)) as post:
        await post.until(lambda: switch.commands.count("api show channels as json") > 3)
        assert len(post.entries("source.resynced")) == 1  # the others changed nothing
        assert switch.connections == 1


async def test_silence_is_probed_and_then_given_up(server: SwitchServer) -> None:
    quiet = replace(PATIENT, quiet_s=0.05)
    switch = EslSwitch()
    switch._cuts.clear()
    async with linked(source(server.add(switch)), pace=quiet) as post:
        await post.until(lambda: switch.commands.count("api uptime") > 2)
        assert post.link.state == CONNECTED
    async with speaking(in_step()) as port, linked(source(port), pace=quiet) as post:
        assert (await post.logged("source.lost"))["problem"] == "silent for 0.1 s"


# Not let in


async def test_a_wrong_password_is_told_and_tried_again_slowly(server: SwitchServer) -> None:
    async with linked(source(server.add(EslSwitch()), "uma senha errada")) as post:
        entry = await post.logged("source.refused")
        assert (entry["log_level"], entry["problem"], entry["retry_in_s"]) == ("error", "it refuses the password", 60.0)
        assert post.link.state == "it refuses the password"
        assert "senha errada" not in str(post.logs)


async def test_an_address_that_the_switch_does_not_allow() -> None:
    said = b"Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n"
    async with speaking(saying(said, then_waits=False)) as port, linked(source(port)) as post:
        assert "apply-inbound-acl" in (await post.logged("source.refused"))["problem"]


async def test_events_that_are_refused() -> None:
    refused = b"Content-Type: command/reply\nReply-Text: -ERR no keywords supplied\n\n"
    async with speaking(answering(GREETING, b"\n\n", (ACCEPTED, refused))) as port, linked(source(port)) as post:
        assert "-ERR no keywords supplied" in (await post.logged("source.refused"))["problem"]


async def test_a_look_that_is_refused_concludes_nothing(server: SwitchServer) -> None:
    switch = EslSwitch(ANSWERED, cuts=[Cut(11, lost=50)])
    listed = switch.answer

    def answer(command: str) -> tuple[bytes, str]:
        if command.startswith("api uuid_dump"):
            return b"Content-Type: command/reply\nReply-Text: -ERR permission denied\n\n", ""
        return listed(command)

    switch.answer = answer  # type: ignore[method-assign]
    async with linked(source(server.add(switch))) as post:
        post.may_dial_again.set()
        assert "-ERR permission denied" in (await post.logged("source.resync_failed"))["problem"]
        assert words(post) == [["initiated", "ringing", "answered"]]
        assert post.link.state == CONNECTED


# No event socket


@pytest.mark.parametrize(
    "said",
    [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"Asterisk Call Manager/11.0.0\r\n", GREETING[:-1]],
    ids=["silence", "ssh", "ami", "half"],
)
async def test_what_does_not_greet_is_left(said: bytes) -> None:
    async with speaking(saying(said)) as port, linked(source(port), pace=replace(QUICK, quiet_s=20)) as post:
        assert "no event socket greets there" in (await post.logged("source.unreachable"))["problem"]


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\n\n",
        b"x" * 70_000,
        b"Content-Length: -1\n\n",
        b"Content-Length: 99999999999\n\n",
        b"\xff\n\n",
    ],
    ids=["http", "oversized", "negative", "huge", "binary"],
)
@pytest.mark.parametrize("is_later", [False, True], ids=["at once", "later"])
async def test_what_is_no_event_socket_is_left(said: bytes, is_later: bool) -> None:
    speak = in_step(said) if is_later else saying(said)
    async with speaking(speak) as port, linked(source(port)) as post:
        entry = await post.logged("source.lost" if is_later else "source.unreachable")
        assert entry["problem"].startswith("what answers there is no event socket: ")
        post.may_dial_again.set()
        await post.until(lambda: len(post.waits) > 3)


async def test_nobody_there() -> None:
    async with linked(source(free_port())) as post:
        post.may_dial_again.set()
        assert (await post.logged("source.unreachable", 12))["problem"] == "connection refused"
        assert post.waits[:9] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_name_that_nobody_knows() -> None:
    async with linked(replace(source(8021), host="nowhere.invalid")) as post:
        assert (await post.logged("source.unreachable"))["problem"] == "its name is not found"


async def test_a_connection_that_ends_within_a_message() -> None:
    async with speaking(in_step(HEARTBEAT[:-5], then_waits=False)) as port, linked(source(port)) as post:
        await post.logged("source.lost")
        post.may_dial_again.set()
        await post.logged("source.connected", 2)


@pytest.mark.parametrize(
    "more",
    [
        b"Content-Length: 8\n\nGoodbye!",
        b"Content-Disposition: linger\nLinger-Time: 10\nContent-Length: 8\n\nGoodbye!",
        b"\n",
    ],
    ids=["plain", "lingering", "bare"],
)
async def test_a_switch_that_says_goodbye(more: bytes) -> None:
    goodbye = b"Content-Type: text/disconnect-notice\n" + more
    async with speaking(in_step(goodbye)) as port, linked(source(port)) as post:
        assert (await post.logged("source.lost"))["problem"] == "the switch ended the connection"
        post.may_dial_again.set()
        await post.logged("source.connected", 2)


@pytest.mark.parametrize(
    "greeting", [b"Content-Type: auth/request\n\n" * 3, HEARTBEAT + GREETING], ids=["again", "after an event"]
)
async def test_a_greeting_that_is_odd_is_one(greeting: bytes) -> None:
    speak = answering(greeting, b"\n\n", (ACCEPTED, ACCEPTED, NO_CHANNELS))
    async with speaking(speak) as port, linked(source(port)) as post:
        await post.logged("source.resynced")


async def test_answers_that_nobody_asked_for_are_passed_over() -> None:
    async with speaking(in_step(ACCEPTED * 5, NO_CHANNELS, HEARTBEAT, event(b"x"))) as port, linked(source(port)) as post:
        await post.logged("source.unreadable")
        assert post.link.state == CONNECTED


async def test_a_switch_that_answers_nothing_more_is_left() -> None:
    speak = answering(GREETING, b"\n\n", (ACCEPTED,))
    async with speaking(speak) as port, linked(source(port), pace=replace(QUICK, quiet_s=20)) as post:
        assert (await post.logged("source.unreachable"))["problem"] == "no answer to event within 0.05 s"


@pytest.mark.parametrize(
    "listed",
    [b"", b"{", b"[]", b'{"rows": 5}', b"-USAGE: channels", b"\xff" * 100, b"[" * 5000],
    ids=["empty", "half", "list", "no rows", "error", "binary", "deep"],
)
async def test_a_list_that_cannot_be_read_concludes_nothing(listed: bytes) -> None:
    answer = b"Content-Type: api/response\nContent-Length: %d\n\n%s" % (len(listed), listed)
    async with speaking(answering(GREETING, b"\n\n", (ACCEPTED, ACCEPTED, answer))) as port, linked(source(port)) as post:
        await post.logged("source.resync_failed")
        assert post.link.state == CONNECTED


async def test_rows_and_names_that_are_none_are_not_asked_for() -> None:
    """What is listed goes into a command; a name that is none would be another command."""
    rows = [5, {}, {"uuid": 5}, {"uuid": ""}, {"uuid": "x\n\napi shutdown"}, {"uuid": "a b"}, {"uuid": "u" * 5000}]
    listed = json.dumps({"row_count": len(rows), "rows": rows}).encode()
    answer = b"Content-Type: api/response\nContent-Length: %d\n\n%s" % (len(listed), listed)
    heard: list[bytes] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        for reply in (ACCEPTED, ACCEPTED, answer):
            heard.append(await reader.readuntil(b"\n\n"))
            writer.write(reply)
        writer.write(event(b"x"))
        heard.append(await reader.read(65_536))

    async with speaking(speak) as port, linked(source(port)) as post:
        await post.logged("source.resynced")
        await post.logged("source.unreadable")
    assert heard[3] == b""


async def test_numbers_in_another_encoding_are_read_as_far_as_they_can_be() -> None:
    fields = {
        "Event-Name": "CHANNEL_CREATE",
        "Unique-ID": "A",
        "Call-Direction": "inbound",
        "Caller-Destination-Number": "554130600300",
    }
    body = json.dumps({**fields, "Caller-Caller-ID-Name": "?"}).encode().replace(b"?", "José".encode("latin-1"))
    async with speaking(in_step(event(body))) as port, linked(source(port)) as post:
        await post.until(lambda: words(post) == [["initiated"]])


async def test_the_longest_event_and_one_that_is_longer() -> None:
    longest = event(b'{"a":"%s"}' % (b"x" * 3_000_000))
    too_long = b"Content-Length: %d\nContent-Type: text/event-json\n\n" % (MAX_BODY_BYTES + 1)
    async with speaking(in_step(longest, HEARTBEAT, too_long)) as port, linked(source(port)) as post:
        assert "Content-Length" in (await post.logged("source.lost"))["problem"]
        assert post.entries("source.unreadable") == []


async def test_half_an_event_for_ever_is_silence() -> None:
    async with speaking(in_step(HEARTBEAT[:-5])) as port, linked(source(port), pace=replace(PATIENT, quiet_s=0.05)) as post:
        assert (await post.logged("source.lost"))["problem"] == "silent for 0.1 s"


# Strange messages


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"a":', b"\xff", b"[" * 5000])
async def test_a_message_that_cannot_be_read_costs_itself_only(body: bytes) -> None:
    async with speaking(in_step(event(body), HEARTBEAT)) as port, linked(source(port)) as post:
        await post.logged("source.unreadable")
        assert post.link.state == CONNECTED


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Event-Name": "CHANNEL_CREATE"},
        {"Event-Name": ["CHANNEL_CREATE"], "Unique-ID": 5},
        {"Event-Name": "CHANNEL_HANGUP_COMPLETE", "Unique-ID": "x y\n\napi shutdown", "Event-Date-Timestamp": "never"},
        {"Event-Name": "CHANNEL_BRIDGE", "Unique-ID": "a", "Bridge-A-Unique-ID": None, "Bridge-B-Unique-ID": {}},
    ],
)
async def test_missing_and_strange_fields_do_no_harm(fields: dict[str, Any]) -> None:
    said = event(json.dumps(fields).encode())
    async with speaking(in_step(said, HEARTBEAT, then_waits=False)) as port, linked(source(port)) as post:
        await post.logged("source.lost")
        assert post.entries("source.failed") == post.entries("source.unreadable") == []


async def test_a_bug_of_ours_costs_one_event(monkeypatch: pytest.MonkeyPatch) -> None:
    async with speaking(in_step(HEARTBEAT, HEARTBEAT)) as port, linked(source(port)) as post:
        monkeypatch.setattr(post.watch, "feed", lambda *_: 1 / 0)
        await post.logged("source.failed", 2)
        assert post.link.state == CONNECTED


async def test_a_bug_of_ours_in_a_look_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with speaking(in_step()) as port, linked(source(port)) as post:
        monkeypatch.setattr(post.watch, "resync", lambda *_: 1 / 0)
        await post.logged("source.failed")
        assert post.link.state == CONNECTED


async def test_a_flood_leaves_others_their_turn() -> None:
    flood = HEARTBEAT * 1000
    async with speaking(in_step(*[flood] * 20, then_waits=False)) as port, linked(source(port)) as post:
        turns = 0
        while not post.entries("source.lost"):
            turns += 1
            await asyncio.sleep(0)
        assert turns > 20


# A store that is behind


async def test_nothing_is_read_while_the_store_is_behind() -> None:
    sent = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await in_step(then_waits=False)(reader, writer)
        await sent.wait()
        for _ in range(1000):
            writer.write(HEARTBEAT * 1000)
            await writer.drain()

    # Not within what is waited for otherwise: a switch is not silent, and its answers not late, if it is us who do not read.
    async with speaking(speak) as port, linked(source(port), pace=QUICK) as post:
        await post.logged("source.resynced")
        post.is_full = True
        sent.set()
        await post.logged("source.held_back")
        news, until = post.news, time.monotonic() + 0.3
        await post.until(lambda: time.monotonic() > until)
        assert post.news == news
        post.is_full = False
        await post.logged("source.read_again")
        await post.until(lambda: post.news > news)


# Ending


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_it_may_be_cancelled_anywhere(server: SwitchServer, turns: int) -> None:
    async with linked(source(server.add(EslSwitch(ANSWERED)))):
        for _ in range(turns):
            await asyncio.sleep(0)


def test_waits_grow_to_a_limit_and_are_spread() -> None:
    pace = Pace()
    assert [wait_before_dialling(pace, failures, 0.5) for failures in (0, 1, 2, 3, 7, 8, 1000)] == [0.5, 1, 2, 4, 60, 60, 60]
    assert (wait_before_dialling(pace, 2, 0), wait_before_dialling(pace, 2, 0.999)) == (1.5, pytest.approx(2.5, abs=0.01))
    assert wait_before_dialling(pace, 1, 0.5, is_refused=True) == 60


async def test_a_good_connection_is_made_again_soon(server: SwitchServer) -> None:
    async with linked(source(server.add(EslSwitch(ANSWERED))), pace=replace(PATIENT, good_s=0)) as post:
        await post.logged("source.lost")
        assert post.waits == [0.5]


async def test_calls_go_on_being_told_in_time(server: SwitchServer) -> None:
    """What a lost connection leaves open is concluded when it is stale, if the switch never comes back."""
    async with linked(source(server.add(EslSwitch(ANSWERED, cuts=[Cut(13)])))) as post:
        await post.logged("source.lost")
        post.pass_time(timedelta(hours=5))
        assert words(post) == [["initiated", "ringing", "answered", "hung_up"]]
        assert post.ledger.facts().is_inferred
