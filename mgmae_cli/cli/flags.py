"""The flags that several commands share, and the config keys that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mgmae_cli.config import Layer

MASKING, DATA, MODEL, LENGTH, TESTING, RUN = "Masking", "Data", "Model", "Training", "Testing", "Run"


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
AllowPartial = Annotated[
    bool | None, _option("--allow-partial", MODEL, "Take what fits where keys are missing, extra or misshapen.")
]
Epochs = Annotated[float | None, _option("--epochs", LENGTH, "Passes over the videos.")]
Steps = Annotated[int | None, _option("--steps", LENGTH, "Optimiser steps, instead of --epochs; 0: stay untrained.")]
BatchSize = Annotated[int | None, _option("--batch-size", LENGTH, "Clips a batch and device.")]
Lr = Annotated[float | None, _option("--lr", LENGTH, "Learning rate per 256 clips a step.")]
Seed = Annotated[int | None, _option("--seed", RUN, "Seeds weights, data order, crops and masks; default 0.")]
Device = Annotated[str | None, _option("--device", RUN, "auto (default), cpu, cuda, cuda:1, ...")]
Precision = Annotated[str | None, _option("--precision", RUN, "auto (default: bf16 on GPUs, else fp32), fp32, bf16.")]
Out = Annotated[Path | None, _option("--out", RUN, "Run folder; default: a new one under runs/.")]
Set = Annotated[
    list[str] | None, _option("--set", RUN, "Any setting: KEY=VALUE, as in train.clip_grad=1. May be repeated.")
]

# Of the commands that judge what was pre-trained
Checkpoint = Annotated[
    Path | None, typer.Argument(help="A checkpoint of any known format, or a run folder.", show_default=False)
]
Recipe = Annotated[Path | None, _option("--recipe", RUN, "A recipe, or the config.yaml of an earlier result.")]
Val = Annotated[
    Path | None, _option("--val", DATA, "List, folder or video to test on; default: the split `val` of --data.")
]
Clips = Annotated[int | None, _option("--clips", TESTING, "Places in time of each video; default 1.")]
Crops = Annotated[int | None, _option("--crops", TESTING, "1 (default: the centre) or 3 (along the longer side).")]
Merge = Annotated[str | None, _option("--merge", TESTING, "Merge views by prob (default) or logit.")]
OnBad = Annotated[
    str | None, _option("--on-bad", TESTING, "An unreadable video: error (default), or count it as wrong.")
]
ViewBatch = Annotated[int | None, _option("--batch-size", TESTING, "Views a forward pass; default 32.")]
Baseline = Annotated[
    str | None, _option("--baseline", MODEL, "random: the same model, not trained; pixels: no model at all.")
]
Layers = Annotated[str | None, _option("--layers", MODEL, "Blocks, as in 4,8,last (default: last); 0: the embedding.")]
ResultOut = Annotated[Path | None, _option("--out", RUN, "Folder of the results; default: a new one in the run's.")]

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
    "init": ("--init", "model.init"),
    "allow_partial": ("--allow-partial", "model.allow_partial"),
    "epochs": ("--epochs", "train.epochs"),
    "steps": ("--steps", "train.steps"),
    "batch_size": ("--batch-size", "train.batch_size"),
    "lr": ("--lr", "train.base_lr"),
    "seed": ("--seed", "seed"),
    "device": ("--device", "run.device"),
    "precision": ("--precision", "run.precision"),
    "out": ("--out", "run.out"),
    "checkpoint": ("CHECKPOINT", "checkpoint"),
    "baseline": ("--baseline", "baseline"),
    "val": ("--val", "val.path"),
    "clips": ("--clips", "views.clips"),
    "crops": ("--crops", "views.crops"),
    "merge": ("--merge", "views.merge"),
    "on_bad": ("--on-bad", "views.on_bad"),
    "view_batch": ("--batch-size", "views.batch_size"),
}


def flags_layer(arguments: Mapping[str, Any], own: Mapping[str, tuple[str, str]] | None = None) -> Layer:
    """Return the flags that were given as a layer of settings.

    Args:
        arguments: a command's arguments by parameter name (its `locals()`); those that are None were not given.
        own: flags and keys of the command's own parameters.
    """
    from mgmae_cli.config import Layer

    keys = {**_KEYS, **(own or {})}
    given = {keys[name]: value for name, value in arguments.items() if name in keys and value is not None}
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
