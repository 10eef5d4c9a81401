"""The sources: as a running server sees them, or dialled from here by the server's own clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self, assert_never

import structlog

from toque.calls.ami_watch import AmiWatch
from toque.calls.esl_watch import EslWatch
from toque.calls.lines import LineBook
from toque.doctor.findings import Finding, Level, ok, problem, warning
from toque.errors import SettingsError
from toque.settings import AmiSource, EslSource, HepSource, Settings
from toque.sources.ami import ami_link
from toque.sources.esl import esl_link
from toque.sources.link import CONNECTED, Link, Pace

_PACE = Pace(connect_s=5.0, answer_s=5.0)
_DIAL_S = 15.0
_AFTER_LOGIN_S = 5.0  # for the switch's list of channels
_QUIET = timedelta(hours=1)  # calls come and go at night, too; longer than this is worth a look
_CLOCK_WARNING_S, _CLOCK_PROBLEM_S = 2.0, 60.0
_MANY_LOSSES = 5
_SHARE_UNMATCHED, _SHARE_INFERRED = 0.5, 0.05
_ENOUGH_CALLS = 20

# What a link says of its failure, and what to do about it. The first that occurs in it counts.
_ADVICE = (
    ("refuses the login", "compare username and secret with the user's section in manager.conf, and its permit/deny lists"),
    ("refuses the password", "compare password with event_socket.conf.xml"),
    ("access list", "allow this machine's address there, and reload"),
    ("refuses to send events", "give the user read = system,call,agent"),
    ("no manager interface greets", "is this Asterisk's manager port (5038), and enabled = yes in manager.conf?"),
    ("no event socket", "is this FreeSWITCH's event socket (8021)?"),
    ("connection refused", "is the switch running, and does it listen on that address? (bindaddr, listen-ip, firewall)"),
    ("no connection within", "a firewall, or the wrong address"),
    ("its name is not found", "the name in `address` cannot be looked up here"),
    ("certificate", "set tls_ca_file to the authority of the switch's certificate, and `address` to a name that it is for"),
    ("tls", "does that port speak TLS? (tlsenable, tlsbindaddr)"),
)
_ANY_ADVICE = "look at the address, and at the switch's own log"


def advice_for(state: str) -> str:
    """What to do about a link that says this."""
    return next((advice for said, advice in _ADVICE if said in state.lower()), _ANY_ADVICE)


# As the server sees them


def check_running(source: dict[str, Any], now: datetime) -> Iterator[Finding]:
    """Every check of one source, by what the server says of it."""
    yield _connected(source)
    if source["kind"] == "hep":
        yield _packets(source)
    elif source.get("losses"):
        yield _losses(source)
    if source["is_connected"]:
        yield _silence(source, now)
        yield _clock(source)
    yield from _calls(source)


def _connected(source: dict[str, Any]) -> Finding:
    name, state = source["name"], source["state"]
    if not source["is_connected"]:
        return problem("source.connected", f"not connected: {state}", advice_for(state), name, state=state)
    if source["kind"] in ("hep", "http"):
        return ok("source.connected", f"listening on {source['address']}", name)
    return ok("source.connected", f"connected for {_span(source['connected_for_s'])}", name, for_s=source["connected_for_s"])


def _losses(source: dict[str, Any]) -> Finding:
    text = f"its link dropped {source['losses']} times since the server started"
    if source["losses"] < _MANY_LOSSES:
        return ok("source.link", text, source["name"], losses=source["losses"])
    advice = "look for source.lost in the log: the switch restarts, the network fails, or it drops slow readers"
    return warning("source.link", text, advice, source["name"], losses=source["losses"])


def _packets(source: dict[str, Any]) -> Finding:
    name, counted = source["name"], {key: source[key] for key in ("packets", "refused", "dropped")}
    text = f"{counted['packets']} packets, {counted['refused']} refused, {counted['dropped']} dropped since the server started"
    if counted["dropped"]:
        advice = "packets came faster than the store takes statuses: see store.write, or mirror over TCP, which waits"
        return warning("source.packets", text, advice, name, **counted)
    if counted["refused"]:
        return warning("source.packets", text, "look for hep.refused in the log: it says why", name, **counted)
    return ok("source.packets", text, name, **counted)


def _silence(source: dict[str, Any], now: datetime) -> Finding:
    name, last = source["name"], source["last_signal_at"]
    if last is None:
        return _no_call_yet(source)
    silent = now - datetime.fromisoformat(last)
    text = f"the last news of a call came {_span(silent.total_seconds())} ago"
    if silent > _QUIET:
        advice = "if calls were made since: look at the switch, and at what it mirrors"
        return warning("source.silent", text, advice, name, last_signal_at=last)
    return ok("source.silent", text, name, last_signal_at=last)


def _no_call_yet(source: dict[str, Any]) -> Finding:
    """A link shows that it lives, calls or not; HEP that brings nothing may be HEP that is not sent."""
    name = source["name"]
    if source["kind"] == "http":
        return ok("source.silent", "nothing was posted yet", name)
    if source["kind"] != "hep":
        return ok("source.silent", f"no call yet; the link said something {_span(source['silent_s'] or 0.0)} ago", name)
    if source["packets"] > source["refused"] + source["dropped"]:
        advice = "make a call: requests such as OPTIONS and REGISTER are no calls"
        return warning("source.silent", "packets come, and no call in them yet", advice, name)
    advice = "make a call. If nothing comes of it: does the switch mirror its SIP to this address, and does the network let it?"
    return warning("source.silent", "not one packet came yet", advice, name)


def _clock(source: dict[str, Any]) -> Finding:
    name, behind_s = source["name"], source["clock_behind_s"]
    if behind_s is None:
        return ok("source.clock", "not known: the switch has told no time of its own yet", name)
    text = f"{abs(behind_s):.3f} s {'behind' if behind_s >= 0 else 'ahead of'} ours, the way included"
    advice = "synchronise the switch's clock: the times of calls are the switch's, and customers compare them with theirs"
    if abs(behind_s) > _CLOCK_PROBLEM_S:
        return problem("source.clock", text, advice, name, behind_s=behind_s)
    if abs(behind_s) > _CLOCK_WARNING_S:
        return warning("source.clock", text, advice, name, behind_s=behind_s)
    return ok("source.clock", text, name, behind_s=behind_s)


def _calls(source: dict[str, Any]) -> Iterator[Finding]:
    name, calls, inferred = source["name"], source["calls"], source["inferred"]
    if calls < _ENOUGH_CALLS or inferred <= calls * _SHARE_INFERRED:
        yield ok("calls.inferred", f"{inferred} of {calls} calls", name, inferred=inferred, calls=calls)
        return
    advice = "packets are lost on the way, BYEs do not pass the switch that mirrors, or the link drops during calls"
    yield warning("calls.inferred", f"{inferred} of {calls} calls", advice, name, inferred=inferred, calls=calls)


def check_unmatched(state: dict[str, Any]) -> Finding:
    """Calls that are nobody's, with some of the last ones."""
    unmatched, calls = state["unmatched"]["count"], sum(source["calls"] for source in state["sources"])
    examples = tuple(
        f"{one['source']}: {one['caller'] or '?'} -> {one['dialled'] or '?'}, {one['status']}"
        for one in state["unmatched"]["recent"]
    )
    text = f"{unmatched} of {calls} calls match no line"
    numbers = {"unmatched": unmatched, "calls": calls}
    if not unmatched or unmatched <= calls * _SHARE_UNMATCHED:
        return Finding("calls.unmatched", Level.OK, text, examples=examples, data=numbers)
    advice = (
        "compare them with `toque line list` as docs/operation.md compares numbers; `toque trace NUMBER` shows each one's way"
    )
    return Finding("calls.unmatched", Level.WARNING, text, "", advice, examples, numbers)


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


