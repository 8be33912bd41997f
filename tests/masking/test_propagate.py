"""Frame pairs, hole filling and per-clip base frames on cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mgmae_cli.masking.propagate import frame_pairs, propagate
from mgmae_cli.motion.warp import BackwardWarp, ForwardWarp


def test_backward_pairs_live_on_the_made_frame_and_point_to_the_base_frames_side() -> None:
    source, target = frame_pairs(torch.tensor([0, 2, 3]), 4, "backward")
    assert source.tolist() == [[1, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert target.tolist() == [[0, 1, 2], [1, 2, 2], [1, 2, 3]]


def test_forward_pairs_are_the_backward_pairs_reversed() -> None:
    base = torch.tensor([0, 2, 3])
    assert [p.tolist() for p in frame_pairs(base, 4, "forward")] == [
        p.tolist() for p in reversed(frame_pairs(base, 4, "backward"))
    ]


def test_published_pairs_are_reversed_before_the_base_frame_and_right_after_it() -> None:
    source, target = frame_pairs(torch.tensor([0, 2]), 5, "backward", as_published=True)
    assert source.tolist() == [[1, 2, 3, 4], [1, 2, 3, 4]]
    assert target.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]


def row_flow(*dx: list[float]) -> Tensor:
    """Return (1, P, 2, 1, w) flow along a single row, one list of dx a pair."""
    flow = torch.zeros(1, len(dx), 2, 1, len(dx[0]))
    flow[0, :, 0, 0] = torch.tensor(dx)
    return flow


# Everything moves left by one cell, then back right: frame 1 lacks a source at its right end, frame 2 at its left end.
BACKWARD = row_flow([1, 1, 1, 1], [-1, -1, -1, -1])
FORWARD = row_flow([-1, -1, -1, -1], [1, 1, 1, 1])


@pytest.mark.parametrize("warp", [BackwardWarp(BACKWARD), ForwardWarp(FORWARD)], ids=["backward", "forward"])
@pytest.mark.parametrize(
    ("hole_filling", "frame_1", "frame_2"),
    [
        ("base", [2, 3, 4, 4], [1, 2, 3, 4]),
        ("previous", [2, 3, 4, 4], [2, 2, 3, 4]),
        ("none", [2, 3, 4, 0], [0, 2, 3, 4]),
    ],
)
def test_holes_are_filled_as_worked_out_by_hand(
    warp: BackwardWarp | ForwardWarp, hole_filling: str, frame_1: list[float], frame_2: list[float]
) -> None:
    base_map = torch.tensor([[[1.0, 2, 3, 4]]])
    maps = propagate(base_map, torch.tensor([0]), warp, hole_filling)  # type: ignore[arg-type]
    assert maps[0, :, 0].tolist() == [[1, 2, 3, 4], frame_1, frame_2]


def test_a_value_of_zero_is_not_taken_for_a_hole() -> None:
    base_map = torch.tensor([[[7.0, 0, 0, 4]]])
    maps = propagate(base_map, torch.tensor([0]), BackwardWarp(row_flow([1, 1, 1, 1])), "base")
    assert maps[0, 1, 0].tolist() == [0, 0, 4, 4]


def test_every_clip_of_a_batch_starts_from_its_own_base_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    base_map = torch.rand(4, 6, 7, generator=generator)
    flow = torch.randn(4, 3, 2, 6, 7, generator=generator)
    base = torch.tensor([2, 0, 3, 2])
    for make in (BackwardWarp, ForwardWarp):
        together = propagate(base_map, base, make(flow), "base")
        for clip in range(4):
            alone = propagate(base_map[[clip]], base[[clip]], make(flow[[clip]]), "base")
            assert torch.equal(together[clip], alone[0])
            assert torch.equal(together[clip, base[clip]], base_map[clip])
