"""Masker: a mask strategy with its flow estimator, grid and ratio; draws checked masks wherever it is told to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mgmae_cli.grid import ClipGrid
from mgmae_cli.interfaces import FlowEstimator, MaskInputs, MaskStrategy, TruthFlow, checked_mask


@dataclass
class Masker:
    """Draws masks for batches of clips.

    Args:
        strategy: what draws.
        estimator: answers its questions for flow; None for strategies that use none.
        grid, ratio: the token grid, and the share of it that is masked.
    """

    strategy: MaskStrategy
    estimator: FlowEstimator | None
    grid: ClipGrid
    ratio: float
    _counted: bool = field(default=False, repr=False)

    @property
    def stage(self) -> Literal["worker", "device"]:
        """Where masks are drawn: per clip in the loader's workers, or per batch on the training device."""
        places = {self.strategy.runs_on, self.estimator.runs_on if self.estimator else "worker"}
        return "device" if "device" in places else "worker"

    @property
    def needs_truth(self) -> bool:
        return self.estimator is not None and self.estimator.needs_truth

    @property
    def visible_tokens(self) -> int:
        """V, the visible tokens of a clip."""
        return self.strategy.visible_tokens(self.grid, self.ratio)

    def inputs(self, clip: Tensor, generator: torch.Generator, truth: TruthFlow | None = None) -> MaskInputs:
        """Return what the strategy is handed for `clip` (B, 3, T, H, W) uint8."""
        return MaskInputs(clip, self.grid, self.ratio, generator, self.estimator, truth)

    def __call__(self, clip: Tensor, generator: torch.Generator, truth: TruthFlow | None = None) -> Tensor:
        """Return a (B, N) bool mask, True = masked: the same whatever precision the step around it has.

        Raises:
            PluginError: the strategy or the estimator returned the wrong thing.
        """
        count = clip.device.type == "cpu" or not self._counted
        self._counted = True
        with torch.no_grad(), torch.autocast(clip.device.type, enabled=False):
            return checked_mask(self.strategy, self.inputs(clip, generator, truth), count)
