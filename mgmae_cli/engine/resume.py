"""Which settings a run that goes on keeps, and which may be others than before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from mgmae_cli.config import SPEED_OPTIONS, Layer, RunConfig, build, flatten, merge, recipe_layer
from mgmae_cli.errors import ConfigError
from mgmae_cli.explain import place as place_of


def resumed_layers(run: Path, extra: Sequence[Layer], model: type[BaseModel] = RunConfig) -> list[Layer]:
    """Return the settings of an earlier run as layers, with those given now, which may not change its results.

    Args:
        extra: flags and assignments.
        model: the config of such runs.

    Raises:
        ConfigError: no such run, or settings would change what the run computes; all that do are named.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"--resume {run}: not a run folder: it has no config.yaml")
    saved = recipe_layer(run / "config.yaml")
    _, origins = merge([saved, *extra])
    before, now = (dict(flatten(build(*merge(layers), model).model_dump())) for layers in ([saved], [saved, *extra]))
    problems = [
        f"{place_of(origins, key)}a resumed run keeps its settings ({key} = {before.get(key)}); "
        "drop it, or start a new run"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and not _may_change(key)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return [saved, *extra, Layer("--resume", {"run.out": str(run)})]


def _may_change(key: str) -> bool:
    """Return whether a resumed run may take another value; the engine sees to it that a step holds as many clips."""
    if key.startswith("health."):
        return True
    if key.startswith("run."):
        return key not in ("run.out", "run.precision")
    if key in {f"{section}.options.{name}" for section in ("data", "val") for name in SPEED_OPTIONS}:
        return True
    return key in ("data.workers", "train.batch_size", "train.accumulate")
