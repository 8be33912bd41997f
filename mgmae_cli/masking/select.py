"""Turn visibility maps into a token mask: pool over tubelets, then keep the best tokens visible.

MGMAE (arXiv 2308.10794), section 3.2. Departure from the official code: ties are broken by random numbers from the
generator, equal in every slot, where `topk` would favour a corner of the frame on one device and not on another.

Shapes: B clips, T frames, h w cells, S slots, L patches a slot, N tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Values that differ only in the last bits are ties: rounding, which differs between devices, must not decide.
_DROPPED_BITS = 8


def pool_tokens(maps: Tensor, slots: int, rows: int, cols: int) -> Tensor:
    """Average the maps over each tubelet (the sum of method and paper, up to a constant factor).

    Args:
        maps: (B, T, h, w); T, h and w are multiples of slots, rows and cols.

    Returns:
        (B, S, L).
    """
    clips, frames, height, width = maps.shape
    over_frames = maps.view(clips, slots, frames // slots, height, width).mean(2)
    return F.avg_pool2d(over_frames, (height // rows, width // cols)).flatten(2)


def select_tokens(values: Tensor, visible_per_slot: int, over: Literal["slot", "volume"], tie_noise: Tensor) -> Tensor:
    """Keep the tokens with the largest values visible.

    Args:
        values: (B, S, L) float, not negative.
        visible_per_slot: K.
        over: "slot" keeps the top K of every slot, "volume" the top S * K of the clip.
        tie_noise: (B, L) random numbers; among equal values the larger one wins, in every slot alike.

    Returns:
        (B, N) bool mask, True = masked.
    """
    clips, slots, patches = values.shape
    # For floats that are not negative, the bits read as an integer are in the order of the values.
    bits = values.contiguous().view(torch.int32).to(torch.int64)
    rounded = (bits + (1 << (_DROPPED_BITS - 1))) >> _DROPPED_BITS
    place = tie_noise.argsort(1)[:, None]  # a random order of the patches
    key = rounded * patches + place
    count = visible_per_slot
    if over == "volume":
        # Equal places in several slots are told apart by a slot order that a second shuffle of the noise provides.
        slot = torch.arange(slots, device=values.device)[None, :, None]
        key = (key * slots + (slot + place) % slots).flatten(1)
        count *= slots
    visible = key.topk(count, dim=-1, sorted=False).indices
    return torch.ones_like(key, dtype=torch.bool).scatter_(-1, visible, False).view(clips, slots * patches)
