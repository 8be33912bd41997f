"""Tokens: cut a clip into them, choose which are seen and which are scored, and make the targets.

Papers: VideoMAE (arXiv 2203.12602, section 3), VideoMAE V2 (arXiv 2303.16727, section 3.2) for the running cell.
Departures from the official code: visible patches are gathered as uint8 before they become floats or embeddings, and
targets are made only for the tokens that are scored; the official code embeds and normalises all N tokens, then drops
nine tenths of the first and a tenth of the second. The results are equal.

Shape suffixes: B batch, C colour, T frames, H W pixels, S slots, L patches of a slot, N tokens, V visible, M masked or
decoded, t frames and p pixels a side of a token, P = t * p * p, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgmae_cli.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def token_view(clip: Tensor, tubelet: int, patch: int) -> Tensor:
    """View a (B, 3, T, H, W) clip as (B, S, rows, cols, 3, t, p, p), without a copy."""
    batch, colours, frames, height, width = clip.shape
    cut = clip.view(batch, colours, frames // tubelet, tubelet, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7)


def all_tokens(clip: Tensor, tubelet: int, patch: int) -> Tensor:
    """Return all tokens of a (B, 3, T, H, W) clip, (B, N, t, p, p, 3), in clip order."""
    return token_view(clip, tubelet, patch).flatten(1, 3).permute(0, 1, 3, 4, 5, 2)


def gather_tokens(clip: Tensor, index: Tensor, tubelet: int, patch: int) -> Tensor:
    """Copy the tokens named by `index` out of a clip, and only those.

    Args:
        clip: (B, 3, T, H, W), any dtype; uint8 to keep the copy small.
        index: (B, V) long token numbers.

    Returns:
        (B, V, t, p, p, 3) of the clip's dtype. In memory colour comes before t, so that the copy, the embedding with
        its (D, 3, t, p, p) weights, and the targets' means read runs of pixels.
    """
    batch, colours, frames, height, width = clip.shape
    rows, cols = height // patch, width // patch

    def run_number(b: Tensor, c: Tensor | int, t: Tensor, y: Tensor, col: Tensor | int) -> Tensor:
        """Number the runs of p pixels inside one token, in the order of memory."""
        return (((b * colours + c) * frames + t) * height + y) * cols + col

    def count(size: int) -> Tensor:
        return torch.arange(size, device=clip.device)

    nowhere = torch.zeros((), dtype=torch.long, device=clip.device)
    slot, row, col = index // (rows * cols), index // cols % rows, index % cols
    first = run_number(count(batch)[:, None], 0, slot * tubelet, row * patch, col)
    inside = run_number(nowhere, count(colours)[:, None, None], count(tubelet)[:, None], count(patch), 0)
    runs = (first[:, :, None] + inside.flatten()).flatten()
    tokens = _take(clip.reshape(-1, patch), runs)
    return tokens.view(*index.shape, colours, tubelet, patch, patch).permute(0, 1, 3, 4, 5, 2)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """Return some rows of a contiguous matrix."""
    if rows.device.type == "cpu" or torch.compiler.is_compiling():
        return rows.index_select(0, index)
    # index_select spends a block of a GPU's threads on each row, however short: a tenth of a step of ViT-B. Plain
    # indexing copies one number by a thread: fewer, larger ones are faster.
    size = rows.shape[1] * rows.element_size()
    wider = next((dtype for dtype in (torch.int64, torch.int32, torch.int16) if size % dtype.itemsize == 0), rows.dtype)
    return rows.view(wider)[index].view(rows.dtype)


def split_tokens(mask: Tensor, num_visible: int) -> tuple[Tensor, Tensor]:
    """Split a mask into token numbers, each in clip order, without waiting for the device.

    Args:
        mask: (B, N) bool, True = masked, with exactly `num_visible` False in every row (masks are checked where they
            are made: `interfaces.checked_mask`).

    Returns:
        visible (B, V) long and masked (B, N - V) long.
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, :num_visible], order[:, num_visible:]


