"""`pretrain`: build the parts of a run from its settings, train, leave a run folder. Callable from a notebook.

Paper: MGMAE (arXiv 2308.10794) on VideoMAE (arXiv 2203.12602). The learning rate is base_lr * clips per step / 256;
the official code counts videos, not clips, where samples are repeated.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mgmae_cli.config import Layer, RunConfig, dump, recipe_layer
from mgmae_cli.engine import distributed
from mgmae_cli.engine.checkpoint import CheckpointFolder, restore_rng
from mgmae_cli.engine.distributed import Place
from mgmae_cli.engine.optim import Schedule, decay_groups, make_adamw
from mgmae_cli.engine.progress import Reporter, settings_table
from mgmae_cli.engine.run_folder import RunFolder, describe_environment
from mgmae_cli.engine.step import PretrainTask
from mgmae_cli.engine.trainer import Plan, Trainer
from mgmae_cli.errors import ConfigError
from mgmae_cli.interfaces import ClipSource, derive_generator
from mgmae_cli.masking.masker import Masker
from mgmae_cli.model.videomae import VideoMAE, build_videomae
from mgmae_cli.settings import Settings, resolve_layers
from mgmae_cli.video.crop import make_crop, min_side
from mgmae_cli.video.loader import ClipDataset, ClipSpec, DataOrder, auto_workers, batches, make_loader

_WEIGHTS = 103  # what a derived seed is for


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


def pretrain(settings: Settings, resume: Path | None = None, console: Console | None = None) -> PretrainResult | None:
    """Pre-train as the settings say.

    Args:
        settings: from `resolve`, or `resumed_settings` where a run goes on.
        resume: the folder of the run to go on with.
        console: where progress is shown; None: standard error.

    Returns:
        The result on the main rank, None on others.

    Raises:
        MgmaeError: anything the user can mend; the run folder keeps what was saved.
    """
    console = console or Console(stderr=True)
    started = time.monotonic()
    place = distributed.find_place(settings.config.run.device, settings.config.run.precision)
    try:
        run = _Run(settings, place, resume)
        if place.is_main:
            console.print(settings_table("mgmae pretrain", run.summary()))
        run.train(console)
        if not place.is_main:
            return None
        seconds = time.monotonic() - started
        return PretrainResult(run.out, run.settings, run.model, run.masker, run.dataset, place, seconds)
    finally:
        distributed.leave()


def resumed_settings(run: Path, flags: Layer | None = None, assignments: Layer | None = None) -> Settings:
    """Return the settings of an earlier run, changed only where its results don't depend on it.

    Raises:
        ConfigError: no such run, or a flag would change what the run computes.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"--resume {run}: not a run folder: it has no config.yaml")
    saved = recipe_layer(run / "config.yaml")
    extra = [layer for layer in (flags, assignments) if layer is not None]
    for layer in extra:
        for key, value in layer.values.items():
            may_change = key == "data.workers" or (key.startswith("run.") and key not in ("run.out", "run.precision"))
            if not may_change and value != saved.values.get(key):
                raise ConfigError(
                    f"{layer.origin_of(key)}: a resumed run keeps its settings ({key} = {saved.values.get(key)}); "
                    "drop the flag, or start a new run with it"
                )
    moved = Layer("--resume", {"run.out": str(run)})
    return resolve_layers([saved, *extra, moved])


def default_out(config: RunConfig) -> Path:
    """Return a new folder's name: runs/<mask>-<model>-<date>-<time>."""
    return Path("runs") / f"{config.mask.name}-{config.model.name}-{datetime.now():%Y%m%d-%H%M%S}"


