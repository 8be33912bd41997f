"""Read the frames of a clip from a video file: one interface, two decoders.

Decoders: `opencv` (its FFmpeg backend) and `decord`. Both give the same pixels for 8-bit video, rotate as the file
asks, and run one thread, since the loader's workers are the parallelism. What differs is how they find a frame:
    opencv  seeks to the key frame before the clip and decodes forward from there. Seeks that report landing elsewhere
            are replaced by decoding from the start.
    decord  decodes from the start of the file. Its own seeks (also those inside `get_batch`) return wrong frames,
            often one frame repeated, for open groups of pictures, B-frames in AVI, stream-copied cuts and others.
`auto` takes opencv, or decord where OpenCV was built without FFmpeg.

The length in a file's header can be wrong. Rule: the clip's place is drawn from the header's length; if a frame is not
there, the frames that do decode are the video, and the place is drawn again, once, from their number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mgmae_cli.errors import UnreadableClip

DecoderName = Literal["auto", "opencv", "decord"]
_SEEK_FROM = 17  # OpenCV aims 16 frames ahead of its target, so nearer ones are reached from the start anyway


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
    """
    _check_file(path)
    reader = _READERS[_resolve(decoder)](path, threads)
    total = reader.total
    for _ in range(2):
        indices = choose(total)
        try:
            return _stack(indices, reader.read(indices), min_side, path)
        except VideoEnded as ended:
            total = ended.total
    raise UnreadableClip(str(path), f"gives a different number of frames each time it is decoded ({total} last)")


class VideoEnded(Exception):
    """A frame was asked for that the video does not hold; `total` frames could be decoded."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.total = total


class Reader(Protocol):
    """An open video file. `total` is the number of frames that it claims to hold."""

    total: int

    def __init__(self, path: Path, threads: int) -> None: ...

    def read(self, indices: Sequence[int]) -> Iterator[tuple[Any, bool]]:
        """Yield (image, is_bgr) for each distinct frame of ascending `indices`; images (h, w, 3) uint8.

        Raises:
            VideoEnded: a frame is not there.
        """
        ...


def shrink_factor(height: int, width: int, least: int | None) -> int:
    """Return the whole factor by which frames may be reduced so that their short side stays at `least` or above."""
    return max(min(height, width) // least, 1) if least else 1


def _stack(indices: Sequence[int], images: Iterator[tuple[Any, bool]], min_side: int | None, path: Path) -> Tensor:
    """Reduce, turn to RGB and stack what a reader yields; repeated frame numbers share one decoded frame."""
    import cv2

    clip: Any = None
    shape: tuple[int, ...] = ()
    row = 0
    for image, is_bgr in images:
        if clip is None:
            shape = image.shape
            factor = shrink_factor(shape[0], shape[1], min_side)
            size = (shape[0] // factor, shape[1] // factor)
            clip = np.empty((len(indices), *size, 3), np.uint8)
        if image.shape != shape:
            raise UnreadableClip(str(path), f"frame size changes from {shape[:2]} to {image.shape[:2]} on the way")
        if factor > 1:  # a whole factor: the mean of factor x factor pixels
            image = image[: size[0] * factor, : size[1] * factor]
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        if is_bgr:
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=clip[row])
        else:
            clip[row] = image
        row += 1
        while row < len(indices) and indices[row] == indices[row - 1]:
            clip[row] = clip[row - 1]
            row += 1
    return torch.from_numpy(clip).permute(0, 3, 1, 2)


def _check_file(path: Path) -> None:
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


def _resolve(decoder: DecoderName) -> Literal["opencv", "decord"]:
    if decoder == "auto":
        return "opencv" if _opencv_has_ffmpeg() else "decord"
    return decoder


@lru_cache(maxsize=1)
def _opencv_has_ffmpeg() -> bool:
    import cv2

    return cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()


class OpenCVReader:
    """Reads a file through cv2.VideoCapture with the FFmpeg backend."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path, self._threads = path, threads
        _hush_opencv()
        self._open()
        self.total = int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        if self.total < 1:  # not in the header
            self.total = self._count()

    def _open(self) -> None:
        import cv2

        self._cv2 = cv2
        options = [cv2.CAP_PROP_N_THREADS, self._threads]
        try:
            self._capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG, options)
            opened = self._capture.isOpened()
        except cv2.error:
            opened = False
        if not opened:
            reason = "FFmpeg can't open it: damaged, encrypted, no video in it, or not a video file"
            raise UnreadableClip(str(self._path), reason)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[Any, bool]]:
        position = self._go_to(indices[0])
        previous = -1
        for index in indices:
            if index == previous:
                continue
            while position <= index:
                if not self._capture.grab():
                    # From a wrong landing point nothing follows about the video's length.
                    raise VideoEnded(position if position > indices[0] else self._count())
                position += 1
            read, image = self._capture.retrieve()
            if not read:
                raise UnreadableClip(str(self._path), f"frame {index} can't be turned into an image")
            yield image, True
            previous = index

    def _go_to(self, index: int) -> int:
        """Move to a frame; return the number of the frame that comes next, at most `index`."""
        where = self._cv2.CAP_PROP_POS_FRAMES
        if index >= _SEEK_FROM and self._capture.set(where, index) and int(self._capture.get(where)) == index:
            return index
        if int(self._capture.get(where)) != 0:
            self._open()
        return 0

    def _count(self) -> int:
        """Return how many frames can be decoded from the start; leave the file open at its start."""
        self._open()
        count = 0
        while self._capture.grab():
            count += 1
        if count == 0:
            code = int(self._capture.get(self._cv2.CAP_PROP_FOURCC))
            codec = "".join(chr(code >> shift & 0xFF) for shift in (0, 8, 16, 24)).strip()
            named = f"codec {codec}" if codec.isprintable() and codec else "its codec"
            raise UnreadableClip(str(self._path), f"no frame can be decoded: no decoder for {named}, or damaged")
        self._open()
        return count


