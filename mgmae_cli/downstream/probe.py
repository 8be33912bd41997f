"""`probe`: judge frozen features by a linear head, nearest neighbours, or an attentive head. Callable from a notebook.

Learning rate and weight decay are chosen on a part of the training videos that the sweep's heads have not seen (whole
groups of it, where the source knows groups); the winner is trained on all of them, and the test videos are asked once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from rich.console import Console

from mgmae_cli.config import Layer, dump
from mgmae_cli.downstream.config import ProbeConfig
from mgmae_cli.downstream.data import Labelled, check_splits, groups_of, labelled
from mgmae_cli.downstream.encoder import LoadedEncoder, load_encoder
from mgmae_cli.downstream.evaluate import new_folder, predictions_csv
from mgmae_cli.downstream.feature_cache import FeatureTable, cached_features, default_cache
from mgmae_cli.downstream.features import Extractor, Form, make_extractor
from mgmae_cli.downstream.heads import head_scores, read_rows
from mgmae_cli.downstream.knn import knn_scores
from mgmae_cli.downstream.metrics import Prediction, Report, report
from mgmae_cli.downstream.predict import full_name, refuse_bad
from mgmae_cli.downstream.settings import (
    Resolved,
    checkpoint_of,
    open_train,
    open_val,
    resolve_config,
    view_spec,
    watcher,
)
from mgmae_cli.downstream.sweep import SWEEPS, Fit, Rates, Sweep, attentive_maker, fit_head, linear_maker
from mgmae_cli.downstream.views import ViewDataset
from mgmae_cli.engine import distributed
from mgmae_cli.engine.distributed import Place
from mgmae_cli.engine.progress import settings_table
from mgmae_cli.engine.run import device_facts
from mgmae_cli.engine.run_folder import replace_text
from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.registry import Registry
from mgmae_cli.settings import given_layers
from mgmae_cli.video.loader import auto_workers


@dataclass(frozen=True)
class LayerResult:
    """A probe's result at one layer; `sweep` is None for nearest neighbours."""

    layer: str
    report: Report
    sweep: Sweep | None


@dataclass(frozen=True)
class ProbeResult:
    """A probe's results, and the folder that holds them."""

    folder: Path
    layers: list[LayerResult]


@dataclass(frozen=True)
class ProbeRun:
    """A validated probe: its config, its clip sources, and the encoder."""

    resolved: Resolved[ProbeConfig]
    loaded: LoadedEncoder

    @property
    def config(self) -> ProbeConfig:
        return self.resolved.config


def resolve_probe(
    recipe: Path | None = None,
    flags: Layer | None = None,
    assignments: Sequence[str] = (),
    registry: Registry | None = None,
) -> ProbeRun:
    """Resolve a probe; clips are read as in the checkpoint's training unless something else is said.

    Raises:
        MgmaeError: settings that are wrong, or a checkpoint that can't be used.
    """
    layers = given_layers(recipe, flags, assignments)
    loaded = load_encoder(checkpoint_of(layers, "probe"))
    trained = [Layer(f"checkpoint {loaded.path}", loaded.reading)]
    resolved = resolve_config(ProbeConfig, layers, trained=trained, registry=registry)
    config = resolved.config
    if config.probe.kind == "attentive" and config.views.clips * config.views.crops > 1:
        raise resolved.problem(
            "views.clips: the attentive probe sees tokens of one view; drop views.clips and views.crops"
        )
    return ProbeRun(resolved, loaded)


def probe(run: ProbeRun, console: Console | None = None) -> ProbeResult:
    """Probe as the settings say.

    Raises:
        MgmaeError: anything the user can mend.
    """
    console = console or Console(stderr=True, emoji=False)
    config, settings = run.config, run.config.probe
    place = distributed.find_place(config.run.device, config.run.precision)
    try:
        if place.ranks > 1:
            raise ConfigError("mgmae probe runs as one process; start it without torchrun or srun's --ntasks")
        train = labelled(open_train(run.resolved))
        test = labelled(open_val(run.resolved), train.classes, "testing")
        remarks = check_splits(train, test)
        data, trained = config.data, run.loaded.geometry.grid
        grid = ClipGrid(data.frames, data.height, data.width, trained.tubelet, trained.patch)
        extractor = make_extractor(run.loaded, grid, settings.layers, place, config.baseline, config.seed)
        folder = new_folder(config.run.out, run.loaded.path, f"probe-{settings.kind}")
        facts = _facts(run, train, test, place, extractor, folder)
        console.print(settings_table("mgmae probe", facts), soft_wrap=True)
        for remark in remarks:
            console.print(remark, style="yellow", soft_wrap=True, markup=False)
        tables = [_features(run, videos, extractor, place, console) for videos in (train, test)]
        results = []
        for layer in tables[0]:
            console.print(f"layer {layer}: {settings.kind} probe", soft_wrap=True, highlight=False)
            pair = (tables[0][layer], tables[1][layer])
            results.append(_judge(run, train, test, pair, layer, extractor.heads, place, folder))
        result = ProbeResult(folder, results)
        _write(run, result)
        return result
    finally:
        distributed.leave()


