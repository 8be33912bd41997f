"""`mgmae pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mgmae_cli.cli import flags


def pretrain(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe or a run's config.yaml.", show_default=False)] = None,
    mask: flags.Mask = None,
    mask_ratio: flags.MaskRatio = None,
    warp: flags.Warp = None,
    base_frame: flags.BaseFrame = None,
    hole_filling: flags.HoleFilling = None,
    mask_init: flags.MaskInit = None,
    flow: flags.Flow = None,
    data: flags.Data = None,
    data_root: flags.DataRoot = None,
    workers: flags.Workers = None,
    model: flags.Model = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            help="Start from these weights: a checkpoint of any known format, or a run folder.",
            rich_help_panel=flags.MODEL,
            show_default=False,
        ),
    ] = None,
    allow_partial: flags.AllowPartial = None,
    epochs: flags.Epochs = None,
    steps: flags.Steps = None,
    batch_size: flags.BatchSize = None,
    lr: flags.Lr = None,
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
    """Pre-train a video masked autoencoder.

    Without --data it trains on `shapes`, clips made on the fly, so that nothing needs preparing. Settings: defaults,
    then the recipe, then flags, then --set.

    [bold]Examples[/bold]

      mgmae pretrain --mask motion --warp backward

      mgmae pretrain --mask motion --data videos/ --model small --epochs 100

      mgmae pretrain recipes/pretrain/mgmae_vit_b_ssv2.yaml --data train.csv --device cuda

      mgmae pretrain --init videomae_vit_b.pth --model base --data videos/ --epochs 50

      mgmae pretrain --resume runs/motion-tiny-20260101-120000
    """
    from mgmae_cli.config import set_layer
    from mgmae_cli.diagnose.after_run import finish
    from mgmae_cli.diagnose.health import HealthMonitor
    from mgmae_cli.engine import pretrain as engine
    from mgmae_cli.errors import ConfigError
    from mgmae_cli.settings import resolve

    layer = flags.flags_layer(locals())
    if resume is not None:
        if recipe is not None:
            raise ConfigError(f"--resume {resume}: takes its settings from the run; drop the recipe {recipe}")
        settings = engine.resumed_settings(resume, layer, set_layer(assignments or []))
    else:
        settings = resolve(recipe, layer, assignments or [])
    result = engine.pretrain(settings, resume, make_monitor=HealthMonitor)
    if result is not None:
        finish(result)
