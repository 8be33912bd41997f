"""Heads on frozen features, against slow references and on features where the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mgmae_cli.downstream.heads import AttentiveHead, LinearHead, head_scores, train_head
from mgmae_cli.downstream.knn import knn_scores
from mgmae_cli.downstream.sweep import Fit, Rates, attentive_maker, fit_head, linear_maker

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def separable(count: int, seed: int = 0, width: int = 8) -> tuple[np.ndarray, Tensor]:
    """Return features of three well separated classes, and the classes."""
    labels = torch.arange(count) % 3
    centres = 4 * torch.eye(3, width)
    return (centres[labels] + 0.3 * torch.randn(count, width, generator=generator(seed))).numpy(), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (3, 1.0), (50, 0.5)])
def test_knn_equals_a_slow_reference(k: int, temperature: float) -> None:
    train, test = torch.randn(20, 6, generator=generator(1)), torch.randn(7, 6, generator=generator(2))
    labels = torch.randint(4, (20,), generator=generator(3))
    scores = knn_scores(train, labels, test, 4, k, temperature)
    for row, found in zip(test.tolist(), scores.tolist()):
        near = []
        for other, label in zip(train.tolist(), labels.tolist()):
            dot = sum(a * b for a, b in zip(row, other))
            cosine = dot / math.sqrt(sum(a * a for a in row)) / math.sqrt(sum(b * b for b in other))
            near.append((cosine, label))
        votes = [0.0] * 4
        for cosine, label in sorted(near, reverse=True)[:k]:
            votes[label] += math.exp(cosine / temperature)
        assert found == pytest.approx([vote / sum(votes) for vote in votes], rel=1e-4, abs=1e-6)


def test_knn_takes_many_rows_in_parts() -> None:
    train, test = torch.randn(10, 3, generator=generator(1)), torch.randn(2500, 3, generator=generator(2))
    labels = torch.arange(10) % 2
    whole = knn_scores(train, labels, test, 2, 3)
    assert torch.allclose(whole[1024:1030], knn_scores(train, labels, test[1024:1030], 2, 3))


def test_a_linear_head_learns_separable_features_whatever_their_scale() -> None:
    features, labels = separable(60)
    features = features * np.array([1000, 1e-3] * 4, dtype=np.float32) + 50
    test, truth = separable(30, seed=9)
    test = test * np.array([1000, 1e-3] * 4, dtype=np.float32) + 50
    fit = Fit(features, list(range(60)), labels, 3)
    sweep, head = fit_head(fit, linear_maker(fit), [Rates(1e-2, 0.0)], None, 0.25, 50, 16, 0, CPU)
    assert sweep.inner_top1 is None
    assert (head_scores(head, test, list(range(30)), 7, CPU).argmax(1) == truth).all()


def test_features_that_never_change_do_no_harm() -> None:
    head = LinearHead(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 0.0]), 2)
    torch.nn.init.ones_(head.linear.weight)
    assert torch.allclose(head(torch.tensor([[3.0, 99.0]])), torch.ones(1, 2))


@torch.no_grad()
def test_the_attentive_head_equals_v_jepas_block_written_out() -> None:
    head = AttentiveHead(width=12, heads=3, num_classes=4)
    for parameter in head.parameters():  # zeros and ones would hide what they multiply
        torch.nn.init.normal_(parameter, std=0.5, generator=generator(parameter.numel()))
    x = torch.randn(2, 5, 12, generator=generator(1))
    for sample, found in zip(x, head(x)):
        normed = torch.nn.functional.layer_norm(sample, (12,), head.norm1.weight, head.norm1.bias)
        query = head.query[0, 0] @ head.q.weight.t() + head.q.bias
        keys = normed @ head.kv.weight[:12].t() + head.kv.bias[:12]
        values = normed @ head.kv.weight[12:].t() + head.kv.bias[12:]
        parts = []
        for number in range(3):
            own = slice(4 * number, 4 * number + 4)
            weights = torch.tensor([float(query[own] @ keys[n, own]) / 2 for n in range(5)]).softmax(0)
            parts.append(sum(weights[n] * values[n, own] for n in range(5)))
        q = head.query[0, 0] + torch.cat(parts) @ head.proj.weight.t() + head.proj.bias
        q = q + head.mlp(torch.nn.functional.layer_norm(q, (12,), head.norm2.weight, head.norm2.bias))
        assert torch.allclose(found, q @ head.linear.weight.t() + head.linear.bias, atol=1e-5)


def test_the_attentive_head_starts_as_v_jepas() -> None:
    torch.manual_seed(0)
    head = AttentiveHead(192, 3, 10)
    assert head.proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2), rel=0.1)
    assert head.mlp.fc2.weight.std().item() == pytest.approx(0.02 / math.sqrt(2), rel=0.1)
    assert head.kv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not head.linear.bias.any()


def test_the_attentive_head_finds_the_token_that_tells() -> None:
    """The class is written in one token of eight, at a random place; the mean over tokens hides it in noise."""
    labels = torch.arange(48) % 2
    tokens = 0.5 * torch.randn(48, 8, 16, generator=generator(1))
    place = torch.randint(8, (48,), generator=generator(2))
    tokens[torch.arange(48), place, labels] += 6
    fit = Fit(tokens.numpy(), list(range(48)), labels, 2)
    _, head = fit_head(fit, attentive_maker(fit, 2), [Rates(1e-2, 0.0)], None, 0.25, 20, 16, 0, CPU)
    assert (head_scores(head, fit.features, fit.rows, 16, CPU).argmax(1) == labels).all()


class WatchedRows:
    """Features that note which rows are read; the rest would be noticed."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.read = values, set[int]()
        self.shape = values.shape

    def __getitem__(self, rows: list[int]) -> np.ndarray:
        self.read |= set(rows)
        return self.values[rows]


