"""A run, whatever it trains: its folder, loader, optimiser, figures and checkpoints around the one training loop.

Pre-training and fine-tuning describe what is particular to them in a `Job`; everything else is here, once.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mgmae_cli.config import RunSection, dump
from mgmae_cli.engine.checkpoint import CheckpointFolder
from mgmae_cli.engine.distributed import Place, together
from mgmae_cli.engine.lock import locked
from mgmae_cli.engine.monitor import Monitor
from mgmae_cli.engine.optim import Schedule, make_adamw
from mgmae_cli.engine.progress import Reporter, settings_table
from mgmae_cli.engine.run_folder import RunFolder, Scalars, describe_environment
from mgmae_cli.engine.step import Task
from mgmae_cli.engine.trainer import Plan, Trainer, Validation
from mgmae_cli.errors import CheckpointError, ConfigError
from mgmae_cli.registry import Registry
from mgmae_cli.video.dataset import ClipDataset
from mgmae_cli.video.loader import DataOrder, auto_workers, batches, make_loader


@dataclass(frozen=True)
class Job:
    """What is particular to a run.

    Args:
        kind: "pretrain" or "finetune"; written into checkpoints.
        config: the resolved settings, saved as config.yaml.
        run: its `run` section.
        seed: of the run.
        registry: where its plugins came from.
        model: on its device; this is what is saved.
        make_task: wraps the model, compiled and distributed as asked, into what the loop trains.
        groups: AdamW's parameter groups.
        betas: AdamW's.
        schedule, plan: how long, how fast.
        dataset, videos_per_batch, workers: what the loader reads.
        facts: rows of the start-up table.
        validation: measured now and then, or None.
        extra_state, load_extra: more to save and restore, such as averaged weights.
        after_step: called after each change of the weights.
        monitor: looks for what seems wrong as the run goes, or None.
        notes: what the user should know besides, said at the start.
        rerun: the command that starts another such run from config.yaml.
    """

    kind: str
    config: BaseModel
    run: RunSection
    seed: int
    registry: Registry
    model: nn.Module
    make_task: Callable[[nn.Module], Task]
    groups: list[dict[str, Any]]
    betas: tuple[float, float]
    schedule: Schedule
    plan: Plan
    dataset: ClipDataset
    videos_per_batch: int
    workers: int | str
    facts: list[tuple[str, str]]
    validation: Validation | None = None
    extra_state: Callable[[], Mapping[str, Any]] = dict
    load_extra: Callable[[Mapping[str, Any]], None] = field(default=lambda payload: None)
    after_step: Callable[[], None] | None = None
    monitor: Monitor | None = None
    notes: Sequence[str] = ()
    rerun: str = "mgmae pretrain config.yaml"


@dataclass(frozen=True)
class _Start:
    """Where a run takes up its work, and what is remembered from before."""

    step: int = 0
    bad: Mapping[str, str] = field(default_factory=dict)
    window: Sequence[float] = ()
    best: float = -math.inf
    notes: Sequence[str] = ()


def run_job(job: Job, place: Place, out: Path, resume: bool, console: Console) -> None:
    """Train a job from its start, or from its newest checkpoint, to its end.

    Args:
        out: the run folder; with `resume`, that of the run to go on with.

    Raises:
        MgmaeError: anything the user can mend, such as another process that works in the folder; that keeps what was
            saved.
    """
    busy = f"{out}: another process works on this run; wait for it, or choose another --out"
    with ExitStack() as held:
        note = ""
        with together():
            if place.is_main:
                note = held.enter_context(locked(out / ".lock", busy))
        _train(replace(job, notes=[*job.notes, *([note] if note else [])]), place, out, resume, console)


def _train(job: Job, place: Place, out: Path, resume: bool, console: Console) -> None:
    """Do what `run_job` says, in a folder that nobody else works in."""
    checkpoints = CheckpointFolder(out / "checkpoints", job.run.keep_last, job.run.save_every)
    optimizer = make_adamw(job.groups, job.schedule(0), job.betas, place.device)
    start = _restore(job, optimizer, checkpoints, place) if resume else _Start()
    folder, reporter, writer = None, None, None
    with together():
        if place.is_main:
            folder = _open_folder(job, place, out, start.step if resume else None)
            writer = Scalars(out / "tensorboard", start.step)
    if place.is_main:
        console.print(settings_table(f"mgmae {job.kind}", [*job.facts, ("run folder", str(out))]), soft_wrap=True)
        for note in [*job.notes, *start.notes]:
            console.print(note, style="yellow", soft_wrap=True, markup=False)
    task = job.make_task(wrap(job.model, place, job.run.compile))
    stream = batches(_loader(job, place, start.step))
    try:
        if place.is_main:
            reporter = Reporter(console, job.plan.steps, start.step, job.kind)
        trainer = Trainer(
            task=task,
            optimizer=optimizer,
            schedule=job.schedule,
            plan=job.plan,
            place=place,
            seed=job.seed,
            state=lambda: {
                "kind": job.kind,
                "model": job.model.state_dict(),
                "config": job.config.model_dump(mode="json"),
                **job.extra_state(),
            },
            checkpoints=checkpoints if place.is_main else None,
            folder=folder,
            reporter=reporter,
            writer=writer,
            validation=job.validation,
            after_step=job.after_step,
            monitor=job.monitor if place.is_main else None,
            step=start.step,
            bad=dict(start.bad),
            window=list(start.window),
            best=start.best,
        )
        trainer.fit(stream)
    finally:
        stream.close()
        if reporter is not None:
            reporter.close()
        if writer is not None:
            writer.close()


def _restore(job: Job, optimizer: torch.optim.Optimizer, checkpoints: CheckpointFolder, place: Place) -> _Start:
    """Load the newest checkpoint that can be read into model and optimiser.

    Raises:
        CheckpointError: all are damaged, or of another run.
        ConfigError: a step would not hold as many clips as before.
    """
    if not checkpoints.all():
        return _Start(notes=["no checkpoint was saved yet: starting from the first step"])
    payload, path, notes = checkpoints.newest()
    if payload.get("kind") != job.kind:
        raise CheckpointError(f"{path}: is of mgmae {payload.get('kind')}, not of mgmae {job.kind}")
    clips, videos, plan = payload.get("clips_per_step"), payload.get("videos"), job.plan
    if clips != plan.clips_per_step:
        raise ConfigError(
            f"train.accumulate: the run had {clips} clips a step, and {place.ranks} processes now make "
            f"{plan.clips_per_step}; change train.batch_size or train.accumulate so that a step holds {clips} again"
        )
    try:
        job.model.load_state_dict(payload["model"])
        optimizer.load_state_dict(payload["optimizer"])
        job.load_extra(payload)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: does not fit the model that config.yaml describes: {reason}") from error
    if videos != plan.videos:
        notes.append(f"the data held {videos} videos, and holds {plan.videos} now: their order changes from here on")
    notes.append(f"resuming from {path}")
    return _Start(int(payload["step"]), payload["bad"], payload["window"], float(payload["best"]), notes)


def wrap(model: nn.Module, place: Place, compiled: bool) -> nn.Module:
    """Return a model as the steps call it: compiled in place if asked, and averaging gradients over ranks."""
    if compiled:
        model.compile()
    if place.ranks == 1:
        return model
    devices = [place.device.index] if place.device.type == "cuda" else None
    # buffers are constant tables: not worth sending at every step; newer torch has another name for that
    known = inspect.signature(DistributedDataParallel).parameters
    unsent: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(model, devices, gradient_as_bucket_view=True, **unsent)


def make_plan(
    batch_size: int,
    accumulate: int,
    repeats: int,
    steps: int | None,
    epochs: float | None,
    videos: int,
    place: Place,
    run: RunSection,
    clip_grad: float | None = None,
    max_bad_share: float = 1.0,
) -> Plan:
    """Return how long a run is: `steps` of them, or as many as `epochs` take."""
    clips = batch_size * accumulate * place.ranks
    videos_per_step = clips // repeats
    return Plan(
        steps=max(1, math.ceil((epochs or 0) * videos / videos_per_step - 1e-9)) if steps is None else steps,
        clips_per_step=clips,
        videos_per_step=videos_per_step,
        videos=videos,
        accumulate=accumulate,
        log_every=run.log_every,
        checkpoint_minutes=run.checkpoint_minutes,
        save_every=run.save_every,
        clip_grad=clip_grad,
        max_bad_share=max_bad_share,
    )


def make_schedule(base_lr: float, min_base_lr: float, warmup: float, plan: Plan) -> Schedule:
    """Return the learning rate's course; rates are per 256 clips a step, `warmup` is a share of the steps."""
    scale = plan.clips_per_step / 256
    return Schedule(base_lr * scale, min_base_lr * scale, plan.steps, round(warmup * plan.steps))


