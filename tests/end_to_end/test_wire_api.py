"""The wire API as its customers meet it: every sentence of the contract, over real sockets."""

import asyncio
import base64
import re
import sqlite3
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
import pytest_asyncio
import trustme
from tests.support.api import FORM, PINS, SECRET, Api, Customer, members, serving
from tests.support.clock import ManualClock

import toque.server
import toque.store.sqlite
import toque.web.app
from toque.callbacks.token import TokenClaims, mint
from toque.errors import SettingsError
from toque.web.access import hash_secret
from toque.web.directcall import METHODS

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN, ADD, REMOVE, LIST = (method.path for method in METHODS)
MODULES = {method.path: method.module for method in METHODS}
WITH_TOKEN = (ADD, REMOVE, LIST)
URL = "https://crm.example.com/chamadas"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with serving(tmp_path_factory.mktemp("store") / "toque.db", max_callbacks=3) as api:
        yield api


@pytest.fixture
def api(running: Api) -> Api:
    """One server for all tests; each is two minutes after the one before, so that no counted failure reaches the next."""
    running.clock.advance(120)
    return running


@pytest_asyncio.fixture(loop_scope="module")
async def customer(api: Api) -> Customer:
    return await api.add_client(*PINS)


def basic(text: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


# Tokens are granted


async def test_a_token_is_granted_for_the_right_secret(customer: Customer):
    response = await customer.ask_token()
    told = members(response)
    assert response.status_code == 200
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", told.pop("access_token"))
    assert told == {
        "token_type": "Bearer",
        "expires_in": 3600,
        "api": "voz",
        "modulo": "request-token",
        "status": "ok",
        "codigo": "000",
        "msg": "token emitido",
    }


async def test_a_token_in_xml_has_the_root_oauth(customer: Customer):
    response = await customer.ask_token(format="xml")
    told = members(response)
    assert (told["root"], told["expires_in"], told["codigo"]) == ("oauth", "3600", "000")
    assert members(await customer.api.post(LIST, {"access_token": told["access_token"]}))["codigo"] == "000"


async def test_a_token_is_granted_to_basic_credentials(api: Api, customer: Customer):
    response = await api.post(TOKEN, {"grant_type": "client_credentials"}, headers=basic(f"{customer.client_id}:{SECRET}"))
    assert members(response)["access_token"]


async def test_a_token_is_granted_without_a_body_to_basic_credentials(api: Api, customer: Customer):
    response = await api.post(TOKEN, headers=basic(f"{customer.client_id}:{SECRET}"))
    assert members(response)["access_token"]


async def test_credentials_in_the_form_count_more_than_a_header_of_somebody_else(api: Api, customer: Customer):
    fields = {"client_id": customer.client_id, "client_secret": SECRET}
    assert members(await api.post(TOKEN, fields, headers=basic("other:wrong")))["access_token"]


@pytest.mark.parametrize("header", ["Basic", "Basic ???", "Basic " + base64.b64encode(b"\xff:\xff").decode()])
async def test_malformed_basic_credentials_are_a_parameter_error(api: Api, header: str):
    response = await api.post(TOKEN, {"client_id": "x"}, headers={"authorization": header})
    assert (response.status_code, members(response)["codigo"]) == (400, "001")


@pytest.mark.parametrize("missing", ["client_id", "client_secret"])
async def test_missing_credentials_are_named(api: Api, missing: str):
    fields = {"client_id": "x", "client_secret": "y"}
    del fields[missing]
    response = await api.post(TOKEN, fields)
    told = members(response)
    assert (response.status_code, told["codigo"], told["error"]) == (400, "001", "invalid_request")
    assert missing in told["msg"]
    assert told["error_description"] == told["msg"]


async def test_another_grant_type_is_refused(customer: Customer):
    response = await customer.ask_token(grant_type="password")
    told = members(response)
    assert (response.status_code, told["codigo"], told["error"]) == (400, "001", "unsupported_grant_type")


async def test_a_wrong_secret_and_an_unknown_client_are_told_alike(api: Api, customer: Customer):
    wrong = await api.post(TOKEN, {"client_id": customer.client_id, "client_secret": "wrong"})
    unknown = await api.post(TOKEN, {"client_id": "nobody", "client_secret": SECRET})
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.headers["www-authenticate"].startswith("Basic ")
    assert members(wrong) == members(unknown)
    assert members(wrong)["codigo"] == "006"
    assert members(wrong)["error"] == "invalid_client"


async def test_a_disabled_client_gets_no_token(api: Api, customer: Customer):
    await api.server.store.disable_client(customer.client_id, api.clock())
    await api.server.directory.refresh()
    assert (await customer.ask_token()).status_code == 401


# Attempts are limited


async def test_attempts_are_limited_by_client_and_address(api: Api, customer: Customer):
    other = await api.add_client()
    wrong = {"client_id": customer.client_id, "client_secret": "wrong"}
    for _ in range(5):
        assert (await api.post(TOKEN, wrong)).status_code == 401
    for form in ("json", "xml"):
        response = await customer.ask_token(format=form)  # the right secret does not help now
        told = members(response)
        assert (response.status_code, told["codigo"], told["error"]) == (429, "006", "invalid_client")
        assert 0 < int(response.headers["retry-after"]) <= 60
    assert (await other.ask_token()).status_code == 200
    api.clock.advance(int(response.headers["retry-after"]))
    assert (await customer.ask_token()).status_code == 200


async def test_a_burst_of_good_requests_is_not_refused(customer: Customer):
    answers = await asyncio.gather(*(customer.ask_token() for _ in range(12)))
    assert {answer.status_code for answer in answers} == {200}


async def test_a_burst_of_guesses_is_limited_like_guesses_one_by_one(api: Api, customer: Customer):
    wrong = {"client_id": customer.client_id, "client_secret": "wrong"}
    answers = await asyncio.gather(*(api.post(TOKEN, wrong) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [401] * 5 + [429] * 7


async def test_x_forwarded_for_of_a_stranger_does_not_count(api: Api, customer: Customer):
    wrong = {"client_id": customer.client_id, "client_secret": "wrong"}
    told = [
        (await api.post(TOKEN, wrong, headers={"x-forwarded-for": f"198.51.100.{number}"})).status_code for number in range(6)
    ]
    assert told == [401] * 5 + [429]


async def test_x_forwarded_for_of_a_trusted_proxy_counts(tmp_path: Path):
    async with serving(tmp_path / "toque.db", trusted_proxies=["127.0.0.0/8"], login_failures="1") as api:
        customer = await api.add_client()

        async def try_from(forwarded: str) -> int:
            wrong = {"client_id": customer.client_id, "client_secret": "wrong"}
            return (await api.post(TOKEN, wrong, headers={"x-forwarded-for": forwarded})).status_code

        assert [await try_from("198.51.100.1"), await try_from("198.51.100.1")] == [401, 429]
        assert [await try_from("198.51.100.2"), await try_from("198.51.100.2")] == [401, 429]
        # What the caller itself wrote before the proxy's entry is worth nothing.
        assert await try_from("203.0.113.9, 198.51.100.1") == 429
        # One IPv6 subscriber has a network of addresses, and ports are no addresses.
        assert [await try_from("2001:db8:0:1::1"), await try_from("2001:db8:0:1::2")] == [401, 429]
        assert [await try_from("198.51.100.3:1024"), await try_from("198.51.100.3:1025")] == [401, 429]


# Tokens are required


def tampered(token: str) -> str:
    return token[:-1] + ("A" if token[-1] != "A" else "B")


@pytest.mark.parametrize("form", ["json", "xml"])
@pytest.mark.parametrize("path", WITH_TOKEN)
async def test_a_missing_token_is_refused(api: Api, path: str, form: str):
    response = await api.post(path, {"url": URL, "code": "0" * 40, "format": form})
    told = members(response)
    assert (response.status_code, told["codigo"], told["modulo"]) == (401, "006", MODULES[path])
    assert told["error_description"] == told["msg"] == "access_token ausente"
    assert told["error"] == "invalid_request"
    assert told.get("root", "directcall") == "directcall"
    assert response.headers["www-authenticate"] == 'Bearer realm="toque"'


@pytest.mark.parametrize("form", ["json", "xml"])
@pytest.mark.parametrize("path", WITH_TOKEN)
async def test_a_bad_token_is_refused(api: Api, customer: Customer, path: str, form: str):
    good = members(await customer.ask_token())["access_token"]
    foreign = mint(b"another key" * 3, TokenClaims(customer.client_id, 1), api.clock())
    for bad in (tampered(good), good[::-1], good + "A", good.partition(".")[0], foreign, "x", "é" * 20, "A" * 5000, "."):
        response = await api.post(path, {"access_token": bad, "url": URL, "code": "0" * 40, "format": form})
        told = members(response)
        assert (response.status_code, told["codigo"], told["error"]) == (401, "006", "invalid_token")
        assert told["error_description"] == told["msg"]
        assert response.headers["www-authenticate"] == 'Bearer realm="toque", error="invalid_token"'


@pytest.mark.parametrize("path", WITH_TOKEN)
async def test_an_expired_token_is_refused(api: Api, customer: Customer, path: str):
    await customer.call(LIST)
    api.clock.advance(3598)
    assert (await customer.call(path)).status_code != 401
    api.clock.advance(2)
    told = members(await customer.call(path, format="xml"))
    assert (told["codigo"], told["error"], told["error_description"]) == ("006", "invalid_token", "access_token expirado")


@pytest.mark.parametrize("path", WITH_TOKEN)
@pytest.mark.parametrize("end", ["rotate", "disable", "remove"])
async def test_a_revoked_token_is_refused_at_once(api: Api, customer: Customer, end: str, path: str):
    assert (await customer.call(LIST)).status_code == 200
    store = api.server.store
    match end:
        case "rotate":
            await store.rotate_client(customer.client_id, hash_secret("another"))
        case "disable":
            await store.disable_client(customer.client_id, api.clock())
        case "remove":
            await store.remove_client(customer.client_id)
    await api.server.directory.refresh()
    told = members(await customer.call(path))
    assert (told["codigo"], told["error"], told["msg"]) == ("006", "invalid_token", "access_token revogado")


async def test_a_client_that_was_just_removed_registers_nothing(api: Api, customer: Customer):
    await customer.call(LIST)
    await api.server.store.remove_client(customer.client_id)  # and nobody has told the directory
    response = await customer.call(ADD, url=URL)
    assert (response.status_code, members(response)["codigo"]) == (401, "006")


async def test_what_a_command_revokes_is_refused_within_a_second(api: Api, customer: Customer):
    assert (await customer.call(LIST)).status_code == 200
    other = sqlite3.connect(api.server.settings.store)
    with other:
        other.execute("UPDATE clients SET secret_version = 2 WHERE client_id = ?", (customer.client_id,))
        other.execute("UPDATE meta SET value = value + 1 WHERE name = 'registry_version'")
    other.close()
    async with asyncio.timeout(1):
        while (await customer.call(LIST)).status_code == 200:
            await asyncio.sleep(0.02)


async def test_a_client_that_is_enabled_again_has_its_tokens_back(api: Api, customer: Customer):
    await customer.call(LIST)
    await api.server.store.disable_client(customer.client_id, api.clock())
    await api.server.store.disable_client(customer.client_id, None)
    await api.server.directory.refresh()
    assert (await customer.call(LIST)).status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
async def test_the_token_may_come_as_a_header(api: Api, customer: Customer, scheme: str):
    token = members(await customer.ask_token())["access_token"]
    headers = {"authorization": f"{scheme} {token}"}
    for response in (
        await api.http.get(LIST, headers=headers),
        await api.post(LIST, headers=headers),
        await api.post(ADD, {"url": URL}, headers=headers),
    ):
        assert members(response)["codigo"] == "000"


async def test_the_lifetime_of_tokens_is_a_setting(tmp_path: Path):
    async with serving(tmp_path / "toque.db", token_lifetime="10s") as api:
        customer = await api.add_client()
        told = members(await customer.ask_token())
        assert told["expires_in"] == 10
        assert (await customer.call(LIST)).status_code == 200
        api.clock.advance(10)
        assert (await customer.call(LIST)).status_code == 401


async def test_tokens_and_codes_survive_a_restart(tmp_path: Path):
    clock = ManualClock(datetime.now(UTC))
    async with serving(tmp_path / "toque.db", clock=clock) as api:
        before = await api.add_client()
        code = (await before.add(URL))["code"]
    async with serving(tmp_path / "toque.db", clock=clock) as api:
        after = Customer(api, before.client_id, token=before.token)
        assert [entry["code"] for entry in await after.listed()] == [code]
        assert (await after.add(URL))["code"] == code
        assert members(await after.call(REMOVE, code=code))["codigo"] == "000"
    async with serving(tmp_path / "toque.db", clock=clock) as api:
        told = members(await Customer(api, before.client_id, token=before.token).call(REMOVE, code=code))
        assert told["codigo"] == "010"


# URLs are registered


async def test_a_registration_answers_code_and_secret_once(customer: Customer):
    told = await customer.add(URL)
    assert re.fullmatch(r"[0-9a-f]{40}", told["code"])
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]+={0,2}", told["segredo"])
    assert told["modulo"] == "add-callback-status-chamada"
    again = await customer.add(URL)
    assert again["code"] == told["code"]
    assert "segredo" not in again


async def test_a_registration_in_xml(customer: Customer):
    told = members(await customer.call(ADD, url=URL, format="XML"))
    assert (told["root"], told["modulo"], told["codigo"]) == ("directcall", "add-callback-status-chamada", "000")
    assert len(told["code"]) == 40
    assert told["segredo"].startswith("whsec_")


async def test_the_same_url_in_another_spelling_is_the_same(customer: Customer):
    code = (await customer.add(URL))["code"]
    for spelling in ("HTTPS://CRM.example.com:443/chamadas", "https://user:pass@crm.example.com./chamadas"):
        assert (await customer.add(spelling))["code"] == code
    assert (await customer.add(URL + "?a=1"))["code"] != code


async def test_another_pin_is_another_registration(customer: Customer):
    codes = {(await customer.add(URL, **fields))["code"] for fields in ({}, {"pin": "central"}, {"pin": "ramal"})}
    assert len(codes) == 3
    assert {entry["pin"] for entry in await customer.listed()} == {None, "central", "ramal"}
    assert (await customer.add(URL, pin="ramal"))["code"] in codes


@pytest.mark.parametrize("pin", ["", "  "])
async def test_an_empty_pin_is_none(customer: Customer, pin: str):
    assert (await customer.add(URL, pin=pin))["code"] == (await customer.add(URL))["code"]


async def test_a_pin_must_be_the_clients_own(api: Api, customer: Customer):
    await api.add_client("alheio")
    for pin in ("alheio", "Central", "x" * 5000, "ramal1-0"):
        response = await customer.call(ADD, url=URL, pin=pin)
        told = members(response)
        assert (response.status_code, told["codigo"]) == (400, "001")
        assert "pin" in told["msg"]
    assert await customer.listed() == []


async def test_registering_again_updates_the_credentials(api: Api, customer: Customer):
    async def stored() -> str | None:
        (callback,) = api.server.directory.registry.callbacks_of(customer.client_id)
        return callback.credentials

    await customer.add("https://ana:primeira@crm.example.com/chamadas")
    assert await stored() == "ana:primeira"
    await customer.add("https://bia:segunda@crm.example.com/chamadas")
    assert await stored() == "bia:segunda"
    await customer.add(URL)
    assert await stored() is None


async def test_registering_again_brings_a_disabled_url_back(api: Api, customer: Customer):
    code = (await customer.add(URL))["code"]
    (callback,) = api.server.directory.registry.callbacks_of(customer.client_id)
    await api.server.store.disable_callback(callback.id, "410 Gone")
    await api.server.directory.refresh()
    assert [entry["saude"] for entry in await customer.listed()] == ["desativado"]
    assert (await customer.add(URL))["code"] == code
    assert [entry["saude"] for entry in await customer.listed()] == ["saudavel"]


async def test_after_a_removal_there_is_a_new_code_with_a_new_secret(customer: Customer):
    first = await customer.add(URL)
    assert members(await customer.call(REMOVE, code=first["code"]))["codigo"] == "000"
    second = await customer.add(URL)
    assert second["code"] != first["code"]
    assert second["segredo"] != first["segredo"]


async def test_two_clients_may_register_one_url(api: Api, customer: Customer):
    other = await api.add_client()
    assert (await customer.add(URL))["code"] != (await other.add(URL))["code"]


async def test_the_number_of_urls_is_limited(customer: Customer):
    codes = [(await customer.add(f"{URL}/{number}"))["code"] for number in range(3)]
    response = await customer.call(ADD, url=f"{URL}/4")
    told = members(response)
    assert (response.status_code, told["codigo"]) == (400, "001")
    assert "limite de 3" in told["msg"]
    assert (await customer.add(f"{URL}/2"))["code"] == codes[2]  # one more of these is none more
    await customer.call(REMOVE, code=codes[0])
    await customer.add(f"{URL}/4")


async def test_at_most_a_hundred_urls_unless_the_operator_says_otherwise(tmp_path: Path):
    async with serving(tmp_path / "toque.db") as api:
        customer = await api.add_client()
        for number in range(100):
            await customer.add(f"{URL}/{number}")
        assert "limite de 100" in members(await customer.call(ADD, url=f"{URL}/100"))["msg"]


PRIVATE = (
    "http://127.0.0.1/",
    "http://10.1.2.3/",
    "http://172.16.0.1/",
    "http://192.168.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/",
    "http://0.0.0.0/",
    "http://[::1]/",
    "http://[::]/",
    "http://[fe80::1]/",
    "http://[fd00:ec2::254]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[0:0:0:0:0:ffff:a9fe:a9fe]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://a.localhost/",
    "http://127.0.0.1./",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://0x7f.0.0.1/",
    "http://１２７.0.0.1/",
    "http://127。0。0。1/",
    "http://ⓛocalhost/",
    "http://user:pass@127.0.0.1/",
)
MALFORMED = (
    "crm.example.com/chamadas",
    "//crm.example.com/chamadas",
    "/chamadas",
    "ftp://crm.example.com/",
    "javascript:alert(1)",
    "file:///etc/passwd",
    "http:///chamadas",
    "http://",
    "https://crm.example.com/#parte",
    "https://crm.example.com/#",
    "https://crm.example.com:0/",
    "https://crm.example.com:65536/",
    "https://crm.example.com:porta/",
    "https://crm.example.com/a b",
    "https://crm.example.com/\r\nHost: x",
    "https://crm.example.com/\x00",
    "https://crm.example.com\\@evil.example/",
    "https://crm.example.com/%zz",
    "https://crm..example.com/",
    "https://-.example.com/",
    "https://[::1/",
    "https://crm.example.com/" + "a" * 2048,
    "https://crm.example.com/" + "é" * 400,
)


@pytest.mark.parametrize("url", ["", *PRIVATE, *MALFORMED])
async def test_a_url_that_cannot_be_posted_to_is_refused(customer: Customer, url: str):
    response = await customer.call(ADD, url=url)
    told = members(response)
    assert (response.status_code, told["codigo"], told["modulo"]) == (400, "001", "add-callback-status-chamada")
    assert "url" in told["msg"]
    if url in PRIVATE and "127.1" not in url:
        assert "públic" in told["msg"] or "numérico" in told["msg"]


async def test_a_url_is_required(customer: Customer):
    told = members(await customer.call(ADD))
    assert told["msg"] == "parâmetro obrigatório ausente: url"


@pytest.mark.parametrize(
    "url",
    [
        "http://crm.example.com",
        "https://nao-resolve-ainda.example.com:8443/a?b=c&d=e%20f",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]/",
        "https://münchen.example/ä",
        "https://crm.example.com/" + "a" * (2048 - 24),
    ],
)
async def test_a_url_that_can_be_posted_to_is_taken(customer: Customer, url: str):
    await customer.add(url)


async def test_a_network_that_the_operator_allows_is_taken(tmp_path: Path):
    async with serving(tmp_path / "toque.db", allow_networks=["10.20.0.0/16"]) as api:
        customer = await api.add_client()
        await customer.add("http://10.20.1.1/")
        assert (await customer.call(ADD, url="http://10.21.1.1/")).status_code == 400


@pytest.mark.parametrize("form", ["json", "xml"])
async def test_credentials_are_in_no_answer(api: Api, customer: Customer, form: str):
    token = members(await customer.ask_token())["access_token"]
    answers = [
        await api.post(path, {"access_token": token, "url": url, "format": form})
        for url in (
            "https://ana:s3nh4%2Bsecreta@crm.example.com/chamadas",
            "https://ch4ve-sozinha@crm.example.com/outra",
            "https://ana:s3nh4+secreta@127.0.0.1/",
            "https://ana:s3nh4+secreta@crm.example.com/#f",
            "ftp://ana:s3nh4+secreta@crm.example.com/",
            "https://ana:s3nh4+secreta@crm.example.com:99999/",
        )
        for path in (ADD, LIST)
    ]
    assert {answer.status_code for answer in answers} == {200, 400}
    for answer in answers:
        assert "s3nh4" not in answer.text
        assert "ch4ve" not in answer.text


# URLs are removed


async def test_a_code_is_removed_once(customer: Customer):
    code = (await customer.add(URL))["code"]
    told = members(await customer.call(REMOVE, code=code))
    assert (told["codigo"], told["modulo"], told["msg"]) == ("000", "remove-callback-status-chamada", "URL removida")
    assert await customer.listed() == []
    response = await customer.call(REMOVE, code=code)
    assert (response.status_code, members(response)["codigo"]) == (404, "010")


async def test_an_unknown_code_is_told(api: Api, customer: Customer):
    other = await api.add_client()
    foreign = (await other.add(URL))["code"]
    for code in ("0" * 40, foreign, foreign.upper(), "'; DROP TABLE callbacks; --", "ção\x00"):
        for form in ("json", "xml"):
            response = await customer.call(REMOVE, code=code, format=form)
            told = members(response)
            assert (response.status_code, told["codigo"]) == (404, "009")
            assert f'"{code}"'.replace("\x00", "\ufffd" if form == "xml" else "\x00") in told["msg"]
    assert [entry["code"] for entry in await other.listed()] == [foreign]


async def test_a_removed_code_of_another_client_is_unknown(api: Api, customer: Customer):
    other = await api.add_client()
    code = (await other.add(URL))["code"]
    await other.call(REMOVE, code=code)
    assert members(await customer.call(REMOVE, code=code))["codigo"] == "009"


async def test_a_long_code_is_not_repeated_whole(customer: Customer):
    response = await customer.call(REMOVE, code="x" * 60_000)
    assert (response.status_code, members(response)["codigo"]) == (404, "009")
    assert len(response.content) < 1000


@pytest.mark.parametrize("fields", [{}, {"code": ""}, {"code": " "}])
async def test_a_code_is_required(customer: Customer, fields: dict[str, str]):
    response = await customer.call(REMOVE, **fields)
    told = members(response)
    assert (response.status_code, told["codigo"]) == (400, "001")
    assert told["msg"] == "parâmetro obrigatório ausente: code"


# URLs are listed


async def test_the_list_has_what_was_registered(api: Api, customer: Customer):
    assert await customer.listed() == []
    first = await customer.add("https://ana:senha@crm.example.com/chamadas?a=1", pin="central")
    second = await customer.add("http://outra.example.com")
    callbacks = api.server.directory.registry.callbacks_of(customer.client_id)
    criado, criado_2 = (c.created_at.astimezone(ZoneInfo("America/Sao_Paulo")).strftime("%Y-%m-%d %H:%M:%S") for c in callbacks)
    shown = "https://ana:***@crm.example.com/chamadas?a=1"
    assert await customer.listed() == [
        {"code": first["code"], "url": shown, "pin": "central", "criado": criado, "saude": "saudavel"},
        {"code": second["code"], "url": "http://outra.example.com/", "pin": None, "criado": criado_2, "saude": "saudavel"},
    ]
    told = members(await customer.call(LIST))
    assert (told["total"], told["msg"], told["modulo"]) == (2, "2 URLs registradas", "list-callback-status-chamada")


async def test_the_list_in_xml_has_an_item_per_entry(customer: Customer):
    await customer.add(URL)
    await customer.add(URL, pin="ramal")
    told = members(await customer.call(LIST, format="xml"))
    assert (told["root"], told["total"]) == ("directcall", "2")
    assert [entry["pin"] for entry in told["data"]] == [None, "ramal"]
    assert {entry["url"] for entry in told["data"]} == {URL}


async def test_the_list_over_get(api: Api, customer: Customer):
    await customer.add(URL)
    query = {"access_token": customer.token, "format": "json"}
    assert members(await api.http.get(LIST, params=query)) == members(await customer.call(LIST))
    assert members(await api.http.get(LIST, params={**query, "format": "xml"}))["root"] == "directcall"


async def test_everybody_sees_only_their_own(api: Api, customer: Customer):
    await customer.add(URL)
    assert await (await api.add_client()).listed() == []


# Common to every method


@pytest.mark.parametrize("field", ["format", "formato"])
@pytest.mark.parametrize(
    ("asked", "kind"),
    [("json", "json"), ("JSON", "json"), ("Json", "json"), ("", "json"), ("xml", "xml"), ("XML", "xml"), (" xMl ", "xml")],
)
async def test_the_format_is_asked_for_in_any_letter_case(customer: Customer, field: str, asked: str, kind: str):
    response = await customer.call(LIST, **{field: asked})
    assert response.status_code == 200
    assert response.headers["content-type"] == f"application/{kind}; charset=utf-8"
    members(response)


@pytest.mark.parametrize("path", MODULES)
@pytest.mark.parametrize("field", ["format", "formato"])
async def test_an_unknown_format_is_a_parameter_error(api: Api, path: str, field: str):
    response = await api.post(path, {field: "yaml"})
    told = members(response)
    assert (response.status_code, told["codigo"], told["modulo"]) == (400, "001", MODULES[path])
    assert told["msg"] == "format deve ser json ou xml"


async def test_unknown_fields_are_ignored(customer: Customer):
    told = members(await customer.call(LIST, nome="x", **{"": "y", "data[]": "z"}))
    assert told["codigo"] == "000"


async def test_fields_may_come_in_the_query_as_well(api: Api, customer: Customer):
    await customer.call(LIST)
    response = await api.post(f"{ADD}?access_token={customer.token}&format=xml", {"url": URL})
    assert members(response)["root"] == "directcall"


async def refused(api: Api, path: str, body: bytes, content_type: str = FORM, *, query: str = "") -> tuple[str, str]:
    """The format in which a request was refused as wrong, and why."""
    response = await api.post_raw(path + query, body, content_type)
    told = members(response)
    assert (response.status_code, told["codigo"], told["modulo"]) == (400, "001", MODULES[path])
    return ("xml" if "root" in told else "json"), told["msg"]


@pytest.mark.parametrize("path", MODULES)
async def test_a_repeated_field_is_refused(api: Api, path: str):
    assert await refused(api, path, b"code=1&code=2&format=xml") == ("xml", "campo repetido: 'code'")
    assert await refused(api, path, b"code=1", query="?code=1") == ("json", "campo repetido: 'code'")
    assert await refused(api, path, b"format=xml&format=json") == ("xml", "campo repetido: 'format'")


@pytest.mark.parametrize("bad", [b"%ff", b"%C3%28", b"%ED%A0%80", b"S\xe3o Paulo", b"\xff\xfe"])
async def test_bad_encoding_is_refused_in_the_asked_format(api: Api, bad: bytes):
    why = "os campos não estão codificados em UTF-8"
    for path in MODULES:
        assert await refused(api, path, b"url=" + bad) == ("json", why)
        assert await refused(api, path, b"url=" + bad + b"&format=xml") == ("xml", why)
        assert await refused(api, path, b"FORMAT=json&formato=XML&url=" + bad) == ("xml", why)
        assert await refused(api, path, b"url=" + bad, query="?format=xml") == ("xml", why)


@pytest.mark.parametrize("charset", ["latin-1", "ISO-8859-1", '"windows-1252"', "utf-16"])
async def test_another_charset_is_refused(api: Api, charset: str):
    kind = f"{FORM}; charset={charset}"
    assert await refused(api, TOKEN, b"a=b&format=xml", kind) == ("xml", "charset não suportado: use UTF-8")


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "US-ASCII"])
async def test_utf8_may_be_named(api: Api, customer: Customer, charset: str):
    await customer.call(LIST)
    response = await api.post_raw(LIST, f"access_token={customer.token}".encode(), f"{FORM};charset={charset}")
    assert response.status_code == 200


