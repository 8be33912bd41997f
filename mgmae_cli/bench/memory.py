"""The most memory that a step takes: on a GPU as torch counts it, else in a fresh process, where nothing has been."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mgmae_cli.bench.measure import Figure

if TYPE_CHECKING:
    from mgmae_cli.bench.step import StepSpec

STEPS = 2  # the second one meets what the first one leaves behind


def peak_memory(specs: Sequence[StepSpec], repeats: int, say: Callable[[str], None]) -> dict[str, Figure]:
    """Return the most memory that each step takes, by name, in GB; they take turns as in `measure.race`."""
    found: dict[str, list[float]] = {spec.name: [] for spec in specs}
    for number in range(repeats):
        for spec in specs:
            say(f"memory, round {number + 1} of {repeats}: {spec.name}")
            if spec.place.device.type == "cuda":
                found[spec.name].append(_gpu_memory(spec) / 1e9)
                continue
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[spec.name].append(pool.submit(step_memory, spec, torch.get_num_threads()).result() / 1e9)
    return {name: Figure.of(samples, "GB") for name, samples in found.items()}


def step_memory(spec: StepSpec, threads: int) -> int:
    """Return the bytes that a step adds at most to what this process, a fresh one, holds in a CPU's memory.

    Weights, gradients, activations and the batch count, libraries don't.
    """
    if spec.peer:
        import transformers.models.videomae.modeling_videomae  # noqa: F401 - its own size is not the step's

    torch.set_num_threads(threads)
    before = _most_resident()
    _do_steps(spec)
    return _most_resident() - before


def _gpu_memory(spec: StepSpec) -> int:
    """Return the same of a GPU's memory, in bytes that torch has allocated."""
    device = spec.place.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _do_steps(spec)
    return torch.cuda.max_memory_allocated(device) - before


def _do_steps(spec: StepSpec) -> None:
    from mgmae_cli.bench.step import make_model, make_step

    step = make_step(spec, make_model(spec))
    for number in range(STEPS):
        step(number)


def _most_resident() -> int:
    """Return the largest resident size that this process has had, in bytes.

    Linux's getrusage also counts what the parent held when it started this process; /proc does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
