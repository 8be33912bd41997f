"""From a checkpoint in any known format to an encoder or a classifier for clips of any number of frames and any size.

What a file is, `mgmae_cli.model.formats_read` finds out; how weights are fitted to other clips, `model.resize` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgmae_cli.errors import CheckpointError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.classifier import VideoClassifier
from mgmae_cli.model.encoder import VideoEncoder
from mgmae_cli.model.formats_read import chosen_checkpoint, load_payload, read_weights, weights_from
from mgmae_cli.model.loading import as_encoder, load_into
from mgmae_cli.model.videomae import SIZES
from mgmae_cli.model.weights import Geometry, Weights, build


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder read from a file.

    Args:
        path: the file, or a folder of transformers.
        weights: of kind "encoder".
        reading: settings (dotted keys) of the clips that it was trained on, as far as they are known.
    """

    path: Path
    weights: Weights
    reading: Mapping[str, Any]

    @property
    def geometry(self) -> Geometry:
        return self.weights.geometry

    @property
    def name(self) -> str:
        return size_name(self.geometry)

    def digest(self) -> str:
        """Return a hash of the weights' content, whatever file they are in."""
        found = hashlib.sha256()
        for key, value in sorted(self.weights.state.items()):
            value = value.detach().cpu().contiguous()
            found.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode())
            found.update(value.flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class LoadedClassifier:
    """A fine-tuned classifier read from a file.

    Args:
        path: the file, or a folder of transformers.
        weights: of kind "classifier".
        averaged: the averaged weights, where the run kept some.
        classes: names, by number; the numbers themselves where the file names none.
        reading: as in LoadedEncoder.
    """

    path: Path
    weights: Weights
    averaged: Mapping[str, Tensor] | None
    classes: list[str]
    reading: Mapping[str, Any]

    def choose(self, name: str) -> tuple[Weights, str]:
        """Return the weights that "auto", "model" or "ema" means, and which of the last two they are.

        Raises:
            CheckpointError: there are no averaged weights.
        """
        if name == "model" or (name == "auto" and self.averaged is None):
            return self.weights, "model"
        if self.averaged is None:
            raise CheckpointError(f"{self.path}: holds no averaged weights: train.ema was not set; use --weights model")
        return replace(self.weights, state=self.averaged), "ema"


def find_checkpoint(path: Path) -> Path:
    """Return the file that a path means: itself, or of a run folder the best weights, or else the last.

    Raises:
        CheckpointError: nothing there.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint or run folder")
    return chosen_checkpoint(path) if (path / "checkpoints").is_dir() else path


def load_encoder(path: Path) -> LoadedEncoder:
    """Read the encoder of any checkpoint: of pre-training, of fine-tuning, of others' formats, of a run folder.

    Raises:
        CheckpointError: missing, damaged, or not of the VideoMAE family.
    """
    path = find_checkpoint(path)
    weights = read_weights(path)
    return LoadedEncoder(path, as_encoder(weights), _reading(weights))


def load_classifier(path: Path) -> LoadedClassifier:
    """Read a fine-tuned classifier, ours or another's.

    Raises:
        CheckpointError: missing, damaged, or without a head.
    """
    path = find_checkpoint(path)
    averaged = None
    if path.is_file():
        payload = load_payload(path)
        if isinstance(payload, Mapping) and "ema" in payload and "format" in payload:
            averaged = weights_from({**payload, "model": payload["ema"]}).state
    weights = read_weights(path)
    if weights.kind != "classifier":
        raise CheckpointError(
            f"{path}: {weights.origin}: has no classification head; fine-tune it first (mgmae finetune), or judge its "
            "features (mgmae probe)"
        )
    classes = list(weights.labels) or [str(number) for number in range(weights.geometry.num_classes)]
    return LoadedClassifier(path, weights, averaged, classes, _reading(weights))


def _reading(weights: Weights) -> dict[str, Any]:
    """Return how the clips of training were read; of others' files only what the weights' shapes say."""
    if weights.config is not None:
        data = weights.config["data"]
        return {f"data.{key}": data[key] for key in ("frames", "size", "stride", "sampling") if key in data}
    grid = weights.geometry.grid
    size = grid.height if grid.height == grid.width else [grid.height, grid.width]
    return {"data.frames": grid.frames, "data.size": size}


def size_name(geometry: Geometry) -> str:
    """Return the preset's name, or width x depth of an encoder that is none."""
    size = geometry.size
    parts = ("width", "depth", "heads", "hidden")
    for name, preset in SIZES.items():
        if all(getattr(preset, part) == getattr(size, part) for part in parts):
            return name
    return f"{size.width} x {size.depth}"


def build_frozen(
    loaded: LoadedEncoder, grid: ClipGrid, random_seed: int | None = None
) -> tuple[VideoEncoder, list[str]]:
    """Return the encoder for clips of a grid, frozen and in eval mode, and notes on what was changed to fit.

    Args:
        random_seed: leave the weights as pre-training begins with, drawn from this seed: the random baseline.

    Raises:
        CheckpointError: keys or shapes don't fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed or 0)
        encoder = build(replace(loaded.geometry, grid=grid), "encoder")
    assert isinstance(encoder, VideoEncoder)
    notes = [] if random_seed is not None else load_into(encoder, loaded.weights)
    return encoder.eval().requires_grad_(False), notes


def new_classifier(
    geometry: Geometry,
    grid: ClipGrid,
    num_classes: int,
    seed: int = 0,
    drop_path: float = 0.0,
    head_dropout: float = 0.0,
    head_scale: float = 0.001,
    checkpointing: bool = False,
) -> VideoClassifier:
    """Return a classifier with an encoder of this kind, all weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VideoClassifier(
            grid,
            geometry.size,
            num_classes,
            eps=geometry.eps,
            fc_norm_eps=geometry.last_eps,
            drop_path=drop_path,
            head_dropout=head_dropout,
            head_scale=head_scale,
            layer_scale=geometry.layer_scale,
            checkpointing=checkpointing,
        )


def classifier_geometry(loaded: Geometry, grid: ClipGrid, num_classes: int) -> Geometry:
    """Return the geometry of a classifier on an encoder, for its checkpoints."""
    return replace(loaded, grid=grid, last_eps=loaded.eps, final_norm=False, num_classes=num_classes)


def build_tested(weights: Weights, grid: ClipGrid) -> tuple[VideoClassifier, list[str]]:
    """Return a classifier for clips of a grid, in eval mode, and notes on what was changed to fit.

    Raises:
        CheckpointError: keys or shapes don't fit.
    """
    model = new_classifier(weights.geometry, grid, weights.geometry.num_classes)
    notes = load_into(model, weights)
    return model.eval(), notes
