"""No secret, token or password, and no whole telephone number, in the log, in an answer that is not meant for it, or in a repr.

The server does all it can do, well and badly, and says all it can say about it.
"""

import base64
import io
import logging
import re
import sqlite3
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import structlog
from tests.support.api import SECRET, Api, Customer, members, serving

import toque.store.sqlite
from toque.callbacks.callback import Registered
from toque.callbacks.url import parse_url
from toque.settings import load_settings
from toque.sources.recording import read_recording, replay
from toque.store.sqlite import utc_now
from toque.telemetry import set_up_logs

PASSWORD = "s3nh4-da-url+/="
KEY_ALONE = "ch4ve-sem-senha"
GUESS = "palpite-errado"
STORE_KEY = "ch4ve-do-armazem-123"
HEP_KEY = "ch4ve-do-hep"
TOKEN, ADD, REMOVE, LIST = "/request_token", "/voz/add-callback", "/voz/remove-callback", "/voz/list-callback"
CALLER, CALLED = "554130600301", "5511977770001"  # of the recorded calls


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, at its most talkative. The tests' own HTTP client is not what is tested."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    noisy = [logging.getLogger(name) for name in ("httpx", "httpcore")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.WARNING)
    yield io.StringIO()
    root.handlers[:], root.level = handlers, level
    for logger, before in zip(noisy, levels, strict=True):
        logger.setLevel(before)
    logging.getLogger("uvicorn").setLevel(logging.NOTSET)
    structlog.reset_defaults()


def spellings(secret: str) -> set[str]:
    """How a secret may come out: as it is, escaped, or in an `Authorization` header."""
    header = base64.b64encode(f"ana:{secret}".encode()).decode()
    return {secret, quote(secret, safe=""), quote(secret), header, quote(header, safe=""), repr(secret)[1:-1]}


async def do_everything(api: Api, customer: Customer) -> tuple[list[httpx.Response], set[str]]:
    """Every method, well and badly; all answers but those that are meant to carry a secret, and the secrets that came up."""
    granted = members(await customer.ask_token())
    token = customer.token = granted["access_token"]
    added = await customer.add(f"http://ana:{quote(PASSWORD, safe='')}@127.0.0.1:9/status?chave=x")
    lone = await customer.add(f"https://{KEY_ALONE}@crm.example.com/")
    secrets = {token, added["segredo"], lone["segredo"], SECRET, PASSWORD, KEY_ALONE, GUESS, STORE_KEY, HEP_KEY}
    bearer, basic = {"authorization": f"Bearer {token}"}, base64.b64encode(f"{customer.client_id}:{GUESS}".encode()).decode()
    answers = []
    for form in ("json", "xml"):
        answers += [
            await customer.call(ADD, url=f"http://ana:{quote(PASSWORD, safe='')}@127.0.0.1:9/status?chave=x", format=form),
            await customer.call(ADD, url=f"http://ana:{PASSWORD}@10.0.0.1/", format=form),
            await customer.call(ADD, url=f"http://ana:{PASSWORD}@a b/", format=form),
            await customer.call(ADD, url=f"http://ana:{quote(PASSWORD)}@crm.example.com:99999/", format=form),
            await customer.call(ADD, url=f"ftp://ana:{PASSWORD}@crm.example.com/#x", format=form),
            await customer.call(ADD, url="https://crm.example.com/", pin="alheio", format=form),
            await customer.call(LIST, format=form),
            await customer.call(REMOVE, code="0" * 40, format=form),
            await customer.call(REMOVE, format=form),
            await api.http.get(LIST, params={"access_token": token, "format": form}),
            await api.http.get(LIST, params={"format": form}, headers=bearer),
            await api.http.get(f"{LIST}?access_token={token}&access_token={token}&format={form}"),
            await api.http.get(f"/nada?access_token={token}&format={form}"),
            await api.http.put(f"{ADD}?access_token={token}&format={form}"),
            await api.http.get("/health", headers=bearer),
            await api.http.get("/voz/openapi.json", headers=bearer),
            await api.post(TOKEN, {"client_id": customer.client_id, "client_secret": GUESS, "format": form}),
            await api.post(TOKEN, {"client_id": "ninguem", "client_secret": SECRET, "format": form}),
            await api.post(f"{TOKEN}?format={form}", headers={"authorization": f"Basic {basic}"}),
            await api.post(f"{TOKEN}?format={form}", headers={"authorization": f"Basic {basic[1:]}"}),
            await api.post(LIST, {"access_token": token[:-2], "format": form}),
            await api.post(LIST, {"access_token": token, "format": "yaml"}),
            await api.post_raw(f"{ADD}?format={form}", f"client_secret={SECRET}&access_token={token}&url=%ff".encode()),
            await api.post_raw(f"{ADD}?format={form}", f"access_token={token}&url={'x' * 70_000}".encode()),
            await api.post_raw(f"{ADD}?format={form}", f'{{"access_token": "{token}"}}'.encode(), "application/json"),
        ]
    return answers, secrets


