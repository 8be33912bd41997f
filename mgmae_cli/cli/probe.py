"""`mgmae probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mgmae_cli.cli import flags

PROBE = "Probe"
_OWN = {
    "kind": ("--kind", "probe.kind"),
    "layers": ("--layers", "probe.layers"),
    "k": ("--k", "probe.k"),
    "temperature": ("--temperature", "probe.temperature"),
    "cache": ("--cache", "probe.cache"),
}


def _option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=PROBE, show_default=False)


def probe(
    checkpoint: flags.Checkpoint = None,
    recipe: flags.Recipe = None,
    data: flags.Data = None,
    val: flags.Val = None,
    data_root: flags.DataRoot = None,
    workers: flags.Workers = None,
    kind: Annotated[str | None, _option("linear (default), knn or attentive.")] = None,
    k: Annotated[int | None, _option("knn: neighbours that vote; default 20.")] = None,
    temperature: Annotated[float | None, _option("knn: the lower, the more the nearest count; default 0.07.")] = None,
    cache: Annotated[Path | None, _option("Folder of extracted features; default: the user's cache folder.")] = None,
    layers: flags.Layers = None,
    baseline: flags.Baseline = None,
    clips: flags.Clips = None,
    crops: flags.Crops = None,
    on_bad: flags.OnBad = None,
    view_batch: flags.ViewBatch = None,
    seed: flags.Seed = None,
    device: flags.Device = None,
    precision: flags.Precision = None,
    out: flags.ResultOut = None,
    assignments: flags.Set = None,
) -> None:
    """Judge frozen features: linear, nearest neighbours, or attentive (one block of cross-attention).

    Features are extracted once and cached. Learning rate and weight decay are chosen on a part of the training videos;
    the test videos are asked once. Judge the number by --baseline random and --baseline pixels.

    [bold]Examples[/bold]

      mgmae probe runs/motion-tiny-20260101-120000 --kind knn

      mgmae probe checkpoint.pt --data labels.csv --set data.options.split=train --layers 6,12,last

      mgmae probe checkpoint.pt --data train.csv --val val.csv --kind attentive --baseline random
    """
    from rich.console import Console
    from rich.table import Table

    from mgmae_cli.downstream import probe as downstream

    arguments = dict(locals())
    if layers is not None:
        arguments["layers"] = [name.strip() for name in layers.split(",")]
    result = downstream.probe(downstream.resolve_probe(recipe, flags.flags_layer(arguments, _OWN), assignments or []))
    table = Table(box=None, pad_edge=False)
    for column in ("layer", "top-1", "top-5", "mean class", "chosen by", "lr", "weight decay"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for row in result.layers:
        found, sweep = row.report, row.sweep
        rates = ("", "", "")
        if sweep is not None:
            inner = "" if sweep.inner_top1 is None else f"{sweep.inner_top1:.1f} inside"
            rates = (inner, f"{sweep.rates.lr:g}", f"{sweep.rates.weight_decay:g}")
        top5 = "" if found.top5 is None else f"{found.top5:.1f}"
        table.add_row(row.layer, f"{found.top1:.1f}", top5, f"{found.mean_class:.1f}", *rates)
    console = Console(emoji=False)
    console.print(table)
    console.print(f"in percent of {result.layers[0].report.videos} videos; {result.folder}", highlight=False)
