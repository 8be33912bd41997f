"""Where a step's time goes: a trace to look at in ui.perfetto.dev, and a table of its operators."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch._C._autograd import DeviceType  # torch.autograd has it, but does not say so
from torch.profiler import ProfilerActivity, profile

from mgmae_cli.bench.measure import WARMUPS, Figure
from mgmae_cli.bench.options import Bench
from mgmae_cli.bench.results import Row, Table, as_markdown
from mgmae_cli.bench.step import StepSpec, make_model, make_step, step_specs
from mgmae_cli.engine.run_folder import replace_text
from mgmae_cli.errors import RunError

SHOWN = 12  # operators in the tables that are shown; those in the files have all


def profile_steps(bench: Bench) -> list[Table]:
    """Profile every step that the options ask for; write a trace and a table of each, and return the tables' heads.

    Raises:
        RunError: the folder can't be made, or written.
    """
    folder = bench.options.profile
    assert folder is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--profile {folder}: can't be made ({error.strerror}); choose another folder") from error
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or else every start and stop is told on standard error
    heads = []
    for spec in step_specs(bench):
        if spec.half:  # the same operators
            continue
        bench.say(f"profile: {spec.name}")
        path = folder / spec.name.replace(",", "").replace(" ", "-")
        table = _profile(spec, bench.options.repeats, path.with_suffix(".json"))
        replace_text(path.with_suffix(".md"), as_markdown(table) + "\n")
        heads.append(replace(table, rows=table.rows[:SHOWN]))
    return heads


def _profile(spec: StepSpec, repeats: int, trace: Path) -> Table:
    """Profile one step after the other; the last one's trace is kept."""
    step = make_step(spec, make_model(spec))
    on_gpu = spec.place.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for number in range(WARMUPS):
        step(number)
    found: list[Mapping[str, tuple[float, int]]] = []
    for number in range(repeats):
        with profile(activities=activities) as profiler:
            step(number)
            spec.place.wait()
        found.append(
            {
                event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
                for event in profiler.key_averages()
                if event.device_type == DeviceType.CPU  # operators; a GPU's kernels are listed beside them once more
            }
        )
    profiler.export_chrome_trace(str(trace))
    rows = sorted((_row(name, found) for name in found[-1]), key=lambda row: -row.figures["share"].median)
    return Table("profile", f"{spec.name}, a step of {spec.batch_size} clips", rows, [f"trace: {trace}"])


def _row(operator: str, steps: Sequence[Mapping[str, tuple[float, int]]]) -> Row:
    """Return an operator's own time, without that of operators that it calls, in each profiled step."""
    own = [step.get(operator, (0.0, 0)) for step in steps]
    totals = [sum(microseconds for microseconds, _ in step.values()) for step in steps]
    return Row(
        operator,
        {
            "share": Figure.of([100 * each[0] / total for each, total in zip(own, totals)], "%"),
            "a step": Figure.of([each[0] / 1e3 for each in own], "ms"),
            "calls": Figure.of([own[-1][1]], ""),
        },
    )
