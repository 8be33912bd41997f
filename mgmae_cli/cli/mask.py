"""`mgmae mask ...`: pictures and figures of masks, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgmae_cli.cli import flags

if TYPE_CHECKING:
    from mgmae_cli.diagnose.show import Strategy
    from mgmae_cli.model.weights import Weights

app = typer.Typer(help="Look at masks, and measure what they leak, without training.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command("show")
def show(
    source: Annotated[str, typer.Argument(help="A video, a folder, a list, or a source's name.")] = "shapes",
    mask: Annotated[
        list[str] | None,
        typer.Option(
            "--mask", help="NAME or NAME:option=value,... May be repeated; default: motion.", show_default=False
        ),
    ] = None,
    mask_ratio: flags.MaskRatio = None,
    warp: flags.Warp = None,
    base_frame: flags.BaseFrame = None,
    hole_filling: flags.HoleFilling = None,
    mask_init: flags.MaskInit = None,
    flow: flags.Flow = None,
    index: Annotated[int, typer.Option("--index", help="Which video of the source.")] = 0,
    seed: flags.Seed = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            help="A checkpoint of any known format, or a run folder: adds its reconstruction.",
            show_default=False,
        ),
    ] = None,
    gif: Annotated[bool, typer.Option("--gif", help="Write an animation instead of a sheet.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Picture to write; default: masks.png or masks.gif.", show_default=False),
    ] = None,
    assignments: flags.Set = None,
) -> None:
    """Draw a clip under one or several strategies: frames, flow, visibility maps, masks, reconstructions.

    [bold]Examples[/bold]

      mgmae mask show shapes --mask random --mask tube --mask motion

      mgmae mask show video.mp4 --mask motion:warp=backward --mask motion:warp=forward --gif

      mgmae mask show video.mp4 --mask motion --checkpoint runs/RUN --out reconstruction.png
    """
    from mgmae_cli.diagnose.pictures import animation, save_picture, sheet, slot_frames
    from mgmae_cli.diagnose.show import model_for, show_masks
    from mgmae_cli.model.formats_read import read_weights

    given = {**locals(), "data": source, "checkpoint": None}  # here that is no setting of a run
    weights = read_weights(checkpoint) if checkpoint is not None else None
    strategies = [_strategy(text, given, weights, len(mask or []) > 1) for text in mask or ["motion"]]
    model = None
    if weights is not None:
        typer.echo(f"read {weights.path}: {weights.describe()}")
        model, notes = model_for(weights, strategies[0].settings.grid)
        for note in notes:
            typer.echo(f"note: {note}")
    name, rows = show_masks(strategies, index, model)
    path = out or Path("masks.gif" if gif else "masks.png")
    picture = animation(rows, name) if gif else sheet(rows, slot_frames(strategies[0].settings.grid), name)
    save_picture(picture, path)
    typer.echo(f"wrote {path}")


@app.command("leakage")
def leakage(
    source: Annotated[str, typer.Argument(help="A video, a folder, a list, or a source's name.")] = "shapes",
    mask: Annotated[
        list[str] | None,
        typer.Option(
            "--mask",
            help="NAME or NAME:option=value,... May be repeated; default: random, tube, motion.",
            show_default=False,
        ),
    ] = None,
    mask_ratio: flags.MaskRatio = None,
    flow: flags.Flow = None,
    clips: Annotated[int, typer.Option("--clips", min=1, help="How many videos, the first ones of the source.")] = 64,
    seed: flags.Seed = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for leakage.csv and leakage.png; default: none.", show_default=False),
    ] = None,
    assignments: flags.Set = None,
) -> None:
    """Measure what masks leak: how much of the masked content another slot shows, without training.

    Content is followed along exact flow where the source knows it, else along DIS flow that agrees with itself.

    [bold]Examples[/bold]

      mgmae mask leakage shapes --mask random --mask tube --mask motion

      mgmae mask leakage video.mp4 --mask tube --mask motion:warp=forward,base_frame=first --out leakage/
    """
    from rich.console import Console

    from mgmae_cli.diagnose.leakage_table import as_csv, as_table, draw, measure
    from mgmae_cli.engine.run_folder import replace_text

    given = {**locals(), "data": source, "clips": None}
    texts = mask or ["random", "tube", "motion"]
    rows = measure({text: _strategy(text, given, None, len(texts) > 1).settings for text in texts}, clips)
    Console(highlight=False, emoji=False).print(as_table(rows))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        replace_text(out / "leakage.csv", as_csv(rows))
        draw(rows, out / "leakage.png")
        typer.echo(f"wrote {out}/leakage.csv and leakage.png")


def _strategy(text: str, given: dict[str, Any], weights: Weights | None, several: bool) -> Strategy:
    """Resolve one `--mask NAME:option=value,...`; common flags go to the strategies that have such an option.

    Clips are those that `weights` were trained on, unless flags ask for others.
    """
    from mgmae_cli.config import Layer, set_layer
    from mgmae_cli.diagnose.show import Strategy
    from mgmae_cli.registry import default_registry
    from mgmae_cli.settings import resolve_layers

    name, _, options = text.partition(":")
    common = flags.flags_layer({**given, "mask": name})
    values = dict(common.values)
    if several:
        cls = default_registry().mask(name, "--mask")
        prefix = "mask.options."
        values = {
            key: value
            for key, value in values.items()
            if not (key.startswith(prefix) and key.removeprefix(prefix) not in cls.Options.model_fields)
            and not (key == "flow.name" and not cls.uses_flow)
        }
    layers = [Layer(common.origin, values, common.origins), set_layer(given["assignments"] or [])]
    if options:
        layers.append(set_layer([f"mask.options.{option}" for option in options.split(",")]))
    if weights is not None:
        grid = weights.geometry.grid
        tokens = {"model.tubelet": grid.tubelet, "model.patch": grid.patch}
        layers.insert(0, Layer("--checkpoint", {**weights.reading(), **tokens}))
    return Strategy(text, resolve_layers(layers))
