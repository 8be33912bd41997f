"""How much of what a mask hides can be seen elsewhere: leakage, without training a model.

Definitions. Content is followed by `mgmae_cli.diagnose.tracks`: let x_u(p, t) be where the content of point p of frame
t is in frame u, defined as long as its track lives. V_s is the part of the frame that is visible in slot s, and s(t) is
the slot of frame t. A point leaks when another slot shows its content:

    leaks(p, t) = any over frames u with s(u) != s(t) of  [ x_u(p, t) is defined and lies in V_s(u) ]

    leaked share of token n    e_n = mean of leaks(p, t) over the points of n
    leak                       mean over masked tokens of [ e_n >= 1/2 ]
    leaked_content             mean over masked tokens of e_n

    copy_error                 mean over masked tokens of min(c_n, m_n), with
                               c_n = mean over points and colours of ((copied - true) / deviation_n)^2,
                               where copied is the colour at the visible place on the point's track that is nearest in
                               time (in any slot), or the token's mean where there is none; m_n the same with the mean
                               everywhere, about 1; deviation_n as in the training target. So a flat token next to an
                               edge can't outweigh all others. 1 means that copying explains nothing of the target, 0
                               that it explains all. Unlike a model's loss, it is told each token's mean and deviation.

    life                       mean over points of visible tokens of the number of consecutive slots, their own
                               included, in which a visible token shows their content
    life_limit                 the same for a mask that hides nothing: how long the content can be followed at all

The idea of leakage is MGMAE's and VideoMAE's (arXiv 2308.10794, 2203.12602); neither defines a figure for it.

Shapes: B clips, T frames, S slots, L patches a slot, N tokens, P points of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mgmae_cli.diagnose.tracks import ClipMotion, Tracks, cell_centres, inside_frame, opposite_flow, sample_images
from mgmae_cli.grid import ClipGrid
from mgmae_cli.masking.propagate import frame_pairs
from mgmae_cli.model.tokens import all_tokens
from mgmae_cli.motion.warp import BackwardWarp, ForwardWarp, flow_to_grid


@dataclass(frozen=True)
class MaskFigures:
    """Figures of masks, each (B,); the module's header defines them."""

    leak: Tensor
    leaked_content: Tensor
    copy_error: Tensor
    life: Tensor
    life_limit: Tensor


@dataclass(frozen=True)
class FlowFigures:
    """Figures of flow, each (B,), over both directions of time.

    Args:
        photometric_error: mean |I_t(x) - I_u(x + F)| of colours in [0, 1], where the flow is not lost.
        consistency_error: mean |F(x) + G(x + F(x))| in pixels, G the opposite flow, where F points into the frame.
        lost: share of places where the flow is lost or points out of the frame.
    """

    photometric_error: Tensor
    consistency_error: Tensor
    lost: Tensor


def mask_figures(mask: Tensor, clip: Tensor, grid: ClipGrid, tracks: Tracks) -> MaskFigures:
    """Measure masks against the tracks of their clips.

    Args:
        mask: (B, N) bool, True = masked.
        clip: (B, 3, T, H, W) uint8.
        tracks: from `follow`, with a point stride that divides the patch.
    """
    shown = _shown(mask, grid, tracks)
    leaked = leaked_share(mask, grid, tracks, shown)
    masked_tokens = mask.sum(1)
    by_slot = (-1, grid.frames, grid.slots, grid.tubelet, len(tracks.points))
    visible = shown.diagonal(0, 1, 2).transpose(1, 2)  # (B, T, P), at the point itself
    count = visible.sum((1, 2))
    lives = [_run_length(flags.view(by_slot).any(3), grid.tubelet) for flags in (shown, tracks.alive)]
    life, life_limit = ((run * visible).sum((1, 2)) / count for run in lives)
    return MaskFigures(
        leak=((leaked >= 0.5) & mask).sum(1) / masked_tokens,
        leaked_content=(leaked * mask).sum(1) / masked_tokens,
        copy_error=(_copy_error(clip, grid, tracks, shown) * mask).sum(1) / masked_tokens,
        life=life,
        life_limit=life_limit,
    )


def leaked_share(mask: Tensor, grid: ClipGrid, tracks: Tracks, shown: Tensor | None = None) -> Tensor:
    """Return (B, N) float: the share of each token's points that another slot shows, whether masked or not."""
    shown = _shown(mask, grid, tracks) if shown is None else shown
    slot = torch.arange(grid.frames, device=mask.device) // grid.tubelet
    leaks = (shown & (slot[:, None] != slot)[:, :, None]).any(2)
    return _token_mean(leaks.float(), grid, tracks)


def flow_figures(clip: Tensor, motion: ClipMotion) -> FlowFigures:
    """Measure how well flow explains its clip and agrees with itself.

    Args:
        clip: (B, 3, T, H, W) uint8.
    """
    size = (clip.shape[3], clip.shape[4])
    frames = clip.transpose(1, 2).float() / 255  # (B, T, 3, H, W)
    sums = []
    for source, target, flow, opposite, lost in (
        (frames[:, :-1], frames[:, 1:], motion.forward, motion.backward, motion.lost_forward),
        (frames[:, 1:], frames[:, :-1], motion.backward, motion.forward, motion.lost_backward),
    ):
        starts = cell_centres(flow, size).expand(flow.shape[0] * flow.shape[1], -1, 2)
        ends = starts + flow.flatten(0, 1).flatten(2).transpose(1, 2)
        inside = inside_frame(ends, size).view(lost.shape)
        kept = inside & ~lost
        before = sample_images(source.flatten(0, 1), starts, size)
        after = sample_images(target.flatten(0, 1), ends, size)
        colour = (before - after).abs().mean(2).view(lost.shape)
        gap = (flow + opposite_flow(flow, opposite, size)).square().sum(2).sqrt()
        parts = (colour * kept, kept, gap * inside, inside, torch.ones_like(colour))
        sums.append(torch.stack([part.flatten(1).sum(1) for part in parts]))
    colour, kept, gap, inside, all_places = sums[0] + sums[1]
    return FlowFigures(colour / kept.clamp_min(1), gap / inside.clamp_min(1), 1 - kept / all_places)


