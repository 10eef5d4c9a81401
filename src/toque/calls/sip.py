"""SIP messages, as far as a call's status needs them (RFC 3261, RFC 3326 for Reason, RFC 3325 for asserted identities).

A watcher must be lenient where a switch would refuse: folded headers, bare line feeds, compact names, bad encodings and missing
headers are all seen in the wild. Only what can tell us nothing at all raises `SipError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from toque.calls.model import Cause
from toque.errors import InputError

MAX_MESSAGE_BYTES = 262_144  # nothing that a switch mirrors is near this
_REQUEST = re.compile(r"([A-Z]{2,16}) +([^ ]+) +SIP/2\.0\s*$", re.IGNORECASE)
_RESPONSE = re.compile(r"SIP/2\.0 +(\d{3})(?: +(.*))?$", re.IGNORECASE)
_BRANCH = re.compile(r";\s*branch\s*=\s*([^;,\s]+)", re.IGNORECASE)
_TAG = re.compile(r";\s*tag\s*=\s*([^;,\s>]+)", re.IGNORECASE)
_ROUTE_TAG = re.compile(r"[;?]ftag=([^;>,\s]+)")  # Kamailio's rr module leaves the caller's tag in its route (append_fromtag)
_Q850 = re.compile(r"Q\.850\s*(?:;[^,]*?)?;\s*cause\s*=\s*(\d{1,3})", re.IGNORECASE)
_REASON_SIP = re.compile(r"SIP\s*(?:;[^,]*?)?;\s*cause\s*=\s*(\d{3})", re.IGNORECASE)
_REASON_TEXT = re.compile(r'text\s*=\s*"([^"]*)"', re.IGNORECASE)
_HIGHEST_Q850 = 127

_NAMES = {
    "via": "via", "v": "via",
    "from": "from", "f": "from",
    "to": "to", "t": "to",
    "call-id": "call-id", "i": "call-id",
    "cseq": "cseq",
    "reason": "reason",
    "content-type": "content-type", "c": "content-type",
    "p-asserted-identity": "p-asserted-identity",
    "route": "route",
}  # fmt: skip
_LISTS = frozenset({"via", "reason", "p-asserted-identity", "route"})  # headers whose repetitions add up


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

    @property
    def is_request(self) -> bool:
        """Whether this is a request."""
        return self.status == 0


def parse_sip(data: bytes) -> SipMessage:
    """Read one message. Raises `SipError`."""
    if len(data) > MAX_MESSAGE_BYTES:
        msg = f"SIP message of {len(data)} bytes"
        raise SipError(msg)
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        head, _, body = data.partition(b"\n\n")
    text = head.decode("utf-8", "replace").lstrip("\r\n")
    first, _, rest = text.partition("\n")
    headers = _headers(rest)
    method, status, phrase, request_uri = _start_line(first.rstrip("\r"))
    cseq, cseq_method = _cseq(headers.get("cseq", ""))
    call_id = headers.get("call-id", "")
    if not call_id:
        msg = "SIP message without a Call-ID"
        raise SipError(msg)
    from_value, to_value = headers.get("from", ""), headers.get("to", "")
    return SipMessage(
        method=cseq_method if status else method,
        status=status,
        phrase=phrase,
        call_id=call_id,
        cseq=cseq,
        from_user=user_of(_uri(from_value)),
        from_tag=_tag(from_value),
        to_user=user_of(_uri(to_value)),
        to_tag=_tag(to_value),
        request_user=user_of(request_uri),
        branches=_branches(headers.get("via", "")),
        asserted_users=_asserted(headers.get("p-asserted-identity", "")),
        has_sdp=bool(body) and "application/sdp" in headers.get("content-type", "").lower(),
        cause=_reason(headers["reason"]) if "reason" in headers else None,
        route_tag=_route_tag(headers.get("route", "")),
    )


def _start_line(line: str) -> tuple[str, int, str, str]:
    response = _RESPONSE.match(line)
    if response:
        return "", int(response[1]), (response[2] or "").strip(), ""
    request = _REQUEST.match(line)
    if request:
        return request[1].upper(), 0, "", request[2]
    msg = "neither a SIP request nor a SIP response"
    raise SipError(msg)


def _headers(text: str) -> dict[str, str]:
    """The headers we read, by their long lower-case names; of those that do not add up, the first counts."""
    found: dict[str, str] = {}
    name: str | None = None
    for raw in text.split("\n"):
        line = raw.rstrip("\r")
        if line[:1] in (" ", "\t"):
            if name is not None:
                found[name] += " " + line.strip()
            continue
        key, colon, value = line.partition(":")
        name = _NAMES.get(key.strip().lower()) if colon else None
        if name is None:
            continue
        if name not in found:
            found[name] = value.strip()
        elif name in _LISTS:
            found[name] += ", " + value.strip()
        else:
            name = None
    return found


def _cseq(value: str) -> tuple[int, str]:
    number, _, method = value.strip().partition(" ")
    if not number.isascii() or not number.isdecimal() or len(number) > 10 or not method.strip():  # 2**31 has ten digits
        msg = "SIP message without a readable CSeq"
        raise SipError(msg)
    return int(number), method.strip().upper()


def _branches(via: str) -> tuple[str, ...]:
    if "," not in via:
        found = _BRANCH.search(via)
        return (found[1],) if found else ()
    return tuple(found[1] if (found := _BRANCH.search(hop)) else "" for hop in via.split(","))


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
            return unquote(user.partition(";")[0].partition(":")[0]) if at else ""
        case "tel":
            return rest.partition(";")[0].translate(_VISUAL_SEPARATORS)
        case _:
            return ""


_VISUAL_SEPARATORS = str.maketrans("", "", "-.()")


def _asserted(value: str) -> tuple[str, ...]:
    if not value:
        return ()
    users = (user_of(_uri(part.strip())) for part in value.split(","))
    return tuple(user for user in users if user)


def _route_tag(value: str) -> str:
    found = _ROUTE_TAG.search(value)
    return found[1] if found else ""


def _reason(value: str) -> Cause | None:
    q850, sip, text = _Q850.search(value), _REASON_SIP.search(value), _REASON_TEXT.search(value)
    cause_value = int(q850[1]) if q850 else None
    if cause_value is not None and cause_value > _HIGHEST_Q850:
        cause_value = None
    code = int(sip[1]) if sip else None
    if cause_value is None and code is None:
        return None
    return Cause(sip=code, q850=cause_value, text=text[1] if text else None)
