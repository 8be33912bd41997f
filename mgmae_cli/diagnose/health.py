"""Warnings while a pre-training goes: flow that explains nothing, masks that leak, waiting, a loss that rises.

Every threshold is a key of the config's section `health`. Two kinds of figures are judged:

  at each log line     what the engine measures anyway: waiting, and the loss over the last lines
  every so many steps  a look at some clips of the newest batch, with their masks: the figures of
                       `mgmae_cli.diagnose.leakage` (content followed along DIS flow, as `mgmae mask leakage` does), the
                       quality of the run's own flow, and the time of masks that are drawn on the training device

    slot_spread   standard deviation of the number of visible tokens over the slots / its mean; mean over clips
    life          (life - 1) / (life_limit - 1): 0 visible content is gone in the next slot, 1 it stays while it can
    flow_error    photometric error along the flow / that of standing still; only where clips move at all
    mean_loss     loss of a model that knows each masked token's mean colour and deviation, and nothing else
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from statistics import fmean, variance
from typing import Any

import torch
from torch import Tensor

from mgmae_cli.config import HealthConfig, RunConfig
from mgmae_cli.diagnose.leakage import flow_figures, mask_figures
from mgmae_cli.diagnose.tracks import ClipMotion, follow, make_tracker
from mgmae_cli.engine.distributed import Place
from mgmae_cli.engine.monitor import Findings
from mgmae_cli.masking.masker import Masker
from mgmae_cli.model.tokens import all_tokens, pixel_targets
from mgmae_cli.seeds import derive_generator
from mgmae_cli.video.loader import Batch

_LINES = 5  # log lines that a judgement of waiting or of the loss rests on
_STILL = 0.005  # colours in [0, 1]: clips whose frames differ less on average don't show whether flow is any good
_SURE = 3.0  # standard errors between two means of losses that count as different
_LOOK = 113  # what a derived generator is for

# figure of a look -> the key of its limit, and what is said beyond it
_SAID = {
    "mask_ratio": (
        "min_mask_ratio",
        "only {mask_ratio:.0%} of the tokens are masked, {bound}: neighbouring frames give much of them away; "
        "try --mask-ratio 0.9",
    ),
    "slot_spread": (
        "max_slot_spread",
        "{mask} masks show very different numbers of tokens from slot to slot (deviation {slot_spread:.2f} of the "
        "mean, {bound}): some slots show next to nothing",
    ),
    "life": (
        "min_life",
        "what {mask} masks show stays visible for {life_slots:.1f} slots in a row, though it can be followed for "
        "{life_limit:.1f} ({bound}): the masks don't follow the motion; look at them: mgmae mask show",
    ),
    "leak": (
        "max_leak",
        "{mask} masks leak: another slot shows the content of {leak:.0%} of the masked tokens, {bound}; "
        "try --mask motion or tube, or a higher --mask-ratio",
    ),
    "flow_error": (
        "max_flow_error",
        "{flow} flow explains the clips hardly better than no motion at all (colour difference {flow_error:.2f} of "
        "that of standing still, {bound}); try another --flow, or a smaller data.stride",
    ),
    "flow_lost": (
        "max_flow_lost",
        "{flow} flow contradicts itself or leaves the frame in {flow_lost:.0%} of all places, {bound}; "
        "try another --flow, or a smaller data.stride",
    ),
    "mask_time": (
        "max_mask_time",
        "{mask} masks with {flow} flow take {mask_time:.0%} of the training time, {bound}; "
        "try a cheaper --flow, such as dis in the loader, or cheaper flow.options",
    ),
}

Warned = tuple[str, str]  # kind, text


class HealthMonitor:
    """Judges a run at its log lines; see `mgmae_cli.engine.monitor`.

    Args:
        config: of the run; its section `health` holds the thresholds.
        masker: draws the run's masks.
        place: where the run trains.
        steps: of the whole run.
    """

    def __init__(self, config: RunConfig, masker: Masker, place: Place, steps: int) -> None:
        self.limits = config.health
        self.masker = masker
        self.place = place
        self.steps = steps
        self.seed = config.seed
        self._tracker = make_tracker()
        self._lines: deque[Mapping[str, Any]] = deque(maxlen=_LINES)
        self._count = 0
        self._lowest: tuple[float, float] | None = None  # mean of the lowest losses, and its squared standard error
        self._started = time.monotonic()
        self._look_seconds = 0.0
        self._next_look = 0
        self._mean_loss: float | None = None

    def __call__(self, record: Mapping[str, Any], batch: Batch) -> Findings:
        """Return figures and warnings for a log line."""
        figures: dict[str, float] = {}
        warned = [*self._judge_line(record)]
        if self._look_is_due(int(record["step"])):
            start = time.monotonic()
            with torch.no_grad():
                figures = self._look(record, batch)
            self._look_seconds += time.monotonic() - start
            figures["look_seconds"] = time.monotonic() - start
            warned += judge_look(figures, self.limits, self.masker)
        return Findings(figures, dict(warned))

    def _look_is_due(self, step: int) -> bool:
        passed = time.monotonic() - self._started
        if step < self._next_look or (self._look_seconds > self.limits.look_time * passed):
            return False
        self._next_look = step + self.limits.every
        return True

    def _look(self, record: Mapping[str, Any], batch: Batch) -> dict[str, float]:
        """Measure some clips of a batch, and the time of masks that are drawn on the device."""
        masks, seconds = self._masks(int(record["step"]), batch)
        figures = mask_counts(masks, self.masker)
        if seconds is not None:
            clips_per_s = record["clips_per_s"] / self.place.ranks
            figures["mask_time"] = seconds / len(masks) * clips_per_s
        count = min(self.limits.clips, len(masks))
        clips, masks = batch.clips[:count], masks[:count]
        grid = self.masker.grid
        size = (grid.height, grid.width)
        motion = ClipMotion.estimate(clips, self._tracker)
        found = mask_figures(masks, clips, grid, follow(motion, size, max(1, grid.patch // 2)))
        life, limit = float(found.life.mean()), float(found.life_limit.mean())
        figures |= {"leak": float(found.leak.mean()), "life_slots": life, "life_limit": limit}
        if limit > 1.5:  # else nothing can be followed, and nothing said of the masks
            figures["life"] = (life - 1) / (limit - 1)
        targets = pixel_targets(all_tokens(clips, grid.tubelet, grid.patch))
        self._mean_loss = figures["mean_loss"] = float(targets.square().mean((2, 3))[masks].mean())
        return figures | self._flow_quality(clips)

    def _masks(self, step: int, batch: Batch) -> tuple[Tensor, float | None]:
        """Return masks of a batch, on the CPU; and the seconds they took, where the training device draws them."""
        if batch.masks is not None:
            return batch.masks, None
        on_device = batch.to(self.place.device)
        self.place.wait()
        start = time.perf_counter()
        masks = self.masker(on_device.clips, derive_generator(self.seed, step, _LOOK), on_device.truth)
        self.place.wait()
        return masks.cpu(), time.perf_counter() - start

    def _flow_quality(self, clips: Tensor) -> dict[str, float]:
        """Judge the run's own flow; nothing where it has none, or is told the exact one."""
        estimator = self.masker.estimator
        if estimator is None or estimator.needs_truth:
            return {}
        on_device = clips.to(self.place.device if estimator.runs_on == "device" else "cpu")
        motion = ClipMotion.estimate(on_device, estimator)
        still = ClipMotion(*(torch.zeros_like(part) for part in vars(motion).values()))
        found, standing = flow_figures(on_device, motion), flow_figures(on_device, still)
        figures = {"flow_lost": float(found.lost.mean())}
        colour_change = float(standing.photometric_error.mean())
        if colour_change > _STILL:
            figures["flow_error"] = float(found.photometric_error.mean()) / colour_change
        return figures

    def _judge_line(self, record: Mapping[str, Any]) -> Iterator[Warned]:
        """Judge the last lines together: single ones vary too much."""
        self._count += 1
        if self._count == 1:
            return  # the loader had to start, and the loss falls steeply
        self._lines.append(record)
        if len(self._lines) < _LINES:
            return
        yield from judge_waiting(list(self._lines), self.limits, self.masker)
        losses = [float(line["loss"]) for line in self._lines]
        mean, error = fmean(losses), variance(losses) / _LINES
        yield from self._judge_loss(int(record["step"]), mean, error)
        if self._lowest is None or mean < self._lowest[0]:
            self._lowest = (mean, error)

    def _judge_loss(self, step: int, mean: float, error: float) -> Iterator[Warned]:
        limits = self.limits
        if limits.max_loss_rise is not None and self._lowest is not None:
            low, low_error = self._lowest
            if mean > (1 + limits.max_loss_rise) * low and mean - low > _SURE * math.sqrt(error + low_error):
                yield (
                    "loss_rise",
                    f"the loss has risen from {low:.4f} to {mean:.4f} (mean of {_LINES} log lines), more than "
                    f"health.max_loss_rise = {limits.max_loss_rise:g}; try a lower --lr, or train.clip_grad=1",
                )
        if limits.max_loss is not None and self._mean_loss and step > self.steps / 2:
            share = mean / self._mean_loss
            if share > limits.max_loss:
                yield (
                    "loss",
                    f"after {step} steps the loss is still {share:.2f} of that of guessing each token's mean colour, "
                    f"above health.max_loss = {limits.max_loss:g}: no patterns are learned yet; train longer, or with "
                    "a higher --lr",
                )


