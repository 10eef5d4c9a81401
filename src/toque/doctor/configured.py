"""The settings: what can be used, and still weakens a promise."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from toque.callbacks.callback import Registry
from toque.doctor.findings import Finding, ok, problem, warning
from toque.errors import SettingsError
from toque.settings import Address, HepSource, Settings

_WIDE_BITS = {4: 8, 6: 16}  # a network that is wider than this is hardly one's own
_DEFAULT = "default"


def check_settings(settings: Settings, authorities: Callable[[Settings], ssl.SSLContext], now: datetime) -> Iterator[Finding]:
    """Every check of the settings alone. `authorities` makes what callbacks' servers are verified by."""
    yield _secret_key(settings)
    yield from _files(settings)
    yield from _hep(settings)
    yield _http(settings)
    yield from _networks(settings)
    yield _authorities(settings, authorities)
    yield _time_zone(settings, now)
    if settings.log_numbers:
        advice = "set log_numbers = false again when you have seen what you wanted to see"
        yield warning("settings.log", "whole telephone numbers stand in the log (log_numbers)", advice)


def _secret_key(settings: Settings) -> Finding:
    if settings.secret_key is not None:
        return ok("settings.secret_key", "the secrets in the store are encrypted")
    advice = "set secret_key (see docs/operation.md, Secrets and keys), with the server stopped"
    return warning("settings.secret_key", "callback secrets and credentials lie in the store in clear", advice)


def _files(settings: Settings) -> Iterator[Finding]:
    """Files that the settings come from, where they may hold secrets."""
    origins = set(settings.origins.values())
    for origin in sorted(origin for origin in origins if not origin.startswith((_DEFAULT, "flag ", "environment "))):
        path = Path(origin)
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if mode & stat.S_IROTH:
            advice = f"chmod o-r {path}: it may hold secrets of switches and the store's key"
            text = f"everybody on this machine may read it (mode {stat.S_IMODE(mode):04o})"
            yield warning("settings.file", text, advice, origin)
        else:
            yield ok("settings.file", f"mode {stat.S_IMODE(mode):04o}", origin)


def _hep(settings: Settings) -> Iterator[Finding]:
    for source in settings.sources:
        if not isinstance(source, HepSource):
            continue
        if Address(source.host, source.port).is_loopback or source.allow_from:
            yield ok("settings.hep", "only known senders are believed", source.name)
        else:
            advice = "set allow_from (hep_allow_from) as well: the key goes over the wire in clear"
            yield warning("settings.hep", "whoever has read the key once is believed, wherever he is", advice, source.name)


def _http(settings: Settings) -> Finding:
    if settings.http.is_loopback or settings.tls_certificate is not None:
        return ok("settings.http", f"{settings.http}, {'TLS' if settings.tls_certificate else 'this machine only'}")
    advice = "serve TLS (tls_certificate, tls_key), or listen on 127.0.0.1 behind a reverse proxy that does"
    return warning("settings.http", f"client secrets and tokens cross the network in clear ({settings.http})", advice)


def _networks(settings: Settings) -> Iterator[Finding]:
    wide = [network for network in settings.allow_networks if network.prefixlen < _WIDE_BITS[network.version]]
    trusting = [network for network in settings.trusted_proxies if network.prefixlen < _WIDE_BITS[network.version]]
    for network in wide:
        advice = "name the networks that receivers are in: customers choose the URLs, and could reach everything in it"
        yield warning("settings.networks", f"allow_networks opens {network}", advice)
    for network in trusting:
        advice = "name your reverse proxies: whoever is trusted can forge the address that failed logins count for"
        yield warning("settings.networks", f"trusted_proxies trusts {network}", advice)
    if not wide and not trusting:
        yield ok("settings.networks", f"{len(settings.allow_networks)} allowed, {len(settings.trusted_proxies)} trusted")


def _authorities(settings: Settings, authorities: Callable[[Settings], ssl.SSLContext]) -> Finding:
    try:
        context = authorities(settings)
    except SettingsError as error:
        return problem("settings.authorities", str(error), "give ca_file a file of PEM certificates")
    known = context.cert_store_stats()["x509_ca"]
    paths = ssl.get_default_verify_paths()
    has_folder = paths.capath is not None and any(Path(paths.capath).iterdir())  # looked into when it is needed
    if known or has_folder:
        return ok("settings.authorities", f"{known} certificate authorities are known", authorities=known)
    advice = "install the package ca-certificates, or set ca_file"
    return problem("settings.authorities", "no authority is known, so every https callback is refused", advice)


def _time_zone(settings: Settings, now: datetime) -> Finding:
    return ok("settings.time_zone", f"{settings.time_zone}, where it is {now.astimezone(settings.time_zone):%Y-%m-%d %H:%M:%S}")


def check_registry(registry: Registry) -> Iterator[Finding]:
    """Whether what is registered can lead to anything."""
    clients = [client for client in registry.clients.values() if client.disabled_at is None]
    callbacks = [callback for callback in registry.callbacks.values() if callback.disabled_at is None]
    lines = list(registry.active_lines())
    missing = [
        (not clients, "there is no client", "toque client add NAME"),
        (not lines, "no client has a line, so no call is anybody's", "toque line add CLIENT_ID PIN NUMBER…"),
        (not callbacks, "no URL is registered, so nothing is posted", "a client registers one through the API (docs/api.md)"),
    ]
    found = [warning("registry", text, advice) for is_missing, text, advice in missing if is_missing]
    for callback in callbacks:
        if callback.pin is not None and not registry.owns_pin(callback.client_id, callback.pin):
            text = f"its pin {callback.pin!r} has no line, so nothing is ever posted to it"
            found.append(warning("registry", text, "toque line add CLIENT_ID PIN NUMBER…, or remove the callback", callback.code))
    counts = f"{len(clients)} clients, {len(lines)} lines, {len(callbacks)} URLs"
    yield from found or [ok("registry", counts, clients=len(clients), lines=len(lines), callbacks=len(callbacks))]
