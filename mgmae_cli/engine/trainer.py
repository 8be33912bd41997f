"""The training loop, shared by all runs: steps, figures, checkpoints, signals, and what happens when a loss explodes.

The loop reads losses from the device only every `log_every` steps, and before each checkpoint, so that a kept
checkpoint never holds weights from after a loss that was not finite.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from mgmae_cli.engine.checkpoint import CheckpointFolder, rng_state
from mgmae_cli.engine.distributed import Place, any_rank, mean_over_ranks
from mgmae_cli.engine.optim import Schedule, set_lr
from mgmae_cli.engine.progress import Reporter
from mgmae_cli.engine.run_folder import RunFolder
from mgmae_cli.engine.step import Task, train_step
from mgmae_cli.errors import DataError, Interrupted, RunError
from mgmae_cli.video.loader import Batch


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
        state: returns what a checkpoint holds besides optimiser, generators and step.
        checkpoints, folder, reporter, writer: where it is saved and shown; None on other ranks than the first.
        validation: measured now and then; the best weights are kept beside the last.
        after_step: called after each change of the weights.
        step: steps already done.
        bad: unreadable videos met so far, with reasons.
        window: losses since the last log line, where a resumed run had some.
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
    writer: Any = None
    validation: Validation | None = None
    after_step: Callable[[], None] | None = None
    step: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    window: list[float] = field(default_factory=list)
    best: float = -math.inf

    def __post_init__(self) -> None:
        self._losses: list[Tensor] = [torch.tensor(loss, device=self.place.device) for loss in self.window]
        self._names: list[list[str]] = [[] for _ in self.window]
        self._window_steps = 0
        self._waited = 0.0
        self._window_start = time.perf_counter()
        self._last_save = time.monotonic()
        self._saved_step = self.step

    def fit(self, batches: Iterator[Batch]) -> None:
        """Train to the end.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            RunError: a loss was not finite, or something could not be written.
            DataError: too many unreadable videos.
        """
        self.task.module.train()
        with _StopOnSignal() as stop:
            self._window_start = time.perf_counter()
            while self.step < self.plan.steps:
                self._one_step(batches)
                at_log = self.step % self.plan.log_every == 0 or self.step == self.plan.steps
                if at_log or self.place.device.type == "cpu":
                    self._check_losses()
                if at_log:
                    self._log()
                if self._validation_is_due():
                    self._validate()
                stopping = any_rank(stop.asked, self.place.device) if at_log or self.place.ranks == 1 else False
                if stopping:
                    self._save()
                    raise Interrupted(self.step, stop.number, self.folder.path if self.folder else "FOLDER")
                if self._save_is_due():
                    self._save()
            self._save()

    def _one_step(self, batches: Iterator[Batch]) -> None:
        start = time.perf_counter()
        micro_batches = [next(batches) for _ in range(self.plan.accumulate)]
        self._waited += time.perf_counter() - start
        self._note_bad(micro_batches)
        set_lr(self.optimizer, self.schedule(self.step))
        key = (self.seed, self.step)
        loss = train_step(self.task, micro_batches, self.optimizer, self.place, key, self.plan.clip_grad)
        self._losses.append(loss)
        self._names.append([name for batch in micro_batches for name in batch.names])
        if self.after_step is not None:
            self.after_step()
        self.step += 1
        self._window_steps += 1
        if self.reporter is not None:
            self.reporter.advance(self.step)

    def _check_losses(self) -> None:
        """Stop all ranks at the first loss that is not finite on any, naming its step and this rank's clips.

        Waits for the device and for the other ranks.
        """
        if not self._losses:
            return
        for number, loss in enumerate(mean_over_ranks(torch.stack(self._losses)).tolist()):
            if not math.isfinite(loss):
                step = self.step - len(self._losses) + number + 1
                names = ", ".join(dict.fromkeys(self._names[number]))
                raise RunError(f"the loss of step {step} is {loss}; {self._advice()}. Its clips: {names}")

    def _advice(self) -> str:
        kept = f"the checkpoint of step {self._saved_step} is kept" if self._saved_step else "nothing was saved yet"
        return f"{kept}. Try a lower --lr, --set train.clip_grad=1, or --precision fp32"

    def _log(self) -> None:
        loss = float(mean_over_ranks(torch.stack(self._losses).mean()))
        seconds = time.perf_counter() - self._window_start
        record = {
            "step": self.step,
            "epoch": round(self.step * self.plan.videos_per_step / self.plan.videos, 4),
            "loss": loss,
            "lr": self.schedule(self.step - 1),
            "clips_per_s": self._window_steps * self.plan.clips_per_step / seconds,
            "data_wait": self._waited / seconds,
            "skipped": len(self.bad),
        }
        if self.folder is not None:
            self.folder.log(record)
        if self.writer is not None:
            for name in ("loss", "lr", "clips_per_s", "data_wait"):
                self.writer.add_scalar(f"train/{name}", record[name], self.step)
        if self.reporter is not None:
            self.reporter.show(record, (self.plan.steps - self.step) * seconds / self._window_steps)
        self._losses.clear()
        self._names.clear()
        self._waited, self._window_steps = 0.0, 0
        self._window_start = time.perf_counter()

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
        if self.folder is not None:
            self.folder.log({"step": self.step, **figures})
        if self.writer is not None:
            for name, value in figures.items():
                self.writer.add_scalar(f"val/{name}", value, self.step)
        if self.reporter is not None:
            text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self.reporter.say(f"step {self.step}: {text}")
        if figures[self.validation.best_by] > self.best:
            self.best = figures[self.validation.best_by]
            if self.checkpoints is not None:
                self.checkpoints.save_best(self.step, self.state())
        self._window_start += time.perf_counter() - start  # not counted as training time

    def _note_bad(self, micro_batches: list[Batch]) -> None:
        found = {name: reason for batch in micro_batches for name, reason in batch.bad if name not in self.bad}
        if not found:
            return
        self.bad.update(found)
        if self.folder is not None:
            self.folder.write("skipped.txt", "".join(f"{name}\t{why}\n" for name, why in sorted(self.bad.items())))
        if self.reporter is not None:
            for name, reason in found.items():
                self.reporter.say(f"skipped {name}: {reason}", style="yellow")
        if len(self.bad) > self.plan.max_bad_share * self.plan.videos:
            raise DataError(
                f"{len(self.bad)} of {self.plan.videos} videos can't be read, more than data.max_bad_share = "
                f"{self.plan.max_bad_share}; mend or remove those in skipped.txt, or raise the share. "
                "The last: {}: {}".format(*list(found.items())[-1])
            )

    def _save_is_due(self) -> bool:
        if self.plan.save_every and self.step % self.plan.save_every == 0:
            return True
        return self.place.is_main and time.monotonic() - self._last_save > 60 * self.plan.checkpoint_minutes

    def _save(self) -> None:
        """Save the state after the current step, unless it is saved already.

        Raises:
            RunError: weights are not finite, or the file could not be written; older checkpoints are untouched.
        """
        self._last_save = time.monotonic()
        if self.checkpoints is None or self._saved_step == self.step:
            return
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.task.module.parameters()):
            raise RunError(f"weights are not finite after step {self.step}; {self._advice()}")
        state = {
            "optimizer": self.optimizer.state_dict(),
            "rng": rng_state(),
            "bad": dict(self.bad),
            "window": [float(loss) for loss in self._losses],
            "best": self.best,
        }
        self.checkpoints.save(self.step, {**state, **self.state()})
        self._saved_step = self.step


class _StopOnSignal:
    """Within it, SIGINT and SIGTERM ask the loop to stop after the step at hand; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self.number = int(signal.SIGTERM)
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _StopOnSignal:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._ask)
        except ValueError:  # not in the main thread, as in some notebooks: signals are somebody else's
            pass
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self.number = True, number

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
