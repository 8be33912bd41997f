"""Where this process runs: device, precision, its rank among others, and what the ranks agree on.

torchrun or srun start the ranks. Agreements travel between CPUs (gloo) and never wait for a GPU; an error of one rank
ends all of them at the same point. In the official code it ends one and hangs the others (method notes, defect 10).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

from mgmae_cli.config import RunSection
from mgmae_cli.errors import ConfigError, RunError

Precision = Literal["fp32", "bf16"]
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """This process's device, its precision, and its rank.

    Args:
        device: where the model is.
        precision: "bf16" runs under autocast; weights and optimiser states stay fp32.
        rank, ranks: this process among all.
        local_rank, local_ranks: the same among those that share this machine's cores.
    """

    device: torch.device
    precision: Precision
    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    local_ranks: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of a forward pass."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def wait(self) -> None:
        """Wait until the device has done all that it was given, so that a clock may be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def find_place(device: str = "auto", precision: str = "auto") -> Place:
    """Choose device and precision, and join the process group if there is one.

    Raises:
        ConfigError: a device that is not there.
    """
    rank, ranks, local_rank, local_ranks = _find_ranks()
    chosen = _device(device, local_rank, ranks)
    place = Place(chosen, _precision(precision, chosen), rank, ranks, local_rank, local_ranks)
    if ranks > 1 and not dist.is_initialized():
        os.environ.setdefault("MASTER_ADDR", _meeting_host())
        os.environ.setdefault("MASTER_PORT", str(_meeting_port()))
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=ranks)
    return place


def leave() -> None:
    """Leave the process group, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def placed(run: RunSection, out: Path) -> Iterator[tuple[Place, RunSection]]:
    """Find the device and join the other processes for the time of a run.

    Args:
        out: the run folder.

    Yields:
        The place, and the section `run` with nothing left to choose.

    Raises:
        ConfigError: a device that is not there.
    """
    place = find_place(run.device, run.precision)
    try:
        yield place, run.model_copy(update={"out": out, "precision": place.precision})
    finally:
        leave()


# --- agreements ---------------------------------------------------------------------------------------------------


def any_rank(*flags: bool) -> list[bool]:
    """Return, for each flag, whether it is set on any rank, so that all do the same."""
    if not dist.is_initialized():
        return list(flags)
    tensor = torch.tensor([int(flag) for flag in flags])
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return [bool(flag) for flag in tensor.tolist()]


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Return the mean over all ranks of a tensor on the CPU."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def gather(value: T) -> list[T]:
    """Return the value of every rank, in their order; it must be picklable."""
    if not dist.is_initialized():
        return [value]
    found: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


@contextmanager
def together() -> Iterator[None]:
    """Let an error that one rank meets inside end all ranks at the end of it, so that none waits for ever.

    Raises:
        RunError: on ranks that were fine themselves, when another was not.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as met:
        error = met
    (failed,) = any_rank(error is not None)
    if error is not None:
        raise error
    if failed:
        raise RunError("another process of this run met an error and said which; this one stops with it")


# --- finding out --------------------------------------------------------------------------------------------------


def _find_ranks() -> tuple[int, int, int, int]:
    """Return rank, ranks, local rank and local ranks, as torchrun or srun set them; one process without them."""

    def number(name: str, default: int) -> int:
        return int(re.match(r"\d*", os.environ.get(name, ""))[0] or default)  # type: ignore[index]

    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size(), number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", 1)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        ranks = number("WORLD_SIZE", 1)
        return number("RANK", 0), ranks, number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", ranks)
    if "SLURM_STEP_NUM_TASKS" in os.environ and "SLURM_PROCID" in os.environ:  # inside srun; not in sbatch's script
        # srun binds each task to its own cores, unless it is told not to
        shares = 1 if "SLURM_CPUS_PER_TASK" in os.environ else number("SLURM_STEP_TASKS_PER_NODE", 1)
        return number("SLURM_PROCID", 0), number("SLURM_STEP_NUM_TASKS", 1), number("SLURM_LOCALID", 0), shares
    return 0, 1, 0, 1


def _meeting_host() -> str:
    """Return the machine of rank 0: the first of SLURM's list, such as gpu[003-004,7],cpu1."""
    if int(os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES", "1"))) == 1:
        return "127.0.0.1"
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _meeting_port() -> int:
    """Return a port that other SLURM jobs on the machine are not likely to choose."""
    return 20000 + (int(os.environ.get("SLURM_JOB_ID", "0")) + 97 * int(os.environ.get("SLURM_STEP_ID", "0"))) % 20000


def _device(name: str, local_rank: int, ranks: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"run.device = {name!r}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if ranks > 1 and device.index is not None:
            raise ConfigError(f"run.device = {name!r}: names one device for {ranks} processes; use cuda")
        own = 0 if count == 1 else local_rank  # SLURM may show each process its own GPU only
        index = device.index if device.index is not None else own
        if index >= count:
            raise ConfigError(f"run.device = {name!r}: this machine offers {count} CUDA devices; use --device cpu")
        return torch.device("cuda", index)
    if device.type == "mps" and (ranks > 1 or not torch.backends.mps.is_available()):
        raise ConfigError(f"run.device = {name!r}: not available here; use --device cpu")
    if device.type not in ("cpu", "mps"):
        raise ConfigError(f"run.device = {name!r}: not supported; use auto, cpu, cuda or cuda:N")
    return device


def _precision(name: str, device: torch.device) -> Precision:
    if name == "fp32" or (name == "auto" and device.type != "cuda"):
        return "fp32"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        if name == "auto":
            return "fp32"
        raise ConfigError("run.precision = 'bf16': this GPU has no bfloat16; use --precision fp32")
    return "bf16"
