"""From a checkpoint in any known format to an encoder or a classifier for clips of any number of frames and any size.

What a file is, `mgmae_cli.model.formats_read` finds out; how weights are fitted to other clips, `model.resize` says.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mgmae_cli.errors import CheckpointError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.classifier import VideoClassifier
from mgmae_cli.model.encoder import VideoEncoder
from mgmae_cli.model.formats_read import read_weights
from mgmae_cli.model.loading import as_encoder, load_into
from mgmae_cli.model.videomae import preset_name
from mgmae_cli.model.weights import Geometry, Weights, build


@dataclass(frozen=True)
class Loaded:
    """Weights read from a file.

    Args:
        weights: with the path that they were read from.
    """

    weights: Weights

    @property
    def path(self) -> Path:
        """The file, or a folder of transformers."""
        assert self.weights.path is not None
        return self.weights.path

    @property
    def geometry(self) -> Geometry:
        return self.weights.geometry

    @property
    def reading(self) -> dict[str, Any]:
        """Settings (dotted keys) of the clips of training, as far as they are known."""
        return self.weights.reading()


class LoadedEncoder(Loaded):
    """An encoder read from a file; its weights are of kind "encoder"."""

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


class LoadedClassifier(Loaded):
    """A fine-tuned classifier read from a file; its weights are of kind "classifier"."""

    @property
    def classes(self) -> list[str]:
        """Names, by number; the numbers themselves where the file names none."""
        return list(self.weights.labels) or [str(number) for number in range(self.geometry.num_classes)]


def load_encoder(path: Path) -> LoadedEncoder:
    """Read the encoder of any checkpoint: of pre-training, of fine-tuning, of others' formats, of a run folder.

    Raises:
        CheckpointError: missing, damaged, or not of the VideoMAE family.
    """
    return LoadedEncoder(as_encoder(read_weights(path)))


def load_classifier(path: Path) -> LoadedClassifier:
    """Read a fine-tuned classifier, ours or another's.

    Raises:
        CheckpointError: missing, damaged, or without a head.
    """
    weights = read_weights(path)
    if weights.kind != "classifier":
        raise CheckpointError(
            f"{weights.title}: has no classification head; fine-tune it first (mgmae finetune), or judge its "
            "features (mgmae probe)"
        )
    return LoadedClassifier(weights)


def size_name(geometry: Geometry) -> str:
    """Return the preset's name, or width x depth of an encoder that is none."""
    return preset_name(geometry.size) or f"{geometry.size.width} x {geometry.size.depth}"


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
