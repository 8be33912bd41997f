"""Tracks on motion that is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mgmae_cli.diagnose.tracks import ClipMotion, follow
from mgmae_cli.interfaces import FlowEstimator, FlowRequest, TruthFlow
from mgmae_cli.masking.contract import ShiftFlow


def shift_motion(
    dx: float, dy: float, frames: int = 5, height: int = 16, width: int = 24, clips: int = 1
) -> ClipMotion:
    clip = torch.zeros(clips, 3, frames, height, width, dtype=torch.uint8)
    return ClipMotion.estimate(clip, ShiftFlow(dx, dy))


def test_tracks_of_a_shift_are_where_the_shift_takes_them_and_end_at_the_frame() -> None:
    tracks = follow(shift_motion(2, -1.5), (16, 24), point_stride=4)
    assert tracks.points[:2].tolist() == [[2, 2], [6, 2]]
    frames = torch.arange(5)
    steps = (frames - frames[:, None])[:, :, None, None]  # from t (first) to u (second)
    expected = tracks.points + steps * torch.tensor([2, -1.5])
    alive = (expected >= -0.5).all(-1) & (expected[..., 0] <= 23.5) & (expected[..., 1] <= 15.5)
    assert torch.equal(tracks.alive[0], alive)
    assert 0 < alive.float().mean() < 1
    torch.testing.assert_close(tracks.place[0][alive], expected[alive], atol=1e-4, rtol=0)


def test_a_track_ends_where_the_flow_is_lost_in_that_direction_of_time_only() -> None:
    motion = shift_motion(0, 0)
    motion.lost_forward[:, 2, :8] = True  # from frame 2 to 3, in the upper half
    tracks = follow(motion, (16, 24), point_stride=8)
    upper, lower = tracks.alive[0, ..., :3], tracks.alive[0, ..., 3:]
    assert lower.all()
    for start in range(5):
        for end in range(5):
            assert upper[start, end].all() == (not (start <= 2 < end))


class OneWrongPlace(FlowEstimator):
    """Says that everything moves right by 3, but for one place of frame 0's forward flow."""

    name = "wrong"

    def __init__(self) -> None:
        super().__init__(options=None)

    def estimate(self, request: FlowRequest) -> Tensor:
        flow = ShiftFlow(3, 0).estimate(request).clone()
        flow[:, 0, 1, 5, 7] = 4.0
        return flow


def test_flow_that_contradicts_the_opposite_direction_is_lost() -> None:
    clip = torch.zeros(1, 3, 3, 16, 24, dtype=torch.uint8)
    motion = ClipMotion.estimate(clip, OneWrongPlace())
    assert motion.lost_forward.nonzero().tolist() == [[0, 0, 5, 7]]
    assert motion.lost_backward.nonzero().tolist() == [[0, 0, 5, 10]]  # which points back to that place


def test_chosen_pairs_get_the_flow_of_their_direction() -> None:
    forward = torch.arange(3.0).view(1, 3, 1, 1, 1).expand(2, 3, 2, 4, 4)
    lost = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    motion = ClipMotion(forward, -10 - forward, lost, lost)
    got = motion.flow(torch.tensor([[0, 3], [2, 1]]), torch.tensor([[1, 2], [1, 2]]))
    assert got[:, :, 0, 0, 0].tolist() == [[0, -12], [-11, 1]]


@pytest.mark.parametrize("scale", [1, 2])
def test_exact_flow_becomes_motion_and_coarse_flow_is_in_clip_pixels(scale: int) -> None:
    size = (16 // scale, 24 // scale)
    flow = torch.zeros(1, 1, 2, *size)
    flow[:, :, 0] = 4.0
    hidden = torch.zeros(1, 1, *size, dtype=torch.bool)
    tracks = follow(ClipMotion.from_truth(TruthFlow(flow, -flow, hidden, hidden)), (16, 24), point_stride=8)
    torch.testing.assert_close(tracks.place[0, 0, 1], tracks.points + torch.tensor([4.0, 0]))
    torch.testing.assert_close(tracks.place[0, 1, 0], tracks.points - torch.tensor([4.0, 0]))
