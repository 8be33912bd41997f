"""Resolve a fine-tuning run: its settings, the encoder that it starts from, and what contradicts what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mgmae_cli.config import Layer
from mgmae_cli.downstream.augment import policy_problem
from mgmae_cli.downstream.config import FinetuneConfig
from mgmae_cli.downstream.encoder import LoadedEncoder, load_encoder, size_name
from mgmae_cli.downstream.settings import Resolved, checkpoint_of, resolve_config
from mgmae_cli.engine.checkpoint import CheckpointFolder
from mgmae_cli.engine.resume import resumed_layers
from mgmae_cli.errors import ConfigError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.formats_read import GEOMETRY
from mgmae_cli.model.weights import Geometry
from mgmae_cli.registry import Registry
from mgmae_cli.settings import given_layers

_DEFAULTS = Layer("defaults", {"train.epochs": 30})


@dataclass(frozen=True)
class FinetuneSettings:
    """A validated fine-tuning run.

    Args:
        resolved: the config, complete, and the clip sources.
        geometry: of the encoder, on the clips that it was trained on.
        grid: of the clips.
        start: the encoder to start from; None where a run goes on.
    """

    resolved: Resolved[FinetuneConfig]
    geometry: Geometry
    grid: ClipGrid
    start: LoadedEncoder | None

    @property
    def config(self) -> FinetuneConfig:
        return self.resolved.config


def resolve_finetune(
    recipe: Path | None = None,
    flags: Layer | None = None,
    assignments: Sequence[str] = (),
    registry: Registry | None = None,
) -> FinetuneSettings:
    """Resolve a run from a recipe, command-line flags and `--set` assignments; one of them names the checkpoint.

    Raises:
        MgmaeError: settings that are wrong, or a checkpoint that can't be used.
    """
    layers = given_layers(recipe, flags, assignments)
    start = load_encoder(checkpoint_of(layers, "finetune"))
    trained = Layer(f"checkpoint {start.path}", start.reading)
    resolved = resolve_config(FinetuneConfig, layers, [_DEFAULTS], [trained], registry)
    return _checked(resolved, start.geometry, start)


def check_finetune(layers: Sequence[Layer], registry: Registry) -> None:
    """Refuse what is wrong with settings whose checkpoint does not exist yet.

    Raises:
        MgmaeError: as `resolve_finetune`, as far as it can be told without the checkpoint.
    """
    resolved = resolve_config(FinetuneConfig, layers, [_DEFAULTS], registry=registry)
    _refuse_contradictions(resolved)


def resumed_finetune(
    run: Path, flags: Layer | None = None, assignments: Layer | None = None, registry: Registry | None = None
) -> FinetuneSettings:
    """Return the settings of an earlier run, changed only where its results don't depend on it.

    The checkpoint that it started from is needed only if the run has saved none itself.

    Raises:
        MgmaeError: no such run, nothing to go on from, or a flag would change what the run computes.
    """
    checkpoints = CheckpointFolder(run / "checkpoints")
    if checkpoints.all():
        payload, path, _ = checkpoints.newest()
        if payload.get("kind") != "finetune":
            kind = payload.get("kind")
            raise ConfigError(f"--resume {run}: {path} is of a {kind} run; use mgmae {kind} --resume {run}")
    layers = resumed_layers(run, [layer for layer in (flags, assignments) if layer is not None], FinetuneConfig)
    resolved = resolve_config(FinetuneConfig, layers, registry=registry)
    before, now = layers[0].values.get("train.batch_size"), resolved.config.train.batch_size
    if now != before and (resolved.config.augment.mixup or resolved.config.augment.cutmix):
        raise resolved.problem(
            f"train.batch_size = {now}: clips are mixed within a batch; resume with {before}, as before"
        )
    if not checkpoints.all():
        start = load_encoder(resolved.config.checkpoint)
        return _checked(resolved, start.geometry, start)
    return _checked(resolved, Geometry.from_dict(payload[GEOMETRY]), None)


def _checked(resolved: Resolved[FinetuneConfig], geometry: Geometry, start: LoadedEncoder | None) -> FinetuneSettings:
    """Complete the model section from the encoder, and refuse contradictions.

    Raises:
        ConfigError: naming the key, and where it was set.
    """
    config, name = resolved.config, size_name(geometry)
    tubelet, patch = config.model.tubelet or geometry.grid.tubelet, config.model.patch or geometry.grid.patch
    model = config.model.model_copy(update={"name": name, "tubelet": tubelet, "patch": patch})
    if config.model.name not in (None, name):
        raise resolved.problem(
            f"model.name = {config.model.name}: {config.checkpoint} is {name}; drop the setting, or give a checkpoint "
            "of that size"
        )
    data = config.data
    try:
        grid = ClipGrid(data.frames, data.height, data.width, tubelet, patch)
    except ConfigError as error:
        raise resolved.problem(str(error)) from None
    problems = [str(resolved.problem(problem)) for problem in _contradictions(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    changes = {"model": model, "checkpoint": start.path if start else config.checkpoint}  # the file, not the run folder
    resolved = replace(resolved, config=config.model_copy(update=changes))
    return FinetuneSettings(resolved, geometry, grid, start)


def _refuse_contradictions(resolved: Resolved[FinetuneConfig]) -> None:
    problems = [str(resolved.problem(problem)) for problem in _contradictions(resolved.config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _contradictions(config: FinetuneConfig) -> Iterator[str]:
    """Yield what is wrong between settings that are right by themselves."""
    data, train, augment = config.data, config.train, config.augment
    if config.model.allow_partial and config.baseline == "random":
        yield "model.allow_partial: the baseline random takes no weights; drop one of the two"
    if train.steps is None and train.epochs is None:
        yield "train.epochs: neither train.epochs nor train.steps is given; give one"
    if train.batch_size % data.samples_per_video:
        yield (
            f"train.batch_size = {train.batch_size}: not a multiple of data.samples_per_video = "
            f"{data.samples_per_video}; a batch holds whole videos"
        )
    if train.batch_size % 2 and (augment.mixup or augment.cutmix):
        yield (
            f"train.batch_size = {train.batch_size}: mixup and cutmix mix pairs; use an even number, or set "
            "augment.mixup and augment.cutmix to 0"
        )
    if augment.randaugment is not None:
        problem = policy_problem(augment.randaugment)
        if problem:
            yield f"augment.randaugment = {augment.randaugment!r}: {problem}"
