"""The commands that judge what was pre-trained, as a user types them: one after the other on `shapes`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.downstream.conftest import write_checkpoint

SMALL = ["--workers", "0", "--device", "cpu"]
FEW = ["--set", "data.options.clips=20", "--set", "val.options.clips=10"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pretrained"))


def test_finetune_then_evaluate(
    pretrained: Path, tmp_path: Path, mgmae: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    start = ["finetune", pretrained, "--steps", 2, "--batch-size", 4, "--out", run, *SMALL, *FEW]
    assert mgmae(*start) == 0
    assert "top-1: best" in capsys.readouterr().out
    assert "mgmae finetune --recipe config.yaml" in (run / "config.yaml").read_text().splitlines()[0]
    test = ["evaluate", run, "--merge", "logit", "--clips", 2, "--out", tmp_path / "test", *SMALL]
    assert mgmae(*test) == 0
    said = capsys.readouterr().out
    assert "of 10 videos" in said
    assert "2 clips x 1 crops, merged by logit" in said
    assert json.loads((tmp_path / "test" / "results.json").read_text())["videos"] == 10
    again = ["finetune", "--recipe", run / "config.yaml", "--out", tmp_path / "again", "--seed", 3]
    assert mgmae(*again) == 0
    assert mgmae("finetune", "--resume", run) == 0
    assert mgmae("finetune", pretrained, "--resume", run) == 2
    assert "drop" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--kind", "knn", "--k", 3], ["--layers", "2,last", "--set", "probe.epochs=1"]])
def test_probe(
    options: list[object],
    pretrained: Path,
    tmp_path: Path,
    mgmae: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ["--cache", tmp_path / "cache", "--out", tmp_path / "probe", *SMALL, *FEW]
    assert mgmae("probe", pretrained, *options, *common) == 0
    said = capsys.readouterr().out
    assert "in percent of 10 videos" in said
    assert "last" in said
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2 * (2 if "--layers" in options else 1)


def test_features(pretrained: Path, tmp_path: Path, mgmae: Callable[..., int]) -> None:
    options = ["--layers", "1,last", "--format", "safetensors", "--dtype", "float16", "--out", tmp_path / "out"]
    few = ["--set", "data.options.clips=4"]
    assert mgmae("features", pretrained, *options, *few, *SMALL) == 0
    assert json.loads((tmp_path / "out" / "features.json").read_text())["layers"] == ["1", "last"]
    assert (tmp_path / "out" / "features.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune"], "name a checkpoint or a run folder"),
        (
            ["finetune", "PRETRAINED", "--batch-size", "3", "--set", "augment.mixup=0.8"],
            "--batch-size: train.batch_size = 3: mixup",
        ),
        (["finetune", "PRETRAINED", "--data", "nowhere.csv"], "--data: nowhere.csv: no such file"),
        (["evaluate", "PRETRAINED"], "has no classification head; fine-tune it first"),
        (["evaluate", "nowhere.pt"], "nowhere.pt: no such checkpoint"),
        (["probe", "PRETRAINED", "--kind", "linear", "--k", "3"], "linear has no k"),
        (["probe", "PRETRAINED", "--layers", "40"], "--layers 40: "),
        (["probe", "PRETRAINED", "--crops", "2"], "--crops: views.crops: 2: input should be 1 or 3"),
        (["features", "PRETRAINED", "--form", "sparse"], "--form: features.form: 'sparse'"),
    ],
)
def test_mistakes_are_answered_in_one_line_with_exit_code_2(
    arguments: list[str],
    message: str,
    pretrained: Path,
    tmp_path: Path,
    mgmae: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = [str(pretrained) if word == "PRETRAINED" else word for word in arguments]
    assert mgmae(*typed) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said
    assert said.startswith("error: ")
    assert list(tmp_path.iterdir()) == []
