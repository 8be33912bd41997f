"""Read anyone's VideoMAE-family weights: official, transformers', timm's, ours. Keys decide what a file is.

Files are never unpickled beyond tensors and plain data, but for argparse's Namespace, a bag of values that official
checkpoints carry.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgmae_cli.errors import CheckpointError, MgmaeError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.formats_hf import FIXED_EPS, from_hf, geometry_from_config, is_hf, labels_from_config
from mgmae_cli.model.formats_official import find_state, infer_geometry, recognise, tidy
from mgmae_cli.model.videomae import SIZES, preset
from mgmae_cli.model.weights import KIND_WORDS, Geometry, Kind, Weights

GEOMETRY = "mgmae_geometry"  # the entry that files written by us carry beside the weights
Heads = tuple[int | None, int | None]


def read_weights(path: Path, heads: Heads = (None, None)) -> Weights:
    """Read weights in any known format.

    Args:
        path: a file, a folder of transformers, or a run folder (its best or newest checkpoint).
        heads: of encoder and decoder, for files that don't say and widths that are not in the papers.

    Raises:
        CheckpointError: missing, damaged, unsafe, or not of the VideoMAE family; the message says which.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        if path.is_dir() and (path / "checkpoints").is_dir():
            return read_weights(chosen_checkpoint(path), heads)
        if path.is_dir():
            return _read_folder(path, heads)
        config = path.parent / "config.json"
        return weights_from(load_payload(path), heads, _json(config) if config.is_file() else None)
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(str(path)) else f"{path}: {message}") from None


def weights_from(payload: Any, heads: Heads = (None, None), hf_config: Mapping[str, Any] | None = None) -> Weights:
    """Recognise a loaded file; see `read_weights`.

    Args:
        payload: a state dict, perhaps nested in others.
        hf_config: the config.json beside it, used where the names are transformers'.
    """
    state = find_state(payload)
    if is_hf(state):
        return _from_hf(state, hf_config, heads)
    kind = recognise(state)
    state, tokens, notes = tidy(state, kind)
    known = payload if isinstance(payload, Mapping) else {}
    origin = f"official {KIND_WORDS[kind]}"
    step = known["step"] if isinstance(known.get("step"), int) else None
    if isinstance(known.get(GEOMETRY), Mapping) or str(known.get("format", "")).startswith("mgmae"):
        geometry = Geometry.from_dict(known[GEOMETRY]) if GEOMETRY in known else _geometry_from_run(known, state, kind)
        origin = f"mgmae {KIND_WORDS[kind]}" + (f" after {step} steps" if step is not None else "")
    else:
        geometry, assumed = infer_geometry(state, kind, tokens, heads)
        notes += assumed
        if kind == "encoder":
            origin = (
                "encoder in timm's names" if "blocks.0.attn.qkv.bias" in find_state(payload) else "official encoder"
            )
    return Weights(
        kind=kind,
        state=state,
        geometry=geometry,
        origin=origin,
        notes=tuple(notes),
        labels=tuple(str(label) for label in known.get("labels") or ()),
        config=known["config"] if isinstance(known.get("config"), Mapping) else None,
        step=step,
        averaged=tidy(find_state(known["ema"]), kind)[0] if isinstance(known.get("ema"), Mapping) else None,
    )


def load_payload(path: Path) -> Any:
    """Load a safetensors or torch file, told apart by its first bytes, without running code in it.

    Raises:
        CheckpointError: damaged, or it needs code to be run.
    """
    with path.open("rb") as file:
        start = file.read(9)
        size = path.stat().st_size
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= size:
        return _load_safetensors(path)
    try:
        with _namespace_allowed():
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        if unsafe := re.search(r"(?i:unsupported global:?)(?: GLOBAL)? ([\w.]+)|Can only", str(error)):
            raise CheckpointError(
                f"loading it would run code ({unsafe[1] or 'objects of other classes'}), which is refused; save its "
                "tensors alone, as in torch.save({'model': model.state_dict()}, PATH), where you trust the file"
            ) from None
        reason = str(error).partition("\n")[0]
        known = reason and not reason.startswith("Weights only load failed")
        raise CheckpointError(f"damaged, or not a checkpoint{f': {reason}' if known else ''}") from None


