"""What a step must compute, and how fast the machine multiplies matrices: the two sides of a step's share of its limit.

Only matrix products count, each multiplication and each addition as one operation. Products that an implementation does
twice to save memory count once: they are its loss.
"""

from __future__ import annotations

import torch

from mgmae_cli.bench.measure import Competitor, clock_of
from mgmae_cli.engine.distributed import Place
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.linear import linear
from mgmae_cli.model.videomae import ViTSize

SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices: large enough for the full rate, done within tenths of a second


def step_operations(size: ViTSize, grid: ClipGrid, visible: int, decoded: int, everything: bool = False) -> int:
    """Return the operations of one clip's forward and backward pass.

    Args:
        size: of the model.
        visible, decoded: tokens that the encoder sees, and that are predicted.
        everything: as transformers has it: all tokens are embedded, and the last decoder block works on all.
    """
    width, hidden = size.width, round(size.width * size.hidden)
    decoder, decoder_hidden = size.decoder_width, round(size.decoder_width * (size.decoder_hidden or size.hidden))
    together = visible + decoded
    embedding = _product(grid.tokens if everything else visible, grid.token_values, width)
    forward = (
        size.depth * _block(width, hidden, visible, visible)
        + _product(visible, width, decoder)
        + (size.decoder_depth - 1) * _block(decoder, decoder_hidden, together, together)
        + _block(decoder, decoder_hidden, together, together if everything else decoded)
        + _product(decoded, decoder, grid.token_values)
    )
    return 3 * forward + 2 * embedding  # pixels need no gradient


def _block(width: int, hidden: int, tokens: int, outputs: int) -> int:
    """Return the operations of a block's forward pass over `tokens`, of which `outputs` are wanted."""
    keys_and_values = _product(tokens, width, 2 * width)
    queries_and_projection = 2 * _product(outputs, width, width)
    attention = 2 * _product(outputs, width, tokens)
    mlp = 2 * _product(outputs, width, hidden)
    return keys_and_values + queries_and_projection + attention + mlp


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def matrix_product(place: Place) -> Competitor:
    """Return the product of two square matrices in a place's precision; its work is counted in operations."""
    side = SIDES.get(place.device.type, SIDES["cpu"])
    dtype = torch.bfloat16 if place.precision == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator).to(place.device, dtype) for _ in range(2))
    name = f"matrix product {place.precision}"
    return Competitor(name, lambda _: linear(left, right), _product(side, side, side), clock_of(place.device))
