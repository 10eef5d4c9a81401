"""The composition root: builds the parts, lets each live in one TaskGroup, and stops them in order.

    HEP listeners, links -> Intake (watches) -> Store.append -> Dispatcher -> Transport -> the customer's URL
    HTTP API -> Store, Directory                                    ^------ Store.settle <---'

Stopping goes the same way: first nothing more comes in, then what was understood is made durable, then the posts under way end
and are settled, then the store closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import resource
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from ipaddress import IPv6Network
from types import TracebackType
from typing import Any, Self, assert_never

import structlog
import uvicorn

from toque import __version__
from toque.callbacks.callback import Registry
from toque.callbacks.health import PARKED
from toque.callbacks.payload import DIRECTION_WORDS, PARTY_WORDS, STATUS_WORDS
from toque.calls.ami_names import SwitchRules
from toque.calls.ami_watch import AmiWatch
from toque.calls.esl_watch import EslWatch
from toque.calls.http_items import Vocabulary
from toque.calls.http_watch import SOURCE_PREFIX, HttpWatch
from toque.calls.lines import Line, LineBook
from toque.calls.sip_watch import SipWatch
from toque.calls.tracker import Patience
from toque.condition import Condition
from toque.directory import Directory
from toque.errors import SettingsError, StoreError
from toque.intake import Intake
from toque.replaying import Replayer
from toque.sending.dispatcher import Dispatcher
from toque.sending.guard import Guard
from toque.sending.transport import Transport
from toque.settings import AmiSource, EslSource, HepSource, Network, Settings
from toque.sources.ami import ami_link
from toque.sources.esl import esl_link
from toque.sources.hep import HepListener
from toque.sources.link import Link
from toque.store.opening import claim, open_store
from toque.store.sqlite import utc_now
from toque.telemetry import mask_number
from toque.tracing import Tracing
from toque.upkeep import Upkeep
from toque.web.access import Access
from toque.web.app import make_app
from toque.web.connection import HttpConnection
from toque.web.directcall import Deployment, DirectcallApi
from toque.web.ingest import Beside, Ingest
from toque.web.operator import TRACE_PATH, Gate, operator_routes

_HEALTH_AGE_S = 1.0  # a health answer is at most this old, so that probes cost no fsync each
_HTTP_GRACE_S = 5  # for requests under way when the server stops
_STORE_GRACE = timedelta(seconds=10)  # for what must still be written when it stops
_DESCRIPTORS = 16_384  # kept connections to receivers and from customers, with room to spare
SETTLING_PACE_S = 0.008  # between two commits of outcomes, unless there are many: each costs as much as ten deliveries
_KEEP_ALIVE_S = 65  # longer than a reverse proxy's usual 60, so that the proxy is the one that closes


def callback_tls(settings: Settings) -> ssl.SSLContext:
    """How callbacks' servers are verified: the system's authorities and the operator's. Raises `SettingsError`."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if settings.ca_file is not None:
        try:
            context.load_verify_locations(settings.ca_file)
        except (ssl.SSLError, OSError) as error:
            raise SettingsError("ca_file", str(settings.ca_file), f"cannot be read as PEM: {error}") from None
    return context


def make_transport(settings: Settings) -> Transport:
    """The transport that the settings describe."""
    return Transport(
        Guard(settings.allow_networks),
        ssl_context=callback_tls(settings),
        proxy=settings.proxy,
        connect_timeout_s=settings.connect_timeout.total_seconds(),
        attempt_timeout_s=settings.attempt_timeout.total_seconds(),
    )


@dataclass(slots=True)
class _Health:
    """The last probe of the store."""

    probe: Callable[[], Any]
    at_s: float | None = None
    problem: str | None = None

    async def check(self) -> str | None:
        """What is wrong with the store, or None."""
        now_s = time.monotonic()
        if self.at_s is None or now_s - self.at_s > _HEALTH_AGE_S:
            self.at_s = now_s
            try:
                async with asyncio.timeout(_HTTP_GRACE_S):
                    await self.probe()
                self.problem = None
            except StoreError as error:
                self.problem = str(error)
            except TimeoutError:
                self.problem = "the store does not answer"
        return self.problem


