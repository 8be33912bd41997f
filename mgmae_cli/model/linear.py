"""Linear maps: torch's, and a faster way for float32 on AMD's CPUs with AVX-512.

There torch multiplies float32 matrices by MKL, which reaches half their rate (on Intel's CPUs it is the faster).
oneDNN, which torch takes for bfloat16, has kernels at the full rate for float32 too (a step of ViT-S on a Zen 5: 1.4
times as fast), but torch offers them to compiled models only: as an operator without gradients. They are added here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mgmae_cli.processor import is_intel

SMALLEST = 4_000_000  # multiplications; with fewer, finding the kernel takes longer than it saves


class Linear(nn.Linear):
    """torch's layer, calling `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias.

    Args:
        x: (..., D).
        weight: (O, D).
        bias: (O,).

    Returns:
        (..., O).
    """
    if _onednn_is_faster(x, weight):
        return _OneDnnLinear.apply(x, weight, bias)  # type: ignore[no-any-return]
    return F.linear(x, weight, bias)


def _onednn_is_faster(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and x.numel() * weight.shape[0] >= SMALLEST
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not is_intel()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _OneDnnLinear(torch.autograd.Function):
    """`F.linear` by oneDNN's matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.t()) if of_x else None,
            _product(rows.t(), x.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left right^T + bias."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")  # type: ignore[no-any-return]