def mask_counts(masks: Tensor, masker: Masker) -> dict[str, float]:
    """Return the share of masked tokens of (B, N) masks, and how unevenly slots share the visible ones."""
    by_slot = (~masks).view(len(masks), masker.grid.slots, -1).sum(2).float()
    spread = by_slot.std(1, correction=0) / by_slot.mean(1)
    return {"mask_ratio": float(masks.float().mean()), "slot_spread": float(spread.mean())}


def judge_look(figures: Mapping[str, float], limits: HealthConfig, masker: Masker) -> Iterator[Warned]:
    """Yield warnings about the figures of a look; a figure that is missing is not judged."""
    flow = masker.estimator.name if masker.estimator else "no"
    for name, (key, text) in _SAID.items():
        limit, value = getattr(limits, key), figures.get(name)
        if limit is None or value is None:
            continue
        if name == "life" and not masker.strategy.uses_flow:
            continue  # strategies without flow do not set out to follow anything
        low = key.startswith("min_")
        if value < limit if low else value > limit:
            bound = f"{'below' if low else 'above'} health.{key} = {limit:g}"
            yield name, text.format(bound=bound, mask=masker.strategy.name, flow=flow, **figures)


def judge_waiting(lines: list[Mapping[str, Any]], limits: HealthConfig, masker: Masker) -> Iterator[Warned]:
    """Yield a warning where training waits for its clips, and say whether reading or masks and flow take the time."""
    wait = fmean(line["data_wait"] for line in lines)
    if limits.max_data_wait is None or wait <= limits.max_data_wait:
        return
    masks = fmean(line["loader_masks"] for line in lines)
    said = f"training waits {wait:.0%} of the time for clips, above health.max_data_wait = {limits.max_data_wait:g}"
    if masks > 0.5:
        flow = f" and {masker.estimator.name} flow" if masker.estimator else ""
        yield (
            "data_wait",
            f"{said}; {masks:.0%} of the loader's time goes into masks{flow}: raise --workers, or try a cheaper --flow",
        )
    else:
        yield (
            "data_wait",
            f"{said}; {1 - masks:.0%} of the loader's time goes into reading and cropping: raise --workers, or store "
            "the videos smaller",
        )
