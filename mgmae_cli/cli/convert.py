"""`mgmae convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FORMATS = ("mgmae", "official", "hf", "timm", "export")
WEIGHTS = ("auto", "model", "ema")


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint, a transformers folder, or a run folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What to write: a new file, or for hf a new folder.")],
    to: Annotated[str, typer.Option("--to", help=f"Format to write: {', '.join(FORMATS)}.")],
    frames: Annotated[int | None, typer.Option(help="Frames of a clip, where they change.", show_default=False)] = None,
    size: Annotated[
        str | None, typer.Option(help="Pixels of a clip, N or HEIGHTxWIDTH, where they change.", show_default=False)
    ] = None,
    tubelet: Annotated[int | None, typer.Option(help="Frames of a token (encoders only).", show_default=False)] = None,
    patch: Annotated[int | None, typer.Option(help="Pixels of a token (encoders only).", show_default=False)] = None,
    encoder: Annotated[bool, typer.Option("--encoder", help="Take the encoder alone.")] = False,
    heads: Annotated[
        int | None, typer.Option(help="Heads of the encoder, for unusual widths.", show_default=False)
    ] = None,
    decoder_heads: Annotated[
        int | None, typer.Option(help="Heads of the decoder, for unusual widths.", show_default=False)
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Which of a fine-tuning run: model, ema, or auto (averaged where there are some).")
    ] = "auto",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Go on where keys are missing, extra or misshapen.")
    ] = False,
) -> None:
    """Convert weights between mgmae, the official code, transformers and timm.

    IN is recognised by its keys. Formats: mgmae (keeps all), official (VideoMAE, VideoMAE V2, MGMAE),
    hf (a folder for from_pretrained, with a model card), timm (the encoder as a plain state dict),
    export (a torch.export program that turns clips into features). Files that end in .safetensors are
    written so.

    [bold]Examples[/bold]

      mgmae convert runs/motion-base hf-base --to hf

      mgmae convert videomae_k400_vit_b.pth init.pt --to mgmae

      mgmae convert hf-base encoder.safetensors --to timm

      mgmae convert hf-base encoder.pt --to mgmae --encoder --frames 32 --patch 8

      mgmae convert runs/motion-base features.pt2 --to export
    """
    from mgmae_cli.errors import ConfigError, did_you_mean
    from mgmae_cli.model.card import run_figures
    from mgmae_cli.model.convert import convert_weights

    if to not in FORMATS:
        raise ConfigError(f"--to {to}: use one of {', '.join(FORMATS)}{did_you_mean(to, FORMATS)}")
    if weights not in WEIGHTS:
        raise ConfigError(f"--weights {weights}: use one of {', '.join(WEIGHTS)}")
    for line in convert_weights(
        source,
        out,
        to,  # type: ignore[arg-type]
        frames=frames,
        size=_parse_size(size),
        tubelet=tubelet,
        patch=patch,
        encoder=encoder,
        heads=(heads, decoder_heads),
        allow_partial=allow_partial,
        averaged=weights,  # type: ignore[arg-type]
        figures=run_figures(source),
    ):
        typer.echo(line)


def _parse_size(text: str | None) -> tuple[int, int] | None:
    from mgmae_cli.errors import ConfigError

    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    if not height.isdigit() or (cross and not width.isdigit()):
        raise ConfigError(f"--size {text}: expected pixels, as in 224 or 192x256")
    return int(height), int(width if cross else height)
