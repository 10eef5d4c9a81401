"""What a receiver counts."""

import pytest

from toque.bench.tally import Tally

CALLS = ("0b1c6f0a-0000-5000-8000-000000000001", "0b1c6f0a-0000-5000-8000-000000000002")


def told(*posts: tuple[int, int, int]) -> dict[str, float | None]:
    """The report after these posts: receiver, call, sequence."""
    tally = Tally()
    for receiver, call, sequence in posts:
        body = f"data=%7B%22id%22%3A%22x%22%2C%22callerid%22%3A%22{CALLS[call]}%22%2C%22sequencia%22%3A{sequence}%2C%22pin%22%3A%22a%22%7D"
        tally.note(receiver, body.encode())
    return tally.report()


@pytest.mark.parametrize(
    ("sequences", "duplicates", "disordered"),
    [
        ([1, 2, 3, 4], 0, 0),
        ([1, 2, 2, 3], 1, 0),
        ([1, 2, 3, 1], 1, 0),
        ([2, 1], 0, 2),
        ([1, 3, 2], 0, 2),
        ([1, 2, 4], 0, 1),
        ([], 0, 0),
    ],
)
def test_repetitions_and_disorder_within_a_call_are_told_apart(sequences: list[int], duplicates: int, disordered: int):
    report = told(*((0, 0, sequence) for sequence in sequences))
    assert report["arrived"] == len(sequences)
    assert (report["duplicates"], report["disordered"]) == (duplicates, disordered)


def test_calls_have_nothing_to_do_with_each_other():
    report = told((0, 0, 1), (0, 1, 1), (0, 1, 2), (0, 0, 2))
    assert (report["arrived"], report["duplicates"], report["disordered"]) == (4, 0, 0)


def test_times_are_of_the_first_post_the_last_receivers_first_and_the_last():
    report = told((0, 0, 1), (1, 1, 1), (0, 0, 2))
    first_s, woken_s, last_s = report["first_s"], report["woken_s"], report["last_s"]
    assert first_s is not None
    assert woken_s is not None
    assert last_s is not None
    assert first_s <= woken_s <= last_s


def test_nothing_came():
    report = told()
    assert (report["first_s"], report["woken_s"], report["last_s"]) == (None, None, None)


def test_what_is_no_status_is_no_arrival():
    with pytest.raises(ValueError, match="callerid"):
        Tally().note(0, b"x" * 100)
