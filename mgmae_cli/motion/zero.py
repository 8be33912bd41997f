"""`zero`: no motion anywhere. With it a motion mask is a tube mask drawn by the base map: the control of ablations."""

from __future__ import annotations

import torch
from torch import Tensor

from mgmae_cli.interfaces import FlowEstimator, FlowRequest


class ZeroFlow(FlowEstimator):
    """Answer zero flow on the clip's own grid."""

    name = "zero"
    runs_on = "worker"

    def estimate(self, request: FlowRequest) -> Tensor:
        height, width = request.clip.shape[-2:]
        return torch.zeros(*request.source.shape, 2, height, width, device=request.clip.device)
