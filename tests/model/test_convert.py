"""`mgmae convert`, the model card, and torch.export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from mgmae_cli.cli.convert import convert
from mgmae_cli.config import RunConfig
from mgmae_cli.errors import CheckpointError, ConfigError, MgmaeError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.card import model_card, run_figures
from mgmae_cli.model.convert import convert_weights
from mgmae_cli.model.export import export_encoder
from mgmae_cli.model.formats_read import read_weights
from mgmae_cli.model.formats_write import write_weights
from mgmae_cli.model.loading import as_encoder, build_encoder
from mgmae_cli.model.weights import Weights
from mgmae_cli.yaml_files import parse_yaml
from tests.model.conftest import GRID, make_weights, random_clip, same_state

app = typer.Typer()
app.command()(convert)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.pth"
    write_weights(make_weights("pretrain"), path, "official")
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("to", ["mgmae", "official", "hf"])
def test_the_command_says_what_it_read_and_wrote(source: Path, to: str) -> None:
    out = source.with_name("out")
    lines = run(source, out, "--to", to).splitlines()
    assert lines[0] == (
        f"read {source}: mgmae pre-training model: encoder 24 x 3 with 3 heads, decoder 16 x 2 with 2 heads, "
        "clips 6 x 16 x 24, tokens 3 x 8 x 8"
    )
    assert lines[-1] == f"wrote {out}: {to}, {len(make_weights('pretrain').state)} tensors"
    assert same_state(read_weights(out), make_weights("pretrain"))
    assert any("keys have no bias" in line for line in lines) == (to == "hf")


def test_the_command_changes_sizes_and_takes_the_encoder_alone(source: Path) -> None:
    out = source.with_name("out.safetensors")
    options = ["--encoder", "--frames", 8, "--size", "32x48", "--tubelet", 2, "--patch", 16]
    output = run(source, out, "--to", "mgmae", *options)
    assert "note: tubelet embedding resized from 3 x 8 x 8 to 2 x 16 x 16" in output
    assert "note: positions recomputed for 24 tokens instead of 12" in output
    assert read_weights(out).geometry.grid == ClipGrid(8, 32, 48, 2, 16)
    assert read_weights(out).kind == "encoder"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "hff"], r"--to hff: use one of .* \(did you mean 'hf'\?\)"),
        (["--to", "hf", "--size", "big"], "--size big: expected pixels"),
        (["--to", "hf", "--size", "20"], r"^--size: height 20 is not a multiple of --patch = 8; use 16 or 24$"),
        (["--to", "hf", "--frames", "0"], r"^--frames: frames 0: must be at least 1$"),
        (["--to", "mgmae", "--weights", "best"], "--weights best: use one of auto, model, ema"),
        (["--to", "mgmae", "--weights", "ema"], "holds no averaged weights"),
        (["--to", "export"], r"named \*\.pt2"),
        (["--to", "official", "--patch", "4"], "its decoder predicts"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(source: Path, arguments: list[str], message: str) -> None:
    out = source.with_name("out")
    with pytest.raises(MgmaeError, match=message):
        run(source, out, *arguments)
    assert not out.exists()


def test_partial_weights_pass_only_when_asked(tmp_path: Path) -> None:
    weights = make_weights("encoder")
    state = {name: t for name, t in weights.state.items() if name != "norm.bias"}
    write_weights(replace(weights, state=state), tmp_path / "in.pth", "mgmae")
    with pytest.raises(CheckpointError, match=r"missing: norm\.bias"):
        run(tmp_path / "in.pth", tmp_path / "out.pth", "--to", "official")
    output = run(tmp_path / "in.pth", tmp_path / "out.pth", "--to", "official", "--allow-partial")
    assert "note: missing: norm.bias" in output
    assert "norm.bias" not in torch.load(tmp_path / "out.pth", weights_only=True)["model"]


def test_averaged_weights_are_taken_where_there_are_some(tmp_path: Path) -> None:
    weights = make_weights("classifier")
    averaged = {name: tensor + 1 for name, tensor in weights.state.items()}
    geometry = weights.geometry.to_dict()
    payload = {"format": "mgmae-1", "step": 3, "model": weights.state, "ema": averaged, "mgmae_geometry": geometry}
    torch.save(payload, tmp_path / "in.pt")
    for choice, wanted in (("auto", averaged), ("ema", averaged), ("model", weights.state)):
        list(convert_weights(tmp_path / "in.pt", tmp_path / f"{choice}.pt", "mgmae", averaged=choice))  # type: ignore[arg-type]
        assert torch.equal(read_weights(tmp_path / f"{choice}.pt").state["head.bias"], wanted["head.bias"])


# --- the card -----------------------------------------------------------------------------------------------------


def trained(weights: Weights) -> Weights:
    config = RunConfig().model_dump(mode="json")
    config["mask"]["options"] = {"warp": "backward", "base_frame": "middle"}
    config["data"]["path"] = "videos/ssv2.csv"
    return replace(weights, config=config, step=1200)


def test_the_card_tells_the_recipe_the_data_the_masking_and_the_figures() -> None:
    card = model_card(trained(make_weights("pretrain")), ["a thing was folded"], {"step": 1200, "loss": 0.61234567})
    assert card.startswith("---\nlibrary_name: transformers\n")
    for line in (
        "- mgmae",
        "| masking strategy | motion, 0.9 of the tokens masked |",
        "| masking: warp | backward |",
        "| optical flow | dis |",
        "| data | videos/ssv2.csv |",
        "| optimiser steps | 1200 |",
        "| encoder | width 24, 3 blocks, 3 heads |",
        "| loss | 0.612346 |",
        "- A thing was folded.",
    ):
        assert line in card.splitlines()
    recipe = card.partition("```yaml\n")[2].partition("```")[0]
    assert parse_yaml(recipe, "card") == trained(make_weights("pretrain")).config


def test_the_card_of_a_classifier_says_what_it_was_fine_tuned_from() -> None:
    weights = replace(make_weights("classifier"), config={"checkpoint": "runs/ssv2/checkpoints/step-1.pt"})
    assert "| fine-tuned from | runs/ssv2/checkpoints/step-1.pt |" in model_card(weights, [], {})


def test_the_card_of_foreign_weights_claims_nothing() -> None:
    card = model_card(make_weights("classifier"), [], {})
    assert "The checkpoint says nothing about its training." in card
    assert "pipeline_tag: video-classification" in card
    assert "## Figures" not in card
    assert "mgmae\n---" not in card


def test_a_run_folder_gives_its_last_figures_to_the_card(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    (run_folder / "checkpoints").mkdir(parents=True)
    records = [{"step": 1, "loss": 0.9}, {"step": 2, "loss": 0.8, "lr": 1e-4}]
    text = "".join(f"{json.dumps(record)}\n" for record in records) + '{"step": 3, "lo'
    (run_folder / "metrics.jsonl").write_text(text)
    weights = trained(make_weights("pretrain"))
    checkpoint = run_folder / "checkpoints" / "step-000002.pt"
    write_weights(weights, checkpoint, "mgmae")
    assert run_figures(checkpoint) == run_figures(run_folder) == {"step": 2, "loss": 0.8, "lr": 1e-4}
    assert run_figures(tmp_path / "elsewhere.pt") == {}
    run(run_folder, tmp_path / "hf", "--to", "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| loss | 0.8 |" in card
    assert "| masking: base_frame | middle |" in card


# --- torch.export -------------------------------------------------------------------------------------------------


def test_an_exported_program_gives_equal_features_for_any_batch(source: Path) -> None:
    out = source.with_name("encoder.pt2")
    output = run(source, out, "--to", "export")
    assert "largest difference" in output
    program = torch.export.load(out).module()
    encoder, _ = build_encoder(read_weights(source))
    for batch in (1, 4):
        clip = random_clip(GRID, batch)
        assert torch.allclose(program(clip), encoder.features(clip), atol=1e-5)
    with pytest.raises(CheckpointError, match="is there already"):
        export_encoder(encoder, out)


def test_programs_need_their_suffix(tmp_path: Path) -> None:
    encoder, _ = build_encoder(as_encoder(make_weights("encoder")))
    with pytest.raises((CheckpointError, ConfigError), match=r"\.pt2"):
        export_encoder(encoder, tmp_path / "program.onnx")
