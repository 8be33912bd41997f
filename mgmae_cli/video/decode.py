"""Read the frames of a clip from a video file: one interface, three decoders.

    av      PyAV. Finds the clip by its packets' timestamps and decodes, from the key frame before it, only the frames
            that are wanted or that others depend on.
    opencv  OpenCV's FFmpeg backend. Seeks to the key frame before the clip and decodes on from there.
    decord  decord. Decodes from the start of the file: its own seeks (also those inside `get_batch`) return wrong
            frames, often one frame many times, for B-frames in AVI, open groups of pictures, stream-copied cuts and
            others. Reads no damaged files.

`auto` takes the first of them that is installed. All give the same pixels for 8-bit video, turn frames as the file
asks (not mirrored), and run one thread, since the loader's workers are the parallelism.

The length in a file's header can be wrong. Rule: a clip's place is drawn from the header's length; if one of its frames
is not there, the place is drawn again from the number of frames that are. A damaged video ends where the damage begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mgmae_cli.errors import DataError, UnreadableClip
from mgmae_cli.video.reader import Reader, VideoEnded

DecoderName = Literal["auto", "av", "opencv", "decord"]
_ATTEMPTS = 4  # the header's length, the length by timestamps, the length by decoding, and one from the start


def read_clip(
    path: Path,
    choose: Callable[[int], list[int]],
    *,
    decoder: DecoderName = "auto",
    threads: int = 1,
    min_side: int | None = None,
) -> Tensor:
    """Decode the frames that `choose` picks: (T, 3, h, w) uint8 RGB, lying in memory as (T, h, w, 3).

    Args:
        choose: takes the number of frames, returns ascending frame numbers; may raise UnreadableClip.
        threads: of the decoder.
        min_side: frames whose short side is at least twice this are reduced by a whole factor, to no less than this.

    Raises:
        UnreadableClip: no such file, not a video, no decoder for it, or too few frames.
        DataError: the decoder is not installed.
    """
    check_file(path)
    reader = reader_class(decoder)(path, threads)
    total = reader.total
    indices = choose(total)
    for _ in range(_ATTEMPTS):
        try:
            return _stack(indices, reader.read(indices), min_side, path)
        except VideoEnded as ended:
            total = ended.total
            if indices[-1] >= total:  # or else they are there, and the reader now knows how to reach them
                indices = choose(total)
    raise UnreadableClip(str(path), f"gives another number of frames each time it is decoded, {total} last")


def shrink_factor(height: int, width: int, least: int | None) -> int:
    """Return the whole factor by which frames may be reduced so that their short side stays at `least` or above."""
    return max(min(height, width) // least, 1) if least else 1


def reduce_into(reduced: Any, image: Any, factor: int) -> None:
    """Write an (H, W, 3) image into a contiguous (H // factor, W // factor, 3) array."""
    import cv2

    if factor > 1:  # whole factors are fast: the mean of factor x factor pixels
        height, width = reduced.shape[:2]
        whole = np.ascontiguousarray(image[: height * factor, : width * factor])
        cv2.resize(whole, (width, height), dst=reduced, interpolation=cv2.INTER_AREA)
    else:
        reduced[:] = image


def _stack(indices: Sequence[int], images: Iterator[Any], min_side: int | None, path: Path) -> Tensor:
    """Reduce and stack what a reader yields; repeated frame numbers share one decoded frame."""
    clip: Any = None
    shape: tuple[int, ...] = ()
    row = 0
    for image in images:
        if clip is None:
            shape = image.shape
            factor = shrink_factor(shape[0], shape[1], min_side)
            size = (shape[0] // factor, shape[1] // factor)
            clip = np.empty((len(indices), *size, 3), np.uint8)
        if image.shape != shape:
            raise UnreadableClip(str(path), f"frame size changes from {shape[:2]} to {image.shape[:2]} on the way")
        reduce_into(clip[row], image, factor)
        row += 1
        while row < len(indices) and indices[row] == indices[row - 1]:
            clip[row] = clip[row - 1]
            row += 1
    return torch.from_numpy(clip).permute(0, 3, 1, 2)


def check_file(path: Path) -> None:
    """Check that something can be read from a path.

    Raises:
        UnreadableClip: it is missing, empty, a folder, or may not be read.
    """
    try:
        if path.is_dir():
            raise UnreadableClip(str(path), "is a folder, not a video")
        if not path.is_file():
            raise UnreadableClip(str(path), "no such file")
        if path.stat().st_size == 0:
            raise UnreadableClip(str(path), "is empty (0 bytes)")
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise UnreadableClip(str(path), error.strerror or type(error).__name__) from None


@lru_cache
def reader_class(decoder: DecoderName) -> type[Reader]:
    """Return the class behind a decoder's name; the libraries themselves are imported when a file is opened."""
    from mgmae_cli.video.decode_av import AvReader
    from mgmae_cli.video.decode_decord import DecordReader
    from mgmae_cli.video.decode_opencv import OpenCVReader, opencv_has_ffmpeg

    if decoder == "auto":
        decoder = "av" if find_spec("av") else "opencv" if opencv_has_ffmpeg() else "decord"
    if find_spec("cv2" if decoder == "opencv" else decoder) is None:
        raise DataError(f"data.options.decoder = {decoder}: it is not installed; use auto, or pip install {decoder}")
    readers: dict[str, type[Reader]] = {"av": AvReader, "opencv": OpenCVReader, "decord": DecordReader}
    return readers[decoder]
