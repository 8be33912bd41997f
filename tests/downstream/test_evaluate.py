"""Testing a classifier: several views against a slow reference, the files it leaves, and unreadable videos."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mgmae_cli.config import Layer
from mgmae_cli.downstream import predict as predicting
from mgmae_cli.downstream.data import labelled
from mgmae_cli.downstream.encoder import load_classifier, new_classifier
from mgmae_cli.downstream.evaluate import EvaluateResult, EvaluateSettings, evaluate, resolve_evaluate
from mgmae_cli.downstream.metrics import Prediction
from mgmae_cli.downstream.settings import open_train
from mgmae_cli.engine.checkpoint import CheckpointFolder, read_checkpoint
from mgmae_cli.engine.distributed import Place
from mgmae_cli.errors import CheckpointError, ConfigError, DataError, RunError
from mgmae_cli.model.formats_read import GEOMETRY
from mgmae_cli.model.videomae import preset
from mgmae_cli.model.weights import Geometry
from mgmae_cli.registry import Registry
from mgmae_cli.video.crop import apply_crop, three_crops
from tests.downstream.conftest import GRID, read_rows, write_frames, write_list

CPU = Place(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, labelled_list: Path) -> Path:
    """Return a fine-tuning run folder with an untrained classifier of a and b that has clear opinions."""
    folder = tmp_path_factory.mktemp("run")
    geometry = replace(Geometry(GRID, preset("tiny")), final_norm=False, num_classes=2)
    model = new_classifier(geometry, GRID, 2, seed=3, head_scale=40.0)
    averaged = new_classifier(geometry, GRID, 2, seed=4, head_scale=40.0)
    val = {"source": "list", "path": str(labelled_list), "root": None, "options": {"split": "val"}}
    data = {"frames": 4, "size": 16, "stride": 1, "sampling": "stride"}
    payload = {
        "kind": "finetune",
        "model": model.state_dict(),
        "ema": averaged.state_dict(),
        "labels": ["a", "b"],
        "config": {"data": data, "val": val, "model": {"name": "tiny", "tubelet": 2, "patch": 8}},
        GEOMETRY: geometry.to_dict(),
    }
    CheckpointFolder(folder / "checkpoints").save_best(7, payload)
    return folder


@pytest.fixture(scope="module")
def wide_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a list of two videos of 9 frames, 20 x 36, so that clips and crops differ."""
    folder = tmp_path_factory.mktemp("wide")
    for number in range(2):
        write_frames(folder / f"clip{number}", 9, seed=10 + number, size=(20, 36))
    return write_list(folder / "test.csv", ["clip0,a", "clip1,b"], "path,label")


def settings(run: Path, registry: Registry, out: Path, **values: Any) -> EvaluateSettings:
    given = {key.replace("__", "."): value for key, value in values.items()}
    fixed = {"checkpoint": str(run), "run.out": str(out), "run.device": "cpu", "data.workers": 0}
    return resolve_evaluate(None, Layer("test", {**fixed, **given}), (), registry)


def evaluated(chosen: EvaluateSettings) -> EvaluateResult:
    result = evaluate(chosen, Console(quiet=True))
    assert result is not None
    return result


@pytest.mark.parametrize("merge", ["prob", "logit"])
def test_several_views_equal_a_slow_reference(
    merge: str, run: Path, wide_list: Path, tmp_path: Path, registry: Registry
) -> None:
    values = {"data__path": str(wide_list), "data__source": "list", "views__clips": 2, "views__crops": 3}
    result = evaluated(settings(run, registry, tmp_path / "out", views__merge=merge, views__batch_size=4, **values))
    assert result.story == f"2 clips x 3 crops, merged by {'probability' if merge == 'prob' else 'logit'}"
    model = new_classifier(load_classifier(run).weights.geometry, GRID, 2)
    model.load_state_dict(read_checkpoint(run / "checkpoints" / "best.pt")["ema"])
    model.eval()
    for number, prediction in enumerate(result.predictions):
        files = sorted((wide_list.parent / f"clip{number}").iterdir())
        frames = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2)
        scores = []
        for start in (0, 5):  # the first and the last window of 4 of 9 frames
            for crop in three_crops((20, 36), (16, 16)):
                view = apply_crop(frames[start : start + 4], crop, (16, 16)).transpose(0, 1)
                with torch.no_grad():
                    scores.append(model(view[None].contiguous())[0])
        chances = [score.softmax(0) for score in scores]
        expected = sum(chances) / 6 if merge == "prob" else (sum(scores) / 6).softmax(0)
        assert torch.allclose(prediction.probabilities.float(), expected, atol=1e-4)
        assert len({round(float(chance[0]), 5) for chance in chances}) > 2  # the views do differ


def test_without_data_it_tests_the_runs_validation_videos_and_leaves_its_files(
    run: Path, labelled_list: Path, tmp_path: Path, registry: Registry
) -> None:
    result = evaluated(settings(run, registry, tmp_path / "out"))
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    assert [row["path"] for row in rows] == [str(labelled_list.parent / f"clip{number}") for number in (4, 5)]
    assert [row["label"] for row in rows] == ["a", "b"]
    for row, prediction in zip(rows, result.predictions):
        assert row["predicted"] == "ab"[prediction.ranking[0]]
        assert row["correct"] == str(int(row["predicted"] == row["label"]))
    summary = json.loads((tmp_path / "out" / "results.json").read_text())
    assert summary["top1"] == result.report.top1 == 50 * sum(row["correct"] == "1" for row in rows)
    assert summary["views"] == "1 clip x 1 crop"
    assert summary["weights"] == "ema"
    assert [row["videos"] for row in read_rows(tmp_path / "out" / "classes.csv")] == ["1", "1"]
    assert (tmp_path / "out" / "confusion.png").stat().st_size > 1000
    again = resolve_evaluate(tmp_path / "out" / "config.yaml", Layer("", {"run.out": "other"}), (), registry)
    assert again.config.data == settings(run, registry, tmp_path / "out").config.data


