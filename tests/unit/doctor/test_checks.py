"""What the checks make of settings, files, machines and what a server says; nothing here is a server."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import ssl
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.stored_calls import BEGINNING, ZONE, a_client, lines

from toque.callbacks.callback import Callback, KeptHealth, Registry
from toque.callbacks.payload import PayloadWriter
from toque.doctor import findings, storage
from toque.doctor.configured import check_registry, check_settings
from toque.doctor.examination import examine
from toque.doctor.findings import CHECKS, Finding, Level
from toque.doctor.links import advice_for, check_running, check_unmatched
from toque.doctor.machine import check_descriptors, check_machine_clock
from toque.doctor.receivers import Waiting, check_callback
from toque.doctor.storage import check_clock, check_files, check_place, is_locked
from toque.errors import SettingsError
from toque.settings import Settings, load_settings
from toque.store import sqlite

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ROOT = Path(__file__).parents[3]
PAYLOADS = PayloadWriter(ZONE)
SOURCE = {
    "name": "pbx", "kind": "ami", "is_connected": True, "state": "connected", "connected_for_s": 600.0, "losses": 0,
    "silent_s": 1.0, "last_signal_at": NOW.isoformat(), "clock_behind_s": 0.01, "calls": 100, "unmatched": 0, "inferred": 0,
    "late": 0,
}  # fmt: skip
HEP = SOURCE | {"kind": "hep", "address": "127.0.0.1:9060", "packets": 10, "refused": 0, "dropped": 0}
MOUNTS = """24 1 254:0 / / rw - ext4 /dev/vda rw
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw
26 24 0:50 / /srv/share rw - nfs4 nas:/x rw
27 24 0:51 / /srv/a\\040b rw - cifs nas rw
"""


def levels(found: Iterable[Finding]) -> dict[str, str]:
    return {finding.id: str(finding.level) for finding in found}


def settings(**given: Any) -> Settings:
    return load_settings(None, {}, given)


def of_settings(given: Settings, authorities: Any = None) -> dict[str, str]:
    return levels(check_settings(given, authorities or (lambda _: ssl.create_default_context()), NOW))


# Settings


def test_settings_that_weaken_nothing() -> None:
    assert set(of_settings(replace(settings(), secret_key="x" * 20)).values()) == {"ok"}


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ({}, "settings.secret_key"),
        ({"http": "0.0.0.0:8080"}, "settings.http"),
        ({"allow_networks": ["0.0.0.0/0"]}, "settings.networks"),
        ({"trusted_proxies": ["::/0"]}, "settings.networks"),
        ({"log_numbers": "true"}, "settings.log"),
    ],
)
def test_settings_that_weaken_a_promise(given: dict[str, Any], check: str) -> None:
    assert of_settings(settings(**given))[check] == "warning"


def test_hep_by_its_key_alone() -> None:
    given = load_settings(None, {"TOQUE_HEP_KEY": "x", "TOQUE_HEP": "0.0.0.0:9060"}, {})
    assert of_settings(given)["settings.hep"] == "warning"
    given = load_settings(None, {"TOQUE_HEP_ALLOW_FROM": "10.0.0.0/8", "TOQUE_HEP": "0.0.0.0:9060"}, {})
    assert of_settings(given)["settings.hep"] == "ok"


def test_a_file_that_everybody_may_read(tmp_path: Path) -> None:
    path = tmp_path / "toque.toml"
    path.write_text('time_zone = "UTC"\n')
    path.chmod(0o644)
    assert of_settings(load_settings(path, {}, {}))["settings.file"] == "warning"
    path.chmod(0o640)
    assert of_settings(load_settings(path, {}, {}))["settings.file"] == "ok"


def test_authorities_that_cannot_be_read_or_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(_: Settings) -> ssl.SSLContext:
        raise SettingsError("ca_file", "x.pem", "cannot be read")

    assert of_settings(settings(), unreadable)["settings.authorities"] == "problem"
    nowhere = ssl.DefaultVerifyPaths(None, None, "", "", "", "")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    assert of_settings(settings(), lambda _: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))["settings.authorities"] == "problem"


def test_a_registry_that_leads_to_nothing() -> None:
    client = a_client()
    callback = Callback(1, "c" * 40, "acme", "https://example.com/", "nenhum", BEGINNING)
    assert next(check_registry(Registry(1, {}, (), {}))).text == "there is no client"
    whole = Registry(1, {"acme": client}, tuple(lines("acme", "vendas", "1001")), {1: replace(callback, pin=None)})
    assert levels(check_registry(whole)) == {"registry": "ok"}
    [found] = check_registry(replace(whole, callbacks={1: callback}))
    assert (found.level, found.subject) == (Level.WARNING, "c" * 40)


# Store


def test_files_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "toque.db"
    for name in ("toque.db", "toque.db-wal"):
        (tmp_path / name).touch(mode=0o600)
    assert levels(check_files(path)) == {"store.file": "ok"}
    (tmp_path / "toque.db-wal").chmod(0o604)
    [found] = check_files(path)
    assert found.level is Level.PROBLEM
    assert "toque.db-wal" in found.text


@pytest.mark.parametrize(
    ("path", "level", "kind"),
    [
        ("/var/lib/toque.db", "ok", "ext4"),
        ("/dev/shm/toque.db", "problem", "tmpfs"),
        ("/srv/share/deep/toque.db", "problem", "nfs4"),
        ("/srv/a b/toque.db", "problem", "cifs"),
        ("/srv/sharefile/toque.db", "ok", "ext4"),
    ],
)
def test_where_the_store_lies(path: str, level: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_space", lambda _: findings.ok("store.space", ""))
    place, _ = check_place(Path(path), MOUNTS)
    assert (str(place.level), place.data["file_system"]) == (level, kind)


def test_a_container_and_its_own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_space", lambda _: findings.ok("store.space", ""))
    place, _ = check_place(Path("/data/toque.db"), "1 0 0:1 / / rw - overlay overlay rw\n")
    assert place.level is Level.WARNING


@pytest.mark.parametrize(("free_mib", "level"), [(50_000, "ok"), (900, "warning"), (100, "problem")])
def test_room(free_mib: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free, total = free_mib * 2**20, 100_000 * 2**20

    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: Usage)
    _, space = check_place(Path("/data/toque.db"), MOUNTS)
    assert str(space.level) == level


async def test_a_clock_that_was_set_back() -> None:
    class Archive:
        def __init__(self, last: datetime | None) -> None:
            self.last = last

        async def last_accepted_at(self) -> datetime | None:
            return self.last

    for last, level in ((None, "ok"), (NOW, "ok"), (NOW + timedelta(minutes=1), "problem")):
        assert str((await check_clock(Archive(last), NOW)).level) == level  # type: ignore[arg-type]


async def test_a_store_that_somebody_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(store=f"sqlite://{tmp_path}/toque.db", http="127.0.0.1:1")
    store = sqlite.SqliteStore(given.store, PAYLOADS)
    await store.close()
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_S", 0.05)
    with contextlib.closing(sqlite3.connect(given.store, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        result = await examine(given)
    told = {one["id"]: one for one in result["checks"]}
    assert (told["store.opens"]["level"], "locked" in told["store.opens"]["text"]) == ("problem", True)
    assert told["server.running"]["level"] == "problem"


async def test_a_store_that_is_damaged_in_places(tmp_path: Path) -> None:
    given = settings(store=f"sqlite://{tmp_path}/toque.db", http="127.0.0.1:1")
    await sqlite.SqliteStore(given.store, PAYLOADS).close()
    with contextlib.closing(sqlite3.connect(given.store)) as database:
        [(page,)] = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'segments'")
        [(size,)] = database.execute("PRAGMA page_size")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with Path(given.store).open("r+b") as file:  # type: ignore[arg-type]
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    result = await examine(given)
    told = {one["id"]: one for one in result["checks"]}
    assert (told["store.opens"]["level"], "malformed" in told["store.opens"]["text"]) == ("problem", True)
    assert "machine.clock" in told


async def test_whether_a_server_has_the_store_is_seen_without_touching_it(tmp_path: Path) -> None:
    path = tmp_path / "toque.db"
    assert is_locked(path) is False
    store = sqlite.SqliteStore(path, PAYLOADS)
    store.lock()
    assert is_locked(path) is True
    await store.close()
    assert is_locked(path) is False


# Machine


def test_the_kernel_is_asked_for_its_clock() -> None:
    assert check_machine_clock().level in (Level.OK, Level.WARNING)


@pytest.mark.parametrize(("used", "limit", "level"), [(20, 16_384, "ok"), (20, 1024, "warning"), (900, 1024, "problem")])
def test_descriptors(used: int, limit: int, level: str) -> None:
    assert levels(check_descriptors({"used": used, "limit": limit})) == {"server.descriptors": level}


# Sources and calls, by what a server says


@pytest.mark.parametrize(
    ("source", "check", "level"),
    [
        (SOURCE, "source.connected", "ok"),
        (SOURCE | {"is_connected": False, "state": "connection refused"}, "source.connected", "problem"),
        (SOURCE | {"losses": 1}, "source.link", "ok"),
        (SOURCE | {"losses": 50}, "source.link", "warning"),
        (SOURCE | {"last_signal_at": (NOW - timedelta(hours=3)).isoformat()}, "source.silent", "warning"),
        (SOURCE | {"last_signal_at": None}, "source.silent", "ok"),
        (HEP | {"last_signal_at": None}, "source.silent", "warning"),
        (HEP | {"last_signal_at": None, "packets": 0}, "source.silent", "warning"),
        (SOURCE | {"clock_behind_s": None}, "source.clock", "ok"),
        (SOURCE | {"clock_behind_s": -5.0}, "source.clock", "warning"),
        (SOURCE | {"clock_behind_s": 3600.0}, "source.clock", "problem"),
        (HEP | {"refused": 3}, "source.packets", "warning"),
        (HEP | {"dropped": 3}, "source.packets", "warning"),
        (SOURCE | {"inferred": 6}, "calls.inferred", "warning"),
        (SOURCE | {"inferred": 1, "calls": 1}, "calls.inferred", "ok"),
        (SOURCE | {"kind": "http", "address": "127.0.0.1:8080", "last_signal_at": None}, "source.silent", "ok"),
    ],
)
def test_sources(source: dict[str, Any], check: str, level: str) -> None:
    assert levels(check_running(source, NOW))[check] == level


@pytest.mark.parametrize(("unmatched", "level"), [(0, "ok"), (40, "ok"), (60, "warning")])
def test_calls_of_nobody(unmatched: int, level: str) -> None:
    recent = [{"source": "pbx", "caller": "1001", "dialled": "", "status": "busy"}]
    found = check_unmatched({"unmatched": {"count": unmatched, "recent": recent}, "sources": [SOURCE]})
    assert (str(found.level), found.examples) == (level, ("pbx: 1001 -> ?, busy",))


def test_every_way_in_which_a_link_fails_has_its_advice() -> None:
    said = (ROOT / "src/toque/sources").rglob("*.py")
    texts = re.findall(r'Link(?:Refused|Lost)Error\(f?"([^"]+)"', "".join(path.read_text() for path in said))
    assert len(texts) >= 8
    without = {text for text in texts if advice_for(text) == advice_for("something else")}
    assert all(word in " ".join(without) for word in ("closed", "silent", "no answer to"))  # what may be anything
    assert len(without) <= 5


# Callbacks


@pytest.mark.parametrize(
    ("callback", "state", "waiting", "health", "backlog"),
    [
        ({}, "healthy", Waiting(0, 0), "ok", "ok"),
        ({}, None, Waiting(5, 0), "ok", "ok"),
        ({}, None, Waiting(0, 2), "ok", "warning"),
        ({"health": KeptHealth(NOW - timedelta(hours=30))}, "failing", Waiting(9, 0), "problem", "ok"),
        ({"health": KeptHealth(NOW)}, "recovering", Waiting(9, 0), "ok", "ok"),
        ({"disabled_at": NOW, "disabled_reason": "410"}, "disabled", Waiting(0, 0), "warning", "ok"),
    ],
)
def test_callbacks(callback: dict[str, Any], state: str | None, waiting: Waiting, health: str, backlog: str) -> None:
    one = replace(Callback(1, "c" * 40, "acme", "https://example.com/segredo?x=1", None, BEGINNING), **callback)
    found = list(check_callback(one, state, waiting, NOW))
    assert levels(found) == {"callback.health": health, "callback.backlog": backlog}
    assert "segredo" not in str(found)


# The catalogue


def test_no_finding_without_a_meaning() -> None:
    with pytest.raises(ValueError, match="no check"):
        findings.ok("store.smell", "")


def test_every_check_is_made_somewhere_and_documented() -> None:
    code = "".join(path.read_text() for path in (ROOT / "src/toque/doctor").glob("*.py") if path.name != "findings.py")
    assert {check for check in CHECKS if f'"{check}"' not in code} == set()
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+?) \|", page, re.MULTILINE))
    assert {check for check in rows if check in CHECKS or "." in check} == set(CHECKS)
