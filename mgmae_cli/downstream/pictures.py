"""Pictures of a fine-tuning run and of a test: loss and accuracy over the steps, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mgmae_cli.errors import RunError

_MOST_NAMES = 60  # more can't be read
_MOST_NUMBERS = 25


def confusion_png(path: Path, counts: Tensor, classes: Sequence[str], title: str) -> None:
    """Draw a confusion matrix: rows are true classes, columns predicted ones, shades are shares of a row.

    Args:
        counts: (K, K) whole numbers.

    Raises:
        RunError: it can't be written.
    """
    number = len(classes)
    shares = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    side = min(4 + 0.3 * number, 24.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    if number <= _MOST_NAMES:
        axes.set_xticks(range(number), classes, rotation=90)
        axes.set_yticks(range(number), classes)
    if number <= _MOST_NUMBERS:
        for row, col in (counts > 0).nonzero().tolist():
            colour = "white" if shares[row, col] > 0.5 else "black"
            axes.text(col, row, str(int(counts[row, col])), ha="center", va="center", color=colour, fontsize=8)
    _save(figure, path)


def curves_png(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the training loss and the validations' top-1 over the steps of a run.

    Args:
        records: of its metrics.jsonl.

    Raises:
        RunError: it can't be written.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    for axes, key, colour, label in (
        (left, "loss", "tab:blue", "training loss"),
        (left.twinx(), "top1", "tab:orange", "validation top-1, %"),
    ):
        points = [(record["step"], record[key]) for record in records if key in record]
        axes.plot([step for step, _ in points], [value for _, value in points], color=colour, marker=".")
        axes.set_ylabel(label, color=colour)
    left.set_xlabel("step")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise RunError(f"{path}: can't be written: {error.strerror or error}") from error
