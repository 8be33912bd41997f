"""What is measured of a run: each evaluation is a function from a finished pre-training to named figures.

    loss            pre-training loss over the last tenth of the steps, and speed
    leakage         figures of `mgmae_cli.diagnose.leakage_table`, without training
    reconstruction  loss on clips that were not trained on, under the run's own masks and under tube masks
    linear, knn, attentive, finetune
                    top-1 in percent on the source's other split

Losses under a run's own masks compare how hard the tasks are, not how good the models are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from rich.console import Console

from mgmae_cli.ablation.recipe import Evaluations
from mgmae_cli.config import Layer, Section
from mgmae_cli.diagnose.leakage_table import measure
from mgmae_cli.downstream.config import ProbeConfig
from mgmae_cli.downstream.finetune import finetune
from mgmae_cli.downstream.finetune_settings import check_finetune, resolve_finetune, resumed_finetune
from mgmae_cli.downstream.probe import probe, resolve_probe
from mgmae_cli.downstream.settings import resolve_config
from mgmae_cli.engine import distributed
from mgmae_cli.engine.checkpoint import CheckpointFolder
from mgmae_cli.engine.pretrain import clip_spec
from mgmae_cli.engine.run_folder import read_metrics
from mgmae_cli.engine.step import PretrainTask
from mgmae_cli.errors import ConfigError, MgmaeError, RunError
from mgmae_cli.explain import explain
from mgmae_cli.masking.masker import Masker
from mgmae_cli.masking.tube import TubeMask
from mgmae_cli.model.formats_read import read_weights
from mgmae_cli.model.loading import build_pretrained
from mgmae_cli.settings import Settings
from mgmae_cli.video.dataset import ClipDataset
from mgmae_cli.video.loader import Batch, collate

# Evaluations of a trained model; the others cost no training.
NEED_TRAINING = frozenset({"loss", "reconstruction", "linear", "knn", "attentive", "finetune"})
_UNSEEN = 112  # what a derived generator is for


@dataclass(frozen=True)
class Metric:
    """A figure of the report.

    Args:
        title: heading of its column.
        better: "high" or "low"; None where neither is better.
        digits: after the point.
        says: what it is, in a line.
    """

    title: str
    better: str | None
    digits: int
    says: str


METRICS: Mapping[str, Metric] = {
    "finetune": Metric("fine-tuned, %", "high", 1, "top-1 on clips of the other split, all weights trained"),
    "linear": Metric("linear, %", "high", 1, "top-1 of a linear layer on frozen features"),
    "attentive": Metric("attentive, %", "high", 1, "top-1 of an attentive head on frozen features"),
    "knn": Metric("kNN, %", "high", 1, "top-1 of nearest neighbours in frozen features"),
    "leak": Metric("leak", "low", 3, "share of masked tokens at least half of whose content another slot shows"),
    "copy_error": Metric("copy error", "high", 3, "error of copying along the motion; 1: copying explains nothing"),
    "life": Metric("life", None, 2, "slots in a row in which visible content stays visible"),
    "loss": Metric("loss", None, 4, "pre-training loss, mean of the last tenth of the steps, under the cell's masks"),
    "unseen_loss": Metric("unseen loss", None, 4, "loss on clips not trained on, under the cell's masks"),
    "tube_loss": Metric("tube loss", "low", 4, "loss on the same clips under tube masks: one task for all cells"),
    "hole_share": Metric("holes", "low", 3, "share of warped places without source"),
    "flow_error": Metric("flow error, px", "low", 3, "mean distance of the flow from the exact flow"),
    "photometric_error": Metric("photometric", "low", 4, "colour difference along the flow, of 0 to 1"),
    "consistency_error": Metric("consistency, px", "low", 3, "disagreement of forward and backward flow"),
    "train_seconds": Metric("train, s", "low", 0, "time of pre-training"),
    "clips_per_s": Metric("clips/s", "high", 1, "median speed of pre-training"),
    "data_wait": Metric("wait", None, 2, "share of the training time spent waiting for clips and their masks"),
}


class ClipsOptions(Section):
    """Settings of `leakage` and `reconstruction`."""

    clips: int = Field(64, ge=1, description="clips that are measured")


@dataclass(frozen=True)
class Finished:
    """A finished pre-training: its run folder, settings, and a folder for what evaluations leave."""

    folder: Path
    settings: Settings
    scratch: Path
    console: Console


def check_evaluations(evaluate: Evaluations, settings: Settings) -> None:
    """Refuse settings that an evaluation lacks or can't have, before anything is trained.

    Args:
        settings: of a cell.

    Raises:
        ConfigError: naming the evaluation and the key.
    """
    run = Finished(Path("run"), settings, Path("work"), Console(quiet=True))
    for name, given in evaluate.items():
        if name in ("leakage", "reconstruction"):
            _clips_options(name, given)
        elif name == "finetune":
            check_finetune([_layer(run, name, given)], settings.registry)
        elif name != "loss":
            resolve_config(ProbeConfig, [_layer(run, name, given)], registry=settings.registry)
        elif given:
            raise ConfigError(f"evaluate.loss.{next(iter(given))}: loss has no settings; drop it")


def run_evaluation(name: str, run: Finished, settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of one evaluation; a run of no steps has none of its masks and its training."""
    if name in ("loss", "leakage") and run.settings.config.train.steps == 0:
        return {}
    return _FUNCTIONS[name](run, settings)


