"""Draw the visibility map of the base frame: Gaussians around random patches, random pixels, or random patches.

MGMAE (arXiv 2308.10794), section 3.2 and its ablation of the initial map. A map lives on a grid of `stride` x `stride`
pixels a cell. Departure from the official code: a Gaussian map is built for the whole batch at once from two small
tables, instead of one full-size Gaussian a centre, a clip and a step.

Shapes: B clips, h w cells, R rows and Q columns of patches, K visible patches a slot.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Not zero, so that a place that was never visible still ranks above a hole.
EPSILON = 1e-8


def draw_visible(noise: Tensor, count: int) -> Tensor:
    """Choose `count` places of every row at random: those with the largest noise.

    Args:
        noise: (B, n) uniform random numbers.
        count: how many of the n places, the same in every row.

    Returns:
        (B, n) bool, True at the chosen places.
    """
    chosen = noise.topk(count, dim=1, sorted=False).indices
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(1, chosen, True)


def gaussian_map(
    visible: Tensor, patch: int, stride: int, sigma: float, combine: Literal["max", "sum"] = "max"
) -> Tensor:
    """Put exp(-(d / sigma)^2) around the centre of every visible patch and combine the bells by max or sum.

    A bell is the product of a bell in x and one in y, so the map is column table x patches x row table: an ordinary
    matrix product for `sum`, and the same product with max in place of plus for `max`.

    Args:
        visible: (B, R, Q) bool, the patches that get a bell.
        patch: pixels per patch side.
        stride: pixels per cell side; divides `patch`.
        sigma: pixels.

    Returns:
        (B, h, w) float, the values at the cells' centres.
    """
    rows, cols = visible.shape[1:]
    across = _bells(cols, patch, stride, sigma, visible.device)  # (Q, w)
    down = _bells(rows, patch, stride, sigma, visible.device)  # (R, h)
    if combine == "sum":
        return down.T @ visible.to(across.dtype) @ across
    along_rows = (visible[..., None] * across).amax(2)  # (B, R, w): each row's bells in x
    return (along_rows[:, :, None] * down[..., None]).amax(1)


def pixel_map(noise: Tensor, count: int, stride: int) -> Tensor:
    """Make `count` random pixels of every frame 1 and the rest EPSILON, averaged over each cell.

    Args:
        noise: (B, H, W) uniform random numbers.
        count: how many pixels.
        stride: pixels per cell side; divides H and W.

    Returns:
        (B, h, w) float.
    """
    chosen = draw_visible(noise.flatten(1), count).view_as(noise)
    return F.avg_pool2d(chosen.to(noise.dtype).clamp_min(EPSILON), stride) if stride > 1 else _one_or_epsilon(chosen)


def token_map(visible: Tensor, patch: int, stride: int) -> Tensor:
    """Make every cell of a visible patch 1 and the rest EPSILON.

    Args:
        visible: (B, R, Q) bool.
        patch: pixels per patch side.
        stride: pixels per cell side; divides `patch`.

    Returns:
        (B, h, w) float.
    """
    cells = patch // stride
    return _one_or_epsilon(visible).repeat_interleave(cells, dim=1).repeat_interleave(cells, dim=2)


def _one_or_epsilon(chosen: Tensor) -> Tensor:
    return chosen.to(torch.float32).clamp_min(EPSILON)


@lru_cache(maxsize=16)
def _bells(places: int, patch: int, stride: int, sigma: float, device: torch.device) -> Tensor:
    """Return a (places, cells) table of bells along one axis, one a patch, at the centres of the axis's cells.

    The table is kept, and must not be changed.
    """
    centres = torch.arange(places, device=device) * patch + (patch - 1) / 2
    cells = torch.arange(places * (patch // stride), device=device) * stride + (stride - 1) / 2
    return torch.exp(-(((cells - centres[:, None]) / sigma) ** 2))
