"""Clips to measure on: moving shapes at the size that the options ask for, and the settings behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mgmae_cli.bench.options import Bench
from mgmae_cli.config import Layer
from mgmae_cli.engine.pretrain import clip_spec
from mgmae_cli.errors import MgmaeError
from mgmae_cli.settings import Settings, resolve_layers
from mgmae_cli.video.dataset import ClipDataset
from mgmae_cli.video.loader import collate


def shapes_settings(bench: Bench, values: Mapping[str, Any]) -> Settings:
    """Return the settings of a run on `shapes` with the options' sizes; `values` are further ones, by dotted key."""
    options, grid = bench.options, bench.options.grid
    common = {
        "data.source": "shapes",
        "data.frames": grid.frames,
        "data.size": grid.height,
        "model.name": options.models[0],
        "model.patch": grid.patch,
        "model.decoder_depth": 4,
        "mask.ratio": options.mask_ratio,
        "train.batch_size": bench.batch_size,
    }
    return resolve_layers([Layer("mgmae bench", {**common, **values})], bench.registry)


def example_clips(bench: Bench, count: int) -> Tensor:
    """Return the first clips of `shapes`, (count, 3, T, H, W) uint8."""
    settings = shapes_settings(bench, {"mask.name": "tube"})
    dataset = ClipDataset(settings.make_source(), clip_spec(settings.config), settings.config.seed)
    batch = collate([dataset[0, index] for index in range(count)])
    if isinstance(batch, MgmaeError):
        raise batch
    return batch.clips
