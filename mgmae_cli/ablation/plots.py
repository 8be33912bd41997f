"""Plots of an ablation as PNG: figures by cell, loss curves, and the trade-off of a swept number."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mgmae_cli.ablation.evaluate import METRICS
from mgmae_cli.ablation.state import Run
from mgmae_cli.ablation.table import Results
from mgmae_cli.engine.run_folder import read_metrics
from mgmae_cli.errors import RunError

_SHOWN = (
    "finetune",
    "linear",
    "attentive",
    "knn",
    "leak",
    "copy_error",
    "tube_loss",
    "loss",
    "flow_error",
    "clips_per_s",
)
_MOST = 6  # panels of a picture


def figures_png(results: Results) -> bytes | None:
    """Draw each figure's mean over seeds by cell, every seed as a point; None without figures."""
    names = [name for name in _SHOWN if name in results.names][:_MOST]
    rows = [row for row in results.rows if row.entries]
    if not names or not rows:
        return None
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, lines * (1.1 + 0.32 * len(rows))), layout="constrained")
    axes_list = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    labels = [row.cell.name for row in rows]
    for axes, name in zip(axes_list, names):
        for place, row in enumerate(rows):
            entry = row.entries.get(name)
            if entry is None:
                continue
            deviation = entry.spread.deviation or 0.0
            axes.errorbar(entry.spread.mean, place, xerr=deviation, fmt="o", color=f"C{place % 10}", capsize=3)
            values = list(entry.values.values())
            axes.plot(values, [place + 0.22] * len(values), "|", color=f"C{place % 10}", alpha=0.6)
        better = {"high": " (higher is better)", "low": " (lower is better)", None: ""}[METRICS[name].better]
        axes.set_title(METRICS[name].title + better, fontsize=10)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x", alpha=0.3)
    for axes in axes_list[len(names) :]:
        axes.set_axis_off()
    return _png(figure)


def curves_png(results: Results, runs: Sequence[Run]) -> bytes | None:
    """Draw each cell's pre-training loss over the steps, the mean of its finished seeds; None without training."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for place, row in enumerate(results.rows):
        curves = [_losses(run) for run in runs if run.cell == row.cell.name and run.seed in row.done]
        curves = [curve for curve in curves if curve]
        if not curves:
            continue
        drawn = True
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [sum(curve[step] for curve in curves) / len(curves) for step in steps]
        style = ("-", "--", ":", "-.")[place // 10 % 4]
        axes.plot(steps, means, style, color=f"C{place % 10}", label=row.cell.name)
    if not drawn:
        return None
    axes.set(xlabel="step", ylabel="loss on masked tokens")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Pre-training loss: comparable between cells only where their masks are equally hard", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=1 + len(results.rows) // 10)
    return _png(figure)


def _losses(run: Run) -> dict[int, float]:
    try:
        return {record["step"]: record["loss"] for record in read_metrics(run.run_folder) if "loss" in record}
    except RunError:
        return {}  # an ablation without training


def trade_off_png(results: Results, sweep: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> bytes | None:
    """Draw accuracy, loss and cost over the values of a swept number; None unless one axis of numbers is swept."""
    if len(sweep) != 1:
        return None
    axis, labels = next(iter(sweep.items()))
    numbers = {}
    for label, settings in labels.items():
        value = next(iter(settings.values())) if len(settings) == 1 else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        numbers[label] = float(value)
    accuracy = next((name for name in ("finetune", "linear", "attentive", "knn") if name in results.names), None)
    panels = [name for name in (accuracy, "loss", "leak", "clips_per_s") if name in results.names]
    if len(numbers) < 3 or not panels:
        return None
    figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
    for place, (axes, name) in enumerate(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels)):
        rows = sorted(
            (row for row in results.rows if name in row.entries), key=lambda row: numbers[row.cell.labels[axis]]
        )
        x = [numbers[row.cell.labels[axis]] for row in rows]
        spreads = [row.entries[name].spread for row in rows]
        axes.errorbar(
            x,
            [s.mean for s in spreads],
            yerr=[s.deviation or 0.0 for s in spreads],
            fmt="o-",
            color=f"C{place}",
            capsize=3,
        )
        axes.set(xlabel=axis, title=METRICS[name].title)
        axes.grid(alpha=0.3)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
