"""Weights on their way between formats: one state dict in official names, and all that is needed to build its model.

A file's keys decide what it is; `formats_read` reads, `formats_write` writes, `loading` puts weights into models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mgmae_cli.errors import CheckpointError, ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.classifier import VideoClassifier
from mgmae_cli.model.encoder import VideoEncoder
from mgmae_cli.model.videomae import VideoMAE, ViTSize

Kind = Literal["pretrain", "classifier", "encoder"]
KIND_WORDS: dict[Kind, str] = {
    "pretrain": "pre-training model",
    "classifier": "classifier",
    "encoder": "encoder",
}
NAMES_SHOWN = 3


@dataclass(frozen=True)
class Geometry:
    """What the tensors alone don't say about a model.

    Args:
        grid: how clips are cut into tokens.
        size: widths, depths, heads; decoder parts are 0 where there is none.
        eps: of the blocks' norms and the encoder's last.
        last_eps: of the decoder's last norm, or of a classifier's pooled norm.
        layer_scale: blocks carry `gamma_1` and `gamma_2`.
        final_norm: the encoder ends with a norm; a classifier's never does.
        num_classes: of a classifier.
    """

    grid: ClipGrid
    size: ViTSize
    eps: float = 1e-6
    last_eps: float = 1e-6
    layer_scale: bool = False
    final_norm: bool = True
    num_classes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` takes."""
        return asdict(self)

    @staticmethod
    def from_dict(tree: Any) -> Geometry:
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            return Geometry(**{**tree, "grid": ClipGrid(**tree["grid"]), "size": ViTSize(**tree["size"])})
        except (TypeError, KeyError, ConfigError) as error:
            raise CheckpointError(f"the geometry in the file is not understood: {error}") from None


@dataclass(frozen=True)
class Weights:
    """A model's weights in the official names of its kind.

    Args:
        kind: decides the names: "pretrain" has `encoder.`, `decoder.` and the rest; "classifier" and "encoder" have the
            encoder's names without a prefix, then `fc_norm` and `head`, or `norm`.
        state: tensors on the CPU, of the file's dtype.
        geometry: of the model.
        origin: what was recognised, in words.
        notes: what was assumed, changed or dropped on the way, a sentence each.
        labels: names of a classifier's classes, or empty.
        config: settings of the run that made the weights, where known.
        step: its optimiser steps, where known.
        averaged: the run's averaged weights in the same names, where the file has some.
        path: the file, or folder of transformers, that was read.
    """

    kind: Kind
    state: Mapping[str, Tensor]
    geometry: Geometry
    origin: str
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    step: int | None = None
    averaged: Mapping[str, Tensor] | None = None
    path: Path | None = None

    @property
    def title(self) -> str:
        """Which weights are meant, as messages begin."""
        return self.origin if self.path is None else f"{self.path}: {self.origin}"

    def noted(self, *notes: str, **changes: Any) -> Weights:
        """Return the same with changes and more notes."""
        return replace(self, notes=(*self.notes, *notes), **changes)

    def choose(self, name: Literal["auto", "model", "ema"]) -> tuple[Weights, Literal["model", "ema"]]:
        """Return the weights that a name means ("auto": averaged ones where there are some), and which they are.

        Raises:
            CheckpointError: there are no averaged weights.
        """
        if name == "model" or (name == "auto" and self.averaged is None):
            return self, "model"
        if self.averaged is None:
            raise CheckpointError(f"{self.title}: holds no averaged weights; use --weights model")
        return replace(self, state=self.averaged), "ema"

    def describe(self) -> str:
        """Return a line on what the weights are."""
        size, grid = self.geometry.size, self.geometry.grid
        parts = [f"encoder {size.width} x {size.depth} with {size.heads} heads"]
        if self.kind == "pretrain":
            parts.append(f"decoder {size.decoder_width} x {size.decoder_depth} with {size.decoder_heads} heads")
        if self.kind == "classifier":
            parts.append(f"{self.geometry.num_classes} classes")
        parts.append(f"clips {grid.frames} x {grid.height} x {grid.width}")
        parts.append(f"tokens {grid.tubelet} x {grid.patch} x {grid.patch}")
        return f"{self.origin}: {', '.join(parts)}"

    def reading(self) -> dict[str, Any]:
        """Return settings (dotted keys) of the clips that the model was trained on, as far as they are known."""
        grid = self.geometry.grid
        size = grid.height if grid.height == grid.width else [grid.height, grid.width]
        data = (self.config or {}).get("data") or {}
        sampling = {f"data.{key}": data[key] for key in ("stride", "sampling") if key in data}
        return {"data.frames": grid.frames, "data.size": size, **sampling}


