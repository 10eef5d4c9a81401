"""Turns the POST of a status callback into a typed `CallStatus`, or says why not. Needs nothing but Python itself.

    receiver = Receiver(os.environ["TOQUE_CALLBACK_SECRET"], seen=SeenInMemory())

    try:
        with receiver.handling(request.headers, request.get_data()) as status:
            ...                                    # the application's own work
    except ReceiverError as error:
        return str(error), error.http_status
    return "", 204

The body must be the raw bytes as they came: the signature is over them, and no framework writes a parsed form back
the way it was.

Statuses arrive at least once: after an error, a time-out or a crash on either side the sender posts again, with the
same `id`. There are three ways to live with that; none of them is free:

`handling(...)` with `seen`
    The id is marked once the block has ended without an exception. A block that fails is not marked, so that the
    sender's next try runs it again. The window that remains: if the process dies between the block's last effect and
    the mark, or the mark itself fails, the block runs a second time. Never is a status marked and yet not handled.

`handling(...)` inside a database transaction, with a `SeenIds` that writes to that same transaction
    Effect and mark are committed together, or neither is: no window. See `SeenIds`.

`read(...)`
    Checks and parses, marks nothing. For handlers that may run twice without harm (an update of the call's row under
    `id`, or under `callerid` and `sequencia`), or that insert the id in a transaction of their own.
"""

# ruff: noqa: N818 - the errors are named by what happened, as in toque.errors

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import threading
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar, Protocol, cast

from toque.errors import ClientError

SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix of every secret, and none itself
SIGNATURE_VERSION = "v1"

# What the Standard Webhooks libraries allow between the sender's clock and ours, the way included.
DEFAULT_TOLERANCE = timedelta(minutes=5)

FINAL_STATUSES = frozenset(
    {
        "desligou",
        "ocupado",
        "nao_atendeu",
        "cancelou",
        "recusou",
        "congestionado",
        "numero_invalido",
        "indisponivel",
        "falhou",
    }
)

_HeaderPairs = Iterable[tuple[str | bytes, str | bytes]]
Headers = Mapping[str, str] | _HeaderPairs


class ReceiverError(ClientError):
    """A POST that is not to be handled. `http_status` is what to answer, so that the sender does what is right."""

    http_status: ClassVar[int] = 400


class BadSignature(ReceiverError):
    """The POST is not proved to come from the sender: a header is missing or no signature fits any of the secrets.

    401 makes the sender try again later: a receiver that was given the wrong secret loses nothing.
    """

    http_status = 401


class TooOld(ReceiverError):
    """Signed by the sender, but too long ago or too far ahead: a replay, or a clock that is wrong.

    401 makes the sender try again, each time with the time of that attempt.
    """

    http_status = 401


class Malformed(ReceiverError):
    """Signed by the sender, but not a status callback that this version can read."""

    http_status = 400


class AlreadySeen(ReceiverError):
    """A repetition of a status that was handled before. 200 makes the sender stop."""

    http_status = 200


class BeingHandled(ReceiverError):
    """A repetition of a status whose first POST this process is still handling, with an outcome not known yet.

    409 makes the sender try again later: it would be wrong to call it handled, and a waste to handle it twice at once.
    """

    http_status = 409


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a call ended, as far as the switch said: SIP status, Q.850 cause, the switch's own words."""

    sip: int | None
    q850: int | None
    texto: str | None


@dataclass(frozen=True, slots=True)
class CallStatus:
    """One status of one call, with the members of the callback's JSON under their own names.

    `id` is unique per event and the same over repetitions. `sequencia` counts 1, 2, 3 ... within a call's side, that
    is (`callerid`, `tipo`, `pin`). `inicio`, `atendimento`, `fim` and `pbx_atendeu` are naive, in the server's time
    zone; `momento`, when this status happened, is aware. `toque` is the time it rang, `duracao` the time talked.
    What is not known (yet) is None. `tipo` and `status` are plain texts, because later servers may know more words.
    `raw` is the JSON as it came, with the members that this version does not know.
    """

    id: str
    callerid: str
    sequencia: int
    pin: str
    tipo: str
    origem: str | None
    destino: str | None
    atendido_por: str | None
    status: str
    inicio: datetime | None
    atendimento: datetime | None
    fim: datetime | None
    toque: timedelta | None
    duracao: timedelta | None
    momento: datetime
    pbx_atendeu: datetime | None
    desligado_por: str | None
    causa: Cause | None
    inferido: bool | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def is_final(self) -> bool:
        """Whether this is the last status of its side of the call."""
        return self.status in FINAL_STATUSES


