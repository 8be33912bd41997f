"""Do the runs of an ablation as one SLURM array job, through submitit (`pip install "mgmae[slurm]"`).

OUT/slurm.json keeps which task does which run: the same command finds tasks that still wait or work and waits for them,
and hands in anew only what no task works on. Ending the command leaves the job alone. A task that is pre-empted, or
reaches its time limit, saves what it has, is queued again, and goes on from there.

squeue tells how tasks are; submitit would ask sacct, which needs an accounting database that not all clusters have.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from mgmae_cli.ablation.runner import Stopped, Watch, share, signals_noted
from mgmae_cli.ablation.state import Run, read_json, write_json
from mgmae_cli.config import set_layer
from mgmae_cli.errors import ConfigError, Interrupted, RunError

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_SHOW = 60.0  # a file that a node has written may be seen elsewhere only after a while
_MINUTES = 24 * 60  # a task's time limit, unless another is given; submitit's own would be 5 minutes
_REQUEUES = 20  # after time limits; a task that made no progress in so many would never end

# What squeue says of tasks that have ended for good; those that it no longer lists have ended some minutes ago.
_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "REVOKED",
    "TIMEOUT",
}


class Task:
    """One run as a SLURM task; submitit pickles it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> bool:
        """Do the run; errors are in its state.

        SLURM announces the end of a task's time by a signal, on which submitit queues it again. Where training goes on,
        the engine is first given the time to save.
        """
        import torch

        from mgmae_cli.ablation.work import do_run

        threads, loaders = share(1, _cores())
        torch.set_num_threads(threads)
        requeue, idle = signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGTERM)
        leaving = False

        def leave(number: int, frame: FrameType | None) -> None:
            nonlocal leaving
            leaving = True
            if callable(requeue) and signal.getsignal(signal.SIGTERM) is idle:
                requeue(number, frame)  # nothing trains: there is nothing to save
            else:
                os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGUSR2, leave)
        try:
            return do_run(self.folder, loaders)
        except Interrupted:
            if leaving and callable(requeue):
                requeue(signal.SIGUSR2, None)
            raise

    def checkpoint(self) -> Any:
        """Return what is to run when the task is queued again: the same, which goes on from the run's checkpoints."""
        import submitit

        return submitit.helpers.DelayedSubmission(Task(self.folder))


def run_on_slurm(out: Path, runs: Sequence[Run], jobs: int, parameters: Sequence[str], watch: Watch) -> None:
    """Hand in the runs that are not done and wait for them.

    Args:
        jobs: tasks of the array at once; 1 leaves that to SLURM.
        parameters: KEY=VALUE, as submitit takes them without `slurm_`: partition=gpu, gpus_per_node=1, time=600.

    Raises:
        ConfigError: a parameter that submitit does not know.
        RunError: no submitit, no SLURM here, or it refused the job.
        Stopped: a signal; the job goes on without this command.
    """
    executor = _executor(out, jobs, parameters)
    tasks = {Path(folder): str(task) for folder, task in (read_json(out / "slurm.json") or {}).items()}
    states = _task_states()
    todo = [run for run in runs if run.state()["status"] != "done" and not _goes_on(tasks.get(run.folder), states)]
    if todo:
        for run in todo:
            run.set_state("waiting")
        try:
            with executor.batch():
                new = [executor.submit(Task(run.folder.absolute())) for run in todo]
        except Exception as error:  # submitit raises many kinds for what sbatch says
            raise RunError(f"--launcher slurm: the job was not taken: {' '.join(str(error).split())}") from error
        tasks |= {run.folder: job.job_id for run, job in zip(todo, new)}
        write_json(out / "slurm.json", {str(folder): task for folder, task in tasks.items()})
        array = new[0].job_id.split("_")[0]
        watch.console.print(
            f"handed in: SLURM array job {array}, {len(todo)} run{'s' if len(todo) > 1 else ''}", highlight=False
        )
    _wait(out, runs, tasks, watch)


def _executor(out: Path, jobs: int, parameters: Sequence[str]) -> Any:
    try:
        import submitit
    except ImportError:
        raise RunError('--launcher slurm: needs submitit; install it: pip install "mgmae[slurm]"') from None
    given = {key: value for text in parameters for key, value in set_layer([text]).values.items()}
    for key in ("tasks_per_node", "ntasks_per_node", "nodes"):
        if given.get(key, 1) != 1:
            raise ConfigError(f"--slurm {key}={given[key]}: each run of an ablation is one process; drop it")
    named: dict[str, Any] = {"slurm_job_name": f"mgmae-{out.name}", "slurm_time": _MINUTES}
    if jobs > 1:
        named["slurm_array_parallelism"] = jobs
    common = ("timeout_min", "nodes", "gpus_per_node", "tasks_per_node", "mem_gb", "cpus_per_task")
    named.update({key if key in common else f"slurm_{key}": value for key, value in given.items()})
    if "timeout_min" in named:
        del named["slurm_time"]
    try:
        executor = submitit.AutoExecutor(str((out / "slurm").absolute()), "slurm", slurm_max_num_timeout=_REQUEUES)
    except RuntimeError as error:
        raise RunError(f"--launcher slurm: {' '.join(str(error).split())}") from error
    try:
        executor.update_parameters(**named)
    except Exception as error:  # submitit raises NameError, AssertionError and TypeError for what it does not know
        raise ConfigError(f"--slurm {' '.join(parameters)}: {' '.join(str(error).split())}") from None
    return executor


def _cores() -> int | None:
    """Return the cores of a SLURM task; None where it was not told."""
    found = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
    return int(found) if found else None


def _task_states() -> dict[str, str]:
    """Return the states of this user's tasks by their numbers, as 12_3 -> RUNNING.

    Raises:
        RunError: squeue can't be asked.
    """
    command = ["squeue", "--me", "--states=all", "--array", "--noheader", "--format=%i|%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = " ".join(str(getattr(error, "stderr", None) or error).split())
        raise RunError(f"--launcher slurm: squeue does not answer: {said}") from None
    return dict(line.split("|", 1) for line in done.stdout.split() if "|" in line)


def _goes_on(task: str | None, states: dict[str, str]) -> bool:
    """Return whether a task waits or works."""
    return task in states and states[task] not in _OVER


def _wait(out: Path, runs: Sequence[Run], tasks: dict[Path, str], watch: Watch) -> None:
    """Wait until all runs have ended, or lost their tasks."""
    looked, over = -_SECONDS_BETWEEN_LOOKS, False
    lost_since: dict[Path, float] = {}
    with signals_noted() as caught:

        def is_over() -> bool:
            nonlocal looked, over
            if caught or time.monotonic() - looked < _SECONDS_BETWEEN_LOOKS:
                return over or bool(caught)
            looked = time.monotonic()
            try:
                states = _task_states()
            except RunError:
                return False  # a busy controller answers later
            going = [run for run in runs if run.state()["status"] in ("waiting", "running")]
            for run in going:
                task = tasks.get(run.folder)
                if _goes_on(task, states):
                    lost_since.pop(run.folder, None)
                elif looked - lost_since.setdefault(run.folder, looked) >= _SECONDS_TO_SHOW:
                    said = f"{task}: {states.get(task or '', 'gone')}"
                    log = out / "slurm" / f"{task}_0_log.err"
                    run.set_state("failed", error=f"its SLURM task ended without a result ({said}); see {log}")
            over = not going
            return over

        watch.follow(is_over)
    if caught:
        done = sum(run.state()["status"] == "done" for run in runs)
        raise Stopped(caught[0], done, len(runs))
