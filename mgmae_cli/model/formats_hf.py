"""transformers' VideoMAE: its names, its config.json, and what it computes otherwise than the official code.

Differences that matter here: the last norm of its decoder and the pooled norm of its classifier have eps 1e-5 whatever
its config says; encoders of models that pool by the mean end without a norm. Biases on queries and values are called
`q_bias` and `v_bias` in published files, in transformers 4 and 5.0; later releases call them `query.bias` and
`value.bias`, and some of those (5.12) drop the old names and go on with zeros. Files written here hold both names, of
which transformers 4.45, 4.57, 5.0, 5.12 and 5.23 each took the right ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mgmae_cli.errors import CheckpointError, ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.tokens import IMAGENET_MEAN, IMAGENET_STD
from mgmae_cli.model.videomae import ViTSize
from mgmae_cli.model.weights import Geometry, Kind, Weights

FIXED_EPS = 1e-5  # of torch.nn.LayerNorm where transformers passes none
CLASSES: dict[Kind, str] = {
    "pretrain": "VideoMAEForPreTraining",
    "classifier": "VideoMAEForVideoClassification",
    "encoder": "VideoMAEModel",
}
# theirs -> ours; patterns of whole names without the encoder's `videomae.`
ENCODER_NAMES = {
    r"embeddings\.patch_embeddings\.projection\.(weight|bias)": r"patch_embed.proj.\1",
    r"encoder\.layer\.(\d+)\.(.+)": r"blocks.\1.\2",
    r"layernorm\.(weight|bias)": r"norm.\1",
    r"embeddings\.position_embeddings": r"pos_embed",
}
BLOCK_NAMES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
BIASES = {"q_bias": "query.bias", "v_bias": "value.bias"}
ATTENTION = "attention.attention."


def is_hf(state: Mapping[str, Tensor]) -> bool:
    """Say whether a state has transformers' names."""
    return any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in state)


def from_hf(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Kind]:
    """Rename a state of transformers; names that are not theirs stay, to be reported as extra.

    Raises:
        CheckpointError: an old and a new name of the same tensor disagree.
    """
    kind: Kind = "encoder"
    if any(name.startswith("decoder.") for name in state):
        kind = "pretrain"
    elif "classifier.weight" in state:
        kind = "classifier"
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        renamed = _our_name(name, kind)
        if renamed in ours and not torch.equal(ours[renamed], tensor):
            raise CheckpointError(f"holds {renamed} under its old and its new name, and they differ")
        ours[renamed] = tensor
    for name in [name for name in ours if name.endswith(f"{ATTENTION}query.weight")]:
        base = name.removesuffix(f"{ATTENTION}query.weight")
        parts = [ours.get(f"{base}{ATTENTION}{part}.weight") for part in ("query", "key", "value")]
        if all(part is not None for part in parts):
            for part in ("query", "key", "value"):
                del ours[f"{base}{ATTENTION}{part}.weight"]
            ours[f"{base}attn.qkv.weight"] = torch.cat([part for part in parts if part is not None])
    return ours, kind


