"""The part `data`: reading clips on one core, ours against decord and PIL, frame by frame, as the official code has it.

All draw the same frames and crops from the same random numbers; ours also from a cache of decoded frames. Ours ends
with uint8 clips: they are normalised on the device. One peer ends there too, the other with normalised floats, which
the official loader hands over. Decoding alone stops at the decoder's own frames, before colours are converted: no
reader that decodes the same frames can be much faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgmae_cli.bench.measure import Competitor, Figure, race
from mgmae_cli.bench.options import Bench
from mgmae_cli.bench.results import Row, Table
from mgmae_cli.bench.videos import find_videos, make_videos
from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import ClipRequest, DataLocation
from mgmae_cli.model.tokens import IMAGENET_MEAN, IMAGENET_STD
from mgmae_cli.seeds import derive_generator
from mgmae_cli.video.crop import CropPolicy, draw_crop, min_side
from mgmae_cli.video.dataset import Cropper
from mgmae_cli.video.decode_av import AvReader
from mgmae_cli.video.sampling import frame_indices
from mgmae_cli.video.sources import FileOptions, VideoSource

STRIDE = 4  # frames from one clip frame to the next
POLICY: CropPolicy = "multi_scale"
_TIME, _CROP = range(2)  # what a derived generator is for


@dataclass(frozen=True)
class Reading:
    """The ways in which clips of one video are read; each takes the number of the round.

    Args:
        cache: folder of decoded frames.
    """

    path: Path
    grid: ClipGrid
    cache: Path

    def ours(self, number: int) -> Tensor:
        """Return (T, 3, H, W) uint8."""
        return self._ours(number, FileOptions())

    def cached(self, number: int) -> Tensor:
        """Return (T, 3, H, W) uint8, from frames that the first call decodes."""
        return self._ours(number, FileOptions(cache=self.cache))

    def _ours(self, number: int, options: FileOptions) -> Tensor:
        frames = VideoSource(options, DataLocation(self.path)).load(0, self._request(number)).frames
        return Cropper(POLICY, self._size)(frames, derive_generator(number, _CROP))

    def pil(self, number: int) -> Tensor:
        """Return (T, 3, H, W) uint8, read by decord and cropped by PIL."""
        from PIL import Image

        decord: Any = import_module("decord")
        reader = decord.VideoReader(str(self.path), num_threads=1)
        wanted = frame_indices(self._request(number), len(reader), str(self.path))
        frames = reader.get_batch(wanted).asnumpy()
        crop = draw_crop(POLICY, frames.shape[1:3], self._size, derive_generator(number, _CROP))
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        images = [
            Image.fromarray(frame).crop(box).resize(self._size[::-1], Image.Resampling.BILINEAR) for frame in frames
        ]
        return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)

    def pil_floats(self, number: int) -> Tensor:
        """Return (T, 3, H, W) normalised floats, read by decord and cropped by PIL."""
        pixels = self.pil(number).contiguous().float().div(255)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return pixels.sub_(mean).div_(std)

    def decode(self, number: int) -> None:
        """Decode the frames that ours needs, and do nothing with them."""
        reader = _Decoder(self.path, threads=1)
        for _ in reader.read(frame_indices(self._request(number), reader.total, str(self.path))):
            pass

    @property
    def _size(self) -> tuple[int, int]:
        return self.grid.height, self.grid.width

    def _request(self, number: int) -> ClipRequest:
        return ClipRequest(
            frames=self.grid.frames,
            stride=STRIDE,
            height=self.grid.height,
            width=self.grid.width,
            generator=derive_generator(number, _TIME),
            min_side=min_side(POLICY, self._size),
        )


class _Decoder(AvReader):
    """Our reader, but for what it makes of the decoder's frames."""

    def _image(self, frame: Any) -> Any:
        return frame


WAYS = {
    "mgmae": Reading.ours,
    "mgmae, cached": Reading.cached,
    "decoding alone": Reading.decode,
    "decord and PIL": Reading.pil,
    "decord and PIL, to floats": Reading.pil_floats,
}


def run_data(bench: Bench) -> list[Table]:
    """Measure the ways of reading all videos in turns."""
    with TemporaryDirectory() as folder:
        videos = bench.options.videos or find_videos() or make_videos(Path(folder))
        readings = [Reading(path, bench.options.grid, Path(folder) / "cache") for path in dict.fromkeys(videos)]
        competitors = [
            Competitor(_name(reading, way), partial(read, reading), one_core=True)
            for reading in readings
            for way, read in WAYS.items()
        ]
        timings = race(competitors, bench.options.repeats, bench.say)
        rows = []
        for reading in readings:
            ours, peer = (timings[_name(reading, way)] for way in ("mgmae", "decord and PIL"))
            for way in WAYS:
                own = timings[_name(reading, way)]
                figures = {"a clip": own.each("ms")}
                if way.startswith("mgmae"):
                    figures["against decord and PIL"] = own.faster_than(peer)
                elif way == "decoding alone":
                    figures["of mgmae's time"] = own.share_of(ours)
                else:
                    figures["mgmae is faster"] = ours.faster_than(own)
                if way == "decord and PIL":
                    figures["mean difference"] = _difference(reading)
                rows.append(Row(_name(reading, way), figures))
    grid = bench.options.grid
    title = f"{grid.frames} frames, stride {STRIDE}, multi-scale crop to {grid.height} x {grid.width}, one core"
    return [Table("data", title, rows, NOTES)]


NOTES = (
    "mean difference: of pixels, of 255 levels. Ours may reduce large frames by a whole factor before it crops, which "
    "also rounds the crop's place; decord's own seeks return other frames of some files",
    "mgmae, cached: all frames lie decoded on disk (data.options.cache), and in the system's memory where it has room",
)


def _name(reading: Reading, way: str) -> str:
    return f"{reading.path.name}, {way}"


def _difference(reading: Reading) -> Figure:
    """Return by how much the pixels of ours and PIL's clips differ, in a few rounds."""
    pairs = [(reading.ours(number).float(), reading.pil(number).float()) for number in range(3)]
    return Figure.of([float((ours - pil).abs().mean()) for ours, pil in pairs], "levels")
