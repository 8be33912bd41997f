"""One pre-training run as a page: its curve, speed, warnings, pictures, settings and environment in one HTML file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mgmae_cli.ablation import page
from mgmae_cli.engine.run_folder import read_metrics, replace_text
from mgmae_cli.errors import RunError


def write_run_page(run: Path, out: Path | None = None) -> Path:
    """Write a run's page; return its path, `report.html` in the run's folder unless another is given.

    Raises:
        RunError: not a run folder, or the page can't be written.
    """
    if not (run / "config.yaml").is_file():
        raise RunError(f"{run}: not a run folder: it has no config.yaml")
    records = read_metrics(run)
    losses = [record for record in records if "loss" in record]
    path = out or run / "report.html"
    parts = [f"<h1>Run {escape(run.resolve().name)}</h1>", page.facts(_facts(losses)), _warnings(records)]
    if losses:
        parts += [
            "<h2>Training</h2>",
            page.picture(_curves_png(losses), "Loss, speed, and time spent waiting for data."),
        ]
    for name, title in (("reconstruction.png", "Reconstructions"), ("curves.png", "Validation")):
        if (run / name).is_file():
            parts += [f"<h2>{title}</h2>", page.picture((run / name).read_bytes())]
    if (run / "skipped.txt").is_file():
        parts += ["<h2>Skipped videos</h2>", page.code((run / "skipped.txt").read_text(encoding="utf-8"))]
    parts += ["<h2>Settings</h2>", page.code((run / "config.yaml").read_text(encoding="utf-8"))]
    environment = run / "environment.json"
    if environment.is_file():
        found = json.loads(environment.read_text(encoding="utf-8"))
        rows = ((key, json.dumps(value)) for key, value in found.items() if value is not None)
        parts += ["<h2>Environment</h2>", page.facts(rows)]
    replace_text(path, page.document(f"mgmae run: {run.resolve().name}", parts))
    return path


def _facts(losses: Sequence[Mapping[str, Any]]) -> list[tuple[str, object]]:
    if not losses:
        return [("state", "no step was logged yet")]
    first, last = losses[0], losses[-1]
    speeds = sorted(record["clips_per_s"] for record in losses)
    waits = [record["data_wait"] for record in losses]
    return [
        ("steps logged", f"{last['step']} ({last['epoch']:.2f} epochs)"),
        ("loss", f"{first['loss']:.4f} at step {first['step']}, {last['loss']:.4f} at step {last['step']}"),
        ("speed", f"{speeds[len(speeds) // 2]:.1f} clips/s (median)"),
        ("waiting for data", f"{100 * sum(waits) / len(waits):.0f} % of the time"),
        ("unreadable videos", last.get("skipped", 0)),
    ]


def _warnings(records: Sequence[Mapping[str, Any]]) -> str:
    found = [(record["step"], text) for record in records for text in record.get("warnings", [])]
    if not found:
        return ""
    lines = "".join(f"<li>step {step}: {escape(text)}</li>" for step, text in found)
    return f'<div class="box"><b>Warnings</b><ul>{lines}</ul></div>'


def _curves_png(losses: Sequence[Mapping[str, Any]]) -> bytes:
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    steps = [record["step"] for record in losses]
    panels = (("loss", "loss on masked tokens"), ("clips_per_s", "clips/s"), ("data_wait", "share of time waiting"))
    for place, (axes, (name, title)) in enumerate(zip(figure.subplots(1, 3), panels)):
        axes.plot(steps, [record[name] for record in losses], color=f"C{place}", marker="." if len(steps) < 30 else "")
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def summary(run: Path) -> str:
    """Return a run's facts as lines."""
    losses = [record for record in read_metrics(run) if "loss" in record]
    return "\n".join(f"{name}: {value}" for name, value in _facts(losses))
