"""How the engine is reached, who may deliver, and what an operator is told: on real servers."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import nkeys
import pytest
import trustme
from tests.support.nats_servers import NatsServers, drop_streams
from tests.support.stored_calls import URL, ZONE, a_client, change, left, whole_call

from toque.callbacks.callback import Registered
from toque.callbacks.payload import PayloadWriter
from toque.calls.model import Status
from toque.errors import IllegalStep, SettingsError, StoreError
from toque.store import nats_lease, nats_link
from toque.store.nats import NatsStore
from toque.store.nats_link import Access

pytestmark = pytest.mark.nats


def opened(servers: NatsServers, prefix: str = "access", **access: object) -> NatsStore:
    return NatsStore(Access(servers.addresses, **access), PayloadWriter(ZONE), prefix=prefix)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with NatsServers(tmp_path_factory.mktemp("nats")) as servers:
        yield servers


# Getting in


async def test_users_nkeys_and_tls_get_in_and_others_do_not(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed.nk").write_bytes(seed)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    files = f'cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.pem"'
    users = f'users: [ {{ user: toque, password: "uma senha" }}, {{ nkey: {public} }} ]'
    with NatsServers(tmp_path, more=f"tls {{ {files} }}\nauthorization {{ {users} }}") as servers:
        ca_file = tmp_path / "ca.pem"
        for access in ({"user": "toque", "password": "uma senha"}, {"nkey_file": tmp_path / "seed.nk"}):
            store = opened(servers, is_tls=True, ca_file=ca_file, **access)
            await store.ping()
            await store.close()
        for access, error in (
            ({"user": "toque", "password": "falsa", "is_tls": True, "ca_file": ca_file}, SettingsError),
            ({"is_tls": True, "ca_file": ca_file}, SettingsError),
        ):
            store = opened(servers, **access)
            with pytest.raises(error, match="refuses these credentials") as told:
                await store.ping()
            assert "falsa" not in str(told.value)
            await store.close()


@pytest.mark.parametrize(
    ("option", "access"),
    [
        ("nats_ca_file", {"is_tls": True, "ca_file": Path("/nowhere")}),
        ("nats_certificate", {"is_tls": True, "certificate": Path("/nowhere")}),
        ("nats_nkey_file", {"nkey_file": Path("/nowhere")}),
        ("nats_credentials_file", {"credentials_file": Path("/nowhere")}),
    ],
)
async def test_a_file_that_cannot_be_read_is_named(server: NatsServers, option: str, access: dict[str, object]) -> None:
    store = opened(server, **access)
    with pytest.raises(SettingsError) as told:
        await store.ping()
    assert told.value.option == option
    await store.close()


async def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_link, "_OPEN_S", 0.3)
    store = NatsStore(Access(("127.0.0.1:1",)), PayloadWriter(ZONE))
    for _ in range(2):
        with pytest.raises(StoreError, match=r"nats://127\.0\.0\.1:1 cannot be reached"):
            await store.ping()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.ping()


async def test_a_server_that_is_too_old_is_refused(server: NatsServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_link, "_OLDEST", (99, 1))
    store = opened(server)
    with pytest.raises(SettingsError, match=r"nats-server 99\.1 or later is needed; .* is 2\.\d+$"):
        await store.ping()
    await store.close()


def test_without_its_client_the_engine_says_what_to_install() -> None:
    program = (
        "import sys, asyncio; sys.modules['nats'] = sys.modules['nats.aio.client'] = None\n"
        "from toque.settings import load_settings\nfrom toque.store.opening import open_store\n"
        "settings = load_settings(None, {'TOQUE_STORE': 'nats://127.0.0.1:1'}, {})\n"
        "asyncio.run(open_store(settings).ping())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=False)
    assert "the nats:// engine needs the extra toque[nats]: pip install 'toque[nats]'" in done.stderr.splitlines()[-1]


def test_the_client_is_loaded_by_those_only_who_use_it() -> None:
    program = "import sys, toque.store.opening; sys.exit('nats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


async def test_streams_that_are_others_are_left_alone(server: NatsServers) -> None:
    store = opened(server, "foreign")
    await store.ping()
    await store._link.answer("$JS.API.STREAM.DELETE.foreign_log")
    await store._link.answer("$JS.API.STREAM.CREATE.foreign_log", b'{"name":"foreign_log","subjects":["foreign.log.>"]}')
    await store.close()
    store = opened(server, "foreign")
    with pytest.raises(SettingsError, match="stream foreign_log is not toque's"):
        await store.ping()
    await store.close()
    await drop_streams(server, "foreign")


async def test_more_replicas_than_servers_is_the_operators_mistake(server: NatsServers) -> None:
    store = NatsStore(Access(server.addresses), PayloadWriter(ZONE), prefix="many", replicas=3)
    with pytest.raises(SettingsError, match="3 replicas cannot be kept"):
        await store.ping()
    await store.close()


# Secrets


async def test_secrets_are_sealed_anew_under_a_key_and_lost_without_it(server: NatsServers) -> None:
    def with_key(key: str | None) -> NatsStore:
        return NatsStore(Access(server.addresses), PayloadWriter(ZONE), prefix="sealed", secret_key=key)

    async def all_that_is_written(store: NatsStore) -> bytes:
        layout = store._layout
        messages = [*await layout.registry.all("$KV.sealed_registry.>"), *await layout.state.all("$KV.sealed_state.>")]
        return b"".join(message.data for message in messages)

    store = with_key(None)
    await store.add_client(a_client())
    registered = await store.register_callback("acme", URL, "user:senha", None, limit=1)
    assert isinstance(registered, Registered)
    token_key = await store.token_key()
    assert b"senha" in await all_that_is_written(store)
    await store.close()
    store = with_key("uma chave bem comprida")
    assert (await store.registry()).callbacks == {registered.callback.id: registered.callback}
    assert await store.token_key() == token_key
    written = await all_that_is_written(store)
    for secret in (b"senha", registered.callback.secrets[0].encode(), token_key.hex().encode()):
        assert secret not in written
    await store.close()
    for key in (None, "uma outra chave comprida"):
        store = with_key(key)
        with pytest.raises(SettingsError) as told:
            await store.ping()
        assert told.value.option == "secret_key"
        await store.close()
    await drop_streams(server, "sealed")


# Who delivers


async def test_one_claims_and_the_next_has_to_wait_for_the_end(server: NatsServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_lease, "_RENEW_EVERY_S", 0.05)
    first, second = opened(server, "claimed"), opened(server, "claimed")
    await first.claim()
    with pytest.raises(SettingsError, match="another toque server uses"):
        await second.claim()
    await first.close()
    await second.claim()
    await second.ping()
    await second.close()
    await drop_streams(server, "claimed")


async def test_a_holder_that_died_on_this_machine_is_not_waited_for(server: NatsServers) -> None:
    first, second = opened(server, "died"), opened(server, "died")
    first._lease._me.started = "0"  # as if another process had had our number before us
    await first.claim()
    async with asyncio.timeout(5):
        await second.claim()
    await second.close()
    await first.close()
    await drop_streams(server, "died")


async def test_whoever_lost_the_lease_writes_nothing_more(server: NatsServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_lease, "_RENEW_EVERY_S", 0.01)
    first, second = opened(server, "lost"), opened(server, "lost")
    first._lease._me.started = "0"
    await first.claim()
    await first.add_client(a_client())
    await first.register_callback("acme", URL, None, None, limit=1)
    await first.recover()
    offered = (await first.append(whole_call(), [])).deliveries
    await second.claim()
    assert len(await second.recover()) == 1
    while not first._lease._is_lost:
        await asyncio.sleep(0.01)
    for doing in (first.append([change(Status.BUSY, call="call-2")], []), first.settle(offered), first.ping()):
        with pytest.raises(StoreError, match="another toque server has taken over"):
            await doing
    (callback_id,) = await second.backlog_sizes()
    assert len(await second.backlog(callback_id)) == 4
    await first.close()
    await second.close()
    await drop_streams(server, "lost")


async def test_a_lease_that_is_not_confirmed_holds_for_so_long_and_no_longer(server: NatsServers) -> None:
    now_s = [0.0]
    store = opened(server, "unconfirmed")
    store._lease._clock_s = lambda: now_s[0]
    await store.claim()
    await store.ping()
    now_s[0] = nats_lease.LASTS_S + 0.1
    with pytest.raises(StoreError, match="has not confirmed"):
        await store.ping()
    assert await store._lease._take(store._lease._place)
    await store.ping()
    await store.close()
    await drop_streams(server, "unconfirmed")


async def test_what_this_process_has_in_hand_is_not_recovered(server: NatsServers) -> None:
    store = opened(server, "inhand")
    await store.add_client(a_client())
    await store.register_callback("acme", URL, None, None, limit=1)
    await store.append(whole_call(), [])
    with pytest.raises(IllegalStep):
        await store.recover()
    await store.close()
    await drop_streams(server, "inhand")


# While it runs


async def test_a_server_that_comes_back_is_used_again(tmp_path: Path) -> None:
    with NatsServers(tmp_path) as servers:
        store = opened(servers, reconnect_wait_s=0.05)
        await store.add_client(a_client())
        await store.register_callback("acme", URL, None, None, limit=1)
        await store.recover()
        offered = (await store.append(whole_call(), [])).deliveries
        servers.kill(0)
        settling = asyncio.ensure_future(store.settle(offered[:1], left(*offered[1:])))
        await asyncio.sleep(0)
        servers.start(0)
        await settling
        assert len(await store.backlog(offered[0].callback_id)) == 3
        await store.housekeep(keep=timedelta(days=1))
        await store.close()


def test_a_context_for_tls_checks_names() -> None:
    context = nats_link._tls(Access(("a:1",), is_tls=True))
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
