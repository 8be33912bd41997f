"""`blocks` keeps the contract of mask strategies, and hides what its header says."""

from __future__ import annotations

import re
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from mgmae_mask_blocks import BlockMask, axis_reach
from torch import Tensor

from mgmae_cli.engine.pretrain import pretrain
from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import MaskInputs
from mgmae_cli.masking.contract import check_mask_strategy, mask_inputs
from mgmae_cli.masking.select import pool_tokens
from mgmae_cli.registry import Registry, build_registry
from mgmae_cli.settings import resolve
from mgmae_cli.yaml_files import read_yaml

GRIDS = [ClipGrid(8, 64, 64, 2, 8), ClipGrid(6, 96, 160, 3, 16), ClipGrid(2, 96, 64, 2, 16)]
LONG: dict[str, Any] = {"num_blocks": 2, "area": (0.7, 0.7)}
OPTIONS: list[dict[str, Any]] = [
    {},
    LONG,
    {"edges": "wrap"},
    {"extent": (0.2, 0.7)},
    {"num_blocks": 3, "area": (0.05, 1.0), "aspect": (0.2, 5.0), "extent": (0.3, 1.0)},
]
PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def blocks(**options: Any) -> BlockMask:
    return BlockMask(BlockMask.Options(**options))


def visible_places(strategy: BlockMask, grid: ClipGrid, ratio: float, clips: int, seed: int = 0) -> Tensor:
    """Return (B, S, R, Q) bool, True where a token stays visible."""
    mask = strategy.sample(mask_inputs(grid, ratio, clips, seed))
    return ~mask.view(clips, grid.slots, grid.rows, grid.cols)


def own_registry() -> Registry:
    """Return the built-in plugins and this one, found by the entry point that pyproject.toml declares."""
    found = re.search(r'\[project\.entry-points\.mgmae\]\n(\w+) = "(\w+)"', PROJECT.read_text())
    assert found
    return build_registry(entry_points=[EntryPoint(found[1], found[2], "mgmae")])


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.frames}x{grid.height}x{grid.width}")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_blocks_keep_the_contract_of_mask_strategies(options: dict[str, Any], grid: ClipGrid, ratio: float) -> None:
    check_mask_strategy(blocks(**options), grid, ratio)


def test_a_block_reaches_the_tokens_it_covers_at_factors_below_one() -> None:
    reach = axis_reach(torch.tensor([[4.0]]), torch.tensor([[0.0]]), 8)
    assert reach.flatten().tolist() == [0.75, 0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75]
    almost_last = axis_reach(torch.tensor([[4.0]]), torch.tensor([[1.0]]), 8)
    assert almost_last.flatten().tolist() == reach.flatten().tolist()[::-1]
    assert axis_reach(torch.tensor([[99.0]]), torch.tensor([[0.7]]), 8).max() < 1, "cut to the axis, it covers it all"


def test_on_a_ring_a_block_goes_on_at_the_other_end() -> None:
    reach = axis_reach(torch.tensor([[4.0]]), torch.tensor([[0.75]]), 8, wrap=True)  # the block is 6 to 10: 6, 7, 0, 1
    assert reach.flatten().tolist() == [0.25, 0.75, 1.25, 1.75, 1.75, 1.25, 0.75, 0.25]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_masks_equal_those_of_a_slow_search_for_the_common_factor(options: dict[str, Any]) -> None:
    grid, strategy = ClipGrid(8, 80, 112, 2, 16), blocks(**options)
    draws = torch.rand(1, strategy.options.num_blocks, 6, generator=torch.Generator().manual_seed(5))[0].tolist()
    hidden = (~visible_places(strategy, grid, 0.8, 1, seed=5))[0]
    before, after = slow_unions(draws, strategy.options, grid, int(hidden.sum()))
    assert bool((hidden | ~before).all()), "hides all that the blocks cover just before the budget is met"
    assert bool((after | ~hidden).all()), "and nothing that they do not cover just after"


