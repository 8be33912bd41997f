"""What an ablation ends with: table.csv, results.json, PNG plots, and report.html, which holds it all in one file."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from mgmae_cli.ablation import page
from mgmae_cli.ablation.evaluate import METRICS
from mgmae_cli.ablation.grid import Cell
from mgmae_cli.ablation.plots import curves_png, figures_png, trade_off_png
from mgmae_cli.ablation.recipe import Ablation
from mgmae_cli.ablation.run_page import warning_lines
from mgmae_cli.ablation.state import Run, read_json
from mgmae_cli.ablation.table import Results, Row, as_csv, as_json, collect, difference_text, mean_text
from mgmae_cli.config import dump
from mgmae_cli.engine.run_folder import describe_environment, read_metrics, replace_text
from mgmae_cli.errors import MgmaeError, RunError

_PICTURED = 12  # cells whose masks are drawn
_TABLES = {
    "Accuracy and leakage": ("finetune", "linear", "attentive", "knn", "leak", "copy_error", "life"),
    "Losses": ("loss", "unseen_loss", "tube_loss"),
    "Flow": ("hole_share", "flow_error", "photometric_error", "consistency_error"),
    "Cost": ("train_seconds", "clips_per_s", "data_wait"),
}
_PAPER_CLIPS = 169_000 * 800  # SSv2's training videos, 800 epochs


def write_report(
    out: Path, ablation: Ablation, cells: Sequence[Cell], runs: Sequence[Run], masks: bool = True
) -> Results:
    """Write all files of the report; return the table.

    Args:
        masks: draw the masks of each cell.

    Raises:
        RunError: a file can't be written.
    """
    results = collect(cells, runs)
    environment = environment_of(cells, runs)
    pictures = {
        "figures": figures_png(results),
        "trade_off": trade_off_png(results, ablation.recipe.sweep),
        "curves": curves_png(results, runs),
        "masks": mask_png([row.cell for row in results.rows if row.done]) if masks else None,
    }
    facts = {
        "ablation": ablation.name,
        "budget": ablation.budget,
        "seeds": list(ablation.seeds),
        "environment": environment,
    }
    replace_text(out / "table.csv", as_csv(results))
    replace_text(out / "results.json", as_json(results, facts))
    for name, png in pictures.items():
        if png is not None:
            _write_bytes(out / f"{name}.png", png)
    replace_text(out / "report.html", _html(ablation, cells, runs, results, environment, pictures))
    return results


def environment_of(cells: Sequence[Cell], runs: Sequence[Run]) -> dict[str, Any]:
    """Return where the runs were done; where they differ in something, a list of all that it was.

    Runs without training keep no environment: for them it is the one of this process.
    """
    here = describe_environment(cells[0].settings.registry, cells[0].settings.config.run.device)
    found = [read_json(run.run_folder / "environment.json") for run in runs]
    known = [environment for environment in found if environment]
    if not known:
        return here
    merged: dict[str, Any] = {}
    for key in here:
        values = {json.dumps(environment.get(key)): environment.get(key) for environment in known}
        merged[key] = next(iter(values.values())) if len(values) == 1 else list(values.values())
    starts = [str(environment.get("started")) for environment in known]
    merged |= {"started": min(starts), "last_run_started": max(starts), "command": here["command"]}
    return merged


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise RunError(f"{path}: can't be written: {error.strerror or error}") from error


def mask_png(cells: Sequence[Cell]) -> bytes | None:
    """Draw one clip under the masks of each cell; None where there are no cells, or the clip can't be read."""
    from mgmae_cli.diagnose.pictures import sheet, slot_frames
    from mgmae_cli.diagnose.show import Strategy, show_masks

    rows: list[Any] = []
    before: Cell | None = None
    try:
        for cell in _differing(cells)[:_PICTURED]:
            name, found = show_masks([Strategy(cell.name, cell.settings)])
            rows += found[-1:] if before and _same_clip(before, cell) else [*found[:1], found[-1]]
            before = cell
    except MgmaeError:
        return None
    if not rows:
        return None
    file = io.BytesIO()
    sheet(rows, slot_frames(cells[0].settings.grid), f"Masks of each cell on {name}").save(file, format="PNG")
    return file.getvalue()


