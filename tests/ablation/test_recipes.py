"""Every ablation recipe: expanded at every budget, and all its cells run for two steps at a tiny size."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torchvision.models.optical_flow import raft_small

from mgmae_cli.ablation.evaluate import check_evaluations
from mgmae_cli.ablation.grid import expand
from mgmae_cli.ablation.recipe import load_ablation
from mgmae_cli.ablation.run import Options, run_ablation
from mgmae_cli.ablation.state import plan_runs, write_spec
from mgmae_cli.ablation.work import do_run
from mgmae_cli.errors import ConfigError
from tests.downstream.conftest import write_gestures

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
CELLS = {
    "as_published": 4,
    "base_frame": 3,
    "flow": 4,
    "flow_iterations": 4,
    "hole_filling": 3,
    "mask_init": 3,
    "mask_ratio": 4,
    "masking": 4,
    "masking_videos": 4,
    "robustness": 18,
    "selection": 2,
    "warp": 2,
}
TINY = (
    "data.frames=4",
    "data.workers=0",
    "model.decoder_depth=1",
    "train.steps=2",
    "train.batch_size=2",
    "run.device=cpu",
    "run.log_every=1",
)


@pytest.fixture(scope="module")
def raft_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of RAFT weights as good as none: the trained ones are a download."""
    path = tmp_path_factory.mktemp("raft") / "raft-small.pth"
    torch.save(raft_small(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a list of videos for the recipe that needs one."""
    return write_gestures(tmp_path_factory.mktemp("videos"))


def needed(recipe: Path, weights: Path, videos: Path) -> list[str]:
    """Return the settings that a recipe leaves to the user, and a small source."""
    if recipe.stem == "masking_videos":
        return [f"data.path={videos}", "data.options.cache=null"]
    label = {"flow": "raft:", "flow_iterations": ""}.get(recipe.stem)
    return ["data.options.clips=8", *([] if label is None else [f"{label}flow.options.weights={weights}"])]


def test_there_is_a_recipe_for_each_question() -> None:
    assert [recipe.stem for recipe in RECIPES] == list(CELLS)


@pytest.mark.parametrize("budget", ["cpu", "gpu", "paper"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_comparable_cells_at_every_budget(recipe: Path, budget: str, videos: Path) -> None:
    own_videos = recipe.stem == "masking_videos"
    ablation = load_ablation(recipe, budget, [f"data.path={videos}"] if own_videos else [])
    cells = expand(ablation)
    for cell in cells:
        check_evaluations(ablation.evaluate, cell.settings)
    assert len(cells) == CELLS[recipe.stem]
    assert {cell.reference for cell in cells} <= {cell.name for cell in cells}
    config = cells[0].settings.config
    assert (config.model.name, config.data.height) == {
        "cpu": ("tiny", 112 if own_videos else 64),
        "gpu": ("small", 112 if own_videos else 64),
        "paper": ("base", 224),
    }[budget]
    fewest = {"cpu": 5 if recipe.stem == "masking" else 3, "gpu": 3, "paper": 1}[budget]
    assert len(ablation.seeds) >= fewest
    assert "measured" in ablation.recipe.budgets[budget].about  # type: ignore[index]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs(recipe: Path, tmp_path: Path, raft_weights: Path, videos: Path) -> None:
    loaded = load_ablation(recipe, "cpu", [*TINY, *needed(recipe, raft_weights, videos)], seeds=1)
    ablation = replace(loaded, evaluate={"loss": {}, "leakage": {"clips": 1}})
    cells = expand(ablation)
    by_name = {cell.name: cell for cell in cells}
    for run in plan_runs(tmp_path, cells, ablation.seeds):
        write_spec(run, by_name[run.cell], ablation.evaluate, keep_checkpoints=False)
        assert do_run(run.folder), run.state()
        assert {"loss", "leak"} <= set(run.figures()) or run.cell == "untrained"


def test_a_budget_may_change_cells_by_their_labels(tmp_path: Path) -> None:
    text = "question: Which?\nsweep: {mask: {tube: {mask.name: tube}, motion: {mask.name: motion}}}\n"
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text + "budgets: {cpu: {cells: {motion: {mask: {options: {warp: forward}}}}}}\n")
    tube, motion = expand(load_ablation(recipe))
    assert motion.settings.config.mask.options["warp"] == "forward"
    assert "warp" not in tube.settings.config.mask.options
    again = expand(load_ablation(recipe, assignments=["motion:mask.options.warp=backward"]))[1]
    assert again.settings.config.mask.options["warp"] == "backward"
    recipe.write_text(text + "budgets: {cpu: {cells: {moton: {mask.ratio: 0.5}}}}\n")
    with pytest.raises(
        ConfigError, match=r"budgets\.cpu\.cells\.moton: no cell has that label \(did you mean 'motion'\?\)"
    ):
        load_ablation(recipe)


def test_a_cell_without_its_raft_weights_is_told_of_by_the_dry_run_and_fails_in_a_line(tmp_path: Path) -> None:
    lost = [*TINY, "data.options.clips=8", f"raft:flow.options.weights={tmp_path / 'lost.pth'}"]
    reason = f"flow.options.weights = {tmp_path / 'lost.pth'}: no such file"
    text = io.StringIO()
    options = Options(seeds=1, only=["dis", "raft"], dry_run=True, assignments=lost, out=tmp_path / "out")
    run_ablation(FOLDER / "flow.yaml", options, Console(file=text, width=100))
    assert f"raft can't run here: {reason}" in text.getvalue()
    loaded = load_ablation(FOLDER / "flow.yaml", "cpu", lost, seeds=1)
    cells = {cell.name: cell for cell in expand(loaded)}
    run = plan_runs(tmp_path, [cells["raft"]], loaded.seeds)[0]
    write_spec(run, cells["raft"], {"loss": {}}, keep_checkpoints=False)
    assert not do_run(run.folder)
    assert run.state()["error"] == reason
