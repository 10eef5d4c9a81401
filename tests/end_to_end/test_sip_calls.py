"""From a switch to a customer, all of it real: SIPp telephones call through Kamailio, `toque serve` posts to an HTTP receiver.

Two clients look at each call, one from the caller's side and one from the callee's. Every pair of numbers is used by one scenario
only, so that a post tells which scenario it belongs to.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.support.recording_receiver import Post, RecordingReceiver, assert_signed, by_side, words
from tests.support.requirements import require
from tests.support.sip_lab.lab import SipLab
from tests.support.sip_lab.scenarios import AUTH_USER, SCENARIOS, Scenario
from tests.support.toque_process import Account, ToqueProcess

pytestmark = [pytest.mark.sip, pytest.mark.slow]

AT_ONCE = 6  # scenarios, as in the laboratory's own tests

BUSY_MACHINE = timedelta(seconds=5)  # by which telephones may be late

CALLERS, CALLEES = "554198888", "551197777"  # how the two clients' numbers begin
AUTHENTICATED = "auth"
EXTENSION = "1002"  # a telephone that some scenarios ring; it belongs to a third client
COLLEAGUE = f"{CALLERS}9999"  # both ends of a call are the first client's

# Two more scenarios: times that are long enough to be told from zero, and a call within one client.
LONG = replace(SCENARIOS["answered_caller_hangs_up"], name="answered_for_seconds", ring_ms=1300, talk_ms=2300)
INTERNAL = replace(SCENARIOS["answered_callee_hangs_up"], name="between_two_lines_of_one_client")


def with_numbers_of_its_own(row: Scenario, number: int) -> Scenario:
    caller = f"{AUTHENTICATED}{number}" if row.caller == AUTH_USER else f"{CALLERS}{number:04d}"
    return replace(row, caller=caller, callee=COLLEAGUE if row is INTERNAL else f"{CALLEES}{number:04d}")


ROWS = {
    row.name: with_numbers_of_its_own(row, number) for number, row in enumerate((*SCENARIOS.values(), LONG, INTERNAL), start=100)
}

# Who ended it, where SIP does not show what the telephone did: a 480 comes from telephones and from networks alike, a switch that
# hears nothing makes its own 408, and 5xx, 3xx and 404 are the network's words whoever says them.
TOLD_ENDERS = {
    "no_answer_480": None,
    "unreachable_480": None,
    "unreachable_408": None,
    "fork_parallel_nobody_answers": None,
    "congestion_503": "rede",
    "failed_500": "rede",
    "redirect_302_not_followed": "rede",
}

# What the extension's owner is told: from the moment at which the switch rings it.
EXTENSIONS_VIEW = {
    "fork_parallel_second_answers": ["iniciou", "chamando", "atendeu", "desligou"],
    "fork_parallel_nobody_answers": ["iniciou", "chamando", "nao_atendeu"],
    "fork_serial_busy_then_answers": ["iniciou", "chamando", "atendeu", "desligou"],
    "fork_serial_timeout_then_answers": ["iniciou", "chamando", "atendeu", "desligou"],
}


@dataclass
class Told:
    """All that was posted of all scenarios, and what the server said of itself at the end."""

    posts: list[Post]
    secrets: dict[str, str]  # by path
    health: dict[str, Any]
    events: int
    deliveries: dict[str, int]  # by state

    def sides(self, path: str, row: Scenario) -> list[list[Post]]:
        """The posts of each call of a scenario, to one URL, in the order of arrival."""
        mine = [post for post in self.posts if post.path == path and post.data["origem"] == row.caller]
        return list(by_side(mine).values())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Every scenario, run once, several at a time."""
    require("kamailio", "sipp")
    with RecordingReceiver() as receiver, ToqueProcess(tmp_path_factory.mktemp("toque")) as toque:
        secrets = register_everybody(toque, receiver)
        with SipLab(toque.hep_port) as lab, ThreadPoolExecutor(AT_ONCE) as pool:
            longest_first = sorted(ROWS.values(), key=lambda row: -row.calls)
            assert list(pool.map(lab.run, longest_first))
            expected = expected_posts()
            with suppress(TimeoutError):  # the tests say what is missing
                receiver.wait_for_count(expected)
            health, lost = toque.health(), toque.lost_datagrams()
        assert lost == 0, f"the machine was too busy: the kernel dropped {lost} HEP datagrams before toque could read them"
        assert toque.terminate() == 0
        [(events,)] = toque.rows("SELECT count(*) FROM events")
        deliveries = dict(toque.rows("SELECT state, count(*) FROM settled_deliveries GROUP BY state"))
        return Told(receiver.posts, secrets, health, events, deliveries)


