"""`evaluate`: test a fine-tuned classifier over several views of each video. Callable from a notebook.

Writes into its folder: `results.json`, `predictions.csv` (a line a video, by full path), `classes.csv`, `confusion.png`
and `config.yaml`. How views were merged is part of every result, since it moves Kinetics by up to half a point.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from mgmae_cli.config import Layer, dump
from mgmae_cli.downstream.config import EvaluateConfig
from mgmae_cli.downstream.data import labelled
from mgmae_cli.downstream.encoder import LoadedClassifier, build_tested, load_classifier
from mgmae_cli.downstream.metrics import Prediction, Report, report
from mgmae_cli.downstream.pictures import confusion_png
from mgmae_cli.downstream.predict import predict, views_story
from mgmae_cli.downstream.settings import (
    Resolved,
    checkpoint_of,
    open_train,
    resolve_config,
    view_spec,
    watcher,
)
from mgmae_cli.engine import distributed
from mgmae_cli.engine.progress import settings_table
from mgmae_cli.engine.run import device_facts
from mgmae_cli.engine.run_folder import replace_text
from mgmae_cli.errors import ConfigError, RunError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.registry import Registry
from mgmae_cli.settings import given_layers


@dataclass(frozen=True)
class EvaluateSettings:
    """A validated test: its config, its clip source, and the classifier."""

    resolved: Resolved[EvaluateConfig]
    classifier: LoadedClassifier

    @property
    def config(self) -> EvaluateConfig:
        return self.resolved.config


@dataclass(frozen=True)
class EvaluateResult:
    """What a test found, and the folder that holds it."""

    folder: Path
    report: Report
    predictions: list[Prediction]
    story: str


def resolve_evaluate(
    recipe: Path | None = None,
    flags: Layer | None = None,
    assignments: Sequence[str] = (),
    registry: Registry | None = None,
) -> EvaluateSettings:
    """Resolve a test. Clips are read as in the run; without other data, its validation videos are tested.

    Raises:
        MgmaeError: settings that are wrong, or a checkpoint that can't be used.
    """
    layers = given_layers(recipe, flags, assignments)
    classifier = load_classifier(checkpoint_of(layers, "evaluate"))
    origin = f"checkpoint {classifier.path}"
    if not any(key in layer.values for layer in layers for key in ("data.path", "data.source")):
        val = (classifier.weights.config or {}).get("val")
        if val is None:
            raise ConfigError(f"data.path: {classifier.path} does not say what to test on; give --data PATH")
        same = {f"data.{key}": val[key] for key in ("source", "path", "root") if val[key] is not None}
        layers.insert(0, Layer(origin, {**same, **{f"data.options.{key}": v for key, v in val["options"].items()}}))
    trained = [Layer(origin, classifier.reading)]
    resolved = resolve_config(EvaluateConfig, layers, trained=trained, registry=registry)
    return EvaluateSettings(resolved, classifier)


def evaluate(settings: EvaluateSettings, console: Console | None = None) -> EvaluateResult | None:
    """Test as the settings say; several processes (torchrun) share the videos.

    Returns:
        The result on the main rank, None on others.

    Raises:
        MgmaeError: anything the user can mend.
    """
    console = console or Console(stderr=True, emoji=False)
    config, classifier = settings.config, settings.classifier
    place = distributed.find_place(config.run.device, config.run.precision)
    try:
        trained, data, views = classifier.weights.geometry.grid, config.data, config.views
        grid = ClipGrid(data.frames, data.height, data.width, trained.tubelet, trained.patch)
        videos = labelled(open_train(settings.resolved), classifier.classes, "testing")
        weights, name = classifier.weights.choose(config.weights)
        model, notes = build_tested(weights, grid)
        story = views_story(views.clips, views.crops, views.merge)
        with distributed.together():
            folder = new_folder(config.run.out, classifier.path, "evaluate") if place.is_main else Path()
        if place.is_main:
            facts = [
                ("checkpoint", f"{classifier.path} ({weights.origin}{', averaged weights' if name == 'ema' else ''})"),
                device_facts(place),
                ("data", f"{len(videos)} videos from {data.path or data.source}"),
                ("views", story),
                *[("note", note) for note in notes],
                ("folder", str(folder)),
            ]
            console.print(settings_table("mgmae evaluate", facts), soft_wrap=True)
        predictions = predict(
            model.to(place.device),
            videos,
            view_spec(data, views),
            views.merge,
            views.batch_size,
            views.on_bad,
            place,
            data.workers,
            watcher(console, "testing"),
        )
        if not place.is_main:
            return None
        result = EvaluateResult(folder, report(predictions, len(classifier.classes)), predictions, story)
        _write(result, settings, name)
        return result
    finally:
        distributed.leave()


def new_folder(wanted: Path | None, checkpoint: Path, verb: str) -> Path:
    """Return a new folder for results: the one that is wanted, or one in the checkpoint's run folder, or under runs/.

    Raises:
        RunError: it holds results already, or can't be made.
    """
    name = f"{verb}-{datetime.now():%Y%m%d-%H%M%S}"
    in_run = checkpoint.parent.name == "checkpoints"
    folder = wanted or (checkpoint.parent.parent / name if in_run else Path("runs") / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any((folder / taken).exists() for taken in ("results.json", "config.yaml", "index.csv")):
            raise RunError(f"{folder}: already holds results; choose another --out")
    except OSError as error:
        raise RunError(f"{folder}: can't be written: {error.strerror or error}; choose another --out") from error
    return folder


def _write(result: EvaluateResult, settings: EvaluateSettings, weights: str) -> None:
    """Write a test's files.

    Raises:
        RunError: one can't be written.
    """
    classes, figures, folder = settings.classifier.classes, result.report, result.folder
    summary: dict[str, Any] = {
        "top1": figures.top1,
        "top5": figures.top5,
        "mean_class": figures.mean_class,
        "loss": figures.loss,
        "videos": figures.videos,
        "unreadable": figures.unreadable,
        "views": result.story,
        "checkpoint": str(settings.classifier.path),
        "step": settings.classifier.weights.step,
        "weights": weights,
        "data": str(settings.config.data.path or settings.config.data.source),
    }
    replace_text(folder / "results.json", json.dumps(summary, indent=2) + "\n")
    replace_text(folder / "predictions.csv", predictions_csv(result.predictions, classes))
    rows = [
        (name, count, "" if accuracy is None else f"{accuracy:.2f}")
        for name, (accuracy, count) in zip(classes, figures.per_class)
    ]
    replace_text(folder / "classes.csv", _csv([("class", "videos", "top1"), *rows]))
    header = "Resolved settings of this test; again: mgmae evaluate --recipe config.yaml --out NEW_FOLDER"
    replace_text(folder / "config.yaml", dump(settings.config, header))
    confusion_png(folder / "confusion.png", figures.confusion, classes, f"top-1 {figures.top1:.1f} %, {result.story}")


def predictions_csv(predictions: Sequence[Prediction], classes: Sequence[str]) -> str:
    """Return a line a video: path, true and predicted class, whether it is right, its probability, the true class's."""
    rows: list[tuple[object, ...]] = [
        ("path", "label", "predicted", "correct", "probability", "label_probability", "unreadable")
    ]
    for prediction in predictions:
        if prediction.probabilities is None:
            rows.append((prediction.name, classes[prediction.label], "", 0, "", "", prediction.reason))
            continue
        first = prediction.ranking[0]
        chances = (f"{float(prediction.probabilities[number]):.6f}" for number in (first, prediction.label))
        right = int(first == prediction.label)
        rows.append((prediction.name, classes[prediction.label], classes[first], right, *chances, ""))
    return _csv(rows)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