class Server:
    """One toque server: `async with` opens everything, `run` lives until `stop`."""

    def __init__(self, settings: Settings, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.settings = settings
        self._clock = clock
        self._log = structlog.get_logger("toque.server")
        self._stop = asyncio.Event()
        self._exits = contextlib.AsyncExitStack()
        self.listeners: list[HepListener] = []
        self.links: list[Link] = []
        self.http_port = 0

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as exits:
            await self._open(exits)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._exits.aclose()

    async def _open(self, exits: contextlib.AsyncExitStack) -> None:
        settings = self.settings
        self.store = open_store(settings, self._clock)
        exits.push_async_callback(self.store.close)
        await claim(self.store)
        self.transport = await exits.enter_async_context(make_transport(settings))
        self.dispatcher = Dispatcher(
            self.transport,
            self.store,
            clock=self._clock,
            chance=random.random,
            concurrency=settings.concurrency,
            callback_concurrency=settings.callback_concurrency,
            ordering_window=settings.ordering_window,
            expire_stale_ringing=settings.expire_stale_ringing,
            settling_pace_s=SETTLING_PACE_S,
        )
        exits.callback(self.dispatcher.stop)
        patience = Patience(answered=settings.stale_answered, unanswered=settings.stale_unanswered)
        mask = (lambda number: number) if settings.log_numbers else mask_number
        self.directory = Directory(self.store)
        self.tracing = Tracing(settings.country, self._active_lines)
        self.intake = Intake(
            self.store,
            self.dispatcher.offer,
            clock=self._clock,
            mask=mask,
            patience=patience,
            observer=self.tracing.onlooker,
        )
        self._vocabulary = Vocabulary(STATUS_WORDS, PARTY_WORDS, DIRECTION_WORDS)
        self.ingest = Ingest(self.intake, self._clock, self._vocabulary)
        self.posters: dict[str, HttpWatch] = {}
        self.directory.follow(partial(self._apply_posters, patience))
        self.directory.follow(self._apply_lines)
        self.directory.follow(self.dispatcher.apply)
        self._add_sources(patience)
        await self.directory.refresh()
        calls = await self.intake.restore()
        await self._open_http(exits)
        for listener in self.listeners:
            exits.push_async_callback(listener.close)
            await listener.open()
        self.replayer = Replayer(self.store, self.dispatcher.resume, self._is_parked)
        self.upkeep = Upkeep(self.store, keep=settings.keep)
        # Last of all: a server that cannot open must not post anything, or it would at every try.
        backlogs = await self.store.recover()
        self.dispatcher.resume(backlogs)
        self._log.info(
            "server.started",
            version=__version__,
            store=str(settings.store),
            http=f"{settings.http.host}:{self.http_port}",
            calls=calls,
            backlogs=len(backlogs),
        )

    def _add_sources(self, patience: Patience) -> None:
        for source in self.settings.sources:
            lines = LineBook(self.settings.country)
            match source:
                case HepSource():
                    self._add_hep(source, SipWatch(source.name, lines, patience))
                case AmiSource():
                    self._add_ami(source, AmiWatch(source.name, lines, patience, _rules(source)))
                case EslSource():
                    watch = EslWatch(source.name, lines, patience, trunks=source.trunks, tenant_variable=source.tenant_variable)
                    self._add_esl(source, watch)
                case _:
                    assert_never(source)

    def _add_hep(self, source: HepSource, watch: SipWatch) -> None:
        self.intake.add(watch)
        self.listeners.append(HepListener(source, partial(self.intake.receive, watch), is_full=self.intake.is_full))

    def _add_ami(self, source: AmiSource, watch: AmiWatch) -> None:
        self.intake.add(watch)
        self.links.append(ami_link(source, watch, clock=self._clock, on_news=self.intake.notice, is_full=self.intake.is_full))

    def _add_esl(self, source: EslSource, watch: EslWatch) -> None:
        self.intake.add(watch)
        self.links.append(esl_link(source, watch, clock=self._clock, on_news=self.intake.notice, is_full=self.intake.is_full))

    def _apply_posters(self, patience: Patience, registry: Registry) -> None:
        """Whoever may post has a watch. It outlives the credential, for its calls go on until they end or are stale."""
        for name in registry.intakes:
            source = SOURCE_PREFIX + name
            if source not in self.posters:
                gone = self.intake.watch(source)
                lines, tracker = LineBook(self.settings.country), None if gone is None else gone.tracker
                watch = HttpWatch(source, lines, patience, vocabulary=self._vocabulary, tracker=tracker)
                self.posters[source] = watch
                self.intake.add(watch)
        self.ingest.apply((credential, self.posters[SOURCE_PREFIX + name]) for name, credential in registry.intakes.items())

    def _apply_lines(self, registry: Registry) -> None:
        self.intake.apply(LineBook.of(registry.active_lines(), self.settings.country))

    def _active_lines(self) -> Iterable[Line]:
        return self.directory.registry.active_lines()

    def _is_parked(self, callback_id: int) -> bool:
        return self.dispatcher.health_of(callback_id) in PARKED

    # HTTP

    async def _open_http(self, exits: contextlib.AsyncExitStack) -> None:
        settings = self.settings
        token_key = await self.store.token_key()
        self._access = Access(
            token_key,
            self.directory.current,
            self._clock,
            lifetime=settings.token_lifetime,
            failures=settings.login_failures,
            window=settings.login_window,
        )
        exits.callback(self._access.close)
        deployment = Deployment(settings.time_zone, settings.max_callbacks, Guard(settings.allow_networks).check_host)
        api = DirectcallApi(
            self.store,
            self._access,
            deployment,
            self.directory.current,
            self.dispatcher.health_of,
            refresh=self.directory.refresh,
            look=self.directory.look,
        )
        health = _Health(self.store.ping)
        self._http_socket = self._bind_http()
        exits.callback(self._http_socket.close)
        self.http_port = self._http_socket.getsockname()[1]
        routes = operator_routes(Gate(token_key, self._clock), self._condition())
        app = make_app(api, partial(self._tell_health, health), routes)
        self._http = HttpServer(self._http_config(Beside(self.ingest, app)))

    def _condition(self) -> Condition:
        return Condition(
            self.settings,
            self.store,
            self.intake,
            self.dispatcher,
            self.directory,
            self.tracing,
            self.listeners,
            self.links,
            self.posters,
            self._clock,
        )

    def _bind_http(self) -> socket.socket:
        address = self.settings.http
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = socket.socket(family, kind, protocol)
        except (OSError, UnicodeError) as error:  # the latter from names that cannot be looked up
            problem = f"cannot listen on {address}: {getattr(error, 'strerror', None) or error}"
            raise SettingsError("http", str(address), problem) from None
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            listening.listen()  # whoever comes before `run` waits, and is not refused
        except OSError as error:
            listening.close()
            raise SettingsError("http", str(address), f"cannot listen on {address}: {error.strerror}") from None
        return listening

    def _http_config(self, app: Any) -> uvicorn.Config:
        settings = self.settings
        config = uvicorn.Config(
            app,
            http=HttpConnection,
            lifespan="off",
            access_log=False,  # it would show query strings, and tokens in them
            log_config=None,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=[text for network in settings.trusted_proxies for text in _spellings(network)] or None,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_HTTP_GRACE_S,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
        try:
            config.load()
        except (ssl.SSLError, OSError) as error:
            raise SettingsError("tls_certificate", str(settings.tls_certificate), f"cannot be used: {error}") from None
        return config

    async def _tell_health(self, health: _Health) -> tuple[bool, dict[str, Any]]:
        problem = await health.check()
        is_full = self.intake.is_full()
        told = {
            "store": problem or "ok",
            "intake": "full" if is_full else "ok",
            "calls": self.intake.calls,
            "unmatched_calls": self.intake.unmatched,
            "events": self.intake.events,
            "held_deliveries": self.dispatcher.held(),
            "parked_callbacks": self.dispatcher.parked(),
            "sources": {listener.settings.name: "listening" for listener in self.listeners}
            | {link.name: link.state for link in self.links},
            "hep_packets": sum(listener.counters.packets for listener in self.listeners),
            "hep_refused": sum(listener.counters.refused for listener in self.listeners),
            "hep_dropped": sum(listener.counters.dropped for listener in self.listeners),
            "http_items": self.ingest.items,
        }
        return problem is None and not is_full, told

    # Life

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until `stop`; then end in order. When a part fails, all end at once, and its error is raised."""
        try:
            async with asyncio.TaskGroup() as parts:
                http, intake, *others = (
                    parts.create_task(self._run_part(name, run), name=name)
                    for name, run in (
                        ("http", partial(self._http.serve, [self._http_socket])),
                        ("intake", self.intake.run),
                        ("sending", self.dispatcher.run),
                        ("directory", self.directory.run),
                        ("replays", self.replayer.run),
                        ("upkeep", self.upkeep.run),
                    )
                )
                links = [
                    parts.create_task(self._run_part("sources", link.run), name=f"source {link.name}") for link in self.links
                ]
                await self._stop.wait()
                self._log.info("server.stopping")
                await self._end_in_order(http, intake, links)
                for task in others:
                    task.cancel()
        except ExceptionGroup as group:
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from None
        self._log.info("server.stopped", deliveries_held=self.dispatcher.held())

    async def _run_part(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """One part's life. Nobody misses a part that is gone until a call is lost, so its end is told at once."""
        try:
            await run()
        except Exception as error:
            self._log.critical("server.failed", part=name, error=f"{type(error).__name__}: {error}")
            raise
        if not self._stop.is_set():
            self._log.critical("server.failed", part=name, error="it ended by itself")
            raise RuntimeError(f"{name} ended by itself")

    async def _end_in_order(self, http: asyncio.Task[None], intake: asyncio.Task[None], links: list[asyncio.Task[None]]) -> None:
        for link in links:
            link.cancel()
        for listener in self.listeners:
            await listener.close()
        await asyncio.gather(*links, return_exceptions=True)
        self._http.should_exit = True
        if not await self.tracing.close():
            self._http.abort(TRACE_PATH)
        if not await self.intake.stop(_STORE_GRACE):
            self._log.error("server.stopped_early", waiting="statuses")
            intake.cancel()
        if not await self.dispatcher.drain(self.settings.stop_grace):
            await self.transport.close()  # ends what is still in flight; it is made again at the next start
            if not await self.dispatcher.drain(_STORE_GRACE):
                self._log.error("server.stopped_early", waiting="outcomes")
        await http


def _rules(source: AmiSource) -> SwitchRules:
    rules = SwitchRules(trunks=source.trunks, tenant_variable=source.tenant_variable)
    return rules if source.outside_contexts is None else replace(rules, outside_contexts=source.outside_contexts)


def _spellings(network: Network) -> list[str]:
    """A network as uvicorn may meet it: a socket that takes IPv6 shows IPv4 peers as mapped addresses (RFC 4291, 2.5.5.2)."""
    if isinstance(network, IPv6Network):
        return [str(network)]
    return [str(network), f"::ffff:{network.network_address}/{96 + network.prefixlen}"]


def _raise_descriptor_limit() -> None:
    """Each kept connection is a descriptor; the usual soft limit of 1,024 is for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def calm_collector() -> None:
    """Deliveries go with their last reference; looking through all that wait for cycles takes a tenth of a busy server's time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


class HttpServer(uvicorn.Server):
    """uvicorn in our own loop: signals are not its business, and it leaves nothing behind, however it ends."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, which closes only what ends in order and in time."""
        try:
            await super().serve(sockets)
        finally:
            for server in getattr(self, "servers", ()):
                server.close()
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            for request in list(self.server_state.tasks):
                request.cancel()
            await asyncio.gather(*self.server_state.tasks, return_exceptions=True)

    def abort(self, path: str) -> None:
        """End the connections that are being answered at this address, whether they are read or not."""
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete and cycle.scope["path"] == path:
                connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Leave the signals to us."""
        yield


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Server]:
    """A server that runs in the background of the block and is stopped in order at its end."""
    async with Server(settings) as server:
        task = asyncio.create_task(server.run(), name="server")
        try:
            yield server
        finally:
            server.stop()
            await task


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. A second signal ends the process at once, which is safe as a crash is."""
    _raise_descriptor_limit()
    loop = asyncio.get_running_loop()
    async with Server(settings) as server:
        calm_collector()

        def asked_to_stop() -> None:
            server.stop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked_to_stop)
        await server.run()