@pytest.mark.parametrize("kind", ["application/json", "text/xml", "text/plain", "x", "a" * 3000])
async def test_another_content_type_is_refused(api: Api, kind: str):
    form, why = await refused(api, ADD, b'{"format": "xml"}', kind)
    assert form == "json"
    assert "Content-Type" in why


async def test_a_form_without_content_type_is_read(api: Api, customer: Customer):
    await customer.call(LIST)
    response = await api.http.post(LIST, content=f"access_token={customer.token}".encode())
    assert members(response)["codigo"] == "000"


async def test_too_many_fields_are_refused(api: Api):
    body = b"&".join(b"f%d=1" % number for number in range(51)) + b"&format=xml"
    assert await refused(api, ADD, body) == ("xml", "campos demais: o máximo é 50")


def part(name: str, value: str | bytes, *more: str) -> bytes:
    head = "\r\n".join([f'Content-Disposition: form-data; name="{name}"', *more])
    content = value.encode() if isinstance(value, str) else value
    return b"--limite\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


MULTIPART = "multipart/form-data; boundary=limite"


async def test_multipart_is_read(api: Api, customer: Customer):
    files = {"client_id": (None, customer.client_id), "client_secret": (None, SECRET), "format": (None, "XML")}
    told = members(await api.http.post(TOKEN, files=files))
    assert told["root"] == "oauth"
    fields = {"access_token": told["access_token"], "url": "https://crm.example.com/ção?a=1&b=+"}
    response = await api.post_raw(ADD, b"".join(part(*item) for item in fields.items()) + b"--limite--\r\n", MULTIPART)
    assert members(response)["codigo"] == "000"
    assert [entry["url"] for entry in await Customer(api, "", token=fields["access_token"]).listed()] == [
        "https://crm.example.com/%C3%A7%C3%A3o?a=1&b=+"
    ]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (part("code", "1") + part("code", "2") + b"--limite--", "campo repetido: 'code'"),
        (part("code", b"\xff") + b"--limite--", "os campos não estão codificados em UTF-8"),
        (part("code", "x", "Content-Type: text/plain; charset=latin1") + b"--limite--", "charset não suportado: use UTF-8"),
        (part('code"; filename="a.txt', "x") + b"--limite--", "o campo 'code' não pode ser um arquivo"),
        (part("code", "1"), "multipart/form-data malformado"),
        (b"lixo", "multipart/form-data malformado"),
        (b"--limite\r\n\r\nsem nome\r\n--limite--", "multipart/form-data malformado"),
        (b"".join(part(f"f{n}", "1") for n in range(51)) + b"--limite--", "campos demais: o máximo é 50"),
    ],
)
async def test_bad_multipart_is_refused(api: Api, body: bytes, why: str):
    assert await refused(api, ADD, body, MULTIPART) == ("json", why)
    assert await refused(api, ADD, part("format", "xml") + body, MULTIPART) == ("xml", why)


