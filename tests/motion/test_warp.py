"""Warps against known motion, hand-worked cases and slow references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mgmae_cli.motion.warp import MIN_SPLAT_WEIGHT, BackwardWarp, ForwardWarp, flow_to_grid

ALL = slice(None)


def constant_flow(dx: float, dy: float, height: int, width: int, clips: int = 1) -> Tensor:
    return torch.tensor([dx, dy], dtype=torch.float32)[:, None, None].expand(clips, 1, 2, height, width).clone()


def random_case(seed: int = 0, clips: int = 2, height: int = 7, width: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(clips, height, width, generator=generator)
    return known, 3 * torch.randn(clips, 2, 2, height, width, generator=generator)


def square(top: int, left: int) -> Tensor:
    image = torch.zeros(1, 20, 30)
    image[:, top : top + 4, left : left + 4] = 1
    return image


def test_backward_warp_moves_a_square_by_its_known_flow() -> None:
    # The flow on the made frame points to where things were: they moved by (+5, -3), so it says (-5, +3).
    warp = BackwardWarp(constant_flow(-5, 3, 20, 30))
    assert torch.equal(warp(square(8, 10), ALL, 0), square(5, 15))


def test_forward_warp_moves_a_square_by_its_known_flow() -> None:
    warp = ForwardWarp(constant_flow(5, -3, 20, 30))
    assert torch.equal(warp(square(8, 10), ALL, 0), square(5, 15))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (14, 14), (17, 33), (56, 56), (28, 112)])
def test_a_still_map_stays_as_it_is_to_the_last_bit(height: int, width: int) -> None:
    known = torch.rand(2, height, width, generator=torch.Generator().manual_seed(0))
    flow = torch.zeros(2, 1, 2, height, width)
    for warp in (BackwardWarp(flow), ForwardWarp(flow)):
        assert torch.equal(warp(known, ALL, 0), known)
        assert not warp.hole.any()


def test_backward_warp_equals_a_slow_reference() -> None:
    known, flow = random_case()
    warp = BackwardWarp(flow)
    for pair in range(2):
        got = warp(known, ALL, pair)
        for clip in range(2):
            for i in range(7):
                for j in range(9):
                    x, y = j + flow[clip, pair, 0, i, j].item(), i + flow[clip, pair, 1, i, j].item()
                    outside = not (-0.5 <= x <= 8.5 and -0.5 <= y <= 6.5)
                    assert warp.hole[clip, pair, i, j].item() == outside
                    if not outside:
                        x, y = min(max(x, 0), 8), min(max(y, 0), 6)
                        value = sum(
                            max(0, 1 - abs(x - q)) * max(0, 1 - abs(y - p)) * known[clip, p, q].item()
                            for p in range(7)
                            for q in range(9)
                        )
                        assert got[clip, i, j].item() == pytest.approx(value, abs=1e-5)


def test_forward_splat_equals_a_slow_reference_of_one_pixel_at_a_time() -> None:
    known, flow = random_case(seed=1)
    warp = ForwardWarp(flow)
    holes = 0
    for pair in range(2):
        total, weight = torch.zeros(2, 7, 9), torch.zeros(2, 7, 9)
        for clip in range(2):
            for i in range(7):
                for j in range(9):
                    x, y = j + flow[clip, pair, 0, i, j].item(), i + flow[clip, pair, 1, i, j].item()
                    for p in (math.floor(y), math.floor(y) + 1):
                        for q in (math.floor(x), math.floor(x) + 1):
                            if 0 <= p < 7 and 0 <= q < 9:
                                share = (1 - abs(x - q)) * (1 - abs(y - p))
                                total[clip, p, q] += share * known[clip, i, j]
                                weight[clip, p, q] += share
        hole = weight < MIN_SPLAT_WEIGHT
        expected = torch.where(hole, 0, total / weight.clamp_min(1e-9))
        assert torch.equal(warp.hole[:, pair], hole)
        torch.testing.assert_close(warp(known, ALL, pair), expected, atol=1e-4, rtol=1e-4)
        holes += int(hole.sum())
    assert holes > 5


def test_forward_splat_averages_what_lands_on_one_cell() -> None:
    flow = torch.zeros(1, 1, 2, 1, 3)
    flow[0, 0, 0, 0] = torch.tensor([1.0, 0.0, -1.0])  # all three cells land on the middle one
    warp = ForwardWarp(flow)
    assert warp(torch.tensor([[[1.0, 2.0, 6.0]]]), ALL, 0).tolist() == [[[0.0, 3.0, 0.0]]]
    assert warp.hole.tolist() == [[[[True, False, True]]]]


def test_backward_warp_repeats_the_edge_up_to_half_a_cell_and_has_holes_beyond() -> None:
    known = torch.tensor([[[1.0, 2.0, 3.0]]])
    near, far = BackwardWarp(constant_flow(0.4, 0, 1, 3)), BackwardWarp(constant_flow(0.6, 0, 1, 3))
    torch.testing.assert_close(near(known, ALL, 0), torch.tensor([[[1.4, 2.4, 3.0]]]))
    assert near.hole.tolist() == [[[[False, False, False]]]]
    assert far.hole.tolist() == [[[[False, False, True]]]]


def test_holes_are_where_a_warped_map_of_ones_falls_below_one_half() -> None:
    generator = torch.Generator().manual_seed(3)
    for dx in (6 * torch.rand(20, generator=generator) - 3).tolist():
        y, x = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
        sample_at = torch.stack(((x + dx) * 2 / 5 - 1, y * 2 / 4 - 1), dim=-1)[None]
        ones = torch.nn.functional.grid_sample(torch.ones(1, 1, 5, 6), sample_at, align_corners=True)
        assert torch.equal(BackwardWarp(constant_flow(dx, 0, 5, 6)).hole[0], ones[0] < 0.5)


def test_warps_serve_the_chosen_clips_and_pair() -> None:
    known, flow = random_case(seed=2, clips=4)
    chosen = torch.tensor([3, 1])
    for make in (BackwardWarp, ForwardWarp):
        warp, alone = make(flow), make(flow[chosen][:, 1:])
        assert torch.equal(warp(known[chosen], chosen, 1), alone(known[chosen], ALL, 0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_flow_that_is_not_finite_makes_a_hole(bad: float) -> None:
    flow = torch.zeros(1, 1, 2, 2, 2)
    flow[0, 0, 1, 0, 1] = bad
    known = torch.ones(1, 2, 2)
    for warp in (BackwardWarp(flow), ForwardWarp(flow)):
        assert warp.hole[0, 0].tolist() == [[False, True], [False, False]]
        assert warp(known, ALL, 0).isfinite().all()


def test_flow_to_grid_averages_each_cell_and_counts_in_cells() -> None:
    flow = torch.arange(2 * 4 * 6, dtype=torch.float32).view(1, 1, 2, 4, 6)
    got = flow_to_grid(flow, (2, 3), (4, 6))
    expected = flow.view(1, 1, 2, 2, 2, 3, 2).mean((4, 6)) / 2
    torch.testing.assert_close(got, expected)


def test_flow_to_grid_handles_sizes_that_do_not_divide_and_unequal_axes() -> None:
    flow = torch.full((1, 1, 2, 10, 9), 6.0)
    got = flow_to_grid(flow, (4, 6), (16, 12))
    torch.testing.assert_close(got[:, :, 0], torch.full((1, 1, 4, 6), 3.0))  # 12 pixels across on 6 cells
    torch.testing.assert_close(got[:, :, 1], torch.full((1, 1, 4, 6), 1.5))  # 16 pixels down on 4 cells


def test_flow_to_grid_interpolates_a_coarser_grid_around_pixel_centres() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 2, 8, 8)
    coarse = torch.nn.functional.avg_pool2d(ramp[0], 2)[None]
    got = flow_to_grid(coarse, (8, 8), (8, 8))
    torch.testing.assert_close(got[..., 1:-1], ramp[..., 1:-1])


def test_flow_to_grid_leaves_flow_on_the_right_grid_as_it_is() -> None:
    flow = torch.randn(1, 2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flow_to_grid(flow, (4, 4), (4, 4)), flow)


def test_a_reduced_grid_gives_the_average_of_the_full_one() -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    known = torch.exp(-((x - 14) ** 2 + (y - 18) ** 2) / 64)[None]
    flow = constant_flow(2.7, -1.4, 32, 32)
    reduced = torch.nn.functional.avg_pool2d(known, 2)
    on_grid = flow_to_grid(flow, (16, 16), (32, 32))
    for make in (BackwardWarp, ForwardWarp):
        full = torch.nn.functional.avg_pool2d(make(flow)(known, ALL, 0), 2)
        got = make(on_grid)(reduced, ALL, 0)
        assert (got - full).abs()[:, 2:-2, 2:-2].max() < 0.02
