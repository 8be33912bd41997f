"""`pretrain`: build the parts of a run from its settings, train, leave a run folder. Callable from a notebook.

Paper: MGMAE (arXiv 2308.10794) on VideoMAE (arXiv 2203.12602). The learning rate is base_lr * clips per step / 256;
the official code counts videos, not clips, where samples are repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

from mgmae_cli.config import Layer, RunConfig
from mgmae_cli.engine.checkpoint import CheckpointFolder
from mgmae_cli.engine.distributed import Place, placed
from mgmae_cli.engine.monitor import Monitor
from mgmae_cli.engine.optim import decay_groups
from mgmae_cli.engine.resume import resumed_layers
from mgmae_cli.engine.run import Job, common_facts, device_facts, make_plan, make_schedule, run_job
from mgmae_cli.engine.run_folder import new_run_path
from mgmae_cli.engine.step import PretrainTask
from mgmae_cli.engine.trainer import Plan
from mgmae_cli.errors import CheckpointError
from mgmae_cli.masking.masker import Masker
from mgmae_cli.model.formats_read import read_weights
from mgmae_cli.model.loading import load_into
from mgmae_cli.model.videomae import VideoMAE, build_videomae
from mgmae_cli.model.weights import Weights
from mgmae_cli.registry import Registry
from mgmae_cli.seeds import derive_generator
from mgmae_cli.settings import Settings, resolve_layers
from mgmae_cli.video.crop import min_side
from mgmae_cli.video.dataset import ClipDataset, ClipSpec, Cropper

_WEIGHTS = 103  # what a derived seed is for

# Given a run's config, masker, place and number of steps. It lives above the engine, so that the engine is handed it.
MakeMonitor: TypeAlias = Callable[[RunConfig, Masker, Place, int], Monitor]


@dataclass(frozen=True)
class PretrainResult:
    """What a finished run leaves: its folder, settings, model (on its device), and its parts, for pictures."""

    folder: Path
    settings: Settings
    model: VideoMAE
    masker: Masker
    dataset: ClipDataset
    place: Place
    seconds: float


def pretrain(
    settings: Settings,
    resume: Path | None = None,
    console: Console | None = None,
    make_monitor: MakeMonitor | None = None,
) -> PretrainResult | None:
    """Pre-train as the settings say.

    Args:
        settings: from `resolve`, or `resumed_settings` where a run goes on.
        resume: the folder of the run to go on with.
        console: where progress is shown; None: standard error.
        make_monitor: `mgmae_cli.diagnose.health.HealthMonitor`, which does what the section `health` says; None: no
            warnings.

    Returns:
        The result on the main rank, None on others.

    Raises:
        MgmaeError: anything the user can mend; the run folder keeps what was saved.
    """
    console = console or Console(stderr=True, emoji=False)
    started = time.monotonic()
    config = settings.config
    out = resume or config.run.out or default_out(config)
    init = _read_init(config.model.init, out)
    if init is not None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"init": init.path})})
    with placed(config.run, out) as (place, run):
        settings = replace(settings, config=config.model_copy(update={"run": run}))
        masker = settings.make_masker()
        job, model = pretrain_job(settings, masker, place, init)
        if make_monitor is not None:
            job = replace(job, monitor=make_monitor(settings.config, masker, place, job.plan.steps))
        run_job(job, place, out, resume is not None, console)
        if not place.is_main:
            return None
        return PretrainResult(out, settings, model, masker, job.dataset, place, time.monotonic() - started)


def pretrain_job(settings: Settings, masker: Masker, place: Place, init: Weights | None = None) -> tuple[Job, VideoMAE]:
    """Return the job that the settings describe, and its model, on the device.

    Args:
        init: what the model starts from; None: random weights.

    Raises:
        MgmaeError: data that can't be read, or weights that don't fit.
    """
    config = settings.config
    source = settings.make_source()
    train = config.train
    plan = make_plan(
        train.batch_size,
        train.accumulate,
        config.data.samples_per_video,
        train.steps,
        train.epochs,
        len(source),
        place,
        config.run,
        train.clip_grad,
        config.data.max_bad_share,
    )
    schedule = make_schedule(train.base_lr, train.min_base_lr, train.warmup, plan)
    if masker.estimator is not None:
        masker.estimator.to(place.device)
    seed = derive_generator(config.seed, _WEIGHTS).initial_seed()
    shape = config.model
    model = build_videomae(shape.name, masker.grid, seed, shape.decoder_depth, shape.checkpointing)
    notes = [] if init is None else _start_from(init, model, shape.allow_partial)
    model = model.to(place.device)
    job = Job(
        kind="pretrain",
        config=config,
        run=config.run,
        seed=config.seed,
        registry=settings.registry,
        model=model,
        make_task=lambda module: PretrainTask(module, masker, shape.decoder_mask == "running_cell"),
        groups=decay_groups(model, train.weight_decay),
        betas=train.betas,
        schedule=schedule,
        plan=plan,
        dataset=ClipDataset(source, clip_spec(config), config.seed, masker),
        videos_per_batch=train.batch_size // config.data.samples_per_video,
        workers=config.data.workers,
        facts=[
            device_facts(place),
            *_facts(config, masker, model, plan),
            *([("start", f"{init.path}: {init.describe()}")] if init is not None else []),
            *common_facts(plan, schedule, train.base_lr, train.batch_size, place),
        ],
        notes=notes,
    )
    return job, model


def _read_init(path: Path | None, out: Path) -> Weights | None:
    """Return the weights that a run starts from; None where it has none, or has saved its own already.

    Raises:
        CheckpointError: missing, damaged, or not of the VideoMAE family.
    """
    if path is None or CheckpointFolder(out / "checkpoints").all():
        return None
    try:
        return read_weights(path)
    except CheckpointError as error:
        raise CheckpointError(f"model.init: {error}") from None


def _start_from(init: Weights, model: VideoMAE, allow_partial: bool) -> list[str]:
    try:
        return load_into(model, init, allow_partial)
    except CheckpointError as error:
        raise CheckpointError(f"model.init: {error}") from None


def resumed_settings(
    run: Path, flags: Layer | None = None, assignments: Layer | None = None, registry: Registry | None = None
) -> Settings:
    """Return the settings of an earlier run, changed only where its results don't depend on it.

    Raises:
        ConfigError: no such run, or a flag would change what the run computes.
    """
    extra = [layer for layer in (flags, assignments) if layer is not None]
    return resolve_layers(resumed_layers(run, extra), registry)


def default_out(config: RunConfig) -> Path:
    """Return a new folder's name: runs/<mask>-<model>-<date>-<time>, with a number if that is taken."""
    return new_run_path(f"{config.mask.name}-{config.model.name}")


