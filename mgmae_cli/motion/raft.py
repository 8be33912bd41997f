"""`raft`: RAFT-small or -large (Teed and Deng, arXiv 2003.12039), which the paper runs online: small, 6 iterations.

The network and its weights are torchvision's; `raft_pairs` runs it over all pairs of a batch, each frame encoded once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mgmae_cli.interfaces import FlowEstimator, FlowRequest, PluginOptions
from mgmae_cli.motion import raft_pairs
from mgmae_cli.motion.raft_weights import load_raft
from mgmae_cli.motion.warp import per_axis
from mgmae_cli.processor import has_amx


class RaftFlow(FlowEstimator):
    """Estimate flow by RAFT."""

    name = "raft"
    runs_on = "device"

    class Options(PluginOptions):
        model: Literal["small", "large"] = Field("small", description="network")
        iterations: int = Field(6, ge=1, description="updates of the flow; MGMAE uses 6")
        weights: Path | None = Field(
            None, description="file in torchvision's or princeton-vl's naming; default: torchvision's, downloaded"
        )
        scale: Literal[1, 2, 4, 8] = Field(2, description="flow comes on a grid this many times smaller")
        precision: Literal["auto", "fp32", "bf16"] = Field(
            "auto", description="auto: bf16 on GPUs and on CPUs with AMX, else fp32"
        )

    options: RaftFlow.Options

    def __init__(self, options: RaftFlow.Options) -> None:
        super().__init__(options)
        self._model: Any = None

    def to(self, device: torch.device) -> None:
        """Load the weights, where that has not been done, and move them."""
        if self._model is None:
            self._model = load_raft(self.options.model, self.options.weights)
        # channels_last saves the CPU a third of an update's time
        self._model.to(device=device, memory_format=torch.channels_last)

    def estimate(self, request: FlowRequest) -> Tensor:
        """Return (B, P, 2, h, w) flow.

        Frames that RAFT can't take (sides below 128 or no multiples of 8) are enlarged to the next it can: better than
        padding, since its cells of 8 x 8 pixels are coarse for small frames.
        """
        clip = request.clip
        self.to(clip.device)
        batch, _, num_frames, height, width = clip.shape
        frames = clip.transpose(1, 2).flatten(0, 1).to(torch.float32, memory_format=torch.channels_last)
        frames = frames.div_(127.5).sub_(1)
        inner = (_workable(height), _workable(width))
        if inner != (height, width):
            frames = F.interpolate(frames, size=inner, mode="bilinear", align_corners=False)
        first = num_frames * torch.arange(batch)[:, None]
        flow = raft_pairs.flow_of_pairs(
            self._model,
            frames.contiguous(memory_format=torch.channels_last),
            (request.source + first).flatten(),
            (request.target + first).flatten(),
            self.options.iterations,
            self.options.scale,
            self._bf16(clip.device),
        )
        if inner != (height, width):
            grid = (max(1, height // self.options.scale), max(1, width // self.options.scale))
            flow = F.adaptive_avg_pool2d(flow, grid) * per_axis(width / inner[1], height / inner[0], flow)
        return flow.view(*request.source.shape, *flow.shape[1:])

    def _bf16(self, device: torch.device) -> bool:
        if self.options.precision != "auto":
            return self.options.precision == "bf16"
        return device.type == "cuda" or (device.type == "cpu" and has_amx())


def _workable(side: int) -> int:
    """Return the next side that RAFT can take."""
    return max(raft_pairs.SMALLEST_SIDE, -(-side // raft_pairs.STRIDE) * raft_pairs.STRIDE)
