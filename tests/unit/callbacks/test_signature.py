"""Signatures: whoever verifies with the Standard Webhooks' own package agrees with ours."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from toque.callbacks.payload import encode_form
from toque.callbacks.signature import SECRET_BYTES, Signer, key_of, render_secret, sign

NEW, OLD, FOREIGN = (render_secret(bytes([n]) * SECRET_BYTES) for n in (1, 2, 3))
EVENT_ID = "c9a3f3a0-3a94-5b8e-9d5f-0d2c6a1b7e11"
NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


class StandingClock(datetime):
    """The package compares with its own clock; here it is always the same moment."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return NOW.astimezone(tz)


@pytest.fixture(scope="module", autouse=True)
def _standing_clock() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("standardwebhooks.webhooks.datetime", StandingClock)
        yield


def headers(body: bytes, *secrets: str, event_id: str = EVENT_ID, at: datetime = NOW) -> dict[str, str]:
    timestamp = int(at.timestamp())
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign([Signer(key_of(secret)) for secret in secrets], event_id.encode(), timestamp, body).decode(),
    }


def test_the_package_signs_alike() -> None:
    body = encode_form('{"status":"ocupado","origem":"São João"}')
    assert headers(body, NEW)["webhook-signature"] == Webhook(NEW).sign(EVENT_ID, NOW, body.decode())


@given(st.binary(min_size=1, max_size=64), st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), st.text())
def test_the_package_signs_alike_whatever_is_signed(key: bytes, event_id: str, text: str) -> None:
    secret = render_secret(key)
    assert key_of(secret) == key
    signed = sign([Signer(key_of(secret))], event_id.encode(), int(NOW.timestamp()), text.encode()).decode()
    assert signed == Webhook(secret).sign(event_id, NOW, text)


@pytest.mark.parametrize("receivers_secret", [NEW, OLD])
def test_during_a_rotation_both_secrets_verify(receivers_secret: str) -> None:
    body = b'{"a": 1}'
    signed = headers(body, NEW, OLD)
    assert len(signed["webhook-signature"].split(" ")) == 2
    assert Webhook(receivers_secret).verify(body, signed) == {"a": 1}


@pytest.mark.parametrize(
    ("body", "change", "secret"),
    [
        (b'{"a": 2}', {}, NEW),
        (b'{"a": 1}', {"webhook-id": EVENT_ID.upper()}, NEW),
        (b'{"a": 1}', {"webhook-timestamp": str(int(NOW.timestamp()) - 1)}, NEW),
        (b'{"a": 1}', {}, FOREIGN),
    ],
)
def test_what_was_changed_does_not_verify(body: bytes, change: dict[str, str], secret: str) -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, {**headers(b'{"a": 1}', NEW, OLD), **change})


def test_a_secret_is_what_people_copy() -> None:
    assert NEW.removeprefix("whsec_") == base64.b64encode(b"\x01" * SECRET_BYTES).decode()
    assert key_of(NEW) == b"\x01" * SECRET_BYTES


@pytest.mark.parametrize("text", ["", "whsec", "AQEB", "WHSEC_AQEB", "whsec_AQE", "whsec_A*EB", "whsec_AQEB\n", "whsec_é"])
def test_other_texts_are_no_secrets(text: str) -> None:
    with pytest.raises(ValueError):
        key_of(text)
