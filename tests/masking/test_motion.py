"""Motion masks follow known flow in the known direction; each option does what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import FlowEstimator, FlowRequest
from mgmae_cli.masking.contract import ShiftFlow, mask_inputs
from mgmae_cli.masking.motion import MotionMask
from mgmae_cli.masking.tube import TubeMask


def motion(**options: Any) -> MotionMask:
    return MotionMask(MotionMask.Options(**options))


class SmoothFlow(FlowEstimator):
    """Different smooth flow for every clip and pair, of about 3 pixels."""

    name = "smooth"

    def __init__(self) -> None:
        super().__init__(options=None)

    def estimate(self, request: FlowRequest) -> Tensor:
        clips, pairs = request.source.shape
        coarse = torch.randn(clips * pairs, 2, 4, 4, generator=torch.Generator().manual_seed(5)) * 3
        size = request.clip.shape[3:]
        return F.interpolate(coarse, size=size, mode="bicubic", align_corners=False).view(clips, pairs, 2, *size)


@pytest.mark.parametrize("warp", ["backward", "forward"])
@pytest.mark.parametrize("init", ["gaussian", "token"])
@pytest.mark.parametrize("base_frame", ["first", "middle", "random"])
def test_motion_with_zero_flow_is_the_tube_mask_of_the_same_seed(warp: str, init: str, base_frame: str) -> None:
    grid = ClipGrid(8, 96, 64, 2, 8)
    mask = motion(warp=warp, init=init, base_frame=base_frame).sample(mask_inputs(grid, 0.9, 8, 3, ShiftFlow()))
    assert torch.equal(mask, TubeMask(TubeMask.Options()).sample(mask_inputs(grid, 0.9, 8, 3)))


@pytest.mark.parametrize("options", [{"combine": "sum"}, {"init": "pixel"}, {"init": "pixel", "warp": "forward"}])
def test_motion_with_zero_flow_is_some_tube_mask_whatever_the_initial_map(options: dict[str, Any]) -> None:
    grid = ClipGrid(8, 96, 64, 2, 8)
    visible = ~motion(**options).sample(mask_inputs(grid, 0.9, 8, 3, ShiftFlow())).view(8, grid.slots, grid.patches)
    assert (visible == visible[:, :1]).all()


@pytest.mark.parametrize("warp", ["backward", "forward"])
@pytest.mark.parametrize("base_frame", ["first", "middle", "random"])
@pytest.mark.parametrize("direction", [(1, 0), (-1, 0), (0, 1), (0, -1), (1, -1)])
@pytest.mark.parametrize("flow_step", [1, 2])
def test_visible_patch_moves_one_patch_per_slot_with_the_flow(
    warp: str, base_frame: str, direction: tuple[int, int], flow_step: int
) -> None:
    # Half a patch a frame is one patch a slot. One visible patch; clips where it would leave the frame are dropped.
    grid, clips = ClipGrid(8, 11 * 4, 13 * 4, 2, 4), 32
    estimator = ShiftFlow(2 * direction[0], 2 * direction[1])
    strategy = motion(warp=warp, base_frame=base_frame, flow_step=flow_step)
    mask = strategy.sample(mask_inputs(grid, 0.995, clips, 11, estimator))
    visible = ~mask.view(clips, grid.slots, grid.rows, grid.cols)
    assert (visible.sum((2, 3)) == 1).all()
    where = visible.flatten(2).int().argmax(2)
    row, col = where // grid.cols, where % grid.cols
    inner = ((row >= 1) & (row < grid.rows - 1) & (col >= 1) & (col < grid.cols - 1)).all(1)
    assert inner.sum() >= 5
    assert (row[inner].diff(dim=1) == direction[1]).all()
    assert (col[inner].diff(dim=1) == direction[0]).all()


@pytest.mark.parametrize("warp", ["backward", "forward"])
@pytest.mark.parametrize("stride", [1, 4])
def test_map_is_the_base_map_shifted_by_the_flow_before_and_after_the_base_frame(warp: str, stride: int) -> None:
    grid = ClipGrid(8, 128, 128, 2, 16)
    maps = motion(warp=warp, map_stride=stride).visibility(mask_inputs(grid, 0.9, 2, 0, ShiftFlow(4, -8)))
    cells = (-8 // stride, 4 // stride)
    margin = 4 * max(abs(c) for c in cells)
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    for frame in range(grid.frames):
        moved = maps[:, 4].roll([(frame - 4) * step for step in cells], dims=(1, 2))
        torch.testing.assert_close(maps[:, frame][inner], moved[inner], atol=1e-5, rtol=0)
    assert (maps[:, 3][inner] - maps[:, 4][inner]).abs().max() > 0.1  # the map is not just flat


@pytest.mark.parametrize("warp", ["backward", "forward"])
@pytest.mark.parametrize(("frames", "tubelet", "step", "base"), [(8, 2, 2, 4), (6, 2, 2, 3), (12, 6, 3, 6)])
def test_with_a_flow_step_frames_share_the_map_of_one_of_them(
    warp: str, frames: int, tubelet: int, step: int, base: int
) -> None:
    grid, estimator = ClipGrid(frames, 128, 128, tubelet, 16), ShiftFlow(4, -8)
    maps = motion(warp=warp, map_stride=4, flow_step=step).visibility(mask_inputs(grid, 0.9, 2, 0, estimator))
    assert maps.shape == (2, frames, 32, 32)
    inner = (..., slice(13, -13), slice(13, -13))
    for frame in range(frames):
        standing_in = frame // step * step + base % step
        moved = maps[:, base].roll([(standing_in - base) * cells for cells in (-2, 1)], dims=(1, 2))
        torch.testing.assert_close(maps[:, frame][inner], moved[inner], atol=1e-5, rtol=0)
    (request,) = estimator.requests
    assert request.source.shape == (2, frames // step - 1)
    assert ((request.target - request.source).abs() == step).all()


def test_a_flow_step_that_does_not_divide_the_tubelet_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"flow_step = 4: must divide model\.tubelet = 6; use one of 1, 2, 3, 6"):
        motion(flow_step=4).visible_tokens(ClipGrid(12, 32, 32, 6, 8), 0.75)


@pytest.mark.parametrize(("base_frame", "base"), [("first", 0), ("middle", 4)])
@pytest.mark.parametrize("warp", ["backward", "forward"])
def test_flow_is_asked_once_for_exactly_the_pairs_that_the_warp_needs(warp: str, base_frame: str, base: int) -> None:
    estimator = ShiftFlow()
    motion(warp=warp, base_frame=base_frame).sample(mask_inputs(ClipGrid(8, 32, 32, 2, 8), 0.75, 2, 0, estimator))
    (request,) = estimator.requests
    known = [*range(1, base + 1), *range(base, 7)]
    made = [*range(base), *range(base + 1, 8)]
    source, target = (made, known) if warp == "backward" else (known, made)
    assert request.source.tolist() == [source] * 2
    assert request.target.tolist() == [target] * 2
    assert request.source.dtype == torch.int64


def test_random_base_frame_is_drawn_for_each_clip() -> None:
    estimator = ShiftFlow(3, 1)
    grid = ClipGrid(8, 64, 64, 2, 8)
    inputs = mask_inputs(grid, 0.9, 64, 1, estimator)
    maps = motion(base_frame="random").visibility(inputs)
    # With backward warping, flow lives on the frames that are made: all but the base frame.
    made = torch.zeros(64, 8, dtype=torch.bool).scatter_(1, estimator.requests[0].source, True)
    assert (made.sum(1) == 7).all()
    bases = (~made).int().argmax(1)
    assert set(bases.tolist()) == set(range(8))
    at_first = motion(base_frame="first").visibility(mask_inputs(grid, 0.9, 64, 1, ShiftFlow()))[:, 0]
    assert torch.equal(maps[torch.arange(64), bases], at_first)  # the same draw of patches, at each clip's own frame


# --- as published -------------------------------------------------------------------------------------------------


def test_as_published_differs_from_the_right_maps_only_before_the_base_frame() -> None:
    grid = ClipGrid(8, 64, 64, 2, 8)
    right = motion().visibility(mask_inputs(grid, 0.9, 2, 0, ShiftFlow(2, -2)))
    stretched = ShiftFlow(2 * 64 / 63, -2 * 64 / 63)  # undoes the other defect, flow a little too short
    published = motion(as_published=True).visibility(mask_inputs(grid, 0.9, 2, 0, stretched))
    torch.testing.assert_close(published[:, 4:], right[:, 4:], atol=1e-4, rtol=0)
    for distance in range(1, 4):
        # Frames before the base go where frames after it go. (Not at the borders: holes are on the same side there.)
        torch.testing.assert_close(published[:, 4 - distance], right[:, 4 + distance], atol=1e-4, rtol=0)
        assert (published[:, 4 - distance] - right[:, 4 - distance]).abs().max() > 0.1


def test_as_published_with_the_first_frame_as_base_asks_for_the_right_pairs() -> None:
    requests = []
    for as_published in (False, True):
        estimator = ShiftFlow()
        motion(as_published=as_published, base_frame="first").sample(
            mask_inputs(ClipGrid(8, 32, 32, 2, 8), 0.75, 2, 0, estimator)
        )
        requests.append((estimator.requests[0].source.tolist(), estimator.requests[0].target.tolist()))
    assert requests[0] == requests[1]


def test_as_published_shortens_flow_like_grid_sample_with_aligned_corners_and_half_the_width() -> None:
    grid = ClipGrid(2, 32, 64, 2, 16)
    inputs = mask_inputs(grid, 0.75, 1, 0, ShiftFlow(-5.3, 3.1))
    maps = motion(as_published=True, base_frame="first", map_stride=1).visibility(inputs)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 64), indexing="ij")
    sample_at = torch.stack((x + 5.3 / 32, y - 3.1 / 16), dim=-1)[None]
    expected = F.grid_sample(maps[:, :1], sample_at, align_corners=True)[0, 0]
    torch.testing.assert_close(maps[0, 1, 8:-8, 8:-8], expected[8:-8, 8:-8], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("ratio", "visible", "common"), [(0.9, 19, 20), (0.75, 49, 49), (0.95, 9, 10)])
def test_as_published_shows_the_official_number_of_patches(ratio: float, visible: int, common: int) -> None:
    grid = ClipGrid()
    assert motion(as_published=True).visible_tokens(grid, ratio) == 8 * visible
    assert motion().visible_tokens(grid, ratio) == 8 * common


def test_as_published_budget_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"as_published.*no visible patch at mask\.ratio = 0\.95"):
        motion(as_published=True).visible_tokens(ClipGrid(4, 32, 32, 2, 8), 0.95)


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "token", "combine": "sum"}, "combine = sum has no effect with init = token"),
        ({"init": "pixel", "sigma": 8.0}, "sigma = 8.0 has no effect with init = pixel"),
        ({"as_published": True, "warp": "forward"}, "contradicts warp = forward"),
        ({"sigma": 0}, "greater than 0"),
        ({"map_stride": 0}, "greater than or equal to 1"),
        ({"as_published": True, "flow_step": 2}, "as_published = true contradicts flow_step = 2"),
        ({"warp": "sideways"}, "'backward' or 'forward'"),
        ({"speed": 1}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_contradict_or_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MotionMask.Options(**options)


def test_map_stride_that_does_not_divide_the_patch_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"map_stride = 5: must divide model\.patch = 16; use one of 1, 2, 4, 8, 16"):
        motion(map_stride=5).visible_tokens(ClipGrid(), 0.9)


@pytest.mark.parametrize(("patch", "stride"), [(16, 4), (8, 2), (14, 2), (6, 1), (2, 1), (1, 1)])
def test_default_map_stride_is_about_a_quarter_of_the_patch_and_divides_it(patch: int, stride: int) -> None:
    grid = ClipGrid(2, 4 * patch, 4 * patch, 2, patch)
    maps = motion().visibility(mask_inputs(grid, 0.75, 1, 0, ShiftFlow()))
    assert maps.shape == (1, 2, 4 * patch // stride, 4 * patch // stride)


@pytest.mark.parametrize("options", [{}, {"warp": "forward"}, {"combine": "sum"}, {"init": "token"}])
def test_reduced_grid_keeps_nearly_all_tokens_of_the_full_grid(options: dict[str, Any]) -> None:
    grid = ClipGrid(8, 128, 128, 2, 16)
    shares = []
    full, *reduced = (
        motion(map_stride=stride, **options).sample(mask_inputs(grid, 0.9, 6, 2, SmoothFlow()))
        for stride in (1, 2, 4, 8)
    )
    for mask in reduced:
        shares.append(((~full & ~mask).sum() / (~full).sum()).item())
    assert shares[0] > 0.97
    assert shares[1] > 0.95
    assert shares[2] > 0.88


def test_volume_selection_gives_more_tokens_to_slots_with_higher_maps() -> None:
    # Everything flows out of the frame and holes stay empty: slots far from the base frame have little to show.
    grid = ClipGrid(16, 64, 64, 2, 8)
    strategy = motion(base_frame="first", hole_filling="none", select="volume")
    visible = ~strategy.sample(mask_inputs(grid, 0.9, 8, 0, ShiftFlow(5, 5))).view(8, grid.slots, grid.patches)
    per_slot = visible.sum((0, 2))
    assert per_slot[0] > 2 * per_slot[-1]
    assert visible.sum() == 8 * grid.visible_tokens(0.9)


def test_flow_that_is_not_finite_makes_holes_and_no_wild_index() -> None:
    grid = ClipGrid(8, 64, 64, 2, 8)
    for warp in ("backward", "forward"):
        for bad in (float("nan"), float("inf"), -float("inf")):
            inputs = mask_inputs(grid, 0.9, 2, 0, ShiftFlow(bad, 0.0))
            maps = motion(warp=warp).visibility(inputs)
            assert torch.equal(maps, maps[:, 4:5].expand_as(maps))  # all holes, filled from the base map
