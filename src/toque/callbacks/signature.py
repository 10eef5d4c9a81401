"""Signatures of the Standard Webhooks scheme: HMAC-SHA256 over `id.timestamp.body`, one for each secret that is valid now."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from collections.abc import Iterable

PREFIX = "whsec_"
SECRET_BYTES = 32


def render_secret(random: bytes) -> str:
    """The secret as people see it."""
    return PREFIX + b64encode(random).decode("ascii")


def key_of(secret: str) -> bytes:
    """The key that signs. Raises `ValueError` for a text that is no secret."""
    if not secret.startswith(PREFIX):
        msg = "a signing secret begins with whsec_"
        raise ValueError(msg)
    return b64decode(secret.removeprefix(PREFIX), validate=True)


def sign(keys: Iterable[bytes], event_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`; `timestamp` is the attempt's time in whole seconds since 1970."""
    content = b"%s.%d.%s" % (event_id.encode("ascii"), timestamp, body)
    return " ".join("v1," + b64encode(hmac.digest(key, content, "sha256")).decode("ascii") for key in keys)
