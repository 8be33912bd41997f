"""From a clip source to batches: which video when, its crops, its masks, and what happens to unreadable ones.

The data order is a pure function of (seed, position): position p is video `order(seed, p // n)[p % n]` of epoch p // n,
and every random number of a sample comes from (seed, epoch, video, repeat). So batches depend neither on the number of
workers nor of ranks, and a resumed run goes on exactly where it stopped.

An unreadable video is replaced by another, drawn from the same numbers, and reported with the batch. The official code
does that silently, without limit, and in testing too (method notes, defect 9); here the run counts, lists and stops.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mgmae_cli.errors import DataError, MgmaeError, UnreadableClip
from mgmae_cli.interfaces import Clip, ClipRequest, ClipSource, TruthFlow, derive_generator
from mgmae_cli.masking.masker import Masker
from mgmae_cli.video.crop import CropPolicy, Size, apply_crop, draw_crop

_TIME, _CROP, _MASK, _REPLACE, _ORDER = range(5)  # what a derived generator is for
_MAX_REPLACEMENTS = 20
_SECONDS_TO_SAVE = 60

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
    """What one video became: `repeats` clips of it, and the unreadable videos met on the way."""

    clips: Tensor
    name: str
    label: int | None
    masks: Tensor | None = None
    truth: TruthFlow | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Batch:
    """A batch on its way to the device.

    Args:
        clips: (B, 3, T, H, W) uint8.
        names: what each clip is called; repeated samples follow one another.
        labels: (B,) long, -1 where unknown.
        masks: (B, N) bool, or None where they are drawn on the device.
        truth: exact flow, where it is needed on the device.
        bad: (name, reason) of unreadable videos met.
    """

    clips: Tensor
    names: list[str]
    labels: Tensor
    masks: Tensor | None = None
    truth: TruthFlow | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """Pin what travels to a GPU; called by the DataLoader."""
        self.clips = self.clips.pin_memory()
        self.masks = None if self.masks is None else self.masks.pin_memory()
        return self

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; copies from pinned memory do not wait."""
        return Batch(
            self.clips.to(device, non_blocking=True),
            self.names,
            self.labels.to(device, non_blocking=True),
            None if self.masks is None else self.masks.to(device, non_blocking=True),
            None if self.truth is None else self.truth.to(device),
            self.bad,
        )


class ClipDataset(Dataset[Sample | MgmaeError]):
    """Reads clips by (epoch, video). Errors that concern the user are returned, not raised: the main process raises
    them, so that no worker traceback hides them."""

    def __init__(
        self, source: ClipSource, spec: ClipSpec, seed: int, masker: Masker | None = None, replace_bad: bool = True
    ) -> None:
        self.source = source
        self.spec = spec
        self.seed = seed
        self.masker = masker
        self.replace_bad = replace_bad
        self._bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Sample | MgmaeError:
        try:
            return self._read(*key)
        except MgmaeError as error:
            return error

    def _read(self, epoch: int, video: int) -> Sample:
        bad: list[tuple[str, str]] = []
        replacement = derive_generator(self.seed, epoch, video, _REPLACE)
        chosen = video
        while True:
            try:
                clip = self._load(epoch, chosen)
                break
            except UnreadableClip as error:
                self._bad[chosen] = error.reason
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
        if video in self._bad:  # known to this worker: don't try again
            raise UnreadableClip(self.source.clip_name(video), self._bad[video])
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
        frames = clip.frames
        if frames.ndim != 4 or frames.shape[:2] != (spec.frames, 3) or frames.dtype != torch.uint8:
            raise DataError(
                f"clip source {self.source.name!r} returned {tuple(frames.shape)} {frames.dtype} for {clip.name}; "
                f"expected ({spec.frames}, 3, h, w) torch.uint8"
            )
        return clip

    def _finish(self, clip: Clip, epoch: int, video: int, bad: list[tuple[str, str]]) -> Sample:
        clips, masks = [], []
        truth = clip.truth if self.spec.keeps_frames else None
        for repeat in range(self.spec.repeats):
            cropped = self.spec.crop(clip.frames, derive_generator(self.seed, epoch, video, repeat, _CROP))
            clips.append(cropped.transpose(0, 1))
            if self.masker is not None and self.masker.stage == "worker":
                generator = derive_generator(self.seed, epoch, video, repeat, _MASK)
                masks.append(self.masker(clips[-1][None], generator, truth)[0])
        return Sample(torch.stack(clips), clip.name, clip.label, torch.stack(masks) if masks else None, truth, bad)


