"""Frozen features of videos: an encoder's at some layers, or pixels; pooled or one a token.

Shape suffixes: B batch, E layers, N tokens, D width.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mgmae_cli.downstream.encoder import LoadedEncoder, build_frozen
from mgmae_cli.downstream.heads import Array
from mgmae_cli.downstream.views import VideoViews, ViewDataset, read_videos, run_views
from mgmae_cli.engine.distributed import Place
from mgmae_cli.errors import ConfigError, DataError, RunError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.tokens import all_tokens, normalise_pixels

Form = Literal["pooled", "dense"]
Baseline = Literal["none", "random", "pixels"]
LAST = "last"


class Extractor(Protocol):
    """Makes features of clips."""

    heads: int  # that suit attention over its dense features
    notes: list[str]  # what was changed to fit the clips

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that the features depend on besides clips and layer."""
        ...

    def __call__(self, clips: Tensor, form: Form, layers: Sequence[str]) -> Tensor:
        """Return (B, E, D) pooled or (B, E, N, D) dense features of (B, 3, T, H, W) uint8 clips."""
        ...


class EncoderExtractor:
    """Features of an encoder: outputs of its blocks, by number, and `last`, its output after the final norm.

    Args:
        layers: that will be asked for.
        random_seed: leave the weights as pre-training begins with; None: those that were loaded.

    Raises:
        ConfigError: no such layer.
    """

    def __init__(
        self,
        loaded: LoadedEncoder,
        grid: ClipGrid,
        layers: Sequence[str],
        place: Place,
        random_seed: int | None = None,
    ) -> None:
        depth = loaded.geometry.size.depth
        for layer in layers:
            if layer != LAST and not (layer.isdigit() and int(layer) <= depth):
                raise ConfigError(
                    f"--layers {layer}: {loaded.path} has layers 1 to {depth}, 0 (its embedding) and {LAST} (its "
                    "output, after the final norm)"
                )
        self.heads = loaded.geometry.size.heads
        self.place = place
        encoder, self.notes = build_frozen(loaded, grid, random_seed)
        self.encoder = encoder.to(place.device)
        self.identity: Mapping[str, Any] = {
            "weights": loaded.digest() if random_seed is None else f"random {random_seed}",
            "geometry": loaded.geometry.to_dict(),
            "precision": place.precision,
        }

    @torch.no_grad()
    def __call__(self, clips: Tensor, form: Form, layers: Sequence[str]) -> Tensor:
        depth = len(self.encoder.blocks)
        numbers = [depth if layer == LAST else int(layer) for layer in layers]
        wanted = sorted(set(numbers))
        with self.place.autocast():
            states = dict(zip(wanted, self.encoder.hidden_states(clips, wanted)))
            made = [
                self.encoder.norm(states[number]) if layer == LAST else states[number]
                for layer, number in zip(layers, numbers)
            ]
        features = [(x.float().mean(1) if form == "pooled" else x.float()) for x in made]
        return torch.stack(features, 1)


class PixelExtractor:
    """Raw pixels, to judge the others by: each token's, or pooled, the mean colours of all tokens side by side."""

    def __init__(self, grid: ClipGrid) -> None:
        self.grid = grid
        self.notes: list[str] = []
        self.heads = max(1, grid.token_values // 64)
        while grid.token_values % self.heads:
            self.heads -= 1
        self.identity: Mapping[str, Any] = {"pixels": asdict(grid)}

    def __call__(self, clips: Tensor, form: Form, layers: Sequence[str]) -> Tensor:
        pixels = normalise_pixels(all_tokens(clips, self.grid.tubelet, self.grid.patch))
        features = pixels.mean((2, 3, 4)).flatten(1) if form == "pooled" else pixels.flatten(2)
        return features[:, None]


def make_extractor(
    loaded: LoadedEncoder, grid: ClipGrid, layers: Sequence[str], place: Place, baseline: Baseline, seed: int
) -> Extractor:
    """Return what makes features: the checkpoint's encoder, or a baseline of its geometry.

    Raises:
        ConfigError: no such layer, or layers of pixels.
    """
    if baseline == "pixels":
        if tuple(layers) != (LAST,):
            raise ConfigError(f"--layers {','.join(layers)}: pixels have no layers; drop it, or --baseline pixels")
        return PixelExtractor(grid)
    return EncoderExtractor(loaded, grid, layers, place, seed if baseline == "random" else None)


def write_features(
    dataset: ViewDataset,
    extractor: Extractor,
    form: Form,
    files: Mapping[str, Path],
    dtype: str,
    place: Place,
    batch_size: int,
    workers: int,
    watch: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
    on_bad: Callable[[int, str], None] | None = None,
) -> dict[int, str]:
    """Write each layer's features of all videos into an npy file; return the unreadable videos' reasons.

    Args:
        files: by layer.
        dtype: "float32" or "float16".
        watch: wraps the loop over videos, to show progress.
        on_bad: told of an unreadable video's number and reason; may raise.

    Raises:
        RunError: the disk is full, or a feature is too large for float16.
        DataError: no video can be read.
    """
    arrays: list[Array] = []
    bad: dict[int, str] = {}
    pin = place.device.type == "cuda"
    videos = read_videos(dataset, range(len(dataset)), workers, pin)
    done: Iterable[tuple[VideoViews, Tensor | None]] = run_views(
        videos, lambda clips: extractor(clips, form, list(files)), batch_size, place.device
    )
    for video, features in watch(done, len(dataset)):
        if features is None:
            if on_bad is not None:
                on_bad(video.index, video.reason)
            bad[video.index] = video.reason
            continue
        with np.errstate(over="ignore"):  # told below
            values = features.mean(0).cpu().numpy().astype(dtype)
        if not np.isfinite(values).all():
            name = dataset.source.clip_name(video.index)
            raise RunError(f"{name}: its features are not finite as {dtype}; use float32, or look at the checkpoint")
        if not arrays:
            arrays = [_new_array(path, dtype, (len(dataset), *values.shape[1:])) for path in files.values()]
        for array, value in zip(arrays, values):
            array[video.index] = value
    if not arrays:
        first = next(iter(bad.values()), "")
        raise DataError(
            f"{dataset.source.location.path}: none of its {len(dataset)} videos can be read; the first: {first}"
        )
    for array in arrays:
        array[list(bad)] = np.nan
        array.flush()  # type: ignore[attr-defined]
    return bad


def _new_array(path: Path, dtype: str, shape: tuple[int, ...]) -> Array:
    """Make an npy file of a size.

    Raises:
        RunError: no room for it, said before the work and not after.
    """
    need = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < need:
            raise RunError(
                f"{path.parent}: the features need {need / 1e9:.1f} GB and {free / 1e9:.1f} are free; choose another "
                "folder, or pooled features"
            )
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    except OSError as error:
        raise RunError(f"{path}: can't be written: {error.strerror or error}") from error