def register_everybody(toque: ToqueProcess, receiver: RecordingReceiver) -> dict[str, str]:
    """The clients and their URLs; the URLs' secrets by path."""
    people: dict[str, dict[str, list[str]]] = {
        "Quem liga": {"vendas": [f"{CALLERS}*", rf"~{AUTHENTICATED}\d+"]},
        "Quem atende": {"atendimento": [f"{CALLEES}*"], "outro": ["551155550000"], "1001": ["1001"]},
        "Outra empresa": {"ramal": [EXTENSION]},
    }
    with ThreadPoolExecutor(len(people)) as pool:
        accounts: list[Account] = list(pool.map(lambda name: toque.add_client(name, **people[name]), people))
    wanted = [
        (accounts[0], "/caller", None),
        (accounts[1], "/callee", None),
        (accounts[1], "/callee/pin", "atendimento"),
        (accounts[1], "/callee/other-pin", "outro"),
        (accounts[2], "/extension", None),
    ]
    registered = {path: account.api().add_callback(receiver.url(path), pin) for account, path, pin in wanted}
    return {path: registration.secret or "" for path, registration in registered.items()}


def expected_posts() -> int:
    sides = [(2 if row.name == INTERNAL.name else 3, row) for row in ROWS.values()]
    return sum(times * row.calls * len(row.truth.statuses) for times, row in sides) + sum(map(len, EXTENSIONS_VIEW.values()))


def paths_of(row: Scenario) -> list[str]:
    return ["/caller"] if row.name == INTERNAL.name else ["/caller", "/callee", "/callee/pin"]


@pytest.fixture(params=ROWS)
def row(request: pytest.FixtureRequest) -> Scenario:
    return ROWS[request.param]


def test_each_side_is_told_each_status_once_and_in_order(told: Told, row: Scenario) -> None:
    for path in paths_of(row):
        sides = told.sides(path, row)
        assert len(sides) == row.calls * (2 if row.name == INTERNAL.name else 1)
        for posts in sides:
            assert words(posts) == list(row.truth.statuses)
            assert [post.data["sequencia"] for post in posts] == list(range(1, len(posts) + 1))


def test_each_side_sees_its_own_direction_pin_and_numbers(told: Told, row: Scenario) -> None:
    for path, seen in {"/caller": ("realizada", "vendas"), "/callee": ("recebida", "atendimento")}.items():
        for posts in told.sides(path, row):
            for post in posts:
                if row.name != INTERNAL.name:
                    assert (post.data["tipo"], post.data["pin"]) == seen
                assert (post.data["origem"], post.data["destino"]) == (row.caller, row.callee)


def test_both_sides_speak_of_the_same_calls(told: Told, row: Scenario) -> None:
    calls = [{posts[0].data["callerid"] for posts in told.sides(path, row)} for path in paths_of(row)]
    assert all(ids == calls[0] and len(ids) == row.calls for ids in calls)
    assert all(str(UUID(callerid)) == callerid for callerid in calls[0])


def test_who_answered_is_told_from_the_answer_on(told: Told, row: Scenario) -> None:
    for path in paths_of(row):
        for posts in told.sides(path, row):
            by_word = {post.word: post.data["atendido_por"] for post in posts}
            reached = row.truth.reached or row.callee
            assert by_word == {word: reached if word in ("atendeu", "desligou") else None for word in by_word}


