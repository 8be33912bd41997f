"""Figures of a test, against counts by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mgmae_cli.downstream.metrics import Prediction, merge_views, report, top_k


def prediction(index: int, label: int, chances: list[float] | None) -> Prediction:
    return Prediction(index, f"video {index}", label, None if chances is None else torch.tensor(chances))


def test_figures_are_those_counted_by_hand() -> None:
    found = report(
        [
            prediction(0, 0, [0.7, 0.2, 0.1]),
            prediction(1, 0, [0.1, 0.6, 0.3]),
            prediction(2, 1, [0.2, 0.5, 0.3]),
            prediction(3, 2, None),
        ],
        num_classes=3,
    )
    assert found.top1 == 50
    assert found.top5 is None  # with three classes it would say nothing
    assert found.per_class == [(50, 2), (100, 1), (0, 1)]
    assert found.mean_class == 50
    assert found.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert (found.videos, found.unreadable) == (4, 1)
    assert found.loss == pytest.approx(-(math.log(0.7) + math.log(0.1) + math.log(0.5)) / 3, rel=1e-5)


def test_classes_without_videos_have_no_accuracy_and_leave_the_mean_alone() -> None:
    found = report([prediction(0, 1, [0.1, 0.9, 0.0])], num_classes=3)
    assert found.per_class == [(None, 0), (100, 1), (None, 0)]
    assert found.mean_class == 100


def test_top_5_needs_six_classes_and_looks_at_five() -> None:
    chances = [0.3, 0.25, 0.2, 0.15, 0.06, 0.04]
    predictions = [prediction(label, label, chances) for label in range(6)]
    assert report(predictions, 6).top5 == pytest.approx(100 * 5 / 6)
    assert [top_k(predictions, k) for k in (1, 2, 6)] == pytest.approx([100 / 6, 200 / 6, 100])


def test_a_set_of_unreadable_videos_is_all_wrong() -> None:
    found = report([prediction(0, 0, None)], num_classes=2)
    assert found.top1 == 0
    assert math.isnan(found.loss)


@pytest.mark.parametrize("way", ["prob", "logit"])
def test_merging_views_equals_a_slow_reference(way: str) -> None:
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    views = [[float(score) for score in row] for row in scores]

    def softmax(row: list[float]) -> list[float]:
        exponents = [math.exp(value) for value in row]
        return [value / sum(exponents) for value in exponents]

    if way == "prob":
        rows = [softmax(row) for row in views]
        expected = [sum(row[k] for row in rows) / 6 for k in range(4)]
    else:
        expected = softmax([sum(row[k] for row in views) / 6 for k in range(4)])
    assert merge_views(scores, way).tolist() == pytest.approx(expected)


def test_the_two_ways_to_merge_can_disagree() -> None:
    scores = torch.tensor([[9.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    assert merge_views(scores, "prob").argmax() == 1
    assert merge_views(scores, "logit").argmax() == 0
