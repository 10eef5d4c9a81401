"""Registers, removes and lists callbacks over the wire API. Needs nothing but Python itself.

    client = Client("https://api.example.com", client_id, client_secret)
    registration = client.add_callback("https://crm.example.com/chamadas")

Access tokens are this module's own business: a token is renewed shortly before it expires, and once more when the
server refuses it (a 401 with `codigo` 006). One `Client` may serve any number of threads: they share one token, and
at any moment at most one of them asks for a new one.

Every call opens its own connection. Registrations are rare, and a connection kept open leaves it unknown, when it
breaks, whether the server has seen the request. The usual `HTTPS_PROXY` and `NO_PROXY` variables count.
"""

# ruff: noqa: N818 - the errors are named by what happened, as in toque.errors

from __future__ import annotations

import http.client
import json
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from toque import __version__
from toque.errors import ClientError

# The longest answer is the list of callbacks: a hundred URLs by default, a few thousand if the operator allows it.
MAX_ANSWER_BYTES = 8 * 1024 * 1024

# A token is renewed this long before it expires, so that none expires on its way to the server ...
RENEWAL_MARGIN_S = 60.0
# ... but a short-lived one is used for nine tenths of its life at least.
RENEWAL_MARGIN_SHARE = 0.1

# Clients of this API have always counted on one hour where the answer does not say how long a token lives.
DEFAULT_TOKEN_LIFE_S = 3600.0
# Longer than this is not a lifetime but a mistake.
MAX_TOKEN_LIFE_S = 10 * 365 * 86400.0

BROKEN_OFF = "the connection broke in the middle of the answer"

SUCCESS = "000"
HTTP_OK = 200
HTTP_REDIRECTION = 300
HTTP_TOO_MANY_REQUESTS = 429


class Refused(ClientError):
    """The server understood and said no.

    `codigo` is the API's three-digit return code, `msg` the server's text, `http_status` the HTTP status, and
    `retry_after` the wait that the server asked for, where it asked for one.
    """

    def __init__(self, codigo: str, msg: str, http_status: int, retry_after: timedelta | None = None) -> None:
        super().__init__(codigo, msg, http_status, retry_after)
        self.codigo = codigo
        self.msg = msg
        self.http_status = http_status
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.codigo}: {self.msg} (HTTP {self.http_status})"


class InvalidParameter(Refused):
    """`001`: a field is missing or not allowed, such as a URL that is none, or a pin that is not the client's."""


class ServerFailed(Refused):
    """`005`: the server could not do its part now; trying again later is right."""


class AuthenticationFailed(Refused):
    """`006`: the credentials are wrong, or a token that was just issued was refused as well."""


class TooManyAttempts(Refused):
    """HTTP 429: too many failed attempts to log in; `retry_after` says how long to wait."""


class UnknownCode(Refused):
    """`009`: none of this client's callbacks has this code."""


class AlreadyRemoved(Refused):
    """`010`: the callback was removed before."""


class Unreachable(ClientError):
    """The network failed, or the server did not answer in time. The request may or may not have been carried out."""

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(address, problem)
        self.address = address
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.address}: {self.problem}"


class BadAnswer(ClientError):
    """Something answered, but not in the API's terms: a proxy's error page, or another service altogether.

    `http_status` is None where not even the status line could be read. The body is not kept: it may hold a token.
    """

    def __init__(self, address: str, problem: str, http_status: int | None = None) -> None:
        super().__init__(address, problem, http_status)
        self.address = address
        self.problem = problem
        self.http_status = http_status

    def __str__(self) -> str:
        status = "" if self.http_status is None else f" (HTTP {self.http_status})"
        return f"{self.address}: {self.problem}{status}"


@dataclass(frozen=True, slots=True)
class Registration:
    """A registered callback.

    `code` identifies it from now on. `secret` (`whsec_...`) is what its statuses are signed with: give it to
    `toque.receiver.Receiver`. The server tells it once, when the code is new, and it is None ever after.
    """

    code: str
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CallbackInfo:
    """One registered callback, as listed.

    `url` comes with its password masked; `pin` is None for a callback that is told of all calls; `created` is naive,
    in the server's time zone; `health` is the server's own word, such as `saudavel` or `desativado`.
    """

    code: str
    url: str
    pin: str | None
    created: datetime
    health: str


