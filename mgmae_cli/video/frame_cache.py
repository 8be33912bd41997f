"""Keep the decoded frames of videos on disk, so that a set of videos which is read many times is decoded once.

After a video's first clip all its frames are decoded and written as they come, reduced as clips are. Two files hold a
video: NAME.json tells its size and lengths, NAME-FACTOR.rgb is one uint8 array (T, h, w, 3) without a header. NAME is a
hash of the file's path, size and time of change, and of the decoder and its version: a changed file is decoded anew.
Frames are read by position instead of mapped: a map of a file that somebody cuts short kills the process.

Clips are those that decoding gives, pixel by pixel. So only frames are kept that come in one go from the start, up to
the first damage, and places are drawn from the header's length as always; a clip with a frame that is not kept is
decoded. That a video ends earlier than its header says is remembered where it is sure, as such headers are common.
Videos whose frames have other numbers when reading begins elsewhere (a varying rate in large files) are not kept.

Nothing is removed but what killed processes left half-written: the folder may be emptied at any time. At its limit,
videos are decoded as without it; a disk that is full stops the run, which can be resumed with another limit or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from mgmae_cli.errors import DataError, UnreadableClip
from mgmae_cli.video.decode import DecoderName, check_file, read_clip, reader_class, reduce_into, shrink_factor
from mgmae_cli.video.reader import Reader, VideoEnded

_FORMAT = 1  # of the files, and of what our decoders make of a video
_PROBED = 4  # frames that a header may promise in excess and that are all looked for
_PARTIAL = ".partial"
_ABANDONED = 24 * 3600  # seconds after which a half-written file belongs to nobody

Choose = Callable[[int], list[int]]


@dataclass(frozen=True)
class _About:
    """What is known of a video.

    Args:
        height, width: of its frames as they are decoded.
        claimed: its length as the header has it.
        kept: how many frames are kept, from the first.
        ends: there are no frames after them.
    """

    height: int
    width: int
    claimed: int
    kept: int
    ends: bool

    def reduced(self, min_side: int | None) -> tuple[int, int, int]:
        """Return the factor by which frames are reduced, and their height and width then."""
        factor = shrink_factor(self.height, self.width, min_side)
        return factor, self.height // factor, self.width // factor


@dataclass(frozen=True)
class _Video:
    """A video file and what decodes it."""

    path: Path
    reader: type[Reader]
    threads: int

    def open(self) -> Reader:
        return self.reader(self.path, self.threads)

    def name(self) -> str:
        """Return the name under which the file, as it is now, is kept."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise UnreadableClip(str(self.path), error.strerror or type(error).__name__) from None
        decoder = [self.reader.library, import_module(self.reader.library).__version__]
        identity = [_FORMAT, os.path.abspath(self.path), stat.st_size, stat.st_mtime_ns, decoder]  # noqa: PTH100 - links
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


