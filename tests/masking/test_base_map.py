"""Base maps against their formulas, written out slowly."""

from __future__ import annotations

import math

import pytest
import torch

from mgmae_cli.masking.base_map import EPSILON, draw_visible, gaussian_map, pixel_map, token_map


@pytest.mark.parametrize("combine", ["max", "sum"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_gaussian_map_equals_the_formula_at_every_cell_centre(combine: str, stride: int) -> None:
    visible = draw_visible(torch.rand(2, 12, generator=torch.Generator().manual_seed(0)), 4).view(2, 3, 4)
    got = gaussian_map(visible, patch=8, stride=stride, sigma=6.0, combine=combine)  # type: ignore[arg-type]
    assert got.shape == (2, 24 // stride, 32 // stride)
    merge = max if combine == "max" else sum
    for clip in range(2):
        centres = [(r * 8 + 3.5, c * 8 + 3.5) for r, c in visible[clip].nonzero().tolist()]
        for i in range(24 // stride):
            for j in range(32 // stride):
                y, x = i * stride + (stride - 1) / 2, j * stride + (stride - 1) / 2
                bells = [math.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 36) for cy, cx in centres]
                assert got[clip, i, j].item() == pytest.approx(merge(bells), abs=1e-6)


def test_token_map_is_one_on_visible_patches_and_epsilon_elsewhere() -> None:
    visible = torch.tensor([[[True, False], [False, False]]])
    got = token_map(visible, patch=4, stride=2)
    expected = torch.full((1, 4, 4), EPSILON)
    expected[:, :2, :2] = 1
    assert torch.equal(got, expected)


def test_pixel_map_has_exactly_the_asked_number_of_ones_and_its_reduced_grid_is_the_average() -> None:
    noise = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    full = pixel_map(noise, 10, 1)
    assert (full == 1).sum((1, 2)).tolist() == [10] * 3
    assert ((full == 1) | (full == torch.tensor(EPSILON))).all()
    reduced = pixel_map(noise, 10, 4)
    torch.testing.assert_close(reduced, full.view(3, 2, 4, 3, 4).mean((2, 4)))


def test_draw_visible_takes_the_largest_noise() -> None:
    drawn = draw_visible(torch.tensor([[0.1, 0.9, 0.5, 0.7]]), 2)
    assert drawn.tolist() == [[False, True, False, True]]
