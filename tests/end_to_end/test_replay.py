"""Replays, disabling and enabling: the commands on a running server, and what the customer's URL sees of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.hep_sender import send_by_tcp
from tests.support.recording_receiver import Post, RecordingReceiver, Reply, by_side, words
from tests.support.sip_messages import ProxiedCall
from tests.support.toque_process import ToqueProcess

LINE = "554130600300"
ANSWERED = ["iniciou", "chamando", "atendeu", "desligou"]


@pytest.fixture
def receiver() -> Iterator[RecordingReceiver]:
    with RecordingReceiver() as receiver:
        yield receiver


@pytest.fixture
def toque(tmp_path: Path) -> Iterator[ToqueProcess]:
    with ToqueProcess(tmp_path) as toque:
        yield toque


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


def register(toque: ToqueProcess, receiver: RecordingReceiver) -> str:
    return toque.add_client("Escritório", vendas=[LINE]).api().add_callback(receiver.url()).code


def ids(posts: list[Post]) -> list[str]:
    return [post.id for post in posts]


def test_everything_since_a_time_comes_again_with_its_ids_and_in_order(toque: ToqueProcess, receiver: RecordingReceiver) -> None:
    code = register(toque, receiver)
    make_calls(toque, 0, 20)
    first = receiver.wait_for_count(80)
    done = toque.cli("replay", code, "--since", "1h", "--rate", "1000", "--follow")
    assert (done["state"], done["requeued"]) == ("done", 80)
    again = receiver.wait_for_count(160)[80:]
    assert sorted(ids(again)) == sorted(ids(first))
    assert [words(side) for side in by_side(again).values()] == [ANSWERED] * 20
    assert "replay.ended" in toque.log


def test_one_call_and_one_event_come_again(toque: ToqueProcess, receiver: RecordingReceiver) -> None:
    code = register(toque, receiver)
    make_calls(toque, 0, 3)
    first = receiver.wait_for_count(12)
    chosen = first[0].data["callerid"]
    toque.cli("replay", code, "--call", chosen, "--follow")
    again = receiver.wait_for_count(16)[12:]
    assert words(again) == ANSWERED
    assert {post.data["callerid"] for post in again} == {chosen}
    toque.cli("replay", code, "--event", first[5].id, "--follow")
    assert ids(receiver.wait_for_count(17)[16:]) == [first[5].id]


def test_what_died_while_it_was_disabled_comes_again(toque: ToqueProcess, receiver: RecordingReceiver) -> None:
    code = register(toque, receiver)
    receiver.behave(lambda _: Reply(500))
    make_calls(toque, 0, 5)
    receiver.wait_for_count(5)
    toque.cli("callback", "disable", code)
    toque.wait_until(lambda: len(toque.cli("callback", "dead", code)) == 20, "what waited is not dead")
    make_calls(toque, 5, 1)  # nobody wants these
    receiver.behave(lambda _: Reply(204))
    before = len(receiver.posts)
    toque.cli("callback", "enable", code)
    make_calls(toque, 6, 1)
    told = receiver.wait_for_count(before + 4)[before:]
    assert words(told) == ANSWERED
    assert toque.cli("replay", code, "--dead", "--follow")["requeued"] == 20
    again = receiver.wait_for_count(before + 24)[before + 4 :]
    assert [words(side) for side in by_side(again).values()] == [ANSWERED] * 5
    assert toque.cli("callback", "dead", code) == []


def test_a_replay_goes_on_where_a_crash_left_it(toque: ToqueProcess, receiver: RecordingReceiver) -> None:
    code = register(toque, receiver)
    make_calls(toque, 0, 50)
    first = receiver.wait_for_count(200)
    begun = toque.cli("replay", code, "--since", "1h", "--rate", "100")
    receiver.wait_for_count(240)
    toque.kill()
    toque.start()
    toque.wait_ready()
    toque.wait_until(lambda: toque.cli("replay", "list")[0]["state"] == "done", "the replay does not go on")
    posts = receiver.wait_for(lambda posts: len(set(ids(posts[200:]))) == 200)
    assert toque.cli("replay", "list")[0]["id"] == begun["id"]
    assert toque.cli("replay", "list")[0]["requeued"] == 200
    assert set(ids(posts[200:])) == set(ids(first))
    assert len(posts) < 400 + 20  # what was under way at the crash comes once more, and no more than that
    for side in by_side(posts[200:]).values():
        seen = list(dict.fromkeys(words(side)))
        assert seen == ANSWERED
