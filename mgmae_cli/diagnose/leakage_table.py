"""Figures of several masking strategies on the same clips: the table behind `mgmae mask leakage`.

All strategies are judged along the same motion, whatever flow they themselves follow: exact flow where the source knows
it, else flow by DIS that agrees with itself in both directions. `mgmae_cli.diagnose.leakage` defines the figures.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from torch import Tensor

from mgmae_cli.diagnose.leakage import flow_figures, hole_share, mask_figures
from mgmae_cli.diagnose.tracks import ClipMotion, follow, make_tracker
from mgmae_cli.engine.pretrain import clip_spec
from mgmae_cli.errors import DataError, MgmaeError, RunError
from mgmae_cli.interfaces import TruthFlow
from mgmae_cli.masking.masker import Masker
from mgmae_cli.masking.motion import MotionMask
from mgmae_cli.masking.tube import TubeMask
from mgmae_cli.motion.figures import end_point_error
from mgmae_cli.motion.truth import TruthFlowEstimator
from mgmae_cli.seeds import derive_generator
from mgmae_cli.settings import Settings
from mgmae_cli.video.dataset import ClipDataset

_DRAWN, _BASE = 110, 111  # what a derived generator is for
_NARROW = 14  # characters: a table's column where four fit on 80, as wide as a figure with its error

# name -> (what people call it, unit, what it says)
FIGURES = {
    "leak": ("leak", "share", "of masked tokens at least half of whose content another slot shows"),
    "leaked_content": ("leaked content", "share", "of the masked content that another slot shows"),
    "copy_error": (
        "copy error",
        "of variance",
        "error of copying along the motion, on the standardised target; 1: copying is no help",
    ),
    "life": ("life", "slots", "in a row in which visible content stays visible"),
    "life_limit": ("life limit", "slots", "the same for a mask that hides nothing"),
    "hole_share": ("holes", "share", "of warped places without source"),
    "photometric_error": ("photometric error", "of 1", "mean colour difference along the strategy's own flow"),
    "consistency_error": ("consistency error", "pixels", "disagreement of its forward and backward flow"),
    "lost": ("lost flow", "share", "of places where its flow is lost or leaves the frame"),
    "flow_error": ("flow error", "pixels", "its mean distance from the exact flow"),
}


@dataclass(frozen=True)
class Measured:
    """One strategy's figures: means over clips, their standard errors, and how many clips."""

    label: str
    figures: Mapping[str, float]
    errors: Mapping[str, float]
    clips: int


