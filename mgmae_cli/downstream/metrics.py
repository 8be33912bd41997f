"""Figures of a classifier on a set of videos: top-1 and top-5, per class, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def merge_views(scores: Tensor, by: str) -> Tensor:
    """Return one video's class probabilities (K,) from its views' scores (V, K).

    Args:
        by: "prob" takes the mean of the views' probabilities, "logit" the probabilities of the mean scores.
    """
    scores = scores.double()
    return scores.softmax(1).mean(0) if by == "prob" else scores.mean(0).softmax(0)


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one video.

    Args:
        index: of the video in its source.
        name: its full path.
        label: its class number.
        probabilities: (K,), or None where it could not be read.
        reason: why it could not be read.
    """

    index: int
    name: str
    label: int
    probabilities: Tensor | None
    reason: str = ""

    @property
    def ranking(self) -> list[int]:
        """Class numbers, the likeliest first; empty for an unreadable video, which is wrong about everything."""
        if self.probabilities is None:
            return []
        return self.probabilities.argsort(descending=True, stable=True).tolist()


@dataclass(frozen=True)
class Report:
    """Figures over a set of videos, in percent.

    Args:
        videos: how many; `unreadable` of them count as wrong.
        top1, top5: share of videos whose class is the first, or among the first five; top5 is None below six classes.
        mean_class: mean over the classes present of their top-1.
        per_class: each class's top-1 and number of videos; None for classes without videos.
        confusion: (K, K) counts, rows are true classes; unreadable videos are in no column.
        loss: mean negative log likelihood of the true class over the readable videos.
    """

    videos: int
    unreadable: int
    top1: float
    top5: float | None
    mean_class: float
    per_class: list[tuple[float | None, int]]
    confusion: Tensor
    loss: float


def top_k(predictions: Sequence[Prediction], k: int) -> float:
    """Return the share of videos, in percent, whose class is among the k likeliest."""
    return 100 * sum(p.label in p.ranking[:k] for p in predictions) / len(predictions)


def report(predictions: Sequence[Prediction], num_classes: int) -> Report:
    """Return the figures of predictions, of which there is at least one."""
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)
    counts = [0] * num_classes
    likelihoods = []
    for prediction in predictions:
        counts[prediction.label] += 1
        if prediction.probabilities is not None:
            confusion[prediction.label, prediction.ranking[0]] += 1
            likelihoods.append(float(prediction.probabilities[prediction.label].clamp_min(1e-12).log()))
    per_class = [
        (100 * int(confusion[number, number]) / count if count else None, count) for number, count in enumerate(counts)
    ]
    present = [accuracy for accuracy, _ in per_class if accuracy is not None]
    return Report(
        videos=len(predictions),
        unreadable=sum(p.probabilities is None for p in predictions),
        top1=top_k(predictions, 1),
        top5=top_k(predictions, 5) if num_classes > 5 else None,
        mean_class=sum(present) / len(present),
        per_class=per_class,
        confusion=confusion,
        loss=-sum(likelihoods) / len(likelihoods) if likelihoods else float("nan"),
    )
