"""The convention of `interfaces.py` for every flow estimator, on photographs that move in known ways and on Middlebury.

F_{s->t} has (dx, dy), x right and y down, in pixels of the clip, on the grid of frame s: what is at x in s is at
x + F(x) in t.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgmae_cli.interfaces import FlowEstimator, FlowRequest, TruthFlow
from mgmae_cli.motion.figures import end_point_error
from mgmae_cli.motion.plugin import mgmae_register_flows

ESTIMATORS = {estimator.name: estimator for estimator in mgmae_register_flows()}

# --- photographs that move in known ways --------------------------------------------------------------------------

Motion = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]  # (x, y) about the clip's centre, after a time


def translation(dx: float, dy: float) -> Motion:
    return lambda x, y, time: (x + dx * time, y + dy * time)


def rotation(degrees: float) -> Motion:
    """Turn clockwise on the screen, where positive."""

    def move(x: Tensor, y: Tensor, time: float) -> tuple[Tensor, Tensor]:
        angle = torch.tensor(degrees * time).deg2rad()
        return x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()

    return move


def zoom(factor: float) -> Motion:
    return lambda x, y, time: (x * factor**time, y * factor**time)


MOTIONS = {
    "right": translation(4, 0),
    "down": translation(0, 4),
    "up left": translation(-3, -2),
    "clockwise": rotation(3),
    "anticlockwise": rotation(-3),
    "towards": zoom(1.05),
    "away": zoom(0.95),
}


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """Return a (1, 3, 600, 512) photograph, Grace Hopper's, which matplotlib ships."""
    import matplotlib
    from PIL import Image

    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()


def about_centre(height: int, width: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return x - (width - 1) / 2, y - (height - 1) / 2


def moving_clip(photograph: Tensor, motion: Motion, frames: int = 3, size: int = 160) -> Tensor:
    """Return (1, 3, T, H, W) uint8: a frame shows at x what was, at time 0, where the motion run backwards leads."""
    x, y = about_centre(size, size)
    clip = []
    for time in range(frames):
        back_x, back_y = motion(x, y, -float(time))
        grid = torch.stack([back_x * 2 / photograph.shape[-1], back_y * 2 / photograph.shape[-2]], dim=-1)
        clip.append(F.grid_sample(photograph, grid[None], align_corners=False)[0])
    return torch.stack(clip, dim=1)[None].round().clamp(0, 255).to(torch.uint8)


def known_flow(motion: Motion, source: int, target: int, size: int = 160) -> Tensor:
    """Return (2, H, W), F_{source -> target} of `moving_clip`."""
    x, y = about_centre(size, size)
    moved_x, moved_y = motion(x, y, float(target - source))
    return torch.stack([moved_x - x, moved_y - y])


def known_truth(motion: Motion, frames: int, size: int = 160) -> TruthFlow:
    forward = torch.stack([known_flow(motion, t, t + 1, size) for t in range(frames - 1)])[None]
    backward = torch.stack([known_flow(motion, t + 1, t, size) for t in range(frames - 1)])[None]
    seen = torch.zeros(1, frames - 1, size, size, dtype=torch.bool)
    return TruthFlow(forward, backward, seen, seen)


def build(name: str, request: pytest.FixtureRequest, **options: object) -> FlowEstimator:
    if name == "raft":
        options["weights"] = request.getfixturevalue("shared_data") / "weights" / "raft-small.pth"
    estimator = ESTIMATORS[name]
    return estimator(estimator.Options(**options))


def interior_error(flow: Tensor, truth: Tensor, border: int = 24) -> float:
    """Return the mean end-point error away from the border, where content comes from outside."""
    return float(end_point_error(flow, truth)[..., border:-border, border:-border].mean())


# What each estimator is trusted with, in pixels of mean end-point error where the motion is 3 to 8 pixels.
TRUSTED = {"dis": 0.5, "tvl1": 0.35, "raft": 0.35, "truth": 1e-5}
NEIGHBOURS_ONLY = {"truth"}


def test_every_estimator_is_held_to_the_convention() -> None:
    assert set(TRUSTED) | {"zero"} == set(ESTIMATORS)


@pytest.mark.parametrize("motion_name", MOTIONS)
@pytest.mark.parametrize("name", TRUSTED)
def test_flow_follows_the_convention(
    name: str, motion_name: str, photograph: Tensor, request: pytest.FixtureRequest
) -> None:
    motion = MOTIONS[motion_name]
    clip = moving_clip(photograph, motion)
    estimator = build(name, request)
    pairs = [(0, 1), (2, 1)] if name in NEIGHBOURS_ONLY else [(0, 1), (2, 1), (0, 2)]
    source, target = (torch.tensor([numbers]) for numbers in zip(*pairs))
    flow = estimator.estimate(FlowRequest(clip, source, target, known_truth(motion, 3)))
    assert flow.dtype == torch.float32
    assert flow.shape[:3] == (1, len(pairs), 2)
    for pair, (start, end) in enumerate(pairs):
        truth = known_flow(motion, start, end)
        error = interior_error(flow[:, pair], truth[None])
        assert error < TRUSTED[name] * abs(end - start), f"{start} -> {end}: {error:.3f} px"
