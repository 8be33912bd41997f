"""What a video decoder must offer, and how it says that a video is shorter than its header claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol


class VideoEnded(Exception):
    """A frame was asked for that the video does not hold; it holds `total` frames."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.total = total


class Reader(Protocol):
    """An open video file.

    `total` is the number of frames that its header claims, `library` the module that decodes.
    """

    library: ClassVar[str]
    total: int

    def __init__(self, path: Path, threads: int) -> None: ...

    def read(self, indices: Sequence[int]) -> Iterator[Any]:
        """Yield one (h, w, 3) uint8 RGB array for each distinct frame number of ascending `indices`.

        An array may be overwritten when the next one is asked for.

        Raises:
            VideoEnded: a frame is not there. Later calls know the true length.
            UnreadableClip: nothing can be decoded.
        """
        ...

    def counts_alike(self) -> bool:
        """Return whether frame i is the video's i-th frame wherever reading begins.

        Not so where frames are found by time and their rate varies: what is read in one go is numbered otherwise.
        """
        ...
