"""Every fine-tuning recipe is loaded as it is, and run for two steps at a size that fits a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from mgmae_cli.config import Layer
from mgmae_cli.downstream.finetune import finetune
from mgmae_cli.downstream.finetune_settings import resolve_finetune
from mgmae_cli.engine.checkpoint import CheckpointFolder
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.videomae import preset
from mgmae_cli.model.weights import Geometry, expected_shapes
from tests.downstream.conftest import write_gestures

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "finetune"
RECIPES = sorted(FOLDER.glob("*.yaml"))
# What the papers' scripts use (method notes): clips a step on 8 GPUs, epochs, layer decay, rate per 256 clips.
OFFICIAL = {
    "ssv2_vit_b": (512, 25, 0.65, 2e-3),
    "ssv2_vit_s": (768, 40, 0.7, 5e-4),
    "k400_vit_b": (1024, 90, 0.75, 7e-4),
    "k400_vit_s": (768, 150, 0.75, 2.5e-4),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return encoders of zeros in the official format, by preset; nothing is trained with the large ones."""
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for name in ("tiny", "small", "base"):
        geometry = Geometry(ClipGrid(), preset(name))
        shapes = expected_shapes(geometry, "encoder")
        made[name] = folder / f"{name}.pth"
        state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
        torch.save({"model": state}, made[name])
    return made


@pytest.fixture(scope="module")
def gestures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a list like that of the gestures: two classes, sessions, splits."""
    return write_gestures(tmp_path_factory.mktemp("gestures"))


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {*OFFICIAL, "gestures_cpu", "shapes_cpu"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_hardware_time_and_whose_result_it_expects(recipe: Path) -> None:
    header = "".join(line for line in recipe.read_text().splitlines(True) if line.startswith("#")).lower()
    for word in ("hardware", "time", "expected", "measured", "mgmae finetune" if "cpu" in recipe.stem else "torchrun"):
        assert word in header
    if "k400" not in recipe.stem:
        assert "no flip" in header


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_recipes_have_the_papers_hyper_parameters(
    name: str, checkpoints: dict[str, Path], gestures: Path
) -> None:
    size = "small" if name.endswith("s") else "base"
    chosen = {"checkpoint": str(checkpoints[size]), "data.path": str(gestures), "data.options.split": "train"}
    config = resolve_finetune(FOLDER / f"{name}.yaml", Layer("test", chosen)).config
    clips, epochs, layer_decay, rate = OFFICIAL[name]
    train, augment = config.train, config.augment
    assert train.batch_size * train.accumulate * 8 == clips
    assert (train.epochs, train.layer_decay, train.base_lr) == (epochs, layer_decay, rate)
    assert train.warmup * epochs == pytest.approx(5, abs=0.1)
    assert (train.betas, train.weight_decay, config.model.drop_path) == ((0.9, 0.999), 0.05, 0.1)
    assert (augment.randaugment, augment.erase) == ("rand-m7-n4-mstd0.5-inc1", 0.25)
    assert (augment.mixup, augment.cutmix, augment.mix_chance, augment.mix_switch) == (0.8, 1.0, 1.0, 0.5)
    assert (augment.label_smoothing, config.model.head_scale) == (0.1, 0.001)
    assert config.data.samples_per_video == 2
    assert config.data.flip == (0.5 if "k400" in name else 0)
    assert config.data.sampling == ("stride" if "k400" in name else "segments")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(recipe: Path, checkpoints: dict[str, Path], gestures: Path, tmp_path: Path) -> None:
    small = {
        "checkpoint": str(checkpoints["tiny"]),
        "model.name": "tiny",
        "data.size": 32,
        "data.frames": 4,
        "data.workers": 0,
        "train.steps": 2,
        "train.batch_size": 4,
        "train.accumulate": 1,
        "run.out": str(tmp_path / "run"),
        "run.device": "cpu",
        "run.precision": "fp32",
        "run.pictures": False,
    }
    if recipe.stem == "shapes_cpu":
        small |= {"data.options.clips": 10, "val.options.clips": 10}
    else:
        small |= {"data.path": str(gestures), "data.options.split": "train", "data.options.group_column": "session"}
    result = finetune(resolve_finetune(recipe, Layer("test", small)), console=Console(quiet=True))
    assert result is not None
    assert CheckpointFolder(tmp_path / "run" / "checkpoints").all()[-1][0] == 2
