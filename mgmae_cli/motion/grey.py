"""Run a two-frame flow method of OpenCV over the frame pairs of a batch: what `dis` and `tvl1` share.

Every frame is made smaller and turned grey once, however many pairs it is part of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgmae_cli.errors import ConfigError
from mgmae_cli.interfaces import FlowRequest
from mgmae_cli.motion.warp import per_axis

Frame = np.ndarray[Any, np.dtype[np.uint8]]
FlowField = np.ndarray[Any, np.dtype[np.float32]]

SMALLEST_SIDE = 16  # pixels after scaling; DIS refuses less than 12


def grey_frames(clip: Tensor, height: int, width: int) -> list[Frame]:
    """Return the T frames of one (3, T, H, W) uint8 clip in grey, made smaller by area to height x width first."""
    import cv2

    planes = [_shrink(plane, height, width) for plane in clip.cpu().contiguous().numpy()]
    # The clip is planar and cv2 wants interleaved colour: merging planes is 15 times faster than a permuted copy.
    colour = cv2.merge([plane.reshape(-1, width) for plane in planes])
    return list(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY).reshape(-1, height, width))


def _shrink(frames: Frame, height: int, width: int) -> Frame:
    """Make frames (T, H, W) smaller by area to (T, height, width)."""
    import cv2

    count, full_height, full_width = frames.shape
    if (height, width) == (full_height, full_width):
        return frames
    if full_height % height:
        smaller = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
        return np.stack(smaller)
    # no block of pixels reaches from one frame into the next: all frames at once, one below the other
    tall: Frame = cv2.resize(frames.reshape(-1, full_width), (width, count * height), interpolation=cv2.INTER_AREA)
    return tall.reshape(count, height, width)


def estimate_on_grey(
    request: FlowRequest, scale: int, estimate_pair: Callable[[Frame, Frame], FlowField], name: str
) -> Tensor:
    """Estimate the requested flows on grey frames.

    Args:
        scale: frames are made this many times smaller first; 1 keeps them.
        estimate_pair: (h, w) grey frames `source` and `target` -> (h, w, 2) flow in pixels of those frames.
        name: the estimator's name, for the error.

    Returns:
        (B, P, 2, h, w) float32 with h = round(H / scale): values in pixels of the clip, on the clip's device. Cell
        (i, j) of a reduced grid stands for the block of pixels that it covers.

    Raises:
        ConfigError: the scaled frames are smaller than `SMALLEST_SIDE`.
    """
    batch, _, _, full_height, full_width = request.clip.shape
    height, width = round(full_height / scale), round(full_width / scale)
    if min(height, width) < SMALLEST_SIDE:
        raise ConfigError(
            f"flow {name!r}: frames of {full_height} x {full_width} at scale {scale} are {height} x {width} pixels, "
            f"and it needs {SMALLEST_SIDE}; use a smaller flow.options.scale or a larger data.size"
        )
    source, target = request.source.tolist(), request.target.tolist()
    flow = torch.empty(batch, request.source.shape[1], 2, height, width)
    for row in range(batch):
        frames = grey_frames(request.clip[row], height, width)
        for pair, (start, end) in enumerate(zip(source[row], target[row])):
            field = estimate_pair(frames[start], frames[end])
            flow[row, pair] = torch.from_numpy(field).permute(2, 0, 1)
    if (height, width) != (full_height, full_width):
        flow *= per_axis(full_width / width, full_height / height, flow)
    return flow.to(request.clip.device)
