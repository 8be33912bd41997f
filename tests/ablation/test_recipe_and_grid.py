"""Recipes of ablations: what they may say, how cells come of them, and which cells may not be compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgmae_cli.ablation.evaluate import check_evaluations
from mgmae_cli.ablation.grid import Cell, choose, expand
from mgmae_cli.ablation.recipe import load_ablation
from mgmae_cli.errors import ConfigError

HEAD = "question: Which?\nbase: {mask: {ratio: 0.75}, data: {size: 32, frames: 4}, train: {steps: 4, batch_size: 2}}\n"
MASKS = "sweep:\n  mask:\n    tube: {mask.name: tube}\n    motion: {mask: {name: motion}}\n"


def cells_of(tmp_path: Path, text: str, *assignments: str) -> list[Cell]:
    (tmp_path / "r.yaml").write_text(text)
    return expand(load_ablation(tmp_path / "r.yaml", assignments=assignments))


def test_named_cells_and_a_list_of_values_are_crossed_and_the_last_axis_changes_fastest(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, HEAD + MASKS + "  data.options.speed: [1, 2.5]\n")
    assert [cell.name for cell in cells] == ["tube_1", "tube_2.5", "motion_1", "motion_2.5"]
    assert [cell.settings.config.mask.name for cell in cells] == ["tube", "tube", "motion", "motion"]
    assert [cell.settings.config.data.options["speed"] for cell in cells] == [1, 2.5, 1, 2.5]
    assert {cell.reference for cell in cells} == {"tube_1"}


def test_compare_names_the_axis_along_which_cells_are_compared(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, HEAD + MASKS + "  data.options.speed: [1, 2.5]\ncompare: mask\n")
    assert [cell.reference for cell in cells] == ["tube_1", "tube_2.5", "tube_1", "tube_2.5"]


def test_a_budget_adds_settings_and_replaces_seeds_and_evaluations(tmp_path: Path) -> None:
    text = HEAD + MASKS + "seeds: 3\nbudgets: {gpu: {base: {train: {steps: 9}}, seeds: [4, 7], evaluate: [knn]}}\n"
    (tmp_path / "r.yaml").write_text(text)
    ablation = load_ablation(tmp_path / "r.yaml", "gpu")
    assert (ablation.seeds, list(ablation.evaluate)) == ((4, 7), ["knn"])
    assert {cell.effort.steps for cell in expand(ablation)} == {9}
    with pytest.raises(ConfigError, match=r"--budget gpx: .*did you mean 'gpu'"):
        load_ablation(tmp_path / "r.yaml", "gpx")


def test_a_setting_with_a_label_reaches_only_cells_with_that_label(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, HEAD + MASKS, "motion:mask.options.warp=forward", "train.base_lr=1e-3")
    assert "warp" not in cells[0].settings.config.mask.options
    assert cells[1].settings.config.mask.options["warp"] == "forward"
    assert {cell.settings.config.train.base_lr for cell in cells} == {1e-3}
    with pytest.raises(ConfigError, match=r"no cell has 'motoin' \(did you mean 'motion'\?\)"):
        cells_of(tmp_path, HEAD + MASKS, "motoin:mask.options.warp=forward")
    with pytest.raises(ConfigError, match="the sweep's axis 'mask' varies it"):
        cells_of(tmp_path, HEAD + MASKS, "mask.name=random")


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("  mask.ratio: [0.75, 0.5]\n", "visible tokens"),
        ("  train.steps: [4, 5]\n", "steps"),
        ("  train.batch_size: [2, 4]\n", "clips seen"),
    ],
)
def test_cells_that_see_different_amounts_are_refused_unless_the_sweep_is_about_it(
    tmp_path: Path, sweep: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=f"can't be compared: .* {words}"):
        cells_of(tmp_path, HEAD + "sweep:\n" + sweep)
    about = "about: [visible_tokens, steps, clips_seen]\n"
    assert len(cells_of(tmp_path, HEAD + "sweep:\n" + sweep + about)) == 2


def test_the_official_budget_of_one_patch_less_is_noticed(tmp_path: Path) -> None:
    text = HEAD.replace("0.75", "0.9").replace("size: 32", "size: 48, source: shapes")
    with pytest.raises(ConfigError, match="8 and 6 visible tokens of 72"):
        cells_of(tmp_path, text + "sweep: {mask.options.as_published: [false, true]}\n")


WRONG = {
    "no question": ("sweep: {mask.ratio: [0.5]}\n", "question: field required"),
    "an unknown key": (HEAD + MASKS + "sweeps: {}\n", "sweeps: unknown key (did you mean 'sweep'?)"),
    "an unknown evaluation": (HEAD + MASKS + "evaluate: [liner]\n", "unknown 'liner' (did you mean 'linear'?)"),
    "a value instead of a list": (HEAD + "sweep: {mask.ratio: 0.5}\n", "expected a list of values"),
    "an unknown axis to compare": (HEAD + MASKS + "compare: maks\n", "'maks' is no axis of the sweep; use one of mask"),
    "a wrong setting in a cell": (HEAD + "sweep: {mask.options.warp: [sideways]}\n", "cell 'sideways'"),
    "cells of one name": (HEAD + "sweep: {run.log_every: [1, 1.0, '1']}\n", "run.log_every"),
    "no seeds": (HEAD + MASKS + "seeds: 0\n", "seeds"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_recipe_is_answered_with_what_and_where(tmp_path: Path, case: str) -> None:
    text, expected = WRONG[case]
    if case == "cells of one name":
        assert len(cells_of(tmp_path, text)) == 1  # 1, 1.0 and '1' are one label
        return
    with pytest.raises(ConfigError) as caught:
        cells_of(tmp_path, text)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        ({"leakage": {"clip": 3}}, r"evaluate\.leakage\.clip: unknown key"),
        ({"loss": {"clips": 3}}, r"evaluate\.loss\.clips: loss has no settings"),
        (
            {"linear": {"probe.epoch": 3}},
            r"evaluate\.linear: probe\.epoch: unknown key \(did you mean 'probe\.epochs'\?\)",
        ),
        ({"finetune": {"train.epochs": "many"}}, r"evaluate\.finetune: train\.epochs: 'many'"),
        (
            {"finetune": {"train.batch_size": 3, "augment.mixup": 0.8}},
            r"evaluate\.finetune: .*mixup and cutmix mix pairs",
        ),
    ],
)
def test_settings_that_an_evaluation_lacks_are_refused_before_anything_is_trained(
    tmp_path: Path, evaluate: dict[str, dict[str, object]], words: str
) -> None:
    settings = cells_of(tmp_path, HEAD + MASKS)[0].settings
    with pytest.raises(ConfigError, match=words):
        check_evaluations(evaluate, settings)


def test_only_chooses_cells_by_name_or_label(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, HEAD + MASKS + "  data.options.speed: [1, 2.5]\n")
    assert [cell.name for cell in choose(cells, ["tube"])] == ["tube_1", "tube_2.5"]
    assert [cell.name for cell in choose(cells, ["motion_1"])] == ["motion_1"]
    with pytest.raises(ConfigError, match="--only tub: no such cell"):
        choose(cells, ["tub"])
