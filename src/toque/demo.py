"""The demonstration: recorded SIP traffic goes in over HEP, signed callbacks come out, before your eyes.

Nothing is pretended: a server on a temporary store, a client with lines, a URL registered through the wire API with a fresh
token, and a receiver that checks every signature.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.resources import as_file, files
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import uvicorn
from rich.console import Console
from rich.live import Live
from rich.table import Table

from toque.callbacks.callback import Client
from toque.calls.lines import parse_line
from toque.calls.sip_watch import SipWatch
from toque.client import Client as WireClient
from toque.client import Registration
from toque.errors import InputError
from toque.receiver import CallStatus, Receiver, ReceiverError, SeenInMemory
from toque.server import HttpServer, Server, running
from toque.settings import Settings, load_settings
from toque.sources.recording import RecordedPacket, read_recording, replay
from toque.store.sqlite import utc_now
from toque.telemetry import set_up_logs
from toque.web.access import hash_secret, new_client_secret

_RECORDING = "recordings/demo.pcap"
_TRUTH = "recordings/demo.truth.json"
_LINES = {"central": ("5541306003*",), "ramais": ("auth1",)}
_ALL_NUMBERS = {"todos": ("~.*",)}
_WAIT_S = 10.0  # after the last packet, for what is still on its way
_SHOWN = 18  # rows of the live table

_COLOURS = {
    "iniciou": "cyan",
    "chamando": "yellow",
    "atendeu": "green",
    "desligou": "blue",
    "cancelou": "magenta",
}


@dataclass(frozen=True, slots=True)
class Expected:
    """What a recording should come to: for each pair of numbers the last statuses, and how many callbacks in all."""

    callbacks: int
    finals: Counter[tuple[str, str]]


@dataclass(slots=True)
class Inbox:
    """What the receiver got: events in the order of their arrival, and how long after their moment, in milliseconds."""

    statuses: list[CallStatus] = field(default_factory=list)
    delays_ms: list[float] = field(default_factory=list)
    refused: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, status: CallStatus, at: datetime) -> None:
        """Take one in."""
        self.statuses.append(status)
        self.delays_ms.append((at - status.momento).total_seconds() * 1000)
        self.news.set()


class _Screen:
    """A live table on a terminal, plain lines elsewhere, nothing when the result is to be JSON."""

    def __init__(self, console: Console, *, is_silent: bool) -> None:
        self.console = console
        self.is_silent = is_silent
        self._live = Live(console=console, refresh_per_second=10) if console.is_terminal and not is_silent else None
        self._rows: list[tuple[str, ...]] = []

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """A line above the table."""
        if not self.is_silent:
            self.console.print(text, highlight=False, soft_wrap=True)

    def show(self, status: CallStatus, delay_ms: float) -> None:
        """One callback."""
        row = (
            status.momento.strftime("%H:%M:%S"),
            status.tipo,
            f"{status.origem} -> {status.destino}",
            str(status.sequencia),
            status.status,
            _remark(status),
            f"{delay_ms:.0f} ms",
        )
        if self._live is not None:
            self._rows.append(row)
            self._live.update(_table(self._rows[-_SHOWN:]))
        elif not self.is_silent:
            self.console.print("{:8} {:9} {:30} {} {:15} {:24} {:>7}".format(*row), highlight=False, soft_wrap=True)


def _remark(status: CallStatus) -> str:
    if not status.is_final:
        return status.atendido_por or ""
    span = f"duração {status.duracao}" if status.status == "desligou" else f"toque {status.toque or timedelta()}"
    sip = status.causa.sip if status.causa is not None else None
    return f"{span} SIP {sip}" if sip else span


def _table(rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("hora", "tipo", "chamada", "#", "status", "", "atraso"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        colour = _COLOURS.get(row[4], "red")
        table.add_row(*row[:4], f"[{colour}]{row[4]}[/]", *row[5:])
    return table


async def run_demo(*, speed: float, recording: Path | None, stay: bool, as_json: bool) -> bool:
    """Run it; True when all that should have arrived has. Raises `InputError` for a recording that cannot be replayed."""
    if speed <= 0:
        msg = "--speed must be greater than 0"
        raise InputError(msg)
    set_up_logs(form="human", level="error")
    packets, expected = _load(recording)
    with tempfile.TemporaryDirectory(prefix="toque-demo-") as folder:
        settings = load_settings(
            None,
            {},
            {
                "store": f"sqlite://{folder}/demo.db",
                "http": "127.0.0.1:0",
                "hep": "127.0.0.1:0",
                "allow_networks": ["127.0.0.0/8"],
            },
        )
        async with running(settings) as server:
            return await _show(server, settings, packets, expected, _Options(speed, recording is not None, stay, as_json))


@dataclass(frozen=True, slots=True)
class _Options:
    speed: float
    all_numbers: bool
    stay: bool
    as_json: bool


def _load(recording: Path | None) -> tuple[list[RecordedPacket], Expected | None]:
    """The packets, and what the recording's truth says of them; a recording of the user's own has none."""
    if recording is not None:
        return read_recording(recording), None
    package = files("toque")
    with as_file(package / _RECORDING) as path:
        packets = read_recording(path)
    calls = json.loads((package / _TRUTH).read_text(encoding="utf-8"))["calls"]
    finals = Counter((call["caller"], call["statuses"][-1]) for call in calls)
    return packets, Expected(sum(len(call["statuses"]) for call in calls), finals)


async def _show(
    server: Server, settings: Settings, packets: list[RecordedPacket], expected: Expected | None, options: _Options
) -> bool:
    console = Console(highlight=False)
    inbox = Inbox()
    with _Screen(console, is_silent=options.as_json) as screen:
        client_id, secret = await _add_client(server, settings, all_numbers=options.all_numbers)
        screen.say(
            f"[bold]toque[/] serves the API on http://127.0.0.1:{server.http_port} and HEP on udp 127.0.0.1:{_hep_port(server)}"
        )
        async with _receiver(inbox) as (url, trust):
            registration = await asyncio.to_thread(_register, server.http_port, client_id, secret, url)
            trust(registration)
            screen.say(f"registered {url} with a fresh token: code {registration.code}")
            screen.say(f"replaying {len(packets)} mirrored SIP packets of a real Kamailio …")
            showing = asyncio.create_task(_follow(inbox, screen))
            hep = ("127.0.0.1", _hep_port(server))
            await replay(packets, hep, speed=options.speed, clock=utc_now)
            await _settle(inbox, _wanted(packets, expected))
            await server.dispatcher.settled()
            showing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await showing
            is_complete = _summarise(inbox, expected, screen, server, as_json=options.as_json)
            if options.stay:
                screen.say("The server stays; Ctrl-C ends it.")
                await asyncio.Event().wait()
    return is_complete


def _hep_port(server: Server) -> int:
    return server.listeners[0].port


async def _add_client(server: Server, settings: Settings, *, all_numbers: bool) -> tuple[str, str]:
    client_id, secret = secrets.token_hex(8), new_client_secret()
    await server.store.add_client(Client(client_id, "demo", hash_secret(secret), 1, utc_now()))
    lines = _ALL_NUMBERS if all_numbers else _LINES
    await server.store.add_lines(
        [parse_line(client_id, pin, number, settings.country) for pin, numbers in lines.items() for number in numbers]
    )
    await server.directory.refresh()
    return client_id, secret


def _register(port: int, client_id: str, secret: str, url: str) -> Registration:
    return WireClient(f"http://127.0.0.1:{port}", client_id, secret).add_callback(url)


def _wanted(packets: list[RecordedPacket], expected: Expected | None) -> int:
    """How many callbacks to wait for; a recording without truth is understood here once more, to know."""
    if expected is not None:
        return expected.callbacks
    from toque.calls.hep_packet import parse_hep  # noqa: PLC0415 - for this rare case
    from toque.calls.lines import LineBook  # noqa: PLC0415

    lines = [parse_line("demo", pin, number) for pin, numbers in _ALL_NUMBERS.items() for number in numbers]
    watch = SipWatch("hep", LineBook.of(lines))
    for packet in packets:
        with contextlib.suppress(InputError):
            watch.tick(packet.at)
            watch.feed(parse_hep(packet.data), packet.at)
    return len(watch.take()[0])


async def _settle(inbox: Inbox, wanted: int) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_WAIT_S):
            while len(inbox.statuses) < wanted:
                inbox.news.clear()
                await inbox.news.wait()


async def _follow(inbox: Inbox, screen: _Screen) -> None:
    shown = 0
    try:
        while True:
            await asyncio.sleep(0.05)
            shown = _show_new(inbox, screen, shown)
    finally:
        _show_new(inbox, screen, shown)


def _show_new(inbox: Inbox, screen: _Screen, shown: int) -> int:
    for status, delay_ms in zip(inbox.statuses[shown:], inbox.delays_ms[shown:], strict=True):
        screen.show(status, delay_ms)
    return len(inbox.statuses)


def _summarise(inbox: Inbox, expected: Expected | None, screen: _Screen, server: Server, *, as_json: bool) -> bool:
    finals = Counter(status.status for status in inbox.statuses if status.is_final)
    delays = sorted(inbox.delays_ms) or [0.0]
    result = {
        "calls": len({(status.callerid, status.tipo) for status in inbox.statuses}),
        "statuses": len(inbox.statuses),
        "ends": dict(finals.most_common()),
        "delivered": server.dispatcher.counters.delivered,
        "attempts": server.dispatcher.counters.attempts,
        "refused": inbox.refused,
        "unmatched_calls": server.intake.unmatched,
        "latency_p50_ms": round(median(delays), 1),
        "latency_p99_ms": round(delays[min(len(delays) - 1, int(len(delays) * 0.99))], 1),
        "expected": expected.callbacks if expected is not None else None,
        "complete": _is_complete(inbox, expected),
    }
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))  # noqa: T201 - it is what was asked for
    else:
        screen.say("")
        screen.say(
            f"[bold]{result['calls']} calls, {result['statuses']} statuses[/], {result['delivered']} of them delivered and signed"
        )
        screen.say(f"ends: {', '.join(f'{count} {word}' for word, count in finals.most_common())}")
        screen.say(
            f"from the switch's clock to the receiver: median {result['latency_p50_ms']} ms, p99 {result['latency_p99_ms']} ms"
        )
        verdict = "[green]everything that should have arrived has[/]" if result["complete"] else "[red]something is missing[/]"
        screen.say(verdict if expected is not None else "this recording has no truth beside it to compare with")
    return bool(result["complete"])


def _is_complete(inbox: Inbox, expected: Expected | None) -> bool:
    """All expected ends, in order and without gaps, and nothing else."""
    if inbox.refused:
        return False
    by_side: dict[tuple[str, str], list[int]] = {}
    for status in inbox.statuses:
        by_side.setdefault((status.callerid, status.tipo), []).append(status.sequencia)
    if any(sequence != list(range(1, len(sequence) + 1)) for sequence in by_side.values()):
        return False
    if expected is None:
        return True
    finals = Counter((status.origem or "", status.status) for status in inbox.statuses if status.is_final)
    return finals == expected.finals and len(inbox.statuses) == expected.callbacks


# The receiver


@contextlib.asynccontextmanager
async def _receiver(inbox: Inbox) -> AsyncIterator[tuple[str, Any]]:
    """A customer's server: checks every post with `toque.receiver`. Gives its URL and a way to tell it the secret."""
    receivers: list[Receiver] = []

    def trust(registration: Registration) -> None:
        receivers.append(Receiver([registration.secret or ""], seen=SeenInMemory()))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status = 204
        try:
            with receivers[0].handling(headers, body) as event:
                inbox.put(event, utc_now())
        except ReceiverError as error:
            inbox.refused += 1
            status = error.http_status
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, lifespan="off", access_log=False, log_config=None, interface="asgi3")
        server = HttpServer(config)
        task = asyncio.create_task(server.serve([listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/status", trust
        finally:
            server.should_exit = True
            await task
