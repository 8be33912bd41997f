"""Random streams that depend on what they are for, and on nothing else."""

from __future__ import annotations

import torch


def derive_generator(*parts: int) -> torch.Generator:
    """Return a CPU generator seeded by a sequence of whole numbers; equal parts give equal streams.

    Used as (run seed, epoch, video, repeat, purpose), so that a sample does not depend on workers or ranks.
    """
    state = 0x9E3779B97F4A7C15
    for part in parts:  # splitmix64 over the parts
        state = (state ^ (part & (2**64 - 1))) * 0xBF58476D1CE4E5B9 % 2**64
        state ^= state >> 27
        state = state * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return torch.Generator().manual_seed(state % (2**63))