async def test_multipart_without_boundary_is_refused(api: Api):
    assert await refused(api, ADD, b"x", "multipart/form-data") == ("json", "multipart/form-data sem boundary")


async def test_a_body_of_64_kib_is_read(api: Api):
    response = await api.post_raw(TOKEN, b"client_id=x&client_secret=" + b"a" * (65_536 - 26))
    assert (response.status_code, members(response)["codigo"]) == (401, "006")


async def in_pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 8192 + 1):
        yield b"a" * 8192


@pytest.mark.parametrize("path", MODULES)
@pytest.mark.parametrize("query", ["", "?format=XML", "?formato=xml", "?format=json"])
async def test_a_larger_body_is_too_large(api: Api, path: str, query: str):
    for body in (b"a" * 65_537, in_pieces(100_000)):  # announced by Content-Length, and chunked
        response = await api.http.post(path + query, content=body, headers={"content-type": FORM})
        told = members(response)
        assert (response.status_code, told["codigo"], told["modulo"]) == (413, "001", MODULES[path])
        assert ("root" in told) == ("xml" in query.lower())
    assert (await api.post(LIST)).status_code == 401  # the connection is in order


async def test_a_query_that_is_as_large_is_refused(api: Api):
    answer = await api.exchange(request("GET", f"{LIST}?format=xml&x={'a' * 65_536}", b"", "Connection: close"))
    assert re.match(rb"HTTP/1.1 4(00|31) ", answer)


