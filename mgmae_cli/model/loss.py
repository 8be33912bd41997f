"""The loss of pre-training: mean squared error over tokens, in as few passes over their pixels as it takes.

Predictions and targets of a batch are the largest tensors of a step (for ViT-S: a clip's 1408 masked tokens have
2 million values each). torch's own operators read and write them a dozen times, these five times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def pretrain_loss(predictions: Tensor, targets: Tensor, scored: Tensor | None = None) -> Tensor:
    """Return the mean squared error over scored tokens.

    Args:
        predictions: (B, M, P, 3), of any precision.
        targets: (B, M, P, 3) float32; they get no gradient.
        scored: (B, M) bool, from the running cell; None where all are.
    """
    errors: Tensor
    if torch.compiler.is_compiling():  # which makes few passes of torch's own operators
        errors = (predictions.float() - targets).square().mean(dim=(-2, -1))
    else:
        errors = _TokenErrors.apply(predictions, targets)
    if scored is None:
        return errors.mean()
    return (errors * scored).sum() / scored.sum().clamp(min=1)


class _TokenErrors(torch.autograd.Function):
    """The mean squared error of each token, (B, M) float32."""

    @staticmethod
    def forward(ctx: Any, predictions: Tensor, targets: Tensor) -> Tensor:
        difference = predictions - targets
        ctx.save_for_backward(difference)
        ctx.dtype = predictions.dtype
        values = difference.shape[-2] * difference.shape[-1]
        norms: Tensor = torch.linalg.vector_norm(difference, dim=(-2, -1))
        return norms.square_().div_(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        scale = grad * (2 / (difference.shape[-2] * difference.shape[-1]))
        grad_predictions = torch.empty_like(difference, dtype=ctx.dtype)
        return torch.mul(difference, scale[..., None, None], out=grad_predictions), None
