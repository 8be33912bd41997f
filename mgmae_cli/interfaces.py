"""What a plugin author implements: MaskStrategy, FlowEstimator, ClipSource, and what they are handed.

Conventions, written here once and tested for every implementation:
    clip    (B, 3, T, H, W) uint8 RGB, 0 to 255
    flow    F_{s->t} has (dx, dy) in channels 0 and 1, x to the right, y down, always in pixels of the clip even where
            the flow's own grid is coarser. What is at x in frame s is at x + F_{s->t}(x) in frame t. The flow lives on
            the grid of frame s, the source.
    mask    (B, N) bool, True = masked, N as in `mgmae_cli.grid`
Random numbers come from the generator that is passed, never from torch's global one: it lives on the CPU, so that a
mask does not depend on the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mgmae_cli.errors import PluginError
from mgmae_cli.grid import ClipGrid


class PluginOptions(BaseModel):
    """Base of every plugin's `Options`: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


# --- flow ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TruthFlow:
    """Exact flow between neighbouring frames, for sources that know it.

    Args:
        forward: (B, T-1, 2, H, W); entry t is F_{t -> t+1}.
        backward: (B, T-1, 2, H, W); entry t is F_{t+1 -> t}.
        occluded_forward: (B, T-1, H, W) bool; True where what frame t shows is hidden or outside in frame t+1.
        occluded_backward: (B, T-1, H, W) bool; True where what frame t+1 shows is hidden or outside in frame t.
    """

    forward: Tensor
    backward: Tensor
    occluded_forward: Tensor
    occluded_backward: Tensor

    def to(self, device: torch.device) -> TruthFlow:
        """Return the same on another device."""
        return TruthFlow(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    @staticmethod
    def stack(flows: Sequence[TruthFlow]) -> TruthFlow:
        """Join along the batch dimension."""
        return TruthFlow(
            *(torch.cat([getattr(flow, name) for flow in flows]) for name in TruthFlow.__dataclass_fields__)
        )


@dataclass(frozen=True)
class FlowRequest:
    """The flows somebody wants: P frame pairs of each clip of a batch.

    Args:
        clip: (B, 3, T, H, W) uint8.
        source, target: (B, P) long, on the CPU: frame numbers; the flow F_{source -> target} is wanted.
        truth: exact flow of neighbours, where the clips' source knows it.
    """

    clip: Tensor
    source: Tensor
    target: Tensor
    truth: TruthFlow | None = None


class FlowEstimator(ABC):
    """Estimates optical flow. Subclass it, give it a `name`, register it by `mgmae_register_flows`.

    `runs_on` is "worker" for what runs on the CPU inside the data loader's workers (one clip at a time), and "device"
    for what runs on the training device (a batch at a time).
    """

    name: ClassVar[str]
    runs_on: ClassVar[Literal["worker", "device"]] = "worker"
    needs_truth: ClassVar[bool] = False

    class Options(PluginOptions):
        """No options."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def estimate(self, request: FlowRequest) -> Tensor:
        """Return (B, P, 2, h, w) float32 flow in pixels of the clip, on the clip's device; h <= H, w <= W."""

    def to(self, device: torch.device) -> None:  # noqa: B027 - an optional hook
        """Move weights to a device; called once before training. Estimators without weights need nothing."""


# --- masks --------------------------------------------------------------------------------------------------------


@dataclass
class MaskInputs:
    """What a mask strategy is handed for a batch of clips.

    Args:
        clip: (B, 3, T, H, W) uint8.
        grid: how the clip is cut into tokens.
        ratio: share of masked tokens.
        generator: the only source of random numbers; on the CPU.
        estimator: answers `flow`; None where the strategy declares that it uses none.
        truth: exact flow, where known.
    """

    clip: Tensor
    grid: ClipGrid
    ratio: float
    generator: torch.Generator
    estimator: FlowEstimator | None = None
    truth: TruthFlow | None = None

    @property
    def batch(self) -> int:
        return self.clip.shape[0]

    @property
    def device(self) -> torch.device:
        return self.clip.device

    @property
    def visible_per_slot(self) -> int:
        """K, the visible patches of a slot."""
        return self.grid.visible_per_slot(self.ratio)

    def rand(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1), drawn on the CPU and moved to the clip's device."""
        return torch.rand(*shape, generator=self.generator).to(self.device, non_blocking=True)

    def flow(self, source: Tensor, target: Tensor) -> Tensor:
        """Return F_{source -> target}, (B, P, 2, h, w) in pixels of the clip, for (B, P) frame numbers.

        Raises:
            PluginError: the strategy did not declare `uses_flow`, or the estimator returned the wrong thing.
        """
        if self.estimator is None:
            raise PluginError("a mask strategy asked for flow but does not declare `uses_flow = True`")
        flow = self.estimator.estimate(FlowRequest(self.clip, source, target, self.truth))
        name = self.estimator.name
        if not isinstance(flow, Tensor):
            raise PluginError(f"flow {name!r} returned {type(flow).__name__}; expected a tensor (B, P, 2, h, w)")
        if flow.ndim != 5 or tuple(flow.shape[:3]) != (*source.shape, 2) or not flow.is_floating_point():
            raise PluginError(
                f"flow {name!r} returned {tuple(flow.shape)} {flow.dtype}; "
                f"expected ({source.shape[0]}, {source.shape[1]}, 2, h, w) of floats"
            )
        if flow.shape[3] > self.grid.height or flow.shape[4] > self.grid.width:
            raise PluginError(f"flow {name!r} returned a grid {tuple(flow.shape[3:])} finer than the clip's")
        return flow


class MaskStrategy(ABC):
    """Chooses which tokens the encoder sees. Subclass it, give it a `name`, register it by `mgmae_register_masks`.

    `runs_on`: "worker" (per clip, on the CPU, in the data loader's workers), "device" (per batch, on the training
    device), or "flow" (wherever the chosen flow estimator runs).
    """

    name: ClassVar[str]
    runs_on: ClassVar[Literal["worker", "device", "flow"]] = "worker"
    uses_flow: ClassVar[bool] = False

    class Options(PluginOptions):
        """No options."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def sample(self, inputs: MaskInputs) -> Tensor:
        """Return a (B, N) bool mask, True = masked, with `grid.visible_tokens(ratio)` False in every row."""

    def visible_tokens(self, grid: ClipGrid, ratio: float) -> int:
        """Return V, the visible tokens of a clip. Override only to depart from the common budget, and say so."""
        return grid.visible_tokens(ratio)

    def visibility(self, inputs: MaskInputs) -> Tensor | None:
        """Return the (B, T, h, w) visibility map behind the mask that `sample` draws from an equal generator.

        For pictures only. None (the default) where a strategy has no such map.
        """
        return None


def checked_mask(strategy: MaskStrategy, inputs: MaskInputs, count: bool = True) -> Tensor:
    """Sample a mask and check its shape and dtype and, with `count`, how many tokens each clip shows.

    Counting waits for the device; on a GPU it is worth doing once a run, on the CPU always.

    Raises:
        PluginError: naming the strategy, what it returned, and what was expected.
    """
    mask = strategy.sample(inputs)
    expected = (inputs.batch, inputs.grid.tokens)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != expected:
        got = f"{tuple(mask.shape)} {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise PluginError(f"mask {strategy.name!r} returned {got}; expected {expected} torch.bool (True = masked)")
    if mask.device != inputs.device:
        raise PluginError(f"mask {strategy.name!r} returned a mask on {mask.device}; the clip is on {inputs.device}")
    visible = strategy.visible_tokens(inputs.grid, inputs.ratio)
    if count:
        counts = (~mask).sum(1)
        if not bool((counts == visible).all()):
            raise PluginError(
                f"mask {strategy.name!r} left {sorted(set(counts.tolist()))} tokens visible; "
                f"expected {visible} of {inputs.grid.tokens} in every clip at ratio {inputs.ratio}"
            )
    return mask


# --- clips --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataLocation:
    """Where a source finds its videos: the `data.path` and `data.root` of the config (None where not given)."""

    path: Path | None = None
    root: Path | None = None


@dataclass(frozen=True)
class ClipRequest:
    """What the loader wants of a source for one clip.

    Args:
        frames: T.
        stride: source frames from one clip frame to the next.
        height, width: size of the clip after cropping.
        min_side: a short side that is enough for the crops to come; sources may decode smaller than the file down to
            this. None: decode at full size.
        generator: draws the clip's place in time; on the CPU.
        sampling: "stride" (a window of `frames * stride` frames) or "segments" (one frame from each of T equal parts).
        min_frames: videos with fewer frames are unreadable.
        place: None draws the place in time from the generator; 0.0 to 1.0 fixes it (0.5: the middle), for testing.
        wants_truth: whether somebody will use the exact flow; sources fill `Clip.truth` only then.
    """

    frames: int
    stride: int
    height: int
    width: int
    generator: torch.Generator
    min_side: int | None = None
    sampling: Literal["stride", "segments"] = "stride"
    min_frames: int = 2
    place: float | None = None
    wants_truth: bool = False


@dataclass(frozen=True)
class Clip:
    """One clip as a source gives it, before cropping.

    Args:
        frames: (T, 3, h, w) uint8 RGB of any size.
        name: the file's path, or how the source names it: what errors and tables show.
        label: class number, or None.
        truth: exact flow of these frames with B = 1; only kept where no crop changes the frames.
    """

    frames: Tensor
    name: str
    label: int | None = None
    truth: TruthFlow | None = None


class ClipSource(ABC):
    """A set of videos. Subclass it, give it a `name`, register it by `mgmae_register_clip_sources`.

    `recommended` holds config keys (dotted) whose defaults differ for this source: they lie under the recipe and the
    flags. `needs_path` is False for sources that make their clips. Sources are pickled into the loader's workers: open
    files in `load`, not in `__init__`.
    """

    name: ClassVar[str]
    recommended: ClassVar[Mapping[str, Any]] = {}
    knows_flow: ClassVar[bool] = False
    needs_path: ClassVar[bool] = True

    class Options(PluginOptions):
        """No options."""

    def __init__(self, options: Any, location: DataLocation) -> None:
        self.options = options
        self.location = location

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Return whether `--data PATH` without a source name means this source."""
        return False

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of videos."""

    @abstractmethod
    def load(self, index: int, request: ClipRequest) -> Clip:
        """Return one clip of video `index`.

        Raises:
            UnreadableClip: this video can't give a clip; training skips and counts it.
        """

    @abstractmethod
    def clip_name(self, index: int) -> str:
        """Return how video `index` is called in messages and tables."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, in the order of their numbers; None where clips carry no labels."""
        return None

    def label(self, index: int) -> int | None:
        """Return the class number of video `index` without decoding it."""
        return None

    def group(self, index: int) -> str | None:
        """Return what video `index` shares with others, such as its recording session: groups never straddle splits."""
        return None
