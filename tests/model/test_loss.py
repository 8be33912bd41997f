"""The loss, against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from mgmae_cli.model.loss import pretrain_loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("some", [False, True])
def test_loss_and_gradient_are_those_of_the_mean_squared_error(dtype: torch.dtype, some: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randn(2, 5, 3, 8, generator=generator).to(dtype).transpose(2, 3).requires_grad_()
    targets = torch.randn(2, 5, 3, 8, generator=generator).transpose(2, 3)
    scored = torch.rand(2, 5, generator=generator) < 0.7 if some else None
    assert scored is None or 0 < scored.sum() < 10
    chosen = torch.ones(2, 5, dtype=torch.bool) if scored is None else scored
    wanted = F.mse_loss(predictions.float()[chosen], targets[chosen])
    loss = pretrain_loss(predictions, targets, scored)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    (got,) = torch.autograd.grad(loss, predictions)
    assert got.dtype == dtype
    assert got.stride() == predictions.stride()
    torch.testing.assert_close(got, torch.autograd.grad(wanted, predictions)[0])


def test_gradient_by_finite_differences_and_without_error() -> None:
    predictions = torch.randn(1, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(1, 3, 4, 3, dtype=torch.float64)
    assert gradcheck(lambda x: pretrain_loss(x, targets), (predictions,))
    same = targets.clone().requires_grad_()
    pretrain_loss(same, targets).backward()  # type: ignore[no-untyped-call]
    assert same.grad is not None
    assert torch.equal(same.grad, torch.zeros_like(targets))


def test_nothing_scored_is_no_loss() -> None:
    predictions, targets = torch.ones(1, 2, 4, 3), torch.zeros(1, 2, 4, 3)
    assert pretrain_loss(predictions, targets, torch.zeros(1, 2, dtype=torch.bool)).item() == 0
