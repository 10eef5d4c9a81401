"""Access tokens: genuine ones say who, everything else is a `TokenError`."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toque.callbacks import token
from toque.callbacks.token import KEY_BYTES, MAX_TOKEN_CHARACTERS, TokenClaims, TokenError, mint, verify
from toque.errors import InputError

KEY, OTHER_KEY = b"k" * KEY_BYTES, b"o" * KEY_BYTES
NOW = datetime(2026, 3, 1, 12, 5, 7, 500_000, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
CLAIMS = TokenClaims("c0ffee00", 3)
TOKEN = mint(KEY, CLAIMS, LATER)


def test_a_token_says_who_and_of_which_secret() -> None:
    assert verify(KEY, TOKEN, NOW) == CLAIMS


def test_a_token_survives_shell_scripts() -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", TOKEN)
    assert len(TOKEN) < MAX_TOKEN_CHARACTERS


@given(st.binary(min_size=1, max_size=64), st.text(max_size=60), st.integers(0, 2**32 - 1))
def test_whatever_is_claimed_comes_back(key: bytes, client_id: str, version: int) -> None:
    claims = TokenClaims(client_id, version)
    assert verify(key, mint(key, claims, LATER), NOW) == claims


@pytest.mark.parametrize(
    ("now", "is_good"),
    [
        (LATER - timedelta(seconds=1), True),
        (LATER.replace(microsecond=0) - timedelta(microseconds=1), True),
        (LATER.replace(microsecond=0), False),  # whole seconds, to the safe side
        (LATER, False),
        (LATER + timedelta(days=365), False),
    ],
)
def test_a_token_expires(now: datetime, is_good: bool) -> None:
    if is_good:
        assert verify(KEY, TOKEN, now) == CLAIMS
    else:
        with pytest.raises(TokenError, match="expirado"):
            verify(KEY, TOKEN, now)


@pytest.mark.parametrize("place", range(len(TOKEN)))
def test_no_character_of_a_token_can_be_changed(place: int) -> None:
    alphabet = "ABCXYZabcxyz0189-_.+/= \n"
    for character in alphabet.replace(TOKEN[place], ""):
        for tampered in (
            TOKEN[:place] + character + TOKEN[place + 1 :],
            TOKEN[:place] + character + TOKEN[place:],
            TOKEN[:place] + TOKEN[place + 1 :],
        ):
            with pytest.raises(TokenError):
                verify(KEY, tampered, NOW)


@pytest.mark.parametrize("text", [f"{TOKEN}=", f"{TOKEN}A", f" {TOKEN}", f"{TOKEN}.", f"{TOKEN}\n", TOKEN.replace(".", "..")])
def test_one_token_has_one_spelling(text: str) -> None:
    with pytest.raises(TokenError):
        verify(KEY, text, NOW)


def test_another_servers_token_is_refused() -> None:
    with pytest.raises(TokenError, match="inválido"):
        verify(OTHER_KEY, TOKEN, NOW)


def test_a_genuine_token_of_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(token, "_FORMAT", 2)
        foreign = mint(KEY, CLAIMS, LATER)
    with pytest.raises(TokenError, match="inválido"):
        verify(KEY, foreign, NOW)


@given(st.one_of(st.text(), st.text(st.characters(codec="ascii")), st.from_regex(r"[A-Za-z0-9_-]{0,60}\.[A-Za-z0-9_-]{43}")))
@example("")
@example(".")
@example("\ud800")
@example("a" * 100_000)
@example("." * 512)
@example("=.=")
def test_any_other_text_is_a_token_error(text: str) -> None:
    with pytest.raises(TokenError):
        verify(KEY, text, NOW)


def test_a_token_error_is_the_callers_to_handle_and_says_nothing_of_the_token() -> None:
    with pytest.raises(InputError) as caught:
        verify(OTHER_KEY, TOKEN, NOW)
    assert str(caught.value) == "access_token inválido"