def to_hf(weights: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """Return a state in transformers' names, and notes on what it can't keep."""
    theirs: dict[str, Tensor] = {}
    notes = []
    state = dict(weights.state)
    if weights.geometry.layer_scale:
        _fold_layer_scale(state)
        notes.append("layer scale was folded into the projections before it: transformers' VideoMAE has none")
    for name, tensor in state.items():
        base, _, leaf = _their_name(name, weights.kind).rpartition("attn.")
        if leaf == "qkv.weight":
            for part, chunk in zip(("query", "key", "value"), tensor.chunk(3)):
                theirs[f"{base}{ATTENTION}{part}.weight"] = chunk.contiguous()
        elif leaf in BIASES:
            theirs[f"{base}{ATTENTION}{leaf}"] = tensor
            theirs[f"{base}{ATTENTION}{BIASES[leaf]}"] = tensor.clone()  # safetensors takes no shared memory
        else:
            theirs[base + leaf] = tensor
    notes.append("keys have no bias: it would not change softmax attention, so nothing is lost")
    last = {"pretrain": "decoder's last", "classifier": "pooled"}.get(weights.kind)
    if last and weights.geometry.last_eps != FIXED_EPS:
        notes.append(
            f"transformers fixes eps of the {last} norm at {FIXED_EPS:g}; this model has "
            f"{weights.geometry.last_eps:g}: outputs differ by about 1e-5 of their size"
        )
    return theirs, notes


def geometry_from_config(config: Mapping[str, Any], state: Mapping[str, Tensor], kind: Kind) -> Geometry:
    """Return the geometry that a config.json states.

    Raises:
        CheckpointError: a model that ours can't be.
    """
    defaults = {
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "num_frames": 16,
        "tubelet_size": 2,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "use_mean_pooling": True,
        "decoder_num_attention_heads": 6,
        "decoder_hidden_size": 384,
        "decoder_num_hidden_layers": 4,
        "decoder_intermediate_size": 1536,
    }
    value = {**defaults, **config}
    height, width = _pair(value["image_size"])
    patch, other = _pair(value["patch_size"])
    if config.get("model_type", "videomae") != "videomae":
        raise CheckpointError(f"config.json: model_type is {config['model_type']!r}, not 'videomae'")
    if value["num_channels"] != 3 or patch != other or value["hidden_act"] != "gelu":
        raise CheckpointError(
            "config.json: needs 3 colour channels, square patches and gelu, not "
            f"{value['num_channels']}, {patch} x {other} and {value['hidden_act']}"
        )
    decoder = kind == "pretrain"
    try:
        return Geometry(
            grid=ClipGrid(value["num_frames"], height, width, value["tubelet_size"], patch),
            size=ViTSize(
                width=value["hidden_size"],
                depth=value["num_hidden_layers"],
                heads=value["num_attention_heads"],
                decoder_width=value["decoder_hidden_size"] if decoder else 0,
                decoder_heads=value["decoder_num_attention_heads"] if decoder else 0,
                decoder_depth=value["decoder_num_hidden_layers"] if decoder else 0,
                hidden=value["intermediate_size"] / value["hidden_size"],
                decoder_hidden=value["decoder_intermediate_size"] / value["decoder_hidden_size"] if decoder else None,
            ),
            eps=value["layer_norm_eps"],
            last_eps=value["layer_norm_eps"] if kind == "encoder" else FIXED_EPS,
            final_norm=not value["use_mean_pooling"],
            num_classes=state["head.weight"].shape[0] if kind == "classifier" and "head.weight" in state else 0,
        )
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"config.json: {error}") from None


def config_json(weights: Weights) -> dict[str, Any]:
    """Return the config.json of an exported folder."""
    geometry, grid, size = weights.geometry, weights.geometry.grid, weights.geometry.size
    square = grid.height == grid.width
    dtype = str(next(iter(weights.state.values())).dtype).removeprefix("torch.")
    config: dict[str, Any] = {
        "architectures": [CLASSES[weights.kind]],
        "model_type": "videomae",
        "image_size": grid.height if square else [grid.height, grid.width],
        "patch_size": grid.patch,
        "num_channels": 3,
        "num_frames": grid.frames,
        "tubelet_size": grid.tubelet,
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": round(size.width * size.hidden),
        "hidden_act": "gelu",
        "layer_norm_eps": geometry.eps,
        "qkv_bias": True,
        "use_mean_pooling": weights.kind == "classifier" or not geometry.final_norm,
        "norm_pix_loss": True,
        "dtype": dtype,
        "torch_dtype": dtype,  # its name in transformers 4
    }
    if weights.kind == "pretrain":
        config |= {
            "decoder_hidden_size": size.decoder_width,
            "decoder_num_hidden_layers": size.decoder_depth,
            "decoder_num_attention_heads": size.decoder_heads,
            "decoder_intermediate_size": round(size.decoder_width * (size.decoder_hidden or size.hidden)),
        }
    if weights.kind == "classifier":
        labels = weights.labels or tuple(f"class {number}" for number in range(geometry.num_classes))
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
    return config