ALLOWED = {TOKEN: "OPTIONS, POST", ADD: "OPTIONS, POST", REMOVE: "OPTIONS, POST", LIST: "GET, HEAD, OPTIONS, POST"}


@pytest.mark.parametrize("path", MODULES)
@pytest.mark.parametrize("verb", ["GET", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "QUERY"])
async def test_wrong_methods_are_told_in_the_asked_format(api: Api, path: str, verb: str):
    if verb == "GET" and path == LIST:
        return
    for form in ("json", "xml"):
        response = await api.http.request(verb, f"{path}?format={form}")
        told = members(response)
        assert (response.status_code, told["codigo"], told["modulo"]) == (405, "001", MODULES[path])
        assert response.headers["allow"] == ALLOWED[path]
        assert "root" in told or form == "json"


async def test_a_wrong_methods_body_says_the_format_too(api: Api):
    response = await api.http.request("PUT", ADD, data={"format": "xml"})
    assert (response.status_code, members(response)["root"]) == (405, "directcall")


@pytest.mark.parametrize("path", [*MODULES, "/health", "/voz/openapi.json"])
async def test_options_tell_the_methods(api: Api, path: str):
    response = await api.http.options(path)
    assert response.status_code == 204
    assert response.content == b""
    assert response.headers["allow"] == ALLOWED.get(path, "GET, HEAD, OPTIONS")
    assert response.headers["cache-control"] == "no-store"


