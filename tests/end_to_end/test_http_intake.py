"""The HTTP intake of a real server: what it takes, refuses and answers, who may post, and what is there after a crash."""

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.faults.storm.breakage import files_limited, locked
from tests.support.recording_receiver import RecordingReceiver, words
from tests.support.toque_process import HOST, PATIENCE_S, ToqueProcess

from toque.calls.http_items import MAX_ITEMS
from toque.web.ingest import MAX_BODY_BYTES

LINE, ELSEWHERE = "554130600300", "5511977770002"
WHOLE = ("iniciou", "chamando", "atendeu", "desligou")
LIMIT = 256 * 1024


@dataclass
class Poster:
    """Posts with one token, each request over a connection of its own or one that is kept."""

    toque: ToqueProcess
    token: str
    connection: http.client.HTTPConnection | None = None

    def request(
        self, body: bytes, kind: str = "application/json", *, query: str = "", method: str = "POST", **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """One request: status, answer, headers."""
        connection = self.connection or http.client.HTTPConnection(HOST, self.toque.http_port, timeout=PATIENCE_S)
        fields = {"Authorization": f"Bearer {self.token}", "Content-Type": kind} | headers
        try:
            connection.request(method, f"/intake/events{query}", body, fields)
            with connection.getresponse() as response:
                return response.status, json.loads(response.read() or b"null"), response.headers
        finally:
            if self.connection is None:
                connection.close()

    def post(self, *items: dict[str, Any], query: str = "") -> dict[str, Any]:
        """Items that must be taken; the answer."""
        status, told, _ = self.request(json.dumps(items).encode(), query=query)
        assert status == 200, told
        return told

    def results(self, *items: dict[str, Any]) -> list[str]:
        return [item["result"] for item in self.post(*items)["items"]]


def call(name: str, *statuses: str, **members: Any) -> list[dict[str, Any]]:
    """The items of an outgoing call."""
    return [{"call": f"{name}-{_test}", "status": status, "from": LINE, "to": ELSEWHERE} | members for status in statuses]


@pytest.fixture(scope="module")
def toque(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToqueProcess]:
    with ToqueProcess(tmp_path_factory.mktemp("intake")) as toque:
        toque.add_client("Escritório", vendas=[LINE])
        yield toque


_names = itertools.count()
_test = 0  # a call's name is used once, and most tests share a poster


@pytest.fixture(autouse=True)
def _new_names() -> None:
    global _test  # noqa: PLW0603
    _test += 1


def add_poster(toque: ToqueProcess) -> tuple[str, Poster]:
    """A new credential, which the running server knows."""
    told = toque.cli("intake", "add", f"dialer{next(_names)}")
    poster = Poster(toque, told["token"])
    toque.wait_until(lambda: poster.request(b"[]")[0] == 200, "the token is not known")
    return told["name"], poster


@pytest.fixture(scope="module")
def poster(toque: ToqueProcess) -> Poster:
    return add_poster(toque)[1]


# What is told


def test_posted_calls_reach_the_customers_url(tmp_path: Path) -> None:
    with ToqueProcess(tmp_path) as toque, RecordingReceiver() as receiver:
        toque.add_client("Escritório", vendas=[LINE]).api().add_callback(receiver.url())
        _, poster = add_poster(toque)
        told = poster.post(*call("c1", *WHOLE, answered_by="1001"), query="?answer=long")
        assert [item["result"] for item in told["items"]] == ["accepted"] * 4
        posts = receiver.wait_for_count(4)
        assert words(posts) == list(WHOLE)
        assert {post.data["callerid"] for post in posts} == {item["callerid"] for item in told["items"]}
        assert (posts[3].data["tipo"], posts[3].data["atendido_por"]) == ("realizada", "1001")


def test_repetitions_add_nothing_even_after_a_restart(tmp_path: Path) -> None:
    with ToqueProcess(tmp_path) as toque:
        toque.add_client("Escritório", vendas=[LINE])
        _, poster = add_poster(toque)
        whole, open_call = call("c1", *WHOLE), call("c2", "iniciou", "chamando")
        assert poster.results(*whole, *open_call) == ["accepted"] * 6
        assert poster.results(*whole, *open_call) == ["repeated"] * 6
        toque.restart()
        assert poster.results(*open_call) == ["repeated"] * 2
        assert poster.results(*whole) == ["repeated"] * 4
        assert poster.results(*call("c2", "busy")) == ["accepted"]
        assert toque.rows("SELECT count(*) FROM events") == [(7,)]


def test_two_posters_calls_of_the_same_name_are_two_calls(toque: ToqueProcess, poster: Poster) -> None:
    _, other = add_poster(toque)
    calls = [one.post(*call("same", "busy"))["items"][0] for one in (poster, other)]
    assert [item["result"] for item in calls] == ["accepted"] * 2
    assert len({item["callerid"] for item in calls}) == 2


# What is answered


def test_every_item_has_its_answer(poster: Poster) -> None:
    told = poster.post(
        *call("c1", "initiated", id=7), *call("c1", "initiated"), *call("c2", "busy", **{"from": "1"}), {"call": "c3"}
    )
    counts = {name: told[name] for name in ("accepted", "repeated", "unmatched", "refused")}
    assert counts == dict.fromkeys(counts, 1)
    assert [item["index"] for item in told["items"]] == [0, 1, 2, 3]
    assert [item["result"] for item in told["items"]] == ["accepted", "repeated", "unmatched", "refused"]
    assert told["items"][0]["id"] == 7
    assert "status" in told["items"][3]["reason"]


def test_a_short_answer_has_only_what_is_refused(poster: Poster) -> None:
    told = poster.post(*call("c1", *WHOLE), {"call": "c3", "id": "x"}, query="?answer=short")
    assert (told["accepted"], told["refused"]) == (4, 1)
    (item,) = told["items"]
    assert (item["index"], item["call"], item["id"], item["result"]) == (4, "c3", "x", "refused")


def test_lines_and_large_bodies_are_taken(poster: Poster) -> None:
    items = [item for number in range(MAX_ITEMS // 4) for item in call(f"c{number}", *WHOLE)]
    lines = b"\n".join(json.dumps(item | {"note": "x" * 500}).encode() for item in items)
    assert 4 * 2**20 < len(lines) < MAX_BODY_BYTES
    status, told, _ = poster.request(lines, "application/x-ndjson; charset=utf-8", query="?answer=short")
    assert (status, told["accepted"], told["items"]) == (200, MAX_ITEMS, [])


@pytest.mark.parametrize(
    ("body", "kind", "status", "error"),
    [
        (b"{", "application/json", 400, "unreadable"),
        (b"", "application/json", 400, "unreadable"),
        (b"[1, 2", "application/json", 400, "unreadable"),
        (b"oops\noops", "application/x-ndjson", 400, "unreadable"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"[" + b",".join([b"1"] * (MAX_ITEMS + 1)) + b"]", "application/json", 413, "too_large"),
    ],
)
def test_what_cannot_be_read_is_refused_as_a_whole(poster: Poster, body: bytes, kind: str, status: int, error: str) -> None:
    told = poster.request(body, kind)
    assert (told[0], told[1]["error"]) == (status, error)


def test_a_body_in_which_nothing_is_right_is_422(poster: Poster) -> None:
    status, told, _ = poster.request(b'{"status": "ringing"}')
    assert (status, told["refused"], told["items"][0]["reason"]) == (422, 1, "Object missing required field call")


def test_a_compressed_body_is_refused(poster: Poster) -> None:
    assert poster.request(b"[]", **{"Content-Encoding": "gzip"})[0] == 415


def test_too_large_a_body_is_refused(poster: Poster) -> None:
    assert poster.request(b"", **{"Content-Length": str(MAX_BODY_BYTES + 1)})[0] == 413

    def parts() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * 2**20

    with closing(http.client.HTTPConnection(HOST, poster.toque.http_port, timeout=PATIENCE_S)) as connection:
        try:
            connection.request("POST", "/intake/events", parts(), {"Authorization": f"Bearer {poster.token}"})
        except (BrokenPipeError, ConnectionResetError):
            return  # the server answered and closed before all was sent
        with connection.getresponse() as response:
            assert response.status == 413


def test_other_methods_and_the_schema(toque: ToqueProcess, poster: Poster) -> None:
    status, _, headers = poster.request(b"", method="GET")
    assert (status, headers["Allow"]) == (405, "POST")
    status, body = toque.get("/intake/schema.json")
    assert status == 200
    schema = json.loads(body)
    assert set(schema["required"]) == {"call", "status"}
    assert {"hung_up", "desligou", "ended"} <= set(schema["properties"]["status"]["enum"])
    assert toque.get("/intake/nothing")[0] == 404


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300) | st.text(max_size=60).map(str.encode), is_lines=st.booleans())
def test_any_body_is_answered(kept: Poster, body: bytes, is_lines: bool) -> None:
    status, told, _ = kept.request(body, "application/x-ndjson" if is_lines else "application/json")
    assert status in (200, 400, 422)
    assert told["error"] == "unreadable" if status == 400 else told["refused"] == len(told["items"])


@pytest.fixture
def kept(poster: Poster) -> Iterator[Poster]:
    with closing(http.client.HTTPConnection(HOST, poster.toque.http_port, timeout=PATIENCE_S)) as connection:
        yield Poster(poster.toque, poster.token, connection)


# Who may post


def test_a_running_server_sees_new_changed_and_removed_credentials(toque: ToqueProcess) -> None:
    name, poster = add_poster(toque)
    assert [one["name"] for one in toque.cli("intake", "list")].count(name) == 1
    token = toque.cli("intake", "rotate", name)["token"]
    assert token != poster.token
    other = Poster(toque, token)
    toque.wait_until(lambda: other.request(b"[]")[0] == 200, "the new token is not known")
    assert poster.request(b"[]")[0] == 401
    assert toque.cli("intake", "remove", name) == {"name": name, "state": "removed"}
    toque.wait_until(lambda: other.request(b"[]")[0] == 401, "the token is still known")
    assert name not in [one["name"] for one in toque.cli("intake", "list")]


def test_the_store_and_the_log_have_no_token(toque: ToqueProcess, poster: Poster) -> None:
    poster.post(*call("c1", "busy", **{"from": "4133334444"}))
    assert poster.token not in toque.log
    kept = b"".join(path.read_bytes() for path in toque.folder.glob("toque.db*"))
    assert poster.token.encode() not in kept


@pytest.mark.parametrize("arguments", [("rotate", "nobody"), ("remove", "nobody")])
def test_an_unknown_name_is_exit_code_1(toque: ToqueProcess, arguments: tuple[str, ...]) -> None:
    done = toque.run("intake", *arguments)
    assert (done.returncode, done.stderr) == (1, "toque: there is no intake credential 'nobody'\n")


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65])
def test_a_bad_name_is_exit_code_2(toque: ToqueProcess, name: str) -> None:
    done = toque.run("intake", "add", "--", name)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_token_opens_its_own_door_only(toque: ToqueProcess, poster: Poster) -> None:
    account = toque.add_client(f"client{next(_names)}")
    with closing(http.client.HTTPConnection(HOST, toque.http_port, timeout=PATIENCE_S)) as connection:
        form = f"client_id={account.client_id}&client_secret={account.client_secret}"
        connection.request("POST", "/request_token", form, {"Content-Type": "application/x-www-form-urlencoded"})
        with connection.getresponse() as response:
            token = json.loads(response.read())["access_token"]
    for wrong in ("", "x", poster.token + "x", token):
        status, told, headers = Poster(toque, wrong).request(b"[]")
        assert (status, told["error"]) == (401, "unauthorized")
        assert headers["WWW-Authenticate"].startswith("Bearer")
    assert toque.get(f"/voz/list-callback?access_token={poster.token}")[0] == 401