async def fail_everything(api: Api, customer: Customer, monkeypatch: pytest.MonkeyPatch) -> list[httpx.Response]:
    """A store that is locked, and bugs."""
    url = f"https://ana:{quote(PASSWORD, safe='')}@crm.example.com/outra"
    blocker = sqlite3.connect(api.server.settings.store, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    answers = [await customer.call(ADD, url=url), await customer.call(REMOVE, code="x"), await api.http.get("/health")]
    blocker.execute("ROLLBACK")
    blocker.close()

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(api.server.store, "register_callback", fail)
        patch.setattr(api.server.store, "remove_callback", fail)
        answers += [await customer.call(ADD, url=url), await customer.call(REMOVE, code="x")]
    return answers


async def have_calls(api: Api) -> None:
    """Recorded calls, of which some are the customer's: their statuses go to a URL where nobody listens."""
    with as_file(files("toque") / "recordings/demo.pcap") as path:
        packets = read_recording(path)
    address = ("127.0.0.1", api.server.listeners[0].port)
    await replay(packets, address, speed=1000, clock=utc_now)


@pytest.mark.parametrize("form", ["json", "human"])
async def test_nothing_leaks(form: str, log: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(toque.store.sqlite, "_BUSY_TIMEOUT_S", 0.05)
    set_up_logs(form=form, level="debug", stream=log)
    monkeypatch.setenv("TOQUE_SECRET_KEY", STORE_KEY)
    options = {"allow_networks": ["127.0.0.0/8"], "secret_key": STORE_KEY, "attempt_timeout": "1s", "login_failures": "50"}
    async with serving(tmp_path / "toque.db", clock=utc_now, **options) as api:
        customer = await api.add_client("central")
        await api.add_lines(customer, "central", CALLER)
        answers, secrets = await do_everything(api, customer)
        answers += await fail_everything(api, customer, monkeypatch)
        await have_calls(api)
        await api.until(lambda: "call.unmatched" in log.getvalue() and "delivery.failed" in log.getvalue())
        described = describe(api, customer)
    logged = log.getvalue()
    told = "\n".join(f"{answer.headers} {answer.text}" for answer in answers)
    assert {answer.status_code for answer in answers} == {200, 400, 401, 404, 405, 413, 500, 503}
    for event in ("token.granted", "callback.registered", "api.store_failed", "api.failed", "delivery.failed", "server.stopped"):
        assert event in logged
    for spelling in set().union(*map(spellings, secrets)):
        assert spelling not in logged
        assert spelling not in told
        assert spelling not in described
    for number in (CALLER, CALLED):
        assert number not in logged
    assert f"{CALLED[:-4]}****" in logged


def describe(api: Api, customer: Customer) -> str:
    """What a traceback or a careless log line might show."""
    registry = api.server.directory.registry
    (first, second) = registry.callbacks_of(customer.client_id)
    url = parse_url(f"https://ana:{quote(PASSWORD, safe='')}@crm.example.com/caminho")
    return "\n".join(
        repr(thing)
        for thing in (
            api.server.settings, registry, registry.clients, first, second, Registered(first, True), url, url.masked, customer.client_id,
        )
    )  # fmt: skip


async def test_whole_numbers_are_logged_when_the_operator_says_so(log: io.StringIO, tmp_path: Path):
    set_up_logs(form="json", level="info", stream=log)
    async with serving(tmp_path / "toque.db", clock=utc_now, log_numbers="true") as api:
        await have_calls(api)
        await api.until(lambda: CALLED in log.getvalue())


def test_settings_show_no_secret_in_a_repr_or_an_error(tmp_path: Path):
    config = tmp_path / "toque.toml"
    config.write_text(f'secret_key = "{STORE_KEY}"\n[[sources]]\nkind = "hep"\nkey = "{HEP_KEY}"\n')
    shown = repr(load_settings(config, {}, {}))
    assert STORE_KEY not in shown
    assert HEP_KEY not in shown
    shown = repr(load_settings(None, {"TOQUE_HEP_KEY": HEP_KEY, "TOQUE_SECRET_KEY": STORE_KEY}, {}))
    assert not re.search(f"{STORE_KEY}|{HEP_KEY}", shown)