class SeenIds(Protocol):
    """Where handled ids are kept: in memory (`SeenInMemory`), or wherever the application keeps its data.

    On a database, a unique constraint is the whole of it (here for a DB-API connection in autocommit-off mode):

        class SeenInTable:                          # CREATE TABLE seen (id TEXT PRIMARY KEY)
            def __init__(self, connection): ...

            def __contains__(self, event_id):
                return self.connection.execute("SELECT 1 FROM seen WHERE id = ?", (event_id,)).fetchone() is not None

            def add(self, event_id):
                cursor = self.connection.execute("INSERT INTO seen VALUES (?) ON CONFLICT DO NOTHING", (event_id,))
                return cursor.rowcount == 1

    Put the transaction around the handling, so that the handler's rows and the mark are committed together:

        with connection, receiver.handling(headers, body) as status:
            connection.execute("INSERT INTO ligacoes ...")

    When two processes handle one id at the same time, the unique constraint lets one of them commit; the other's
    `add` answers False, `handling` raises `AlreadySeen`, and the transaction takes its rows back.
    Keep ids for as long as the sender may repeat itself: a week covers its retries, also where the URL was down for
    days; statuses that you ask it to replay can be older. A replay comes with the ids of the first time, so that it
    fills what is missing and repeats nothing.
    """

    def __contains__(self, event_id: str, /) -> bool:
        """Whether `event_id` was added before."""
        ...

    def add(self, event_id: str, /) -> bool:
        """Add `event_id`; True when it is new. Must decide atomically: of two callers at once, one is told True."""
        ...


class SeenInMemory:
    """The newest `max` ids, in this process alone: forgotten by a restart and unknown to other worker processes.

    100,000 ids take some 20 MB. Safe to share between threads.
    """

    def __init__(self, max: int = 100_000) -> None:  # noqa: A002 - reads best where it is called
        if max < 1:
            raise ValueError("max must be at least 1")
        self._max = max
        self._lock = threading.Lock()
        # Unlike a dict, which keeps the order as well, this finds its oldest entry without a search.
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, event_id: str, /) -> bool:
        with self._lock:
            return event_id in self._ids

    def add(self, event_id: str, /) -> bool:
        with self._lock:
            if event_id in self._ids:
                return False
            self._ids[event_id] = None
            if len(self._ids) > self._max:
                self._ids.popitem(last=False)
            return True