def common_facts(
    job_plan: Plan, schedule: Schedule, base_lr: float, batch_size: int, place: Place
) -> list[tuple[str, str]]:
    """Return the start-up table's rows on lengths and rates."""
    batch = f"{batch_size} a batch x {job_plan.accumulate} accumulated x {place.ranks} ranks"
    epochs = job_plan.steps * job_plan.videos_per_step / job_plan.videos
    rates = f"base {base_lr:g} x {job_plan.clips_per_step} clips / 256 = {schedule.peak:.3g}"
    return [
        ("clips per step", f"{job_plan.clips_per_step} ({batch})"),
        ("steps", f"{job_plan.steps} ({epochs:.2f} epochs)"),
        ("learning rate", f"{rates}, {schedule.warmup} steps of warm-up"),
    ]


def device_facts(place: Place) -> tuple[str, str]:
    """Return the start-up table's row on the device."""
    threads = f", {torch.get_num_threads()} threads" if place.device.type == "cpu" else ""
    return "device", f"{device_name(place.device)}, {place.precision}{threads}"


def device_name(device: torch.device) -> str:
    """Return a device's name as people know it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device.type


def _open_folder(job: Job, place: Place, out: Path, resumed_at: int | None) -> RunFolder:
    environment = json.dumps(describe_environment(job.registry, device_name(place.device)), indent=2) + "\n"
    if resumed_at is None:
        header = f"Resolved settings of this run; a valid recipe: {job.rerun} --out NEW_FOLDER"
        folder = RunFolder(out, dump(job.config, header))
        folder.write("environment.json", environment)
        return folder
    folder = RunFolder(out, None, resumed_at)
    folder.write(f"environment-resumed-{resumed_at}.json", environment)
    return folder


def _loader(job: Job, place: Place, start: int) -> Any:
    order = DataOrder(
        videos=job.plan.videos,
        per_batch=job.videos_per_batch,
        start=start * job.plan.accumulate,
        stop=job.plan.steps * job.plan.accumulate,
        seed=job.seed,
        rank=place.rank,
        ranks=place.ranks,
    )
    workers = auto_workers(place.device, place.local_ranks) if job.workers == "auto" else int(job.workers)
    return make_loader(job.dataset, order, workers, pin=place.device.type == "cuda")
