"""The run folder: one run each, nothing written over, and what happens when it can't be written."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import pytest

from mgmae_cli.engine import run_folder
from mgmae_cli.engine.run_folder import RunFolder, Scalars, read_metrics, replace_text
from mgmae_cli.errors import RunError


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", "seed: 1\n").log({"step": 1})
    before = _content(tmp_path)
    with pytest.raises(RunError) as caught:
        RunFolder(tmp_path / "run", "seed: 2\n")
    run = tmp_path / "run"
    assert str(caught.value) == f"{run}: already holds a run; go on with it by --resume {run}, or choose another --out"
    assert _content(tmp_path) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints"])
def test_files_that_a_run_would_change_are_not_taken_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(RunError, match=rf"holds {name} of something else; choose another --out$"):
        RunFolder(tmp_path, "seed: 1\n")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_with_other_files_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path, "seed: 1\n")
    assert _content(tmp_path) == {"notes.txt": b"mine", "config.yaml": b"seed: 1\n", "metrics.jsonl": b""}


def test_records_are_appended_and_read_back_without_a_last_one_cut_off(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "")
    folder.log({"step": 1, "loss": 0.1})
    folder.log({"step": 2, "loss": 1e-9})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert folder.metrics() == read_metrics(tmp_path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 1e-9}]


def test_taking_up_a_run_drops_what_will_be_done_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "seed: 1\n")
    for step in (1, 2, 3):
        folder.log({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step"')
    again = RunFolder(tmp_path, None, resumed_at=2)
    again.log({"step": 3, "again": True})
    assert again.metrics() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    for path in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(RunError, match=r": can't be written: (File exists|Not a directory); choose another --out$"):
            RunFolder(path, "")
    assert (tmp_path / "run").read_text() == "mine"


def _full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_with_the_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path, "")
    folder.write("skipped.txt", "old")
    monkeypatch.setattr(Path, "write_text", _full)
    with pytest.raises(RunError, match=r"skipped.txt: can't be written: No space left on device"):
        folder.write("skipped.txt", "new")
    monkeypatch.setattr(Path, "open", _full)
    with pytest.raises(RunError, match=r"metrics.jsonl: can't be written: No space left on device"):
        folder.log({"step": 1})
    monkeypatch.undo()
    assert (tmp_path / "skipped.txt").read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def test_a_disk_that_is_full_from_the_start_leaves_no_shell_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "touch", _full)
    with pytest.raises(RunError, match=r"can't be written: No space left on device; choose another --out"):
        RunFolder(tmp_path, "seed: 1\n")
    monkeypatch.undo()
    RunFolder(tmp_path, "seed: 1\n")


def test_tensorboards_errors_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/tensorboard: can't be written: Not a directory"):
        Scalars(tmp_path / "file" / "tensorboard", 0)
    curves = Scalars(tmp_path / "curves", 0)
    with monkeypatch.context() as patch:
        patch.setattr(curves._writer, "add_scalar", _full)
        with pytest.raises(RunError, match=r"curves: can't be written: No space left on device"):
            curves.add("loss", 1.0, 1)
    curves.close()


def test_resumed_curves_hide_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Scalars(tmp_path, 0)
    for step in (1, 2, 3):
        first.add("loss", float(step), step)
    first.close()
    time.sleep(1 - time.time() % 1)  # event files are told apart and read by the second they were opened in
    second = Scalars(tmp_path, 2)
    second.add("loss", 30.0, 3)
    second.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    replace_text(tmp_path / "a.txt", "one")
    replace_text(tmp_path / "a.txt", "two")
    assert _content(tmp_path) == {"a.txt": b"two"}


def test_the_environment_is_plain_json(tmp_path: Path) -> None:
    from mgmae_cli.registry import Registry

    described = run_folder.describe_environment(Registry(), "cpu")
    assert json.loads(json.dumps(described)) == described
    assert {"mgmae", "python", "command", "packages", "plugins", "git", "device"} <= set(described)
