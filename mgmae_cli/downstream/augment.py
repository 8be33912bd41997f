"""What fine-tuning does to training clips: RandAugment, random erasing, mixup and cutmix, through timm.

Settings as in VideoMAE's fine-tuning (arXiv 2203.12602, appendix). RandAugment is timm's and not torchvision's,
although the latter takes whole clips: only timm's has the published policy's terms, as in "rand-m7-n4-mstd0.5-inc1":
magnitudes on a scale of ten, drawn with a deviation of 0.5, operations that grow with magnitude. It draws from Python's
and numpy's global generators, so these are set for each frame anew from the passed one: all frames of a clip get the
same draw.

Departures from the official code: RandAugment works on the cropped clip, as in timm's image pipeline, and not on the
whole frame, which costs several times as much; noise that erases is cut to the range of uint8.

Shape suffixes: B batch, T frames, H W pixels.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from mgmae_cli.model.tokens import IMAGENET_MEAN, IMAGENET_STD

_POLICY_PART = re.compile(r"(?:[mn]|mmax)\d+|(?:p|mstd)\d+(?:\.\d+)?|inc[01]|t\w+")
ClipTransform = Callable[[Tensor, torch.Generator], Tensor]


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for `global_seeds`."""
    return int(torch.randint(2**31, (), generator=generator))


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Set Python's and numpy's global generators from a seed, and put their states back afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def policy_problem(policy: str) -> str | None:
    """Return why a RandAugment policy is not understood, or None. timm itself skips parts that it doesn't know."""
    example = "as in rand-m7-n4-mstd0.5-inc1"
    for part in policy.removeprefix("rand").split("-")[1:] if policy.startswith("rand-") else [policy]:
        if not _POLICY_PART.fullmatch(part):
            return f"{part!r} is no part of a RandAugment policy; {example}"
    try:
        _randaugment(policy, (64, 64))
    except Exception as error:  # timm raises what its parser meets: AssertionError, ValueError, KeyError
        return f"not a RandAugment policy ({error}); {example}"
    return None


@lru_cache(maxsize=8)
def _randaugment(policy: str, size: tuple[int, int]) -> Any:
    grey = tuple(round(255 * mean) for mean in IMAGENET_MEAN)
    settings = {"translate_const": int(min(size) * 0.45), "img_mean": grey, "interpolation": Image.Resampling.BICUBIC}
    return rand_augment_transform(policy, settings)


def rand_augment(frames: Tensor, policy: str, generator: torch.Generator) -> Tensor:
    """Return (T, 3, H, W) uint8 frames after RandAugment, the same operations and magnitudes on every frame."""
    transform = _randaugment(policy, (frames.shape[2], frames.shape[3]))
    seed = draw_seed(generator)
    made = []
    for frame in frames.permute(0, 2, 3, 1).numpy():
        with global_seeds(seed):
            made.append(np.asarray(transform(Image.fromarray(frame))))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def random_erase(frames: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """Return (T, 3, H, W) uint8 frames with, at a chance, one box of noise: the same box in every frame, new noise.

    timm draws the box; the noise is normal with ImageNet's mean and deviation.
    """
    height, width = frames.shape[2:]
    canvas = torch.ones(1, height, width)
    with global_seeds(draw_seed(generator)):
        canvas = RandomErasing(chance, mode="const", device="cpu")(canvas)
    rows, cols = (canvas[0] == 0).any(1).nonzero(), (canvas[0] == 0).any(0).nonzero()
    if not len(rows):
        return frames
    (top, bottom), (left, right) = ((int(found[0]), int(found[-1]) + 1) for found in (rows, cols))
    mean, deviation = (torch.tensor(values)[:, None, None] * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    noise = torch.randn(len(frames), 3, bottom - top, right - left, generator=generator)
    frames = frames.clone()
    frames[:, :, top:bottom, left:right] = (noise * deviation + mean).round().clamp(0, 255).to(torch.uint8)
    return frames


class TrainTransform:
    """Crop, then RandAugment, then erase: what the loader does to each clip.

    Args:
        crop: brings frames to size.
        policy: of RandAugment; None for none.
        erase: chance of erasing a box.
    """

    def __init__(self, crop: ClipTransform, policy: str | None, erase: float) -> None:
        self.crop = crop
        self.policy = policy
        self.erase = erase

    def __call__(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        frames = self.crop(frames, generator)
        if self.policy is not None:
            frames = rand_augment(frames, self.policy, generator)
        if self.erase > 0:
            frames = random_erase(frames, self.erase, generator)
        return frames


class Mixer:
    """Mixes each clip of a batch with another, and their labels with them: timm's Mixup, one draw a batch.

    Args:
        mixup, cutmix: parameters of the Beta distributions; 0 leaves one out, and one must be above 0.
        chance: that a batch is mixed.
        switch: chance of cutmix where both are on.
        smoothing: label smoothing of the targets.
    """

    def __init__(
        self, mixup: float, cutmix: float, chance: float, switch: float, smoothing: float, num_classes: int
    ) -> None:
        self._mixup = Mixup(
            mixup, cutmix, prob=chance, switch_prob=switch, label_smoothing=smoothing, num_classes=num_classes
        )

    def __call__(self, clips: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return float32 clips in 0 to 255 and (B, num_classes) targets that sum to one.

        Args:
            clips: (B, 3, T, H, W) uint8, B even: clip i is mixed with clip B - 1 - i.
            labels: (B,) long.
        """
        planes = clips.flatten(1, 2).float()  # timm cuts boxes from the last two of four dimensions
        with global_seeds(draw_seed(generator)):
            planes, targets = self._mixup(planes, labels)
        return planes.view(clips.shape), targets