def _features(
    run: ProbeRun, videos: Labelled, extractor: Extractor, place: Place, console: Console
) -> dict[str, FeatureTable]:
    """Return a split's features by layer.

    Raises:
        DataError: an unreadable video, unless such are counted.
    """
    config = run.config
    form: Form = "dense" if config.probe.kind == "attentive" else "pooled"
    layers = ("pixels",) if config.baseline == "pixels" else config.probe.layers
    workers = auto_workers(place.device) if config.data.workers == "auto" else config.data.workers
    tables = cached_features(
        ViewDataset(videos.source, view_spec(config.data, config.views)),
        extractor,
        layers,
        form,
        config.probe.cache or default_cache(),
        place,
        config.views.batch_size,
        workers,
        watcher(console, "features"),
        lambda index, reason: refuse_bad(videos.source, index, reason) if config.views.on_bad == "error" else None,
    )
    cached = sum(table.cached for table in tables.values())
    console.print(f"features of {len(videos)} videos: {cached} of {len(tables)} layers from the cache", highlight=False)
    return tables


def _judge(
    run: ProbeRun,
    train: Labelled,
    test: Labelled,
    tables: tuple[FeatureTable, FeatureTable],
    layer: str,
    heads: int,
    place: Place,
    folder: Path,
) -> LayerResult:
    """Fit a probe on the training videos, ask it about the test videos, and write its predictions."""
    settings, (train_table, test_table) = run.config.probe, tables
    rows = [index for index in range(len(train)) if index not in train_table.bad]
    labels = torch.tensor([train.labels[index] for index in rows])
    asked = [index for index in range(len(test)) if index not in test_table.bad]
    fit = Fit(train_table.values, rows, labels, len(train.classes))
    sweep = None
    if settings.kind == "knn":
        known = read_rows(fit.features, rows, place.device)
        x = read_rows(test_table.values, asked, place.device)
        k, temperature = settings.k, settings.temperature
        chances = knn_scores(known, labels.to(place.device), x, fit.num_classes, k, temperature).cpu().double()
    else:
        maker = attentive_maker(fit, heads) if settings.kind == "attentive" else linear_maker(fit)
        lrs, decays, epochs = SWEEPS[settings.kind]
        points = [Rates(*pair) for pair in product(settings.lr or lrs, settings.weight_decay or decays)]
        groups = groups_of(train.source)
        sweep, head = fit_head(
            fit,
            maker,
            points,
            None if groups is None else [groups[index] for index in rows],
            settings.holdout,
            settings.epochs or epochs,
            settings.batch_size,
            run.config.seed,
            place.device,
        )
        scores = head_scores(head, test_table.values, asked, settings.batch_size, place.device)
        chances = scores.double().softmax(1)
    found = dict(zip(asked, chances))
    predictions = [
        Prediction(index, full_name(test.source, index), label, found.get(index), test_table.bad.get(index, ""))
        for index, label in enumerate(test.labels)
    ]
    replace_text(folder / f"predictions-{layer}.csv", predictions_csv(predictions, train.classes))
    return LayerResult(layer, report(predictions, fit.num_classes), sweep)


def _facts(
    run: ProbeRun, train: Labelled, test: Labelled, place: Place, extractor: Extractor, folder: Path
) -> list[tuple[str, str]]:
    config, settings = run.config, run.config.probe
    judged = {
        "none": f"{run.loaded.path} ({run.loaded.weights.origin})",
        "random": f"random weights, the geometry of {run.loaded.path}",
        "pixels": "raw pixels",
    }
    how = (
        f"k {settings.k}, temperature {settings.temperature:g}"
        if settings.kind == "knn"
        else "swept on training videos"
    )
    data, val = config.data, config.val
    return [
        ("features", judged[config.baseline]),
        device_facts(place),
        ("probe", f"{settings.kind}, {how}"),
        ("training", f"{len(train)} videos from {data.path or data.source}, {len(train.classes)} classes"),
        ("test", f"{len(test)} videos from {val.path or val.source}"),
        ("clips", f"{data.frames} x {data.height} x {data.width}, {data.sampling}, stride {data.stride}"),
        *[("note", note) for note in extractor.notes],
        ("folder", str(folder)),
    ]


def _write(run: ProbeRun, result: ProbeResult) -> None:
    """Write a probe's figures and settings.

    Raises:
        RunError: one can't be written.
    """
    config = run.config
    figures = [
        {
            "layer": found.layer,
            "top1": found.report.top1,
            "top5": found.report.top5,
            "mean_class": found.report.mean_class,
            "videos": found.report.videos,
            "unreadable": found.report.unreadable,
            **({} if found.sweep is None else {**asdict(found.sweep.rates), "inner_top1": found.sweep.inner_top1}),
        }
        for found in result.layers
    ]
    summary = {
        "kind": config.probe.kind,
        "baseline": config.baseline,
        "checkpoint": str(run.loaded.path),
        "step": run.loaded.weights.step,
        "seed": config.seed,
        "layers": figures,
    }
    replace_text(result.folder / "results.json", json.dumps(summary, indent=2) + "\n")
    header = "Resolved settings of this probe; again: mgmae probe --recipe config.yaml --out NEW_FOLDER"
    replace_text(result.folder / "config.yaml", dump(config, header))