def normalise_pixels(pixels: Tensor) -> Tensor:
    """Return uint8 pixels (..., 3) as float32, standardised by ImageNet's mean and deviation: the encoder's input."""
    # copied without waiting for the device, as a tensor made there would
    mean, std = (
        (torch.tensor(values) * 255).to(pixels.device, non_blocking=True) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (pixels - mean) / std


def standardise(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standardise tokens' pixels per colour channel.

    Args:
        tokens: (B, M, t, p, p, 3) uint8, from `gather_tokens`.

    Returns:
        (x - mean) / deviation (B, M, P, 3), and mean and deviation (B, M, 1, 3), of pixels x in [0, 1]; the deviation
        is sqrt(unbiased variance) + 1e-6. All float32.
    """
    pixels = tokens.permute(0, 1, 5, 2, 3, 4).flatten(3).float()  # colour first: one run a mean
    mean = pixels.mean(dim=-1, keepdim=True)
    pixels -= mean
    norm = torch.linalg.vector_norm(pixels, dim=-1, keepdim=True)
    deviation = norm / (255 * (pixels.shape[-1] - 1) ** 0.5) + 1e-6
    pixels /= 255 * deviation
    return pixels.transpose(2, 3), mean.transpose(2, 3) / 255, deviation.transpose(2, 3)


def pixel_targets(tokens: Tensor) -> Tensor:
    """Return what the decoder should predict for tokens.

    Args:
        tokens: (B, M, t, p, p, 3) uint8, from `gather_tokens`.

    Returns:
        (B, M, P, 3) float32: pixels standardised per token and colour channel.
    """
    return standardise(tokens)[0]


def pixels_from_targets(predictions: Tensor, tokens: Tensor) -> Tensor:
    """Turn predictions back into pixels, with the true tokens' means and deviations: for pictures.

    Args:
        predictions: (B, M, P, 3).
        tokens: (B, M, t, p, p, 3) uint8, the true tokens.

    Returns:
        (B, M, t, p, p, 3) float32, in [0, 1] where the predictions are right.
    """
    _, mean, deviation = standardise(tokens)
    return (predictions.float() * deviation + mean).reshape(tokens.shape)


def scatter_tokens(clip: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
    """Return a copy of a clip with the tokens named by `index` replaced: the inverse of `gather_tokens`.

    Args:
        clip: (B, 3, T, H, W).
        index: (B, M) long token numbers.
        tokens: (B, M, t, p, p, 3) of the clip's dtype.
    """
    painted = clip.clone(memory_format=torch.contiguous_format)
    view = token_view(painted, tokens.shape[2], tokens.shape[3])
    _, _, rows, cols = view.shape[:4]
    batch = torch.arange(view.shape[0], device=clip.device)[:, None]
    view[batch, index // (rows * cols), index // cols % rows, index % cols] = tokens.permute(0, 1, 5, 2, 3, 4)
    return painted


def running_cell(batch: int, slots: int, rows: int, cols: int, generator: torch.Generator) -> Tensor:
    """Choose the half of the tokens that VideoMAE V2 decodes.

    Patches lie in cells of 2 x 2, their places counted row by row. In each slot two neighbouring places of the four are
    decoded; the pattern advances by one place from slot to slot, from a random start in each sample.

    Returns:
        (B, N) bool on the CPU, True = decoded: exactly half of every slot.

    Raises:
        ConfigError: an odd number of rows or columns, where cells don't fit.
    """
    if rows % 2 or cols % 2:
        raise ConfigError(
            f"model.decoder_mask = running_cell: needs even numbers of patches, not {rows} x {cols}; "
            "use decoder_mask none, or another data.size"
        )
    start = torch.randint(4, (batch, 1, 1, 1), generator=generator)
    slot = torch.arange(slots)[None, :, None, None]
    place = (torch.arange(rows)[:, None] % 2 * 2 + torch.arange(cols) % 2)[None, None]
    return ((place + slot + start) % 4 < 2).flatten(1)


def running_cell_tokens(
    mask: Tensor, slots: int, rows: int, cols: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return which tokens the running cell decodes, and which of them are scored.

    Places that the encoder saw are decoded with the rest, so that every clip decodes equally many, but not scored.

    Args:
        mask: (B, N) bool, True = masked.

    Returns:
        decode_index (B, N / 2) long, in clip order, and scored (B, N / 2) bool; both on the mask's device.
    """
    decoded = running_cell(mask.shape[0], slots, rows, cols, generator).to(mask.device, non_blocking=True)
    decode_index, _ = split_tokens(~decoded, mask.shape[1] // 2)
    return decode_index, mask.gather(1, decode_index)


def position_table(tokens: int, width: int) -> Tensor:
    """Return the fixed sinusoids of VideoMAE, (N, D) float32: one dimension over all N tokens, base 10000.

    Column j holds sin (even j) or cos (odd j) of n / 10000^(2 * (j // 2) / D).
    """
    columns = torch.arange(width, dtype=torch.float64)
    rates = 10000.0 ** (2 * (columns // 2) / width)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] / rates
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos()).float()
