"""From a clip source to samples: which part of a video, its crops, its masks, and what happens to unreadable ones.

Every random number of a sample comes from (seed, epoch, video, repeat), so that samples depend neither on the number
of workers nor of ranks, nor on what was read before.

An unreadable video is replaced by another, drawn from the same numbers, and reported with the sample. The official code
does that silently, without limit, and in testing too (method notes, defect 9); here the run counts, lists and stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mgmae_cli.errors import DataError, MgmaeError, PluginError, UnreadableClip
from mgmae_cli.interfaces import Clip, ClipRequest, ClipSource, TruthFlow
from mgmae_cli.masking.masker import Masker
from mgmae_cli.seeds import derive_generator
from mgmae_cli.video.crop import CropPolicy, Size, apply_crop, draw_crop

_TIME, _CROP, _MASK, _REPLACE = range(4)  # what a derived generator is for
_MAX_REPLACEMENTS = 20

Key = tuple[int, int]  # (epoch, video)


@dataclass(frozen=True)
class Cropper:
    """A crop policy as the loader calls it; see `mgmae_cli.video.crop`."""

    policy: CropPolicy
    size: Size
    flip: float = 0.0

    def __call__(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return one random crop of (T, 3, h, w) uint8 frames, (T, 3, *size)."""
        frame = (frames.shape[2], frames.shape[3])
        return apply_crop(frames, draw_crop(self.policy, frame, self.size, generator, self.flip), self.size)


@dataclass(frozen=True)
class ClipSpec:
    """How clips are read, apart from what the source itself knows.

    Args:
        frames, stride, height, width, sampling, min_frames, min_side: as in ClipRequest.
        crop: brings (T, 3, h, w) uint8 frames to `height` x `width`, drawing from a generator.
        repeats: crops and masks drawn from each decoded video.
        fixed_place: None draws the clip's place in time; 0.0 to 1.0 fixes it.
        keeps_frames: the crop changes nothing, so that exact flow stays true.
    """

    frames: int
    stride: int
    height: int
    width: int
    crop: Callable[[Tensor, torch.Generator], Tensor]
    sampling: Literal["stride", "segments"] = "stride"
    min_frames: int = 2
    min_side: int | None = None
    repeats: int = 1
    fixed_place: float | None = None
    keeps_frames: bool = False


@dataclass
class Sample:
    """What one video became: `repeats` clips of it, the unreadable videos met on the way, and the time it took."""

    clips: Tensor
    name: str
    label: int | None
    masks: Tensor | None = None
    truth: TruthFlow | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    mask_seconds: float = 0.0


class ClipDataset(Dataset[Sample | MgmaeError]):
    """Reads clips by (epoch, video). Errors that concern the user are returned, not raised: the main process raises
    them, so that no worker traceback hides them. Keeps nothing from one clip to the next, not even which videos were
    unreadable: a sample must not depend on what its worker met before."""

    def __init__(
        self, source: ClipSource, spec: ClipSpec, seed: int, masker: Masker | None = None, replace_bad: bool = True
    ) -> None:
        self.source = source
        self.spec = spec
        self.seed = seed
        self.masker = masker
        self.replace_bad = replace_bad

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Sample | MgmaeError:
        start = time.perf_counter()
        try:
            sample = self._read(*key)
        except MgmaeError as error:
            return error
        sample.seconds = time.perf_counter() - start
        return sample

    def _read(self, epoch: int, video: int) -> Sample:
        bad: list[tuple[str, str]] = []
        replacement = derive_generator(self.seed, epoch, video, _REPLACE)
        chosen = video
        while True:
            try:
                clip = self._load(epoch, chosen)
                break
            except UnreadableClip as error:
                bad.append((error.name, error.reason))
                if not self.replace_bad:
                    raise
                if len(bad) > _MAX_REPLACEMENTS:
                    raise DataError(
                        f"{len(bad)} videos in a row can't be read; the last: {error.name}: {error.reason}"
                    ) from None
                chosen = int(torch.randint(len(self.source), (), generator=replacement))
        return self._finish(clip, epoch, chosen, bad)

    def _load(self, epoch: int, video: int) -> Clip:
        spec = self.spec
        request = ClipRequest(
            frames=spec.frames,
            stride=spec.stride,
            height=spec.height,
            width=spec.width,
            generator=derive_generator(self.seed, epoch, video, _TIME),
            min_side=spec.min_side,
            sampling=spec.sampling,
            min_frames=spec.min_frames,
            place=spec.fixed_place,
            wants_truth=self.masker is not None and self.masker.needs_truth,
        )
        clip = self.source.load(video, request)
        check_clip(clip, self.source, video, spec.frames)
        return clip

    def _finish(self, clip: Clip, epoch: int, video: int, bad: list[tuple[str, str]]) -> Sample:
        clips, masks, mask_seconds = [], [], 0.0
        truth = clip.truth if self.spec.keeps_frames else None
        for repeat in range(self.spec.repeats):
            try:
                cropped = self.spec.crop(clip.frames, derive_generator(self.seed, epoch, video, repeat, _CROP))
            except DataError as error:
                raise DataError(f"{clip.name}: {error}") from None
            clips.append(cropped.transpose(0, 1))
            if self.masker is not None and self.masker.stage == "worker":
                start = time.perf_counter()
                generator = derive_generator(self.seed, epoch, video, repeat, _MASK)
                masks.append(self.masker(clips[-1][None], generator, truth)[0])
                mask_seconds += time.perf_counter() - start
        return Sample(
            clips=torch.stack(clips),
            name=clip.name,
            label=clip.label,
            masks=torch.stack(masks) if masks else None,
            truth=truth,
            bad=bad,
            mask_seconds=mask_seconds,
        )


def check_clip(clip: object, source: ClipSource, video: int, frames: int) -> None:
    """Check what a source returned.

    Raises:
        PluginError: naming the source, what it returned, and what was expected.
    """
    found = type(clip).__name__
    if isinstance(clip, Clip):
        found = f"frames {type(clip.frames).__name__}"
        if isinstance(clip.frames, Tensor):
            if clip.frames.ndim == 4 and clip.frames.shape[:2] == (frames, 3) and clip.frames.dtype == torch.uint8:
                return
            found = f"frames {tuple(clip.frames.shape)} {clip.frames.dtype}"
    raise PluginError(
        f"clip source {source.name!r} returned {found} for {source.clip_name(video)}; "
        f"expected a Clip with frames ({frames}, 3, h, w) torch.uint8"
    )
