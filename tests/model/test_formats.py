"""Reading and writing: the official layout, its variants, timm's names, ours; and what is refused."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mgmae_cli.config import RunConfig
from mgmae_cli.errors import CheckpointError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.classifier import VideoClassifier
from mgmae_cli.model.formats_read import read_weights, weights_from
from mgmae_cli.model.formats_write import Format, write_weights
from mgmae_cli.model.loading import as_encoder, build_encoder, build_model, build_pretrained
from mgmae_cli.model.tokens import position_table, split_tokens
from mgmae_cli.model.videomae import SIZES, VideoMAE, build_videomae
from mgmae_cli.model.weights import Geometry, Weights, checked, expected_shapes
from tests.model.conftest import GRID, make_weights, random_clip, same_state

TINY = SIZES["tiny"]


def outputs(weights: Weights) -> torch.Tensor:
    """Return what the weights' model computes on a fixed clip."""
    model, _ = build_model(weights)
    clip = random_clip(weights.geometry.grid)
    with torch.no_grad():
        if isinstance(model, VideoMAE):
            mask = torch.arange(weights.geometry.grid.tokens).expand(2, -1) % 3 != 0
            return model(clip, *split_tokens(mask, int((~mask[0]).sum())))
        return model.eval()(clip) if isinstance(model, VideoClassifier) else model.features(clip)


# --- the official layout ------------------------------------------------------------------------------------------


def test_base_has_the_keys_and_shapes_of_the_official_pretraining_checkpoint() -> None:
    """Keys and shapes as published for ViT-B, spelt out."""

    def block(width: int) -> dict[str, tuple[int, ...]]:
        return {
            **{f"{norm}.{leaf}": (width,) for norm in ("norm1", "norm2") for leaf in ("weight", "bias")},
            "attn.qkv.weight": (3 * width, width),
            "attn.q_bias": (width,),
            "attn.v_bias": (width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }

    official = {
        "mask_token": (1, 1, 384),
        "encoder.patch_embed.proj.weight": (768, 3, 2, 16, 16),
        "encoder.patch_embed.proj.bias": (768,),
        **{f"encoder.blocks.{i}.{name}": shape for i in range(12) for name, shape in block(768).items()},
        "encoder.norm.weight": (768,),
        "encoder.norm.bias": (768,),
        "encoder_to_decoder.weight": (384, 768),
        **{f"decoder.blocks.{i}.{name}": shape for i in range(4) for name, shape in block(384).items()},
        "decoder.norm.weight": (384,),
        "decoder.norm.bias": (384,),
        "decoder.head.weight": (1536, 384),
        "decoder.head.bias": (1536,),
    }
    assert expected_shapes(Geometry(ClipGrid(), SIZES["base"]), "pretrain") == official


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("to", ["official", "mgmae"])
def test_trips_through_files_are_exact_and_leave_outputs_unchanged(
    weights: Weights, to: Format, suffix: str, tmp_path: Path
) -> None:
    weights = replace(weights, config={"mask": {"name": "motion"}}, step=7)
    out = tmp_path / f"out{suffix}"
    write_weights(weights, out, to)
    back = read_weights(out)
    assert back.kind == weights.kind
    assert back.geometry == weights.geometry
    assert same_state(back, weights)
    assert torch.equal(outputs(back), outputs(weights))
    assert list(tmp_path.iterdir()) == [out]
    if to == "mgmae":
        assert (back.config, back.step) == ({"mask": {"name": "motion"}}, 7)


def test_norms_that_the_official_code_has_not_are_said(tmp_path: Path) -> None:
    weights = make_weights("pretrain")
    assert write_weights(weights, tmp_path / "a.pth", "official") == []
    foreign = replace(weights, geometry=replace(weights.geometry, eps=1e-12, last_eps=1e-5))
    (note,) = write_weights(foreign, tmp_path / "b.pth", "official")
    assert note.startswith("the official code fixes eps of norms at 1e-06; this model has 1e-12 and 1e-05")
    assert read_weights(tmp_path / "b.pth").geometry == foreign.geometry  # we keep them


def test_official_files_hold_the_state_under_model(tmp_path: Path) -> None:
    write_weights(make_weights("pretrain"), tmp_path / "x.pth", "official")
    payload = torch.load(tmp_path / "x.pth", weights_only=True)
    assert set(payload["model"]) == set(make_weights("pretrain").state)


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {}}},
        lambda state: {"module": state, "lr": 1e-3},
        lambda state: {"state_dict": {f"backbone.{name}": t for name, t in state.items()}},
        lambda state: {"model": {"module": {f"module._orig_mod.{name}": t for name, t in state.items()}}},
    ],
)
def test_nests_and_prefixes_make_no_difference(kind: Any, wrap: Any) -> None:
    state = build_state("tiny", kind)
    read = weights_from(wrap(state))
    assert read.kind == kind
    assert all(torch.equal(read.state[name], tensor) for name, tensor in state.items())
    assert read.geometry.size == replace(SIZES["tiny"], decoder_hidden=4.0) or kind == "classifier"
    assert read.geometry.size.heads == TINY.heads
    assert read.notes == ("the file doesn't say its clip size: 16 x 224 x 224 assumed",)
    checked(read)