def _loss(run: Finished, settings: Mapping[str, Any]) -> dict[str, float]:
    records = [record for record in read_metrics(run.folder) if "loss" in record]
    if not records:
        raise RunError(f"{run.folder}: its metrics.jsonl holds no loss")
    last = records[-1]["step"]
    # Each record is the mean of the steps since the record before it.
    tail = [record["loss"] for record in records if record["step"] > 0.9 * last] or [records[-1]["loss"]]
    train = run.settings.config.train
    clips = [b["step"] - a for a, b in zip([0] + [r["step"] for r in records], records)]
    per_step = train.batch_size * train.accumulate
    speeds = sorted(record["clips_per_s"] for record in records)
    return {
        "loss": sum(tail) / len(tail),
        "train_seconds": sum(steps * per_step / r["clips_per_s"] for steps, r in zip(clips, records)),
        "clips_per_s": speeds[len(speeds) // 2],
        "data_wait": sum(record["data_wait"] for record in records) / len(records),
    }


def _clips_options(name: str, settings: Mapping[str, Any]) -> ClipsOptions:
    try:
        return ClipsOptions.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, ClipsOptions, {}, f"evaluate.{name}."))) from None


def _leakage(run: Finished, settings: Mapping[str, Any]) -> dict[str, float]:
    found = measure({"cell": run.settings}, _clips_options("leakage", settings).clips)[0]
    return dict(found.figures)


@torch.no_grad()
def _reconstruction(run: Finished, settings: Mapping[str, Any]) -> dict[str, float]:
    options = _clips_options("reconstruction", settings)
    config = run.settings.config
    place = distributed.find_place(config.run.device, config.run.precision)
    model = build_pretrained(read_weights(run.folder))[0].eval().to(place.device)
    own = run.settings.make_masker()
    if own.estimator is not None:
        own.estimator.to(place.device)
    tube = Masker(TubeMask(TubeMask.Options()), None, own.grid, config.mask.ratio)
    found = {}
    for name, masker in (("unseen_loss", own), ("tube_loss", tube)):
        task, total, count = PretrainTask(model, masker), 0.0, 0
        for number, batch in enumerate(_unseen(run, masker, options.clips)):
            with place.autocast():
                loss = task.loss(batch.to(place.device), (config.seed, number, _UNSEEN))
            total, count = total + float(loss) * len(batch.names), count + len(batch.names)
        found[name] = total / count
    return found


def _unseen(run: Finished, masker: Masker, clips: int, at_a_time: int = 16) -> list[Batch]:
    """Return batches of clips that were not trained on: of the split `val` where the source has splits."""
    data = run.settings.config.data
    options = dict(data.options)
    if "split" in run.settings.source.Options.model_fields and options.get("split") != "val":
        options["split"] = "val"
    config = run.settings.config.model_copy(update={"data": data.model_copy(update={"options": options})})
    other = Settings(config, run.settings.mask, run.settings.flow, run.settings.source, run.settings.registry)
    source = other.make_source()
    dataset = ClipDataset(source, clip_spec(config), config.seed, masker, replace_bad=False)
    samples = [s for s in (dataset[0, i] for i in range(min(clips, len(source)))) if not isinstance(s, MgmaeError)]
    if not samples:
        raise RunError("evaluate.reconstruction: none of the clips can be read")
    made = [collate(samples[start : start + at_a_time]) for start in range(0, len(samples), at_a_time)]
    return [batch for batch in made if isinstance(batch, Batch)]


def _read_like(run: Finished) -> dict[str, Any]:
    """Return the settings that a downstream run takes over from pre-training: data, device, workers."""
    config = run.settings.config
    shared = ("source", "path", "root", "frames", "size", "stride", "sampling", "workers")
    data = {f"data.{key}": value for key, value in config.data.model_dump(mode="json").items() if key in shared}
    split = "split" in run.settings.source.Options.model_fields and run.settings.source.needs_path
    options = {f"data.options.{key}": value for key, value in config.data.options.items()}
    if split and options.get("data.options.split") is None:
        options["data.options.split"] = "train"
    place = {"run.device": config.run.device, "run.precision": config.run.precision}
    return {**{key: value for key, value in data.items() if value is not None}, **options, **place}


def _layer(run: Finished, name: str, settings: Mapping[str, Any], **own: Any) -> Layer:
    values: dict[str, Any] = {
        **_read_like(run),
        "checkpoint": str(run.folder),
        "seed": run.settings.config.seed,
        **own,
        **settings,
    }
    return Layer(f"evaluate.{name}", values)


def _probe(kind: str) -> Callable[[Finished, Mapping[str, Any]], dict[str, float]]:
    def function(run: Finished, settings: Mapping[str, Any]) -> dict[str, float]:
        out, cache = run.scratch / f"probe-{kind}", run.scratch / "features"
        shutil.rmtree(out, ignore_errors=True)  # what a killed run left
        own = {"probe.kind": kind, "probe.cache": str(cache), "run.out": str(out)}
        result = probe(resolve_probe(flags=_layer(run, kind, settings, **own)), run.console)
        return {kind: result.layers[0].report.top1}

    return function


def _finetune(run: Finished, settings: Mapping[str, Any]) -> dict[str, float]:
    out = run.scratch / "finetune"
    resume = bool(CheckpointFolder(out / "checkpoints").all())
    if resume:
        result = finetune(resumed_finetune(out), out, run.console)
    else:
        shutil.rmtree(out, ignore_errors=True)
        layer = _layer(run, "finetune", settings, **{"run.out": str(out), "run.pictures": False})
        result = finetune(resolve_finetune(flags=layer), console=run.console)
    if result is None:
        raise RunError("evaluate.finetune: runs as one process; start the ablation without torchrun")
    return {"finetune": float(result.last["top1"])}


_FUNCTIONS: Mapping[str, Callable[[Finished, Mapping[str, Any]], dict[str, float]]] = {
    "loss": _loss,
    "leakage": _leakage,
    "reconstruction": _reconstruction,
    "linear": _probe("linear"),
    "knn": _probe("knn"),
    "attentive": _probe("attentive"),
    "finetune": _finetune,
}
