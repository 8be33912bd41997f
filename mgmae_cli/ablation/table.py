"""From figures of runs to the table: mean and deviation over seeds, paired differences, cost, the best in bold."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table as RichTable

from mgmae_cli.ablation.evaluate import METRICS, Metric
from mgmae_cli.ablation.grid import Cell
from mgmae_cli.ablation.state import Run
from mgmae_cli.ablation.statistics import Difference, Spread, paired_difference, spread


@dataclass(frozen=True)
class Entry:
    """One figure of one cell.

    Args:
        values: by seed.
        spread: over the seeds.
        difference: to the cell's reference, over the seeds that both have; None for the reference itself.
        best: no cell that it is compared with has a better mean.
    """

    values: dict[int, float]
    spread: Spread
    difference: Difference | None
    best: bool


@dataclass(frozen=True)
class Row:
    """A cell's figures by name, the state of its runs, and errors of those that failed, by seed."""

    cell: Cell
    entries: dict[str, Entry]
    done: list[int]
    failed: dict[int, str]
    waiting: list[int]


@dataclass(frozen=True)
class Results:
    """The table of an ablation: its rows, and the names of the figures that any has, in their order."""

    rows: list[Row]
    names: list[str]


def collect(cells: Sequence[Cell], runs: Sequence[Run]) -> Results:
    """Read all that is done; figures of runs that are not done are left out."""
    values: dict[str, dict[str, dict[int, float]]] = {cell.name: {} for cell in cells}
    states: dict[str, dict[int, dict[str, Any]]] = {cell.name: {} for cell in cells}
    for run in runs:
        state = run.state()
        states[run.cell][run.seed] = state
        if state["status"] == "done":
            for name, value in run.figures().items():
                if name in METRICS:
                    values[run.cell].setdefault(name, {})[run.seed] = value
    names = [name for name in METRICS if any(name in found for found in values.values())]
    rows = []
    for cell in cells:
        entries = {name: _entry(name, cell, cells, values) for name in names if values[cell.name].get(name)}
        of_seed = states[cell.name]
        rows.append(
            Row(
                cell,
                entries,
                [seed for seed, state in of_seed.items() if state["status"] == "done"],
                {seed: state.get("error", "") for seed, state in of_seed.items() if state["status"] == "failed"},
                [seed for seed, state in of_seed.items() if state["status"] in ("waiting", "running")],
            )
        )
    return Results(rows, names)


def _entry(name: str, cell: Cell, cells: Sequence[Cell], values: dict[str, dict[str, dict[int, float]]]) -> Entry:
    mine = values[cell.name][name]
    theirs = values[cell.reference].get(name, {})
    shared = sorted(set(mine) & set(theirs))
    difference = None
    if cell.name != cell.reference and shared:
        difference = paired_difference([mine[seed] for seed in shared], [theirs[seed] for seed in shared])
    rivals = [
        spread(list(found.values())).mean
        for other in cells
        if other.reference == cell.reference and (found := values[other.name].get(name))
    ]
    mean = spread(list(mine.values()))
    better = METRICS[name].better
    best = len(rivals) > 1 and len(set(rivals)) > 1
    best = best and {"high": mean.mean == max(rivals), "low": mean.mean == min(rivals)}.get(better or "", False)
    return Entry(mine, mean, difference, best)


def number(value: float, metric: Metric, sign: bool = False) -> str:
    """Return a figure with its metric's digits."""
    return f"{value:{'+' if sign else ''}.{metric.digits}f}"


def mean_text(entry: Entry, metric: Metric) -> str:
    """Return "mean ± deviation"."""
    deviation = entry.spread.deviation
    return number(entry.spread.mean, metric) + ("" if deviation is None else f" ± {number(deviation, metric)}")


def difference_text(difference: Difference | None, metric: Metric) -> str:
    """Return "difference [low, high]", with a star where the interval leaves zero out."""
    if difference is None:
        return ""
    text = number(difference.mean, metric, sign=True)
    if difference.low is None or difference.high is None:
        return text
    ends = f"[{number(difference.low, metric, sign=True)}, {number(difference.high, metric, sign=True)}]"
    return f"{text} {ends}" + ("*" if difference.is_clear else "")


def rich_table(results: Results, width: int = 120) -> RichTable:
    """Return the table for a terminal: as many figures as fit, differences below the means."""
    longest = min(max(len(row.cell.name) for row in results.rows), width // 3)
    fitting = max(1, (width - longest - 13) // 26)  # 23 for most figures, and 3 for edges
    names = results.names[:fitting]
    more = len(results.names) - len(names)
    table = RichTable(caption=f"{more} more figures in the report" if more else None, show_lines=True)
    table.add_column("cell", min_width=longest, overflow="fold")
    table.add_column("seeds", justify="right")
    for name in names:
        table.add_column(METRICS[name].title, justify="right", overflow="fold")
    for row in results.rows:
        cells = []
        for name in names:
            entry = row.entries.get(name)
            if entry is None:
                cells.append("-")
                continue
            text = mean_text(entry, METRICS[name])
            below = difference_text(entry.difference, METRICS[name]).replace("[", r"\[")
            cells.append((f"[bold]{text}[/bold]" if entry.best else text) + (f"\n[dim]{below}[/dim]" if below else ""))
        count = str(len(row.done)) + (f"\n[red]{len(row.failed)} failed[/red]" if row.failed else "")
        table.add_row(row.cell.name, count, *cells)
    return table


def as_csv(results: Results) -> str:
    """Return one line a cell and figure: means, deviations, differences and their intervals, and values by seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["cell", "figure", "mean", "deviation", "seeds", "reference", "difference", "low", "high", "best", "values"]
    )
    for row in results.rows:
        for name, entry in row.entries.items():
            found = entry.difference
            compared = ("", "", "") if found is None else (found.mean, found.low, found.high)
            values = " ".join(f"{seed}:{value!r}" for seed, value in sorted(entry.values.items()))
            means = (entry.spread.mean, entry.spread.deviation, entry.spread.count)
            writer.writerow([row.cell.name, name, *means, row.cell.reference, *compared, entry.best, values])
    return text.getvalue()


def as_json(results: Results, facts: dict[str, Any]) -> str:
    """Return all of it for programs."""
    rows = [
        {
            "cell": row.cell.name,
            "labels": dict(row.cell.labels),
            "reference": row.cell.reference,
            "effort": asdict(row.cell.effort),
            "done": row.done,
            "failed": row.failed,
            "waiting": row.waiting,
            "figures": {name: asdict(entry) for name, entry in row.entries.items()},
        }
        for row in results.rows
    ]
    return json.dumps({**facts, "cells": rows}, indent=1) + "\n"