def slow_unions(draws: list[list[float]], options: Any, grid: ClipGrid, budget: int) -> tuple[Tensor, Tensor]:
    """Grow boxes in small steps; return the last union that hides at most the budget and the first that hides more."""

    def union(factor: float) -> Tensor:
        covered = torch.zeros(grid.slots, grid.rows, grid.cols, dtype=torch.bool)
        for extent, area, aspect, *places in draws:
            extent, area, aspect = (
                low + (high - low) * draw
                for draw, (low, high) in zip((extent, area, aspect), (options.extent, options.area, options.aspect))
            )
            pixels = area * grid.rows * grid.cols
            wanted = (extent * grid.slots, (pixels * aspect) ** 0.5, (pixels / aspect) ** 0.5)
            for token in torch.ones_like(covered).nonzero().tolist():
                inside = True
                for axis, length in enumerate(covered.shape):
                    if axis == 0 and wanted[0] >= length:
                        continue
                    ring = options.edges == "wrap" and axis > 0
                    size = min(max(wanted[axis], 1.0), length)
                    centre = size / 2 + places[axis] * (length if ring else length - size)
                    shifts = (-length, 0, length) if ring else (0,)
                    near = min(abs(token[axis] + 0.5 - centre + shift) for shift in shifts)
                    inside = inside and near <= factor * size / 2
                covered[tuple(token)] |= inside
        return covered

    low, high = 0.0, 50.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if int(union(middle).sum()) <= budget else (low, middle)
    return union(low - 1e-4), union(high + 1e-4)


def test_blocks_that_span_the_clip_hide_the_same_patches_in_every_slot() -> None:
    for strategy, ratio in ((blocks(), 0.75), (blocks(**LONG), 0.3)):  # blocks that grow, and blocks that shrink
        visible = visible_places(strategy, GRIDS[0], ratio, 20)
        assert bool((visible == visible[:, :1]).all())
    short = visible_places(blocks(extent=(0.25, 0.5)), GRIDS[0], 0.75, 20)
    assert not bool((short == short[:, :1]).flatten(1).all(1).any())


def test_one_block_hides_one_rectangle_of_the_asked_aspect() -> None:
    grid = ClipGrid(2, 320, 320, 2, 16)
    for aspect in (0.5, 1.0, 2.0):
        hidden = ~visible_places(blocks(num_blocks=1, aspect=(aspect, aspect)), grid, 0.3, 200)[:, 0]
        height, width = hidden.any(2).sum(1), hidden.any(1).sum(1)
        edge = height * width - hidden.flatten(1).sum(1)
        assert bool((edge < torch.maximum(height, width)).all()), "full but for one edge"
        inner = (height < 20) & (width < 20)
        assert (height[inner] / width[inner]).mean().item() == pytest.approx(aspect, rel=0.1)


def test_more_blocks_leave_visible_patches_in_more_pieces() -> None:
    def border(num_blocks: int) -> float:
        visible = visible_places(blocks(num_blocks=num_blocks), ClipGrid(2, 224, 224, 2, 16), 0.75, 200)[:, 0]
        down, right = visible[:, 1:] != visible[:, :-1], visible[..., 1:] != visible[..., :-1]
        return float(down.sum() + right.sum()) / 200

    assert border(1) < 0.9 * border(8) < 0.9 * border(20)


def test_area_decides_where_blocks_lie() -> None:
    """Large blocks keep their centres near the frame's, so that the corners are hidden last."""
    small, large = (
        visible_places(blocks(area=(area, area)), ClipGrid(2, 224, 224, 2, 16), 0.9, 300)[:, 0].float().mean(0)
        for area in (0.05, 0.6)
    )
    assert large[0, 0] > small[0, 0] + 0.1


