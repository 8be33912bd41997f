"""Follow the content of a clip from frame to frame, along exact flow or along flow that agrees with itself.

A point of frame t is followed step by step: x_{t+1} = x_t + F_{t -> t+1}(x_t), and the same backward in time. A track
ends where the flow is lost (hidden behind something, or forward and backward flow contradict each other) and where it
leaves the frame.

Shapes: B clips, T frames, H W pixels, P points of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mgmae_cli.interfaces import FlowEstimator, FlowRequest, TruthFlow
from mgmae_cli.motion.dis import DisFlow


@dataclass(frozen=True)
class ClipMotion:
    """Flow between neighbouring frames in both directions, and where not to trust it.

    Args:
        forward: (B, T-1, 2, h, w) in pixels of the clip; entry t is F_{t -> t+1}.
        backward: (B, T-1, 2, h, w); entry t is F_{t+1 -> t}.
        lost_forward, lost_backward: (B, T-1, h, w) bool; True where the content has no counterpart.
    """

    forward: Tensor
    backward: Tensor
    lost_forward: Tensor
    lost_backward: Tensor

    @staticmethod
    def from_truth(truth: TruthFlow) -> ClipMotion:
        """Return exact motion; lost is what is hidden or outside."""
        return ClipMotion(truth.forward, truth.backward, truth.occluded_forward, truth.occluded_backward)

    @staticmethod
    def estimate(clip: Tensor, estimator: FlowEstimator) -> ClipMotion:
        """Estimate the flow of all neighbours of a (B, 3, T, H, W) clip; lost is where the directions disagree.

        They disagree where |F + G|^2 > 0.01 (|F|^2 + |G|^2) + 0.5, with G the opposite flow where F points to
        (Sundaram, Brox, Keutzer: Dense point trajectories by GPU-accelerated large displacement optical flow, 2010).
        """
        early = torch.arange(clip.shape[2] - 1).expand(clip.shape[0], -1)
        source, target = torch.cat((early, early + 1), dim=1), torch.cat((early + 1, early), dim=1)
        flow = estimator.estimate(FlowRequest(clip, source, target)).float()
        forward, backward = flow.chunk(2, dim=1)
        size = (clip.shape[3], clip.shape[4])
        lost_forward = _disagree(forward, opposite_flow(forward, backward, size))
        lost_backward = _disagree(backward, opposite_flow(backward, forward, size))
        return ClipMotion(forward, backward, lost_forward, lost_backward)

    def flow(self, source: Tensor, target: Tensor) -> Tensor:
        """Return F_{source -> target}, (B, P, 2, h, w), of (B, P) pairs of neighbouring frames."""
        clips = torch.arange(len(source))[:, None]
        entry, onward = torch.minimum(source, target), (source < target).to(self.forward.device)
        return torch.where(onward[..., None, None, None], self.forward[clips, entry], self.backward[clips, entry])


def make_tracker() -> FlowEstimator:
    """Return the estimator that content is followed along where its exact motion is not known: DIS, at full size."""
    return DisFlow(DisFlow.Options(scale=1))


@dataclass(frozen=True)
class Tracks:
    """Where the content of every point of every frame is in every other frame.

    Args:
        stride: pixels from one point to the next.
        points: (P, 2) x and y of the points in the frame where they start, whole pixels, the same in every frame.
        place: (B, T, T, P, 2) x and y in pixels; entry [t, u] says where frame t's points are in frame u.
        alive: (B, T, T, P) bool, whether the track reaches from frame t to frame u.
    """

    stride: int
    points: Tensor
    place: Tensor
    alive: Tensor


def follow(motion: ClipMotion, size: tuple[int, int], point_stride: int) -> Tracks:
    """Follow the points of a regular grid, from every frame to every other frame.

    Args:
        size: (H, W) of the clip.
        point_stride: pixels from one point to the next; divides H and W. A patch that it divides holds whole points.
    """
    height, width = size
    y, x = torch.meshgrid(
        torch.arange(point_stride // 2, height, point_stride),
        torch.arange(point_stride // 2, width, point_stride),
        indexing="ij",
    )
    points = torch.stack((x.flatten(), y.flatten()), dim=-1).to(motion.forward.device)
    clips, frames = motion.forward.shape[0], motion.forward.shape[1] + 1
    starts = points.float().expand(clips, frames, -1, 2)
    place = starts[:, None].repeat(1, frames, 1, 1, 1)
    alive = torch.ones(place.shape[:-1], dtype=torch.bool, device=place.device)
    for direction, flow, lost in (
        (1, motion.forward, motion.lost_forward),
        (-1, motion.backward, motion.lost_backward),
    ):
        guide = torch.cat((flow.float(), lost[:, :, None].float()), dim=2)
        at, living = starts, torch.ones_like(alive[:, 0])
        for steps in range(1, frames):
            # All starts advance together; the one whose next frame lies outside the clip drops out.
            if direction > 0:
                at, living, guides = at[:, :-1], living[:, :-1], guide[:, steps - 1 :]
            else:
                at, living, guides = at[:, 1:], living[:, 1:], guide[:, : frames - steps]
            step = sample_images(guides.flatten(0, 1), at.flatten(0, 1), size).view(*at.shape[:3], 3)
            at = at + step[..., :2]
            living = living & (step[..., 2] < 0.5) & inside_frame(at, size)
            place.diagonal(direction * steps, 1, 2).copy_(at.permute(0, 2, 3, 1))
            alive.diagonal(direction * steps, 1, 2).copy_(living.transpose(1, 2))
    return Tracks(point_stride, points, place, alive)


def sample_images(images: Tensor, at: Tensor, size: tuple[int, int]) -> Tensor:
    """Look images up bilinearly; outside, the nearest edge.

    Args:
        images: (n, c, h, w) over the frame, of any coarseness.
        at: (n, P, 2) x and y in pixels of the frame.
        size: (H, W), the pixels of the frame.

    Returns:
        (n, P, c).
    """
    shape = at.new_tensor([size[1], size[0]])
    normalised = ((2 * at + 1) / shape - 1)[:, :, None]
    found = F.grid_sample(images, normalised, padding_mode="border", align_corners=False)
    return found[..., 0].transpose(1, 2)


def inside_frame(at: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (...) bool: whether (..., 2) places lie in a frame of (H, W) pixels."""
    x, y = at.unbind(-1)
    return (x >= -0.5) & (x <= size[1] - 0.5) & (y >= -0.5) & (y <= size[0] - 0.5)


def cell_centres(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (h * w, 2): x and y, in pixels of a frame of (H, W), of the cells of (..., h, w) flow."""
    across, down = size[1] / flow.shape[-1], size[0] / flow.shape[-2]
    y, x = torch.meshgrid(torch.arange(flow.shape[-2]), torch.arange(flow.shape[-1]), indexing="ij")
    centres = torch.stack(((x + 0.5) * across - 0.5, (y + 0.5) * down - 0.5), dim=-1)
    return centres.flatten(0, 1).to(flow.device)


def opposite_flow(flow: Tensor, opposite: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, T-1, 2, h, w): the opposite flow, looked up where each cell's flow points to."""
    ends = cell_centres(flow, size) + flow.flatten(0, 1).flatten(2).transpose(1, 2)
    return sample_images(opposite.flatten(0, 1), ends, size).transpose(1, 2).reshape(flow.shape)


def _disagree(flow: Tensor, opposite: Tensor) -> Tensor:
    gap = (flow + opposite).square().sum(2)
    return gap > 0.01 * (flow.square().sum(2) + opposite.square().sum(2)) + 0.5
