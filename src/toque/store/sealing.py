"""Secrets at rest: AES-256-GCM under a key derived from the operator's `TOQUE_SECRET_KEY`, or in clear when there is none.

A sealed text says by its prefix how it was written, so that a key may be set later. The store's file is mode 0600 either way.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

_PLAIN, _SEALED = "plain:", "gcm1:"
_NONCE_BYTES = 12  # NIST SP 800-38D, 8.2.1
_SALT = b"toque.store.sealing.1"  # the setting is long and random; the salt only keeps the key apart from other uses


class WrongKey(Exception):  # noqa: N818 - a fact, told to the operator as a SettingsError
    """The text was sealed under another key, or there is no key."""


class Sealer:
    """Seals and opens texts and bytes."""

    def __init__(self, secret_key: str | None) -> None:
        self._cipher: AESGCM | None = None
        if secret_key:
            # scrypt's interactive parameters (RFC 7914, 2): about 50 ms, once at the start.
            key = Scrypt(salt=_SALT, length=32, n=2**14, r=8, p=1).derive(secret_key.encode())
            self._cipher = AESGCM(key)

    @property
    def encrypts(self) -> bool:
        """Whether new texts are encrypted."""
        return self._cipher is not None

    def seal(self, text: str) -> str:
        """The text as it is stored."""
        if self._cipher is None:
            return _PLAIN + text
        nonce = os.urandom(_NONCE_BYTES)
        return _SEALED + b64encode(nonce + self._cipher.encrypt(nonce, text.encode(), None)).decode("ascii")

    def open(self, sealed: str) -> str:
        """The text again. Raises `WrongKey`."""
        if sealed.startswith(_PLAIN):
            return sealed.removeprefix(_PLAIN)
        if self._cipher is None or not sealed.startswith(_SEALED):
            raise WrongKey
        try:
            data = b64decode(sealed.removeprefix(_SEALED), validate=True)
            return self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None).decode()
        except (InvalidTag, ValueError):
            raise WrongKey from None

    def is_current(self, sealed: str) -> bool:
        """Whether a text is stored as this sealer would store it."""
        return sealed.startswith(_SEALED if self.encrypts else _PLAIN)