class _Run:
    """The parts of a run, built in the order in which they can fail: cheap checks first, the folder before the work."""

    def __init__(self, settings: Settings, place: Place, resume: Path | None) -> None:
        config = settings.config
        self.place = place
        self.source: ClipSource = settings.make_source()
        self.masker = settings.make_masker()
        self.plan = _plan(config, len(self.source), place)
        if self.masker.estimator is not None:
            self.masker.estimator.to(place.device)
        self.dataset = ClipDataset(self.source, clip_spec(config), config.seed, self.masker)
        self.model = self._model(config)
        self.schedule = _schedule(config, self.plan)

        checkpoints = CheckpointFolder((resume or Path()) / "checkpoints", config.run.keep_last, config.run.save_every)
        self.payload: dict[str, Any] = {}
        self.notes: list[str] = []
        if resume is not None:
            self.payload, path, self.notes = checkpoints.newest()
            self.model.load_state_dict(self.payload["model"])
            self.notes.append(f"resuming {path}")
        self.out = resume or config.run.out or default_out(config)
        run = config.run.model_copy(update={"out": self.out, "precision": place.precision})
        self.settings = replace(settings, config=config.model_copy(update={"run": run}))
        self.folder = RunFolder(self.out, self.payload.get("step")) if place.is_main else None
        checkpoints.folder = self.out / "checkpoints"
        self.checkpoints = checkpoints if place.is_main else None

    def _model(self, config: RunConfig) -> VideoMAE:
        seed = derive_generator(config.seed, _WEIGHTS).initial_seed()
        model = build_videomae(
            config.model.name, self.masker.grid, seed, config.model.decoder_depth, config.model.checkpointing
        )
        return model.to(self.place.device)

    def summary(self) -> list[tuple[str, str]]:
        """Return what the start-up table says."""
        config, grid, plan = self.settings.config, self.masker.grid, self.plan
        visible = self.masker.visible_tokens
        chosen = {**config.mask.options, **({"flow": config.flow.name} if self.masker.estimator else {})}
        options = ", ".join(f"{key} {value}" for key, value in chosen.items() if value not in (None, False))
        rates = f"base {config.train.base_lr:g} x {plan.clips_per_step} clips / 256 = {self.schedule.peak:.3g}"
        batch = f"{config.train.batch_size} a batch x {plan.accumulate} accumulated x {self.place.ranks} ranks"
        encoder = sum(p.numel() for p in self.model.encoder.parameters()) / 1e6
        rest = sum(p.numel() for p in self.model.parameters()) / 1e6 - encoder
        threads = f", {torch.get_num_threads()} threads" if self.place.device.type == "cpu" else ""
        where = str(config.data.path) if config.data.path else config.data.source
        return [
            ("device", f"{_device_name(self.place.device)}, {self.place.precision}{threads}"),
            ("data", f"{len(self.source)} videos from {where}"),
            ("clips", f"{grid.frames} x {grid.height} x {grid.width}, stride {config.data.stride}"),
            ("mask", f"{config.mask.name} {config.mask.ratio:g}" + (f" ({options})" if options else "")),
            (
                "tokens",
                f"{visible} visible, {grid.tokens - visible} masked of {grid.slots} x {grid.rows} x {grid.cols}",
            ),
            ("model", f"{config.model.name}: encoder {encoder:.1f} M, decoder {rest:.1f} M parameters"),
            ("clips per step", f"{plan.clips_per_step} ({batch})"),
            ("steps", f"{plan.steps} ({plan.steps * plan.videos_per_step / plan.videos:.2f} epochs)"),
            ("learning rate", f"{rates}, {self.schedule.warmup} steps of warm-up"),
            ("run folder", str(self.out)),
        ]

    def train(self, console: Console) -> None:
        """Train from where the run stands to its end."""
        config, place = self.settings.config, self.place
        start = int(self.payload.get("step", 0))
        writer = None
        if self.folder is not None:
            environment = describe_environment(self.settings.registry, _device_name(place.device))
            name = f"environment-resumed-{start}.json" if self.payload else "environment.json"
            self.folder.write(name, json.dumps(environment, indent=2) + "\n")
            if not self.payload:
                header = "Resolved settings of this run; a valid recipe: mgmae pretrain RECIPE --out NEW_FOLDER"
                self.folder.write("config.yaml", dump(self.settings.config, header))
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=start)
        reporter = Reporter(console, self.plan.steps, start) if place.is_main else None
        optimizer = make_adamw(
            decay_groups(self.model, config.train.weight_decay), self.schedule(start), config.train.betas, place.device
        )
        torch.manual_seed(config.seed + place.rank)
        if self.payload:
            optimizer.load_state_dict(self.payload["optimizer"])
            restore_rng(self.payload["rng"])
        trainer = Trainer(
            task=PretrainTask(self._wrapped(config), self.masker, config.model.decoder_mask == "running_cell"),
            optimizer=optimizer,
            schedule=self.schedule,
            plan=self.plan,
            place=place,
            seed=config.seed,
            state=lambda: {
                "model": self.model.state_dict(),
                "config": self.settings.config.model_dump(mode="json"),
                "kind": "pretrain",
            },
            checkpoints=self.checkpoints,
            folder=self.folder,
            reporter=reporter,
            writer=writer,
            step=start,
            bad=dict(self.payload.get("bad", {})),
            window=list(self.payload.get("window", [])),
        )
        try:
            for note in self.notes if reporter else ():
                console.print(note, style="yellow", soft_wrap=True)
            trainer.fit(batches(self._loader(config, start)))
        finally:
            if reporter is not None:
                reporter.close()
            if writer is not None:
                writer.close()

    def _loader(self, config: RunConfig, start: int) -> Any:
        place, plan = self.place, self.plan
        order = DataOrder(
            videos=plan.videos,
            per_batch=config.train.batch_size // config.data.samples_per_video,
            start=start * plan.accumulate,
            stop=plan.steps * plan.accumulate,
            seed=config.seed,
            rank=place.rank,
            ranks=place.ranks,
        )
        workers = config.data.workers
        count = auto_workers(place.device, place.ranks) if workers == "auto" else workers
        return make_loader(self.dataset, order, count, pin=place.device.type == "cuda")

    def _wrapped(self, config: RunConfig) -> nn.Module:
        """Return the model as the steps call it; `self.model` stays what is saved."""
        if config.run.compile:
            self.model.compile()
        if self.place.ranks == 1:
            return self.model
        devices = [self.place.device.index] if self.place.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=devices)


