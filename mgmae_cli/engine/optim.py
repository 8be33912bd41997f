"""The optimiser and its learning rate: AdamW with decay groups, linear warm-up, cosine to the end, a value per step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step: linear warm-up from 0, then half a cosine from `peak` to `end`.

    Args:
        peak, end: learning rates, already scaled by clips per step.
        steps: all steps of the run.
        warmup: steps of linear rise; the first step after them has `peak`.
    """

    peak: float
    end: float
    steps: int
    warmup: int

    def __call__(self, step: int) -> float:
        """Return the learning rate of `step`, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.end + (self.peak - self.end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def decay_groups(
    model: nn.Module, weight_decay: float, no_decay: Iterable[str] = ("mask_token",)
) -> list[dict[str, object]]:
    """Return AdamW groups: no weight decay on biases, norms, and parameters whose name ends in one of `no_decay`."""
    names = tuple(no_decay)
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (free if parameter.ndim <= 1 or name.endswith(names) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def make_adamw(
    groups: list[dict[str, object]], lr: float, betas: tuple[float, float], device: torch.device
) -> torch.optim.AdamW:
    """Return AdamW over parameter groups, fused where the device has the kernel."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=device.type in ("cuda", "cpu"))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's own `lr_scale` (layer-wise decay) if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
