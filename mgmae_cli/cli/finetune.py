"""`mgmae finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mgmae_cli.cli import flags

_OWN = {
    "drop_path": ("--drop-path", "model.drop_path"),
    "layer_decay": ("--layer-decay", "train.layer_decay"),
}


def finetune(
    checkpoint: flags.Checkpoint = None,
    recipe: flags.Recipe = None,
    data: flags.Data = None,
    val: flags.Val = None,
    data_root: flags.DataRoot = None,
    workers: flags.Workers = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="random: train the same model from nothing.", rich_help_panel=flags.MODEL, show_default=False
        ),
    ] = None,
    allow_partial: flags.AllowPartial = None,
    drop_path: Annotated[
        float | None,
        typer.Option(
            help="Stochastic depth of the last block; default 0.1.", rich_help_panel=flags.MODEL, show_default=False
        ),
    ] = None,
    epochs: flags.Epochs = None,
    steps: flags.Steps = None,
    batch_size: flags.BatchSize = None,
    lr: flags.Lr = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            help="Learning rate's factor from a layer to the one below; default 0.75.",
            rich_help_panel=flags.LENGTH,
            show_default=False,
        ),
    ] = None,
    clips: flags.Clips = None,
    crops: flags.Crops = None,
    merge: flags.Merge = None,
    on_bad: flags.OnBad = None,
    seed: flags.Seed = None,
    device: flags.Device = None,
    precision: flags.Precision = None,
    out: flags.Out = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", help="Go on with the run in this folder.", rich_help_panel=flags.RUN, show_default=False
        ),
    ] = None,
    assignments: flags.Set = None,
) -> None:
    """Fine-tune a classifier on a pre-trained encoder.

    Labels come from the list (or a folder for each class). Test videos come from --val, or from the split `val` of one
    list whose split to train on is named. Best and last checkpoints are kept.

    [bold]Examples[/bold]

      mgmae finetune runs/motion-tiny-20260101-120000

      mgmae finetune checkpoint.pt --data train.csv --val val.csv --epochs 30

      mgmae finetune checkpoint.pt --data labels.csv --set data.options.split=train

      mgmae finetune vit_b.pth --recipe recipes/finetune/ssv2_vit_b.yaml --data train.csv --val val.csv

      mgmae finetune --resume runs/finetune-tiny-20260101-120000
    """
    from rich.console import Console

    from mgmae_cli.config import set_layer
    from mgmae_cli.downstream import finetune as downstream
    from mgmae_cli.downstream.finetune_settings import resolve_finetune, resumed_finetune
    from mgmae_cli.errors import ConfigError

    layer = flags.flags_layer(locals(), _OWN)
    if resume is not None:
        if checkpoint is not None or recipe is not None:
            raise ConfigError(f"--resume {resume}: takes its settings from the run; drop {checkpoint or recipe}")
        settings = resumed_finetune(resume, layer, set_layer(assignments or []))
    else:
        settings = resolve_finetune(recipe, layer, assignments or [])
    result = downstream.finetune(settings, resume)
    if result is None:
        return
    console = Console(emoji=False)
    best, last = (f"{record['top1']:.1f} % at step {record['step']}" for record in (result.best, result.last))
    console.print(f"top-1: best {best}, last {last}", highlight=False)
    console.print(f"test it: mgmae evaluate {result.folder}", highlight=False, soft_wrap=True)
