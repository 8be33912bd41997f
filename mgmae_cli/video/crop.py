"""Cut a clip to the size the model takes: multi-scale, random resized, centre and fixed crops, and the flip.

Multi-scale crop as in TSN and VideoMAE: side lengths {1, .875, .75, .66} of the largest box, height and width at most
one step apart, at one of 13 fixed positions. All frames share one crop. It is cut before it is resized (antialiased,
bilinear, on uint8), so pixels outside it cost nothing. Departure: for sizes that are not square, the largest box has
the aspect of the wanted size; the official code starts from the square and distorts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from mgmae_cli.errors import DataError

CropPolicy = Literal["multi_scale", "random_resized", "center", "none"]
Size = tuple[int, int]  # height, width

SCALES = (1.0, 0.875, 0.75, 0.66)
MAX_DISTORTION = 1  # steps between the scales of height and width
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
# (row, column) of the 13 positions, in quarters of the free way: corners, edges' middles, centre, and quarter points
POSITIONS = tuple((row, col) for row, col in product(range(5), range(5)) if (row % 2, col % 2) in {(0, 0), (1, 1)})


@dataclass(frozen=True)
class Crop:
    """A box in a frame, in pixels, and whether it is mirrored left to right after it is cut."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def min_side(policy: CropPolicy, size: Size) -> int | None:
    """Return the short side from which even the smallest crop of a policy reaches `size` without enlarging.

    None where frames must not be reduced at all. Frames decoded no smaller than this lose nothing that the crops keep.
    """
    longest = max(size)
    if policy == "multi_scale":
        return math.ceil(longest / SCALES[-1])
    if policy == "random_resized":
        return math.ceil(longest / math.sqrt(AREA[0] * ASPECT[0]))
    return longest if policy == "center" else None


def draw_crop(policy: CropPolicy, frame: Size, size: Size, generator: torch.Generator, flip: float = 0.0) -> Crop:
    """Draw one crop for all frames of a clip.

    Args:
        frame: height and width of the clip's frames.
        size: height and width after `apply_crop`.
        flip: chance of mirroring left to right.

    Raises:
        DataError: policy "none" and the frames are not of `size`.
    """
    if policy == "multi_scale":
        top, left, height, width = _multi_scale(frame, size, generator)
    elif policy == "random_resized":
        top, left, height, width = _random_resized(frame, generator)
    elif policy == "center":
        height, width = _largest_box(frame, size)
        top, left = (frame[0] - height) // 2, (frame[1] - width) // 2
    elif frame != size:
        raise DataError(
            f"data.crop = none: frames are {frame[0]} x {frame[1]} (height x width), data.size is "
            f"{size[0]} x {size[1]}; use data.crop = center, or videos of that size"
        )
    else:
        top, left, (height, width) = 0, 0, frame
    mirrored = flip > 0 and _uniform(generator) < flip
    return Crop(top, left, height, width, mirrored)


def three_crops(frame: Size, size: Size) -> list[Crop]:
    """Return the three test crops: start, middle and end of the longer side, each as large as fits.

    Left, middle and right in wide frames; top, middle and bottom in tall ones. Equal to resizing the short side first.
    """
    height, width = _largest_box(frame, size)
    free_rows, free_cols = frame[0] - height, frame[1] - width
    return [Crop(free_rows * step // 2, free_cols * step // 2, height, width) for step in range(3)]


def apply_crop(frames: Tensor, crop: Crop, size: Size) -> Tensor:
    """Cut (T, 3, h, w) uint8 frames and resize them to (T, 3, *size), uint8.

    Frames that lie in memory as (T, h, w, 3) stay so; that is several times faster than planes of colour.
    """
    from torchvision.transforms.v2 import functional as transforms

    box = frames[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if (crop.height, crop.width) != size:
        bilinear = transforms.InterpolationMode.BILINEAR
        box = transforms.resize(box, list(size), interpolation=bilinear, antialias=True)
    cut: Tensor = transforms.horizontal_flip(box) if crop.flip else box
    return cut


def _largest_box(frame: Size, size: Size) -> Size:
    """Return the largest box inside `frame` with the aspect of `size`; the short side for square sizes."""
    scale = min(frame[0] / size[0], frame[1] / size[1])
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _multi_scale(frame: Size, size: Size, generator: torch.Generator) -> tuple[int, int, int, int]:
    largest = _largest_box(frame, size)
    heights, widths = ([_side(most, scale, wanted) for scale in SCALES] for most, wanted in zip(largest, size))
    pairs = [
        (height, width)
        for (i, height), (j, width) in product(enumerate(heights), enumerate(widths))
        if abs(i - j) <= MAX_DISTORTION
    ]
    height, width = pairs[_whole(generator, len(pairs))]
    row, col = POSITIONS[_whole(generator, len(POSITIONS))]
    return row * ((frame[0] - height) // 4), col * ((frame[1] - width) // 4), height, width


def _side(most: int, scale: float, wanted: int) -> int:
    """Return a crop's side: `scale` of the most there is, or what is wanted where that is within two pixels."""
    side = max(int(most * scale), 1)
    return wanted if abs(side - wanted) < 3 and wanted <= most else side


def _random_resized(frame: Size, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw area and aspect as in Inception; after ten misses take the centre, as near to the aspects as it goes."""
    area = frame[0] * frame[1]
    for _ in range(10):
        target = area * (AREA[0] + (AREA[1] - AREA[0]) * _uniform(generator))
        low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
        aspect = math.exp(low + (high - low) * _uniform(generator))
        height, width = round(math.sqrt(target / aspect)), round(math.sqrt(target * aspect))
        if 0 < height <= frame[0] and 0 < width <= frame[1]:
            top, left = _whole(generator, frame[0] - height + 1), _whole(generator, frame[1] - width + 1)
            return top, left, height, width
    aspect = min(max(frame[1] / frame[0], ASPECT[0]), ASPECT[1])
    height, width = min(frame[0], round(frame[1] / aspect)), min(frame[1], round(frame[0] * aspect))
    height, width = max(height, 1), max(width, 1)
    return (frame[0] - height) // 2, (frame[1] - width) // 2, height, width


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _whole(generator: torch.Generator, below: int) -> int:
    return int(torch.randint(below, (), generator=generator))
