"""Convert weights from one format to another: read, check, fit, write, and say what was done."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.export import export_encoder
from mgmae_cli.model.formats_read import Heads, read_weights
from mgmae_cli.model.formats_write import Format, write_weights
from mgmae_cli.model.loading import as_encoder, build_encoder
from mgmae_cli.model.resize import resize_weights
from mgmae_cli.model.weights import Weights, checked


def convert_weights(
    source: Path,
    out: Path,
    to: Format | Literal["export"],
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    tubelet: int | None = None,
    patch: int | None = None,
    encoder: bool = False,
    heads: Heads = (None, None),
    allow_partial: bool = False,
    averaged: Literal["auto", "model", "ema"] = "auto",
    figures: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Convert weights; yield what was recognised, what was changed or assumed, and what was written.

    Args:
        source, out: see `formats_read.read_weights`, `formats_write.write_weights`; "export": a .pt2 program.
        frames, size, tubelet, patch: of the model that is written, where they change; size is (height, width).
        encoder: take the encoder alone; "timm" and "export" always do.
        heads: of encoder and decoder, for files that don't say.
        allow_partial: go on where keys are missing, extra or misshapen.
        averaged: "ema" takes the run's averaged weights, "model" the others, "auto" averaged ones where there are some.
        figures: measured numbers for a model card.

    Raises:
        MgmaeError: what can't be read, fitted or written.
    """
    weights = read_weights(source, heads)
    yield f"read {weights.path}: {weights.describe()}"
    weights, taken = weights.choose(averaged)
    if taken == "ema":
        weights = weights.noted("the averaged weights are taken, as in `mgmae evaluate`")
    weights = checked(weights, allow_partial)
    if encoder or to in ("timm", "export"):
        weights = as_encoder(weights)
    weights = resize_weights(weights, _changed_grid(weights, frames, size, tubelet, patch))
    yield from (f"note: {note}" for note in weights.notes)
    if to == "export":
        if out.suffix != ".pt2":
            raise ConfigError(f"{out}: a torch.export program is named *.pt2")
        model, _ = build_encoder(weights)
        difference = export_encoder(model.float(), out)
        yield f"wrote {out}: features of (B, 3, T, H, W) uint8 clips; largest difference {difference:.1e}"
        return
    yield from (f"note: {note}" for note in write_weights(weights, out, to, figures))
    yield f"wrote {out}: {to}, {len(weights.state)} tensors"


def _changed_grid(
    weights: Weights, frames: int | None, size: tuple[int, int] | None, tubelet: int | None, patch: int | None
) -> ClipGrid:
    """Return the grid of the model that is written.

    Raises:
        ConfigError: sizes that do not divide.
    """
    old = weights.geometry.grid
    height, width = (old.height, old.width) if size is None else size
    try:
        return ClipGrid(
            frames=old.frames if frames is None else frames,
            height=height,
            width=width,
            tubelet=old.tubelet if tubelet is None else tubelet,
            patch=old.patch if patch is None else patch,
        )
    except ConfigError as error:  # in the words of a run's settings
        raise ConfigError(re.sub(r"(?:data|model)\.(\w+)", r"--\1", str(error))) from None