class Receiver:
    """Checks and reads the POSTs to one callback URL. Safe to share between threads and tasks.

    `secrets` is the `whsec_...` text that the registration answered, or several: during a rotation the sender signs
    with the old and the new one, and either fits. If several registrations post to one URL, give the secrets of all.
    `tolerance` is how far the sender's clock may be from `clock`, which gives Unix seconds. Without `seen`, nothing is
    recognised as a repetition.

    Raises `ValueError` for something that is not a secret; the text does not quote it.
    """

    def __init__(
        self,
        secrets: str | Sequence[str],
        *,
        tolerance: timedelta = DEFAULT_TOLERANCE,
        seen: SeenIds | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = [_parse_secret(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
        if not self._keys:
            raise ValueError("at least one secret is needed: without any, everything would be refused")
        self._tolerance_s = tolerance.total_seconds()
        self._seen = seen
        self._clock = clock
        self._lock = threading.Lock()
        self._in_progress: set[str] = set()

    def read(self, headers: Headers, body: bytes) -> CallStatus:
        """The status that was posted, checked for origin and age. Marks nothing as seen.

        `headers` is a mapping or pairs, in any letter case (for a WSGI environ or Django's `META`, see
        `headers_from_environ`); `body` is the raw body. Raises `BadSignature`, `TooOld` or `Malformed`, and
        `AlreadySeen` for an id that was marked before.
        """
        status = self._verified(headers, body)
        self._check_unseen(status)
        return status

    @contextmanager
    def handling(self, headers: Headers, body: bytes) -> Iterator[CallStatus]:
        """`read`, for a `with` block that handles the status; its id is marked when the block has succeeded.

        If the block raises, the exception goes on its way and nothing is marked: answer with an error (a framework
        does so by itself), and the sender posts again. Raises what `read` raises; `BeingHandled` while this process
        is handling the same id; and `AlreadySeen` at the end of the block if another process has marked it meanwhile,
        which rolls back a transaction around the block.
        """
        status = self._verified(headers, body)
        with self._claimed(status):
            # Only now: between a look before the claim and the claim, another thread could have begun and finished.
            self._check_unseen(status)
            yield status
            if self._seen is not None and not self._seen.add(status.id):
                raise AlreadySeen("this status was handled meanwhile")

    @contextmanager
    def _claimed(self, status: CallStatus) -> Iterator[None]:
        with self._lock:
            if status.id in self._in_progress:
                raise BeingHandled("this status is being handled")
            self._in_progress.add(status.id)
        try:
            yield
        finally:
            with self._lock:
                self._in_progress.discard(status.id)

    def _verified(self, headers: Headers, body: bytes) -> CallStatus:
        signed = _parse_headers(headers)
        self._check_signature(signed, body)
        self._check_age(signed.timestamp_s)
        status = parse_body(body)
        if status.id != signed.id:
            raise Malformed("webhook-id and the id inside are not the same")
        return status

    def _check_unseen(self, status: CallStatus) -> None:
        if self._seen is not None and status.id in self._seen:
            raise AlreadySeen("this status was handled before")

    def _check_signature(self, signed: _SignedHeaders, body: bytes) -> None:
        content = f"{signed.id}.{signed.timestamp}.".encode("ascii") + body
        right = [_sign(key, content) for key in self._keys]
        if not any(hmac.compare_digest(given, expected) for given in signed.signatures for expected in right):
            raise BadSignature("no signature fits")

    def _check_age(self, timestamp_s: int) -> None:
        if abs(self._clock() - timestamp_s) > self._tolerance_s:
            raise TooOld("signed too long ago or in the future; is the clock right?")


def headers_from_environ(environ: Mapping[str, Any]) -> dict[str, str]:
    """The headers out of a WSGI or CGI environ, or Django's `request.META`: `HTTP_WEBHOOK_ID` is `webhook-id`."""
    return {
        key.removeprefix("HTTP_").replace("_", "-").lower(): value
        for key, value in environ.items()
        if key.startswith("HTTP_") and isinstance(value, str)
    }


def parse_body(body: bytes) -> CallStatus:
    """The status in a form's one field `data`. Checks neither origin nor age. Raises `Malformed`."""
    try:
        form = urllib.parse.parse_qsl(body.decode("utf-8"), keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        raise Malformed("the body is not a form") from None
    if [name for name, _ in form] != ["data"]:
        raise Malformed("the form must have exactly one field, data")
    try:
        value = json.loads(form[0][1])
    except (ValueError, RecursionError):
        raise Malformed("data is not JSON") from None
    if not isinstance(value, dict):
        raise Malformed("data is not a JSON object")
    return _parse_status(_Members(value))


@dataclass(frozen=True, slots=True)
class _SignedHeaders:
    id: str
    timestamp: str
    signatures: tuple[str, ...]

    @property
    def timestamp_s(self) -> int:
        return int(self.timestamp)


def _parse_headers(headers: Headers) -> _SignedHeaders:
    """Raises `BadSignature`: what comes without readable headers cannot be told from a forgery."""
    wanted = {"webhook-id": "", "webhook-timestamp": "", "webhook-signature": ""}
    for name, value in _header_pairs(headers):
        key = _header_text(name).lower()
        if key in wanted:
            if wanted[key]:
                raise BadSignature(f"{key} came twice")
            wanted[key] = _header_text(value).strip()
    for key, value in wanted.items():
        if not value or not value.isascii():
            raise BadSignature(f"{key} is missing or unreadable")
    timestamp = wanted["webhook-timestamp"]
    if not re.fullmatch(r"[0-9]{1,12}", timestamp):
        raise BadSignature("webhook-timestamp is not in Unix seconds")
    return _SignedHeaders(wanted["webhook-id"], timestamp, tuple(wanted["webhook-signature"].split(" ")))


def _header_pairs(headers: Headers) -> _HeaderPairs:
    # Asked for by its method, because not every framework's class of headers is a Mapping by name.
    items = getattr(headers, "items", None)
    return cast("_HeaderPairs", headers if items is None else items())


def _header_text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _parse_secret(secret: str) -> bytes:
    encoded = secret.strip()
    if not encoded.startswith(SECRET_PREFIX):
        raise ValueError(f"a secret begins with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(encoded.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"what follows {SECRET_PREFIX} in a secret is base64") from None
    if not key:
        raise ValueError("the secret is empty")
    return key


def _sign(key: bytes, content: bytes) -> str:
    digest = hmac.new(key, content, hashlib.sha256).digest()
    return f"{SIGNATURE_VERSION},{base64.b64encode(digest).decode('ascii')}"


class _Members:
    """A JSON object's members, each read as what it should be; one that is not is `Malformed`, and named."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def text(self, name: str) -> str:
        value = self.text_or_none(name)
        if not value:
            raise Malformed(f"{name} is missing")
        return value

    def text_or_none(self, name: str) -> str | None:
        value = self.raw.get(name)
        if value is not None and not isinstance(value, str):
            raise Malformed(f"{name} is not a text")
        return value

    def number_or_none(self, name: str) -> int | None:
        value = self.raw.get(name)
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise Malformed(f"{name} is not a whole number")
        return value

    def flag_or_none(self, name: str) -> bool | None:
        value = self.raw.get(name)
        if not isinstance(value, bool | None):
            raise Malformed(f"{name} is neither true nor false")
        return value

    def sequence_number(self, name: str) -> int:
        value = self.number_or_none(name)
        if value is None or value < 1:
            raise Malformed(f"{name} does not count from 1")
        return value

    def local_time_or_none(self, name: str) -> datetime | None:
        return self._time(name, r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")

    def moment(self, name: str) -> datetime:
        value = self._time(name, r"[0-9-]{10}T[0-9:]{8}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})")
        if value is None:
            raise Malformed(f"{name} is missing")
        return value

    def span_or_none(self, name: str) -> timedelta | None:
        value = self.text_or_none(name)
        if value is None:
            return None
        match = re.fullmatch(r"([0-9]{2,6}):([0-5][0-9]):([0-5][0-9])", value)
        if match is None:
            raise Malformed(f"{name} is not HH:MM:SS")
        hours, minutes, seconds = map(int, match.groups())
        return timedelta(hours=hours, minutes=minutes, seconds=seconds)

    def cause_or_none(self, name: str) -> Cause | None:
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise Malformed(f"{name} is not an object")
        inner = _Members(value)
        return Cause(inner.number_or_none("sip"), inner.number_or_none("q850"), inner.text_or_none("texto"))

    def _time(self, name: str, pattern: str) -> datetime | None:
        """The pattern holds `fromisoformat`, which takes many more forms than the wire has, to this one."""
        value = self.text_or_none(name)
        if value is None:
            return None
        try:
            if re.fullmatch(pattern, value):
                return datetime.fromisoformat(value)
        except ValueError:
            pass
        raise Malformed(f"{name} is not a time as the wire writes it")


def _parse_status(members: _Members) -> CallStatus:
    return CallStatus(
        id=members.text("id"),
        callerid=members.text("callerid"),
        sequencia=members.sequence_number("sequencia"),
        pin=members.text("pin"),
        tipo=members.text("tipo"),
        origem=members.text_or_none("origem"),
        destino=members.text_or_none("destino"),
        atendido_por=members.text_or_none("atendido_por"),
        status=members.text("status"),
        inicio=members.local_time_or_none("inicio"),
        atendimento=members.local_time_or_none("atendimento"),
        fim=members.local_time_or_none("fim"),
        toque=members.span_or_none("toque"),
        duracao=members.span_or_none("duracao"),
        momento=members.moment("momento"),
        pbx_atendeu=members.local_time_or_none("pbx_atendeu"),
        desligado_por=members.text_or_none("desligado_por"),
        causa=members.cause_or_none("causa"),
        inferido=members.flag_or_none("inferido"),
        raw=members.raw,
    )
