"""The `opencv` decoder: cv2.VideoCapture with its FFmpeg backend."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mgmae_cli.errors import UnreadableClip
from mgmae_cli.video.reader import VideoEnded

_SEEK_FROM = 17  # OpenCV aims 16 frames ahead of its target, so nearer ones are reached from the start anyway


def opencv_has_ffmpeg() -> bool:
    """Return whether OpenCV was built with the backend that this decoder needs."""
    import cv2

    return cv2.CAP_FFMPEG in cv2.videoio_registry.getStreamBackends()


class OpenCVReader:
    """Reads one file; see `mgmae_cli.video.reader.Reader`."""

    library: ClassVar[str] = "cv2"

    def __init__(self, path: Path, threads: int) -> None:
        import cv2

        # The reason goes into the exception, not to stderr. FFmpeg's level is read when OpenCV first opens a video.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._cv2 = cv2
        self._path, self._threads = path, threads
        self._open()
        self.total = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if self.total < 1:  # not in the header
            self.total = self._count()

    def _open(self) -> None:
        cv2 = self._cv2
        try:
            options = [cv2.CAP_PROP_N_THREADS, self._threads]
            self._capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG, options)
            opened = self._capture.isOpened()
        except cv2.error:
            opened = False
        if not opened:
            reason = "FFmpeg can't open it: damaged, encrypted, no video in it, or not a video file"
            raise UnreadableClip(str(self._path), reason)

    def read(self, indices: Sequence[int]) -> Iterator[Any]:
        position = self._go_to(indices[0])
        for index in sorted(set(indices)):
            while position <= index:
                if not self._capture.grab():
                    # Before the first frame, it may be the seek that failed, which says nothing about the length.
                    raise VideoEnded(position if position > indices[0] else self._count())
                position += 1
            read, image = self._capture.retrieve()
            if not read:
                raise UnreadableClip(str(self._path), f"frame {index} can't be turned into an image")
            yield self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)

    def counts_alike(self) -> bool:
        """Compare all frames' numbers with those that OpenCV makes of their times once it has sought."""
        self._open()
        rate = self._capture.get(self._cv2.CAP_PROP_FPS)
        count = first = 0
        alike = rate > 0
        while alike and self._capture.grab():
            number = round(self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000 * rate)
            first = number if count == 0 else first
            alike = number - first == count
            count += 1
        self._open()
        return bool(alike)

    def _go_to(self, index: int) -> int:
        """Move towards a frame; return the number of the frame that comes next, at most `index`."""
        where = self._cv2.CAP_PROP_POS_FRAMES
        if index >= _SEEK_FROM and self._capture.set(where, index) and int(self._capture.get(where)) == index:
            return index
        if int(self._capture.get(where)) != 0:  # the seek landed elsewhere: go from the start
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
            codec = "".join(chr(code >> shift & 0xFF) for shift in (0, 8, 16, 24)).strip("\0 ")
            named = f"codec {codec}" if codec.isprintable() and codec else "its codec"
            raise UnreadableClip(str(self._path), f"no frame can be decoded: no decoder for {named}, or damaged")
        self._open()
        return count
