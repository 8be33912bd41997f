"""Carry the base frame's map outward through the clip, one frame at a time, in both directions of time.

MGMAE (arXiv 2308.10794), section 3.2. Departures from the official code: frames before the base frame use flow in the
right direction (`frame_pairs` can return the published one); every clip may have its own base frame; holes filled from
the neighbouring frame (`previous`) are implemented.

Shapes: B clips, T frames, h w cells.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mgmae_cli.motion.warp import BackwardWarp, ForwardWarp, Rows

HoleFilling = Literal["base", "previous", "none"]


def frame_pairs(
    base: Tensor, frames: int, warp: Literal["backward", "forward"], as_published: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the frame pairs whose flow carries the base frame's map through the clip.

    Args:
        base: (B,) long on the CPU, the base frames.
        frames: T.
        as_published: with backward warp, ask for the flow of frames before the base in the direction of the official
            code, from the known frame to the one that is made: the opposite of what the warp needs.

    Returns:
        source and target, both (B, T-1) long on the CPU. Column p is frame p before the base, and p + 1 after it.
    """
    column = torch.arange(frames - 1)[None].expand(len(base), -1)
    before = column < base[:, None]
    made = torch.where(before, column, column + 1)
    known = torch.where(before, column + 1, column)
    if warp == "forward":
        return known, made
    if as_published:
        return torch.where(before, known, made), torch.where(before, made, known)
    return made, known


def propagate(base_map: Tensor, base: Tensor, warp: BackwardWarp | ForwardWarp, hole_filling: HoleFilling) -> Tensor:
    """Carry each clip's base map outward from its base frame.

    Args:
        base_map: (B, h, w) float.
        base: (B,) long on the CPU.
        warp: made from the flow of the pairs that `frame_pairs` returns.
        hole_filling: what a hole gets: the base map's value at that place, the neighbouring map's, or zero.

    Returns:
        (B, T, h, w) visibility maps.
    """
    frames = warp.hole.shape[1] + 1
    maps = base_map[:, None].repeat(1, frames, 1, 1)
    bases: list[int] = base.tolist()
    later = [(frame, frame - 1, frame - 1, [start < frame for start in bases]) for frame in range(1, frames)]
    earlier = [(frame, frame + 1, frame, [start > frame for start in bases]) for frame in reversed(range(frames - 1))]
    for made, known, pair, concerned in later + earlier:
        clips = _rows(concerned, maps.device)
        if clips is None:
            continue
        neighbour, hole = maps[clips, known], warp.hole[clips, pair]
        warped = warp(neighbour, clips, pair)
        if hole_filling == "base":
            maps[clips, made] = torch.where(hole, base_map[clips], warped)
        elif hole_filling == "previous":
            maps[clips, made] = torch.where(hole, neighbour, warped)
        else:
            maps[clips, made] = warped.masked_fill(hole, 0)
    return maps


def _rows(concerned: list[bool], device: torch.device) -> Rows | None:
    """Return an index of the True rows, made without waiting for a GPU: None if there are none, a slice if all are."""
    if all(concerned):
        return slice(None)
    rows = [row for row, wanted in enumerate(concerned) if wanted]
    return torch.tensor(rows).to(device, non_blocking=True) if rows else None