def test_the_end_says_who_ended_it_and_why(told: Told, row: Scenario) -> None:
    for path in paths_of(row):
        for *earlier, final in told.sides(path, row):
            assert all(post.data["desligado_por"] is None and post.data["causa"] is None for post in earlier)
            assert final.data["desligado_por"] == TOLD_ENDERS.get(row.name, row.truth.ended_by)
            assert not any(post.data["inferido"] for post in (*earlier, final))
            match row.name:
                case "bye_with_reason_q850":
                    assert final.data["causa"] == {"sip": None, "q850": 16, "texto": "Normal call clearing"}
                case "busy_480_reason_q850_17":
                    assert (final.data["causa"]["sip"], final.data["causa"]["q850"]) == (480, 17)
                case _ if final.word == "desligou":
                    assert final.data["causa"] is None
                case _:
                    assert (final.data["causa"]["sip"], final.data["causa"]["q850"]) == (row.truth.sip, None)


def test_times_are_those_of_the_call(told: Told, row: Scenario) -> None:
    for path in paths_of(row):
        for posts in told.sides(path, row):
            at = {post.word: datetime.fromisoformat(post.data["momento"]) for post in posts}
            moments, final = list(at.values()), posts[-1].data
            assert moments == sorted(moments)
            assert final["inicio"] == wall_clock(moments[0])
            assert final["atendimento"] == (wall_clock(at["atendeu"]) if "atendeu" in at else None)
            assert final["fim"] == wall_clock(moments[-1])
            assert all(post.data["fim"] is None and post.data["duracao"] is None for post in posts[:-1])
            rang_until = at.get("atendeu", moments[-1])
            assert_span(final["toque"], rang_until - at.get("chamando", rang_until))
            assert_span(final["duracao"], moments[-1] - at.get("atendeu", moments[-1]))


