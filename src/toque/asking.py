"""Asking a running server over its HTTP port, as its operator: the store has the key that proves it."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from toque.errors import SettingsError, ToqueError
from toque.settings import Settings
from toque.web.operator import CALLS_PATH, STATE_PATH, TRACE_PATH, mint_operator_token

ANSWER_S = 15.0  # what it asks of the store may take some seconds
_HEALTH_PATH = "/health"
_SILENCE_S = 30.0  # while watching: the server says every few seconds that it is there
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - what a server listens on, not we
_PARTIAL_CHAIN = 0x80000  # X509_V_FLAG_PARTIAL_CHAIN: the certificate itself is trusted, whoever issued it
_LINE_BYTES = 4 * 2**20
# What an answer of ours has at the least. Other programs answer 200, too, and whatever they like.
_STATE = frozenset(
    ("version", "pid", "started_at", "now", "store", "descriptors", "intake", "deliveries", "callbacks", "sources", "unmatched")
)
_HEALTH, _CALL, _TRACED = frozenset(("status", "store")), frozenset(("source", "call", "callerid")), frozenset(("what",))


class NoServerError(ToqueError):
    """Nobody listens at the settings' address."""


class NoAnswerError(ToqueError):
    """Something listens there, and what it says is not what a toque server on this store says."""


class OperatorClient:
    """One server, as the settings have it. Its methods wait; call them off the loop."""

    def __init__(self, settings: Settings, token_key: bytes) -> None:
        self._settings = settings
        self._key = token_key

    def state(self) -> dict[str, Any]:
        """How it stands. Raises `NoServerError` or `NoAnswerError`, as all methods do, and `SettingsError`."""
        return self._ours(self._asked(STATE_PATH, {}), _STATE)

    def health(self) -> dict[str, Any]:
        """What it says to everybody, also when it is not well."""
        return self._ours(self._asked(_HEALTH_PATH, {}), _HEALTH)

    def calls(self, **wanted: str | None) -> list[dict[str, Any]]:
        """The recent calls that `q` names."""
        told = self._asked(CALLS_PATH, wanted)
        return [self._ours(call, _CALL) for call in (told if isinstance(told, list) else [told])]

    def trace(self, **wanted: str | None) -> Iterator[dict[str, Any]]:
        """What happens from now on, until the server ends it."""
        with self._answer(TRACE_PATH, wanted, timeout_s=_SILENCE_S) as answer:
            while line := answer.readline(_LINE_BYTES):
                yield self._ours(_parsed(line), _TRACED)

    def _asked(self, path: str, wanted: Mapping[str, str | None]) -> Any:
        with self._answer(path, wanted, timeout_s=ANSWER_S) as answer:
            return _parsed(answer.read())

    @contextlib.contextmanager
    def _answer(self, path: str, wanted: Mapping[str, str | None], *, timeout_s: float) -> Iterator[http.client.HTTPResponse]:
        query = urlencode({name: value for name, value in wanted.items() if value is not None})
        token = mint_operator_token(self._key, datetime.now(UTC))
        with contextlib.closing(self._connection()) as connection:
            try:
                connection.connect()
            except ssl.SSLError as error:
                raise NoAnswerError(f"{self.address} speaks no TLS that can be trusted: {error.reason or error}") from None
            except OSError as error:
                raise NoServerError(f"nobody answers at {self.address}: {error.strerror or error}") from None
            try:
                connection.request("GET", f"{path}?{query}", headers={"Authorization": f"Bearer {token}"})
                if connection.sock is not None:
                    connection.sock.settimeout(timeout_s)
                with connection.getresponse() as answer:
                    self._check(answer)
                    yield answer
            except (OSError, http.client.HTTPException) as error:
                raise NoAnswerError(f"{self.address} stopped answering: {error or type(error).__name__}") from None

    def _check(self, answer: http.client.HTTPResponse) -> None:
        match answer.status:
            case 200 | 503:  # the latter from /health alone, with the same members
                return
            case 401:
                raise NoAnswerError(f"the server at {self.address} has another store: it does not know our key")
            case 404:
                raise self._stranger()
            case 429:
                raise NoAnswerError(f"as many watch the server at {self.address} already as may")
            case status:
                raise NoAnswerError(f"the server at {self.address} answered {status}")

    def _ours(self, told: Any, members: frozenset[str]) -> dict[str, Any]:
        """What a server of ours says has these members."""
        if not isinstance(told, dict) or not members <= told.keys():
            raise self._stranger()
        return told

    def _stranger(self) -> NoAnswerError:
        return NoAnswerError(f"what answers at {self.address} is no toque server of this version")

    @property
    def address(self) -> str:
        """Where the server is asked, for people."""
        return str(self._settings.http)

    def _connection(self) -> http.client.HTTPConnection:
        host = _EVERYWHERE.get(self._settings.http.host, self._settings.http.host)
        port, certificate = self._settings.http.port, self._settings.tls_certificate
        if certificate is None:
            return http.client.HTTPConnection(host, port, timeout=ANSWER_S)
        try:
            context = _trusting(certificate)
        except OSError as error:
            problem = SettingsError("tls_certificate", str(certificate), f"cannot be used: {error}")
            raise self._settings.located(problem) from None
        return http.client.HTTPSConnection(host, port, timeout=ANSWER_S, context=context)


def _trusting(certificate: Path) -> ssl.SSLContext:
    """Trust the server's own certificate, whatever name it is for: it is asked by its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= _PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise NoAnswerError("the server's answer cannot be read") from None
