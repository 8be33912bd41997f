"""Do the runs of an ablation as one SLURM array job, through submitit (`pip install "mgmae[slurm]"`).

The job's number is kept in OUT/slurm.json: the same command finds a job that is still going on and waits for it, and
hands in anew only what no job works on. Ending the command leaves the job alone. Runs that are pre-empted or run out of
time are handed in again by SLURM and go on from their checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgmae_cli.ablation.runner import Stopped, Watch, signals_noted
from mgmae_cli.ablation.state import Run, read_json, write_json
from mgmae_cli.config import set_layer
from mgmae_cli.errors import ConfigError, RunError

_SECONDS_BETWEEN_LOOKS = 2.0
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")


class Task:
    """One run as a SLURM task; submitit pickles it, and hands it in again where SLURM takes its node away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> bool:
        """Do the run; errors are in its state."""
        from mgmae_cli.ablation.work import do_run

        return do_run(self.folder)

    def checkpoint(self) -> Any:
        """Return what SLURM is to run next: the same, which goes on from the run's checkpoints."""
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
    submitit = _submitit()
    state = out / "slurm.json"
    handed = {folder: str(job) for folder, job in (read_json(state) or {}).items()}
    executor = submitit.AutoExecutor(folder=str((out / "slurm").absolute()), cluster="slurm")
    _set_parameters(executor, out, jobs, parameters)
    known = {
        run.folder.as_posix(): submitit.SlurmJob(str((out / "slurm").absolute()), handed[run.folder.as_posix()])
        for run in runs
        if run.folder.as_posix() in handed
    }
    todo = [run for run in runs if run.state()["status"] != "done" and not _goes_on(known.get(run.folder.as_posix()))]
    if todo:
        for run in todo:
            run.set_state("waiting")
        try:
            new = _hand_in(executor, todo)
        except Exception as error:  # submitit raises many kinds for what sbatch says
            raise RunError(f"--launcher slurm: the job was not taken: {' '.join(str(error).split())}") from error
        known.update({run.folder.as_posix(): job for run, job in zip(todo, new)})
        write_json(state, {folder: job.job_id for folder, job in known.items()})
        watch.console.print(
            f"handed in: SLURM array job {new[0].job_id.split('_')[0]}, {len(todo)} runs", highlight=False
        )
    _wait(runs, known, watch)


def _hand_in(executor: Any, runs: Sequence[Run]) -> list[Any]:
    with executor.batch():
        return [executor.submit(Task(run.folder.absolute())) for run in runs]


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise RunError('--launcher slurm: needs submitit; install it: pip install "mgmae[slurm]"') from None
    return submitit


def _set_parameters(executor: Any, out: Path, jobs: int, parameters: Sequence[str]) -> None:
    given = {key: value for text in parameters for key, value in set_layer([text]).values.items()}
    named: dict[str, Any] = {"slurm_job_name": f"mgmae-{out.name}"}
    if jobs > 1:
        named["slurm_array_parallelism"] = jobs
    common = ("timeout_min", "nodes", "gpus_per_node", "tasks_per_node", "mem_gb", "cpus_per_task")
    named.update({key if key in common else f"slurm_{key}": value for key, value in given.items()})
    try:
        executor.update_parameters(**named)
    except Exception as error:  # submitit raises NameError, AssertionError and TypeError for what it does not know
        raise ConfigError(f"--slurm {' '.join(parameters)}: {' '.join(str(error).split())}") from None


def _goes_on(job: Any) -> bool:
    """Return whether SLURM still has a task that waits or works."""
    if job is None:
        return False
    job.watcher.update()
    return job.state.split()[0].upper() not in (*_OVER, "UNKNOWN")


def _wait(runs: Sequence[Run], known: dict[str, Any], watch: Watch) -> None:
    """Wait until all runs have ended, or lost their tasks."""
    looked, over = 0.0, False
    with signals_noted() as caught:

        def is_over() -> bool:
            nonlocal looked, over
            if caught:
                return True
            if time.monotonic() - looked >= _SECONDS_BETWEEN_LOOKS:
                looked = time.monotonic()
                going = [run for run in runs if run.state()["status"] in ("waiting", "running")]
                lost = [run for run in going if not _goes_on(known.get(run.folder.as_posix()))]
                for run in lost:
                    job = known.get(run.folder.as_posix())
                    if run.state()["status"] in ("waiting", "running"):  # it may have ended in between
                        said = job.state if job is not None else "never handed in"
                        run.set_state(
                            "failed", error=f"its SLURM task ended without a result ({said}); see {run.folder}"
                        )
                over = len(going) == len(lost)
            return over

        watch.follow(is_over)
    if caught:
        done = sum(run.state()["status"] == "done" for run in runs)
        raise Stopped(caught[0], done, len(runs))
