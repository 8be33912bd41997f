"""Encoders and classifiers out of checkpoints: which file a path means, whose formats, and other clips."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mgmae_cli.downstream.encoder import (
    build_frozen,
    build_tested,
    load_encoder,
    new_classifier,
    size_name,
)
from mgmae_cli.engine.checkpoint import read_checkpoint
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.tokens import position_table
from mgmae_cli.model.videomae import SIZES, preset
from mgmae_cli.model.weights import Geometry, Weights
from tests.downstream.conftest import GRID


def test_an_encoder_is_the_same_out_of_ours_and_the_official_format(pretrained: Path, tmp_path: Path) -> None:
    ours = load_encoder(pretrained)
    torch.save({"model": read_checkpoint(ours.path)["model"]}, tmp_path / "official.pth")
    official = load_encoder(tmp_path / "official.pth")
    assert official.digest() == ours.digest()
    assert ours.reading == {"data.frames": 4, "data.size": 16, "data.stride": 1, "data.sampling": "stride"}
    assert ours.name == "tiny"
    clip = torch.randint(256, (1, 3, 4, 16, 16), dtype=torch.uint8)
    one, two = (build_frozen(loaded, GRID)[0].features(clip) for loaded in (ours, official))
    assert torch.equal(one, two)
    assert not one.requires_grad


def test_the_digest_is_of_contents(pretrained: Path) -> None:
    loaded = load_encoder(pretrained)
    state = dict(loaded.weights.state)
    key = "blocks.0.norm1.bias"
    changed = replace(loaded, weights=replace(loaded.weights, state={**state, key: state[key] + 1e-7}))
    shuffled = replace(loaded, weights=replace(loaded.weights, state=dict(reversed(state.items()))))
    assert changed.digest() != loaded.digest()
    assert shuffled.digest() == loaded.digest()


@pytest.mark.parametrize(
    ("grid", "note"),
    [
        (GRID, None),
        (ClipGrid(8, 16, 16, 2, 8), "positions recomputed for 16 tokens instead of 8"),
        (ClipGrid(4, 24, 16, 2, 8), "positions recomputed for 12 tokens.*fine-tune before use"),
        (ClipGrid(4, 32, 32, 2, 16), "tubelet embedding resized from 2 x 8 x 8 to 2 x 16 x 16"),
    ],
)
def test_an_encoder_is_fitted_to_other_clips_and_says_so(grid: ClipGrid, note: str | None, pretrained: Path) -> None:
    encoder, notes = build_frozen(load_encoder(pretrained), grid)
    clip = torch.zeros(1, 3, grid.frames, grid.height, grid.width, dtype=torch.uint8)
    assert encoder.features(clip).shape == (1, grid.tokens, SIZES["tiny"].width)
    assert torch.equal(encoder.positions, position_table(grid.tokens, SIZES["tiny"].width))
    assert bool(note) == bool(notes)
    assert all(re.search(note or "", text) for text in notes[:1])


def test_a_classifier_for_other_clips_keeps_its_head() -> None:
    geometry = replace(Geometry(GRID, preset("tiny")), final_norm=False, num_classes=5)
    state = new_classifier(geometry, GRID, 5, seed=1).state_dict()
    model, notes = build_tested(Weights("classifier", state, geometry, "test"), ClipGrid(6, 16, 16, 2, 8))
    assert torch.equal(model.head.weight, state["head.weight"])
    assert "positions recomputed for 12 tokens" in notes[0]
    assert not model.training


def test_weights_of_a_new_classifier_depend_on_its_seed_alone() -> None:
    geometry = Geometry(GRID, preset("tiny"))
    torch.manual_seed(0)
    one = new_classifier(geometry, GRID, 5, seed=1)
    torch.manual_seed(1)
    two, other = new_classifier(geometry, GRID, 5, seed=1), new_classifier(geometry, GRID, 5, seed=2)
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert one.head.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.1)  # with the head's scale


def test_a_size_has_its_presets_name_or_says_what_it_is() -> None:
    assert size_name(Geometry(GRID, preset("base"))) == "base"
    assert size_name(Geometry(GRID, replace(preset("base"), depth=7))) == "768 x 7"
