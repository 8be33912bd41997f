"""`ablate`: from a recipe's file to a finished report. Callable from a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mgmae_cli.ablation.estimate import estimate_cells
from mgmae_cli.ablation.evaluate import NEED_TRAINING, check_evaluations
from mgmae_cli.ablation.grid import Cell, choose, expand
from mgmae_cli.ablation.recipe import Ablation, load_ablation
from mgmae_cli.ablation.report import write_report
from mgmae_cli.ablation.reuse import reuse_runs
from mgmae_cli.ablation.runner import Watch, run_locally
from mgmae_cli.ablation.state import Run, plan_runs, write_spec
from mgmae_cli.ablation.table import Results, rich_table
from mgmae_cli.engine.lock import locked
from mgmae_cli.engine.progress import format_seconds
from mgmae_cli.engine.run_folder import replace_text
from mgmae_cli.errors import ConfigError, MgmaeError, RunError, did_you_mean

_LAUNCHERS = ("local", "slurm")


@dataclass(frozen=True)
class Options:
    """How an ablation is run; the flags of `mgmae ablate`."""

    budget: str | None = None
    seeds: int | None = None
    only: Sequence[str] = ()
    jobs: int = 1
    launcher: str = "local"
    slurm: Sequence[str] = ()
    dry_run: bool = False
    report_only: bool = False
    out: Path | None = None
    assignments: Sequence[str] = field(default_factory=list)
    reuse: Sequence[Path] = ()


def run_ablation(path: Path, options: Options, console: Console | None = None) -> Results | None:
    """Do what is left of an ablation, write its report and return its table; None for a dry run.

    Raises:
        MgmaeError: a recipe that is wrong, cells that can't be compared, or runs that failed.
        Stopped: a signal; the same call goes on.
    """
    console = console or Console(stderr=True, emoji=False)
    if options.launcher not in _LAUNCHERS:
        hint = did_you_mean(options.launcher, _LAUNCHERS)
        raise ConfigError(f"--launcher {options.launcher}: unknown{hint}; use local or slurm")
    if options.slurm and options.launcher != "slurm":
        raise ConfigError(f"--slurm {options.slurm[0]}: has no effect without --launcher slurm")
    ablation = load_ablation(path, options.budget, options.assignments, options.seeds)
    cells = expand(ablation)
    for cell in cells:
        check_evaluations(ablation.evaluate, cell.settings)
    chosen = choose(cells, options.only)
    out = options.out or Path("ablations") / (ablation.name + (f"-{ablation.budget}" if ablation.budget else ""))
    runs = plan_runs(out, cells, ablation.seeds)
    names = {cell.name for cell in chosen}
    wanted = [run for run in runs if run.cell in names]
    if options.dry_run:
        _show_plan(ablation, chosen, wanted, options.jobs, console)
        return None
    busy = f"{out}: another mgmae ablate works in this folder; wait for it, or choose another --out"
    with locked(out / ".lock", busy) as note:
        if note:
            console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
        by_name = {cell.name: cell for cell in cells}
        if not options.report_only:
            for run in wanted:
                write_spec(run, by_name[run.cell], ablation.evaluate, ablation.recipe.keep_checkpoints)
            replace_text(out / "recipe.yaml", ablation.text)
            for run, source in reuse_runs(wanted, options.reuse).items():
                console.print(f"{run.name}: taken from {source}", highlight=False, markup=False, soft_wrap=True)
            watch = Watch(wanted, console)
            if options.launcher == "slurm":
                from mgmae_cli.ablation.launcher import run_on_slurm

                run_on_slurm(out, wanted, options.jobs, options.slurm, watch)
            else:
                run_locally(wanted, options.jobs, watch)
        results = write_report(out, ablation, cells, runs)
    console.print(f"{ablation.name}: {ablation.recipe.question}", style="bold", highlight=False, markup=False)
    console.print(rich_table(results, console.width))
    console.print(f"report: {out / 'report.html'}", highlight=False, soft_wrap=True, markup=False)
    _refuse_failures(wanted)
    return results


def _refuse_failures(runs: Sequence[Run]) -> None:
    failed = [run for run in runs if run.state()["status"] == "failed"]
    if failed:
        lines = [f"{run.name}: {run.state()['error']}" for run in failed]
        raise RunError(
            "\n".join([f"{len(failed)} of {len(runs)} runs failed; the same command tries them again", *lines])
        )


def _show_plan(ablation: Ablation, cells: Sequence[Cell], runs: Sequence[Run], jobs: int, console: Console) -> None:
    """Print cells, runs and the estimated time."""
    trained = bool(NEED_TRAINING & set(ablation.evaluate))
    seconds = estimate_cells(cells, ablation.evaluate)
    console.print(f"{ablation.name}: {ablation.recipe.question}", style="bold", highlight=False, markup=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("cell", overflow="fold")
    for head in ("visible tokens", "steps", "clips seen", "seeds", "time"):
        table.add_column(head, justify="right", overflow="fold")
    total, problems = 0.0, []
    for cell in cells:
        effort, found = cell.effort, seconds[cell.name]
        left = [run for run in runs if run.cell == cell.name and run.state()["status"] != "done"]
        if isinstance(found, MgmaeError):
            problems.append(f"{cell.name} can't run here: {found}")
        else:
            total += found * len(left)
        table.add_row(
            cell.name,
            f"{effort.visible_tokens} of {effort.tokens}",
            str(effort.steps) if trained else "-",
            str(effort.clips_seen) if trained else "-",
            f"{len(ablation.seeds)} ({len(left)} to do)",
            "-" if isinstance(found, MgmaeError) else format_seconds(found * len(left)),
        )
    console.print(table)
    for problem in problems:
        console.print(problem, style="yellow", highlight=False, markup=False, soft_wrap=True)
    left = [run for run in runs if run.state()["status"] != "done"]
    console.print(
        f"{len(cells)} cells, {len(left)} of {len(runs)} runs to do; measured: {', '.join(ablation.evaluate)}; about "
        f"{format_seconds(total)} in all, from a few clips timed on this machine, one run at a time",
        highlight=False,
        soft_wrap=True,
    )
