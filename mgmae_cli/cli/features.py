"""`mgmae features`."""

from __future__ import annotations

from typing import Annotated

import typer

from mgmae_cli.cli import flags

_OWN = {
    "form": ("--form", "features.form"),
    "layers": ("--layers", "features.layers"),
    "file_format": ("--format", "features.format"),
    "dtype": ("--dtype", "features.dtype"),
}


def features(
    checkpoint: flags.Checkpoint = None,
    recipe: flags.Recipe = None,
    data: flags.Data = None,
    data_root: flags.DataRoot = None,
    workers: flags.Workers = None,
    form: Annotated[
        str | None,
        typer.Option(
            help="pooled (default): one row a video; dense: one a token.",
            rich_help_panel=flags.MODEL,
            show_default=False,
        ),
    ] = None,
    layers: flags.Layers = None,
    baseline: flags.Baseline = None,
    clips: flags.Clips = None,
    crops: flags.Crops = None,
    on_bad: Annotated[
        str | None,
        typer.Option(
            "--on-bad",
            help="An unreadable video: error (default), or count: its row is nan.",
            rich_help_panel=flags.TESTING,
            show_default=False,
        ),
    ] = None,
    view_batch: flags.ViewBatch = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="npy (default) or safetensors.", rich_help_panel=flags.RUN, show_default=False),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32 (default) or float16.", rich_help_panel=flags.RUN, show_default=False),
    ] = None,
    seed: flags.Seed = None,
    device: flags.Device = None,
    precision: flags.Precision = None,
    out: flags.ResultOut = None,
    assignments: flags.Set = None,
) -> None:
    """Write an encoder's features of videos to files, with an index by full path.

    Several views of a video are averaged.

    [bold]Examples[/bold]

      mgmae features checkpoint.pt --data videos/ --out features/

      mgmae features checkpoint.pt --data list.csv --form dense --layers 6,last --format safetensors --dtype float16
    """
    from rich.console import Console

    from mgmae_cli.downstream.extract import extract, resolve_extract

    arguments = dict(locals())
    if layers is not None:
        arguments["layers"] = [name.strip() for name in layers.split(",")]
    folder = extract(resolve_extract(recipe, flags.flags_layer(arguments, _OWN), assignments or []))
    Console(emoji=False).print(f"features and index: {folder}", highlight=False, soft_wrap=True)
