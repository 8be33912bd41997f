"""The token grid and its budgets."""

from __future__ import annotations

from fractions import Fraction

import pytest

from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid


def test_the_papers_clip_has_the_papers_numbers() -> None:
    grid = ClipGrid()
    assert (grid.slots, grid.rows, grid.cols, grid.patches, grid.tokens) == (8, 14, 14, 196, 1568)
    assert (grid.token_pixels, grid.token_values) == (512, 1536)
    assert (grid.masked_per_slot(0.9), grid.visible_per_slot(0.9), grid.visible_tokens(0.9)) == (176, 20, 160)


@pytest.mark.parametrize("percent", range(75, 96))
@pytest.mark.parametrize("size", [(64, 64, 8), (96, 160, 16), (224, 224, 16), (40, 80, 8), (224, 224, 14)])
def test_masked_patches_are_the_ratio_rounded_down_whatever_floats_make_of_it(
    percent: int, size: tuple[int, int, int]
) -> None:
    height, width, patch = size
    grid = ClipGrid(8, height, width, 2, patch)
    exact = Fraction(percent, 100) * grid.patches
    masked = grid.masked_per_slot(percent / 100)
    assert masked == exact.numerator // exact.denominator
    assert grid.visible_per_slot(percent / 100) == grid.patches - masked
    assert grid.visible_tokens(percent / 100) == 4 * (grid.patches - masked)


def test_seven_tenths_of_ten_patches_are_seven() -> None:
    assert int(0.7 * 10 - 1e-15) == 6  # what floats would make of it
    assert ClipGrid(2, 16, 40, 2, 8).masked_per_slot(0.7) == 7


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((15, 64, 64, 2, 8), "data.frames: frames 15 is not a multiple of model.tubelet = 2; use 14 or 16"),
        ((16, 60, 64, 2, 8), "data.size: height 60 is not a multiple of model.patch = 8; use 56 or 64"),
        ((16, 64, 100, 2, 16), "data.size: width 100 is not a multiple of model.patch = 16; use 96 or 112"),
        ((16, 64, 8, 2, 16), "data.size: width 8 is not a multiple of model.patch = 16; use 16"),
        ((16, 64, 0, 2, 16), "data.size: width 0: must be at least 1"),
        ((16, 64, 64, 0, 16), "model.tubelet = 0: must be at least 1"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest_that_do(
    sizes: tuple[int, int, int, int, int], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ClipGrid(*sizes)
    assert str(caught.value) == message


@pytest.mark.parametrize("patches", [2, 3, 7, 49, 64, 196, 1000])
def test_a_ratio_that_leaves_nothing_is_refused_and_the_advised_bounds_are_accepted(patches: int) -> None:
    grid = ClipGrid(2, 8, 8 * patches, 2, 8)
    for ratio, what in ((0.5 / patches, "masked"), (1.0, "visible")):
        with pytest.raises(ConfigError) as caught:
            grid.masked_per_slot(ratio)
        said = f"mask.ratio = {ratio}: leaves no {what} patch of {patches} per slot (1 x {patches}); use a ratio from "
        assert str(caught.value).startswith(said)
        low, high = str(caught.value).removeprefix(said).split(" to ")
        assert grid.masked_per_slot(float(low)) == 1
        assert grid.visible_per_slot(float(high)) in (1, 2)  # rounded to four digits


def test_a_single_patch_can_not_be_split_by_any_ratio() -> None:
    with pytest.raises(ConfigError, match="no ratio splits a single patch"):
        ClipGrid(2, 16, 16, 2, 16).masked_per_slot(0.5)
