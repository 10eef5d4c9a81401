"""A made-up Asterisk on loopback: it lets a client in, and sends the events of many calls at a steady rate, as real ones do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from toque.bench.traffic import number_of

USERNAME, SECRET = "bench", "made up"
_BANNER = b"Asterisk Call Manager/11.0.0\r\n"
_TICK_S = 0.005
_STATES = {0: "Down", 4: "Ring", 5: "Ringing", 6: "Up"}

Step = tuple[float, bytes]  # seconds after the call's beginning, and what is said then


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of call: what is said in it, and what its owner must be told."""

    name: str
    words: tuple[str, ...]
    steps: tuple[Step, ...]


def _channel(prefix: str, mark: str, state: int, peer: str, numbers: tuple[str, str]) -> str:
    values = {
        "Channel": f"PJSIP/{peer}-@{mark}NAME@", "ChannelState": state, "ChannelStateDesc": _STATES[state],
        "CallerIDNum": numbers[0], "CallerIDName": "<unknown>", "ConnectedLineNum": numbers[1], "ConnectedLineName": "<unknown>",
        "Language": "pt_BR", "AccountCode": "", "Context": "from-trunk" if mark == "A" else "internal", "Exten": "@DIALLED@",
        "Priority": 1, "Uniqueid": f"1795400000.@{mark}@", "Linkedid": "1795400000.@A@",
    }  # fmt: skip
    return "".join(f"{prefix}{key}: {value}\r\n" for key, value in values.items())


def _caller(state: int, prefix: str = "") -> str:
    return _channel(prefix, "A", state, "trunk", ("@CALLER@", "<unknown>"))


def _callee(state: int, prefix: str = "") -> str:
    return _channel(prefix, "B", state, "1001", ("1001", "@CALLER@"))


def _said(name: str, *parts: str) -> bytes:
    return f"Event: {name}\r\nPrivilege: call,all\r\nTimestamp: @NOW@\r\n{''.join(parts)}\r\n".encode()


def _bridge(name: str, members: int, *parts: str) -> bytes:
    bridge = (
        f"BridgeUniqueid: bridge-@A@\r\nBridgeType: basic\r\nBridgeTechnology: simple_bridge\r\nBridgeNumChannels: {members}\r\n"
    )
    return _said(name, bridge, *parts)


def _dial(name: str, caller: int, callee: int, *parts: str) -> bytes:
    return _said(name, _caller(caller), _callee(callee, "Dest"), *parts)


_BEGIN = b"".join((
    _said("Newchannel", _caller(4)), _said("Newchannel", _callee(0)), _said("NewCallerid", _callee(0)),
    _said("NewConnectedLine", _callee(0)),
    _dial("DialBegin", 4, 0, "DialString: 1001\r\n"), _said("NewConnectedLine", _caller(4)),
))  # fmt: skip
_RING = _said("Newstate", _callee(5)) + _dial("DialState", 4, 5, "DialStatus: RINGING\r\n")
_ANSWER = b"".join((
    _said("Newstate", _callee(6)), _dial("DialEnd", 4, 6, "DialStatus: ANSWER\r\n"), _said("Newstate", _caller(6)),
    _bridge("BridgeCreate", 0), _bridge("BridgeEnter", 1, _callee(6)), _bridge("BridgeEnter", 2, _caller(6)),
))  # fmt: skip
_NORMAL = "Cause: 16\r\nCause-txt: Normal Clearing\r\n"
_HANG_UP = b"".join((
    _said("HangupRequest", _caller(6)), _bridge("BridgeLeave", 1, _caller(6)), _bridge("BridgeLeave", 0, _callee(6)),
    _bridge("BridgeDestroy", 0), _said("SoftHangupRequest", _caller(6), "Cause: 16\r\n"), _said("Hangup", _callee(6), _NORMAL),
    _said("Hangup", _caller(6), _NORMAL),
))  # fmt: skip
_REFUSE = b"".join((
    _said("HangupRequest", _callee(0), "Cause: 17\r\nTechCause: 486\r\n"), _dial("DialEnd", 4, 0, "DialStatus: BUSY\r\n"),
    _said("Hangup", _callee(0), "Cause: 17\r\nCause-txt: User busy\r\nTechCause: 486\r\n"),
    _said("Hangup", _caller(4), "Cause: 17\r\nCause-txt: User busy\r\n"),
))  # fmt: skip
_TIME_OUT = b"".join((
    _dial("DialEnd", 4, 5, "DialStatus: NOANSWER\r\n"), _said("Hangup", _callee(5), "Cause: 0\r\nCause-txt: Unknown\r\n"),
    _said("Hangup", _caller(4), _NORMAL),
))  # fmt: skip
_GIVE_UP = b"".join((
    _said("HangupRequest", _caller(4), "Cause: 127\r\nTechCause: 487\r\n"), _dial("DialEnd", 4, 5, "DialStatus: CANCEL\r\n"),
    _said("Hangup", _callee(5), "Cause: 127\r\nCause-txt: Interworking, unspecified\r\n"),
    _said("Hangup", _caller(4), "Cause: 127\r\nCause-txt: Interworking, unspecified\r\nTechCause: 487\r\n"),
))  # fmt: skip

