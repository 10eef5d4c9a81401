"""Counting and timing deliveries."""

import time

from toque.bench.stopwatch import Stopwatch, quantile


def test_all_are_counted_and_one_of_so_many_is_timed():
    watch = Stopwatch(timed_every=2)
    watch.begin(range(10), time.monotonic())
    watch.end(range(4))
    assert (watch.accepted, watch.delivered, watch.outstanding) == (10, 4, 6)
    assert len(watch.take_delays_ms()) == 2


def test_delays_run_from_the_given_moment_and_are_taken_once():
    watch = Stopwatch()
    watch.begin([1], time.monotonic() - 1)
    watch.begin([2], time.monotonic())
    watch.end([1, 2, 3])
    shorter, longer = watch.take_delays_ms()
    assert 0 <= shorter < 1000 <= longer
    assert watch.take_delays_ms() == []


def test_quantiles():
    values = [float(number) for number in range(100)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (50.0, 99.0, 99.0)
    assert quantile([], 0.5) is None
