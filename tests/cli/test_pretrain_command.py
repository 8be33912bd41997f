"""`mgmae pretrain` as its user meets it: what it writes, and one clear line and exit code 2 for what is wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mgmae_cli.config import recipe_layer
from mgmae_cli.settings import resolve

MICRO = ["--model", "tiny", "--batch-size", "4", "--device", "cpu", "--workers", "0", "--set", "data.size=32"]


def write_video(path: Path, frames: int = 24, height: int = 48, width: int = 64) -> Path:
    """Write a moving pattern as Motion JPEG."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (width, height))
    pattern = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8 + 8, 3), dtype=np.uint8)
    big = cv2.resize(pattern, (width + 64, height), interpolation=cv2.INTER_CUBIC)
    for number in range(frames):
        writer.write(np.ascontiguousarray(big[:, number : number + width]))
    writer.release()
    return path


@pytest.fixture
def run(mgmae: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs `mgmae ...` in an empty folder and returns (exit code, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        return mgmae(*arguments), capsys.readouterr().err

    return call


def test_a_run_of_no_steps_saves_the_weights_that_it_begins_with(run, tmp_path: Path) -> None:
    code, said = run("pretrain", "--mask", "tube", "--steps", "0", "--out", "r", *MICRO)
    assert code == 0, said
    saved = torch.load(tmp_path / "r" / "checkpoints" / "step-000000.pt", weights_only=False)
    assert saved["step"] == 0
    assert saved["model"]["mask_token"].abs().sum() > 0
    code, said = run("report", "r")
    assert code == 0, said
    code, said = run("pretrain", "--resume", "r")
    assert code == 0, said


def test_the_main_job_leaves_checkpoint_curve_pictures_and_a_recipe(run, tmp_path: Path) -> None:
    code, said = run("pretrain", "--mask", "motion", "--warp", "backward", "--steps", "3", "--out", "r", *MICRO)
    assert code == 0, said
    folder = tmp_path / "r"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 3
    assert records[-1]["loss"] > 0
    assert (folder / "checkpoints" / "step-000003.pt").stat().st_size > 1_000_000
    for picture in ("loss.png", "reconstruction.png"):
        with Image.open(folder / picture) as image:
            assert min(image.size) > 100
    assert list((folder / "tensorboard").iterdir())
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0] or environment["packages"]["torch"]
    saved = resolve(folder / "config.yaml").config
    assert saved.mask.options["warp"] == "backward"
    assert saved.run.precision == "fp32"
    assert recipe_layer(folder / "config.yaml").values["train.steps"] == 3
    for fact in ("device", "tokens", "visible", "clips per step", "learning rate"):
        assert fact in said


@pytest.mark.parametrize("kind", ["video", "folder", "list"])
def test_the_same_command_takes_a_video_a_folder_or_a_list(run, tmp_path: Path, kind: str) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a b.avi", "c.avi"):
        write_video(videos / name)
    (tmp_path / "list.csv").write_text("videos/a b.avi,0\nvideos/c.avi,1\n")
    path = {"video": "videos/c.avi", "folder": "videos", "list": "list.csv"}[kind]
    code, said = run(
        "pretrain", "--data", path, "--steps", "2", "--out", "r", *MICRO, "--set", "data.stride=1",
        "--set", "model.patch=8", "--set", "run.pictures=false",
    )  # fmt: skip
    assert code == 0, said
    assert f"{1 if kind == 'video' else 2} videos" in said


def test_unreadable_videos_are_skipped_counted_and_listed(run, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for number in range(4):
        write_video(tmp_path / "videos" / f"{number}.avi")
    (tmp_path / "videos" / "broken.avi").write_bytes(b"not a video at all")
    micro = [*MICRO, "--data", "videos", "--steps", "4", "--set", "model.patch=8", "--set", "run.pictures=false"]
    code, said = run("pretrain", "--out", "r", *micro)
    assert code == 0, said
    assert "broken.avi" in (tmp_path / "r" / "skipped.txt").read_text()
    assert "skipped" in said
    code, said = run("pretrain", "--out", "strict", *micro, "--set", "data.max_bad_share=0.1")
    assert code == 2
    assert "1 of 5 videos can't be read" in said
    assert "data.max_bad_share" in said


def test_a_folder_that_holds_a_run_is_not_written_over(run, tmp_path: Path) -> None:
    arguments = ["pretrain", "--steps", "1", "--out", "r", *MICRO, "--set", "run.pictures=false"]
    assert run(*arguments)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    code, said = run(*arguments)
    assert code == 2
    assert "--resume r" in said
    assert {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()} == before


WRONG = {
    "an unknown mask": (["--mask", "motoin"], "unknown mask 'motoin' (did you mean 'motion'?)"),
    "an unknown flow": (["--flow", "dsi"], "unknown flow 'dsi' (did you mean 'dis'?)"),
    "an unknown option": (["--set", "mask.options.wrap=forward"], "wrap"),
    "an unknown key": (["--set", "train.batchsize=3"], "did you mean 'train.batch_size'?"),
    "a motion-only flag with tube": (["--mask", "tube", "--warp", "forward"], "mask 'tube' has no option 'warp'"),
    "a flow with tube": (["--mask", "tube", "--flow", "dis"], "--flow: mask 'tube' uses no flow"),
    "a wrong choice": (["--warp", "sideways"], "backward"),
    "a missing recipe": (["nowhere.yaml"], "nowhere.yaml: no such recipe"),
    "missing data": (["--data", "nowhere"], "--data: nowhere: no such file or folder"),
    "empty data": (["--data", "empty"], "empty"),
    "a text file as data": (["--data", "text.bin"], "text.bin"),
    "a size that does not divide": (["--set", "data.size=50"], "48 or 56"),
    "a ratio of one": (["--mask-ratio", "1"], "--mask-ratio: mask.ratio: 1.0: input should be less than 1"),
    "a ratio that masks nothing": (["--mask-ratio", "0.01"], "leaves no masked patch"),
    "a device that is not there": (["--device", "cuda:77"], "cuda:77"),
    "steps and epochs": (["--steps", "3", "--set", "train.epochs=3"], "steps and epochs are both given"),
    "repeats that split a batch": (["--set", "data.samples_per_video=3"], "not a multiple of data.samples_per_video"),
    "a run that is not there": (["--resume", "nowhere"], "--resume nowhere"),
    "an unwritable folder": (["--out", "text.bin/run"], "text.bin/run"),
    "truth flow without truth": (["--flow", "truth", "--data", "video.avi"], "does not know its flow"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_answered_by_one_clear_message_and_exit_code_2(run, tmp_path: Path, case: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.bin").write_bytes(bytes(range(256)))
    write_video(tmp_path / "video.avi", frames=4)
    arguments, expected = WRONG[case]
    code, said = run("pretrain", "--set", "train.steps=1", *arguments)
    assert code == 2, said
    assert expected in re.sub(r"\s+", " ", said)
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_a_gpu_without_room_for_the_model_is_told_in_one_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def move(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has")

    monkeypatch.setattr(torch.nn.Module, "to", move)
    code, said = run("pretrain", *MICRO, "--steps", "1")
    assert code == 2
    line = "error: the GPU's memory does not hold this (CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has...)"
    assert said.splitlines()[-1] == f"{line}: lower --batch-size"


def test_all_problems_of_a_recipe_are_told_at_once_with_file_and_key(run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("train: {base_lr: fast, batchsize: 3}\nmodel: {name: basse}\n")
    code, said = run("pretrain", "r.yaml")
    assert code == 2
    for expected in ("r.yaml: train.base_lr", "r.yaml: train.batchsize", "train.batch_size", "r.yaml: model.name"):
        assert expected in said


@pytest.mark.skipif(shutil.which("mgmae") is None, reason="the mgmae command is not on PATH")
def test_help_lists_the_commands_with_an_example() -> None:
    said = subprocess.run(["mgmae", "--help"], capture_output=True, text=True, check=True).stdout
    assert "mgmae pretrain --mask motion --warp backward" in re.sub(r"\s+", " ", said)
    for command in ("pretrain", "mask", "plugins"):
        assert command in said
