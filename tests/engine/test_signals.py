"""Real signals to real runs: Ctrl-C, and SLURM's SIGTERM to the whole process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgmae_cli.engine.signals import StopOnSignal
from mgmae_cli.engine.step import PretrainTask
from mgmae_cli.errors import Interrupted
from tests.engine.conftest import equal, read_losses, resume_micro, run_micro, saved, saved_steps

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys
from pathlib import Path
import torch
from mgmae_cli import settings
from mgmae_cli.cli.app import main
from mgmae_cli.model import videomae
from tests.engine.conftest import MICRO, micro_registry
videomae.SIZES["tiny"] = MICRO
settings.default_registry = micro_registry
torch.set_num_threads(1)
main()
"""


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, "pretrain", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_that_slurm_ends_with_its_workers_saves_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    whole, _ = run_micro(tmp_path / "whole", "train.steps=60", "run.log_every=5")
    out = tmp_path / "run"
    config = (whole.folder / "config.yaml").read_text().replace("workers: 0", "workers: 2")
    config = config.replace("seconds: 0.0", "seconds: 0.05")  # each clip takes a while, so that there is time
    (tmp_path / "recipe.yaml").write_text(config)
    process = _start(str(tmp_path / "recipe.yaml"), "--out", str(out))
    metrics = out / "metrics.jsonl"
    _wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    (step,) = saved_steps(out)
    assert 10 <= step < 60
    assert said.splitlines()[-1] == f"stopped by SIGTERM; step {step} is saved; go on with --resume {out}"
    assert "Traceback" not in said
    assert not list((out / "checkpoints").glob(".*"))

    (out / "config.yaml").write_text((out / "config.yaml").read_text().replace("seconds: 0.05", "seconds: 0.0"))
    resume_micro(out, "data.workers=0")
    assert equal(saved(out, 60)["model"], saved(whole.folder, 60)["model"])
    assert equal(saved(out, 60)["optimizer"], saved(whole.folder, 60)["optimizer"])
    assert read_losses(out) == read_losses(whole.folder)


def _signalling(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Send signals to this process in the middle of step 3."""
    whole = PretrainTask.loss

    def loss(self: PretrainTask, batch: Any, key: tuple[int, ...]) -> torch.Tensor:
        if key[1] == 2:
            for number in numbers:
                signal.raise_signal(number)
        return whole(self, batch, key)

    monkeypatch.setattr(PretrainTask, "loss", loss)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_128_more_than_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    _signalling(monkeypatch, number)
    with pytest.raises(Interrupted) as caught:
        run_micro(tmp_path / "run")
    assert caught.value.exit_code == code
    assert str(caught.value) == f"stopped by {number.name}; step 3 is saved; go on with --resume {tmp_path / 'run'}"
    assert saved_steps(tmp_path / "run") == [3]


def test_a_second_ctrl_c_stops_at_once_without_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _signalling(monkeypatch, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_micro(tmp_path / "run", "run.save_every=2")
    assert saved_steps(tmp_path / "run") == [2]


def test_handlers_of_signals_are_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    _signalling(monkeypatch, signal.SIGTERM)
    with pytest.raises(Interrupted):
        run_micro(tmp_path / "run")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread_signals_are_left_to_others() -> None:
    met: list[BaseException | None] = []

    def enter() -> None:
        try:
            with StopOnSignal() as stop:
                met.append(None if not stop.asked else AssertionError())
        except BaseException as error:
            met.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert met == [None]
