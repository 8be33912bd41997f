"""RAFT (Teed and Deng, arXiv 2003.12039) over many frame pairs, with torchvision's modules and less work.

Calling torchvision's model pair by pair encodes every inner frame of a clip twice and upsamples after every iteration.
Here
    - every frame passes the feature encoder once, and every source frame the context encoder once;
    - the correlation pyramid is made by pooling the target's features: pooling is linear, so the values are the same;
    - the context's share of the GRU's convolutions, constant over the iterations, is computed once;
    - only the last iteration is upsampled, and on the coarsest grid not even that one.
The flow equals that of torchvision's model but for rounding.

Shape suffixes: P pairs, C features, h w the grid at 1/8 of the frames' H W, Q = h * w its cells.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 8  # pixels a side of one feature cell
SMALLEST_SIDE = 128  # pixels: the coarsest of the four correlation levels needs 2 x 2 cells
# What passes at once on a GPU is bounded by memory. On a CPU few frames or pairs are faster: they stay in the cache.
CPU_AT_ONCE = 2  # twice as many in bfloat16
GPU_CELLS = 128 * 28**2  # cells of all frames in the encoders: 128 frames of 224 x 224
GPU_CORRELATIONS = 128 * 28**4  # correlations of all pairs: 128 pairs of 224 x 224, 0.4 GB


def flow_of_pairs(
    model: Any, frames: Tensor, source: Tensor, target: Tensor, iterations: int, scale: int = 1, bf16: bool = False
) -> Tensor:
    """Estimate the flow of many pairs of frames.

    Args:
        model: torchvision's `raft_small` or `raft_large`, in evaluation mode.
        frames: (F, 3, H, W) in [-1, 1]; H and W multiples of 8, at least `SMALLEST_SIDE`.
        source, target: (P,) long on the CPU: numbers of frames.
        iterations: updates of the flow.
        scale: 1, 2, 4 or 8; the flow comes on a grid this many times smaller.
        bf16: run the networks under bf16 autocast; correlations and flow stay in fp32.

    Returns:
        (P, 2, H / scale, W / scale) float32 in pixels of the frames.
    """

    def autocast() -> AbstractContextManager[object]:
        return torch.autocast(frames.device.type, torch.bfloat16) if bf16 else nullcontext()

    cells = frames.shape[-2] * frames.shape[-1] // STRIDE**2
    on_cpu = frames.device.type == "cpu"
    cpu_at_once = 2 * CPU_AT_ONCE if bf16 else CPU_AT_ONCE
    frames_at_once = cpu_at_once if on_cpu else max(1, GPU_CELLS // cells)
    pairs_at_once = cpu_at_once if on_cpu else max(1, GPU_CORRELATIONS // cells**2)

    with torch.no_grad():
        used, place = torch.unique(torch.stack([source, target]), return_inverse=True)
        used_sources, source_place = torch.unique(source, return_inverse=True)
        used, place, used_sources, source_place = (
            index.to(frames.device, non_blocking=True) for index in (used, place, used_sources, source_place)
        )
        with autocast():
            features = torch.cat([model.feature_encoder(frames[part]) for part in used.split(frames_at_once)])
            contexts = torch.cat([model.context_encoder(frames[part]) for part in used_sources.split(frames_at_once)])
        features = features.float()
        flows = []
        grus = split_grus(model.update_block, contexts.shape[1])
        for start in range(0, len(source), pairs_at_once):
            pairs = slice(start, start + pairs_at_once)
            pyramid = correlation_pyramid(
                features[place[0, pairs]], features[place[1, pairs]], model.corr_block.num_levels
            )
            with autocast():
                flow, state = _refine(model, grus, contexts[source_place[pairs]], pyramid, iterations)
                flows.append(_on_grid(model, flow, state, scale))
    return torch.cat(flows)


def _refine(
    model: Any, grus: list[Gru], context: Tensor, pyramid: list[Tensor], iterations: int
) -> tuple[Tensor, Tensor]:
    """Return the (P, 2, h, w) flow in cells after `iterations` updates, and the last hidden state."""
    block = model.update_block
    state, context = torch.split(context, [block.hidden_state_size, context.shape[1] - block.hidden_state_size], dim=1)
    state, context = torch.tanh(state), F.relu(context)
    shares = [gru.share(context) for gru in grus]
    # all in channels_last, as the convolutions are: one tensor that is not would make copies of what it is joined to
    cells_P2hw = cell_coordinates(pyramid[0]).contiguous(memory_format=torch.channels_last)
    flow = torch.zeros_like(cells_P2hw)
    for _ in range(iterations):
        correlation = look_up(pyramid, cells_P2hw + flow, model.corr_block.radius)
        motion = block.motion_encoder(flow, correlation)
        for gru, share in zip(grus, shares):
            state = gru.step(state, motion, share)
        flow = flow + block.flow_head(state).float()
    return flow, state


def split_grus(block: Any, encoded: int) -> list[Gru]:
    """Return the GRUs of an update block: one in raft_small, two in raft_large.

    Args:
        encoded: channels of the context encoder: the first hidden state, and the context.
    """
    recurrent = block.recurrent_block  # in raft_small a plain function stands in the second GRU's place
    found = [gru for gru in (recurrent.convgru1, recurrent.convgru2) if isinstance(gru, nn.Module)]
    return [Gru(gru, encoded - block.hidden_state_size) for gru in found]


class Gru:
    """One of torchvision's convolutional GRUs, its weights split by what they see: context, or what changes.

    A GRU's convolutions see (hidden state, context, motion features); the context stays the same in all iterations, so
    its share of the convolutions is computed once.
    """

    def __init__(self, gru: Any, context_channels: int) -> None:
        convolutions = (gru.convz, gru.convr, gru.convq)
        weight = torch.cat([convolution.weight for convolution in convolutions])
        self.bias = torch.cat([convolution.bias for convolution in convolutions])
        self.padding = gru.convz.padding
        self.hidden = gru.convz.out_channels
        sizes = [self.hidden, context_channels, weight.shape[1] - self.hidden - context_channels]
        of_state, of_context, of_motion = torch.split(weight, sizes, dim=1)
        self.of_context = of_context.contiguous(memory_format=torch.channels_last)
        self.idle = -(sizes[0] + sizes[2]) % 8  # a GPU's matrix units want channels in eights: zeros fill up
        varying = F.pad(torch.cat([of_state, of_motion], dim=1), (0, 0, 0, 0, 0, self.idle))
        varying = varying.contiguous(memory_format=torch.channels_last)
        self.of_gates, self.of_candidate = torch.split(varying, [2 * self.hidden, self.hidden])

    def share(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the context adds to the two gates, and to the candidate."""
        both = F.conv2d(context, self.of_context, self.bias, padding=self.padding)
        gates, candidate = torch.split(both, [2 * self.hidden, self.hidden], dim=1)
        return gates, candidate

    def step(self, state: Tensor, motion: Tensor, share: tuple[Tensor, Tensor]) -> Tensor:
        """Return the next hidden state."""
        pairs, _, height, width = motion.shape
        zeros = motion.new_zeros(pairs, height, width, self.idle).permute(0, 3, 1, 2)  # in channels_last, too
        gates = F.conv2d(torch.cat([state, motion, zeros], dim=1), self.of_gates, padding=self.padding)
        update, reset = gates.add_(share[0]).sigmoid_().chunk(2, dim=1)
        seen = torch.cat([reset * state, motion, zeros], dim=1)
        candidate = F.conv2d(seen, self.of_candidate, padding=self.padding)
        return torch.lerp(state, candidate.add_(share[1]).tanh_(), update)


