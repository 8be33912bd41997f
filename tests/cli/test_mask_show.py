"""`mgmae mask show --checkpoint`: any known format, on the clips that it was trained on unless others are asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from mgmae_cli.cli.app import main
from mgmae_cli.config import DataConfig, ModelConfig, RunConfig
from mgmae_cli.engine.checkpoint import CheckpointFolder
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.formats_read import read_weights
from mgmae_cli.model.formats_write import write_weights
from mgmae_cli.model.videomae import build_videomae

GRID = ClipGrid(frames=8, height=32, width=48, tubelet=4, patch=8)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with two checkpoints of an untrained model."""
    folder = tmp_path_factory.mktemp("run")
    config = RunConfig(
        data=DataConfig(source="shapes", frames=8, size=(32, 48), stride=2, crop="none"),
        model=ModelConfig(name="tiny", patch=8, tubelet=4, decoder_depth=1),
    )
    model = build_videomae("tiny", GRID, seed=0, decoder_depth=1)
    for step in (1, 2):
        payload = {"kind": "pretrain", "model": model.state_dict(), "config": config.model_dump(mode="json")}
        CheckpointFolder(folder / "checkpoints").save(step, payload)
    return folder


def show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str]:
    """Run `mgmae mask show`; return its exit code and all that it said."""
    monkeypatch.setattr(sys, "argv", ["mgmae", "mask", "show", "shapes", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize("to", ["run", "mgmae", "official", "hf"])
def test_every_format_is_taken_and_told(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    source = run_folder if to == "run" else tmp_path / "weights"
    if to != "run":
        write_weights(read_weights(run_folder), source, to)  # type: ignore[arg-type]
    code, said = show(capsys, monkeypatch, "--mask", "tube", "--checkpoint", source, "--out", tmp_path / "m.png")
    assert code == 0, said
    assert f"read {source if to != 'run' else run_folder / 'checkpoints/step-000002.pt'}: " in said
    assert "clips 8 x 32 x 48, tokens 4 x 8 x 8" in said
    assert "note:" not in said
    with Image.open(tmp_path / "m.png") as picture:
        assert min(picture.size) > 100


def test_a_damaged_newest_checkpoint_is_passed_over(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    whole = (run_folder / "checkpoints" / "step-000001.pt").read_bytes()
    (folder / "step-000001.pt").write_bytes(whole)
    (folder / "step-000002.pt").write_bytes(whole[:-2000])
    code, said = show(
        capsys, monkeypatch, "--mask", "tube", "--checkpoint", tmp_path / "run", "--out", tmp_path / "m.png"
    )
    assert code == 0, said
    assert f"read {folder}/step-000001.pt: mgmae pre-training model after 1 steps" in said
    assert f"note: passed over {folder}/step-000002.pt: damaged, or not a checkpoint" in said


def test_clips_of_another_length_are_fitted_and_other_tokens_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--mask", "tube", "--checkpoint", run_folder, "--out", tmp_path / "m.png"]
    code, said = show(capsys, monkeypatch, *common, "--set", "data.frames=16")
    assert code == 0, said
    assert "note: positions recomputed for 96 tokens instead of 48" in said
    code, said = show(capsys, monkeypatch, *common, "--set", "model.patch=16")
    assert code == 2
    assert "tokens can't go from 4 x 8 x 8 to 4 x 16 x 16" in said


def test_an_encoder_has_nothing_to_reconstruct_with(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(read_weights(run_folder), tmp_path / "e.safetensors", "timm")
    code, said = show(capsys, monkeypatch, "--checkpoint", tmp_path / "e.safetensors", "--out", tmp_path / "m.png")
    assert code == 2
    assert (
        f"error: {tmp_path}/e.safetensors: mgmae encoder: has no decoder; a pre-training checkpoint is needed" in said
    )
    assert not (tmp_path / "m.png").exists()