# Dialled from here


class _Said:
    """What the clients log while it is entered: read by us, and shown to nobody."""

    def __init__(self) -> None:
        self.entries: list[MutableMapping[str, Any]] = []
        self.news = asyncio.Event()
        self._before: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._before = structlog.get_config()
        structlog.configure(processors=[self._keep], cache_logger_on_first_use=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        structlog.configure(**self._before)

    def _keep(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        self.entries.append(dict(event))
        self.news.set()
        raise structlog.DropEvent

    def find(self, event: str, source: str) -> MutableMapping[str, Any] | None:
        """The last entry of this event, if there is one."""
        found = (entry for entry in reversed(self.entries) if entry["event"] == event and entry.get("source") == source)
        return next(found, None)

    async def until(self, is_so: Callable[[], bool], patience_s: float) -> None:
        """Wait for it, as long as there is patience; it is looked at when something was said."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not is_so():
                    await self.news.wait()
                    self.news.clear()


async def dial_sources(settings: Settings) -> list[Finding]:
    """Log in at each switch as the server would, one after the other, look what it has, and leave."""
    found = []
    for source in settings.sources:
        if isinstance(source, HepSource):
            found.append(ok("source.connected", f"a server would listen on {source.host}:{source.port}", source.name))
        else:
            found.append(await _dial(source))
    return found


async def _dial(source: AmiSource | EslSource) -> Finding:
    with _Said() as said:
        failed = asyncio.Event()

        async def fail(_: float) -> None:
            failed.set()
            said.news.set()
            await asyncio.Event().wait()

        try:
            link = _link(source, fail)
        except SettingsError as error:
            return problem("source.connected", str(error), "give tls_ca_file a file of PEM certificates", source.name)
        running = asyncio.create_task(link.run(), name=f"dialling {source.name}")
        try:
            await said.until(lambda: failed.is_set() or link.state == CONNECTED, _DIAL_S)
            if link.state == CONNECTED:
                await said.until(lambda: failed.is_set() or _has_looked(source.name, said), _AFTER_LOGIN_S)
            return _judged(source, link.state, said)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def _link(source: AmiSource | EslSource, fail: Callable[[float], Awaitable[None]]) -> Link:
    """The server's own client, for a watch that nobody looks at."""
    means: Any = {"clock": _now, "on_news": _nothing, "is_full": lambda: False, "pace": _PACE, "sleep": fail}
    match source:
        case AmiSource():
            return ami_link(source, AmiWatch(source.name, LineBook()), **means)
        case EslSource():
            return esl_link(source, EslWatch(source.name, LineBook()), **means)
        case _:
            assert_never(source)


def _has_looked(name: str, said: _Said) -> bool:
    return any(said.find(event, name) is not None for event in ("source.resynced", "source.resync_failed"))


def _judged(source: AmiSource | EslSource, state: str, said: _Said) -> Finding:
    name, where = source.name, f"{source.host}:{source.port}"
    if state != CONNECTED:
        state = "no answer in time" if state == "not connected yet" else state
        return problem("source.connected", f"{where}: {state}", advice_for(state), name, state=state)
    failed, looked = said.find("source.resync_failed", name), said.find("source.resynced", name)
    if failed is not None:
        advice = "toque asks after each connection what is alive: give the user write = reporting"
        return problem("source.connected", f"{where} lets us in, but: {failed['problem']}", advice, name, state=state)
    alive = "" if looked is None else f", {looked['channels']} channels are alive"
    return ok("source.connected", f"{where} lets us in{alive}", name, state=state)


def _nothing() -> None:
    """Nobody waits for news."""


def _now() -> datetime:
    return datetime.now(UTC)
