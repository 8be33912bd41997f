"""Pooling and selection on cases worked out by hand."""

from __future__ import annotations

import torch

from mgmae_cli.masking.select import pool_tokens, select_tokens


def test_pooling_averages_each_tubelet_in_slot_major_order() -> None:
    maps = torch.arange(2 * 4 * 4 * 6, dtype=torch.float32).view(2, 4, 4, 6)
    got = pool_tokens(maps, slots=2, rows=2, cols=3)
    assert got.shape == (2, 2, 6)
    for clip in range(2):
        for slot in range(2):
            for row in range(2):
                for col in range(3):
                    tubelet = maps[clip, 2 * slot : 2 * slot + 2, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
                    torch.testing.assert_close(got[clip, slot, row * 3 + col], tubelet.mean())


VALUES = torch.tensor([[[0.1, 0.5, 0.3], [0.9, 0.8, 0.7]]])
NO_TIES = torch.tensor([[0.1, 0.2, 0.3]])


def test_slot_selection_keeps_the_best_of_every_slot() -> None:
    assert select_tokens(VALUES, 1, "slot", NO_TIES).tolist() == [[True, False, True, False, True, True]]


def test_volume_selection_keeps_the_best_of_the_clip() -> None:
    assert select_tokens(VALUES, 1, "volume", NO_TIES).tolist() == [[True, True, True, False, False, True]]


def test_ties_fall_to_random_places_that_are_equal_in_all_slots() -> None:
    noise = torch.rand(2000, 10, generator=torch.Generator().manual_seed(0))
    visible = ~select_tokens(torch.zeros(2000, 3, 10), 4, "slot", noise).view(2000, 3, 10)
    assert (visible == visible[:, :1]).all()
    assert (visible[:, 0].float().mean(0) - 0.4).abs().max() < 0.06


def test_rounding_in_the_last_bits_does_not_decide() -> None:
    noise = torch.rand(500, 10, generator=torch.Generator().manual_seed(0))
    values = torch.full((500, 1, 10), 0.25)
    jittered = values * (1 + 1e-7 * torch.randn(500, 1, 10, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(select_tokens(values, 4, "slot", noise), select_tokens(jittered, 4, "slot", noise))


def test_epsilon_ranks_above_a_hole() -> None:
    values = torch.tensor([[[0.0, 1e-8, 0.0, 1e-8]]])
    assert select_tokens(values, 2, "slot", torch.rand(1, 4)).tolist() == [[True, False, True, False]]
