"""All checks: the store, the server or, where none runs, the switches themselves, the URLs, the settings, the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toque import __version__
from toque.asking import NoAnswerError, NoServerError, OperatorClient
from toque.callbacks.callback import Registry
from toque.doctor.configured import check_registry, check_settings
from toque.doctor.findings import Finding, counts_of, ok, problem, warning, worst_of
from toque.doctor.links import check_running, check_unmatched, dial_sources
from toque.doctor.machine import check_descriptors, check_machine_clock
from toque.doctor.receivers import check_callback, reach_all, sizes_of
from toque.doctor.storage import check_clock, check_files, check_place, check_write, is_locked, write_failed
from toque.errors import SettingsError, StoreError
from toque.sending.guard import Guard
from toque.sending.reaching import Reaching
from toque.server import callback_tls
from toque.settings import Settings
from toque.store.contract import Archive, Store
from toque.store.opening import open_store

_MANY_WAITING = 0.1  # of what may wait for the store
State = dict[str, Any]


async def examine(settings: Settings) -> dict[str, Any]:
    """What the checks found."""
    examination = _Examination(settings)
    await examination.run()
    found, state = examination.found, examination.state
    return {
        "status": str(worst_of(found)),
        "version": __version__,
        "server": None if state is None else {key: state[key] for key in ("version", "pid", "started_at")},
        "counts": counts_of(found),
        "checks": [finding.told() for finding in found],
    }


class _Examination:
    """What was found so far, and what the server said, where one runs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.now = datetime.now(UTC)
        self.found: list[Finding] = []
        self.state: State | None = None

    async def run(self) -> None:
        """Look at everything."""
        path = self.settings.store
        if isinstance(path, Path):
            self.found += _before_opening(path)
        store, finding = _opened(self.settings)
        self.found.append(finding)
        if store is None:
            self.found += [*await _seen_from_outside(self.settings), *await dial_sources(self.settings)]
        else:
            try:
                await self._with_store(store)
            except StoreError as error:  # met later than at the first look: a file that is damaged in places
                advice = "look at its disk; go back to a copy that is well, and keep this file for what is in it"
                self.found[self.found.index(finding)] = problem("store.opens", f"it opens, but cannot be read: {error}", advice)
            finally:
                await store.close()
        self.found += [*check_settings(self.settings, callback_tls, self.now), check_machine_clock()]

    async def _with_store(self, store: Store) -> None:
        try:
            registry, token_key = await store.registry(), await store.token_key()
        except (StoreError, SettingsError) as error:  # the latter from an engine that is reached for with its first use
            self.found.append(write_failed(str(error)))
            self.found += await dial_sources(self.settings)
            return
        self.state, finding = await _asked(self.settings, token_key)
        self.found.append(finding)
        self.found += await dial_sources(self.settings) if self.state is None else _by_server(self.state)
        self.found.append(await check_write(store))
        if isinstance(store, Archive):
            self.found.append(await check_clock(store, self.now))
        self.found += check_registry(registry)
        self.found += await _callbacks(self.settings, store, registry, self.state, self.now)


def _before_opening(path: Path) -> list[Finding]:
    """Looks only: to open a store makes its file private, and makes one where there is none."""
    found = list(check_files(path)) if path.exists() else []
    return found + (list(check_place(path)) if path.resolve().parent.is_dir() else [])


def _opened(settings: Settings) -> tuple[Store | None, Finding]:
    path = settings.store
    if isinstance(path, Path) and not path.exists():
        advice = "toque client add NAME, or toque serve, makes it. Run them as the user that the server runs as"
        return None, warning("store.opens", f"there is no store yet at {path}", advice)
    try:
        store = open_store(settings)
    except (SettingsError, StoreError) as error:
        advice = "is it the server's own user that runs this, with the server's settings and secret_key?"
        return None, problem("store.opens", str(error), advice)
    return store, ok("store.opens", str(path))


async def _seen_from_outside(settings: Settings) -> list[Finding]:
    """What /health says, which is all that can be asked without the store."""
    try:
        told = await asyncio.to_thread(OperatorClient(settings, b"").health)
    except NoServerError as error:
        return [_no_server(settings, str(error))]
    except NoAnswerError as error:
        return [problem("server.running", str(error), "is `http` the server's own setting?")]
    if told.get("status") == "ok":
        return [ok("server.running", "a server answers, and /health is ok; without the store it cannot be asked for more")]
    advice = "look at its log, and at store.opens"
    return [problem("server.running", f"a server answers, and /health says: {told.get('store')}", advice)]


async def _asked(settings: Settings, token_key: bytes) -> tuple[State | None, Finding]:
    """What a running server says of itself."""
    client = OperatorClient(settings, token_key)
    try:
        state = await asyncio.to_thread(client.state)
    except NoServerError as error:
        return None, _no_server(settings, str(error))
    except NoAnswerError as error:
        advice = "is `http` the server's own setting? Another program may have that port"
        return None, problem("server.running", str(error), advice)
    text = f"version {state['version']}, process {state['pid']}, since {state['started_at']}"
    if state["version"] != __version__:
        return state, warning("server.running", f"{text}; this command is {__version__}", "restart the server")
    return state, ok("server.running", text)


def _no_server(settings: Settings, error: str) -> Finding:
    path = settings.store
    if isinstance(path, Path) and is_locked(path):
        advice = "its `http` may differ from ours, or it hangs: look at its log"
        return problem("server.running", f"a server has the store, but {error}", advice)
    return problem("server.running", f"no server is running ({error})", "start it: toque serve. What follows was tried from here")


def _by_server(state: State) -> list[Finding]:
    """The checks of what the server says."""
    now = datetime.fromisoformat(state["now"])
    sources = [finding for source in state["sources"] for finding in check_running(source, now)]
    return [*check_descriptors(state["descriptors"]), _intake(state), *sources, check_unmatched(state)]


def _intake(state: State) -> Finding:
    waiting, most = state["intake"]["waiting"], state["intake"]["most"]
    text = f"{waiting} wait for the store, {state['deliveries']['held']} deliveries are in memory"
    advice = "the store is too slow for what comes in: see store.write"
    make: Callable[..., Finding] = problem if state["intake"]["is_full"] else warning
    if state["store"]["problem"] is not None:
        return problem(
            "intake.waiting", f"the server cannot write: {state['store']['problem']}", "see store.write", waiting=waiting
        )
    if waiting > most * _MANY_WAITING:
        return make("intake.waiting", text, advice, waiting=waiting)
    return ok("intake.waiting", text, waiting=waiting, write_ms=state["store"]["write_ms"])


async def _callbacks(settings: Settings, store: Store, registry: Registry, state: State | None, now: datetime) -> list[Finding]:
    callbacks = list(registry.callbacks.values())
    dead = await store.dead_sizes() if isinstance(store, Archive) else {}
    sizes = sizes_of(callbacks, await store.backlog_sizes(), dead)
    known = state["callbacks"] if state is not None else {}
    found = [finding for c in callbacks for finding in check_callback(c, known.get(c.code), sizes[c.id], now)]
    try:
        context = callback_tls(settings)
    except SettingsError:  # said by settings.authorities
        return found
    timeout_s = settings.connect_timeout.total_seconds()
    reaching = Reaching(Guard(settings.allow_networks), ssl_context=context, proxy=settings.proxy, connect_timeout_s=timeout_s)
    try:
        return found + await reach_all(reaching, callbacks, now)
    finally:
        await reaching.close()