def test_averaged_weights_are_taken_where_there_are_some(run: Path, tmp_path: Path, registry: Registry) -> None:
    found = {}
    for name in ("auto", "ema", "model"):
        result = evaluated(settings(run, registry, tmp_path / name, weights=name))
        found[name] = result.predictions[0].probabilities
    assert torch.equal(found["auto"], found["ema"])
    assert not torch.equal(found["auto"], found["model"])
    bare = replace(load_classifier(run).weights, averaged=None)
    assert bare.choose("auto")[1] == "model"
    with pytest.raises(CheckpointError, match=r"best.pt: .*holds no averaged weights.*--weights model"):
        bare.choose("ema")


def broken_list(folder: Path) -> Path:
    write_frames(folder / "good")
    (folder / "broken").mkdir()
    return write_list(folder / "list.csv", ["good,a", "broken,b"], "path,label")


def test_an_unreadable_video_stops_the_test_or_counts_as_wrong(run: Path, tmp_path: Path, registry: Registry) -> None:
    values = {"data__source": "list", "data__path": str(broken_list(tmp_path))}
    with pytest.raises(DataError, match=r"list\.csv, line 3 \(.*broken\): .*--on-bad count"):
        evaluated(settings(run, registry, tmp_path / "a", **values))
    result = evaluated(settings(run, registry, tmp_path / "b", views__on_bad="count", **values))
    assert result.report.unreadable == 1
    assert result.report.videos == 2
    assert result.report.per_class[1] == (0, 1)
    row = read_rows(tmp_path / "b" / "predictions.csv")[1]
    assert (row["predicted"], row["correct"]) == ("", "0")
    assert row["unreadable"]


def test_ranks_share_the_videos_and_agree(
    run: Path, labelled_list: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(run, registry, tmp_path, data__options__split="train")
    videos = labelled(open_train(chosen.resolved), ["a", "b"])
    model = new_classifier(chosen.classifier.weights.geometry, GRID, 2).eval()
    spec = predicting.ViewSpec(4, 1, 16, 16)
    alone = predicting.predict(model, videos, spec, "prob", 2, "error", CPU, 0)
    parts: list[list[Prediction]] = []
    monkeypatch.setattr(predicting, "gather", lambda own: parts.append(own) or list(parts))
    for rank in range(3):
        place = Place(torch.device("cpu"), "fp32", rank, 3)
        together = predicting.predict(model, videos, spec, "prob", 2, "error", place, 0)
    assert [[p.index for p in part] for part in parts] == [[0, 3], [1], [2]]
    assert [p.name for p in together] == [p.name for p in alone]
    assert all(torch.allclose(a.probabilities, b.probabilities) for a, b in zip(together, alone))


def test_bad_input_is_answered(
    run: Path, pretrained: Path, labelled_list: Path, tmp_path: Path, registry: Registry
) -> None:
    with pytest.raises(CheckpointError, match=r"has no classification head; fine-tune it first"):
        settings(pretrained, registry, tmp_path)
    with pytest.raises(ConfigError, match=r"views\.crops: 5: input should be 1 or 3"):
        settings(run, registry, tmp_path, views__crops=5)
    other = write_list(tmp_path / "other.csv", [f"{labelled_list.parent}/clip0,c"], "path,label")
    with pytest.raises(DataError, match=r"other\.csv, line 2 .*class 'c' is not among the 2 classes of training: a, b"):
        evaluated(settings(run, registry, tmp_path / "out", data__path=str(other), data__source="list"))
    evaluated(settings(run, registry, tmp_path / "taken"))
    with pytest.raises(RunError, match="already holds results"):
        evaluated(settings(run, registry, tmp_path / "taken"))


def test_a_classifier_in_the_official_format_is_tested_by_its_class_numbers(
    run: Path, labelled_list: Path, tmp_path: Path, registry: Registry
) -> None:
    torch.save({"model": read_checkpoint(run / "checkpoints" / "best.pt")["model"]}, tmp_path / "official.pth")
    with pytest.raises(ConfigError, match=r"does not say what to test on; give --data PATH"):
        settings(tmp_path / "official.pth", registry, tmp_path)
    folder = labelled_list.parent
    numbers = write_list(tmp_path / "numbers.csv", [f"{folder}/clip4,0", f"{folder}/clip5,1"], "path,label")
    sizes = {"data__frames": 4, "data__size": 16, "data__stride": 1}
    chosen = {"data__path": str(numbers), "data__source": "list", **sizes}
    result = evaluated(settings(tmp_path / "official.pth", registry, tmp_path / "a", **chosen))
    ours = evaluated(settings(run, registry, tmp_path / "b", weights="model"))
    assert [p.ranking for p in result.predictions] == [p.ranking for p in ours.predictions]