def _hush_opencv() -> None:
    """Keep FFmpeg's and OpenCV's own notes about damaged files off stderr: the reason goes into the exception."""
    import cv2

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read by OpenCV when it first opens a video
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class DecordReader:
    """Reads a file through decord.VideoReader, without its seeks."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path, self._threads = path, threads
        self._reader = self._open()
        self.total = len(self._reader)

    def _open(self) -> Any:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        try:
            return decord.VideoReader(str(self._path), num_threads=self._threads)
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            text = str(error)
            if "cannot find video stream" in text:
                reason = "no video in it, or decord has no decoder for its codec"
            elif "Failed to measure duration" in text:
                reason = "decord can't find out its length"
            else:
                reason = "decord can't open it: damaged, encrypted, or not a video file"
            raise UnreadableClip(str(self._path), reason) from None

    def read(self, indices: Sequence[int]) -> Iterator[tuple[Any, bool]]:
        import decord

        if self._reader is None:
            self._reader = self._open()
        reader, self._reader = self._reader, None  # one pass; after an error a decord reader is not usable
        keys = set(reader.get_key_indices())
        position = 0
        try:
            for index in sorted(set(indices)):
                while position < index:
                    position += _advance(reader, keys, position, index)
                image = reader.next().asnumpy()
                position += 1
                yield image, False
        except (StopIteration, decord.DECORDError) as error:
            if position == 0:
                raise UnreadableClip(str(self._path), f"decord: {_first_line(error)}") from None
            raise VideoEnded(position) from None


def _advance(reader: Any, keys: set[int], position: int, index: int) -> int:
    """Move decord forward by at least one frame, at most up to `index`; return by how many.

    `skip_frames` decodes without converting, but seeks when it passes a key frame; key frames are therefore read.
    """
    run = 0
    while position + run < index and position + run + 1 not in keys:
        run += 1
    if run:
        reader.skip_frames(run)
        return run
    reader.next()
    return 1


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].rsplit("] ", 1)[-1][:120] if lines else type(error).__name__


_READERS: dict[Literal["opencv", "decord"], type[Reader]] = {"opencv": OpenCVReader, "decord": DecordReader}
