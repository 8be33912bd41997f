"""Do the runs of an ablation on this machine: one after another, or several at once in processes that share the cores.

Each worker process does one run after another (`mgmae_cli.ablation.work`). One that dies, of lack of memory or by a
crash in a decoder, fails its run, and another takes its place. What is shown is read from the disk.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mgmae_cli.ablation.state import Run
from mgmae_cli.engine.progress import format_seconds
from mgmae_cli.engine.run_folder import read_metrics
from mgmae_cli.errors import Interrupted, RunError

_SECONDS_TO_SAVE = 60
# By -m, a worker would run the code of the folder that it is started in, where that is another checkout of ours.
_CODE = Path(__file__).resolve().parents[2]
_SERVE = f"import sys; sys.path.insert(0, {str(_CODE)!r}); from mgmae_cli.ablation.work import main; main()"
_STYLES = {"done": "green", "failed": "red", "running": "cyan", "waiting": "dim"}


class Stopped(Interrupted):
    """A signal asked the ablation to stop; its runs are saved."""

    def __init__(self, number: int, done: int, runs: int) -> None:
        RunError.__init__(
            self, f"stopped by {signal.Signals(number).name}; {done} of {runs} runs are done; the same command goes on"
        )
        self.exit_code = 128 + number


@dataclass
class Watch:
    """What people see while runs go on: a live table on a terminal, else a line for each run that ends.

    Args:
        runs: all of the ablation.
        console: where to.
    """

    runs: Sequence[Run]
    console: Console
    started: float = field(default_factory=time.monotonic)
    _told: set[Path] = field(default_factory=set)
    _done_before: int = 0

    def __post_init__(self) -> None:
        self._told = {run.folder for run in self.runs if run.state()["status"] == "done"}
        self._done_before = len(self._told)

    def follow(self, is_over: Callable[[], bool]) -> None:
        """Show the runs until it is over."""
        if not self.console.is_terminal:
            while not is_over():
                self._tell()
                time.sleep(0.3)
            self._tell()
            return
        with Live(self.table(), console=self.console, refresh_per_second=2) as live:
            while not is_over():
                live.update(self.table())
                time.sleep(0.5)
            live.update(self.table())

    def table(self) -> Table:
        """Return the state of all runs: a row a cell, a column a seed."""
        seeds = list(dict.fromkeys(run.seed for run in self.runs))
        table = Table(title=self._title(), title_justify="left")
        table.add_column("cell", overflow="fold")
        for seed in seeds:
            table.add_column(f"seed {seed}", overflow="fold")
        by_cell: dict[str, dict[int, Run]] = {}
        for run in self.runs:
            by_cell.setdefault(run.cell, {})[run.seed] = run
        for cell, of_seed in by_cell.items():
            table.add_row(cell, *[_progress(of_seed[seed]) if seed in of_seed else "" for seed in seeds])
        return table

    def _title(self) -> str:
        states = [run.state()["status"] for run in self.runs]
        done, failed = states.count("done"), states.count("failed")
        fresh, passed = done - self._done_before, time.monotonic() - self.started
        todo = len(states) - done - failed
        left = f", {format_seconds(passed / fresh * todo)} left" if fresh > 0 and todo > 0 else ""
        return f"{done} of {len(states)} runs done" + (f", {failed} failed" if failed else "") + left

    def _tell(self) -> None:
        for run in self.runs:
            state = run.state()
            if run.folder not in self._told and state["status"] in ("done", "failed"):
                self._told.add(run.folder)
                why = f": {state['error']}" if "error" in state else ""
                text = f"{len(self._told)}/{len(self.runs)} {run.name}: {state['status']}{why}"
                self.console.print(text, style=_STYLES[state["status"]], highlight=False, markup=False, soft_wrap=True)


def _progress(run: Run) -> Text:
    """Return a run's state in a few words."""
    state = run.state()
    status = state["status"]
    text = str(state.get("part", status)) if status == "running" else status
    if text == "pretrain":
        try:
            last = next((record for record in reversed(read_metrics(run.run_folder)) if "loss" in record), None)
        except RunError:
            last = None  # it has just begun
        text = f"step {last['step']}, loss {last['loss']:.3f}" if last else "starting"
    return Text(text, _STYLES[status])


class _Worker:
    """One worker process, started when the first run is handed to it."""

    def __init__(self, threads: int, loaders: int, number: int, gpus: int) -> None:
        self.command = [sys.executable, "-c", _SERVE, str(threads), str(loaders)]
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if gpus > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
            self.environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        self.process: subprocess.Popen[str] | None = None

    def do(self, run: Run, stopping: Callable[[], bool]) -> None:
        """Do a run; its state on disk says what came of it."""
        if self.process is None or self.process.poll() is not None:
            if self.process is not None:
                _close(self.process)
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=self.environment,
                start_new_session=True,  # Ctrl-C reaches the ablation alone
            )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{run.folder.absolute()}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer and not stopping():
            code = process.wait()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            hint = "; memory may be short" if code == -signal.SIGKILL else ""
            run.set_state("failed", error=f"its process died ({how}){hint}; see {run.folder / 'log.txt'}")

    def stop(self) -> None:
        """Ask the process to save and end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self, seconds: float) -> None:
        """Wait for the process to end; its input is closed, which ends it when idle."""
        if self.process is None:
            return
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _close(self.process)


def _close(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def run_locally(runs: Sequence[Run], jobs: int, watch: Watch) -> None:
    """Do the runs that are not done.

    Args:
        jobs: how many at once.

    Raises:
        Stopped: a signal; what is at work was saved.
    """
    todo: Queue[Run] = Queue()
    for run in runs:
        if run.state()["status"] != "done":
            run.set_state("waiting")
            todo.put(run)
    jobs = max(1, min(jobs, todo.qsize()))
    threads, loaders = share(jobs)
    workers = [_Worker(threads, loaders, number, _gpus()) for number in range(jobs)]
    with signals_noted() as caught:
        crew = [
            threading.Thread(target=_serve, args=(worker, todo, lambda: bool(caught)), daemon=True)
            for worker in workers
        ]
        for member in crew:
            member.start()
        asked = False

        def is_over() -> bool:
            nonlocal asked
            if caught and not asked:
                asked = True
                for worker in workers:
                    worker.stop()
            return not any(member.is_alive() for member in crew)

        watch.follow(is_over)
        for worker in workers:
            if worker.process is not None and worker.process.stdin is not None and not caught:
                worker.process.stdin.close()
            worker.end(_SECONDS_TO_SAVE)
    if caught:
        done = sum(run.state()["status"] == "done" for run in watch.runs)
        raise Stopped(caught[0], done, len(watch.runs))


def _serve(worker: _Worker, todo: Queue[Run], stopping: Callable[[], bool]) -> None:
    while not stopping():
        try:
            run = todo.get_nowait()
        except Empty:
            return
        worker.do(run, stopping)


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in the list that is yielded."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def share(jobs: int, cores: int | None = None) -> tuple[int, int]:
    """Return the threads and loader processes of each of several jobs on some cores; None: on this machine's."""
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // jobs)
    if _gpus():
        return threads, max(1, min(16, threads - 1))
    return threads, threads // 4


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
