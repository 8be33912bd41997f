"""The training loop, shared by all runs: steps, figures, checkpoints, signals, and what happens when a loss explodes.

On a GPU the loop reads losses only every `log_every` steps, and before each checkpoint, so that a kept checkpoint never
holds weights from after a loss that was not finite. Whatever one rank meets, all ranks act on at the same step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mgmae_cli.engine.checkpoint import CheckpointFolder
from mgmae_cli.engine.distributed import Place, any_rank, gather, mean_over_ranks, together
from mgmae_cli.engine.monitor import Monitor
from mgmae_cli.engine.optim import Schedule, set_lr
from mgmae_cli.engine.progress import Reporter
from mgmae_cli.engine.run_folder import RunFolder, Scalars
from mgmae_cli.engine.signals import StopOnSignal
from mgmae_cli.engine.step import Task, train_step
from mgmae_cli.errors import DataError, Interrupted, RunError
from mgmae_cli.video.loader import Batch, lost_workers


@dataclass(frozen=True)
class Plan:
    """How long a run is and how often it does what.

    Args:
        steps: optimiser steps of the whole run.
        clips_per_step: over all ranks and accumulated batches.
        videos_per_step: the same, counting repeated samples once.
        videos: in the source.
        accumulate: batches per step on this rank.
        log_every: steps between readings of the loss.
        checkpoint_minutes, save_every: when to save; see RunSection.
        max_bad_share: stop when more of the videos are unreadable.
    """

    steps: int
    clips_per_step: int
    videos_per_step: int
    videos: int
    accumulate: int = 1
    log_every: int = 10
    checkpoint_minutes: float = 10.0
    save_every: int = 0
    clip_grad: float | None = None
    max_bad_share: float = 1.0


@dataclass(frozen=True)
class Validation:
    """Something to measure now and then, on every rank together.

    Args:
        measure: returns named figures.
        every: steps from one measurement to the next; the last step is always measured.
        best_by: the figure by which the best weights are kept, the higher the better.
    """

    measure: Callable[[], Mapping[str, float]]
    every: int
    best_by: str


@dataclass
class Trainer:
    """Runs a task from `step` to the plan's end.

    Args:
        task: what is trained.
        optimizer, schedule: how.
        plan: how long.
        place: where.
        seed: of the run.
        state: returns what a checkpoint holds besides the optimiser and what is here.
        checkpoints, folder, reporter, writer: where it is saved and shown; None on other ranks than the first.
        validation: measured now and then; the best weights are kept beside the last.
        after_step: called after each change of the weights.
        monitor: looks for what seems wrong, on the main rank; None: nobody does.
        step: steps already done.
        bad: unreadable videos met so far, with reasons.
        window: losses read since the last log line, means over ranks.
        best: the best validation figure so far.
    """

    task: Task
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    plan: Plan
    place: Place
    seed: int
    state: Callable[[], Mapping[str, Any]]
    checkpoints: CheckpointFolder | None = None
    folder: RunFolder | None = None
    reporter: Reporter | None = None
    writer: Scalars | None = None
    validation: Validation | None = None
    after_step: Callable[[], None] | None = None
    monitor: Monitor | None = None
    step: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    window: list[float] = field(default_factory=list)
    best: float = -math.inf

    def __post_init__(self) -> None:
        self._unread: list[Tensor] = []  # losses of this rank that are still on the device
        self._names: list[list[str]] = []  # the clips behind each of them
        self._new_bad: dict[str, str] = {}
        self._window_steps = 0
        self._waited = 0.0
        self._loader_seconds, self._mask_seconds = 0.0, 0.0
        self._newest: Batch | None = None
        self._warned: set[str] = set()
        self._window_start = time.perf_counter()
        self._last_save = time.monotonic()
        self._saved_step: int | None = self.step or None

    def fit(self, batches: Iterator[Batch]) -> None:
        """Train to the end.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            RunError: a loss was not finite, something could not be written, or memory ran out.
            DataError: too many unreadable videos.
        """
        self.task.module.train()
        with StopOnSignal() as stop, lost_workers():
            self._window_start = time.perf_counter()
            while self.step < self.plan.steps:
                self._one_step(batches)
                at_log = self.step % self.plan.log_every == 0 or self.step == self.plan.steps
                validating = self._validation_is_due()
                stopping, saving = any_rank(stop.asked, self._save_is_due())
                if at_log or validating or stopping or saving or self.place.device.type == "cpu":
                    self._read_losses()
                if at_log or stopping or saving or self.place.ranks == 1:
                    self._report_bad()
                if at_log:
                    self._log()
                if validating:
                    self._validate()
                if stopping or saving:
                    self._save()
                if stopping:
                    raise Interrupted(self.step, stop.number, self.folder.path if self.folder else "FOLDER")
            self._save()

    def _one_step(self, batches: Iterator[Batch]) -> None:
        start = time.perf_counter()
        with together():
            micro_batches = [next(batches) for _ in range(self.plan.accumulate)]
        self._waited += time.perf_counter() - start
        self._new_bad |= {name: reason for batch in micro_batches for name, reason in batch.bad}
        self._loader_seconds += math.fsum(batch.seconds for batch in micro_batches)
        self._mask_seconds += math.fsum(batch.mask_seconds for batch in micro_batches)
        self._newest = micro_batches[-1]
        set_lr(self.optimizer, self.schedule(self.step))
        key = (self.seed, self.step)
        try:
            loss = train_step(self.task, micro_batches, self.optimizer, self.place, key, self.plan.clip_grad)
        except torch.cuda.OutOfMemoryError as error:
            raise RunError(
                f"the GPU's memory does not hold step {self.step + 1} ({' '.join(str(error).split())[:120]}...): lower "
                "--batch-size and raise train.accumulate, or --set model.checkpointing=true"
            ) from error
        self._unread.append(loss)
        self._names.append([name for batch in micro_batches for name in batch.names])
        if self.after_step is not None:
            self.after_step()
        self.step += 1
        self._window_steps += 1
        if self.reporter is not None:
            self.reporter.advance(self.step)

    def _read_losses(self) -> None:
        """Move losses from the device into `window`, as means over ranks; waits for the device and for all ranks.

        Raises:
            RunError: one is not finite; names the first such step, and the clips of the ranks where it was so.
        """
        if not self._unread:
            return
        own = torch.stack(self._unread).cpu()
        means = mean_over_ranks(own).tolist()
        for number, loss in enumerate(means):
            if not math.isfinite(loss):
                step = self.step - len(means) + number + 1
                names = [] if math.isfinite(own[number]) else list(dict.fromkeys(self._names[number]))
                found = ", ".join(name for rank in gather(names) for name in rank)
                raise RunError(f"the loss of step {step} is {loss}; {self._advice()}. Its clips: {found}")
        self.window += means
        self._unread.clear()
        self._names.clear()

    def _advice(self) -> str:
        kept = f"the checkpoint of step {self._saved_step} is kept" if self._saved_step else "nothing was saved yet"
        return f"{kept}. Try a lower --lr, --set train.clip_grad=1, or --precision fp32"

    def _log(self) -> None:
        seconds = time.perf_counter() - self._window_start
        record: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step * self.plan.videos_per_step / self.plan.videos, 4),
            "loss": math.fsum(self.window) / len(self.window),
            "lr": self.schedule(self.step - 1),
            "clips_per_s": self._window_steps * self.plan.clips_per_step / seconds,
            "data_wait": self._waited / seconds,
            "loader_masks": self._mask_seconds / self._loader_seconds if self._loader_seconds else 0.0,
            "skipped": len(self.bad),
        }
        self._look(record)
        scalars = {f"train/{name}": record[name] for name in ("loss", "lr", "clips_per_s", "data_wait")}
        scalars |= {f"health/{name}": value for name, value in record.get("health", {}).items()}
        self._write(record, scalars)
        if self.reporter is not None:
            self.reporter.show(record, (self.plan.steps - self.step) * seconds / self._window_steps)
        self.window.clear()
        self._waited, self._loader_seconds, self._mask_seconds, self._window_steps = 0.0, 0.0, 0.0, 0
        self._window_start = time.perf_counter()  # what the monitor took is not counted as training time

    def _look(self, record: dict[str, Any]) -> None:
        """Add what the monitor finds to a record, and show warnings of a kind not shown yet."""
        with together():
            if self.monitor is None or self._newest is None:
                return
            found = self.monitor(record, self._newest)
        record |= {"health": dict(found.figures)} if found.figures else {}
        record |= {"warnings": dict(found.warnings)} if found.warnings else {}
        if self.reporter is not None:
            for kind, text in found.warnings.items():
                if kind not in self._warned:
                    self.reporter.say(f"warning: {text}", style="yellow")
        self._warned |= set(found.warnings)

    def _write(self, record: Mapping[str, Any], scalars: Mapping[str, float]) -> None:
        """Append to metrics.jsonl and to TensorBoard; where the main rank can't, all ranks stop."""
        with together():
            if self.folder is not None:
                self.folder.log(record)
            if self.writer is not None:
                for name, value in scalars.items():
                    self.writer.add(name, value, self.step)

    def _validation_is_due(self) -> bool:
        last = self.step == self.plan.steps
        return self.validation is not None and (last or self.step % self.validation.every == 0)

    def _validate(self) -> None:
        """Measure, log, and keep the weights if they are the best so far."""
        assert self.validation is not None
        start = time.perf_counter()
        self.task.module.eval()
        figures = self.validation.measure()
        self.task.module.train()
        self._write({"step": self.step, **figures}, {f"val/{name}": value for name, value in figures.items()})
        if self.reporter is not None:
            text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self.reporter.say(f"step {self.step}: {text}")
        if figures[self.validation.best_by] > self.best:
            self.best = figures[self.validation.best_by]
            with together():
                if self.checkpoints is not None:
                    self.checkpoints.save_best(self.step, self.state())
        self._window_start += time.perf_counter() - start  # not counted as training time

    def _report_bad(self) -> None:
        """List unreadable videos that any rank met.

        Raises:
            DataError: they are more than `max_bad_share`.
        """
        met = {name: reason for rank in gather(self._new_bad) for name, reason in rank.items()}
        found = {name: reason for name, reason in met.items() if name not in self.bad}
        self._new_bad.clear()
        if not found:
            return
        self.bad |= found
        with together():
            if self.folder is not None:
                self.folder.write("skipped.txt", "".join(f"{name}\t{why}\n" for name, why in sorted(self.bad.items())))
        if self.reporter is not None:
            for name, reason in found.items():
                self.reporter.say(f"skipped {name}: {reason}", style="yellow")
        if len(self.bad) > self.plan.max_bad_share * self.plan.videos:
            name, reason = list(found.items())[-1]
            raise DataError(
                f"{len(self.bad)} of {self.plan.videos} videos can't be read, more than data.max_bad_share = "
                f"{self.plan.max_bad_share}; mend or remove those in skipped.txt, or raise the share. "
                f"The last: {name}: {reason}"
            )

    def _save_is_due(self) -> bool:
        if self.plan.save_every and self.step % self.plan.save_every == 0:
            return True
        return time.monotonic() - self._last_save > 60 * self.plan.checkpoint_minutes

    def _save(self) -> None:
        """Save the state after the current step, unless it is saved already.

        Raises:
            RunError: weights are not finite, or the file could not be written; older checkpoints are untouched.
        """
        self._last_save = time.monotonic()
        if self._saved_step == self.step:
            return
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.task.module.parameters()):
            raise RunError(f"weights are not finite after step {self.step}; {self._advice()}")
        with together():
            if self.checkpoints is not None:
                state = {
                    "optimizer": self.optimizer.state_dict(),
                    "clips_per_step": self.plan.clips_per_step,
                    "videos": self.plan.videos,
                    "bad": dict(self.bad),
                    "window": list(self.window),
                    "best": self.best,
                }
                self.checkpoints.save(self.step, {**state, **self.state()})
        self._saved_step = self.step
