"""Signatures of the Standard Webhooks scheme: HMAC-SHA256 over `id.timestamp.body`, one for each secret that is valid now."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import b2a_base64
from collections.abc import Sequence
from hashlib import sha256

PREFIX = "whsec_"
SECRET_BYTES = 32
_BLOCK_BYTES = 64  # SHA-256's
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))


def render_secret(random: bytes) -> str:
    """The secret as people see it."""
    return PREFIX + b64encode(random).decode("ascii")


def key_of(secret: str) -> bytes:
    """The key that signs. Raises `ValueError` for a text that is no secret."""
    if not secret.startswith(PREFIX):
        msg = "a signing secret begins with whsec_"
        raise ValueError(msg)
    return b64decode(secret.removeprefix(PREFIX), validate=True)


class Signer:
    """One key, ready to sign: HMAC's two blocks (RFC 2104, 2), so that a signature is two hashes and nothing is copied."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        block = (key if len(key) <= _BLOCK_BYTES else sha256(key).digest()).ljust(_BLOCK_BYTES, b"\0")
        self._inner = block.translate(_INNER_PAD)
        self._outer = block.translate(_OUTER_PAD)

    def sign(self, content: bytes) -> bytes:
        """`v1,` and the signature of this content in base64."""
        inner = sha256(self._inner + content).digest()
        return b"v1," + b2a_base64(sha256(self._outer + inner).digest(), newline=False)


def sign(signers: Sequence[Signer], event_id: bytes, timestamp: int, body: bytes) -> bytes:
    """The header `webhook-signature`; `timestamp` is the attempt's time in whole seconds since 1970."""
    content = b"%b.%d.%b" % (event_id, timestamp, body)
    if len(signers) == 1:
        return signers[0].sign(content)
    return b" ".join([signer.sign(content) for signer in signers])
