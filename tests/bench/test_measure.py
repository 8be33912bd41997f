"""Taking turns, and ratios, on clocks that say what the test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import pytest
import torch

from mgmae_cli.bench.measure import Competitor, Figure, Timings, race


def fake_clock(seconds: list[float]) -> Callable[[Callable[[], Any]], float]:
    """Return a clock that calls what it times, and says one after the other of `seconds`."""
    said: Iterator[float] = iter(seconds)

    def clock(run: Callable[[], Any]) -> float:
        run()
        return next(said)

    return clock


def test_competitors_take_turns_and_are_told_the_same_rounds() -> None:
    turns: list[tuple[str, int]] = []

    def competitor(name: str) -> Competitor:
        return Competitor(name, lambda number: turns.append((name, number)))

    race([competitor("a"), competitor("b"), competitor("c")], repeats=3, warmups=2)
    assert turns == [(name, number) for number in range(5) for name in "abc"]


def test_warm_up_rounds_do_not_count_and_the_first_one_is_told() -> None:
    clock = fake_clock([9.0, 5.0, 1.0, 2.0, 3.0])
    timings = race([Competitor("a", lambda number: None, clock=clock)], repeats=3, warmups=2)["a"]
    assert timings.first == 9.0
    assert timings.seconds == (1.0, 2.0, 3.0)


def test_what_runs_is_told() -> None:
    said: list[str] = []
    race([Competitor("a", lambda number: None)], 2, said.append, warmups=1)
    assert said == ["warm-up: a", "round 1 of 2: a", "round 2 of 2: a"]


def test_ratios_are_taken_within_rounds() -> None:
    """A machine that becomes ten times as slow half-way leaves the ratio as it is; a ratio of medians would not be."""
    ours = Competitor("ours", lambda number: None, clock=fake_clock([1.0, 1.0, 10.0, 10.0, 10.0]))
    peer = Competitor("peer", lambda number: None, clock=fake_clock([2.0, 2.0, 2.0, 20.0, 20.0]))
    timings = race([ours, peer], repeats=5, warmups=0)
    assert timings["ours"].faster_than(timings["peer"]).samples == (2.0, 2.0, 0.2, 2.0, 2.0)
    assert timings["ours"].faster_than(timings["peer"]).median == 2.0
    assert timings["ours"].share_of(timings["peer"]).median == 50.0


def test_ratios_rates_and_times_count_the_work_of_a_call() -> None:
    ours, peer = Timings(0.0, (1.0, 2.0), work=4), Timings(0.0, (1.0, 2.0), work=1)
    assert ours.faster_than(peer).samples == (4.0, 4.0)
    assert ours.share_of(peer).samples == (25.0, 25.0)
    assert ours.each("ms").samples == (250.0, 500.0)
    assert ours.each("s").unit == "s"
    assert ours.rate("clips/s").samples == (4.0, 2.0)


def test_a_figure_has_median_and_quartiles() -> None:
    figure = Figure.of([5, 1, 2, 4, 3], "ms")
    assert (figure.low, figure.median, figure.high) == (2, 3, 4)
    assert figure.samples == (5, 1, 2, 4, 3)
    assert Figure.of([7], "ms") == Figure("ms", 7, 7, 7, (7,))


def test_one_core_competitors_get_one_thread_and_the_rest_their_own() -> None:
    seen: dict[str, tuple[int, int]] = {}

    def look(name: str) -> Callable[[int], None]:
        return lambda number: seen.__setitem__(name, (torch.get_num_threads(), cv2.getNumThreads()))

    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        torch.set_num_threads(2)
        cv2.setNumThreads(2)
        race([Competitor("one", look("one"), one_core=True), Competitor("all", look("all"))], repeats=1)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    assert seen == {"one": (1, 1), "all": (2, 2)}


def test_two_competitors_may_not_have_one_name() -> None:
    with pytest.raises(AssertionError, match="one name"):
        race([Competitor("a", print), Competitor("a", print)], repeats=1)
