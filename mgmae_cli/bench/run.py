"""`bench`: measure the parts that were asked for, one after the other. Callable from a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from mgmae_cli.bench.data import run_data
from mgmae_cli.bench.flow import run_flow
from mgmae_cli.bench.masks import run_masks
from mgmae_cli.bench.options import Bench, BenchOptions
from mgmae_cli.bench.profile import profile_steps
from mgmae_cli.bench.results import Report, Table, as_markdown, describe, environment
from mgmae_cli.bench.step import run_step
from mgmae_cli.bench.train import run_train
from mgmae_cli.engine.distributed import find_place
from mgmae_cli.errors import ConfigError
from mgmae_cli.registry import Registry, default_registry

_RUN: dict[str, Callable[[Bench], list[Table]]] = {
    "masks": run_masks,
    "flow": run_flow,
    "data": run_data,
    "step": run_step,
    "train": run_train,
    "profile": profile_steps,
}


def bench(
    options: BenchOptions,
    out: Path | None = None,
    show: Callable[[str], None] = lambda markdown: None,
    registry: Registry | None = None,
    console: Console | None = None,
) -> Report:
    """Measure what the options ask for.

    Args:
        out: JSON file, written anew after each part.
        show: is handed the environment, then each table, as Markdown, as soon as they are known.
        registry: the plugins; None: all that are installed.
        console: where progress is shown; None: standard error.

    Raises:
        MgmaeError: what the user can mend.
    """
    console = console or Console(stderr=True, emoji=False)
    registry = registry or default_registry()
    places = [find_place(options.device, precision) for precision in options.precisions]
    device = places[0].device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    report = Report(environment(registry, device), options.as_dict())
    show(describe(report.environment))
    for part in (*options.parts, *(["profile"] if options.profile else [])):
        if out is not None:
            report.save(out)  # before the first part, too: a path that can't be written is told at once
        with console.status(part, refresh_per_second=1) as status, _compiler_needed():
            tables = _RUN[part](Bench(options, device, registry, status.update))
        for table in tables:
            show(as_markdown(table))
        report.tables.extend(tables)
    if out is not None:
        report.save(out)
    return report


@contextmanager
def _compiler_needed() -> Iterator[None]:
    """Say in one line that torch.compile does not work here.

    Raises:
        ConfigError: it does not.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"--compile: torch.compile does not work here ({reason}); drop it, or mend that") from error
