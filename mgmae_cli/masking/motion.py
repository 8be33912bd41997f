"""`motion`: motion guided masking (MGMAE, arXiv 2308.10794, section 3.2).

Base map -> flow -> warp -> fill holes -> pool -> select: a visibility map is drawn at the base frame, carried along
optical flow to every other frame, and the tokens where it is highest stay visible, so that what is visible follows
what moves.

Departures from the official code: see the headers of `base_map`, `propagate`, `select` and `mgmae_cli.motion.warp`.
Maps live on a grid of `map_stride` pixels, since they are only used pooled over patches, and there may be one for each
`flow_step` frames, since they are pooled over slots, too. `as_published` brings back the official code's flow direction
before the base frame, its scaling of flow, and its number of visible tokens; not its test for holes and not its one
random base frame for a whole batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import MaskInputs, MaskStrategy
from mgmae_cli.masking.base_map import draw_visible, gaussian_map, pixel_map, token_map
from mgmae_cli.masking.propagate import HoleFilling, frame_pairs, propagate
from mgmae_cli.masking.select import pool_tokens, select_tokens
from mgmae_cli.motion.warp import BackwardWarp, ForwardWarp, flow_to_grid, per_axis


class MotionOptions(MaskStrategy.Options):
    """Options of the `motion` strategy."""

    warp: Literal["backward", "forward"] = Field(
        "backward",
        description="backward: look each new frame's map up in its neighbour; forward: splat the neighbour's",
    )
    base_frame: Literal["first", "middle", "random"] = Field(
        "middle", description="where the map is drawn: frame 0, frame T // 2, or one drawn for each clip"
    )
    init: Literal["gaussian", "pixel", "token"] = Field(
        "gaussian", description="the base frame's map: bells around random patches, random pixels, random patches"
    )
    combine: Literal["max", "sum"] = Field("max", description="how overlapping bells combine (init: gaussian)")
    sigma: float | None = Field(
        None,
        gt=0,
        description="width of a bell in pixels, exp(-(d / sigma)^2) (init: gaussian); default: the patch size",
    )
    hole_filling: HoleFilling = Field(
        "base", description="what a place without source gets: the base map's value, the neighbouring map's, or zero"
    )
    select: Literal["slot", "volume"] = Field(
        "slot", description="slot: the same number of visible patches in every slot; volume: the best of the whole clip"
    )
    map_stride: int | None = Field(
        None, ge=1, description="pixels per cell of the maps' grid, a divisor of the patch size; default: patch / 4"
    )
    flow_step: int = Field(
        1,
        ge=1,
        description="frames from one map to the next, a divisor of the tubelet's; 2 estimates half as many flows, each "
        "across two frames",
    )
    as_published: bool = Field(
        False, description="repeat the official code's defects: flow direction before the base frame, scale, budget"
    )

    @model_validator(mode="after")
    def _no_contradictions(self) -> MotionOptions:
        if self.init != "gaussian":
            for key, idle in (("combine", self.combine == "max"), ("sigma", self.sigma is None)):
                if not idle:
                    raise ValueError(
                        f"{key} = {getattr(self, key)} has no effect with init = {self.init}; "
                        f"drop {key}, or use init = gaussian"
                    )
        if self.as_published and self.flow_step > 1:
            raise ValueError(
                f"as_published = true contradicts flow_step = {self.flow_step}: the official code carries its map "
                "through every frame; drop one of them"
            )
        if self.as_published and self.warp == "forward":
            raise ValueError(
                "as_published = true contradicts warp = forward, where the official code crashes; use warp = backward"
            )
        return self


class MotionMask(MaskStrategy):
    """Visible patches that follow the optical flow."""

    name = "motion"
    runs_on = "flow"
    uses_flow = True

    Options = MotionOptions
    options: MotionOptions

    def sample(self, inputs: MaskInputs) -> Tensor:
        grid = inputs.grid
        values = pool_tokens(self._maps(inputs), grid.slots, grid.rows, grid.cols)
        tie_noise = inputs.rand(inputs.batch, grid.patches)
        return select_tokens(values, self._visible_per_slot(grid, inputs.ratio), self.options.select, tie_noise)

    def visibility(self, inputs: MaskInputs) -> Tensor:
        return self._maps(inputs).repeat_interleave(self.options.flow_step, dim=1)

    def _maps(self, inputs: MaskInputs) -> Tensor:
        """Return the (B, T / flow_step, h, w) maps: one for each run of `flow_step` frames."""
        options, grid, step = self.options, inputs.grid, self._flow_step(inputs.grid)
        base_map = self._base_map(inputs)
        base = self.base_frames(inputs)
        source, target = frame_pairs(base // step, grid.frames // step, options.warp, options.as_published)
        place = (base % step)[:, None]  # of the frame that stands for its run: the base frame does for its own
        flow = inputs.flow(source * step + place, target * step + place)
        flow = flow_to_grid(flow, base_map.shape[1:], (grid.height, grid.width))
        if options.as_published:
            flow = _scale_as_published(flow, grid)
        warp = BackwardWarp(flow) if options.warp == "backward" else ForwardWarp(flow)
        return propagate(base_map, base // step, warp, options.hole_filling)

    def visible_tokens(self, grid: ClipGrid, ratio: float) -> int:
        """Return V, the common budget; with `as_published`, the official code's smaller one."""
        self._stride(grid)  # what doesn't fit is told before the first batch
        self._flow_step(grid)
        return grid.slots * self._visible_per_slot(grid, ratio)

    def base_frames(self, inputs: MaskInputs) -> Tensor:
        """Return the frames where the maps of a batch are drawn, (B,) on the CPU."""
        frames = inputs.grid.frames
        if self.options.base_frame == "random":
            return torch.randint(frames, (inputs.batch,), generator=inputs.generator)
        return torch.full((inputs.batch,), 0 if self.options.base_frame == "first" else frames // 2)

    def _visible_per_slot(self, grid: ClipGrid, ratio: float) -> int:
        common = grid.visible_per_slot(ratio)
        if not self.options.as_published:
            return common
        published = int(grid.patches * (1 - ratio))  # cut off, not rounded: 19 at 0.9 on 196
        if published < 1:
            raise ConfigError(
                f"mask.options.as_published: the official budget leaves no visible patch at mask.ratio = {ratio} "
                f"on {grid.rows} x {grid.cols} patches; use a smaller ratio"
            )
        return published

    def _stride(self, grid: ClipGrid) -> int:
        stride = self.options.map_stride
        if stride is None:
            return _default_stride(grid.patch)
        return _divisor("map_stride", stride, "patch", grid.patch)

    def _flow_step(self, grid: ClipGrid) -> int:
        return _divisor("flow_step", self.options.flow_step, "tubelet", grid.tubelet)

    def _base_map(self, inputs: MaskInputs) -> Tensor:
        options, grid, stride = self.options, inputs.grid, self._stride(inputs.grid)
        if options.init == "pixel":
            noise = inputs.rand(inputs.batch, grid.height, grid.width)
            return pixel_map(noise, round((1 - inputs.ratio) * grid.height * grid.width), stride)
        visible = draw_visible(inputs.rand(inputs.batch, grid.patches), inputs.visible_per_slot)
        visible = visible.view(-1, grid.rows, grid.cols)
        if options.init == "token":
            return token_map(visible, grid.patch, stride)
        return gaussian_map(visible, grid.patch, stride, options.sigma or grid.patch, options.combine)


def _divisor(option: str, value: int, whole: str, size: int) -> int:
    """Return an option's value, which must divide a size of the model."""
    if size % value:
        fitting = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
        raise ConfigError(f"mask.options.{option} = {value}: must divide model.{whole} = {size}; use one of {fitting}")
    return value


def _default_stride(patch: int) -> int:
    """Return the coarsest grid that hardly changes a mask: a quarter of a patch, or the next finer that divides it."""
    return next(stride for stride in range(max(1, patch // 4), 0, -1) if patch % stride == 0)


def _scale_as_published(flow: Tensor, grid: ClipGrid) -> Tensor:
    """Divide by W / 2 where coordinates of aligned corners want (W - 1) / 2: all flow a little too short."""
    return flow * per_axis((grid.width - 1) / grid.width, (grid.height - 1) / grid.height, flow)
