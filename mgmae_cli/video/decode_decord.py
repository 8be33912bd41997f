"""The `decord` decoder: decord.VideoReader, without its seeks.

decord looks for the key frame before a frame by its number in the order of decoding and seeks by its presentation time;
where the two orders differ, or times are missing, it lands elsewhere and returns other frames without an error. It
decodes in a thread of its own whose errors come at any time, so damaged files are not read up to the damage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mgmae_cli.errors import UnreadableClip
from mgmae_cli.video.reader import VideoEnded


class DecordReader:
    """Reads one file; see `mgmae_cli.video.reader.Reader`."""

    library: ClassVar[str] = "decord"

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

    def read(self, indices: Sequence[int]) -> Iterator[Any]:
        import decord

        if self._reader is None:
            self._reader = self._open()
        reader, self._reader = self._reader, None  # one pass; after an error a decord reader is not usable
        keys = set(reader.get_key_indices())
        position = 0
        try:
            for index in sorted(set(indices)):
                if index >= len(reader):  # skip_frames would stop at the end without a word
                    raise VideoEnded(len(reader))
                while position < index:
                    position += _advance(reader, keys, position, index)
                image = reader.next().asnumpy()
                if image.shape[-1] != 3:
                    raise UnreadableClip(str(self._path), "its frames are too small for decord")
                position += 1
                yield image
        except StopIteration:
            raise VideoEnded(position) from None
        except decord.DECORDError as error:
            raise UnreadableClip(str(self._path), f"damaged (decord: {_last_part(error)})") from None

    def counts_alike(self) -> bool:
        return True  # always reads from the start


def _advance(reader: Any, keys: set[int], position: int, index: int) -> int:
    """Move decord forward by at least one frame, at most to `index`; return by how many.

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


def _last_part(error: BaseException) -> str:
    """Return the first line of decord's trace without times and source files."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].rsplit(": ", 1)[-1][:120] if lines else type(error).__name__
