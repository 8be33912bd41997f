"""What a pre-trained model makes of a masked clip: the masked input and the reconstruction, as pixels."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mgmae_cli.model.tokens import gather_tokens, pixels_from_targets, scatter_tokens, split_tokens
from mgmae_cli.model.videomae import VideoMAE


@torch.no_grad()
def reconstruct(
    model: VideoMAE, clips: Tensor, masks: Tensor, autocast: AbstractContextManager[object] | None = None
) -> Tensor:
    """Return clips with their masked tokens replaced by the model's predictions.

    The model predicts standardised pixels, so each token's own mean and deviation are put back, as the papers' figures
    do: what is shown is how well the pattern is predicted, not the brightness.

    Args:
        model: on the clips' device; its mode is left as it was.
        clips: (B, 3, T, H, W) uint8.
        masks: (B, N) bool with equal counts in every row, True = masked.
        autocast: the context of the forward pass.

    Returns:
        (B, 3, T, H, W) uint8.
    """
    grid = model.grid
    visible, masked = split_tokens(masks, int((~masks[0]).sum()))
    was_training = model.training
    model.eval()
    with autocast or nullcontext():
        predictions = model(clips, visible, masked)
    model.train(was_training)
    tokens = gather_tokens(clips, masked, grid.tubelet, grid.patch)
    pixels = pixels_from_targets(predictions.float(), tokens)
    return scatter_tokens(clips, masked, (pixels.clamp(0, 1) * 255).round().to(torch.uint8))
