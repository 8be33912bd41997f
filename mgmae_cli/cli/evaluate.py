"""`mgmae evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from mgmae_cli.cli import flags

_OWN = {"weights": ("--weights", "weights")}


def evaluate(
    checkpoint: flags.Checkpoint = None,
    recipe: flags.Recipe = None,
    data: flags.Data = None,
    data_root: flags.DataRoot = None,
    workers: flags.Workers = None,
    clips: flags.Clips = None,
    crops: flags.Crops = None,
    merge: flags.Merge = None,
    on_bad: flags.OnBad = None,
    view_batch: flags.ViewBatch = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="model, ema, or auto (default): averaged weights where the run kept some.",
            rich_help_panel=flags.MODEL,
            show_default=False,
        ),
    ] = None,
    device: flags.Device = None,
    precision: flags.Precision = None,
    out: flags.ResultOut = None,
    assignments: flags.Set = None,
) -> None:
    """Test a fine-tuned classifier over several views of each video.

    Without --data it tests on the run's validation videos. Leaves results.json, predictions.csv, classes.csv and
    confusion.png.

    [bold]Examples[/bold]

      mgmae evaluate runs/finetune-base-20260101-120000 --clips 5 --crops 3

      mgmae evaluate best.pt --data test.csv --clips 2 --crops 3 --merge logit
    """
    from rich.console import Console

    from mgmae_cli.downstream.evaluate import evaluate as test
    from mgmae_cli.downstream.evaluate import resolve_evaluate

    result = test(resolve_evaluate(recipe, flags.flags_layer(locals(), _OWN), assignments or []))
    if result is None:
        return
    found, console = result.report, Console(emoji=False)
    top5 = f", top-5 {found.top5:.2f} %" if found.top5 is not None else ""
    unreadable = f", of which {found.unreadable} are unreadable and count as wrong" if found.unreadable else ""
    console.print(
        f"top-1 {found.top1:.2f} %{top5}, mean over classes {found.mean_class:.2f} % of {found.videos} videos"
        f"{unreadable} ({result.story})",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"predictions and confusion matrix: {result.folder}", highlight=False, soft_wrap=True)