def clip_spec(config: RunConfig) -> ClipSpec:
    """Return how the loader reads clips for a config."""
    data = config.data
    return ClipSpec(
        frames=data.frames,
        stride=data.stride,
        height=data.height,
        width=data.width,
        crop=make_crop(data.crop, data.height, data.width, data.flip),
        sampling=data.sampling,
        min_frames=data.min_frames,
        min_side=min_side(data.crop, data.height, data.width),
        repeats=data.samples_per_video,
        keeps_frames=data.crop == "none" and data.flip == 0,
    )


def _plan(config: RunConfig, videos: int, place: Place) -> Plan:
    train, run = config.train, config.run
    clips = train.batch_size * train.accumulate * place.ranks
    videos_per_step = clips // config.data.samples_per_video
    steps = train.steps or math.ceil((train.epochs or 0) * videos / videos_per_step)
    return Plan(
        steps=max(1, steps),
        clips_per_step=clips,
        videos_per_step=videos_per_step,
        videos=videos,
        accumulate=train.accumulate,
        log_every=run.log_every,
        checkpoint_minutes=run.checkpoint_minutes,
        save_every=run.save_every,
        clip_grad=train.clip_grad,
        max_bad_share=config.data.max_bad_share,
    )


def _schedule(config: RunConfig, plan: Plan) -> Schedule:
    scale = plan.clips_per_step / 256
    warmup = round(config.train.warmup * plan.steps)
    return Schedule(config.train.base_lr * scale, config.train.min_base_lr * scale, plan.steps, warmup)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device.type
