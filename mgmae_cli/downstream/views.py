"""Read videos as tests do: the same clips and crops every time, and an unreadable video is never replaced by another.

Views as in VideoMAE's test: `clips` places in time times 1 (centre) or 3 crops (start, middle and end of the longer
side). Dense windows lie evenly from the first possible to the last; a single one in the middle. With segments, clip j
of n takes its frames at j / n of every segment; a single one takes the middles.

Shape suffixes: V views, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mgmae_cli.errors import MgmaeError, UnreadableClip
from mgmae_cli.interfaces import ClipRequest, ClipSource
from mgmae_cli.video.crop import apply_crop, draw_crop, min_side, three_crops
from mgmae_cli.video.dataset import check_clip
from mgmae_cli.video.loader import batches, start_worker


@dataclass(frozen=True)
class ViewSpec:
    """Which views of each video are read; `frames` to `min_frames` as in ClipRequest."""

    frames: int
    stride: int
    height: int
    width: int
    sampling: Literal["stride", "segments"] = "stride"
    min_frames: int = 2
    clips: int = 1
    crops: Literal[1, 3] = 1

    @property
    def views(self) -> int:
        return self.clips * self.crops


@dataclass
class VideoViews:
    """One video's views.

    Args:
        index: of the video in its source.
        clips: (V, 3, T, H, W) uint8, crops changing fastest; None where the video is unreadable.
        reason: why it is.
    """

    index: int
    clips: Tensor | None
    reason: str = ""

    def pin_memory(self) -> VideoViews:
        """Pin what travels to a GPU; called by the DataLoader."""
        return VideoViews(self.index, None if self.clips is None else self.clips.pin_memory(), self.reason)


def clip_places(clips: int, sampling: str) -> list[float]:
    """Return where in a video the clips lie, as ClipRequest.place."""
    if clips == 1:
        return [0.5]
    if sampling == "segments":
        return [number / clips for number in range(clips)]
    return [number / (clips - 1) for number in range(clips)]


class ViewDataset(Dataset[VideoViews | MgmaeError]):
    """Reads the views of videos; errors that concern the user are returned, for the main process to raise."""

    def __init__(self, source: ClipSource, spec: ViewSpec) -> None:
        self.source = source
        self.spec = spec

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> VideoViews | MgmaeError:
        try:
            return VideoViews(index, read_views(self.source, index, self.spec))
        except UnreadableClip as error:
            return VideoViews(index, None, error.reason)
        except MgmaeError as error:
            return error


def read_views(source: ClipSource, index: int, spec: ViewSpec) -> Tensor:
    """Return the views (V, 3, T, H, W) of a video.

    Raises:
        UnreadableClip: it can't be read.
        PluginError: the source returned the wrong thing.
    """
    size = (spec.height, spec.width)
    views = []
    for place in clip_places(spec.clips, spec.sampling):
        request = ClipRequest(
            frames=spec.frames,
            stride=spec.stride,
            height=spec.height,
            width=spec.width,
            generator=torch.Generator().manual_seed(0),  # sources that draw more than the place: the same each time
            min_side=min_side("center", size),
            sampling=spec.sampling,
            min_frames=spec.min_frames,
            place=place,
        )
        clip = source.load(index, request)
        check_clip(clip, source, index, spec.frames)
        frames = clip.frames
        frame = (frames.shape[2], frames.shape[3])
        crops = three_crops(frame, size) if spec.crops == 3 else [draw_crop("center", frame, size, request.generator)]
        views += [apply_crop(frames, crop, size).transpose(0, 1).contiguous() for crop in crops]
    return torch.stack(views)


def read_videos(dataset: ViewDataset, indices: Sequence[int], workers: int, pin: bool) -> Iterator[VideoViews]:
    """Yield videos in the order of their indices, read by loader processes.

    Raises:
        MgmaeError: what a loader process met.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=list(indices),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # or else it would draw from torch's global one, in the midst of a training run
    )
    yield from batches(loader)


def run_views(
    videos: Iterable[VideoViews], function: Callable[[Tensor], Tensor], batch_size: int, device: torch.device
) -> Iterator[tuple[VideoViews, Tensor | None]]:
    """Yield (video, outputs (V, ...)) in order; None for an unreadable one.

    Args:
        function: maps (b, 3, T, H, W) uint8 clips on the device to (b, ...); called with views of several videos.
        batch_size: views a call.
    """
    waiting: list[VideoViews] = []
    views = 0
    for video in videos:
        waiting.append(video)
        views += 0 if video.clips is None else len(video.clips)
        if views >= batch_size:
            yield from _run(waiting, function, batch_size, device)
            waiting, views = [], 0
    yield from _run(waiting, function, batch_size, device)


def _run(
    videos: Sequence[VideoViews], function: Callable[[Tensor], Tensor], batch_size: int, device: torch.device
) -> Iterator[tuple[VideoViews, Tensor | None]]:
    clips = [video.clips for video in videos if video.clips is not None]
    outputs: Iterator[Tensor] = iter(())
    if clips:
        done = [function(part.to(device, non_blocking=True)) for part in torch.split(torch.cat(clips), batch_size)]
        outputs = iter(torch.split(torch.cat(done), [len(part) for part in clips]))
    for video in videos:
        yield video, None if video.clips is None else next(outputs)
