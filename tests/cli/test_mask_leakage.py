"""`mgmae mask leakage`: strategies side by side, on shapes and on a video, as table, CSV and plot."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from mgmae_cli.cli.app import app

SMALL = ["--set", "data.size=48", "--clips", "6"]


def leakage(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["mask", "leakage", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "leakage.csv").open() as file:
        return {row["mask"]: row for row in csv.DictReader(file)}


def test_on_shapes_motion_masks_leak_less_than_random_masks(tmp_path: Path) -> None:
    truth = ["--mask", "random", "--mask", "tube", "--mask", "motion", "--flow", "truth"]
    leakage("shapes", *truth, *SMALL, "--out", str(tmp_path))
    rows = rows_of(tmp_path)
    leaks = {name: float(row["leak"]) for name, row in rows.items()}
    assert leaks["motion"] < leaks["tube"] < leaks["random"]
    assert float(rows["motion"]["flow_error"]) == 0
    assert rows["tube"]["flow_error"] == ""
    assert (tmp_path / "leakage.png").read_bytes().startswith(b"\x89PNG")


def test_each_mask_may_carry_options(tmp_path: Path) -> None:
    masks = ["motion:warp=forward,base_frame=first", "motion:hole_filling=none"]
    leakage("shapes", "--mask", masks[0], "--mask", masks[1], *SMALL, "--out", str(tmp_path))
    assert list(rows_of(tmp_path)) == masks


def test_a_still_video_leaks_under_random_masks_and_not_under_tube_masks(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    big = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_CUBIC)
    writer = cv2.VideoWriter(str(tmp_path / "still.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 64))
    for _ in range(16):
        writer.write(big)
    writer.release()
    small = ["--set", "data.size=64", "--set", "data.frames=8", "--set", "data.stride=1", "--set", "model.patch=8"]
    leakage(
        str(tmp_path / "still.avi"), "--mask", "tube", "--mask", "random", *small, "--set", "data.crop=center",
        "--out", str(tmp_path / "made" / "here"),
    )  # fmt: skip
    rows = rows_of(tmp_path / "made" / "here")
    assert float(rows["tube"]["leak"]) < 0.02
    assert float(rows["random"]["leak"]) > 0.2


def test_the_table_of_four_strategies_is_whole_on_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    masks = ["random", "tube", "motion", "motion:warp=forward,base_frame=first,hole_filling=previous"]
    text = leakage("shapes", *[part for mask in masks for part in ("--mask", mask)], "--clips", "2")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\u2026" not in text, "something is cut"
    assert {"motion:", "warp=forward,", "previous"} <= set(text.split())
    counts = {line.split(",")[0].strip(): len(re.findall(r"\d\.\d{3} \u00b1 \d\.\d{3}", line)) for line in lines}
    assert counts["leak"] == 4
    assert counts["holes"] == 2
