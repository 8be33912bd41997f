"""What `mgmae bench` reports: tables of figures, written as Markdown and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mgmae_cli.bench.measure import Figure
from mgmae_cli.engine.run import device_name
from mgmae_cli.engine.run_folder import describe_environment, replace_text
from mgmae_cli.processor import processor_name
from mgmae_cli.registry import Registry

FORMAT = "mgmae-bench-1"


@dataclass(frozen=True)
class Row:
    """A line of a table: what was measured, and its figures by column."""

    name: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Table:
    """Figures of one part.

    Args:
        part: step, masks, ...
        title: what all rows have in common.
        rows: they may lack columns that others have.
        notes: what a reader must know besides.
    """

    part: str
    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.rows for column in row.figures))


@dataclass(frozen=True)
class Report:
    """All that a run of `mgmae bench` measured, where, and with which options."""

    environment: Mapping[str, Any]
    options: Mapping[str, Any]
    tables: list[Table] = field(default_factory=list)

    def as_json(self) -> str:
        """Return everything, single samples included."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, default=str) + "\n"

    def save(self, path: Path) -> None:
        """Write the JSON.

        Raises:
            RunError: it can't be written.
        """
        replace_text(path, self.as_json())


def environment(registry: Registry, device: torch.device) -> dict[str, Any]:
    """Return what decides a figure besides the code: machine, versions, threads, and how busy the machine was."""
    found = describe_environment(registry, device_name(device))
    for package in ("transformers", "pillow"):
        with suppress(PackageNotFoundError):
            found["packages"][package] = version(package)
    return {
        **found,
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def describe(facts: Mapping[str, Any]) -> str:
    """Return the environment in one paragraph, to stand above the tables."""
    git = facts["git"]
    commit = f"commit {git['commit'][:10]}{' (modified)' if git['modified'] else ''}" if git else "no commit"
    packages = [f"{name} {facts['packages'][name]}" for name in ("torch", "transformers") if name in facts["packages"]]
    parts = [
        facts["started"][:10],
        facts["device"],
        facts["cpu"],
        f"{facts['threads']} threads",
        f"mgmae {facts['mgmae']}, {commit}",
        *packages,
        f"load average {facts['load_average']:.1f} before" if facts["load_average"] is not None else "",
    ]
    return f"{', '.join(filter(None, parts))}. Medians, with quartiles in brackets."


def as_markdown(table: Table) -> str:
    """Return a table with its heading and notes."""
    cells = [[table.part, *table.columns]]
    for row in table.rows:
        figures = (row.figures.get(column) for column in table.columns)
        cells.append([row.name, *("" if figure is None else in_words(figure) for figure in figures)])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "| "
        + " | ".join(text.rjust(width) if n else text.ljust(width) for n, (text, width) in enumerate(zip(line, widths)))
        + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + (":" if n else "-") for n, width in enumerate(widths)) + "|")
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"### {table.part}: {table.title}", "", *lines, "", *notes])


def in_words(figure: Figure) -> str:
    """Return '12.3 ms (12.1-12.9)'."""
    unit = figure.unit if figure.unit == "x" or not figure.unit else f" {figure.unit}"
    spread = f" ({_digits(figure.low)}-{_digits(figure.high)})" if len(figure.samples) > 1 else ""
    return f"{_digits(figure.median)}{unit}{spread}"


def _digits(value: float) -> str:
    """Return the three leading digits, and all digits before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