# What may go wrong


def test_what_was_answered_survives_kills_and_posting_it_again_adds_nothing(tmp_path: Path) -> None:
    """Three posters, three kills; a request without an answer is made again, and at the end all of them are."""
    with ToqueProcess(tmp_path) as toque:
        toque.add_client("Escritório", vendas=[LINE])
        _, first = add_poster(toque)
        bodies = [
            [[item for number in range(10) for item in call(f"p{thread}-{batch}-{number}", *WHOLE)] for batch in range(20)]
            for thread in range(3)
        ]
        answered: Counter[int] = Counter()
        threads = [
            threading.Thread(target=_post_until_taken, args=(Poster(toque, first.token), mine, answered, number))
            for number, mine in enumerate(bodies)
        ]
        for thread in threads:
            thread.start()
        for kill in range(3):
            toque.wait_until(lambda least=12 * (kill + 1): sum(answered.values()) >= least, "nothing is taken")
            toque.kill()
            toque.start()
            toque.wait_ready()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        everything = [(2400,)]
        assert toque.rows("SELECT count(*) FROM events") == everything
        for mine in bodies:
            for body in mine:
                told = Poster(toque, first.token).post(*body, query="?answer=short")
                assert told["refused"] == told["unmatched"] == 0
        assert toque.rows("SELECT count(*) FROM events") == everything
        assert toque.rows("SELECT count(*) FROM (SELECT DISTINCT id FROM events)") == everything
        gaps = "SELECT count(*) FROM (SELECT callerid, max(sequence) AS m, count(*) AS n FROM events GROUP BY callerid) WHERE m <> 4 OR n <> 4"
        assert toque.rows(gaps) == [(0,)]


