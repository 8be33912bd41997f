"""Layer-wise learning rate decay: the nearer a layer is to the pixels, the less fine-tuning changes it.

Rule as in BEiT (arXiv 2106.08254) and VideoMAE (arXiv 2203.12602): with D blocks the head has the full rate, block i
(counted from 0) decay^(D - i), and the tubelet embedding decay^(D + 1).
"""

from __future__ import annotations

from typing import Any

from torch import nn


def layer_number(name: str, depth: int) -> int:
    """Return the layer of a classifier's parameter: 0 the embedding, 1 to `depth` the blocks, `depth` + 1 the rest."""
    if name.startswith("patch_embed."):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def layer_decay_groups(model: nn.Module, depth: int, weight_decay: float, decay: float) -> list[dict[str, Any]]:
    """Return AdamW groups, each with its `lr_scale`; biases, norms and layer scales have no weight decay.

    Args:
        model: a VideoClassifier.
        depth: its blocks.
        decay: factor from one layer to the one before it; 1 trains all alike.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, decays = layer_number(name, depth), parameter.ndim > 1
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": decay ** (depth + 1 - layer),
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
