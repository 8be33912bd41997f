"""`mgmae report RUN`: one run's page, and what is no run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mgmae_cli.ablation.run_page import write_run_page
from mgmae_cli.cli.app import app
from mgmae_cli.config import Layer
from mgmae_cli.diagnose.health import HealthMonitor
from mgmae_cli.engine.pretrain import pretrain
from mgmae_cli.errors import RunError
from mgmae_cli.settings import resolve


def test_a_runs_page_shows_loss_warnings_settings_and_environment_in_one_file(tmp_path: Path) -> None:
    small = {
        "mask.name": "tube", "mask.ratio": 0.5, "data.size": 16, "data.frames": 4, "data.workers": 0, "train.steps": 3,
        "train.batch_size": 2, "run.log_every": 1, "run.device": "cpu", "run.out": str(tmp_path / "run"),
    }  # fmt: skip
    pretrain(resolve(flags=Layer("test", small)), console=Console(quiet=True), make_monitor=HealthMonitor)
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "clips/s" in done.output
    warning = "step 1: only 50% of the tokens are masked, below health.min_mask_ratio = 0.75"
    assert f"warning: {warning}" in done.output
    text = (tmp_path / "run" / "report.html").read_text()
    for expected in ("Loss, speed", "Warnings", warning, "mean_loss", "name: tube", "torch", "data:image/png;base64,"):
        assert expected in text
    assert not re.search(r"<(script|link|iframe|object|embed)|@import|url\(", text)
    assert set(re.findall(r'(?:src|href)="(.{10})', text)) == {"data:image"}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        write_run_page(tmp_path)
