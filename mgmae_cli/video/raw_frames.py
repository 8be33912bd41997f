"""Read the frames of a clip from a folder of images, as the official raw-frame lists name them.

Numbered images (`img_00001.jpg`, `image_000001.jpg`, `7.png`, ...) are found by number, so a missing one is noticed;
images without numbers are taken in the order of their names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgmae_cli.errors import UnreadableClip
from mgmae_cli.video.decode import shrink_factor

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_NUMBERED = re.compile(r"(.*?)(\d+)(\.\w+)")


def read_frames(
    folder: Path,
    choose: Callable[[int], list[int]],
    *,
    start: int | None = None,
    total: int | None = None,
    min_side: int | None = None,
) -> Tensor:
    """Read the images that `choose` picks: (T, 3, h, w) uint8 RGB, lying in memory as (T, h, w, 3).

    Args:
        choose: takes the number of frames, returns ascending frame numbers from 0; may raise UnreadableClip.
        start: number in the name of the first image; None: the smallest there is.
        total: how many images belong to the video; None: all from `start` on.
        min_side: JPEGs whose short side is at least twice this are decoded at 1/2, 1/4 or 1/8 of their size.

    Raises:
        UnreadableClip: no such folder, no images, an image that is missing or damaged, or images of several sizes.
    """
    names = _image_names(folder)
    name_of, available = _numbering(folder, names, start)
    indices = choose(available if total is None else total)
    images: dict[int, Any] = {}
    factor = _factor(folder, name_of(indices[0]), min_side)
    for index in dict.fromkeys(indices):
        images[index] = _read_image(folder, name_of(index), factor)
        if images[index].shape != images[indices[0]].shape:
            raise UnreadableClip(str(folder), f"{name_of(index)} is not of the size of {name_of(indices[0])}")
    clip = np.stack([images[index] for index in indices])
    return torch.from_numpy(clip).permute(0, 3, 1, 2)


def holds_images(folder: Path) -> bool:
    """Return whether a folder directly holds images."""
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_EXTENSIONS


def _image_names(folder: Path) -> list[str]:
    try:
        names = sorted(name for name in os.listdir(folder) if _is_image(name))  # noqa: PTH208 - names, much faster
    except FileNotFoundError:
        raise UnreadableClip(str(folder), "no such folder") from None
    except OSError as error:
        raise UnreadableClip(str(folder), error.strerror or type(error).__name__) from None
    if not names:
        raise UnreadableClip(str(folder), "holds no images")
    return names


def _numbering(folder: Path, names: list[str], start: int | None) -> tuple[Callable[[int], str], int]:
    """Return how frame k is named, and how many frames there are from `start` on."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    numbered = {int(match[2]): match.string for match in matches if match}
    if len(numbered) < len(names):  # not all numbered, or one number in two series
        first = start or 0

        def by_order(index: int) -> str:
            if first + index >= len(names):
                raise UnreadableClip(str(folder), f"holds {len(names)} images; frame {first + index} is missing")
            return names[first + index]

        return by_order, max(len(names) - first, 0)
    smallest = min(numbered) if start is None else start

    def by_number(index: int) -> str:
        name = numbered.get(smallest + index)
        if name is None:
            raise UnreadableClip(str(folder), f"frame {_like(names[0], smallest + index)} is missing")
        return name

    return by_number, max(max(numbered) - smallest + 1, 0)


def _like(name: str, number: int) -> str:
    """Return the name that frame `number` would have in a folder that holds `name`."""
    match = _NUMBERED.fullmatch(name)
    return f"{match[1]}{number:0{len(match[2])}d}{match[3]}" if match else str(number)


def _factor(folder: Path, name: str, min_side: int | None) -> int:
    """Return by how much OpenCV's JPEG reader may reduce: 1, 2, 4 or 8."""
    if min_side is None or Path(name).suffix.lower() not in {".jpg", ".jpeg"}:
        return 1
    from PIL import Image

    try:
        with Image.open(folder / name) as image:  # reads the header only
            factor = shrink_factor(image.height, image.width, min_side)
    except (OSError, Image.DecompressionBombError):
        return 1  # the read that follows says what is wrong
    return max(step for step in (1, 2, 4, 8) if step <= factor)


def _read_image(folder: Path, name: str, factor: int) -> Any:
    import cv2

    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }
    try:
        image = cv2.imread(str(folder / name), flags[factor])
    except cv2.error:
        image = None
    if image is None:
        raise UnreadableClip(str(folder), f"frame {name} can't be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