# A call lasts two seconds on average: at 500 a second, 1,000 are in progress at once.
_ANSWERED = Kind(
    "answered",
    ("iniciou", "chamando", "atendeu", "desligou"),
    ((0.0, _BEGIN), (0.1, _RING), (0.6, _ANSWER), (2.4, _HANG_UP)),
)
KINDS = (
    *((_ANSWERED,) * 7),
    Kind("busy", ("iniciou", "ocupado"), ((0.0, _BEGIN), (1.0, _REFUSE))),
    Kind("unanswered", ("iniciou", "chamando", "nao_atendeu"), ((0.0, _BEGIN), (0.1, _RING), (1.0, _TIME_OUT))),
    Kind("given up", ("iniciou", "chamando", "cancelou"), ((0.0, _BEGIN), (0.1, _RING), (1.0, _GIVE_UP))),
)


def caller_of(call: int) -> str:
    """The number that this call shows; `call_of` reads it."""
    return f"5511{900_000_000 + call}"


def call_of(caller: str) -> int:
    """Which call shows this number."""
    return int(caller.removeprefix("5511")) - 900_000_000


def kind_of(call: int) -> Kind:
    """What happens in this call."""
    return KINDS[call % len(KINDS)]


@dataclass(slots=True)
class MadeUpAsterisk:
    """The switch: `run` serves one client at a time, and `play` sends it so many calls a second once it has subscribed."""

    clients: int
    port: int = 0
    events: int = 0
    sent_bytes: int = 0
    most_at_once: int = 0
    connections: int = 0
    _writer: asyncio.StreamWriter | None = None
    _has_subscribed: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, calls: int, rate: float) -> float:
        """All events of so many calls, begun evenly at this rate; returns how many seconds it took."""
        await self._has_subscribed.wait()
        writer = self._writer
        assert writer is not None  # noqa: S101 - it has subscribed
        due: list[tuple[float, int, int, int]] = []
        order, begun, at_once, began_s = count(), 0, 0, time.monotonic()
        while begun < calls or due:
            now_s = time.monotonic() - began_s
            while begun < calls and begun / rate <= now_s:
                heappush(due, (begun / rate, next(order), begun, 0))
                begun += 1
                at_once += 1
            self.most_at_once = max(self.most_at_once, at_once)
            while due and due[0][0] <= now_s:
                due_s, _, call, step = heappop(due)
                steps = kind_of(call).steps
                self._say(writer, call, steps[step][1])
                if step + 1 < len(steps):
                    heappush(due, (due_s + steps[step + 1][0] - steps[step][0], next(order), call, step + 1))
                else:
                    at_once -= 1
            await writer.drain()
            await asyncio.sleep(_TICK_S)
        return time.monotonic() - began_s

    def _say(self, writer: asyncio.StreamWriter, call: int, template: bytes) -> None:
        a, b = str(2 * call).encode(), str(2 * call + 1).encode()
        for mark, value in (
            (b"@A@", a), (b"@B@", b), (b"@ANAME@", b"%08x" % (2 * call)), (b"@BNAME@", b"%08x" % (2 * call + 1)),
            (b"@CALLER@", caller_of(call).encode()), (b"@DIALLED@", number_of(call % self.clients).encode()),
            (b"@NOW@", b"%.6f" % time.time()),
        ):  # fmt: skip
            template = template.replace(mark, value)
        self.events += template.count(b"Event: ")
        self.sent_bytes += len(template)
        writer.write(template)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Let a client in, and answer what it asks."""
        self.connections += 1
        writer.write(_BANNER)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                asked = dict(line.split(": ", 1) for line in lines if line)
                writer.write(b"".join(_answers(asked)))
                if asked["Action"] == "CoreShowChannels":
                    self._writer = writer
                    self._has_subscribed.set()
        writer.close()


def _answers(asked: dict[str, str]) -> Iterator[bytes]:
    action_id = f"ActionID: {asked['ActionID']}"
    match asked["Action"]:
        case "Login" if (asked["Username"], asked.get("Secret")) == (USERNAME, SECRET):
            yield _block("Response: Success", action_id)
            yield _block("Event: FullyBooted", "Privilege: system,all", "Uptime: 1000", "Status: Fully Booted")
        case "Events" | "Ping":
            yield _block("Response: Success", action_id)
        case "CoreShowChannels":
            yield _block("Response: Success", action_id, "EventList: start")
            yield _block("Event: CoreShowChannelsComplete", action_id, "EventList: Complete", "ListItems: 0")
        case _:  # also a challenge, so that the secret is asked for
            yield _block("Response: Error", action_id, "Message: no")


def _block(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


@contextlib.asynccontextmanager
async def made_up_asterisk(clients: int) -> AsyncIterator[MadeUpAsterisk]:
    """A switch that listens, for the time of the block; its calls are for the numbers of so many made-up clients."""
    switch = MadeUpAsterisk(clients)
    server = await asyncio.start_server(switch.serve, "127.0.0.1", 0, limit=2**20)
    switch.port = server.sockets[0].getsockname()[1]
    try:
        yield switch
    finally:
        server.close()


def wrongs(told: dict[str, list[str]], calls: int) -> tuple[int, int]:
    """How many of the calls were told nothing or not to their end, and how many otherwise than what happened; by caller."""
    lost = wrong = 0
    for call in range(calls):
        words: Sequence[str] = told.get(caller_of(call), ())
        right = kind_of(call).words
        if len(words) < len(right):
            lost += 1
        elif tuple(words) != right:
            wrong += 1
    return lost, wrong
