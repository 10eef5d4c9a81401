"""`toque store copy`: an installation moves from a file to an engine and back, and goes on as if nothing had happened."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.hep_sender import send_by_tcp
from tests.support.nats_servers import NatsServers
from tests.support.recording_receiver import RecordingReceiver, by_side, words
from tests.support.sip_messages import ProxiedCall
from tests.support.toque_process import COMMAND, ToqueProcess

pytestmark = pytest.mark.nats

LINE = "554130600300"
ANSWERED = ["iniciou", "chamando", "atendeu", "desligou"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    more = 'authorization { users: [ { user: toque, password: "uma senha" } ] }'
    with NatsServers(tmp_path_factory.mktemp("nats"), more=more) as servers:
        yield servers


@pytest.fixture
def receivers() -> Iterator[tuple[RecordingReceiver, RecordingReceiver]]:
    with RecordingReceiver() as well, RecordingReceiver() as ill:
        yield well, ill


def with_password(engine: NatsServers) -> str:
    return engine.url.replace("nats://", "nats://toque:uma%20senha@")


def calls(first: int, count: int) -> list[ProxiedCall]:
    made = []
    for number in range(first, first + count):
        call = ProxiedCall(f"call{number}@pbx", caller=LINE)
        call.invite()
        call.ring(after=0.01)
        made.append(call)
    return made


def end(made: list[ProxiedCall]) -> None:
    for call in made:
        call.answer(after=0.01)
        call.hang_up(after=0.01)


def play(toque: ToqueProcess, made: list[ProxiedCall]) -> None:
    send_by_tcp(toque.hep_port, [packet for call in made for packet in call.packets])
    for call in made:
        call.packets.clear()


def copied(toque: ToqueProcess, source: str, target: str) -> dict[str, int]:
    rows: list[dict[str, Any]] = toque.cli("store", "copy", source, target)
    assert all(row["from"] == row["to"] for row in rows)
    return {row["kind"]: row["to"] for row in rows}


def test_an_installation_moves_there_and_back(
    tmp_path: Path, engine: NatsServers, receivers: tuple[RecordingReceiver, RecordingReceiver]
) -> None:
    well, ill = receivers
    prefix = f"move-{tmp_path.name[-20:]}"
    first, nats, second = f"sqlite://{tmp_path}/toque.db", with_password(engine), f"sqlite://{tmp_path}/back.db"
    settings = {"nats_prefix": prefix, "secret_key": "uma chave bem comprida para o teste", "stop_grace": "0s"}
    with ToqueProcess(tmp_path, **settings) as toque:
        account = toque.add_client("Escritório", vendas=[LINE])
        api = account.api()
        code, _ = api.add_callback(well.url()).code, api.add_callback(ill.url())
        toque.cli("intake", "add", "discador")
        over, open_ones = calls(0, 10), calls(10, 5)
        end(over)
        with ill.hold():
            play(toque, [*over, *open_ones])
            well.wait_for_count(50)
            busy = toque.run("store", "copy", first, nats)
            assert (busy.returncode, busy.stderr.count("\n")) == (2, 1), busy.stderr
            assert "another toque server uses" in busy.stderr
            assert toque.terminate() == 0
        there = copied(toque, first, nats)
        assert there == {
            "clients": 1, "lines": 1, "callbacks": 2, "intake credentials": 1, "replays": 0, "events": 50, "calls": 15,
            "calls in progress": 5, "waiting deliveries": 50, "dead deliveries": 0, "outcomes": there["outcomes"],
        }  # fmt: skip
        assert copied(toque, first, nats) == there  # once more adds nothing
        assert copied(toque, nats, second) == there

        toque.settings["store"] = second
        end(open_ones)
        toque.start()
        toque.wait_ready()
        play(toque, open_ones)
        posts = well.wait_for_count(60)
        # Calls in progress go on without a gap.
        assert [words(side) for side in by_side(posts).values()] == [ANSWERED] * 15
        # Whoever did not answer gets all of it, in order and under the ids of the others.
        late = ill.wait_for(lambda posts: len({post.id for post in posts}) == 60)
        assert [list(dict.fromkeys(words(side))) for side in by_side(late).values()] == [ANSWERED] * 15
        assert {post.id for post in late} == {post.id for post in posts}
        done = toque.cli("replay", code, "--since", "1h", "--rate", "1000", "--follow")
        assert (done["state"], done["requeued"]) == ("done", 60)
        well.wait_for_count(120)
        assert toque.terminate() == 0

        # The engine's copy is as good; and no copy is made into a store that is in use.
        toque.settings["store"] = nats
        toque.start()
        toque.wait_ready()
        assert toque.terminate() == 0
        used = toque.run("store", "copy", second, nats)
        assert (used.returncode, used.stderr.count("\n")) == (2, 1)
        assert "senha" not in used.stderr


def test_a_copy_that_was_killed_is_finished_by_the_next(tmp_path: Path, engine: NatsServers) -> None:
    with RecordingReceiver() as ill, ToqueProcess(tmp_path, nats_prefix=f"kill-{tmp_path.name[-20:]}") as toque:
        toque.add_client("Escritório", vendas=[LINE]).api().add_callback(ill.url())
        over = calls(0, 300)
        end(over)
        with ill.hold():  # so nothing of it is delivered when the server dies
            play(toque, over)
            toque.wait_until(lambda: toque.health()["events"] == 1200, "not all calls have been told to the store")
            toque.kill()
        told = len(ill.posts)
        for source, target in (
            (f"sqlite://{tmp_path}/toque.db", with_password(engine)),
            (with_password(engine), f"sqlite://{tmp_path}/back.db"),
        ):
            kill_at(toque, "copied: outcomes", signal.SIGINT, source, target)
            kill_at(toque, "copied: calls", signal.SIGKILL, source, target)
            toque.settings["store"] = target
            refused = toque.run("serve")
            assert (refused.returncode, "broken off" in refused.stderr) == (2, True), refused.stderr
            there = copied(toque, source, target)
            assert (there["events"], there["waiting deliveries"], there["calls"]) == (1200, 1200, 300)
        toque.start()
        toque.wait_ready()
        late = ill.wait_for(lambda posts: len({post.id for post in posts[told:]}) == 1200)[told:]
        assert [list(dict.fromkeys(words(side))) for side in by_side(late).values()] == [ANSWERED] * 300


def kill_at(toque: ToqueProcess, milestone: str, how: signal.Signals, source: str, target: str) -> None:
    """Begin a copy, and end it as soon as it says this."""
    command = [COMMAND, "store", "copy", source, target]
    with subprocess.Popen(command, env=toque.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(milestone):
                process.send_signal(how)
                break
        else:
            pytest.fail(f"it never said {milestone}")
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == (130 if how is signal.SIGINT else -how)
