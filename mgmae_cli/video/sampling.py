"""Choose which frames of a video make a clip: a dense window with stride, or one frame from each of T segments.

Sampling as in VideoMAE (arXiv 2203.12602) and TSN (arXiv 1608.00859). Two departures from the official code: a window
may start wherever its last frame still exists (there: one stride earlier), and a short video gets a smaller stride
(there: the start is repeated once the end is reached).
"""

from __future__ import annotations

import math

import torch

from mgmae_cli.errors import UnreadableClip
from mgmae_cli.interfaces import ClipRequest


def frame_indices(request: ClipRequest, total: int, name: str) -> list[int]:
    """Return the T frame numbers of a clip, in ascending order, for a video of `total` frames.

    "stride": a window of (T - 1) * stride + 1 frames, starting at random or at `place` of the possible starts. Where
    the video is shorter than that, stride shrinks to the largest whole number that fits, at least 1; where it has
    fewer than T frames, all are taken and the last is held. "segments": the video is cut into T equal parts and each
    gives one frame, at random or at `place` of the part; short videos repeat frames evenly.

    Raises:
        UnreadableClip: the video `name` has fewer than `request.min_frames` frames.
    """
    least = max(request.min_frames, 1)
    if total < least:
        raise UnreadableClip(name, f"has {total} frame{'' if total == 1 else 's'}; data.min_frames is {least}")
    if request.sampling == "segments":
        return _segments(request, total)
    return _window(request, total)


def _window(request: ClipRequest, total: int) -> list[int]:
    steps = request.frames - 1
    stride = min(request.stride, max((total - 1) // steps, 1)) if steps else request.stride
    last_start = max(total - 1 - steps * stride, 0)
    if request.place is None:
        start = int(torch.randint(last_start + 1, (), generator=request.generator))
    else:
        start = round(request.place * last_start)
    return [min(start + step * stride, total - 1) for step in range(request.frames)]


def _segments(request: ClipRequest, total: int) -> list[int]:
    if request.place is None:
        offsets = torch.rand(request.frames, generator=request.generator, dtype=torch.float64).tolist()
    else:
        offsets = [request.place] * request.frames
    indices = []
    for segment, offset in enumerate(offsets):
        low, high = segment * total / request.frames, (segment + 1) * total / request.frames
        last = max(math.ceil(high) - 1, math.floor(low))  # `place` = 1 is the part's last frame, not the next part's
        indices.append(min(math.floor(low + offset * (high - low)), last))
    return indices
