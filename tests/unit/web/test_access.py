"""Who gets a token, and how often one may guess."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.support.clock import ManualClock

from toque.callbacks.callback import Client, Registry
from toque.callbacks.token import TokenClaims, mint
from toque.web import access as module
from toque.web.access import MAX_CHECKS, Access, AttemptLimiter, Busy, Refused, hash_secret, new_client_secret

SECRET = "segredo"
HASH = hash_secret(SECRET)
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
KEY = b"k" * 32


class Directory:
    """A registry that changes when a test says so."""

    def __init__(self, *clients: Client) -> None:
        self.clients = {client.client_id: client for client in clients}

    def __call__(self) -> Registry:
        return Registry(1, self.clients, (), {})

    def change(self, client_id: str, **changes: object) -> None:
        self.clients[client_id] = replace(self.clients[client_id], **changes)


def client(client_id: str = "ana") -> Client:
    return Client(client_id, client_id, HASH, 1, NOW)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def directory() -> Directory:
    return Directory(client(), client("bia"))


@pytest.fixture
def access(clock: ManualClock, directory: Directory) -> Iterator[Access]:
    made = Access(KEY, directory, clock, lifetime=timedelta(hours=1), failures=3, window=timedelta(minutes=1))
    yield made
    made.close()


async def refusal(access: Access, client_id: str = "ana", secret: str = "errado", address: str = "192.0.2.1") -> Refused:
    with pytest.raises(Refused) as caught:
        await access.grant(client_id, secret, address)
    return caught.value


# The limiter


def test_the_limiter_counts_within_its_window():
    limiter, second = AttemptLimiter(2, timedelta(seconds=10)), timedelta(seconds=1)
    for _ in range(2):
        assert limiter.wait_s("a", NOW) == 0
        limiter.begin("a", NOW)
    assert limiter.wait_s("a", NOW) == 10
    assert limiter.wait_s("a", NOW + 3.5 * second) == 7  # rounded up: never told too early
    assert limiter.wait_s("a", NOW + 9.99 * second) == 1
    assert limiter.wait_s("a", NOW + 10 * second) == 0
    assert limiter.wait_s("b", NOW) == 0


def test_a_new_window_begins_with_the_first_attempt_after_the_old_one():
    limiter, second = AttemptLimiter(1, timedelta(seconds=10)), timedelta(seconds=1)
    limiter.begin("a", NOW)
    limiter.begin("a", NOW + 15 * second)
    assert limiter.wait_s("a", NOW + 16 * second) == 9


def test_good_attempts_do_not_count_and_do_not_pardon_bad_ones():
    limiter = AttemptLimiter(2, timedelta(seconds=10))
    limiter.begin("a", NOW)
    for _ in range(5):
        assert limiter.wait_s("a", NOW) == 0
        limiter.begin("a", NOW)
        limiter.succeeded("a")
    limiter.begin("a", NOW)
    assert limiter.wait_s("a", NOW) == 10
    limiter.succeeded("unknown")


def test_the_limiter_forgets_whom_it_has_not_seen_for_longest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 3)
    limiter = AttemptLimiter(1, timedelta(seconds=10))
    for key in ("a", "b", "c", "a", "d"):
        limiter.begin(key, NOW)
    assert [key for key in "abcd" if limiter.wait_s(key, NOW)] == ["a", "c", "d"]


def test_what_an_attacker_makes_up_does_not_fill_the_memory(access: Access):
    asyncio.run(refusal(access, "x" * 60_000, address="y" * 60_000))
    (key,) = access._by_client._tries
    assert len(str(key)) < 200
    assert len(str(next(iter(access._by_address._tries)))) < 200


# Granting


async def test_the_right_secret_gets_a_token(access: Access):
    token = await access.grant("ana", SECRET, "192.0.2.1")
    assert access.admit(token).client_id == "ana"


async def test_failures_are_counted_by_client_and_address(access: Access, clock: ManualClock):
    for _ in range(3):
        assert (await refusal(access)).retry_after_s is None
    assert (await refusal(access, secret=SECRET)).retry_after_s == 60
    assert await access.grant("ana", SECRET, "192.0.2.2")  # from elsewhere
    assert await access.grant("bia", SECRET, "192.0.2.1")  # another client
    clock.advance(59.5)
    assert (await refusal(access, secret=SECRET)).retry_after_s == 1
    clock.advance(0.5)
    assert await access.grant("ana", SECRET, "192.0.2.1")


async def test_guessing_at_many_clients_is_limited_by_address(access: Access):
    for number in range(30):
        assert (await refusal(access, f"client-{number}")).retry_after_s is None
    assert (await refusal(access, "bia", SECRET)).retry_after_s == 60
    assert await access.grant("bia", SECRET, "192.0.2.2")


async def test_an_attempt_that_was_not_made_is_not_counted(access: Access, clock: ManualClock):
    for number in range(30):
        await refusal(access, f"client-{number}")
    clock.advance(30)
    for _ in range(5):
        await refusal(access, "bia", SECRET)
    clock.advance(30)
    assert await access.grant("bia", SECRET, "192.0.2.1")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::2%eth1"),
        ("x" * 70, "x" * 80),
    ],
)
async def test_addresses_of_one_origin_count_together(access: Access, one: str, other: str):
    for _ in range(3):
        await refusal(access, address=one)
    assert (await refusal(access, secret=SECRET, address=other)).retry_after_s == 60


async def test_addresses_of_two_origins_count_apart(access: Access):
    for _ in range(3):
        await refusal(access, address="2001:db8:0:1::1")
    assert await access.grant("ana", SECRET, "2001:db8:0:2::1")


async def test_a_disabled_client_is_told_as_if_the_secret_were_wrong(access: Access, directory: Directory):
    directory.change("ana", disabled_at=NOW)
    told = await refusal(access, secret=SECRET)
    assert (told.text, told.error) == ((await refusal(access, "bia")).text, "invalid_client")


async def test_a_hash_that_cannot_be_read_lets_nobody_in(access: Access, directory: Directory):
    directory.change("ana", secret_hash="lixo")
    await refusal(access, secret=SECRET)


def test_secrets_are_random_and_their_hashes_salted():
    assert len({new_client_secret() for _ in range(100)}) == 100
    assert len(new_client_secret()) == 43
    assert hash_secret("x") != hash_secret("x")
    assert hash_secret("x").startswith("$argon2id$")


# What a check costs, and whom


class Checks:
    """Stands in for argon2: says who asked, on which thread, and waits to be let go."""

    def __init__(self) -> None:
        self.hashes: list[str] = []
        self.threads: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.go = threading.Event()
        self.go.set()
        self.during: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def __call__(self, known_hash: str, secret: str) -> bool:
        with self._lock:
            self.hashes.append(known_hash)
            self.threads.add(threading.current_thread().name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.during()
        assert self.go.wait(10)
        with self._lock:
            self.at_once -= 1
        return secret == SECRET and known_hash == HASH

    async def begun(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.hashes) < count:
                await asyncio.sleep(0.001)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    made = Checks()
    monkeypatch.setattr(module, "_is_right", made)
    return made


async def test_an_unknown_client_costs_a_check_like_a_known_one(access: Access, checks: Checks):
    await refusal(access, "ana")
    await refusal(access, "nobody")
    assert checks.hashes == [HASH, module._NOBODY]

    def cost(known_hash: str) -> str:
        return known_hash.rpartition("$")[0].rpartition("$")[0]  # algorithm, version and parameters

    assert cost(HASH) == cost(module._NOBODY)


async def test_checks_run_off_the_loop_two_at_a_time(access: Access, checks: Checks):
    checks.go.clear()
    asked = [asyncio.create_task(access.grant("ana", SECRET, f"192.0.2.{number}")) for number in range(6)]
    await checks.begun(2)  # and the loop goes on meanwhile
    checks.go.set()
    assert all(await asyncio.gather(*asked))
    assert checks.most_at_once == 2
    assert all(name.startswith("toque-argon2") for name in checks.threads)


async def test_one_address_has_one_check_at_a_time(access: Access, checks: Checks):
    checks.go.clear()
    asked = [asyncio.create_task(access.grant("ana", SECRET, "192.0.2.1")) for _ in range(20)]
    await checks.begun(1)
    other = asyncio.create_task(access.grant("bia", SECRET, "192.0.2.2"))
    await checks.begun(2)  # somebody else is not behind them
    assert checks.hashes == [HASH, HASH]
    checks.go.set()
    assert all(await asyncio.gather(*asked, other))
    assert not access._turns


async def test_guesses_at_once_are_limited_like_guesses_one_by_one(access: Access, checks: Checks):
    told = await asyncio.gather(*(refusal(access) for _ in range(20)))
    assert sorted(refused.retry_after_s or 0 for refused in told) == [0] * 3 + [60] * 17
    assert len(checks.hashes) == 3


async def test_more_checks_than_can_be_done_are_put_off(access: Access, checks: Checks):
    checks.go.clear()
    asked = [asyncio.create_task(access.grant("ana", SECRET, f"10.0.{n // 256}.{n % 256}")) for n in range(MAX_CHECKS)]
    await checks.begun(2)
    with pytest.raises(Busy) as caught:
        await access.grant("bia", SECRET, "192.0.2.1")
    assert caught.value.retry_after_s > 0
    checks.go.set()
    await asyncio.gather(*asked)
    assert await access.grant("bia", SECRET, "192.0.2.1")


async def test_a_caller_who_leaves_holds_up_nobody(access: Access, checks: Checks):
    checks.go.clear()
    leaving = asyncio.create_task(access.grant("ana", "errado", "192.0.2.1"))
    waiting = asyncio.create_task(access.grant("ana", SECRET, "192.0.2.1"))
    await checks.begun(1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    checks.go.set()
    assert await waiting
    assert access._checks == 0
    assert access._by_address._tries["192.0.2.1"].count == 1  # who leaves does not get a guess for nothing


@pytest.mark.parametrize("change", ["rotate", "disable", "remove"])
async def test_what_changes_during_a_check_counts(access: Access, checks: Checks, directory: Directory, change: str):
    def happen() -> None:
        match change:
            case "rotate":
                directory.change("ana", secret_hash=hash_secret("novo"), secret_version=2)
            case "disable":
                directory.change("ana", disabled_at=NOW)
            case "remove":
                del directory.clients["ana"]

    checks.during = happen
    assert (await refusal(access, secret=SECRET)).error == "invalid_client"


async def test_a_client_that_appears_during_a_check_has_to_ask_again(access: Access, checks: Checks, directory: Directory):
    checks.during = lambda: directory.clients.setdefault("nova", client("nova"))
    await refusal(access, "nova", SECRET)
    assert await access.grant("nova", SECRET, "192.0.2.1")


# Tokens


async def test_a_token_ends_with_its_time_its_secret_or_its_client(access: Access, clock: ManualClock, directory: Directory):
    def told(token: str) -> tuple[str, str]:
        with pytest.raises(Refused) as caught:
            access.admit(token)
        return caught.value.error, caught.value.text

    token = await access.grant("ana", SECRET, "192.0.2.1")
    directory.change("ana", secret_version=2)
    assert told(token) == ("invalid_token", "access_token revogado")
    directory.change("ana", secret_version=1, disabled_at=NOW)
    assert told(token) == ("invalid_token", "access_token revogado")
    directory.change("ana", disabled_at=None)
    assert access.admit(token)
    clock.advance(3599)
    assert access.admit(token)
    clock.advance(1)
    assert told(token) == ("invalid_token", "access_token expirado")
    clock.set_wall(timedelta(hours=-1))
    del directory.clients["ana"]
    assert told(token) == ("invalid_token", "access_token revogado")
    assert told("") == ("invalid_request", "access_token ausente")
    assert told("lixo")[0] == "invalid_token"
    assert told(mint(b"x" * 32, TokenClaims("bia", 1), NOW + timedelta(hours=1)))[0] == "invalid_token"


async def test_a_closed_access_starts_no_check(access: Access):
    access.close()
    access.close()
    with pytest.raises(RuntimeError):
        await access.grant("ana", SECRET, "192.0.2.1")
