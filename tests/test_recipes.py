"""Every pre-training recipe is loaded, and run for two steps at a size that fits a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from mgmae_cli.config import Layer
from mgmae_cli.engine.pretrain import pretrain
from mgmae_cli.settings import resolve

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "pretrain"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 4


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_hardware_time_and_whose_result_it_expects(recipe: Path) -> None:
    header = "".join(line for line in recipe.read_text().splitlines(True) if line.startswith("#")).lower()
    for word in ("hardware", "time", "measured"):
        assert word in header


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(recipe: Path, tmp_path: Path) -> None:
    small = {
        "data.source": "shapes",
        "data.size": 32,
        "data.crop": "none",
        "data.workers": 0,
        "data.samples_per_video": 1,
        "model.name": "tiny",
        "model.patch": 8,
        "train.steps": 2,
        "train.batch_size": 2,
        "train.accumulate": 1,
        "run.out": str(tmp_path / "run"),
        "run.device": "cpu",
        "run.compile": False,
    }
    full = resolve(recipe, Layer("test", {"data.source": "shapes", "run.device": "cpu", "data.crop": "none"}))
    assert full.config.data.size == 224 or recipe.stem.endswith("_cpu")
    if full.config.flow.name == "raft":  # its weights are a download
        small["flow.name"] = "dis"
    result = pretrain(resolve(recipe, Layer("test", small)), console=Console(quiet=True))
    assert result is not None
    assert (tmp_path / "run" / "checkpoints" / "step-000002.pt").exists()
