"""Equality with transformers' VideoMAE, built from configs with random weights: both directions, no network.

Every weight is random, biases of queries and values among them, since some releases of transformers lose those.
Base, and clips of full size, are marked slow.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mgmae_cli.errors import CheckpointError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.classifier import VideoClassifier
from mgmae_cli.model.encoder import VideoEncoder
from mgmae_cli.model.formats_hf import config_json, to_hf
from mgmae_cli.model.formats_read import read_weights, weights_from
from mgmae_cli.model.formats_write import write_weights
from mgmae_cli.model.loading import build_model
from mgmae_cli.model.loss import pretrain_loss
from mgmae_cli.model.tokens import gather_tokens, normalise_pixels, pixel_targets, position_table, split_tokens
from mgmae_cli.model.videomae import SIZES, VideoMAE, ViTSize
from mgmae_cli.model.weights import Kind, Weights, checked
from tests.model.conftest import make_weights, random_clip, same_state, shaken

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CLASSES = {
    "pretrain": "VideoMAEForPreTraining",
    "classifier": "VideoMAEForVideoClassification",
    "encoder": "VideoMAEModel",
}
KINDS: list[Kind] = ["pretrain", "classifier", "encoder"]
TINY = ViTSize(32, 2, 2, 16, 2, 2)
SHAPES = [
    pytest.param(ClipGrid(4, 16, 16, 2, 8), TINY, id="square"),
    pytest.param(ClipGrid(6, 24, 16, 3, 8), ViTSize(48, 3, 4, 24, 3, 1, hidden=2.0, decoder_hidden=3.0), id="odd"),
    pytest.param(ClipGrid(3, 28, 42, 3, 14), TINY, id="one slot of 14 x 14 pixels"),
    pytest.param(ClipGrid(5, 8, 24, 1, 4), TINY, id="a slot a frame"),
    pytest.param(ClipGrid(6, 32, 48, 3, 16), SIZES["small"], id="small"),
    pytest.param(ClipGrid(4, 32, 48, 2, 16), SIZES["base"], id="base", marks=pytest.mark.slow),
    pytest.param(ClipGrid(), SIZES["small"], id="small 16 x 224 x 224", marks=pytest.mark.slow),
    pytest.param(ClipGrid(), SIZES["base"], id="base 16 x 224 x 224", marks=pytest.mark.slow),
    pytest.param(ClipGrid(32, 192, 128, 2, 16), SIZES["small"], id="small 32 x 192 x 128", marks=pytest.mark.slow),
]


def their_model(kind: Kind, grid: ClipGrid, size: ViTSize, **changes: Any) -> Any:
    """Return transformers' model with every weight shaken."""
    config = transformers.VideoMAEConfig(
        **{
            "image_size": [grid.height, grid.width],
            "patch_size": grid.patch,
            "num_frames": grid.frames,
            "tubelet_size": grid.tubelet,
            "hidden_size": size.width,
            "num_hidden_layers": size.depth,
            "num_attention_heads": size.heads,
            "intermediate_size": round(size.hidden * size.width),
            "decoder_hidden_size": size.decoder_width,
            "decoder_num_hidden_layers": size.decoder_depth,
            "decoder_num_attention_heads": size.decoder_heads,
            "decoder_intermediate_size": round((size.decoder_hidden or size.hidden) * size.decoder_width),
            "layer_norm_eps": 1e-6,
            "use_mean_pooling": kind == "classifier",
            "num_labels": 5,
            **changes,
        }
    )
    model = getattr(transformers, CLASSES[kind])(config).eval()
    shaken(model)
    return model