def _post_until_taken(poster: Poster, bodies: list[list[dict[str, Any]]], answered: Counter[int], number: int) -> None:
    """What got 200 must be there at once, in whatever server that comes next."""
    until = time.monotonic() + PATIENCE_S
    for body in bodies:
        while time.monotonic() < until:
            try:
                status, told, _ = poster.request(json.dumps(body).encode(), query="?answer=short")
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.02)
                continue
            if status == 200 and told["accepted"] + told["repeated"] == len(body):
                answered[number] += 1
                break
            time.sleep(0.02)


def test_a_store_that_cannot_write_is_503_and_then_all_is_well_again(tmp_path: Path) -> None:
    with ToqueProcess(tmp_path) as toque:
        toque.add_client("Escritório", vendas=[LINE])
        _, poster = add_poster(toque)
        refused, taken = 0, -1
        with files_limited(toque.pid, LIMIT):
            for number in itertools.count():
                body = json.dumps([item for one in range(50) for item in call(f"c{number}-{one}", *WHOLE)]).encode()
                status, told, headers = poster.request(body, query="?answer=short")
                if status == 503:
                    assert (told["error"], headers["Retry-After"]) == ("busy", "1")
                    refused += 1
                    if refused == 3:
                        break
                else:
                    assert status == 200
                    taken = number
        toque.wait_until(lambda: poster.request(body, query="?answer=short")[0] == 200, "it does not recover")
        count = toque.rows("SELECT count(*) FROM events")[0][0]
        assert count % 200 == 0
        assert count >= 200 * (taken + 1)
        assert poster.request(body)[1]["repeated"] == 200


def test_a_locked_store_makes_posters_wait(toque: ToqueProcess, poster: Poster) -> None:
    done: list[int] = []
    with locked(toque.store):
        thread = threading.Thread(target=lambda: done.append(poster.request(json.dumps(call("locked", "busy")).encode())[0]))
        thread.start()
        thread.join(0.5)
        assert done == []
    thread.join(PATIENCE_S)
    assert done == [200]
