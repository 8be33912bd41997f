"""Checkpoints: whole or not at all, and which are kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mgmae_cli.engine import checkpoint
from mgmae_cli.engine.checkpoint import CheckpointFolder, read_checkpoint, write_whole
from mgmae_cli.errors import CheckpointError, RunError


def _steps(folder: CheckpointFolder) -> list[int]:
    return [step for step, _ in folder.all()]


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "deep" / "checkpoints")
    path = folder.save(7, {"model": {"w": torch.arange(3.0)}, "bad": {"a": "b"}, "window": [0.5]})
    assert path.name == "step-000007.pt"
    payload = read_checkpoint(path)
    assert (payload["step"], payload["bad"], payload["window"]) == (7, {"a": "b"}, [0.5])
    assert torch.equal(payload["model"]["w"], torch.arange(3.0))


def test_the_last_few_are_kept_and_every_nth_for_good(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 11):
        folder.save(step, {})
    assert _steps(folder) == [4, 8, 9, 10]
    last = CheckpointFolder(tmp_path, keep_last=1)
    last.save(11, {})
    assert _steps(last) == [11]


def test_steps_are_ordered_as_numbers_beyond_a_million(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1)
    folder.save(999_999, {})
    folder.save(1_000_000, {})
    assert _steps(folder) == [1_000_000]
    assert folder.newest()[0]["step"] == 1_000_000


def test_a_damaged_later_one_never_makes_a_good_one_go(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1)
    folder.save(10, {})
    (tmp_path / "step-000030.pt").write_bytes(b"half")
    folder.save(20, {})
    payload, path, complaints = folder.newest()
    assert (payload["step"], path.name) == (20, "step-000020.pt")
    assert len(complaints) == 1
    assert complaints[0].startswith(f"{tmp_path / 'step-000030.pt'}: damaged or not a checkpoint: ")


def _failing_save(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def save(payload: Any, file: Any) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(checkpoint.torch, "save", save)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc] write failed\nmore"), r"\[enforce fail .*\] write failed"),
    ],
)
def test_a_full_disk_leaves_the_old_one_and_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1)
    old = folder.save(1, {"w": 1}).read_bytes()
    _failing_save(monkeypatch, error)
    with pytest.raises(
        RunError, match=rf"step-000002.pt: checkpoint not saved: {reason}; older ones are kept"
    ) as caught:
        folder.save(2, {"w": 2})
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError):
        write_whole(tmp_path / "step-000001.pt", {"w": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001.pt"]
    assert (tmp_path / "step-000001.pt").read_bytes() == old


def test_an_interrupt_while_saving_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing_save(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        CheckpointFolder(tmp_path).save(1, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.open

    def open_full(self: Path, mode: str = "r", **options: Any) -> Any:
        return whole(Path("/dev/full") if self.name.endswith(".partial") else self, mode, **options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(RunError, match=r"step-000001.pt: checkpoint not saved: ") as caught:
        CheckpointFolder(tmp_path).save(1, {"w": torch.zeros(100_000)})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_half_is_cleared_by_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".step-000001.pt.4711.partial").write_bytes(b"half")
    CheckpointFolder(tmp_path).save(2, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002.pt"]


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/checkpoints/step-000001.pt: checkpoint not saved: Not a directory"):
        CheckpointFolder(tmp_path / "file" / "checkpoints").save(1, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"):
        CheckpointFolder(tmp_path).save(1, {})


@pytest.mark.parametrize("content", [b"", b"words", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: damaged or not a checkpoint: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_somebody_elses_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.pt: no such checkpoint$"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_checkpoint(tmp_path)
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt: not an mgmae training checkpoint"):
        read_checkpoint(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        CheckpointFolder(tmp_path / "empty").newest()


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "mgmae-1", "model": _Evil()}, "x.pt")
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        read_checkpoint(Path("x.pt"))
    assert not Path("evil").exists()
