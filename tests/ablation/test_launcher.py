"""Runs as SLURM tasks: on a real SLURM where there is one, and through submitit's local executor anywhere."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mgmae_cli.ablation import launcher
from mgmae_cli.ablation.grid import expand
from mgmae_cli.ablation.launcher import Task
from mgmae_cli.ablation.recipe import load_ablation
from mgmae_cli.ablation.run import Options, run_ablation
from mgmae_cli.ablation.state import Run, plan_runs, write_spec
from mgmae_cli.errors import ConfigError, RunError

submitit = pytest.importorskip("submitit")

RECIPE = """question: Which masks?
base:
  mask: {ratio: 0.75}
  data: {source: shapes, size: 32, frames: 4, options: {clips: 32}}
  model: {name: tiny, patch: 8, decoder_depth: 1}
  train: {steps: STEPS, batch_size: 2}
  run: {log_every: 1, device: cpu, save_every: 100}
sweep:
  mask:
    tube: {mask.name: tube}
    random: {mask.name: random}
    wild: {mask.name: tube, train.base_lr: 1.0e+30}
seeds: 1
evaluate: {loss: , leakage: {clips: 2}}
"""
SMALL = ("cpus_per_task=1", "mem_gb=2", "time=30")


def write(tmp_path: Path, steps: int) -> Path:
    path = tmp_path / "which.yaml"
    path.write_text(RECIPE.replace("STEPS", str(steps)))
    return path


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def has_trained(run: Path) -> bool:
    metrics = run / "run" / "metrics.jsonl"
    return metrics.exists() and metrics.read_text().count("\n") > 2


def one_run(tmp_path: Path, steps: int) -> Run:
    ablation = load_ablation(write(tmp_path, steps))
    cell = expand(ablation)[0]
    run = plan_runs(tmp_path, [cell], ablation.seeds)[0]
    write_spec(run, cell, ablation.evaluate, keep_checkpoints=True)
    return run


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give tasks one core, as SLURM would: several threads wait for each other where other tests are at work."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


@pytest.mark.usefixtures("one_core")
def test_a_task_does_its_run(tmp_path: Path) -> None:
    run = one_run(tmp_path, 2)
    job = submitit.LocalExecutor(tmp_path / "jobs").submit(Task(run.folder))
    assert job.result() is True
    assert run.state()["status"] == "done"


@pytest.mark.usefixtures("one_core")
def test_a_task_whose_time_ends_saves_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    run = one_run(tmp_path, 200)
    job = submitit.LocalExecutor(tmp_path / "jobs").submit(Task(run.folder))
    until(lambda: has_trained(run.folder))
    process = json.loads((run.run_folder / ".lock").read_text())["pid"]
    os.kill(process, signal.SIGUSR2)  # what SLURM does some time before a task's end
    assert job.result() is True
    assert run.state()["status"] == "done"
    assert "resuming from" in (run.folder / "log.txt").read_text()
    steps = [json.loads(line)["step"] for line in (run.run_folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 201))


def test_a_machine_without_slurm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="--launcher slurm: Could not detect"):
        run_ablation(write(tmp_path, 2), Options(out=tmp_path / "out", launcher="slurm"), Console(quiet=True))


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip where no SLURM answers; where one does, don't wait long for files that nodes have written."""
    if shutil.which("sbatch") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no SLURM here")
    monkeypatch.setattr(launcher, "_SECONDS_TO_SHOW", 5.0)


@pytest.mark.usefixtures("slurm")
def test_parameters_that_slurm_does_not_know_or_that_split_a_run_are_refused(tmp_path: Path) -> None:
    for given, words in (("partitoin=gpu", "partitoin"), ("nodes=2", "each run of an ablation is one process")):
        options = Options(out=tmp_path / "out", launcher="slurm", slurm=[given])
        with pytest.raises(ConfigError, match=words):
            run_ablation(write(tmp_path, 2), options, Console(quiet=True))


@pytest.mark.usefixtures("slurm")
def test_on_slurm_a_task_is_queued_again_one_is_cancelled_one_fails_and_the_same_command_ends_it(
    tmp_path: Path,
) -> None:
    recipe, out = write(tmp_path, 600), tmp_path / "out"
    cells = {name: out / "cells" / name / "seed-0" for name in ("tube", "random", "wild")}

    def disturb() -> None:
        until(lambda: (out / "slurm.json").exists())
        tasks = {
            Path(folder).parent.name: task for folder, task in json.loads((out / "slurm.json").read_text()).items()
        }
        until(lambda: has_trained(cells["random"]))
        subprocess.run(["scancel", tasks["random"]], check=True)
        until(lambda: has_trained(cells["tube"]))
        subprocess.run(["scancel", "--signal=USR2", tasks["tube"]], check=True)
        until(lambda: launcher._task_states()[tasks["tube"]] == "PENDING")
        # SLURM lets tasks that were queued again wait for two minutes
        subprocess.run(["scontrol", "update", f"jobid={tasks['tube']}", "starttime=now"], check=True)

    helper = threading.Thread(target=disturb, daemon=True)
    helper.start()
    said = io.StringIO()
    options = Options(out=out, launcher="slurm", slurm=SMALL)
    with pytest.raises(RunError, match="2 of 3 runs failed") as caught:
        run_ablation(recipe, options, Console(file=said, width=200))
    helper.join(10)
    assert "handed in: SLURM array job" in said.getvalue()
    assert "random, seed 0: its SLURM task ended without a result" in str(caught.value)
    assert "wild, seed 0: the loss of step" in str(caught.value)
    assert "resuming from" in (cells["tube"] / "log.txt").read_text()
    done = (cells["tube"] / "state.json").read_text()
    assert json.loads(done)["status"] == "done"

    results = run_ablation(
        recipe, Options(out=out, only=["tube", "random"], launcher="slurm", slurm=SMALL), Console(quiet=True)
    )
    assert results is not None
    assert [row.done for row in results.rows] == [[0], [0], []]
    assert (cells["tube"] / "state.json").read_text() == done