def test_blocks_inside_the_frame_hide_its_middle_and_wrapped_ones_all_places_alike() -> None:
    grid = ClipGrid(2, 224, 224, 2, 16)
    inside = visible_places(blocks(), grid, 0.75, 2000).float().mean((0, 1))
    assert inside[7, 7] < 0.02 < 0.8 < inside[0, 0]
    wrapped = visible_places(blocks(edges="wrap"), grid, 0.75, 2000).float().mean((0, 1))
    assert (wrapped - 0.25).abs().max() < 0.05  # five standard deviations of a mean over 2000 draws


def test_the_visibility_map_is_the_one_behind_the_mask() -> None:
    grid, strategy = GRIDS[1], blocks(extent=(0.3, 0.6))
    mask = strategy.sample(mask_inputs(grid, 0.75, 3, seed=4))
    maps = strategy.visibility(mask_inputs(grid, 0.75, 3, seed=4))
    assert maps.shape == (3, grid.frames, grid.rows, grid.cols)
    pooled = pool_tokens(maps, grid.slots, grid.rows, grid.cols).flatten(1)
    lowest_shown = pooled.masked_fill(mask, float("inf")).amin(1)
    highest_hidden = pooled.masked_fill(~mask, 0.0).amax(1)
    assert bool((highest_hidden <= lowest_shown * (1 + 1e-4)).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": [0.5, 0.2]}, "mask.options: area = [0.5, 0.2]: expected 0 < lowest <= highest <= 1"),
        ({"extent": [0.5, 2]}, "mask.options: extent = [0.5, 2]: expected 0 < lowest <= highest <= 1"),
        ({"aspect": [0, 1]}, "mask.options: aspect = [0, 1]: expected 0 < lowest <= highest"),
        ({"num_blocks": 0}, "mask.options.num_blocks: 0: input should be greater than or equal to 1"),
        ({"area": 0.5}, "mask.options.area: 0.5: input should be a valid tuple"),
        (
            {"num_block": 2},
            "mask.options.num_block: mask 'blocks' has no option 'num_block' (did you mean 'num_blocks'?)",
        ),
    ],
)
def test_wrong_options_are_refused_with_key_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        own_registry().make_options("mask", BlockMask, options)


def test_the_declared_entry_point_registers_blocks() -> None:
    registry = own_registry()
    assert registry.failures == []
    assert registry.mask("blocks") is BlockMask
    assert registry.entries["mask", "blocks"].package == "mgmae_mask_blocks"


def test_pip_installs_the_entry_point() -> None:
    try:
        distribution = metadata.distribution("mgmae-mask-blocks")
    except metadata.PackageNotFoundError:
        pytest.skip("mgmae-mask-blocks is not installed: pip install plugins/mgmae-mask-blocks")
    assert [(p.name, p.value) for p in distribution.entry_points if p.group == "mgmae"] == [
        ("blocks", "mgmae_mask_blocks")
    ]
    assert build_registry().entries["mask", "blocks"].package == f"mgmae-mask-blocks {distribution.version}"


def test_masks_do_not_depend_on_what_the_clip_shows() -> None:
    black = mask_inputs(GRIDS[0], 0.75, 2, seed=1)
    white = MaskInputs(black.clip + 255, black.grid, black.ratio, torch.Generator().manual_seed(1))
    assert torch.equal(blocks().sample(black), blocks().sample(white))


def test_two_steps_of_training_run_with_block_masks(tmp_path: Path) -> None:
    small = ["train.steps=2", "train.batch_size=2", "data.workers=0", "data.size=32", "run.pictures=false"]
    chosen = ["mask.name=blocks", "mask.options.area=[0.2, 0.4]", "run.device=cpu", f"run.out={tmp_path / 'run'}"]
    pretrain(resolve(None, None, [*chosen, *small], own_registry()))
    saved = read_yaml(tmp_path / "run" / "config.yaml")["mask"]
    assert (saved["name"], saved["options"]["area"], saved["options"]["num_blocks"]) == ("blocks", [0.2, 0.4], 8)