def test_the_sweep_never_reads_rows_that_are_not_for_training() -> None:
    values, labels = separable(90)
    watched = WatchedRows(values)
    fit = Fit(watched, list(range(60)), labels[:60], 3)
    points = [Rates(lr, 0.0) for lr in (1e-6, 1e-2)]
    sweep, _ = fit_head(fit, linear_maker(fit), points, None, 0.25, 50, 16, 0, CPU)
    assert watched.read == set(range(60))
    assert sweep.rates.lr == 1e-2  # the other has not begun to learn
    assert sweep.inner_top1 == 100


def test_heads_of_the_sweep_never_see_the_rows_they_are_judged_by() -> None:
    """Labels are noise: a head that had seen the held-out rows would know them by heart."""
    features = torch.randn(120, 200, generator=generator(1)).numpy()
    labels = torch.randint(2, (120,), generator=generator(2))
    fit = Fit(features, list(range(120)), labels, 2)
    points = [Rates(1e-2, 0.0), Rates(2e-2, 0.0)]
    sweep, head = fit_head(fit, linear_maker(fit), points, None, 0.25, 50, 32, 0, CPU)
    assert (head_scores(head, features, fit.rows, 32, CPU).argmax(1) == labels).all()
    assert sweep.inner_top1 is not None
    assert sweep.inner_top1 < 80


def test_a_sweep_repeats_and_leaves_torchs_generator_alone() -> None:
    values, labels = separable(30)
    fit = Fit(values, list(range(30)), labels, 3)
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    tokens = Fit(values[:, None], fit.rows, labels, 3)
    rates = [Rates(1e-3, 0.1)]
    heads = [fit_head(tokens, attentive_maker(tokens, 1), rates, None, 0.25, 1, 8, 5, CPU)[1] for _ in range(2)]
    assert torch.rand(()) == expected
    assert all(torch.equal(a, b) for a, b in zip(heads[0].state_dict().values(), heads[1].state_dict().values()))


def test_a_heads_rate_falls_to_nothing() -> None:
    values, labels = separable(6)
    head = LinearHead(torch.zeros(8), torch.ones(8), 3)
    before = head.linear.weight.clone()
    train_head(head, values, list(range(6)), labels, 1e-2, 0.0, 1, 6, generator(), CPU)
    assert not torch.equal(head.linear.weight, before)
    assert not head.training