def wall_clock(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def assert_span(told: str, measured: timedelta) -> None:
    """Whole seconds, cut off; moments are told to the millisecond only."""
    hours, minutes, seconds = map(int, told.split(":"))
    span = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    assert timedelta(milliseconds=-2) < measured - span < timedelta(seconds=1, milliseconds=2)


def test_ring_and_talk_time_are_the_phones_own(told: Told) -> None:
    [posts] = told.sides("/caller", ROWS[LONG.name])
    at = {post.word: datetime.fromisoformat(post.data["momento"]) for post in posts}
    ringing, talking = at["atendeu"] - at["chamando"], at["desligou"] - at["atendeu"]
    assert timedelta(milliseconds=LONG.ring_ms - 50) < ringing < timedelta(milliseconds=LONG.ring_ms) + BUSY_MACHINE
    assert timedelta(milliseconds=LONG.talk_ms - 50) < talking < timedelta(milliseconds=LONG.talk_ms) + BUSY_MACHINE
    assert "00:00:01" <= posts[-1].data["toque"] <= "00:00:06"
    assert "00:00:02" <= posts[-1].data["duracao"] <= "00:00:07"


def test_a_call_within_one_client_is_told_once_in_each_direction(told: Told) -> None:
    sides = told.sides("/caller", ROWS[INTERNAL.name])
    assert sorted(posts[0].data["tipo"] for posts in sides) == ["realizada", "recebida"]


def test_an_extension_of_the_dialled_numbers_owner_is_no_side_of_its_own(told: Told) -> None:
    """The pin 1001 is rung in every fork, and belongs to the same client as the number that was dialled."""
    assert {post.data["pin"] for post in told.posts if post.path == "/callee"} == {"atendimento"}


@pytest.mark.parametrize("name", EXTENSIONS_VIEW)
def test_an_extension_of_somebody_else_is_told_from_where_it_rings(told: Told, name: str) -> None:
    [posts] = told.sides("/extension", ROWS[name])
    assert words(posts) == EXTENSIONS_VIEW[name]
    assert {(post.data["tipo"], post.data["pin"]) for post in posts} == {("recebida", "ramal")}


def test_nobody_is_told_of_others_calls(told: Told) -> None:
    callers_of = {path: {post.data["origem"] for post in told.posts if post.path == path} for path in told.secrets}
    everybody = {row.caller for row in ROWS.values()}
    assert callers_of == {
        "/caller": everybody,
        "/callee": everybody - {ROWS[INTERNAL.name].caller},
        "/callee/pin": everybody - {ROWS[INTERNAL.name].caller},
        "/callee/other-pin": set(),
        "/extension": {ROWS[name].caller for name in EXTENSIONS_VIEW},
    }


def test_ids_are_unique_and_the_same_to_every_url_of_a_client(told: Told) -> None:
    ids = {path: [post.id for post in told.posts if post.path == path] for path in told.secrets}
    assert sorted(ids["/callee"]) == sorted(ids["/callee/pin"])
    different = ids["/caller"] + ids["/callee"] + ids["/extension"]
    assert len(set(different)) == len(different)
    assert all(post.headers["webhook-id"] == post.id for post in told.posts)


def test_every_signature_is_valid(told: Told) -> None:
    for path, secret in told.secrets.items():
        assert_signed((post for post in told.posts if post.path == path), secret)


def test_the_server_counts_what_it_told(told: Told) -> None:
    assert len(told.posts) == expected_posts()
    assert told.deliveries == {"delivered": len(told.posts)}
    assert told.events == told.health["events"] == len({post.id for post in told.posts})
    assert (told.health["status"], told.health["unmatched_calls"], told.health["hep_refused"]) == ("ok", 0, 0)


# Other ways in which a switch speaks HEP


@pytest.fixture
def receiver() -> Iterator[RecordingReceiver]:
    with RecordingReceiver() as receiver:
        yield receiver


@pytest.mark.parametrize("version", [1, 2])
def test_older_hep_versions_tell_the_same(version: int, receiver: RecordingReceiver, tmp_path: Path) -> None:
    require("kamailio", "sipp")
    names = ("answered_callee_hangs_up", "cancelled", "busy_486", "ring_timeout")
    with ToqueProcess(tmp_path) as toque:
        account = toque.add_client("Quem liga", vendas=[f"{CALLERS}*"])
        secret = account.api().add_callback(receiver.url()).secret or ""
        with SipLab(toque.hep_port, hep_version=version) as lab, ThreadPoolExecutor(len(names)) as pool:
            assert list(pool.map(lab.run, (ROWS[name] for name in names)))
            posts = receiver.wait_for_count(sum(len(ROWS[name].truth.statuses) for name in names))
        assert toque.health()["hep_refused"] == 0
    assert_signed(posts, secret)
    told = {side[0].data["origem"]: words(side) for side in by_side(posts).values()}
    assert told == {ROWS[name].caller: list(ROWS[name].truth.statuses) for name in names}


def test_packets_are_believed_with_the_right_key_only(receiver: RecordingReceiver, tmp_path: Path) -> None:
    require("kamailio", "sipp")
    wrong, missing, right = (ROWS[name] for name in ("busy_486", "not_found_404", "failed_500"))
    with ToqueProcess(tmp_path, hep_key="a chave certa") as toque:
        account = toque.add_client("Quem liga", vendas=[f"{CALLERS}*"])
        account.api().add_callback(receiver.url())
        for key, row in (("a chave errada", wrong), (None, missing)):
            with SipLab(toque.hep_port, auth_key=key) as lab:
                lab.run(row)
            toque.wait_until(lambda: toque.health()["hep_packets"] > 0, "no HEP arrives")
            health = toque.health()
            assert health["hep_refused"] == health["hep_packets"]
            assert health["calls"] == 0
        with SipLab(toque.hep_port, auth_key="a chave certa") as lab:
            lab.run(right)
            receiver.wait_for_count(len(right.truth.statuses))
        health = toque.health()
        assert 0 < health["hep_refused"] < health["hep_packets"]
        assert toque.rows("SELECT count(*) FROM events") == [(len(right.truth.statuses),)]
    assert {post.data["origem"] for post in receiver.posts} == {right.caller}
    assert "wrong or missing key" in toque.log
    assert "a chave" not in toque.log