def build_state(name: str, kind: str) -> dict[str, torch.Tensor]:
    if kind == "pretrain":
        return build_videomae(name, ClipGrid(), seed=0).state_dict()
    return VideoClassifier(ClipGrid(), SIZES[name], 7).state_dict()


def block_state(width: int, hidden: int) -> dict[str, torch.Tensor]:
    """Return a block of the official layout, its tensors without memory."""
    shapes = {
        "attn.qkv.weight": (3 * width, width),
        "attn.q_bias": (width,),
        "attn.v_bias": (width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden),
        "mlp.fc2.bias": (width,),
    }
    norms = {f"norm{n}.{leaf}": (width,) for n in (1, 2) for leaf in ("weight", "bias")}
    return {name: torch.empty(shape, device="meta") for name, shape in {**shapes, **norms}.items()}


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_the_giant_of_videomae_v2_is_read(kind: Any) -> None:
    """Width 1408, patch 14, 16 heads, MLPs of 48 / 11: its fine-tuning files lie under `module`, with 710 classes."""
    parts = {
        "pretrain": {
            **{f"encoder.blocks.{n}.{name}": t for n in range(40) for name, t in block_state(1408, 6144).items()},
            **{f"decoder.blocks.{n}.{name}": t for n in range(4) for name, t in block_state(512, 2234).items()},
            "encoder.norm.weight": (1408,),
            "encoder.norm.bias": (1408,),
            "encoder_to_decoder.weight": (512, 1408),
            "mask_token": (1, 1, 512),
            "decoder.norm.weight": (512,),
            "decoder.norm.bias": (512,),
            "decoder.head.weight": (1176, 512),
            "decoder.head.bias": (1176,),
        },
        "classifier": {
            **{f"blocks.{n}.{name}": t for n in range(40) for name, t in block_state(1408, 6144).items()},
            "fc_norm.weight": (1408,),
            "fc_norm.bias": (1408,),
            "head.weight": (710, 1408),
            "head.bias": (710,),
        },
    }[kind]
    prefix = "encoder." if kind == "pretrain" else ""
    parts |= {f"{prefix}patch_embed.proj.weight": (1408, 3, 2, 14, 14), f"{prefix}patch_embed.proj.bias": (1408,)}
    state = {name: torch.empty(t, device="meta") if isinstance(t, tuple) else t for name, t in parts.items()}
    weights = checked(weights_from({"module": state}))
    assert weights.kind == kind
    assert weights.geometry.grid == ClipGrid(16, 224, 224, 2, 14)
    size = weights.geometry.size
    assert (size.width, size.depth, size.heads) == (1408, 40, 16)
    assert (size.decoder_width, size.decoder_heads) == ((512, 8) if kind == "pretrain" else (0, 0))
    assert weights.geometry.num_classes == (710 if kind == "classifier" else 0)


