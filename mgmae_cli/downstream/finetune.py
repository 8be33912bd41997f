"""`finetune`: train a classifier on a pre-trained encoder, by the engine of pre-training. Callable from a notebook.

Paper: VideoMAE (arXiv 2203.12602, appendix); MGMAE (arXiv 2308.10794) fine-tunes alike. The learning rate is base_lr *
clips per step / 256, repeated samples counted, as in the official code. Departures are named where they are:
`augment.py`, `views.py`, `encoder.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from rich.console import Console
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mgmae_cli.downstream.augment import Mixer, TrainTransform
from mgmae_cli.downstream.config import FinetuneConfig
from mgmae_cli.downstream.data import Labelled, check_splits, labelled
from mgmae_cli.downstream.encoder import classifier_geometry, new_classifier
from mgmae_cli.downstream.finetune_settings import FinetuneSettings
from mgmae_cli.downstream.layer_decay import layer_decay_groups
from mgmae_cli.downstream.metrics import report
from mgmae_cli.downstream.pictures import curves_png
from mgmae_cli.downstream.predict import predict, views_story
from mgmae_cli.downstream.settings import open_train, open_val, view_spec
from mgmae_cli.engine.distributed import Place, placed
from mgmae_cli.engine.run import Job, common_facts, device_facts, make_plan, make_schedule, run_job
from mgmae_cli.engine.run_folder import new_run_path, read_metrics
from mgmae_cli.engine.trainer import Plan, Validation
from mgmae_cli.model.classifier import VideoClassifier
from mgmae_cli.model.formats_read import GEOMETRY
from mgmae_cli.model.loading import load_into
from mgmae_cli.seeds import derive_generator
from mgmae_cli.video.crop import min_side
from mgmae_cli.video.dataset import ClipDataset, ClipSpec, Cropper
from mgmae_cli.video.loader import Batch

_HEAD, _MIX = 104, 105  # what a derived seed or generator is for


@dataclass(frozen=True)
class FinetuneResult:
    """What a finished run leaves: its folder, settings, and validations (step, top1, ...), the best and the last."""

    folder: Path
    settings: FinetuneSettings
    best: Mapping[str, Any]
    last: Mapping[str, Any]
    seconds: float


class FinetuneTask:
    """Classification of clips, as the engine trains it.

    Args:
        module: a VideoClassifier, possibly compiled or wrapped for several ranks.
        mixer: mixes clips and labels, label smoothing included; None for neither.
        smoothing: of labels, where there is no mixer.
    """

    def __init__(self, module: nn.Module, mixer: Mixer | None = None, smoothing: float = 0.0) -> None:
        self.module = module
        self.mixer = mixer
        self.smoothing = smoothing

    def loss(self, batch: Batch, generator_key: tuple[int, ...]) -> Tensor:
        """Return the mean cross entropy of a batch; see `Task.loss`."""
        if self.mixer is None:
            scores = self.module(batch.clips)
            return F.cross_entropy(scores.float(), batch.labels, label_smoothing=self.smoothing)
        clips, targets = self.mixer(batch.clips, batch.labels, derive_generator(*generator_key, _MIX))
        return F.cross_entropy(self.module(clips).float(), targets)


def finetune(
    settings: FinetuneSettings, resume: Path | None = None, console: Console | None = None
) -> FinetuneResult | None:
    """Fine-tune as the settings say.

    Args:
        settings: from `resolve_finetune`, or `resumed_finetune` where a run goes on.
        resume: the folder of the run to go on with.
        console: where progress is shown; None: standard error.

    Returns:
        The result on the main rank, None on others.

    Raises:
        MgmaeError: anything the user can mend; the run folder keeps what was saved.
    """
    console = console or Console(stderr=True, emoji=False)
    started = time.monotonic()
    config = settings.config
    out = resume or config.run.out or new_run_path(f"finetune-{config.model.name}")
    with placed(config.run, out) as (place, run):
        config = config.model_copy(update={"run": run})
        settings = replace(settings, resolved=replace(settings.resolved, config=config))
        job = finetune_job(settings, place)
        run_job(job, place, out, resume is not None, console)
        if not place.is_main:
            return None
        records = read_metrics(out)
        if config.run.pictures:
            curves_png(out / "curves.png", records)
        measured = [record for record in records if "top1" in record]
        best = max(measured, key=lambda record: float(record["top1"]))
        return FinetuneResult(out, settings, best, measured[-1], time.monotonic() - started)


def finetune_job(settings: FinetuneSettings, place: Place) -> Job:
    """Return the job that the settings describe; its model is on the device.

    Raises:
        MgmaeError: data that can't be read, or weights that don't fit.
    """
    config, geometry = settings.config, settings.geometry
    train = labelled(open_train(settings.resolved))
    val = labelled(open_val(settings.resolved), train.classes, "testing")
    model, notes = _classifier(settings, len(train.classes))
    model = model.to(place.device)
    length, augment = config.train, config.augment
    plan = make_plan(
        length.batch_size,
        length.accumulate,
        config.data.samples_per_video,
        length.steps,
        length.epochs,
        len(train),
        place,
        config.run,
        length.clip_grad,
        config.data.max_bad_share,
    )
    schedule = make_schedule(length.base_lr, length.min_base_lr, length.warmup, plan)
    mixer = None
    if augment.mixup or augment.cutmix:
        mixer = Mixer(
            augment.mixup,
            augment.cutmix,
            augment.mix_chance,
            augment.mix_switch,
            augment.label_smoothing,
            len(train.classes),
        )
    ema = ModelEmaV3(model, decay=length.ema) if length.ema is not None else None
    return Job(
        kind="finetune",
        config=config,
        run=config.run,
        seed=config.seed,
        registry=settings.resolved.registry,
        model=model,
        make_task=lambda module: FinetuneTask(module, mixer, augment.label_smoothing),
        groups=layer_decay_groups(model, geometry.size.depth, length.weight_decay, length.layer_decay),
        betas=length.betas,
        schedule=schedule,
        plan=plan,
        dataset=ClipDataset(train.source, _clip_spec(config), config.seed),
        videos_per_batch=length.batch_size // config.data.samples_per_video,
        workers=config.data.workers,
        facts=[
            device_facts(place),
            *_facts(settings, model, train, val),
            *common_facts(plan, schedule, length.base_lr, length.batch_size, place),
        ],
        validation=_validation(config, model if ema is None else ema.module, val, plan, place),
        extra_state=lambda: {
            GEOMETRY: classifier_geometry(geometry, settings.grid, len(train.classes)).to_dict(),
            "labels": train.classes,
            **({"ema": ema.module.state_dict()} if ema is not None else {}),
        },
        load_extra=lambda payload: ema.module.load_state_dict(payload["ema"]) if ema is not None else None,
        after_step=(lambda: ema.update(model)) if ema is not None else None,
        notes=[*check_splits(train, val), *notes],
        rerun="mgmae finetune --recipe config.yaml",
    )


def _classifier(settings: FinetuneSettings, num_classes: int) -> tuple[VideoClassifier, list[str]]:
    """Return the classifier to begin with, and notes on how weights were fitted to the clips."""
    config = settings.config
    model = new_classifier(
        settings.geometry,
        settings.grid,
        num_classes,
        seed=derive_generator(config.seed, _HEAD).initial_seed(),
        drop_path=config.model.drop_path,
        head_dropout=config.model.head_dropout,
        head_scale=config.model.head_scale,
        checkpointing=config.model.checkpointing,
    )
    if settings.start is None or config.baseline == "random":
        return model, []
    notes = load_into(model, settings.start.weights, config.model.allow_partial)
    return model, [note for note in notes if "start anew" not in note]


def _clip_spec(config: FinetuneConfig) -> ClipSpec:
    data, augment = config.data, config.augment
    size = (data.height, data.width)
    return ClipSpec(
        frames=data.frames,
        stride=data.stride,
        height=data.height,
        width=data.width,
        crop=TrainTransform(Cropper(data.crop, size, data.flip), augment.randaugment, augment.erase),
        sampling=data.sampling,
        min_frames=data.min_frames,
        min_side=min_side(data.crop, size),
        repeats=data.samples_per_video,
    )


def _validation(config: FinetuneConfig, model: nn.Module, val: Labelled, plan: Plan, place: Place) -> Validation:
    views = config.views

    def measure() -> dict[str, float]:
        predictions = predict(
            model,
            val,
            view_spec(config.data, views),
            views.merge,
            views.batch_size,
            views.on_bad,
            place,
            config.data.workers,
        )
        figures = report(predictions, len(val.classes))
        top5 = {"top5": figures.top5} if figures.top5 is not None else {}
        return {"top1": figures.top1, **top5, "val_loss": figures.loss}

    steps_per_epoch = plan.videos / plan.videos_per_step
    return Validation(measure, max(1, round(config.train.validate_every * steps_per_epoch)), "top1")


def _facts(settings: FinetuneSettings, model: VideoClassifier, train: Labelled, val: Labelled) -> list[tuple[str, str]]:
    config, grid, start = settings.config, settings.grid, settings.start
    data, augment, views = config.data, config.augment, config.views
    tokens = f"{grid.tokens} tokens"
    tested = views_story(views.clips, views.crops, views.merge)
    if config.baseline == "random":
        origin = f"random weights, the geometry of {config.checkpoint}"
    else:
        origin = f"{start.path} ({start.weights.origin})" if start else str(config.checkpoint)
    policy = augment.randaugment or "no RandAugment"
    mixing = f"mixup {augment.mixup:g}, cutmix {augment.cutmix:g}" if augment.mixup or augment.cutmix else "no mixing"
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    regular = f"drop path {config.model.drop_path:g}, layer decay {config.train.layer_decay:g}"
    return [
        ("from", origin),
        ("data", f"{len(train)} videos from {data.path or data.source}, {len(train.classes)} classes"),
        ("validation", f"{len(val)} videos from {config.val.path or config.val.source}, {tested}"),
        ("clips", f"{grid.frames} x {grid.height} x {grid.width}, {data.sampling}, stride {data.stride}, {tokens}"),
        ("augmentation", f"{policy}, erase {augment.erase:g}, {mixing}, flip {data.flip:g}"),
        ("model", f"{config.model.name}: {parameters:.1f} M parameters, {regular}"),
        *([("averaged weights", f"decay {config.train.ema}; these are tested")] if config.train.ema else []),
        *([("unreadable", "test videos that can't be read count as wrong")] if views.on_bad == "count" else []),
    ]
