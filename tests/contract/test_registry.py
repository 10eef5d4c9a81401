"""The store's contract: clients, lines and callbacks."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from tests.contract.conftest import Place
from tests.support.stored_calls import BEGINNING, URL, a_client, change, in_progress, left, lines, seconds, whole_call

from toque.callbacks.callback import Callback, IntakeCredential, KeptHealth, Registered, TooMany
from toque.callbacks.signature import key_of
from toque.calls.model import Status
from toque.errors import InputError, StoreError
from toque.store.contract import Removal, Store

UNKNOWN_CODE = "0" * 40


async def register(
    store: Store,
    url: str = URL,
    *,
    client: str = "acme",
    credentials: str | None = None,
    pin: str | None = None,
    limit: int = 100,
) -> Callback:
    registered = await store.register_callback(client, url, credentials, pin, limit=limit)
    assert isinstance(registered, Registered)
    return registered.callback


# Clients


async def test_a_client_is_kept_as_it_was_added(store: Store, place: Place) -> None:
    store = await place.reopen()
    assert (await store.registry()).clients == {"acme": a_client("acme"), "outra": a_client("outra")}


@pytest.mark.parametrize(("client_id", "name"), [("acme", "another name"), ("another", "acme ltda")])
async def test_a_client_id_and_a_name_have_one_owner(store: Store, client_id: str, name: str) -> None:
    version = await store.registry_version()
    twin = a_client(client_id)
    with pytest.raises(InputError, match="already"):
        await store.add_client(type(twin)(client_id, name, twin.secret_hash, 1, BEGINNING))
    assert set((await store.registry()).clients) == {"acme", "outra"}
    assert await store.registry_version() == version


async def test_another_secret_is_another_version(store: Store) -> None:
    assert await store.rotate_client("acme", "another hash")
    client = (await store.registry()).clients["acme"]
    assert (client.secret_hash, client.secret_version) == ("another hash", 2)


async def test_a_client_is_disabled_and_enabled_again(store: Store) -> None:
    await store.add_lines(lines("acme", "1001", "554130600300"))
    assert await store.disable_client("acme", seconds(7))
    registry = await store.registry()
    assert registry.clients["acme"].disabled_at == seconds(7)
    assert list(registry.active_lines()) == []
    assert await store.disable_client("acme", None)
    registry = await store.registry()
    assert registry.clients["acme"].disabled_at is None
    assert len(list(registry.active_lines())) == 1


async def test_what_is_done_to_an_unknown_client_says_so(store: Store) -> None:
    version = await store.registry_version()
    assert not await store.rotate_client("nobody", "hash")
    assert not await store.disable_client("nobody", BEGINNING)
    assert not await store.disable_client("nobody", None)
    assert not await store.remove_client("nobody")
    assert await store.registry_version() == version


async def test_a_removed_client_leaves_nothing_behind(store: Store, place: Place) -> None:
    for client in ("acme", "outra"):
        await store.add_lines(lines(client, "1001", {"acme": "554130600300", "outra": "554130600999"}[client]))
    mine, theirs = await register(store), await register(store, client="outra")
    appended = await store.append(whole_call() + whole_call("call-2", client="outra"), [])
    await store.settle([], left(*appended.deliveries))

    assert await store.remove_client("acme")

    for opened in (place.open, place.reopen):
        store = await opened()
        await place.agree()
        registry = await store.registry()
        assert set(registry.clients) == {"outra"}
        assert {line.client_id for line in registry.lines} == {"outra"}
        assert set(registry.callbacks) == {theirs.id}
        assert await store.backlog(mine.id) == []
        assert await store.backlog_sizes() == {theirs.id: 4}
    assert await store.recover() == [theirs.id]
    assert await store.remove_callback("acme", mine.code) is Removal.UNKNOWN
    assert await store.add_lines(lines("outra", "1001", "554130600300")) == 1
    assert not await store.remove_client("acme")


async def test_a_removed_clients_calls_tell_nothing_more(store: Store) -> None:
    mine, theirs = await register(store), await register(store, client="outra")
    await store.append([change(Status.INITIATED), change(Status.INITIATED, client="outra")], [in_progress()])
    await store.remove_client("acme")
    appended = await store.append([change(Status.BUSY, 1), change(Status.BUSY, 1, client="outra")], [])
    assert appended.events == 1
    assert [d.callback_id for d in appended.deliveries] == [theirs.id]
    assert await store.backlog(mine.id) == []


# Lines


async def test_lines_are_kept_as_they_were_added(store: Store, place: Place) -> None:
    mine = lines("acme", "1001", "554130600300", "5541307*", "~20[0-9]{2}", "auth1")
    assert await store.add_lines(mine) == 4
    assert await store.add_lines(lines("outra", "São João", "3001")) == 1
    registry = await (await place.reopen()).registry()
    assert registry.lines == (*mine, *lines("outra", "São João", "3001"))
    assert registry.owns_pin("outra", "São João")
    assert not registry.owns_pin("acme", "São João")


async def test_a_line_that_is_there_already_is_not_counted(store: Store) -> None:
    mine = lines("acme", "1001", "554130600300", "5541307*")
    await store.add_lines(mine[:1])
    version = await store.registry_version()
    assert await store.add_lines(mine[:1]) == 0
    assert await store.registry_version() == version
    assert await store.add_lines([*mine, *mine]) == 1


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        ("554130600300", "554130600300"),
        ("554130600300", "55413060*"),
        ("554130600300", "~5541306003[0-9]+"),
        ("55413060*", "554130600300"),
        ("554130600300", "554130600300*"),
        ("55413060*", "5541*"),
        ("5541*", "55413060*"),
        ("5541*", "5541*"),
        ("~10[0-9]+", "1001"),
        ("~10[0-9]+", "~10[0-9]+"),
        ("auth1", "auth1"),
    ],
)
async def test_no_number_has_two_clients(store: Store, theirs: str, mine: str) -> None:
    await store.add_lines(lines("outra", "3001", theirs))
    version = await store.registry_version()
    with pytest.raises(InputError, match="outra"):
        await store.add_lines(lines("acme", "1001", "7001", mine))
    assert (await store.registry()).lines == tuple(lines("outra", "3001", theirs)), "all or none"
    assert await store.registry_version() == version


@pytest.mark.parametrize(
    ("first", "second"),
    [("554130600300", "554130600301"), ("5541306*", "5541307*"), ("5541306*", "554130"), ("~10[0-9]+", "2001"), ("55%", "556")],
)
async def test_lines_that_do_not_overlap_may_have_two_clients(store: Store, first: str, second: str) -> None:
    await store.add_lines(lines("outra", "3001", first))
    assert await store.add_lines(lines("acme", "1001", second)) == 1


async def test_a_clients_own_lines_may_overlap_but_not_be_the_same(store: Store) -> None:
    assert await store.add_lines(lines("acme", "1001", "554130600300", "55413060*", "~5541.*")) == 3
    assert await store.add_lines(lines("acme", "1002", "5541306003*")) == 1
    with pytest.raises(InputError, match="1001"):
        await store.add_lines(lines("acme", "1002", "554130600300"))


async def test_two_clients_in_one_list_of_lines_are_compared_too(store: Store) -> None:
    with pytest.raises(InputError):
        await store.add_lines(lines("acme", "1001", "5541*") + lines("outra", "3001", "554130600300"))
    assert (await store.registry()).lines == ()


async def test_an_unknown_client_has_no_lines(store: Store) -> None:
    with pytest.raises(InputError, match="nobody"):
        await store.add_lines(lines("acme", "1001", "1001") + lines("nobody", "1001", "1002"))
    assert (await store.registry()).lines == ()


async def test_some_lines_of_a_pin_are_removed(store: Store) -> None:
    mine = lines("acme", "1001", "1001", "1002", "1003")
    await store.add_lines(mine)
    assert await store.remove_lines("acme", "1001", [mine[0], mine[2], *lines("acme", "1001", "9999")]) == 2
    assert (await store.registry()).lines == (mine[1],)


async def test_all_lines_of_a_pin_are_removed_and_no_others(store: Store) -> None:
    await store.add_lines(lines("acme", "1001", "1001", "1002") + lines("acme", "1002", "2001") + lines("outra", "1001", "3001"))
    assert await store.remove_lines("acme", "1001", None) == 2
    assert (await store.registry()).lines == (*lines("acme", "1002", "2001"), *lines("outra", "1001", "3001"))


async def test_lines_that_are_not_there_are_removed_without_a_word(store: Store) -> None:
    await store.add_lines(lines("outra", "1001", "3001"))
    version = await store.registry_version()
    assert await store.remove_lines("acme", "1001", None) == 0
    assert await store.remove_lines("acme", "1001", lines("outra", "1001", "3001")) == 0
    assert await store.remove_lines("acme", "1001", []) == 0
    assert await store.registry_version() == version


# Callbacks


async def test_a_registration_is_kept_with_its_code_and_secret(store: Store, place: Place) -> None:
    registered = await store.register_callback("acme", URL, "user:senha", "1001", limit=100)
    assert isinstance(registered, Registered)
    callback = registered.callback
    assert registered.is_new
    assert re.fullmatch("[0-9a-f]{40}", callback.code)
    assert [len(key_of(secret)) for secret in callback.secrets] == [32]
    assert (callback.client_id, callback.url, callback.pin, callback.credentials) == ("acme", URL, "1001", "user:senha")
    assert (callback.created_at, callback.disabled_at, callback.old_secret_until) == (BEGINNING, None, None)
    assert (await (await place.reopen()).registry()).callbacks == {callback.id: callback}


@pytest.mark.parametrize("pin", [None, "1001"])
@pytest.mark.parametrize(("before", "after"), [(None, "user:new"), ("user:old", "user:new"), ("user:old", None)])
async def test_the_same_url_and_pin_again_is_the_same_code(
    store: Store, pin: str | None, before: str | None, after: str | None
) -> None:
    first = await register(store, credentials=before, pin=pin)
    again = await store.register_callback("acme", URL, after, pin, limit=100)
    assert isinstance(again, Registered)
    assert not again.is_new
    assert (again.callback.id, again.callback.code, again.callback.secrets) == (first.id, first.code, first.secrets)
    assert again.callback.credentials == after
    assert (await store.registry()).callbacks == {first.id: again.callback}


async def test_another_url_pin_or_client_is_another_code(store: Store) -> None:
    callbacks = [
        await register(store),
        await register(store, pin="1001"),
        await register(store, pin="1002"),
        await register(store, URL + "/2"),
        await register(store, client="outra"),
    ]
    assert len({callback.code for callback in callbacks}) == 5
    assert len({callback.id for callback in callbacks}) == 5
    assert len({callback.secrets for callback in callbacks}) == 5
    registry = await store.registry()
    assert registry.callbacks_of("acme") == callbacks[:4]
    assert registry.callbacks_of("outra") == callbacks[4:]


async def test_after_a_removal_the_same_url_is_a_new_code(store: Store) -> None:
    first = await register(store)
    assert await store.remove_callback("acme", first.code) is Removal.REMOVED
    second = await store.register_callback("acme", URL, None, None, limit=100)
    assert isinstance(second, Registered)
    assert second.is_new
    assert second.callback.id != first.id
    assert second.callback.code != first.code
    assert second.callback.secrets != first.secrets
    assert await store.remove_callback("acme", first.code) is Removal.ALREADY_REMOVED
    assert list((await store.registry()).callbacks) == [second.callback.id]


async def test_a_client_has_so_many_callbacks_and_no_more(store: Store) -> None:
    first = await register(store, limit=2)
    await register(store, pin="1001", limit=2)
    assert await store.register_callback("acme", URL, None, "1002", limit=2) == TooMany(2)
    assert len((await store.registry()).callbacks) == 2
    assert (await register(store, credentials="user:new", limit=2)).code == first.code
    await register(store, client="outra", limit=2)
    await store.remove_callback("acme", first.code)
    await register(store, pin="1002", limit=2)


async def test_an_unknown_client_registers_nothing(store: Store) -> None:
    with pytest.raises(InputError, match="nobody"):
        await register(store, client="nobody")


async def test_what_comes_of_a_removal(store: Store, place: Place) -> None:
    callback = await register(store)
    assert await store.remove_callback("acme", UNKNOWN_CODE) is Removal.UNKNOWN
    assert await store.remove_callback("outra", callback.code) is Removal.UNKNOWN
    assert await store.remove_callback("acme", callback.code) is Removal.REMOVED
    store = await place.reopen()
    assert await store.remove_callback("acme", callback.code) is Removal.ALREADY_REMOVED
    assert await store.remove_callback("outra", callback.code) is Removal.UNKNOWN
    assert (await store.registry()).callbacks == {}


async def test_a_disabled_callback_says_why_and_since_when(store: Store, place: Place) -> None:
    callback = await register(store)
    await store.disable_callback(callback.id, "410 Gone")
    place.clock.advance(1 * 3600)
    await store.disable_callback(callback.id, "a later reason")
    disabled = (await (await place.reopen()).registry()).callbacks[callback.id]
    assert (disabled.disabled_at, disabled.disabled_reason) == (BEGINNING, "410 Gone")


async def test_disabling_says_from_which_version_on_it_is_known(store: Store) -> None:
    """So that whoever read the registry just before does not take it back."""
    callback, before = await register(store), await store.registry()
    version = await store.disable_callback(callback.id, "410 Gone")
    after = await store.registry()
    assert before.version < version <= after.version
    assert after.callbacks[callback.id].disabled_at is not None


async def test_registering_a_disabled_callback_enables_it(store: Store) -> None:
    callback = await register(store)
    await store.disable_callback(callback.id, "410 Gone")
    again = await store.register_callback("acme", URL, None, None, limit=1)
    assert again == Registered(callback, is_new=False)
    assert (await store.append([change(Status.INITIATED)], [])).deliveries != []


async def test_people_enable_a_disabled_callback(store: Store, place: Place) -> None:
    callback = await register(store)
    await store.disable_callback(callback.id, "410 Gone")
    assert (await store.append([change(Status.INITIATED)], [])).deliveries == []
    assert await store.enable_callback(callback.code)
    assert (await (await place.reopen()).registry()).callbacks == {callback.id: callback}
    store = place.stores[-1]
    assert [d.event.sequence for d in (await store.append([change(Status.RINGING, 1)], [])).deliveries] == [2]


async def test_only_what_is_registered_can_be_enabled(store: Store) -> None:
    callback = await register(store)
    await store.remove_callback("acme", callback.code)
    version = await store.registry_version()
    assert not await store.enable_callback(callback.code)
    assert not await store.enable_callback(UNKNOWN_CODE)
    assert await store.registry_version() == version


# Health


async def test_health_is_kept_over_a_restart_under_the_same_version(store: Store, place: Place) -> None:
    callback, other = await register(store), await register(store, pin="1001")
    version = await store.registry_version()
    health = KeptHealth(seconds(60.25))
    await store.keep_health(callback.id, health)
    for again in (place.open, place.reopen):
        registry = await (await again()).registry()
        assert registry.version == version
        assert registry.callbacks[callback.id].health == health
        assert registry.callbacks[other.id].health == KeptHealth()
    await place.stores[-1].keep_health(callback.id, KeptHealth())
    assert (await place.stores[-1].registry()).callbacks[callback.id].health == KeptHealth()


@pytest.mark.parametrize("how", ["enabled", "registered again"])
@pytest.mark.parametrize("is_disabled", [False, True])
async def test_whoever_is_enabled_is_well(store: Store, place: Place, how: str, is_disabled: bool) -> None:
    callback = await register(store)
    await store.keep_health(callback.id, KeptHealth(BEGINNING))
    if is_disabled:
        await store.disable_callback(callback.id, "failing for 5 days")
    place.clock.advance(50)
    if how == "enabled":
        assert await store.enable_callback(callback.code)
    else:
        await register(store)
    assert (await store.registry()).callbacks[callback.id].health == KeptHealth()


async def test_the_health_of_what_is_not_there_is_kept_without_a_word(store: Store) -> None:
    await store.keep_health(987_654, KeptHealth(BEGINNING))
    assert (await store.registry()).callbacks == {}


async def test_what_is_not_there_is_disabled_without_a_word(store: Store) -> None:
    callback = await register(store)
    await store.remove_callback("acme", callback.code)
    version = await store.registry_version()
    await store.disable_callback(callback.id, "410 Gone")
    await store.disable_callback(987_654, "410 Gone")
    assert await store.registry_version() == version


async def test_after_a_rotation_the_old_secret_signs_as_well_for_a_while(store: Store, place: Place) -> None:
    callback = await register(store)
    secret = await store.rotate_callback(callback.code, keep_old_for=timedelta(hours=24))
    assert secret is not None
    rotated = (await store.registry()).callbacks[callback.id]
    assert rotated.secrets == (secret, *callback.secrets)
    assert rotated.secrets_at(seconds(24 * 3600 - 1)) == rotated.secrets
    assert rotated.secrets_at(seconds(24 * 3600)) == (secret,)
    place.clock.advance(24 * 3600)
    assert (await (await place.reopen()).registry()).callbacks[callback.id].secrets == (secret,)


async def test_a_second_rotation_keeps_the_secret_before_it(store: Store) -> None:
    callback = await register(store)
    first = await store.rotate_callback(callback.code, keep_old_for=timedelta(hours=24))
    second = await store.rotate_callback(callback.code, keep_old_for=timedelta(hours=24))
    assert (await store.registry()).callbacks[callback.id].secrets == (second, first)


async def test_only_what_is_registered_has_a_secret_to_rotate(store: Store) -> None:
    callback = await register(store)
    await store.remove_callback("acme", callback.code)
    for code in (callback.code, UNKNOWN_CODE):
        assert await store.rotate_callback(code, keep_old_for=timedelta(hours=24)) is None


# The whole


async def test_the_token_key_is_the_same_ever_after(store: Store, place: Place) -> None:
    other = await place.open()
    keys = await asyncio.gather(store.token_key(), other.token_key(), store.token_key())
    assert len(keys[0]) == 32
    assert set(keys) == {keys[0]}
    assert await (await place.reopen()).token_key() == keys[0]


async def test_two_stores_have_two_token_keys(place: Place, store: Store) -> None:
    (place.folder / "other").mkdir()
    other = Place(place.open_engine, place.folder / "other")
    assert await (await other.open()).token_key() != await store.token_key()
    await other.close()


CHANGES: dict[str, Callable[[Store, Callback], Awaitable[object]]] = {
    "client added": lambda s, _: s.add_client(a_client("third")),
    "client rotated": lambda s, _: s.rotate_client("acme", "another hash"),
    "client disabled": lambda s, _: s.disable_client("acme", BEGINNING),
    "client enabled": lambda s, _: s.disable_client("outra", None),
    "client removed": lambda s, _: s.remove_client("acme"),
    "lines added": lambda s, _: s.add_lines(lines("acme", "1001", "554130600300")),
    "lines removed": lambda s, _: s.remove_lines("outra", "3001", None),
    "callback registered": lambda s, _: s.register_callback("acme", URL + "/new", None, None, limit=100),
    "credentials updated": lambda s, _: s.register_callback("acme", URL, "user:new", None, limit=100),
    "callback rotated": lambda s, c: s.rotate_callback(c.code, keep_old_for=timedelta(hours=1)),
    "callback disabled": lambda s, c: s.disable_callback(c.id, "410 Gone"),
    "callback enabled": lambda s, c: s.enable_callback(c.code),
    "callback removed": lambda s, c: s.remove_callback("acme", c.code),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_every_change_is_seen_by_whoever_has_the_store_open(store: Store, place: Place, what: str) -> None:
    callback = await register(store)
    await store.add_lines(lines("outra", "3001", "3001"))
    await store.disable_client("outra", BEGINNING)
    if what == "callback enabled":
        await store.disable_callback(callback.id, "410 Gone")
    other = await place.open()
    await place.agree()
    before = await other.registry()
    assert before == await store.registry()
    await CHANGES[what](store, callback)
    await place.agree()
    version = await other.registry_version()
    assert version > before.version
    assert version == await store.registry_version()
    after = await other.registry()
    assert after.version == version
    assert after == await store.registry()
    assert (after.clients, after.lines, after.callbacks) != (before.clients, before.lines, before.callbacks)


async def test_events_leave_the_registrys_version_alone(store: Store) -> None:
    await register(store)
    version = await store.registry_version()
    appended = await store.append(whole_call(), [in_progress()])
    await store.settle(appended.deliveries[:2], left(*appended.deliveries[2:]))
    await store.ping()
    assert await store.registry_version() == version


async def test_many_register_the_same_url_at_once(store: Store) -> None:
    registered = await asyncio.gather(*(store.register_callback("acme", URL, None, None, limit=1) for _ in range(50)))
    assert all(isinstance(r, Registered) for r in registered)
    assert len({r.callback.code for r in registered if isinstance(r, Registered)}) == 1
    assert sum(r.is_new for r in registered if isinstance(r, Registered)) == 1


async def test_the_limit_holds_when_many_register_at_once(store: Store, place: Place) -> None:
    other = await place.open()
    answers = await asyncio.gather(
        *((store, other)[n % 2].register_callback("acme", f"{URL}/{n}", None, None, limit=10) for n in range(40))
    )
    assert sum(isinstance(answer, Registered) for answer in answers) == 10
    assert len((await store.registry()).callbacks) == 10


async def test_a_closed_store_says_so_and_may_be_closed_again(store: Store) -> None:
    await store.ping()
    await asyncio.gather(store.close(), store.close())
    await store.close()
    for asked in (store.ping(), store.registry(), store.append([change(Status.INITIATED)], [])):
        with pytest.raises(StoreError):
            await asked


# Credentials of the HTTP intake


def a_credential(name: str, digit: str = "a") -> IntakeCredential:
    return IntakeCredential(name, digit * 64, BEGINNING)


async def test_a_credential_of_the_intake_is_kept_as_it_was_added(store: Store, place: Place) -> None:
    version = await store.registry_version()
    await store.add_intake(a_credential("dialer"))
    await store.add_intake(a_credential("billing", "b"))
    assert await store.registry_version() > version
    store = await place.reopen()
    assert (await store.registry()).intakes == {"dialer": a_credential("dialer"), "billing": a_credential("billing", "b")}


async def test_the_name_of_a_credential_of_the_intake_has_one_owner(store: Store) -> None:
    await store.add_intake(a_credential("dialer"))
    version = await store.registry_version()
    with pytest.raises(InputError, match="already"):
        await store.add_intake(a_credential("dialer", "b"))
    assert (await store.registry()).intakes == {"dialer": a_credential("dialer")}
    assert await store.registry_version() == version


async def test_a_credential_of_the_intake_gets_another_token(store: Store) -> None:
    await store.add_intake(a_credential("dialer"))
    version = await store.registry_version()
    assert await store.rotate_intake("dialer", "c" * 64)
    assert (await store.registry()).intakes == {"dialer": a_credential("dialer", "c")}
    assert await store.registry_version() > version
    assert not await store.rotate_intake("nobody", "d" * 64)


async def test_a_credential_of_the_intake_is_removed(store: Store) -> None:
    await store.add_intake(a_credential("dialer"))
    version = await store.registry_version()
    assert await store.remove_intake("dialer")
    assert (await store.registry()).intakes == {}
    assert await store.registry_version() > version
    assert not await store.remove_intake("dialer")
    await store.add_intake(a_credential("dialer", "b"))
    assert (await store.registry()).intakes == {"dialer": a_credential("dialer", "b")}
