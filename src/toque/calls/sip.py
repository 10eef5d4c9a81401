"""SIP messages, as far as a call's status needs them (RFC 3261, RFC 3326 for Reason, RFC 3325 for asserted identities).

A watcher must be lenient where a switch would refuse: folded headers, bare line feeds, compact names, bad encodings and missing
headers are all seen in the wild. Only what can tell us nothing at all raises `SipError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from urllib.parse import unquote

from toque.calls.model import Cause
from toque.errors import InputError

MAX_MESSAGE_BYTES = 262_144  # nothing that a switch mirrors is near this
_MAX_VIAS = 70  # RFC 3261's Max-Forwards; more are made up
_MAX_ASSERTED = 2  # RFC 3325, 9.1
_REQUEST = re.compile(r"([A-Z]{2,16}) +([^ ]+) +SIP/2\.0 *$", re.IGNORECASE | re.ASCII)
_RESPONSE = re.compile(r"SIP/2\.0 +([1-6]\d\d)(?: +(.*))?$", re.IGNORECASE | re.ASCII)
_FOLD = re.compile(r"\r?\n[ \t]+")
_BRANCH = re.compile(r";\s*branch\s*=\s*([^;,\s]+)", re.IGNORECASE)
_TAG = re.compile(r";\s*tag\s*=\s*([^;,\s>]+)", re.IGNORECASE)
_ROUTE_TAG = re.compile(r"[;?]ftag=([^;>,\s]+)")  # Kamailio's rr module leaves the caller's tag in its route (append_fromtag)
_CAUSE = re.compile(r";\s*cause\s*=\s*(\d{1,3})(?!\d)", re.IGNORECASE | re.ASCII)
_REASON_TEXT = re.compile(r'text\s*=\s*"([^"]*)"', re.IGNORECASE)
_REPLACES = re.compile(r"[?&]replaces=([^&>]*)", re.IGNORECASE)
_HIGHEST_Q850 = 127
# What is longer is made to fill our memory; proxies that hide their topology do write names of some hundred characters.
_LONGEST_NAME = 1000  # a Call-ID, tag or branch
_LONGEST_TEXT = 300  # a user, a phrase, a header that is remembered as a whole

_LONG_NAMES = {"v": "via", "f": "from", "t": "to", "i": "call-id", "c": "content-type"}  # RFC 3261, 7.3.3
_READ = (
    "Via", "From", "To", "Call-ID", "CSeq", "Reason", "Content-Type", "P-Asserted-Identity", "Route", "User-Agent", "Server",
    "Diversion", "Refer-To",
)  # fmt: skip
_PASSED_OVER = (  # named here only because nearly every message has them
    "Max-Forwards", "Contact", "Content-Length", "Record-Route", "Allow", "Supported", "Expires",
)  # fmt: skip
_AS_USUALLY_WRITTEN: dict[str, str | None] = {name: name.lower() for name in _READ} | dict.fromkeys(_PASSED_OVER)
_NAMES = {name.lower(): name.lower() for name in _READ} | _LONG_NAMES


class SipError(InputError):
    """The bytes are not a SIP message that belongs to a call."""


@dataclass(slots=True)
class SipMessage:
    """One request or response. Texts are as sent, decoded as UTF-8; users are percent-decoded.

    `status` is 0 for a request. `branches` are the Via headers' branch values, topmost first.
    """

    method: str
    status: int
    phrase: str
    call_id: str
    cseq: int
    from_user: str
    from_tag: str
    to_user: str
    to_tag: str
    request_user: str
    branches: tuple[str, ...]
    asserted_users: tuple[str, ...]
    has_sdp: bool
    cause: Cause | None  # what a Reason header says
    route_tag: str
    agent: str = ""  # what the sender's software calls itself
    diverted_user: str = ""  # who was called first, where the call was diverted (RFC 5806)
    replaces: tuple[str, ...] = ()  # of a REFER to a call that is there: its Call-ID and both tags (RFC 3891)

    @property
    def is_request(self) -> bool:
        """Whether this is a request."""
        return self.status == 0

    @property
    def is_success(self) -> bool:
        """Whether this is a 2xx response."""
        return 200 <= self.status < 300


def parse_sip(data: bytes) -> SipMessage:
    """Read one message. Raises `SipError`."""
    if len(data) > MAX_MESSAGE_BYTES:
        msg = f"SIP message of {len(data)} bytes"
        raise SipError(msg)
    data = data.lstrip(b"\r\n")  # keep-alives before the message (RFC 3261, 7.5)
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        head, _, body = data.partition(b"\n\n")
    first, _, rest = head.decode("utf-8", "replace").partition("\n")
    method, status, phrase, request_uri = _start_line(first.rstrip("\r"))
    headers = _headers(rest)
    cseq, cseq_method = _cseq(headers.get("cseq", _NO_VALUE)[0])
    call_id = headers.get("call-id", _NO_VALUE)[0]
    from_user, from_tag = _party(headers.get("from", _NO_VALUE)[0])
    to_user, to_tag = _party(headers.get("to", _NO_VALUE)[0])
    if not call_id or max(len(call_id), len(from_tag), len(to_tag)) > _LONGEST_NAME:
        msg = f"SIP message without a Call-ID, or with one or a tag of more than {_LONGEST_NAME} characters"
        raise SipError(msg)
    return SipMessage(
        method=cseq_method if status else method,
        status=status,
        phrase=phrase,
        call_id=call_id,
        cseq=cseq,
        from_user=from_user,
        from_tag=from_tag,
        to_user=to_user,
        to_tag=to_tag,
        request_user=user_of(request_uri) if request_uri else "",
        branches=_branches(headers.get("via", [])),
        asserted_users=_asserted(headers["p-asserted-identity"]) if "p-asserted-identity" in headers else (),
        has_sdp=bool(body) and _is_sdp(headers.get("content-type", _NO_VALUE)[0], body),
        cause=_reason(headers["reason"]) if "reason" in headers else None,
        route_tag=_route_tag(headers["route"]) if "route" in headers else "",
        agent=(headers.get("user-agent") or headers.get("server", _NO_VALUE))[0][:_LONGEST_TEXT],
        diverted_user=_diverted(headers["diversion"][-1]) if "diversion" in headers else "",
        replaces=_replaces(headers["refer-to"][0]) if "refer-to" in headers else (),
    )


_NO_VALUE = [""]


def _start_line(line: str) -> tuple[str, int, str, str]:
    response = _RESPONSE.match(line)
    if response:
        return "", int(response[1]), (response[2] or "").strip()[:_LONGEST_TEXT], ""
    request = _REQUEST.match(line)
    if request:
        return request[1].upper(), 0, "", request[2]
    msg = "neither a SIP request nor a SIP response"
    raise SipError(msg)


def _headers(text: str) -> dict[str, list[str]]:
    """The values of the headers that we read, by their long lower-case names. Where one value is meant, the first counts."""
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)
    found: dict[str, list[str]] = {}
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        key = _AS_USUALLY_WRITTEN[name] if name in _AS_USUALLY_WRITTEN else _NAMES.get(name.strip().lower())
        if key is None or not colon:
            continue
        if key in found:
            found[key].append(value.strip())
        else:
            found[key] = [value.strip()]
    return found


def _cseq(value: str) -> tuple[int, str]:
    number, _, method = value.strip().partition(" ")
    if not number.isascii() or not number.isdecimal() or len(number) > 10 or not method.strip():  # 2**31 has ten digits
        msg = "SIP message without a readable CSeq"
        raise SipError(msg)
    return int(number), method.strip().upper()


def _branches(vias: list[str]) -> tuple[str, ...]:
    hops = ",".join(vias).split(",", _MAX_VIAS)[:_MAX_VIAS] if vias else vias
    return tuple([found[1][:_LONGEST_NAME] if (found := _BRANCH.search(hop)) else "" for hop in hops])


def _party(value: str) -> tuple[str, str]:
    """User and tag of a From or To header. All messages of a call have the same few, so they are read once."""
    return _read_party(value) if len(value) <= _LONGEST_TEXT else _read_party.__wrapped__(value)


@lru_cache(maxsize=8192)
def _read_party(value: str) -> tuple[str, str]:
    return user_of(_uri(value)), _tag(value)


def _uri(value: str) -> str:
    """The URI of a name-addr or addr-spec, past a quoted display name that may itself contain `<` (RFC 3261, 25.1)."""
    start = 0
    if value[:1] == '"':
        end = 1
        while end < len(value) and value[end] != '"':
            end += 2 if value[end] == "\\" else 1
        start = end + 1
    opening = value.find("<", start)
    if opening < 0:
        return value[start:].partition(";")[0].strip()
    closing = value.find(">", opening)
    return value[opening + 1 : closing if closing > 0 else len(value)].strip()


def _tag(value: str) -> str:
    closing = value.rfind(">")
    found = _TAG.search(value, max(closing, 0))
    return found[1] if found else ""


def user_of(uri: str) -> str:
    """The user part of a SIP URI, or the number of a tel URI (RFC 3966) without its visual separators; '' when there is none."""
    scheme, colon, rest = uri.partition(":")
    if not colon:
        return ""
    match scheme.lower():
        case "sip" | "sips":
            # A password or parameters of the user (";phone-context=") are no part of whom it names.
            user, at, _ = rest.partition("@")
            return unquote(user.partition(";")[0].partition(":")[0])[:_LONGEST_TEXT] if at else ""
        case "tel":
            return rest.partition(";")[0].translate(_VISUAL_SEPARATORS)[:_LONGEST_TEXT]
        case _:
            return ""


_VISUAL_SEPARATORS = str.maketrans("", "", "-.()")


def _asserted(values: list[str]) -> tuple[str, ...]:
    users = (user_of(_uri(part.strip())) for part in ",".join(values).split(","))
    return tuple(islice(filter(None, users), _MAX_ASSERTED))


def _diverted(value: str) -> str:
    """The number that was called before any diversion: the last entry (RFC 5806, 3.2)."""
    return user_of(_uri(value.rpartition(",")[2].strip()))


def _replaces(value: str) -> tuple[str, ...]:
    """What a Refer-To names as the call to be replaced."""
    found = _REPLACES.search(_uri(value))
    if found is None:
        return ()
    call_id, *parts = unquote(found[1])[:_LONGEST_NAME].split(";")
    return (call_id, *(part.partition("=")[2] for part in parts if part.partition("=")[0] in ("to-tag", "from-tag")))


def _is_sdp(content_type: str, body: bytes) -> bool:
    kind = content_type.lower()
    # Carriers put SDP beside ISUP (RFC 3204).
    return "application/sdp" in kind or (kind.startswith("multipart/") and b"application/sdp" in body.lower())


def _route_tag(values: list[str]) -> str:
    found = next(filter(None, map(_ROUTE_TAG.search, values)), None)
    return found[1] if found else ""


def _reason(values: list[str]) -> Cause | None:
    """What the Reason headers say (RFC 3326): one value for each protocol, of which we know two."""
    causes: dict[str, int] = {}
    for part in ",".join(values).split(","):
        protocol, _, _ = part.partition(";")
        found = _CAUSE.search(part)
        if found:
            causes.setdefault(protocol.strip().upper(), int(found[1]))
    sip, q850 = causes.get("SIP"), causes.get("Q.850")
    if q850 is not None and q850 > _HIGHEST_Q850:
        q850 = None
    if sip is None and q850 is None:
        return None
    text = next(filter(None, map(_REASON_TEXT.search, values)), None)
    return Cause(sip=sip, q850=q850, text=text[1][:_LONGEST_TEXT] if text else None)
