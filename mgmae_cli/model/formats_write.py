"""Write weights for others: the official layout, a folder for transformers, timm's names, or ours.

Files and folders are written whole or not at all, and never over something that is there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mgmae_cli.errors import CheckpointError
from mgmae_cli.model.card import model_card
from mgmae_cli.model.formats_hf import config_json, preprocessor_json, to_hf
from mgmae_cli.model.formats_official import timm_state
from mgmae_cli.model.formats_read import GEOMETRY
from mgmae_cli.model.loading import as_encoder
from mgmae_cli.model.weights import Weights

Format = Literal["mgmae", "official", "hf", "timm"]
FORMATS: tuple[Format, ...] = get_args(Format)
FORMAT_NAME = "mgmae-weights-1"
OFFICIAL_EPS = 1e-6


def write_weights(weights: Weights, out: Path, to: Format, figures: Mapping[str, Any] | None = None) -> list[str]:
    """Write weights and return notes on what the format can't keep.

    Args:
        weights: names and shapes as `weights.checked` has them.
        out: a new folder for "hf"; else a new file, safetensors where it ends so and torch's format otherwise.
        to: "mgmae" keeps all; "official" is read by the official code, and by us without loss; "timm" is the encoder
            alone as a plain state dict.
        figures: measured numbers for the model card of a folder.

    Raises:
        CheckpointError: `out` is taken, or can't be written.
    """
    if out.exists():
        raise CheckpointError(f"{out}: is there already; nothing is overwritten: choose another name")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if to == "hf":
            notes = _write_folder(weights, partial, figures or {})
        else:
            notes = _write_file(weights, partial, to, out.suffix == ".safetensors")
        partial.rename(out)
    except (OSError, RuntimeError) as error:  # torch wraps some of the disk's errors in RuntimeError
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0]
        raise CheckpointError(f"{out}: not written: {reason}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            partial.unlink()
    return notes


def _write_file(weights: Weights, path: Path, to: Format, safetensors: bool) -> list[str]:
    notes = []
    if to == "timm":
        weights = as_encoder(weights)
    extra: dict[str, Any] = {GEOMETRY: weights.geometry.to_dict()}
    if to == "timm":
        state = timm_state(weights.state, weights.geometry)
        notes.append("the encoder alone; biases on keys are zeros, which changes nothing")
        if not weights.geometry.final_norm:
            notes.append("a classifier's encoder ends without a norm")
    else:
        state = dict(weights.state)
        if weights.labels:
            extra["labels"] = list(weights.labels)
        if to == "mgmae":
            extra |= {"config": weights.config, "step": weights.step}
        elif other := {weights.geometry.eps, weights.geometry.last_eps} - {OFFICIAL_EPS}:
            notes.append(
                f"the official code fixes eps of norms at {OFFICIAL_EPS:g}; this model has "
                f"{' and '.join(f'{eps:g}' for eps in sorted(other))}: outputs there differ by up to 1e-5 of their size"
            )
    if safetensors:
        _save_safetensors(state, path, {key: json.dumps(value) for key, value in extra.items()})
    elif to == "timm":
        torch.save(_separate(state), path)
    else:
        version = {"format": FORMAT_NAME} if to == "mgmae" else {}
        torch.save({"model": _separate(state), **version, **extra}, path)
    return notes


def _write_folder(weights: Weights, folder: Path, figures: Mapping[str, Any]) -> list[str]:
    state, notes = to_hf(weights)
    folder.mkdir()
    _save_safetensors(state, folder / "model.safetensors", {})
    for name, tree in (
        ("config.json", config_json(weights)),
        ("preprocessor_config.json", preprocessor_json(weights.geometry.grid)),
    ):
        (folder / name).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(weights, notes, figures), encoding="utf-8")
    return notes


def _save_safetensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    from safetensors.torch import save_file

    save_file(_separate(state), path, metadata={"format": "pt", **metadata})
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # safetensors leaves files that nobody else can read


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory: safetensors refuses those, torch would save the whole they are cut from."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