async def test_head_is_get_without_a_body(api: Api, customer: Customer):
    await customer.call(LIST)
    for path in (f"{LIST}?access_token={customer.token}", LIST, "/health", "/voz/openapi.json", "/nada"):
        head, get = await api.http.head(path), await api.http.get(path)
        assert head.status_code == get.status_code
        assert head.content == b""
        for name in ("content-type", "content-length", "cache-control"):
            assert head.headers[name] == get.headers[name]
    assert (await api.http.head(ADD)).status_code == 405


@pytest.mark.parametrize("path", ["/", "/nada", "/voz", "/voz/add-callback/x", "/voz/%61%00", "/../etc/passwd", "//", "/%ff"])
async def test_an_unknown_address(api: Api, path: str):
    for form in ("json", "xml"):
        for verb in ("GET", "POST", "DELETE"):
            response = await api.http.request(verb, f"{path}?format={form}")
            told = members(response)
            assert (response.status_code, told["codigo"], told["modulo"]) == (404, "001", "desconhecido")
            assert "root" in told or form == "json"


async def test_a_final_slash_makes_no_other_address(api: Api):
    assert (await api.post(f"{LIST}/")).status_code == 401


async def test_answers_are_not_sniffed(api: Api):
    for path in (LIST, "/nada", "/health"):
        assert (await api.http.get(path)).headers["x-content-type-options"] == "nosniff"


