"""Measure competitors against each other in one run, in turns: A B C A B C ..., never one after the other.

A machine's speed drifts, and others may use it. Competitors that take turns meet the same drift, so a ratio is taken
within each round; what is told is the median of the rounds' ratios, with their quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch

Clock = Callable[[Callable[[], Any]], float]  # calls a function once; returns the seconds that it took

WARMUPS = 2  # rounds that don't count: memory is found, kernels are chosen, models are compiled


def cpu_clock(run: Callable[[], Any]) -> float:
    """Time what runs on the CPU."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cuda_clock(run: Callable[[], Any]) -> float:
    """Time what runs on the current GPU, by events on its stream, with nothing else under way."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def clock_of(device: torch.device) -> Clock:
    """Return how work on a device is timed."""
    return cuda_clock if device.type == "cuda" else cpu_clock


@dataclass(frozen=True)
class Figure:
    """A measured quantity: the median of its samples and their quartiles."""

    unit: str
    median: float
    low: float
    high: float
    samples: tuple[float, ...]

    @staticmethod
    def of(samples: Sequence[float], unit: str) -> Figure:
        """Summarise samples, at least one."""
        low, middle, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
        return Figure(unit, middle, low, high, tuple(samples))


@dataclass(frozen=True)
class Competitor:
    """Something whose time is measured.

    Args:
        name: unlike those of the others.
        run: does the work; takes the number of the round, so that all may work on the same inputs.
        work: how much of it: clips, frame pairs, or operations a call.
        clock: times it.
        one_core: torch and OpenCV get one thread, as in a loader's worker.
    """

    name: str
    run: Callable[[int], Any]
    work: float = 1.0
    clock: Clock = cpu_clock
    one_core: bool = False

    def timed(self, number: int) -> float:
        """Return the seconds of one call."""
        with _one_core(self.one_core):
            return self.clock(lambda: self.run(number))


@dataclass(frozen=True)
class Timings:
    """What was measured of a competitor.

    Args:
        first: seconds of its very first call.
        seconds: of the rounds that count.
        work: of one call.
    """

    first: float
    seconds: tuple[float, ...]
    work: float

    def each(self, unit: str = "ms") -> Figure:
        """Return the time of one unit of work, in "s" or "ms"."""
        scale = {"s": 1, "ms": 1e3}[unit]
        return Figure.of([scale * seconds / self.work for seconds in self.seconds], unit)

    def rate(self, unit: str, scale: float = 1.0) -> Figure:
        """Return work per second, times `scale`."""
        return Figure.of([scale * self.work / seconds for seconds in self.seconds], unit)

    def faster_than(self, peer: Timings) -> Figure:
        """Return how many times as much work this does in the same time."""
        return Figure.of(self._against(peer), "x")

    def share_of(self, peer: Timings) -> Figure:
        """Return the time of one unit of work as a percentage of the peer's."""
        return Figure.of([100 / ratio for ratio in self._against(peer)], "%")

    def _against(self, peer: Timings) -> list[float]:
        pairs = zip(self.seconds, peer.seconds, strict=True)
        return [(theirs / peer.work) / (own / self.work) for own, theirs in pairs]


def race(
    competitors: Sequence[Competitor],
    repeats: int,
    say: Callable[[str], None] = lambda text: None,
    warmups: int = WARMUPS,
) -> dict[str, Timings]:
    """Measure competitors in turns, and return the timings by name.

    Args:
        repeats: rounds that count.
        say: is told what runs now.
        warmups: rounds before them that don't.
    """
    seconds: dict[str, list[float]] = {competitor.name: [] for competitor in competitors}
    assert len(seconds) == len(competitors), "two competitors have one name"
    for number in range(warmups + repeats):
        turn = f"round {number - warmups + 1} of {repeats}" if number >= warmups else "warm-up"
        for competitor in competitors:
            say(f"{turn}: {competitor.name}")
            seconds[competitor.name].append(competitor.timed(number))
    return {
        each.name: Timings(seconds[each.name][0], tuple(seconds[each.name][warmups:]), each.work)
        for each in competitors
    }


@contextmanager
def _one_core(wanted: bool) -> Iterator[None]:
    """Give torch and OpenCV one thread."""
    import cv2

    threads = torch.get_num_threads(), cv2.getNumThreads()
    if wanted:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        if wanted:
            torch.set_num_threads(threads[0])
            cv2.setNumThreads(threads[1])
