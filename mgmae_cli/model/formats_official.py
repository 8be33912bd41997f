"""The official layout of VideoMAE, VideoMAE V2 and MGMAE, and timm's names for the encoder.

Pre-training files hold `encoder.*`, `encoder_to_decoder`, `mask_token` and `decoder.*`; fine-tuning files hold the
encoder's names without a prefix, `fc_norm` and `head`. Around them there may be `{"model": ...}` or `{"module": ...}`
and prefixes of wrappers. The files say neither heads nor clip size: heads follow from widths as in the papers.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mgmae_cli.errors import CheckpointError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.tokens import position_table
from mgmae_cli.model.videomae import SIZES, ViTSize
from mgmae_cli.model.weights import Geometry, Kind

NESTS = ("model", "module", "state_dict", "model_state_dict")
WRAPPERS = ("module.", "_orig_mod.", "backbone.")
# by width: ViT-Ti, V2's giant, and our presets
ENCODER_HEADS = {192: 3, 1408: 16} | {size.width: size.heads for size in SIZES.values()}
DECODER_HEADS = {640: 8} | {size.decoder_width: size.decoder_heads for size in SIZES.values()}
TIMM_NAMES = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}


def find_state(payload: Any) -> dict[str, Tensor]:
    """Return the tensors of a loaded file, out of nests and without wrappers' prefixes.

    Raises:
        CheckpointError: there are none.
    """
    while isinstance(payload, Mapping):
        nest = next((name for name in NESTS if isinstance(payload.get(name), Mapping)), None)
        if nest is None:
            break
        payload = payload[nest]
    if not isinstance(payload, Mapping):
        raise CheckpointError(f"holds a {type(payload).__name__}, not a state dict")
    if not any(isinstance(value, Tensor) for value in payload.values()):
        raise CheckpointError(f"holds no tensors; its keys are {_few(payload)}")
    state = {}
    for name, tensor in payload.items():
        if isinstance(name, str) and isinstance(tensor, Tensor):
            while wrapper := next((prefix for prefix in WRAPPERS if name.startswith(prefix)), None):
                name = name.removeprefix(wrapper)
            state[name] = tensor
    return state


def stated_clip(payload: Any) -> tuple[int, int] | None:
    """Return frames and pixels a side of a clip, where official files say so by the arguments of their training."""
    args = payload.get("args") if isinstance(payload, Mapping) else None
    told = vars(args) if isinstance(args, argparse.Namespace) else {}
    frames, side = told.get("num_frames"), told.get("input_size")
    return (frames, side) if isinstance(frames, int) and isinstance(side, int) else None


def recognise(state: Mapping[str, Tensor]) -> Kind:
    """Return what kind of model has these names.

    Raises:
        CheckpointError: none that is known.
    """
    if "encoder.patch_embed.proj.weight" in state:
        return "pretrain" if any(name.startswith("decoder.") for name in state) else "encoder"
    if "patch_embed.proj.weight" in state:
        return "classifier" if "head.weight" in state else "encoder"
    raise CheckpointError(
        "not a VideoMAE-family checkpoint: expected official, Hugging Face, timm or mgmae names; "
        f"its keys are {_few(state)}"
    )


def tidy(state: Mapping[str, Tensor], kind: Kind) -> tuple[dict[str, Tensor], int | None, list[str]]:
    """Bring variants of the official names to one form.

    Returns:
        The state; the number of tokens, where a position table told it; notes.

    Raises:
        CheckpointError: a model that is none of ours, for example with learned positions.
    """
    tidied: dict[str, Tensor] = {}
    notes: list[str] = []
    tokens = None
    for name, tensor in state.items():
        if kind == "encoder":
            name = name.removeprefix("encoder.")
        if name.rpartition(".")[2] == "pos_embed":
            tokens = _checked_positions(name, tensor)
            continue
        for ours, theirs in TIMM_NAMES.items():
            name = name.replace(theirs, ours)
        if name.endswith("attn.qkv.bias"):
            base = name.removesuffix("qkv.bias")
            tidied[f"{base}q_bias"], k_bias, tidied[f"{base}v_bias"] = tensor.chunk(3)
        elif name.endswith("attn.k_bias"):
            k_bias = tensor
        else:
            tidied[name] = tensor
            continue
        if k_bias.any() and not notes:
            notes.append("biases on keys were dropped: they don't change softmax attention")
    if kind == "classifier" and "norm.weight" in tidied:
        raise CheckpointError(
            "a classifier that doesn't pool by the mean (it has `norm`, not `fc_norm`): not supported"
        )
    if "cls_token" in tidied or "encoder.cls_token" in tidied:
        raise CheckpointError("a model with a class token: not of the VideoMAE family")
    qkv = [name for name in tidied if name.endswith("attn.qkv.weight")]
    if not any(name.endswith("attn.q_bias") for name in tidied):
        for name in qkv:
            for bias in ("q_bias", "v_bias"):
                tidied[name.replace("qkv.weight", bias)] = tidied[name].new_zeros(tidied[name].shape[1])
        notes.append("no biases on queries and values: zeros stand in for them")
    return tidied, tokens, notes


def infer_geometry(
    state: Mapping[str, Tensor],
    kind: Kind,
    tokens: int | None,
    heads: tuple[int | None, int | None],
    clip: tuple[int, int] | None = None,
) -> tuple[Geometry, list[str]]:
    """Return the geometry that tensors' shapes tell, and notes on what had to be assumed.

    Args:
        tokens: N, where a position table told it.
        heads: of encoder and decoder, where the user gave them.
        clip: frames and pixels a side, where the file states them.

    Raises:
        CheckpointError: heads can't be known; the shapes are none of a VideoMAE.
    """
    prefix = "encoder." if kind == "pretrain" else ""
    embed = state[f"{prefix}patch_embed.proj.weight"]
    if embed.ndim != 5 or embed.shape[1] != 3 or embed.shape[3] != embed.shape[4]:
        raise CheckpointError(f"patch_embed.proj.weight is {tuple(embed.shape)}; expected (D, 3, t, p, p)")
    width, _, tubelet, patch, _ = embed.shape
    grid, notes = _likely_grid(tubelet, patch, tokens, clip)
    hidden = _hidden(state, f"{prefix}blocks.0.", width)
    size = ViTSize(width, _depth(state, prefix), heads[0] or _heads(width, ENCODER_HEADS, "--heads"), 0, 0, 0, hidden)
    if kind == "pretrain":
        token = state.get("mask_token")
        if token is None:
            raise CheckpointError("mask_token is missing: not a whole pre-training model")
        decoder_width = token.shape[-1]
        size = replace(
            size,
            decoder_width=decoder_width,
            decoder_depth=_depth(state, "decoder."),
            decoder_heads=heads[1] or _heads(decoder_width, DECODER_HEADS, "--decoder-heads"),
            decoder_hidden=_hidden(state, "decoder.blocks.0.", decoder_width),
        )
    head = state.get("head.weight")
    num_classes = head.shape[0] if kind == "classifier" and head is not None else 0
    layer_scale = f"{prefix}blocks.0.gamma_1" in state
    final_norm = kind == "pretrain" or "norm.weight" in state
    return Geometry(grid, size, layer_scale=layer_scale, final_norm=final_norm, num_classes=num_classes), notes


def timm_state(state: Mapping[str, Tensor], geometry: Geometry) -> dict[str, Tensor]:
    """Return an encoder's state in timm's names: joined `qkv.bias`, `ls1.gamma`, and the position table."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(("attn.q_bias", "attn.v_bias")):
            continue
        for ours, theirs in TIMM_NAMES.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
        if name.endswith("attn.qkv.weight"):
            base = name.removesuffix("qkv.weight")
            zeros = tensor.new_zeros(tensor.shape[1])
            parts = [state.get(f"{base}q_bias", zeros), zeros, state.get(f"{base}v_bias", zeros)]
            renamed[f"{base}qkv.bias"] = torch.cat(parts)
    renamed["pos_embed"] = position_table(geometry.grid.tokens, geometry.size.width)[None]
    return renamed


