"""Where this process runs: device, precision, and its rank among others (torchrun or srun start them)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from mgmae_cli.errors import ConfigError

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Place:
    """This process's device, its precision, and its rank.

    Args:
        device: where the model is.
        precision: "bf16" runs under autocast; weights and optimiser states stay fp32.
        rank, ranks: this process among all; local_rank among those of this machine.
    """

    device: torch.device
    precision: Precision
    rank: int = 0
    ranks: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Return the autocast context of a forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def find_place(device: str = "auto", precision: str = "auto") -> Place:
    """Choose device and precision, and join the process group if there is one.

    Raises:
        ConfigError: a device that is not there.
    """
    rank, ranks, local = (
        _first_int(("RANK", "SLURM_PROCID"), 0),
        _first_int(("WORLD_SIZE", "SLURM_NTASKS"), 1),
        _first_int(("LOCAL_RANK", "SLURM_LOCALID"), 0),
    )
    if "RANK" not in os.environ and "SLURM_STEP_ID" not in os.environ:
        rank, ranks, local = 0, 1, 0  # an allocation without srun: one process
    chosen = _device(device, local)
    if ranks > 1 and not dist.is_initialized():
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29511")
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=ranks)
    return Place(chosen, _precision(precision, chosen), rank, ranks, local)


def leave() -> None:
    """Leave the process group, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over all ranks."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set on any rank, so that all leave a loop together."""
    if not dist.is_initialized():
        return flag
    tensor = torch.tensor(float(flag), device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return bool(tensor.item())


def _first_int(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"run.device = {name!r}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index if device.index is not None else local_rank
        if index >= count:
            raise ConfigError(f"run.device = {name!r}: this machine offers {count} CUDA devices; use --device cpu")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
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
