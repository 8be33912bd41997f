"""Lock files: one process a folder, whoever dies lets go, and the file says who holds it."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mgmae_cli.engine.lock import locked
from mgmae_cli.errors import RunError
from tests.engine.conftest import resume_micro, run_micro

HOLD = """
import sys, time
from pathlib import Path
from mgmae_cli.engine.lock import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(path: Path, seconds: float = 60) -> subprocess.Popen[str]:
    """Start a process that holds a lock."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_lock_is_there_while_it_is_held_says_who_holds_it_and_is_gone_then(tmp_path: Path) -> None:
    with locked(tmp_path / "deep" / ".lock", "busy") as note:
        assert note == ""
        found = json.loads((tmp_path / "deep" / ".lock").read_text())
        assert (found["pid"], found["host"]) == (os.getpid(), platform.node())
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_lock_of_another_process_is_refused_with_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    holder = hold(tmp_path / ".lock")
    with pytest.raises(RunError, match=rf"^busy \(process {holder.pid} on {platform.node()}, since 20"):
        locked(tmp_path / ".lock", "busy").__enter__()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with locked(tmp_path / ".lock", "busy") as note:
        assert note.startswith(f"taking over {tmp_path} from a process that has died (process {holder.pid} on ")
    assert not (tmp_path / ".lock").exists()


def test_waiting_for_a_lock_ends_when_its_holder_lets_go(tmp_path: Path) -> None:
    holder = hold(tmp_path / ".lock", 0.5)
    start = time.monotonic()
    with locked(tmp_path / ".lock", "busy", 30) as note:
        assert time.monotonic() - start > 0.1
        assert note == ""
    holder.communicate()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file: can't be written: File exists; choose another --out$"):
        locked(tmp_path / "file" / ".lock", "busy").__enter__()


def test_a_run_that_another_process_works_on_is_not_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_micro(run, "train.steps=4")
    holder = hold(run / ".lock")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"run: another process works on this run; wait for it, .*process \d+ on "):
        resume_micro(run)
    assert (run / "metrics.jsonl").read_bytes() == before
    holder.kill()
    holder.communicate()
    _, said = resume_micro(run)
    assert "taking over" in said
