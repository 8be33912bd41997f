"""What `mgmae bench` is told to measure, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch

from mgmae_cli.engine.distributed import Place, Precision
from mgmae_cli.errors import ConfigError, did_you_mean
from mgmae_cli.grid import ClipGrid
from mgmae_cli.model.videomae import SIZES
from mgmae_cli.registry import Registry

PARTS = ("masks", "flow", "data", "step", "train")
PEERS = ("hf",)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# option -> the parts that look at it, where not all do
_USED_BY = {
    "against": ("step",),
    "models": ("masks", "step", "train"),
    "precisions": ("masks", "step", "train"),
    "batch_size": ("masks", "flow", "step", "train"),
    "mask_ratio": ("masks", "step", "train"),
    "compile": ("step", "train"),
    "checkpointing": ("step",),
    "weights": ("masks", "flow"),
    "videos": ("data",),
    "steps": ("train",),
    "profile": ("step",),
}
_FLAGS = {"models": "--model", "precisions": "--precision", "videos": "--video"}


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Args:
        parts: of `PARTS`.
        against: peers in the part `step`: of `PEERS`.
        models: presets.
        precisions: of `PRECISIONS`.
        batch_size: clips a step; None: 4 on a CPU, 32 on a GPU.
        repeats: rounds that count.
        device: auto, cpu, cuda, cuda:1, ...
        frames, size: of a clip, in pixels a side.
        mask_ratio: share of masked tokens.
        compile: measure compiled models beside the others.
        checkpointing: measure recomputed activations beside the others.
        weights: RAFT's; None: random ones, which are as fast, and no masks by its flow.
        videos: for the part `data`; none: those that can be found or made.
        steps: of each run of the part `train`.
        profile: folder for traces of a step, and tables of where its time goes.

    Raises:
        ConfigError: a name that is not known or is there twice, a number out of range, a file that is not there, or an
            option that no chosen part looks at.
    """

    parts: tuple[str, ...] = PARTS
    against: tuple[str, ...] = ()
    models: tuple[str, ...] = ("small",)
    precisions: tuple[Precision, ...] = PRECISIONS
    batch_size: int | None = None
    repeats: int = 5
    device: str = "auto"
    frames: int = 16
    size: int = 224
    mask_ratio: float = 0.9
    compile: bool = False
    checkpointing: bool = False
    weights: Path | None = None
    videos: tuple[Path, ...] = ()
    steps: int = 8
    profile: Path | None = None

    def __post_init__(self) -> None:
        _check_names("part", self.parts, PARTS)
        _check_names("--against", self.against, PEERS)
        _check_names("--precision", self.precisions, PRECISIONS)
        _check_names("--model", self.models, tuple(SIZES))
        if "hf" in self.against and find_spec("transformers") is None:
            raise ConfigError("--against hf: transformers is not installed; pip install transformers")
        for name, least in (("repeats", 1), ("steps", 4), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{_flag(name)} {value}: must be at least {least}")
        for path in (*self.videos, *([self.weights] if self.weights else [])):
            if not path.is_file():
                raise ConfigError(f"{path}: no such file")
        self.grid.masked_per_slot(self.mask_ratio)
        for option in fields(self):
            users = _USED_BY.get(option.name, self.parts)
            if getattr(self, option.name) != option.default and not set(users) & set(self.parts):
                raise ConfigError(f"{_flag(option.name)}: only {', '.join(users)} look at it; add the part, or drop it")

    @property
    def grid(self) -> ClipGrid:
        return ClipGrid(self.frames, self.size, self.size)

    def as_dict(self) -> dict[str, Any]:
        """Return the options for the report."""
        return asdict(self)


@dataclass(frozen=True)
class Bench:
    """What every part is handed.

    Args:
        options: what to measure.
        device: where.
        registry: the plugins.
        say: is told what runs now.
    """

    options: BenchOptions
    device: torch.device
    registry: Registry
    say: Callable[[str], None] = lambda text: None

    @property
    def batch_size(self) -> int:
        """Clips a step."""
        return self.options.batch_size or (32 if self.device.type == "cuda" else 4)

    def places(self) -> list[Place]:
        """Return the device in each precision."""
        return [Place(self.device, precision) for precision in self.options.precisions]


def parse_precisions(words: Sequence[str]) -> tuple[Precision, ...]:
    """Return the precisions that `--precision` names; `both`, or none, means all.

    Raises:
        ConfigError: a name that is not known, or is there twice.
    """
    _check_names("--precision", words, (*PRECISIONS, "both"))
    return tuple(each for each in PRECISIONS if not words or "both" in words or each in words)


def _check_names(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{what} {name!r}: unknown{did_you_mean(name, known)}; known: {', '.join(known)}")
        if given.count(name) > 1:
            raise ConfigError(f"{what} {name!r}: named twice; drop one")


def _flag(option: str) -> str:
    return _FLAGS.get(option, f"--{option.replace('_', '-')}")
