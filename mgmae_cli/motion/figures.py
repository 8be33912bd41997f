"""Figures of optical flow: end-point errors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def end_point_error(flow: Tensor, truth: Tensor) -> Tensor:
    """Return |flow - truth|, (..., H, W), on the truth's grid.

    Args:
        flow: (..., 2, h, w) in pixels of the truth's grid; a coarser grid is enlarged bilinearly.
        truth: (..., 2, H, W).
    """
    if flow.shape[-2:] != truth.shape[-2:]:
        enlarged = F.interpolate(flow.flatten(0, -4), size=truth.shape[-2:], mode="bilinear", align_corners=False)
        flow = enlarged.view(*flow.shape[:-2], *truth.shape[-2:])
    return torch.hypot(*(flow - truth).unbind(dim=-3))