def measure(strategies: Mapping[str, Settings], clips: int = 64, point_stride: int | None = None) -> list[Measured]:
    """Measure strategies on the first clips of a source.

    Args:
        strategies: by label; the first one's settings say which clips are read, and how.
        point_stride: pixels from one followed point to the next, a divisor of the patch; None: a quarter of a patch.

    Raises:
        MgmaeError: no clip can be read, or a strategy can't draw.
    """
    settings = next(iter(strategies.values()))
    tracker = make_tracker()
    maskers = {label: each.make_masker() for label, each in strategies.items()}
    rows: dict[str, list[dict[str, float]]] = {label: [] for label in maskers}
    stride = point_stride or max(1, settings.grid.patch // 4)
    for index, clip, truth in _clips(settings, clips):
        motion = ClipMotion.from_truth(truth) if truth else ClipMotion.estimate(clip, tracker)
        tracks = follow(motion, (settings.grid.height, settings.grid.width), stride)
        for label, masker in maskers.items():
            seed = strategies[label].config.seed
            mask = masker(clip, derive_generator(seed, index, _DRAWN), truth)
            found = mask_figures(mask, clip, masker.grid, tracks)
            own = _flow_of(masker, clip, truth, derive_generator(seed, index, _BASE))
            rows[label].append({name: float(value) for name, value in {**vars(found), **own}.items()})
    return [_summary(label, found) for label, found in rows.items()]


def _clips(settings: Settings, clips: int) -> list[tuple[int, Tensor, TruthFlow | None]]:
    """Return (number, (1, 3, T, H, W) clip, exact flow where known) of the first readable videos."""
    source, spec = settings.make_source(), clip_spec(settings.config)
    asks = None
    if source.knows_flow and spec.keeps_frames:  # a source delivers exact flow where a masker wants it
        truthful = TruthFlowEstimator(TruthFlowEstimator.Options())
        asks = Masker(TubeMask(TubeMask.Options()), truthful, settings.grid, settings.config.mask.ratio)
    dataset = ClipDataset(source, replace(spec, repeats=1), settings.config.seed, asks, replace_bad=False)
    found, reasons = [], []
    for index in range(min(clips, len(source))):
        sample = dataset[0, index]
        if isinstance(sample, MgmaeError):
            reasons.append(str(sample))
        else:
            found.append((index, sample.clips, sample.truth))
    if not found:
        raise DataError(f"none of {len(reasons)} videos can be read; the last: {reasons[-1]}")
    return found


def _flow_of(masker: Masker, clip: Tensor, truth: TruthFlow | None, generator: torch.Generator) -> dict[str, Tensor]:
    """Return figures of the flow that a strategy follows, and of its holes; none where it uses no flow."""
    if masker.estimator is None:
        return {}
    exact = masker.needs_truth and truth is not None
    motion = ClipMotion.from_truth(truth) if exact and truth else ClipMotion.estimate(clip, masker.estimator)
    found = dict(vars(flow_figures(clip, motion)))
    if truth is not None:
        errors = [
            end_point_error(mine, theirs)[~hidden].mean()
            for mine, theirs, hidden in (
                (motion.forward, truth.forward, truth.occluded_forward),
                (motion.backward, truth.backward, truth.occluded_backward),
            )
        ]
        found["flow_error"] = torch.stack(errors).mean()
    strategy = masker.strategy
    if isinstance(strategy, MotionMask):
        size = (masker.grid.height, masker.grid.width)
        visibility = strategy.visibility(masker.inputs(clip, generator, truth))
        base = strategy.base_frames(masker.inputs(clip, generator))
        options = strategy.options
        map_grid = (visibility.shape[2], visibility.shape[3])
        found["hole_share"] = hole_share(motion, base, size, map_grid, options.warp, options.as_published)
    return found


def _summary(label: str, rows: Sequence[Mapping[str, float]]) -> Measured:
    figures, errors = {}, {}
    for name in FIGURES:
        values = [row[name] for row in rows if name in row and math.isfinite(row[name])]
        if values:
            found = torch.tensor(values, dtype=torch.float64)
            figures[name] = float(found.mean())
            errors[name] = float(found.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
    return Measured(label, figures, errors, len(rows))


def as_csv(rows: Sequence[Measured]) -> str:
    """Return the table as CSV: each figure, and its standard error over clips."""
    names = [name for name in FIGURES if any(name in row.figures for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["mask", "clips", *[column for name in names for column in (name, f"{name}_se")]])
    for row in rows:
        pairs = [(row.figures.get(name, ""), row.errors.get(name, "")) for name in names]
        writer.writerow([row.label, row.clips, *[value for pair in pairs for value in pair]])
    return text.getvalue()


def as_table(rows: Sequence[Measured]) -> Any:
    """Return the figures as a rich table, a row a figure and a column a strategy: four fit on 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=_title(rows), title_justify="left")
    table.add_column("")
    for row in rows:
        table.add_column(_option_a_line(row.label), justify="right", overflow="fold")
    for name, (heading, unit, _) in FIGURES.items():
        if any(name in row.figures for row in rows):
            table.add_row(f"{heading}, [dim]{unit}[/dim]", *[_cell(row, name) for row in rows])
    return table


def _title(rows: Sequence[Measured]) -> str:
    clips = rows[0].clips
    return "1 clip" if clips == 1 else f"{clips} clips: mean ± standard error"


def _option_a_line(label: str) -> str:
    """Return "motion:warp=forward,select=slot" with one option a line."""
    lines = re.findall(r"[^:,]+[:,]?", label)
    return escape("\n".join(line if len(line) <= _NARROW else line.replace("=", "=\n") for line in lines))


def _cell(row: Measured, name: str) -> str:
    if name not in row.figures:
        return "-"
    error = row.errors[name]
    return f"{row.figures[name]:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def draw(rows: Sequence[Measured], path: Path) -> None:
    """Draw leakage, copy error and life of each strategy, with standard errors.

    Raises:
        RunError: the picture can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.4 + 0.45 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    labels = [row.label for row in rows]
    titles = (("leak", "lower leaks less"), ("copy_error", "higher is harder to copy"), ("life", "slots"))
    for axes, (name, hint) in zip(figure.subplots(1, 3, sharey=True), titles):
        colours = [f"C{number % 10}" for number in range(len(rows))]
        errors = [0.0 if math.isnan(row.errors[name]) else row.errors[name] for row in rows]
        axes.barh(labels, [row.figures[name] for row in rows], xerr=errors, color=colours, alpha=0.85)
        if name == "life":
            axes.axvline(rows[0].figures["life_limit"], color="black", linestyle=":", label="limit")
            axes.legend(fontsize=8)
        axes.set_title(f"{FIGURES[name][0]} ({hint})", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: picture not written: {getattr(error, 'strerror', None) or error}") from error
