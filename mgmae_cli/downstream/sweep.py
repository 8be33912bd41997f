"""Choose a head's learning rate and weight decay on training videos alone, then train it on all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgmae_cli.downstream.data import inner_split
from mgmae_cli.downstream.heads import Array, AttentiveHead, LinearHead, head_scores, train_head
from mgmae_cli.seeds import derive_generator

# Learning rates, weight decays and epochs, when nobody says.
SWEEPS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...], int]] = {
    "linear": ((1e-3, 3e-3, 1e-2), (1e-2, 1e-1, 1.0), 100),
    "attentive": ((3e-4, 1e-3), (1e-2, 1e-1), 20),
}
_SPLIT, _HEAD, _ORDER = 107, 108, 109  # what a derived generator is for


@dataclass(frozen=True)
class Rates:
    """One point of a sweep."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Fit:
    """What a probe is fitted on, and asked about.

    Args:
        features: of all videos.
        rows: those to fit on; labels: (len(rows),) long, their classes.
        num_classes: of the set.
    """

    features: Array
    rows: list[int]
    labels: Tensor
    num_classes: int


@dataclass(frozen=True)
class Sweep:
    """What a sweep chose: the rates, and their top-1 in percent on the held-out part of the training videos.

    `inner_top1` is None where there was nothing to choose.
    """

    rates: Rates
    inner_top1: float | None


HeadMaker = Callable[[list[int]], nn.Module]  # makes a new head for a fit on some rows


def linear_maker(fit: Fit) -> HeadMaker:
    """Return a maker of linear heads, each standardised by the rows that it is fitted on."""

    def make(rows: list[int]) -> nn.Module:
        x = np.asarray(fit.features[rows], dtype=np.float64)
        mean, deviation = (torch.from_numpy(value).float() for value in (x.mean(0), x.std(0)))
        return LinearHead(mean, deviation, fit.num_classes)

    return make


def attentive_maker(fit: Fit, heads: int) -> HeadMaker:
    """Return a maker of attentive heads."""
    return lambda rows: AttentiveHead(fit.features.shape[2], heads, fit.num_classes)


def fit_head(
    fit: Fit,
    make: HeadMaker,
    points: Sequence[Rates],
    groups: Sequence[str] | None,
    holdout: float,
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> tuple[Sweep, nn.Module]:
    """Choose among rates by top-1 (then loss) on held-out rows, then train a head with them on all rows.

    Args:
        points: the rates; one is taken as it is.
        groups: of each row; whole groups are held out. None: a share of every class.
        holdout: share of the rows to hold out.

    Raises:
        DataError: the rows can't be split.
    """

    def train_on(places: list[int], rates: Rates) -> nn.Module:
        rows = [fit.rows[place] for place in places]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_generator(seed, _HEAD).initial_seed())
            head = make(rows)
        order = derive_generator(seed, _ORDER)
        lr, decay = rates.lr, rates.weight_decay
        return train_head(head, fit.features, rows, fit.labels[places], lr, decay, epochs, batch_size, order, device)

    everything = list(range(len(fit.rows)))
    if len(points) == 1:
        return Sweep(points[0], None), train_on(everything, points[0])
    fitted, judged = inner_split(fit.labels.tolist(), groups, holdout, derive_generator(seed, _SPLIT))
    judged_rows, truth = [fit.rows[place] for place in judged], fit.labels[judged]
    results = []
    for rates in points:
        scores = head_scores(train_on(fitted, rates), fit.features, judged_rows, batch_size, device)
        top1 = 100 * float((scores.argmax(1) == truth).double().mean())
        results.append((top1, -float(F.cross_entropy(scores, truth))))
    best = max(range(len(points)), key=results.__getitem__)
    return Sweep(points[best], results[best][0]), train_on(everything, points[best])
