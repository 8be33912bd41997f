"""Means, deviations, and paired differences with a confidence interval, for a handful of seeds.

Two cells are compared seed by seed: with the same seed they start from the same weights and read the same clips in the
same order, so that the mean of the differences varies less than the difference of the means. The interval is Student's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Args:
        mean: of the values.
        deviation: their standard deviation (n - 1); None for a single value.
        count: how many.
    """

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences and its confidence interval.

    Args:
        mean: of the differences.
        low, high: ends of the interval; None for a single pair.
        count: pairs.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of at least one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Spread(mean, None, len(values))
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Spread(mean, math.sqrt(variance), len(values))


def paired_difference(values: Sequence[float], others: Sequence[float], confidence: float = 0.95) -> Difference:
    """Return the mean of `values - others`, pair by pair, with its interval; at least one pair."""
    found = spread([value - other for value, other in zip(values, others, strict=True)])
    if found.deviation is None:
        return Difference(found.mean, None, None, 1)
    reach = t_quantile(0.5 + confidence / 2, found.count - 1) * found.deviation / math.sqrt(found.count)
    return Difference(found.mean, found.mean - reach, found.mean + reach, found.count)


def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution, by bisection; probability above 1/2."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, freedom: int) -> float:
    """Return the share of Student's t distribution below t >= 0, for whole degrees of freedom.

    The finite sums of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    within = math.sin(angle) * total
    if odd:
        within = 2 / math.pi * (angle + within)
    return 0.5 + within / 2
