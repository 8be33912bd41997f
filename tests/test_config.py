"""Layers of settings, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgmae_cli.config import Layer, RunConfig, build, dump, flatten, merge, recipe_layer, set_layer
from mgmae_cli.errors import ConfigError
from mgmae_cli.yaml_files import parse_yaml


def _built(*layers: Layer) -> RunConfig:
    return build(*merge(layers), RunConfig)


def _complaints(*layers: Layer) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        _built(*layers)
    return str(caught.value).splitlines()


def _recipe(**values: Any) -> Layer:
    return Layer("r.yaml", {key.replace("__", "."): value for key, value in values.items()})


def test_higher_layers_lie_over_lower_ones_key_by_key() -> None:
    recipe = _recipe(seed=1, mask__ratio=0.75, train__batch_size=8)
    flags = Layer("command line", {"mask.ratio": 0.8, "train.batch_size": 16}, {"mask.ratio": "--mask-ratio"})
    config = _built(recipe, flags, set_layer(["train.batch_size=64"]))
    assert (config.seed, config.mask.ratio, config.train.batch_size) == (1, 0.8, 64)
    assert config.train.accumulate == RunConfig().train.accumulate


def test_the_origin_of_a_value_is_the_layer_that_set_it_last() -> None:
    flags = Layer("command line", {"seed": 2}, {"seed": "--seed"})
    _, origins = merge([_recipe(seed=1, mask__ratio=0.9), flags, set_layer(["mask.ratio=0.8"])])
    assert origins == {"seed": "--seed", "mask.ratio": "--set mask.ratio"}


@pytest.mark.parametrize(
    ("name", "options"), [("mask.name", "mask.options"), ("flow.name", "flow.options"), ("data.source", "data.options")]
)
def test_another_name_on_a_higher_layer_drops_the_options_below_it(name: str, options: str) -> None:
    below = Layer("r.yaml", {name: "one", f"{options}.a": 1, f"{options}.b.c": 2, "seed": 3})
    assert merge([below, Layer("x", {name: "two", f"{options}.d": 4})])[0] == {
        name: "two",
        f"{options}.d": 4,
        "seed": 3,
    }
    kept = merge([below, Layer("x", {name: "one", f"{options}.d": 4})])[0]
    assert kept == {name: "one", f"{options}.a": 1, f"{options}.b.c": 2, f"{options}.d": 4, "seed": 3}


@pytest.mark.parametrize(("low", "high"), [("steps", "epochs"), ("epochs", "steps")])
def test_steps_and_epochs_take_each_others_place_on_a_higher_layer(low: str, high: str) -> None:
    config = _built(Layer("r.yaml", {f"train.{low}": 7}), Layer("x", {f"train.{high}": 3}))
    assert getattr(config.train, low) is None
    assert getattr(config.train, high) == 3


def test_steps_and_epochs_on_one_layer_are_refused_naming_it() -> None:
    flags = Layer("command line", {"train.steps": 3, "train.epochs": 2}, {"train.steps": "--steps"})
    assert _complaints(_recipe(train__batch_size=8), flags) == [
        "--steps: train: steps and epochs are both given; keep one"
    ]


def test_all_problems_are_told_at_once_with_origin_and_nearest_key() -> None:
    flags = Layer("command line", {"mask.ratio": 1.5}, {"mask.ratio": "--mask-ratio"})
    recipe = _recipe(seed=-1, train__lr=1, trian__steps=5, data__size="big", train__betas=[0.9, 2], model="tiny")
    lines = _complaints(recipe, flags, set_layer(["model.pacth=8", "batch_size=3", "data.workers=many", "seed.x=1"]))
    expected = [
        "--mask-ratio: mask.ratio: 1.5: input should be less than 1",
        "r.yaml: seed: -1: input should be greater than or equal to 0",
        "r.yaml: train.lr: unknown key (did you mean 'train.base_lr'?)",
        "r.yaml: trian: unknown key (did you mean 'train'?)",
        "r.yaml: train.betas: 2: input should be less than 1",
        "--set batch_size: unknown key (did you mean 'train.batch_size'?)",
    ]
    assert set(expected) <= set(lines)
    rest = sorted(set(lines) - set(expected))
    beginnings = [
        "--set data.workers: 'many': input should be a valid integer, ",
        "--set model.pacth: can't be set inside model = 'tiny' (r.yaml)",
        "--set seed.x: can't be set inside seed = -1 (r.yaml)",
        "r.yaml: data.size: 'big': input should be a valid integer, ",
        "r.yaml: model: is a section, not a value ('tiny'); use model.NAME",
    ]
    assert len(rest) == len(beginnings)
    assert all(line.startswith(beginning) for line, beginning in zip(rest, beginnings))


def test_a_value_of_two_possible_types_gets_one_line() -> None:
    (line,) = _complaints(set_layer(["data.size=[64, wide]"]))
    assert line.startswith("--set data.size: [64, 'wide']: input should be a valid integer, or ")


def test_a_value_where_lower_layers_have_a_section_is_refused() -> None:
    assert _complaints(Layer("defaults", {"model.name": "tiny"}), _recipe(model="small")) == [
        "r.yaml: model: is a section, not a value ('small'); use model.NAME"
    ]


def test_a_section_with_nothing_below_it_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("data:\n  # size: 64\nmask:\n  options:\ntrain:\n")
    assert _built(recipe_layer(path)) == RunConfig()
    over = _built(Layer("low", {"data.size": 64}), recipe_layer(path), set_layer(["mask.options.warp=forward"]))
    assert over.data.size == 64
    assert over.mask.options == {"warp": "forward"}


def test_set_reads_values_as_yaml() -> None:
    layer = set_layer(["train.base_lr=1e-3", "data.size=[64, 96]", "run.pictures=false", "train.clip_grad=", "a=b=c"])
    assert layer.values == {
        "train.base_lr": 1e-3,
        "data.size": [64, 96],
        "run.pictures": False,
        "train.clip_grad": None,
        "a": "b=c",
    }


def test_set_takes_a_mapping_for_a_whole_section() -> None:
    layer = set_layer(["train={base_lr: 1e-3, betas: [0.8, 0.9]}", "mask.options={warp: forward}"])
    assert layer.values == {"train.base_lr": 1e-3, "train.betas": [0.8, 0.9], "mask.options.warp": "forward"}
    assert layer.origin_of("train.betas") == "--set train.betas"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.steps", "--set train.steps: expected KEY=VALUE, as in --set train.base_lr=3e-4"),
        ("=3", "--set =3: expected KEY=VALUE, as in --set train.base_lr=3e-4"),
        ("data.size=[64", "--set data.size: line 1, column 4: "),
    ],
)
def test_set_without_key_or_value_or_yaml_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        set_layer([text])
    assert str(caught.value).startswith(message)


def test_words_and_numbers_become_what_the_setting_declares() -> None:
    config = _built(_recipe(run__pictures="off", train__steps="20", train__base_lr="1e-3", data__workers="2"))
    assert config.run.pictures is False
    assert (config.train.steps, config.train.base_lr, config.data.workers) == (20, 1e-3, 2)


@pytest.mark.parametrize(
    "wrong",
    ["train.betas=[0.9, 1.0]", "train.base_lr=.inf", "data.workers=-1", "data.size=0", "train.clip_grad=.nan"],
)
def test_numbers_that_would_fail_deep_inside_are_refused(wrong: str) -> None:
    (line,) = _complaints(set_layer([wrong]))
    assert line.startswith(f"--set {wrong.partition('=')[0]}: ")


def test_a_learning_rate_that_would_rise_to_its_end_is_refused() -> None:
    flags = Layer("command line", {"train.base_lr": 1e-6}, {"train.base_lr": "--lr"})
    (line,) = _complaints(flags)
    assert line.startswith("--lr: train: min_base_lr = 1e-05 is above base_lr = 1e-06")


@pytest.mark.parametrize(
    "assignments",
    [
        [],
        ["data.size=[64, 96]", "data.path=1e-4", "run.out=on", "train.base_lr=1e-7", "train.min_base_lr=0"],
        ["mask.options={a: 1e-8, b: [x, null], c: 'yes', d: {e: 2026-01-02}}", "train.steps=3", "data.workers=0"],
    ],
)
def test_a_dumped_config_is_a_recipe_that_builds_an_equal_config(tmp_path: Path, assignments: list[str]) -> None:
    config = _built(set_layer([text.replace("=1e-4", "='1e-4'") for text in assignments]))
    path = tmp_path / "config.yaml"
    path.write_text(dump(config, "first line\nsecond line"))
    assert path.read_text().startswith("# first line\n# second line\nseed: 0\n")
    assert _built(recipe_layer(path)) == config


def test_flatten_names_leaves_by_dots_and_keeps_lists_whole() -> None:
    tree = parse_yaml("a: {b: 1, c: {d: [1, 2], e: {}}}\nf: null", "here")
    assert dict(flatten(tree)) == {"a.b": 1, "a.c.d": [1, 2], "f": None}
