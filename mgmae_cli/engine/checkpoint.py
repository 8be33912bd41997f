"""Checkpoints: one file holds all that a run needs to go on; written whole or not at all.

model       state dict, keys as in the official layout
optimizer   AdamW's states
step        optimiser steps done; with the seed in the config it fixes the place in the data, the learning rate, and
            every random number to come, since all are drawn from generators made from (seed, step, ...)
config      the resolved config
format      "mgmae-1"
...         what `Trainer` and the kind of run add: the window of losses, unreadable videos, averaged weights
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mgmae_cli.errors import CheckpointError, RunError

FORMAT = "mgmae-1"
_NAME = re.compile(r"step-(\d+)\.pt$")


def write_whole(path: Path, payload: Mapping[str, Any]) -> None:
    """Write a torch file so that a crash or a full disk leaves the old one, or none, never half of one.

    Raises:
        RunError: the disk is full or not writable.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(dict(payload), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch wraps some of the disk's errors in RuntimeError
        raise RunError(
            f"{path}: checkpoint not saved: {_reason(error)}; older ones are kept. Free some space, or choose another "
            "--out"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one of our checkpoints onto the CPU. No code in it is run.

    Raises:
        CheckpointError: missing, damaged, or not one of ours.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(f"{path}: damaged or not a checkpoint: {_reason(error)}") from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not an mgmae training checkpoint; `--init` takes weights of other formats")
    return payload


class CheckpointFolder:
    """The `checkpoints/` of a run: `step-000100.pt`, of which the last few and every n-th are kept.

    Args:
        folder: made on the first save.
        keep_last: how many of the newest to keep.
        keep_every: steps between those kept for good; 0 keeps none for good.
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_every: int = 0) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.keep_every = keep_every

    def all(self) -> list[tuple[int, Path]]:
        """Return (step, path) of every checkpoint, oldest first."""
        found = [(int(match[1]), path) for path in self.folder.glob("step-*.pt") if (match := _NAME.search(path.name))]
        return sorted(found)

    def save(self, step: int, payload: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `step`, then remove those before it that need not be kept.

        Raises:
            RunError: it could not be written, or an old one not removed; older ones are untouched.
        """
        path = self.folder / f"step-{step:06d}.pt"
        write_whole(path, {"format": FORMAT, "step": step, **payload})
        done = [
            (old_step, old) for old_step, old in self.all() if old_step <= step
        ]  # a damaged later one may lie there
        stale = [old for old_step, old in done[: -self.keep_last] if not self.keep_every or old_step % self.keep_every]
        left_by_crashes = self.folder.glob(".step-*.partial")
        for old in [*stale, *left_by_crashes]:
            try:
                old.unlink(missing_ok=True)
            except OSError as error:
                raise RunError(
                    f"{old}: can't be removed: {_reason(error)}; --out needs a folder of your own"
                ) from error
        return path

    def save_best(self, step: int, payload: Mapping[str, Any]) -> Path:
        """Write `best.pt`, which holds weights but no optimiser; errors as for `save`."""
        path = self.folder / "best.pt"
        write_whole(path, {"format": FORMAT, "step": step, **payload})
        return path

    def newest(self) -> tuple[dict[str, Any], Path, list[str]]:
        """Return the newest checkpoint that can be read, its path, and complaints about damaged newer ones.

        Raises:
            CheckpointError: none can be read.
        """
        complaints: list[str] = []
        for payload, path in self._readable(complaints):
            return payload, path, complaints
        raise CheckpointError("; ".join(complaints) or f"{self.folder}: holds no checkpoint to resume from")

    def _readable(self, complaints: list[str]) -> Iterator[tuple[dict[str, Any], Path]]:
        for _, path in reversed(self.all()):
            try:
                yield read_checkpoint(path), path
            except CheckpointError as error:
                complaints.append(str(error))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return next(iter(str(error).splitlines()), "") or type(error).__name__
