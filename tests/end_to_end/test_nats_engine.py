"""`toque serve --store nats://…`: the same program on the distributed engine, with a switch, a receiver, and kill -9."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.hep_sender import send_by_tcp
from tests.support.nats_servers import NatsServers
from tests.support.recording_receiver import Post, RecordingReceiver, Reply, by_side, words
from tests.support.sip_messages import ProxiedCall
from tests.support.toque_process import ToqueProcess

pytestmark = pytest.mark.nats

LINE = "554130600300"
ANSWERED = ["iniciou", "chamando", "atendeu", "desligou"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    more = 'authorization { users: [ { user: toque, password: "uma senha" } ] }'
    with NatsServers(tmp_path_factory.mktemp("nats"), more=more) as servers:
        yield servers


@pytest.fixture
def receiver() -> Iterator[RecordingReceiver]:
    with RecordingReceiver() as receiver:
        yield receiver


def with_password(engine: NatsServers) -> str:
    return engine.url.replace("nats://", "nats://toque:uma%20senha@")


@pytest.fixture
def toque(tmp_path: Path, engine: NatsServers) -> Iterator[ToqueProcess]:
    with ToqueProcess(tmp_path, store=with_password(engine), nats_prefix=f"e2e-{tmp_path.name[-20:]}") as toque:
        yield toque
        assert "senha" not in toque.log


def make_calls(toque: ToqueProcess, first: int, count: int) -> None:
    packets = []
    for number in range(first, first + count):
        call = ProxiedCall(f"call{number}@pbx", caller=LINE)
        call.invite()
        call.ring(after=0.01)
        call.answer(after=0.01)
        call.hang_up(after=0.01)
        packets += call.packets
    send_by_tcp(toque.hep_port, packets)


def ids(posts: list[Post]) -> list[str]:
    return [post.id for post in posts]


def test_calls_are_told_over_a_kill_and_a_stop_in_order_and_replayed(toque: ToqueProcess, receiver: RecordingReceiver) -> None:
    code = toque.add_client("Escritório", vendas=[LINE]).api().add_callback(receiver.url()).code
    make_calls(toque, 0, 20)
    receiver.wait_for_count(80)
    with receiver.hold():
        make_calls(toque, 20, 20)
        toque.wait_until(lambda: toque.health()["events"] == 160, "not all calls have been told to the store")
        toque.kill()
    toque.start()
    toque.wait_ready()
    posts = receiver.wait_for(lambda posts: len(set(ids(posts))) == 160)
    for side in by_side(posts).values():
        assert list(dict.fromkeys(words(side))) == ANSWERED
    receiver.behave(lambda _: Reply(500))
    make_calls(toque, 40, 5)
    toque.wait_until(lambda: toque.health()["parked_callbacks"] == 1, "the URL is not parked")
    receiver.behave(lambda _: Reply(204))
    toque.restart()
    posts = receiver.wait_for(lambda posts: len({post.id for post in posts if post.status == 204}) == 180)
    toque.wait_until(lambda: toque.waiting() == 0, "something waits")
    before = len(receiver.posts)
    done = toque.cli("replay", code, "--since", "1h", "--rate", "1000", "--follow")
    assert (done["state"], done["requeued"]) == ("done", 180)
    again = receiver.wait_for_count(before + 180)[before:]
    assert [words(side) for side in by_side(again).values()] == [ANSWERED] * 45


def test_one_server_to_a_prefix_and_errors_in_one_line(toque: ToqueProcess, engine: NatsServers) -> None:
    second = toque.run("serve", "--http", "127.0.0.1:0", "--hep", "127.0.0.1:0")
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert f"another toque server uses {engine.url}" in second.stderr
    wrong = toque.run("client", "list", "--store", engine.url.replace("nats://", "nats://toque:falsa@"))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "refuses these credentials" in wrong.stderr
    nobody = toque.run("client", "list", "--store", "nats://127.0.0.1:1")
    assert (nobody.returncode, nobody.stderr.count("\n")) == (1, 1)
    assert "cannot be reached" in nobody.stderr
    for told in (second, wrong, nobody):
        assert "senha" not in told.stderr + told.stdout
        assert "falsa" not in told.stderr + told.stdout


def test_without_its_engine_it_says_so_goes_on_trying_and_ends_in_order(tmp_path: Path, receiver: RecordingReceiver) -> None:
    with NatsServers(tmp_path) as servers, ToqueProcess(tmp_path, store=servers.url) as toque:
        toque.add_client("Escritório", vendas=[LINE]).api().add_callback(receiver.url())
        make_calls(toque, 0, 1)
        receiver.wait_for_count(4)
        servers.kill(0)
        make_calls(toque, 1, 3)
        toque.wait_until(lambda: toque.health()["status"] == "failing", "/health is ok without an engine")
        servers.start(0)
        posts = receiver.wait_for(lambda posts: len(set(ids(posts))) == 16)
        assert [words(side) for side in by_side(posts).values()] == [ANSWERED] * 4
        toque.wait_ready()
        servers.kill(0)
        toque.signal(signal.SIGTERM)
        assert toque.wait(90) == 0  # it waits for each thing that may still become durable: posts, outcomes, health, the lease
