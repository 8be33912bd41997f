"""Read anyone's VideoMAE-family weights: official, transformers', timm's, ours. Keys decide what a file is.

Files are never unpickled beyond tensors and plain data, but for argparse's Namespace, a bag of values that official
checkpoints carry.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgmae_cli.errors import CheckpointError, MgmaeError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.formats_hf import FIXED_EPS, from_hf, geometry_from_config, is_hf, labels_from_config
from mgmae_cli.model.formats_official import find_state, infer_geometry, recognise, stated_clip, tidy
from mgmae_cli.model.videomae import SIZES, preset
from mgmae_cli.model.weights import KIND_WORDS, Geometry, Kind, Weights

GEOMETRY = "mgmae_geometry"  # the entry that files written by us carry beside the weights
Heads = tuple[int | None, int | None]


def read_weights(path: Path, heads: Heads = (None, None)) -> Weights:
    """Read weights in any known format.

    Args:
        path: a file, a folder of transformers, or a run folder: its `best.pt`, or else its newest checkpoint; damaged
            ones are passed over, with a note.
        heads: of encoder and decoder, for files that don't say and widths that are not in the papers.

    Raises:
        CheckpointError: missing, damaged, unsafe, or not of the VideoMAE family; the message says which.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint or run folder")
    damaged: list[str] = []
    for candidate in _candidates(path):
        try:
            payload, hf_config = _load(candidate)
        except CheckpointError as error:
            damaged.append(_naming(candidate, error))
            continue
        try:
            weights = weights_from(payload, heads, hf_config)
        except CheckpointError as error:
            raise CheckpointError(_naming(candidate, error)) from None
        notes = [f"passed over {complaint}" for complaint in damaged]
        return replace(weights, path=candidate, notes=(*notes, *weights.notes))
    raise CheckpointError("; ".join(damaged))


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
    in_timms_names = "blocks.0.attn.qkv.bias" in state
    state, tokens, notes = tidy(state, kind)
    if GEOMETRY in payload or str(payload.get("format", "")).startswith("mgmae"):
        return _from_mgmae(payload, state, kind, notes)
    geometry, assumed = infer_geometry(state, kind, tokens, heads, stated_clip(payload))
    origin = "encoder in timm's names" if kind == "encoder" and in_timms_names else f"official {KIND_WORDS[kind]}"
    return Weights(kind, state, geometry, origin, (*notes, *assumed))


def _from_mgmae(payload: Mapping[str, Any], state: Mapping[str, Tensor], kind: Kind, notes: Sequence[str]) -> Weights:
    """Return the weights of a file of ours, with all that it says besides."""
    geometry = Geometry.from_dict(payload[GEOMETRY]) if GEOMETRY in payload else None
    step = payload.get("step")
    return Weights(
        kind=kind,
        state=state,
        geometry=geometry or _geometry_from_run(payload, state, kind),
        origin=f"mgmae {KIND_WORDS[kind]}" + (f" after {step} steps" if step is not None else ""),
        notes=tuple(notes),
        labels=tuple(payload.get("labels") or ()),
        config=payload.get("config"),
        step=step,
        averaged=tidy(find_state(payload["ema"]), kind)[0] if payload.get("ema") is not None else None,
    )


def load_payload(path: Path) -> Any:
    """Load a safetensors or torch file, told apart by its first bytes, without running code in it.

    Raises:
        CheckpointError: not readable, damaged, or it needs code to be run.
    """
    try:
        with path.open("rb") as file:
            start, size = file.read(9), path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"can't be read: {error.strerror or error}") from None
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
        reason = str(error).partition("\n")[0].partition(". ")[0]  # torch's advice after it is for its developers
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


def _load(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """Return what a file or a folder of transformers holds, and the config.json beside it."""
    if path.is_dir():
        return _load_folder(path)
    config = path.parent / "config.json"
    return load_payload(path), _json(config) if config.is_file() else None


def _load_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a folder of transformers, in one or several files, and its config.json."""
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
            return state, _json(config_file)
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


def _candidates(path: Path) -> list[Path]:
    """Return the path itself, or a run folder's checkpoints: `best.pt`, then those with most steps.

    Raises:
        CheckpointError: a run folder without any.
    """
    folder = path / "checkpoints"
    if not folder.is_dir():
        return [path]
    steps = sorted(folder.glob("step-*.pt"), key=lambda file: (len(file.name), file.name), reverse=True)
    found = [file for file in (folder / "best.pt", *steps) if file.is_file()]
    if not found:
        raise CheckpointError(f"{path}: a run folder without a checkpoint; the run has not saved one yet")
    return found


def _naming(path: Path, error: CheckpointError) -> str:
    message = str(error)
    return message if message.startswith(str(path)) else f"{path}: {message}"


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
