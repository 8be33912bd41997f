"""Tokens: gathering, splitting, targets, the running cell, positions."""

from __future__ import annotations

import math

import pytest
import torch

from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model import tokens as tk

GRID = ClipGrid(frames=4, height=24, width=32, tubelet=2, patch=8)  # odd: 2 slots, 3 x 4 patches


def random_clip(batch: int = 2, grid: ClipGrid = GRID, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, grid.frames, grid.height, grid.width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def slow_token(clip: torch.Tensor, number: int, grid: ClipGrid) -> torch.Tensor:
    """Cut token `number` out of one (3, T, H, W) clip with slices, (t, p, p, 3)."""
    slot, place = divmod(number, grid.patches)
    row, col = divmod(place, grid.cols)
    t, p = grid.tubelet, grid.patch
    cut = clip[:, slot * t : (slot + 1) * t, row * p : (row + 1) * p, col * p : (col + 1) * p]
    return cut.permute(1, 2, 3, 0)


def test_gathered_tokens_equal_slices_of_the_clip() -> None:
    clip = random_clip()
    index = torch.tensor([[0, 5, 23, 12], [7, 7, 1, 18]])
    got = tk.gather_tokens(clip, index, GRID.tubelet, GRID.patch)
    assert got.shape == (2, 4, 2, 8, 8, 3)
    assert got.dtype == torch.uint8
    for b in range(2):
        for i in range(4):
            assert torch.equal(got[b, i], slow_token(clip[b], int(index[b, i]), GRID))


def test_all_tokens_equal_gathering_each_in_order() -> None:
    clip = random_clip()
    index = torch.arange(GRID.tokens).expand(2, -1)
    assert torch.equal(tk.all_tokens(clip, 2, 8), tk.gather_tokens(clip, index, 2, 8))


def test_scatter_undoes_gather_and_leaves_other_tokens_and_the_input_alone() -> None:
    clip, other = random_clip(seed=0), random_clip(seed=1)
    index = torch.tensor([[3, 9], [20, 0]])
    painted = tk.scatter_tokens(clip, index, tk.gather_tokens(other, index, 2, 8))
    assert torch.equal(clip, random_clip(seed=0))
    for b in range(2):
        for n in range(GRID.tokens):
            source = other if n in index[b] else clip
            assert torch.equal(slow_token(painted[b], n, GRID), slow_token(source[b], n, GRID))


def test_split_lists_visible_and_masked_tokens_in_clip_order() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 24, generator=generator).argsort(dim=1) >= 7
    visible, masked = tk.split_tokens(mask, 7)
    for b in range(5):
        assert visible[b].tolist() == [n for n in range(24) if not mask[b, n]]
        assert masked[b].tolist() == [n for n in range(24) if mask[b, n]]


def test_targets_equal_a_slow_loop_over_tokens_and_channels() -> None:
    clip = random_clip()
    index = torch.tensor([[4, 22], [0, 13]])
    got = tk.pixel_targets(tk.gather_tokens(clip, index, 2, 8))
    for b in range(2):
        for i in range(2):
            token = slow_token(clip[b], int(index[b, i]), GRID).double() / 255
            for c in range(3):
                values = token[..., c].flatten().tolist()
                mean = sum(values) / len(values)
                variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
                wanted = [(v - mean) / (math.sqrt(variance) + 1e-6) for v in values]
                assert torch.allclose(got[b, i, :, c].double(), torch.tensor(wanted).double(), atol=1e-5)


def test_targets_of_a_flat_token_are_zero_not_nan() -> None:
    clip = torch.full((1, 3, 4, 24, 32), 77, dtype=torch.uint8)
    target = tk.pixel_targets(tk.all_tokens(clip, 2, 8))
    assert target.abs().max() < 0.1


def test_perfect_predictions_turn_back_into_the_clip() -> None:
    tokens = tk.all_tokens(random_clip(), 2, 8)
    pixels = tk.pixels_from_targets(tk.pixel_targets(tokens), tokens)
    assert torch.allclose(pixels * 255, tokens.float(), atol=1e-2)


def test_normalised_pixels_are_standardised_by_imagenet() -> None:
    pixel = torch.tensor([0, 128, 255], dtype=torch.uint8)
    wanted = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert torch.allclose(tk.normalise_pixels(pixel), torch.tensor(wanted))


@pytest.mark.parametrize("start", range(4))
def test_running_cell_decodes_half_of_each_slot_and_advances_by_one_place(start: int) -> None:
    decoded = torch.empty(0)
    for seed in range(100):  # find a seed that draws this start
        decoded = tk.running_cell(1, 6, 4, 2, torch.Generator().manual_seed(seed)).view(6, 2, 2, 1, 2)
        cells = decoded.permute(0, 1, 3, 2, 4).reshape(6, 2, 4)  # slot, cell, place in the cell
        if cells[0, 0, -start % 4] and cells[0, 0, (1 - start) % 4]:
            break
    else:
        raise AssertionError("no seed draws this start")
    for slot in range(6):
        wanted = [(place + slot + start) % 4 < 2 for place in range(4)]
        assert cells[slot].tolist() == [wanted, wanted]


def test_running_cell_starts_differ_between_samples_and_repeat_with_the_seed() -> None:
    draw = [tk.running_cell(32, 2, 2, 2, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert len({tuple(row) for row in draw[0].tolist()}) == 4
    assert torch.equal(draw[0].sum(1), torch.full((32,), 4))


def test_running_cell_tokens_are_scored_exactly_where_they_were_masked() -> None:
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(4, 2 * 4 * 6, generator=generator).argsort(dim=1) >= 8
    decode_index, scored = tk.running_cell_tokens(mask, 2, 4, 6, generator)
    assert decode_index.shape == scored.shape == (4, 24)
    assert (decode_index.diff(dim=1) > 0).all()
    for b in range(4):
        assert scored[b].tolist() == [bool(mask[b, n]) for n in decode_index[b]]
    assert 0 < (~scored).sum() < 32


def test_running_cell_refuses_odd_numbers_of_patches() -> None:
    with pytest.raises(ConfigError, match="3 x 4"):
        tk.running_cell(1, 2, 3, 4, torch.Generator())


def test_position_table_equals_its_formula() -> None:
    table = tk.position_table(40, 6)
    for n in (0, 1, 39):
        for j in range(6):
            angle = n / 10000 ** (2 * (j // 2) / 6)
            assert table[n, j].item() == pytest.approx(math.cos(angle) if j % 2 else math.sin(angle), abs=1e-6)
