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
    looks = [record for record in losses if "health" in record]
    if looks:
        parts += ["<h2>Health</h2>", _looks(looks)]
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


def warning_lines(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return one line for each kind of warning in a run's metrics: when it was given, and its last text."""
    by_kind: dict[str, list[tuple[int, str]]] = {}
    for record in records:
        for kind, text in record.get("warnings", {}).items():
            by_kind.setdefault(kind, []).append((record["step"], text))
    lines = {}
    for kind, found in by_kind.items():
        (first, _), (last, text) = found[0], found[-1]
        steps = f"step {first}" if len(found) == 1 else f"steps {first} to {last}, {len(found)} times"
        lines[kind] = f"{steps}: {text}"
    return lines


def _warnings(records: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in warning_lines(records).values())
    return f'<div class="box"><b>Warnings</b><ul>{lines}</ul></div>' if lines else ""


def _looks(looks: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of what looks at flow and masks found: the first, the last, and how many there were."""
    shown = looks[:1] if len(looks) == 1 else [looks[0], looks[-1]]
    rows = [
        [name, *[f"{look['health'][name]:.3f}" if name in look["health"] else "-" for look in shown]]
        for name in dict.fromkeys(name for look in shown for name in look["health"])
    ]
    said = f"{len(looks)} looks at some clips of a batch; settings and thresholds: section health below."
    return page.table(["figure", *[f"step {look['step']}" for look in shown]], rows) + f'<p class="note">{said}</p>'


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
    """Return a run's facts and warnings as lines."""
    records = read_metrics(run)
    losses = [record for record in records if "loss" in record]
    facts = [f"{name}: {value}" for name, value in _facts(losses)]
    return "\n".join([*facts, *[f"warning: {line}" for line in warning_lines(records).values()]])