# HTTP/1.1


def request(verb: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{verb} {path} HTTP/1.1", "Host: toque", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_pipelined_requests_are_answered_in_order(api: Api):
    answer = await api.exchange(
        request("POST", TOKEN, b"client_id=x&client_secret=y") + request("GET", "/health") + request("POST", ADD, b"format=xml")
    )
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"401", b"200", b"401"]
    assert answer.index(b"request-token") < answer.index(b'"store"') < answer.index(b"<directcall>")


async def test_expect_100_continue_is_honoured(api: Api):
    head = request("POST", LIST, b"", "Expect: 100-continue").replace(b"Content-Length: 0", b"Content-Length: 10")
    assert await api.exchange(head) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert re.findall(rb"HTTP/1.1 (\d+)", await api.exchange(head, b"format=xml")) == [b"100", b"401"]


async def test_too_much_is_refused_before_it_is_asked_for(api: Api):
    head = request("POST", LIST, b"", "Expect: 100-continue").replace(b"Content-Length: 0", b"Content-Length: 70000")
    answer = await api.exchange(head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


async def test_a_request_that_is_broken_off_does_no_harm(api: Api, customer: Customer):
    assert await api.exchange(request("POST", ADD, b"url=x").replace(b"Content-Length: 5", b"Content-Length: 50")) == b""
    assert (await customer.call(LIST)).status_code == 200


@pytest.mark.parametrize("query", ["", "?format=xml"])
async def test_a_body_that_does_not_come_is_told(api: Api, query: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(toque.web.app, "BODY_TIMEOUT_S", 0.1)
    answer = await api.exchange(request("POST", ADD + query, b"url=x").replace(b"Content-Length: 5", b"Content-Length: 6"))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert (b"<codigo>001</codigo>" if query else b'"codigo": "001"') in answer


# TLS


async def test_the_api_over_tls(tmp_path: Path):
    authority = trustme.CA()
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued = authority.issue_cert("127.0.0.1")
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with serving(tmp_path / "toque.db", tls_certificate=str(certificate), tls_key=str(key)) as api:
        customer = await api.add_client()
        url = api.url.replace("http:", "https:")
        async with httpx.AsyncClient(base_url=url, trust_env=False, verify=trusting) as https:
            fields = {"client_id": customer.client_id, "client_secret": SECRET}
            response = await https.post(TOKEN, data=fields)
            assert members(response)["codigo"] == "000"
            _, writer = await asyncio.open_connection("127.0.0.1", api.server.http_port, ssl=trusting)
            assert writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
            writer.close()
            await writer.wait_closed()
        with pytest.raises(httpx.TransportError):
            await api.http.post(TOKEN, data=fields)  # in clear


async def test_a_key_that_is_not_the_certificates_is_told(tmp_path: Path):
    authority = trustme.CA()
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    authority.issue_cert("127.0.0.1").cert_chain_pems[0].write_to_path(certificate)
    authority.issue_cert("127.0.0.1").private_key_pem.write_to_path(key)
    with pytest.raises(SettingsError, match="tls_certificate"):
        async with serving(tmp_path / "toque.db", tls_certificate=str(certificate), tls_key=str(key)):
            pass


# What goes wrong on our side


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toque.store.sqlite, "_BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(toque.server, "_HEALTH_AGE_S", 0.0)


@pytest.mark.usefixtures("impatient")
async def test_a_store_that_cannot_write_is_told_and_survived(tmp_path: Path):
    async with serving(tmp_path / "toque.db") as api:
        customer = await api.add_client()
        code = (await customer.add(URL))["code"]
        blocker = sqlite3.connect(tmp_path / "toque.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        for path, fields in ((ADD, {"url": URL + "/2"}), (REMOVE, {"code": code})):
            for form in ("json", "xml"):
                response = await customer.call(path, **fields, format=form)
                told = members(response)
                assert (response.status_code, told["codigo"], told["modulo"]) == (503, "005", MODULES[path])
                assert "locked" not in response.text
        assert (await customer.ask_token()).status_code == 200  # what needs no writing goes on
        assert len(await customer.listed()) == 1
        health = await api.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failing")
        assert "locked" in health.json()["store"]
        blocker.execute("ROLLBACK")
        blocker.close()
        assert (await api.http.get("/health")).json()["status"] == "ok"
        assert members(await customer.call(REMOVE, code=code))["codigo"] == "000"


async def test_a_registration_is_told_even_if_it_cannot_be_read_again(
    api: Api, customer: Customer, monkeypatch: pytest.MonkeyPatch
):
    async def fail() -> Any:
        raise toque.store.sqlite.StoreError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(api.server.store, "registry", fail)
        told = await customer.add(URL)
    assert told["segredo"].startswith("whsec_")  # it would never be told again
    await api.server.directory.refresh()
    assert [entry["code"] for entry in await customer.listed()] == [told["code"]]


@pytest.mark.parametrize("form", ["json", "xml"])
async def test_a_bug_is_told_without_details(
    api: Api, customer: Customer, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    await customer.call(LIST)

    async def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("detalhe interno")

    monkeypatch.setattr(api.server.store, "remove_callback", fail)
    response = await customer.call(REMOVE, code="x", format=form)
    told = members(response)
    assert (response.status_code, told["codigo"], told["msg"]) == (500, "005", "erro interno")
    assert "detalhe" not in response.text
    assert "Traceback" not in response.text
    assert "detalhe interno" in capsys.readouterr().out  # whoever runs the server is told


async def test_a_bug_outside_of_the_methods_is_told_without_details(api: Api, monkeypatch: pytest.MonkeyPatch):
    def fail() -> bool:
        raise RuntimeError("detalhe interno")

    monkeypatch.setattr(api.server.intake, "is_full", fail)
    told = members(await api.http.get("/health?format=xml"))
    assert (told["codigo"], told["msg"], told["root"]) == ("005", "erro interno", "directcall")


# Health and the OpenAPI document


async def test_health(api: Api):
    response = await api.http.get("/health")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    told = response.json()
    assert told["status"] == told["store"] == told["intake"] == "ok"
    assert told["version"] == toque.__version__


async def test_a_closed_store_is_not_healthy(tmp_path: Path):
    async with serving(tmp_path / "toque.db") as api:
        customer = await api.add_client()
        await customer.call(LIST)
        await api.server.store.close()
        response = await api.http.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "failing")
        response = await customer.call(ADD, url=URL)
        assert (response.status_code, members(response)["codigo"]) == (503, "005")


async def test_the_openapi_document_tells_every_method_and_return_code(api: Api):
    response = await api.http.get("/voz/openapi.json")
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    document = response.json()
    for method in METHODS:
        for verb in method.http_methods:
            operation = document["paths"][method.path][verb.lower()]
            told = {
                (int(status), codigo)
                for status, answer in operation["responses"].items()
                for codigo in answer["content"]["application/json"]["schema"]["properties"]["codigo"]["enum"]
            }
            assert told >= set(method.problems) | {(200, "000"), (400, "001"), (413, "001"), (503, "005"), (500, "005")}
            assert all(answer["description"] for answer in operation["responses"].values())
