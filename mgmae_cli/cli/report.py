"""`mgmae report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file; default: report.html in the folder.", show_default=False)
    ] = None,
) -> None:
    """Write one run's page: curve, speed, warnings, pictures, settings and environment in one HTML file.

    The page of an ablation is written by [bold]mgmae ablate[/bold] (anew, without running: [bold]--report[/bold]).

    [bold]Example[/bold]

      mgmae report runs/motion-tiny-20260101-120000
    """
    from mgmae_cli.ablation.run_page import summary, write_run_page

    path = write_run_page(run, out)
    typer.echo(summary(run))
    typer.echo(f"wrote {path}")
