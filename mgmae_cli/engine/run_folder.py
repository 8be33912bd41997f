"""The run folder: `config.yaml`, `environment.json`, `metrics.jsonl`, `skipped.txt`, `checkpoints/`, `tensorboard/`.

A folder that holds a run is never written over: another run is refused, and a resumed one takes up its files.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

from mgmae_cli import __version__
from mgmae_cli.errors import RunError
from mgmae_cli.registry import Registry

_PACKAGES = (
    "torch",
    "av",
    "torchvision",
    "timm",
    "numpy",
    "opencv-contrib-python-headless",
    "decord",
    "pydantic",
    "pluggy",
)


class RunFolder:
    """Files of one run. Only the main rank writes.

    Args:
        path: the folder.
        config: text of config.yaml; None takes up the run that is there.
        resumed_at: the step from which that goes on.

    Raises:
        RunError: the folder holds a run, or can't be written.
    """

    def __init__(self, path: Path, config: str | None, resumed_at: int = 0) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            if config is None:
                self._forget_after(resumed_at)
            else:
                self._claim(config)
        except OSError as error:
            raise RunError(f"{path}: can't be written: {_reason(error)}; choose another --out") from error

    def _claim(self, config: str) -> None:
        """Write config.yaml where no run is; of two processes that try, one succeeds."""
        for name in ("metrics.jsonl", "checkpoints"):
            if (self.path / name).exists() and not (self.path / "config.yaml").exists():
                raise RunError(f"{self.path}: holds {name} of something else; choose another --out")
        try:
            file = (self.path / "config.yaml").open("x", encoding="utf-8")
        except FileExistsError:
            raise RunError(
                f"{self.path}: already holds a run; go on with it by --resume {self.path}, or choose another --out"
            ) from None
        try:
            with file:
                file.write(config)
            (self.path / "metrics.jsonl").touch()
        except OSError:
            (self.path / "config.yaml").unlink(missing_ok=True)  # a full disk must not leave the shell of a run
            raise

    def _forget_after(self, step: int) -> None:
        """Drop the metrics of steps that will be done again."""
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            replace_text(metrics, "".join(f"{line}\n" for line in kept))

    def write(self, name: str, text: str) -> None:
        """Write a small text file whole.

        Raises:
            RunError: it can't be written.
        """
        replace_text(self.path / name, text)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl.

        Raises:
            RunError: it can't be written.
        """
        try:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"{self.path}/metrics.jsonl: can't be written: {_reason(error)}") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the records logged so far."""
        return read_metrics(self.path)


class Scalars:
    """TensorBoard's curves of a run.

    Args:
        path: the folder of event files.
        done: the last step of an earlier part that counts; later ones are hidden.

    Raises:
        RunError: they can't be written; so for all methods.
    """

    def __init__(self, path: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = path
        with self._writing():
            self._writer = SummaryWriter(str(path), purge_step=done + 1)

    def add(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        with self._writing():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is waiting."""
        with self._writing():
            self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"{self.path}: can't be written: {_reason(error)}") from error


def new_run_path(name: str) -> Path:
    """Return runs/<name>-<date>-<time>, with a number if that is taken; nothing is made."""
    stamped = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    paths = (Path("runs") / (stamped if number == 1 else f"{stamped}-{number}") for number in count(1))
    return next(path for path in paths if not path.exists())


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics.jsonl; a last line cut off by a crash is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        raise RunError(f"{run}: not a run folder: it has no metrics.jsonl")
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if _step_of(line) < float("inf"):
            records.append(json.loads(line))
    return records


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that it is either the old or the new one.

    Raises:
        RunError: it can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"{path}: can't be written: {_reason(error)}") from error


def describe_environment(registry: Registry, device: str) -> dict[str, Any]:
    """Return what else decides a run's numbers: versions, plugins, git commit, machine, command."""
    return {
        "mgmae": __version__,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "plugins": sorted({entry.package for entry in registry.entries.values()}),
        "git": git_state(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def git_state() -> dict[str, Any] | None:
    """Return commit and cleanliness of the checkout that the package runs from, or None outside of one."""

    def ask(*arguments: str) -> str | None:
        here = Path(__file__).resolve().parent
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", __file__) is None:
        return None  # installed inside somebody else's checkout
    return {"commit": ask("rev-parse", "HEAD"), "modified": bool(ask("status", "--porcelain"))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a crash


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