def test_position_tables_tell_the_clip_size_and_learned_ones_are_refused() -> None:
    state = build_state("tiny", "classifier")
    with_table = weights_from({**state, "pos_embed": position_table(8 * 49, TINY.width)[None]})
    assert with_table.geometry.grid == ClipGrid(16, 112, 112, 2, 16)
    assert with_table.notes == ()
    checked(with_table)
    widths = {"encoder": TINY.width, "decoder": TINY.decoder_width}
    both = {f"{part}.pos_embed": position_table(8 * 49, width)[None] for part, width in widths.items()}
    pretrained = checked(weights_from({**build_state("tiny", "pretrain"), **both}))
    assert pretrained.geometry.grid == ClipGrid(16, 112, 112, 2, 16)
    with pytest.raises(CheckpointError, match="learned positions"):
        weights_from({**state, "pos_embed": torch.zeros(1, 8 * 49, TINY.width)})


def test_argparse_namespaces_of_official_files_are_read(tmp_path: Path) -> None:
    args = argparse.Namespace(lr=1e-3, opt_betas=[0.9, 0.95], num_frames=32, input_size=160)
    torch.save({"model": build_state("tiny", "pretrain"), "args": args, "epoch": 1}, tmp_path / "c.pth")
    read = read_weights(tmp_path / "c.pth")
    assert read.origin == "official pre-training model"
    assert read.geometry.grid == ClipGrid(32, 160, 160, 2, 16)  # as the arguments say
    assert read.notes == ()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_heads_of_unusual_widths_are_asked_for() -> None:
    state = make_weights("pretrain").state
    with pytest.raises(CheckpointError, match="width of 24 has; state it by --heads"):
        weights_from(state)
    with pytest.raises(CheckpointError, match="width of 16 has; state it by --decoder-heads"):
        weights_from(state, heads=(3, None))
    geometry = weights_from(state, heads=(3, 2)).geometry
    assert geometry.size == make_weights("pretrain").geometry.size


def test_layer_scale_is_read_and_used() -> None:
    weights = make_weights("pretrain", layer_scale=True)
    read = weights_from(weights.state, heads=(3, 2))
    assert read.geometry.layer_scale
    assert torch.equal(
        outputs(replace(read, geometry=replace(read.geometry, grid=GRID))),
        outputs(weights),
    )


def test_attention_without_biases_gets_zeros() -> None:
    weights = make_weights("encoder")
    bare = {name: t for name, t in weights.state.items() if not name.endswith(("q_bias", "v_bias"))}
    read = weights_from(bare, heads=(3, None))
    zeros = {name: t if name in bare else torch.zeros_like(t) for name, t in weights.state.items()}
    assert all(torch.equal(read.state[name], zeros[name]) for name in zeros)
    assert any("zeros stand in" in note for note in read.notes)


# --- our training checkpoints -------------------------------------------------------------------------------------


def training_checkpoint(**changes: Any) -> dict[str, Any]:
    config = RunConfig().model_dump(mode="json")
    config["model"].update(name="tiny", patch=8, decoder_depth=2)
    config["data"].update(size=[32, 48], frames=8)
    model = build_videomae("tiny", ClipGrid(8, 32, 48, 2, 8), seed=0, decoder_depth=2)
    rng = {"cpu": torch.get_rng_state()}
    return {
        "format": "mgmae-1",
        "step": 12,
        "kind": "pretrain",
        "model": model.state_dict(),
        "config": config,
        "rng": rng,
    } | changes


