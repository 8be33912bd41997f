"""A picture of who is taken for whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise RunError(f"{path}: can't be written: {error.strerror or error}") from error
