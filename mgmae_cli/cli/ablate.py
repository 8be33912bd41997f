"""`mgmae ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ablate(
    recipe: Annotated[Path, typer.Argument(help="An ablation's recipe, as recipes/base_frame.yaml.")],
    budget: Annotated[
        str | None, typer.Option("--budget", help="cpu (default), gpu or paper.", show_default=False)
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="How many, instead of the recipe's.", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="A cell or a label. May be repeated.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at once, sharing the cores and GPUs.")] = 1,
    launcher: Annotated[str, typer.Option("--launcher", help="local, or slurm for an array job.")] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm", help="KEY=VALUE for SLURM: partition=gpu, time=MINUTES. May be repeated.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show cells, runs and estimated time, and leave.")] = False,
    report_only: Annotated[bool, typer.Option("--report", help="Only write the report of what is there.")] = False,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            "--reuse",
            help="Take equal runs by the same commit from this ablation, or folder of ablations. May be repeated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: ablations/RECIPE-BUDGET.", show_default=False)
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="KEY=VALUE for all cells, LABEL:KEY=VALUE for some. May be repeated.", show_default=False
        ),
    ] = None,
) -> None:
    """Run an ablation: cells with several seeds, and a report with a table, plots and a page.

    The same command goes on where an earlier one was stopped or killed; runs that are done are not done again.

    [bold]Examples[/bold]

      mgmae ablate recipes/base_frame.yaml --dry-run

      mgmae ablate recipes/masking.yaml --jobs 2

      mgmae ablate recipes/warp.yaml --reuse ablations

      mgmae ablate recipes/flow.yaml --set raft:flow.options.weights=raft-small.pth

      mgmae ablate recipes/masking.yaml --budget gpu --launcher slurm --slurm partition=gpu
    """
    from mgmae_cli.ablation.run import Options, run_ablation

    run_ablation(
        recipe,
        Options(
            budget=budget,
            seeds=seeds,
            only=only or [],
            jobs=jobs,
            launcher=launcher,
            slurm=slurm or [],
            dry_run=dry_run,
            report_only=report_only,
            reuse=reuse or [],
            out=out,
            assignments=assignments or [],
        ),
    )
