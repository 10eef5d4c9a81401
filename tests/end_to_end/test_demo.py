"""The first thing that people see: `toque demo`; and `toque callback test`, the first thing that operators try."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.recording_receiver import RecordingReceiver, Reply, assert_signed
from tests.support.toque_process import Account, ToqueProcess, clean_environment, free_port, run_toque

DEMO_LIMIT_S = 60.0


def demo(folder: Path, *flags: str) -> tuple[int, str]:
    done = run_toque("demo", "--speed", "4", *flags, cwd=folder, environment=clean_environment(), timeout_s=DEMO_LIMIT_S)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_the_demo_is_complete(tmp_path: Path) -> None:
    code, told = demo(tmp_path, "--json")
    result: dict[str, Any] = json.loads(told)
    assert (code, result["complete"], result["refused"], result["unmatched_calls"]) == (0, True, 0, 0)
    assert result["statuses"] == result["expected"] == result["delivered"] == result["attempts"] > 50
    assert sum(result["ends"].values()) == result["calls"] >= 15
    assert 0 < result["latency_p50_ms"] <= result["latency_p99_ms"]
    assert list(tmp_path.iterdir()) == []


def test_the_demo_prints_each_status_as_it_arrives(tmp_path: Path) -> None:
    code, told = demo(tmp_path)
    rows = re.findall(r"^\d\d:\d\d:\d\d (realizada|recebida) +(\S+) -> (\S+) +([1-4]) (\w+) +(.*?) +\d+ ms$", told, re.MULTILINE)
    assert code == 0
    ends = {row[4] for row in rows if row[4] not in ("iniciou", "chamando", "atendeu")}
    assert ends >= {"desligou", "ocupado", "nao_atendeu", "cancelou", "falhou", "recusou", "numero_invalido", "congestionado"}
    assert {row[0] for row in rows} == {"realizada", "recebida"}
    answered = [row for row in rows if row[4] == "atendeu"]
    assert answered
    assert all(row[5] for row in answered)  # who answered
    assert f"{len(rows)} statuses, {len(rows)} of them delivered and signed" in told
    assert "everything that should have arrived has" in told
    assert "http://127.0.0.1:" in told


def test_the_demo_plays_a_recording_of_the_users_own(tmp_path: Path) -> None:
    recording = Path(__file__).parents[2] / "src" / "toque" / "recordings" / "demo.pcap"
    code, told = demo(tmp_path, "--json", "--recording", str(recording))
    result = json.loads(told)
    assert (code, result["complete"], result["expected"]) == (0, True, None)
    assert result["statuses"] > 100  # here all numbers are lines, so that both sides of each call are told


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--speed", "0"], "--speed must be greater than 0"),
        (["--recording", "missing.pcap"], "missing.pcap cannot be read: No such file or directory"),
        (["--recording", __file__], "is not a pcap file"),
    ],
)
def test_a_demo_that_cannot_be_shown_says_why(tmp_path: Path, flags: list[str], says: str) -> None:
    done = run_toque("demo", *flags, cwd=tmp_path, environment=clean_environment())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("toque: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


# toque callback test


@pytest.fixture(scope="module")
def receiver() -> Iterator[RecordingReceiver]:
    with RecordingReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def toque(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToqueProcess]:
    with ToqueProcess(tmp_path_factory.mktemp("toque")) as toque:
        yield toque


@pytest.fixture(scope="module")
def account(toque: ToqueProcess) -> Account:
    return toque.add_client("Escritório", vendas=["554130600300"])


def test_a_trial_post_shows_that_a_url_works(toque: ToqueProcess, account: Account, receiver: RecordingReceiver) -> None:
    registration = account.api().add_callback(receiver.url("/works", user="maria:s3nh4"), "vendas")
    done = toque.run("callback", "test", registration.code)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{re.escape(receiver.url('/works'))}: 204 \(\d+ ms\)\n", done.stdout)
    told = toque.cli("callback", "test", registration.code)
    assert (told["code"], told["delivered"], told["answer"]) == (registration.code, True, "204")

    posts = receiver.posts_to("/works")
    assert_signed(posts, registration.secret or "")
    assert [post.word for post in posts] == ["desligou"] * 2
    assert [post.data["pin"] for post in posts] == ["vendas"] * 2
    assert posts[0].id != posts[1].id
    assert posts[0].headers["authorization"] == "Basic bWFyaWE6czNuaDQ="
    assert toque.rows("SELECT count(*) FROM events") == [(0,)]


def test_a_trial_post_shows_what_a_url_answered(toque: ToqueProcess, account: Account, receiver: RecordingReceiver) -> None:
    code = account.api().add_callback(receiver.url("/broken")).code
    receiver.behave(lambda _: Reply(500))
    done = toque.run("callback", "test", code)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{receiver.url('/broken')}: 500" in done.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_a_trial_post_shows_that_nobody_listens(toque: ToqueProcess, account: Account, as_json: bool) -> None:
    url = f"http://127.0.0.1:{free_port()}/nobody"
    code = account.api().add_callback(url).code
    done = toque.run("callback", "test", code, *(["--json"] if as_json else []))
    assert (done.returncode, done.stderr) == (1, "")
    if as_json:
        told = json.loads(done.stdout)
        assert (told["delivered"], told["url"]) == (False, url)
        assert "refused" in told["answer"]
    else:
        assert re.match(rf"{re.escape(url)}: .*refused", done.stdout)


def test_a_trial_post_needs_a_code_that_exists(toque: ToqueProcess) -> None:
    done = toque.run("callback", "test", "0" * 40)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"toque: there is no callback '{'0' * 40}'\n"
