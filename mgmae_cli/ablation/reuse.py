"""Take runs from other ablations: many recipes share a cell, and a run with the same settings need not be done twice.

A run is the same if all settings that decide what is computed are, if it was made by the same commit,
and if it has all figures that are asked for. It is copied with its environment and the time that it took.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgmae_cli import __version__
from mgmae_cli.ablation.state import Run, computed, open_run, read_json
from mgmae_cli.engine.run_folder import git_state
from mgmae_cli.errors import ConfigError, RunError

_NOTHING = object()


def reuse_runs(runs: Sequence[Run], folders: Sequence[Path]) -> dict[Run, Path]:
    """Fill runs that are to be done from done ones of other ablations; return where each was found.

    Args:
        runs: with their specs written.
        folders: of ablations (`ablations/base_frame-cpu`), or folders that hold some.

    Raises:
        ConfigError: a folder holds no ablation.
        RunError: a run can't be copied.
    """
    known = [(other, other.read_spec()) for folder in folders for other in _done_runs(folder)]
    settings = {other.folder: computed(spec) for other, spec in known}
    taken = {}
    for run in runs:
        if run.state()["status"] == "done":
            continue
        spec = run.read_spec()
        wanted, keep = computed(spec), bool(spec["keep_checkpoints"])
        for other, its_spec in known:
            found = settings[other.folder]
            same = all(found.get(key, _NOTHING) == value for key, value in wanted.items())
            if same and other.folder != run.folder and (its_spec["keep_checkpoints"] or not keep):
                _copy(other, run, list(spec["evaluate"]), keep)
                taken[run] = other.folder
                break
    return taken


def _done_runs(folder: Path) -> list[Run]:
    """Return the runs of ablations that are done, by the code that runs now."""
    specs = sorted(folder.glob("cells/*/*/spec.json")) or sorted(folder.glob("*/cells/*/*/spec.json"))
    if not specs:
        raise ConfigError(f"--reuse {folder}: holds no ablation; name the --out of one, or a folder of several")
    here = {"mgmae": __version__, "git": git_state()}
    found = (open_run(path.parent) for path in specs)
    return [run for run in found if run.state()["status"] == "done" and _made_by(run) == here]


def _made_by(run: Run) -> dict[str, Any]:
    environment = read_json(run.run_folder / "environment.json") or {}
    return {key: environment.get(key) for key in ("mgmae", "git")}


def _copy(source: Run, run: Run, figures: Sequence[str], checkpoints: bool) -> None:
    """Copy a run over what a killed one left, and the figures that are asked for."""
    left_out = None if checkpoints else shutil.ignore_patterns("checkpoints")
    try:
        shutil.rmtree(run.run_folder, ignore_errors=True)
        shutil.copytree(source.run_folder, run.run_folder, ignore=left_out)
        (run.folder / "figures").mkdir(exist_ok=True)
        for name in figures:
            shutil.copy2(source.folder / "figures" / f"{name}.json", run.folder / "figures")
    except OSError as error:
        raise RunError(f"{run.folder}: can't be copied from {source.folder}: {error.strerror or error}") from error
    run.set_state("done", taken_from=str(source.folder))
