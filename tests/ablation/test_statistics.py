"""Means and intervals, against tables and a case worked out by hand."""

from __future__ import annotations

import math

import pytest

from mgmae_cli.ablation.statistics import paired_difference, spread, t_quantile


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (30, 2.0423)],
)
def test_quantiles_are_those_of_printed_tables(freedom: int, expected: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(expected, abs=5e-5)


def test_a_paired_difference_has_the_interval_worked_out_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, reach 4.3027 / sqrt(3).
    found = paired_difference([11, 22, 33], [10, 20, 30])
    assert (found.mean, found.count) == (2, 3)
    assert found.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-4)
    assert found.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4)
    assert not found.is_clear
    assert paired_difference([11, 21.1, 30.9], [10, 20, 30]).is_clear


def test_a_single_seed_has_neither_deviation_nor_interval() -> None:
    assert spread([3.0]).deviation is None
    found = paired_difference([3.0], [1.0])
    assert (found.mean, found.low, found.is_clear) == (2.0, None, False)