def build(geometry: Geometry, kind: Kind, checkpointing: bool = False) -> VideoMAE | VideoClassifier | VideoEncoder:
    """Return a model of this geometry with torch's global generator left as it was; its weights mean nothing."""
    g, size = geometry, geometry.size
    with torch.random.fork_rng(devices=[]):
        if kind == "pretrain":
            return VideoMAE(g.grid, size, g.eps, g.last_eps, g.layer_scale, g.final_norm, checkpointing)
        if kind == "classifier":
            return VideoClassifier(
                g.grid,
                size,
                g.num_classes,
                g.eps,
                g.last_eps,
                layer_scale=g.layer_scale,
                checkpointing=checkpointing,
            )
        return VideoEncoder(
            g.grid,
            size.width,
            size.depth,
            size.heads,
            size.hidden,
            g.eps,
            layer_scale=g.layer_scale,
            final_norm=g.final_norm,
            checkpointing=checkpointing,
        )


def expected_shapes(geometry: Geometry, kind: Kind) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all tensors of a model, without making it."""
    with torch.device("meta"):
        model: nn.Module = build(geometry, kind)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@dataclass(frozen=True)
class Mismatch:
    """Names on which a state and a model differ: missing in the state, extra in it, or of another shape."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.misshapen)

    def describe(self) -> str:
        """Return a line a group of names that differ in numbers only, with the first few."""
        lines = []
        for what in ("missing", "extra", "misshapen"):
            groups: dict[str, list[str]] = {}
            for name in getattr(self, what):
                groups.setdefault(re.sub(r"\b\d+\b", "*", name.partition(" ")[0]), []).append(name)
            for pattern, names in groups.items():
                if len(names) == 1:
                    lines.append(f"{what}: {names[0]}")
                else:
                    more = ", ..." if len(names) > NAMES_SHOWN else ""
                    lines.append(f"{what}: {pattern}: {len(names)} keys ({', '.join(names[:NAMES_SHOWN])}{more})")
        return "\n".join(lines)


def compare(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Mismatch:
    """Compare a state with the names and shapes that a model has."""
    return Mismatch(
        missing=tuple(name for name in shapes if name not in state),
        extra=tuple(name for name in state if name not in shapes),
        misshapen=tuple(
            f"{name} is {_times(state[name].shape)}, not {_times(shape)}"
            for name, shape in shapes.items()
            if name in state and tuple(state[name].shape) != shape
        ),
    )


def checked(weights: Weights, allow_partial: bool = False) -> Weights:
    """Return weights whose names and shapes are those of their model.

    Args:
        allow_partial: drop what is extra or misshapen and note what is missing, instead of refusing.

    Raises:
        CheckpointError: listing missing, extra and misshapen keys.
    """
    mismatch = compare(weights.state, expected_shapes(weights.geometry, weights.kind))
    if not mismatch:
        return weights
    if not allow_partial:
        raise refusal(weights, mismatch)
    bad = {*mismatch.extra, *(line.partition(" ")[0] for line in mismatch.misshapen)}
    kept = {name: tensor for name, tensor in weights.state.items() if name not in bad}
    return weights.noted(*mismatch.describe().splitlines(), state=kept)


def refusal(weights: Weights, mismatch: Mismatch) -> CheckpointError:
    """Return the error that names the keys that don't fit."""
    return CheckpointError(
        f"{weights.title}: keys don't fit the model; pretrain, finetune and convert take those that do with "
        f"--allow-partial\n{mismatch.describe()}"
    )


def _times(shape: torch.Size | tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "a number"