def clip_spec(config: RunConfig) -> ClipSpec:
    """Return how the loader reads clips for a config."""
    data = config.data
    size = (data.height, data.width)
    return ClipSpec(
        frames=data.frames,
        stride=data.stride,
        height=data.height,
        width=data.width,
        crop=Cropper(data.crop, size, data.flip),
        sampling=data.sampling,
        min_frames=data.min_frames,
        min_side=min_side(data.crop, size),
        repeats=data.samples_per_video,
        keeps_frames=data.crop == "none" and data.flip == 0,
    )


def _facts(config: RunConfig, masker: Masker, model: VideoMAE, plan: Plan) -> list[tuple[str, str]]:
    grid, visible = masker.grid, masker.visible_tokens
    chosen = {**config.mask.options, **({"flow": config.flow.name} if masker.estimator else {})}
    options = ", ".join(f"{key} {value}" for key, value in chosen.items() if value is not None and value is not False)
    encoder = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    decoder = sum(p.numel() for p in model.parameters()) / 1e6 - encoder
    masked = f"{grid.tokens - visible} masked of {grid.slots} slots x {grid.rows} x {grid.cols}"
    return [
        ("data", f"{plan.videos} videos from {config.data.path or config.data.source}"),
        ("clips", f"{grid.frames} x {grid.height} x {grid.width}, stride {config.data.stride}"),
        ("mask", f"{config.mask.name} {config.mask.ratio:g}" + (f" ({options})" if options else "")),
        ("tokens", f"{visible} visible, {masked}"),
        ("model", f"{config.model.name}: encoder {encoder:.1f} M, decoder {decoder:.1f} M parameters"),
    ]
