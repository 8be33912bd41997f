"""`shapes`: the embedded clip source, made while you wait.

Textured objects move over a textured background under camera motion. The class is how the objects move **relative to
the background**; appearance, layout and camera carry no information about it. The exact flow and occlusion between
neighbouring frames are known. recipes/shapes.md describes it as a data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mgmae_cli.errors import UnreadableClip
from mgmae_cli.interfaces import Clip, ClipRequest, ClipSource, DataLocation, PluginOptions
from mgmae_cli.video.shapes_render import render, truth_flow
from mgmae_cli.video.shapes_scene import MOTIONS, Bytes, Look, draw_scene

_SPLITS = {"train": 0, "val": 1, "test": 2}


class ShapesSource(ClipSource):
    """Moving shapes. Clip `index` is the same clip whenever, wherever and however often it is loaded.

    A video of this source is as long as the clip that is asked for, so there is one place in time to take it from, and
    `stride` makes all motion that many times faster.
    """

    name: ClassVar[str] = "shapes"
    knows_flow: ClassVar[bool] = True
    needs_path: ClassVar[bool] = False
    recommended: ClassVar[Mapping[str, Any]] = {
        "data.frames": 16,
        "data.size": 64,
        "data.stride": 1,
        "data.crop": "none",
        "model.name": "tiny",
        "model.patch": 8,
        "model.decoder_depth": 2,
        "train.steps": 450,
        "train.batch_size": 16,
        "train.base_lr": 0.032,
        "train.warmup": 0.1,
    }

    class Options(PluginOptions):
        """The knobs. Lengths are in pixels of a 64-pixel frame; larger frames scale them."""

        clips: int = Field(10_000, ge=1, description="clips in the set")
        split: Literal["train", "val", "test"] = Field("train", description="which set; the three share no clip")
        seed: int = Field(0, ge=0, description="another seed, other clips")
        fresh: bool = Field(False, description="new clips every epoch: never ends, never repeats; labels stay")
        objects: int = Field(2, ge=1, le=16, description="moving objects; with one, classes part and meet are left out")
        speed: float = Field(
            2.5, gt=0, le=8, description="mean speed of the objects over the background, pixels a frame"
        )
        size: float = Field(14.0, ge=2, le=32, description="mean outer radius of an object, pixels")
        occluders: int = Field(0, ge=0, le=16, description="still shapes in front of the objects")
        non_rigid: float = Field(0.0, ge=0, le=0.4, description="how far objects bend, in radii; 0: rigid")
        camera: float = Field(2.0, ge=0, le=8, description="fastest camera motion, pixels a frame")
        contrast: float = Field(60.0, ge=0, le=100, description="strength of the patterns, of 255 levels")
        period: float = Field(8.0, ge=4, le=64, description="length after which the patterns repeat, pixels")
        irregular: float = Field(0.25, ge=0, le=2, description="strength of what does not repeat, to what does")

    options: Options

    def __init__(self, options: Any, location: DataLocation) -> None:
        super().__init__(options, location)
        self._look = Look(**{name: getattr(self.options, name) for name in Look.__dataclass_fields__})

    def __len__(self) -> int:
        return self.options.clips

    @property
    def classes(self) -> Sequence[str]:
        """Names of the motions; one object can neither part nor meet."""
        return [name for name, motion in MOTIONS.items() if self.options.objects > 1 or not motion.spread]

    def label(self, index: int) -> int:
        """Return the class number: classes take turns, so that every set is balanced."""
        return index % len(self.classes)

    def clip_name(self, index: int) -> str:
        return f"shapes:{self.options.split}:{index}"

    def load(self, index: int, request: ClipRequest) -> Clip:
        """Draw and render clip `index`; its exact flow only where the request wants it.

        Raises:
            UnreadableClip: the request has fewer frames than its own least number.
            IndexError: there is no such clip.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.clip_name(index)}: the set has {len(self)} clips")
        length = request.frames * request.stride
        if length < request.min_frames:
            reason = f"length {length}, below data.min_frames = {request.min_frames} frames"
            raise UnreadableClip(self.clip_name(index), reason)
        key = [self.options.seed, _SPLITS[self.options.split], index]
        if self.options.fresh:
            key.append(int(torch.randint(2**62, (1,), generator=request.generator)))
        label = self.label(index)
        motion = MOTIONS[self.classes[label]]
        times = (np.arange(request.frames, dtype=np.float32) - (request.frames - 1) / 2) * request.stride
        scene = draw_scene(np.random.default_rng(key), motion, self._look, request.height, request.width, times)
        frames, layers = render(scene, request.height, request.width)
        return Clip(
            frames=_channels_first(frames),
            name=self.clip_name(index),
            label=label,
            truth=truth_flow(scene, layers) if request.wants_truth else None,
        )


def _channels_first(frames: Bytes) -> Tensor:
    """Return (T, H, W, 3) frames as (T, 3, H, W)."""
    planes = cv2.split(frames.reshape(-1, frames.shape[2], 3))  # ten times as fast as a permuted copy
    return torch.from_numpy(np.stack([plane.reshape(frames.shape[:3]) for plane in planes], axis=1))
