"""Fit weights to clips of another size: recompute positions, resize the tubelet embedding.

Positions are fixed sinusoids over the token number, so another number of tokens needs no weights; their meaning shifts
where the number of patches of a slot changes. The embedding is resized so that it gives for a resized token what it
gave for the token: to larger tokens by the pseudo-inverse (FlexiViT, arXiv 2212.08013), to smaller ones by enlarging
them in the weights, where the pseudo-inverse would lose brightness. A decoder predicts pixels of one token size, so its
head can't follow.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mgmae_cli.errors import CheckpointError
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.weights import Weights


def resize_weights(weights: Weights, grid: ClipGrid) -> Weights:
    """Return weights for a model on another grid, with notes on what changed.

    Raises:
        CheckpointError: a decoder is asked for another token size.
    """
    old = weights.geometry.grid
    if grid == old:
        return weights
    notes = []
    state = dict(weights.state)
    if (grid.tubelet, grid.patch) != (old.tubelet, old.patch):
        sizes = f"{old.tubelet} x {old.patch} x {old.patch} to {grid.tubelet} x {grid.patch} x {grid.patch}"
        if weights.kind == "pretrain":
            raise CheckpointError(
                f"{weights.title}: tokens can't go from {sizes}, since its decoder predicts the old tokens' pixels; "
                "keep model.tubelet and model.patch, or take the encoder alone (mgmae convert --encoder)"
            )
        key = "patch_embed.proj.weight"
        state[key] = resize_embedding(state[key], grid.tubelet, grid.patch)
        notes.append(f"tubelet embedding resized from {sizes}")
    if grid.tokens != old.tokens or grid.patches != old.patches:
        shifted = grid.patches != old.patches
        meaning = "; patches of a slot changed, so positions mean other places: fine-tune before use" if shifted else ""
        notes.append(f"positions recomputed for {grid.tokens} tokens instead of {old.tokens}{meaning}")
    return weights.noted(*notes, state=state, geometry=replace(weights.geometry, grid=grid))


def resize_embedding(weight: Tensor, tubelet: int, patch: int) -> Tensor:
    """Resize (D, 3, t, p, p) embedding weights to (D, 3, tubelet, patch, patch)."""
    resized = weight.double()
    for dim, new in ((2, tubelet), (3, patch), (4, patch)):
        old = weight.shape[dim]
        factors = torch.linalg.pinv(_enlarging(old, new)).T if new > old else _enlarging(new, old).T  # (new, old)
        resized = torch.movedim(torch.movedim(resized, dim, -1) @ factors.T, -1, dim)
    return resized.to(weight.dtype).contiguous()


def _enlarging(small: int, large: int) -> Tensor:
    """Return the (large, small) matrix of linear interpolation."""
    identity = torch.eye(small, dtype=torch.float64)
    return F.interpolate(identity[None], size=large, mode="linear", align_corners=False)[0].T