def _load_safetensors(path: Path) -> dict[str, Any]:
    """Return tensors, or {"model": tensors, ...} with what we wrote into the metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"damaged, or not a checkpoint: {error}") from None
    if GEOMETRY not in metadata:
        return state
    return {"model": state, **{key: json.loads(text) for key, text in metadata.items() if key != "format"}}


def _read_folder(path: Path, heads: Heads) -> Weights:
    """Read a folder of transformers: config.json, and one or several files of weights."""
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError("neither a run folder (it has no checkpoints/) nor one of transformers (no config.json)")
    state: dict[str, Tensor] = {}
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{name}.index.json"
        files = [path / name] if (path / name).is_file() else []
        if not files and index.is_file():
            files = sorted({path / part for part in _json(index).get("weight_map", {}).values()})
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{file.name} is named by {index.name} but missing")
            state |= find_state(load_payload(file))
        if files:
            return weights_from(state, heads, _json(config_file))
    raise CheckpointError("has a config.json but neither model.safetensors nor pytorch_model.bin")


def _from_hf(state: Mapping[str, Tensor], config: Mapping[str, Any] | None, heads: Heads) -> Weights:
    renamed, kind = from_hf(state)
    renamed, tokens, notes = tidy(renamed, kind)
    labels: tuple[str, ...] = ()
    if config is not None:
        geometry = geometry_from_config(config, renamed, kind)
        labels = labels_from_config(config, geometry.num_classes)
    else:
        inferred, assumed = infer_geometry(renamed, kind, tokens, heads)
        last_eps = inferred.last_eps if kind == "encoder" else FIXED_EPS
        prefix = "encoder." if kind == "pretrain" else ""
        final_norm = f"{prefix}norm.weight" in renamed
        geometry = Geometry(
            inferred.grid, inferred.size, last_eps=last_eps, final_norm=final_norm, num_classes=inferred.num_classes
        )
        notes += ["no config.json beside it: heads are the papers', eps of the norms 1e-6", *assumed]
    return Weights(kind, renamed, geometry, f"transformers {KIND_WORDS[kind]}", tuple(notes), labels)


def _geometry_from_run(payload: Mapping[str, Any], state: Mapping[str, Tensor], kind: Kind) -> Geometry:
    """Return the geometry of a checkpoint of ours, from the settings in it."""
    try:
        data, model = payload["config"]["data"], payload["config"]["model"]
        size = data["size"]
        height, width = (size, size) if isinstance(size, int) else size
        grid = ClipGrid(data["frames"], height, width, model["tubelet"], model["patch"])
        chosen = preset(model["name"])
    except (KeyError, TypeError, ValueError, MgmaeError) as error:
        raise CheckpointError(f"the settings in the file are not understood: {error!r}") from None
    geometry, _ = infer_geometry(state, kind, None, (chosen.heads, chosen.decoder_heads))
    if (geometry.size.width, geometry.size.depth) != (chosen.width, chosen.depth):
        raise CheckpointError(
            f"its settings say model {model['name']} ({chosen.width} x {chosen.depth}), its tensors "
            f"{geometry.size.width} x {geometry.size.depth}; known models: {', '.join(SIZES)}"
        )
    return Geometry(grid, geometry.size, final_norm=geometry.final_norm, num_classes=geometry.num_classes)


def chosen_checkpoint(run: Path) -> Path:
    """Return a run folder's `best.pt`, or its checkpoint with most steps.

    Raises:
        CheckpointError: it has none.
    """
    best = run / "checkpoints" / "best.pt"
    if best.is_file():
        return best
    found = sorted((run / "checkpoints").glob("step-*.pt"), key=lambda path: (len(path.name), path.name))
    if not found:
        raise CheckpointError(f"{run}: a run folder without a checkpoint; the run has not saved one yet")
    return found[-1]


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found a {type(tree).__name__}")
    return tree


@contextmanager
def _namespace_allowed() -> Iterator[None]:
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