class Client:
    """The registry of callbacks, as one client of the API sees it. Safe to share between threads.

    `base_url` is what the methods' paths are put behind (`https://host`, a path is allowed). `timeout` is in seconds
    and counts for each step on the network: connecting, sending, waiting for the next piece of the answer. `clock`
    gives monotonic seconds. `context` is for servers whose certificate a private authority signed.

    Every method raises `Refused` or one of its kinds, `Unreachable` or `BadAnswer`: all are `ClientError`s. None of
    them contains the secret, a token or a URL's password. A `ValueError` says that `base_url` is not usable.
    """

    def __init__(
        self,
        base_url: str,
        client_id: str,
        client_secret: str,
        *,
        timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._wire = _Wire(_checked_base(base_url), timeout, context)
        self._client_id = client_id
        self._client_secret = client_secret
        self._clock = clock
        self._tokens = _Tokens(self._request_token, clock)

    def __repr__(self) -> str:
        return f"Client({self._wire.base_url!r}, {self._client_id!r})"

    def add_callback(self, url: str, pin: str | None = None) -> Registration:
        """Have the statuses of this client's calls posted to `url`; with `pin`, only those of that line.

        The same URL and pin again is no error and answers the same code, without the secret. So if the answer to the
        first request was lost (`Unreachable`), and the secret with it: remove the code and add the URL once more.
        Raises `InvalidParameter` for a URL or pin that the server does not take.
        """
        fields = {"url": url} if pin is None else {"url": url, "pin": pin}
        answer = self._call("/voz/add-callback", fields)
        secret = answer.optional_text("segredo")
        return Registration(code=answer.text("code"), secret=secret)

    def remove_callback(self, code: str) -> None:
        """Stop the posts to the callback `code`. Raises `UnknownCode`, or `AlreadyRemoved` the second time."""
        self._call("/voz/remove-callback", {"code": code})

    def list_callbacks(self) -> list[CallbackInfo]:
        """All of this client's callbacks, in the server's order."""
        answer = self._call("/voz/list-callback", {})
        return [_parse_info(entry) for entry in answer.entries("data")]

    def _call(self, path: str, fields: Mapping[str, str]) -> _Answer:
        token = self._tokens.current()
        # A refused request was not carried out, so that sending it again is safe, whatever it asked for.
        with suppress(AuthenticationFailed):
            return self._call_with(token, path, fields)
        return self._call_with(self._tokens.current(refused=token), path, fields)

    def _call_with(self, token: _Token, path: str, fields: Mapping[str, str]) -> _Answer:
        answer = self._wire.post(path, {**fields, "access_token": token.value})
        return _accepted(answer, secrets=(token.value, self._client_secret))

    def _request_token(self) -> _Token:
        # The lifetime counts from before the request, because the server's own count began before the answer came.
        asked_at_s = self._clock()
        credentials = {"client_id": self._client_id, "client_secret": self._client_secret}
        answer = self._wire.post("/request_token", credentials)
        # OAuth's token answer has no return code of its own; only where there is one does it count.
        if "access_token" not in answer.members or "codigo" in answer.members:
            answer = _accepted(answer, secrets=(self._client_secret,))
        if not _is_success(answer.http_status):
            raise answer.bad("a token came with an error status")
        return _Token(answer.text("access_token"), asked_at_s + _usable_s(_lifetime_s(answer)))


@dataclass(frozen=True, slots=True, eq=False)
class _Token:
    value: str = field(repr=False)
    renew_at_s: float


class _Tokens:
    """The one token that all threads share, and the one request for its successor.

    Whoever first finds the token missing, old or refused fetches a new one; whoever finds the same in the meantime
    waits for that outcome, good or bad. Sharing the failure too is what keeps sixteen threads with a wrong secret
    from making sixteen failed logins, and a dead server from costing each of them a time-out in turn.
    """

    def __init__(self, fetch: Callable[[], _Token], clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._token: _Token | None = None
        self._renewal: Future[_Token] | None = None

    def current(self, refused: _Token | None = None) -> _Token:
        """A token that is fit for use and is not `refused`; fetched first if need be."""
        while True:
            with self._lock:
                if self._token is refused:
                    self._token = None
                if self._token is not None and self._clock() < self._token.renew_at_s:
                    return self._token
                renewal = self._renewal
                is_ours = renewal is None
                if renewal is None:
                    renewal = self._renewal = Future()
            if is_ours:
                return self._renew(renewal)
            # Cancelled means that the thread that fetched was interrupted: somebody else has to.
            with suppress(CancelledError):
                return renewal.result()

    def _renew(self, renewal: Future[_Token]) -> _Token:
        try:
            token = self._fetch()
        except BaseException as error:
            with self._lock:
                self._renewal = None
            if isinstance(error, Exception):
                renewal.set_exception(error)
            else:  # a KeyboardInterrupt is this thread's alone
                renewal.cancel()
            raise
        with self._lock:
            self._token, self._renewal = token, None
        renewal.set_result(token)
        return token


@dataclass(frozen=True, slots=True)
class _Answer:
    """A JSON object that came over the wire; a member that is not what it should be is a `BadAnswer`."""

    address: str
    http_status: int
    members: Mapping[str, Any] = field(repr=False)
    retry_after: timedelta | None = None

    def bad(self, problem: str) -> BadAnswer:
        return BadAnswer(self.address, problem, self.http_status)

    def text(self, name: str) -> str:
        value = self.optional_text(name)
        if value is None:
            raise self.bad(f"the answer has no {name}")
        return value

    def optional_text(self, name: str) -> str | None:
        value = self.members.get(name)
        if value is not None and not isinstance(value, str):
            raise self.bad(f"{name} is not a text")
        return value or None

    def local_time(self, name: str) -> datetime:
        try:
            return datetime.strptime(self.text(name), "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007 - the server's wall clock
        except ValueError:
            raise self.bad(f"{name} is not a time") from None

    def entries(self, name: str) -> list[_Answer]:
        value = self.members.get(name)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self.bad(f"{name} is not a list of objects")
        return [_Answer(self.address, self.http_status, entry) for entry in value]


class _Wire:
    """Posts a form, reads a JSON object. Knows nothing of tokens and return codes."""

    def __init__(self, base_url: str, timeout_s: float, context: ssl.SSLContext | None) -> None:
        self.base_url = base_url
        self._timeout_s = timeout_s
        # Put together by hand to leave two handlers out: the one that follows redirects, which would hand the
        # credentials to somebody else, and the one that turns error answers, which have an envelope too, into
        # exceptions.
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(urllib.request.ProxyHandler())
        self._opener.add_handler(urllib.request.HTTPHandler())
        self._opener.add_handler(urllib.request.HTTPSHandler(context=context))

    def post(self, path: str, fields: Mapping[str, str]) -> _Answer:
        """Raises `Unreachable` and `BadAnswer`."""
        address = self.base_url + path
        status, retry_after, body = self._exchange(_form_request(address, fields))
        members = None
        with suppress(ValueError, RecursionError):  # not chained: the decoder's error holds the body
            members = json.loads(body)
        if not isinstance(members, dict):
            raise BadAnswer(address, "the answer is not a JSON object", status)
        return _Answer(address, status, members, retry_after)

    def _exchange(self, request: urllib.request.Request) -> tuple[int, timedelta | None, bytes]:
        address = request.full_url
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                body: bytes = response.read(MAX_ANSWER_BYTES + 1)
                status: int = response.status
                is_cut_short = bool(response.length) and len(body) <= MAX_ANSWER_BYTES
                retry_after = _parse_retry_after(response.headers.get("Retry-After", ""))
        except urllib.error.URLError as error:
            raise Unreachable(address, str(error.reason)) from error
        except OSError as error:
            raise Unreachable(address, str(error) or type(error).__name__) from error
        except http.client.IncompleteRead:
            raise Unreachable(address, BROKEN_OFF) from None
        except (http.client.HTTPException, ValueError):  # they would quote what was received
            raise BadAnswer(address, "the answer is not HTTP") from None
        if is_cut_short:
            raise Unreachable(address, BROKEN_OFF)
        if len(body) > MAX_ANSWER_BYTES:
            raise BadAnswer(address, f"the answer is longer than {MAX_ANSWER_BYTES} bytes", status)
        return status, retry_after, body


_REFUSALS: Mapping[str, type[Refused]] = {
    "001": InvalidParameter,
    "005": ServerFailed,
    "006": AuthenticationFailed,
    "009": UnknownCode,
    "010": AlreadyRemoved,
}


def _accepted(answer: _Answer, secrets: tuple[str, ...]) -> _Answer:
    """The answer itself if it says `000`; raises what it says otherwise."""
    codigo = answer.text("codigo")
    if not re.fullmatch(r"[0-9]{3}", codigo):
        raise answer.bad("codigo is not a return code")
    if codigo == SUCCESS:
        if not _is_success(answer.http_status):
            raise answer.bad("success came with an error status")
        return answer
    is_limited = answer.http_status == HTTP_TOO_MANY_REQUESTS
    kind = TooManyAttempts if is_limited else _REFUSALS.get(codigo, Refused)
    msg = answer.members.get("msg")
    text = _hidden(msg, secrets) if isinstance(msg, str) else ""
    raise kind(codigo, text, answer.http_status, answer.retry_after)


def _is_success(http_status: int) -> bool:
    return HTTP_OK <= http_status < HTTP_REDIRECTION


def _hidden(text: str, secrets: tuple[str, ...]) -> str:
    """A server's text lands in logs as part of an exception: without what a careless server may quote in it."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return re.sub(r"://[^/\s]*@", "://***@", text)


def _parse_info(entry: _Answer) -> CallbackInfo:
    return CallbackInfo(
        code=entry.text("code"),
        url=entry.text("url"),
        pin=entry.optional_text("pin"),
        created=entry.local_time("criado"),
        health=entry.text("saude"),
    )


def _lifetime_s(answer: _Answer) -> float:
    """`expires_in` in seconds; some servers write it as a text."""
    value = answer.members.get("expires_in", DEFAULT_TOKEN_LIFE_S)
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TOKEN_LIFE_S:
        raise answer.bad("expires_in is not a number of seconds")
    return float(value)


def _usable_s(lifetime_s: float) -> float:
    return lifetime_s - min(RENEWAL_MARGIN_S, lifetime_s * RENEWAL_MARGIN_SHARE)


def _parse_retry_after(value: str) -> timedelta | None:
    """Seconds only, which is what this API sends; a date, which a proxy might, counts as unknown."""
    return timedelta(seconds=int(value)) if re.fullmatch(r"[0-9]{1,9}", value) else None


def _form_request(address: str, fields: Mapping[str, str]) -> urllib.request.Request:
    # What is not valid Unicode goes out as it is, for the server to refuse: an encoding error would quote the secret.
    form = urllib.parse.urlencode({**fields, "format": "json"}, errors="surrogatepass")
    headers = {"Accept": "application/json", "User-Agent": f"toque/{__version__}"}
    return urllib.request.Request(address, form.encode("ascii"), headers)  # noqa: S310 - _checked_base saw the scheme


def _checked_base(base_url: str) -> str:
    """Without a slash at its end. The errors do not quote the URL, which may contain a password."""
    try:
        parts = urllib.parse.urlsplit(base_url)
        has_host = bool(parts.hostname and parts.hostname.encode("idna")) and parts.port != 0
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in {"http", "https"}:
        raise ValueError("base_url must be http:// or https://, a host, and maybe a port and a path")
    if parts.username is not None or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", base_url):
        raise ValueError("base_url must have no user, query or fragment, and no spaces or accents")
    return base_url.rstrip("/")