def _checked_positions(name: str, table: Tensor) -> int:
    tokens, width = table.shape[-2:]
    if not torch.allclose(table.reshape(tokens, width).float(), position_table(tokens, width), atol=5e-3):
        raise CheckpointError(f"{name} is not the fixed sinusoidal table: learned positions are not supported")
    return tokens


def _likely_grid(
    tubelet: int, patch: int, tokens: int | None, clip: tuple[int, int] | None
) -> tuple[ClipGrid, list[str]]:
    """Return the clip that is stated, or 16 frames of 224 x 224, with the side that a position table tells."""
    frames, side = clip or (16, 224)
    frames, side = max(frames // tubelet, 1) * tubelet, max(side // patch, 1) * patch
    grid = ClipGrid(frames, side, side, tubelet, patch)
    assumed = f"{frames} x {side} x {side} assumed"
    if tokens is None:
        return grid, [] if clip else [f"the file doesn't say its clip size: {assumed}"]
    rows = math.isqrt(tokens // grid.slots)
    if grid.slots * rows * rows == tokens:
        return ClipGrid(frames, rows * patch, rows * patch, tubelet, patch), []
    return grid, [f"a position table of {tokens} tokens doesn't tell the clip size: {assumed}; state frames and size"]


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    start = f"{prefix}blocks."
    numbers = [name.removeprefix(start).partition(".")[0] for name in state if name.startswith(start)]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def _hidden(state: Mapping[str, Tensor], block: str, width: int) -> float:
    weight = state.get(f"{block}mlp.fc1.weight")
    return weight.shape[0] / width if weight is not None else 4.0


def _heads(width: int, known: Mapping[int, int], flag: str) -> int:
    if width in known:
        return known[width]
    raise CheckpointError(f"the file doesn't say how many heads a width of {width} has; state it by {flag}")


def _few(names: Mapping[Any, Any]) -> str:
    first = [str(name) for name in list(names)[:5]]
    return ", ".join(first) + (", ..." if len(names) > 5 else "") if first else "none"
