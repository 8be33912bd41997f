"""The classifier: pooling, names of parameters, initialisation."""

from __future__ import annotations

from typing import Any

import torch

from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.classifier import VideoClassifier
from mgmae_cli.model.videomae import SIZES

GRID = ClipGrid(frames=4, height=16, width=24, tubelet=2, patch=8)


def tiny(**options: Any) -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier(GRID, SIZES["tiny"], num_classes=5, **options)


def test_scores_are_the_head_on_the_normed_mean_of_all_tokens() -> None:
    model = tiny(head_scale=1.0).eval()
    clip = torch.randint(0, 256, (2, 3, 4, 16, 24), dtype=torch.uint8)
    tokens = model.features(clip)
    wanted = model.head(model.fc_norm(sum(tokens[:, n] for n in range(12)) / 12))
    assert torch.allclose(model(clip), wanted, atol=1e-5)
    some = torch.tensor([[1, 4], [0, 11]])
    assert model(clip, some).shape == (2, 5)
    assert not torch.allclose(model(clip, some), wanted, atol=1e-4)


def test_parameters_have_the_official_names() -> None:
    names = set(tiny().state_dict())
    blocks = {name for name in names if name.startswith("blocks.")}
    assert names - blocks == {
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "fc_norm.weight",
        "fc_norm.bias",
        "head.weight",
        "head.bias",
    }
    assert {name.split(".", 2)[2] for name in blocks} == {
        *(f"{norm}.{kind}" for norm in ("norm1", "norm2") for kind in ("weight", "bias")),
        *("attn.qkv.weight", "attn.q_bias", "attn.v_bias", "attn.proj.weight", "attn.proj.bias"),
        *(f"mlp.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")),
    }


def test_weights_are_drawn_as_in_the_official_fine_tuning_and_the_head_starts_small() -> None:
    state = tiny().state_dict()
    assert 0 < state["head.weight"].abs().max() < 0.002 * 0.1
    assert 0.019 < state["blocks.0.mlp.fc1.weight"].std() < 0.021


def test_drop_path_rises_linearly_and_head_dropout_acts_in_training_only() -> None:
    model = tiny(drop_path=0.1, head_dropout=0.5, head_scale=1.0)
    rates = torch.tensor([block.drop_path for block in model.blocks])
    assert torch.allclose(rates, torch.linspace(0, 0.1, SIZES["tiny"].depth))
    clip = torch.randint(0, 256, (2, 3, 4, 16, 24), dtype=torch.uint8)
    assert torch.equal(model.eval()(clip), model(clip))
    assert not torch.equal(model.train()(clip), model(clip))
