"""Every built-in mask strategy, with all of its options, keeps the contract on several grids and ratios."""

from __future__ import annotations

from typing import Any

import pytest

from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import MaskStrategy
from mgmae_cli.masking.contract import ShiftFlow, check_mask_strategy, mask_inputs
from mgmae_cli.masking.motion import MotionMask
from mgmae_cli.masking.plugin import mgmae_register_masks
from mgmae_cli.masking.random import RandomMask
from mgmae_cli.masking.tube import TubeMask

MOTION_OPTIONS: list[dict[str, Any]] = [
    {"warp": "forward"},
    {"base_frame": "first"},
    {"base_frame": "random"},
    {"base_frame": "random", "warp": "forward"},
    {"init": "pixel"},
    {"init": "token"},
    {"combine": "sum"},
    {"hole_filling": "previous"},
    {"hole_filling": "none"},
    {"select": "volume"},
    {"sigma": 5.0},
    {"map_stride": 1},
    {"map_stride": 8},
    {"as_published": True},
    {"as_published": True, "select": "volume", "base_frame": "random"},
]
STRATEGIES = [cls(cls.Options()) for cls in mgmae_register_masks()]
STRATEGIES += [MotionMask(MotionMask.Options(**options)) for options in MOTION_OPTIONS]
GRIDS = [
    ClipGrid(8, 64, 64, 2, 8),
    ClipGrid(4, 48, 80, 1, 16),
    ClipGrid(6, 224, 224, 3, 16),
    ClipGrid(2, 64, 64, 2, 16),
]


def described(value: object) -> str:
    if isinstance(value, MaskStrategy):
        options = ",".join(f"{k}={v}" for k, v in value.options.model_dump(exclude_defaults=True).items())
        return f"{value.name}[{options}]"
    return f"{value.frames}x{value.height}x{value.width}" if isinstance(value, ClipGrid) else str(value)


@pytest.mark.parametrize("ratio", [0.75, 0.93])
@pytest.mark.parametrize("grid", GRIDS, ids=described)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=described)
def test_strategy_keeps_the_contract(strategy: MaskStrategy, grid: ClipGrid, ratio: float) -> None:
    check_mask_strategy(strategy, grid, ratio)


@pytest.mark.parametrize("ratio", [0.75, 0.8, 0.85, 0.9, 0.95])
@pytest.mark.parametrize("grid", [GRIDS[0], GRIDS[2]], ids=described)
def test_all_strategies_show_the_same_number_of_tokens(grid: ClipGrid, ratio: float) -> None:
    counts = {
        described(strategy): set((~strategy.sample(mask_inputs(grid, ratio, 2, 0, ShiftFlow(3, 1)))).sum(1).tolist())
        for strategy in STRATEGIES
        if not getattr(strategy.options, "as_published", False)
    }
    assert all(count == {grid.slots * grid.visible_per_slot(ratio)} for count in counts.values()), counts


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s.name == "tube" or (s.name == "motion")], ids=described)
def test_every_slot_shows_the_same_number_of_patches(strategy: MaskStrategy) -> None:
    grid = GRIDS[0]
    visible = ~strategy.sample(mask_inputs(grid, 0.9, 5, 0, ShiftFlow(2, -3))).view(5, grid.slots, grid.patches)
    if getattr(strategy.options, "select", "slot") == "volume":
        assert len(set(visible.sum(2).flatten().tolist())) > 1, "selection over the volume is free to prefer slots"
    else:
        assert set(visible.sum(2).flatten().tolist()) == {strategy.visible_tokens(grid, 0.9) // grid.slots}


def test_random_mask_is_uneven_over_slots_and_uniform_over_tokens() -> None:
    grid = ClipGrid(8, 32, 32, 2, 8)
    visible = ~RandomMask(RandomMask.Options()).sample(mask_inputs(grid, 0.75, 4000))
    assert len(set(visible.view(4000, grid.slots, -1).sum(2).flatten().tolist())) > 1
    share = visible.float().mean(0)
    assert (share - 0.25).abs().max() < 0.04  # six standard deviations of a mean over 4000 draws


def test_tube_mask_is_equal_in_all_slots_and_uniform_over_patches() -> None:
    grid = ClipGrid(8, 32, 32, 2, 8)
    visible = ~TubeMask(TubeMask.Options()).sample(mask_inputs(grid, 0.75, 4000)).view(4000, grid.slots, grid.patches)
    assert (visible == visible[:, :1]).all()
    assert (visible[:, 0].float().mean(0) - 0.25).abs().max() < 0.04


def test_strategies_declare_where_they_run_and_whether_they_use_flow() -> None:
    declared = {cls.name: (cls.runs_on, cls.uses_flow) for cls in mgmae_register_masks()}
    assert declared == {"random": ("worker", False), "tube": ("worker", False), "motion": ("flow", True)}
