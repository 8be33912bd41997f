"""Carry a map from one frame to the next along optical flow: backward (bilinear sampling) and forward (splatting).

MGMAE (arXiv 2308.10794), section 3.2. Flow conventions as in `mgmae_cli.interfaces`; here flow is in cells of the
map's own grid (`flow_to_grid` converts), and cell i has its centre at coordinate i, so the frame reaches from -0.5 to
size - 0.5 on a grid of any coarseness.

What depends on flow alone is worked out for all frame pairs at once, when a warp is made; calling it carries one
frame's maps along one of the pairs.

Departures from the official code: holes are told by where a sample or a splat lands, not by testing a warped map for
zero; sampling next to the frame's edge repeats the edge instead of fading to zero; the splat is plain torch and runs
on the CPU too (the official one needs a CUDA kernel, and crashes).

Shapes: B clips, P frame pairs, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Rows: TypeAlias = slice | Tensor

# A cell that receives less of a splat than this has no source; exact zero would let rounding decide.
MIN_SPLAT_WEIGHT = 1e-3

# Where flow that is not finite points to: outside any frame, so that it makes a hole and never a wild index.
_FAR = 1e6


class BackwardWarp:
    """Make a frame's map by looking up the known map: made(x) = known(x + flow(x)), bilinear.

    Args:
        flow: (B, P, 2, h, w) in cells, on the grid of the frames that are made, pointing into the known frames.

    Attributes:
        hole: (B, P, h, w) bool, the samples outside the frame: where a warped map of ones falls below one half.
    """

    def __init__(self, flow: Tensor) -> None:
        height, width = flow.shape[3:]
        landing = _landing(flow)
        inside = landing.clamp(min=0).minimum(per_axis(width - 1, height - 1, landing))
        outside = landing.sub_(inside).abs_()
        self.hole = torch.maximum(outside[:, :, 0], outside[:, :, 1]) > 0.5
        # grid_sample wants -1 to 1 over its input. On 2^n + 1 cells this is exact for whole cells: with no flow, a map
        # stays as it is to the last bit.
        self._canvas = [1 + 2 ** max(1, (size - 1).bit_length()) for size in (height, width)]
        half = per_axis((self._canvas[1] - 1) / 2, (self._canvas[0] - 1) / 2, inside)
        self._sample_at = inside.div_(half).sub_(1).permute(0, 1, 3, 4, 2)

    def __call__(self, known: Tensor, clips: Rows, pair: int) -> Tensor:
        """Return the made maps (n, h, w) of n clips from their known maps (n, h, w); a hole holds the nearest edge."""
        height, width = known.shape[1:]
        canvas = F.pad(known[:, None], (0, self._canvas[1] - width, 0, self._canvas[0] - height))
        made = F.grid_sample(canvas, self._sample_at[clips, pair], padding_mode="border", align_corners=True)
        return made[:, 0]


class ForwardWarp:
    """Make a frame's map by splatting every known cell bilinearly to x + flow(x), averaged by the weights received.

    Args:
        flow: (B, P, 2, h, w) in cells, on the grid of the known frames, pointing into the frames that are made.

    Attributes:
        hole: (B, P, h, w) bool, the cells that receive no weight.
    """

    def __init__(self, flow: Tensor) -> None:
        clips, pairs, _, height, width = flow.shape
        x, y = _landing(flow).unbind(2)
        # The canvas has a margin of one cell before and two behind the frame: what leaves the frame lands there.
        x, y = x.clamp(-1, width), y.clamp(-1, height)
        left, top = x.floor(), y.floor()
        right_share, low_share = x - left, y - top
        self._across = width + 3
        corner = ((top + 1) * self._across + (left + 1)).long()
        self._index = torch.stack((corner, corner + 1, corner + self._across, corner + self._across + 1), dim=2)
        upper, lower = 1 - low_share, low_share
        shares = ((1 - right_share) * upper, right_share * upper, (1 - right_share) * lower, right_share * lower)
        self._weight = torch.stack(shares, dim=2)
        received = self._splat(self._weight.flatten(0, 1), self._index.flatten(0, 1)).view(clips, pairs, height, width)
        self.hole = received < MIN_SPLAT_WEIGHT
        self._scale = received.clamp_min(MIN_SPLAT_WEIGHT).reciprocal().masked_fill(self.hole, 0)

    def __call__(self, known: Tensor, clips: Rows, pair: int) -> Tensor:
        """Return the made maps (n, h, w) of n clips from their known maps (n, h, w); a hole holds 0."""
        weighted = self._weight[clips, pair] * known[:, None]
        return self._splat(weighted, self._index[clips, pair]) * self._scale[clips, pair]

    def _splat(self, values: Tensor, index: Tensor) -> Tensor:
        """Add values (n, 4, h, w) up at their places on the canvas; return the frame's part (n, h, w)."""
        count, _, height, width = values.shape
        canvas = values.new_zeros(count, (height + 3) * self._across)
        canvas.scatter_add_(1, index.flatten(1), values.flatten(1))
        return canvas.view(count, height + 3, self._across)[:, 1 : height + 1, 1 : width + 1]


def flow_to_grid(flow: Tensor, grid: Sequence[int], pixels: Sequence[int]) -> Tensor:
    """Bring flow in clip pixels, on a grid of any coarseness, to cells of a map's grid.

    Args:
        flow: (B, P, 2, h', w') in pixels of the clip.
        grid: (h, w), the map's grid.
        pixels: (H, W), the clip's size.

    Returns:
        (B, P, 2, h, w) float32 in cells: averaged over the area of each cell, or interpolated from a coarser grid.
    """
    flow = flow.float()
    height, width = grid
    if flow.shape[3:] != (height, width):
        pairs = flow.flatten(0, 1)
        if flow.shape[3] % height == 0 and flow.shape[4] % width == 0:
            pairs = _block_mean(pairs, height, width)
        elif flow.shape[3] >= height and flow.shape[4] >= width:
            pairs = F.interpolate(pairs, size=(height, width), mode="area")
        else:
            pairs = F.interpolate(pairs, size=(height, width), mode="bilinear", align_corners=False)
        flow = pairs.view(*flow.shape[:3], height, width)
    across, down = width / pixels[1], height / pixels[0]
    if across == down:
        return flow * across if across != 1 else flow
    return flow * per_axis(across, down, flow)


def per_axis(x: float, y: float, like: Tensor) -> Tensor:
    """Return (2, 1, 1), made without waiting for a GPU: a number for x and one for y, to go with (..., 2, h, w)."""
    return torch.tensor([x, y], dtype=like.dtype)[:, None, None].to(like.device, non_blocking=True)


def _block_mean(images: Tensor, height: int, width: int) -> Tensor:
    """Average (n, c, h', w') over whole blocks: what `F.interpolate(mode="area")` does, six times as fast on a CPU."""
    down, across = images.shape[2] // height, images.shape[3] // width
    blocks = images.view(*images.shape[:2], height, down, width, across)
    rows = blocks[:, :, :, 0].clone()
    for row in range(1, down):
        rows += blocks[:, :, :, row]
    total = rows[..., 0].clone()
    for column in range(1, across):
        total += rows[..., column]
    return total.div_(down * across)


def _landing(flow: Tensor) -> Tensor:
    """Return where each cell's flow points, (B, P, 2, h, w); flow that is not finite points outside."""
    x = torch.arange(flow.shape[4], device=flow.device, dtype=flow.dtype)
    y = torch.arange(flow.shape[3], device=flow.device, dtype=flow.dtype)
    cells = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return flow.nan_to_num(nan=_FAR, posinf=_FAR, neginf=-_FAR).add_(cells)
