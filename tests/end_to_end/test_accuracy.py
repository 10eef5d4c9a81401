"""docs/accuracy.md is what the runs give. That lost connections change nothing at AMI and ESL is test_switches.py's."""

import re
from collections.abc import Sequence

import pytest
from tests.support.accuracy_runs import Play, run
from tools.accuracy import NOTES, PAGE, judge, page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Play]:
    return run(tmp_path_factory.mktemp("accuracy"), {"ami": ["whole"], "esl": ["whole"]})


def test_the_page_is_what_the_runs_give(every: Sequence[Play]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(every), "run `make accuracy`"


def test_what_is_not_right_is_explained_and_never_of_a_proxy(every: Sequence[Play]) -> None:
    """And an end is told wrongly only where SIP does not show it."""
    for play in every:
        verdict = judge(play)
        explained = [note for note in NOTES if play.kind in note.kinds and re.fullmatch(note.scenarios, play.scenario)]
        assert verdict.is_right or (explained and play.switch != "kamailio"), (play.name, verdict)


def test_every_side_is_told_each_status_once_and_in_order(every: Sequence[Play]) -> None:
    for play in every:
        for posts in play.sides():
            told = [post.word for post in posts]
            assert [post.data["sequencia"] for post in posts] == list(range(1, len(posts) + 1)), play.name
            assert len(set(told)) == len(told), play.name


def test_where_there_is_no_call_nothing_is_told(every: Sequence[Play]) -> None:
    assert [play.name for play in every if not play.truths and play.posts] == []
