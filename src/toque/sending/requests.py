"""Requests: what is written on the wire for one attempt. The part of the head that never changes is made once per callback."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from toque import __version__
from toque.callbacks.callback import Callback
from toque.callbacks.delivery import Event
from toque.callbacks.payload import encode_form
from toque.callbacks.signature import Signer, key_of, sign
from toque.callbacks.url import TargetUrl, parse_url
from toque.sending.transport import Post


class RequestWriter:
    """Writes the posts of one callback as it is registered now; make a new one when the registration changes."""

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self.url: TargetUrl = replace(parse_url(callback.url), credentials=callback.credentials)
        self._signers = tuple(Signer(key_of(secret)) for secret in callback.secrets)
        authorization = self.url.authorization
        lines = (
            f"POST {self.url.target} HTTP/1.1",
            f"Host: {self.url.host_header}",
            f"User-Agent: toque/{__version__}",
            "Accept: */*",
            "Content-Type: application/x-www-form-urlencoded",
            *([f"Authorization: {authorization}"] if authorization else []),
            "Content-Length: ",
        )
        self._prefix = "\r\n".join(lines).encode("ascii")

    def write(self, event: Event, now: datetime) -> Post:
        """One attempt at this event, signed at `now` with every secret that is valid then."""
        return self._post(event.id, event.body or encode_form(event.payload), now)

    def write_payload(self, event_id: str, payload: str, now: datetime) -> Post:
        """The same for a payload that is not an event of the store's (a test post)."""
        return self._post(event_id, encode_form(payload), now)

    def _post(self, event_id: str, body: bytes, now: datetime) -> Post:
        identifier, timestamp = event_id.encode("ascii"), int(now.timestamp())
        signers = self._signers
        if len(signers) > 1:
            signers = signers[: len(self.callback.secrets_at(now))]
        head = b"%b%d\r\nwebhook-id: %b\r\nwebhook-timestamp: %d\r\nwebhook-signature: %b\r\n\r\n" % (
            self._prefix,
            len(body),
            identifier,
            timestamp,
            sign(signers, identifier, timestamp, body),
        )
        return Post(self.url, head, body)
