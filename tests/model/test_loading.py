"""Starting models from weights of another kind, and fitting weights to clips of another size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mgmae_cli.errors import CheckpointError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.classifier import VideoClassifier
from mgmae_cli.model.encoder import VideoEncoder
from mgmae_cli.model.loading import as_encoder, build_encoder, build_model, build_pretrained, load_into
from mgmae_cli.model.resize import resize_embedding, resize_weights
from mgmae_cli.model.tokens import normalise_pixels, position_table
from mgmae_cli.model.videomae import SIZES, VideoMAE
from mgmae_cli.model.weights import build
from tests.model.conftest import GRID, SIZE, make_weights, random_clip, shaken


def fresh(kind: str, grid: ClipGrid = GRID, num_classes: int = 5) -> VideoMAE | VideoEncoder:
    """Return a model with other values than the weights have."""
    geometry = replace(make_weights("pretrain" if kind == "pretrain" else "encoder").geometry, num_classes=num_classes)
    model = build(replace(geometry, grid=grid), kind)  # type: ignore[arg-type]
    shaken(model, seed=9)
    return model


# --- kinds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pretrain", "classifier", "encoder"])
def test_weights_of_the_same_kind_are_taken_whole(kind: str) -> None:
    weights = make_weights(kind)  # type: ignore[arg-type]
    model = fresh(kind)
    assert load_into(model, weights) == []
    assert all(torch.equal(tensor, weights.state[name]) for name, tensor in model.state_dict().items())


def test_a_classifier_takes_a_pretrained_encoder_and_starts_its_head_anew() -> None:
    weights, model = make_weights("pretrain"), fresh("classifier")
    assert isinstance(model, VideoClassifier)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert load_into(model, weights) == ["the decoder is left aside", "fc_norm and head start anew"]
    for name, tensor in model.state_dict().items():
        source = before[name] if name.startswith(("fc_norm", "head")) else weights.state[f"encoder.{name}"]
        assert torch.equal(tensor, source)


def test_a_classifier_for_other_classes_keeps_all_but_the_head() -> None:
    weights, model = make_weights("classifier"), fresh("classifier", num_classes=8)
    head = model.state_dict()["head.weight"].clone()
    assert load_into(model, weights) == ["the head starts anew: 5 classes there, 8 here"]
    assert torch.equal(model.state_dict()["head.weight"], head)
    assert torch.equal(model.state_dict()["fc_norm.weight"], weights.state["fc_norm.weight"])


def test_an_encoder_takes_what_it_needs_of_pretraining_weights() -> None:
    weights, model = make_weights("pretrain"), fresh("encoder")
    load_into(model, weights)
    pretrained, _ = build_pretrained(weights)
    clip = random_clip()
    assert isinstance(model, VideoEncoder)
    assert torch.equal(model.features(clip), pretrained.encoder.features(clip))


def test_pretraining_takes_an_encoder_only_partially() -> None:
    weights, model = make_weights("encoder"), fresh("pretrain")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"^test encoder: has no decoder; --allow-partial starts one anew$"):
        load_into(model, weights)
    assert load_into(model, weights, allow_partial=True) == ["the decoder starts anew"]
    for name, tensor in model.state_dict().items():
        anew = not name.startswith("encoder.")
        assert torch.equal(tensor, before[name] if anew else weights.state[name.removeprefix("encoder.")])


def test_pretraining_from_a_classifier_lacks_the_last_norm_too() -> None:
    notes = load_into(fresh("pretrain"), make_weights("classifier"), allow_partial=True)
    assert notes == ["the decoder starts anew", "missing: encoder.norm.weight", "missing: encoder.norm.bias"]


def test_another_eps_than_the_weights_had_is_said() -> None:
    weights = make_weights("pretrain")
    foreign = replace(weights, geometry=replace(weights.geometry, eps=1e-12, last_eps=1e-5))
    (note,) = load_into(fresh("pretrain"), foreign)
    assert note.startswith("eps of norms is 1e-06, not 1e-12 and 1e-05: outputs differ")


def test_an_encoder_with_a_final_norm_misses_it_in_a_classifier() -> None:
    weights = make_weights("classifier")
    with pytest.raises(CheckpointError, match=r"missing: norm.weight"):
        load_into(fresh("encoder"), weights)
    encoder, _ = build_encoder(weights)
    classifier, _ = build_model(weights)
    assert isinstance(classifier, VideoClassifier)
    assert torch.equal(encoder.features(random_clip()), classifier.features(random_clip()))


def test_a_failed_load_leaves_the_model_alone() -> None:
    weights, model = make_weights("encoder"), fresh("encoder")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor for name, tensor in weights.state.items() if name != "norm.bias"}
    with pytest.raises(CheckpointError, match=r"missing: norm\.bias"):
        load_into(model, replace(weights, state=state))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_architectures_are_refused_even_where_shapes_fit() -> None:
    weights = make_weights("pretrain")
    six_heads = build(replace(weights.geometry, size=replace(SIZE, heads=6)), "pretrain")
    with pytest.raises(CheckpointError, match=r"width 24, depth 3, 3 heads; the model has 24, 3, 6: no --model"):
        load_into(six_heads, weights)
    deeper = build(replace(weights.geometry, size=replace(SIZE, decoder_depth=4)), "pretrain")
    with pytest.raises(CheckpointError, match=r"set model\.decoder_depth = 2"):
        load_into(deeper, weights)
    narrower = build(replace(weights.geometry, size=replace(SIZE, decoder_width=8)), "pretrain")
    with pytest.raises(
        CheckpointError, match=r"width 16, depth 2, 2 heads; the model has 8, 2, 2: mgmae convert --enc"
    ):
        load_into(narrower, weights)
    small = build(replace(weights.geometry, size=SIZES["small"]), "encoder")
    tiny = replace(weights.geometry, size=SIZES["tiny"])
    with pytest.raises(CheckpointError, match=r"choose --model tiny$"):
        load_into(small, replace(weights, geometry=tiny))  # type: ignore[arg-type]


def test_weights_without_a_decoder_are_no_pretrained_model() -> None:
    with pytest.raises(CheckpointError, match="has no decoder"):
        build_pretrained(make_weights("classifier"))


# --- sizes --------------------------------------------------------------------------------------------------------


def test_more_frames_and_pixels_need_no_other_weights_and_are_announced() -> None:
    weights = make_weights("pretrain")
    longer = resize_weights(weights, replace(GRID, frames=12))
    assert longer.state == weights.state
    assert longer.notes == ("positions recomputed for 24 tokens instead of 12",)
    larger = resize_weights(weights, replace(GRID, height=32))
    assert "positions mean other places" in larger.notes[0]
    model, _ = build_pretrained(longer)
    assert torch.equal(model.encoder.positions, position_table(24, 24))


def test_tokens_of_another_size_are_refused_for_decoders_only() -> None:
    weights = make_weights("pretrain")
    with pytest.raises(CheckpointError, match=r"from 3 x 8 x 8 to 3 x 4 x 4.*its decoder"):
        resize_weights(weights, replace(GRID, patch=4))
    smaller = resize_weights(as_encoder(weights), replace(GRID, patch=4))
    assert smaller.state["patch_embed.proj.weight"].shape == (24, 3, 3, 4, 4)
    assert smaller.notes[0] == "tubelet embedding resized from 3 x 8 x 8 to 3 x 4 x 4"
    notes = load_into(fresh("classifier", replace(GRID, frames=4, tubelet=2)), weights)
    assert notes[0] == "tubelet embedding resized from 3 x 8 x 8 to 2 x 8 x 8"


@pytest.mark.parametrize(("tubelet", "patch"), [(4, 8), (2, 12), (6, 16)])
def test_embedding_an_enlarged_token_gives_what_the_token_gave(tubelet: int, patch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 2, 8, 8, generator=generator)
    token = torch.randn(1, 3, 2, 8, 8, generator=generator)
    enlarged = torch.nn.functional.interpolate(token, size=(tubelet, patch, patch), mode="trilinear")
    resized = resize_embedding(weight, tubelet, patch)
    assert resized.shape == (5, 3, tubelet, patch, patch)
    wanted = (weight * token).flatten(1).sum(1)
    assert torch.allclose((resized * enlarged).flatten(1).sum(1), wanted, atol=1e-3)


@pytest.mark.parametrize(("tubelet", "patch"), [(1, 8), (2, 4), (1, 5)])
def test_a_smaller_token_embeds_as_it_would_enlarged(tubelet: int, patch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 2, 8, 8, generator=generator)
    token = torch.randn(1, 3, tubelet, patch, patch, generator=generator)
    enlarged = torch.nn.functional.interpolate(token, size=(2, 8, 8), mode="trilinear")
    got = (resize_embedding(weight, tubelet, patch) * token).flatten(1).sum(1)
    assert torch.allclose(got, (weight * enlarged).flatten(1).sum(1), atol=1e-3)


@pytest.mark.parametrize("tubelet", [1, 2, 3, 5])
def test_a_still_grey_clip_keeps_its_embedding_at_any_tubelet(tubelet: int) -> None:
    weight = torch.rand(5, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(resize_embedding(weight, tubelet, 8).sum((1, 2, 3, 4)), weight.sum((1, 2, 3, 4)), rtol=1e-4)


def test_resized_encoders_run_on_clips_of_the_new_size() -> None:
    grid = ClipGrid(frames=4, height=24, width=24, tubelet=2, patch=12)
    encoder, _ = build_encoder(resize_weights(as_encoder(make_weights("pretrain")), grid))
    assert encoder.features(random_clip(grid)).shape == (2, 8, 24)
    assert normalise_pixels(random_clip(grid).movedim(1, -1)).shape[-1] == 3