def _differing(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells whose masks or clips differ from those of the cells before."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        config = cell.settings.config
        key = json.dumps([part.model_dump(mode="json") for part in (config.mask, config.flow, config.data)])
        seen.setdefault(key, cell)
    return list(seen.values())


def _same_clip(one: Cell, other: Cell) -> bool:
    return one.settings.config.data == other.settings.config.data


def _html(
    ablation: Ablation,
    cells: Sequence[Cell],
    runs: Sequence[Run],
    results: Results,
    environment: dict[str, Any],
    pictures: dict[str, bytes | None],
) -> str:
    recipe = ablation.recipe
    parts = [
        f"<h1>{escape(ablation.name)}</h1>",
        f'<p class="lead">{escape(recipe.question)}</p>',
        *([f'<p class="note">The paper: {escape(recipe.paper)}</p>'] if recipe.paper else []),
        _size(ablation, cells, results),
        "<h2>Results</h2>",
        _tables(results),
        _failures(results),
        _legend(results),
        _warnings(runs),
    ]
    headings = {"figures": "Figures by cell", "trade_off": "Trade-off", "curves": "Curves"}
    captions = {
        "figures": "Means over seeds with standard deviations; ticks are single seeds.",
        "trade_off": "What the swept number costs and gives; bars are standard deviations over seeds.",
        "curves": "Each curve is a cell's mean over its finished seeds.",
    }
    for name, caption in captions.items():
        png = pictures[name]
        if png is not None:
            parts += [f"<h2>{headings[name]}</h2>", page.picture(png, caption)]
    masks = pictures["masks"]
    if masks is not None:
        parts += [
            "<h2>Masks</h2>",
            page.picture(masks, "One clip, the first frame of every slot; masked tokens are grey."),
        ]
    first = cells[0].settings.config
    parts += [
        "<h2>Recipe</h2>",
        page.code(ablation.text),
        page.folded(f"All settings of cell {cells[0].name}", page.code(dump(first))),
        "<h2>Environment</h2>",
        page.facts((key, _short(value)) for key, value in environment.items() if value is not None),
    ]
    return page.document(f"mgmae ablation: {ablation.name}", parts)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return " ".join(map(_short, value)) if isinstance(value, list) else str(value)


def _size(ablation: Ablation, cells: Sequence[Cell], results: Results) -> str:
    """Say how big the experiment is, and what that means."""
    config, effort = cells[0].settings.config, cells[0].effort
    grid = cells[0].settings.grid
    share = effort.clips_seen / _PAPER_CLIPS
    done = sum(len(row.done) for row in results.rows)
    failed = sum(len(row.failed) for row in results.rows)
    waiting = sum(len(row.waiting) for row in results.rows)
    left = "".join(f", {count} {word}" for count, word in ((failed, "failed"), (waiting, "not done")) if count)
    rows = [
        (
            "budget",
            f"{ablation.budget or 'none'}; {len(cells)} cells x {len(ablation.seeds)} seeds: {done} runs done{left}",
        ),
        ("data", f"{config.data.path or config.data.source}, clips of {grid.frames} x {grid.height} x {grid.width}"),
        ("model", f"{config.model.name}, tokens of {grid.tubelet} x {grid.patch} x {grid.patch}"),
        ("tokens", f"{effort.visible_tokens} visible of {effort.tokens}"),
        ("training", f"{effort.steps} steps, {effort.clips_seen} clips seen by each run"),
    ]
    warning = (
        f"Each run saw {share:.1e} of the clips of the paper's 800 epochs. Such a run tells which effects are large "
        "from the start; it can't tell what long training does. Differences whose interval holds zero are noise here."
        if share < 0.01
        else "Differences whose interval holds zero are noise here."
    )
    return page.facts(rows) + f'<div class="box">{escape(warning)}</div>'


def _tables(results: Results) -> str:
    """Return the figures in tables that fit on a page, by what they are about; the first one has all cells."""
    parts: list[str] = []
    for title, group in _TABLES.items():
        names = [name for name in results.names if name in group]
        rows = [row for row in results.rows if not parts or any(name in row.entries for name in names)]
        if names:
            parts += [f"<h3>{title}</h3>", _table(rows, names)]
    return "".join(parts) or _table(results.rows, [])


def _table(rows: Sequence[Row], names: Sequence[str]) -> str:
    lines = []
    for row in rows:
        failed = f' <span class="failed">{len(row.failed)} failed</span>' if row.failed else ""
        line = [escape(row.cell.name), f"{len(row.done)}{failed}"]
        for name in names:
            entry = row.entries.get(name)
            if entry is None:
                line.append("-")
                continue
            text = escape(mean_text(entry, METRICS[name]))
            below = escape(difference_text(entry.difference, METRICS[name]))
            clear = " clear" if entry.difference is not None and entry.difference.is_clear else ""
            line.append(
                (f"<b>{text}</b>" if entry.best else text)
                + (f'<span class="difference{clear}">{below}</span>' if below else "")
            )
        lines.append(line)
    return page.table(["cell", "seeds", *[METRICS[name].title for name in names]], lines)


def _failures(results: Results) -> str:
    lines = [
        f"<li>{escape(row.cell.name)}, seed {seed}: {escape(error)}</li>"
        for row in results.rows
        for seed, error in row.failed.items()
    ]
    return f'<ul class="failed">{"".join(lines)}</ul>' if lines else ""


def _warnings(runs: Sequence[Run]) -> str:
    """List the warnings of pre-training: each kind once a cell, as its first seed gave it."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        if (run.run_folder / "metrics.jsonl").exists():
            for kind, line in warning_lines(read_metrics(run.run_folder)).items():
                found.setdefault((run.cell, kind), []).append(line)
    lines = [
        f"<li><b>{escape(cell)}</b>, {len(of_seeds)} seeds: {escape(of_seeds[0])}</li>"
        for (cell, _), of_seeds in found.items()
    ]
    return f'<div class="box"><b>Warnings of the runs</b><ul>{"".join(lines)}</ul></div>' if lines else ""


def _legend(results: Results) -> str:
    references = sorted({row.cell.reference for row in results.rows})
    against = references[0] if len(references) == 1 else "the first cell of their group"
    said = (
        f"Mean ± standard deviation over seeds; below, the mean paired difference to {against} with its 95 % "
        "confidence interval (Student's, over seeds; not corrected for the number of comparisons), and a star where "
        "that leaves zero out. Best means in bold."
    )
    terms = "".join(
        f"<dt>{escape(METRICS[name].title)}</dt><dd>{escape(METRICS[name].says)}</dd>" for name in results.names
    )
    return f'<p class="note">{escape(said)}</p><dl>{terms}</dl>'
