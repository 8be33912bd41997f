"""Layer-wise learning rates: the published rule, and that every parameter has one."""

from __future__ import annotations

import pytest
import torch

from mgmae_cli.downstream.layer_decay import layer_decay_groups
from mgmae_cli.engine.optim import set_lr
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.classifier import VideoClassifier
from mgmae_cli.model.videomae import SIZES

GRID = ClipGrid(4, 16, 16, 2, 8)
DEPTH = SIZES["tiny"].depth


def published_scale(name: str, depth: int, decay: float) -> float:
    """Return the factor of BEiT's fine-tuning code: a table of depth + 2 values, looked up by the name."""
    values = [decay ** (depth + 1 - number) for number in range(depth + 2)]
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        return values[0]
    if name.startswith("blocks"):
        return values[int(name.split(".")[1]) + 1]
    return values[-1]


@pytest.fixture(scope="module")
def model() -> VideoClassifier:
    return VideoClassifier(GRID, SIZES["tiny"], 3)


@pytest.mark.parametrize("decay", [0.65, 0.75, 1.0])
def test_rates_are_those_of_the_published_rule(model: VideoClassifier, decay: float) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = []
    for group in layer_decay_groups(model, DEPTH, 0.05, decay):
        for parameter in group["params"]:
            seen.append(names[parameter])
            assert group["lr_scale"] == pytest.approx(published_scale(names[parameter], DEPTH, decay))
    assert sorted(seen) == sorted(names.values())


def test_the_head_has_the_full_rate_and_the_embedding_the_smallest(model: VideoClassifier) -> None:
    groups = layer_decay_groups(model, DEPTH, 0.05, 0.5)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scale[id(model.head.weight)] == scale[id(model.fc_norm.weight)] == 1
    assert scale[id(model.blocks[-1].attn.qkv.weight)] == 0.5
    assert scale[id(model.blocks[0].mlp.fc1.weight)] == 0.5**DEPTH
    assert scale[id(model.patch_embed.proj.weight)] == 0.5 ** (DEPTH + 1)


def test_biases_and_norms_have_no_weight_decay(model: VideoClassifier) -> None:
    for group in layer_decay_groups(model, DEPTH, 0.05, 0.75):
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0)


def test_frozen_parameters_are_left_out() -> None:
    model = VideoClassifier(GRID, SIZES["tiny"], 3)
    model.patch_embed.requires_grad_(False)
    groups = layer_decay_groups(model, DEPTH, 0.05, 0.75)
    assert min(group["lr_scale"] for group in groups) == pytest.approx(0.75**DEPTH)


def test_the_engine_multiplies_its_rate_by_the_layers(model: VideoClassifier) -> None:
    optimizer = torch.optim.AdamW(layer_decay_groups(model, DEPTH, 0.05, 0.5), lr=1.0)
    set_lr(optimizer, 0.1)
    assert {round(group["lr"], 9) for group in optimizer.param_groups} == {
        round(0.1 * 0.5**k, 9) for k in range(DEPTH + 2)
    }
