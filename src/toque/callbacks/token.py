"""Access tokens: who, until when and of which secret, signed. They are verified without looking anything up.

Base64url of `version 1 | expiry | secret version | client_id`, a dot, and its HMAC-SHA256 under the server's key. Only letters,
digits, `-`, `_` and one `.` occur, since shell clients cut tokens out of lines.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime
from struct import Struct

from toque.errors import InputError

KEY_BYTES = 32
MAX_TOKEN_CHARACTERS = 512
_HEAD = Struct("!BQI")
_FORMAT = 1


class TokenError(InputError):
    """The text is no token of ours, or one that has expired."""


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a token says."""

    client_id: str
    secret_version: int


def mint(key: bytes, claims: TokenClaims, expires_at: datetime) -> str:
    """A token for these claims."""
    body = _HEAD.pack(_FORMAT, int(expires_at.timestamp()), claims.secret_version) + claims.client_id.encode()
    return f"{_encode(body)}.{_encode(_mac(key, body))}"


def verify(key: bytes, token: str, now: datetime) -> TokenClaims:
    """The claims of a token that is genuine and not expired. Raises `TokenError`."""
    if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
        raise TokenError("access_token inválido")
    first, _, second = token.partition(".")
    try:
        body, mac = _decode(first), _decode(second)
    except ValueError:
        raise TokenError("access_token inválido") from None
    if not hmac.compare_digest(mac, _mac(key, body)) or len(body) < _HEAD.size:
        raise TokenError("access_token inválido")
    form, expires, version = _HEAD.unpack_from(body)
    if form != _FORMAT:
        raise TokenError("access_token inválido")
    if now.timestamp() >= expires:
        raise TokenError("access_token expirado")
    return TokenClaims(body[_HEAD.size :].decode(), version)


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, "sha256")


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _encode(data) != text:  # one token has one spelling
        msg = "not canonical base64url"
        raise ValueError(msg)
    return data
