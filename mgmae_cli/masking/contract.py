"""What every mask strategy must hold to, as a function for the tests of built-in strategies and of plugins."""

from __future__ import annotations

import torch
from torch import Tensor

from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import FlowEstimator, FlowRequest, MaskInputs, MaskStrategy, checked_mask


class ShiftFlow(FlowEstimator):
    """Says that everything moves by (dx, dy) pixels a frame; for tests of strategies that use flow."""

    name = "shift"

    def __init__(self, dx: float = 0.0, dy: float = 0.0) -> None:
        super().__init__(options=None)
        self.dx, self.dy = dx, dy
        self.requests: list[FlowRequest] = []

    def estimate(self, request: FlowRequest) -> Tensor:
        """Return (B, P, 2, H, W): (target - source) frames times (dx, dy). The request is kept in `requests`."""
        self.requests.append(request)
        frames = (request.target - request.source).to(request.clip.device, torch.float32)
        flow = torch.stack((frames * self.dx, frames * self.dy), dim=-1)
        return flow[..., None, None].expand(-1, -1, -1, *request.clip.shape[3:])


def mask_inputs(
    grid: ClipGrid,
    ratio: float,
    clips: int = 1,
    seed: int = 0,
    estimator: FlowEstimator | None = None,
    device: str | torch.device = "cpu",
) -> MaskInputs:
    """Return inputs over black clips, for tests."""
    clip = torch.zeros(clips, 3, grid.frames, grid.height, grid.width, dtype=torch.uint8, device=device)
    return MaskInputs(clip, grid, ratio, torch.Generator().manual_seed(seed), estimator)


def check_mask_strategy(strategy: MaskStrategy, grid: ClipGrid, ratio: float, clips: int = 3) -> None:
    """Check a strategy on one grid and ratio: shape, dtype, visible counts, and that its randomness is the generator's.

    Raises:
        PluginError: the mask has the wrong shape, dtype or counts.
        AssertionError: the mask is not a function of the generator and the inputs, or ignores the generator.
    """
    estimator = ShiftFlow(1.5, -2.0) if strategy.uses_flow else None

    def draw(seed: int, count: int = clips) -> Tensor:
        return checked_mask(strategy, mask_inputs(grid, ratio, count, seed, estimator))

    torch_state = torch.random.get_rng_state()
    first = draw(seed=1)
    assert torch.equal(torch.random.get_rng_state(), torch_state), "draws from torch's global random numbers"
    assert torch.equal(first, draw(seed=1)), "an equal generator gives another mask"
    assert not torch.equal(first, draw(seed=2)), "another seed gives the same mask"
    assert bool((first != first[0]).any()), "all clips of a batch get the same mask"
    assert draw(seed=3, count=1).shape == (1, grid.tokens), "fails on a single clip"