class FrameCache:
    """A folder of decoded videos, which several processes may use at once.

    Args:
        folder: made when it is first written to.
        limit: bytes that the folder may hold, about; what does not fit is decoded each time.

    Raises:
        DataError: `folder` is something else.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        if os.path.isfile(folder):  # noqa: PTH113 - no error where it can't be looked at
            raise DataError(f"data.options.cache = {folder}: is not a folder; name a folder, or one to be made")
        self._folder = folder
        self._room = _Room(folder, limit)

    def read(
        self,
        path: Path,
        choose: Choose,
        *,
        decoder: DecoderName = "auto",
        threads: int = 1,
        min_side: int | None = None,
    ) -> Tensor:
        """Do what `mgmae_cli.video.decode.read_clip` does, without decoding where that can be.

        Raises:
            UnreadableClip: as there.
            DataError: the decoder is not installed, or the cache can't be written.
        """
        check_file(path)
        video = _Video(path, reader_class(decoder), threads)
        name = video.name()
        about = self._about(name)
        draws: list[list[int]] = []
        if about is not None:
            for total in (about.claimed, about.kept) if about.ends else (about.claimed,):
                draws.append(choose(total))
                clip = self._copy(name, about, draws[-1], min_side)
                if clip is not None:
                    return clip
                if draws[-1][-1] < about.kept:
                    break  # the file is not whole
        totals: list[int] = []

        def choose_again(total: int) -> list[int]:
            """Choose as if nothing had been drawn in vain."""
            totals.append(total)
            return draws[len(totals) - 1] if len(totals) <= len(draws) else choose(total)

        clip = read_clip(path, choose_again, decoder=decoder, threads=threads, min_side=min_side)
        if about is None or not self._is_whole(name, about, min_side):
            self._keep(name, video, totals[0], clip[0].numel(), min_side)
        return clip

    def _about(self, name: str) -> _About | None:
        """Return what is known of a video; None where it is not kept, or its file is damaged."""
        try:
            about = _About(**json.loads((self._folder / f"{name}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        numbers = (about.height, about.width, about.claimed, about.kept)
        return about if all(isinstance(number, int) and number >= 0 for number in numbers) else None

    def _frames(self, name: str, about: _About, min_side: int | None) -> tuple[Path, int, int]:
        """Return the file of a video's frames, and their height and width."""
        factor, height, width = about.reduced(min_side)
        return self._folder / f"{name}-{factor}.rgb", height, width

    def _is_whole(self, name: str, about: _About, min_side: int | None) -> bool:
        file, height, width = self._frames(name, about, min_side)
        try:
            return about.kept == 0 or file.stat().st_size == about.kept * height * width * 3
        except OSError:
            return False

    def _copy(self, name: str, about: _About, indices: Sequence[int], min_side: int | None) -> Tensor | None:
        """Return a clip; None where one of its frames is not kept, or the file of frames is missing or not whole."""
        if indices[-1] >= about.kept or not self._is_whole(name, about, min_side):
            return None
        file, height, width = self._frames(name, about, min_side)
        clip = np.empty((len(indices), height, width, 3), np.uint8)
        try:
            with file.open("rb", buffering=0) as frames:
                for row, index in enumerate(indices):
                    frames.seek(index * clip[row].nbytes)
                    if frames.readinto(clip[row].data) != clip[row].nbytes:
                        return None
        except OSError:
            return None
        return torch.from_numpy(clip).permute(0, 3, 1, 2)

    def _keep(self, name: str, video: _Video, claimed: int, frame_size: int, min_side: int | None) -> None:
        """Decode a video and keep its frames, if there is room; other processes see all of it or nothing.

        Raises:
            DataError: it can't be written.
        """
        partial = [self._folder / f".{name}-{uuid4().hex}{kind}{_PARTIAL}" for kind in (".rgb", ".json")]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._room.holds(claimed * frame_size):
                return
            with partial[0].open("xb") as file:
                about = _decode_into(file, video, claimed, min_side)
                file.flush()
                os.fsync(file.fileno())  # or else a crash of the machine may leave a file of zeros under the name
                written = file.tell()
            partial[1].write_text(json.dumps(asdict(about)))
            if video.name() != name:
                return  # the file changed while it was decoded
            if about.kept:
                partial[0].replace(self._frames(name, about, min_side)[0])
            partial[1].replace(self._folder / f"{name}.json")
            self._room.take(written)
        except OSError as error:
            raise DataError(
                f"data.options.cache = {self._folder}: can't be written: {error.strerror or error}; free some space or "
                "name another folder, lower data.options.cache_gb, or set data.options.cache to null"
            ) from error
        finally:
            for path in partial:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def _decode_into(file: BinaryIO, video: _Video, claimed: int, min_side: int | None) -> _About:
    """Write a video's frames, one after the other, up to what makes clips depend on where reading begins."""
    about = _About(0, 0, claimed, 0, False)
    if not video.open().counts_alike():
        return about
    total, kept = claimed, 0
    frame: Any = None
    while True:
        try:
            for image in video.open().read(range(total)):
                if frame is None:
                    about = _About(image.shape[0], image.shape[1], claimed, 0, False)
                    factor, height, width = about.reduced(min_side)
                    frame = np.empty((height, width, 3), np.uint8)
                if image.shape[:2] != (about.height, about.width):
                    break
                reduce_into(frame, image, factor)
                file.write(frame.data)
                kept += 1
        except VideoEnded as ended:
            if kept == 0 and ended.total < total:  # told before anything was decoded
                total = ended.total
                continue
        except UnreadableClip:
            kept = 0
        return replace(about, kept=kept, ends=_ends(video, kept, claimed))


def _ends(video: _Video, kept: int, claimed: int) -> bool:
    """Return whether decoding finds no frame from `kept` on, and says so wherever it begins."""
    if kept == 0 or claimed - kept > _PROBED:
        return False
    for index in range(kept, claimed):
        try:
            next(iter(video.open().read([index])), None)
        except VideoEnded as ended:
            if ended.total == kept:
                continue
        except UnreadableClip:
            pass
        return False
    return True


class _Room:
    """What a folder may still hold.

    The folder is looked through before something is written, but for no more than 2 % of the time: together, processes
    may pass the limit by what they write in between.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._used = 0
        self._look_again = 0.0

    def holds(self, size: int) -> bool:
        """Return whether there is room for `size` bytes."""
        start = time.monotonic()
        if start >= self._look_again:
            self._used = self._measure()
            end = time.monotonic()
            self._look_again = end + 50 * (end - start)
        return self._used + size <= self._limit

    def take(self, size: int) -> None:
        self._used += size

    def _measure(self) -> int:
        """Return the size of all files, and remove those that were abandoned half-written."""
        used = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(OSError):  # another process renamed or removed it
                    stat = entry.stat()
                    if entry.name.endswith(_PARTIAL) and time.time() - stat.st_mtime > _ABANDONED:
                        os.unlink(entry.path)  # noqa: PTH108
                    else:
                        used += stat.st_size
        return used
