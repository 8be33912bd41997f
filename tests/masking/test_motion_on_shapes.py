"""Visible tokens stay on the object they start on, on clips of `shapes`, whose layers and flow are known exactly.

One patch a slot is visible here, so that it is plain which token of a slot is which of the next.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import MaskInputs, MaskStrategy, TruthFlow
from mgmae_cli.masking.motion import MotionMask
from mgmae_cli.masking.tube import TubeMask
from mgmae_cli.motion.truth import TruthFlowEstimator
from mgmae_cli.video.shapes import ShapesSource
from mgmae_cli.video.shapes_render import render, truth_flow
from mgmae_cli.video.shapes_scene import MOTIONS, SPRITE_REACH, Look, Scene, Sprite, draw_scene

GRID = ClipGrid(16, 64, 64, 2, 8)
ONE_PATCH = 1 - 1 / GRID.patches  # the mask ratio that leaves one visible in every slot
BASE_SLOT = GRID.slots // 2
DRAWS = 64  # of a mask, on each scene


def drawn_scene(name: str, seed: int) -> Scene:
    """Return a scene as `shapes` draws it by default."""
    options = ShapesSource.Options()
    look = Look(**{field: getattr(options, field) for field in Look.__dataclass_fields__})
    times = np.arange(GRID.frames, dtype=np.float32) - (GRID.frames - 1) / 2
    return draw_scene(np.random.default_rng(seed), MOTIONS[name], look, GRID.height, GRID.width, times)


def sliding_square(step: complex) -> Scene:
    """Return a square of 29 pixels that moves evenly, and is at the middle of the frame at the base frame."""
    sprite = Sprite(
        picture=np.full((29, 29, 4), 255, np.uint8),
        centre=(32 + 32j + step * (np.arange(GRID.frames) - GRID.frames // 2)).astype(np.complex64),
        pose=np.full(GRID.frames, 14 / SPRITE_REACH, np.complex64),
        wave=None,
        phase=(0.0, 0.0),
    )
    return Scene(np.zeros((68, 68, 3), np.uint8), np.full(GRID.frames, 1 + 1j, np.complex64), (sprite,))


def layers_of(scene: Scene) -> Tensor:
    """Return (T, H, W), the layer of every pixel: 0 the background, then the objects."""
    return torch.from_numpy(render(scene, GRID.height, GRID.width)[1])


def visible_places(strategy: MaskStrategy, scene: Scene) -> Tensor:
    """Return (DRAWS, S), the place of the visible patch in every slot, under the scene's exact flow."""
    truth = TruthFlow.stack([truth_flow(scene, layers_of(scene).numpy())] * DRAWS)
    clip = torch.zeros(DRAWS, 3, GRID.frames, GRID.height, GRID.width, dtype=torch.uint8)
    estimator = TruthFlowEstimator(TruthFlowEstimator.Options())
    inputs = MaskInputs(clip, GRID, ONE_PATCH, torch.Generator().manual_seed(0), estimator, truth)
    visible = ~strategy.sample(inputs).view(DRAWS, GRID.slots, GRID.patches)
    assert (visible.sum(2) == 1).all()
    return visible.int().argmax(2)


def share_inside(region: Tensor) -> Tensor:
    """Return (S, L), the share of each token that lies in a (T, H, W) region."""
    size = (GRID.tubelet, GRID.patch, GRID.patch)
    return F.avg_pool3d(region[None].float(), size)[0].flatten(1)


def shares_that_stay(strategy: MaskStrategy, scene: Scene) -> list[float]:
    """Return how much of its tokens in other slots lies on that object, for each draw that starts wholly on one."""
    places, layers = visible_places(strategy, scene), layers_of(scene)
    others = [slot for slot in range(GRID.slots) if slot != BASE_SLOT]
    shares: list[float] = []
    for number in range(1, len(scene.sprites) + 1):
        on_object = share_inside(layers == number)
        started = places[on_object[BASE_SLOT, places[:, BASE_SLOT]] == 1]
        shares += on_object[others, started[:, others]].mean(1).tolist()
    return shares


def test_motion_masks_stay_on_the_objects_that_tube_masks_lose() -> None:
    scenes = [drawn_scene(name, seed) for name in MOTIONS for seed in range(3)]
    means, counts = [], []
    for strategy in (MotionMask(MotionMask.Options()), TubeMask(TubeMask.Options())):
        shares = [share for scene in scenes for share in shares_that_stay(strategy, scene)]
        means.append(float(np.mean(shares)))
        counts.append(len(shares))
    motion, tube = means
    found = f"share that stays: motion {motion:.3f} of {counts[0]} tokens, tube {tube:.3f} of {counts[1]}"
    assert min(counts) > 100, found
    assert motion > 0.92, found
    assert motion - tube > 0.15, found


@pytest.mark.parametrize("step", [2, -2, 2j, -2j, 1.5 - 1j], ids=str)
def test_a_token_inside_an_object_that_slides_over_a_still_background_never_leaves_it(step: complex) -> None:
    scene = sliding_square(step)
    layers = layers_of(scene)
    # The nearest patch is up to half a patch away from where the token goes, and the object moves on within a slot:
    # tokens that start nearer to its border than 6 pixels may stick out.
    outside = F.max_pool2d((layers[GRID.frames // 2] != 1)[None].float(), kernel_size=13, stride=1, padding=6)
    inner = share_inside(outside.expand(GRID.frames, -1, -1) == 0)[BASE_SLOT] == 1
    least = {}
    for strategy in (MotionMask(MotionMask.Options()), TubeMask(TubeMask.Options())):
        places = visible_places(strategy, scene)
        started = places[inner[places[:, BASE_SLOT]]]
        assert len(started) > 3
        least[strategy.name] = float(share_inside(layers == 1)[torch.arange(GRID.slots), started].min())
    assert least["motion"] == 1, least
    assert least["tube"] < 0.5, f"{least}: the object moves too little for this to say anything"