def test_our_training_checkpoints_are_read_with_their_geometry(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(training_checkpoint(step=10), folder / "step-000010.pt")
    torch.save(training_checkpoint(), folder / "step-000012.pt")
    read = read_weights(tmp_path / "run")
    assert read.origin == "mgmae pre-training model after 12 steps"
    assert read.geometry.grid == ClipGrid(8, 32, 48, 2, 8)
    assert read.geometry.size.decoder_depth == 2
    assert read.config is not None
    assert read.notes == ()
    model, _ = build_pretrained(read)
    assert torch.equal(model.mask_token, training_checkpoint()["model"]["mask_token"])


def test_a_run_folder_means_its_best_checkpoint_or_the_one_with_most_steps(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (999_999, 1_000_000):
        torch.save(training_checkpoint(step=step), folder / f"step-{step}.pt")
    assert read_weights(tmp_path).step == 1_000_000
    assert read_weights(tmp_path).path == folder / "step-1000000.pt"
    torch.save(training_checkpoint(step=7), folder / "best.pt")
    assert read_weights(tmp_path).path == folder / "best.pt"
    assert read_weights(folder / "step-999999.pt").step == 999_999


def test_damaged_checkpoints_of_a_run_are_passed_over_with_a_note(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save(training_checkpoint(step=10), folder / "step-000010.pt")
    whole = (folder / "step-000010.pt").read_bytes()
    newest = write_bytes(folder / "step-000012.pt", whole[: len(whole) // 2])
    read = read_weights(tmp_path)
    assert (read.step, read.path) == (10, folder / "step-000010.pt")
    assert len(read.notes) == 1
    assert read.notes[0].startswith(f"passed over {newest}: damaged, or not a checkpoint")
    (folder / "step-000010.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-000012.pt: damaged, .*; .*step-000010.pt: damaged, ") as caught:
        read_weights(tmp_path)
    assert "\n" not in str(caught.value)


def test_how_clips_were_read_is_what_the_settings_say_and_what_the_shapes_say(tmp_path: Path) -> None:
    ours = weights_from(training_checkpoint())
    assert ours.reading() == {"data.frames": 8, "data.size": [32, 48], "data.stride": 4, "data.sampling": "stride"}
    longer = replace(ours, geometry=replace(ours.geometry, grid=replace(ours.geometry.grid, frames=16)))
    assert longer.reading()["data.frames"] == 16
    assert make_weights("encoder").reading() == {"data.frames": 6, "data.size": [16, 24]}


def test_settings_in_files_of_others_are_left_alone() -> None:
    payload = {"model": build_state("tiny", "pretrain"), "config": {"data": 3}, "labels": 5, "ema": {}, "step": "x"}
    read = weights_from(payload)
    assert (read.config, read.labels, read.averaged, read.step) == (None, (), None, None)


def test_averaged_weights_are_kept_apart() -> None:
    state = training_checkpoint()["model"]
    other = {name: tensor + 1 for name, tensor in state.items()}
    read = weights_from(training_checkpoint(ema=other))
    assert read.averaged is not None
    assert torch.equal(read.averaged["mask_token"], read.state["mask_token"] + 1)


def test_settings_that_contradict_the_tensors_are_refused() -> None:
    payload = training_checkpoint()
    payload["config"]["model"]["name"] = "small"
    tiny = f"{TINY.width} x {TINY.depth}"
    with pytest.raises(CheckpointError, match=rf"say model small \(384 x 12\), its tensors {tiny}"):
        weights_from(payload)
    payload["config"] = {"model": {}}
    with pytest.raises(CheckpointError, match="settings in the file are not understood"):
        weights_from(payload)


# --- timm's names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_the_encoder_in_timms_names_gives_equal_features(kind: Any, tmp_path: Path) -> None:
    weights = make_weights(kind)
    write_weights(weights, tmp_path / "e.safetensors", "timm")
    assert read_weights(tmp_path / "e.safetensors").geometry.grid == GRID  # safetensors has room to say so
    write_weights(weights, tmp_path / "e.pth", "timm")
    assert torch.load(tmp_path / "e.pth", weights_only=True).keys() >= {"pos_embed", "blocks.0.attn.qkv.bias"}
    read = read_weights(tmp_path / "e.pth", heads=(3, None))
    assert read.origin == "encoder in timm's names"
    assert "a position table of 12 tokens doesn't tell the clip size" in read.notes[0]
    assert same_state(read, as_encoder(weights))
    read = replace(read, geometry=replace(read.geometry, grid=GRID))
    clip = random_clip()
    assert torch.equal(build_encoder(read)[0].features(clip), build_encoder(weights)[0].features(clip))


def test_timms_own_blocks_take_what_is_written_and_compute_the_same(tmp_path: Path) -> None:
    from timm.models.vision_transformer import Block

    weights = make_weights("encoder", layer_scale=True)
    write_weights(weights, tmp_path / "e.pth", "timm")
    state = torch.load(tmp_path / "e.pth", weights_only=True)
    encoder, _ = build_encoder(weights)
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    x = state["pos_embed"] + encoder.patch_embed.proj(torch.zeros(1, 3, 6, 16, 24)).flatten(2).transpose(1, 2)
    ours = x
    for number, block in enumerate(encoder.blocks):
        theirs = Block(24, 3, mlp_ratio=3.0, qkv_bias=True, init_values=1.0, norm_layer=norm)
        prefix = f"blocks.{number}."
        theirs.load_state_dict({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)})
        x, ours = theirs(x), block(ours)
    assert torch.allclose(x, ours, atol=1e-5)


def test_biases_on_keys_are_dropped_and_said_to_be() -> None:
    weights = make_weights("encoder")
    state = dict(weights.state)
    base = "blocks.0.attn."
    joined = torch.cat([state.pop(f"{base}q_bias"), torch.ones(24), state.pop(f"{base}v_bias")])
    for number in (1, 2):
        q, v = (state.pop(f"blocks.{number}.attn.{name}_bias") for name in "qv")
        state[f"blocks.{number}.attn.qkv.bias"] = torch.cat([q, torch.zeros(24), v])
    read = weights_from({**state, f"{base}qkv.bias": joined}, heads=(3, None))
    assert same_state(read, weights)
    assert any("biases on keys were dropped" in note for note in read.notes)


# --- what is refused ----------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


def test_files_that_need_code_to_be_run_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"x": torch.zeros(1)}, "args": Evil()}, "evil.pth")
    with pytest.raises(
        CheckpointError, match=r"^evil.pth: loading it would run code \(\w+\.system\), which is refused"
    ):
        read_weights(Path("evil.pth"))
    torch.save({"model": {"x": torch.zeros(1)}, "args": subprocess.Popen}, "class.pth")
    with pytest.raises(CheckpointError, match=r"would run code \(\w+\.Popen\)"):
        read_weights(Path("class.pth"))
    assert not Path("evil").exists()


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    torch.save({"a": 1, "b": [2]}, tmp_path / "plain.pt")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    torch.save({"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, tmp_path / "resnet.pt")
    write_weights(make_weights("encoder"), tmp_path / "whole.pth", "official")
    whole = (tmp_path / "whole.pth").read_bytes()
    write_weights(make_weights("encoder"), tmp_path / "whole.safetensors", "official")
    safe = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    cases = {
        tmp_path / "absent.pth": "no such checkpoint",
        write_bytes(tmp_path / "empty.pth", b""): "damaged, or not a checkpoint",
        write_bytes(tmp_path / "text.pth", b"hello world\n"): "damaged, or not a checkpoint",
        write_bytes(tmp_path / "half.pth", whole[: len(whole) // 2]): "damaged, or not a checkpoint",
        write_bytes(tmp_path / "half.safetensors", safe[: len(safe) // 2]): "damaged, or not a checkpoint",
        tmp_path / "plain.pt": "holds no tensors; its keys are a, b",
        tmp_path / "tensor.pt": "holds a Tensor, not a state dict",
        tmp_path / "resnet.pt": "not a VideoMAE-family checkpoint.*conv1.weight, fc.bias",
        tmp_path / "folder": "neither a run folder .* nor one of transformers",
        tmp_path / "run": "run folder without a checkpoint",
    }
    for path, message in cases.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            read_weights(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert str(caught.value).count(str(path)) == 1
        assert "\n" not in str(caught.value)


def test_other_families_are_named() -> None:
    state = make_weights("encoder").state
    with pytest.raises(CheckpointError, match="class token"):
        weights_from({**state, "cls_token": torch.zeros(1, 1, 24)})
    with pytest.raises(CheckpointError, match="doesn't pool by the mean"):
        weights_from({**state, "head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)})
    flat = {**state, "patch_embed.proj.weight": torch.zeros(24, 3, 16, 16)}
    with pytest.raises(CheckpointError, match=r"is \(24, 3, 16, 16\); expected \(D, 3, t, p, p\)"):
        weights_from(flat, heads=(3, None))


def test_files_are_as_readable_for_others_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    write_weights(make_weights("encoder"), tmp_path / "e.safetensors", "mgmae")
    write_weights(make_weights("encoder"), tmp_path / "folder", "hf")
    for name in ("e.safetensors", "folder/model.safetensors"):
        assert (tmp_path / name).stat().st_mode == (tmp_path / "new").stat().st_mode


def test_nothing_is_overwritten_and_failures_leave_nothing(tmp_path: Path) -> None:
    weights = make_weights("encoder")
    taken = write_bytes(tmp_path / "taken.pth", b"mine")
    with pytest.raises(CheckpointError, match="is there already"):
        write_weights(weights, taken, "official")
    assert taken.read_bytes() == b"mine"
    with pytest.raises(CheckpointError, match=r"taken.pth/below.pth: not written: "):
        write_weights(weights, taken / "below.pth", "official")
    assert list(tmp_path.iterdir()) == [taken]


# --- mismatches ---------------------------------------------------------------------------------------------------


def test_missing_extra_and_misshapen_keys_are_listed_in_groups() -> None:
    weights = make_weights("encoder")
    state = {name: t for name, t in weights.state.items() if not name.endswith(".v_bias")}
    state |= {f"blocks.{n}.adapter.weight": torch.zeros(1) for n in range(5)}
    state |= {"blocks.1.norm1.weight": torch.zeros(7), "stray": torch.zeros(1)}
    broken = replace(weights, state=state)
    with pytest.raises(CheckpointError) as caught:
        checked(broken)
    lines = str(caught.value).splitlines()
    assert "--allow-partial" in lines[0]
    assert lines[1:] == [
        "missing: blocks.*.attn.v_bias: 3 keys (blocks.0.attn.v_bias, blocks.1.attn.v_bias, blocks.2.attn.v_bias)",
        "extra: blocks.*.adapter.weight: 5 keys "
        "(blocks.0.adapter.weight, blocks.1.adapter.weight, blocks.2.adapter.weight, ...)",
        "extra: stray",
        "misshapen: blocks.1.norm1.weight is 7, not 24",
    ]
    kept = checked(broken, allow_partial=True)
    assert set(kept.state) == set(weights.state) - {
        "blocks.1.norm1.weight",
        *(f"blocks.{n}.attn.v_bias" for n in range(3)),
    }
    assert list(kept.notes) == lines[1:]
    model, _ = build_model(broken, allow_partial=True)
    assert torch.equal(model.norm.weight, weights.state["norm.weight"])  # type: ignore[arg-type]


def test_geometry_survives_json_and_nonsense_is_refused() -> None:
    geometry = make_weights("pretrain").geometry
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry
    for nonsense in ({}, {"grid": 1, "size": 2}, {**geometry.to_dict(), "colour": 1}):
        with pytest.raises(CheckpointError, match="geometry in the file is not understood"):
            Geometry.from_dict(nonsense)
