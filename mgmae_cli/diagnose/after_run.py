"""What a finished pre-training run shows: the loss curve, and reconstructions of a clip that it was trained on."""

from __future__ import annotations

from rich.console import Console

from mgmae_cli.diagnose.pictures import clip_row, loss_curve, mask_row, save_picture, sheet, slot_frames
from mgmae_cli.diagnose.reconstruct import reconstruct
from mgmae_cli.engine.pretrain import PretrainResult
from mgmae_cli.engine.progress import format_seconds
from mgmae_cli.engine.run_folder import read_metrics
from mgmae_cli.errors import MgmaeError
from mgmae_cli.seeds import derive_generator

_CLIPS = 3


def finish(result: PretrainResult, console: Console | None = None) -> None:
    """Draw `loss.png` and `reconstruction.png` into a run's folder, if its settings want them, and say what is there.

    Raises:
        RunError: a picture can't be written.
    """
    console = console or Console(stderr=True, emoji=False)
    losses = [record for record in read_metrics(result.folder) if "loss" in record]
    if result.settings.config.run.pictures:
        mask = result.settings.config.mask
        if losses:
            loss_curve(losses, result.folder / "loss.png", f"{mask.name} masks, ratio {mask.ratio:g}")
        _draw_reconstructions(result)
    fell = f"loss {losses[0]['loss']:.4f} (step {losses[0]['step']}) -> {losses[-1]['loss']:.4f}" if losses else ""
    console.print(f"done in {format_seconds(result.seconds)}" + (f": {fell}" if fell else ""), highlight=False)
    console.print(f"run folder: {result.folder}", highlight=False, soft_wrap=True, markup=False)


def _draw_reconstructions(result: PretrainResult) -> None:
    rows = []
    for video in range(min(_CLIPS, len(result.dataset))):
        sample = result.dataset[0, video]
        if isinstance(sample, MgmaeError):
            continue  # the run has already said so
        clips, masks = sample.clips[:1].to(result.place.device), sample.masks
        if masks is None:
            generator = derive_generator(result.settings.config.seed, video)
            masks = result.masker(clips, generator, sample.truth)
        masks = masks[:1].to(clips.device)
        predicted = reconstruct(result.model, clips, masks, result.place.autocast())
        clip, mask = clips[0].cpu(), masks[0].cpu()
        rows += [
            clip_row(f"clip {video}", clip),
            mask_row("masked", clip, mask, result.masker.grid),
            clip_row("reconstruction", predicted[0].cpu()),
        ]
    if rows:
        title = "Reconstructions: predicted patterns, each token's own mean and deviation put back"
        save_picture(sheet(rows, slot_frames(result.masker.grid), title), result.folder / "reconstruction.png")