def correlation_pyramid(source_PChw: Tensor, target_PChw: Tensor, levels: int) -> list[Tensor]:
    """Return the correlations of each source cell with all target cells, (P * Q, 1, h, w), on ever coarser targets."""
    features = source_PChw.shape[1]
    source_PQC = source_PChw.flatten(2).transpose(1, 2) / features**0.5
    pyramid = []
    for level in range(levels):
        if level:
            target_PChw = F.avg_pool2d(target_PChw, 2)
        correlation = torch.bmm(source_PQC, target_PChw.flatten(2))
        pyramid.append(correlation.view(-1, 1, *target_PChw.shape[-2:]))
    return pyramid


def cell_coordinates(correlation: Tensor) -> Tensor:
    """Return (P, 2, h, w): the x and y of every cell, for the finest level of a correlation pyramid."""
    height, width = correlation.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=correlation.device, dtype=torch.float32),
        torch.arange(width, device=correlation.device, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack([x, y]).repeat(correlation.shape[0] // (height * width), 1, 1, 1)


def look_up(pyramid: list[Tensor], position_P2hw: Tensor, radius: int) -> Tensor:
    """Return the correlations around a position for every cell: (P, levels * (2 * radius + 1)^2, h, w).

    As in the published code, the window's first axis runs along x.
    """
    pairs, _, height, width = position_P2hw.shape
    centre = position_P2hw.transpose(0, 1).reshape(2, -1, 1, 1)
    steps = torch.arange(-radius, radius + 1, device=centre.device, dtype=torch.float32)
    found = []
    for level, correlation in enumerate(pyramid):
        # x and y are kept apart, each in one piece: working on pairs of numbers takes six times as long on a CPU
        place = centre.new_empty(2, centre.shape[1], len(steps), len(steps))
        for axis, (side, window) in enumerate(zip(correlation.shape[:-3:-1], (steps[:, None], steps[None, :]))):
            unit = 2 / (side - 1)
            torch.add(centre[axis] * (unit / 2**level) - 1, (window * unit).expand(place.shape[2:]), out=place[axis])
        looked = F.grid_sample(correlation, place.permute(1, 2, 3, 0), align_corners=True)
        found.append(looked.view(pairs, height, width, -1))
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2)


def _on_grid(model: Any, flow: Tensor, state: Tensor, scale: int) -> Tensor:
    """Return flow in pixels on a grid `scale` times smaller than the frames, from flow in cells at 1/8."""
    if model.mask_predictor is None:
        height, width = (STRIDE * side for side in flow.shape[-2:])
        full = STRIDE * F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=True)
    elif scale == STRIDE:
        return STRIDE * flow  # each cell is the centre of those that the convex upsampling mixes for its pixels
    else:
        full = upsample_convex(flow, model.mask_predictor(state).float())
    return full if scale == 1 else F.avg_pool2d(full, scale)


def upsample_convex(flow: Tensor, logits: Tensor) -> Tensor:
    """Return (P, 2, 8 h, 8 w) flow in pixels, each a mixture of the 3 x 3 cells around its own by softmax weights.

    Args:
        flow: (P, 2, h, w) in cells.
        logits: (P, 9 * 8 * 8, h, w).
    """
    pairs, _, height, width = flow.shape
    weight = logits.view(pairs, 1, 9, STRIDE, STRIDE, height, width).softmax(dim=2)
    around = F.unfold(STRIDE * flow, kernel_size=3, padding=1).view(pairs, 2, 9, 1, 1, height, width)
    mixed = (weight * around).sum(dim=2)
    return mixed.permute(0, 1, 4, 2, 5, 3).reshape(pairs, 2, STRIDE * height, STRIDE * width)
