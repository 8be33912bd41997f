"""`truth`: the exact flow of clips whose source knows it, such as `shapes`.

With it, what a mask does wrong is the mask's fault and not the flow's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgmae_cli.errors import ConfigError, PluginError
from mgmae_cli.interfaces import FlowEstimator, FlowRequest


class TruthFlowEstimator(FlowEstimator):
    """Answer the flow that came with the clips, between neighbouring frames."""

    name = "truth"
    runs_on = "worker"
    needs_truth = True

    def estimate(self, request: FlowRequest) -> Tensor:
        """Return (B, P, 2, H, W): F_{source -> target}.

        Raises:
            ConfigError: the clips come without exact flow.
            PluginError: a pair of frames that are no neighbours.
        """
        truth = request.truth
        if truth is None:
            raise ConfigError(
                "flow.name = 'truth': the clips come without exact flow; it needs a source that knows its flow, "
                "such as data.source=shapes, and data.crop=none; or choose another flow, such as dis"
            )
        source, target = request.source, request.target
        if bool(((target - source).abs() != 1).any()):
            row, pair = ((target - source).abs() != 1).nonzero()[0].tolist()
            raise PluginError(
                f"flow 'truth' was asked for frames {int(source[row, pair])} -> {int(target[row, pair])}; "
                "it knows neighbouring frames only: motion masks need mask.options.flow_step=1 with it"
            )
        device = request.clip.device
        rows = torch.arange(len(source), device=device)[:, None]
        first = torch.minimum(source, target).to(device, non_blocking=True)
        ahead = (target > source).to(device, non_blocking=True)[..., None, None, None]
        return torch.where(ahead, truth.forward[rows, first], truth.backward[rows, first])