def assert_equal_outputs(ours: VideoMAE | VideoClassifier | VideoEncoder, theirs: Any, atol: float = 1e-5) -> None:
    """Compare hidden states, logits and loss on a random clip and mask, to 1e-5 of their size.

    Of that, 9e-6 come from the Conv3d of transformers, measured against float64 at 32 x 192 x 128; ours is off by 2e-6.
    """
    grid = ours.grid
    clip = random_clip(grid, batch=2 if grid.tokens < 500 else 1)
    order = torch.rand(len(clip), grid.tokens, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    mask = order >= grid.tokens // 4
    visible, masked = split_tokens(mask, grid.tokens // 4)
    pixel_values = normalise_pixels(clip.movedim(1, -1)).permute(0, 1, 4, 2, 3)

    def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
        size = float(wanted.std()) if wanted.numel() > 1 else 1.0
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=atol * max(size, 1.0))

    with torch.no_grad():
        if isinstance(ours, VideoMAE):
            wanted = theirs(pixel_values, bool_masked_pos=mask)
            close(ours.encoder(clip, visible), theirs.videomae(pixel_values, bool_masked_pos=mask).last_hidden_state)
            got = ours(clip, visible, masked)
            close(got.flatten(2), wanted.logits)
            loss = pretrain_loss(got, pixel_targets(gather_tokens(clip, masked, grid.tubelet, grid.patch)))
            close(loss, wanted.loss)
        elif isinstance(ours, VideoClassifier):
            close(ours.eval()(clip), theirs(pixel_values).logits)
        else:
            wanted = theirs(pixel_values, output_hidden_states=True)
            close(ours.features(clip), wanted.last_hidden_state)
            for mine, other in zip(ours.hidden_states(clip, range(len(ours.blocks))), wanted.hidden_states):
                close(mine, other)


# --- in -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "size"), SHAPES)
def test_their_weights_give_equal_outputs_in_our_model_and_go_back_unchanged(
    kind: Kind, grid: ClipGrid, size: ViTSize
) -> None:
    theirs = their_model(kind, grid, size)
    config, state = theirs.config.to_dict(), theirs.state_dict()
    weights = weights_from(state, hf_config=config)
    assert weights.kind == kind
    ours, notes = build_model(weights)
    assert notes == []
    assert_equal_outputs(ours, theirs)
    back, _ = to_hf(weights)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    written = config_json(weights)
    assert written["image_size"] in (config["image_size"], config["image_size"][0])
    names = [name for name in config if "hidden" in name or "num_" in name or "size" in name]
    assert {name: written[name] for name in names if name in written and name != "image_size"} == {
        name: config[name] for name in names if name in written and name != "image_size"
    }


@pytest.mark.parametrize("kind", ["pretrain", "encoder"])
def test_their_models_without_a_final_norm_are_read_as_such(kind: Kind) -> None:
    grid, size = SHAPES[0].values
    theirs = their_model(kind, grid, size, use_mean_pooling=True)
    weights = weights_from(theirs.state_dict(), hf_config=theirs.config.to_dict())
    assert not weights.geometry.final_norm
    assert_equal_outputs(build_model(weights)[0], theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_folders_that_they_save_are_read(kind: Kind, tmp_path: Path) -> None:
    grid, size = SHAPES[1].values
    theirs = their_model(kind, grid, size, id2label={n: f"move {n}" for n in range(5)})
    theirs.save_pretrained(tmp_path)
    weights = checked(read_weights(tmp_path))
    assert_equal_outputs(build_model(weights)[0], theirs)
    assert weights.labels == (tuple(f"move {n}" for n in range(5)) if kind == "classifier" else ())
    single_file = read_weights(tmp_path / "model.safetensors")
    assert same_state(single_file, weights)
    assert single_file.geometry == weights.geometry


def test_folders_in_parts_or_with_a_bin_file_are_read(tmp_path: Path) -> None:
    grid, size = SHAPES[1].values
    theirs = their_model("encoder", grid, size)
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    weights = checked(read_weights(tmp_path / "parts"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_text((tmp_path / "parts" / "config.json").read_text())
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert same_state(read_weights(tmp_path / "bin"), weights)
    next((tmp_path / "parts").glob("model-*2-of-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-\d+.safetensors is named by .* but missing"):
        read_weights(tmp_path / "parts")


def test_biases_are_read_under_old_and_new_names_and_must_agree() -> None:
    grid, size = SHAPES[0].values
    theirs = their_model("encoder", grid, size)
    new = theirs.state_dict()
    old = {name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): t for name, t in new.items()}
    assert old.keys() != new.keys()
    config = theirs.config.to_dict()
    first, second = weights_from(new, hf_config=config), weights_from(old, hf_config=config)
    assert same_state(first, second)
    assert first.state["blocks.0.attn.q_bias"].any()
    disagreeing = {**new, **{name: t + 1 for name, t in old.items() if name.endswith("q_bias")}}
    with pytest.raises(CheckpointError, match=r"holds blocks\.0\.attn\.q_bias under its old and its new name"):
        weights_from(disagreeing, hf_config=config)


def test_biases_on_keys_of_some_releases_are_dropped_and_said_to_be() -> None:
    theirs = their_model("encoder", *SHAPES[0].values)
    state, config = theirs.state_dict(), theirs.config.to_dict()
    extra = {f"encoder.layer.{n}.attention.attention.key.bias": torch.full((32,), float(n)) for n in range(2)}
    with_keys = checked(weights_from({**state, **extra}, hf_config=config))
    assert same_state(with_keys, weights_from(state, hf_config=config))
    assert with_keys.notes == ("biases on keys were dropped: they don't change softmax attention",)


def test_position_tables_in_their_files_are_checked_and_left_out() -> None:
    grid = SHAPES[0].values[0]
    theirs = their_model("pretrain", *SHAPES[0].values)
    state, config = theirs.state_dict(), theirs.config.to_dict()
    tables = {
        "videomae.embeddings.position_embeddings": position_table(grid.tokens, 32)[None],
        "position_embeddings": position_table(grid.tokens, 16)[None],
    }
    assert same_state(
        checked(weights_from({**state, **tables}, hf_config=config)), weights_from(state, hf_config=config)
    )
    tables["position_embeddings"] = tables["position_embeddings"] + 1
    with pytest.raises(CheckpointError, match=r"decoder\.pos_embed is not the fixed sinusoidal table"):
        weights_from({**state, **tables}, hf_config=config)


def test_weights_without_a_config_tell_what_they_can() -> None:
    theirs = their_model("pretrain", ClipGrid(), replace(SIZES["tiny"], depth=1, decoder_depth=1))
    weights = checked(weights_from(theirs.state_dict()))
    assert weights.geometry.size == replace(SIZES["tiny"], depth=1, decoder_depth=1, decoder_hidden=4.0)
    assert any("no config.json" in note for note in weights.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_channels": 1}, "needs 3 colour channels"),
        ({"hidden_act": "relu"}, "gelu"),
        ({"patch_size": [8, 16]}, "square patches"),
        ({"model_type": "vit"}, "model_type is 'vit'"),
        ({"image_size": 20}, "is not a multiple of"),
        ({"num_frames": "many"}, r"config\.json"),
    ],
)
def test_configs_of_other_models_are_refused(change: dict[str, Any], message: str) -> None:
    theirs = their_model("encoder", *SHAPES[0].values)
    with pytest.raises(CheckpointError, match=message):
        weights_from(theirs.state_dict(), hf_config={**theirs.config.to_dict(), **change})


def test_extra_keys_of_their_files_are_listed() -> None:
    theirs = their_model("encoder", *SHAPES[0].values)
    state = {**theirs.state_dict(), "encoder.layer.0.adapter.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"extra: blocks\.0\.adapter\.weight"):
        checked(weights_from(state, hf_config=theirs.config.to_dict()))


# --- out ----------------------------------------------------------------------------------------------------------


def load_theirs(folder: Path, kind: Kind) -> tuple[Any, dict[str, Any]]:
    model, info = getattr(transformers, CLASSES[kind]).from_pretrained(folder, output_loading_info=True)
    return model.eval(), info


def our_weights(kind: Kind, grid: ClipGrid, size: ViTSize) -> Weights:
    """Return weights of ours with the norms that transformers fixes."""
    weights = make_weights(kind, size=size, grid=grid)
    return replace(weights, geometry=replace(weights.geometry, last_eps=1e-6 if kind == "encoder" else 1e-5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "size"), SHAPES)
def test_written_folders_load_in_transformers_with_equal_outputs_and_come_back_unchanged(
    kind: Kind, grid: ClipGrid, size: ViTSize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights = our_weights(kind, grid, size)
    write_weights(weights, tmp_path / "out", "hf")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "README.md",
    }
    back = read_weights(tmp_path / "out")
    assert same_state(back, weights)
    assert back.geometry == replace(weights.geometry, size=back.geometry.size)
    theirs, info = load_theirs(tmp_path / "out", kind)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert_equal_outputs(build_model(weights)[0], theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    assert same_state(read_weights(tmp_path / "theirs"), weights)


@pytest.mark.parametrize("kind", KINDS)
def test_biases_of_queries_and_values_arrive_in_transformers(kind: Kind, tmp_path: Path) -> None:
    weights = our_weights(kind, *SHAPES[1].values)
    write_weights(weights, tmp_path / "out", "hf")
    theirs, _ = load_theirs(tmp_path / "out", kind)
    arrived = [
        t for name, t in theirs.named_parameters() if re.search(r"(query\.bias|value\.bias|q_bias|v_bias)$", name)
    ]
    sent = [t for name, t in weights.state.items() if name.endswith(("q_bias", "v_bias"))]
    assert len(arrived) == len(sent) > 0
    assert all(one.any() for one in sent)
    assert all(any(torch.equal(one, other) for other in arrived) for one in sent)


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_their_fixed_eps_changes_outputs_by_little_and_is_said(kind: Kind, tmp_path: Path) -> None:
    weights = make_weights(kind)
    notes = write_weights(weights, tmp_path / "out", "hf")
    assert any("transformers fixes eps" in note for note in notes)
    assert_equal_outputs(build_model(weights)[0], load_theirs(tmp_path / "out", kind)[0], atol=1e-4)


def test_layer_scale_is_folded_with_equal_outputs(tmp_path: Path) -> None:
    weights = make_weights("pretrain", layer_scale=True)
    weights = replace(weights, geometry=replace(weights.geometry, last_eps=1e-5))
    notes = write_weights(weights, tmp_path / "out", "hf")
    assert any("layer scale was folded" in note for note in notes)
    assert_equal_outputs(build_model(weights)[0], load_theirs(tmp_path / "out", "pretrain")[0])


def test_labels_survive_and_processors_load_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    labels = ("up", "down", "left", "right", "round")
    write_weights(replace(make_weights("classifier"), labels=labels), tmp_path / "out", "hf")
    assert read_weights(tmp_path / "out").labels == labels
    theirs, _ = load_theirs(tmp_path / "out", "classifier")
    assert theirs.config.id2label == dict(enumerate(labels))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    clip = random_clip(batch=1)
    frames = [frame.permute(1, 2, 0).numpy() for frame in clip[0].transpose(0, 1)]
    got = processor(frames, return_tensors="pt", do_resize=False)["pixel_values"]
    wanted = normalise_pixels(clip.movedim(1, -1)).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_biases_are_written_under_the_names_of_old_and_new_releases(weights: Weights) -> None:
    state, _ = to_hf(weights)
    for new in [name for name in state if name.endswith(("query.bias", "value.bias"))]:
        old = new.replace("query.bias", "q_bias").replace("value.bias", "v_bias")
        assert torch.equal(state[new], state[old])
        assert state[new].any()
    assert sum(name.endswith("query.bias") for name in state) == (5 if weights.kind == "pretrain" else 3)
    json.dumps(config_json(weights))
