"""What an ablation leaves on disk, and how its parts are told: done, failed, at work, or to be done.

    OUT/recipe.yaml                  the recipe's text
    OUT/cells/CELL/seed-0/spec.json  the run's resolved settings and what is measured: what makes it the same run
                          run/       the run folder of pre-training; its checkpoints make it resumable
                          figures/   one file an evaluation, written when that is complete
                          state.json at work on what, done, or failed with its error
                          log.txt    what the run printed
    OUT/report.html, table.csv, results.json, *.png

A run that is done is never done again; one whose settings have changed is refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgmae_cli.ablation.grid import Cell
from mgmae_cli.ablation.recipe import Evaluations
from mgmae_cli.config import SPEED_OPTIONS, flatten
from mgmae_cli.engine.run_folder import replace_text
from mgmae_cli.errors import RunError

# Settings that decide where and how fast a run runs, or when it warns, and not what it computes.
_ELSEWHERE = ("run.", "health.", "data.workers")
_SPEED = frozenset(f"data.options.{name}" for name in SPEED_OPTIONS)
_COMPUTING = ("run.precision", "run.compile", "run.log_every")


@dataclass(frozen=True)
class Run:
    """One cell with one seed, and its folder."""

    cell: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.cell}, seed {self.seed}"

    @property
    def run_folder(self) -> Path:
        """The folder of its pre-training."""
        return self.folder / "run"

    def read_spec(self) -> dict[str, Any]:
        return read_json(self.folder / "spec.json") or {}

    def state(self) -> dict[str, Any]:
        """Return {"status": "waiting" | "running" | "done" | "failed", ...}."""
        return read_json(self.folder / "state.json") or {"status": "waiting"}

    def set_state(self, status: str, **more: Any) -> None:
        write_json(self.folder / "state.json", {"status": status, "time": time.time(), **more})

    def figures(self) -> dict[str, float]:
        """Return all figures measured so far, by name."""
        found: dict[str, float] = {}
        for path in sorted((self.folder / "figures").glob("*.json")):
            found.update(read_json(path) or {})
        return found


def plan_runs(out: Path, cells: Sequence[Cell], seeds: Sequence[int]) -> list[Run]:
    """Return the runs, all cells of a seed before the next seed: a table of all cells is there as soon as can be."""
    return [Run(cell.name, seed, out / "cells" / cell.name / f"seed-{seed}") for seed in seeds for cell in cells]


def open_run(folder: Path) -> Run:
    """Return the run of a folder that holds a spec."""
    spec = Run("", 0, folder).read_spec()
    return Run(str(spec["cell"]), int(spec["seed"]), folder)


def write_spec(run: Run, cell: Cell, evaluate: Evaluations, keep_checkpoints: bool) -> None:
    """Write what a run is to do, unless it is there already.

    Raises:
        RunError: the folder holds a run with other settings, or can't be written.
    """
    spec = {
        "cell": run.cell,
        "seed": run.seed,
        "config": cell.of_seed(run.seed),
        "evaluate": evaluate,
        "keep_checkpoints": keep_checkpoints,
    }
    old = run.read_spec()
    if old:
        change = _change(old, spec)
        if change:
            raise RunError(
                f"{run.folder}: holds a run with other settings: {change}; choose another --out, or remove the folder"
            )
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{run.folder}: can't be written: {error.strerror or error}; choose another --out") from error
    write_json(run.folder / "spec.json", spec)


def _change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the first setting in which two specs would compute something else, in words."""
    before, after = computed(old), computed(new)
    for key in sorted(before | after):
        if before.get(key) != after.get(key):
            return f"{key} was {before.get(key)!r} and is now {after.get(key)!r}"
    return ""


def computed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of a spec that decides what is computed, by key: settings of the run, and of what is measured."""
    plain = json.loads(json.dumps(spec))  # as it is on disk
    settings = {key: value for key, value in flatten(plain["config"]) if _computes(key)}
    return settings | {f"evaluate.{name}": options for name, options in plain["evaluate"].items()}


def _computes(key: str) -> bool:
    return key in _COMPUTING or not (key in _SPEED or key.startswith(_ELSEWHERE))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a small file's content; None where it is missing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise RunError(f"{path}: damaged ({error}); remove it, and that run's step is done again") from None
    return dict(content)


def write_json(path: Path, content: Any) -> None:
    """Write a small file whole or not at all."""
    replace_text(path, json.dumps(content, indent=1) + "\n")