def collate(samples: Sequence[Sample | MgmaeError]) -> Batch | MgmaeError:
    """Join samples into a batch; the first error takes its place."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, MgmaeError):
            return sample
        good.append(sample)
    repeats = good[0].clips.shape[0]
    masks = [sample.masks for sample in good if sample.masks is not None]
    truths = [sample.truth for sample in good if sample.truth is not None for _ in range(repeats)]
    return Batch(
        clips=torch.cat([sample.clips for sample in good]),
        names=[sample.name for sample in good for _ in range(repeats)],
        labels=torch.tensor([-1 if sample.label is None else sample.label for sample in good for _ in range(repeats)]),
        masks=torch.cat(masks) if masks else None,
        truth=TruthFlow.stack(truths) if truths and not masks else None,
        bad=[bad for sample in good for bad in sample.bad],
    )


@dataclass(frozen=True)
class DataOrder(Sampler[list[Key]]):
    """Yields, for each batch of this rank, its (epoch, video) keys: a pure function of the seed and the position.

    Args:
        videos: number of videos.
        per_batch: videos of one batch.
        start, stop: first batch and the one to stop before, counted on this rank.
        rank, ranks: this process's place among all.
        shuffle: draw a new order each epoch; otherwise as listed.
    """

    videos: int
    per_batch: int
    start: int
    stop: int
    seed: int
    rank: int = 0
    ranks: int = 1
    shuffle: bool = True

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        epoch_known, order = -1, torch.arange(self.videos)
        for batch in range(self.start, self.stop):
            first = (batch * self.ranks + self.rank) * self.per_batch
            keys = []
            for position in range(first, first + self.per_batch):
                epoch, place = divmod(position, self.videos)
                if self.shuffle and epoch != epoch_known:
                    order = torch.randperm(self.videos, generator=derive_generator(self.seed, epoch, _ORDER))
                    epoch_known = epoch
                keys.append((epoch, int(order[place])))
            yield keys


def make_loader(dataset: ClipDataset, order: DataOrder, workers: int, pin: bool) -> DataLoader[Sample | MgmaeError]:
    """Return a DataLoader of `Batch`es (or of an MgmaeError in a batch's place; see `batches`)."""
    extra: dict[str, Any] = {"prefetch_factor": 4, "persistent_workers": False} if workers else {}
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # or else it would draw from torch's global one, and a resumed run would differ
        **extra,
    )


def batches(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """Yield a loader's batches: `Batch`es in training.

    Raises:
        MgmaeError: what a worker met, as it met it.
        DataError: a worker process died.
    """
    iterator = iter(loader)
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" in str(error):
                    raise DataError(
                        f"a loader process died ({' '.join(str(error).split())}); a video may crash the decoder, or "
                        "memory may be short: --workers 0 shows which video it is"
                    ) from error
                raise
            if isinstance(batch, MgmaeError):
                raise batch
            yield batch
    finally:
        del iterator  # ends the workers


def auto_workers(device: torch.device, ranks: int = 1) -> int:
    """Return how many loader processes suit this machine: on a GPU machine a rank's share of the cores, on the CPU,
    where the training itself wants the cores, a quarter of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type == "cpu":
        return max(1, cores // 4)
    return max(1, min(16, cores // ranks - 1))


def start_worker(_: int) -> None:
    """Keep each worker to one thread, and leave signals to the main process, which saves before it leaves.

    SLURM and Ctrl-C signal the whole process group. A worker outlives that by some seconds, in which the main process
    finishes its step and tells it to end.
    """
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_TO_SAVE))
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