def hole_share(
    motion: ClipMotion,
    base: Tensor,
    size: tuple[int, int],
    map_grid: tuple[int, int],
    warp: Literal["backward", "forward"] = "backward",
    as_published: bool = False,
) -> Tensor:
    """Return (B,): the share of places without a source in the maps that a motion mask would warp.

    Args:
        base: (B,) long on the CPU, the base frames.
        size: (H, W) of the clip.
        map_grid: (h, w), the grid on which maps are warped.
    """
    source, target = frame_pairs(base, motion.forward.shape[1] + 1, warp, as_published)
    flow = flow_to_grid(motion.flow(source, target), map_grid, size)
    hole = (BackwardWarp(flow) if warp == "backward" else ForwardWarp(flow)).hole
    return hole.float().mean((1, 2, 3))


def _shown(mask: Tensor, grid: ClipGrid, tracks: Tracks) -> Tensor:
    """Return (B, T, T, P) bool: whether frame u shows the content of frame t's points in a visible token."""
    at = ((tracks.place + 0.5) / grid.patch).floor().long()
    patch = at[..., 1].clamp(0, grid.rows - 1) * grid.cols + at[..., 0].clamp(0, grid.cols - 1)
    slot = torch.arange(grid.frames, device=mask.device)[:, None] // grid.tubelet
    token = (patch + slot * grid.patches).flatten(1)
    return (~mask).gather(1, token).view_as(tracks.alive) & tracks.alive


def _run_length(flags: Tensor, tubelet: int) -> Tensor:
    """Count, for each point, the slots next to its own and to each other in which its flag is set, and its own.

    Args:
        flags: (B, T, S, P) bool, by the frame where the point starts and the slot that is asked about.

    Returns:
        (B, T, P) int, at least 1.
    """
    runs = []
    for frame in range(flags.shape[1]):
        own, asked = frame // tubelet, flags[:, frame].int()
        later = asked[:, own + 1 :].cumprod(1).sum(1)
        earlier = asked[:, :own].flip(1).cumprod(1).sum(1)
        runs.append(1 + later + earlier)
    return torch.stack(runs, dim=1)


def _copy_error(clip: Tensor, grid: ClipGrid, tracks: Tracks, shown: Tensor) -> Tensor:
    """Return (B, N): each token's min(c_n, m_n), from copying its points from the nearest frame that shows them."""
    frames = torch.arange(grid.frames, device=clip.device)
    distance = (frames[:, None] - frames).abs()
    # Nearest in time first; of two equally near frames, the earlier.
    preference = 2 * (grid.frames - distance) + (frames[:, None] > frames)
    best, donor = (shown * preference[:, :, None]).max(2)  # (B, T, P)
    place = tracks.place.gather(2, donor[:, :, None, :, None].expand(-1, -1, -1, -1, 2))[:, :, 0]
    colours = clip.float() / 255
    volume = torch.cat((place, donor[..., None]), dim=-1)  # x, y, frame
    shape = volume.new_tensor([grid.width, grid.height, grid.frames])
    normalised = ((2 * volume + 1) / shape - 1)[:, :, :, None]
    copied = F.grid_sample(colours, normalised, padding_mode="border", align_corners=False)[..., 0]  # (B, 3, T, P)
    x, y = tracks.points.unbind(-1)
    true = colours[..., y, x]
    tokens = all_tokens(colours, grid.tubelet, grid.patch).flatten(2, 4)  # (B, N, pixels, 3)
    mean = _at_points(tokens.mean(2), grid, tracks)
    deviation = _at_points(tokens.std(2), grid, tracks) + 1e-6
    errors = [
        _token_mean(((guess - true) / deviation).square().mean(1), grid, tracks)
        for guess in (torch.where((best > 0)[:, None], copied, mean), mean)
    ]
    return torch.minimum(*errors)


def _token_mean(values: Tensor, grid: ClipGrid, tracks: Tracks) -> Tensor:
    """Average a value of every point, (B, T, P), over the points of each token: (B, N)."""
    points = values.view(-1, grid.slots, grid.tubelet, grid.height // tracks.stride, grid.width // tracks.stride)
    return F.avg_pool2d(points.mean(2), grid.patch // tracks.stride).flatten(1)


def _at_points(statistic: Tensor, grid: ClipGrid, tracks: Tracks) -> Tensor:
    """Spread one value a token and colour, (B, N, 3), over the points: (B, 3, T, P)."""
    x, y = (tracks.points // grid.patch).unbind(-1)
    by_slot = statistic.view(-1, grid.slots, grid.patches, 3)[:, :, y * grid.cols + x]
    return by_slot.repeat_interleave(grid.tubelet, dim=1).permute(0, 3, 1, 2)
