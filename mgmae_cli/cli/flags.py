"""The flags that several commands share, and the config keys that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mgmae_cli.config import Layer

MASKING, DATA, MODEL, LENGTH, RUN = "Masking", "Data", "Model", "Training", "Run"


def _option(flag: str, panel: str, text: str, **extra: Any) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=panel, show_default=False, **extra)


Mask = Annotated[str | None, _option("--mask", MASKING, "random, tube, motion, or a plugin's; see `mgmae plugins`.")]
MaskRatio = Annotated[float | None, _option("--mask-ratio", MASKING, "Share of masked tokens; default 0.9.")]
Warp = Annotated[str | None, _option("--warp", MASKING, "motion: backward (default) or forward.")]
BaseFrame = Annotated[str | None, _option("--base-frame", MASKING, "motion: middle (default), first or random.")]
HoleFilling = Annotated[str | None, _option("--hole-filling", MASKING, "motion: base (default), previous or none.")]
MaskInit = Annotated[str | None, _option("--mask-init", MASKING, "motion: gaussian (default), pixel or token.")]
Flow = Annotated[str | None, _option("--flow", MASKING, "dis (default), raft, tvl1, zero, truth, or a plugin's.")]
Data = Annotated[
    str | None,
    _option("--data", DATA, "A video, a folder of videos, a list file, or a source's name; default: shapes."),
]
DataRoot = Annotated[Path | None, _option("--data-root", DATA, "Where a list's relative paths start.")]
Workers = Annotated[str | None, _option("--workers", DATA, "Loader processes; default: from the machine's cores.")]
Model = Annotated[str | None, _option("--model", MODEL, "tiny, small, base, large or huge.")]
Epochs = Annotated[float | None, _option("--epochs", LENGTH, "Passes over the videos.")]
Steps = Annotated[int | None, _option("--steps", LENGTH, "Optimiser steps, instead of --epochs.")]
BatchSize = Annotated[int | None, _option("--batch-size", LENGTH, "Clips a batch and device.")]
Lr = Annotated[float | None, _option("--lr", LENGTH, "Learning rate per 256 clips a step.")]
Seed = Annotated[int | None, _option("--seed", RUN, "Seeds weights, data order, crops and masks; default 0.")]
Device = Annotated[str | None, _option("--device", RUN, "auto (default), cpu, cuda, cuda:1, ...")]
Precision = Annotated[str | None, _option("--precision", RUN, "auto (default: bf16 on GPUs, else fp32), fp32, bf16.")]
Out = Annotated[Path | None, _option("--out", RUN, "Run folder; default: a new one under runs/.")]
Set = Annotated[
    list[str] | None, _option("--set", RUN, "Any setting: KEY=VALUE, as in train.clip_grad=1. May be repeated.")
]

# parameter name -> (flag, config key)
_KEYS = {
    "mask": ("--mask", "mask.name"),
    "mask_ratio": ("--mask-ratio", "mask.ratio"),
    "warp": ("--warp", "mask.options.warp"),
    "base_frame": ("--base-frame", "mask.options.base_frame"),
    "hole_filling": ("--hole-filling", "mask.options.hole_filling"),
    "mask_init": ("--mask-init", "mask.options.init"),
    "flow": ("--flow", "flow.name"),
    "data_root": ("--data-root", "data.root"),
    "workers": ("--workers", "data.workers"),
    "model": ("--model", "model.name"),
    "epochs": ("--epochs", "train.epochs"),
    "steps": ("--steps", "train.steps"),
    "batch_size": ("--batch-size", "train.batch_size"),
    "lr": ("--lr", "train.base_lr"),
    "seed": ("--seed", "seed"),
    "device": ("--device", "run.device"),
    "precision": ("--precision", "run.precision"),
    "out": ("--out", "run.out"),
}


def flags_layer(arguments: Mapping[str, Any]) -> Layer:
    """Return the flags that were given as a layer of settings.

    Args:
        arguments: a command's arguments by parameter name (its `locals()`); those that are None were not given.
    """
    from mgmae_cli.config import Layer

    given = {_KEYS[name]: value for name, value in arguments.items() if name in _KEYS and value is not None}
    values = {key: str(value) if isinstance(value, Path) else value for (_, key), value in given.items()}
    origins = {key: flag for flag, key in given}
    if arguments.get("data") is not None:
        key, value = _data(arguments["data"])
        values[key], origins[key] = value, "--data"
    return Layer("command line", values, origins)


def _data(text: str) -> tuple[str, str]:
    """Return the key and value that `--data` stands for: a source's name, unless something of that name is on disk."""
    from mgmae_cli.registry import default_registry

    if not Path(text).exists() and text in default_registry().names("clip source"):
        return "data.source", text
    return "data.path", text
