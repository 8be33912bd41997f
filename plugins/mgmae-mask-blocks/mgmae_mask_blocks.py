"""`blocks`: hide blocks of space and time, as V-JEPA does (arXiv 2404.08471, section 3.2).

V-JEPA draws several blocks of random aspect ratio, lets each span the whole clip in time, and hides their union. How
much the union hides varies from clip to clip; its code then cuts every clip of a batch to the fewest visible tokens, in
raster order. mgmae shows equally many tokens of every clip under every strategy, so here all blocks of a clip grow or
shrink together, by one factor and about their own centres, until their union hides exactly the budget: for each token
there is a smallest factor at which some block reaches it, and the tokens with the smallest factors are hidden. Of
tokens reached at the same factor (the edge of one block) the generator chooses.

Departures from V-JEPA: the budget, as above; places and sizes are not rounded to tokens; each block has a size of its
own, where V-JEPA draws one size for a whole batch; one mask a clip, where V-JEPA predicts both a short-range and a
long-range mask of it.

Shapes: B clips, J blocks, S slots, L patches a slot of R rows and Q columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mgmae_cli.hookspecs import hookimpl
from mgmae_cli.interfaces import MaskInputs, MaskStrategy
from mgmae_cli.masking.select import select_tokens


class BlockOptions(MaskStrategy.Options):
    """Options of the `blocks` strategy; the defaults are V-JEPA's short-range blocks. Pairs are [lowest, highest]."""

    num_blocks: int = Field(8, ge=1, description="blocks of a clip; V-JEPA: 8 short-range or 2 long-range ones")
    area: tuple[float, float] = Field(
        (0.15, 0.15),
        description="share of a frame that a block covers before all grow or shrink to the budget; V-JEPA: 0.15 or 0.7",
    )
    aspect: tuple[float, float] = Field((0.75, 1.5), description="height of a block over its width")
    extent: tuple[float, float] = Field((1.0, 1.0), description="share of the slots that a block spans; 1: all, always")
    edges: Literal["inside", "wrap"] = Field(
        "inside",
        description="inside: blocks are drawn inside the frame, as in V-JEPA, which hides its middle most; "
        "wrap: they go on at the opposite edge, which hides all places alike",
    )

    @model_validator(mode="after")
    def _ranges(self) -> BlockOptions:
        for name, most in (("area", 1.0), ("aspect", float("inf")), ("extent", 1.0)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                limit = f"0 < lowest <= highest <= {most:g}" if most == 1 else "0 < lowest <= highest"
                raise ValueError(f"{name} = [{low:g}, {high:g}]: expected {limit}")
        return self


class BlockMask(MaskStrategy):
    """Hides a few blocks of space and time, as V-JEPA; shows what lies between and around them."""

    name = "blocks"
    Options = BlockOptions
    options: BlockOptions

    def sample(self, inputs: MaskInputs) -> Tensor:
        reach = self._reach(inputs).flatten(2)
        tie_noise = inputs.rand(inputs.batch, inputs.grid.patches)
        return select_tokens(reach, inputs.visible_per_slot, "volume", tie_noise)

    def visibility(self, inputs: MaskInputs) -> Tensor:
        """Return (B, T, R, Q): the factor by which the blocks grow before one of them reaches the place."""
        return self._reach(inputs).repeat_interleave(inputs.grid.tubelet, dim=1)

    def _reach(self, inputs: MaskInputs) -> Tensor:
        """Draw the blocks of each clip; return (B, S, R, Q), the factor at which the first of them reaches a token."""
        options, grid = self.options, inputs.grid
        draws = inputs.rand(inputs.batch, options.num_blocks, 6).unbind(-1)
        extent, area, aspect = map(between, draws[:3], (options.extent, options.area, options.aspect))
        length = extent * grid.slots
        height = (area * grid.patches * aspect).sqrt()
        width = (area * grid.patches / aspect).sqrt()
        reach_t = axis_reach(length, draws[3], grid.slots)
        # A block that spans the clip goes on spanning it: growth and shrinkage are its height's and width's alone.
        reach_t = reach_t.masked_fill((length >= grid.slots)[..., None], 0.0)
        reach_y = axis_reach(height, draws[4], grid.rows, options.edges == "wrap")
        reach_x = axis_reach(width, draws[5], grid.cols, options.edges == "wrap")
        in_frame = torch.maximum(reach_y[..., :, None], reach_x[..., None, :])  # (B, J, R, Q)
        return torch.maximum(reach_t[..., None, None], in_frame[:, :, None]).amin(1)


def between(share: Tensor, limits: tuple[float, float]) -> Tensor:
    """Map uniform numbers in [0, 1) to [lowest, highest)."""
    lowest, highest = limits
    return lowest + (highest - lowest) * share


def axis_reach(size: Tensor, place: Tensor, length: int, wrap: bool = False) -> Tensor:
    """Return by what factor a block must grow about its centre, along one axis, to reach the middle of each token.

    Args:
        size: (B, J) tokens, of any fraction; taken as at least one token and at most the whole axis.
        place: (B, J) in [0, 1), where the block lies: 0 has it start at the first token.
        length: tokens of the axis.
        wrap: the axis is a ring; otherwise the block is drawn between its ends.

    Returns:
        (B, J, length), 0 at the block's centre, 1 at its ends.
    """
    size = size.clamp(1.0, length)
    half = size[..., None] / 2
    free = length if wrap else length - size
    centre = half + (place * free)[..., None]
    middles = torch.arange(length, device=size.device) + 0.5
    distance = (middles - centre).abs()
    if wrap:
        distance = torch.minimum(distance % length, -distance % length)
    return distance / half


@hookimpl
def mgmae_register_masks() -> list[type[MaskStrategy]]:
    """Return the strategies of this package."""
    return [BlockMask]
