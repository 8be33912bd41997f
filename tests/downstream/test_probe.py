"""Probes from end to end on clips of a few pixels, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mgmae_cli.config import Layer
from mgmae_cli.downstream.probe import ProbeResult, ProbeRun, probe, resolve_probe
from mgmae_cli.errors import ConfigError, DataError
from mgmae_cli.registry import Registry
from tests.downstream.conftest import read_rows, write_frames, write_list


def settings(checkpoint: Path, registry: Registry, out: Path, **values: Any) -> ProbeRun:
    given = {key.replace("__", "."): value for key, value in values.items()}
    fixed = {"checkpoint": str(checkpoint), "data.source": "noise", "run.out": str(out), "run.device": "cpu"}
    cache = {"probe.cache": str(out.parent / "cache"), "data.workers": 0}
    return resolve_probe(None, Layer("test", {**fixed, **cache, **given}), (), registry)


def probed(run: ProbeRun) -> ProbeResult:
    return probe(run, Console(quiet=True))


@pytest.mark.parametrize("baseline", ["none", "random", "pixels"])
@pytest.mark.parametrize("kind", ["linear", "knn", "attentive"])
def test_each_probe_knows_clips_that_it_has_seen(
    kind: str, baseline: str, pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    """`val` of this source holds the clips of `train`: what is in the features must be found in them."""
    swept = {"linear": (0.01, 200), "attentive": (0.003, 60)}
    values: dict[str, Any] = {"probe__kind": kind, "baseline": baseline}
    if kind in swept:
        lr, epochs = swept[kind]
        values |= {"probe__lr": [lr], "probe__weight_decay": [0.0], "probe__epochs": epochs}
    else:
        values |= {"probe__k": 1}
    result = probed(settings(pretrained, registry, tmp_path / "out", **values))
    assert [layer.report.top1 for layer in result.layers] == [100]
    summary = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (summary["kind"], summary["baseline"], summary["step"]) == (kind, baseline, 3)
    assert summary["layers"][0]["layer"] == ("pixels" if baseline == "pixels" else "last")


def test_layers_are_judged_one_by_one(pretrained: Path, tmp_path: Path, registry: Registry) -> None:
    values = {"probe__layers": ["0", "3", "last"], "data__options__videos": 16, "data__options__classes": 2}
    result = probed(settings(pretrained, registry, tmp_path / "out", **values, probe__epochs=2))
    assert [layer.layer for layer in result.layers] == ["0", "3", "last"]
    for layer in result.layers:
        assert layer.sweep is not None
        assert layer.sweep.inner_top1 is not None
        rows = read_rows(tmp_path / "out" / f"predictions-{layer.layer}.csv")
        assert 100 * sum(row["correct"] == "1" for row in rows) / len(rows) == layer.report.top1


def test_what_is_chosen_does_not_depend_on_the_test_videos(
    pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    common = {"data__options__videos": 24, "data__options__classes": 3, "probe__epochs": 5}
    few = probed(settings(pretrained, registry, tmp_path / "few", val__options__videos=3, **common))
    many = probed(settings(pretrained, registry, tmp_path / "many", val__options__videos=21, **common))
    assert few.layers[0].sweep == many.layers[0].sweep
    assert few.layers[0].report.videos == 3


def test_its_config_is_a_recipe_that_gives_the_same_figures(
    pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    first = probed(settings(pretrained, registry, tmp_path / "one", data__options__classes=2, probe__epochs=3))
    layer = Layer("test", {"run.out": str(tmp_path / "two")})
    second = probed(resolve_probe(tmp_path / "one" / "config.yaml", layer, (), registry))
    assert first.layers[0].report.loss == second.layers[0].report.loss


def test_groups_are_held_out_whole_and_unreadable_videos_counted(
    pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    for number in range(5):
        write_frames(tmp_path / f"clip{number}", seed=number)
    (tmp_path / "broken").mkdir()
    rows = ["clip0,a,train,1", "clip1,b,train,1", "clip2,a,train,2", "clip3,b,train,2", "broken,a,train,2"]
    path = write_list(tmp_path / "list.csv", [*rows, "clip4,a,val,3"])
    values = {"data__source": "list", "data__path": str(path), "data__options__split": "train", "probe__epochs": 2}
    with pytest.raises(DataError, match=r"list\.csv, line 6 .*broken"):
        probed(settings(pretrained, registry, tmp_path / "a", **values))
    result = probed(settings(pretrained, registry, tmp_path / "b", views__on_bad="count", **values))
    assert result.layers[0].sweep is not None
    assert result.layers[0].sweep.inner_top1 in (0, 50, 100)
    single = write_list(tmp_path / "single.csv", [row.replace(",2", ",1") for row in rows[:4]] + ["clip4,a,val,3"])
    with pytest.raises(DataError, match=r"can't be split.*classes that occur in two groups"):
        probed(settings(pretrained, registry, tmp_path / "c", **{**values, "data__path": str(single)}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"probe__kind": "knn", "probe__lr": [0.1]}, "knn has no lr"),
        ({"probe__kind": "linear", "probe__k": 5}, "linear has no k; drop it, or choose --kind knn"),
        ({"probe__kind": "attentive", "views__crops": 3}, "the attentive probe sees tokens of one view"),
        ({"probe__kind": "nearest"}, r"probe\.kind: 'nearest': input should be 'linear', 'knn' or 'attentive'"),
        ({"probe__lr": [-1.0]}, "lr must be above 0"),
        ({"probe__lr": []}, "at least 1 item"),
        ({"views__merge": "prob"}, r"views\.merge: unknown key"),
        ({"baseline": "noise"}, r"baseline: 'noise': input should be 'none', 'random' or 'pixels'"),
    ],
)
def test_settings_that_are_wrong_are_answered(
    values: dict[str, Any], message: str, pretrained: Path, tmp_path: Path, registry: Registry
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(pretrained, registry, tmp_path / "out", **values)