def preprocessor_json(grid: ClipGrid) -> dict[str, Any]:
    """Return the preprocessor_config.json of an exported folder: shorter side, centre crop, ImageNet's statistics."""
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": max(grid.height, grid.width)},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": grid.height, "width": grid.width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }


def labels_from_config(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """Return the classes' names, or nothing where config.json has none of its own."""
    table = {str(number): str(label) for number, label in dict(config.get("id2label") or {}).items()}
    labels = tuple(table.get(str(number), "") for number in range(num_classes))
    generic = all(re.fullmatch(rf"LABEL_{number}|class {number}", label) for number, label in enumerate(labels))
    return () if generic or not all(labels) else labels


def _our_name(name: str, kind: Kind) -> str:
    """Rename one key; query, key and value weights keep their last part, to be joined later."""
    if name.startswith("classifier."):
        return name.replace("classifier.", "head.")
    if name == "position_embeddings":
        return "decoder.pos_embed"
    if block := re.fullmatch(r"decoder\.decoder_layers\.(\d+)\.(.+)", name):
        return f"decoder.blocks.{block[1]}.{_block_name(block[2])}"
    bare = name.removeprefix("videomae.")
    for theirs, ours in ENCODER_NAMES.items():
        if re.fullmatch(theirs, bare):
            renamed = re.sub(theirs, ours, bare)
            if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", renamed):
                renamed = f"blocks.{block[1]}.{_block_name(block[2])}"
            return f"encoder.{renamed}" if kind == "pretrain" else renamed
    return name


def _block_name(name: str) -> str:
    for old, new in BIASES.items():
        if name in (ATTENTION + old, ATTENTION + new):
            return f"attn.{old}"
    if name == f"{ATTENTION}key.bias":  # of some releases of 5
        return "attn.k_bias"
    for theirs, ours in BLOCK_NAMES.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return name


def _their_name(name: str, kind: Kind) -> str:
    """Rename one key of ours, but for `attn.qkv.weight`, `attn.q_bias` and `attn.v_bias`."""
    if kind == "classifier" and name.startswith("head."):
        return name.replace("head.", "classifier.")
    if kind == "pretrain" and not name.startswith("encoder."):
        inside = re.fullmatch(r"decoder\.blocks\.(\d+)\.(.+)", name)
        return f"decoder.decoder_layers.{inside[1]}.{_their_block_name(inside[2])}" if inside else name
    if name.startswith("fc_norm."):
        return name
    bare = name.removeprefix("encoder.") if kind == "pretrain" else name
    bare = bare.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.", 1)
    bare = re.sub(r"^norm\.", "layernorm.", bare)
    if inside := re.fullmatch(r"blocks\.(\d+)\.(.+)", bare):
        bare = f"encoder.layer.{inside[1]}.{_their_block_name(inside[2])}"
    return bare if kind == "encoder" else f"videomae.{bare}"


def _their_block_name(name: str) -> str:
    for theirs, ours in BLOCK_NAMES.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name


def _fold_layer_scale(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if name.endswith(("gamma_1", "gamma_2"))]:
        gamma = state.pop(name)
        layer = name.replace("gamma_1", "attn.proj").replace("gamma_2", "mlp.fc2")
        for leaf, factor in (("weight", gamma[:, None]), ("bias", gamma)):
            if f"{layer}.{leaf}" in state:
                state[f"{layer}.{leaf}"] = state[f"{layer}.{leaf}"] * factor


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, list | tuple) and len(value) == 2:
        return int(value[0]), int(value[1])
    return int(value), int(value)
