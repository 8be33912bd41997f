"""One run of an ablation, from its spec on disk to its figures: what a worker process or a SLURM task does.

Every part that is complete is on disk, so that a run that was killed goes on where it was: pre-training and fine-tuning
from their checkpoints, other evaluations from their start. As a program it reads folders of runs from standard input,
one a line, and answers each with a line; it ends with its input, and so with the ablation that started it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

from rich.console import Console

from mgmae_cli.ablation.evaluate import NEED_TRAINING, Finished, run_evaluation
from mgmae_cli.ablation.state import Run, open_run, write_json
from mgmae_cli.config import Layer, flatten
from mgmae_cli.diagnose.health import HealthMonitor
from mgmae_cli.engine.checkpoint import CheckpointFolder
from mgmae_cli.engine.lock import locked
from mgmae_cli.engine.pretrain import pretrain, resumed_settings
from mgmae_cli.errors import Interrupted, MgmaeError
from mgmae_cli.settings import Settings, resolve_layers

_SECONDS_FOR_OTHERS = 30.0  # the process of an ablation that was killed takes a moment to notice


def do_run(folder: Path, workers: int | None = None) -> bool:
    """Do what is left of a run; return whether it is done. Errors are written into its state.

    Args:
        workers: loader processes, where the settings leave them to the machine.

    Raises:
        Interrupted: a signal asked to stop; the run can go on.
    """
    run = open_run(folder)
    busy = f"{folder}: another process works on this run"
    with locked(folder / ".lock", busy, _SECONDS_FOR_OTHERS):
        if run.state()["status"] == "done":
            return True
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            console = Console(file=log, width=120, emoji=False)
            try:
                _do(run, workers, console)
            except (Interrupted, KeyboardInterrupt):
                run.set_state("waiting")
                raise
            except MgmaeError as error:
                console.print(str(error), markup=False, soft_wrap=True)
                run.set_state("failed", error=str(error))
                return False
            except Exception as error:  # a plugin may fail in any way; the other runs go on
                console.print(traceback.format_exc(), markup=False, soft_wrap=True)
                last = traceback.format_exception_only(error)[-1].strip()
                run.set_state("failed", error=f"{last} (see {folder / 'log.txt'})")
                return False
    return True


def _do(run: Run, workers: int | None, console: Console) -> None:
    spec = run.read_spec()
    evaluate, keep = spec["evaluate"], spec["keep_checkpoints"]
    settings = _settings(run, spec["config"], workers)
    if NEED_TRAINING & set(evaluate):
        run.set_state("running", part="pretrain")
        settings = _pretrain(run, settings, workers, console)
    scratch = run.folder / "work"
    for name, options in evaluate.items():
        path = run.folder / "figures" / f"{name}.json"
        if path.exists():
            continue
        run.set_state("running", part=name)
        figures = run_evaluation(name, Finished(run.run_folder, settings, scratch, console), options)
        path.parent.mkdir(exist_ok=True)
        write_json(path, figures)
    run.set_state("done")
    if not keep:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(run.run_folder / "checkpoints", ignore_errors=True)


def _settings(run: Run, config: dict[str, object], workers: int | None) -> Settings:
    place: dict[str, object] = {"run.out": str(run.run_folder), "run.pictures": False}
    layers = [Layer(str(run.folder / "spec.json"), dict(flatten(config))), Layer("ablation", place)]
    settings = resolve_layers(layers)
    if workers is not None and settings.config.data.workers == "auto":
        settings = resolve_layers([*layers, Layer("ablation", {"data.workers": workers})])
    return settings


def _pretrain(run: Run, settings: Settings, workers: int | None, console: Console) -> Settings:
    """Train, or go on with a killed run; return the settings of the run."""
    folder = run.run_folder
    saved = CheckpointFolder(folder / "checkpoints").all()
    length = None if not saved else saved[-1][0]
    if length is not None and (run.folder / "trained").exists():
        return settings
    if length is None:
        shutil.rmtree(folder, ignore_errors=True)  # killed before its first checkpoint
        pretrain(settings, console=console, make_monitor=HealthMonitor)
    else:
        extra = Layer("ablation", {"data.workers": settings.config.data.workers})
        pretrain(resumed_settings(folder, extra), folder, console, HealthMonitor)
    (run.folder / "trained").touch()
    return settings


def _folders() -> Iterator[Path]:
    """Yield the folders that standard input names; end this process as soon as it closes."""
    lines: Queue[str] = Queue()
    # not sys.stdin itself: a forked loader process closes that, and would wait for ever for who reads from it
    source = os.fdopen(os.dup(0), encoding="utf-8")

    def read() -> None:
        for line in source:
            lines.put(line.strip())
        os._exit(0)  # whoever started us has ended: its run must not go on unseen

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield Path(lines.get())


def main() -> None:
    """Serve an ablation, as `mgmae_cli.ablation.runner` starts it, with the arguments THREADS and WORKERS."""
    import torch

    threads, workers = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a run prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the ablation hears Ctrl-C, and asks us to stop
    for folder in _folders():
        try:
            done = do_run(folder, workers)
        except Interrupted as error:
            sys.exit(error.exit_code)
        except MgmaeError as error:
            open_run(folder).set_state("failed", error=str(error))
            done = False
        print("done" if done else "failed", file=answers, flush=True)
